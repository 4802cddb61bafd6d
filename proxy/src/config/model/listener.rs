//! The `listeners` section.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
pub use tollgate_abi::spelling::{EscapedSlashes, Parameters, PathRules};

use super::{
    super::units::{Address, ByteSize, Cidr, Duration, ServerName},
    Http2, ListenerTls, Overload, WeightedCluster,
};

/// A listener: sockets that accept traffic, and how that traffic is handled.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// A unique name, used in logs and metrics.
    #[schemars(length(min = 1))]
    pub name: String,
    /// The address to listen on: `127.0.0.1:8080`, `0.0.0.0:80`, `[::]:80`, `unix:/run/tollgate.sock`.
    pub address: Address,
    /// Additional addresses to listen on.
    #[serde(default)]
    pub addresses: Vec<Address>,
    /// The protocol that clients speak.
    #[serde(default)]
    pub protocol: Protocol,
    /// TLS: certificates, and verification of clients. Without it, connections are plaintext.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ListenerTls>,
    /// Also serve HTTP/3, on the same ports over UDP, and advertise it with `Alt-Svc`. Requires `tls`. The `http2`
    /// settings for streams, windows and pings apply to it as well.
    #[serde(default)]
    pub http3: bool,
    /// HTTP/2 settings.
    #[serde(default)]
    pub http2: Http2,
    /// Names of filters, in the order in which they process a request; they process the response in reverse order.
    #[serde(default)]
    pub chain: Vec<String>,
    /// The cluster for requests that no filter routes (without one, they are answered with 404, flag `NR`), and for TCP
    /// connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Routing of TCP connections, with `protocol: tcp` or `auto`.
    #[serde(default)]
    pub tcp: Tcp,
    /// The number of trusted proxies in front of this one that append to `X-Forwarded-For`. 0: clients connect
    /// directly, and their `X-Forwarded-*` and `X-Request-Id` headers are replaced.
    #[serde(default)]
    pub trusted_hops: u32,
    /// The name of a header with the milliseconds that a request may take, from the arrival of its head to the end of its
    /// response (504, or the stream is aborted if the response has begun). The upstream is told the remaining time. Only
    /// with `trusted_hops` above 0; otherwise the header is removed, as are invalid ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_header: Option<String>,
    /// The name in the `Via` header (RFC 9110 section 7.6.3) of requests and responses. Empty: no `Via` header.
    #[serde(default = "default::via")]
    pub via: String,
    /// How `X-Forwarded-Client-Cert` is handled.
    #[serde(default)]
    pub forwarded_client_cert: ForwardedClientCert,
    /// Protocols that clients may switch to with `Upgrade` (RFC 9110 section 7.8) or extended `CONNECT` (RFC 8441).
    #[serde(default = "default::upgrades")]
    pub upgrades: Vec<String>,
    /// Whether `CONNECT` opens a tunnel to an endpoint of the cluster that the request is routed to. If not, `CONNECT`
    /// is answered with 405.
    #[serde(default)]
    pub connect: bool,
    /// Whether interim responses of upstreams (RFC 9110 section 15.2), such as 103 (Early Hints), are forwarded to
    /// clients.
    #[serde(default = "default::yes")]
    pub interim_responses: bool,
    /// Whether gRPC-Web requests are translated to gRPC, and their responses back.
    #[serde(default)]
    pub grpc_web: bool,
    /// The PROXY protocol, with which a proxy in front passes on the client's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ListenerProxyProtocol>,
    /// Socket options.
    #[serde(default)]
    pub socket: SocketOptions,
    /// How request paths are normalized before any filter sees them.
    #[serde(default)]
    pub path: PathRules,
    /// How request headers whose names contain a `_` are handled.
    #[serde(default)]
    pub header_underscores: HeaderUnderscores,
    /// Limits on what clients may send.
    #[serde(default)]
    pub limits: ListenerLimits,
    /// Timeouts for clients.
    #[serde(default)]
    pub timeouts: ListenerTimeouts,
    /// Load shedding: requests are refused while the proxy itself is overloaded. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overload: Option<Overload>,
    /// The access log, with one line per request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLog>,
}

impl Listener {
    /// Returns the scheme of the listener's URLs.
    pub fn scheme(&self) -> &'static str {
        let tls = self.tls.as_ref().is_some_and(|tls| tls.mode != super::TlsMode::Disable);
        match (self.protocol, tls) {
            (Protocol::Tcp, false) => "tcp",
            (Protocol::Tcp, true) => "tls",
            (_, false) => "http",
            (_, true) => "https",
        }
    }

    /// Iterates over all addresses of the listener.
    pub fn all_addresses(&self) -> impl Iterator<Item = &Address> {
        std::iter::once(&self.address).chain(&self.addresses)
    }
}

/// How request headers whose names contain a `_` are handled. Many servers (CGI, WSGI, PHP) treat `X_User` as `X-User`,
/// which may be a header that filters or proxies set and upstreams trust.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HeaderUnderscores {
    /// The headers are removed.
    #[default]
    Drop,
    /// The request is answered with 400.
    Reject,
    /// The headers are forwarded unchanged.
    Keep,
}

/// Limits on what clients may send. A request that exceeds one is answered with the status in parentheses.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ListenerLimits {
    /// Size of a request head, request line included (431), and of the request's trailers (400).
    pub header_bytes: ByteSize,
    /// Number of header fields (431).
    #[schemars(range(min = 1, max = 10000))]
    pub headers: u32,
    /// Body bytes that are buffered while a filter holds them back (413 for requests, 500 for responses), or for
    /// retries (larger requests are not retried). On a TCP connection, reading pauses while a filter holds this many
    /// bytes of one direction.
    pub buffered_body: ByteSize,
    /// Size of a request body (413). 0: unlimited.
    pub request_body: ByteSize,
    /// Bytes of a request body that are read before an upstream connection is acquired, so that a slow client does not
    /// occupy one. A body that is known to be longer is not read ahead. 0: never.
    pub read_ahead: ByteSize,
    /// The minimum rate at which a request body must arrive, in bytes per second, averaged after `timeouts.body_grace`,
    /// while the proxy waits for it (408). Does not apply to gRPC calls to clusters with `protocol: h2` (or `auto` and
    /// TLS), nor once the response has begun. 0: unlimited.
    pub body_rate: ByteSize,
    /// Concurrent connections over all workers. Further ones are closed; plain HTTP/1.1 clients get a 503 first. 0:
    /// limited by the available file descriptors only.
    pub connections: u32,
    /// Requests per connection before it is closed. 0: unlimited.
    pub requests_per_connection: u32,
}

impl Default for ListenerLimits {
    fn default() -> Self {
        ListenerLimits {
            header_bytes: ByteSize(64 << 10),
            headers: 200,
            buffered_body: ByteSize(1 << 20),
            request_body: ByteSize(0),
            read_ahead: ByteSize(64 << 10),
            body_rate: ByteSize(240),
            connections: 0,
            requests_per_connection: 0,
        }
    }
}

/// Timeouts for clients. `0s` means unlimited, except for `body_grace`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ListenerTimeouts {
    /// From the first to the last byte of a request head (408).
    pub header_read: Duration,
    /// How long the proxy waits for a request body before `limits.body_rate` applies. `0s` means no grace period, not
    /// unlimited: `limits.body_rate` applies immediately. To allow bodies any amount of time, set `limits.body_rate:
    /// 0`.
    pub body_grace: Duration,
    /// Connections without a request are closed after this time.
    pub keep_alive: Duration,
    /// A request that moves no byte in either direction for this long ends (408 while waiting for the request body, 504
    /// while waiting for the response), and so does an upgraded or TCP connection.
    pub idle: Duration,
    /// From the start of a connection to the end of its TLS handshake. It also covers the PROXY protocol header and the
    /// bytes that identify the protocol.
    pub handshake: Duration,
    /// A connection of this age accepts no further requests and is closed when its requests have finished. A TCP
    /// connection is closed at this age.
    pub connection_age: Duration,
    /// From a request's head to the end of its response, also for streams without an end (504, or aborted).
    pub stream_age: Duration,
}

impl Default for ListenerTimeouts {
    fn default() -> Self {
        ListenerTimeouts {
            header_read: Duration::secs(10),
            body_grace: Duration::secs(10),
            keep_alive: Duration::secs(60),
            idle: Duration::secs(300),
            handshake: Duration::secs(10),
            connection_age: Duration::secs(0),
            stream_age: Duration::secs(0),
        }
    }
}

/// The access log. A separate thread writes the lines; when it cannot keep up, lines are dropped and counted
/// (`tollgate_access_log_dropped_total`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AccessLog {
    /// `stdout`, `stderr`, or a file, relative to this configuration file, that lines are appended to. The file is
    /// reopened on SIGHUP and SIGUSR1, for log rotation.
    #[serde(default = "default::access_log_to")]
    #[schemars(length(min = 1))]
    pub to: String,
    /// `json`, or a line with `%NAME%` fields, such as `%start% %method% %path% %status% %flags% %duration_ms%`.
    #[serde(default = "default::access_log_format")]
    pub format: String,
}

/// The protocol of a listener.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP/1.1 and HTTP/2; the client chooses (with TLS, by ALPN).
    #[default]
    Http,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only.
    Http2,
    /// Raw TCP: connections are forwarded without parsing, through the L4 filters of the chain.
    Tcp,
    /// HTTP if the first bytes look like it, with or without TLS; otherwise TCP. The mode `strict` of `tls` still
    /// applies.
    Auto,
}

/// How `X-Forwarded-Client-Cert`, which describes the client's certificate to the upstream, is handled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ForwardedClientCert {
    /// The header is removed.
    #[default]
    Strip,
    /// Appends an element if the client has a verified certificate; otherwise removes the header.
    Append,
    /// Replaces the header by one element if the client has a verified certificate; otherwise removes it.
    Set,
    /// Forwards the header unchanged, regardless of its sender. Use it only behind a proxy that sanitizes the header.
    Forward,
}

/// The PROXY protocol (versions 1 and 2) on a listener.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerProxyProtocol {
    /// Addresses, or ranges such as `10.0.0.0/8`, whose PROXY header is trusted. From other peers the header is not
    /// part of the protocol.
    #[schemars(length(min = 1))]
    pub trusted: Vec<Cidr>,
    /// Whether trusted peers must send the header. If not, a connection without one is handled as coming from the peer
    /// itself.
    #[serde(default = "default::yes")]
    pub required: bool,
}

/// Socket options of a listener. A change needs a restart or another address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SocketOptions {
    /// Connections that the kernel queues per worker until the worker accepts them. The kernel applies its own limit,
    /// too (`net.core.somaxconn`).
    #[schemars(range(min = 1, max = 65535))]
    pub backlog: u32,
    /// TCP keep-alive: the kernel probes a connection on which nothing was received for this long, in whole seconds, up
    /// to 32767. It sends nine probes at the same interval, at most 75 seconds apart. `0s`: off.
    pub keep_alive: Duration,
    /// Whether connections to any address that the kernel's TPROXY rules redirect here are accepted. Requires
    /// CAP_NET_ADMIN.
    pub transparent: bool,
    /// Whether a connection's local address is its original destination from before the kernel redirected it
    /// (REDIRECT), as for a sidecar. Filters see it as `destination.address`. IPv4 connections need an IPv4 listening
    /// address.
    pub original_destination: bool,
    /// The permissions of a unix socket, in octal.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(pattern(r"^0?[0-7]{3}$"))]
    pub mode: Option<String>,
}

impl Default for SocketOptions {
    fn default() -> Self {
        SocketOptions {
            backlog: 4096,
            keep_alive: Duration::secs(0),
            transparent: false,
            original_destination: false,
            mode: None,
        }
    }
}

/// Routing of TCP connections. Without any of these, they go to the listener's `cluster`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tcp {
    /// Clusters that share the connections that no `sni` entry matches, by weight.
    pub clusters: Vec<WeightedCluster>,
    /// Routes for TLS connections that are passed through without decryption, by server name (SNI). Exact names take
    /// precedence over wildcards, and longer wildcards over shorter ones.
    pub sni: Vec<SniRoute>,
}

/// A TLS passthrough route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SniRoute {
    /// Server names: `a.example`, or `*.example` for all names with one or more labels before `example`. Each name can
    /// be used only once.
    #[schemars(length(min = 1))]
    pub names: Vec<ServerName>,
    /// The cluster's name.
    pub cluster: String,
}

mod default {
    pub(super) fn via() -> String {
        "tollgate".into()
    }
    pub(super) fn access_log_to() -> String {
        "stdout".into()
    }
    pub(super) fn access_log_format() -> String {
        "json".into()
    }
    pub(super) fn upgrades() -> Vec<String> {
        vec!["websocket".into()]
    }
    pub(super) fn yes() -> bool {
        true
    }
}
