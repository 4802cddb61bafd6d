//! An eye on the frames that a peer sends, beside h2.

/// Bytes with which a client begins (RFC 9113 section 3.4).
pub const PREFACE: usize = 24;

/// A frame's header (RFC 9113 section 4.1).
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

/// The flag that ends a stream, on [`DATA`] and [`HEADERS`].
pub(super) const END_STREAM: u8 = 1;

/// What a frame's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: u8,
    /// What they say depends on its type.
    pub flags: u8,
    /// Bytes of its payload.
    pub length: u32,
    /// Its stream.
    pub stream: u32,
}

impl Frame {
    /// Reads the header that these bytes begin with, if all of it is there.
    pub fn read(bytes: &[u8]) -> Option<Frame> {
        let [a, b, c, kind, flags, stream @ ..] = *bytes.first_chunk::<HEADER>()?;
        let length = u32::from_be_bytes([0, a, b, c]);
        Some(Frame { kind, flags, length, stream: u32::from_be_bytes(stream) & (u32::MAX >> 1) })
    }

    /// Whether it is its stream's last one in this direction.
    pub fn ends_stream(&self) -> bool {
        self.flags & END_STREAM != 0 && matches!(self.kind, DATA | HEADERS)
    }
}

/// What is found in what a peer sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameEvent<'a> {
    /// A frame begins.
    Frame(Frame),
    /// A part of the payload of the frame that has begun last.
    Payload(&'a [u8]),
}

/// Finds the frames in what a peer sends, however that is cut.
#[derive(Debug)]
pub struct Scanner {
    /// There was a frame.
    begun: bool,
    /// Bytes until the next one begins.
    skip: usize,
    header: [u8; HEADER],
    filled: usize,
}

impl Scanner {
    /// Of a peer that sends this many bytes before its first frame.
    pub fn after(preface: usize) -> Scanner {
        Scanner { begun: false, skip: preface, header: [0; HEADER], filled: 0 }
    }

    /// Looks at what has come; `each` is told of each frame whose header is complete.
    pub fn scan(&mut self, bytes: &[u8], mut each: impl FnMut(Frame)) {
        self.scan_all(bytes, |seen| {
            if let FrameEvent::Frame(frame) = seen {
                each(frame);
            }
        });
    }

    /// The same, and `each` is shown what is in the frames.
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
    fn frames_are_found_however_they_are_cut() {
        let all = [(6, 1, 8), (HEADERS, 4, 30), (HEADERS, 5, 0), (DATA, 0, 5), (DATA, 1, 0), (DATA, 1, 700)];
        let bytes = all.iter().map(|(kind, flags, payload)| frame(*kind, *flags, *payload));
        let bytes = [vec![b'x'; PREFACE], bytes.collect::<Vec<_>>().concat()].concat();
        let expected = all.map(|(kind, flags, payload)| Frame { kind, flags, length: payload as u32, stream: 3 });
        // An answer to a ping ends nothing.
        assert_eq!(expected.map(|frame| frame.ends_stream()), [false, false, true, false, true, true]);
        for step in 1..bytes.len() {
            let (mut scanner, mut found) = (Scanner::after(PREFACE), Vec::new());
            bytes.chunks(step).for_each(|part| scanner.scan(part, |frame| found.push(frame)));
            assert_eq!(found, expected, "in steps of {step}");
        }
    }
}
