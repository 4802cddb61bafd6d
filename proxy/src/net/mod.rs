//! Byte streams: sockets of both kinds, and the way between tokio's traits and hyper's.

pub mod io;
pub mod socket;
pub mod transport;

pub use self::{
    io::{Metered, TokioIo, Traffic},
    socket::{ListenSocket, Listener, Socket},
    transport::Transport,
};
