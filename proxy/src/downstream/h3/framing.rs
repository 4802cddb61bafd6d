//! Checks the frames that a client sends before h3 sees them.
//!
//! h3 keeps a frame until it is whole, however long it says it is, reads on while nobody takes what it has, looks through all
//! that it keeps for each piece that comes, and takes a body that is cut off within a frame for one that has ended. So it gets
//! frames of a bounded length, whole, and only those that mean something to it: unknown ones are dropped here (RFC 9114
//! section 9). Of data it gets no more than it can hand on at once; see `Watch` in `transport`. Heads and trailers that are
//! malformed it does not get at all; see `qpack`.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use h3::error::Code;
use smallvec::SmallVec;

use super::qpack;
use crate::downstream::flood::FrameLimiter;

/// Bytes that a frame on a control stream may have. The largest that anybody needs is SETTINGS.
const MAX_CONTROL: u64 = 4 << 10;

// RFC 9114 section 7.2.
const DATA: u64 = 0x0;
const HEADERS: u64 = 0x1;
/// Those that h3 knows. Among them are some of HTTP/2, which are errors here (section 7.2.8).
const KNOWN: [u64; 11] = [DATA, HEADERS, 0x2, 0x3, 0x4, 0x5, 0x6, 0x7, 0x8, 0x9, 0xd];

/// The type of a control stream (RFC 9114 section 6.2.1).
const CONTROL: u64 = 0x0;

/// What a client must not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameViolation {
    /// A head, or trailers, over the bound.
    #[error("a field section is too large")]
    HeadTooLarge,
    /// Another frame that is far too long.
    #[error("a frame is too large")]
    FrameTooLarge,
    /// A stream that ends within a frame.
    #[error("a stream ends within a frame")]
    Truncated,
    /// Nothing but frames that lead to nothing.
    #[error("too many frames that lead to nothing")]
    Flood,
    /// A head, or trailers, that are none.
    #[error("a field section is malformed")]
    Malformed,
    /// What should be one of these, and is no field section.
    #[error("a field section cannot be decoded")]
    Undecodable,
}

impl FrameViolation {
    /// What its client is told.
    pub fn code(self) -> Code {
        match self {
            FrameViolation::Truncated => Code::H3_FRAME_ERROR,
            FrameViolation::Malformed => Code::H3_MESSAGE_ERROR,
            FrameViolation::Undecodable => Code::QPACK_DECOMPRESSION_FAILED,
            _ => Code::H3_EXCESSIVE_LOAD,
        }
    }
}

/// What is on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A request.
    Request,
    /// It begins with a number that says so.
    Unknown,
    /// Frames about the connection.
    Control,
    /// No frames.
    Opaque,
}

/// What is done with the frame whose payload is next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frame {
    /// Passed on as it comes.
    Data,
    /// Passed on when it is whole.
    Whole,
    /// The same; it is a head, or trailers.
    Fields,
    /// Dropped.
    Skipped,
}

/// Follows the frames of one stream.
#[derive(Debug)]
pub struct Framing {
    kind: Kind,
    max_head: u64,
    /// A head has come.
    has_head: bool,
    /// What has come of a frame's header, or of the stream's type.
    header: SmallVec<[u8; 16]>,
    frame: Frame,
    /// Bytes of its payload that are still to come.
    left: u64,
    /// What has come of a frame that is passed on when it is whole.
    held: BytesMut,
    /// What may be passed on.
    ready: VecDeque<Bytes>,
}

impl Framing {
    /// Of a request's stream, whose field sections may have this many bytes as they are sent.
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

    /// Of a stream in one direction.
    pub fn one_way() -> Framing {
        Framing { kind: Kind::Unknown, ..Framing::request(0) }
    }

    /// The next piece that may be passed on; never an empty one.
    pub fn pop(&mut self) -> Option<Bytes> {
        self.ready.pop_front()
    }

    /// Looks at what has come. How many bytes of data are among what may be passed on now.
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

    /// A whole frame may be passed on, unless it is a head or trailers that are malformed.
    fn pass(&mut self, frame: Bytes) -> Result<(), FrameViolation> {
        if self.frame == Frame::Fields {
            let section = varint(&frame).and_then(|(_, rest)| varint(rest)).map_or(&[][..], |(_, section)| section);
            // h3 may take what this does not, so it gets nothing else.
            if !qpack::is_sound(section, self.has_head).ok_or(FrameViolation::Undecodable)? {
                return Err(FrameViolation::Malformed);
            }
            self.has_head = true;
        }
        self.ready.push_back(frame);
        Ok(())
    }

    /// The stream has ended.
    pub fn end(&self) -> Result<(), FrameViolation> {
        let cut = self.left > 0 || !self.header.is_empty();
        // Of the others nobody knows where they may end.
        if cut && matches!(self.kind, Kind::Request | Kind::Control) { Err(FrameViolation::Truncated) } else { Ok(()) }
    }

    /// Reads on in a frame's header, or in the stream's type. How many bytes that took; none: all, and it is not whole yet.
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
            // On a control stream it is an error, which h3 has a word for.
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

/// A number at the beginning (RFC 9000 section 16), and what follows it.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let length = 1 << (bytes.first()? >> 6);
    let (number, rest) = bytes.split_at_checked(length)?;
    let number = number.iter().fold(0, |all, byte| (all << 8) | u64::from(*byte));
    Some((number & (u64::MAX >> (66 - 8 * length)), rest))
}

#[cfg(test)]
mod tests;
