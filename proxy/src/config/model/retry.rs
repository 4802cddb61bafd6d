//! The `retry`, `hedging` and `retry_budget` sections of a cluster.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tollgate_abi::doc::{HeaderMatch, ResetHeader, RetryOn};

use super::super::{HeaderMatcher, units::Duration};

/// A retry policy: which failures are retried, and how often.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// Conditions that trigger a retry.
    #[serde(default = "default::retry_on")]
    pub on: Vec<RetryOn>,
    /// Statuses that are retried in addition to those of `on`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(range(min = 200, max = 599)))]
    pub retriable_status_codes: Vec<u16>,
    /// Conditions on the response's headers: a response that meets one of them is retried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<HeaderMatch>")]
    pub retriable_headers: Vec<HeaderMatcher>,
    /// Conditions on the request's headers: only requests that meet one of them are retried. Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<HeaderMatch>")]
    pub retriable_request_headers: Vec<HeaderMatcher>,
    /// Maximum number of retries, not counting the first attempt.
    #[serde(default = "default::retry_attempts")]
    #[schemars(range(max = 10))]
    pub attempts: u32,
    /// Timeout of each attempt, including the first (504 after the last one).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<Duration>,
    /// Time without a byte in either direction after which an attempt that has no response yet ends, and is retried like
    /// one that was reset (504 after the last one). It does not run while the proxy waits for the client. Default: only
    /// the stream's idle timeout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_try_idle_timeout: Option<Duration>,
    /// The longest delay before the first retry. It doubles with every retry, up to `max_backoff`; the actual delay is a
    /// random part of it (full jitter).
    #[serde(default = "default::backoff")]
    pub backoff: Duration,
    /// The longest delay before any retry. Default: ten times `backoff`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_backoff: Option<Duration>,
    /// Delays before retries that the upstream's responses request, instead of `backoff`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limited_backoff: Option<RateLimitedBackoff>,
}

/// Delays before retries that the upstream's responses request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimitedBackoff {
    /// The response headers that hold the delay, in order of precedence. The actual delay is up to half longer (jitter).
    #[schemars(length(min = 1))]
    pub reset_headers: Vec<ResetHeader>,
    /// The longest delay. Longer ones are ignored.
    pub max: Duration,
}

impl Default for RateLimitedBackoff {
    fn default() -> Self {
        let retry_after = ResetHeader { name: "retry-after".to_owned(), format: Default::default() };
        RateLimitedBackoff { reset_headers: vec![retry_after], max: Duration::secs(300) }
    }
}

/// Hedging: a request whose response is late is also sent to another endpoint. The first response is used, and the other
/// attempt is cancelled.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Hedging {
    /// How long a request that was sent waits for its response before the second attempt. Default: the time within which
    /// 95 % of the responses of the last minute began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<Duration>,
    /// The methods of requests that may be sent twice. Default: the idempotent ones (GET, HEAD, OPTIONS, TRACE, PUT,
    /// DELETE). An empty list disables hedging.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub methods: Option<Vec<String>>,
}

/// A limit on concurrent retries, as a share of the in-flight requests, so that retries cannot multiply an overload.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetryBudget {
    /// Concurrent retries in percent of the in-flight requests.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub percent: f64,
    /// Concurrent retries that are always allowed.
    pub min_concurrent: u32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        RetryBudget { percent: 20.0, min_concurrent: 3 }
    }
}

mod default {
    use super::{Duration, RetryOn};

    pub(super) fn retry_on() -> Vec<RetryOn> {
        vec![RetryOn::ConnectFailure, RetryOn::Reset]
    }
    pub(super) fn retry_attempts() -> u32 {
        1
    }
    pub(super) fn backoff() -> Duration {
        Duration::millis(25)
    }
}
