//! The write buffer: heads and small parts are copied together, large parts of bodies are queued without a copy.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, Write},
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;

/// The limit up to which a part of a body is copied, in bytes: a copy costs less than a slice in a vectored write.
const COPIED: usize = 2 << 10;

/// The memory that an idle connection keeps for its next head, in bytes.
const KEPT: usize = 1 << 10;

/// The number of slices in one vectored write.
const SLICES: usize = 16;

/// A queue of bytes to send.
#[derive(Debug, Default)]
pub struct WriteBuf {
    /// The bytes to send first.
    parts: VecDeque<Bytes>,
    /// The bytes to send after `parts`.
    tail: Vec<u8>,
    /// The number of sent bytes in the tail.
    sent: usize,
    /// The number of bytes in `parts`.
    len: usize,
}

impl WriteBuf {
    /// Returns the number of unsent bytes.
    pub fn len(&self) -> usize {
        self.len + self.tail.len() - self.sent
    }

    /// Returns whether everything was sent.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the buffer for heads and the framing of bodies.
    pub fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.tail
    }

    /// Queues a part of a body.
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

    /// Frees the memory of an empty buffer, except for what most heads need.
    pub fn release(&mut self) {
        if self.is_empty() && (self.tail.capacity() > KEPT || self.parts.capacity() > 0) {
            *self = WriteBuf::default();
        }
    }

    /// Writes as much as the stream accepts and returns the number of bytes.
    ///
    /// # Errors
    /// The stream's errors; accepting no bytes is an error, too.
    pub fn poll_write(
        &mut self,
        mut io: Pin<&mut (impl AsyncWrite + ?Sized)>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let written = if self.parts.is_empty() {
            let written = ready!(io.as_mut().poll_write(cx, &self.tail[self.sent..]))?;
            self.sent += written;
            if self.sent >= self.tail.len() {
                // Clearing keeps the memory for reuse.
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
    /// Appends to the tail; never fails.
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

    /// A stream that accepts this many bytes at a time.
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
    fn everything_is_sent_in_order_despite_short_writes() {
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
