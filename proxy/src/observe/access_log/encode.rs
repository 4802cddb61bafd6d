//! Encodes values into a line without allocating. Text from clients and filters is escaped, so that it can
//! neither end a line, nor close a quotation, nor control the terminal that shows the log.

use std::{
    io::Write,
    net::{IpAddr, SocketAddr},
};

use tollgate_abi::fast::flag;

use super::{fields::Value, timestamp};
use crate::escape;

/// Writes a value into a line of text; `-` if it is missing.
pub(super) fn text(out: &mut Vec<u8>, value: Value<'_>) {
    let before = out.len();
    match value {
        Value::Missing => {}
        Value::Text(bytes) => text_escaped(out, bytes),
        Value::Fields(fields) => separated(out, b",", fields, |out, (name, value)| {
            text_escaped(out, name.as_bytes());
            out.push(b'=');
            text_escaped(out, value.as_bytes());
        }),
        Value::Headers(map, name) => {
            separated(out, b", ", map.get_all(name), |out, value| text_escaped(out, value.as_bytes()));
        }
        _ => plain(out, value),
    }
    if out.len() == before {
        out.push(b'-');
    }
}

/// Writes a value as JSON; `null` if it is missing.
pub(super) fn json(out: &mut Vec<u8>, value: Value<'_>) {
    match value {
        Value::Missing | Value::Flags(0) => out.extend_from_slice(b"null"),
        Value::Count(_) | Value::Micros(_) => plain(out, value),
        Value::Text(bytes) => quoted(out, |out| json_escaped(out, bytes)),
        Value::Headers(map, name) => quoted(out, |out| {
            separated(out, b", ", map.get_all(name), |out, value| json_escaped(out, value.as_bytes()));
        }),
        Value::Fields(fields) => {
            out.push(b'{');
            separated(out, b",", fields, |out, (name, value)| {
                quoted(out, |out| json_escaped(out, name.as_bytes()));
                out.push(b':');
                quoted(out, |out| json_escaped(out, value.as_bytes()));
            });
            out.push(b'}');
        }
        Value::Time(_) | Value::Ip(_) | Value::Socket(_) | Value::Host(..) | Value::Flags(_) => {
            quoted(out, |out| plain(out, value));
        }
    }
}

/// Writes a value that needs no escaping, because its bytes do not come from outside.
fn plain(out: &mut Vec<u8>, value: Value<'_>) {
    match value {
        Value::Count(count) => number(out, count),
        Value::Micros(micros) => {
            number(out, micros / 1000);
            let [a, b, c] = [micros / 100 % 10, micros / 10 % 10, micros % 10].map(|digit| b'0' + digit as u8);
            out.extend_from_slice(&[b'.', a, b, c]);
        }
        Value::Time(time) => timestamp::write(out, time),
        Value::Ip(ip) => address(out, ip.to_canonical()),
        Value::Socket(socket) => endpoint(out, socket),
        Value::Host(name, port) => {
            out.extend_from_slice(name.as_bytes());
            out.push(b':');
            number(out, port.into());
        }
        Value::Flags(flags) => {
            let set = flag::NAMES.iter().filter(|(bit, _)| flags & bit != 0);
            separated(out, b",", set, |out, (_, name)| out.extend_from_slice(name.as_bytes()));
        }
        Value::Missing | Value::Text(_) | Value::Fields(_) | Value::Headers(..) => {}
    }
}

fn separated<T>(
    out: &mut Vec<u8>,
    separator: &[u8],
    items: impl IntoIterator<Item = T>,
    mut write: impl FnMut(&mut Vec<u8>, T),
) {
    for (i, item) in items.into_iter().enumerate() {
        if i > 0 {
            out.extend_from_slice(separator);
        }
        write(out, item);
    }
}

fn quoted(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(b'"');
    write(out);
    out.push(b'"');
}

fn number(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn address(out: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        // By hand: nearly every line has an address, and `write!` takes ten times as long.
        IpAddr::V4(ip) => separated(out, b".", ip.octets(), |out, octet| number(out, octet.into())),
        // Writing to a `Vec` cannot fail.
        IpAddr::V6(ip) => drop(write!(out, "{ip}")),
    }
}

fn endpoint(out: &mut Vec<u8>, socket: SocketAddr) {
    match socket.ip().to_canonical() {
        ip @ IpAddr::V4(_) => address(out, ip),
        ip => {
            out.push(b'[');
            address(out, ip);
            out.push(b']');
        }
    }
    out.push(b':');
    number(out, socket.port().into());
}

/// Whether all bytes can go into a line unchanged; without branches, so that it compiles to vector instructions.
fn harmless(bytes: &[u8]) -> bool {
    bytes.iter().fold(true, |all, &b| all & (b' '..0x7f).contains(&b) & (b != b'"') & (b != b'\\'))
}

/// Whether a character could forge a line, a field within it, or their appearance.
fn harmful(c: char) -> bool {
    matches!(c, '"' | '\\') || escape::is_harmful(c)
}

/// Escapes harmful characters as `\n`, `\x1b`, `\u{2028}` and so on, and bytes that are not UTF-8 as `\xff`.
pub(super) fn text_escaped(out: &mut Vec<u8>, bytes: &[u8]) {
    escaped(
        out,
        bytes,
        |out, c| match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            c if c.is_ascii() => drop(write!(out, "\\x{:02x}", u32::from(c))),
            c => drop(write!(out, "\\u{{{:x}}}", u32::from(c))),
        },
        |out, invalid| invalid.iter().for_each(|byte| drop(write!(out, "\\x{byte:02x}"))),
    );
}

/// Writes the inside of a JSON string; bytes that are not UTF-8 become U+FFFD.
pub(super) fn json_escaped(out: &mut Vec<u8>, bytes: &[u8]) {
    escaped(
        out,
        bytes,
        |out, c| match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            // All harmful characters are in the basic plane, so none needs two units of UTF-16.
            c => drop(write!(out, "\\u{:04x}", u32::from(c))),
        },
        |out, _| out.extend_from_slice("\u{fffd}".as_bytes()),
    );
}

fn escaped(
    out: &mut Vec<u8>,
    bytes: &[u8],
    escape: impl Fn(&mut Vec<u8>, char),
    escape_invalid: impl Fn(&mut Vec<u8>, &[u8]),
) {
    if harmless(bytes) {
        return out.extend_from_slice(bytes);
    }
    for chunk in bytes.utf8_chunks() {
        let valid = chunk.valid();
        let mut from = 0;
        for (at, c) in valid.char_indices().filter(|(_, c)| harmful(*c)) {
            out.extend_from_slice(&valid.as_bytes()[from..at]);
            escape(out, c);
            from = at + c.len_utf8();
        }
        out.extend_from_slice(&valid.as_bytes()[from..]);
        if !chunk.invalid().is_empty() {
            escape_invalid(out, chunk.invalid());
        }
    }
}
