//! Which streams the peer has ended with END_STREAM, and with what.
//!
//! A server that has answered early may reset the stream without an error, to have the rest of the request not sent (RFC 9113
//! section 8.1). To h2 a stream is reset then, whether its answer was whole or not. And h2 drops pseudo-header fields from trailers,
//! which have none (section 8.1). So the frames themselves are looked at.

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

/// The streams of a connection about which somebody wants to know.
#[derive(Debug, Default, Clone)]
pub struct StreamEnds(Rc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    streams: RefCell<FxHashMap<u32, End>>,
    said: PeerSettings,
}

/// What is known of a stream's end.
#[derive(Debug, Default, Clone, Copy)]
struct End {
    has_come: bool,
    /// A head or trailers with pseudo-header fields have END_STREAM.
    has_pseudo: bool,
}

impl StreamEnds {
    /// Watches a stream that has begun just now.
    pub fn watch(&self, stream: u32) -> Ended {
        self.0.streams.borrow_mut().insert(stream, End::default());
        Ended { ends: self.clone(), stream }
    }

    /// Pseudo-header fields have come in the frames that end a stream.
    pub(super) fn note_pseudo(&self, stream: u32) {
        if let Some(end) = self.0.streams.borrow_mut().get_mut(&stream) {
            end.has_pseudo = true;
        }
    }

    /// What the peer has said of the connection.
    pub fn said(&self) -> &PeerSettings {
        &self.0.said
    }
}

/// Whether a stream was ended with END_STREAM.
#[derive(Debug)]
pub struct Ended {
    ends: StreamEnds,
    stream: u32,
}

impl Ended {
    fn end(&self) -> End {
        self.ends.0.streams.borrow().get(&self.stream).copied().unwrap_or_default()
    }

    /// Whether it was.
    pub fn get(&self) -> bool {
        self.end().has_come
    }

    /// Whether the head or the trailers that have ended it have pseudo-header fields.
    pub fn has_pseudo(&self) -> bool {
        self.end().has_pseudo
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.ends.0.streams.borrow_mut().remove(&self.stream);
    }
}

/// A connection to a server whose frames are looked at.
pub struct WatchedIo<T> {
    stream: T,
    scanner: Scanner,
    reader: Reader,
    ends: StreamEnds,
}

impl<T> WatchedIo<T> {
    /// Looks at what comes from `stream`, for `ends`.
    pub fn new(stream: T, ends: StreamEnds) -> Self {
        // A server begins with a frame (RFC 9113 section 3.4).
        WatchedIo { stream, scanner: Scanner::after(0), reader: Reader::default(), ends }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for WatchedIo<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut me.stream).poll_read(cx, buf))?;
        let (mut ends, said) = (me.ends.0.streams.borrow_mut(), &me.ends.0.said);
        me.scanner.scan_all(&buf.filled()[before..], |seen| {
            if let FrameEvent::Frame(frame) = seen
                && frame.ends_stream()
                && let Some(end) = ends.get_mut(&frame.stream)
            {
                end.has_come = true;
            }
            me.reader.note(seen, said);
        });
        Poll::Ready(Ok(()))
    }
}

pass_writes!([T: AsyncWrite + Unpin] WatchedIo<T>, stream);
