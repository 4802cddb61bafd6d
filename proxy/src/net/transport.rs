//! The byte stream that connections are served on, which may or may not be a plain TCP socket.

use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream},
    net::TcpStream,
};

use super::{Prefixed, Socket, Stream};

/// A byte stream.
pub trait Transport: AsyncRead + AsyncWrite + Unpin {
    /// Returns the TCP socket if the stream's bytes are exactly those of the socket, so that the kernel can splice
    /// them.
    fn plain(&self) -> Option<&TcpStream> {
        None
    }

    /// Returns the number of bytes that were written but not acknowledged by the peer's system, as far as that is
    /// known.
    fn unacknowledged(&self) -> usize {
        0
    }

    /// Makes the close a reset, so that the peer does not take the bytes so far for the complete stream. Does nothing
    /// where resets are not possible.
    fn abort(&self) {
        if let Some(socket) = self.plain() {
            // A socket that is already closed needs no reset.
            let _ = socket.set_zero_linger();
        }
    }
}

impl Transport for Socket {
    fn plain(&self) -> Option<&TcpStream> {
        match self {
            Socket::Tcp(stream) => Some(stream),
            Socket::Unix(_) => None,
        }
    }

    fn unacknowledged(&self) -> usize {
        // If the system cannot tell, assume that the peer has received everything.
        Socket::unacknowledged(self).unwrap_or(0)
    }
}

impl Transport for Stream {
    fn plain(&self) -> Option<&TcpStream> {
        match self {
            Stream::Plain(stream) => stream.plain(),
            Stream::Tls(_) => None,
        }
    }

    fn unacknowledged(&self) -> usize {
        Transport::unacknowledged(self.socket())
    }

    fn abort(&self) {
        self.socket().abort();
    }
}

impl<T: Transport> Transport for Prefixed<T> {
    fn plain(&self) -> Option<&TcpStream> {
        self.get_ref().plain().filter(|_| self.seen().is_empty())
    }

    fn abort(&self) {
        self.get_ref().abort();
    }
}

impl<T: Transport + ?Sized> Transport for Box<T> {
    fn plain(&self) -> Option<&TcpStream> {
        (**self).plain()
    }

    fn abort(&self) {
        (**self).abort();
    }
}

impl Transport for DuplexStream {}
