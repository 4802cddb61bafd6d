//! The parser of HTTP/1.1 requests: heads and bodies.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Uri, Version};
use http_body::SizeHint;
use tollgate::h1::{
    BodyPart, Decoder, Encoder, HeadError, Limits, WriteBuf,
    encoder::{self, RequestHead},
    head,
};

use crate::{Outcome, Target, cuts};

/// Longer than any input, so that the limit does not depend on where an input is split.
const LIMITS: Limits = Limits { head: 64 << 10, fields: 160 };

/// The bytes have the same meaning wherever they are split; a simple parser finds the same requests; and what is
/// forwarded parses as one request.
fn check(input: &[u8]) -> Outcome {
    let whole = wherever_cut(input, request);
    let heads = if whole.error.is_none() { walk(input) } else { 0 };
    assert!(heads <= whole.messages.len(), "{heads} of {}", whole.messages.len());
    for message in whole.messages.iter().filter(|message| message.can_be_forwarded()) {
        let (method, uri, _) = &message.start;
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let head =
            RequestHead { method, target: target.as_bytes(), host: None, fields: &message.fields, replaced: &[] };
        let mut out = WriteBuf::default();
        let mut encoder = encoder::request(&head, &message.length(), message.data.is_empty(), &mut out);
        let written = message.write(&mut encoder, out);
        let again = read(&[&written], request);
        let [one] = &again.messages[..] else { panic!("{} as {again:?}", written.escape_ascii()) };
        assert!(one.is_whole && again.error.is_none(), "{} as {again:?}", written.escape_ascii());
        assert_eq!((&one.start.0, &one.data), (method, &message.data));
        let again = one.start.1.path_and_query().map_or("/", |target| target.as_str());
        assert_eq!(again, target);
    }
    Outcome::of((whole.error, whole.messages.len(), input.len().min(400) / 16))
}

type Start = (Method, Uri, Version);

fn request(inbox: &mut BytesMut, length: usize) -> Result<(Start, HeaderMap, Option<Decoder>), HeadError> {
    let request = head::request(inbox, length, &LIMITS)?;
    let parts = request.parts;
    Ok(((parts.method, parts.uri, parts.version), parts.headers, Some(request.body)))
}

/// What was read from a connection.
#[derive(Debug, PartialEq)]
pub(super) struct Read<S> {
    pub(super) messages: Vec<Message<S>>,
    pub(super) error: Option<String>,
}

#[derive(Debug, PartialEq)]
pub(super) struct Message<S> {
    pub(super) start: S,
    pub(super) fields: HeaderMap,
    pub(super) data: Vec<u8>,
    pub(super) trailers: HeaderMap,
    /// It was received completely, and does not end with the connection.
    pub(super) is_whole: bool,
}

/// With at most this many fields, there is room for those that the proxy adds.
const FEW_FIELDS: usize = LIMITS.fields - 8;

impl<S> Message<S> {
    /// Returns whether it can be forwarded.
    pub(super) fn can_be_forwarded(&self) -> bool {
        self.is_whole && self.fields.len() <= FEW_FIELDS
    }

    pub(super) fn length(&self) -> SizeHint {
        SizeHint::with_exact(self.data.len() as u64)
    }

    /// Returns the encoded message, after a head that declares its length or that it is chunked.
    pub(super) fn write(&self, encoder: &mut Encoder, mut head: WriteBuf) -> Vec<u8> {
        let mut written = std::mem::take(head.tail());
        let mut out = WriteBuf::default();
        for part in self.data.chunks(1000) {
            encoder.data(Bytes::copy_from_slice(part), &mut out).expect("a length that was read is right");
        }
        encoder.end(Some(&self.trailers), &mut out).expect("a length that was read is right");
        written.append(out.tail());
        written
    }
}

/// Parses a head of this many bytes: returns its first line, its fields, and the decoder of its body, if supported.
pub(super) type ReadHead<S> = fn(&mut BytesMut, usize) -> Result<(S, HeaderMap, Option<Decoder>), HeadError>;

/// Reads messages, which must be the same wherever the input is split.
pub(super) fn wherever_cut<S: PartialEq + std::fmt::Debug>(input: &[u8], head: ReadHead<S>) -> Read<S> {
    let whole = read(&[input], head);
    for cut in cuts(input) {
        let (before, after) = input.split_at(cut);
        assert_eq!(read(&[before, after], head), whole, "cut at {cut}");
    }
    let size = 1 + input.len() % 7;
    assert_eq!(read(&input.chunks(size).collect::<Vec<_>>(), head), whole, "in pieces of {size}");
    whole
}

pub(super) fn read<S>(parts: &[&[u8]], head: ReadHead<S>) -> Read<S> {
    let mut messages = Vec::new();
    let error = read_into(parts, head, &mut messages).err();
    Read { messages, error }
}

fn read_into<S>(parts: &[&[u8]], head: ReadHead<S>, messages: &mut Vec<Message<S>>) -> Result<(), String> {
    let (mut inbox, mut parts) = (BytesMut::new(), parts.iter());
    let mut next = |inbox: &mut BytesMut| parts.next().map(|part| inbox.extend_from_slice(part)).is_some();
    loop {
        let mut scanner = head::HeadScanner::default();
        let length = loop {
            match scanner.find(&mut inbox, LIMITS.head).map_err(|e| e.to_string())? {
                Some(length) => break length,
                None if next(&mut inbox) => {}
                None => return Ok(()),
            }
        };
        let (start, fields, body) = head(&mut inbox, length).map_err(|e| e.to_string())?;
        let (data, trailers) = (Vec::new(), HeaderMap::new());
        messages.push(Message { start, fields, data, trailers, is_whole: false });
        let (Some(message), Some(mut body)) = (messages.last_mut(), body) else {
            return Err("its body cannot be decoded".to_owned());
        };
        while !body.is_done() {
            match body.decode(&mut inbox).map_err(|e| e.to_string())? {
                Some(BodyPart::Data(data)) => message.data.extend_from_slice(&data),
                Some(BodyPart::Trailers(trailers)) => message.trailers = trailers,
                None if body.is_done() || next(&mut inbox) => {}
                None => return Ok(()),
            }
        }
        message.is_whole = true;
    }
}

/// Follows accepted bytes from head to head, and checks that each is unambiguous. Returns the number of heads.
fn walk(mut input: &[u8]) -> usize {
    let mut heads = 0;
    loop {
        let mut fields = [httparse::EMPTY_HEADER; LIMITS.fields];
        let mut head = httparse::Request::new(&mut fields);
        let Ok(httparse::Status::Complete(len)) = head.parse(input) else { return heads };
        heads += 1;
        let (lengths, codings) = framing(head.headers);
        assert!(lengths.len() + codings.len() <= 1, "{lengths:?} and {codings:?}");
        input = &input[len..];
        let body = match (lengths.first(), codings.first()) {
            (Some(length), _) => self::length(length).filter(|length| *length <= input.len()),
            (_, Some(coding)) => {
                assert!(coding.eq_ignore_ascii_case(b"chunked"), "{coding:?}");
                chunked(input)
            }
            _ => Some(0),
        };
        let Some(body) = body else { return heads };
        input = &input[body..];
    }
}

/// Returns the values of `Content-Length` and `Transfer-Encoding`.
pub(super) fn framing<'a>(fields: &[httparse::Header<'a>]) -> (Vec<&'a [u8]>, Vec<&'a [u8]>) {
    let all = |name: &str| {
        let of_name = fields.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        of_name.map(|field| field.value.trim_ascii()).collect()
    };
    (all("content-length"), all("transfer-encoding"))
}

/// Parses the length in an accepted head.
pub(super) fn length(value: &[u8]) -> Option<usize> {
    assert!(!value.is_empty() && value.iter().all(u8::is_ascii_digit), "{value:?}");
    str::from_utf8(value).ok()?.parse().ok()
}

/// Returns the length of a chunked body with its trailers (RFC 9112 section 7.1). `None` if it is incomplete.
pub(super) fn chunked(input: &[u8]) -> Option<usize> {
    let line = |at: usize| input[at..].windows(2).position(|two| two == b"\r\n").map(|end| &input[at..at + end]);
    let mut at = 0;
    loop {
        let size = line(at)?;
        at += size.len() + 2;
        let digits = size.split(|b| *b == b';').next().unwrap_or_default().trim_ascii_end();
        let size = usize::from_str_radix(str::from_utf8(digits).expect("digits"), 16).expect("a size");
        if size == 0 {
            break;
        }
        let end = at.checked_add(size).filter(|end| *end <= input.len().saturating_sub(2))?;
        assert_eq!(&input[end..end + 2], b"\r\n");
        at = end + 2;
    }
    loop {
        let trailer = line(at)?;
        at += trailer.len() + 2;
        if trailer.is_empty() {
            return Some(at);
        }
    }
}

pub(super) const TARGET: Target = Target {
    words: &[
        b"GET / HTTP/1.1\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b"\t",
        b":",
        b";",
        b"Content-Length: 5\r\n",
        b"Content-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding",
        b"Trailer: x\r\n",
        b"OPTIONS http://a HTTP/1.1\r\n",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"0\r\nx: y\r\n\r\n",
        b"ffffffffffffffff",
    ],
    // Shorter than the limit on lines of chunk sizes and trailers, which applies to incomplete lines.
    max_len: 12_000,
    check,
};
