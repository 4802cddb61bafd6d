//! What a connection reads from and writes to, as h2 sees it.
//!
//! h2 asks whether there is more to read, and flushes, again and again while its connection's task is polled once: for each
//! request that it gives out, for each frame of data that it does not copy. So here a turn of that task has a beginning and an
//! end. Within it, who has found nothing to read is told so at once; and what is written waits for the turn's end, so that the
//! frames of many streams are one write, and one TLS record.

use std::{
    cell::{Cell, RefCell},
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::net::FirstBytes;

/// Bytes that wait for a turn's end, at most. A TLS record can hold as many.
const BUFFER: usize = 16 << 10;

/// What is at least as long is not copied, in bytes.
const LARGE: usize = BUFFER / 2;

thread_local! {
    /// Space for what a connection writes: only those whose peers do not read keep any for longer than a turn.
    static SPACE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

struct State<T> {
    stream: T,
    /// Nothing more is to be read in this turn: the task will be woken.
    is_dry: bool,
    /// What is written and not sent yet, from `sent` on.
    buffer: Vec<u8>,
    sent: usize,
    /// The stream may have something to send: of what it was given, or, under TLS, in answer to what was read.
    is_flushed: bool,
    received: u64,
    first: FirstBytes,
}

/// A connection's stream, for h2.
pub struct Io<T>(Rc<RefCell<State<T>>>);

/// The same stream, for the connection's task.
pub struct Turns<T>(Rc<RefCell<State<T>>>);

impl<T> Io<T> {
    /// Puts itself between h2 and `stream`.
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
    /// A turn of the task, in which h2 is polled. If what it has written cannot be sent at once, the task will be woken.
    ///
    /// # Errors
    /// As the stream says.
    pub fn turn<R>(&self, cx: &mut Context<'_>, poll: impl FnOnce(&mut Context<'_>) -> R) -> io::Result<R> {
        self.0.borrow_mut().is_dry = false;
        let polled = poll(cx);
        match self.0.borrow_mut().poll_send(cx) {
            Poll::Ready(Err(error)) => Err(error),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(polled),
        }
    }

    /// Whether everything that h2 has written is sent.
    pub fn is_sent(&self) -> bool {
        let state = self.0.borrow();
        state.sent == state.buffer.len() && state.is_flushed
    }

    /// The stream, once h2 is gone.
    pub fn into_stream(self) -> Option<T> {
        Rc::into_inner(self.0).map(|state| state.into_inner().stream)
    }

    /// Bytes received so far.
    pub fn received(&self) -> u64 {
        self.0.borrow().received
    }

    /// The first bytes that were received.
    pub fn first(&self) -> FirstBytes {
        self.0.borrow().first
    }
}

impl<T: AsyncWrite + Unpin> State<T> {
    /// Sends what waits.
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
        // h2 asks whether large frames should be copied: they are not here, whatever the stream does with them.
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // That is for the turn's end.
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

    /// Notes what is written at once, and has nothing to read.
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
    fn what_is_written_in_a_turn_is_one_write() {
        let (mut io, turns, mut cx) = notes(usize::MAX);
        for count in [10, 20, 30] {
            assert_eq!(write(&mut io, count, &mut cx), Some(count));
            assert!(Pin::new(&mut io).poll_flush(&mut cx).is_ready());
        }
        turns.turn(&mut cx, |_| ()).unwrap();
        assert_eq!(turns.0.borrow().stream.written, [60]);
        assert_eq!(turns.0.borrow().buffer.capacity(), 0, "it keeps no space");
    }

    #[test]
    fn what_is_large_follows_what_waits_and_is_not_copied() {
        let (mut io, turns, mut cx) = notes(usize::MAX);
        for count in [10, BUFFER, 5, LARGE, 6] {
            write(&mut io, count, &mut cx).unwrap();
        }
        turns.turn(&mut cx, |_| ()).unwrap();
        assert_eq!(turns.0.borrow().stream.written, [10, BUFFER, 5 + LARGE + 6]);
    }

    #[test]
    fn a_peer_that_does_not_read_is_waited_for() {
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
    fn nothing_is_asked_for_twice_in_a_turn() {
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
