//! Message heads: finds the end of a head, parses it, and determines the framing of the body.
//!
//! The end is found first, line by line, and each byte is searched once, however slowly the bytes arrive; only then
//! is the head parsed. Field values are slices of the read buffer, without a copy.

use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode, Uri, Version, uri::PathAndQuery};

use super::{Limits, Violation, decoder::Decoder, fields, violation};

/// Why a head is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// Recipients may interpret it differently.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The bytes are TLS.
    #[error("it is TLS")]
    Tls,
    /// The bytes are not HTTP/1.
    #[error("it is not a valid HTTP/1.1 head")]
    Malformed,
    /// It exceeds the limit on its length.
    #[error("the head is too long")]
    TooLong,
    /// It has more fields than the limit.
    #[error("the head has too many fields")]
    TooManyFields,
    /// Its target exceeds the longest supported one.
    #[error("the target is too long")]
    TargetTooLong,
}

/// The number of fields that are parsed on the stack.
const ON_STACK: usize = 200;

/// The number of fields that the proxy and filters add to a request, reserved in advance.
const ADDED: usize = 6;

/// The same for a response.
pub const ADDED_BACK: usize = 2;

/// The longest target that [`Uri`] supports.
const MAX_TARGET: usize = u16::MAX as usize - 1;

/// Searches for the end of a head.
#[derive(Debug, Default)]
pub struct HeadScanner {
    /// The start of the current line; everything before it was searched.
    line: usize,
    /// The end of the searched part of that line.
    seen: usize,
}

impl HeadScanner {
    /// Returns the length of the head at the beginning of `inbox` once it is complete. Empty lines before it are
    /// skipped (RFC 9112 section 2.2).
    ///
    /// # Errors
    /// The head is too long, or a line does not end with CR LF.
    pub fn find(&mut self, inbox: &mut BytesMut, limit: usize) -> Result<Option<usize>, HeadError> {
        while let Some(found) = memchr::memchr(b'\n', &inbox[self.seen..]) {
            let end = self.seen + found;
            if end == self.line || inbox[end - 1] != b'\r' {
                return Err(Violation::BareLineEnd.into());
            }
            let empty = end - self.line == 1;
            match empty {
                true if self.line == 0 => {
                    inbox.advance(2);
                    *self = HeadScanner::default();
                    continue;
                }
                true if end < limit => return Ok(Some(end + 1)),
                true => return Err(HeadError::TooLong),
                false => (self.line, self.seen) = (end + 1, end + 1),
            }
        }
        self.seen = inbox.len();
        if inbox.len() >= limit { Err(HeadError::TooLong) } else { Ok(None) }
    }
}

/// Returns whether the connection may carry another message after this one.
fn persists(version: Version, close: bool, keep_alive: bool) -> bool {
    !close && (version == Version::HTTP_11 || keep_alive)
}

/// A request's head.
#[derive(Debug)]
pub struct Request {
    /// The method, target, version and fields.
    pub parts: http::request::Parts,
    /// The decoder for its body.
    pub body: Decoder,
    /// Whether the client keeps the connection open for another request.
    pub persists: bool,
    /// Whether the client waits for a 100 (Continue) before it sends the body (RFC 9110 section 10.1.1).
    pub expects_continue: bool,
}

/// Parses the first `length` bytes of `inbox`, a request's head, and removes them.
///
/// # Errors
/// The head is invalid or ambiguous.
pub fn request(inbox: &mut BytesMut, length: usize, limits: &Limits) -> Result<Request, HeadError> {
    let head = take(inbox, length);
    let mut on_stack = [const { MaybeUninit::uninit() }; ON_STACK];
    let mut on_heap = Vec::new();
    let space = space(&mut on_stack, &mut on_heap, limits);
    let mut request = httparse::Request::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_request_with_uninit_headers(&mut request, &head, space);
    check(parsed, &head)?;
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(HeadError::Malformed);
    };
    if target.len() > MAX_TARGET {
        return Err(HeadError::TargetTooLong);
    }
    let (mut parts, ()) = http::Request::new(()).into_parts();
    parts.method = Method::from_bytes(method.as_bytes()).map_err(|_| HeadError::Malformed)?;
    parts.uri = Uri::from_maybe_shared(head.slice_ref(target.as_bytes())).map_err(|_| HeadError::Malformed)?;
    if parts.method == Method::OPTIONS && is_whole_server(&parts.uri, target) {
        // The request is for the server as a whole, not for `/` (RFC 9112 section 3.2.4).
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        uri.path_and_query = Some(PathAndQuery::from_static("*"));
        parts.uri = Uri::from_parts(uri).map_err(|_| HeadError::Malformed)?;
    }
    parts.version = if minor == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    let (headers, framing) = fields::read(&head, request.headers, ADDED)?;
    let body = match (framing.codings, framing.length) {
        (0, length) => Decoder::length(length.unwrap_or(0)),
        (1, None) if framing.chunked && minor == 1 => Decoder::chunked(),
        (1, Some(_)) if framing.chunked => return Err(Violation::BothLengths.into()),
        _ => return Err(Violation::TransferEncoding.into()),
    };
    let expects_continue = minor == 1 && framing.expects_continue;
    parts.headers = headers;
    let persists = persists(parts.version, framing.close, framing.keep_alive);
    Ok(Request { parts, body, persists, expects_continue })
}

/// A response's head.
#[derive(Debug)]
pub struct Response {
    /// The status, version and fields.
    pub parts: http::response::Parts,
    /// The decoder for its body. `None` if it has a transfer coding other than `chunked`.
    pub body: Option<Decoder>,
    /// Whether the upstream accepts another request on this connection.
    pub persists: bool,
}

/// Returns whether the received bytes can be the beginning of a response, so that other protocols are detected early.
pub fn may_be_response(inbox: &[u8]) -> bool {
    const BEGINNING: &[u8] = b"HTTP/1.";
    let len = inbox.len().min(BEGINNING.len());
    inbox[..len] == BEGINNING[..len]
}

/// Parses the first `length` bytes of `inbox`, a response's head, and removes them. `head_only`: the request's method
/// was `HEAD`.
///
/// # Errors
/// The head is invalid or has several lengths. It then stays in the inbox, so that it can be logged.
pub fn response(inbox: &mut BytesMut, length: usize, limits: &Limits, head_only: bool) -> Result<Response, HeadError> {
    let head = take(inbox, length);
    let parsed = parse_response(&head, limits, head_only);
    if parsed.is_err() {
        *inbox = BytesMut::from(&head[..]);
    }
    parsed
}

fn parse_response(head: &Bytes, limits: &Limits, head_only: bool) -> Result<Response, HeadError> {
    let mut on_stack = [const { MaybeUninit::uninit() }; ON_STACK];
    let mut on_heap = Vec::new();
    let space = space(&mut on_stack, &mut on_heap, limits);
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, head, space);
    check(parsed, head)?;
    let (Some(code), Some(minor)) = (response.code, response.version) else { return Err(HeadError::Malformed) };
    let (mut parts, ()) = http::Response::new(()).into_parts();
    parts.status = StatusCode::from_u16(code).map_err(|_| HeadError::Malformed)?;
    parts.version = if minor == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    let (headers, framing) = fields::read(head, response.headers, ADDED_BACK)?;
    if framing.codings > 0 && minor == 0 {
        return Err(Violation::TransferEncoding.into());
    }
    // Section 6.3 allows ignoring one of them. If two recipients ignored different ones, responses could be split.
    if framing.codings > 0 && framing.length.is_some() {
        return Err(Violation::BothLengths.into());
    }
    // RFC 9112 section 6.3.
    let body = match (framing.codings, framing.length) {
        _ if head_only || matches!(code, 100..=199 | 204 | 304) => Some(Decoder::length(0)),
        (0, Some(length)) => Some(Decoder::length(length)),
        (0, None) => Some(Decoder::until_close()),
        (1, _) if framing.chunked => Some(Decoder::chunked()),
        _ => None,
    };
    parts.headers = headers;
    let persists = persists(parts.version, framing.close, framing.keep_alive);
    Ok(Response { parts, body, persists })
}

/// Parses a trailer section, including its empty line.
///
/// # Errors
/// It has lines that are not valid fields.
pub fn trailers(section: Bytes) -> Result<HeaderMap, HeadError> {
    let mut found = vec![httparse::EMPTY_HEADER; section.iter().filter(|b| **b == b'\n').count()];
    let parsed = httparse::parse_headers(&section, &mut found).map(|status| match status {
        httparse::Status::Complete((end, _)) => httparse::Status::Complete(end),
        httparse::Status::Partial => httparse::Status::Partial,
    });
    check(parsed, &section)?;
    let count = found.iter().take_while(|field| !field.name.is_empty()).count();
    fields::trailers(&section, &found[..count])
}

/// Returns whether a target consists of only a scheme and a host.
fn is_whole_server(uri: &Uri, target: &str) -> bool {
    let parts = uri.scheme_str().zip(uri.authority());
    parts.is_some_and(|(scheme, host)| target.len() == scheme.len() + "://".len() + host.as_str().len())
}

type Field<'b> = MaybeUninit<httparse::Header<'b>>;

fn space<'s, 'b>(stack: &'s mut [Field<'b>], heap: &'s mut Vec<Field<'b>>, limits: &Limits) -> &'s mut [Field<'b>] {
    if limits.fields <= stack.len() {
        return &mut stack[..limits.fields];
    }
    heap.resize_with(limits.fields, MaybeUninit::uninit);
    heap
}

fn take(inbox: &mut BytesMut, length: usize) -> Bytes {
    // Usually the head is all that was received: its memory is then given away without a copy.
    if length == inbox.len() { std::mem::take(inbox).freeze() } else { inbox.split_to(length).freeze() }
}

/// Converts the parser's result.
fn check(parsed: httparse::Result<usize>, head: &[u8]) -> Result<(), HeadError> {
    match parsed {
        Ok(httparse::Status::Complete(length)) if length == head.len() => Ok(()),
        Err(httparse::Error::TooManyHeaders) => Err(HeadError::TooManyFields),
        _ => Err(diagnose(head).map_or(HeadError::Malformed, HeadError::Violation)),
    }
}

/// Returns the violation for which the parser rejected a head, if it is one of those with a name.
fn diagnose(head: &[u8]) -> Option<Violation> {
    let mut lines = head.split_inclusive(|b| *b == b'\n');
    let first = lines.next()?;
    violation::of_line(first).or_else(|| lines.filter(|line| *line != b"\r\n").find_map(violation::of_field))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { head: 1000, fields: 8 };

    /// Parses the first head from pieces of this size. Returns it and the number of bytes left.
    fn read<T>(
        input: &[u8],
        step: usize,
        parse: impl FnOnce(&mut BytesMut, usize) -> Result<T, HeadError>,
    ) -> Result<Option<(T, usize)>, HeadError> {
        let (mut scanner, mut inbox) = (HeadScanner::default(), BytesMut::new());
        let mut pieces = input.chunks(step);
        loop {
            if let Some(length) = scanner.find(&mut inbox, LIMITS.head)? {
                let head = parse(&mut inbox, length)?;
                return Ok(Some((head, inbox.len() + pieces.map(<[u8]>::len).sum::<usize>())));
            }
            match pieces.next() {
                Some(piece) => inbox.extend_from_slice(piece),
                None => return Ok(None),
            }
        }
    }

    fn read_request(input: &str, step: usize) -> Result<Option<(Request, usize)>, HeadError> {
        read(input.as_bytes(), step, |inbox, length| request(inbox, length, &LIMITS))
    }

    fn read_response(input: &str, head_only: bool) -> Result<Response, HeadError> {
        let read = read(input.as_bytes(), 7, |inbox, length| response(inbox, length, &LIMITS, head_only));
        Ok(read?.expect("a whole head").0)
    }

    #[test]
    fn a_requests_head_is_parsed() {
        let input =
            "\r\n\r\nPOST /a?b HTTP/1.1\r\nHost: x\r\nX-Empty:\r\nA: 1\r\na:  2 \r\nContent-Length: 3\r\n\r\nabcGET";
        for step in [1, 2, 3, 7, 64, 4096] {
            let (head, left) = read_request(input, step).unwrap().unwrap();
            let Request { parts, body, persists, expects_continue } = head;
            assert_eq!((parts.method, parts.version), (Method::POST, Version::HTTP_11));
            assert_eq!(parts.uri, "/a?b");
            assert_eq!(
                (&parts.headers["host"], &parts.headers["x-empty"]),
                (&"x".parse().unwrap(), &"".parse().unwrap())
            );
            assert_eq!(parts.headers.get_all("a").iter().collect::<Vec<_>>(), ["1", "2"]);
            assert_eq!((body, persists, expects_continue, left), (Decoder::length(3), true, false, 6), "{step}");
        }
    }

    #[test]
    fn persistence_follows_the_version_and_connection_field() {
        // A `Connection` field is kept if it has other options.
        for (version, field, persists, kept) in [
            ("1.1", "a: b", true, false),
            ("1.1", "Connection: Close", false, false),
            ("1.1", "Connection: upgrade, close", false, true),
            ("1.0", "a: b", false, false),
            ("1.0", "Connection: Keep-Alive", true, false),
            ("1.0", "Connection: keep-alive, close", false, false),
            ("1.0", "Connection: keep-alive, te", true, true),
        ] {
            let head = read_request(&format!("GET / HTTP/{version}\r\n{field}\r\n\r\n"), 50).unwrap().unwrap().0;
            let is_kept = head.parts.headers.contains_key("connection");
            assert_eq!((head.persists, is_kept), (persists, kept), "{version} {field}");
        }
    }

    #[test]
    fn options_may_target_the_whole_server() {
        for (line, path) in [
            ("OPTIONS *", "*"),
            ("OPTIONS http://a.test:80", "*"),
            ("OPTIONS http://a.test/", "/"),
            ("OPTIONS http://a.test?q", "/?q"),
            ("GET http://a.test", "/"),
        ] {
            let head = read_request(&format!("{line} HTTP/1.1\r\nHost: a.test\r\n\r\n"), 50).unwrap().unwrap().0;
            assert_eq!(head.parts.uri.path_and_query().unwrap().to_string(), path, "{line}");
        }
    }

    #[test]
    fn expect_continue_is_honoured_only_in_http_11() {
        for (version, expected) in [("1.1", true), ("1.0", false)] {
            let input = format!("POST / HTTP/{version}\r\nContent-Length: 1\r\nExpect: 100-Continue\r\n\r\n");
            assert_eq!(read_request(&input, 50).unwrap().unwrap().0.expects_continue, expected);
        }
    }

    #[test]
    fn request_smuggling_is_rejected_in_pieces_of_any_size() {
        let head = "POST / HTTP/1.1\r\nHost: a\r\n";
        let cases: &[(&str, Option<Violation>)] = &[
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", None),
            ("{}Content-Length: 3\r\n\r\na\nb", None),
            ("{}Transfer-Encoding: chunked\r\n\r\n", None),
            ("{}Transfer-Encoding: Chunked\r\n\r\n", None),
            ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Some(Violation::BareLineEnd)),
            ("GET / HTTP/1.1\nHost: a\r\n\r\n", Some(Violation::BareLineEnd)),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", Some(Violation::BareLineEnd)),
            ("GET / HTTP/1.1\r\nHost: a\r\n\n", Some(Violation::BareLineEnd)),
            ("GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n", Some(Violation::BareLineEnd)),
            ("GET / HTTP/1.1\r\nHost: a\0\r\n\r\n", Some(Violation::Nul)),
            ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", Some(Violation::Fold)),
            ("GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", Some(Violation::Fold)),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", Some(Violation::HeaderName)),
            ("GET / HTTP/1.1\r\n: a\r\n\r\n", Some(Violation::HeaderName)),
            ("GET / HTTP/1.1\r\nnonsense\r\n\r\n", Some(Violation::HeaderName)),
            ("{}Content-Length: 1\r\nContent-Length: 2\r\n\r\n", Some(Violation::ContentLength)),
            ("{}Content-Length: 1\r\nContent-Length: 1\r\n\r\n", Some(Violation::ContentLength)),
            ("{}Content-Length: 1, 1\r\n\r\n", Some(Violation::ContentLength)),
            ("{}Content-Length: +1\r\n\r\n", Some(Violation::ContentLength)),
            ("{}Content-Length: -1\r\n\r\n", Some(Violation::ContentLength)),
            ("{}Content-Length: 0x1\r\n\r\n", Some(Violation::ContentLength)),
            ("{}Content-Length:\r\n\r\n", Some(Violation::ContentLength)),
            ("{}Content-Length: 99999999999999999999\r\n\r\n", Some(Violation::ContentLength)),
            ("{}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", Some(Violation::BothLengths)),
            ("{}Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", Some(Violation::BothLengths)),
            ("{}Transfer-Encoding: gzip, chunked\r\n\r\n", Some(Violation::TransferEncoding)),
            ("{}Transfer-Encoding: xchunked\r\n\r\n", Some(Violation::TransferEncoding)),
            ("{}Transfer-Encoding: gzip\r\nContent-Length: 1\r\n\r\n", Some(Violation::TransferEncoding)),
            ("{}Transfer-Encoding:\r\n\r\n", Some(Violation::TransferEncoding)),
            ("{}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", Some(Violation::TransferEncoding)),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Some(Violation::TransferEncoding)),
        ];
        for (input, expected) in cases {
            let input = input.replace("{}", head);
            for step in [1, 2, 3, 7, 64, 4096] {
                let result = read_request(&input, step);
                match expected {
                    None => assert!(matches!(result, Ok(Some(_))), "{input:?} in steps of {step}: {result:?}"),
                    Some(expected) => {
                        assert_eq!(result.err(), Some(HeadError::Violation(*expected)), "{input:?} in steps of {step}");
                    }
                }
            }
        }
    }

    #[test]
    fn heads_are_limited() {
        let of = |len: usize| format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(len - 23));
        assert_eq!(of(1000).len(), 1000);
        for step in [1, 10, 10_000] {
            assert!(read_request(&of(1000), step).unwrap().is_some());
            assert_eq!(read_request(&of(1001), step).err(), Some(HeadError::TooLong));
            assert_eq!(read_request(&"a".repeat(2000), step).err(), Some(HeadError::TooLong));
        }
        let fields = |count: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(count));
        assert!(read_request(&fields(8), 50).unwrap().is_some());
        assert_eq!(read_request(&fields(9), 50).err(), Some(HeadError::TooManyFields));
        let many = Limits { head: 10_000, fields: 300 };
        let parse = |count| {
            let mut inbox = BytesMut::from(&*fields(count));
            let length = inbox.len();
            request(&mut inbox, length, &many).map(|request| request.parts.headers.len())
        };
        assert_eq!((parse(300), parse(301)), (Ok(300), Err(HeadError::TooManyFields)));
        let of_target = |len: usize| {
            let mut inbox = BytesMut::from(&*format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(len - 1)));
            let length = inbox.len();
            request(&mut inbox, length, &many).map(|_| ())
        };
        let (allowed, rejected) = (Ok(()), Err(HeadError::TargetTooLong));
        assert_eq!([0, 1, 2].map(|more| of_target(MAX_TARGET + more)), [allowed, rejected, rejected]);
    }

    #[test]
    fn other_protocols_are_rejected() {
        for input in [
            "hello\r\n\r\n",
            "GET / HTTP/2.0\r\n\r\n",
            "GET /\r\n\r\n",
            "G@T / HTTP/1.1\r\n\r\n",
            "\x16\x03\x01\r\n\r\n",
        ] {
            assert!(read_request(input, 50).is_err(), "{input:?}");
        }
    }

    #[test]
    fn a_responses_framing_follows_its_request_and_status() {
        for (input, head_only, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", false, Some(Decoder::length(5))),
            ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", false, Some(Decoder::length(5))),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true, Some(Decoder::length(0))),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", false, Some(Decoder::length(0))),
            ("HTTP/1.1 204 No Content\r\n\r\n", false, Some(Decoder::length(0))),
            ("HTTP/1.1 200\r\n\r\n", false, Some(Decoder::until_close())),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false, Some(Decoder::chunked())),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", false, None),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", false, None),
        ] {
            assert_eq!(read_response(input, head_only).unwrap().body, expected, "{input:?}");
        }
        assert!(may_be_response(b"") && may_be_response(b"HTT") && may_be_response(b"HTTP/1.1 200"));
        assert!(!may_be_response(b"HTTP/2") && !may_be_response(b"hello") && !may_be_response(b"\x15\x03"));
        for wrong in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
            "ICY 200 OK\r\n\r\n",
        ] {
            assert!(read_response(wrong, false).is_err(), "{wrong:?}");
        }
    }
}
