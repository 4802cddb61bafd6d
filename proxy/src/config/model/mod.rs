//! The configuration as the user writes it: plain serde types, one for each section of the file.
//!
//! The types derive the JSON Schema that `tollgate schema` prints and that every file is validated against, so a
//! field's doc comment *is* its documentation. The control plane builds the workers' snapshot from these types.

use std::{path::PathBuf, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::units::{Address, ByteSize, Duration, Workers};

mod adaptive_concurrency;
mod balancer;
mod cluster;
mod compile;
mod consul;
mod discovery;
mod dns;
mod filter;
mod health_check;
mod json_text;
mod kubernetes;
mod listener;
mod outlier;
mod overload;
mod retry;
mod source;
mod subset;
mod tls;
mod workload;

pub use self::{
    adaptive_concurrency::*, balancer::*, cluster::*, compile::*, consul::*, discovery::*, dns::*, filter::*,
    health_check::*, json_text::JsonText, kubernetes::*, listener::*, outlier::*, overload::*, retry::*, source::*,
    subset::*, tls::*, workload::*,
};

/// The types that a free-form value may have. `null` is excluded: it means that a value was left blank.
const ANY: [&str; 5] = ["object", "array", "string", "number", "boolean"];

/// A complete configuration file.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Number of worker threads: `auto` (one per available processor) or a number. A change needs a restart.
    #[serde(default)]
    pub workers: Workers,
    /// Where the proxy runs, compared with the localities of endpoints. A change needs a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Locality>,
    /// The admin listener: health, metrics, the running configuration, reload.
    #[serde(default)]
    pub admin: Admin,
    /// The proxy's own log.
    #[serde(default)]
    pub log: Log,
    /// How long in-flight requests may take to finish after SIGTERM.
    #[serde(default = "default::drain_timeout")]
    pub drain_timeout: Duration,
    /// The directory that caches compiled filters between runs. Default: `$XDG_CACHE_HOME/tollgate`, or else
    /// `$HOME/.cache/tollgate`; with neither variable, nothing is cached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_dir: Option<PathBuf>,
    /// Limits on compiling filters.
    #[serde(default)]
    pub compile: Compile,
    /// The proxy's own certificate, obtained from a certificate authority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<Workload>,
    /// How host names are looked up.
    #[serde(default, skip_serializing_if = "is_default")]
    pub dns: Dns,
    /// How Consul is reached, by clusters whose endpoints are the instances of a service.
    #[serde(default, skip_serializing_if = "is_default")]
    pub consul: Consul,
    /// How the API server of Kubernetes is reached, by clusters whose endpoints are those of a service.
    #[serde(default, skip_serializing_if = "is_default")]
    pub kubernetes: Kubernetes,
    /// Where clusters and endpoints come from, other than the files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Source>,
    /// Further files with listeners, filters and clusters: paths relative to this file, whose names may contain the
    /// wildcards `*`, `?` and `[...]`. Only the main file can have this.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// Sockets that accept traffic. At least one, unless the admin listener has a certificate authority.
    #[serde(default, with = "shared")]
    #[schemars(with = "Vec<Listener>")]
    pub listeners: Vec<Arc<Listener>>,
    /// WebAssembly filters that listeners use in their chains.
    #[serde(default, with = "shared")]
    #[schemars(with = "Vec<Filter>")]
    pub filters: Vec<Arc<Filter>>,
    /// Upstreams that receive the requests.
    #[serde(default, with = "shared")]
    #[schemars(with = "Vec<Cluster>")]
    pub clusters: Vec<Arc<Cluster>>,
}

impl Config {
    /// Whether a source may supply clusters that the files do not have.
    pub fn may_get_clusters(&self) -> bool {
        self.sources.iter().any(|source| source.supplies.contains(&Supply::Clusters))
    }
}

/// The admin listener. It can change what the proxy does, so by default only the local machine can reach it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// The address to listen on: an IP address and a port, or a unix socket. A change needs a restart.
    pub address: Address,
    /// The permissions of a unix socket, in octal. Default `600`: only the user that runs Tollgate has access.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(pattern(r"^0?[0-7]{3}$"))]
    pub mode: Option<String>,
    /// Whether the admin listener exists.
    pub enabled: bool,
    /// Accepted host names in addition to `localhost` and IP addresses. Any other name is rejected, because a web page
    /// in a browser could use one that resolves to this machine (DNS rebinding).
    pub hosts: Vec<String>,
    /// A file with the token that requests must carry: `Authorization: Bearer TOKEN`. It is read for every request. The
    /// listener for probes does not need it, nor does `/ca/`, which has its own tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// How many configurations `GET /config/history` lists and `POST /config/rollback/VERSION` can apply again; 0 turns both
    /// off.
    #[schemars(range(max = 1000))]
    pub history: u16,
    /// Whether `/ready` returns 503 while a filter with `on_failure: deny` has had no instance on any worker for over a
    /// second. By default it returns 200 and names the missing filter: the same failure is likely to hit every proxy,
    /// and a load balancer would then remove them all.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unready_without_filters: bool,
    /// A separate listener that serves only `/live`, `/ready` and `/metrics`, for probes and Prometheus. A change needs
    /// a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probes: Option<Probes>,
    /// A certificate authority for workloads. A change needs a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<CertificateAuthority>,
}

/// A listener for probes and metrics only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Probes {
    /// The address to listen on, such as `0.0.0.0:9902`.
    #[schemars(extend("format" = "socket-address"))]
    pub address: std::net::SocketAddr,
}

impl Default for Admin {
    fn default() -> Self {
        let address = Address::Inet(([127, 0, 0, 1], 9901).into());
        Admin {
            address,
            mode: None,
            enabled: true,
            hosts: Vec::new(),
            token_file: None,
            history: 10,
            unready_without_filters: false,
            probes: None,
            ca: None,
        }
    }
}

impl Admin {
    /// Returns the listener's URL for messages, or `off`.
    pub fn url(&self) -> String {
        match (self.enabled, &self.address) {
            (false, _) => "off".to_owned(),
            (true, Address::Inet(address)) => format!("http://{address}"),
            (true, unix) => unix.to_string(),
        }
    }
}

/// The proxy's own log, on standard error.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// The least severe level to log: `off`, `error`, `warn`, `info`, `debug`, `trace`, or a `tracing` filter such as
    /// `info,tollgate::wasm=debug`. Default `info`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// The output format.
    pub format: LogFormat,
}

/// The output format of the proxy's own log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Human-readable text.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// HTTP/2 settings of a listener or a cluster (RFC 9113).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Http2 {
    /// Concurrent streams per connection. A listener advertises this limit to its clients; a cluster applies it in
    /// addition to the upstream's own limit.
    #[schemars(range(min = 1))]
    pub max_concurrent_streams: u32,
    /// Bytes that a peer may send on one stream before they are read.
    pub stream_window: ByteSize,
    /// Bytes that a peer may send on all streams of one connection before they are read. If this is less than
    /// `max_concurrent_streams` times `stream_window`, streams that are not being read can block the others.
    pub connection_window: ByteSize,
    /// A PING is sent on a connection that has received nothing for this long. `0s`: never. Default: `30s` for clients
    /// of a listener, never for upstreams.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ping_interval: Option<Duration>,
    /// A connection whose PING is not acknowledged within this time is closed.
    pub ping_timeout: Duration,
}

impl Http2 {
    /// Returns the sum of all stream windows at the maximum number of streams, capped at the largest window that HTTP/2
    /// allows.
    pub fn all_stream_windows(&self) -> ByteSize {
        let all = u64::from(self.max_concurrent_streams) * u64::from(self.stream_window.window());
        ByteSize(ByteSize(all).window().into())
    }

    /// Returns the time after which an idle client is sent a PING, or `None` for never.
    pub fn ping_clients(&self) -> Option<std::time::Duration> {
        self.ping_interval.unwrap_or(Duration::secs(30)).bound()
    }

    /// Returns the time after which an idle upstream is sent a PING, or `None` for never, the default: gRPC servers
    /// close the connection of a client that pings more often than every five minutes while no data flows (GOAWAY
    /// `too_many_pings`, gRFC A8).
    pub fn ping_upstreams(&self) -> Option<std::time::Duration> {
        self.ping_interval?.bound()
    }
}

impl Default for Http2 {
    fn default() -> Self {
        Http2 {
            max_concurrent_streams: 100,
            stream_window: ByteSize(256 << 10),
            connection_window: ByteSize(32 << 20),
            ping_interval: None,
            ping_timeout: Duration::secs(10),
        }
    }
}

/// A cluster with a weight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightedCluster {
    /// The cluster's name.
    pub cluster: String,
    /// Its share, relative to the other weights.
    #[serde(default = "default::weight")]
    #[schemars(range(max = 65535))]
    pub weight: u32,
}

/// Whether a value need not be written.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Lists of shared values, in the form of lists of values.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T: Serialize, S: Serializer>(all: &[Arc<T>], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(all.iter().map(|one| &**one))
    }

    pub(super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Arc<T>>, D::Error> {
        Ok(Vec::deserialize(deserializer)?.into_iter().map(Arc::new).collect())
    }
}

mod default {
    use super::Duration;

    pub(super) fn drain_timeout() -> Duration {
        Duration::secs(30)
    }
    pub(super) fn weight() -> u32 {
        1
    }
}
