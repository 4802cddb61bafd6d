//! Whether a silent peer is still there: pings (RFC 9113 section 6.7).

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

use crate::net::poll_timer;

/// Asks a peer that has sent nothing for a while.
pub struct KeepAlive {
    interval: Duration,
    timeout: Duration,
    pings: PingPong,
    timer: Pin<Box<Sleep>>,
    /// A ping is on its way.
    asked: bool,
    /// Bytes that had been received when it was last looked, and when that was.
    received: u64,
    since: Instant,
}

impl KeepAlive {
    /// Pings after each `interval` of silence, and gives the peer up after `timeout` without an answer.
    pub fn new(interval: Option<Duration>, timeout: Duration, pings: Option<PingPong>) -> Option<KeepAlive> {
        let interval = interval?;
        let timer = Box::pin(sleep(interval));
        Some(KeepAlive { interval, timeout, pings: pings?, timer, asked: false, received: 0, since: Instant::now() })
    }

    /// Ready when the peer has not answered in time. `received`: bytes that have come from it so far; `wanted`: it may be asked.
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
                    // The connection has ended, and says so itself.
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
