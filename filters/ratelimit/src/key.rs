//! Builds the key of a request, which selects its bucket, in a reusable buffer.
//!
//! Each part is preceded by its length, so that `ab` and `c` differ from `a` and `bc`, and a missing part differs from
//! an empty one.

use std::{borrow::Cow, net::IpAddr};

use tollgate_sdk::{
    matching::{cookies, undisguised},
    prelude::*,
};

use crate::config::{KeyPart, LimitConfig, OnMissingKey, Whose};

/// The default of `ipv6_prefix`.
const IPV6_PREFIX: u8 = 64;

#[derive(Debug)]
enum Part {
    Source(Source),
    /// The name, also in lower case.
    Header(Name, Box<str>),
    Cookie(Box<[u8]>),
    Path,
    Constant(Box<[u8]>),
}

/// How a limit's keys are built.
#[derive(Debug)]
pub(crate) struct Key {
    parts: Vec<Part>,
    /// The significant bits of an IPv6 address.
    mask: u128,
    /// Whether a request that lacks a part has a key.
    shared: bool,
}

/// The parts of a request that keys are built from.
pub(crate) struct Subject<'a> {
    pub(crate) request: &'a Request,
    /// As rules compare it.
    pub(crate) path: &'a [u8],
    /// The name `cookie`.
    pub(crate) cookie: Name,
}

impl Key {
    /// Compiles it. `at` is the limit's path in the configuration.
    pub(crate) fn compile(limit: &LimitConfig, at: &str, setup: &mut Setup, mistakes: &Mistakes) -> Key {
        let parts = limit.key.iter().enumerate();
        let parts: Vec<_> =
            parts.map(|(i, part)| Part::compile(part, &format!("{at}.key[{i}]"), setup, mistakes)).collect();
        let prefix = limit.ipv6_prefix.unwrap_or(IPV6_PREFIX);
        if !(1..=128).contains(&prefix) {
            mistakes.add(format!("{at}.ipv6_prefix"), format!("{prefix} is not a prefix length: write 1 to 128"));
        }
        if limit.ipv6_prefix.is_some() && !parts.iter().any(|part| matches!(part, Part::Source(_))) {
            mistakes.add(format!("{at}.ipv6_prefix"), "has no effect without a `source` in the key: leave it out");
        }
        let mask = !u128::MAX.checked_shr(prefix.into()).unwrap_or(0);
        Key { parts, mask, shared: limit.on_missing_key == OnMissingKey::Shared }
    }

    /// Whether there is one bucket for all requests.
    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Whether the path is part of the key.
    pub(crate) fn needs_path(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Path))
    }

    /// Appends a request's key to `out`. Returns false if it has none; `out` then has a partial key.
    pub(crate) fn append(&self, subject: &Subject, scratch: &mut Buffer, out: &mut Vec<u8>) -> bool {
        for part in &self.parts {
            let there = match part {
                Part::Source(whose) => {
                    match subject.request.source(*whose).ip() {
                        IpAddr::V4(ip) => put(out, &ip.octets()),
                        IpAddr::V6(ip) => put(out, &(ip.to_bits() & self.mask).to_be_bytes()),
                    }
                    true
                }
                Part::Header(name, text) => {
                    let value = subject.request.header(*name, scratch);
                    match value {
                        // Only a value with a comma can stem from several fields.
                        Some(value) if value.contains(&b',') && is_repeated(subject.request, text) => put_several(out),
                        value => put_some(out, value),
                    }
                }
                Part::Cookie(name) => match subject.request.header(subject.cookie, scratch) {
                    None => false,
                    Some(header) => match cookie(header, name) {
                        Found::Several => put_several(out),
                        Found::One(value) => put_some(out, Some(&value)),
                        Found::None => false,
                    },
                },
                Part::Path => {
                    put(out, subject.path);
                    true
                }
                Part::Constant(text) => {
                    put(out, text);
                    true
                }
            };
            if !there {
                if !self.shared {
                    return false;
                }
                out.extend_from_slice(&MISSING.to_le_bytes());
            }
        }
        true
    }
}

impl Part {
    fn compile(part: &KeyPart, at: &str, setup: &mut Setup, mistakes: &Mistakes) -> Part {
        match part {
            KeyPart::Source(Whose::Peer) => Part::Source(Source::Peer),
            KeyPart::Source(Whose::Client) => Part::Source(Source::Client),
            KeyPart::Header(name) => {
                if let Some(message) = tollgate_sdk::matching::header_name_mistake(name) {
                    mistakes.add(format!("{at}.header"), message);
                }
                Part::Header(setup.name(name), name.to_ascii_lowercase().into())
            }
            KeyPart::Cookie(name) => {
                if name.is_empty() || name.contains(['=', ';', ',', ' ']) {
                    mistakes.add(format!("{at}.cookie"), format!("`{name}` is not a cookie's name, such as `session`"));
                }
                Part::Cookie(name.as_bytes().into())
            }
            KeyPart::Path(wanted) => {
                if !wanted {
                    mistakes.add(format!("{at}.path"), "write `true`, or leave this part out");
                }
                Part::Path
            }
            KeyPart::Constant(text) => Part::Constant(text.as_bytes().into()),
        }
    }
}

/// Instead of a part's length: the part is missing. No part is this long.
const MISSING: u32 = u32::MAX;

/// Instead of a part's length: the part has several values.
const SEVERAL: u32 = u32::MAX - 1;

fn put(out: &mut Vec<u8>, part: &[u8]) {
    out.extend_from_slice(&(part.len() as u32).to_le_bytes());
    out.extend_from_slice(part);
}

fn put_some(out: &mut Vec<u8>, part: Option<&[u8]>) -> bool {
    part.inspect(|part| put(out, part)).is_some()
}

/// Marks a part with several values. A client must not get its own bucket by adding values to the one that it should
/// send: all clients that do so share one bucket.
fn put_several(out: &mut Vec<u8>) -> bool {
    out.extend_from_slice(&SEVERAL.to_le_bytes());
    true
}

/// Whether a request has several fields of this name (in lower case).
#[cold]
fn is_repeated(request: &Request, name: &str) -> bool {
    request.all_headers().iter().filter(|(other, _)| other == name).count() > 1
}

/// The result of looking up a cookie.
#[derive(Debug, PartialEq, Eq)]
enum Found<'a> {
    None,
    One(Cow<'a, [u8]>),
    /// Which one applies depends on the reader.
    Several,
}

/// Looks up a cookie's value in decoded form, so that another encoding does not get its own bucket.
fn cookie<'a>(header: &'a [u8], name: &[u8]) -> Found<'a> {
    let mut values = cookies(header).filter(|(other, _)| *other == name).map(|(_, value)| value);
    match (values.next(), values.next()) {
        (None, _) => Found::None,
        (Some(value), None) => Found::One(undisguised(value)),
        _ => Found::Several,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_found_by_their_whole_name() {
        let cookies = b"xid=1; id=2;id=3 ;empty=; quoted=\"a=b\"; encoded=%61%2B+";
        for (name, value) in [
            ("id", Found::Several),
            ("xid", Found::One(b"1"[..].into())),
            ("empty", Found::One(b""[..].into())),
            ("quoted", Found::One(b"a=b"[..].into())),
            ("encoded", Found::One(b"a  "[..].into())),
            ("i", Found::None),
            ("d", Found::None),
        ] {
            assert_eq!(cookie(cookies, name.as_bytes()), value, "{name}");
        }
    }

    #[test]
    fn parts_do_not_run_together() {
        let key = |parts: &[Option<&str>]| {
            let mut out = Vec::new();
            for part in parts {
                match part {
                    Some("several") => assert!(put_several(&mut out)),
                    _ if put_some(&mut out, part.map(str::as_bytes)) => {}
                    _ => out.extend_from_slice(&MISSING.to_le_bytes()),
                }
            }
            out
        };
        let keys = [
            key(&[Some("ab"), Some("c")]),
            key(&[Some("a"), Some("bc")]),
            key(&[Some(""), Some("abc")]),
            key(&[None, Some("abc")]),
            key(&[Some("abc"), None]),
            key(&[Some("several"), Some("abc")]),
            key(&[Some("abc"), Some("several")]),
        ];
        for (i, one) in keys.iter().enumerate() {
            assert!(keys[i + 1..].iter().all(|other| other != one), "{one:?}");
        }
    }
}
