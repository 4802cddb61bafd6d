//! When empty answers take a service's endpoints away. It has no clock: the caller passes the time since any fixed moment.

use std::time::Duration;

use crate::config::model::OnEmpty;

/// With [`OnEmpty::Keep`], how many answers in a row must be empty before the endpoints are removed, and over what time.
const ANSWERS: u32 = 3;
const TIME: Duration = Duration::from_secs(30);

/// How soon to ask again after an empty answer, so that the rule comes to a decision.
pub(super) const RETRY: Duration = Duration::from_secs(10);

/// Empty answers in a row. Failures between them do not count.
#[derive(Debug, Default)]
pub(super) struct EmptyAnswers {
    count: u32,
    /// When the first of them arrived.
    since: Duration,
    is_enough: bool,
}

impl EmptyAnswers {
    /// Records an empty answer. `had_some`: whether there are endpoints to take away.
    pub(super) fn record(&mut self, now: Duration, had_some: bool) {
        if self.count == 0 {
            self.since = now;
        }
        self.count = self.count.saturating_add(1);
        let time = now.saturating_sub(self.since);
        self.is_enough |= !had_some || self.count >= ANSWERS && time >= TIME;
    }

    /// Whether the last answer was empty.
    pub(super) fn is_last(&self) -> bool {
        self.count > 0
    }

    /// Whether they take the endpoints away.
    pub(super) fn remove(&self, on_empty: OnEmpty) -> bool {
        match on_empty {
            OnEmpty::Keep => self.is_enough,
            OnEmpty::Remove => self.count > 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed_after(seconds: &[u64], had_some: bool) -> bool {
        let mut empty = EmptyAnswers::default();
        seconds.iter().for_each(|at| empty.record(Duration::from_secs(*at), had_some));
        empty.remove(OnEmpty::Keep)
    }

    #[test]
    fn three_answers_over_half_a_minute_are_enough() {
        assert!(!removed_after(&[5, 6, 7, 34], true), "29 s");
        assert!(!removed_after(&[5, 3600], true), "two answers");
        assert!(removed_after(&[5, 6, 35], true));
        assert!(removed_after(&[5], false), "nothing is taken away");
    }

    #[test]
    fn one_answer_is_enough_to_remove() {
        let mut empty = EmptyAnswers::default();
        assert!(!empty.remove(OnEmpty::Remove) && !empty.is_last());
        empty.record(Duration::ZERO, true);
        assert!(empty.remove(OnEmpty::Remove) && empty.is_last());
    }
}
