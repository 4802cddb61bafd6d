//! Hashes a part of the request, to choose a cluster of a split or an endpoint of a cluster.

use std::borrow::Cow;

use twox_hash::XxHash64;

use tollgate_sdk::{Setup, matching::cookies};

use crate::{
    config::HashKey,
    head::{Head, HeaderNames, Slot},
    headers,
    place::Place,
};

/// The seed for choosing a cluster. It differs from the other one: otherwise a cluster chosen by hash would see only a
/// part of all hashes, and spread its requests unevenly.
pub(crate) const SPLIT: u64 = 0x5eed;
/// The seed for choosing an endpoint.
pub(crate) const BALANCE: u64 = 0;

/// The part of a request to hash.
pub(crate) enum Key {
    Header(Slot),
    Cookie(Slot, Box<[u8]>),
    Source,
    Path,
}

impl Key {
    pub(crate) fn compile(config: &HashKey, place: &Place, names: &mut HeaderNames, setup: &mut Setup) -> Option<Key> {
        let flag = |name: &str, given: Option<bool>| {
            if given == Some(false) {
                place.field(name).wrong("can only be `true`; leave it out otherwise");
            }
            given.map(|_| "")
        };
        let fields = [
            ("header", config.header.as_deref()),
            ("cookie", config.cookie.as_deref()),
            ("source", flag("source", config.source)),
            ("path", flag("path", config.path)),
        ];
        let (field, text) = place.one_of(fields)?;
        Some(match field {
            "header" => Key::Header(names.slot(&place.field(field).take(headers::name_or_pseudo(text))?, setup)),
            "cookie" => {
                if !headers::is_token(text) {
                    place.field(field).wrong(format!("`{text}` is not a cookie's name"));
                }
                Key::Cookie(names.slot("cookie", setup), text.as_bytes().into())
            }
            "source" => Key::Source,
            _ => Key::Path,
        })
    }

    /// The hash of the request's value, if it has one.
    pub(crate) fn hash(&self, head: &mut Head, seed: u64) -> Option<u64> {
        let hash = |value: &[u8]| (!value.is_empty()).then(|| XxHash64::oneshot(seed, value));
        match self {
            Key::Header(slot) => head.header(*slot).and_then(hash),
            Key::Cookie(slot, name) => {
                head.header(*slot).and_then(|all| cookie(all, name)).and_then(|value| hash(&value))
            }
            Key::Source => {
                let (address, len) = head.source();
                hash(&address[..len])
            }
            Key::Path => hash(head.path),
        }
    }
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
