//! The HTTP/3 client: hand-written frames and QPACK on quinn's streams.

use std::net::SocketAddr;

use loona_hpack::huffman::HuffmanDecoder;
use quinn::{RecvStream, SendStream};
use rustls::pki_types::CertificateDer;
use tokio::time::timeout;

use super::super::{
    DEADLINE,
    frames::Fields,
    quic::{CONTROL, Raw, frame, section},
};
use super::{End, Outcome, PATIENCE, Point, Request, Speaker, Version, borrowed};

pub struct SpeakerH3 {
    address: SocketAddr,
    certificate: CertificateDer<'static>,
    connection: Option<(Raw, SendStream)>,
}

impl SpeakerH3 {
    /// A client of a server with this certificate for `web.test`.
    pub fn new(address: SocketAddr, certificate: CertificateDer<'static>) -> SpeakerH3 {
        SpeakerH3 { address, certificate, connection: None }
    }
}

impl Speaker for SpeakerH3 {
    fn version(&self) -> Version {
        Version::H3
    }

    fn exchange_until(&mut self, request: &Request, leave: &mut dyn FnMut()) -> Outcome {
        let (raw, control) = self.connection.take().unwrap_or_else(|| {
            let raw = Raw::connect_to(self.address, &self.certificate, quinn::TransportConfig::default());
            let control = raw.one_way(&CONTROL);
            (raw, control)
        });
        let got = exchange(&raw, request, leave);
        if raw.is_open() {
            self.connection = Some((raw, control));
        }
        got
    }
}

fn exchange(raw: &Raw, request: &Request, leave: &mut dyn FnMut()) -> Outcome {
    let fields = request.head("https");
    let head = frame(1, &section(&borrowed(&fields)));
    let Some((mut send, mut recv)) = raw.try_open(b"") else {
        return Outcome::Broken { status: None, end: End::Connection(raw.close_code()) };
    };
    let mut received = Received::default();
    if request.cut == Some(Point::Head) {
        raw.write(&mut send, &head[..head.len() / 2]);
    } else {
        raw.write(&mut send, &head);
        if request.waits {
            let _ = raw.run(async { timeout(PATIENCE, received.more(&mut recv)).await });
        }
        let trailers = frame(1, &section(&borrowed(&request.trailers)));
        for piece in request.body.iter().flatten() {
            raw.write(&mut send, &frame(0, piece));
            if request.cut == Some(Point::Piece) {
                break;
            }
        }
        if !request.trailers.is_empty() && matches!(request.cut, None | Some(Point::Trailers | Point::After)) {
            let end = if request.cut == Some(Point::Trailers) { trailers.len() / 2 } else { trailers.len() };
            raw.write(&mut send, &trailers[..end]);
        }
        if matches!(request.cut, None | Some(Point::After)) {
            let _ = send.finish();
        }
    }
    if request.cut.is_some() {
        leave();
        raw.cancel(&mut send, &mut recv);
        return Outcome::Left;
    }
    received.all(raw, &mut recv);
    let end = match received.reset {
        _ if received.finished => None,
        _ if !raw.is_open() => Some(End::Connection(raw.close_code())),
        Some(code) => Some(End::Reset(code)),
        None => Some(End::Unfit),
    };
    Outcome::of(received.blocks, received.body, end, &request.method)
}

/// The bytes received on a stream.
#[derive(Default)]
struct Received {
    bytes: Vec<u8>,
    blocks: Vec<Fields>,
    body: Vec<u8>,
    finished: bool,
    reset: Option<u64>,
}

impl Received {
    /// Reads to the end.
    fn all(&mut self, raw: &Raw, recv: &mut RecvStream) {
        let read = async { while self.more(recv).await {} };
        raw.run(async { timeout(DEADLINE, read).await }).expect("an end in time");
    }

    /// Reads more; returns false at the end.
    async fn more(&mut self, recv: &mut RecvStream) -> bool {
        match recv.read_chunk(1 << 20, true).await {
            Ok(Some(chunk)) => self.bytes.extend_from_slice(&chunk.bytes),
            Ok(None) => {
                self.finished = self.bytes.is_empty();
                return false;
            }
            Err(error) => {
                if let quinn::ReadError::Reset(code) = error {
                    self.reset = Some(code.into_inner());
                }
                return false;
            }
        }
        while let Some((kind, payload, length)) = whole_frame(&self.bytes) {
            match kind {
                0 => self.body.extend_from_slice(payload),
                1 => self.blocks.push(decoded(payload)),
                _ => {}
            }
            self.bytes.drain(..length);
        }
        true
    }
}

/// The first frame, if it was received completely: its type, its payload, and the length of both.
fn whole_frame(bytes: &[u8]) -> Option<(u64, &[u8], usize)> {
    let (kind, first) = varint(bytes)?;
    let (length, second) = varint(&bytes[first..])?;
    let start = first + second;
    let end = start + length as usize;
    Some((kind, bytes.get(start..end)?, end))
}

/// A variable-length integer (RFC 9000 section 16), and the number of its bytes.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let length = 1 << (bytes.first()? >> 6);
    let number = bytes.get(..length)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    Some((number & (u64::MAX >> (66 - 8 * length)), length))
}

/// The fields of a section that does not use the dynamic table (RFC 9204 section 4.5), which this client does not
/// allow.
fn decoded(section: &[u8]) -> Fields {
    let mut at = &section[2..];
    let mut fields = Fields::new();
    while let Some(first) = at.first().copied() {
        let field = match first {
            0x80.. => indexed(number(&mut at, 6)),
            0x40.. => {
                let (name, _) = indexed(number(&mut at, 4));
                (name, text(&mut at, 7))
            }
            0x20.. => (text(&mut at, 3), text(&mut at, 7)),
            _ => panic!("the dynamic table, in {}", section.escape_ascii()),
        };
        fields.push(field);
    }
    fields
}

/// A prefixed integer (RFC 7541 section 5.1).
fn number(at: &mut &[u8], prefix: u32) -> usize {
    let most = (1 << prefix) - 1;
    let mut byte = next(at);
    let mut number = usize::from(byte) & most;
    let mut shift = 0;
    while number >= most && (shift == 0 || byte & 0x80 != 0) {
        byte = next(at);
        number += usize::from(byte & 0x7f) << shift;
        shift += 7;
    }
    number
}

/// A string literal, Huffman-coded if the bit before the prefix is set.
fn text(at: &mut &[u8], prefix: u32) -> String {
    let huffman = at[0] & (1 << prefix) != 0;
    let length = number(at, prefix);
    let (bytes, rest) = at.split_at(length);
    *at = rest;
    match huffman {
        true => String::from_utf8_lossy(&HuffmanDecoder::new().decode(bytes).expect("Huffman's code")).into_owned(),
        false => String::from_utf8_lossy(bytes).into_owned(),
    }
}

fn next(at: &mut &[u8]) -> u8 {
    let (first, rest) = at.split_first().expect("more");
    *at = rest;
    *first
}

/// The fields of the static table that the tests need (RFC 9204 appendix A); other fields keep their index.
fn indexed(index: usize) -> (String, String) {
    let (name, value) = match index {
        4 => ("content-length", "0"),
        6 => ("date", ""),
        7 => ("etag", ""),
        11 => ("link", ""),
        12 => ("location", ""),
        14 => ("set-cookie", ""),
        24 => (":status", "103"),
        25 => (":status", "200"),
        26 => (":status", "304"),
        27 => (":status", "404"),
        28 => (":status", "503"),
        44 => ("content-type", "application/dns-message"),
        53 => ("content-type", "text/plain"),
        63 => (":status", "100"),
        64 => (":status", "204"),
        65 => (":status", "206"),
        66 => (":status", "302"),
        67 => (":status", "400"),
        68 => (":status", "403"),
        69 => (":status", "421"),
        70 => (":status", "425"),
        71 => (":status", "500"),
        other => return (format!("static {other}"), String::new()),
    };
    (name.to_owned(), value.to_owned())
}
