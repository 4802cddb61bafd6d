//! What is tested: one file for each.

pub mod client_hello;
pub mod documents;
pub mod h1;
pub mod h2_frames;
pub mod h3_frames;
pub mod pairs;
pub mod path;
pub mod properties;
pub mod proxy_protocol;
pub mod sniff;
