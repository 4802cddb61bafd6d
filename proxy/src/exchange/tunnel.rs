//! What is left of a request when both sides have switched to another protocol: bytes, both ways, until somebody ends it.

use std::{cell::Cell, rc::Rc, task::Poll, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep_until},
};
use tollgate_abi::fast::flag;

use super::{dispatch::Guards, ending::Ending, reply::Fault};
use crate::{
    chain::{Direction, flow::is_interrupted},
    net::{Metered, poll_timer},
    observe,
    upstream::{Broken, Switching},
};

/// A connection to an upstream that speaks another protocol now, to be joined with the client's.
pub struct Tunnel {
    pub(super) upstream: Switching,
    pub(super) ending: Ending,
    pub(super) idle: Option<Duration>,
    pub(super) ends: Option<Instant>,
    pub(super) guards: Guards,
}

impl Tunnel {
    /// Copies until both sides have ended, or one has failed, or nothing has moved for too long.
    pub async fn run(self, downstream: impl AsyncRead + AsyncWrite + Unpin) {
        let Tunnel { upstream, ending, idle, ends, guards } = self;
        let stream = ending.stream().clone();
        let tunnels = ending.site().figures.tunnels.clone();
        let upstream = match upstream.await {
            Ok(upstream) => upstream,
            Err(error) => {
                stream.flag(flag::UPSTREAM_TERMINATED);
                guards.broken(&stream, &Broken::Connection(error), 0);
                return;
            }
        };
        tunnels.add(observe::shard(), 1);
        let moved = Rc::new(Cell::new([0; 2]));
        // What is read from one side is what is sent to the other, so the traffic of one side says everything.
        let (mut downstream, mut upstream) = (downstream, Metered::new(upstream, Rc::default()));
        let traffic = upstream.traffic();
        let mut copying = std::pin::pin!(tokio::io::copy_bidirectional(&mut downstream, &mut upstream));
        let mut active = Instant::now();
        let bound = |active: Instant| [idle.map(|idle| active + idle), ends].into_iter().flatten().min();
        let mut timer = bound(active).map(|at| Box::pin(sleep_until(at)));
        let filtered = !stream.chain.filters().is_empty();
        let flags = std::future::poll_fn(|cx| {
            if filtered {
                if is_interrupted(&stream) {
                    stream.state.borrow_mut().details = Fault::FilterClosed.details().into();
                    return Poll::Ready(Fault::FilterClosed.flags());
                }
                stream.register(Direction::Response, cx);
            }
            if let Poll::Ready(result) = copying.as_mut().poll(cx) {
                return Poll::Ready(if result.is_ok() { 0 } else { flag::UPSTREAM_TERMINATED });
            }
            let now = [traffic.sent(), traffic.received()];
            if moved.replace(now) != now {
                active = Instant::now();
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
        tunnels.sub(observe::shard(), 1);
        let mut state = stream.state.borrow_mut();
        state.flags |= flags;
        state.bytes[Direction::Request as usize] += traffic.sent();
        state.bytes[Direction::Response as usize] += traffic.received();
        drop(state);
        ending.complete();
    }
}
