//! Protocol violations that RFC 9112 would let a recipient tolerate. Parsers that differ in such leniency allow
//! request smuggling, so line ends, fields, lengths and chunks are accepted in exactly one form.

use crate::observe::{Detail, detail};

/// A violation of the message syntax by a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A line does not end with CR LF, or has a CR elsewhere.
    #[error("a line does not end with CR LF, or has a CR elsewhere")]
    BareLineEnd,
    /// A head contains a NUL.
    #[error("a head contains a NUL")]
    Nul,
    /// A header line begins with whitespace (obs-fold, RFC 9112 section 5.2).
    #[error("a header line begins with whitespace")]
    Fold,
    /// A header has whitespace before its colon, or no colon.
    #[error("a header name is missing or contains whitespace")]
    HeaderName,
    /// `Content-Length` is not a number, or occurs several times.
    #[error("Content-Length is not a single number")]
    ContentLength,
    /// `Transfer-Encoding` is not exactly `chunked`, or the version is HTTP/1.0.
    #[error("Transfer-Encoding is not `chunked`")]
    TransferEncoding,
    /// The message has both `Content-Length` and `Transfer-Encoding`.
    #[error("both Content-Length and Transfer-Encoding are present")]
    BothLengths,
    /// A chunk's size is not a hexadecimal number, or its line is too long.
    #[error("a chunk size is invalid")]
    ChunkSize,
    /// A chunk's data is not followed by CR LF.
    #[error("a chunk's data is not followed by CR LF")]
    ChunkEnd,
    /// A trailer line or the trailer section is too long.
    #[error("the trailers are too long")]
    Trailers,
}

impl Violation {
    /// Returns the detail for the access log.
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

/// Returns the violation in a header or trailer line, including its LF. An empty line is not a valid field.
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

/// Returns the violation in any line, including its LF.
pub fn of_line(line: &[u8]) -> Option<Violation> {
    let Some(line) = line.strip_suffix(b"\r\n") else { return Some(Violation::BareLineEnd) };
    match line.iter().find(|b| matches!(b, b'\r' | 0)) {
        Some(0) => Some(Violation::Nul),
        Some(_) => Some(Violation::BareLineEnd),
        None => None,
    }
}

/// Parses the value of `Content-Length`: only digits are allowed.
pub fn length(value: &[u8]) -> Result<u64, Violation> {
    let digits = str::from_utf8(value).ok().filter(|v| !v.is_empty() && v.bytes().all(|b| b.is_ascii_digit()));
    digits.and_then(|d| d.parse().ok()).ok_or(Violation::ContentLength)
}
