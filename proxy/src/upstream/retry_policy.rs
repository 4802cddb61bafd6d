//! When and how often a failed request is retried.

use std::time::Duration;

use tollgate_abi::doc::RetryOn;

use crate::config::model;

/// When and how often a failed request is retried.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RetryPolicy {
    /// The conditions for a retry.
    pub on: Box<[RetryOn]>,
    /// Maximum number of retries, not counting the first attempt.
    pub attempts: u32,
    /// The timeout of each attempt.
    pub per_try_timeout: Option<Duration>,
    /// Maximum delay before the first retry.
    pub backoff: Duration,
}

/// The retry conditions that cover connect failures.
pub const CONNECTING: [RetryOn; 3] = [RetryOn::ConnectFailure, RetryOn::GatewayError, RetryOn::ServerError];

impl RetryPolicy {
    /// The policy that a cluster's configuration asks for.
    pub fn new(config: &model::Retry) -> RetryPolicy {
        RetryPolicy {
            on: config.on.clone().into(),
            attempts: config.attempts,
            per_try_timeout: config.per_try_timeout.and_then(|t| t.bound()),
            backoff: config.backoff.0,
        }
    }

    /// Whether one of these conditions is listed.
    pub fn lists(&self, conditions: &[RetryOn]) -> bool {
        self.on.iter().any(|on| conditions.contains(on))
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
            let policy = RetryPolicy { on: on.into(), attempts, per_try_timeout: None, backoff: Duration::ZERO };
            assert_eq!(RetryPolicy::detours(Some(&policy)), expected, "{policy:?}");
        }
    }
}
