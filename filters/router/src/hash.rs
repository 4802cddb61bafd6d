//! Hashes a part of the request, to choose a cluster of a split or an endpoint of a cluster.

use std::{borrow::Cow, fmt::Write};

use twox_hash::XxHash64;

use tollgate_sdk::{Name, Setup, matching::cookies, random};

use crate::{
    config::{self, HashKey, HashKeys},
    head::{Head, HeaderNames, Slot},
    headers,
    place::Place,
};

/// The seed for choosing a cluster. It differs from the other one: otherwise a cluster chosen by hash would see only a
/// part of all hashes, and spread its requests unevenly.
pub(crate) const SPLIT: u64 = 0x5eed;
/// The seed for choosing an endpoint.
pub(crate) const BALANCE: u64 = 0;

/// The parts of a request of which the first that it has is hashed.
#[derive(Default)]
pub(crate) struct Keys(Box<[Key]>);

/// A part of a request.
enum Key {
    Header(Slot),
    Cookie(Slot, Box<Cookie>),
    Query(Box<[u8]>),
    Source,
    Path,
}

struct Cookie {
    name: Box<[u8]>,
    /// If the response sets the cookie: the name `set-cookie`, and the cookie's attributes.
    issue: Option<(Name, String)>,
}

/// A cookie that the response to this request sets: its name and its value.
#[derive(Default)]
pub(crate) struct Issued<'k>(Option<(&'k [u8], String)>);

impl Keys {
    pub(crate) fn compile(config: &HashKeys, place: &Place, names: &mut HeaderNames, setup: &mut Setup) -> Keys {
        if config.is_list && config.keys.is_empty() {
            place.wrong("is empty");
        }
        let mut keys = Vec::with_capacity(config.keys.len());
        for (i, key) in config.keys.iter().enumerate() {
            let item = config.is_list.then(|| place.item(i));
            let place = item.as_ref().unwrap_or(place);
            if keys.last().is_some_and(Key::always_has_a_value) {
                place.wrong("has no effect: the part before always has a value");
            }
            keys.extend(Key::compile(key, place, names, setup));
        }
        Keys(keys.into())
    }

    /// The hash of the first part that the request has.
    pub(crate) fn hash<'k>(&'k self, head: &mut Head, seed: u64, issued: &mut Issued<'k>) -> Option<u64> {
        self.0.iter().find_map(|key| key.hash(head, seed, issued))
    }
}

impl Key {
    fn compile(config: &HashKey, place: &Place, names: &mut HeaderNames, setup: &mut Setup) -> Option<Key> {
        let flag = |name: &str, given: Option<bool>| {
            if given == Some(false) {
                place.field(name).wrong("can only be `true`; leave it out otherwise");
            }
            given.map(|_| "")
        };
        let fields = [
            ("header", config.header.as_deref()),
            ("cookie", config.cookie.as_ref().map(|cookie| cookie.name.as_str())),
            ("query", config.query.as_deref()),
            ("source", flag("source", config.source)),
            ("path", flag("path", config.path)),
        ];
        let (field, text) = place.one_of(fields)?;
        Some(match field {
            "header" => Key::Header(names.slot(&place.field(field).take(headers::name_or_pseudo(text))?, setup)),
            "cookie" => {
                let place = place.field(field);
                if !headers::is_token(text) {
                    place.wrong(format!("`{text}` is not a cookie's name"));
                }
                let issue = config.cookie.as_ref().and_then(|cookie| cookie.issue.as_ref());
                let issue = issue.map(|issue| (setup.name("set-cookie"), attributes(issue, &place)));
                Key::Cookie(names.slot("cookie", setup), Box::new(Cookie { name: text.as_bytes().into(), issue }))
            }
            "query" => {
                if text.is_empty() {
                    place.field(field).wrong("is empty");
                }
                Key::Query(text.as_bytes().into())
            }
            "source" => Key::Source,
            _ => Key::Path,
        })
    }

    fn always_has_a_value(&self) -> bool {
        match self {
            Key::Header(_) | Key::Query(_) => false,
            Key::Cookie(_, cookie) => cookie.issue.is_some(),
            Key::Source | Key::Path => true,
        }
    }

    /// The hash of the request's value, if it has one.
    fn hash<'k>(&'k self, head: &mut Head, seed: u64, issued: &mut Issued<'k>) -> Option<u64> {
        let hash = |value: &[u8]| (!value.is_empty()).then(|| XxHash64::oneshot(seed, value));
        match self {
            Key::Header(slot) => head.header(*slot).and_then(hash),
            Key::Cookie(slot, wanted) => {
                let found = head.header(*slot).and_then(|all| cookie(all, &wanted.name)).and_then(|value| hash(&value));
                found.or_else(|| hash(wanted.issue(head, issued)?.as_bytes()))
            }
            Key::Query(name) => head.parameter(name).and_then(hash),
            Key::Source => {
                let (address, len) = head.source();
                hash(&address[..len])
            }
            Key::Path => hash(head.path),
        }
    }
}

impl Cookie {
    /// The value that the response sets.
    fn issue<'k, 'i>(&'k self, head: &Head, issued: &'i mut Issued<'k>) -> Option<&'i str> {
        let is_issued = issued.0.as_ref().is_some_and(|(name, _)| **name == *self.name);
        if !is_issued {
            let (set_cookie, attributes) = self.issue.as_ref()?;
            let value = format!("{:016x}", random());
            let field = [&*self.name, b"=", value.as_bytes(), attributes.as_bytes()].concat();
            head.request.add_response_header(*set_cookie, field);
            issued.0 = Some((&self.name, value));
        }
        issued.0.as_ref().map(|(_, value)| value.as_str())
    }
}

/// The attributes of a cookie that the response sets. Scripts do not need it.
fn attributes(config: &config::IssuedCookie, place: &Place) -> String {
    let mut text = String::from("; HttpOnly");
    if let Some(millis) = place.field("ttl").millis(&config.ttl).filter(|millis| *millis > 0) {
        // Less than a second would be none.
        let _ = write!(text, "; Max-Age={}", millis.div_ceil(1000));
    }
    let path = config.path.as_deref().unwrap_or("/");
    if !path.starts_with('/') || path.bytes().any(|byte| !(b' '..=b'~').contains(&byte) || byte == b';') {
        place.field("path").wrong(format!("`{path}` is not a cookie's path"));
    }
    let _ = write!(text, "; Path={path}");
    match config.same_site.as_deref() {
        None => {}
        Some("strict") => text += "; SameSite=Strict",
        Some("lax") => text += "; SameSite=Lax",
        // Clients accept it with `Secure` only.
        Some("none") if config.secure => text += "; SameSite=None",
        Some("none") => place.field("same_site").wrong("`none` needs `secure: true`"),
        Some(other) => place.field("same_site").wrong(format!("`{other}` is not `strict`, `lax` or `none`")),
    }
    if config.secure {
        text += "; Secure";
    }
    text
}

/// The value of the first cookie of this name.
fn cookie<'v>(all: &'v [u8], name: &[u8]) -> Option<Cow<'v, [u8]>> {
    cookies(all).find_map(|(other, value)| (other == name).then_some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_found_by_their_whole_name() {
        let all = b"a=1; session=xyz;b=; xsession=2";
        assert_eq!(cookie(all, b"session").as_deref(), Some(&b"xyz"[..]));
        assert_eq!(cookie(all, b"b").as_deref(), Some(&b""[..]));
        assert_eq!(cookie(all, b"ses"), None);
        assert_eq!(cookie(b"", b"a"), None);
    }

    #[test]
    fn hashes_are_stable() {
        // The XXH64 of the reference implementation: changing it would move every user to another variant.
        assert_eq!(XxHash64::oneshot(0, b"abc"), 0x44bc_2cf5_ad77_0999);
    }
}
