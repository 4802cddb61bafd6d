//! The header fields that a proxy removes and adds: hop-by-hop fields, `Via`, `X-Forwarded-*` and `X-Request-Id`.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{self, Entry, GetAll},
};
use tollgate_abi::spelling::position;

use super::date;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// The fields of a head that need special treatment. Most heads have one or two of them, and one pass over the names
/// costs less than a lookup of each.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
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
    /// A name that contains `_`.
    pub underscores: bool,
}

impl Present {
    /// Checks all names.
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
                _ => present.underscores |= has_underscore(name),
            }
        }
        present
    }
}

/// Removes fields that are not allowed in trailers (RFC 9110 section 6.5.1): fields that frame or route a message and,
/// in requests, fields that identify the sender. Otherwise a recipient that merges trailers into the head could take
/// them for statements of the client or of this proxy.
pub fn clean_trailers(trailers: &mut HeaderMap, of_request: bool, underscores: bool) {
    let misplaced = |name: &HeaderName| {
        let framing = matches!(
            *name,
            header::CONNECTION
                | header::CONTENT_LENGTH
                | header::HOST
                | header::TE
                | header::TRAILER
                | header::TRANSFER_ENCODING
                | header::UPGRADE
        ) || [KEEP_ALIVE, PROXY_CONNECTION].contains(name);
        let word = matches!(
            *name,
            header::AUTHORIZATION
                | header::PROXY_AUTHORIZATION
                | header::COOKIE
                | header::EXPECT
                | header::FORWARDED
                | header::VIA
        ) || *name == X_REQUEST_ID
            || name.as_str().starts_with("x-forwarded-");
        framing || (of_request && (word || (!underscores && has_underscore(name))))
    };
    let misplaced: Vec<HeaderName> = trailers.keys().filter(|name| misplaced(name)).cloned().collect();
    for name in misplaced {
        trailers.remove(name);
    }
}

/// The fields listed in a request's `Connection` header.
///
/// They are not forwarded (RFC 9110 section 7.6.1), but filters still see them. Otherwise, behind a proxy that forwards
/// `Connection`, a client could hide from filters what that proxy adds. Values written by filters are forwarded even if
/// the client guessed the name.
#[derive(Debug, Default)]
pub struct ConnectionOptions(Vec<HeaderName>);

impl ConnectionOptions {
    /// Marks the client's values of a field with the `sensitive` flag, which has no other use here. Values that a
    /// filter writes are new and unmarked.
    fn mark(&mut self, name: HeaderName, fields: &mut HeaderMap) {
        if let Entry::Occupied(mut values) = fields.entry(&name) {
            values.iter_mut().for_each(|value| value.set_sensitive(true));
            self.0.push(name);
        }
    }

    /// Removes the client's values and keeps those written by filters.
    pub fn remove(&self, fields: &mut HeaderMap) {
        for name in &self.0 {
            let written: Vec<_> = fields.get_all(name).iter().filter(|value| !value.is_sensitive()).cloned().collect();
            fields.remove(name);
            for value in written {
                fields.append(name, value);
            }
        }
    }
}

/// Returns whether `Connection` must not remove this field: it is not hop-by-hop, and later stages rely on it.
fn is_end_to_end(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::TE
            | header::CONTENT_LENGTH
            | header::HOST
            | header::AUTHORIZATION
            | header::COOKIE
            | header::FORWARDED
            | header::VIA
    ) || *name == X_REQUEST_ID
        || name.as_str().starts_with("x-forwarded-")
}

fn has_underscore(name: &HeaderName) -> bool {
    position(name.as_str().as_bytes(), b'_').is_some()
}

/// Removes fields whose names contain `_`.
pub fn remove_underscores(fields: &mut HeaderMap) {
    let names: Vec<HeaderName> = fields.keys().filter(|name| has_underscore(name)).cloned().collect();
    for name in names {
        fields.remove(name);
    }
}

/// Removes hop-by-hop fields (RFC 9110 section 7.6.1): `Connection`, the fields it lists, and those that it should have
/// listed. `TE: trailers` is kept, because this proxy forwards trailers. `present` describes the fields of the head.
pub fn remove_hop_by_hop(fields: &mut HeaderMap, present: Present) {
    take_hop_by_hop(fields, present).remove(fields);
}

/// Removes hop-by-hop fields except those listed in `Connection`, which are returned for later removal.
pub fn take_hop_by_hop(fields: &mut HeaderMap, present: Present) -> ConnectionOptions {
    let Present { connection, te, upgrade, others_of_hop, .. } = present;
    let mut listed = ConnectionOptions::default();
    if connection {
        let connection: Vec<HeaderValue> = fields.get_all(header::CONNECTION).iter().cloned().collect();
        let values = connection.iter().filter_map(|v| v.to_str().ok());
        let tokens = values.flat_map(|v| v.split(',')).map(str::trim);
        // The most frequent tokens are not field names, or name a field that is removed anyway.
        let names = tokens.filter(|token| !["keep-alive", "close"].iter().any(|word| token.eq_ignore_ascii_case(word)));
        for name in names.filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok()) {
            if !is_end_to_end(&name) {
                listed.mark(name, fields);
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
    if te {
        let trailers = wants_trailers(fields);
        fields.remove(header::TE);
        if trailers {
            fields.insert(header::TE, HeaderValue::from_static("trailers"));
        }
    }
    listed
}

/// Makes a response's head valid for HTTP/2 and HTTP/3, whatever an upstream or a filter has put into it. `is_tunnel`:
/// the head is followed by tunnelled bytes, not by a body.
pub fn finish_head(head: &mut Response<()>, is_tunnel: bool) {
    let has_length = !is_tunnel && head.status() != StatusCode::NO_CONTENT;
    let fields = head.headers_mut();
    remove_hop_by_hop(fields, Present::of(fields));
    if !has_length {
        // RFC 9110 section 8.6.
        fields.remove(header::CONTENT_LENGTH);
    } else if fields.get_all(header::CONTENT_LENGTH).iter().nth(1).is_some() {
        let first = fields[header::CONTENT_LENGTH].clone();
        fields.insert(header::CONTENT_LENGTH, first);
    }
    fields.entry(header::DATE).or_insert_with(date::now);
}

/// Returns whether the sender accepts trailers: `TE: trailers` (RFC 9110 section 10.1.4).
pub(crate) fn wants_trailers(fields: &HeaderMap) -> bool {
    fields.get_all(header::TE).iter().any(|value| {
        let mut codings = value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii);
        codings.any(|coding| coding.eq_ignore_ascii_case(b"trailers"))
    })
}

/// Adds this proxy to `Via` (RFC 9110 section 7.6.3). `via` is the complete value: version and name.
pub fn add_via(fields: &mut HeaderMap, via: Option<&HeaderValue>) {
    if let Some(via) = via {
        fields.append(header::VIA, via.clone());
    }
}

/// The origin of a request.
#[derive(Debug)]
pub struct Origin {
    /// The client's address, as far as it can be trusted.
    pub client: SocketAddr,
    /// The scheme of the client's URL, as far as it is known.
    pub scheme: &'static str,
    /// The request id, shared across proxies.
    pub request_id: HeaderValue,
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

/// Creates a new request id: a random UUID.
pub fn new_request_id() -> HeaderValue {
    let id = uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes()).into_uuid();
    value(id.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()))
}

/// The client address of a request whose trusted proxies reported no usable one. It matches no address in filters or
/// comparisons.
pub const UNKNOWN_CLIENT: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);

/// Sets `X-Forwarded-For`, `-Proto`, `-Host` and `X-Request-Id`, and determines the client. `peer_value` is the peer's
/// address as text, which is the same for all requests of a connection.
///
/// With `trusted_hops` = 0 the peer is the client, and its own values of these fields are replaced. With n, the peer
/// and n - 1 proxies before it are trusted: the client is the nth element from the right of `X-Forwarded-For`, and the
/// other fields are kept if present. Elements to the left of that one are ignored, because the client can forge them.
/// If the element is not an address, the client is unknown; it is not taken to be the proxy that forwarded it. Likewise
/// the scheme is the one that the trusted proxy reported in `X-Forwarded-Proto`, or else that of this connection.
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
    // These four and `Via`: grow only once.
    fields.reserve(5);
    let lines = trusted.then(|| fields.get_all(X_FORWARDED_FOR)).filter(|lines| lines.iter().next().is_some());
    let all = match lines {
        None => peer_value.clone(),
        Some(lines) => {
            client = of_trusted(&lines, trusted_hops).and_then(parse_address).unwrap_or(UNKNOWN_CLIENT);
            let mut all = Vec::new();
            for (nth, line) in lines.iter().chain([peer_value]).enumerate() {
                // Also after an empty line, so that recipients counting from the right find the same element.
                if nth > 0 {
                    all.extend_from_slice(b", ");
                }
                all.extend_from_slice(line.as_bytes());
            }
            // A concatenation of valid values is a valid value.
            HeaderValue::from_maybe_shared(Bytes::from(all)).unwrap_or_else(|_| peer_value.clone())
        }
    };
    fields.insert(X_FORWARDED_FOR, all);
    let mut origin_scheme = scheme;
    if !trusted || !fields.contains_key(X_FORWARDED_PROTO) {
        fields.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
    } else if let Some(proto) = of_trusted(&fields.get_all(X_FORWARDED_PROTO), trusted_hops).map(<[u8]>::trim_ascii) {
        let known = ["https", "http"].into_iter().find(|known| proto.eq_ignore_ascii_case(known.as_bytes()));
        origin_scheme = known.unwrap_or(scheme);
    }
    if host.is_empty() && !trusted {
        // HTTP/1.0 requests may lack a host.
        fields.remove(X_FORWARDED_HOST);
    } else if !host.is_empty() && (!trusted || !fields.contains_key(X_FORWARDED_HOST)) {
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
    Origin { client, scheme: origin_scheme, request_id }
}

/// Returns the element written by the proxy `trusted_hops` away, in a list to which each proxy appends on the right;
/// the leftmost element if the list is shorter.
fn of_trusted<'f>(lines: &GetAll<'f, HeaderValue>, trusted_hops: u32) -> Option<&'f [u8]> {
    let elements = || lines.iter().rev().flat_map(|line| line.as_bytes().rsplit(|b| *b == b','));
    elements().nth((trusted_hops as usize).saturating_sub(1)).or_else(|| elements().last())
}

/// Parses an address in `X-Forwarded-For`: with or without a port or quotes, and for IPv6 with or without brackets or a
/// zone. The zone is ignored, as it has a meaning only to the proxy that wrote it.
fn parse_address(element: &[u8]) -> Option<SocketAddr> {
    let text = str::from_utf8(element.trim_ascii()).ok()?;
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let bare = |ip: &str| {
        let ip = ip.split_once('%').map_or(ip, |(ip, _)| ip);
        ip.parse::<IpAddr>().ok()
    };
    if let Some(rest) = text.strip_prefix('[') {
        let (ip, port) = rest.split_once(']')?;
        let port = port.strip_prefix(':').map_or(port.is_empty().then_some(0), |port| port.parse().ok())?;
        return bare(ip).filter(IpAddr::is_ipv6).map(|ip| SocketAddr::new(ip, port));
    }
    text.parse().ok().or_else(|| bare(text).map(|ip| SocketAddr::new(ip, 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "10.0.0.1:5";

    fn fields(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(n, v): &(&str, &str)| (n.parse::<HeaderName>().unwrap(), HeaderValue::from_str(v).unwrap());
        let mut map = HeaderMap::new();
        pairs.iter().map(pair).for_each(|(n, v)| {
            map.append(n, v);
        });
        map
    }

    #[test]
    fn hop_by_hop_fields_are_removed() {
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
    fn fields_that_need_treatment_are_found() {
        let none = Present::default();
        for (name, present) in [
            ("connection", Present { connection: true, ..none }),
            ("te", Present { te: true, ..none }),
            ("upgrade", Present { upgrade: true, ..none }),
            ("keep-alive", Present { others_of_hop: true, ..none }),
            ("proxy-connection", Present { others_of_hop: true, ..none }),
            ("transfer-encoding", Present { others_of_hop: true, ..none }),
            ("expect", Present { expect: true, ..none }),
            ("x-forwarded-client-cert", Present { client_cert: true, ..none }),
            ("x_kept", Present { underscores: true, ..none }),
            ("x-kept", none),
        ] {
            let mut map = fields(&[(name, "x")]);
            assert_eq!(Present::of(&map), present, "{name}");
            remove_hop_by_hop(&mut map, present);
            let stays = !present.connection && !present.te && !present.upgrade && !present.others_of_hop;
            assert_eq!(map.contains_key(name), stays, "{name}");
        }
        let mut map = fields(&[("x-kept", "1"), ("x_one", "2"), ("_", "3")]);
        remove_underscores(&mut map);
        assert_eq!(map, fields(&[("x-kept", "1")]));
    }

    #[test]
    fn head_fields_are_removed_from_trailers() {
        let framing = "connection content-length host te trailer transfer-encoding upgrade keep-alive proxy-connection";
        let word = "authorization proxy-authorization cookie expect forwarded via x-request-id x-forwarded-for \
                    x-forwarded-client-cert";
        let others = "grpc-status x-forwarded etag";
        for (names, in_requests, in_responses) in
            [(framing, false, false), (word, false, true), ("x_y", false, true), (others, true, true)]
        {
            for name in names.split_whitespace() {
                for (of_request, stays) in [(true, in_requests), (false, in_responses)] {
                    let mut trailers = fields(&[(name, "1"), ("x-sum", "2")]);
                    clean_trailers(&mut trailers, of_request, false);
                    assert_eq!(trailers.contains_key(name), stays, "{name} {of_request}");
                    assert!(trailers.contains_key("x-sum"));
                }
            }
        }
        let mut trailers = fields(&[("x_y", "1")]);
        clean_trailers(&mut trailers, true, true);
        assert_eq!(trailers.len(), 1, "names with a `_` are allowed");
    }

    #[test]
    fn proxy_adds_itself_to_via() {
        let mut map = fields(&[("via", "1.1 a")]);
        add_via(&mut map, Some(&value("2 b")));
        add_via(&mut map, None);
        assert_eq!(map, fields(&[("via", "1.1 a"), ("via", "2 b")]));
    }

    #[test]
    fn head_has_at_most_one_length_and_none_without_a_body() {
        for (status, is_tunnel, lengths, expected) in [
            (200, false, &["5"][..], Some("5")),
            (200, false, &["5", "6"], Some("5")),
            (200, false, &[], None),
            (304, false, &["5"], Some("5")),
            (204, false, &["5"], None),
            (200, true, &["0"], None),
        ] {
            let mut head = Response::builder().status(status).body(()).unwrap();
            for length in lengths {
                head.headers_mut().append("content-length", HeaderValue::from_static(length));
            }
            finish_head(&mut head, is_tunnel);
            let origin_scheme: Vec<_> = head.headers().get_all("content-length").iter().collect();
            assert_eq!(origin_scheme, Vec::from_iter(expected), "{status} {lengths:?}");
        }
    }

    /// CVE-2025-48865: a client must not hide fields from filters that rely on them, nor hide filters' fields from
    /// upstreams.
    #[test]
    fn fields_listed_by_a_client_reach_only_the_filters() {
        let mut map = fields(&[
            ("connection", "x-peer, x-user, x-tier, x-none, x-empty, x-more"),
            ("x-peer", "a"),
            ("x-peer", "b"),
            ("x-user", "me"),
            ("x-tier", "free"),
            ("x-empty", ""),
            ("x-more", "client"),
        ]);
        let present = Present::of(&map);
        let listed = take_hop_by_hop(&mut map, present);
        assert_eq!(map.len(), 6);
        for (name, written) in [("x-user", "somebody"), ("x-tier", "free"), ("x-none", "1"), ("x-empty", "")] {
            map.insert(name, value(written));
        }
        map.append("x-more", value("filter"));
        listed.remove(&mut map);
        let expected =
            [("x-user", "somebody"), ("x-tier", "free"), ("x-none", "1"), ("x-empty", ""), ("x-more", "filter")];
        assert_eq!(map, fields(&expected));
    }

    #[test]
    fn fields_that_filters_rely_on_cannot_be_removed() {
        let mut map = fields(&[
            ("connection", "x-forwarded-for, authorization, cookie, forwarded"),
            ("authorization", "a"),
            ("cookie", "c"),
            ("forwarded", "for=1.1.1.1"),
            ("x-forwarded-for", "1.1.1.1"),
        ]);
        let present = Present::of(&map);
        remove_hop_by_hop(&mut map, present);
        assert_eq!(map.len(), 4);
    }

    #[test]
    fn untrusted_client_cannot_forge_its_origin() {
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
    fn client_is_found_by_the_number_of_trusted_hops() {
        for (hops, origin_scheme, client) in [
            (1, "1.1.1.1, 2.2.2.2", "2.2.2.2:0"),
            (2, "1.1.1.1, 2.2.2.2", "1.1.1.1:0"),
            (5, "1.1.1.1, 2.2.2.2", "1.1.1.1:0"),
            (1, "[2001:db8::1]:80", "[2001:db8::1]:80"),
            (1, "2001:db8::1", "[2001:db8::1]:0"),
            (1, "[2001:db8::1]", "[2001:db8::1]:0"),
            (1, "\"[2001:db8::1]:80\"", "[2001:db8::1]:80"),
            (1, "\"1.2.3.4:80\"", "1.2.3.4:80"),
            (1, "fe80::1%eth0", "[fe80::1]:0"),
            (1, "10.0.0.1, nonsense", "[::]:0"),
            (1, "10.0.0.1,", "[::]:0"),
            (1, "", "[::]:0"),
            (2, "10.0.0.1, unknown, 3.3.3.3", "[::]:0"),
            (1, "[1.2.3.4]", "[::]:0"),
            (1, "[2001:db8::1]x", "[::]:0"),
        ] {
            let mut map = fields(&[("x-forwarded-for", origin_scheme), ("x-request-id", "kept")]);
            let origin = forwarded(
                &mut map,
                PEER.parse().unwrap(),
                &value("10.0.0.1"),
                &Bytes::from_static(b"host"),
                "http",
                hops,
            );
            assert_eq!(origin.client.to_string(), client, "{hops} {origin_scheme}");
            assert_eq!(map[X_FORWARDED_FOR], format!("{origin_scheme}, 10.0.0.1").as_str());
            assert_eq!(origin.request_id, "kept");
        }
    }

    #[test]
    fn values_of_trusted_proxies_are_kept() {
        for (hops, origin_scheme, host, expected) in [
            (0, &[("x-forwarded-host", "a"), ("x-forwarded-proto", "https")][..], "h", ("http", "http", Some("h"))),
            (0, &[("x-forwarded-host", "a")], "", ("http", "http", None)),
            (1, &[("x-forwarded-host", "a"), ("x-forwarded-proto", "HTTPS")], "h", ("https", "HTTPS", Some("a"))),
            (1, &[("x-forwarded-host", "a"), ("x-forwarded-proto", "ws")], "", ("http", "ws", Some("a"))),
            (2, &[("x-forwarded-proto", "https, http")], "h", ("https", "https, http", Some("h"))),
            (1, &[], "", ("http", "http", None)),
        ] {
            let mut map = fields(origin_scheme);
            let host = Bytes::copy_from_slice(host.as_bytes());
            let origin = forwarded(&mut map, PEER.parse().unwrap(), &value("10.0.0.1"), &host, "http", hops);
            let text = |name| map.get(name).map(|value| value.to_str().unwrap());
            let found = (origin.scheme, text(X_FORWARDED_PROTO).unwrap(), text(X_FORWARDED_HOST));
            assert_eq!(found, expected, "{hops} {origin_scheme:?}");
        }
    }

    #[test]
    fn non_text_bytes_do_not_hide_the_client() {
        for (lines, hops, client) in [
            (&[&b"\xff, 203.0.113.9"[..]][..], 1, "203.0.113.9:0"),
            (&[b"10.0.0.1\xff,203.0.113.9"], 1, "203.0.113.9:0"),
            (&[b"\xff", b"203.0.113.9"], 1, "203.0.113.9:0"),
            (&[b"203.0.113.9, \xff"], 1, "[::]:0"),
            (&[b"203.0.113.9", b"\xff"], 1, "[::]:0"),
            (&[b"10.0.0.1", b"\xff, 203.0.113.9", b"192.0.2.1"], 2, "203.0.113.9:0"),
        ] {
            let mut map = HeaderMap::new();
            for line in lines {
                map.append(X_FORWARDED_FOR, HeaderValue::from_bytes(line).unwrap());
            }
            let host = Bytes::from_static(b"host");
            let origin = forwarded(&mut map, PEER.parse().unwrap(), &value("10.0.0.1"), &host, "http", hops);
            assert_eq!(origin.client.to_string(), client, "{lines:?}");
            let all = [&lines.join(&b", "[..]), &b", 10.0.0.1"[..]].concat();
            assert_eq!(map.get_all(X_FORWARDED_FOR).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>(), [&all[..]]);
        }
    }

    #[test]
    fn client_defaults_to_the_peer() {
        let (mut map, host) = (HeaderMap::new(), Bytes::from_static(b"host"));
        let origin = forwarded(&mut map, PEER.parse().unwrap(), &value("10.0.0.1"), &host, "http", 1);
        assert_eq!((origin.client.to_string().as_str(), &map[X_FORWARDED_FOR]), (PEER, &value("10.0.0.1")));
    }
}
