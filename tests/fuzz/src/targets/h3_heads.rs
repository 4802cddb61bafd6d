//! Encoded heads and trailers of HTTP/3 (QPACK), before h3 decodes them.

use crate::{Outcome, Target};
use http::{HeaderName, HeaderValue, Method};
use tollgate::downstream::h3::qpack::is_sound;

/// Any bytes get a result; literal fields get the result that RFC 9114 defines.
fn check(input: &[u8]) -> Outcome {
    let mut outcomes = Vec::new();
    for in_trailers in [false, true] {
        outcomes.push(is_sound(input, in_trailers));
        let fields = fields(input);
        let expected = rule(&fields, in_trailers);
        assert_eq!(is_sound(&section(&fields, input.len()), in_trailers), Some(expected), "{fields:?}");
        outcomes.push(Some(expected));
    }
    // Fields that trailers may have, heads may have after the required ones.
    if outcomes[2] == Some(true) {
        let head = [&[0, 0, 0xd1, 0xd7, 0xc1][..], input.get(2..).unwrap_or_default()].concat();
        assert!(input.starts_with(&[0, 0]).then(|| is_sound(&head, false)) != Some(Some(false)));
    }
    Outcome::of((outcomes, input.len().min(400) / 16))
}

type Field<'a> = (&'a [u8], &'a [u8]);

/// Parses lines of a name, `=`, and a value.
fn fields(input: &[u8]) -> Vec<Field<'_>> {
    let lines = input.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let field = |line: &[u8]| line.iter().position(|byte| *byte == b'=').unwrap_or(line.len());
    lines.map(|line| (&line[..field(line)], line.get(field(line) + 1..).unwrap_or_default())).collect()
}

/// Encodes fields literally, or with names from the static table, as the bits of `how` select.
fn section(fields: &[Field<'_>], how: usize) -> Vec<u8> {
    let mut section = vec![0, 0];
    for (nth, (name, value)) in fields.iter().enumerate() {
        let place = match *name {
            b":authority" => Some(0),
            b":path" => Some(1),
            b":method" => Some(15),
            b":scheme" => Some(22),
            b":status" => Some(24),
            b"cookie" => Some(5),
            _ => None,
        };
        match place.filter(|_| (how >> (nth % 8)) & 1 == 1) {
            Some(place) => put(&mut section, 4, 0x50, place),
            None => {
                put(&mut section, 3, 0x20, name.len());
                section.extend_from_slice(name);
            }
        }
        put(&mut section, 7, 0, value.len());
        section.extend_from_slice(value);
    }
    section
}

/// Appends an integer (RFC 9204 section 4.1.1).
fn put(out: &mut Vec<u8>, prefix: u32, high_bits: u8, number: usize) {
    let most = (1 << prefix) - 1;
    if number < most {
        return out.push(high_bits | number as u8);
    }
    out.push(high_bits | most as u8);
    let mut left = number - most;
    while left >= 0x80 {
        out.push(left as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

/// Returns whether a message is well-formed (RFC 9114 sections 4.2 to 4.4, RFC 9220).
fn rule(fields: &[Field<'_>], in_trailers: bool) -> bool {
    let pseudo = |wanted: &str| fields.iter().filter(|(name, _)| *name == wanted.as_bytes()).count();
    let value_of = |wanted: &str| fields.iter().find(|(name, _)| *name == wanted.as_bytes()).map(|(_, value)| *value);
    let known = [":method", ":scheme", ":authority", ":path", ":protocol"];
    let ordinary = |(name, _): &Field<'_>| !name.starts_with(b":");
    let are_right = fields.iter().all(|(name, value)| match str::from_utf8(name) {
        Ok(":method") => Method::from_bytes(value).is_ok(),
        Ok(":authority" | ":path") => !value.is_empty() && str::from_utf8(value).is_ok(),
        Ok(":scheme" | ":protocol") => str::from_utf8(value).is_ok(),
        _ => HeaderName::from_lowercase(name).is_ok() && HeaderValue::from_bytes(value).is_ok(),
    });
    if !are_right {
        return false;
    }
    if in_trailers {
        return fields.iter().all(ordinary);
    }
    let first = fields.iter().position(ordinary).unwrap_or(fields.len());
    let has = |name: &str| pseudo(name) == 1;
    let in_order = fields[first..].iter().all(ordinary) && known.iter().all(|name| pseudo(name) <= 1);
    let connects = value_of(":method") == Some(b"CONNECT");
    in_order
        && match connects {
            true if !has(":protocol") => has(":authority") && !has(":scheme") && !has(":path"),
            _ => has(":method") && has(":scheme") && has(":path") && (connects || !has(":protocol")),
        }
}

pub(super) const TARGET: Target = Target {
    words: &[
        b":method=GET\n",
        b":method=CONNECT\n",
        b":scheme=https\n",
        b":authority=a\n",
        b":path=/\n",
        b":protocol=p\n",
        b":status=200\n",
        b"cookie=a\n",
        b"X=1\n",
        b"=",
        b"\n",
        b"\0\0\xd1\xd7\xc1",
        b"\x50\x01a",
        b"\x27\x00",
        b"\x2a\x25",
        b"\xdd",
        b"\xcf",
    ],
    max_len: 600,
    check,
};
