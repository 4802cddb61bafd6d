//! Retries: the attempts of one request or TCP connection under its retry policy.

use std::{sync::Arc, time::Duration};

use tollgate_abi::doc::RetryOn;

use crate::upstream::{Backoff, CONNECTING, Cluster, Endpoint, PickKey, RetryGuard, RetryPolicy};

/// The attempts of one request or TCP connection.
pub struct Attempts<'p> {
    policy: Option<&'p RetryPolicy>,
    /// How many retries the policy still allows.
    left: u32,
    /// How many more endpoints may be tried after failures to connect.
    detours: u32,
    backoff: Backoff,
    tried: Vec<Arc<Endpoint>>,
    /// The retry permit, held while retries are in progress. One covers all of them, since they never run concurrently.
    permit: Option<RetryGuard>,
}

/// An attempt after a failed one.
#[derive(Debug)]
pub struct NextAttempt {
    /// Where it goes.
    pub endpoint: Arc<Endpoint>,
    /// How long it waits.
    pub wait: Duration,
}

/// Why no attempt follows a failed one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoAttempt {
    /// The policy does not list this failure.
    NotRetried,
    /// The policy's attempts or the cluster's retry budget are used up.
    Exhausted,
    /// The cluster has no endpoint.
    NoEndpoint,
}

impl<'p> Attempts<'p> {
    /// The state before the first attempt.
    pub fn new(policy: Option<&'p RetryPolicy>) -> Attempts<'p> {
        Attempts {
            policy,
            left: policy.map_or(0, |p| p.attempts),
            detours: RetryPolicy::detours(policy),
            backoff: policy.map_or_else(|| Backoff::new(Duration::ZERO), RetryPolicy::backoff),
            tried: Vec::new(),
            permit: None,
        }
    }

    /// Notes that an attempt at this endpoint failed.
    pub fn failed_at(&mut self, endpoint: &Arc<Endpoint>) {
        if !self.tried.iter().any(|tried| Arc::ptr_eq(tried, endpoint)) {
            self.tried.push(endpoint.clone());
        }
    }

    /// The next attempt after one that does not count, because the upstream has not processed the request. It needs no policy.
    pub fn repeat(&self, cluster: &Cluster, key: PickKey<'_>) -> Result<NextAttempt, NoAttempt> {
        let endpoint = cluster.pick(key, &self.tried).ok_or(NoAttempt::NoEndpoint)?;
        Ok(NextAttempt { endpoint, wait: Duration::ZERO })
    }

    /// The next attempt after a failure to connect.
    pub fn reconnect(&mut self, cluster: &Cluster, key: PickKey<'_>) -> Result<NextAttempt, NoAttempt> {
        if self.detours > 0
            && let Some(endpoint) = cluster.pick_another(key, &self.tried)
        {
            self.detours -= 1;
            return Ok(NextAttempt { endpoint, wait: Duration::ZERO });
        }
        self.retry(&CONNECTING, cluster, key)
    }

    /// The next attempt after a failure that the policy covers if it lists one of these conditions.
    pub fn retry(
        &mut self,
        conditions: &[RetryOn],
        cluster: &Cluster,
        key: PickKey<'_>,
    ) -> Result<NextAttempt, NoAttempt> {
        self.policy.filter(|policy| policy.lists(conditions)).ok_or(NoAttempt::NotRetried)?;
        self.retry_listed(None, cluster, key)
    }

    /// The next attempt after a failure that the policy covers. The upstream may have requested a delay.
    pub fn retry_listed(
        &mut self,
        requested: Option<Duration>,
        cluster: &Cluster,
        key: PickKey<'_>,
    ) -> Result<NextAttempt, NoAttempt> {
        self.policy.filter(|policy| policy.attempts > 0).ok_or(NoAttempt::NotRetried)?;
        if self.left > 0 {
            self.permit = self.permit.take().or_else(|| cluster.try_retry());
        }
        if self.left == 0 || self.permit.is_none() {
            return Err(NoAttempt::Exhausted);
        }
        self.left -= 1;
        let endpoint = cluster.pick(key, &self.tried).ok_or(NoAttempt::NoEndpoint)?;
        Ok(NextAttempt { endpoint, wait: requested.unwrap_or_else(|| self.backoff.next_wait()) })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cluster(endpoints: usize, budget: u32) -> Arc<Cluster> {
        let endpoints: Vec<_> = (1..=endpoints).map(|n| json!({"address": format!("10.0.0.{n}:80")})).collect();
        let budget = json!({"percent": 0, "min_concurrent": budget});
        let config = json!({"name": "web", "endpoints": endpoints, "retry_budget": budget});
        Cluster::new(&serde_json::from_value(config).unwrap(), None)
    }

    fn policy(on: RetryOn, attempts: u32) -> RetryPolicy {
        RetryPolicy { on: [on].into(), attempts, backoff: Duration::from_millis(10), ..RetryPolicy::default() }
    }

    /// Lets all attempts fail to connect: the addresses in order, and why there was no other.
    fn addresses(policy: Option<&RetryPolicy>, cluster: &Arc<Cluster>) -> (Vec<String>, NoAttempt) {
        let mut attempts = Attempts::new(policy);
        let mut endpoint = cluster.pick(Some(0), &[]).unwrap();
        let mut addresses = Vec::new();
        loop {
            addresses.push(endpoint.address.to_string());
            attempts.failed_at(&endpoint);
            match attempts.reconnect(cluster, Some(0).into()) {
                Ok(next) => endpoint = next.endpoint,
                Err(reason) => return (addresses, reason),
            }
        }
    }

    #[test]
    fn connect_failures_lead_to_other_endpoints_and_then_to_retries() {
        let distinct = |addresses: &[String]| addresses.iter().collect::<std::collections::HashSet<_>>().len();
        for (policy, attempts, endpoints, reason) in [
            (None, 2, 2, NoAttempt::NotRetried),
            (Some(policy(RetryOn::RateLimited, 2)), 2, 2, NoAttempt::NotRetried),
            (Some(policy(RetryOn::ConnectFailure, 0)), 1, 1, NoAttempt::NotRetried),
            (Some(policy(RetryOn::ConnectFailure, 2)), 5, 3, NoAttempt::Exhausted),
        ] {
            let (tried, why) = addresses(policy.as_ref(), &cluster(3, 10));
            assert_eq!((tried.len(), distinct(&tried), why), (attempts, endpoints, reason), "{policy:?}: {tried:?}");
        }
    }

    #[test]
    fn retries_take_one_permit_of_the_budget_and_return_it() {
        let (cluster, policy) = (cluster(2, 1), policy(RetryOn::ServerError, 3));
        let mut first = Attempts::new(Some(&policy));
        assert!(first.retry(&[RetryOn::ServerError], &cluster, PickKey::default()).is_ok());
        assert!(
            first.retry(&[RetryOn::ServerError], &cluster, PickKey::default()).is_ok(),
            "it has its permit already"
        );
        let mut second = Attempts::new(Some(&policy));
        assert_eq!(
            second.retry(&[RetryOn::ServerError], &cluster, PickKey::default()).unwrap_err(),
            NoAttempt::Exhausted
        );
        drop(first);
        assert!(second.retry(&[RetryOn::ServerError], &cluster, PickKey::default()).is_ok());
    }

    #[test]
    fn delays_are_those_of_the_policy_or_what_the_upstream_requests() {
        let (base, max) = (Duration::from_millis(10), Duration::from_millis(25));
        let policy = RetryPolicy { backoff: base, max_backoff: Some(max), ..policy(RetryOn::ServerError, 4) };
        let cluster = cluster(2, 10);
        let mut longest = [Duration::ZERO; 4];
        for _ in 0..500 {
            let mut attempts = Attempts::new(Some(&policy));
            for longest in &mut longest {
                *longest =
                    attempts.retry(&[RetryOn::ServerError], &cluster, PickKey::default()).unwrap().wait.max(*longest);
            }
        }
        for (longest, ceiling) in longest.into_iter().zip([base, base * 2, max, max]) {
            assert!(longest <= ceiling && longest > ceiling * 9 / 10, "{longest:?} {ceiling:?}");
        }
        let requested = Duration::from_secs(7);
        let next = Attempts::new(Some(&policy)).retry_listed(Some(requested), &cluster, PickKey::default()).unwrap();
        assert_eq!(next.wait, requested);
    }

    #[test]
    fn only_listed_failures_are_retried_as_often_as_allowed() {
        let (cluster, policy) = (cluster(2, 10), policy(RetryOn::Reset, 1));
        let mut attempts = Attempts::new(Some(&policy));
        let unlisted = attempts.retry(&[RetryOn::ServerError], &cluster, PickKey::default());
        assert_eq!(unlisted.unwrap_err(), NoAttempt::NotRetried);
        let failed = cluster.pick(Some(0), &[]).unwrap();
        attempts.failed_at(&failed);
        let next = attempts.retry(&[RetryOn::ServerError, RetryOn::Reset], &cluster, Some(0).into()).unwrap();
        assert!(!Arc::ptr_eq(&next.endpoint, &failed), "an endpoint that has not failed comes first");
        let exhausted = attempts.retry(&[RetryOn::Reset], &cluster, PickKey::default());
        assert_eq!(exhausted.unwrap_err(), NoAttempt::Exhausted);
    }
}
