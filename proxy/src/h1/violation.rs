//! What a peer does wrong where RFC 9112 would let a recipient be lenient: between two parsers that differ in this, requests
//! can be smuggled. So there is one way to write a line's end, a field, a length and a chunk here, and no other.

use crate::observe::{Detail, detail};

/// What a peer did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A line ended without CR, or had one elsewhere.
    #[error("a line does not end with CR LF, or has a CR elsewhere")]
    BareLineEnd,
    /// A NUL in a head.
    #[error("a head has a NUL in it")]
    Nul,
    /// A header line begins with white space (obs-fold, RFC 9112 section 5.2).
    #[error("a header line begins with white space")]
    Fold,
    /// White space before a header's colon, or no colon.
    #[error("a header has no name, or white space in it")]
    HeaderName,
    /// `Content-Length` is no number, or there are several.
    #[error("Content-Length is not one number")]
    ContentLength,
    /// `Transfer-Encoding` is anything but one `chunked`, or there is one in HTTP/1.0.
    #[error("Transfer-Encoding is not `chunked`")]
    TransferEncoding,
    /// Both of them.
    #[error("there are both Content-Length and Transfer-Encoding")]
    BothLengths,
    /// A chunk's size is no hexadecimal number, or its line too long.
    #[error("a chunk's size cannot be read")]
    ChunkSize,
    /// A chunk does not end where it should.
    #[error("a chunk does not end where it should")]
    ChunkEnd,
    /// A line of trailers is too long, or there are too many.
    #[error("the trailers are too long")]
    Trailers,
}

impl Violation {
    /// What the access log says of it.
    pub fn detail(self) -> Detail {
        match self {
            Violation::BareLineEnd => detail::BARE_LINE_END,
            Violation::Nul => detail::NUL,
            Violation::Fold => detail::OBS_FOLD,
            Violation::HeaderName => detail::HEADER_NAME,
            Violation::ContentLength => detail::CONTENT_LENGTH,
            Violation::TransferEncoding => detail::TRANSFER_ENCODING,
            Violation::BothLengths => detail::BOTH_LENGTHS,
            Violation::ChunkSize => detail::CHUNK_SIZE,
            Violation::ChunkEnd => detail::CHUNK_END,
            Violation::Trailers => detail::TRAILERS,
        }
    }
}

/// What is wrong with a line, its LF included, if it is a header field or a trailer. An empty line is none.
pub fn of_field(line: &[u8]) -> Option<Violation> {
    if let Some(violation) = of_line(line) {
        return Some(violation);
    }
    if matches!(line[0], b' ' | b'\t') {
        return Some(Violation::Fold);
    }
    let colon = line.iter().position(|b| *b == b':').filter(|at| *at > 0);
    match colon {
        Some(colon) if !line[..colon].iter().any(u8::is_ascii_whitespace) => None,
        _ => Some(Violation::HeaderName),
    }
}

/// What is wrong with any line, its LF included.
pub fn of_line(line: &[u8]) -> Option<Violation> {
    let Some(line) = line.strip_suffix(b"\r\n") else { return Some(Violation::BareLineEnd) };
    match line.iter().find(|b| matches!(b, b'\r' | 0)) {
        Some(0) => Some(Violation::Nul),
        Some(_) => Some(Violation::BareLineEnd),
        None => None,
    }
}

/// The number in a `Content-Length`: digits and nothing else.
pub fn length(value: &[u8]) -> Result<u64, Violation> {
    let digits = str::from_utf8(value).ok().filter(|v| !v.is_empty() && v.bytes().all(|b| b.is_ascii_digit()));
    digits.and_then(|d| d.parse().ok()).ok_or(Violation::ContentLength)
}
