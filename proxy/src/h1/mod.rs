//! The HTTP/1.1 codec (RFC 9112) for both sides of the proxy: [`head`] and [`decoder`] read, [`encoder`] writes, and
//! a [`BufferedIo`] is a connection with its read and write buffers.
//!
//! Nothing here spawns tasks: the task that handles a request drives both of its connections, so that no byte crosses
//! a channel and no other task is woken. `downstream/h1` is the clients' side, `upstream/link` the upstreams' side.

mod buffered_io;
pub mod decoder;
pub mod encoder;
mod fields;
pub mod head;
pub(crate) mod server;
pub mod violation;
mod write_buf;

pub use self::{
    buffered_io::BufferedIo,
    decoder::{BodyPart, Decoder},
    encoder::Encoder,
    head::HeadError,
    violation::Violation,
    write_buf::WriteBuf,
};

/// Limits on a message's head.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The size of a head in bytes, including its first line.
    pub head: usize,
    /// The number of header fields.
    pub fields: usize,
}
