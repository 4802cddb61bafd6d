//! Where traffic comes in: sockets, the workers that accept from them, and the connections.

pub mod connection;
pub mod socket;
pub mod worker;
