//! The header fields that a proxy takes away, and those that it adds.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Which fields a head has that something must be done about. Most have one or two of them, and one walk over the names costs
/// less than looking each of these up.
#[derive(Debug, Default, Clone, Copy)]
pub struct Present {
    /// `Connection`.
    pub connection: bool,
    /// `TE`.
    pub te: bool,
    /// `Upgrade`.
    pub upgrade: bool,
    /// `Keep-Alive`, `Proxy-Connection` or `Transfer-Encoding`.
    pub others_of_hop: bool,
    /// `Expect`.
    pub expect: bool,
    /// `X-Forwarded-Client-Cert`.
    pub client_cert: bool,
}

impl Present {
    /// Looks at all names.
    pub fn of(fields: &HeaderMap) -> Present {
        let mut present = Present::default();
        for name in fields.keys() {
            match *name {
                header::CONNECTION => present.connection = true,
                header::TE => present.te = true,
                header::UPGRADE => present.upgrade = true,
                header::TRANSFER_ENCODING => present.others_of_hop = true,
                header::EXPECT => present.expect = true,
                _ if *name == KEEP_ALIVE || *name == PROXY_CONNECTION => present.others_of_hop = true,
                _ if *name == X_FORWARDED_CLIENT_CERT => present.client_cert = true,
                _ => {}
            }
        }
        present
    }
}

/// Removes what is meant for the next hop only (RFC 9110 section 7.6.1): `Connection`, all that it lists, and the fields
/// that it should have listed. `TE: trailers` stays, since this proxy passes trailers on. `present` is what there is of these.
pub fn remove_hop_by_hop(fields: &mut HeaderMap, present: Present) {
    let Present { connection, te, upgrade, others_of_hop, .. } = present;
    if connection {
        let values = fields.get_all(header::CONNECTION).into_iter().filter_map(|v| v.to_str().ok());
        let tokens = values.flat_map(|v| v.split(',')).map(str::trim);
        // What nearly all of them say is no field's name, or that of one that goes anyway.
        let names = tokens.filter(|token| !["keep-alive", "close"].iter().any(|word| token.eq_ignore_ascii_case(word)));
        let listed: Vec<HeaderName> = names.filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok()).collect();
        for name in listed {
            // Nobody may have these removed: they are not hop-by-hop, and something later relies on them.
            if !matches!(
                name,
                header::TE | header::CONTENT_LENGTH | header::HOST | header::AUTHORIZATION | header::COOKIE
            ) && !name.as_str().starts_with("x-forwarded-")
            {
                fields.remove(name);
            }
        }
        fields.remove(header::CONNECTION);
    }
    if upgrade {
        fields.remove(header::UPGRADE);
    }
    if others_of_hop {
        for name in [KEEP_ALIVE, PROXY_CONNECTION, header::TRANSFER_ENCODING] {
            fields.remove(name);
        }
    }
    if !te {
        return;
    }
    let trailers = wants_trailers(fields);
    fields.remove(header::TE);
    if trailers {
        fields.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Whether trailers are welcome: `TE: trailers` (RFC 9110 section 10.1.4).
pub(super) fn wants_trailers(fields: &HeaderMap) -> bool {
    fields.get_all(header::TE).iter().any(|value| {
        let mut codings = value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii);
        codings.any(|coding| coding.eq_ignore_ascii_case(b"trailers"))
    })
}

/// Adds this proxy to `Via` (RFC 9110 section 7.6.3). `via` is the whole value: version and name.
pub fn add_via(fields: &mut HeaderMap, via: Option<&HeaderValue>) {
    if let Some(via) = via {
        fields.append(header::VIA, via.clone());
    }
}

/// What is known of where a request comes from.
#[derive(Debug)]
pub struct Origin {
    /// The client, as far as it can be trusted.
    pub client: SocketAddr,
    /// The request's name across proxies.
    pub request_id: HeaderValue,
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

/// A new request id: a random UUID.
pub fn new_request_id() -> HeaderValue {
    let id = uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes()).into_uuid();
    value(id.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()))
}

/// Sets `X-Forwarded-For`, `-Proto`, `-Host` and `X-Request-Id`, and tells who the client is. `peer_value` is the peer's
/// address as text, which is the same for all requests of a connection.
///
/// With `trusted_hops` = 0 the peer is the client, and what it says about itself is replaced. With n, the peer and n - 1
/// proxies before it are trusted: the client is the nth address from the right of `X-Forwarded-For`, and the other fields
/// stay if they are there.
pub fn forwarded(
    fields: &mut HeaderMap,
    peer: SocketAddr,
    peer_value: &HeaderValue,
    host: &Bytes,
    scheme: &'static str,
    trusted_hops: u32,
) -> Origin {
    let trusted = trusted_hops > 0;
    let mut client = peer;
    // These four, and `Via`: one growth is enough.
    fields.reserve(5);
    if trusted {
        let lines: Vec<&str> = fields.get_all(X_FORWARDED_FOR).iter().filter_map(|v| v.to_str().ok()).collect();
        let all = lines.join(", ");
        let said = all.split(',').rev().nth(trusted_hops as usize - 1).or_else(|| all.split(',').next());
        if let Some(address) = said.and_then(|a| parse_address(a.trim())) {
            client = address;
        }
        let all = match (all.is_empty(), peer_value.to_str()) {
            (false, Ok(peer)) => value(&format!("{all}, {peer}")),
            _ => peer_value.clone(),
        };
        fields.insert(X_FORWARDED_FOR, all);
    } else {
        fields.insert(X_FORWARDED_FOR, peer_value.clone());
    }
    if !trusted || !fields.contains_key(X_FORWARDED_PROTO) {
        fields.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
    }
    if !trusted || !fields.contains_key(X_FORWARDED_HOST) {
        fields.insert(
            X_FORWARDED_HOST,
            HeaderValue::from_maybe_shared(host.clone()).unwrap_or(HeaderValue::from_static("")),
        );
    }
    let known = if trusted { fields.get(X_REQUEST_ID).cloned() } else { None };
    let request_id = known.unwrap_or_else(|| {
        let id = new_request_id();
        fields.insert(X_REQUEST_ID, id.clone());
        id
    });
    Origin { client, request_id }
}

/// An address in `X-Forwarded-For`: with or without a port, IPv6 with or without brackets.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let ip = || text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
    text.parse().ok().or_else(|| ip().map(|ip| SocketAddr::new(ip, 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "10.0.0.1:5";

    fn fields(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(n, v): &(&'static str, &str)| (HeaderName::from_static(n), HeaderValue::from_str(v).unwrap());
        let mut map = HeaderMap::new();
        pairs.iter().map(pair).for_each(|(n, v)| {
            map.append(n, v);
        });
        map
    }

    #[test]
    fn what_is_for_the_next_hop_goes_no_further() {
        let mut map = fields(&[
            ("connection", "close, X-Secret"),
            ("connection", "x-other"),
            ("x-secret", "1"),
            ("x-other", "1"),
            ("keep-alive", "5"),
            ("proxy-connection", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("te", "gzip, trailers;q=1, trailers"),
            ("x-kept", "1"),
        ]);
        let present = Present::of(&map);
        remove_hop_by_hop(&mut map, present);
        assert_eq!(map, fields(&[("te", "trailers"), ("x-kept", "1")]));
    }

    #[test]
    fn nobody_can_have_what_filters_rely_on_removed() {
        let mut map = fields(&[
            ("connection", "x-forwarded-for, authorization, cookie"),
            ("authorization", "a"),
            ("cookie", "c"),
            ("x-forwarded-for", "1.1.1.1"),
        ]);
        let present = Present::of(&map);
        remove_hop_by_hop(&mut map, present);
        assert_eq!(map.len(), 3);
    }

    #[test]
    fn an_untrusted_client_cannot_speak_for_others() {
        let mut map = fields(&[
            ("x-forwarded-for", "9.9.9.9"),
            ("x-forwarded-proto", "https"),
            ("x-request-id", "mine"),
            ("x-forwarded-host", "evil"),
        ]);
        let origin =
            forwarded(&mut map, PEER.parse().unwrap(), &value("10.0.0.1"), &Bytes::from_static(b"host"), "http", 0);
        assert_eq!(origin.client.to_string(), "10.0.0.1:5");
        assert_eq!(
            (&map[X_FORWARDED_FOR], &map[X_FORWARDED_PROTO], &map[X_FORWARDED_HOST]),
            (&value("10.0.0.1"), &value("http"), &value("host"))
        );
        assert_ne!(map[X_REQUEST_ID], "mine");
        assert_eq!(origin.request_id.len(), 36);
    }

    #[test]
    fn the_client_is_as_many_hops_away_as_are_trusted() {
        for (hops, said, client) in [
            (1, "1.1.1.1, 2.2.2.2", "2.2.2.2:0"),
            (2, "1.1.1.1, 2.2.2.2", "1.1.1.1:0"),
            (5, "1.1.1.1, 2.2.2.2", "1.1.1.1:0"),
            (1, "[2001:db8::1]:80", "[2001:db8::1]:80"),
            (1, "2001:db8::1", "[2001:db8::1]:0"),
            (1, "nonsense", "10.0.0.1:5"),
        ] {
            let mut map = fields(&[("x-forwarded-for", said), ("x-request-id", "kept")]);
            let origin = forwarded(
                &mut map,
                PEER.parse().unwrap(),
                &value("10.0.0.1"),
                &Bytes::from_static(b"host"),
                "http",
                hops,
            );
            assert_eq!(origin.client.to_string(), client, "{hops} {said}");
            assert_eq!(map[X_FORWARDED_FOR], format!("{said}, 10.0.0.1").as_str());
            assert_eq!(origin.request_id, "kept");
        }
    }
}
