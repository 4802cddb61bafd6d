//! The `clusters` section.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    super::units::{Address, Duration},
    ClusterTls, Http2,
};

/// A group of endpoints that serve the same thing.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Its name: what routes call it.
    #[schemars(length(min = 1))]
    pub name: String,
    /// Where it is served.
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
    /// What is spoken to its endpoints.
    #[serde(default)]
    pub protocol: ClusterProtocol,
    /// How HTTP/2 is spoken to them.
    #[serde(default)]
    pub http2: Http2,
    /// TLS to its endpoints. Without it, everything is plain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClusterTls>,
    /// The PROXY protocol header that connections to its endpoints begin with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocolVersion>,
    /// Whether endpoints are asked for their health; those that are not well get no requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// How an endpoint is chosen for a request.
    #[serde(default)]
    pub balancer: Balancer,
    /// How long connecting may take. The system sends a lost first packet again after one second, and then after two more.
    #[serde(default = "default::connect_timeout")]
    pub connect_timeout: Duration,
    /// From the last byte of the request (or from when the filters have let it go, if that is later) to the head of the
    /// response, retries included (504). From then on, the listener's `timeouts.idle` bounds how long nothing may move. `0s`:
    /// unlimited. Default: 15 s, unless `request_timeout` is given; a route's `timeout` takes its place. gRPC calls have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_head_timeout: Option<Duration>,
    /// From the last byte of the request (or from when the filters have let it go, if that is later) to the last of the
    /// response, retries included (504, or cut off if the response has begun): also a response that still flows. `0s`: unlimited,
    /// which is the default; a route's `timeout` takes its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_timeout: Option<Duration>,
    /// The longest time that a gRPC client may set with `grpc-timeout`, in place of `request_timeout`: a longer one is taken for
    /// this. `0s`: unlimited.
    #[serde(default = "default::max_grpc_timeout")]
    pub max_grpc_timeout: Duration,
    /// Retries, unless a route sets its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Bounds that keep an overloaded cluster from taking the proxy with it.
    #[serde(default)]
    pub limits: ClusterLimits,
    /// Bound on retries, over all routes.
    #[serde(default)]
    pub retry_budget: RetryBudget,
}

impl Cluster {
    /// How long the head of a response may take. Whoever has bounded the whole exchange, or said that nothing bounds it, has said
    /// what there is to say about its head, unless that is said as well.
    pub fn head_timeout(&self) -> Option<std::time::Duration> {
        match (self.response_head_timeout, self.request_timeout) {
            (Some(head), _) => head.bound(),
            (None, Some(_)) => None,
            (None, None) => Some(default::RESPONSE_HEAD_TIMEOUT),
        }
    }
}

/// One address that serves a cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// Its address: `127.0.0.1:9001`, `[::1]:9001`, `unix:/run/app.sock`.
    pub address: Address,
    /// Its share of the requests, against the other endpoints' weights. 0: none.
    #[serde(default = "super::default::weight")]
    #[schemars(range(max = 65535))]
    pub weight: u32,
}

/// How an endpoint is chosen for a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Balancer {
    /// One after the other, by their weights (smoothly interleaved).
    #[default]
    RoundRobin,
    /// Of two drawn at random by weight, the one with fewer requests under way for its weight.
    LeastRequest,
    /// At random, by weight.
    Random,
    /// By the route's hash key: the same key goes to the same endpoint as long as it is there (weighted rendezvous
    /// hashing). At random for requests without a key.
    Hash,
}

/// When and how often a failed request is tried again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// What is tried again.
    #[serde(default = "default::retry_on")]
    pub on: Vec<tollgate_abi::doc::RetryOn>,
    /// How often, at most, beside the first try.
    #[serde(default = "default::retry_attempts")]
    #[schemars(range(max = 10))]
    pub attempts: u32,
    /// Time for each try, the first included (504 if it was the last).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<Duration>,
    /// Longest wait before the first retry; it doubles for each further one, up to ten times this, and a random part of it
    /// is waited (full jitter).
    #[serde(default = "default::backoff")]
    pub backoff: Duration,
}

/// Bounds of a cluster, over all workers.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterLimits {
    /// Connections at one time. Each worker may always have one.
    #[schemars(range(min = 1))]
    pub connections: u32,
    /// Requests that wait for a connection; further ones are answered with 503 (flag `UO`).
    pub pending: u32,
    /// Requests under way; further ones are answered with 503 (flag `UO`).
    #[schemars(range(min = 1))]
    pub requests: u32,
    /// Unfinished uploads and tunnels at one time, in percent of the places that there are for requests (`connections`, with
    /// `protocol: h2` as many times `http2.max_concurrent_streams` or what endpoints allow, and at most `requests`): requests whose
    /// bodies have not all come, upgrades and `CONNECT`. Further ones are answered with 503 (flag `UO`).
    #[schemars(range(min = 1, max = 100))]
    pub uploads: u32,
    /// The same for one client (an IPv6 /64 counts as one).
    #[schemars(range(min = 1, max = 100))]
    pub uploads_per_client: u32,
    /// A connection without a request is closed after this.
    pub idle_timeout: Duration,
    /// Requests on one connection before it is closed. 0: unlimited.
    pub requests_per_connection: u32,
}

impl Default for ClusterLimits {
    fn default() -> Self {
        ClusterLimits {
            connections: 1024,
            pending: 1024,
            requests: 10_000,
            uploads: 75,
            uploads_per_client: 25,
            idle_timeout: Duration::secs(60),
            requests_per_connection: 0,
        }
    }
}

/// Retries under way are bounded by a share of the requests under way, so that retries cannot multiply an overload.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetryBudget {
    /// Percent of the requests under way.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub percent: f64,
    /// Retries at one time that are always allowed.
    pub min_concurrent: u32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        RetryBudget { percent: 20.0, min_concurrent: 3 }
    }
}

/// What is spoken to a cluster's endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClusterProtocol {
    /// HTTP/1.1.
    #[default]
    H1,
    /// HTTP/2; without TLS, with prior knowledge.
    H2,
    /// Whichever the endpoint chooses by ALPN; HTTP/1.1 without TLS.
    Auto,
}

/// A version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProxyProtocolVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// How endpoints are asked for their health: what is sent, and what counts. Endpoints begin as healthy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// What is sent.
    pub check: Check,
    /// How often.
    #[serde(default = "default::check_interval")]
    pub interval: Duration,
    /// How long an answer may take.
    #[serde(default = "default::check_timeout")]
    pub timeout: Duration,
    /// So many failures in a row make an endpoint unhealthy.
    #[serde(default = "default::unhealthy_threshold")]
    #[schemars(range(min = 1))]
    pub unhealthy_threshold: u32,
    /// So many successes in a row make it healthy again.
    #[serde(default = "default::healthy_threshold")]
    #[schemars(range(min = 1))]
    pub healthy_threshold: u32,
    /// When less than this share of the endpoints is healthy, in percent, all of them are used: then the fault is more likely
    /// with the checks, and the few that are left would be overrun.
    #[serde(default = "default::panic_threshold")]
    #[schemars(range(max = 100))]
    pub panic_threshold: u32,
}

/// What is sent to ask for an endpoint's health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Check {
    /// A `GET` that must be answered with a status from 200 to 299.
    Http {
        /// The path.
        #[schemars(pattern("^/"))]
        path: String,
        /// The host asked for. Default: the cluster's name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
    },
    /// A call of `grpc.health.v1.Health/Check` that must be answered with `SERVING`.
    Grpc {
        /// The service asked for; empty for the server as a whole.
        #[serde(default)]
        service: String,
    },
    /// A connection, and nothing else.
    Tcp {},
}

mod default {
    use super::Duration;
    use tollgate_abi::doc::RetryOn;

    /// Of `response_head_timeout`.
    pub(super) const RESPONSE_HEAD_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(15);

    pub(super) fn connect_timeout() -> Duration {
        Duration::secs(5)
    }
    pub(super) fn max_grpc_timeout() -> Duration {
        Duration::secs(3600)
    }
    pub(super) fn retry_on() -> Vec<RetryOn> {
        vec![RetryOn::ConnectFailure, RetryOn::Reset]
    }
    pub(super) fn retry_attempts() -> u32 {
        1
    }
    pub(super) fn backoff() -> Duration {
        Duration::millis(25)
    }
    pub(super) fn check_interval() -> Duration {
        Duration::secs(10)
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
    pub(super) fn panic_threshold() -> u32 {
        50
    }
}
