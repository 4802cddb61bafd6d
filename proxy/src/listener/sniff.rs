//! What a connection speaks, by its first bytes.

/// After so many bytes the answer is there, whatever they are.
pub const MAX_SNIFFED: usize = 256;

/// RFC 9113 section 3.4.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Of the type `handshake` (RFC 8446 section 5.1).
const TLS_HANDSHAKE: u8 = 22;

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sniffed {
    /// There are fewer than [`MAX_SNIFFED`] bytes, and they do not say.
    NeedMore,
    /// TLS: a record of a handshake, of a version that begins with 3.
    Tls,
    /// HTTP/2: its whole preface.
    Http2,
    /// HTTP/1: a line that begins with a method and has `HTTP/` after a blank.
    Http1,
    /// Something else.
    Other,
}

/// Says it of the first bytes. Further bytes change nothing, unless it is [`Sniffed::NeedMore`].
///
/// HTTP/1 is known by its first line (RFC 9112 section 3): a method (a token, RFC 9110 section 5.6.2), a blank, and `HTTP/`
/// after another blank before the line ends. The method alone would not do: `GET key` is Redis or memcached, and
/// `OPTIONS * RTSP/1.0` and `INVITE sip:a SIP/2.0` are what they say. If [`MAX_SNIFFED`] bytes are the beginning of such a line,
/// they are taken for one.
///
/// Whatever a server might read as a request is one here: empty lines before it, methods of any length, blanks of any kind and
/// number, `http/`. What is not well-formed gets its answer from the parser; taken for something else, it would pass by the
/// filters.
pub fn sniff(input: &[u8]) -> Sniffed {
    match input {
        [TLS_HANDSHAKE] => Sniffed::NeedMore,
        // The rest of the version is to be ignored.
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
    // A bare CR is a blank to lenient servers (RFC 9112 section 3), but for the one before the line's end.
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

    /// Each beginning must say the same or need more; returns how many bytes say it.
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
    fn tls_is_known_by_two_bytes() {
        assert_eq!(decided(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", Sniffed::Tls), 2);
        assert_eq!(decided(b"\x16\x02", Sniffed::Other), 2);
        // An alert, and SSL 2.
        assert_eq!(decided(b"\x15\x03\x01\0\x02", Sniffed::Other), 1);
        assert_eq!(decided(b"\x80\x2e\x01\x03\x01", Sniffed::Other), 1);
    }

    #[test]
    fn http_2_is_known_by_its_preface() {
        assert_eq!(decided(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", Sniffed::Http2), PREFACE.len());
        // Its parser has the right answer to these.
        assert_eq!(decided(b"PRI * HTTP/1.1\r\n", Sniffed::Http1), 12);
        assert_eq!(decided(b"PRI * HTTP/2.0\r\n\r\nXX", Sniffed::Http1), 19);
    }

    #[test]
    fn http_1_is_known_by_its_request_line() {
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
    fn everything_else_is_known_at_its_first_odd_byte_or_the_end_of_its_first_line() {
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
            // A startup message of PostgreSQL, MQTT, a query of Kafka, DNS over TCP.
            (b"\0\0\0\x08\x04\xd2\x16\x2f", 1),
            (b"\x10\x0c\0\x04MQTT", 1),
            (b"\0\0\0\x14\0\x12", 1),
            (b"\0\x1d\x12\x34", 1),
        ] {
            assert_eq!(decided(input, Sniffed::Other), needs, "{}", input.escape_ascii());
        }
    }

    #[test]
    fn what_has_not_been_said_is_waited_for() {
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
