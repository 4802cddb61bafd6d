//! Validation of a client's HTTP/3 frames before h3 sees them.
//!
//! h3 buffers a frame until it is complete, however long the frame claims to be; it keeps reading even if nothing
//! consumes the data; it scans the whole buffer again for each piece received; and it takes a body truncated within a frame for
//! a complete one. So h3 only gets complete frames of limited length, and only types that it knows: unknown ones are
//! dropped here (RFC 9114 section 9). It gets no more data than it can pass on immediately; see `StreamWatch` in
//! `transport`. Malformed heads and trailers never reach it; see `qpack`.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use h3::error::Code;
use smallvec::SmallVec;

use super::qpack;
use crate::downstream::flood::FrameLimiter;

/// Maximum length in bytes of a frame on a control stream. The largest useful one is SETTINGS.
const MAX_CONTROL: u64 = 4 << 10;

// RFC 9114 section 7.2.
const DATA: u64 = 0x0;
const HEADERS: u64 = 0x1;
/// The types that h3 knows. They include some HTTP/2 types, which are errors here (section 7.2.8).
const KNOWN: [u64; 11] = [DATA, HEADERS, 0x2, 0x3, 0x4, 0x5, 0x6, 0x7, 0x8, 0x9, 0xd];

/// The type of a control stream (RFC 9114 section 6.2.1).
const CONTROL: u64 = 0x0;

/// A client's violation of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameViolation {
    /// A head or trailers over the limit.
    #[error("a field section is too large")]
    HeadTooLarge,
    /// Another frame over the limit.
    #[error("a frame is too large")]
    FrameTooLarge,
    /// A stream that ends within a frame.
    #[error("a stream ends within a frame")]
    Truncated,
    /// Too many unproductive frames.
    #[error("too many unproductive frames")]
    Flood,
    /// Malformed head or trailers.
    #[error("a field section is malformed")]
    Malformed,
    /// A field section that cannot be decoded.
    #[error("a field section cannot be decoded")]
    Undecodable,
}

impl FrameViolation {
    /// Returns the error code sent to the client.
    pub fn code(self) -> Code {
        match self {
            FrameViolation::Truncated => Code::H3_FRAME_ERROR,
            FrameViolation::Malformed => Code::H3_MESSAGE_ERROR,
            FrameViolation::Undecodable => Code::QPACK_DECOMPRESSION_FAILED,
            _ => Code::H3_EXCESSIVE_LOAD,
        }
    }
}

/// The kind of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A request stream.
    Request,
    /// A unidirectional stream whose type has not been read yet.
    Unknown,
    /// A control stream.
    Control,
    /// A stream without frames.
    Opaque,
}

/// The treatment of the frame whose payload comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frame {
    /// Passed on as it arrives.
    Data,
    /// Passed on once complete.
    Whole,
    /// Passed on once complete, after validation: a head or trailers.
    Fields,
    /// Dropped.
    Skipped,
}

/// Tracks the frames of one stream.
#[derive(Debug)]
pub struct Framing {
    kind: Kind,
    max_head: u64,
    /// Whether a head was received.
    has_head: bool,
    /// The bytes received of a frame's header, or of the stream's type.
    header: SmallVec<[u8; 16]>,
    frame: Frame,
    /// Bytes of the payload not received yet.
    left: u64,
    /// The bytes received of a frame that is passed on once complete.
    held: BytesMut,
    /// Pieces ready to be passed on.
    ready: VecDeque<Bytes>,
}

impl Framing {
    /// Creates the state of a request stream whose encoded field sections are limited to `max_head` bytes.
    pub fn request(max_head: u64) -> Framing {
        Framing {
            kind: Kind::Request,
            max_head,
            has_head: false,
            header: SmallVec::new(),
            frame: Frame::Skipped,
            left: 0,
            held: BytesMut::new(),
            ready: VecDeque::new(),
        }
    }

    /// Creates the state of a unidirectional stream.
    pub fn one_way() -> Framing {
        Framing { kind: Kind::Unknown, ..Framing::request(0) }
    }

    /// Returns the next piece to pass on, never an empty one.
    pub fn pop(&mut self) -> Option<Bytes> {
        self.ready.pop_front()
    }

    /// Processes received bytes. Returns the number of data bytes newly ready to be passed on.
    pub fn push(&mut self, chunk: &Bytes, flood: &FrameLimiter) -> Result<u64, FrameViolation> {
        let (mut at, mut data) = (0, 0);
        while at < chunk.len() {
            if self.kind == Kind::Opaque {
                self.ready.push_back(chunk.slice(at..));
                break;
            }
            let start = at;
            let early = !self.header.is_empty();
            let begins = self.left == 0;
            if begins {
                let Some(next) = self.read_header(&chunk[at..], flood)? else { break };
                at += next;
                // That was the stream's type.
                if self.header.is_empty() {
                    continue;
                }
            }
            let here = usize::try_from(self.left).unwrap_or(usize::MAX).min(chunk.len() - at);
            let end = at + here;
            self.left -= here as u64;
            match self.frame {
                Frame::Skipped => {}
                Frame::Data => {
                    if early {
                        self.ready.push_back(Bytes::copy_from_slice(&self.header));
                    }
                    let from = if early { at } else { start };
                    if from < end {
                        self.ready.push_back(chunk.slice(from..end));
                    }
                    data += here as u64;
                }
                Frame::Whole | Frame::Fields if begins && !early && self.left == 0 => {
                    self.pass(chunk.slice(start..end))?;
                }
                Frame::Whole | Frame::Fields => {
                    if begins {
                        self.held.extend_from_slice(&self.header);
                    }
                    self.held.extend_from_slice(&chunk[at..end]);
                    if self.left == 0 {
                        let frame = self.held.split().freeze();
                        self.pass(frame)?;
                    }
                }
            }
            self.header.clear();
            at = end;
        }
        Ok(data)
    }

    /// Passes a complete frame on, unless it is a malformed head or trailers.
    fn pass(&mut self, frame: Bytes) -> Result<(), FrameViolation> {
        if self.frame == Frame::Fields {
            let section = varint(&frame).and_then(|(_, rest)| varint(rest)).map_or(&[][..], |(_, section)| section);
            // h3 might accept what this check rejects, so it gets nothing else.
            if !qpack::is_sound(section, self.has_head).ok_or(FrameViolation::Undecodable)? {
                return Err(FrameViolation::Malformed);
            }
            self.has_head = true;
        }
        self.ready.push_back(frame);
        Ok(())
    }

    /// Checks that the stream may end here.
    pub fn end(&self) -> Result<(), FrameViolation> {
        let cut = self.left > 0 || !self.header.is_empty();
        // The end of other streams is unknown.
        if cut && matches!(self.kind, Kind::Request | Kind::Control) { Err(FrameViolation::Truncated) } else { Ok(()) }
    }

    /// Continues reading a frame's header or the stream's type. Returns the number of bytes consumed; `None` if all
    /// were and it is still incomplete.
    fn read_header(&mut self, bytes: &[u8], flood: &FrameLimiter) -> Result<Option<usize>, FrameViolation> {
        for (index, byte) in bytes.iter().enumerate() {
            self.header.push(*byte);
            let Some((first, rest)) = varint(&self.header) else { continue };
            if self.kind == Kind::Unknown {
                self.kind = if first == CONTROL { Kind::Control } else { Kind::Opaque };
                self.ready.push_back(Bytes::copy_from_slice(&self.header));
                self.header.clear();
                return Ok(Some(index + 1));
            }
            let Some((length, _)) = varint(rest) else { continue };
            self.begin(first, length, flood)?;
            return Ok(Some(index + 1));
        }
        Ok(None)
    }

    fn begin(&mut self, kind: u64, length: u64, flood: &FrameLimiter) -> Result<(), FrameViolation> {
        match kind {
            HEADERS => flood.head(),
            DATA if length > 0 => flood.data(length, true),
            _ => flood.idle(),
        }
        if flood.is_one() {
            return Err(FrameViolation::Flood);
        }
        self.frame = match kind {
            DATA if length == 0 => Frame::Skipped,
            // On a control stream this is an error, which h3 reports.
            DATA => Frame::Data,
            HEADERS if self.kind == Kind::Request && length > self.max_head => {
                return Err(FrameViolation::HeadTooLarge);
            }
            HEADERS if self.kind == Kind::Request => Frame::Fields,
            kind if !KNOWN.contains(&kind) => Frame::Skipped,
            _ if length > MAX_CONTROL => return Err(FrameViolation::FrameTooLarge),
            _ => Frame::Whole,
        };
        self.left = length;
        Ok(())
    }
}

/// Parses a variable-length integer (RFC 9000 section 16); returns it and the bytes after it.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let length = 1 << (bytes.first()? >> 6);
    let (number, rest) = bytes.split_at_checked(length)?;
    let number = number.iter().fold(0, |all, byte| (all << 8) | u64::from(*byte));
    Some((number & (u64::MAX >> (66 - 8 * length)), rest))
}

#[cfg(test)]
mod tests;
