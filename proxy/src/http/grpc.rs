//! gRPC as a proxy needs to know it (grpc/doc/PROTOCOL-HTTP2.md): which messages are gRPC, and their statuses, timeouts,
//! paths and framing.

use std::{fmt::Write, time::Duration};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

/// The field with a call's status, in trailers or in the head of a response without a body.
pub const STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// The field with a description of the status; see [`encode_message`].
pub const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// The field with a call's timeout.
pub const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// The media type, without a suffix or parameters.
pub const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

/// Returns whether a message's media type is gRPC: `application/grpc`, alone or followed by `+` or `;`.
pub fn is_grpc(fields: &HeaderMap) -> bool {
    const TYPE: &[u8] = b"application/grpc";
    let Some(value) = fields.get(header::CONTENT_TYPE) else { return false };
    let split = value.as_bytes().split_at_checked(TYPE.len());
    split
        .is_some_and(|(kind, rest)| kind.eq_ignore_ascii_case(TYPE) && matches!(rest.first(), None | Some(b'+' | b';')))
}

/// The statuses that gRPC defines (grpc/doc/statuscodes.md). Other numbers may arrive on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are gRPC's")]
pub enum Code {
    Ok,
    Cancelled,
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
}

/// The names of all codes, in the order of their numbers.
pub const NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

impl Code {
    /// Returns the number used on the wire.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// Returns the status that a client derives from a response without a gRPC status
    /// (grpc/doc/http-grpc-status-mapping.md).
    pub fn of_http(status: StatusCode) -> Code {
        match status.as_u16() {
            400 => Code::Internal,
            401 => Code::Unauthenticated,
            403 => Code::PermissionDenied,
            404 => Code::Unimplemented,
            429 | 502..=504 => Code::Unavailable,
            _ => Code::Unknown,
        }
    }

    /// Returns the status that a client derives from a stream reset with this reason (grpc/doc/PROTOCOL-HTTP2.md,
    /// "Errors").
    pub fn of_reset(reason: h2::Reason) -> Code {
        match reason {
            h2::Reason::REFUSED_STREAM => Code::Unavailable,
            h2::Reason::CANCEL => Code::Cancelled,
            h2::Reason::ENHANCE_YOUR_CALM => Code::ResourceExhausted,
            h2::Reason::INADEQUATE_SECURITY => Code::PermissionDenied,
            _ => Code::Internal,
        }
    }
}

/// Returns the HTTP status closest to a gRPC status (google/rpc/code.proto), 500 for statuses that gRPC does not
/// define.
pub fn http_of(status: u32) -> u16 {
    match status {
        0 => 200,
        3 | 9 | 11 => 400,
        16 => 401,
        7 => 403,
        5 => 404,
        6 | 10 => 409,
        8 => 429,
        1 => 499,
        12 => 501,
        14 => 503,
        4 => 504,
        _ => 500,
    }
}

/// Returns the status in trailers, or in the head of a response that has only a head. `UNKNOWN` if it is not a number.
pub fn status(fields: &HeaderMap) -> Option<u32> {
    let value = fields.get(STATUS)?;
    Some(value.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(Code::Unknown.number()))
}

/// Returns whether a status means that the server has failed or is overloaded, rather than that it refuses the call.
pub fn is_server_failure(status: u32) -> bool {
    const FAILURES: [Code; 6] = [
        Code::Unknown,
        Code::DeadlineExceeded,
        Code::ResourceExhausted,
        Code::Internal,
        Code::Unavailable,
        Code::DataLoss,
    ];
    FAILURES.iter().any(|code| code.number() == status)
}

/// Returns whether these fields have a status that means so.
pub fn has_failed(fields: &HeaderMap) -> bool {
    status(fields).is_some_and(is_server_failure)
}

/// Encodes a text as the value of `grpc-message`: `%` and bytes other than printable ASCII become `%XX`.
pub fn encode_message(text: &str) -> HeaderValue {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(byte.into()),
            // Writing to a `String` cannot fail.
            _ => drop(write!(encoded, "%{byte:02X}")),
        }
    }
    HeaderValue::from_maybe_shared(Bytes::from(encoded)).unwrap_or(HeaderValue::from_static(""))
}

/// Decodes a `grpc-message`. Invalid escapes are kept unchanged, as the protocol requires.
pub fn decode_message(value: &[u8]) -> String {
    let hex = |at: usize| value.get(at).and_then(|digit| char::from(*digit).to_digit(16));
    let (mut bytes, mut at) = (Vec::with_capacity(value.len()), 0);
    while let Some(&byte) = value.get(at) {
        match (byte, hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high << 4 | low) as u8);
                at += 3;
            }
            _ => {
                bytes.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Returns the description of the status; empty if there is none.
pub fn message(fields: &HeaderMap) -> String {
    decode_message(fields.get(MESSAGE).map(HeaderValue::as_bytes).unwrap_or_default())
}

/// How a call ended: the status, and its description.
pub type CallStatus = (u32, String);

/// Bytes before a message: the compressed flag and the length.
const PREFIX: usize = 5;

/// Frames a message (`Length-Prefixed-Message`).
pub fn framed(message: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PREFIX + message.len());
    bytes.put_u8(0);
    bytes.put_u32(message.len() as u32);
    bytes.put_slice(message);
    bytes
}

/// Takes the next complete message of at most `most` bytes from the buffer.
///
/// # Errors The message is larger, or compressed, which is never offered.
pub fn take_message(pending: &mut BytesMut, most: usize) -> Result<Option<Bytes>, CallStatus> {
    let Some((prefix, _)) = pending.split_at_checked(PREFIX) else { return Ok(None) };
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    if prefix[0] != 0 {
        let why = "the message is compressed, although the request did not accept that";
        return Err((Code::Unimplemented.number(), why.to_owned()));
    }
    if length > most {
        return Err((Code::ResourceExhausted.number(), "the message is too large".to_owned()));
    }
    if pending.len() < PREFIX + length {
        return Ok(None);
    }
    pending.advance(PREFIX);
    Ok(Some(pending.split_to(length).freeze()))
}

/// The largest number that fits into the eight digits of a timeout.
const MOST: u128 = 99_999_999;

/// The units of timeouts in nanoseconds, smallest first.
const UNITS: [(u8, u64); 6] = [
    (b'n', 1),
    (b'u', 1_000),
    (b'm', 1_000_000),
    (b'S', 1_000_000_000),
    (b'M', 60 * 1_000_000_000),
    (b'H', 3_600 * 1_000_000_000),
];

/// Parses the value of `grpc-timeout`: one to eight digits followed by `H`, `M`, `S`, `m`, `u` or `n`. gRPC requires
/// more than 0, but clients whose deadline has just passed send 0 anyway.
pub fn parse_timeout(value: &HeaderValue) -> Option<Duration> {
    let (unit, digits) = value.as_bytes().split_last()?;
    if !matches!(digits.len(), 1..=8) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanos = UNITS.iter().find(|(name, _)| name == unit)?.1;
    let count = digits.iter().fold(0, |all, digit| all * 10 + u64::from(digit - b'0'));
    // 99999999 hours in nanoseconds do not fit into 64 bits.
    Some(Duration::from_nanos_u128(u128::from(nanos) * u128::from(count)))
}

/// Formats a duration as the value of `grpc-timeout`, in the smallest unit for which eight digits suffice. It is
/// truncated rather than rounded, so that the recipient never assumes more time than there is. Zero becomes one
/// nanosecond, because the value must be more than 0.
pub fn format_timeout(time: Duration) -> HeaderValue {
    let nanos = time.as_nanos().max(1);
    let fitting = UNITS.iter().map(|(name, unit)| (name, nanos / u128::from(*unit))).find(|(_, count)| *count <= MOST);
    let (unit, count) = fitting.unwrap_or((&b'H', MOST));
    HeaderValue::try_from(format!("{count}{}", char::from(*unit))).unwrap_or(HeaderValue::from_static("1n"))
}

/// Maximum length in bytes of a path that is parsed.
const MAX_PATH: usize = 256;

/// Splits a path into service and method: `/package.Service/Method`, with letters, digits, `_` and (in the service)
/// `.`, as in Protocol Buffers; at most 256 bytes. gRPC allows other names, but they are not used in practice.
pub fn split_path(path: &str) -> Option<(&str, &str)> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    (path.len() <= MAX_PATH && service.split('.').all(is_name) && is_name(method)).then_some((service, method))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_bytes(value.as_bytes()).unwrap())])
    }

    #[test]
    fn messages_survive_a_round_trip() {
        for text in ["", "plain", "50 % of ü\n", "%41"] {
            assert_eq!(decode_message(encode_message(text).as_bytes()), text);
        }
        assert_eq!(decode_message(b"%4 %zz %"), "%4 %zz %");
    }

    #[test]
    fn messages_are_found_however_they_are_split() {
        let all = [framed(b"one"), framed(b""), framed(&[7; 300])].concat();
        for step in 1..all.len() {
            let (mut pending, mut found) = (BytesMut::new(), Vec::new());
            for part in all.chunks(step) {
                pending.extend_from_slice(part);
                while let Some(message) = take_message(&mut pending, 300).unwrap() {
                    found.push(message);
                }
            }
            assert_eq!(found, [&b"one"[..], b"", &[7; 300]]);
        }
    }

    #[test]
    fn invalid_message_ends_the_call() {
        let take = |bytes: &[u8]| take_message(&mut BytesMut::from(bytes), 16).unwrap_err().0;
        assert_eq!(take(&[1, 0, 0, 0, 0]), 12);
        assert_eq!(take(&[0, 0, 0, 0, 17]), 8);
    }

    #[test]
    fn grpc_is_recognised_by_its_media_type() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("Application/gRPC", true),
            ("application/grpc-web", false),
            ("application/grpcx", false),
            ("application/grp", false),
            ("application/json", false),
            ("", false),
            // Split at a byte, not at a character.
            ("application/grp\u{e9}", false),
        ] {
            assert_eq!(is_grpc(&fields(header::CONTENT_TYPE, value)), expected, "{value}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn resets_map_to_grpc_statuses() {
        for (reset, code) in [
            (h2::Reason::REFUSED_STREAM, Code::Unavailable),
            (h2::Reason::CANCEL, Code::Cancelled),
            (h2::Reason::ENHANCE_YOUR_CALM, Code::ResourceExhausted),
            (h2::Reason::INADEQUATE_SECURITY, Code::PermissionDenied),
            (h2::Reason::NO_ERROR, Code::Internal),
            (h2::Reason::STREAM_CLOSED, Code::Internal),
        ] {
            assert_eq!(Code::of_reset(reset), code, "{reset}");
        }
    }

    #[test]
    fn http_statuses_map_to_grpc_statuses() {
        for (http, code) in [
            (400, "INTERNAL"),
            (401, "UNAUTHENTICATED"),
            (403, "PERMISSION_DENIED"),
            (404, "UNIMPLEMENTED"),
            (429, "UNAVAILABLE"),
            (502, "UNAVAILABLE"),
            (503, "UNAVAILABLE"),
            (504, "UNAVAILABLE"),
            (200, "UNKNOWN"),
            (413, "UNKNOWN"),
            (500, "UNKNOWN"),
        ] {
            let number = Code::of_http(StatusCode::from_u16(http).unwrap()).number();
            assert_eq!(NAMES[number as usize], code, "{http}");
        }
    }

    #[test]
    fn grpc_statuses_map_to_http_statuses() {
        let all = [200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401];
        for (number, http) in all.into_iter().enumerate() {
            assert_eq!(http_of(number as u32), http, "{}", NAMES[number]);
        }
        assert_eq!(http_of(17), 500);
    }

    #[test]
    fn a_status_is_a_number() {
        for (value, expected) in [("0", 0), ("16", 16), ("1234", 1234), ("", 2), ("x", 2), ("-1", 2), ("\u{ff}", 2)] {
            assert_eq!(status(&fields(STATUS, value)), Some(expected), "{value}");
        }
        assert_eq!(status(&HeaderMap::new()), None);
    }

    #[test]
    fn messages_are_percent_encoded() {
        for (text, expected) in [
            ("", ""),
            ("no route", "no route"),
            ("100%", "100%25"),
            ("a\r\nb\tc\u{7f}", "a%0D%0Ab%09c%7F"),
            ("!\"#$&~", "!\"#$&~"),
            ("zu groß", "zu gro%C3%9F"),
        ] {
            assert_eq!(encode_message(text), expected, "{text}");
        }
    }

    #[test]
    fn timeouts_are_parsed_as_specified() {
        for (text, expected) in [
            ("1n", Some(Duration::from_nanos(1))),
            ("20u", Some(Duration::from_micros(20))),
            ("300m", Some(Duration::from_millis(300))),
            ("4S", Some(Duration::from_secs(4))),
            ("5M", Some(Duration::from_secs(300))),
            ("00000006H", Some(Duration::from_secs(6 * 3600))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("0S", Some(Duration::ZERO)),
            ("", None),
            ("S", None),
            ("5", None),
            ("5s", None),
            ("5 S", None),
            ("-5S", None),
            ("+5S", None),
            ("1.5S", None),
            ("123456789S", None),
            ("5SS", None),
        ] {
            assert_eq!(parse_timeout(&HeaderValue::from_str(text).unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn timeouts_are_formatted_precisely_and_never_rounded_up() {
        for (time, expected) in [
            (Duration::ZERO, "1n"),
            (Duration::from_nanos(7), "7n"),
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_nanos(100_000_999), "100000u"),
            (Duration::from_secs(15), "15000000u"),
            (Duration::from_micros(99_999_999_999), "99999999m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::from_secs(100_000_059), "1666667M"),
            (Duration::from_secs(99_999_999 * 60 + 60), "1666666H"),
            (Duration::MAX, "99999999H"),
        ] {
            assert_eq!(format_timeout(time), expected, "{time:?}");
        }
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..10_000 {
            let time = Duration::from_nanos(random.u64(1..) >> random.u32(0..63)).max(Duration::from_nanos(1));
            let read = parse_timeout(&format_timeout(time)).unwrap();
            // Truncated by less than one unit, where eight digits (or the next smaller unit's) must hold the count.
            assert!(
                read <= time && time.as_nanos() - read.as_nanos() <= time.as_nanos() / 100_000,
                "{time:?} {read:?}"
            );
        }
    }

    #[test]
    fn a_path_names_a_service_and_a_method() {
        assert_eq!(split_path("/helloworld.v1.Greeter/Say_Hello2"), Some(("helloworld.v1.Greeter", "Say_Hello2")));
        assert_eq!(split_path("/Greeter/Hello"), Some(("Greeter", "Hello")));
        let long = format!("/a/{}", "b".repeat(MAX_PATH));
        for bad in
            ["", "/", "//", "a/b", "/a", "/a/", "/a/b/c", "/a/b.c", "/.a/b", "/a./b", "/a b/c", "/a/b?c", "/ä/b", &long]
        {
            assert_eq!(split_path(bad), None, "{bad}");
        }
    }
}
