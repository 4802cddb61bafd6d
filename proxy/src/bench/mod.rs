//! Measuring: the chain by itself, and the whole under load.

pub mod chain;
pub mod load;
