//! A connection with its read buffer and its write buffer.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::WriteBuf;

/// The size of a read, in bytes, when the amount to come is unknown. These reads go through memory that all
/// connections of a thread share, so that an idle connection holds none.
const LOOK: usize = 16 << 10;

/// The limit on a read directly into a body's own memory, in bytes.
const LARGE: usize = 64 << 10;

thread_local! {
    static SHARED: RefCell<Box<[u8]>> = RefCell::new(vec![0; LOOK].into_boxed_slice());
}

/// An HTTP/1.1 connection with its buffers.
#[derive(Debug)]
pub struct BufferedIo<T> {
    io: T,
    /// Received bytes that were not parsed yet.
    pub inbox: BytesMut,
    /// Bytes to send.
    pub write_buf: WriteBuf,
    received: u64,
    sent: u64,
}

impl<T: AsyncRead + AsyncWrite + Unpin> BufferedIo<T> {
    /// Wraps a new connection.
    pub fn new(io: T) -> BufferedIo<T> {
        BufferedIo { io, inbox: BytesMut::new(), write_buf: WriteBuf::default(), received: 0, sent: 0 }
    }

    /// Returns the stream.
    pub fn get_ref(&self) -> &T {
        &self.io
    }

    /// Returns the number of bytes read so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Returns the number of bytes that the stream accepted so far; the peer need not have received them.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Reads available bytes into the inbox and returns their number; 0 at the end of the stream. `expected` is the
    /// least number of bytes to come, as far as known.
    ///
    /// # Errors
    /// The stream's errors.
    pub fn poll_read(&mut self, expected: u64, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let read = if expected >= LOOK as u64 {
            self.inbox.reserve(LARGE.min(expected as usize));
            ready!(tokio_util::io::poll_read_buf(Pin::new(&mut self.io), cx, &mut self.inbox))?
        } else {
            let BufferedIo { io, inbox, .. } = self;
            ready!(SHARED.with_borrow_mut(|shared| {
                let mut buffer = ReadBuf::new(shared);
                ready!(Pin::new(io).poll_read(cx, &mut buffer))?;
                inbox.extend_from_slice(buffer.filled());
                Poll::Ready(io::Result::Ok(buffer.filled().len()))
            }))?
        };
        self.received += read as u64;
        Poll::Ready(Ok(read))
    }

    /// Sends the whole outbox.
    ///
    /// # Errors
    /// The stream's errors.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.write_buf.is_empty() {
            self.sent += ready!(self.write_buf.poll_write(Pin::new(&mut self.io), cx))? as u64;
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Frees memory while the connection is idle.
    pub fn rest(&mut self) {
        if self.inbox.is_empty() {
            self.inbox = BytesMut::new();
        }
        self.write_buf.release();
    }

    /// Returns the unparsed bytes and the stream.
    pub fn into_parts(self) -> (Bytes, T) {
        (self.inbox.freeze(), self.io)
    }
}
