//! The HTTP/2 client: one connection for many messages, and a new one when it has ended.

use std::net::SocketAddr;

use super::super::{
    DEADLINE, H2,
    frames::{code, encode, kind},
};
use super::{End, Outcome, PATIENCE, Point, Request, Speaker, Version, borrowed};

pub struct SpeakerH2 {
    address: SocketAddr,
    connection: Option<H2>,
}

impl SpeakerH2 {
    pub fn new(address: SocketAddr) -> SpeakerH2 {
        SpeakerH2 { address, connection: None }
    }
}

impl Speaker for SpeakerH2 {
    fn version(&self) -> Version {
        Version::H2
    }

    fn exchange_until(&mut self, request: &Request, leave: &mut dyn FnMut()) -> Outcome {
        let mut h2 = self.connection.take().unwrap_or_else(|| H2::connect(self.address));
        let stream = h2.next_stream();
        let fields = request.head("http");
        if request.cut == Some(Point::Head) {
            // Without END_HEADERS.
            h2.send(kind::HEADERS, 0, stream, &encode(&borrowed(&fields)));
            return Outcome::Left;
        }
        h2.headers(stream, &borrowed(&fields), request.body.is_none());
        if request.waits {
            h2.wire.socket().set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
            while h2.so_far(stream).blocks.is_empty() && h2.read().is_ok() {}
            h2.wire.socket().set_read_timeout(Some(DEADLINE)).expect("a timeout can be set");
        }
        let mut goes_on = send(&mut h2, stream, request).is_some();
        if let Some(point) = request.cut {
            if point != Point::Trailers {
                h2.ping();
            }
            leave();
            if point != Point::Trailers {
                h2.reset(stream, code::CANCEL);
                self.connection = Some(h2);
            }
            return Outcome::Left;
        }
        let over = |h2: &H2| h2.so_far(stream).ended || h2.so_far(stream).reset.is_some();
        while goes_on && !over(&h2) {
            goes_on = h2.read().is_ok();
        }
        let message = h2.so_far(stream);
        let end = match (h2.goaways.last(), message.reset) {
            _ if message.ended => None,
            (Some(goaway), _) => Some(End::Connection(Some(goaway.code().into()))),
            (None, Some(code)) => Some(End::Reset(code.into())),
            (None, None) => Some(End::Connection(None)),
        };
        if goes_on && h2.goaways.is_empty() {
            self.connection = Some(h2);
        }
        Outcome::of(message.blocks, message.body, end, &request.method)
    }
}

/// Sends body and trailers, as far as the peer accepts them. `None` if the connection has ended.
fn send(h2: &mut H2, stream: u32, request: &Request) -> Option<()> {
    let pieces = request.body.iter().flatten().collect::<Vec<_>>();
    for (nth, piece) in pieces.iter().enumerate() {
        let last = nth + 1 == pieces.len() && request.trailers.is_empty() && request.cut.is_none();
        let mut rest = &piece[..];
        while !rest.is_empty() {
            if h2.so_far(stream).ended || h2.so_far(stream).reset.is_some() {
                return Some(());
            }
            match h2.data_within(stream, rest) {
                0 => _ = h2.read().ok()?,
                sent => rest = &rest[sent..],
            }
        }
        if last {
            h2.data(stream, b"", true);
        }
        if request.cut == Some(Point::Piece) {
            return Some(());
        }
    }
    if request.cut == Some(Point::End) || request.body.is_none() {
        return Some(());
    }
    match (request.cut, request.trailers.is_empty()) {
        (Some(Point::Trailers), _) => h2.send(kind::HEADERS, 1, stream, &encode(&borrowed(&request.trailers))),
        (_, false) => h2.headers(stream, &borrowed(&request.trailers), true),
        (_, true) if pieces.is_empty() || request.cut.is_some() => h2.data(stream, b"", true),
        _ => {}
    }
    Some(())
}
