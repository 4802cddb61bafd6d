//! Inspects a peer's frames before h2 does: heads and trailers for which h2 would close the connection are rewritten
//! so that only their streams fail; see [`hpack`](super::hpack).
//!
//! Nearly all bytes pass unchanged, in the buffer into which they were read. Only incomplete heads are held back,
//! which h2 could not process either.

use std::{
    borrow::Cow,
    cell::Cell,
    io,
    mem::MaybeUninit,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    StreamEnds,
    frames::{CONTINUATION, END_STREAM, Frame, HEADER, HEADERS, PREFACE},
    hpack,
};
use crate::net::pass_writes;

/// The limit on a frame's payload in bytes. Neither side announces a larger one.
const FRAME: usize = 16_384;

/// The limit on the frames of one head that are inspected together.
const FRAMES: usize = 64;

// Flags of HEADERS and CONTINUATION (RFC 9113 sections 6.2 and 6.10).
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// The number of malformed heads that were rewritten and not reported yet.
#[derive(Debug, Default, Clone)]
pub struct Malformed(Rc<Cell<u32>>);

impl Malformed {
    /// Takes one of them. Returns whether there was any.
    pub fn take(&self) -> bool {
        let count = self.0.get();
        self.0.set(count.saturating_sub(1));
        count > 0
    }
}

/// A connection whose incoming heads are inspected.
pub struct ScreenedIo<T> {
    stream: T,
    screen: Screen,
}

impl<T> ScreenedIo<T> {
    /// Wraps a client's connection, with a limit on heads in bytes.
    pub fn of_client(stream: T, max_head: usize, malformed: Malformed) -> Self {
        let screen = Screen { skip: PREFACE, latest: Some(0), malformed, ..Screen::new(max_head) };
        ScreenedIo { stream, screen }
    }

    /// Wraps a server's connection, with a limit on heads in bytes. `ends` is notified of heads that end their
    /// streams and have pseudo-header fields.
    pub fn of_server(stream: T, max_head: usize, ends: StreamEnds) -> Self {
        let screen = Screen { ends: Some(ends), opening: Some(Opening::new()), ..Screen::new(max_head) };
        ScreenedIo { stream, screen }
    }

    /// Returns the stream.
    pub fn into_inner(self) -> T {
        self.stream
    }
}

/// The received part of the first frame header.
type Opening = smallvec::SmallVec<[u8; HEADER]>;

/// The state of the inspection.
#[derive(Default)]
struct Screen {
    /// The limit on a head in bytes; longer ones are left to h2.
    max_head: usize,
    malformed: Malformed,
    /// For a server only.
    ends: Option<StreamEnds>,
    /// For a server only, until the header of its first frame was received. The frame is SETTINGS (RFC 9113 section
    /// 3.4), or the server speaks another protocol. Then there may be only a few bytes, and they pass immediately, so
    /// that they can be reported.
    opening: Option<Opening>,
    /// The number of bytes that pass before the next frame.
    skip: usize,
    /// The client's highest stream: a head on this stream or a lower one is trailers. For a server this is unknown.
    latest: Option<u32>,
    /// An incomplete frame header or head.
    held: Vec<u8>,
    /// Bytes that may pass; those from `given` on have not yet.
    ready: Vec<u8>,
    given: usize,
}

/// What to do with the next bytes.
enum Next {
    /// This many bytes pass.
    Passes(usize),
    /// The frame or head is incomplete.
    Partial,
    /// These frames are replaced.
    Replaced { length: usize, by: Vec<u8> },
}

impl Screen {
    fn new(max_head: usize) -> Screen {
        Screen { max_head: max_head.saturating_add(FRAME), ..Screen::default() }
    }

    /// Returns how many of the received bytes pass unchanged. The rest is held.
    fn pass(&mut self, bytes: &[u8]) -> usize {
        let mut at = self.open(bytes);
        while at < bytes.len() {
            let skipped = self.skip.min(bytes.len() - at);
            self.skip -= skipped;
            at += skipped;
            match self.next(&bytes[at..]) {
                Next::Passes(0) => break,
                Next::Passes(length) => at += length,
                Next::Partial => {
                    self.held.extend_from_slice(&bytes[at..]);
                    break;
                }
                Next::Replaced { length, by } => {
                    self.ready = by;
                    self.hold(&bytes[at + length..]);
                    break;
                }
            }
        }
        at
    }

    /// Returns how many of the received bytes belong to the first frame header.
    fn open(&mut self, bytes: &[u8]) -> usize {
        let Some(header) = &mut self.opening else { return 0 };
        let count = bytes.len().min(HEADER - header.len());
        header.extend_from_slice(&bytes[..count]);
        if let Some(frame) = Frame::read(header) {
            self.skip = frame.length as usize;
            self.opening = None;
        }
        count
    }

    /// Processes received bytes that follow held ones.
    fn hold(&mut self, bytes: &[u8]) {
        let mut held = std::mem::take(&mut self.held);
        held.extend_from_slice(bytes);
        let mut at = 0;
        loop {
            let skipped = self.skip.min(held.len() - at);
            self.skip -= skipped;
            self.ready.extend_from_slice(&held[at..at + skipped]);
            at += skipped;
            match self.next(&held[at..]) {
                Next::Passes(0) | Next::Partial => break,
                Next::Passes(length) => {
                    self.ready.extend_from_slice(&held[at..at + length]);
                    at += length;
                }
                Next::Replaced { length, by } => {
                    self.ready.extend_from_slice(&by);
                    at += length;
                }
            }
        }
        held.drain(..at);
        self.held = held;
    }

    /// Decides about bytes that begin with a frame.
    fn next(&mut self, bytes: &[u8]) -> Next {
        if bytes.is_empty() {
            return Next::Passes(0);
        }
        let Some(frame) = Frame::read(bytes) else { return Next::Partial };
        if frame.kind == HEADERS && frame.stream != 0 {
            let in_trailers = self.latest.is_some_and(|latest| frame.stream <= latest);
            match HeaderBlock::read(bytes, frame, self.max_head) {
                Some(Some(head)) => {
                    self.latest = self.latest.map(|latest| latest.max(frame.stream));
                    if let Some(ends) = self.ends.as_ref().filter(|_| frame.flags & END_STREAM != 0)
                        && hpack::has_pseudo(&head.block)
                    {
                        ends.note_pseudo(frame.stream);
                    }
                    return head.screened(frame, in_trailers, &self.malformed);
                }
                Some(None) => return Next::Partial,
                None => {}
            }
        }
        self.skip = frame.length as usize;
        Next::Passes(HEADER)
    }

    /// Copies bytes that may pass into the buffer. Returns whether there were any.
    fn give(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let ready = &self.ready[self.given..];
        let count = ready.len().min(buffer.remaining());
        buffer.put_slice(&ready[..count]);
        self.given += count;
        if self.given == self.ready.len() {
            (self.ready, self.given) = (Vec::new(), 0);
        }
        count > 0
    }
}

/// A head or trailers: HEADERS with its CONTINUATIONs (RFC 9113 section 6.10).
struct HeaderBlock<'a> {
    /// The length of its frames in bytes.
    length: usize,
    block: Cow<'a, [u8]>,
    is_one_frame: bool,
}

impl<'a> HeaderBlock<'a> {
    /// Reads a header block. `Some(None)` if it is incomplete, `None` if it is left to h2.
    fn read(bytes: &'a [u8], first: Frame, max_head: usize) -> Option<Option<HeaderBlock<'a>>> {
        let mut parts = smallvec::SmallVec::<[&[u8]; 4]>::new();
        let mut length = 0;
        loop {
            let Some(frame) = Frame::read(&bytes[length..]) else { return Some(None) };
            let is_next = length == 0 || (frame.kind == CONTINUATION && frame.stream == first.stream);
            let end = length + HEADER + frame.length as usize;
            if !is_next || frame.length as usize > FRAME || end > max_head || parts.len() == FRAMES {
                return None;
            }
            let Some(payload) = bytes.get(length + HEADER..end) else { return Some(None) };
            parts.push(if length == 0 { without_padding(payload, frame.flags)? } else { payload });
            length = end;
            if frame.flags & END_HEADERS != 0 {
                break;
            }
        }
        let (block, is_one_frame) = match &parts[..] {
            [block] => (Cow::Borrowed(*block), true),
            parts => (Cow::Owned(parts.concat()), false),
        };
        Some(Some(HeaderBlock { length, block, is_one_frame }))
    }

    /// Passes the block, or a replacement.
    fn screened(&self, first: Frame, in_trailers: bool, malformed: &Malformed) -> Next {
        let Some(is_fine) = hpack::is_fine(&self.block, in_trailers) else { return Next::Passes(self.length) };
        if is_fine && self.is_one_frame {
            return Next::Passes(self.length);
        }
        let mut writer = Writer::new(first);
        let Some(()) = hpack::replaced(&self.block, in_trailers, |line| writer.write(line)) else {
            return Next::Passes(self.length);
        };
        if !is_fine && !in_trailers {
            malformed.0.set(malformed.0.get().saturating_add(1));
        }
        Next::Replaced { length: self.length, by: writer.finish() }
    }
}

/// Writes a head's frames.
///
/// h2 decodes the fields of a head frame by frame. If a frame ends within a field, h2 forgets that it has found the
/// head malformed (two paths), or that more frames follow. So a head is written as one frame if possible, and
/// otherwise split between fields.
struct Writer {
    out: Vec<u8>,
    /// The start of the current frame.
    start: usize,
    stream: u32,
}

impl Writer {
    fn new(first: Frame) -> Writer {
        let mut writer = Writer { out: Vec::new(), start: 0, stream: first.stream };
        writer.begin(HEADERS, first.flags & END_STREAM);
        writer
    }

    fn begin(&mut self, kind: u8, flags: u8) {
        self.start = self.out.len();
        self.out.extend_from_slice(&[0, 0, 0, kind, flags]);
        self.out.extend_from_slice(&self.stream.to_be_bytes());
    }

    fn room(&self) -> usize {
        FRAME + HEADER - (self.out.len() - self.start)
    }

    fn end(&mut self, flags: u8) {
        let length = (self.out.len() - self.start - HEADER) as u32;
        self.out[self.start..self.start + 3].copy_from_slice(&length.to_be_bytes()[1..]);
        self.out[self.start + 4] |= flags;
    }

    fn next(&mut self) {
        self.end(0);
        self.begin(CONTINUATION, 0);
    }

    fn write(&mut self, mut line: &[u8]) {
        if line.len() > self.room() && self.room() < FRAME {
            self.next();
        }
        while line.len() > self.room() {
            let (now, later) = line.split_at(self.room());
            self.out.extend_from_slice(now);
            self.next();
            line = later;
        }
        self.out.extend_from_slice(line);
    }

    fn finish(mut self) -> Vec<u8> {
        self.end(END_HEADERS);
        self.out
    }
}

/// Returns the payload of a HEADERS frame without padding and priority (RFC 9113 section 6.2).
fn without_padding(payload: &[u8], flags: u8) -> Option<&[u8]> {
    let (mut payload, mut padding) = (payload, 0);
    if flags & PADDED != 0 {
        let (length, rest) = payload.split_first()?;
        (payload, padding) = (rest, usize::from(*length));
    }
    if flags & PRIORITY != 0 {
        payload = payload.get(5..)?;
    }
    payload.get(..payload.len().checked_sub(padding)?)
}

impl<T: AsyncRead + Unpin> AsyncRead for ScreenedIo<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let ScreenedIo { stream, screen } = self.get_mut();
        let before = buffer.filled().len();
        while !screen.give(buffer) && buffer.remaining() > 0 {
            if screen.held.is_empty() {
                ready!(Pin::new(&mut *stream).poll_read(cx, buffer))?;
                let passed = screen.pass(&buffer.filled()[before..]);
                let is_over = buffer.filled().len() == before;
                buffer.set_filled(before + passed);
                if passed > 0 || is_over {
                    break;
                }
            } else {
                let mut space = [MaybeUninit::uninit(); 4096];
                let mut more = ReadBuf::uninit(&mut space);
                ready!(Pin::new(&mut *stream).poll_read(cx, &mut more))?;
                match more.filled() {
                    // The head will not be completed.
                    [] => screen.ready.append(&mut screen.held),
                    more => screen.hold(more),
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

pass_writes!([T: AsyncWrite + Unpin] ScreenedIo<T>, stream);

#[cfg(test)]
mod tests;
