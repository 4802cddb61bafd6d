//! Tracks which streams the peer has ended with END_STREAM, and how.
//!
//! A server that responds early may reset the stream with NO_ERROR, to stop the rest of the request (RFC 9113 section
//! 8.1). h2 then reports the stream as reset, whether or not the response was complete. h2 also silently drops
//! pseudo-header fields from trailers, where they are not allowed (section 8.1). So the frames themselves are
//! inspected.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use rustc_hash::FxHashMap;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    frames::{FrameEvent, Scanner},
    peer_settings::{PeerSettings, Reader},
};
use crate::net::pass_writes;

/// The tracked streams of a connection.
#[derive(Debug, Default, Clone)]
pub struct StreamEnds(Rc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    streams: RefCell<FxHashMap<u32, End>>,
    settings: PeerSettings,
}

/// The end of a stream.
#[derive(Debug, Default, Clone, Copy)]
struct End {
    is_received: bool,
    /// Whether the head or trailers with END_STREAM have pseudo-header fields.
    has_pseudo: bool,
}

impl StreamEnds {
    /// Tracks a new stream.
    pub fn watch(&self, stream: u32) -> Ended {
        self.0.streams.borrow_mut().insert(stream, End::default());
        Ended { ends: self.clone(), stream }
    }

    /// Records that the frames ending a stream have pseudo-header fields.
    pub(super) fn note_pseudo(&self, stream: u32) {
        if let Some(end) = self.0.streams.borrow_mut().get_mut(&stream) {
            end.has_pseudo = true;
        }
    }

    /// Returns the peer's settings.
    pub fn peer_settings(&self) -> &PeerSettings {
        &self.0.settings
    }
}

/// Reports whether a stream was ended with END_STREAM.
#[derive(Debug)]
pub struct Ended {
    ends: StreamEnds,
    stream: u32,
}

impl Ended {
    fn end(&self) -> End {
        self.ends.0.streams.borrow().get(&self.stream).copied().unwrap_or_default()
    }

    /// Returns whether the stream was ended with END_STREAM.
    pub fn get(&self) -> bool {
        self.end().is_received
    }

    /// Returns whether the head or trailers that ended it have pseudo-header fields.
    pub fn has_pseudo(&self) -> bool {
        self.end().has_pseudo
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.ends.0.streams.borrow_mut().remove(&self.stream);
    }
}

/// A connection to a server whose frames are inspected.
pub struct WatchedIo<T> {
    stream: T,
    scanner: Scanner,
    reader: Reader,
    ends: StreamEnds,
}

impl<T> WatchedIo<T> {
    /// Inspects what is read from `stream`, for `ends`.
    pub fn new(stream: T, ends: StreamEnds) -> Self {
        // A server's first bytes are a frame (RFC 9113 section 3.4).
        WatchedIo { stream, scanner: Scanner::after(0), reader: Reader::default(), ends }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for WatchedIo<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut me.stream).poll_read(cx, buf))?;
        let (mut ends, settings) = (me.ends.0.streams.borrow_mut(), &me.ends.0.settings);
        me.scanner.scan_all(&buf.filled()[before..], |event| {
            if let FrameEvent::Frame(frame) = event
                && frame.ends_stream()
                && let Some(end) = ends.get_mut(&frame.stream)
            {
                end.is_received = true;
            }
            me.reader.note(event, settings);
        });
        Poll::Ready(Ok(()))
    }
}

pass_writes!([T: AsyncWrite + Unpin] WatchedIo<T>, stream);
