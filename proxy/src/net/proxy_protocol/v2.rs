//! Version 2: binary (sections 2.2 to 2.5 of the specification). A "field" here is a TLV (type, length, value) of the
//! specification.

use std::net::{IpAddr, SocketAddr};

use super::{Addresses, Header, MAX_HEADER, Malformed};

/// The start of every header.
pub(super) const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Bytes before the addresses: signature, command, family, length.
pub(super) const FIXED: usize = 16;

/// The version combined with each command.
pub(super) const LOCAL: u8 = 0x20;
pub(super) const PROXY: u8 = 0x21;

/// Address families combined with their transports.
pub(super) const UNSPECIFIED: u8 = 0x00;
pub(super) const TCP4: u8 = 0x11;
pub(super) const TCP6: u8 = 0x21;
const UDP4: u8 = 0x12;
const UDP6: u8 = 0x22;
const UNIX_STREAM: u8 = 0x31;
const UNIX_DATAGRAM: u8 = 0x32;

/// Field types.
mod field {
    pub(super) const AUTHORITY: u8 = 0x02;
    pub(super) const CRC32C: u8 = 0x03;
    pub(super) const UNIQUE_ID: u8 = 0x05;
    pub(super) const SSL: u8 = 0x20;
}

/// The bit of a `PP2_TYPE_SSL` field's first byte that is set when the client uses TLS.
const CLIENT_SSL: u8 = 1;

/// Maximum length of a `PP2_TYPE_UNIQUE_ID` in bytes.
const MAX_UNIQUE_ID: usize = 128;

/// Parses a header that begins with the signature. `None`: the header is incomplete.
pub(super) fn parse(input: &[u8]) -> Result<Option<Header<'_>>, Malformed> {
    let Some(&command) = input.get(SIGNATURE.len()) else { return Ok(None) };
    match command {
        LOCAL | PROXY => {}
        _ if command & 0xf0 == LOCAL => return Err(Malformed::Command),
        _ => return Err(Malformed::Version),
    }
    let Some(&family) = input.get(SIGNATURE.len() + 1) else { return Ok(None) };
    let addresses_len = match family {
        // With LOCAL everything is discarded, the family included.
        _ if command == LOCAL => 0,
        UNSPECIFIED => 0,
        TCP4 | UDP4 => 12,
        TCP6 | UDP6 => 36,
        UNIX_STREAM | UNIX_DATAGRAM => 216,
        _ => return Err(Malformed::Family),
    };
    let Some(&[high, low]) = input.get(FIXED - 2..FIXED) else { return Ok(None) };
    let length = FIXED + usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_HEADER {
        return Err(Malformed::TooLarge);
    }
    if length < FIXED + addresses_len {
        return Err(Malformed::AddressLength);
    }
    let Some(header) = input.get(..length) else { return Ok(None) };
    if command == LOCAL {
        return Ok(Some(Header { length, ..Header::default() }));
    }
    let (addresses, fields) = header[FIXED..].split_at(addresses_len);
    let addresses = match family {
        TCP4 => ends::<4>(addresses),
        TCP6 => ends::<16>(addresses),
        // Addresses of datagrams do not describe a connection, and those of unix sockets cannot be used.
        _ => None,
    };
    let mut read = Header { length, addresses, ..Header::default() };
    read_fields(header, fields, &mut read)?;
    Ok(Some(read))
}

/// Parses two addresses of `N` bytes each, and two ports.
fn ends<const N: usize>(bytes: &[u8]) -> Option<Addresses>
where
    IpAddr: From<[u8; N]>,
{
    let (source, rest) = bytes.split_first_chunk::<N>()?;
    let (destination, ports) = rest.split_first_chunk::<N>()?;
    let &[a, b, c, d] = ports else { return None };
    let end = |ip: &[u8; N], port| SocketAddr::new(IpAddr::from(*ip), u16::from_be_bytes(port));
    Some(Addresses::new(end(source, [a, b]), end(destination, [c, d])))
}

/// Parses the fields after the addresses. `whole` is the header from its first byte, for the checksum.
fn read_fields<'a>(whole: &'a [u8], fields: &'a [u8], header: &mut Header<'a>) -> Result<(), Malformed> {
    let mut rest = fields;
    let mut checksum = None;
    let mut ssl = None;
    while !rest.is_empty() {
        let &[kind, high, low, ref after @ ..] = rest else { return Err(Malformed::Field) };
        let len = usize::from(u16::from_be_bytes([high, low]));
        let (value, after) = after.split_at_checked(len).ok_or(Malformed::Field)?;
        rest = after;
        let twice = match kind {
            field::AUTHORITY => {
                let name = str::from_utf8(value).map_err(|_| Malformed::Field)?;
                header.authority.replace(name).is_some()
            }
            field::UNIQUE_ID if value.len() > MAX_UNIQUE_ID => return Err(Malformed::Field),
            field::UNIQUE_ID => header.unique_id.replace(value).is_some(),
            // The first byte holds flags about the client, the next four the result of verifying its certificate.
            field::SSL if value.len() < 5 => return Err(Malformed::Field),
            field::SSL => ssl.replace(value[0]).is_some(),
            field::CRC32C => {
                let sum = value.try_into().map(u32::from_be_bytes).map_err(|_| Malformed::Field)?;
                checksum.replace((sum, whole.len() - after.len() - value.len())).is_some()
            }
            _ => false,
        };
        if twice {
            return Err(Malformed::Field);
        }
    }
    header.tls = ssl.is_some_and(|bits| bits & CLIENT_SSL != 0);
    match checksum {
        Some((sum, at)) if crc32c(whole, at) != sum => Err(Malformed::Checksum),
        _ => Ok(()),
    }
}

/// The CRC-32C (RFC 9260 appendix A) of a header, with the four checksum bytes taken as zeros. It is rare and short, so
/// a table of 256 words is enough.
fn crc32c(header: &[u8], checksum_at: usize) -> u32 {
    let bytes = header.iter().enumerate();
    !bytes.fold(!0, |crc: u32, (i, byte)| {
        let byte = if (checksum_at..checksum_at + 4).contains(&i) { 0 } else { *byte };
        (crc >> 8) ^ CRC_TABLE[usize::from(crc as u8 ^ byte)]
    })
}

static CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let (mut crc, mut bit) = (i as u32, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::super::{Parsed, tests::parse_by_byte};
    use super::*;

    const V4: &[u8] = &[10, 0, 0, 1, 10, 0, 0, 2, 0x30, 0x39, 0x01, 0xbb];

    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut header = [SIGNATURE, &[command, family]].concat();
        header.extend_from_slice(&u16::try_from(rest.len()).unwrap().to_be_bytes());
        header.extend_from_slice(rest);
        header
    }

    fn field(kind: u8, value: &[u8]) -> Vec<u8> {
        let len = u16::try_from(value.len()).unwrap().to_be_bytes();
        [&[kind, len[0], len[1]], value].concat()
    }

    fn read(sent: &[u8]) -> Header<'_> {
        match parse_by_byte(sent) {
            Parsed::Header(header) => header,
            other => panic!("{other:?} for {sent:?}"),
        }
    }

    fn refused(sent: &[u8]) -> Malformed {
        match parse_by_byte(sent) {
            Parsed::Invalid(malformed) => malformed,
            other => panic!("{other:?} for {sent:?}"),
        }
    }

    fn ends(source: &str, destination: &str) -> Option<Addresses> {
        Some(Addresses { source: source.parse().unwrap(), destination: destination.parse().unwrap() })
    }

    #[test]
    fn header_yields_the_ends_of_a_connection() {
        let mut sent = header(PROXY, TCP4, V4);
        let length = sent.len();
        sent.extend_from_slice(b"GET /");
        let addresses = ends("10.0.0.1:12345", "10.0.0.2:443");
        assert_eq!(read(&sent), Header { length, addresses, ..Header::default() });

        let v6 = |last| [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
        let sent = header(PROXY, TCP6, &[&v6(1)[..], &v6(2), &[0, 1, 0, 2]].concat());
        assert_eq!(read(&sent).addresses, ends("[2001:db8::1]:1", "[2001:db8::2]:2"));
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];
        let sent = header(PROXY, TCP6, &[&mapped[..], &mapped, &[0, 1, 0, 2]].concat());
        assert_eq!(read(&sent).addresses, ends("10.0.0.1:1", "10.0.0.1:2"));
    }

    #[test]
    fn other_connections_keep_their_own_addresses() {
        let nothing = |sent: &[u8]| {
            assert_eq!(read(sent), Header { length: sent.len(), ..Header::default() }, "{sent:?}");
        };
        nothing(&header(LOCAL, UNSPECIFIED, b""));
        // Everything sent with LOCAL is discarded.
        nothing(&header(LOCAL, TCP4, V4));
        nothing(&header(LOCAL, 0xff, b"\x03\0\x04nope"));
        nothing(&header(PROXY, UNSPECIFIED, b""));
        nothing(&header(PROXY, UNIX_STREAM, &[b'/'; 216]));
        nothing(&header(PROXY, UNIX_DATAGRAM, &[b'/'; 216]));
        nothing(&header(PROXY, UDP4, V4));
        nothing(&header(PROXY, UDP6, &[0; 36]));
    }

    #[test]
    fn violations_are_rejected_at_their_first_byte() {
        let refused_from = |sent: &[u8], needs: usize| {
            assert_eq!(super::super::parse(&sent[..needs - 1]), Parsed::NeedMore);
            assert_eq!(super::super::parse(&sent[..needs]), Parsed::Invalid(refused(sent)));
            refused(sent)
        };
        assert_eq!(refused_from(&header(0x11, TCP4, V4), 13), Malformed::Version);
        assert_eq!(refused_from(&header(0x31, TCP4, V4), 13), Malformed::Version);
        assert_eq!(refused_from(&header(0x22, TCP4, V4), 13), Malformed::Command);
        for family in [0x01, 0x02, 0x03, 0x10, 0x13, 0x20, 0x30, 0x33, 0x41, 0xff] {
            assert_eq!(refused_from(&header(PROXY, family, V4), 14), Malformed::Family);
        }
        assert_eq!(refused_from(&header(PROXY, TCP4, &V4[1..]), 16), Malformed::AddressLength);
        assert_eq!(refused_from(&header(PROXY, TCP6, V4), 16), Malformed::AddressLength);
        assert_eq!(refused_from(&header(PROXY, UNIX_STREAM, &[0; 215]), 16), Malformed::AddressLength);
        let large = header(LOCAL, UNSPECIFIED, &vec![0; MAX_HEADER - FIXED + 1]);
        assert_eq!(refused_from(&large, 16), Malformed::TooLarge);
        read(&header(LOCAL, UNSPECIFIED, &vec![0; MAX_HEADER - FIXED]));
    }

    #[test]
    fn fields_are_parsed() {
        let ssl = field(field::SSL, &[CLIENT_SSL, 0, 0, 0, 0, 0x21, 0, 7, b'T', b'L', b'S', b'v', b'1', b'.', b'3']);
        let fields = [
            field(field::AUTHORITY, b"a.example"),
            field(0x04, b"padding"),
            field(0xe0, b"the sender's own"),
            ssl,
            field(field::UNIQUE_ID, &[7; MAX_UNIQUE_ID]),
        ];
        let sent = header(PROXY, TCP4, &[V4, &fields.concat()].concat());
        let told = read(&sent);
        assert_eq!(told.authority, Some("a.example"));
        assert_eq!(told.unique_id, Some(&[7; MAX_UNIQUE_ID][..]));
        assert!(told.tls);
        assert_eq!(told.addresses, ends("10.0.0.1:12345", "10.0.0.2:443"));
        assert!(!read(&header(PROXY, UNSPECIFIED, &field(field::SSL, &[0; 5]))).tls);
    }

    #[test]
    fn malformed_fields_are_rejected() {
        for fields in [
            b"\x04".to_vec(),
            b"\x04\0".to_vec(),
            b"\x04\0\x01".to_vec(),
            b"\x04\0\0\x04".to_vec(),
            b"\x04\xff\xff".to_vec(),
            field(field::AUTHORITY, b"\xff"),
            field(field::UNIQUE_ID, &[0; MAX_UNIQUE_ID + 1]),
            field(field::SSL, &[0; 4]),
            field(field::CRC32C, &[0; 3]),
            field(field::CRC32C, &[0; 5]),
            [field(field::AUTHORITY, b"a"), field(field::AUTHORITY, b"b")].concat(),
            [field(field::UNIQUE_ID, b"a"), field(field::UNIQUE_ID, b"a")].concat(),
        ] {
            assert_eq!(refused(&header(PROXY, TCP4, &[V4, &fields].concat())), Malformed::Field, "{fields:?}");
        }
    }

    #[test]
    fn checksum_is_verified_at_any_position() {
        // The check value of the algorithm in catalogues of CRCs.
        assert_eq!(crc32c(b"123456789", 100), 0xe306_9283);
        for (before, after) in [("", ""), ("a.example", ""), ("", "x"), ("a", "b")] {
            let text = |kind, text: &str| if text.is_empty() { Vec::new() } else { field(kind, text.as_bytes()) };
            let fields = [text(field::AUTHORITY, before), field(field::CRC32C, &[0; 4]), text(field::UNIQUE_ID, after)];
            let mut sent = header(PROXY, TCP4, &[V4, &fields.concat()].concat());
            let at = FIXED + V4.len() + fields[0].len() + 3;
            let sum = crc32c(&sent, at);
            sent[at..at + 4].copy_from_slice(&sum.to_be_bytes());
            assert_eq!(read(&sent).addresses, ends("10.0.0.1:12345", "10.0.0.2:443"));
            for byte in FIXED..FIXED + V4.len() {
                let mut changed = sent.clone();
                changed[byte] ^= 1;
                assert_eq!(refused(&changed), Malformed::Checksum);
            }
        }
    }
}
