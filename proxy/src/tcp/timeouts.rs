//! Timeouts of a connection: one timer for all of them, reset only when it fires.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

use super::TcpFailure;
use crate::{chain::network::NetworkStream, net::poll_timer};

/// The timeouts of a connection.
pub(super) struct TcpTimeouts {
    stream: Rc<NetworkStream>,
    idle: Option<Duration>,
    /// When the connection reaches its maximum age.
    end: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl TcpTimeouts {
    pub(super) fn new(stream: &Rc<NetworkStream>, idle: Option<Duration>, age: Option<Duration>) -> TcpTimeouts {
        let end = age.and_then(|age| stream.start.checked_add(age));
        TcpTimeouts { stream: stream.clone(), idle, end, sleep: None }
    }

    fn next(&self) -> Option<(Instant, TcpFailure)> {
        let idle = self.idle.and_then(|limit| self.stream.active.get().checked_add(limit));
        match (idle, self.end) {
            (Some(idle), Some(end)) if end < idle => Some((end, TcpFailure::Age)),
            (Some(idle), _) => Some((idle, TcpFailure::Idle)),
            (None, end) => Some((end?, TcpFailure::Age)),
        }
    }

    /// Ready when a timeout has expired.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<TcpFailure> {
        loop {
            // Deadlines only ever move later, so the timer may fire too early and is then reset.
            if let Some(sleep) = &mut self.sleep
                && poll_timer(sleep.as_mut(), cx).is_pending()
            {
                return Poll::Pending;
            }
            let Some((at, failure)) = self.next() else { return Poll::Pending };
            if at <= Instant::now() {
                let held = failure == TcpFailure::Idle && self.stream.is_held();
                return Poll::Ready(if held { TcpFailure::Stalled } else { failure });
            }
            match &mut self.sleep {
                Some(sleep) => sleep.as_mut().reset(at),
                None => self.sleep = Some(Box::pin(sleep_until(at))),
            }
        }
    }
}
