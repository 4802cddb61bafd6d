//! The frames that a peer sends, before h2 sees them: heads and trailers that would cost the connection are changed so that they
//! cost their streams only; see [`hpack`](super::hpack).
//!
//! Nearly everything passes as it comes, in the memory into which it was read. What is held back is a head that has not come to
//! its end, which h2 could do nothing with either.

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

/// Bytes of a frame's payload, at most. Neither side says that it takes more.
const FRAME: usize = 16_384;

/// Frames of one head that are looked at together, at most.
const FRAMES: usize = 64;

// The flags of heads (RFC 9113 sections 6.2 and 6.10).
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// How many heads were changed, since their messages are malformed, and nobody has told of it.
#[derive(Debug, Default, Clone)]
pub struct Malformed(Rc<Cell<u32>>);

impl Malformed {
    /// Takes one of them. Whether there was any.
    pub fn take(&self) -> bool {
        let count = self.0.get();
        self.0.set(count.saturating_sub(1));
        count > 0
    }
}

/// A connection whose incoming heads are looked at.
pub struct ScreenedIo<T> {
    stream: T,
    screen: Screen,
}

impl<T> ScreenedIo<T> {
    /// Of a client, whose heads may have so many bytes.
    pub fn of_client(stream: T, max_head: usize, malformed: Malformed) -> Self {
        let screen = Screen { skip: PREFACE, latest: Some(0), malformed, ..Screen::new(max_head) };
        ScreenedIo { stream, screen }
    }

    /// Of a server, whose heads may have so many bytes. `ends` is told of those that end their streams and have pseudo-header fields.
    pub fn of_server(stream: T, max_head: usize, ends: StreamEnds) -> Self {
        let screen = Screen { ends: Some(ends), opening: Some(Opening::new()), ..Screen::new(max_head) };
        ScreenedIo { stream, screen }
    }

    /// The stream alone.
    pub fn into_inner(self) -> T {
        self.stream
    }
}

/// What has come of a frame's header.
type Opening = smallvec::SmallVec<[u8; HEADER]>;

/// What is known of the frames so far.
#[derive(Default)]
struct Screen {
    /// Bytes of a head, at most; what is longer is left to h2.
    max_head: usize,
    malformed: Malformed,
    /// Of a server.
    ends: Option<StreamEnds>,
    /// Of a server, until the header of its first frame has come. That is SETTINGS (RFC 9113 section 3.4), or the server speaks
    /// something else, of which there may be no more than a few bytes: they pass at once, for others to say what they are.
    opening: Option<Opening>,
    /// Bytes that pass before the next frame begins.
    skip: usize,
    /// The client's last stream: another head on it, or on one before it, is trailers. Of a server's that cannot be seen.
    latest: Option<u32>,
    /// The beginning of a frame's header, or of a head, whose rest is to come.
    held: Vec<u8>,
    /// What may pass, from `given` on.
    ready: Vec<u8>,
    given: usize,
}

/// What becomes of what is next.
enum Next {
    /// So many bytes pass.
    Passes(usize),
    /// It is not all there.
    Partial,
    /// These frames are replaced by others.
    Replaced { length: usize, by: Vec<u8> },
}

impl Screen {
    fn new(max_head: usize) -> Screen {
        Screen { max_head: max_head.saturating_add(FRAME), ..Screen::default() }
    }

    /// Of what has come, how much may pass as it is. The rest is held.
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

    /// How much of what has come is of the first frame's header.
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

    /// What has come follows what is held.
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

    /// What becomes of what begins with a frame.
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

    /// Gives what may pass. Whether there was anything.
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

/// A head or trailers: HEADERS, and the CONTINUATIONs that belong to it (RFC 9113 section 6.10).
struct HeaderBlock<'a> {
    /// Bytes of its frames.
    length: usize,
    block: Cow<'a, [u8]>,
    is_one_frame: bool,
}

impl<'a> HeaderBlock<'a> {
    /// Reads it where it begins. `Some(None)`: it has not come to its end. None: h2 is to say what it thinks of it.
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

    /// It passes, or another one does.
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
/// h2 decodes what there is of a head with each of its frames. If that ends within a field it forgets that it has found it
/// malformed (two paths), and else that there is more to come. So as many heads as possible are one frame, and the frames of
/// others end between fields.
struct Writer {
    out: Vec<u8>,
    /// Where the last frame begins.
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

/// What is in a HEADERS frame beside its padding and its priority (RFC 9113 section 6.2).
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
                    // It will not be whole.
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
