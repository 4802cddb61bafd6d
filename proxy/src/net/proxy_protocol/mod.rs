//! The PROXY protocol: a header at the start of a connection in which a proxy in front reports the client's address
//! (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>). Both versions are parsed incrementally, and written
//! for endpoints configured to receive the header.
//!
//! This is our own code rather than a crate: `proxy-header` 0.1 and `ppp` 2.3 accept `+80` as a port and do not verify
//! the checksum. The former ignores what follows `PROXY` or `UNKNOWN`, and needs 15 bytes before it reports that there
//! is no header; the latter leaves detection of the version to its caller.

mod encode;
mod v1;
mod v2;

use std::net::SocketAddr;

pub use self::encode::encode;

/// Upper bound on the size of a header in bytes: a caller that has read this many always gets a verdict.
pub const MAX_HEADER: usize = 16 << 10;

/// The result of parsing the first bytes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// Possibly an incomplete header: fewer than [`MAX_HEADER`] bytes, all of them valid so far.
    NeedMore,
    /// Not a PROXY header.
    NotProxy,
    /// A complete header; the connection's own bytes follow it.
    Header(Header<'a>),
    /// A header that violates the protocol.
    Invalid(Malformed),
}

/// The contents of a header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header<'a> {
    /// Length in bytes.
    pub length: usize,
    /// The ends of the client's connection. `None`: use those of this connection (the proxy's own, for a health check,
    /// or one whose ends are not IP addresses).
    pub addresses: Option<Addresses>,
    /// The host that the client asked for, usually its TLS SNI (`PP2_TYPE_AUTHORITY`).
    pub authority: Option<&'a str>,
    /// The proxy's identifier for this connection, at most 128 bytes (`PP2_TYPE_UNIQUE_ID`).
    pub unique_id: Option<&'a [u8]>,
    /// Whether the client uses TLS to the proxy (`PP2_TYPE_SSL` with `PP2_CLIENT_SSL`).
    pub tls: bool,
}

/// The ends of a connection. IPv4 addresses mapped to IPv6 (RFC 4291 section 2.5.5.2) are converted to IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Addresses {
    /// The end that opened the connection.
    pub source: SocketAddr,
    /// The end that it was opened to.
    pub destination: SocketAddr,
}

/// A violation of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Version 1: neither `TCP4` nor `TCP6` nor `UNKNOWN`.
    #[error("neither TCP4 nor TCP6 nor UNKNOWN")]
    Protocol,
    /// Version 1: a lone CR or LF.
    #[error("a line that does not end with CR LF")]
    LineEnd,
    /// Version 1: no line end within 107 bytes.
    #[error("a line of more than 107 bytes")]
    LineTooLong,
    /// Version 1: not two addresses and two ports with one space between them.
    #[error("not two addresses and two ports")]
    Fields,
    /// Version 1: not a valid address of its family.
    #[error("not a valid address")]
    Address,
    /// Version 1: not a decimal number from 0 to 65535 without leading zeros or a sign.
    #[error("not a valid port")]
    Port,
    /// Version 2: another version after the signature.
    #[error("a version that is not 2")]
    Version,
    /// Version 2: neither `LOCAL` nor `PROXY`.
    #[error("a command that is neither LOCAL nor PROXY")]
    Command,
    /// Version 2: a family and transport that the specification does not define.
    #[error("an unknown family or transport")]
    Family,
    /// Version 2: more than [`MAX_HEADER`] bytes.
    #[error("a header of more than 16 KiB")]
    TooLarge,
    /// Version 2: too short for the addresses of its family.
    #[error("a length too short for the addresses")]
    AddressLength,
    /// Version 2: fields (TLV) that do not fill the header, appear twice, or do not match their type.
    #[error("a malformed field after the addresses")]
    Field,
    /// Version 2: the checksum does not match the header.
    #[error("a wrong checksum")]
    Checksum,
}

/// Parses the first bytes of a connection. Further bytes do not change a result other than [`Parsed::NeedMore`].
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
    /// Creates a pair, converting mapped IPv4 addresses to IPv4.
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Addresses {
        let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        Addresses { source: canonical(source), destination: canonical(destination) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the result for an input, and checks that each of its prefixes gives the same result or needs more.
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
    fn missing_header_is_detected_at_the_first_deviating_byte() {
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
