//! A worker's view of a listener: the rules and metrics of one configuration snapshot.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::SystemTime};

use http::{HeaderName, HeaderValue, Version};

use super::{
    GrpcMethodMetrics, Overload, Shedding,
    rejection::{RejectLogLimiter, RejectReason, RejectedConnection},
};
use crate::{
    chain::{Chain, Route, slot::SlottedChain},
    config::{model, units::Address},
    http::body::Body,
    observe::{self, AccessLog, Counter, Entry, Gauge, Histogram},
    tls::ServerTls,
    upstream::Pools,
};

/// A worker's view of a listener.
pub struct ListenerContext {
    /// The listener's name.
    pub name: Rc<str>,
    /// Its configuration.
    pub config: Arc<model::Listener>,
    /// The listener's filters.
    pub chain: SlottedChain<Chain>,
    /// The route of requests that no filter has routed.
    pub default_route: Option<Arc<Route>>,
    /// The values for `Via`.
    pub via: Via,
    /// The value of `Alt-Svc`, if HTTP/3 is enabled.
    pub alt_svc: Option<HeaderValue>,
    /// The header with a request's deadline.
    pub deadline_header: Option<HeaderName>,
    /// Load shedding, if enabled.
    pub overload: Option<Overload>,
    /// Maximum bytes of a body that are buffered.
    pub buffered_body: usize,
    /// TLS settings, if enabled.
    pub tls: Option<Arc<ServerTls>>,
    /// The access log, if requests are logged.
    pub access_log: Option<AccessLog>,
    /// The listener's metrics.
    pub metrics: ListenerMetrics,
    /// The worker's clusters and its connections to them.
    pub pools: Pools<Body>,
}

impl ListenerContext {
    /// Creates the context of a listener without access log.
    pub fn new(
        config: Arc<model::Listener>,
        chain: SlottedChain<Chain>,
        metrics: ListenerMetrics,
        pools: Pools<Body>,
    ) -> ListenerContext {
        ListenerContext {
            name: config.name.as_str().into(),
            chain,
            default_route: None,
            via: Via::new(&config.via),
            alt_svc: alt_svc(&config),
            // The configuration has been checked.
            deadline_header: config.deadline_header.as_ref().and_then(|name| name.parse().ok()),
            overload: config
                .overload
                .as_ref()
                .zip(metrics.shedding.clone())
                .map(|(section, shedding)| Overload::new(&config.name, section, shedding)),
            buffered_body: usize::try_from(config.limits.buffered_body.0).unwrap_or(usize::MAX),
            tls: None,
            access_log: None,
            metrics,
            pools,
            config,
        }
    }

    /// Counts a connection that was closed because of the client's behaviour.
    pub fn count_rejected(&self, refusal: RejectReason) {
        self.metrics.connections.refused[refusal as usize].inc(observe::shard());
    }

    /// Counts a rejected connection and logs the reason, at most once a minute, and in the access log if there was no
    /// request yet. `protocol` is the protocol that the connection had reached.
    #[cold]
    pub fn reject(&self, peer: SocketAddr, protocol: &str, refused: &RejectedConnection) {
        let RejectedConnection { refusal, cause, why } = refused;
        self.count_rejected(*refusal);
        let (connections, shard) = (&self.metrics.connections, observe::shard());
        if let (Some(cause), Some(counters)) = (cause, &connections.handshakes) {
            counters[*cause as usize].inc(shard);
        }
        if why.is_empty() {
            return;
        }
        connections.reject_log.warn(&self.name, peer, refused);
        if let (Some(log), Some((flags, details))) = (&self.access_log, refusal.logged()) {
            let now = Entry::new(SystemTime::now(), &self.name, peer);
            log.log(shard, &Entry { flags, details: details.text(), protocol, downstream_failure: why, ..now });
        }
    }
}

/// Returns the value that advertises HTTP/3 (RFC 9114 section 3.1.1), with the port of the first address that has one.
fn alt_svc(config: &model::Listener) -> Option<HeaderValue> {
    let address = config.all_addresses().find_map(Address::inet).filter(|_| config.http3)?;
    HeaderValue::from_str(&format!("h3=\":{}\"; ma=86400", address.port())).ok()
}

/// The values of `Via` (RFC 9110 section 7.6.3), one per HTTP version of the received message.
#[derive(Debug, Clone, Default)]
pub struct Via([Option<HeaderValue>; 4]);

impl Via {
    /// Creates the values for this proxy name. An empty name, or one that is invalid in a field, disables `Via`.
    pub fn new(name: &str) -> Via {
        let value = |version| HeaderValue::from_str(&format!("{version} {name}")).ok().filter(|_| !name.is_empty());
        Via(["1.0", "1.1", "2", "3"].map(value))
    }

    /// Returns the value for a message received in this version.
    pub fn of(&self, version: Version) -> Option<&HeaderValue> {
        let index = match version {
            Version::HTTP_10 => 0,
            Version::HTTP_2 => 2,
            Version::HTTP_3 => 3,
            _ => 1,
        };
        self.0[index].as_ref()
    }
}

/// A listener's metrics.
#[derive(Clone)]
pub struct ListenerMetrics {
    /// Requests by status class; 0: no response was sent.
    pub requests: [Counter; 6],
    /// Seconds from a request's head to the end of its response.
    pub duration: Histogram,
    /// In-flight requests.
    pub active: Gauge,
    /// Bytes of bodies, by direction.
    pub bytes: [Counter; 2],
    /// Responses per response flag.
    pub flags: Vec<(u32, Counter)>,
    /// gRPC calls by method.
    pub methods: Arc<GrpcMethodMetrics>,
    /// Connection metrics.
    pub connections: ConnectionMetrics,
    /// Open tunnels.
    pub tunnels: Gauge,
    /// Requests that were shed, if the listener sheds any.
    pub shedding: Option<Arc<Shedding>>,
}

/// A listener's connection metrics.
#[derive(Clone)]
pub struct ConnectionMetrics {
    /// Accepted connections.
    pub accepted: Counter,
    /// Open connections.
    pub active: Gauge,
    /// Connections closed because of the client's behaviour, by [`RejectReason`].
    pub refused: [Counter; RejectReason::COUNT],
    /// Failed handshakes, by [`HandshakeError`](crate::tls::HandshakeError); `None` if the listener has no TLS.
    pub handshakes: Option<Arc<[Counter]>>,
    /// Rate limits of the rejection log.
    pub reject_log: Arc<RejectLogLimiter>,
}
