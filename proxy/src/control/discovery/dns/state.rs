//! The state of a name that is looked up periodically: the last answer with addresses, and for how long lookups have
//! found none. It has no clock: the caller passes the time since any fixed moment.

use std::{sync::Arc, time::Duration};

use super::{
    super::empty::{self, EmptyAnswers},
    answer::{Answer, Combined, Found},
};
use crate::config::model::OnEmpty;

/// The time before the first lookup after a failed one. It doubles with each failure.
const FIRST_RETRY: Duration = Duration::from_millis(500);

/// The longest time before the lookup after a failed one.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// The state of a name.
#[derive(Debug, Default)]
pub(super) struct NameState {
    /// The last answer with addresses.
    answer: Option<Arc<Answer>>,
    empty: EmptyAnswers,
    /// Lookups in a row that have failed.
    failures: u32,
    /// Lookups in a row without a usable answer.
    pub(super) attempts: u32,
    /// When the last usable answer arrived.
    pub(super) answered: Option<Duration>,
    /// The last error, and its time.
    pub(super) error: Option<(Duration, Arc<str>)>,
    /// Whether the next lookup is independent of other names: not after the start, an outage, or a change of settings,
    /// when all names are looked up together.
    pub(super) is_spread: bool,
}

/// The outcome of a lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Addresses,
    Empty,
    Failed,
}

/// The shortest and the longest time between two lookups of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Limits {
    pub(super) min_ttl: Duration,
    pub(super) max_ttl: Duration,
}

impl NameState {
    /// Records the result of a lookup. Returns the outcome, and the time until the next lookup; `random` is from 0 to 1, and
    /// spreads the lookups of many names.
    pub(super) fn record(
        &mut self,
        found: Result<Found, String>,
        now: Duration,
        limits: Limits,
        random: f64,
    ) -> (Outcome, Duration) {
        let ttl = found.as_ref().map_or(Duration::ZERO, |found| found.ttl);
        let combined = match found {
            Ok(found) => found.after(self.answer.as_deref()),
            Err(error) => Combined::Unknown(error),
        };
        let ttl = ttl.clamp(limits.min_ttl, limits.max_ttl.max(limits.min_ttl));
        let (outcome, wait) = match combined {
            Combined::Addresses(answer, error) => {
                if self.answer.as_deref() != Some(&answer) {
                    self.answer = Some(Arc::new(answer));
                }
                (self.empty, self.attempts) = (EmptyAnswers::default(), 0);
                self.answered = Some(now);
                match error {
                    None => {
                        self.failures = 0;
                        (Outcome::Addresses, ttl)
                    }
                    Some(error) => {
                        self.error = Some((now, error.into()));
                        self.failures = self.failures.saturating_add(1);
                        (Outcome::Addresses, ttl.min(self.retry(limits)))
                    }
                }
            }
            Combined::Empty => {
                self.empty.record(now, self.answer.is_some());
                self.failures = 0;
                self.attempts = self.attempts.saturating_add(1);
                self.error = Some((now, "the name has no addresses".into()));
                (Outcome::Empty, ttl.min(empty::RETRY.max(limits.min_ttl)))
            }
            Combined::Unknown(error) => {
                self.failures = self.failures.saturating_add(1);
                self.attempts = self.attempts.saturating_add(1);
                self.error = Some((now, error.into()));
                (Outcome::Failed, self.retry(limits))
            }
        };
        let is_answered = outcome == Outcome::Addresses;
        let wait = match is_answered && !self.is_spread {
            true => wait.mul_f64(0.5 + random / 2.0).max(limits.min_ttl),
            false => wait + wait.mul_f64(random / 10.0),
        };
        self.is_spread = is_answered;
        (outcome, wait)
    }

    fn retry(&self, limits: Limits) -> Duration {
        let doubled = FIRST_RETRY.saturating_mul(1 << self.failures.saturating_sub(1).min(10));
        doubled.min(LONGEST_RETRY).max(limits.min_ttl.min(FIRST_RETRY))
    }

    /// Whether the name has ever been answered, even that it has no addresses.
    pub(super) fn is_known(&self) -> bool {
        self.answer.is_some() || self.empty.is_last()
    }

    /// The answer that is used now; `None` if the name has no addresses, or none are known.
    pub(super) fn answer(&self, on_empty: OnEmpty) -> Option<&Arc<Answer>> {
        self.answer.as_ref().filter(|_| !self.empty.remove(on_empty))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::answer::FoundHost, *};

    const LIMITS: Limits = Limits { min_ttl: Duration::from_secs(1), max_ttl: Duration::from_secs(300) };

    fn found(addresses: &[&str], ttl: u64) -> Result<Found, String> {
        let v4 = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        let hosts = vec![FoundHost { srv: None, v4: Ok(v4), v6: Ok(Vec::new()) }];
        Ok(Found { hosts, ttl: Duration::from_secs(ttl) })
    }

    /// A state and the time.
    #[derive(Default)]
    struct Fixture {
        state: NameState,
        now: Duration,
    }

    impl Fixture {
        /// Records a result after so many seconds, and returns the wait in milliseconds.
        fn after(&mut self, seconds: u64, result: Result<Found, String>) -> u128 {
            self.now += Duration::from_secs(seconds);
            self.state.record(result, self.now, LIMITS, 0.0).1.as_millis()
        }

        fn has(&self, on_empty: OnEmpty) -> bool {
            self.state.answer(on_empty).is_some()
        }
    }

    #[test]
    fn ttl_is_bounded_and_lookups_are_spread() {
        let mut fixture = Fixture::default();
        for (ttl, wait) in [(0, 1_000), (1, 1_000), (60, 60_000), (86_400, 300_000), (u64::MAX / 2, 300_000)] {
            assert_eq!(fixture.after(1, found(&["10.0.0.1"], ttl)), wait, "TTL {ttl}");
        }
        let wait =
            |state: &mut NameState, random| state.record(found(&["10.0.0.1"], 60), fixture.now, LIMITS, random).1;
        assert_eq!(wait(&mut fixture.state, 0.5), Duration::from_secs(63));
        for (random, seconds) in [(0.0, 30), (0.5, 45), (1.0, 60)] {
            assert_eq!(wait(&mut NameState::default(), random), Duration::from_secs(seconds), "after the first answer");
        }
    }

    #[test]
    fn three_empty_answers_over_half_a_minute_remove_the_endpoints() {
        let mut fixture = Fixture::default();
        fixture.after(0, found(&["10.0.0.1"], 5));
        assert_eq!(fixture.after(5, found(&[], 60)), 10_000, "an empty answer is asked for again soon");
        for seconds in [1, 1, 1, 1, 25] {
            assert!(fixture.has(OnEmpty::Keep) && !fixture.has(OnEmpty::Remove));
            fixture.after(seconds, found(&[], 1));
        }
        assert!(fixture.has(OnEmpty::Keep), "29 s");
        fixture.after(1, found(&[], 1));
        assert!(!fixture.has(OnEmpty::Keep) && fixture.state.is_known());
        fixture.after(1, found(&["10.0.0.2"], 5));
        assert!(fixture.has(OnEmpty::Keep) && fixture.has(OnEmpty::Remove));
    }

    #[test]
    fn two_empty_answers_remove_nothing_however_long() {
        let mut fixture = Fixture::default();
        fixture.after(0, found(&["10.0.0.1"], 5));
        fixture.after(5, found(&[], 1));
        fixture.after(3600, found(&[], 1));
        assert!(fixture.has(OnEmpty::Keep));
        fixture.after(1, found(&[], 1));
        assert!(!fixture.has(OnEmpty::Keep));
    }

    #[test]
    fn failures_keep_the_endpoints_for_ever_and_are_retried_less_and_less() {
        let mut fixture = Fixture::default();
        assert!(!fixture.state.is_known());
        fixture.after(0, found(&["10.0.0.1"], 5));
        let waits: Vec<_> = (0..9).map(|_| fixture.after(3600, Err("SERVFAIL".to_owned()))).collect();
        assert_eq!(waits, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
        assert!(fixture.has(OnEmpty::Keep) && fixture.has(OnEmpty::Remove));
        assert_eq!((fixture.state.attempts, fixture.state.answered), (9, Some(Duration::ZERO)));
        assert_eq!(&*fixture.state.error.as_ref().unwrap().1, "SERVFAIL");
        for _ in 0..200 {
            fixture.after(1, Err("SERVFAIL".to_owned()));
        }
        assert_eq!(fixture.after(1, found(&["10.0.0.1"], 5)), 2_500, "half of the TTL after an outage");
        assert_eq!(fixture.after(1, Err("SERVFAIL".to_owned())), 500, "the first failure again");
    }

    #[test]
    fn failures_between_empty_answers_do_not_count_as_empty() {
        let mut fixture = Fixture::default();
        fixture.after(0, found(&["10.0.0.1"], 5));
        fixture.after(1, found(&[], 1));
        for _ in 0..10 {
            fixture.after(10, Err("time-out".to_owned()));
        }
        fixture.after(1, found(&[], 1));
        assert!(fixture.has(OnEmpty::Keep), "two empty answers");
    }

    #[test]
    fn name_that_never_had_addresses_is_known_to_be_empty() {
        let mut fixture = Fixture::default();
        fixture.after(0, Err("SERVFAIL".to_owned()));
        assert!(!fixture.state.is_known());
        fixture.after(1, found(&[], 1));
        assert!(fixture.state.is_known() && !fixture.has(OnEmpty::Keep));
    }
}
