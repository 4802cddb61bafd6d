//! Timers that also fire in tasks that never run out of work.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    task::coop,
    time::{Instant, Sleep},
};

/// Ready when the timer's deadline has passed. tokio hides timers from a task that has used up its cooperative budget,
/// so a peer that always has data ready could postpone a deadline indefinitely. Such a task reads the clock instead,
/// and only such a task pays for that.
pub fn poll_timer(mut timer: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<()> {
    match timer.as_mut().poll(cx) {
        Poll::Pending if !coop::has_budget_remaining() && timer.deadline() <= Instant::now() => Poll::Ready(()),
        polled => polled,
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, pin::pin, time::Duration};

    use tokio::time::sleep;

    use super::*;

    /// Reads without end, as from a peer that is faster than this task.
    fn use_up_the_turn(cx: &mut Context<'_>) {
        while coop::poll_proceed(cx).map(|turn| turn.made_progress()).is_ready() {}
    }

    #[tokio::test(start_paused = true)]
    async fn timer_fires_in_a_task_without_budget() {
        let mut timer = pin!(sleep(Duration::from_secs(1)));
        poll_fn(|cx| {
            use_up_the_turn(cx);
            assert!(poll_timer(timer.as_mut(), cx).is_pending(), "the deadline has not passed yet");
            Poll::Ready(())
        })
        .await;
        tokio::time::advance(Duration::from_secs(2)).await;
        poll_fn(|cx| {
            use_up_the_turn(cx);
            assert!(timer.as_mut().poll(cx).is_pending(), "tokio has changed: poll_timer is no longer needed");
            assert!(poll_timer(timer.as_mut(), cx).is_ready());
            Poll::Ready(())
        })
        .await;
    }
}
