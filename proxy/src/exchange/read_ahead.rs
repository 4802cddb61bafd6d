//! What of a request's body is read before a connection to the upstream is taken for it, so that slow clients wait here, where
//! waiting costs little, and not on connections that others need. Bounded for each request, and for all of a worker's.

use std::{cell::Cell, collections::VecDeque, time::Duration};

use super::upload::UploadFrame;

/// What all requests of a worker have read ahead, in bytes, at most. Beyond it, requests go on without.
const ALL: usize = 16 << 20;

/// How long a body is waited for whose length is not known: its client may wait for the response before it sends more.
pub(super) const PATIENCE: Duration = Duration::from_millis(100);

thread_local! {
    /// What this worker's requests have read ahead.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// What has been read ahead of a body.
#[derive(Default)]
pub(super) struct ReadAhead {
    parts: VecDeque<UploadFrame>,
    bytes: usize,
    /// The body's end is among it.
    over: bool,
}

impl ReadAhead {
    /// Whether more may be read, up to `limit` bytes for this request.
    pub(super) fn has_room(&self, limit: usize) -> bool {
        self.bytes < limit && HELD.get() < ALL
    }

    pub(super) fn push(&mut self, part: UploadFrame) {
        self.bytes += part.weight();
        HELD.set(HELD.get() + part.weight());
        self.parts.push_back(part);
    }

    /// The body has ended with what is here.
    pub(super) fn end(&mut self) {
        self.over = true;
    }

    /// Whether trailers are among it.
    pub(super) fn has_trailers(&self) -> bool {
        matches!(self.parts.back(), Some(UploadFrame::Trailers(_)))
    }

    /// The next part; `Some(None)`: the end.
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
    fn what_all_have_read_is_bounded_and_given_back() {
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
        assert!(matches!(sent.pop(), Some(None)), "its end stays");
        drop((sent, all));
        assert_eq!(HELD.get(), 0);
    }

    #[test]
    fn a_part_takes_memory_however_short_it_is() {
        let mut ahead = ReadAhead::default();
        let mut count = 0;
        while ahead.has_room(64 << 10) {
            ahead.push(UploadFrame::Data(Bytes::from_static(b"x")));
            count += 1;
        }
        assert_eq!(count, 1024);
    }
}
