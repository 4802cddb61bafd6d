//! The configuration as the user writes it: plain serde types, one for each section of the file.
//!
//! The JSON Schema that `tollgate schema` prints, and that every file is checked against, is derived from these types, so
//! a field's doc comment here *is* its documentation. Nothing on the data path reads them: `resolve` turns them into a
//! snapshot first.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::units::{ByteSize, Duration, Workers};

/// A whole configuration file.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How many worker threads carry traffic: `auto` (one for each processor) or a number. Changing it needs a restart.
    #[serde(default)]
    pub workers: Workers,
    /// The admin listener: health, metrics, what is in force, reload.
    #[serde(default)]
    pub admin: Admin,
    /// Tollgate's own log.
    #[serde(default)]
    pub log: Log,
    /// How long requests under way may take to end after SIGTERM.
    #[serde(default = "default::drain_timeout")]
    pub drain_timeout: Duration,
    /// Where compiled filters are kept between runs. Default: `$XDG_CACHE_HOME/tollgate`, else `$HOME/.cache/tollgate`,
    /// else none.
    pub cache_dir: Option<PathBuf>,
    /// The sockets that accept traffic.
    #[schemars(length(min = 1))]
    pub listeners: Vec<Listener>,
    /// The WebAssembly filters that listeners put into their chains.
    #[serde(default)]
    pub filters: Vec<Filter>,
    /// The upstreams that requests are sent to.
    #[serde(default)]
    pub clusters: Vec<Cluster>,
}

/// The admin listener. It is never exposed by default: it can change what the proxy does.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Where it listens. Changing it needs a restart.
    #[schemars(extend("format" = "socket-address"))]
    pub address: SocketAddr,
    /// Whether it is there at all.
    pub enabled: bool,
}

impl Default for Admin {
    fn default() -> Self {
        Admin { address: SocketAddr::from(([127, 0, 0, 1], 9901)), enabled: true }
    }
}

/// Tollgate's own log, on standard error.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Least severity shown: a level, or a `tracing` filter such as `info,tollgate::wasm=debug`. Default `info`.
    pub level: Option<String>,
    /// How it is written.
    pub format: LogFormat,
}

/// How Tollgate's own log is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// A socket that accepts HTTP requests, and what is done with them.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Its name, in logs and metrics.
    #[schemars(length(min = 1))]
    pub name: String,
    /// The address to listen on: `127.0.0.1:8080`, `0.0.0.0:80`, `[::]:80`.
    #[schemars(extend("format" = "socket-address"))]
    pub address: SocketAddr,
    /// Names of filters, in the order in which they see a request (and in the reverse order, the response).
    #[serde(default)]
    pub chain: Vec<String>,
    /// The cluster for requests that no filter has routed. Without it they are answered with 404 (flag `NR`).
    pub cluster: Option<String>,
    /// How many proxies in front of this one are trusted to have written `X-Forwarded-For`. 0: clients connect directly,
    /// their `X-Forwarded-*` and `X-Request-Id` headers are replaced.
    #[serde(default)]
    pub trusted_hops: u32,
    /// The name in the `Via` header (RFC 9110 section 7.6.3) of requests and responses; empty for no such header.
    #[serde(default = "default::via")]
    pub via: String,
    /// What is done to a request's path before any filter sees it.
    #[serde(default)]
    pub path: PathRules,
    /// Bounds on what a client may send.
    #[serde(default)]
    pub limits: ListenerLimits,
    /// How long a client may take.
    #[serde(default)]
    pub timeouts: ListenerTimeouts,
    /// One line for each request.
    #[serde(default)]
    pub access_log: Option<AccessLog>,
}

/// Path normalisation (RFC 3986 section 6.2.2): dot segments are removed and percent-encoded unreserved characters are
/// decoded always; the rest by option.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PathRules {
    /// Several slashes in a row become one.
    pub merge_slashes: bool,
    /// What is done with `%2F` and `%5C`.
    pub escaped_slashes: EscapedSlashes,
}

impl Default for PathRules {
    fn default() -> Self {
        PathRules { merge_slashes: true, escaped_slashes: EscapedSlashes::Keep }
    }
}

/// What is done with `%2F` and `%5C` in a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EscapedSlashes {
    /// They stay as they are, and are no separators.
    Keep,
    /// The request is answered with 400.
    Reject,
    /// They become `/` before dot segments are removed.
    Decode,
}

/// Bounds on what a client may send. Over one of them, a request is answered with the status named.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ListenerLimits {
    /// Bytes of a request's head, request line included (431).
    pub header_bytes: ByteSize,
    /// Number of header fields (431).
    #[schemars(range(min = 1, max = 10000))]
    pub headers: u32,
    /// Bytes of a body that a filter holds back (413 for requests, 500 for responses), and that are kept for retries (larger
    /// requests are not tried again).
    pub buffered_body: ByteSize,
    /// Connections at one time, over all workers; further ones are closed at once. 0: no bound.
    pub connections: u32,
    /// Requests on one connection before it is closed. 0: no bound.
    pub requests_per_connection: u32,
}

impl Default for ListenerLimits {
    fn default() -> Self {
        ListenerLimits {
            header_bytes: ByteSize(64 << 10),
            headers: 100,
            buffered_body: ByteSize(1 << 20),
            connections: 0,
            requests_per_connection: 0,
        }
    }
}

/// How long a client may take. A time of `0s` means no bound.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ListenerTimeouts {
    /// From the first byte of a request's head to its last (408).
    pub header_read: Duration,
    /// A connection without a request is closed after this.
    pub keep_alive: Duration,
    /// Without a byte in either direction, a request ends: 408 while its body was awaited, 504 while a response was.
    pub idle: Duration,
}

impl Default for ListenerTimeouts {
    fn default() -> Self {
        ListenerTimeouts { header_read: Duration::secs(10), keep_alive: Duration::secs(60), idle: Duration::secs(300) }
    }
}

/// Where and how requests are logged. Lines are written by a thread of their own; when it cannot keep up they are dropped
/// and counted (`tollgate_access_log_dropped_total`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AccessLog {
    /// `stdout`, `stderr`, or a file, relative to this one, that is appended to (and opened again on SIGHUP and reload, so
    /// that it can be rotated).
    #[serde(default = "default::access_log_to")]
    pub to: String,
    /// `json`, or a line with `%NAME%` fields, such as `%start% %method% %path% %status% %flags% %duration_ms%`.
    #[serde(default = "default::access_log_format")]
    pub format: String,
}

/// A WebAssembly filter with its configuration.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Its name: what chains, logs and metrics call it.
    #[schemars(length(min = 1))]
    pub name: String,
    /// The module: `builtin:router` (also `authz`, `fault`, `ratelimit`), or a file, relative to this one.
    pub wasm: String,
    /// Handed to the filter: as JSON if it is a map, a list, a number or a boolean, as it stands if it is a string.
    #[serde(default)]
    pub config: serde_json::Value,
    /// Handed to the filter's VM when it starts, in the same way.
    #[serde(default)]
    pub vm_config: serde_json::Value,
    /// The name of the root context that a module with several of them registers it under.
    #[serde(default)]
    pub root_id: String,
    /// Filters with the same `vm_id` share their shared data. Default: the filter's name.
    pub vm_id: Option<String>,
    /// What becomes of a request when the filter traps, runs out of time or memory, or is not there.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// What a filter means by pausing in the header phase.
    #[serde(default)]
    pub headers_pause: HeadersPause,
    /// Bounds on what it may use.
    #[serde(default)]
    pub limits: FilterLimits,
    /// Environment variables that the module sees through WASI.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// What becomes of a request whose filter has failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// It is answered with 503 (flag `FF`).
    #[default]
    Deny,
    /// It goes on as if the filter were not in the chain.
    Bypass,
}

/// What a filter means by pausing in the header phase; the field knows two meanings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HeadersPause {
    /// Nothing is delivered until it resumes.
    #[default]
    StopAll,
    /// The headers are held, and the body is still delivered to it (Coraza and Kuadrant's wasm-shim rely on this).
    HoldHeaders,
}

/// Bounds on what a filter may use.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FilterLimits {
    /// Processor time for one call into it. Configuring may take twenty times as long.
    pub call_time: Duration,
    /// Linear memory of one instance.
    pub memory: ByteSize,
}

impl Default for FilterLimits {
    fn default() -> Self {
        FilterLimits { call_time: Duration::millis(50), memory: ByteSize(64 << 20) }
    }
}

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
    /// How an endpoint is chosen for a request.
    #[serde(default)]
    pub balancer: Balancer,
    /// How long connecting may take.
    #[serde(default = "default::connect_timeout")]
    pub connect_timeout: Duration,
    /// From the last byte of the request (or from when the filters have let it go, if that is later) to the last of the
    /// response, retries included (504); a route can set its own.
    #[serde(default = "default::request_timeout")]
    pub request_timeout: Duration,
    /// Retries, unless a route sets its own.
    pub retry: Option<Retry>,
    /// Bounds that keep an overloaded cluster from taking the proxy with it.
    #[serde(default)]
    pub limits: ClusterLimits,
    /// Bound on retries, over all routes.
    #[serde(default)]
    pub retry_budget: RetryBudget,
}

/// One address that serves a cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// Its address: `127.0.0.1:9001`, `[::1]:9001`.
    #[schemars(extend("format" = "socket-address"))]
    pub address: SocketAddr,
    /// Its share of the requests, against the other endpoints' weights. 0: none.
    #[serde(default = "default::weight")]
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
    /// A connection without a request is closed after this.
    pub idle_timeout: Duration,
    /// Requests on one connection before it is closed. 0: no bound.
    pub requests_per_connection: u32,
}

impl Default for ClusterLimits {
    fn default() -> Self {
        ClusterLimits {
            connections: 1024,
            pending: 1024,
            requests: 10_000,
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

mod default {
    use super::Duration;
    use tollgate_abi::doc::RetryOn;

    pub(super) fn drain_timeout() -> Duration {
        Duration::secs(30)
    }
    pub(super) fn via() -> String {
        "tollgate".into()
    }
    pub(super) fn access_log_to() -> String {
        "stdout".into()
    }
    pub(super) fn access_log_format() -> String {
        "json".into()
    }
    pub(super) fn connect_timeout() -> Duration {
        Duration::secs(1)
    }
    pub(super) fn request_timeout() -> Duration {
        Duration::secs(15)
    }
    pub(super) fn weight() -> u32 {
        1
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
}
