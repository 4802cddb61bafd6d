//! Encoding of the PROXY protocol header, for endpoints configured to receive one.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::{Addresses, v1, v2};
use crate::config::model::ProxyProtocolVersion;

/// Returns the header for a connection between `addresses`: at most 107 bytes in version 1, 52 in version 2.
///
/// Without addresses (a health check, or a client on a unix socket) the header is `UNKNOWN` or `LOCAL`: the receiver
/// uses the connection's own addresses. If one address is IPv4 and the other IPv6, the former is written as IPv6 (RFC
/// 4291 section 2.5.5.2).
pub fn encode(version: ProxyProtocolVersion, addresses: Option<Addresses>) -> Vec<u8> {
    let ends = addresses.map(|Addresses { source, destination }| Addresses::new(source, destination));
    match version {
        ProxyProtocolVersion::V1 => line(ends),
        ProxyProtocolVersion::V2 => binary(ends),
    }
}

fn line(ends: Option<Addresses>) -> Vec<u8> {
    let signature = str::from_utf8(v1::SIGNATURE).unwrap_or_default();
    let Some(Addresses { source, destination }) = ends else { return format!("{signature}UNKNOWN\r\n").into() };
    let ports = format!("{} {}", source.port(), destination.port());
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => format!("{signature}TCP4 {from} {to} {ports}\r\n"),
        (from, to) => format!("{signature}TCP6 {} {} {ports}\r\n", v6(from), v6(to)),
    }
    .into()
}

fn binary(ends: Option<Addresses>) -> Vec<u8> {
    let mut header = Vec::with_capacity(v2::FIXED + 36);
    header.extend_from_slice(v2::SIGNATURE);
    let Some(Addresses { source, destination }) = ends else {
        header.extend_from_slice(&[v2::LOCAL, v2::UNSPECIFIED, 0, 0]);
        return header;
    };
    match (source, destination) {
        (SocketAddr::V4(from), SocketAddr::V4(to)) => {
            header.extend_from_slice(&[v2::PROXY, v2::TCP4, 0, 12]);
            header.extend_from_slice(&from.ip().octets());
            header.extend_from_slice(&to.ip().octets());
        }
        (from, to) => {
            header.extend_from_slice(&[v2::PROXY, v2::TCP6, 0, 36]);
            header.extend_from_slice(&v6(from.ip()).octets());
            header.extend_from_slice(&v6(to.ip()).octets());
        }
    }
    header.extend_from_slice(&source.port().to_be_bytes());
    header.extend_from_slice(&destination.port().to_be_bytes());
    header
}

fn v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Header, Parsed, parse};
    use super::*;

    const VERSIONS: [ProxyProtocolVersion; 2] = [ProxyProtocolVersion::V1, ProxyProtocolVersion::V2];

    fn ends(source: &str, destination: &str) -> Option<Addresses> {
        Some(Addresses { source: source.parse().unwrap(), destination: destination.parse().unwrap() })
    }

    #[test]
    fn v1_line_matches_the_specification() {
        let line = |ends| String::from_utf8(encode(ProxyProtocolVersion::V1, ends)).unwrap();
        assert_eq!(line(None), "PROXY UNKNOWN\r\n");
        assert_eq!(line(ends("10.0.0.1:1", "10.0.0.2:2")), "PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n");
        assert_eq!(line(ends("[2001:db8::1]:1", "[::1]:2")), "PROXY TCP6 2001:db8::1 ::1 1 2\r\n");
        assert_eq!(line(ends("10.0.0.1:1", "[::1]:2")), "PROXY TCP6 ::ffff:10.0.0.1 ::1 1 2\r\n");
        assert_eq!(line(ends("[::ffff:10.0.0.1]:1", "10.0.0.2:2")), "PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n");
    }

    #[test]
    fn v2_header_matches_the_specification() {
        let signature = [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a];
        let binary = |ends| encode(ProxyProtocolVersion::V2, ends);
        assert_eq!(binary(None), [&signature[..], &[0x20, 0, 0, 0]].concat());
        let v4 = [0x21, 0x11, 0, 12, 10, 0, 0, 1, 10, 0, 0, 2, 0x30, 0x39, 0x01, 0xbb];
        assert_eq!(binary(ends("10.0.0.1:12345", "10.0.0.2:443")), [&signature[..], &v4].concat());
        let mixed = binary(ends("10.0.0.1:1", "[::1]:2"));
        assert_eq!(mixed[12..16], [0x21, 0x21, 0, 36]);
        assert_eq!(mixed[16..32], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1]);
        assert_eq!(mixed.len(), 52);
    }

    #[test]
    fn encoded_headers_parse_back() {
        let addresses = ["1.2.3.4:5", "[::ffff:1.2.3.4]:6", "[2001:db8::1]:65535", "0.0.0.0:0", "[::]:0"];
        for version in VERSIONS {
            for (source, destination) in addresses.iter().flat_map(|a| addresses.iter().map(move |b| (a, b))) {
                let given = ends(source, destination);
                let header = encode(version, given);
                let canonical = given.map(|ends| Addresses::new(ends.source, ends.destination));
                let expected = Header { length: header.len(), addresses: canonical, ..Header::default() };
                assert_eq!(parse(&header), Parsed::Header(expected), "{source} to {destination}");
            }
            let header = encode(version, None);
            assert_eq!(parse(&header), Parsed::Header(Header { length: header.len(), ..Header::default() }));
        }
    }
}
