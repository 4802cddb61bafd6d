//! Parses a TLS client's first message, the ClientHello (RFC 8446 section 4.1.2, RFC 5246 section 7.4.1.2), for the
//! server name, so that TLS connections can be passed through without decryption.
//!
//! We do not use rustls's `Acceptor`: it rejects clients that rustls could not serve (no signature algorithms, TLS
//! 1.1), although the upstream may serve them, and it needs buffers and a state machine to read two extensions.
//! `tls-parser` would add nom and two parser generators, and leaves reassembling fragments to its caller.

use std::{borrow::Cow, net::IpAddr};

/// The limit on a ClientHello, including record headers, in bytes.
pub const MAX_HELLO: usize = 16 << 10;

/// Types of a record, a message, an extension and a name.
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const SUPPORTED_VERSIONS: u16 = 43;
const HOST_NAME: u8 = 0;

/// The limit on a record's fragment (RFC 8446 section 5.1), in bytes.
const MAX_FRAGMENT: usize = 1 << 14;

/// The result of parsing a connection's first bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// A valid but incomplete ClientHello of fewer than [`MAX_HELLO`] bytes.
    NeedMore,
    /// A complete ClientHello.
    Client(ClientHello),
    /// Not a ClientHello that a TLS server would accept, or longer than [`MAX_HELLO`].
    Invalid,
}

/// What a client requests in its ClientHello.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// The requested server name (RFC 6066 section 3): lower-case letters, digits, `-`, `_` and `.`, without a
    /// trailing dot. `None` for an IP address, which the RFC does not allow.
    pub server_name: Option<Box<str>>,
    /// The offered protocols (RFC 7301 section 3.1) as received: each is preceded by a byte with its length.
    alpn: Box<[u8]>,
    /// The highest offered version: 0x0303 is TLS 1.2, 0x0302 TLS 1.1.
    pub version: u16,
}

impl ClientHello {
    /// Returns the offered protocols (RFC 7301) in order of preference.
    pub fn alpn(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = Input(&self.alpn);
        std::iter::from_fn(move || rest.vector(1))
    }
}

/// Parses the first bytes of a connection. Further bytes do not change the result, unless it is [`Hello::NeedMore`].
/// Usually the message is in one record, and only the result is copied.
pub fn client_hello(input: &[u8]) -> Hello {
    let window = &input[..input.len().min(MAX_HELLO)];
    match message(window) {
        Ok(Some(message)) => read(Input(&message)).map_or(Hello::Invalid, Hello::Client),
        Ok(None) if window.len() < MAX_HELLO => Hello::NeedMore,
        Ok(None) | Err(Malformed) => Hello::Invalid,
    }
}

struct Malformed;

/// Returns the message, reassembled from the records' fragments. `None` if it is incomplete.
fn message(mut records: &[u8]) -> Result<Option<Cow<'_, [u8]>>, Malformed> {
    let mut message = Cow::Borrowed(&[][..]);
    while let Some(fragment) = next_fragment(&mut records)? {
        match &mut message {
            Cow::Borrowed([]) => message = Cow::Borrowed(fragment),
            more => more.to_mut().extend_from_slice(fragment),
        }
        if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(Malformed);
        }
        let &[_, a, b, c, ..] = &*message else { continue };
        let end = 4 + u32::from_be_bytes([0, a, b, c]) as usize;
        if end > MAX_HELLO {
            return Err(Malformed);
        }
        if message.len() >= end {
            return Ok(Some(message));
        }
    }
    Ok(None)
}

/// Returns the received part of the next record's fragment. The record's version is ignored (RFC 8446 section 5.1)
/// except for its first byte.
fn next_fragment<'a>(records: &mut &'a [u8]) -> Result<Option<&'a [u8]>, Malformed> {
    let all = *records;
    let known = [HANDSHAKE, 3];
    if all.iter().zip(known).any(|(byte, known)| *byte != known) {
        return Err(Malformed);
    }
    let &[_, _, _, high, low, ref rest @ ..] = all else { return Ok(None) };
    let len = usize::from(u16::from_be_bytes([high, low]));
    // Empty fragments would allow an endless message without any bytes.
    if len == 0 || len > MAX_FRAGMENT {
        return Err(Malformed);
    }
    let (fragment, rest) = rest.split_at(len.min(rest.len()));
    *records = rest;
    Ok((!fragment.is_empty()).then_some(fragment))
}

/// Parses the message; bytes after it in the same record are ignored. `None` if it is malformed.
fn read(mut message: Input<'_>) -> Option<ClientHello> {
    let _type = message.take(1)?;
    let mut hello = Input(message.vector(3)?);
    let version = hello.number(2)? as u16;
    let _random = hello.take(32)?;
    let session = hello.vector(1)?;
    let ciphers = hello.vector(2)?;
    let compression = hello.vector(1)?;
    if session.len() > 32 || ciphers.is_empty() || ciphers.len() % 2 != 0 || compression.is_empty() {
        return None;
    }
    let (mut name, mut alpn, mut versions) = (None, None, None);
    // TLS 1.2 does not require extensions.
    if !hello.0.is_empty() {
        let mut extensions = Input(hello.vector(2)?);
        if !hello.0.is_empty() {
            return None;
        }
        while !extensions.0.is_empty() {
            let kind = extensions.number(2)?;
            let mut data = Input(extensions.vector(2)?);
            // Each extension may occur only once (RFC 8446 section 4.2).
            let twice = match kind as u16 {
                SERVER_NAME => name.replace(server_name(data)?).is_some(),
                ALPN => alpn.replace(protocols(data)?).is_some(),
                SUPPORTED_VERSIONS => versions.replace(highest(data.vector(1)?)).is_some(),
                _ => false,
            };
            if twice {
                return None;
            }
        }
    }
    // The extension replaces the older field (RFC 8446 section 4.2.1).
    let version = versions.unwrap_or(version);
    Some(ClientHello { server_name: name.flatten(), alpn: alpn.unwrap_or_default().into(), version })
}

/// Returns the highest version in a list, ignoring GREASE values (RFC 8701).
fn highest(list: &[u8]) -> u16 {
    let versions = list.as_chunks().0.iter().map(|version| u16::from_be_bytes(*version));
    versions.filter(|version| version >> 8 == 3).max().unwrap_or_default()
}

/// Parses a server name (RFC 6066 section 3). The outer `None` means malformed.
fn server_name(mut data: Input<'_>) -> Option<Option<Box<str>>> {
    let mut names = Input(data.vector(2)?);
    if names.0.is_empty() || !data.0.is_empty() {
        return None;
    }
    let mut found = None;
    while !names.0.is_empty() {
        let kind = names.number(1)?;
        // No other name types are defined, and none can be added.
        if kind as u8 != HOST_NAME || found.is_some() {
            return None;
        }
        found = Some(names.vector(2)?);
    }
    let name = str::from_utf8(found?).ok()?;
    if name.parse::<IpAddr>().is_ok() {
        return Some(None);
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let label = |label: &str| !label.is_empty() && label.bytes().all(plain);
    (name.len() <= 253 && name.split('.').all(label)).then(|| Some(name.to_ascii_lowercase().into()))
}

/// Parses a list of protocols (RFC 7301 section 3.1): at least one name, none of them empty.
fn protocols(mut data: Input<'_>) -> Option<&[u8]> {
    let list = data.vector(2).filter(|list| !list.is_empty() && data.0.is_empty())?;
    let mut names = Input(list);
    while !names.0.is_empty() {
        names.vector(1).filter(|name| !name.is_empty())?;
    }
    Some(list)
}

/// The unread rest.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self, bytes: usize) -> Option<usize> {
        Some(self.take(bytes)?.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    /// Reads a vector whose length is encoded in `bytes` bytes.
    fn vector(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let len = self.number(bytes)?;
        self.take(len)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::aws_lc_rs::default_provider};

    use super::*;

    /// Returns the ClientHello of a real client.
    fn of_rustls(name: &str, alpn: &[&str], fragment: Option<usize>) -> Vec<u8> {
        let config = ClientConfig::builder_with_provider(default_provider().into());
        let config = config.with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config.max_fragment_size = fragment;
        let mut client = ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap();
        let mut sent = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut sent).unwrap();
        }
        sent
    }

    fn record(fragment: &[u8]) -> Vec<u8> {
        let len = u16::try_from(fragment.len()).unwrap().to_be_bytes();
        [&[HANDSHAKE, 3, 1, len[0], len[1]], fragment].concat()
    }

    fn message(body: &[u8]) -> Vec<u8> {
        [&[CLIENT_HELLO], &u32::try_from(body.len()).unwrap().to_be_bytes()[1..], body].concat()
    }

    fn body(extensions: &[u8]) -> Vec<u8> {
        let len = u16::try_from(extensions.len()).unwrap().to_be_bytes();
        [&[3; 34][..], &[0, 0, 2, 0x13, 0x01, 1, 0], &len, extensions].concat()
    }

    fn hello(extensions: &[u8]) -> Vec<u8> {
        record(&message(&body(extensions)))
    }

    fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes(), &u16::try_from(data.len()).unwrap().to_be_bytes(), data].concat()
    }

    fn name(name: &[u8]) -> Vec<u8> {
        let len = u16::try_from(name.len()).unwrap();
        extension(SERVER_NAME, &[&(len + 3).to_be_bytes()[..], &[HOST_NAME], &len.to_be_bytes(), name].concat())
    }

    /// Parses an input. Each of its prefixes must give the same result or need more bytes.
    fn by_byte(input: &[u8]) -> Hello {
        let whole = client_hello(input);
        for end in 0..input.len() {
            let part = client_hello(&input[..end]);
            assert!(part == whole || part == Hello::NeedMore, "{part:?} after {end} bytes, not {whole:?}");
        }
        whole
    }

    fn requested_name(input: &[u8]) -> Option<Box<str>> {
        match by_byte(input) {
            Hello::Client(hello) => hello.server_name,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_real_clients_hello_is_parsed_from_one_record_and_from_many() {
        for fragment in [None, Some(100), Some(32)] {
            let sent = of_rustls("Www.Example.com", &["h2", "http/1.1"], fragment);
            let Hello::Client(hello) = by_byte(&sent) else { panic!("not understood in fragments of {fragment:?}") };
            assert_eq!(hello.server_name.as_deref(), Some("www.example.com"));
            assert_eq!(hello.alpn().collect::<Vec<_>>(), [&b"h2"[..], b"http/1.1"]);
            assert_eq!(client_hello(&sent[..sent.len() - 1]), Hello::NeedMore);
        }
        let Hello::Client(hello) = by_byte(&of_rustls("192.0.2.1", &[], None)) else { panic!("not understood") };
        assert_eq!((hello.server_name.as_deref(), hello.alpn().count()), (None, 0));
    }

    #[test]
    fn hellos_of_clients_too_old_for_rustls_are_parsed() {
        let without_extensions = record(&message(&[&[3; 34][..], &[0, 0, 2, 0, 0x2f, 1, 0]].concat()));
        assert_eq!(requested_name(&without_extensions), None);
        assert_eq!(requested_name(&hello(b"")), None);
        assert_eq!(requested_name(&hello(&name(b"a.example"))).as_deref(), Some("a.example"));
    }

    #[test]
    fn the_highest_offered_version_is_found() {
        let version = |input: &[u8]| match by_byte(input) {
            Hello::Client(hello) => hello.version,
            other => panic!("{other:?}"),
        };
        assert_eq!(version(&of_rustls("a.example", &[], None)), 0x0304);
        let mut of_tls_1_1 = body(&name(b"a.example"));
        of_tls_1_1[1] = 2;
        assert_eq!(version(&record(&message(&of_tls_1_1))), 0x0302);
        // A GREASE value (RFC 8701), TLS 1.1 and TLS 1.0.
        let versions = extension(SUPPORTED_VERSIONS, b"\x06\x7a\x7a\x03\x02\x03\x01");
        assert_eq!(version(&hello(&versions)), 0x0302);
        assert_eq!(version(&hello(b"")), 0x0303);
    }

    #[test]
    fn a_fragment_can_be_a_single_byte() {
        let message = message(&body(&name(b"a.example")));
        let sent: Vec<u8> = message.iter().flat_map(|byte| record(&[*byte])).collect();
        assert_eq!(requested_name(&sent).as_deref(), Some("a.example"));
        // Bytes after the message are ignored.
        let more = record(&[&message[..], b"whatever"].concat());
        assert_eq!(requested_name(&more).as_deref(), Some("a.example"));
    }

    #[test]
    fn names_are_normalized() {
        for (sent, read) in [
            (&b"A.Example"[..], Some("a.example")),
            (b"a.example.", Some("a.example")),
            (b"_x-1.a", Some("_x-1.a")),
            (b"192.0.2.1", None),
            (b"2001:db8::1", None),
        ] {
            assert_eq!(requested_name(&hello(&name(sent))).as_deref(), read);
        }
        let long = "a".repeat(254);
        for wrong in [
            &b""[..],
            b".",
            b".a",
            b"a..b",
            b"*.example",
            b"a b",
            b"a\0b",
            b"\xc3\xa4",
            b"a/b",
            b"a:443",
            long.as_bytes(),
        ] {
            assert_eq!(by_byte(&hello(&name(wrong))), Hello::Invalid, "{}", wrong.escape_ascii());
        }
    }

    #[test]
    fn malformed_hellos_are_rejected() {
        let one_name = name(b"a");
        for extensions in [
            [&one_name[..], &one_name].concat(),
            extension(SERVER_NAME, b""),
            extension(SERVER_NAME, b"\0\0"),
            extension(SERVER_NAME, b"\0\x04\0\0\x02a"),
            extension(SERVER_NAME, b"\0\x04\x01\0\x01a"),
            extension(SERVER_NAME, b"\0\x08\0\0\x01a\0\0\x01b"),
            extension(SERVER_NAME, b"\0\x04\0\0\x01a+"),
            extension(ALPN, b"\0\0"),
            extension(ALPN, b"\0\x01\0"),
            extension(ALPN, b"\0\x03\x03h2"),
            extension(ALPN, b"\0\x03\x02h2+"),
            [extension(ALPN, b"\0\x03\x02h2"), extension(ALPN, b"\0\x03\x02h2")].concat(),
            extension(SUPPORTED_VERSIONS, b"\x04\x03\x04"),
            b"\0".to_vec(),
            b"\0+\0\x05".to_vec(),
        ] {
            assert_eq!(by_byte(&hello(&extensions)), Hello::Invalid, "{}", extensions.escape_ascii());
        }
        let extra = record(&message(&[&body(b"")[..], b"+"].concat()));
        assert_eq!(by_byte(&extra), Hello::Invalid);
        for rest in [&[33][..], &[0, 0, 0, 1, 0], &[0, 0, 1, 0, 1, 0], &[0, 0, 2, 0x13, 1, 0], &[0, 0, 2, 0x13]] {
            assert_eq!(by_byte(&record(&message(&[&[3; 34][..], rest].concat()))), Hello::Invalid, "{rest:?}");
        }
    }

    #[test]
    fn other_protocols_are_detected_at_the_first_differing_byte() {
        for (input, needs) in [
            (&b"GET / HTTP/1.1"[..], 1),
            (b"\x15\x03\x01\0\x02\x02\x28", 1),
            (b"\x16\x02\x01", 2),
            (b"\x16\x03\x01\0\0", 5),
            (b"\x16\x03\x01\x40\x01", 5),
            (b"\x16\x03\x01\x40\0\x02", 6),
            (b"\x16\x03\x01\x40\0\x01\0\x40\0", 9),
        ] {
            assert_eq!(by_byte(input), Hello::Invalid, "{}", input.escape_ascii());
            assert_eq!(client_hello(&input[..needs - 1]), Hello::NeedMore, "{}", input.escape_ascii());
        }
    }

    #[test]
    fn the_length_of_a_hello_is_limited() {
        let padding = |len: usize| extension(21, &vec![0; len]);
        let overhead = hello(&padding(0)).len();
        let largest = hello(&[name(b"a"), padding(MAX_HELLO - overhead - name(b"a").len())].concat());
        assert_eq!(largest.len(), MAX_HELLO);
        assert!(matches!(client_hello(&largest), Hello::Client(_)));
        assert_eq!(client_hello(&largest[..MAX_HELLO - 1]), Hello::NeedMore);
        let one_more = hello(&padding(MAX_HELLO - overhead + 1));
        assert_eq!(client_hello(&one_more), Hello::Invalid);
        // In records of one byte each.
        let endless: Vec<u8> = message(&body(&padding(8000))).iter().flat_map(|byte| record(&[*byte])).collect();
        assert_eq!(client_hello(&endless), Hello::Invalid);
        assert_eq!(client_hello(&endless[..MAX_HELLO - 1]), Hello::NeedMore);
    }
}
