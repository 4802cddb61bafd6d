//! What a server announces about its connection and h2 does not expose: the limit on request heads, and the last
//! stream that it processed.

use std::cell::Cell;

use super::frames::{FrameEvent, GOAWAY, SETTINGS};

/// SETTINGS_MAX_HEADER_LIST_SIZE (RFC 9113 section 6.5.2).
const MAX_HEADER_LIST_SIZE: u16 = 6;

/// The length of a setting in bytes.
const SETTING: usize = 6;

/// The length of a GOAWAY before its debug data, in bytes.
const GOAWAY_HEAD: usize = 8;

/// What a server has announced about its connection.
#[derive(Debug, Default)]
pub struct PeerSettings {
    max_head: Cell<Option<u32>>,
    settings: Cell<bool>,
    last_stream: Cell<Option<u32>>,
}

impl PeerSettings {
    /// Returns the limit on the size of a request's head, as HTTP/2 defines it. `None` if the server has set none.
    pub fn max_head(&self) -> Option<u32> {
        self.max_head.get()
    }

    /// Returns whether the first SETTINGS were received.
    pub fn has_settings(&self) -> bool {
        self.settings.get()
    }

    /// Returns the last stream that the server processed, if it has sent GOAWAY.
    pub fn last_stream(&self) -> Option<u32> {
        self.last_stream.get()
    }
}

/// Reads the announcements from frames.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// The type of the current frame.
    kind: u8,
    /// The number of bytes of its payload to come.
    left: usize,
    part: [u8; GOAWAY_HEAD],
    filled: usize,
}

impl Reader {
    /// Processes a part of the server's bytes.
    pub(super) fn note(&mut self, event: FrameEvent<'_>, peer: &PeerSettings) {
        match event {
            FrameEvent::Frame(frame) => {
                (self.kind, self.left, self.filled) = (frame.kind, frame.length as usize, 0);
                // An acknowledgement of our settings is empty, too, but can only follow the server's own.
                peer.settings.set(peer.settings.get() || (frame.kind == SETTINGS && frame.length == 0));
            }
            FrameEvent::Payload(bytes) => match self.kind {
                SETTINGS => self.settings(bytes, peer),
                GOAWAY => self.goaway(bytes, peer),
                _ => {}
            },
        }
    }

    fn settings(&mut self, mut bytes: &[u8], peer: &PeerSettings) {
        self.left = self.left.saturating_sub(bytes.len());
        while !bytes.is_empty() {
            bytes = self.fill(bytes, SETTING);
            if self.filled == SETTING {
                let [a, b, value @ .., _, _] = self.part;
                if u16::from_be_bytes([a, b]) == MAX_HEADER_LIST_SIZE {
                    peer.max_head.set(Some(u32::from_be_bytes(value)));
                }
                self.filled = 0;
            }
        }
        peer.settings.set(peer.settings.get() || self.left == 0);
    }

    fn goaway(&mut self, bytes: &[u8], peer: &PeerSettings) {
        if self.filled < GOAWAY_HEAD {
            self.fill(bytes, GOAWAY_HEAD);
            if self.filled == GOAWAY_HEAD {
                let [last @ .., _, _, _, _] = self.part;
                peer.last_stream.set(Some(u32::from_be_bytes(last) & (u32::MAX >> 1)));
            }
        }
    }

    /// Fills the buffer up to `length` bytes. Returns the rest.
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
    fn announcements_are_read_in_pieces_of_any_size() {
        let setting = |id: u16, value: u32| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
        let settings = [setting(3, 100), setting(MAX_HEADER_LIST_SIZE, 16_384), setting(4, 65_535)].concat();
        let goaway = [&9_u32.to_be_bytes()[..], &11_u32.to_be_bytes(), b"too much"].concat();
        let bytes = [frame(SETTINGS, &settings), frame(0, &[6; 100]), frame(GOAWAY, &goaway)].concat();
        for step in 1..bytes.len() {
            let (peer, mut scanner, mut reader) = (PeerSettings::default(), Scanner::after(0), Reader::default());
            for part in bytes.chunks(step) {
                let had_all = peer.max_head().is_some();
                scanner.scan_all(part, |event| reader.note(event, &peer));
                assert!(!peer.has_settings() || had_all || peer.max_head().is_some());
            }
            assert_eq!(
                (peer.max_head(), peer.has_settings(), peer.last_stream()),
                (Some(16_384), true, Some(9)),
                "{step}"
            );
        }
    }

    #[test]
    fn settings_may_be_empty() {
        for (payload, expected) in [(vec![], true), (vec![0, 3, 0, 0, 0, 9], true), (vec![0, 3, 0, 0], false)] {
            let mut bytes = frame(SETTINGS, &payload);
            if !expected {
                // The rest is still to come.
                bytes[2] = 6;
            }
            let (peer, mut scanner, mut reader) = (PeerSettings::default(), Scanner::after(0), Reader::default());
            scanner.scan_all(&bytes, |event| reader.note(event, &peer));
            assert_eq!((peer.has_settings(), peer.max_head()), (expected, None), "{payload:?}");
        }
    }
}
