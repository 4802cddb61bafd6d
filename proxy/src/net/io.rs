//! [`TokioIo`] makes a tokio stream one for hyper, with no copy and no zeroing of buffers; [`Metered`] counts what passes.
#![expect(unsafe_code, reason = "hyper's read buffer is uninitialised memory, which safe code could only copy or zero")]

use std::{
    cell::Cell,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A tokio stream in the shape that hyper reads and writes.
#[derive(Debug)]
pub struct TokioIo<T>(T);

impl<T> TokioIo<T> {
    /// Wraps `stream`.
    pub fn new(stream: T) -> Self {
        TokioIo(stream)
    }

    /// The stream within.
    pub fn get_ref(&self) -> &T {
        &self.0
    }

    /// The stream, unwrapped.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T: AsyncRead + Unpin> Read for TokioIo<T> {
    #[inline]
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let read = {
            // SAFETY: `as_mut` asks that no initialised byte be made uninitialised. The slice goes only into tokio's
            // `ReadBuf`, and nothing that a stream can do to that without `unsafe` of its own does so.
            let unfilled = unsafe { cursor.as_mut() };
            let start = unfilled.as_ptr().cast::<u8>();
            let mut buffer = ReadBuf::uninit(unfilled);
            ready!(Pin::new(&mut self.0).poll_read(cx, &mut buffer))?;
            // A stream may put another buffer in this one's place; what that one holds would say nothing of ours.
            assert!(std::ptr::eq(buffer.filled().as_ptr(), start), "the stream has exchanged the buffer");
            buffer.filled().len()
        };
        // SAFETY: `advance` asks that `read` bytes from the cursor on be initialised: `ReadBuf` keeps its filled part
        // initialised, and the assertion has shown that this part begins at the cursor.
        unsafe { cursor.advance(read) };
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> Write for TokioIo<T> {
    #[inline]
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    #[inline]
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    #[inline]
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    #[inline]
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, slices)
    }
}

/// How many bytes have passed through a [`Metered`] stream, in both directions. One thread's: it costs next to nothing.
#[derive(Debug, Default)]
pub struct Traffic {
    received: Cell<u64>,
    sent: Cell<u64>,
}

impl Traffic {
    /// Bytes read from the stream.
    pub fn received(&self) -> u64 {
        self.received.get()
    }

    /// Bytes that the stream has taken; the peer need not have seen them.
    pub fn sent(&self) -> u64 {
        self.sent.get()
    }
}

/// A tokio stream that counts what passes through it.
#[derive(Debug)]
pub struct Metered<T> {
    stream: T,
    traffic: Rc<Traffic>,
}

impl<T> Metered<T> {
    /// Counts `stream`'s bytes into `traffic`.
    pub fn new(stream: T, traffic: Rc<Traffic>) -> Self {
        Metered { stream, traffic }
    }

    /// The stream within.
    pub fn get_ref(&self) -> &T {
        &self.stream
    }

    /// What has passed, also from now on.
    pub fn traffic(&self) -> Rc<Traffic> {
        Rc::clone(&self.traffic)
    }

    fn count_sent(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(n)) = written {
            self.traffic.sent.set(self.traffic.sent.get() + n as u64);
        }
        written
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Metered<T> {
    #[inline]
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let read = buffer.filled().len().saturating_sub(before);
        self.traffic.received.set(self.traffic.received.get() + read as u64);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Metered<T> {
    #[inline]
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.count_sent(written)
    }

    #[inline]
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    #[inline]
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    #[inline]
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.count_sent(written)
    }
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;

    use super::*;

    #[test]
    fn bytes_arrive_in_uninitialised_memory_and_are_counted() {
        let traffic = Rc::new(Traffic::default());
        let mut io = TokioIo::new(Metered::new(&b"hello world"[..], Rc::clone(&traffic)));
        let mut memory = [MaybeUninit::uninit(); 8];
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for expected in [&b"hello wo"[..], b"rld", b""] {
            let mut buffer = hyper::rt::ReadBuf::uninit(&mut memory);
            assert!(Pin::new(&mut io).poll_read(&mut cx, buffer.unfilled()).is_ready());
            assert_eq!(buffer.filled(), expected);
        }
        assert_eq!((traffic.received(), traffic.sent()), (11, 0));
    }

    #[test]
    fn a_cursor_that_is_partly_filled_goes_on_where_it_was() {
        let mut io = TokioIo::new(&b"rest"[..]);
        let mut memory = [MaybeUninit::uninit(); 16];
        let mut buffer = hyper::rt::ReadBuf::uninit(&mut memory);
        buffer.unfilled().put_slice(b"the ");
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut io).poll_read(&mut cx, buffer.unfilled()).is_ready());
        assert_eq!(buffer.filled(), b"the rest");
    }

    #[test]
    fn written_bytes_are_counted() {
        let traffic = Rc::new(Traffic::default());
        let mut io = TokioIo::new(Metered::new(Vec::new(), Rc::clone(&traffic)));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut io).poll_write(&mut cx, b"abc").is_ready());
        assert!(io.is_write_vectored());
        let slices = [IoSlice::new(b"de"), IoSlice::new(b"f")];
        assert!(Pin::new(&mut io).poll_write_vectored(&mut cx, &slices).is_ready());
        assert_eq!((io.get_ref().get_ref().as_slice(), traffic.sent()), (&b"abcdef"[..], 6));
    }
}
