//! What is written and not sent yet: heads and small parts in one piece, large parts of bodies as they are.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, Write},
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;

/// Up to this length a part of a body is copied beside what is there: a copy costs less than a place in a vectored write.
const COPIED: usize = 2 << 10;

/// Bytes of memory that an idle connection keeps for its next head.
const KEPT: usize = 1 << 10;

/// Parts of one vectored write.
const SLICES: usize = 16;

/// Bytes on their way out.
#[derive(Debug, Default)]
pub struct WriteBuf {
    /// What goes first.
    parts: VecDeque<Bytes>,
    /// What goes after that.
    tail: Vec<u8>,
    /// How much of the tail is sent.
    sent: usize,
    /// Bytes in `parts`.
    len: usize,
}

impl WriteBuf {
    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.len + self.tail.len() - self.sent
    }

    /// Whether all is sent.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where heads and the framing of bodies are written.
    pub fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.tail
    }

    /// Adds a part of a body.
    pub fn push(&mut self, data: Bytes) {
        if data.len() <= COPIED {
            return self.tail.extend_from_slice(&data);
        }
        self.seal();
        self.len += data.len();
        self.parts.push_back(data);
    }

    fn seal(&mut self) {
        if self.tail.len() > self.sent {
            let tail = Bytes::from(mem::take(&mut self.tail)).split_off(mem::take(&mut self.sent));
            self.len += tail.len();
            self.parts.push_back(tail);
        }
    }

    /// Gives its memory back while there is nothing in it, but for what most heads need.
    pub fn release(&mut self) {
        if self.is_empty() && (self.tail.capacity() > KEPT || self.parts.capacity() > 0) {
            *self = WriteBuf::default();
        }
    }

    /// Writes as much as the stream takes, and returns how much that was.
    ///
    /// # Errors
    /// The stream's; one that takes nothing is an error as well.
    pub fn poll_write(
        &mut self,
        mut io: Pin<&mut (impl AsyncWrite + ?Sized)>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let written = if self.parts.is_empty() {
            let written = ready!(io.as_mut().poll_write(cx, &self.tail[self.sent..]))?;
            self.sent += written;
            if self.sent >= self.tail.len() {
                // Emptied like this it keeps all of its memory.
                self.tail.clear();
                self.sent = 0;
            }
            written
        } else {
            self.seal();
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = self.parts.len().min(SLICES);
            slices.iter_mut().zip(&self.parts).for_each(|(slice, part)| *slice = IoSlice::new(part));
            let written = match io.is_write_vectored() {
                true => ready!(io.as_mut().poll_write_vectored(cx, &slices[..count]))?,
                false => ready!(io.as_mut().poll_write(cx, &slices[0]))?,
            };
            self.advance(written);
            written
        };
        if written == 0 { Poll::Ready(Err(io::ErrorKind::WriteZero.into())) } else { Poll::Ready(Ok(written)) }
    }

    fn advance(&mut self, mut written: usize) {
        self.len -= written;
        while let Some(first) = self.parts.front_mut() {
            if first.len() > written {
                first.advance(written);
                return;
            }
            written -= first.len();
            self.parts.pop_front();
        }
    }
}

impl Write for WriteBuf {
    /// For what is formatted: never fails.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tail.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes at a time.
    struct Narrow(usize, Vec<u8>);

    impl AsyncWrite for Narrow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let n = bytes.len().min(self.0);
            self.1.extend_from_slice(&bytes[..n]);
            Poll::Ready(Ok(n))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all: Vec<u8> = slices.iter().flat_map(|s| s.iter()).copied().take(self.0).collect();
            self.1.extend_from_slice(&all);
            Poll::Ready(Ok(all.len()))
        }

        fn is_write_vectored(&self) -> bool {
            self.0.is_multiple_of(2)
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn everything_is_sent_in_order_however_little_is_taken_at_a_time() {
        for step in [0, 1, 2, 3, 700, 4096, 100_000] {
            let (mut outbox, mut expected) = (WriteBuf::default(), Vec::new());
            let mut narrow = Narrow(step, Vec::new());
            let mut cx = Context::from_waker(std::task::Waker::noop());
            for (nth, size) in [10, 5000, 1, 3000, 3000, 100, 0, 20_000].into_iter().enumerate() {
                let data = vec![b'a' + nth as u8; size];
                expected.extend_from_slice(&data);
                match nth % 3 {
                    0 => outbox.tail().extend_from_slice(&data),
                    _ => outbox.push(data.into()),
                }
            }
            assert_eq!(outbox.len(), expected.len());
            while !outbox.is_empty() {
                match outbox.poll_write(Pin::new(&mut narrow), &mut cx) {
                    Poll::Ready(Ok(_)) => assert_eq!(outbox.len(), expected.len() - narrow.1.len()),
                    Poll::Ready(Err(error)) => {
                        assert_eq!((step, error.kind()), (0, io::ErrorKind::WriteZero));
                        break;
                    }
                    Poll::Pending => unreachable!(),
                }
            }
            assert!(step == 0 || narrow.1 == expected, "{step}");
        }
    }
}
