//! Sleeping for a duration.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use super::executor::sleeps;
use crate::{Level, log, sys};

const DAY: Duration = Duration::from_secs(86_400);

/// Returns a future that completes after this time, at most a day. It blocks no thread.
///
/// It requires a stream. In [`AsyncFilter::on_tick`](crate::AsyncFilter::on_tick) and `on_queue`, which have none, it
/// completes immediately and logs a warning.
pub fn sleep(time: Duration) -> Sleep {
    let time = time.min(DAY);
    let nanos = time.as_secs() * 1_000_000_000 + u64::from(time.subsec_nanos());
    Sleep { until: sys::now().saturating_add(nanos), place: None }
}

/// The future of [`sleep`].
#[derive(Debug)]
#[must_use = "a future must be awaited"]
pub struct Sleep {
    /// Deadline on the host's clock, in nanoseconds.
    until: u64,
    /// The task and the sleeper's number in it, once polled.
    place: Option<(u32, u32)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if sys::now() >= self.until {
            return Poll::Ready(());
        }
        if let Some((task, id)) = self.place {
            sleeps::set_waker(task, id, cx.waker());
            return Poll::Pending;
        }
        let task = super::executor::current();
        match sleeps::sleep(task, self.until, cx.waker()) {
            Some(id) => {
                self.place = Some((task, id));
                Poll::Pending
            }
            None => {
                log(Level::Warn, "a filter cannot sleep in a callback without a stream");
                Poll::Ready(())
            }
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some((task, id)) = self.place {
            sleeps::leave(task, id);
        }
    }
}
