//! Counting of a client's frames before h2 sees them: a client that sends only unproductive frames is disconnected.
//!
//! h2 acknowledges each PING and SETTINGS, and accepts empty DATA frames: they need no memory, but they cost time. So
//! such frames are counted; see [`FrameLimiter`].

use std::{
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    downstream::flood::FrameLimiter,
    h2::{
        Widening, Window,
        frames::{DATA, Frame, HEADERS, PREFACE, Scanner},
    },
};

/// A connection whose frames are counted.
pub(crate) struct CountedFrames<T> {
    stream: T,
    scanner: Scanner,
    flood: Rc<FrameLimiter>,
    widening: Widening,
    window: Rc<Window>,
}

impl<T> CountedFrames<T> {
    pub(crate) fn new(stream: T, flood: Rc<FrameLimiter>, window: Rc<Window>) -> Self {
        CountedFrames { stream, scanner: Scanner::after(PREFACE), flood, widening: Widening::default(), window }
    }

    pub(super) fn into_inner(self) -> T {
        self.stream
    }

    fn wrote(&mut self, slices: &[IoSlice<'_>], written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        // A response's data allows for the client's window updates and pings.
        if let Poll::Ready(Ok(n)) = written {
            let mut left = n;
            for slice in slices {
                let sent = left.min(slice.len());
                self.widening.sent(&slice[..sent], &self.window);
                left -= sent;
            }
            self.flood.data(n as u64, false);
        }
        written
    }
}

fn count(flood: &FrameLimiter, frame: Frame) {
    match frame.kind {
        HEADERS => flood.head(),
        DATA if frame.length > 0 => flood.data(frame.length.into(), true),
        _ => flood.idle(),
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for CountedFrames<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut me.stream).poll_read(cx, buf))?;
        me.scanner.scan(&buf.filled()[before..], |frame| {
            me.window.received(frame.kind, frame.length);
            count(&me.flood, frame);
        });
        if me.flood.is_one() {
            return Poll::Ready(Err(io::Error::other("too many unproductive frames")));
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for CountedFrames<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let written = Pin::new(&mut me.stream).poll_write(cx, bytes);
        me.wrote(&[IoSlice::new(bytes)], written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let written = Pin::new(&mut me.stream).poll_write_vectored(cx, slices);
        me.wrote(slices, written)
    }
}
