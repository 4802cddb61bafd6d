//! One direction between two streams: what one sends, the other gets, and at last its end.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How much is read at a time, at most.
const MOST: usize = 16 << 10;

/// How much is carried in one turn of the task: there are others, and clocks to look at.
const TURN: usize = 1 << 20;

thread_local! {
    /// An idle direction keeps no buffer.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; MOST].into());
}

/// Which of the two streams has failed.
#[derive(Debug)]
pub enum CopyError {
    /// The one that sends.
    Sender(io::Error),
    /// The one that receives.
    Receiver(io::Error),
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    /// The sender has ended.
    Ended,
    /// The receiver knows.
    Over,
}

/// A direction.
#[derive(Debug, Default)]
pub struct CopyDirection {
    /// Read and not written yet.
    pending: Bytes,
    unflushed: bool,
    phase: Phase,
    /// The receiver must not take the end for one.
    is_cut: bool,
    received: u64,
    sent: u64,
}

impl CopyDirection {
    /// Bytes that have come from the sender.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Bytes that the receiver has taken.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Whether the sender has ended.
    pub fn has_ended(&self) -> bool {
        self.phase != Phase::Open
    }

    /// The sender's end is not passed on any more: there is something wrong with it.
    pub fn cut(&mut self) {
        self.is_cut = true;
    }

    /// Carries what can be carried now. Ready when all of it is delivered and the receiver knows that it was all; or when either
    /// stream has failed. What came before the sender failed is delivered by then.
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

    /// Reads, and writes at once what the receiver takes at once.
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
                // Many peers close their connections without the close_notify of TLS. Whatever is carried knows its own end.
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
    async fn everything_is_carried_and_then_the_end() {
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

    /// Gives some bytes, and then this.
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
    async fn what_came_before_a_failure_is_delivered() {
        let (mut receiver, mut far) = duplex(2);
        let mut sender = Fails(b"abc", io::ErrorKind::ConnectionReset);
        let mut carry = CopyDirection::default();
        let mut got = [0; 3];
        let (carried, read) =
            tokio::join!(poll_fn(|cx| carry.poll(&mut sender, &mut receiver, cx)), far.read_exact(&mut got));
        assert!(matches!(carried, Err(CopyError::Sender(_))) && read.is_ok() && got == *b"abc" && !carry.has_ended());
    }

    #[tokio::test]
    async fn an_end_without_close_notify_is_an_end() {
        let (mut receiver, far) = duplex(10);
        let mut sender = Fails(b"abc", io::ErrorKind::UnexpectedEof);
        let mut carry = CopyDirection::default();
        assert!(poll_fn(|cx| carry.poll(&mut sender, &mut receiver, cx)).await.is_ok());
        drop(far);
    }

    #[tokio::test]
    async fn a_receiver_that_is_gone_is_told_from_a_sender_that_is() {
        let (mut receiver, far) = duplex(10);
        drop(far);
        let mut carry = CopyDirection::default();
        let carried = poll_fn(|cx| carry.poll(&mut &b"abc"[..], &mut receiver, cx)).await;
        assert!(matches!(carried, Err(CopyError::Receiver(_))));
    }
}
