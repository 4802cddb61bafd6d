//! The `listeners` section.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
pub use tollgate_abi::spelling::{EscapedSlashes, Parameters, PathRules};

use super::{
    super::units::{Address, ByteSize, Cidr, Duration, ServerName},
    Http2, ListenerTls, WeightedCluster,
};

/// Sockets that accept traffic, and what is done with it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Its name, in logs and metrics.
    #[schemars(length(min = 1))]
    pub name: String,
    /// The address to listen on: `127.0.0.1:8080`, `0.0.0.0:80`, `[::]:80`, `unix:/run/tollgate.sock`.
    pub address: Address,
    /// Further addresses.
    #[serde(default)]
    pub addresses: Vec<Address>,
    /// What is spoken on it.
    #[serde(default)]
    pub protocol: Protocol,
    /// TLS: certificates, and what is asked of clients. Without it, everything is plain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ListenerTls>,
    /// HTTP/3 as well, on the same ports over UDP, and `Alt-Svc` in responses to say so. Needs `tls`. What `http2` says of
    /// streams, windows and pings holds for it too.
    #[serde(default)]
    pub http3: bool,
    /// How HTTP/2 is spoken.
    #[serde(default)]
    pub http2: Http2,
    /// Names of filters, in the order in which they see a request (and in the reverse order, the response).
    #[serde(default)]
    pub chain: Vec<String>,
    /// The cluster for requests that no filter has routed (without it they are answered with 404, flag `NR`), and for TCP
    /// connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// TCP connections, with `protocol: tcp` or `auto`.
    #[serde(default)]
    pub tcp: Tcp,
    /// How many proxies in front of this one are trusted to have written `X-Forwarded-For`. 0: clients connect directly,
    /// their `X-Forwarded-*` and `X-Request-Id` headers are replaced.
    #[serde(default)]
    pub trusted_hops: u32,
    /// The name in the `Via` header (RFC 9110 section 7.6.3) of requests and responses; empty for no such header.
    #[serde(default = "default::via")]
    pub via: String,
    /// What is done with `X-Forwarded-Client-Cert`.
    #[serde(default)]
    pub forwarded_client_cert: ForwardedClientCert,
    /// Protocols that a client may switch to with `Upgrade` (RFC 9110 section 7.8) or extended `CONNECT` (RFC 8441).
    #[serde(default = "default::upgrades")]
    pub upgrades: Vec<String>,
    /// Whether `CONNECT` opens a tunnel to an endpoint of the cluster that the request is routed to. Without it, `CONNECT` is
    /// answered with 405.
    #[serde(default)]
    pub connect: bool,
    /// Whether interim responses of upstreams (RFC 9110 section 15.2), such as 103 (Early Hints), are passed on to clients.
    #[serde(default = "default::yes")]
    pub interim_responses: bool,
    /// Whether gRPC-Web requests are translated to gRPC, and their responses back.
    #[serde(default)]
    pub grpc_web: bool,
    /// The PROXY protocol, by which a proxy in front says who the client is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ListenerProxyProtocol>,
    /// Options of the sockets.
    #[serde(default)]
    pub socket: SocketOptions,
    /// What is done to a request's path before any filter sees it.
    #[serde(default)]
    pub path: PathRules,
    /// What is done with request fields whose names have a `_`.
    #[serde(default)]
    pub header_underscores: HeaderUnderscores,
    /// Bounds on what a client may send.
    #[serde(default)]
    pub limits: ListenerLimits,
    /// How long a client may take.
    #[serde(default)]
    pub timeouts: ListenerTimeouts,
    /// One line for each request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLog>,
}

impl Listener {
    /// What URLs of it begin with.
    pub fn scheme(&self) -> &'static str {
        let tls = self.tls.as_ref().is_some_and(|tls| tls.mode != super::TlsMode::Disable);
        match (self.protocol, tls) {
            (Protocol::Tcp, false) => "tcp",
            (Protocol::Tcp, true) => "tls",
            (_, false) => "http",
            (_, true) => "https",
        }
    }

    /// All its addresses.
    pub fn all_addresses(&self) -> impl Iterator<Item = &Address> {
        std::iter::once(&self.address).chain(&self.addresses)
    }
}

/// What is done with request fields whose names have a `_`. Many servers (CGI, WSGI, PHP) read `X_User` as `X-User`, which may
/// be a field that filters or proxies vouch for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HeaderUnderscores {
    /// They are removed.
    #[default]
    Drop,
    /// The request is answered with 400.
    Reject,
    /// They stay as they are.
    Keep,
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
    /// requests are not tried again). Of a TCP connection, no more are read while a filter holds so many of that side.
    pub buffered_body: ByteSize,
    /// Bytes of a request's body (413). 0: unlimited.
    pub request_body: ByteSize,
    /// Bytes of a request's body that are read before a connection to the upstream is taken for it, so that a slow client holds
    /// none: of a body that is known to be longer, none are. 0: never.
    pub read_ahead: ByteSize,
    /// Bytes of a request's body that must come in each second, on average and beyond `timeouts.body_grace`, while it is waited
    /// for (408). Not for gRPC calls to clusters with `protocol: h2` (or `auto` and TLS), and not when the response has begun. 0:
    /// unlimited.
    pub body_rate: ByteSize,
    /// Connections at one time, over all workers; further ones are answered with 503 if they are plain HTTP/1.1, and closed.
    /// 0: as many as there are file descriptors for.
    pub connections: u32,
    /// Requests on one connection before it is closed. 0: unlimited.
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

/// How long a client may take. A time of `0s` means unlimited, but for `body_grace`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ListenerTimeouts {
    /// From the first byte of a request's head to its last (408).
    pub header_read: Duration,
    /// How long a request's body may be waited for in any case, before `limits.body_rate` counts. `0s`
    /// means no time at all, not unlimited: `limits.body_rate` counts at once. A body that may take any time is what
    /// `limits.body_rate: 0` is for.
    pub body_grace: Duration,
    /// A connection without a request is closed after this.
    pub keep_alive: Duration,
    /// Without a byte in either direction, a request ends (408 while its body was awaited, 504 while a response was), and so
    /// does an upgraded or TCP connection.
    pub idle: Duration,
    /// From a connection's beginning to the end of its TLS handshake; also for a PROXY protocol header, and for the bytes that
    /// show which protocol it speaks.
    pub handshake: Duration,
    /// A connection that is this old takes no more requests, and is closed when those it has are over. A TCP connection is
    /// closed at this age.
    pub connection_age: Duration,
    /// From a request's head to the end of its response, also for streams that have no end (504, or cut off).
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

/// Where and how requests are logged. Lines are written by a thread of their own; when it cannot keep up they are dropped
/// and counted (`tollgate_access_log_dropped_total`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AccessLog {
    /// `stdout`, `stderr`, or a file, relative to this one, that is appended to (and opened again on SIGHUP and SIGUSR1, so
    /// that it can be rotated).
    #[serde(default = "default::access_log_to")]
    #[schemars(length(min = 1))]
    pub to: String,
    /// `json`, or a line with `%NAME%` fields, such as `%start% %method% %path% %status% %flags% %duration_ms%`.
    #[serde(default = "default::access_log_format")]
    pub format: String,
}

/// What is spoken on a listener.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP/1.1 and HTTP/2, whichever the client begins with (with TLS, by ALPN).
    #[default]
    Http,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only.
    Http2,
    /// Nothing that is looked into: connections are passed on, past the L4 filters of the chain.
    Tcp,
    /// HTTP if the first bytes are such, under TLS as without it; everything else is TCP. Mode `strict` of `tls` holds here, too.
    Auto,
}

/// What is done with `X-Forwarded-Client-Cert`, which tells the upstream about the client's certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ForwardedClientCert {
    /// It is removed.
    #[default]
    Strip,
    /// If the client has a certificate that was verified, an element for it is added; else it is removed.
    Append,
    /// If the client has a certificate that was verified, it is replaced by an element for it; else it is removed.
    Set,
    /// It stays as it came, whoever sent it: only behind a proxy that sees to it.
    Forward,
}

/// The PROXY protocol (versions 1 and 2) on a listener.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerProxyProtocol {
    /// Who is trusted to send its header: addresses, or ranges such as `10.0.0.0/8`. To others it is not part of the protocol.
    #[schemars(length(min = 1))]
    pub trusted: Vec<Cidr>,
    /// Whether those must send one. If not, a connection of theirs that begins with something else is taken as it is.
    #[serde(default = "default::yes")]
    pub required: bool,
}

/// Options of a listener's sockets. Changing them needs a restart, or another address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SocketOptions {
    /// Connections that the system keeps for each worker until it takes them. The system has a bound of its own
    /// (`net.core.somaxconn`).
    #[schemars(range(min = 1, max = 65535))]
    pub backlog: u32,
    /// Whether the system looks after idle connections (TCP keep-alive), and when: nothing received for this long, in whole
    /// seconds, up to 32767. It asks nine times, as often, but at least every 75 seconds. `0s`: it does not.
    pub keep_alive: Duration,
    /// Whether connections to any address are accepted that the system's rules send here (TPROXY). Needs CAP_NET_ADMIN.
    pub transparent: bool,
    /// Whether a connection's own address is the one that it had before the system redirected it (REDIRECT), as for a sidecar.
    /// Filters see it as `destination.address`. For IPv4 it needs an IPv4 address to listen on.
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

/// Where TCP connections go. Without any of these, to the listener's `cluster`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tcp {
    /// Clusters that share the connections by their weights. Those that `sni` says nothing of.
    pub clusters: Vec<WeightedCluster>,
    /// TLS that is passed through unread, by the server name that the client asks for. An exact name counts before a
    /// wildcard, a longer wildcard before a shorter one.
    pub sni: Vec<SniRoute>,
}

/// Where connections go whose clients ask for some server names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SniRoute {
    /// Names: `a.example`, or `*.example` for all that have one label or more before `example`. Each is there only once.
    #[schemars(length(min = 1))]
    pub names: Vec<ServerName>,
    /// The cluster.
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
