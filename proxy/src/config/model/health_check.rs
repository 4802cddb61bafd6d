//! The `health_check` section of a cluster.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::units::{Duration, StatusRange};

/// Active health checks of a cluster's endpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// The kind of check, or several, of which all must succeed.
    #[schemars(length(min = 1), extend("x-one-or-many" = true))]
    pub check: Vec<Check>,
    /// Whether endpoints that join the cluster are healthy before their first check.
    #[serde(default)]
    pub initially: InitialHealth,
    /// Time between the starts of two checks.
    #[serde(default = "default::check_interval")]
    pub interval: Duration,
    /// The same while an endpoint is unhealthy. Default: `interval`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unhealthy_interval: Option<Duration>,
    /// A random part of this time is added to each interval, so that many proxies do not check at the same time.
    #[serde(default = "default::jitter")]
    pub jitter: Duration,
    /// Timeout of a check.
    #[serde(default = "default::check_timeout")]
    pub timeout: Duration,
    /// Consecutive failures after which an endpoint is unhealthy.
    #[serde(default = "default::unhealthy_threshold")]
    #[schemars(range(min = 1))]
    pub unhealthy_threshold: u32,
    /// Consecutive successes after which an endpoint is healthy again.
    #[serde(default = "default::healthy_threshold")]
    #[schemars(range(min = 1))]
    pub healthy_threshold: u32,
}

/// The health of an endpoint before its first check.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InitialHealth {
    /// It gets requests at once.
    #[default]
    Healthy,
    /// It gets none until a check has succeeded; the first result decides.
    Unhealthy,
}

/// The kind of health check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Check {
    /// A `GET` request.
    Http {
        /// The request path.
        #[schemars(pattern("^/"))]
        path: String,
        /// The request's host. Default: the cluster's name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        /// The statuses of healthy endpoints: numbers, or ranges such as `200-399`.
        #[serde(default = "default::expected_statuses")]
        #[schemars(length(min = 1))]
        expected_statuses: Vec<StatusRange>,
    },
    /// A `grpc.health.v1.Health/Check` call that must return `SERVING`.
    Grpc {
        /// The service to check; empty for the server as a whole.
        #[serde(default)]
        service: String,
    },
    /// A TCP connection that must be established.
    Tcp {},
}

mod default {
    use super::{Duration, StatusRange};

    pub(super) fn check_interval() -> Duration {
        Duration::secs(10)
    }
    pub(super) fn jitter() -> Duration {
        Duration::secs(0)
    }
    pub(super) fn expected_statuses() -> Vec<StatusRange> {
        vec![StatusRange { first: 200, last: 299 }]
    }
    pub(super) fn check_timeout() -> Duration {
        Duration::secs(1)
    }
    pub(super) fn unhealthy_threshold() -> u32 {
        3
    }
    pub(super) fn healthy_threshold() -> u32 {
        2
    }
}
