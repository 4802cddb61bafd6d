//! Byte streams: TCP and unix sockets, TLS on top of them, and the adapter from tokio's traits to hyper's.

mod client;
mod copy;
pub mod descriptors;
mod first_bytes;
pub mod io;
mod linger;
mod pass_writes;
pub mod proxy_protocol;
mod race;
pub mod socket;
mod socket_file;
pub mod stream;
mod timer;
pub mod transport;

pub(crate) use self::pass_writes::pass_writes;
pub use self::{
    client::Client,
    copy::{CopyDirection, CopyError},
    first_bytes::{DetectedProtocol, FirstBytes, Recording, is_tls},
    io::{LocalExecutor, TokioIo},
    linger::linger,
    race::race,
    socket::{ListenSocket, Listener, Socket},
    socket_file::SocketFile,
    stream::{Prefixed, Stream},
    timer::poll_timer,
    transport::Transport,
};
