//! When and how often a failed request is retried.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use tollgate_abi::doc::{self, RetryOn};

use super::{Backoff, rate_limited::RateLimitedBackoff};
use crate::config::{HeaderMatcher, model};

/// When and how often a failed request is retried.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct RetryPolicy {
    /// The conditions for a retry.
    pub on: Box<[RetryOn]>,
    /// Statuses that are retried in addition to those of `on`.
    pub statuses: Box<[u16]>,
    /// A response that meets one of these conditions is retried.
    pub response_headers: Box<[HeaderMatcher]>,
    /// Only requests that meet one of these conditions are retried; empty: all.
    pub request_headers: Box<[HeaderMatcher]>,
    /// Maximum number of retries, not counting the first attempt.
    pub attempts: u32,
    /// The timeout of each attempt.
    pub per_try_timeout: Option<Duration>,
    /// The idle timeout of each attempt.
    pub per_try_idle_timeout: Option<Duration>,
    /// Maximum delay before the first retry.
    pub backoff: Duration,
    /// Maximum delay before any retry. Default: see [`Backoff::new`].
    pub max_backoff: Option<Duration>,
    /// Delays that responses request.
    pub rate_limited: Option<RateLimitedBackoff>,
}

/// The retry conditions that cover connect failures.
pub const CONNECTING: [RetryOn; 3] = [RetryOn::ConnectFailure, RetryOn::GatewayError, RetryOn::ServerError];

/// An error: a policy with a status that no response has, or a condition on headers that is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a valid retry policy")]
pub struct BadRetryPolicy;

impl RetryPolicy {
    /// The policy that a cluster's configuration asks for, which has been checked.
    pub fn new(config: &model::Retry) -> RetryPolicy {
        let rate_limited = config.rate_limited_backoff.as_ref();
        RetryPolicy {
            on: config.on.clone().into(),
            statuses: config.retriable_status_codes.clone().into(),
            response_headers: config.retriable_headers.clone().into(),
            request_headers: config.retriable_request_headers.clone().into(),
            attempts: config.attempts,
            per_try_timeout: config.per_try_timeout.and_then(|t| t.bound()),
            per_try_idle_timeout: config.per_try_idle_timeout.and_then(|t| t.bound()),
            backoff: config.backoff.0,
            max_backoff: config.max_backoff.map(|t| t.0),
            rate_limited: rate_limited.and_then(|r| RateLimitedBackoff::new(&r.reset_headers, r.max.0)),
        }
    }

    /// The policy of a filter's route.
    ///
    /// # Errors
    /// It is not valid.
    pub fn of_route(doc: doc::Retry) -> Result<RetryPolicy, BadRetryPolicy> {
        let bound = |ms: Option<u64>| ms.filter(|ms| *ms > 0).map(Duration::from_millis);
        let headers = |conditions: Vec<doc::HeaderMatch>| {
            let compiled =
                conditions.into_iter().map(HeaderMatcher::try_from).collect::<Result<Box<[HeaderMatcher]>, _>>();
            compiled.map_err(|_| BadRetryPolicy)
        };
        let rate_limited = |r: doc::RateLimitedBackoff| {
            RateLimitedBackoff::new(&r.reset_headers, Duration::from_millis(r.max_ms)).ok_or(BadRetryPolicy)
        };
        if !doc.retriable_status_codes.iter().all(|status| (200..=599).contains(status)) {
            return Err(BadRetryPolicy);
        }
        Ok(RetryPolicy {
            on: doc.on.into(),
            statuses: doc.retriable_status_codes.into(),
            response_headers: headers(doc.retriable_headers)?,
            request_headers: headers(doc.retriable_request_headers)?,
            attempts: doc.attempts.min(10),
            per_try_timeout: bound(doc.per_try_timeout_ms),
            per_try_idle_timeout: bound(doc.per_try_idle_timeout_ms),
            backoff: Duration::from_millis(doc.backoff_ms),
            max_backoff: doc.max_backoff_ms.map(Duration::from_millis),
            rate_limited: doc.rate_limited_backoff.map(rate_limited).transpose()?,
        })
    }

    /// Whether one of these conditions is listed.
    pub fn lists(&self, conditions: &[RetryOn]) -> bool {
        self.on.iter().any(|on| conditions.contains(on))
    }

    /// Whether it lists a response with this status and these fields. `grpc` is the condition that its gRPC status meets.
    pub fn lists_response(&self, status: StatusCode, fields: &HeaderMap, grpc: Option<RetryOn>) -> bool {
        let conditions: &[RetryOn] = match status.as_u16() {
            502..=504 => &[RetryOn::GatewayError, RetryOn::ServerError],
            500..=599 => &[RetryOn::ServerError],
            409 => &[RetryOn::Retriable4xx],
            429 => &[RetryOn::RateLimited],
            _ => grpc.as_slice(),
        };
        self.lists(conditions)
            || self.statuses.contains(&status.as_u16())
            || self.response_headers.iter().any(|condition| condition.matches(fields))
    }

    /// Whether requests with these fields are retried at all.
    pub fn applies_to(&self, request: &HeaderMap) -> bool {
        self.request_headers.is_empty() || self.request_headers.iter().any(|condition| condition.matches(request))
    }

    /// The delays before its retries.
    pub fn backoff(&self) -> Backoff {
        self.max_backoff.map_or_else(|| Backoff::new(self.backoff), |max| Backoff::up_to(self.backoff, max))
    }

    /// The number of other endpoints tried immediately if no connection could be established. Nothing was sent then, so
    /// this is not a retry: it is safe for any request, multiplies no load, and is exempt from retry budget and
    /// back-off. Each endpoint is tried once, so the number is finite.
    pub fn detours(policy: Option<&RetryPolicy>) -> u32 {
        match policy {
            Some(policy) if policy.attempts == 0 => 0,
            Some(policy) if policy.lists(&CONNECTING) => u32::MAX,
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn connect_failure_policy_tries_every_endpoint() {
        use RetryOn::{ConnectFailure, Reset, ServerError};
        assert_eq!(RetryPolicy::detours(None), 1);
        for (on, attempts, expected) in [
            (&[ConnectFailure][..], 1, u32::MAX),
            (&[Reset, ServerError], 1, u32::MAX),
            (&[Reset], 1, 1),
            (&[], 1, 1),
            (&[ConnectFailure], 0, 0),
        ] {
            let policy = RetryPolicy { on: on.into(), attempts, ..RetryPolicy::default() };
            assert_eq!(RetryPolicy::detours(Some(&policy)), expected, "{policy:?}");
        }
    }

    /// The policy of a cluster and that of a route with the same options.
    fn policies(config: Value, route: Value) -> [RetryPolicy; 2] {
        let config: model::Retry = serde_json::from_value(config).unwrap();
        let route: doc::Retry = serde_json::from_value(route).unwrap();
        [RetryPolicy::new(&config), RetryPolicy::of_route(route).unwrap()]
    }

    #[test]
    fn a_cluster_and_a_route_can_state_the_same() {
        let [cluster, route] = policies(
            json!({
                "on": ["reset"], "attempts": 2, "per_try_timeout": "2s", "per_try_idle_timeout": "1s", "backoff": "5ms",
                "max_backoff": "20ms", "rate_limited_backoff": {"reset_headers": [{"name": "Retry-After"}], "max": "9s"},
                "retriable_status_codes": [425], "retriable_headers": [{"name": "x-retry"}],
                "retriable_request_headers": [{"name": "x-safe", "exact": "1"}],
            }),
            json!({
                "on": ["reset"], "attempts": 2, "per_try_timeout_ms": 2000, "per_try_idle_timeout_ms": 1000, "backoff_ms": 5,
                "max_backoff_ms": 20, "rate_limited_backoff": {"reset_headers": [{"name": "retry-after"}], "max_ms": 9000},
                "retriable_status_codes": [425], "retriable_headers": [{"name": "x-retry"}],
                "retriable_request_headers": [{"name": "x-safe", "exact": "1"}],
            }),
        );
        assert_eq!(cluster, route);
        assert_eq!(cluster.per_try_idle_timeout, Some(Duration::from_secs(1)));
    }

    #[test]
    fn invalid_policies_of_routes_are_rejected() {
        for wrong in [
            json!({"retriable_status_codes": [99]}),
            json!({"retriable_status_codes": [600]}),
            json!({"retriable_headers": [{"name": "a b"}]}),
            json!({"retriable_request_headers": [{"name": "a", "regex": "("}]}),
            json!({"rate_limited_backoff": {"reset_headers": [{"name": ""}], "max_ms": 1}}),
        ] {
            let mut doc = json!({"on": [], "attempts": 1, "backoff_ms": 0});
            doc.as_object_mut().unwrap().extend(wrong.as_object().unwrap().clone());
            assert_eq!(RetryPolicy::of_route(serde_json::from_value(doc).unwrap()), Err(BadRetryPolicy), "{wrong}");
        }
    }

    #[test]
    fn responses_are_listed_by_status_or_header() {
        let policy = |config: Value| RetryPolicy::new(&serde_json::from_value(config).unwrap());
        let refused = policy(json!({"retriable_status_codes": [404], "retriable_headers": [{"name": "x-retry"}]}));
        let fields = |name: &'static str| HeaderMap::from_iter([(name.parse().unwrap(), "1".parse().unwrap())]);
        let lists = |policy: &RetryPolicy, status: u16, name| {
            policy.lists_response(StatusCode::from_u16(status).unwrap(), &fields(name), None)
        };
        assert!(lists(&refused, 404, "x-a") && lists(&refused, 200, "x-retry"));
        assert!(!lists(&refused, 503, "x-a"), "the fields do not replace `on`");
        let unavailable = policy(json!({"on": ["grpc_unavailable"]}));
        let empty = HeaderMap::new();
        assert!(unavailable.lists_response(StatusCode::OK, &empty, Some(RetryOn::GrpcUnavailable)));
        assert!(!unavailable.lists_response(StatusCode::OK, &empty, Some(RetryOn::GrpcInternal)));

        let safe = policy(json!({"retriable_request_headers": [{"name": "x-safe"}, {"name": "x-retry"}]}));
        assert!(safe.applies_to(&fields("x-safe")) && !safe.applies_to(&empty));
        assert!(refused.applies_to(&empty));
    }
}
