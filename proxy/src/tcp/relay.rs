//! Moves bytes between a client and an upstream, through the filters.
//!
//! A connection is one task, which polls both directions ([`direction`](super::direction)) in turn.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    sync::Arc,
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
    upstream::ClusterStats,
};
use bytes::Bytes;

/// Time limit for sending what has passed the filters when a connection is being closed.
const FLUSH: Duration = Duration::from_secs(10);

impl From<ConnectionDenied> for TcpFailure {
    fn from(_: ConnectionDenied) -> TcpFailure {
        TcpFailure::FilterFailed
    }
}

/// A client's connection and its upstream connection.
pub(super) struct Relay<'e, D> {
    stream: &'e Rc<NetworkStream>,
    flow: ConnectionFlow,
    down: D,
    up: Option<Stream>,
    directions: [RelayDirection<'e>; 2],
    clock: TcpTimeouts,
    /// Bytes that were read before the relay began.
    first: Bytes,
}

impl<'e, D: Transport> Relay<'e, D> {
    pub(super) fn new(guard: &'e TcpGuard, down: D, first: Bytes) -> Self {
        let (listener, stream) = (guard.listener(), guard.stream());
        Relay {
            stream,
            flow: ConnectionFlow::default(),
            down,
            up: None,
            directions: Side::BOTH.map(|side| RelayDirection::new(guard, side)),
            clock: TcpTimeouts::new(stream, listener.idle, listener.age),
            first,
        }
    }

    /// Notifies the filters of the connection, and waits until all of them let it through. Data from the client is
    /// passed to them meanwhile.
    pub(super) async fn open(&mut self) -> Result<(), TcpFailure> {
        self.flow.advance(self.stream)?;
        let first = std::mem::take(&mut self.first);
        if !first.is_empty() {
            self.directions[0].take_first(&mut self.flow, first)?;
        }
        poll_fn(|cx| {
            if self.is_closed() {
                return Poll::Ready(Err(TcpFailure::Closed));
            }
            if self.flow.is_open(self.stream) {
                return Poll::Ready(Ok(()));
            }
            if let Err(failure) = self.work(cx) {
                return Poll::Ready(Err(failure));
            }
            match self.flow.is_open(self.stream) {
                true => Poll::Ready(Ok(())),
                false => Poll::Pending,
            }
        })
        .await
    }

    /// Waits for the connection to an endpoint. Data from the client is passed to the filters meanwhile.
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
                Err(failure) => Poll::Ready(Err(failure)),
            }
        })
        .await
    }

    /// Adds the established connection to an endpoint.
    pub(super) fn connected(&mut self, up: Stream, cluster: &Arc<ClusterStats>) {
        let plain = self.down.plain().is_some() && up.plain().is_some();
        for direction in &mut self.directions {
            direction.connected(plain, cluster);
        }
        self.up = Some(up);
        self.stream.touch();
    }

    /// Moves bytes until both sides have ended.
    pub(super) async fn run(&mut self) -> Result<(), TcpFailure> {
        poll_fn(|cx| match self.work(cx) {
            Err(failure) => Poll::Ready(Err(failure)),
            Ok(()) if self.directions.iter().all(RelayDirection::is_shut) => Poll::Ready(Ok(())),
            Ok(()) => Poll::Pending,
        })
        .await
    }

    fn is_closed(&self) -> bool {
        self.stream.state.borrow().closed
    }

    /// Does all work that is possible now.
    fn work(&mut self, cx: &mut Context<'_>) -> Result<(), TcpFailure> {
        self.stream.register(cx);
        if self.is_closed() {
            return Err(TcpFailure::Closed);
        }
        self.flow.resume(self.stream)?;
        let [from_client, from_upstream] = &mut self.directions;
        let forth = from_client.poll(&mut self.flow, Some(&mut self.down), self.up.as_mut(), cx)?;
        let back = from_upstream.poll(&mut self.flow, self.up.as_mut(), Some(&mut self.down), cx)?;
        if forth == BytesMoved::Some || back == BytesMoved::Some {
            self.stream.touch();
        }
        if self.is_closed() {
            return Err(TcpFailure::Closed);
        }
        match self.clock.poll(cx) {
            Poll::Ready(failure) => Err(failure),
            Poll::Pending => Ok(()),
        }
    }

    /// Closes the connection for this reason. Bytes that have passed the filters are still sent, unless the receiver
    /// would not take them. Returns the client's side if an immediate close could lose the last bytes sent to the
    /// client.
    pub(super) async fn finish(mut self, failure: TcpFailure) -> Option<D> {
        let futile =
            matches!(failure, TcpFailure::ClientReset | TcpFailure::Idle | TcpFailure::Stalled | TcpFailure::Age);
        if !futile {
            // Bytes that filters added last.
            let _ = self.flow.resume(self.stream);
            let _ = tokio::time::timeout(FLUSH, poll_fn(|cx| self.poll_flush(cx))).await;
        }
        if matches!(failure, TcpFailure::ClientReset | TcpFailure::UpstreamReset) {
            self.down.abort();
            self.up.iter().for_each(Transport::abort);
            return None;
        }
        let unread = !self.directions[0].has_ended();
        let answered = self.stream.state.borrow().sent[Side::Upstream as usize] > 0;
        (!futile && answered && unread).then_some(self.down)
    }

    /// Ready when nothing is left to send, or nothing more can be sent.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let [from_client, from_upstream] = &mut self.directions;
        let forth = self.up.as_mut().map(|up| from_client.poll_send(&mut self.flow, Some(up), cx));
        let back = from_upstream.poll_send(&mut self.flow, Some(&mut self.down), cx);
        match forth.is_none_or(|forth| forth.is_ready()) && back.is_ready() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}
