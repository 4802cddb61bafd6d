//! Header fields: converts the parser's output to a map, and reads the message framing from it.
#![expect(unsafe_code, reason = "the parser has validated the values; validating again would cost as much as parsing")]

use std::cell::RefCell;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CONNECTION, CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING},
};

use super::{HeadError, Violation, violation::length};

/// What the fields state about the message's body and connection.
#[derive(Default)]
pub(super) struct Framing {
    pub(super) length: Option<u64>,
    /// The number of transfer codings, and whether the last one is `chunked`.
    pub(super) codings: usize,
    pub(super) chunked: bool,
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    /// Whether `Expect: 100-continue` is present.
    pub(super) expects_continue: bool,
}

impl Framing {
    /// Records a field. Returns whether it is relevant beyond this connection.
    fn note(&mut self, name: &HeaderName, value: &[u8]) -> Result<bool, Violation> {
        match *name {
            CONTENT_LENGTH => {
                let length = length(value)?;
                if self.length.replace(length).is_some() {
                    return Err(Violation::ContentLength);
                }
            }
            TRANSFER_ENCODING => {
                self.codings += 1;
                self.chunked = value.eq_ignore_ascii_case(b"chunked");
            }
            CONNECTION => {
                let mut others = false;
                for token in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                    let (close, keep_alive) =
                        (token.eq_ignore_ascii_case(b"close"), token.eq_ignore_ascii_case(b"keep-alive"));
                    self.close |= close;
                    self.keep_alive |= keep_alive;
                    others |= !(close || keep_alive);
                }
                return Ok(others);
            }
            EXPECT => self.expects_continue |= value.eq_ignore_ascii_case(b"100-continue"),
            _ => {}
        }
        Ok(true)
    }
}

/// Converts all fields except a `Connection` that only concerns this connection. Reserves room for `more` fields.
pub(super) fn read(
    head: &Bytes,
    parsed: &[httparse::Header<'_>],
    more: usize,
) -> Result<(HeaderMap, Framing), HeadError> {
    let (mut fields, mut framing) = (HeaderMap::with_capacity(parsed.len() + more), Framing::default());
    NAMES.with_borrow_mut(|names| {
        for field in parsed {
            let name = names.read(field.name.as_bytes())?;
            if framing.note(&name, field.value)? {
                fields.append(name, value(head, field));
            }
        }
        Ok((fields, framing))
    })
}

/// Converts the fields of a trailer section.
pub(super) fn trailers(section: &Bytes, parsed: &[httparse::Header<'_>]) -> Result<HeaderMap, HeadError> {
    let mut fields = HeaderMap::with_capacity(parsed.len());
    NAMES.with_borrow_mut(|names| {
        for field in parsed {
            fields.append(names.read(field.name.as_bytes())?, value(section, field));
        }
        Ok(fields)
    })
}

/// Returns the value as a slice of the read buffer, without a copy.
fn value(head: &Bytes, field: &httparse::Header<'_>) -> HeaderValue {
    if field.value.is_empty() {
        return HeaderValue::from_static("");
    }
    // SAFETY: The bytes that the parser accepts in a value are those that `HeaderValue` allows (RFC 9110 section
    // 5.5); a test below tries them all.
    unsafe { HeaderValue::from_maybe_shared_unchecked(head.slice_ref(field.value)) }
}

/// The limit on a cached name, in bytes.
const LONGEST: usize = 32;

/// The number of cached names. A power of two.
const SLOTS: usize = 128;

thread_local! {
    static NAMES: RefCell<OriginalNames> = RefCell::new(OriginalNames(vec![None; SLOTS].into_boxed_slice()));
}

/// A cache from the spelling of a name to the parsed name. Peers keep sending the same few names; for other names it
/// costs no more than parsing.
struct OriginalNames(Box<[Option<Known>]>);

#[derive(Clone)]
struct Known {
    spelling: [u8; LONGEST],
    len: usize,
    name: HeaderName,
}

impl OriginalNames {
    fn read(&mut self, spelling: &[u8]) -> Result<HeaderName, HeadError> {
        let new = || HeaderName::from_bytes(spelling).map_err(|_| HeadError::Malformed);
        let len = spelling.len();
        if len == 0 || len > LONGEST {
            return new();
        }
        let mix = |at: usize, factor: usize| usize::from(spelling[at]).wrapping_mul(factor);
        let slot = &mut self.0[(len + mix(0, 5) + mix(len / 2, 13) + mix(len - 1, 29)) % SLOTS];
        match slot {
            Some(known) if known.spelling[..known.len] == *spelling => Ok(known.name.clone()),
            _ => {
                let name = new()?;
                let mut known = Known { spelling: [0; LONGEST], len, name: name.clone() };
                known.spelling[..len].copy_from_slice(spelling);
                *slot = Some(known);
                Ok(name)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cached_names_equal_parsed_names_in_any_spelling() {
        let names: Vec<String> = (0..300).map(|n| format!("X-{n}-{}", "y".repeat(n % 40))).collect();
        let mut memory = OriginalNames(vec![None; SLOTS].into_boxed_slice());
        for _ in 0..3 {
            for name in names.iter().map(String::as_str).chain(["Host", "host", "HOST", "content-Length"]) {
                assert_eq!(memory.read(name.as_bytes()).unwrap(), HeaderName::from_bytes(name.as_bytes()).unwrap());
            }
            for bad in ["", "a b", "ä", "a\0"] {
                assert!(memory.read(bad.as_bytes()).is_err(), "{bad}");
            }
        }
    }

    #[test]
    fn values_that_the_parser_accepts_are_valid() {
        for byte in 0..=u8::MAX {
            // Several lengths, because the parser processes many bytes at a time if it can.
            for length in [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100] {
                for at in 0..length {
                    let mut text = b"a: ".to_vec();
                    text.extend((0..length).map(|n| if n == at { byte } else { b'x' }));
                    text.extend_from_slice(b"\r\n\r\n");
                    let mut fields = [httparse::EMPTY_HEADER; 2];
                    if let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(&text, &mut fields) {
                        assert!(
                            fields.iter().all(|f| HeaderValue::from_bytes(f.value).is_ok()),
                            "{byte} {length} {at}"
                        );
                    }
                }
            }
        }
    }
}
