//! Encodes message heads and bodies (RFC 9112).

use std::{
    cell::RefCell,
    io::Write,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, DATE, HOST, TE, TRAILER, TRANSFER_ENCODING},
    request, response,
};
use http_body::SizeHint;

use super::{WriteBuf, violation::length};

/// The framing of a body to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encoder {
    /// This many bytes are still to come.
    Length(u64),
    /// Chunked, with this policy for trailers.
    Chunked(TrailerPolicy),
    /// Unframed; the body ends with the connection.
    UntilClose,
}

/// Which trailers are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrailerPolicy {
    /// All that are allowed as trailers: the recipient accepts them.
    All,
    /// Those listed in `Trailer`.
    Listed(Vec<HeaderValue>),
}

/// A body is longer or shorter than its `Content-Length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the body's length differs from its Content-Length")]
pub struct LengthMismatch;

impl Encoder {
    /// Encodes a part of the body.
    ///
    /// # Errors
    /// The part exceeds the length.
    pub fn data(&mut self, data: Bytes, out: &mut WriteBuf) -> Result<(), LengthMismatch> {
        if data.is_empty() {
            // A chunk without data would end the body.
            return Ok(());
        }
        match self {
            Encoder::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(LengthMismatch)?;
                out.push(data);
            }
            Encoder::UntilClose => out.push(data),
            Encoder::Chunked(_) => {
                let mut size = [0; 18];
                out.tail().extend_from_slice(hex_line(data.len(), &mut size));
                out.push(data);
                out.tail().extend_from_slice(b"\r\n");
            }
        }
        Ok(())
    }

    /// Encodes the end of the body.
    ///
    /// # Errors
    /// The body is shorter than its length.
    pub fn end(&mut self, trailers: Option<&HeaderMap>, out: &mut WriteBuf) -> Result<(), LengthMismatch> {
        match self {
            Encoder::Length(0) | Encoder::UntilClose => return Ok(()),
            Encoder::Length(_) => return Err(LengthMismatch),
            Encoder::Chunked(policy) => {
                out.tail().extend_from_slice(b"0\r\n");
                for (name, value) in trailers.into_iter().flatten().filter(|(name, _)| policy.allows(name)) {
                    field(out.tail(), name, value);
                }
                out.tail().extend_from_slice(b"\r\n");
            }
        }
        Ok(())
    }
}

/// Formats `size` as hexadecimal digits and a line end.
fn hex_line(mut size: usize, space: &mut [u8; 18]) -> &[u8] {
    space[16..].copy_from_slice(b"\r\n");
    let mut at = 16;
    loop {
        at -= 1;
        space[at] = b"0123456789abcdef"[size & 15];
        size >>= 4;
        if size == 0 || at == 0 {
            return &space[at..];
        }
    }
}

impl TrailerPolicy {
    fn by(fields: &HeaderMap) -> TrailerPolicy {
        TrailerPolicy::Listed(fields.get_all(TRAILER).iter().cloned().collect())
    }

    /// Returns whether a trailer of this name is sent. Fields that frame or route a message are not allowed as
    /// trailers (RFC 9110 section 6.5.1).
    fn allows(&self, name: &HeaderName) -> bool {
        if matches!(*name, CONTENT_LENGTH | TRANSFER_ENCODING | HOST | TRAILER | TE | CONNECTION) {
            return false;
        }
        match self {
            TrailerPolicy::All => true,
            TrailerPolicy::Listed(lists) => lists.iter().any(|list| {
                let mut names = list.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii);
                names.any(|listed| listed.eq_ignore_ascii_case(name.as_str().as_bytes()))
            }),
        }
    }
}

/// Returns whether a list contains a token, ignoring case.
fn has_token(list: &HeaderValue, word: &[u8]) -> bool {
    list.as_bytes().split(|b| *b == b',').any(|token| token.trim_ascii().eq_ignore_ascii_case(word))
}

/// Returns whether a field is hop-by-hop, apart from those that HTTP/1.1 defines.
fn is_of_hop(name: &HeaderName) -> bool {
    matches!(name.as_str(), "keep-alive" | "proxy-connection")
}

fn field(out: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    out.reserve(name.as_str().len() + value.len() + 4);
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn content_length(out: &mut Vec<u8>, length: u64) {
    out.extend_from_slice(b"content-length: ");
    out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// The size of a head apart from its fields, in bytes.
const LINE: usize = 160;

fn fields_len(fields: &HeaderMap) -> usize {
    LINE + fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>()
}

/// A request's head to be sent.
#[derive(Debug, Clone, Copy)]
pub struct RequestHead<'a> {
    /// The method.
    pub method: &'a Method,
    /// The target, in origin form.
    pub target: &'a [u8],
    /// The host. `None` if it is among the fields.
    pub host: Option<&'a [u8]>,
    /// The fields.
    pub fields: &'a HeaderMap,
    /// Replacements for the fields of these names; `None` removes the field.
    pub replaced: &'a [(HeaderName, Option<HeaderValue>)],
}

impl<'a> RequestHead<'a> {
    /// Returns the head of a request with its fields unchanged.
    pub fn of(parts: &'a request::Parts) -> RequestHead<'a> {
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
        let (method, fields) = (&parts.method, &parts.headers);
        RequestHead { method, target: target.as_bytes(), host: None, fields, replaced: &[] }
    }

    fn is_replaced(&self, name: &HeaderName) -> bool {
        self.replaced.iter().any(|(replaced, _)| replaced == name)
    }

    /// Returns the (first) value that is sent for a field.
    pub fn get(&self, name: &HeaderName) -> Option<&'a HeaderValue> {
        match self.replaced.iter().find(|(replaced, _)| replaced == name) {
            Some((_, value)) => value.as_ref(),
            None => self.fields.get(name),
        }
    }

    /// Returns the size of the header list in HTTP/2 (RFC 9113 section 6.5.2): for each field, including
    /// pseudo-header fields, its bytes plus 32.
    pub fn list_size(&self) -> usize {
        self.size(<[u8]>::len)
    }

    /// Like [`Self::list_size`], with another measure for the length of a text.
    pub fn size(&self, length: impl Fn(&[u8]) -> usize) -> usize {
        const FIELD: usize = 32;
        let field = |name: &HeaderName, value: &HeaderValue| {
            length(name.as_str().as_bytes()) + length(value.as_bytes()) + FIELD
        };
        // The host is a pseudo-header field in HTTP/2.
        let own = self.fields.iter().filter(|(name, _)| **name != HOST && !self.is_replaced(name));
        let replaced = self.replaced.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        let pseudo = ":method:scheme:authority:path".len() + "https".len() + 4 * FIELD;
        let host = self.host.or_else(|| self.fields.get(HOST).map(HeaderValue::as_bytes));
        let values = self.method.as_str().len() + length(self.target) + host.map_or(0, &length);
        own.chain(replaced).map(|(name, value)| field(name, value)).sum::<usize>() + pseudo + values
    }

    /// Returns the fields that are sent, including the host and the framing.
    pub fn to_fields(&self) -> HeaderMap {
        let mut fields = self.fields.clone();
        for (name, value) in self.replaced {
            match value {
                Some(value) => _ = fields.insert(name.clone(), value.clone()),
                None => _ = fields.remove(name),
            }
        }
        if let Some(host) = self.host.and_then(|host| HeaderValue::from_bytes(host).ok()) {
            fields.insert(HOST, host);
        }
        fields
    }
}

/// Encodes a request's head and returns the encoder for its body. The length comes from `Content-Length` or the
/// body's exact size; without either the body is chunked.
pub fn request(head: &RequestHead<'_>, body: &SizeHint, empty: bool, out: &mut WriteBuf) -> Encoder {
    let out = out.tail();
    out.reserve(fields_len(head.fields) + head.target.len() + head.host.map_or(0, <[u8]>::len));
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(head.target);
    out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    // The first field, as recommended by RFC 9110 section 7.2.
    let host = head.host.or_else(|| head.fields.get(HOST).map(HeaderValue::as_bytes));
    out.extend_from_slice(host.unwrap_or_default());
    out.extend_from_slice(b"\r\n");
    let mut declared = None;
    let mut te = false;
    for (name, value) in head.fields {
        match *name {
            HOST | TRANSFER_ENCODING => {}
            CONTENT_LENGTH => declared = declared.or(Some(value)),
            _ if head.is_replaced(name) => {}
            _ => {
                te |= *name == TE;
                field(out, name, value);
            }
        }
    }
    for (name, value) in head.replaced {
        match (name, value) {
            (&CONTENT_LENGTH, value) => declared = value.as_ref(),
            (name, Some(value)) => field(out, name, value),
            (_, None) => {}
        }
    }
    if te {
        // `TE` is for the next hop only and must be listed in `Connection` (RFC 9110 section 10.1.4).
        out.extend_from_slice(b"connection: te\r\n");
    }
    let declared = declared.and_then(|value| length(value.as_bytes()).ok());
    let encoder = match (empty, declared.or(body.exact())) {
        (true, _) => {
            if declared.is_some() || matches!(*head.method, Method::POST | Method::PUT | Method::PATCH) {
                content_length(out, 0);
            }
            Encoder::Length(0)
        }
        (false, Some(length)) => {
            content_length(out, length);
            Encoder::Length(length)
        }
        (false, None) => {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
            Encoder::Chunked(TrailerPolicy::by(head.fields))
        }
    };
    out.extend_from_slice(b"\r\n");
    encoder
}

/// Encodes an interim response (RFC 9110 section 15.2), which has no body.
pub fn interim(head: &http::Response<()>, out: &mut WriteBuf) {
    let out = out.tail();
    out.reserve(fields_len(head.headers()));
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(head.status().as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(head.status().canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    for (name, value) in head.headers() {
        field(out, name, value);
    }
    out.extend_from_slice(b"\r\n");
}

/// The client's capabilities, and how its connection continues.
#[derive(Debug, Clone, Copy)]
pub struct ClientTraits {
    /// The client's HTTP version.
    pub version: Version,
    /// The request's method was `HEAD`.
    pub head_only: bool,
    /// The client accepts trailers, listed in `Trailer` or not.
    pub trailers: bool,
    /// The connection persists after the response.
    pub persists: bool,
    /// The protocol switches after the response.
    pub switches: bool,
}

/// Encodes a response's head. Returns the encoder for its body, and whether the connection persists.
pub fn response(
    parts: &response::Parts,
    body: &SizeHint,
    empty: bool,
    client: ClientTraits,
    out: &mut WriteBuf,
) -> (Encoder, bool) {
    let (status, fields) = (parts.status, &parts.headers);
    let out = out.tail();
    out.reserve(fields_len(fields));
    match (client.version, status) {
        (Version::HTTP_10, _) => out.extend_from_slice(b"HTTP/1.0 "),
        (_, StatusCode::OK) => out.extend_from_slice(b"HTTP/1.1 200 OK\r\n"),
        _ => out.extend_from_slice(b"HTTP/1.1 "),
    }
    if client.version == Version::HTTP_10 || status != StatusCode::OK {
        out.extend_from_slice(status.as_str().as_bytes());
        out.extend_from_slice(b" ");
        out.extend_from_slice(status.canonical_reason().unwrap_or("").as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    let mut closes = !client.persists;
    let (mut declared, mut dated) = (None, false);
    for (name, value) in fields {
        match *name {
            CONTENT_LENGTH => declared = declared.or(Some(value)),
            TRANSFER_ENCODING => {}
            // The proxy writes `Connection` itself, below, but honours a filter's `close`.
            CONNECTION if !client.switches => closes |= has_token(value, b"close"),
            _ if is_of_hop(name) && !client.switches => {}
            _ => {
                dated |= *name == DATE;
                field(out, name, value);
            }
        }
    }
    // RFC 9110 section 8.6: these responses have neither a body nor a length.
    let none = client.switches || status.is_informational() || status == StatusCode::NO_CONTENT;
    let encoder = if none {
        Encoder::Length(0)
    } else if client.head_only || status == StatusCode::NOT_MODIFIED {
        // The length of the response to a `GET`.
        declared.into_iter().for_each(|value| field(out, &CONTENT_LENGTH, value));
        Encoder::Length(0)
    } else if empty {
        content_length(out, 0);
        Encoder::Length(0)
    } else if let Some(length) = declared.and_then(|value| length(value.as_bytes()).ok()).or(body.exact()) {
        content_length(out, length);
        Encoder::Length(length)
    } else if client.version == Version::HTTP_10 {
        closes = true;
        Encoder::UntilClose
    } else {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        Encoder::Chunked(if client.trailers { TrailerPolicy::All } else { TrailerPolicy::by(fields) })
    };
    if closes {
        out.extend_from_slice(b"connection: close\r\n");
    } else if client.version == Version::HTTP_10 {
        out.extend_from_slice(b"connection: keep-alive\r\n");
    }
    if !dated && !status.is_informational() {
        date(out);
    }
    out.extend_from_slice(b"\r\n");
    (encoder, !closes)
}

/// The `date` line of one second.
struct Second {
    at: Duration,
    line: Vec<u8>,
}

fn date(out: &mut Vec<u8>) {
    thread_local! {
        static NOW: RefCell<Second> = const { RefCell::new(Second { at: Duration::MAX, line: Vec::new() }) };
    }
    let now = SystemTime::now();
    let second = Duration::from_secs(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
    NOW.with_borrow_mut(|last| {
        if last.at != second {
            last.at = second;
            last.line.clear();
            // Writing into a `Vec` cannot fail.
            let _ = write!(last.line, "date: {}\r\n", httpdate::HttpDate::from(now));
        }
        out.extend_from_slice(&last.line);
    });
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};

    use super::*;

    const CLIENT: ClientTraits =
        ClientTraits { version: Version::HTTP_11, head_only: false, trailers: false, persists: true, switches: false };

    fn text(out: &mut WriteBuf) -> String {
        String::from_utf8(out.tail().to_vec()).unwrap()
    }

    fn of_response(
        response: Response<()>,
        body: &SizeHint,
        empty: bool,
        client: ClientTraits,
    ) -> (String, Encoder, bool) {
        let mut out = WriteBuf::default();
        let (parts, ()) = response.into_parts();
        let (encoder, persists) = super::response(&parts, body, empty, client, &mut out);
        let text = text(&mut out);
        let without_date = text.split_inclusive("\r\n").filter(|line| !line.starts_with("date: ")).collect();
        (without_date, encoder, persists)
    }

    #[test]
    fn the_list_size_follows_http_2() {
        let request =
            Request::get("/abc").header(HOST, "host").header("x-one", "1").header("x-two", "22").body(()).unwrap();
        let (parts, ()) = request.into_parts();
        let head = RequestHead::of(&parts);
        let pseudo = ":method".len() + "GET".len() + ":scheme".len() + "https".len() + ":path".len() + "/abc".len();
        let host = ":authority".len() + "host".len() + 32;
        let fields = "x-one".len() + 1 + "x-two".len() + 2 + 2 * 32;
        assert_eq!(head.list_size(), pseudo + 3 * 32 + host + fields);
        let replaced = [(HeaderName::from_static("x-two"), Some(HeaderValue::from_static("four")))];
        assert_eq!(RequestHead { replaced: &replaced, ..head }.list_size(), pseudo + 3 * 32 + host + fields + 2);
        // The Huffman code of this byte has 26 bits.
        let replaced = [(HeaderName::from_static("x-two"), HeaderValue::from_bytes(&[0xff; 8]).ok())];
        let head = RequestHead { replaced: &replaced, ..head };
        assert_eq!(
            head.size(|text| text.len().max(crate::h2::hpack::huffman::length(text))),
            head.list_size() + 26 - 8
        );
    }

    #[test]
    fn a_request_declares_its_bodys_length() {
        let exact = SizeHint::with_exact(3);
        let chunked = Encoder::Chunked(TrailerPolicy::Listed(Vec::new()));
        for (method, said, body, empty, lines, encoder) in [
            ("GET", None, &SizeHint::with_exact(0), true, "", Encoder::Length(0)),
            ("POST", None, &SizeHint::with_exact(0), true, "content-length: 0\r\n", Encoder::Length(0)),
            ("GET", Some("0"), &SizeHint::with_exact(0), true, "content-length: 0\r\n", Encoder::Length(0)),
            // There is no body, whatever the field declares.
            ("GET", Some("5"), &SizeHint::with_exact(0), true, "content-length: 0\r\n", Encoder::Length(0)),
            ("POST", None, &exact, false, "content-length: 3\r\n", Encoder::Length(3)),
            ("POST", Some("4"), &SizeHint::default(), false, "content-length: 4\r\n", Encoder::Length(4)),
            ("GET", None, &SizeHint::default(), false, "transfer-encoding: chunked\r\n", chunked.clone()),
        ] {
            let mut request = Request::builder().method(method).uri("/a?b").header("a", "b").header("host", "x");
            if let Some(said) = said {
                request = request.header("content-length", said);
            }
            let (parts, ()) = request.body(()).unwrap().into_parts();
            let mut out = WriteBuf::default();
            assert_eq!(super::request(&RequestHead::of(&parts), body, empty, &mut out), encoder, "{method} {said:?}");
            let expected = format!("{method} /a?b HTTP/1.1\r\nhost: x\r\na: b\r\n{lines}\r\n");
            assert_eq!(text(&mut out), expected);
        }
    }

    #[test]
    fn te_is_listed_in_connection() {
        let request = Request::get("/").header("host", "x").header("te", "trailers").body(()).unwrap();
        let (parts, ()) = request.into_parts();
        let mut out = WriteBuf::default();
        super::request(&RequestHead::of(&parts), &SizeHint::with_exact(0), true, &mut out);
        assert_eq!(text(&mut out), "GET / HTTP/1.1\r\nhost: x\r\nte: trailers\r\nconnection: te\r\n\r\n");
    }

    #[test]
    fn replaced_fields_are_not_sent_and_the_host_comes_first() {
        let fields = [("a", "1"), ("content-length", "9"), ("b", "2"), ("c", "3")];
        let fields: HeaderMap =
            fields.into_iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect();
        let replaced = [
            (HeaderName::from_static("a"), Some(HeaderValue::from_static("x"))),
            (HeaderName::from_static("b"), None),
            (HeaderName::from_static("d"), Some(HeaderValue::from_static("y"))),
            (CONTENT_LENGTH, Some(HeaderValue::from_static("4"))),
        ];
        let head = RequestHead {
            method: &Method::POST,
            target: b"/",
            host: Some(b"host"),
            fields: &fields,
            replaced: &replaced,
        };
        let mut out = WriteBuf::default();
        assert_eq!(super::request(&head, &SizeHint::default(), false, &mut out), Encoder::Length(4));
        assert_eq!(
            text(&mut out),
            "POST / HTTP/1.1\r\nhost: host\r\nc: 3\r\na: x\r\nd: y\r\ncontent-length: 4\r\n\r\n"
        );
        let all = head.to_fields();
        assert_eq!(
            (all.len(), &all["host"], &all["a"], &all["content-length"]),
            (5, &"host".parse().unwrap(), &"x".parse().unwrap(), &"4".parse().unwrap())
        );
        let sent = ["a", "b", "c"].map(|name| head.get(&HeaderName::from_static(name)).map(HeaderValue::as_bytes));
        assert_eq!(sent, [Some(&b"x"[..]), None, Some(b"3")]);
        assert!(!all.contains_key("b"));
    }

    #[test]
    fn a_response_declares_its_bodys_length_and_whether_the_connection_persists() {
        let response = |status: u16, fields: &[(&'static str, &'static str)]| {
            let mut response = Response::builder().status(status);
            for (name, value) in fields {
                response = response.header(*name, *value);
            }
            response.body(()).unwrap()
        };
        let (unknown, none) = (SizeHint::default(), SizeHint::with_exact(0));
        let (text, encoder, persists) = of_response(response(200, &[("content-length", "3")]), &unknown, false, CLIENT);
        assert_eq!(
            (&*text, encoder, persists),
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n", Encoder::Length(3), true)
        );
        let (text, encoder, _) = of_response(response(404, &[]), &none, true, CLIENT);
        assert_eq!((&*text, encoder), ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", Encoder::Length(0)));
        for status in [204, 101] {
            let (text, _, _) = of_response(response(status, &[("content-length", "0")]), &none, true, CLIENT);
            assert!(!text.contains("content-length"), "{text}");
        }
        for (status, client) in [(200, ClientTraits { head_only: true, ..CLIENT }), (304, CLIENT)] {
            let (text, encoder, _) = of_response(response(status, &[("content-length", "9")]), &none, true, client);
            assert!(text.contains("content-length: 9\r\n") && encoder == Encoder::Length(0), "{text}");
        }
        let (text, encoder, persists) = of_response(response(200, &[]), &unknown, false, CLIENT);
        assert!(text.contains("transfer-encoding: chunked\r\n") && persists && matches!(encoder, Encoder::Chunked(_)));
        let old = ClientTraits { version: Version::HTTP_10, ..CLIENT };
        let (text, encoder, persists) = of_response(response(200, &[]), &unknown, false, old);
        assert_eq!(
            (&*text, encoder, persists),
            ("HTTP/1.0 200 OK\r\nconnection: close\r\n\r\n", Encoder::UntilClose, false)
        );
        let (text, _, persists) = of_response(response(200, &[]), &none, true, old);
        assert!(text.contains("connection: keep-alive\r\n") && persists, "{text}");
        let (text, _, persists) =
            of_response(response(200, &[]), &none, true, ClientTraits { persists: false, ..CLIENT });
        assert!(text.contains("connection: close\r\n") && !persists, "{text}");
        let (text, _, persists) = of_response(response(200, &[("connection", "close")]), &none, true, CLIENT);
        assert!(text.matches("connection: close\r\n").count() == 1 && !persists, "{text}");
    }

    #[test]
    fn filters_hop_by_hop_fields_are_not_sent() {
        let response = |connection: &str| {
            let fields = [
                ("connection", connection),
                ("keep-alive", "5"),
                ("proxy-connection", "x"),
                ("x", "1"),
                ("transfer-encoding", "chunked"),
            ];
            fields.iter().fold(Response::builder(), |r, (name, value)| r.header(*name, *value)).body(()).unwrap()
        };
        let none = SizeHint::with_exact(0);
        for (said, sent, expected_persists) in [
            ("upgrade", "", true),
            ("keep-alive, x", "", true),
            ("Close", "connection: close\r\n", false),
            ("upgrade, close", "connection: close\r\n", false),
        ] {
            let (text, _, persists) = of_response(response(said), &none, true, CLIENT);
            let expected = format!("HTTP/1.1 200 OK\r\nx: 1\r\ncontent-length: 0\r\n{sent}\r\n");
            assert_eq!((text, persists), (expected, expected_persists), "{said}");
        }
    }

    #[test]
    fn a_response_has_one_date_and_an_upgrade_keeps_its_fields() {
        let given = "Tue, 01 Jan 2030 00:00:00 GMT";
        let switches = ClientTraits { switches: true, ..CLIENT };
        for (status, client, fields, dates) in [
            (200, CLIENT, &[("x", "1")][..], 1),
            (404, CLIENT, &[("date", given)], 1),
            (101, switches, &[("connection", "upgrade"), ("keep-alive", "5")], 0),
        ] {
            let response = fields.iter().fold(Response::builder().status(status), |r, (n, v)| r.header(*n, *v));
            let mut out = WriteBuf::default();
            super::response(&response.body(()).unwrap().into_parts().0, &SizeHint::default(), true, client, &mut out);
            let text = text(&mut out);
            let said: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("date: ")).collect();
            assert_eq!(said.len(), dates, "{text}");
            assert!(said.iter().all(|date| httpdate::parse_http_date(date).is_ok()), "{text}");
            assert!(fields.iter().all(|(name, value)| text.contains(&format!("{name}: {value}\r\n"))), "{text}");
        }
        let mut out = WriteBuf::default();
        interim(&Response::builder().status(103).header("link", "</a>").body(()).unwrap(), &mut out);
        assert_eq!(text(&mut out), "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
    }

    #[test]
    fn a_body_must_have_its_declared_length() {
        let mut out = WriteBuf::default();
        let mut encoder = Encoder::Length(3);
        assert_eq!(encoder.data(Bytes::from_static(b"ab"), &mut out), Ok(()));
        assert_eq!(encoder.clone().end(None, &mut out), Err(LengthMismatch));
        assert_eq!(encoder.clone().data(Bytes::from_static(b"cd"), &mut out), Err(LengthMismatch));
        assert_eq!(encoder.data(Bytes::from_static(b"c"), &mut out), Ok(()));
        assert_eq!(encoder.end(None, &mut out), Ok(()));
        assert_eq!(text(&mut out), "abc");
    }

    #[test]
    fn chunks_have_sizes_and_only_listed_trailers_are_sent() {
        let mut trailers = HeaderMap::new();
        for name in ["a", "b", "content-length"] {
            trailers.insert(name, HeaderValue::from_static("1"));
        }
        let listed =
            TrailerPolicy::Listed(vec![HeaderValue::from_static("x, B"), HeaderValue::from_static("content-length")]);
        for (announced, end) in [(listed, "b: 1\r\n"), (TrailerPolicy::All, "a: 1\r\nb: 1\r\n")] {
            let (mut encoder, mut out) = (Encoder::Chunked(announced), WriteBuf::default());
            encoder.data(Bytes::from_static(&[b'x'; 26]), &mut out).unwrap();
            encoder.data(Bytes::new(), &mut out).unwrap();
            encoder.data(Bytes::from_static(b"y"), &mut out).unwrap();
            encoder.end(Some(&trailers), &mut out).unwrap();
            let expected = format!("1a\r\n{}\r\n1\r\ny\r\n0\r\n{end}\r\n", "x".repeat(26));
            assert_eq!(text(&mut out), expected);
        }
        let mut space = [0; 18];
        assert_eq!(hex_line(usize::MAX, &mut space), b"ffffffffffffffff\r\n");
    }
}
