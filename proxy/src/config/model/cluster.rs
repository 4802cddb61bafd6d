//! The `clusters` section.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    super::units::{Address, Duration, EndpointAddress},
    AdaptiveConcurrency, Balancer, ClusterTls, Discovery, DnsQuery, HealthCheck, Hedging, Http2, OutlierDetection,
    Query, Retry, RetryBudget, Subsets, is_default,
};

/// A group of endpoints that provide the same service.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// A unique name, by which routes refer to the cluster.
    #[schemars(length(min = 1))]
    pub name: String,
    /// The cluster's endpoints.
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
    /// Where the endpoints come from, if they are not listed here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discovery: Option<Box<Discovery>>,
    /// The protocol spoken to the endpoints.
    #[serde(default)]
    pub protocol: ClusterProtocol,
    /// HTTP/2 settings of connections to the endpoints.
    #[serde(default)]
    pub http2: Http2,
    /// TLS to the endpoints. Without it, connections are plaintext.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Box<ClusterTls>>,
    /// The version of the PROXY protocol header to send at the start of each connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocolVersion>,
    /// Active health checks. Unhealthy endpoints receive no requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_check: Option<Box<HealthCheck>>,
    /// Outlier ejection: endpoints that fail requests get none for a while.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<Box<OutlierDetection>>,
    /// How an endpoint is chosen for each request: an algorithm, or a section with its options.
    #[serde(default)]
    pub balancer: Balancer,
    /// Subsets of the endpoints by their metadata, from which routes select by `metadata_match`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subsets: Option<Box<Subsets>>,
    /// Timeout for establishing a connection. The operating system retransmits a lost SYN after one second, and again
    /// two seconds later.
    #[serde(default = "default::connect_timeout")]
    pub connect_timeout: Duration,
    /// Time from the last byte of the request (or from when the filters let it pass, if that is later) to the response
    /// head, retries included (504). After that, the listener's `timeouts.idle` limits how long the stream may be idle.
    /// `0s`: unlimited. Default: 15 s unless `request_timeout` is set. A route's `timeout` overrides it. gRPC calls
    /// have no such timeout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_head_timeout: Option<Duration>,
    /// Time from the last byte of the request (or from when the filters let it pass, if that is later) to the last byte
    /// of the response, retries included (504, or the stream is aborted if the response has begun). It also ends
    /// responses that are still flowing. `0s`: unlimited, the default. A route's `timeout` overrides it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_timeout: Option<Duration>,
    /// The maximum for a gRPC client's `grpc-timeout`, which overrides `request_timeout`: longer values are capped to
    /// this one. `0s`: unlimited.
    #[serde(default = "default::max_grpc_timeout")]
    pub max_grpc_timeout: Duration,
    /// The retry policy of routes that do not set their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Box<Retry>>,
    /// A second attempt at another endpoint for requests whose response is late. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedging: Option<Box<Hedging>>,
    /// Limits (circuit breaking) that keep an overloaded cluster from affecting the rest of the proxy.
    #[serde(default)]
    pub limits: ClusterLimits,
    /// Adaptive concurrency: a limit on concurrent requests that follows the latency of the endpoints. Further ones get 503
    /// (flag `UO`). Not for TCP connections. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptive_concurrency: Option<Box<AdaptiveConcurrency>>,
    /// A limit on concurrent retries over all routes.
    #[serde(default)]
    pub retry_budget: RetryBudget,
}

/// Returns the name of a service's endpoints among those of all sources. A cluster uses only those of the source that it
/// names, so each source has its own.
pub fn service(source: &str, name: &str) -> String {
    format!("{source}/{name}")
}

impl Cluster {
    /// Returns what has to be looked for; `None` if its endpoints are listed here, or a source supplies them.
    pub fn query(&self) -> Option<Query> {
        match &self.discovery {
            Some(discovery) => discovery.query(),
            None if self.has_host_names() => Some(Query::Dns(DnsQuery::Endpoints(self.endpoints.clone()))),
            None => None,
        }
    }

    fn has_host_names(&self) -> bool {
        self.endpoints.iter().any(|endpoint| matches!(endpoint.address, Address::Host(..)))
    }

    /// Whether its endpoints are not, or not only, those that are listed here.
    pub fn is_discovered(&self) -> bool {
        self.discovery.is_some() || self.has_host_names()
    }

    /// Returns the name of its endpoints among those of all sources; `None` if they are listed here.
    pub fn service(&self) -> Option<String> {
        match (self.query(), self.discovery.as_deref()) {
            (Some(query), _) => Some(query.to_string()),
            (None, Some(Discovery { source, service: name, .. })) => {
                Some(service(source.as_deref()?, name.as_deref().unwrap_or(&self.name)))
            }
            (None, None) => None,
        }
    }

    /// Returns the endpoints that need no lookup.
    pub fn known_endpoints(&self) -> Vec<Endpoint> {
        let known = |endpoint: &&Endpoint| !matches!(endpoint.address, Address::Host(..));
        self.endpoints.iter().filter(known).cloned().collect()
    }

    /// Returns the timeout for the response head, or `None` for unlimited. The default applies only if
    /// `request_timeout` is not set either: setting it, even to unlimited, replaces the default.
    pub fn head_timeout(&self) -> Option<std::time::Duration> {
        match (self.response_head_timeout, self.request_timeout) {
            (Some(head), _) => head.bound(),
            (None, Some(_)) => None,
            (None, None) => Some(default::RESPONSE_HEAD_TIMEOUT),
        }
    }
}

/// An address that serves a cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// The address: `127.0.0.1:9001`, `[::1]:9001`, `unix:/run/app.sock`. `api.internal:9001` stands for all addresses of
    /// the host name in DNS.
    #[serde(deserialize_with = "endpoint_address")]
    #[schemars(with = "EndpointAddress")]
    pub address: Address,
    /// The addresses of a host name, in the order in which they are tried.
    #[serde(skip)]
    #[schemars(skip)]
    pub resolved: Option<Arc<Box<[SocketAddr]>>>,
    /// Its share of the requests, relative to the other endpoints' weights. 0: no requests.
    #[serde(default = "super::default::weight")]
    #[schemars(range(max = 65535))]
    pub weight: u32,
    /// Its priority: 0 is the highest. Endpoints of a lower priority are for when those of higher ones fail.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(range(max = 127))]
    pub priority: u32,
    /// Where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Locality")]
    pub locality: Option<Box<Locality>>,
    /// Its properties: texts, numbers and booleans by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Metadata")]
    pub metadata: Option<Box<Metadata>>,
    /// Its host name: the server name of TLS connections to it (SNI), unless the cluster's `tls.sni` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "tollgate-host-name"))]
    pub hostname: Option<String>,
}

impl Endpoint {
    /// An endpoint that has no more than an address and a weight.
    pub fn new(address: impl Into<Address>, weight: u32) -> Endpoint {
        let address = address.into();
        Endpoint { address, resolved: None, weight, priority: 0, locality: None, metadata: None, hostname: None }
    }
}

fn endpoint_address<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Address, D::Error> {
    Address::of_endpoint(&String::deserialize(d)?).map_err(serde::de::Error::custom)
}

/// The location of an endpoint or of a proxy. Empty parts are unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Locality {
    /// The region, such as `eu-west-1`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub region: String,
    /// The zone of the region, such as `eu-west-1a`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub zone: String,
    /// A part of the zone, such as a rack.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sub_zone: String,
}

/// An endpoint's properties by name.
pub type Metadata = BTreeMap<String, MetadataValue>;

/// A value of an endpoint's metadata.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum MetadataValue {
    /// A text.
    Text(String),
    /// A number.
    Number(serde_json::Number),
    /// A boolean.
    Boolean(bool),
}

/// Limits of a cluster (circuit breaking), over all workers.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterLimits {
    /// Concurrent connections. Each worker is always allowed one.
    #[schemars(range(min = 1))]
    pub connections: u32,
    /// Requests that wait for a connection. Further ones get 503 (flag `UO`).
    pub pending: u32,
    /// In-flight requests. Further ones get 503 (flag `UO`).
    #[schemars(range(min = 1))]
    pub requests: u32,
    /// Retries in progress, in addition to what `retry_budget` allows. Default: no further limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
    /// The share of the cluster's request capacity, in percent, that unfinished uploads (requests whose bodies are
    /// incomplete) and tunnels (upgrades and `CONNECT`) may occupy. The capacity is `connections` (with `protocol: h2`,
    /// multiplied by `http2.max_concurrent_streams` or what the endpoints allow), and at most `requests`. Further ones
    /// get 503 (flag `UO`).
    #[schemars(range(min = 1, max = 100))]
    pub uploads: u32,
    /// The same limit for a single client (an IPv6 /64 counts as one client).
    #[schemars(range(min = 1, max = 100))]
    pub uploads_per_client: u32,
    /// Idle connections are closed after this time.
    pub idle_timeout: Duration,
    /// Requests per connection before it is closed. 0: unlimited.
    pub requests_per_connection: u32,
}

impl Default for ClusterLimits {
    fn default() -> Self {
        ClusterLimits {
            connections: 1024,
            pending: 1024,
            requests: 10_000,
            retries: None,
            uploads: 75,
            uploads_per_client: 25,
            idle_timeout: Duration::secs(60),
            requests_per_connection: 0,
        }
    }
}

/// The protocol spoken to a cluster's endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClusterProtocol {
    /// HTTP/1.1.
    #[default]
    H1,
    /// HTTP/2; with prior knowledge if there is no TLS.
    H2,
    /// HTTP/1.1 or HTTP/2, negotiated by ALPN; HTTP/1.1 without TLS.
    Auto,
}

/// A version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProxyProtocolVersion {
    /// The text header.
    V1,
    /// The binary header.
    V2,
}

mod default {
    use super::Duration;

    /// Default of `response_head_timeout`.
    pub(super) const RESPONSE_HEAD_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(15);

    pub(super) fn connect_timeout() -> Duration {
        Duration::secs(5)
    }
    pub(super) fn max_grpc_timeout() -> Duration {
        Duration::secs(3600)
    }
}
