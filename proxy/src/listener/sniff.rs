//! Detects a connection's protocol by its first bytes.

/// The number of bytes that always suffice.
pub const MAX_SNIFFED: usize = 256;

/// The HTTP/2 connection preface (RFC 9113 section 3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The record type `handshake` (RFC 8446 section 5.1).
const TLS_HANDSHAKE: u8 = 22;

/// The detected protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sniffed {
    /// Fewer than [`MAX_SNIFFED`] bytes, and not decided.
    NeedMore,
    /// TLS: a handshake record with major version 3.
    Tls,
    /// HTTP/2: the whole preface.
    Http2,
    /// HTTP/1: a line that begins with a method and contains `HTTP/` after whitespace.
    Http1,
    /// Another protocol.
    Other,
}

/// Detects the protocol. Further bytes do not change the result, unless it is [`Sniffed::NeedMore`].
///
/// HTTP/1 is recognized by its first line (RFC 9112 section 3): a method (a token, RFC 9110 section 5.6.2),
/// whitespace, and `HTTP/` after more whitespace before the line ends. The method alone does not suffice: `GET key`
/// is Redis or memcached, `OPTIONS * RTSP/1.0` is RTSP and `INVITE sip:a SIP/2.0` is SIP. If [`MAX_SNIFFED`] bytes
/// are the beginning of such a line, they count as HTTP/1.
///
/// Everything that a server might read as a request counts as HTTP/1: with empty lines before it, methods of any
/// length, any kind and amount of whitespace, `http/`. The parser rejects what is not well-formed; as another
/// protocol, it would bypass the filters.
pub fn sniff(input: &[u8]) -> Sniffed {
    match input {
        [TLS_HANDSHAKE] => Sniffed::NeedMore,
        // The minor version must be ignored.
        [TLS_HANDSHAKE, 3, ..] => Sniffed::Tls,
        _ if input.starts_with(PREFACE) => Sniffed::Http2,
        _ if PREFACE.starts_with(input) => Sniffed::NeedMore,
        _ => request_line(&input[..input.len().min(MAX_SNIFFED)]),
    }
}

fn request_line(input: &[u8]) -> Sniffed {
    let unfinished = if input.len() == MAX_SNIFFED { Sniffed::Http1 } else { Sniffed::NeedMore };
    let empty = input.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
    let line = &input[empty..];
    let method = line.iter().take_while(|b| is_token(**b)).count();
    let rest = match &line[method..] {
        [] => return unfinished,
        _ if method == 0 => return Sniffed::Other,
        rest => rest,
    };
    // Lenient servers treat a bare CR as whitespace (RFC 9112 section 3), except before the end of the line.
    let is_blank = |b: &u8| matches!(b, b' ' | b'\t' | 0x0b | 0x0c | b'\r');
    let is_text = |b: &u8| is_blank(b) || !b.is_ascii_control();
    let text = rest.iter().take_while(|b| is_text(b)).count();
    if !is_blank(&rest[0]) {
        return Sniffed::Other;
    }
    let words = rest[..text].split(is_blank);
    if words.skip(1).any(|word| word.get(..5).is_some_and(|start| start.eq_ignore_ascii_case(b"HTTP/"))) {
        return Sniffed::Http1;
    }
    if text < rest.len() { Sniffed::Other } else { unfinished }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks an input and that each of its prefixes gives the same result or needs more bytes. Returns how many
    /// bytes decide it.
    fn decided(input: &[u8], expected: Sniffed) -> usize {
        assert_eq!(sniff(input), expected, "{}", input.escape_ascii());
        let needs = (0..=input.len()).find(|end| sniff(&input[..*end]) != Sniffed::NeedMore);
        let needs = needs.unwrap_or(input.len());
        for end in needs..=input.len() {
            assert_eq!(sniff(&input[..end]), expected, "{end} bytes of {}", input.escape_ascii());
        }
        needs
    }

    #[test]
    fn tls_is_detected_by_two_bytes() {
        assert_eq!(decided(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", Sniffed::Tls), 2);
        assert_eq!(decided(b"\x16\x02", Sniffed::Other), 2);
        // An alert, and SSL 2.
        assert_eq!(decided(b"\x15\x03\x01\0\x02", Sniffed::Other), 1);
        assert_eq!(decided(b"\x80\x2e\x01\x03\x01", Sniffed::Other), 1);
    }

    #[test]
    fn http_2_is_detected_by_its_preface() {
        assert_eq!(decided(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", Sniffed::Http2), PREFACE.len());
        // The HTTP/1 parser has the right response to these.
        assert_eq!(decided(b"PRI * HTTP/1.1\r\n", Sniffed::Http1), 12);
        assert_eq!(decided(b"PRI * HTTP/2.0\r\n\r\nXX", Sniffed::Http1), 19);
    }

    #[test]
    fn http_1_is_detected_by_its_request_line() {
        for (line, needs) in [
            (&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], 11),
            (b"OPTIONS * HTTP/1.1\r\n", 15),
            (b"CONNECT a.example:443 HTTP/1.1\r\n", 27),
            (b"GET http://a.example/ HTTP/1.0\r\n", 27),
            (b"UPDATEREDIRECTREF /a HTTP/1.1\r\n", 26),
            (b"\r\nGET / HTTP/1.1\r\n", 13),
            (b"\n\r\n\nGET / HTTP/1.1\r\n", 15),
            (b"AMETHODOFMORETHANTHIRTYTWOCHARACTERS / HTTP/1.1\r\n", 44),
            (b"GET  / HTTP/1.1\r\n", 12),
            (b"GET\t/\x0bHTTP/1.1\r\n", 11),
            (b"GET\r/\rHTTP/1.1\r\n", 11),
            (b"GET / x HTTP/1.1\r\n", 13),
            (b"GET / http/1.1\r\n", 11),
            (b"GET HTTP/1.1\r\n", 9),
            (b"get /\xc3\xa4 HTTP/9.9\r\n", 13),
            (b"PROXY / HTTP/1.1\r\n", 13),
        ] {
            assert_eq!(decided(line, Sniffed::Http1), needs, "{}", line.escape_ascii());
        }
        let (target, method) = (format!("GET /{} HTTP/1.1\r\n", "a".repeat(8000)), "A".repeat(300));
        for long in [target.as_bytes(), method.as_bytes(), &[b'\n'; 300]] {
            assert_eq!(decided(long, Sniffed::Http1), MAX_SNIFFED);
        }
    }

    #[test]
    fn other_protocols_are_detected_at_the_first_differing_byte_or_line_end() {
        for (input, needs) in [
            (&b" GET / HTTP/1.1\r\n"[..], 1),
            (b"*1\r\n$4\r\nPING\r\n", 4),
            (b"PING\r\n", 6),
            (b"GET key\r\n", 9),
            (b"GET /\0HTTP/1.1\r\n", 6),
            (b"GET /HTTP/1.1\r\n", 15),
            (b"GET /\r\n", 7),
            (b"SSH-2.0-OpenSSH_9.9\r\n", 21),
            (b"OPTIONS * RTSP/1.0\r\n", 20),
            (b"INVITE sip:a@b SIP/2.0\r\n", 24),
            (b"USER guest 0 * :a\r\n", 19),
            (b"{\"jsonrpc\": \"2.0\"}", 1),
            // A PostgreSQL startup message, MQTT, a Kafka request, DNS over TCP.
            (b"\0\0\0\x08\x04\xd2\x16\x2f", 1),
            (b"\x10\x0c\0\x04MQTT", 1),
            (b"\0\0\0\x14\0\x12", 1),
            (b"\0\x1d\x12\x34", 1),
        ] {
            assert_eq!(decided(input, Sniffed::Other), needs, "{}", input.escape_ascii());
        }
    }

    #[test]
    fn ambiguous_prefixes_need_more_bytes() {
        for input in [
            &b""[..],
            b"\x16",
            b"\r\n",
            b"G",
            b"GET",
            b"GET ",
            b"GET /",
            b"GET / ",
            b"GET / HTTP",
            b"PRI * HTTP/2.0\r\n\r\nSM",
        ] {
            assert_eq!(decided(input, Sniffed::NeedMore), input.len());
        }
    }
}
