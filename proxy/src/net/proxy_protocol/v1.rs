//! Version 1: a line of text, parsed by its exact grammar (section 2.1 of the specification).

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use super::{Addresses, Header, Malformed};

/// The start of every line.
pub(super) const SIGNATURE: &[u8] = b"PROXY ";

/// The maximum length of a line, including its end.
const MAX_LINE: usize = 107;

const TCP4: &[u8] = b"TCP4 ";
const TCP6: &[u8] = b"TCP6 ";
const UNKNOWN: &[u8] = b"UNKNOWN";

/// Parses a line that begins with the signature. `None`: the line is incomplete.
pub(super) fn parse(input: &[u8]) -> Result<Option<Header<'_>>, Malformed> {
    let window = &input[..input.len().min(MAX_LINE)];
    let end = window.iter().position(|b| matches!(b, b'\r' | b'\n'));
    let line = &window[SIGNATURE.len()..end.unwrap_or(window.len())];
    let may_be = |protocol: &[u8]| line.starts_with(protocol) || (end.is_none() && protocol.starts_with(line));
    if ![TCP4, TCP6, UNKNOWN].into_iter().any(may_be) {
        return Err(Malformed::Protocol);
    }
    // Text after UNKNOWN is ignored, but must be separated from it.
    let unknown = line.strip_prefix(UNKNOWN);
    if unknown.is_some_and(|rest| !rest.is_empty() && rest[0] != b' ') {
        return Err(Malformed::Protocol);
    }
    let unfinished = if window.len() == MAX_LINE { Err(Malformed::LineTooLong) } else { Ok(None) };
    let Some(end) = end else { return unfinished };
    match window[end..] {
        [b'\r', b'\n', ..] => {}
        [b'\r'] => return unfinished,
        _ => return Err(Malformed::LineEnd),
    }
    let addresses = match line {
        _ if unknown.is_some() => None,
        _ if line.starts_with(TCP4) => Some(addresses::<Ipv4Addr>(&line[TCP4.len()..])?),
        _ => Some(addresses::<Ipv6Addr>(&line[TCP6.len()..])?),
    };
    Ok(Some(Header { length: end + 2, addresses, ..Header::default() }))
}

fn addresses<A: FromStr + Into<IpAddr>>(fields: &[u8]) -> Result<Addresses, Malformed> {
    let fields = str::from_utf8(fields).map_err(|_| Malformed::Fields)?;
    let mut fields = fields.split(' ');
    let mut next = || fields.next().ok_or(Malformed::Fields);
    let (source, destination, source_port, destination_port) = (next()?, next()?, next()?, next()?);
    if next().is_ok() {
        return Err(Malformed::Fields);
    }
    let address = |text: &str| text.parse::<A>().map(Into::into).map_err(|_| Malformed::Address);
    Ok(Addresses::new(
        SocketAddr::new(address(source)?, port(source_port)?),
        SocketAddr::new(address(destination)?, port(destination_port)?),
    ))
}

/// Parses a port strictly: the standard library would accept `+80` and `0080`.
fn port(text: &str) -> Result<u16, Malformed> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten().ok_or(Malformed::Port)
}

#[cfg(test)]
mod tests {
    use super::super::{Parsed, tests::parse_by_byte};
    use super::*;

    fn header(line: &str) -> Option<Addresses> {
        let line = format!("{line}\r\n");
        let sent = format!("{line}GET / HTTP/1.1\r\n");
        match parse_by_byte(sent.as_bytes()) {
            Parsed::Header(header) => {
                assert_eq!(header, Header { length: line.len(), addresses: header.addresses, ..Header::default() });
                header.addresses
            }
            other => panic!("{other:?} for {line}"),
        }
    }

    #[test]
    fn line_yields_the_ends_of_a_connection() {
        let tells = |line, source: &str, destination: &str| {
            let addresses = header(line).unwrap();
            assert_eq!(addresses.source, source.parse().unwrap());
            assert_eq!(addresses.destination, destination.parse().unwrap());
        };
        tells("PROXY TCP4 192.168.0.1 192.168.0.11 56324 443", "192.168.0.1:56324", "192.168.0.11:443");
        tells("PROXY TCP4 255.255.255.255 0.0.0.0 65535 0", "255.255.255.255:65535", "0.0.0.0:0");
        tells("PROXY TCP6 2001:db8::1 ::1 1 2", "[2001:db8::1]:1", "[::1]:2");
        tells("PROXY TCP6 ::ffff:10.0.0.1 ::ffff:a00:2 1 2", "10.0.0.1:1", "10.0.0.2:2");
        let long = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let end = format!("[{long}]:65535");
        tells(&format!("PROXY TCP6 {long} {long} 65535 65535"), &end, &end);
    }

    #[test]
    fn unknown_connection_keeps_its_own_addresses() {
        assert_eq!(header("PROXY UNKNOWN"), None);
        assert_eq!(header("PROXY UNKNOWN "), None);
        let long = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let longest = format!("PROXY UNKNOWN {long} {long} 65535 65535");
        assert_eq!(longest.len() + 2, MAX_LINE);
        assert_eq!(header(&longest), None);
    }

    #[test]
    fn deviations_from_the_grammar_are_rejected() {
        use Malformed::*;
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(92));
        assert_eq!(long.len(), MAX_LINE + 1);
        for (line, error) in [
            ("PROXY TCP5 ", Protocol),
            ("PROXY  TCP4 ", Protocol),
            ("PROXY tcp4 ", Protocol),
            ("PROXY TCP4\r\n", Protocol),
            ("PROXY \r\n", Protocol),
            ("PROXY UNKNOWNS\r\n", Protocol),
            ("PROXY UNK\r\n", Protocol),
            ("PROXY UNKNOWN\n", LineEnd),
            ("PROXY UNKNOWN\r\r\n", LineEnd),
            ("PROXY UNKNOWN a\nb\r\n", LineEnd),
            ("PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n", LineEnd),
            ("PROXY TCP4 1.1.1.1 2.2.2.2 1 2\rx", LineEnd),
            (&long, LineTooLong),
            ("PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n", Fields),
            ("PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\n", Fields),
            ("PROXY TCP4 1.1.1.1 2.2.2.2 1 2 \r\n", Fields),
            ("PROXY TCP4  1.1.1.1 2.2.2.2 1 2\r\n", Fields),
            ("PROXY TCP4 1.1.1.1 2.2.2.2  2\r\n", Port),
            ("PROXY TCP4 1.1.1.1 ::1 1 2\r\n", Address),
            ("PROXY TCP6 1.1.1.1 2.2.2.2 1 2\r\n", Address),
            ("PROXY TCP4 01.1.1.1 2.2.2.2 1 2\r\n", Address),
            ("PROXY TCP4 1.1.1 2.2.2.2 1 2\r\n", Address),
            ("PROXY TCP4 1.1.1.256 2.2.2.2 1 2\r\n", Address),
            ("PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", Address),
            ("PROXY TCP6 [::1] ::1 1 2\r\n", Address),
            ("PROXY TCP4 1.1.1.1 2.2.2.2 +1 2\r\n", Port),
            ("PROXY TCP4 1.1.1.1 2.2.2.2 01 2\r\n", Port),
            ("PROXY TCP4 1.1.1.1 2.2.2.2 1 65536\r\n", Port),
            ("PROXY TCP4 1.1.1.1 2.2.2.2 1 -2\r\n", Port),
            ("PROXY TCP4 1.1.1.1 2.2.2.2 1 0x2\r\n", Port),
        ] {
            assert_eq!(parse_by_byte(line.as_bytes()), Parsed::Invalid(error), "{line:?}");
        }
        let bytes = b"PROXY TCP4 1.1.1.1 2.2.2.2\xff 1 2\r\n";
        assert_eq!(parse_by_byte(bytes), Parsed::Invalid(Fields));
    }
}
