//! The client that speaks HTTP/2: one connection for many messages, another when that has ended.

use std::net::SocketAddr;

use super::{
    model::{Got, PATIENCE, Point, Request, borrowed, head},
    upstream::Seen,
};
use crate::harness::{
    DEADLINE, H2,
    frames::{code, encode, kind},
};

pub struct Client {
    address: SocketAddr,
    connection: Option<H2>,
}

impl Client {
    pub fn new(address: SocketAddr) -> Client {
        Client { address, connection: None }
    }

    pub fn exchange(&mut self, request: &Request, row: usize, seen: &Seen) -> Got {
        let mut h2 = self.connection.take().unwrap_or_else(|| H2::connect(self.address));
        let stream = h2.next_stream();
        let fields = head(request, "http", row);
        if request.cut == Some(Point::Head) {
            // Without END_HEADERS.
            h2.send(kind::HEADERS, 0, stream, &encode(&borrowed(&fields)));
            return Got::Left;
        }
        h2.headers(stream, &borrowed(&fields), request.body.is_none());
        if request.waits {
            h2.wire.socket().set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
            while h2.so_far(stream).blocks.is_empty() && h2.read().is_ok() {}
            h2.wire.socket().set_read_timeout(Some(DEADLINE)).expect("a timeout can be set");
        }
        let mut alone = send(&mut h2, stream, request).is_some();
        if let Some(point) = request.cut {
            if point != Point::Trailers {
                h2.ping();
            }
            seen.wait_before_leaving(row, request);
            if point != Point::Trailers {
                h2.reset(stream, code::CANCEL);
                self.connection = Some(h2);
            }
            return Got::Left;
        }
        let over = |h2: &H2| h2.so_far(stream).ended || h2.so_far(stream).reset.is_some();
        while alone && !over(&h2) {
            alone = h2.read().is_ok();
        }
        alone &= h2.goaways.is_empty();
        let message = h2.so_far(stream);
        if alone {
            self.connection = Some(h2);
        }
        Got::of(message.blocks, message.body, message.ended, alone, &request.method)
    }
}

/// Sends body and trailers, as far as they are wanted. None: the connection has ended.
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
