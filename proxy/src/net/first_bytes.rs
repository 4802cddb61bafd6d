//! The first bytes that a peer sent, kept for error messages about an unexpected protocol, and the protocol they
//! resemble.

use std::{
    cell::Cell,
    fmt, io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::pass_writes;

/// Number of bytes kept: enough to recognise a protocol.
const KEPT: usize = 16;

/// The first bytes received from a peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FirstBytes {
    bytes: [u8; KEPT],
    len: u8,
}

/// A protocol recognised by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DetectedProtocol {
    /// An HTTP/1 response.
    Http1,
    /// A SETTINGS frame, the first frame of every HTTP/2 server (RFC 9113 section 3.4).
    Http2,
    /// A TLS record (RFC 8446 section 5.1).
    Tls,
    /// None of these.
    Unknown,
}

impl FirstBytes {
    /// Keeps the beginning of `bytes`.
    pub fn of(bytes: &[u8]) -> FirstBytes {
        let mut first = FirstBytes::default();
        first.note(bytes);
        first
    }

    /// Appends received bytes as far as there is room.
    pub fn note(&mut self, bytes: &[u8]) {
        let len = usize::from(self.len);
        let taken = bytes.len().min(KEPT - len);
        self.bytes[len..len + taken].copy_from_slice(&bytes[..taken]);
        self.len += taken as u8;
    }

    /// Returns whether no further bytes will be kept.
    #[inline]
    pub fn is_full(&self) -> bool {
        usize::from(self.len) == KEPT
    }

    /// Returns whether no bytes were received.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Returns the protocol of a server that sends these bytes.
    pub fn look(&self) -> DetectedProtocol {
        match self.as_slice() {
            bytes if bytes.starts_with(b"HTTP/1.") => DetectedProtocol::Http1,
            // Length, type, flags, and stream 0.
            [0, _, _, 4, 0, 0, 0, 0, 0, ..] => DetectedProtocol::Http2,
            bytes if is_tls(bytes) => DetectedProtocol::Tls,
            _ => DetectedProtocol::Unknown,
        }
    }
}

/// A stream that records the first bytes that are read from it.
#[derive(Debug)]
pub struct Recording<T> {
    stream: T,
    first: Rc<Cell<FirstBytes>>,
}

impl<T> Recording<T> {
    /// Returns the stream, and where it records the bytes.
    pub fn new(stream: T) -> (Recording<T>, Rc<Cell<FirstBytes>>) {
        let first = Rc::<Cell<FirstBytes>>::default();
        (Recording { stream, first: first.clone() }, first)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Recording<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let mut first = self.first.get();
        if !first.is_full() {
            first.note(&buffer.filled()[before..]);
            self.first.set(first);
        }
        Poll::Ready(Ok(()))
    }
}

pass_writes!([T: AsyncWrite + Unpin] Recording<T>, stream);

/// Returns whether a connection that begins like this uses TLS: a record type, and the first byte of its version.
pub fn is_tls(bytes: &[u8]) -> bool {
    matches!(bytes, [20..=24, 3, ..])
}

/// `first bytes 48 54 54 50 ("HTTP")`; the text is shown only if every byte is legible.
impl fmt::Display for FirstBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.as_slice();
        if bytes.is_empty() {
            return f.write_str("no bytes received");
        }
        f.write_str("first bytes")?;
        bytes.iter().try_for_each(|byte| write!(f, " {byte:02x}"))?;
        let legible = |byte: &u8| byte.is_ascii_graphic() || matches!(byte, b' ' | b'\r' | b'\n' | b'\t');
        match bytes.iter().all(legible) {
            true => write!(f, " ({:?})", String::from_utf8_lossy(bytes)),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_are_kept_across_reads() {
        let mut first = FirstBytes::default();
        assert_eq!(first.to_string(), "no bytes received");
        first.note(b"HT");
        first.note(b"");
        first.note(b"TP");
        assert_eq!(first.to_string(), "first bytes 48 54 54 50 (\"HTTP\")");
        first.note(&[b'x'; 100]);
        assert!(first.is_full());
        assert_eq!(first, FirstBytes::of(b"HTTPxxxxxxxxxxxx and more"));
        assert_eq!(FirstBytes::of(b"\x15\x03\x03\0\x02").to_string(), "first bytes 15 03 03 00 02");
    }

    #[test]
    fn protocols_are_recognised_by_their_first_bytes() {
        for (bytes, expected) in [
            (&b"HTTP/1.1 400 Bad Request"[..], DetectedProtocol::Http1),
            (b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x80", DetectedProtocol::Http2),
            (b"\x15\x03\x01\0\x02\x02\x46", DetectedProtocol::Tls),
            (b"\x16\x03\x03", DetectedProtocol::Tls),
            (b"SSH-2.0-OpenSSH_9.2", DetectedProtocol::Unknown),
            (b"\x16", DetectedProtocol::Unknown),
            (b"", DetectedProtocol::Unknown),
        ] {
            assert_eq!(FirstBytes::of(bytes).look(), expected, "{}", bytes.escape_ascii());
        }
    }
}
