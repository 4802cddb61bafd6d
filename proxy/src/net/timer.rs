//! Timers of tasks that may always have something to do.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    task::coop,
    time::{Instant, Sleep},
};

/// Ready when the timer's time has come. tokio lets a task that has done much in its turn see no timer: a peer that always has
/// data ready could put off a deadline for as long as it likes. Such a task goes by the clock, and only such a task pays for
/// reading it.
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
    async fn a_task_that_has_used_up_its_turn_still_sees_the_time() {
        let mut timer = pin!(sleep(Duration::from_secs(1)));
        poll_fn(|cx| {
            use_up_the_turn(cx);
            assert!(poll_timer(timer.as_mut(), cx).is_pending(), "it is not time yet");
            Poll::Ready(())
        })
        .await;
        tokio::time::advance(Duration::from_secs(2)).await;
        poll_fn(|cx| {
            use_up_the_turn(cx);
            assert!(timer.as_mut().poll(cx).is_pending(), "tokio has changed: poll_timer is of no more use");
            assert!(poll_timer(timer.as_mut(), cx).is_ready());
            Poll::Ready(())
        })
        .await;
    }
}
