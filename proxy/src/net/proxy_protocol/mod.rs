//! The PROXY protocol: a header before everything else, by which a proxy in front says who its client is
//! (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>). Read from the bytes there are, in both versions, and
//! written for endpoints that want it.
//!
//! Our own code, and not one of the crates: `proxy-header` 0.1 and `ppp` 2.3 take `+80` for a port and leave the checksum
//! alone; the former does not look at what follows `PROXY` or `UNKNOWN`, and waits for 15 bytes before it says that there is
//! no header, the latter leaves it to its caller to find out which version there may be.

mod encode;
mod v1;
mod v2;

use std::net::SocketAddr;

pub use self::encode::encode;

/// No header has this many bytes, so whoever has read them knows.
pub const MAX_HEADER: usize = 16 << 10;

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// A header may have begun, or has: there are fewer than [`MAX_HEADER`] bytes, and none of them is wrong.
    NeedMore,
    /// No header.
    NotProxy,
    /// A whole header; what follows it is the connection.
    Header(Header<'a>),
    /// A header has begun, and broken the protocol.
    Invalid(Malformed),
}

/// What a header says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header<'a> {
    /// Its bytes, from the first one of the connection.
    pub length: usize,
    /// Whose connection this is. `None`: as it seems (the proxy's own, for a health check, or one whose ends are no IP
    /// addresses).
    pub addresses: Option<Addresses>,
    /// The host that the client has asked for, mostly the SNI of its TLS (`PP2_TYPE_AUTHORITY`).
    pub authority: Option<&'a str>,
    /// What the proxy calls this connection, at most 128 bytes (`PP2_TYPE_UNIQUE_ID`).
    pub unique_id: Option<&'a [u8]>,
    /// Whether the client speaks TLS with the proxy (`PP2_TYPE_SSL` with `PP2_CLIENT_SSL`).
    pub tls: bool,
}

/// The ends of a connection. IPv4 addresses that are written as IPv6 (RFC 4291 section 2.5.5.2) have become IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Addresses {
    /// Who has opened it.
    pub source: SocketAddr,
    /// Where to.
    pub destination: SocketAddr,
}

/// How a header breaks the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Version 1: neither `TCP4` nor `TCP6` nor `UNKNOWN`.
    #[error("neither TCP4 nor TCP6 nor UNKNOWN")]
    Protocol,
    /// Version 1: a CR or LF alone.
    #[error("a line that does not end with CR LF")]
    LineEnd,
    /// Version 1: no end of the line within 107 bytes.
    #[error("a line of more than 107 bytes")]
    LineTooLong,
    /// Version 1: not two addresses and two ports with one space between them.
    #[error("not two addresses and two ports")]
    Fields,
    /// Version 1: no address of its family.
    #[error("an address that is none")]
    Address,
    /// Version 1: no decimal number from 0 to 65535 without needless digits.
    #[error("a port that is none")]
    Port,
    /// Version 2: another version after its signature.
    #[error("a version that is not 2")]
    Version,
    /// Version 2: neither `LOCAL` nor `PROXY`.
    #[error("a command that is neither LOCAL nor PROXY")]
    Command,
    /// Version 2: no family and transport of the specification.
    #[error("an unknown family or transport")]
    Family,
    /// Version 2: more than [`MAX_HEADER`] bytes.
    #[error("a header of more than 16 KiB")]
    TooLarge,
    /// Version 2: too short for the addresses of its family.
    #[error("a length too short for the addresses")]
    AddressLength,
    /// Version 2: fields (TLV) that do not fill the header, are there twice, or are not what their type says.
    #[error("a malformed field after the addresses")]
    Field,
    /// Version 2: the checksum is not that of the header.
    #[error("a wrong checksum")]
    Checksum,
}

/// Looks at the first bytes of a connection. What is said once is not changed by further bytes, unless it is
/// [`Parsed::NeedMore`].
pub fn parse(input: &[u8]) -> Parsed<'_> {
    let parsed = if input.starts_with(v1::SIGNATURE) {
        v1::parse(input)
    } else if input.starts_with(v2::SIGNATURE) {
        v2::parse(input)
    } else if v1::SIGNATURE.starts_with(input) || v2::SIGNATURE.starts_with(input) {
        Ok(None)
    } else {
        return Parsed::NotProxy;
    };
    match parsed {
        Ok(None) => Parsed::NeedMore,
        Ok(Some(header)) => Parsed::Header(header),
        Err(malformed) => Parsed::Invalid(malformed),
    }
}

impl Addresses {
    /// From one to the other.
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Addresses {
        let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        Addresses { source: canonical(source), destination: canonical(destination) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of an input, and that each of its beginnings says the same or needs more.
    pub(super) fn parse_by_byte(input: &[u8]) -> Parsed<'_> {
        let whole = parse(input);
        for end in 0..input.len() {
            let part = parse(&input[..end]);
            assert!(
                part == whole || part == Parsed::NeedMore,
                "{part:?} after {end} bytes of {input:?}, not {whole:?}"
            );
        }
        whole
    }

    #[test]
    fn what_is_no_header_is_known_as_soon_as_a_byte_says_so() {
        for (input, needs) in [
            (&b"GET / HTTP/1.1\r\n"[..], 1),
            (b"PRI * HTTP/2.0\r\n", 3),
            (b"PROXYING", 6),
            (b"\x16\x03\x01", 1),
            (b"\r\n\r\nGET / HTTP/1.1\r\n", 5),
            (b"proxy TCP4", 1),
        ] {
            assert_eq!(parse_by_byte(input), Parsed::NotProxy);
            assert_eq!(parse(&input[..needs]), Parsed::NotProxy, "{input:?}");
            assert_eq!(parse(&input[..needs - 1]), Parsed::NeedMore, "{input:?}");
        }
    }
}
