//! The host of a request.

use http::{HeaderMap, HeaderValue, Method, Uri, Version, header::HOST};
use tollgate::{chain::head::is_host, fuzzing::authority};
use tollgate_abi::spelling;

use crate::{Outcome, Target};

/// Lines: a method, a target, and hosts. The result is normalized, parses to itself, and equals what the request
/// states.
fn check(input: &[u8]) -> Outcome {
    let mut lines = input.split(|byte| *byte == b'\n');
    let (Some(method), Some(target)) = (lines.next(), lines.next()) else { return Outcome::of(()) };
    let (Ok(method), Ok(uri)) = (Method::from_bytes(method), Uri::try_from(target)) else { return Outcome::of(()) };
    let mut fields = HeaderMap::new();
    for host in lines.filter_map(|line| HeaderValue::from_bytes(line).ok()).take(3) {
        fields.append(HOST, host);
    }
    let mut outcomes = Vec::new();
    for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
        let mut left = fields.clone();
        let host = authority(&method, &uri, version, &mut left);
        assert!(!left.contains_key(HOST), "the host is passed separately");
        outcomes.push(host.as_ref().map(|host| host.len().min(32)));
        let Some(host) = host else { continue };
        let text = str::from_utf8(&host).expect("text");
        assert!(is_host(text) && !text.contains(['@', '/', ' ', '\\', '?', '#']), "{text}");
        assert_eq!(spelling::host(&host).as_deref(), Some(&*host));
        let stated = uri.authority().map(|stated| stated.as_str().as_bytes());
        let stated = stated.or(fields.get(HOST).map(HeaderValue::as_bytes)).expect("the request states it");
        assert_eq!(spelling::host(stated).as_deref(), Some(&*host));
        // A request for the result gives the same result.
        let mut again = HeaderMap::from_iter([(HOST, HeaderValue::from_bytes(&host).expect("a value"))]);
        let origin = Uri::from_static("/");
        assert_eq!(authority(&Method::GET, &origin, version, &mut again).as_ref(), Some(&host));
        assert!(fields.get_all(HOST).iter().count() <= 1 && (method != Method::CONNECT || uri.authority().is_some()));
    }
    Outcome::of((outcomes, uri.authority().is_some(), fields.len()))
}

pub(super) const TARGET: Target = Target {
    words: &[
        b"GET\n",
        b"CONNECT\n",
        b"http://",
        b"/\n",
        b"*\n",
        b"a.example",
        b"A.Example.",
        b":80",
        b":",
        b":080",
        b":+80",
        b":65536",
        b"user@",
        b"[::1]",
        b"[2001:DB8::0001]",
        b"[v1.a]",
        b"%41",
        b"..",
        b"\n",
        b"\t",
        b"\xff",
    ],
    max_len: 300,
    check,
};
