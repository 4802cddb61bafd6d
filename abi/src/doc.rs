//! The documents that a filter passes to the host as JSON when it is configured: routes and buckets.
//!
//! They are read once, so JSON's cost does not matter, and any language can write it. Unknown fields are rejected, so
//! that a filter made for a newer host fails immediately on an older one.

use alloc::{collections::BTreeMap, string::String, vec::Vec};

#[cfg(feature = "schema")]
use schemars::JsonSchema;
#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

/// What the proxy does with the requests of a route.
#[derive(Debug, Clone, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(deny_unknown_fields, default))]
pub struct Route {
    /// Its name, in logs and metrics.
    pub name: String,
    /// The clusters that receive the requests; each must exist. Not empty.
    pub clusters: Vec<WeightedCluster>,
    /// Timeout from the last byte of the request to the last byte of the response, in milliseconds (0: no timeout).
    /// Default: the cluster's.
    pub timeout_ms: Option<u64>,
    /// Ends the request after this many milliseconds without a byte in either direction (0: no timeout). Default: the
    /// listener's.
    pub idle_timeout_ms: Option<u64>,
    /// When a request is retried. Default: the cluster's.
    pub retry: Option<Retry>,
    /// When a request whose response is late is also sent to another endpoint. Default: the cluster's. Not sent if missing,
    /// because older hosts do not know it.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub hedging: Option<Hedging>,
    /// Also sends a copy of requests to another cluster, whose responses are discarded.
    pub mirror: Option<Mirror>,
    /// Replaces the request's host.
    pub host: Option<String>,
    /// Replaces the beginning of the request's path.
    pub prefix: Option<PrefixRewrite>,
    /// Changes to the request's headers, made when the route is selected.
    pub request_headers: HeaderOps,
    /// Changes to the response's headers, made before any filter sees it.
    pub response_headers: HeaderOps,
    /// The filters that process the route's requests with another configuration, by name: one of the filter's variants,
    /// or [`OFF`]. Applies to filters behind the one that selects the route. Not sent if empty, because older hosts do
    /// not know it.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "BTreeMap::is_empty"))]
    pub filters: BTreeMap<String, String>,
}

/// In a route's `filters`: the filter is skipped. No variant has this name.
pub const OFF: &str = "off";

/// One of a route's clusters.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(deny_unknown_fields))]
pub struct WeightedCluster {
    /// Its name.
    pub cluster: String,
    /// Its share, relative to the other weights.
    pub weight: u32,
    /// The metadata of the endpoints that the requests may go to, if the cluster has subsets by these names. Not sent if
    /// empty, because older hosts do not know it.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "BTreeMap::is_empty"))]
    pub metadata_match: BTreeMap<String, MetadataValue>,
}

impl WeightedCluster {
    /// A cluster, whichever of its endpoints serves.
    pub fn new(cluster: impl Into<String>, weight: u32) -> WeightedCluster {
        WeightedCluster { cluster: cluster.into(), weight, metadata_match: BTreeMap::new() }
    }
}

/// A value of an endpoint's metadata.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
#[cfg_attr(feature = "serde", serde(untagged, expecting = "expected a text, a number or a boolean"))]
pub enum MetadataValue {
    /// A text.
    Text(String),
    /// A number; 1 and 1.0 are the same.
    Number(f64),
    /// A boolean.
    Boolean(bool),
}

/// When and how often a failed request is retried. Optional fields are not sent if they are missing, because older hosts do
/// not know all of them.
#[derive(Debug, Clone, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(deny_unknown_fields))]
pub struct Retry {
    /// The conditions for a retry.
    pub on: Vec<RetryOn>,
    /// Maximum number of retries, not counting the first attempt.
    pub attempts: u32,
    /// The timeout of each attempt in milliseconds.
    pub per_try_timeout_ms: Option<u64>,
    /// Milliseconds without a byte in either direction after which an attempt that has no response yet ends, and is retried
    /// like one that was reset.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub per_try_idle_timeout_ms: Option<u64>,
    /// Maximum delay before the first retry in milliseconds; it doubles with each retry.
    pub backoff_ms: u64,
    /// Maximum delay before any retry in milliseconds. Default: ten times `backoff_ms`.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub max_backoff_ms: Option<u64>,
    /// Delays that the upstream's responses request.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub rate_limited_backoff: Option<RateLimitedBackoff>,
    /// Statuses that are retried in addition to those of `on`.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Vec::is_empty"))]
    pub retriable_status_codes: Vec<u16>,
    /// A response that meets one of these conditions is retried.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Vec::is_empty"))]
    pub retriable_headers: Vec<HeaderMatch>,
    /// Only requests that meet one of these conditions are retried. Empty: all.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Vec::is_empty"))]
    pub retriable_request_headers: Vec<HeaderMatch>,
}

/// Delays before retries that the upstream's responses request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(deny_unknown_fields))]
pub struct RateLimitedBackoff {
    /// The headers that hold the delay; the first one with a valid delay of at most `max_ms` counts.
    pub reset_headers: Vec<ResetHeader>,
    /// Maximum delay in milliseconds. Longer ones are ignored.
    pub max_ms: u64,
}

/// A response header that says when a request may be sent again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(deny_unknown_fields))]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct ResetHeader {
    /// The header's name.
    pub name: String,
    /// The form of its value.
    #[cfg_attr(feature = "serde", serde(default))]
    pub format: ResetFormat,
}

/// The form of a time in a [`ResetHeader`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(rename_all = "snake_case"))]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub enum ResetFormat {
    /// A number of seconds or, as `Retry-After` allows, a date (RFC 9110 section 10.2.3).
    #[default]
    Seconds,
    /// Seconds since 1970, in UTC.
    UnixTimestamp,
}

/// A condition on a header: its name and at most one of `exact`, `prefix`, `suffix`, `regex` and `present`; the name alone
/// means `present: true`. Several fields of one name are one value, joined by `, `. Values are case-sensitive. A missing
/// header meets only `present: false` and any condition negated by `invert`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(deny_unknown_fields))]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct HeaderMatch {
    /// The header's name.
    pub name: String,
    /// The whole value.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub exact: Option<String>,
    /// The beginning of the value.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub prefix: Option<String>,
    /// The end of the value.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub suffix: Option<String>,
    /// A regular expression (the syntax of Rust's `regex` crate, on bytes) that matches the whole value.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub regex: Option<String>,
    /// Whether the header must be present, with any value, or absent.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub present: Option<bool>,
    /// Negates the condition.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "core::ops::Not::not"))]
    pub invert: bool,
}

/// When a request whose response is late is also sent to another endpoint.
#[derive(Debug, Clone, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(deny_unknown_fields, default))]
pub struct Hedging {
    /// Milliseconds that a request that was sent waits for its response before the second attempt. Default: the time
    /// within which 95 % of the cluster's responses of the last minute began.
    pub delay_ms: Option<u64>,
    /// The methods of requests that may be sent twice. Default: idempotent ones. Empty: none.
    pub methods: Option<Vec<String>>,
}

/// A reason to retry a request. The names are Envoy's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(rename_all = "snake_case"))]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub enum RetryOn {
    /// No connection was established: nothing was sent, so any request may be retried.
    ConnectFailure,
    /// The upstream closed the connection, or the attempt timed out, before a response started.
    Reset,
    /// Any 5xx response, or none.
    #[cfg_attr(feature = "serde", serde(rename = "5xx"))]
    ServerError,
    /// A 502, 503 or 504 response.
    GatewayError,
    /// A 409 response.
    #[cfg_attr(feature = "serde", serde(rename = "retriable_4xx"))]
    Retriable4xx,
    /// A 429 response.
    RateLimited,
    /// For a gRPC request, a trailers-only response with the status 1.
    GrpcCancelled,
    /// The same with the status 4.
    GrpcDeadlineExceeded,
    /// The same with the status 13.
    GrpcInternal,
    /// The same with the status 8.
    GrpcResourceExhausted,
    /// The same with the status 14.
    GrpcUnavailable,
}

/// Where a copy of some requests is sent.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(deny_unknown_fields))]
pub struct Mirror {
    /// The cluster's name.
    pub cluster: String,
    /// Number of mirrored requests per million.
    pub per_million: u32,
}

/// Replaces the beginning of a path. There is exactly one slash between the replacement and the rest: `/api/x` with
/// `/api` (or `/api/`) replaced by `/` becomes `/x`, by `/v1` it becomes `/v1/x`. The query is kept.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(deny_unknown_fields))]
pub struct PrefixRewrite {
    /// The number of bytes that are replaced.
    pub strip: u32,
    /// The replacement: a path, beginning with a slash.
    pub with: String,
}

/// Changes to headers: removed first, then set, then added.
#[derive(Debug, Clone, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(deny_unknown_fields, default))]
pub struct HeaderOps {
    /// Names of headers to remove.
    pub remove: Vec<String>,
    /// Headers to set to exactly this value.
    pub set: Vec<(String, String)>,
    /// Header fields to add to the existing ones.
    pub add: Vec<(String, String)>,
}

/// A token bucket or, with `max_keys`, one per key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(deny_unknown_fields))]
pub struct Bucket {
    /// Its name, unique in the filter.
    pub name: String,
    /// The number of tokens when full, which is also the initial number. 1 to 2^31-1.
    pub capacity: u32,
    /// The number of tokens added per interval, spread evenly. 1 to 2^31-1.
    pub fill: u32,
    /// The interval in milliseconds. At least 1.
    pub interval_ms: u64,
    /// Maximum number of keys tracked at a time (0: one bucket, no keys). A full bucket needs no memory, so this limits
    /// the keys used within the time that a bucket takes to fill; beyond it, the key nearest to full is evicted.
    pub max_keys: u32,
}
