//! The I/O of an h2 connection, which batches reads and writes.
//!
//! During one poll of its connection's task, h2 tries to read, and flushes, again and again: for each request that it
//! yields, and for each data frame that it does not copy. So a poll of that task is a *turn* here. Once a read in a
//! turn was pending, further reads return at once; and written bytes are buffered until the end of the turn, so that
//! the frames of many streams become one write and one TLS record.

use std::{
    cell::{Cell, RefCell},
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::net::FirstBytes;

/// The limit on buffered bytes. A TLS record can hold as many.
const BUFFER: usize = 16 << 10;

/// Writes of at least this many bytes are not copied.
const LARGE: usize = BUFFER / 2;

thread_local! {
    /// The write buffer of this thread's connections. A connection keeps its own only while its peer does not read.
    static SPACE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

struct State<T> {
    stream: T,
    /// Whether a read was pending in this turn; the task will be woken.
    is_dry: bool,
    /// Written bytes; those from `sent` on are not sent yet.
    buffer: Vec<u8>,
    sent: usize,
    /// Whether the stream itself has nothing to flush, from writes or, with TLS, from reads.
    is_flushed: bool,
    received: u64,
    first: FirstBytes,
}

/// A connection's stream, for h2.
pub struct Io<T>(Rc<RefCell<State<T>>>);

/// The same stream, for the connection's task.
pub struct Turns<T>(Rc<RefCell<State<T>>>);

impl<T> Io<T> {
    /// Wraps a stream for h2.
    pub fn new(stream: T) -> (Io<T>, Turns<T>) {
        let state = State {
            stream,
            is_dry: false,
            buffer: Vec::new(),
            sent: 0,
            is_flushed: true,
            received: 0,
            first: FirstBytes::default(),
        };
        let state = Rc::new(RefCell::new(state));
        (Io(state.clone()), Turns(state))
    }
}

impl<T: AsyncWrite + Unpin> Turns<T> {
    /// Runs a turn of the task, in which `poll` polls h2. If the written bytes cannot be sent immediately, the task
    /// will be woken.
    ///
    /// # Errors
    /// The stream's errors.
    pub fn turn<R>(&self, cx: &mut Context<'_>, poll: impl FnOnce(&mut Context<'_>) -> R) -> io::Result<R> {
        self.0.borrow_mut().is_dry = false;
        let polled = poll(cx);
        match self.0.borrow_mut().poll_send(cx) {
            Poll::Ready(Err(error)) => Err(error),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(polled),
        }
    }

    /// Returns whether everything that h2 has written was sent.
    pub fn is_sent(&self) -> bool {
        let state = self.0.borrow();
        state.sent == state.buffer.len() && state.is_flushed
    }

    /// Returns the stream, once h2 is dropped.
    pub fn into_stream(self) -> Option<T> {
        Rc::into_inner(self.0).map(|state| state.into_inner().stream)
    }

    /// Returns the number of bytes received so far.
    pub fn received(&self) -> u64 {
        self.0.borrow().received
    }

    /// Returns the first received bytes.
    pub fn first(&self) -> FirstBytes {
        self.0.borrow().first
    }
}

impl<T: AsyncWrite + Unpin> State<T> {
    /// Sends the buffered bytes.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.buffer.len() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.buffer[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.sent += written,
            }
        }
        if self.sent > 0 {
            self.buffer.clear();
            self.sent = 0;
            SPACE.set(std::mem::take(&mut self.buffer));
        }
        if !self.is_flushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.is_flushed = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Io<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let state = &mut *self.0.borrow_mut();
        if state.is_dry {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut state.stream).poll_read(cx, buffer);
        state.is_dry = read.is_pending();
        let count = buffer.filled().len() - before;
        if !state.first.is_full() {
            state.first.note(&buffer.filled()[before..]);
        }
        state.received += count as u64;
        state.is_flushed &= count == 0;
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Io<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let state = &mut *self.0.borrow_mut();
        let count = slices.iter().map(|slice| slice.len()).sum();
        if state.buffer.len() + count > BUFFER {
            ready!(state.poll_send(cx))?;
        }
        state.is_flushed = false;
        if count >= LARGE && state.buffer.is_empty() {
            return Pin::new(&mut state.stream).poll_write_vectored(cx, slices);
        }
        if state.buffer.capacity() == 0 {
            state.buffer = SPACE.take();
        }
        slices.iter().for_each(|slice| state.buffer.extend_from_slice(slice));
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        // h2 asks this to decide whether to copy large frames: here they are never copied.
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The end of the turn flushes.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let state = &mut *self.0.borrow_mut();
        ready!(state.poll_send(cx))?;
        Pin::new(&mut state.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records the size of each write, and never has anything to read.
    #[derive(Default)]
    struct Notes {
        written: Vec<usize>,
        reads: usize,
        room: usize,
    }

    impl AsyncRead for Notes {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.reads += 1;
            Poll::Pending
        }
    }

    impl AsyncWrite for Notes {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let count = bytes.len().min(self.room);
            if count == 0 {
                return Poll::Pending;
            }
            self.room -= count;
            self.written.push(count);
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn notes(room: usize) -> (Io<Notes>, Turns<Notes>, Context<'static>) {
        let (io, turns) = Io::new(Notes { room, ..Notes::default() });
        (io, turns, Context::from_waker(std::task::Waker::noop()))
    }

    fn write(io: &mut Io<Notes>, count: usize, cx: &mut Context<'_>) -> Option<usize> {
        match Pin::new(io).poll_write(cx, &vec![7; count]) {
            Poll::Ready(written) => Some(written.unwrap()),
            Poll::Pending => None,
        }
    }

    #[test]
    fn writes_of_a_turn_are_batched() {
        let (mut io, turns, mut cx) = notes(usize::MAX);
        for count in [10, 20, 30] {
            assert_eq!(write(&mut io, count, &mut cx), Some(count));
            assert!(Pin::new(&mut io).poll_flush(&mut cx).is_ready());
        }
        turns.turn(&mut cx, |_| ()).unwrap();
        assert_eq!(turns.0.borrow().stream.written, [60]);
        assert_eq!(turns.0.borrow().buffer.capacity(), 0, "the buffer was returned");
    }

    #[test]
    fn large_writes_follow_buffered_ones_without_a_copy() {
        let (mut io, turns, mut cx) = notes(usize::MAX);
        for count in [10, BUFFER, 5, LARGE, 6] {
            write(&mut io, count, &mut cx).unwrap();
        }
        turns.turn(&mut cx, |_| ()).unwrap();
        assert_eq!(turns.0.borrow().stream.written, [10, BUFFER, 5 + LARGE + 6]);
    }

    #[test]
    fn writes_wait_for_a_peer_that_does_not_read() {
        let (mut io, turns, mut cx) = notes(100);
        for _ in 0..2 {
            write(&mut io, LARGE - 1, &mut cx).unwrap();
        }
        turns.turn(&mut cx, |_| ()).unwrap();
        assert_eq!(write(&mut io, 3, &mut cx), None);
        turns.0.borrow_mut().stream.room = usize::MAX;
        turns.turn(&mut cx, |_| ()).unwrap();
        assert_eq!(turns.0.borrow().stream.written, [100, BUFFER - 102]);
        assert_eq!(write(&mut io, 3, &mut cx), Some(3));
    }

    #[test]
    fn a_turn_reads_only_until_pending() {
        let (mut io, turns, mut cx) = notes(0);
        let mut space = [0; 8];
        for _ in 0..2 {
            let ask = |cx: &mut Context<'_>| {
                for _ in 0..3 {
                    assert!(Pin::new(&mut io).poll_read(cx, &mut ReadBuf::new(&mut space)).is_pending());
                }
            };
            turns.turn(&mut cx, ask).unwrap();
        }
        assert_eq!(turns.0.borrow().stream.reads, 2);
    }
}
