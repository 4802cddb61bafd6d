//! A connection, with the bytes that have come and are not understood yet, and those that are to be sent.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::WriteBuf;

/// Bytes that are read at a time where nobody knows how many there will be: through memory that all connections of a thread
/// share, so that an idle one keeps none.
const LOOK: usize = 16 << 10;

/// Bytes that are read at a time into a body's own memory, at most.
const LARGE: usize = 64 << 10;

thread_local! {
    static SHARED: RefCell<Box<[u8]>> = RefCell::new(vec![0; LOOK].into_boxed_slice());
}

/// A connection on which HTTP/1.1 is spoken.
#[derive(Debug)]
pub struct BufferedIo<T> {
    io: T,
    /// What has come.
    pub inbox: BytesMut,
    /// What is to be sent.
    pub outbox: WriteBuf,
    received: u64,
    sent: u64,
}

impl<T: AsyncRead + AsyncWrite + Unpin> BufferedIo<T> {
    /// A connection on which nothing has been said.
    pub fn new(io: T) -> BufferedIo<T> {
        BufferedIo { io, inbox: BytesMut::new(), outbox: WriteBuf::default(), received: 0, sent: 0 }
    }

    /// The stream.
    pub fn get_ref(&self) -> &T {
        &self.io
    }

    /// Bytes read from it so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Bytes that the stream has taken so far; the peer need not have seen them.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Reads what there is into the inbox, and returns how many bytes that were; 0: the peer sends no more. `expected`: how
    /// many will follow at least, as far as that is known.
    ///
    /// # Errors
    /// The stream's.
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

    /// Sends all that there is.
    ///
    /// # Errors
    /// The stream's.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outbox.is_empty() {
            self.sent += ready!(self.outbox.poll_write(Pin::new(&mut self.io), cx))? as u64;
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Gives memory back while nothing is on its way.
    pub fn rest(&mut self) {
        if self.inbox.is_empty() {
            self.inbox = BytesMut::new();
        }
        self.outbox.release();
    }

    /// What has come and was not understood, and the connection.
    pub fn into_parts(self) -> (Bytes, T) {
        (self.inbox.freeze(), self.io)
    }
}
