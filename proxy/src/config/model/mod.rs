//! The configuration as the user writes it: plain serde types, one for each section of the file.
//!
//! The JSON Schema that `tollgate schema` prints, and that every file is checked against, is derived from these types, so
//! a field's doc comment here *is* its documentation. The control plane builds a snapshot from
//! them, which it hands to the workers.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::units::{Address, ByteSize, Duration, Workers};

mod cluster;
mod compile;
mod filter;
mod listener;
mod tls;
mod workload;

pub use self::{cluster::*, compile::*, filter::*, listener::*, tls::*, workload::*};

/// The types of a value that is somebody else's affair. `null` is none of them: it is what was left blank.
const ANY: [&str; 5] = ["object", "array", "string", "number", "boolean"];

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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_dir: Option<PathBuf>,
    /// Bounds on compiling filters.
    #[serde(default)]
    pub compile: Compile,
    /// The proxy's own certificate, if a certificate authority gives it one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<Workload>,
    /// The sockets that accept traffic. At least one, unless the admin listener has a certificate authority.
    #[serde(default)]
    pub listeners: Vec<Listener>,
    /// The WebAssembly filters that listeners put into their chains.
    #[serde(default)]
    pub filters: Vec<Filter>,
    /// The upstreams that requests are sent to.
    #[serde(default)]
    pub clusters: Vec<Cluster>,
}

/// The admin listener. It is never exposed by default: it can change what the proxy does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Where it listens: an IP address and a port, or a unix socket. Changing it needs a restart.
    pub address: Address,
    /// The permissions of a unix socket, in octal. Default `600`: only the user that Tollgate runs as.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(pattern(r"^0?[0-7]{3}$"))]
    pub mode: Option<String>,
    /// Whether it is there at all.
    pub enabled: bool,
    /// Names by which it may be asked for, beside `localhost` and addresses. A page in a browser could reach it by any other one
    /// that leads here.
    pub hosts: Vec<String>,
    /// A file with a token that whoever asks has to show: `Authorization: Bearer TOKEN`. It is read for each request. Not asked for
    /// by the listener for probes, nor for `/ca/`, which has tokens of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Whether `/ready` is 503 while a filter with `on_failure: deny` has had no instance on any worker for over a second. What makes
    /// one proxy's filter fail is likely to make all of theirs fail, and a load balancer then takes them all out. Default: it is 200,
    /// and says which filter is missing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unready_without_filters: bool,
    /// A listener of its own for `/live`, `/ready` and `/metrics`, and nothing else: the one for probes and Prometheus to reach.
    /// Changing it needs a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probes: Option<Probes>,
    /// A certificate authority for workloads. Changing it needs a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<CertificateAuthority>,
}

/// A listener for probes and metrics only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Probes {
    /// Where it listens, such as `0.0.0.0:9902`.
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
            unready_without_filters: false,
            probes: None,
            ca: None,
        }
    }
}

impl Admin {
    /// Where it is, for people.
    pub fn url(&self) -> String {
        match (self.enabled, &self.address) {
            (false, _) => "off".to_owned(),
            (true, Address::Inet(address)) => format!("http://{address}"),
            (true, unix) => unix.to_string(),
        }
    }
}

/// Tollgate's own log, on standard error.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Least severity shown: `off`, `error`, `warn`, `info`, `debug`, `trace`, or a `tracing` filter such as
    /// `info,tollgate::wasm=debug`. Default `info`.
    #[serde(skip_serializing_if = "Option::is_none")]
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

/// How HTTP/2 is spoken, on a listener or to a cluster (RFC 9113).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Http2 {
    /// Streams at one time on one connection: what a listener allows its clients, and what is used of what an upstream allows.
    #[schemars(range(min = 1))]
    pub max_concurrent_streams: u32,
    /// Bytes that a peer may send on a stream before they are read.
    pub stream_window: ByteSize,
    /// The same for all streams of a connection together. With less than `max_concurrent_streams` times `stream_window`, streams
    /// that nobody reads can hold up the others.
    pub connection_window: ByteSize,
    /// A connection on which nothing is received for this long is sent a ping. `0s`: never. Default: `30s` to the clients of a
    /// listener, never to upstreams.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ping_interval: Option<Duration>,
    /// A connection whose ping is not answered within this is closed.
    pub ping_timeout: Duration,
}

impl Http2 {
    /// What all streams together may send before it is read, if there are as many as may be; at most the largest window that
    /// there is.
    pub fn all_stream_windows(&self) -> ByteSize {
        let all = u64::from(self.max_concurrent_streams) * u64::from(self.stream_window.window());
        ByteSize(ByteSize(all).window().into())
    }

    /// When a silent client is sent a ping. None: never.
    pub fn ping_clients(&self) -> Option<std::time::Duration> {
        self.ping_interval.unwrap_or(Duration::secs(30)).bound()
    }

    /// When a silent upstream is sent a ping. None: never, which is the default: gRPC servers close the connection of a client that
    /// pings more often than every five minutes while no data flows (GOAWAY `too_many_pings`, gRFC A8).
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

/// A cluster with its share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightedCluster {
    /// The cluster.
    pub cluster: String,
    /// Its share, against the others' weights.
    #[serde(default = "default::weight")]
    #[schemars(range(max = 65535))]
    pub weight: u32,
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
