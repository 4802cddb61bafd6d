//! What a server has said of its connection, and h2 keeps to itself: how long the heads of requests may be, and which stream was the
//! last that it has looked at.

use std::cell::Cell;

use super::frames::{FrameEvent, GOAWAY, SETTINGS};

/// SETTINGS_MAX_HEADER_LIST_SIZE (RFC 9113 section 6.5.2).
const MAX_HEADER_LIST_SIZE: u16 = 6;

/// Bytes of a setting.
const SETTING: usize = 6;

/// Bytes of a GOAWAY before its debug data.
const FAREWELL: usize = 8;

/// What a server has said of its connection.
#[derive(Debug, Default)]
pub struct PeerSettings {
    max_head: Cell<Option<u32>>,
    settings: Cell<bool>,
    last_stream: Cell<Option<u32>>,
}

impl PeerSettings {
    /// The longest head of a request that it takes, as HTTP/2 counts it; `None`: it has named none.
    pub fn max_head(&self) -> Option<u32> {
        self.max_head.get()
    }

    /// Whether its first settings have come.
    pub fn has_settings(&self) -> bool {
        self.settings.get()
    }

    /// The last stream that it has looked at, if it has said that it goes away.
    pub fn last_stream(&self) -> Option<u32> {
        self.last_stream.get()
    }
}

/// Reads it from the frames.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// The kind of the frame that has begun last.
    kind: u8,
    /// Bytes of it that are still to come.
    left: usize,
    part: [u8; FAREWELL],
    filled: usize,
}

impl Reader {
    /// Takes note of what a server sends.
    pub(super) fn note(&mut self, seen: FrameEvent<'_>, said: &PeerSettings) {
        match seen {
            FrameEvent::Frame(frame) => {
                (self.kind, self.left, self.filled) = (frame.kind, frame.length as usize, 0);
                // An answer to our settings has no length either, and may only come after its own.
                said.settings.set(said.settings.get() || (frame.kind == SETTINGS && frame.length == 0));
            }
            FrameEvent::Payload(bytes) => match self.kind {
                SETTINGS => self.settings(bytes, said),
                GOAWAY => self.farewell(bytes, said),
                _ => {}
            },
        }
    }

    fn settings(&mut self, mut bytes: &[u8], said: &PeerSettings) {
        self.left = self.left.saturating_sub(bytes.len());
        while !bytes.is_empty() {
            bytes = self.fill(bytes, SETTING);
            if self.filled == SETTING {
                let [a, b, value @ .., _, _] = self.part;
                if u16::from_be_bytes([a, b]) == MAX_HEADER_LIST_SIZE {
                    said.max_head.set(Some(u32::from_be_bytes(value)));
                }
                self.filled = 0;
            }
        }
        said.settings.set(said.settings.get() || self.left == 0);
    }

    fn farewell(&mut self, bytes: &[u8], said: &PeerSettings) {
        if self.filled < FAREWELL {
            self.fill(bytes, FAREWELL);
            if self.filled == FAREWELL {
                let [last @ .., _, _, _, _] = self.part;
                said.last_stream.set(Some(u32::from_be_bytes(last) & (u32::MAX >> 1)));
            }
        }
    }

    /// Takes what is missing of a part of this length. What is left.
    fn fill<'b>(&mut self, bytes: &'b [u8], length: usize) -> &'b [u8] {
        let (taken, rest) = bytes.split_at(bytes.len().min(length - self.filled));
        self.part[self.filled..self.filled + taken.len()].copy_from_slice(taken);
        self.filled += taken.len();
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::{super::frames::Scanner, *};

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, 0], &[0; 4], payload].concat()
    }

    #[test]
    fn it_is_read_however_it_is_cut() {
        let setting = |id: u16, value: u32| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
        let settings = [setting(3, 100), setting(MAX_HEADER_LIST_SIZE, 16_384), setting(4, 65_535)].concat();
        let farewell = [&9_u32.to_be_bytes()[..], &11_u32.to_be_bytes(), b"too much"].concat();
        let bytes = [frame(SETTINGS, &settings), frame(0, &[6; 100]), frame(GOAWAY, &farewell)].concat();
        for step in 1..bytes.len() {
            let (said, mut scanner, mut reader) = (PeerSettings::default(), Scanner::after(0), Reader::default());
            for part in bytes.chunks(step) {
                let had_all = said.max_head().is_some();
                scanner.scan_all(part, |seen| reader.note(seen, &said));
                assert!(!said.has_settings() || had_all || said.max_head().is_some());
            }
            assert_eq!(
                (said.max_head(), said.has_settings(), said.last_stream()),
                (Some(16_384), true, Some(9)),
                "{step}"
            );
        }
    }

    #[test]
    fn settings_may_name_nothing() {
        for (payload, expected) in [(vec![], true), (vec![0, 3, 0, 0, 0, 9], true), (vec![0, 3, 0, 0], false)] {
            let mut bytes = frame(SETTINGS, &payload);
            if !expected {
                // The rest is still to come.
                bytes[2] = 6;
            }
            let (said, mut scanner, mut reader) = (PeerSettings::default(), Scanner::after(0), Reader::default());
            scanner.scan_all(&bytes, |seen| reader.note(seen, &said));
            assert_eq!((said.has_settings(), said.max_head()), (expected, None), "{payload:?}");
        }
    }
}
