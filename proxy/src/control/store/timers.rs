//! The store's deadlines: initial fetch timeouts and TTLs.

use std::{collections::BTreeMap, time::Duration};

use super::{Key, SourceId, TransactionId};

/// What happens at a deadline.
#[derive(Debug)]
pub(super) enum Timer {
    /// A transaction no longer waits for its references.
    InitialFetch(TransactionId),
    /// A source's resource expires.
    Ttl(Key, SourceId),
}

/// A timer's identity: its deadline, and a number.
pub(super) type TimerId = (Duration, u64);

/// Timers in the order of their deadlines.
#[derive(Debug, Default)]
pub(super) struct Timers {
    by_deadline: BTreeMap<TimerId, Timer>,
    next: u64,
}

impl Timers {
    /// Starts a timer.
    pub(super) fn start(&mut self, deadline: Duration, timer: Timer) -> TimerId {
        self.next += 1;
        let id = (deadline, self.next);
        self.by_deadline.insert(id, timer);
        id
    }

    /// Stops a timer, if there is one.
    pub(super) fn stop(&mut self, id: Option<TimerId>) {
        if let Some(id) = id {
            self.by_deadline.remove(&id);
        }
    }

    /// The earliest deadline.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.by_deadline.first_key_value().map(|((deadline, _), _)| *deadline)
    }

    /// Removes and returns a timer whose deadline has passed.
    pub(super) fn pop(&mut self, now: Duration) -> Option<Timer> {
        let first = self.by_deadline.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    /// The number of timers.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_deadline.len()
    }
}
