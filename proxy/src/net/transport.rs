//! What bytes can be carried on: a stream that may be a plain TCP socket, or not.

use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream},
    net::TcpStream,
};

use super::{Prefixed, Socket, Stream};

/// A byte stream.
pub trait Transport: AsyncRead + AsyncWrite + Unpin {
    /// The TCP socket that it is, if its bytes are those of the socket: then the kernel can move them by itself.
    fn plain(&self) -> Option<&TcpStream> {
        None
    }

    /// Bytes that were written and that the peer's system has not acknowledged, as far as that is known.
    fn unacknowledged(&self) -> usize {
        0
    }

    /// Makes closing it a reset, so that its peer does not take what has come for all there is. Where that is not possible,
    /// nothing happens.
    fn abort(&self) {
        if let Some(socket) = self.plain() {
            // A socket that is gone needs no reset.
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
        // Of a peer whose system says nothing of this, it is supposed that it has everything.
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
