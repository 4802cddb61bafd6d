//! Copying in one direction between two streams: forwards what the sender sends to the receiver, and finally its end.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Maximum number of bytes per read.
const MOST: usize = 16 << 10;

/// Maximum number of bytes copied per poll of the task, so that other tasks and timers get their turn.
const TURN: usize = 1 << 20;

thread_local! {
    /// Shared by all directions of a thread: an idle direction holds no buffer.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; MOST].into());
}

/// An error of one of the two streams.
#[derive(Debug)]
pub enum CopyError {
    /// The sending stream failed.
    Sender(io::Error),
    /// The receiving stream failed.
    Receiver(io::Error),
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    /// The sender has ended; the receiver has not been shut down yet.
    Ended,
    /// The receiver has been shut down.
    Over,
}

/// The state of one direction.
#[derive(Debug, Default)]
pub struct CopyDirection {
    /// Bytes read but not yet written.
    pending: Bytes,
    unflushed: bool,
    phase: Phase,
    /// Do not forward the sender's end: the receiver must not mistake it for a regular end.
    is_cut: bool,
    received: u64,
    sent: u64,
}

impl CopyDirection {
    /// Returns the number of bytes received from the sender.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Returns the number of bytes that the receiver accepted.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Returns whether the sender has ended.
    pub fn has_ended(&self) -> bool {
        self.phase != Phase::Open
    }

    /// Stops forwarding the sender's end, because it is not a regular end.
    pub fn cut(&mut self) {
        self.is_cut = true;
    }

    /// Copies as much as possible now. Ready when everything was delivered and the receiver was shut down, or when
    /// either stream failed. Bytes received before the sender failed have been delivered by then.
    pub fn poll(
        &mut self,
        sender: &mut (impl AsyncRead + Unpin),
        receiver: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), CopyError>> {
        let turn = self.received.saturating_add(TURN as u64);
        loop {
            while !self.pending.is_empty() {
                let n = ready!(Pin::new(&mut *receiver).poll_write(cx, &self.pending)).map_err(CopyError::Receiver)?;
                self.wrote(n)?;
                self.pending.advance(n);
            }
            match self.phase {
                Phase::Over => return Poll::Ready(Ok(())),
                Phase::Ended if self.is_cut => self.phase = Phase::Over,
                Phase::Ended => {
                    ready!(Pin::new(&mut *receiver).poll_shutdown(cx)).map_err(CopyError::Receiver)?;
                    self.phase = Phase::Over;
                }
                Phase::Open if self.received >= turn => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Phase::Open => match self.poll_read(sender, receiver, cx) {
                    Poll::Ready(read) => read?,
                    Poll::Pending if self.unflushed => {
                        ready!(Pin::new(&mut *receiver).poll_flush(cx)).map_err(CopyError::Receiver)?;
                        self.unflushed = false;
                    }
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }

    /// Reads once and immediately writes as much as the receiver accepts.
    fn poll_read(
        &mut self,
        sender: &mut (impl AsyncRead + Unpin),
        receiver: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), CopyError>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            match ready!(Pin::new(sender).poll_read(cx, &mut buffer)) {
                Ok(()) => {}
                // Many peers close their connections without a TLS close_notify. The protocol inside marks its own end.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                Err(error) => return Poll::Ready(Err(CopyError::Sender(error))),
            }
            let read = buffer.filled();
            self.received += read.len() as u64;
            if read.is_empty() {
                self.phase = Phase::Ended;
                return Poll::Ready(Ok(()));
            }
            let written = match Pin::new(receiver).poll_write(cx, read) {
                Poll::Pending => 0,
                Poll::Ready(written) => {
                    let written = written.map_err(CopyError::Receiver)?;
                    self.wrote(written)?;
                    written
                }
            };
            self.pending = Bytes::copy_from_slice(&read[written..]);
            Poll::Ready(Ok(()))
        })
    }

    fn wrote(&mut self, n: usize) -> Result<(), CopyError> {
        if n == 0 {
            return Err(CopyError::Receiver(io::ErrorKind::WriteZero.into()));
        }
        self.sent += n as u64;
        self.unflushed = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn all_bytes_are_copied_and_then_the_end() {
        let data: Vec<u8> = (0..3_000_000_u32).map(|n| n as u8).collect();
        for room in [1000, 100_000] {
            let ((mut near, mut sender), (mut receiver, mut far)) = (duplex(room), duplex(room / 2));
            let mut carry = CopyDirection::default();
            let sending = async {
                near.write_all(&data).await.unwrap();
                near.shutdown().await.unwrap();
            };
            let mut got = Vec::new();
            let (carried, (), read) = tokio::join!(
                poll_fn(|cx| carry.poll(&mut sender, &mut receiver, cx)),
                sending,
                far.read_to_end(&mut got)
            );
            assert!(carried.is_ok() && read.is_ok() && got == data);
            assert_eq!((carry.received(), carry.sent(), carry.has_ended()), (3_000_000, 3_000_000, true));
        }
    }

    /// A reader that returns these bytes and then this error.
    struct Fails(&'static [u8], io::ErrorKind);

    impl AsyncRead for Fails {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            if self.0.is_empty() {
                return Poll::Ready(Err(self.1.into()));
            }
            buffer.put_slice(std::mem::take(&mut self.0));
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn bytes_before_a_failure_are_delivered() {
        let (mut receiver, mut far) = duplex(2);
        let mut sender = Fails(b"abc", io::ErrorKind::ConnectionReset);
        let mut carry = CopyDirection::default();
        let mut got = [0; 3];
        let (carried, read) =
            tokio::join!(poll_fn(|cx| carry.poll(&mut sender, &mut receiver, cx)), far.read_exact(&mut got));
        assert!(matches!(carried, Err(CopyError::Sender(_))) && read.is_ok() && got == *b"abc" && !carry.has_ended());
    }

    #[tokio::test]
    async fn end_without_close_notify_is_a_regular_end() {
        let (mut receiver, far) = duplex(10);
        let mut sender = Fails(b"abc", io::ErrorKind::UnexpectedEof);
        let mut carry = CopyDirection::default();
        assert!(poll_fn(|cx| carry.poll(&mut sender, &mut receiver, cx)).await.is_ok());
        drop(far);
    }

    #[tokio::test]
    async fn receiver_failure_is_distinguished_from_sender_failure() {
        let (mut receiver, far) = duplex(10);
        drop(far);
        let mut carry = CopyDirection::default();
        let carried = poll_fn(|cx| carry.poll(&mut &b"abc"[..], &mut receiver, cx)).await;
        assert!(matches!(carried, Err(CopyError::Receiver(_))));
    }
}
