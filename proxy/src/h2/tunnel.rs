//! A stream that carries another protocol (RFC 9113 section 8.5, RFC 8441), as a byte stream.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::body::poll_room;
use crate::net::Transport;

/// Both directions of a stream. Dropping it before shutdown resets the stream.
pub struct Tunnel {
    send: SendStream<Bytes>,
    receive: RecvStream,
    unread: Bytes,
    is_shut: bool,
    /// The reason for the reset on an abort.
    reason: Reason,
    aborts: Cell<bool>,
}

impl Tunnel {
    /// Creates a tunnel after the heads. An abort resets the stream with `reason`.
    pub fn new(send: SendStream<Bytes>, receive: RecvStream, reason: Reason) -> Tunnel {
        Tunnel { send, receive, unread: Bytes::new(), is_shut: false, reason, aborts: Cell::new(false) }
    }
}

impl Transport for Tunnel {
    fn abort(&self) {
        self.aborts.set(true);
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if self.aborts.get() {
            self.send.send_reset(self.reason);
        }
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.receive.poll_data(cx)) {
                Some(Ok(data)) => self.unread = data,
                // h2 reports a reset here only if the peer has not ended its side before.
                Some(Err(error)) if error.reason() != Some(Reason::NO_ERROR) => {
                    return Poll::Ready(Err(io::Error::other(error)));
                }
                Some(Err(_)) | None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread[..count]);
        self.unread.advance(count);
        // This fails for a stream that has ended, whose window is irrelevant.
        let _ = self.receive.flow_control().release_capacity(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.send.reserve_capacity(bytes.len());
        let room = ready!(poll_room(&mut self.send, cx)).map_err(broken)?;
        // Bytes beyond the peer's window are not accepted.
        let part = &bytes[..room.min(bytes.len())];
        self.send.send_data(Bytes::copy_from_slice(part), false).map_err(broken)?;
        Poll::Ready(Ok(part.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_shut {
            self.is_shut = true;
            // This fails if the peer has reset the stream, and can then be ignored.
            let _ = self.send.send_data(Bytes::new(), true);
        }
        Poll::Ready(Ok(()))
    }
}

fn broken(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, error)
}
