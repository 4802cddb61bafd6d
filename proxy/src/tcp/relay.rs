//! Moves bytes between a client and an upstream, past the filters.
//!
//! A connection is one task; both directions ([`way`](super::way)) are polled by it, one after the other.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use super::{
    TcpFailure,
    direction::{BytesMoved, RelayDirection},
    guard::TcpGuard,
    timeouts::TcpTimeouts,
};
use crate::{
    chain::network::{ConnectionDenied, ConnectionFlow, NetworkStream, Side},
    net::{Stream, Transport},
};
use bytes::Bytes;

/// How long a connection that is being ended may take over what is on its way.
const FLUSH: Duration = Duration::from_secs(10);

impl From<ConnectionDenied> for TcpFailure {
    fn from(_: ConnectionDenied) -> TcpFailure {
        TcpFailure::FilterFailed
    }
}

/// A connection with its two ends.
pub(super) struct Relay<'e, D> {
    stream: &'e Rc<NetworkStream>,
    flow: ConnectionFlow,
    down: D,
    up: Option<Stream>,
    ways: [RelayDirection<'e>; 2],
    clock: TcpTimeouts,
    /// What was read before this began.
    first: Bytes,
}

impl<'e, D: Transport> Relay<'e, D> {
    pub(super) fn new(ending: &'e TcpGuard, down: D, first: Bytes) -> Self {
        let (site, stream) = (ending.site(), ending.stream());
        Relay {
            stream,
            flow: ConnectionFlow::default(),
            down,
            up: None,
            ways: Side::BOTH.map(|side| RelayDirection::new(ending, side)),
            clock: TcpTimeouts::new(stream, site.idle, site.age),
            first,
        }
    }

    /// Tells the filters of the connection, and waits until all of them let it through. They are shown what the client sends
    /// meanwhile.
    pub(super) async fn open(&mut self) -> Result<(), TcpFailure> {
        self.flow.advance(self.stream)?;
        let first = std::mem::take(&mut self.first);
        if !first.is_empty() {
            self.ways[0].take_first(&mut self.flow, first)?;
        }
        poll_fn(|cx| {
            if self.is_closed() {
                return Poll::Ready(Err(TcpFailure::Closed));
            }
            if self.flow.is_open(self.stream) {
                return Poll::Ready(Ok(()));
            }
            if let Err(fault) = self.work(cx) {
                return Poll::Ready(Err(fault));
            }
            match self.flow.is_open(self.stream) {
                true => Poll::Ready(Ok(())),
                false => Poll::Pending,
            }
        })
        .await
    }

    /// Waits for a connection to an endpoint. Filters are shown what the client sends meanwhile.
    pub(super) async fn meanwhile<T>(
        &mut self,
        connecting: impl Future<Output = Result<T, TcpFailure>>,
    ) -> Result<T, TcpFailure> {
        let mut connecting = pin!(connecting);
        poll_fn(|cx| {
            if let Poll::Ready(result) = connecting.as_mut().poll(cx) {
                return Poll::Ready(result);
            }
            match self.work(cx) {
                Ok(()) => Poll::Pending,
                Err(fault) => Poll::Ready(Err(fault)),
            }
        })
        .await
    }

    /// There is a connection to an endpoint.
    pub(super) fn connected(&mut self, up: Stream, cluster: Option<&'e super::TcpClusterMetrics>) {
        let plain = self.down.plain().is_some() && up.plain().is_some();
        for way in &mut self.ways {
            way.connected(plain, cluster);
        }
        self.up = Some(up);
        self.stream.touch();
    }

    /// Moves bytes until both sides have ended.
    pub(super) async fn run(&mut self) -> Result<(), TcpFailure> {
        poll_fn(|cx| match self.work(cx) {
            Err(fault) => Poll::Ready(Err(fault)),
            Ok(()) if self.ways.iter().all(RelayDirection::is_shut) => Poll::Ready(Ok(())),
            Ok(()) => Poll::Pending,
        })
        .await
    }

    fn is_closed(&self) -> bool {
        self.stream.state.borrow().closed
    }

    /// Does all that can be done now.
    fn work(&mut self, cx: &mut Context<'_>) -> Result<(), TcpFailure> {
        self.stream.register(cx);
        if self.is_closed() {
            return Err(TcpFailure::Closed);
        }
        self.flow.resume(self.stream)?;
        let [from_client, from_upstream] = &mut self.ways;
        let forth = from_client.poll(&mut self.flow, Some(&mut self.down), self.up.as_mut(), cx)?;
        let back = from_upstream.poll(&mut self.flow, self.up.as_mut(), Some(&mut self.down), cx)?;
        if forth == BytesMoved::Some || back == BytesMoved::Some {
            self.stream.touch();
        }
        if self.is_closed() {
            return Err(TcpFailure::Closed);
        }
        match self.clock.poll(cx) {
            Poll::Ready(fault) => Err(fault),
            Poll::Pending => Ok(()),
        }
    }

    /// Ends the connection for this reason. What has passed the filters is still sent, unless nobody would take it. Returns the
    /// client's side if closing it at once could take from the client what it was sent last.
    pub(super) async fn finish(mut self, fault: TcpFailure) -> Option<D> {
        let futile =
            matches!(fault, TcpFailure::ClientReset | TcpFailure::Idle | TcpFailure::Stalled | TcpFailure::Age);
        if !futile {
            // What filters have added last.
            let _ = self.flow.resume(self.stream);
            let _ = tokio::time::timeout(FLUSH, poll_fn(|cx| self.poll_flush(cx))).await;
        }
        if matches!(fault, TcpFailure::ClientReset | TcpFailure::UpstreamReset) {
            self.down.abort();
            self.up.iter().for_each(Transport::abort);
            return None;
        }
        let unread = !self.ways[0].has_ended();
        let answered = self.stream.state.borrow().sent[Side::Upstream as usize] > 0;
        (!futile && answered && unread).then_some(self.down)
    }

    /// Ready when nothing is left to be sent, or can be.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let [from_client, from_upstream] = &mut self.ways;
        let forth = self.up.as_mut().map(|up| from_client.poll_send(&mut self.flow, Some(up), cx));
        let back = from_upstream.poll_send(&mut self.flow, Some(&mut self.down), cx);
        match forth.is_none_or(|forth| forth.is_ready()) && back.is_ready() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}
