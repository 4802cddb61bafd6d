//! Hedging: when a request that has no response yet is sent to a second endpoint ("The Tail at Scale", Dean and Barroso,
//! 2013).

use std::time::Duration;

use http::Method;
use tokio::time::Instant;
use tollgate_abi::doc;

use super::{Cluster, RetryGuard, clock, latency_window::LatencyWindow};
use crate::config::model;

/// When and for which requests a second attempt is made.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HedgingPolicy {
    /// The delay of the second attempt; `None`: see [`Cluster::hedge_delay`].
    delay: Option<Duration>,
    /// The methods that may be repeated; `None`: idempotent ones.
    methods: Option<Box<[Method]>>,
}

/// An error: a name that is not a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a method")]
pub struct BadMethod;

impl HedgingPolicy {
    /// The policy that a cluster's configuration asks for, which has been checked.
    pub fn new(config: &model::Hedging) -> HedgingPolicy {
        let methods = |names: &Vec<String>| names.iter().filter_map(|name| name.parse().ok()).collect();
        HedgingPolicy { delay: config.delay.map(|delay| delay.0), methods: config.methods.as_ref().map(methods) }
    }

    /// The policy of a filter's route.
    ///
    /// # Errors
    /// A method is not valid.
    pub fn of_route(doc: doc::Hedging) -> Result<HedgingPolicy, BadMethod> {
        let methods = |names: Vec<String>| names.iter().map(|name| name.parse().map_err(|_| BadMethod)).collect();
        Ok(HedgingPolicy {
            delay: doc.delay_ms.map(Duration::from_millis),
            methods: doc.methods.map(methods).transpose()?,
        })
    }

    /// Whether requests with this method may be sent twice (RFC 9110 section 9.2.2).
    pub fn allows(&self, method: &Method) -> bool {
        self.methods.as_ref().map_or_else(|| method.is_idempotent(), |methods| methods.contains(method))
    }
}

impl Cluster {
    /// How long a request that is sent at `now` waits for a response before a second attempt: the policy's delay, or the
    /// time within which 95 % of the responses of the last minute began. `None`: not known yet, so there is none.
    pub fn hedge_delay(&self, policy: &HedgingPolicy, now: Instant) -> Option<Duration> {
        policy.delay.or_else(|| self.stats().response_times.get()?.p95(clock::at(now)))
    }

    /// Counts that a request's first attempt had its response after this time, or none until then.
    pub fn note_first_attempt(&self, policy: &HedgingPolicy, now: Instant, took: Duration) {
        if policy.delay.is_none() {
            self.stats().response_times.get_or_init(Box::<LatencyWindow>::default).observe(clock::at(now), took);
        }
    }

    /// Acquires a permit for a second attempt in the retry budget, released when the guard is dropped. `None` if the
    /// budget is exhausted.
    pub fn try_hedge(&self) -> Option<RetryGuard> {
        self.take_from_budget(&self.stats().hedges)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn policy(config: Value) -> HedgingPolicy {
        HedgingPolicy::new(&serde_json::from_value(config).unwrap())
    }

    #[test]
    fn only_idempotent_or_listed_methods_are_hedged() {
        let all = [Method::GET, Method::PUT, Method::DELETE, Method::POST, Method::PATCH];
        let allowed =
            |config: Value| all.iter().map(|method| policy(config.clone()).allows(method)).collect::<Vec<_>>();
        assert_eq!(allowed(json!({})), [true, true, true, false, false]);
        assert_eq!(allowed(json!({"methods": ["GET", "POST"]})), [true, false, false, true, false]);
        assert_eq!(allowed(json!({"methods": []})), [false; 5]);
    }

    #[test]
    fn a_cluster_and_a_route_can_state_the_same() {
        let route = |doc: Value| HedgingPolicy::of_route(serde_json::from_value(doc).unwrap());
        assert_eq!(route(json!({})), Ok(policy(json!({}))));
        let config = policy(json!({"delay": "50ms", "methods": ["GET"]}));
        assert_eq!(route(json!({"delay_ms": 50, "methods": ["GET"]})), Ok(config));
        assert_eq!(route(json!({"methods": ["G E T"]})), Err(BadMethod));
    }

    #[test]
    fn delay_is_fixed_or_that_of_the_last_minute() {
        let config = serde_json::from_value(json!({"name": "web"})).unwrap();
        let cluster = Cluster::new(&config, None);
        let (fixed, learned) = (policy(json!({"delay": "50ms"})), policy(json!({})));
        // The percentile is computed once per second of the clock, which may have started just now.
        let now = Instant::now() + Duration::from_secs(2);
        assert_eq!(cluster.hedge_delay(&fixed, now), Some(Duration::from_millis(50)));
        (0..100).for_each(|_| cluster.note_first_attempt(&fixed, now, Duration::from_millis(1)));
        assert!(cluster.stats().response_times.get().is_none(), "a fixed delay needs no window");
        assert_eq!(cluster.hedge_delay(&learned, now), None);
        (0..100).for_each(|_| cluster.note_first_attempt(&learned, now, Duration::from_millis(1)));
        let delay = cluster.hedge_delay(&learned, now).unwrap();
        assert!(delay >= Duration::from_millis(1) && delay < Duration::from_micros(1_070), "{delay:?}");
    }
}
