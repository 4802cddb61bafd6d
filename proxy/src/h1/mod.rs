//! HTTP/1.1 on the wire (RFC 9112), the same for both sides of the proxy: [`head`] and [`decoder`] read, [`encoder`] writes, and
//! a [`Wire`] is a connection with what has been read and not understood yet, and what is written and not sent yet.
//!
//! Nothing here is a task or waits by itself: whoever has a request drives both connections that it is on, so that no byte
//! crosses a channel and no other task is woken. `downstream/h1` is the side of the clients, `upstream/link` that of the upstreams.

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

/// Bounds on what a peer may send before a body.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of a head, its first line included.
    pub head: usize,
    /// Header fields of a head.
    pub fields: usize,
}
