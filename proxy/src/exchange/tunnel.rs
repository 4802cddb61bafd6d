//! Tunnels: after both sides have switched to another protocol, bytes are copied in both directions until either side
//! ends.
//!
//! An end is forwarded as an end, and an abort (a reset, an error) as an abort, in the form of the other side's
//! protocol (RFC 9113 section 8.5, RFC 8441 section 5, RFC 9114 section 4.4). Bytes received before an abort are
//! delivered first.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::yield_now,
    time::{Instant, sleep_until},
};
use tollgate_abi::fast::flag;

use super::{outcome::ResponseGuards, reply::LocalFailure, stream_guard::StreamGuard};
use crate::{
    chain::{Direction, flow::is_interrupted},
    net::{CopyDirection, CopyError, Transport, poll_timer},
    observe,
    tls::{self, Peer},
    upstream::{Upgrading, UpstreamBodyError},
};

/// An upgraded upstream connection, to be joined with the client's.
pub struct Tunnel {
    pub(super) upstream: Upgrading,
    pub(super) stream_guard: StreamGuard,
    pub(super) idle: Option<Duration>,
    pub(super) ends: Option<Instant>,
    pub(super) guards: ResponseGuards,
}

/// The upstream's side of a tunnel. If the client disappears and drops this, the upstream sees an abort.
struct Upstream {
    stream: Box<dyn Transport>,
    aborts: bool,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if self.aborts {
            self.stream.abort();
        }
    }
}

/// One direction of a tunnel, named after the side that sends.
#[derive(Default)]
struct TunnelDirection {
    copy: CopyDirection,
    is_over: bool,
    /// The error, if the side did not end cleanly.
    broke: Option<io::Error>,
}

impl TunnelDirection {
    /// Copies as much as possible now. `back` is the opposite direction.
    fn poll(
        &mut self,
        back: &mut TunnelDirection,
        sender: &mut (impl AsyncRead + Unpin),
        receiver: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) {
        if self.is_over {
            return;
        }
        let Poll::Ready(carried) = self.copy.poll(sender, receiver, cx) else { return };
        self.is_over = true;
        match carried {
            Ok(()) => {}
            Err(CopyError::Sender(error)) => {
                // The sender is gone and cannot read responses.
                back.is_over = true;
                self.broke.get_or_insert(error);
            }
            // A receiver that has ended its own side may close completely: that is not an abort.
            Err(CopyError::Receiver(_)) if back.copy.has_ended() => {}
            Err(CopyError::Receiver(error)) => {
                // Bytes that it sent before are still delivered, but the following end is not a regular one.
                back.copy.cut();
                back.broke.get_or_insert(error);
            }
        }
    }
}

/// Both directions: the client sends `forth`, the upstream `back`.
#[derive(Default)]
struct Directions {
    forth: TunnelDirection,
    back: TunnelDirection,
}

impl Directions {
    /// Copies as much as possible now. Ready when nothing is left to copy.
    fn poll(
        &mut self,
        client: &mut impl Transport,
        upstream: &mut Box<dyn Transport>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let Directions { forth, back } = self;
        forth.poll(back, client, upstream, cx);
        back.poll(forth, upstream, client, cx);
        if forth.is_over && back.is_over { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Returns the number of bytes moved so far in both directions.
    fn moved(&self) -> u64 {
        [&self.forth, &self.back].into_iter().map(|way| way.copy.received() + way.copy.sent()).sum()
    }
}

impl Tunnel {
    /// Copies until both sides have ended, one has failed, or the idle timeout expires.
    pub async fn run(self, mut client: impl Transport) {
        let Tunnel { upstream, stream_guard, idle, ends, guards } = self;
        let stream = stream_guard.stream().clone();
        let tunnels = stream_guard.listener().metrics.tunnels.clone();
        let mut upstream = match upstream.await {
            Ok(stream) => Upstream { stream, aborts: true },
            Err(error) => {
                stream.flag(flag::UPSTREAM_TERMINATED);
                guards.broken(&stream, &UpstreamBodyError::Connection(error), 0);
                client.abort();
                return;
            }
        };
        // A guard, so that the gauge is also correct if the client drops the tunnel.
        let counted = tunnels.hold(observe::shard());
        let mut directions = Directions::default();
        let (mut moved, mut active) = (0, Instant::now());
        let bound = |active: Instant| [idle.map(|idle| active + idle), ends].into_iter().flatten().min();
        let mut timer = bound(active).map(|at| Box::pin(sleep_until(at)));
        let filtered = !stream.chain.filters().is_empty();
        let flags = poll_fn(|cx| {
            if filtered {
                if is_interrupted(&stream) {
                    stream.state.borrow_mut().details = LocalFailure::FilterClosed.details().into();
                    return Poll::Ready(LocalFailure::FilterClosed.flags());
                }
                stream.register(Direction::Response, cx);
            }
            if directions.poll(&mut client, &mut upstream.stream, cx).is_ready() {
                return Poll::Ready(0);
            }
            let now = directions.moved();
            if moved != now {
                (moved, active) = (now, Instant::now());
            }
            let Some(timer) = timer.as_mut() else { return Poll::Pending };
            while poll_timer(timer.as_mut(), cx).is_ready() {
                match bound(active) {
                    Some(at) if at > Instant::now() => timer.as_mut().reset(at),
                    _ if ends.is_some_and(|end| end <= Instant::now()) => return Poll::Ready(flag::UPSTREAM_TIMEOUT),
                    _ => return Poll::Ready(flag::IDLE_TIMEOUT),
                }
            }
            Poll::Pending
        })
        .await;
        drop(counted);
        let (forth, back) = (directions.forth.copy, directions.back.copy);
        let (client_broke, upstream_broke) = (directions.forth.broke, directions.back.broke);
        upstream.aborts = client_broke.is_some();
        stream.flag(flags);
        let (broke, client_aborts) = (client_broke.is_some() || upstream_broke.is_some(), upstream_broke.is_some());
        if let Some(error) = upstream_broke {
            stream.flag(flag::UPSTREAM_TERMINATED);
            guards.broken(&stream, &UpstreamBodyError::Connection(error), back.received());
        } else if let Some(error) = client_broke {
            stream.flag(flag::DOWNSTREAM_TERMINATED);
            stream.downstream_failed(tls::explain(&error, Peer::Client).1);
        }
        {
            let bytes = &mut stream.state.borrow_mut().bytes;
            bytes[Direction::Request as usize] += forth.received();
            bytes[Direction::Response as usize] += back.received();
        }
        stream_guard.complete();
        if broke {
            // h2 discards data queued on a stream that is reset, so let its connection send it first.
            yield_now().await;
        }
        if client_aborts {
            client.abort();
        }
    }
}
