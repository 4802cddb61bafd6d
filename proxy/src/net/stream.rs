//! A client's connection as the protocol code sees it: a socket, or TLS on one, preceded by bytes that were already
//! peeked at.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;

use super::{Socket, pass_writes};

/// A stream that returns some bytes before it continues with the inner stream.
#[derive(Debug)]
pub struct Prefixed<T> {
    prefix: Bytes,
    io: T,
}

impl<T> Prefixed<T> {
    /// Returns `prefix` first, then the contents of `io`.
    pub fn new(prefix: Bytes, io: T) -> Self {
        Prefixed { prefix, io }
    }

    /// Returns a reference to the inner stream.
    pub fn get_ref(&self) -> &T {
        &self.io
    }

    /// Returns the remaining prefix and the inner stream.
    pub fn into_parts(self) -> (Bytes, T) {
        (self.prefix, self.io)
    }
}

impl<T: AsyncRead + Unpin> Prefixed<T> {
    /// Peeks: reads more bytes into the prefix, up to a total of `limit`, which must exceed the current length.
    /// `false`: the stream has ended.
    pub async fn look(&mut self, limit: usize) -> io::Result<bool> {
        let mut seen = BytesMut::with_capacity(limit);
        seen.extend_from_slice(&self.prefix);
        let mut space = (&mut self.io).take((limit - seen.len()) as u64);
        let read = space.read_buf(&mut seen).await?;
        self.prefix = seen.freeze();
        Ok(read > 0)
    }

    /// Returns the bytes that were peeked at but not read.
    pub fn seen(&self) -> &[u8] {
        &self.prefix
    }

    /// Returns the same bytes as an owned handle, to keep across reads.
    pub fn seen_bytes(&self) -> Bytes {
        self.prefix.clone()
    }

    /// Discards up to `count` of the peeked bytes.
    pub fn skip(&mut self, count: usize) {
        self.prefix.advance(count.min(self.prefix.len()));
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Prefixed<T> {
    #[inline]
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let now = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix.split_to(now));
        if self.prefix.is_empty() {
            // Free its memory.
            self.prefix = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

pass_writes!([T: AsyncWrite + Unpin] Prefixed<T>, io);

/// A client's connection, plain or TLS.
#[derive(Debug)]
pub enum Stream {
    /// Plain text.
    Plain(Prefixed<Socket>),
    /// TLS. Boxed, because idle connections use most of the memory in a mesh, and plain ones must not pay for TLS.
    Tls(Box<Prefixed<TlsStream<Prefixed<Socket>>>>),
}

impl Stream {
    /// Returns the underlying socket.
    pub fn socket(&self) -> &Socket {
        match self {
            Stream::Plain(stream) => stream.get_ref(),
            Stream::Tls(stream) => stream.get_ref().get_ref().0.get_ref(),
        }
    }

    /// Returns this end's address; `None` for a unix socket.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self.socket() {
            socket @ Socket::Tcp(_) => socket.local_addr().ok(),
            Socket::Unix(_) => None,
        }
    }

    /// Returns the bytes that were peeked at but not read, and the stream after them.
    pub fn into_parts(self) -> (Bytes, Stream) {
        match self {
            Stream::Plain(stream) => {
                let (seen, socket) = stream.into_parts();
                (seen, Stream::from(socket))
            }
            Stream::Tls(mut stream) => (std::mem::take(&mut stream.prefix), Stream::Tls(stream)),
        }
    }
}

impl From<Socket> for Stream {
    fn from(socket: Socket) -> Stream {
        Stream::Plain(Prefixed::new(Bytes::new(), socket))
    }
}

impl AsyncRead for Stream {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    #[inline]
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    #[inline]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn peeked_bytes_are_read_again() {
        let mut stream = Prefixed::new(Bytes::new(), &b"hello world"[..]);
        assert!(stream.look(5).await.unwrap());
        assert_eq!(stream.seen(), b"hello");
        assert!(stream.look(7).await.unwrap());
        assert_eq!(stream.seen(), b"hello w");
        stream.skip(1);
        let mut all = String::new();
        stream.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "ello world");
        assert!(!stream.look(5).await.unwrap());
    }
}
