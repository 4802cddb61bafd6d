//! The documents that a filter hands to the host as JSON when it is configured: routes and buckets.
//!
//! They are read once, so JSON's cost does not matter, and any language can write it. Unknown fields are refused, so that a
//! filter made for a later host learns at once that this one is older.

use alloc::{string::String, vec::Vec};

#[cfg(feature = "schema")]
use schemars::JsonSchema;
#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

/// What the core does with the requests of a route.
#[derive(Debug, Clone, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(deny_unknown_fields, default))]
pub struct Route {
    /// Its name, in logs and metrics.
    pub name: String,
    /// Where requests go; each must exist. Not empty.
    pub clusters: Vec<WeightedCluster>,
    /// From the last byte of the request to the last of the response, in milliseconds (0: no bound). Default: the cluster's.
    pub timeout_ms: Option<u64>,
    /// Without a byte in either direction, the request ends after this, in milliseconds (0: no bound). Default: the
    /// listener's.
    pub idle_timeout_ms: Option<u64>,
    /// When a request is tried again. Default: the cluster's.
    pub retry: Option<Retry>,
    /// A copy of requests is sent here too; its response is thrown away.
    pub mirror: Option<Mirror>,
    /// Replaces the request's host.
    pub host: Option<String>,
    /// Replaces the beginning of the request's path.
    pub prefix: Option<PrefixRewrite>,
    /// Changes to the request's headers, made when the route is selected.
    pub request_headers: HeaderOps,
    /// Changes to the response's headers, made before any filter sees it.
    pub response_headers: HeaderOps,
}

/// One of a route's clusters.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(deny_unknown_fields))]
pub struct WeightedCluster {
    /// Its name.
    pub cluster: String,
    /// Its share, against the others' weights.
    pub weight: u32,
}

/// When and how often a failed request is tried again.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(deny_unknown_fields))]
pub struct Retry {
    /// What is tried again.
    pub on: Vec<RetryOn>,
    /// How often, at most, beside the first try.
    pub attempts: u32,
    /// Time for each try in milliseconds.
    pub per_try_timeout_ms: Option<u64>,
    /// Longest wait before the first retry in milliseconds; it doubles for each further one.
    pub backoff_ms: u64,
}

/// A reason to try a request again. The names are Envoy's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(rename_all = "snake_case"))]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub enum RetryOn {
    /// No connection could be had: nothing was sent, so any request may be tried again.
    ConnectFailure,
    /// The upstream ended the connection, or the try's time, before a response began.
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
    /// To a gRPC request, a response that is nothing but a head with the status 1.
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
    /// How many of a million requests.
    pub per_million: u32,
}

/// Replaces the beginning of a path. Between what is put in its place and the rest there is exactly one slash: `/api/x` with
/// `/api` (or `/api/`) replaced by `/` becomes `/x`, by `/v1` it becomes `/v1/x`. The query stays.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(deny_unknown_fields))]
pub struct PrefixRewrite {
    /// How many bytes of the path are replaced.
    pub strip: u32,
    /// By what: a path, beginning with a slash.
    pub with: String,
}

/// Changes to headers: removed first, then set, then added.
#[derive(Debug, Clone, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(deny_unknown_fields, default))]
pub struct HeaderOps {
    /// Names of headers that are removed.
    pub remove: Vec<String>,
    /// Headers that get exactly this value.
    pub set: Vec<(String, String)>,
    /// Header fields that are added to those there are.
    pub add: Vec<(String, String)>,
}

/// A token bucket, or (with `keyed`) one for each key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(deny_unknown_fields))]
pub struct Bucket {
    /// Its name, unique in the filter.
    pub name: String,
    /// How many tokens it holds when full, which is how it starts. 1 to 2^31-1.
    pub capacity: u32,
    /// How many tokens it gains in each interval, evenly spread over it. 1 to 2^31-1.
    pub fill: u32,
    /// The interval in milliseconds. At least 1.
    pub interval_ms: u64,
    /// How many keys are remembered at one time (0: one bucket, no keys). A full bucket needs no memory, so this bounds the
    /// keys used within the time that a bucket takes to fill; over it, the key nearest to full is forgotten.
    pub max_keys: u32,
}
