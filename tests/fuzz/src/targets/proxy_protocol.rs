//! The PROXY protocol: both versions, parsing and encoding.

use std::net::{IpAddr, SocketAddr};

use tollgate::{
    config::model::ProxyProtocolVersion,
    net::proxy_protocol::{Addresses, Header, MAX_HEADER, Parsed, encode, parse},
};

use crate::{Outcome, Target, asked_again};

/// The result arrives in time and stays; a header is read exactly to its end; encoded headers parse to the same.
fn check(input: &[u8]) -> Outcome {
    let parsed = asked_again(input, &Parsed::NeedMore, MAX_HEADER, parse);
    if let Parsed::Header(header) = parsed {
        assert!(header.length <= input.len() && header.length <= MAX_HEADER);
        let alone = &input[..header.length];
        assert_eq!(parse(alone), parsed);
        assert_eq!(parse(&[alone, b"PROXY "].concat()), parsed);
        assert_eq!(parse(&alone[..header.length - 1]), Parsed::NeedMore);
        read_again(header.addresses);
        // Where there is only one encoding, it is the same.
        if alone.starts_with(b"PROXY TCP4 ") {
            assert_eq!(encode(ProxyProtocolVersion::V1, header.addresses), alone);
        }
        if alone[12..].starts_with(b"\x21\x11\0\x0c") {
            assert_eq!(encode(ProxyProtocolVersion::V2, header.addresses), alone);
        }
    }
    if let Some((addresses, _)) = addresses(input) {
        read_again(Some(addresses));
    }
    let kind = match parsed {
        Parsed::Header(h) => {
            format!("{:?}", (h.addresses.is_some(), h.authority.is_some(), h.unique_id.is_some(), h.tls))
        }
        other => format!("{other:?}"),
    };
    Outcome::of((kind, input.len().min(128) / 16))
}

fn read_again(addresses: Option<Addresses>) {
    let expected = addresses.map(|ends| Addresses::new(ends.source, ends.destination));
    for (version, bound) in [(ProxyProtocolVersion::V1, 107), (ProxyProtocolVersion::V2, 52)] {
        let header = encode(version, addresses);
        assert!(header.len() <= bound);
        let length = header.len();
        assert_eq!(parse(&header), Parsed::Header(Header { length, addresses: expected, ..Header::default() }));
    }
}

/// Reads two addresses of any families from the first bytes.
fn addresses(bytes: &[u8]) -> Option<(Addresses, &[u8])> {
    let (source, rest) = address(bytes)?;
    let (destination, rest) = address(rest)?;
    Some((Addresses { source, destination }, rest))
}

fn address(bytes: &[u8]) -> Option<(SocketAddr, &[u8])> {
    let (kind, rest) = bytes.split_first()?;
    let (ip, rest) = match kind % 2 {
        0 => rest.split_first_chunk::<4>().map(|(ip, rest)| (IpAddr::from(*ip), rest))?,
        _ => rest.split_first_chunk::<16>().map(|(ip, rest)| (IpAddr::from(*ip), rest))?,
    };
    let (port, rest) = rest.split_first_chunk()?;
    Some((SocketAddr::new(ip, u16::from_be_bytes(*port)), rest))
}

pub(super) const TARGET: Target = Target {
    words: &[
        b"PROXY ",
        b"TCP4 ",
        b"TCP6 ",
        b"UNKNOWN",
        b" 65535",
        b"+",
        b"0",
        b" 255.255.255.255",
        b" ::ffff:1.2.3.4",
        b"\r\n",
        b"\r\n\r\n\0\r\nQUIT\n",
        b"\x21\x11\0\x0c",
        b"\x21\x21\0\x24",
        b"\x20\0\0\0",
        b"\x01\0\x02h2",
        b"\x02\0\x01a",
        b"\x03\0\x04",
        b"\x05\0\x01u",
        b"\x20\0\x05\x01\0\0\0\0",
    ],
    max_len: MAX_HEADER + 64,
    check,
};
