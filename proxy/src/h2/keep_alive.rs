//! Detects lost peers with pings (RFC 9113 section 6.7).

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

use crate::net::poll_timer;

/// Pings a peer that has been silent.
pub struct KeepAlive {
    interval: Duration,
    timeout: Duration,
    pings: PingPong,
    timer: Pin<Box<Sleep>>,
    /// Whether a ping is unanswered.
    asked: bool,
    /// The number of bytes received at the last poll, and when it changed.
    received: u64,
    since: Instant,
}

impl KeepAlive {
    /// Pings after each `interval` of silence; the peer counts as lost after `timeout` without an answer.
    pub fn new(interval: Option<Duration>, timeout: Duration, pings: Option<PingPong>) -> Option<KeepAlive> {
        let interval = interval?;
        let timer = Box::pin(sleep(interval));
        Some(KeepAlive { interval, timeout, pings: pings?, timer, asked: false, received: 0, since: Instant::now() })
    }

    /// Completes when the peer has not answered in time. `received`: the bytes received so far; `wanted`: whether a
    /// ping may be sent.
    pub fn poll(&mut self, received: u64, wanted: bool, cx: &mut Context<'_>) -> Poll<()> {
        if self.received != received {
            (self.received, self.since) = (received, Instant::now());
        }
        loop {
            if self.asked {
                match self.pings.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => {
                        self.asked = false;
                        self.timer.as_mut().reset(self.since + self.interval);
                    }
                    // The connection has ended and reports it itself.
                    Poll::Ready(Err(_)) => return Poll::Pending,
                    Poll::Pending => {}
                }
            }
            if poll_timer(self.timer.as_mut(), cx).is_pending() {
                return Poll::Pending;
            }
            if self.asked {
                return Poll::Ready(());
            }
            let due = self.since + self.interval;
            if due > Instant::now() {
                self.timer.as_mut().reset(due);
                continue;
            }
            if !wanted || self.pings.send_ping(Ping::opaque()).is_err() {
                return Poll::Pending;
            }
            self.asked = true;
            self.timer.as_mut().reset(Instant::now() + self.timeout);
        }
    }
}
