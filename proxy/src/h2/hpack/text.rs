//! Primitives of field sections in HPACK and QPACK: integers, strings, names and values.

use http::{Method, StatusCode};
use smallvec::SmallVec;

use super::huffman;

/// The limit on an encoded integer in bytes; the crate h2 accepts no longer ones.
const NUMBER: usize = 5;

/// The limit on a name in bytes; the crate http accepts no longer ones.
const NAME: usize = 65_535;

/// Reads an integer with a prefix of this many bits (RFC 7541 section 5.1).
pub fn number(input: &mut &[u8], prefix: u32) -> Option<usize> {
    let (first, mut rest) = input.split_first()?;
    let most = u8::MAX >> (8 - prefix);
    let mut number = usize::from(first & most);
    if number == usize::from(most) {
        let length = rest.iter().take(NUMBER - 1).position(|byte| byte & 0x80 == 0)? + 1;
        let (more, after) = rest.split_at(length);
        let more = more.iter().rev().fold(0, |all, byte| (all << 7) | usize::from(byte & 0x7f));
        (number, rest) = (number + more, after);
    }
    *input = rest;
    Some(number)
}

/// Appends an integer; the first byte's other bits are `high_bits`.
pub(super) fn put_number(out: &mut Vec<u8>, prefix: u32, high_bits: u8, number: usize) {
    let most = u8::MAX >> (8 - prefix);
    let Some(mut more) = number.checked_sub(usize::from(most)) else { return out.push(high_bits | number as u8) };
    out.push(high_bits | most);
    while more >= 0x80 {
        out.push(more as u8 | 0x80);
        more >>= 7;
    }
    out.push(more as u8);
}

/// An encoded string.
#[derive(Debug, Clone, Copy)]
pub struct Text<'a> {
    bytes: &'a [u8],
    is_coded: bool,
}

impl<'a> Text<'a> {
    /// Reads a string whose length has a prefix of this many bits. The bit before it marks Huffman encoding.
    pub fn read(input: &mut &'a [u8], prefix: u32) -> Option<Text<'a>> {
        let is_coded = input.first()? >> prefix & 1 == 1;
        let length = number(input, prefix)?;
        let (bytes, rest) = input.split_at_checked(length)?;
        *input = rest;
        Some(Text { bytes, is_coded })
    }

    /// Calls `see` with the decoded string.
    pub fn with<T>(self, see: impl FnOnce(&[u8]) -> T) -> Option<T> {
        if !self.is_coded {
            return Some(see(self.bytes));
        }
        let mut plain = SmallVec::<[u8; 128]>::new();
        huffman::decode(self.bytes, |byte| plain.push(byte)).then(|| see(&plain))
    }

    /// Returns whether it is known to be printable ASCII without decoding it.
    fn is_plain(self) -> bool {
        self.is_coded && !huffman::may_be_odd(self.bytes)
    }
}

/// The kinds of field names that are distinguished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// `:authority`
    Authority,
    /// `:method`
    Method,
    /// `:path`
    Path,
    /// `:protocol`
    Protocol,
    /// `:scheme`
    Scheme,
    /// `:status`
    Status,
    /// An ordinary field.
    Field,
}

impl Name {
    /// Parses a name as the crates do: upper case is invalid, and so are nearly all characters that tokens do not
    /// allow.
    pub fn of(name: &[u8]) -> Option<Name> {
        Some(match name {
            b":authority" => Name::Authority,
            b":method" => Name::Method,
            b":path" => Name::Path,
            b":protocol" => Name::Protocol,
            b":scheme" => Name::Scheme,
            b":status" => Name::Status,
            [_, ..] if name.len() <= NAME && name.iter().all(|byte| is_of_name(*byte)) => Name::Field,
            _ => return None,
        })
    }

    /// Returns whether the crate h2 accepts this value for the name. `None` if it is not a valid encoding.
    pub fn allows(self, value: Text<'_>) -> Option<bool> {
        match self {
            Name::Method => value.with(|value| Method::from_bytes(value).is_ok()),
            Name::Status => value.with(|value| StatusCode::from_bytes(value).is_ok()),
            _ if value.is_plain() => Some(true),
            Name::Field => value.with(|value| value.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..))),
            _ => value.with(|value| str::from_utf8(value).is_ok()),
        }
    }
}

fn is_of_name(byte: u8) -> bool {
    // The crates accept a quotation mark; see `measure`.
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_!\"#$%&'*+.^`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn integers_are_decoded_as_encoded() {
        for prefix in 3..=8 {
            for value in [0, 1, 6, 7, 30, 31, 126, 127, 128, 254, 255, 256, 1337, 16_384, 1 << 27] {
                let mut out = Vec::new();
                put_number(&mut out, prefix, 0, value);
                assert_eq!(number(&mut &out[..], prefix), Some(value));
                assert_eq!(number(&mut &out[..out.len() - 1], prefix), None);
            }
        }
        // RFC 7541 appendix C.1.2.
        assert_eq!(number(&mut &[0x1f, 0x9a, 0x0a][..], 5), Some(1337));
        assert_eq!(number(&mut &[0x7f, 0x80, 0x80, 0x80, 0x80, 0x01][..], 7), None, "too long");
    }

    #[test]
    fn names_and_values_are_judged_as_by_the_crates() {
        for byte in 0..=u8::MAX {
            let name = [b'x', byte];
            assert_eq!(Name::of(&name).is_some(), HeaderName::from_lowercase(&name).is_ok(), "{byte}");
            let value = [b'x', byte, b'y'];
            let coded = huffman::tests::encode(&value);
            for text in [Text { bytes: &value, is_coded: false }, Text { bytes: &coded, is_coded: true }] {
                assert_eq!(Name::Field.allows(text), Some(HeaderValue::from_bytes(&value).is_ok()), "{byte}");
                assert_eq!(Name::Method.allows(text), Some(Method::from_bytes(&value).is_ok()), "{byte}");
                assert_eq!(Name::Path.allows(text), Some(byte.is_ascii()), "{byte}");
            }
        }
        assert_eq!(Name::of(b""), None);
        assert_eq!(Name::of(b":what"), None);
    }
}
