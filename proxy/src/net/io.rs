//! hyper on tokio: [`TokioIo`] adapts a stream to hyper's I/O traits without copying or zeroing buffers, and
//! [`LocalExecutor`] runs hyper's tasks.
#![expect(unsafe_code, reason = "hyper's read buffer is uninitialised memory, which safe code could only copy or zero")]

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::spawn_local,
};

/// An executor that runs hyper's tasks on this thread.
#[derive(Debug, Clone, Copy)]
pub struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        spawn_local(future);
    }
}

/// A tokio stream that implements hyper's `Read` and `Write`.
#[derive(Debug)]
pub struct TokioIo<T>(T);

impl<T> TokioIo<T> {
    /// Wraps `stream`.
    pub fn new(stream: T) -> Self {
        TokioIo(stream)
    }

    /// Returns a reference to the inner stream.
    pub fn get_ref(&self) -> &T {
        &self.0
    }

    /// Returns the inner stream.
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
            // SAFETY: `as_mut` requires that no initialised byte becomes uninitialised. The slice goes only into
            // tokio's `ReadBuf`, and a stream cannot de-initialise that without `unsafe` code itself.
            let unfilled = unsafe { cursor.as_mut() };
            let start = unfilled.as_ptr().cast::<u8>();
            let mut buffer = ReadBuf::uninit(unfilled);
            ready!(Pin::new(&mut self.0).poll_read(cx, &mut buffer))?;
            // A stream could swap in another buffer, whose filled part would say nothing about ours.
            assert!(std::ptr::eq(buffer.filled().as_ptr(), start), "the stream has exchanged the buffer");
            buffer.filled().len()
        };
        // SAFETY: `advance` requires that `read` bytes from the cursor on are initialised: `ReadBuf` keeps its filled
        // part initialised, and the assertion has shown that this part begins at the cursor.
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

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;

    use super::*;

    #[test]
    fn bytes_arrive_in_uninitialised_memory() {
        let mut io = TokioIo::new(&b"hello world"[..]);
        let mut memory = [MaybeUninit::uninit(); 8];
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for expected in [&b"hello wo"[..], b"rld", b""] {
            let mut buffer = hyper::rt::ReadBuf::uninit(&mut memory);
            assert!(Pin::new(&mut io).poll_read(&mut cx, buffer.unfilled()).is_ready());
            assert_eq!(buffer.filled(), expected);
        }
    }

    #[test]
    fn partly_filled_cursor_continues_at_its_position() {
        let mut io = TokioIo::new(&b"rest"[..]);
        let mut memory = [MaybeUninit::uninit(); 16];
        let mut buffer = hyper::rt::ReadBuf::uninit(&mut memory);
        buffer.unfilled().put_slice(b"the ");
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut io).poll_read(&mut cx, buffer.unfilled()).is_ready());
        assert_eq!(buffer.filled(), b"the rest");
    }
}
