//! On how many workers a filter's VM has an instance, and whether it has been without any for long enough that the
//! proxy must report itself not ready.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A VM without an instance on any worker for longer than this is out; one with an instance for this long is back. An
/// instance that exists only for a moment now and then does not end an outage.
const SETTLED: Duration = Duration::from_secs(1);

/// Which workers have an instance. Updated only when a worker loses or regains its instance, which is rare.
#[derive(Debug, Default)]
pub struct Availability(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    workers: usize,
    with: usize,
    /// When the last instance was lost, possibly earlier in the same outage.
    lost: Option<Instant>,
    /// When there was an instance again.
    back: Option<Instant>,
}

/// A VM's current availability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// Workers that run it.
    pub workers: usize,
    /// Workers that have an instance.
    pub with: usize,
    /// No worker has had an instance for over a second, or not steadily for that long since.
    pub out: bool,
}

impl Availability {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker starts running it, without an instance so far.
    pub(crate) fn join(&self) {
        self.state().workers += 1;
    }

    /// A worker stops running it.
    pub(in crate::wasm) fn leave(&self, had: bool) {
        let mut state = self.state();
        state.workers -= 1;
        state.with -= usize::from(had);
    }

    /// A worker has an instance now.
    pub(in crate::wasm) fn found(&self) {
        self.state().found(Instant::now());
    }

    /// A worker has lost its instance.
    pub(in crate::wasm) fn lost(&self) {
        self.state().lost(Instant::now());
    }

    /// The current availability.
    pub fn seen(&self) -> Observed {
        self.state().seen(Instant::now())
    }
}

impl State {
    fn found(&mut self, now: Instant) {
        if self.with == 0 {
            self.back = Some(now);
        }
        self.with += 1;
    }

    fn lost(&mut self, now: Instant) {
        self.with -= 1;
        if self.with == 0 && (self.lost.is_none() || !self.is_new(now)) {
            self.lost = Some(now);
        }
    }

    /// Whether it came back less than [`SETTLED`] ago.
    fn is_new(&self, now: Instant) -> bool {
        self.back.is_some_and(|back| now.saturating_duration_since(back) < SETTLED)
    }

    fn seen(&self, now: Instant) -> Observed {
        let until = match self.with {
            0 => Some(now),
            _ => self.back.filter(|_| self.is_new(now)),
        };
        let outage = self.lost.zip(until).map(|(lost, until)| until.saturating_duration_since(lost));
        Observed { workers: self.workers, with: self.with, out: outage.is_some_and(|outage| outage > SETTLED) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vm_is_out_after_a_second_and_back_after_another() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut state = State { workers: 2, ..State::default() };
        let out = |state: &State, ms| state.seen(at(ms)).out;
        assert!(!out(&state, 5000), "there has been no instance yet");
        state.found(at(0));
        state.found(at(0));
        state.lost(at(10));
        assert!(!out(&state, 5000), "another worker has an instance");
        state.lost(at(5000));
        assert_eq!([5000, 5999, 6001].map(|ms| out(&state, ms)), [false, false, true]);
        // An instance for a moment.
        state.found(at(7000));
        assert!(out(&state, 7100));
        state.lost(at(7100));
        assert!(out(&state, 7200), "the outage continues");
        state.found(at(8000));
        assert_eq!([8999, 9001].map(|ms| out(&state, ms)), [true, false]);
        // A new outage starts.
        state.lost(at(20_000));
        assert_eq!([20_900, 21_100].map(|ms| out(&state, ms)), [false, true]);
    }

    #[test]
    fn vm_lost_right_after_the_start_is_out_too() {
        let start = Instant::now();
        let mut state = State { workers: 1, ..State::default() };
        state.found(start);
        state.lost(start + Duration::from_millis(5));
        assert!(state.seen(start + Duration::from_millis(1100)).out);
    }
}
