//! Lines of a response that never ends: one event each, with a limit on their length.

use bytes::{Bytes, BytesMut};

/// The limit on an event, in bytes. An object in etcd has at most 1.5 MiB by default, in a more compact encoding.
pub(crate) const MAX_LINE: usize = 8 << 20;

/// A line is longer than [`MAX_LINE`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of more than {} MiB", MAX_LINE >> 20)]
pub(crate) struct TooLong;

/// Puts parts of a body together to lines.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    pending: BytesMut,
    /// How much of it was searched for the end of the line.
    searched: usize,
}

impl Lines {
    /// Adds a part.
    pub(crate) fn push(&mut self, part: &[u8]) {
        self.pending.extend_from_slice(part);
    }

    /// Returns the next complete line that is not empty, without its end.
    ///
    /// # Errors
    /// It is too long, complete or not.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, TooLong> {
        loop {
            let Some(end) = memchr::memchr(b'\n', &self.pending[self.searched..]) else {
                self.searched = self.pending.len();
                return if self.searched > MAX_LINE { Err(TooLong) } else { Ok(None) };
            };
            let end = self.searched + end;
            if end > MAX_LINE {
                return Err(TooLong);
            }
            let line = self.pending.split_to(end + 1).freeze();
            self.searched = 0;
            let line = line.slice_ref(line.trim_ascii());
            if !line.is_empty() {
                return Ok(Some(line));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_the_same_wherever_they_are_cut() {
        let text = b"{\"a\":1}\n\r\n{\"b\":2}\r\n\n{\"c\"";
        for cut in 0..=text.len() {
            let (mut lines, mut all) = (Lines::default(), Vec::new());
            for part in [&text[..cut], &text[cut..]] {
                lines.push(part);
                while let Some(line) = lines.next().unwrap() {
                    all.push(line);
                }
            }
            assert_eq!(all, [&b"{\"a\":1}"[..], b"{\"b\":2}"], "cut at {cut}");
            assert_eq!(&*lines.pending, b"{\"c\"");
        }
    }

    #[test]
    fn long_line_is_refused_before_its_end() {
        let part = vec![b'x'; 1 << 20];
        let mut lines = Lines::default();
        let pushed = (1..).find(|_| {
            lines.push(&part);
            lines.next() == Err(TooLong)
        });
        assert_eq!(pushed, Some(9));
        let mut lines = Lines::default();
        lines.push(&vec![b'x'; MAX_LINE]);
        lines.push(b"\n");
        assert_eq!(lines.next().map(|line| line.map(|line| line.len())), Ok(Some(MAX_LINE)));
        lines.push(&vec![b'x'; MAX_LINE + 1]);
        lines.push(b"\n");
        assert_eq!(lines.next(), Err(TooLong));
    }
}
