//! Finds the frames in a peer's bytes, independently of h2.

/// The length of the client's connection preface in bytes (RFC 9113 section 3.4).
pub const PREFACE: usize = 24;

/// The length of a frame header in bytes (RFC 9113 section 4.1).
pub(super) const HEADER: usize = 9;

/// The frame types that matter here (RFC 9113 section 6).
pub const DATA: u8 = 0;
/// See [`DATA`].
pub const HEADERS: u8 = 1;
/// See [`DATA`].
pub const SETTINGS: u8 = 4;
/// See [`DATA`].
pub const GOAWAY: u8 = 7;
/// See [`DATA`].
pub const WINDOW_UPDATE: u8 = 8;
/// See [`DATA`].
pub const CONTINUATION: u8 = 9;

/// The END_STREAM flag of [`DATA`] and [`HEADERS`].
pub(super) const END_STREAM: u8 = 1;

/// A frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// The frame type.
    pub kind: u8,
    /// The flags; their meaning depends on the type.
    pub flags: u8,
    /// The length of the payload in bytes.
    pub length: u32,
    /// The stream's number.
    pub stream: u32,
}

impl Frame {
    /// Parses the frame header at the beginning of `bytes`. `None` if it is incomplete.
    pub fn read(bytes: &[u8]) -> Option<Frame> {
        let [a, b, c, kind, flags, stream @ ..] = *bytes.first_chunk::<HEADER>()?;
        let length = u32::from_be_bytes([0, a, b, c]);
        Some(Frame { kind, flags, length, stream: u32::from_be_bytes(stream) & (u32::MAX >> 1) })
    }

    /// Returns whether it is the last frame of its stream in this direction.
    pub fn ends_stream(&self) -> bool {
        self.flags & END_STREAM != 0 && matches!(self.kind, DATA | HEADERS)
    }
}

/// A part of a peer's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameEvent<'a> {
    /// The header of a frame.
    Frame(Frame),
    /// A part of the last frame's payload.
    Payload(&'a [u8]),
}

/// Finds frames in bytes that arrive in pieces of any size.
#[derive(Debug)]
pub struct Scanner {
    /// Whether there was a frame.
    begun: bool,
    /// The number of bytes before the next frame.
    skip: usize,
    header: [u8; HEADER],
    filled: usize,
}

impl Scanner {
    /// Creates a scanner for a peer that sends this many bytes before its first frame.
    pub fn after(preface: usize) -> Scanner {
        Scanner { begun: false, skip: preface, header: [0; HEADER], filled: 0 }
    }

    /// Scans received bytes and calls `each` for every complete frame header.
    pub fn scan(&mut self, bytes: &[u8], mut each: impl FnMut(Frame)) {
        self.scan_all(bytes, |event| {
            if let FrameEvent::Frame(frame) = event {
                each(frame);
            }
        });
    }

    /// Like [`Scanner::scan`], and also passes the payload of frames.
    pub fn scan_all(&mut self, mut bytes: &[u8], mut each: impl FnMut(FrameEvent<'_>)) {
        loop {
            let skipped = self.skip.min(bytes.len());
            if skipped > 0 && self.begun {
                each(FrameEvent::Payload(&bytes[..skipped]));
            }
            (self.skip, bytes) = (self.skip - skipped, &bytes[skipped..]);
            let taken = bytes.len().min(HEADER - self.filled);
            self.header[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            let Some(frame) = Frame::read(&self.header[..self.filled]) else { return };
            each(FrameEvent::Frame(frame));
            self.begun = true;
            (self.filled, self.skip) = (0, frame.length as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = (payload as u32).to_be_bytes();
        [&length[1..], &[kind, flags, 0x80, 0, 0, 3], &vec![0; payload]].concat()
    }

    #[test]
    fn frames_are_found_in_pieces_of_any_size() {
        let all = [(6, 1, 8), (HEADERS, 4, 30), (HEADERS, 5, 0), (DATA, 0, 5), (DATA, 1, 0), (DATA, 1, 700)];
        let bytes = all.iter().map(|(kind, flags, payload)| frame(*kind, *flags, *payload));
        let bytes = [vec![b'x'; PREFACE], bytes.collect::<Vec<_>>().concat()].concat();
        let expected = all.map(|(kind, flags, payload)| Frame { kind, flags, length: payload as u32, stream: 3 });
        // The acknowledgement of a ping ends no stream.
        assert_eq!(expected.map(|frame| frame.ends_stream()), [false, false, true, false, true, true]);
        for step in 1..bytes.len() {
            let (mut scanner, mut found) = (Scanner::after(PREFACE), Vec::new());
            bytes.chunks(step).for_each(|part| scanner.scan(part, |frame| found.push(frame)));
            assert_eq!(found, expected, "in steps of {step}");
        }
    }
}
