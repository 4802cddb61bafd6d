//! The forwarding fields of a request: what is trusted, and what is sent to upstreams.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use tollgate::http::fields::{Present, UNKNOWN_CLIENT, forwarded, remove_hop_by_hop};

use crate::{Outcome, Target};

const FOR: &str = "x-forwarded-for";
const PEER: &str = "10.0.0.1";

/// The first byte is the number of trusted proxies; lines of `NAME: VALUE` follow. Only that many entries are
/// trusted.
fn check(input: &[u8]) -> Outcome {
    let Some((hops, lines)) = input.split_first() else { return Outcome::of(()) };
    let mut fields = fields(lines);
    let present = Present::of(&fields);
    remove_hop_by_hop(&mut fields, present);
    let mut again = fields.clone();
    remove_hop_by_hop(&mut again, Present::of(&fields));
    assert_eq!(again, fields, "no hop-by-hop field is left");
    let received: Vec<_> = fields.get_all(FOR).iter().map(|line| line.as_bytes().to_vec()).collect();
    let hops = u32::from(hops % 5);
    let peer: SocketAddr = format!("{PEER}:5").parse().expect("an address");
    let forward = |fields: &mut HeaderMap, hops| {
        forwarded(fields, peer, &HeaderValue::from_static(PEER), &Bytes::from_static(b"host"), "http", hops)
    };
    let mut sent = fields.clone();
    let origin = forward(&mut sent, hops);
    let all: Vec<_> = sent.get_all(FOR).iter().map(HeaderValue::as_bytes).collect();
    let expected = [&received.join(&b", "[..])[..], PEER.as_bytes()];
    match hops {
        0 => assert_eq!((origin.client, &all[..]), (peer, &[PEER.as_bytes()][..])),
        _ if received.is_empty() => assert_eq!((origin.client, &all[..]), (peer, &[PEER.as_bytes()][..])),
        _ => {
            assert_eq!(all, [expected.join(&b", "[..])]);
            let line = received.join(&b","[..]);
            let elements: Vec<_> = line.split(|byte| *byte == b',').collect();
            let element = elements[elements.len().saturating_sub(hops as usize)];
            assert_eq!(origin.client, client(element), "{}", element.escape_ascii());
        }
    }
    assert!(["http", "https"].contains(&origin.scheme) && (hops > 0 || origin.scheme == "http"));
    assert_eq!(sent["x-request-id"], origin.request_id);
    let own_host = hops == 0 || !fields.contains_key("x-forwarded-host");
    assert!(!own_host || sent["x-forwarded-host"] == "host");
    // A proxy after this one that trusts it finds the same client.
    if hops > 0 {
        assert_eq!(
            forward(&mut sent.clone(), hops + 1).client,
            if received.is_empty() { client(PEER.as_bytes()) } else { origin.client }
        );
    }
    Outcome::of((
        hops,
        origin.client == UNKNOWN_CLIENT,
        origin.client.is_ipv6(),
        origin.scheme,
        received.len(),
        sent.len(),
    ))
}

/// Parses lines of a name, `:` and a value.
fn fields(lines: &[u8]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n').take(20) {
        let at = line.iter().position(|byte| *byte == b':').unwrap_or(0);
        if let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(&line[..at]),
            HeaderValue::from_bytes(line.get(at + 1..).unwrap_or_default().trim_ascii()),
        ) {
            fields.append(name, value);
        }
    }
    fields
}

/// Parses an element's address: quoted or not, with a port or not, IPv6 in brackets or not, with a zone or not.
fn client(element: &[u8]) -> SocketAddr {
    let text = str::from_utf8(element.trim_ascii()).unwrap_or_default();
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let zone = |ip: &str| ip.split('%').next().and_then(|ip| ip.parse::<IpAddr>().ok());
    let found = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((ip, "")) => zone(ip).filter(IpAddr::is_ipv6).map(|ip| SocketAddr::new(ip, 0)),
        Some((ip, port)) => {
            let port = port.strip_prefix(':').and_then(|port| port.parse().ok());
            zone(ip).filter(IpAddr::is_ipv6).zip(port).map(|(ip, port)| SocketAddr::new(ip, port))
        }
        None => text.parse().ok().or_else(|| zone(text).map(|ip| SocketAddr::new(ip, 0))),
    };
    found.unwrap_or(UNKNOWN_CLIENT)
}

pub(super) const TARGET: Target = Target {
    words: &[
        b"x-forwarded-for:",
        b"x-forwarded-proto:https\n",
        b"x-forwarded-host:a\n",
        b"x-request-id:1\n",
        b"connection:x-forwarded-for, x, close\n",
        b"te:trailers\n",
        b"upgrade:h2c\n",
        b"x:1\n",
        b"1.2.3.4",
        b"::1",
        b"[2001:db8::1]:80",
        b"%eth0",
        b":80",
        b"\"",
        b",",
        b"\n",
        b"\x02",
        b"\xff",
    ],
    max_len: 400,
    check,
};
