//! Parses addresses in the notations that hosts use.

use std::net::{IpAddr, SocketAddr};

/// Parses an address to the 16 bytes of an IPv6 address (IPv4 mapped) and a port.
pub(super) fn parse(text: &[u8]) -> Option<([u8; 16], u16)> {
    let text = std::str::from_utf8(text).ok()?;
    let (ip, port) = match text.parse::<SocketAddr>() {
        Ok(address) => (address.ip(), address.port()),
        Err(_) => (text.parse::<IpAddr>().ok()?, 0),
    };
    let ip = match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    Some((ip.octets(), port))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    #[test]
    fn addresses_are_parsed_with_and_without_a_port() {
        let mapped = "::ffff:192.0.2.1".parse::<Ipv6Addr>().unwrap().octets();
        assert_eq!(parse(b"192.0.2.1:80"), Some((mapped, 80)));
        assert_eq!(parse(b"192.0.2.1"), Some((mapped, 0)));
        assert_eq!(parse(b"[::1]:80"), Some((Ipv6Addr::LOCALHOST.octets(), 80)));
        for bad in [&b""[..], b"@", b"/run/socket", b"\xff"] {
            assert_eq!(parse(bad), None);
        }
    }
}
