//! Read-ahead: request bodies are read before an upstream connection is taken, so that slow clients wait here, where
//! waiting costs little, rather than on connections that others need. Limited per request and per worker.

use std::{cell::Cell, collections::VecDeque, time::Duration};

use super::upload::UploadFrame;

/// Maximum bytes read ahead for all requests of a worker. Beyond it, requests proceed without read-ahead.
const ALL: usize = 16 << 20;

/// Time to wait for a body of unknown length: its client may be waiting for the response before it sends more.
pub(super) const PATIENCE: Duration = Duration::from_millis(100);

thread_local! {
    /// Bytes read ahead by this worker's requests.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// The parts of a body that were read ahead.
#[derive(Default)]
pub(super) struct ReadAhead {
    parts: VecDeque<UploadFrame>,
    bytes: usize,
    /// Whether the end of the body was reached.
    over: bool,
}

impl ReadAhead {
    /// Returns whether more may be read, up to `limit` bytes for this request.
    pub(super) fn has_room(&self, limit: usize) -> bool {
        self.bytes < limit && HELD.get() < ALL
    }

    pub(super) fn push(&mut self, part: UploadFrame) {
        self.bytes += part.weight();
        HELD.set(HELD.get() + part.weight());
        self.parts.push_back(part);
    }

    /// Records the end of the body.
    pub(super) fn end(&mut self) {
        self.over = true;
    }

    /// Returns whether trailers were read.
    pub(super) fn has_trailers(&self) -> bool {
        matches!(self.parts.back(), Some(UploadFrame::Trailers(_)))
    }

    /// Removes and returns the next part; `Some(None)` is the end of the body.
    pub(super) fn pop(&mut self) -> Option<Option<UploadFrame>> {
        let Some(part) = self.parts.pop_front() else { return self.over.then_some(None) };
        self.bytes -= part.weight();
        HELD.set(HELD.get() - part.weight());
        Some(Some(part))
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        HELD.set(HELD.get() - self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn total_is_limited_and_returned() {
        let part = || UploadFrame::Data(Bytes::from_static(&[0; 4096]));
        let mut all = Vec::new();
        while ReadAhead::default().has_room(64 << 10) {
            let mut ahead = ReadAhead::default();
            while ahead.has_room(64 << 10) {
                ahead.push(part());
            }
            all.push(ahead);
        }
        assert_eq!(all.len(), ALL / (64 << 10));
        assert_eq!(HELD.get(), ALL);
        let mut sent = all.remove(0);
        assert!(matches!(sent.pop(), Some(Some(UploadFrame::Data(_)))));
        assert!(ReadAhead::default().has_room(1));
        sent.end();
        while let Some(Some(_)) = sent.pop() {}
        assert!(matches!(sent.pop(), Some(None)), "the end is kept");
        drop((sent, all));
        assert_eq!(HELD.get(), 0);
    }

    #[test]
    fn short_parts_count_with_a_minimum() {
        let mut ahead = ReadAhead::default();
        let mut count = 0;
        while ahead.has_room(64 << 10) {
            ahead.push(UploadFrame::Data(Bytes::from_static(b"x")));
            count += 1;
        }
        assert_eq!(count, 1024);
    }
}
