//! What a worker knows of a listener: the rules of one snapshot.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::SystemTime};

use http::{HeaderValue, Version};
use rustc_hash::FxHashMap;

use super::{
    GrpcMethodMetrics,
    rejection::{RejectLogLimiter, RejectReason, RejectedConnection},
};
use crate::{
    chain::{Chain, Route, route::RetryPolicy},
    config::{model, units::Address},
    http::body::Body,
    observe::{self, AccessLog, Counter, Entry, Gauge, Histogram},
    tls::ServerTls,
    upstream::Pools,
};

/// What a worker knows of a listener.
pub struct ListenerContext {
    /// The listener's name.
    pub name: Rc<str>,
    /// Its configuration.
    pub config: Arc<model::Listener>,
    /// Its filters.
    pub chain: Rc<Chain>,
    /// The route of requests that no filter has routed.
    pub default_route: Option<Arc<Route>>,
    /// The values of `Via`.
    pub via: Via,
    /// The value of `Alt-Svc`, if HTTP/3 is spoken too.
    pub alt_svc: Option<HeaderValue>,
    /// Bytes of a body that are held back.
    pub buffered_body: usize,
    /// TLS, if there is any.
    pub tls: Option<Arc<ServerTls>>,
    /// Where requests are logged.
    pub access_log: Option<AccessLog>,
    /// The listener's figures.
    pub metrics: ListenerMetrics,
    /// The clusters' figures, by name.
    pub clusters: FxHashMap<Box<str>, ClusterMetrics>,
    /// Retries of clusters, unless a route says otherwise.
    pub retries: FxHashMap<Box<str>, RetryPolicy>,
    /// The way to upstreams.
    pub pools: Pools<Body>,
}

impl ListenerContext {
    /// The rules of a listener, with no logs, and nothing known of clusters.
    pub fn new(
        config: Arc<model::Listener>,
        chain: Rc<Chain>,
        figures: ListenerMetrics,
        pools: Pools<Body>,
    ) -> ListenerContext {
        ListenerContext {
            name: config.name.as_str().into(),
            chain,
            default_route: None,
            via: Via::new(&config.via),
            alt_svc: alt_svc(&config),
            buffered_body: usize::try_from(config.limits.buffered_body.0).unwrap_or(usize::MAX),
            tls: None,
            access_log: None,
            metrics: figures,
            clusters: FxHashMap::default(),
            retries: FxHashMap::default(),
            pools,
            config,
        }
    }

    /// Counts a connection that was ended for what the client did.
    pub fn refuse(&self, refusal: RejectReason) {
        self.metrics.connections.refused[refusal as usize].inc(observe::shard());
    }

    /// The same, and says why: in the log once a minute at most, and, if there was no request yet, in the access log.
    /// `protocol`: what the connection had got to.
    #[cold]
    pub fn reject(&self, peer: SocketAddr, protocol: &str, refused: &RejectedConnection) {
        let RejectedConnection { refusal, cause, why } = refused;
        self.refuse(*refusal);
        let (connections, shard) = (&self.metrics.connections, observe::shard());
        if let (Some(cause), Some(counters)) = (cause, &connections.handshakes) {
            counters[*cause as usize].inc(shard);
        }
        if why.is_empty() {
            return;
        }
        connections.warned.warn(&self.name, peer, refused);
        if let (Some(log), Some((flags, details))) = (&self.access_log, refusal.logged()) {
            let now = Entry::new(SystemTime::now(), &self.name, peer);
            log.log(shard, &Entry { flags, details: details.text(), protocol, downstream_failure: why, ..now });
        }
    }
}

/// Where HTTP/3 is spoken (RFC 9114 section 3.1.1): on the port of the first address that has one.
fn alt_svc(config: &model::Listener) -> Option<HeaderValue> {
    let address = config.all_addresses().find_map(Address::inet).filter(|_| config.http3)?;
    HeaderValue::from_str(&format!("h3=\":{}\"; ma=86400", address.port())).ok()
}

/// The values of `Via` (RFC 9110 section 7.6.3), one for each version that a message may have been received in.
#[derive(Debug, Clone, Default)]
pub struct Via([Option<HeaderValue>; 4]);

impl Via {
    /// With this name for the proxy; empty: none at all. A name that cannot be in a field counts as none.
    pub fn new(name: &str) -> Via {
        let value = |version| HeaderValue::from_str(&format!("{version} {name}")).ok().filter(|_| !name.is_empty());
        Via(["1.0", "1.1", "2", "3"].map(value))
    }

    /// The value for a message that was received in this version.
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

/// A listener's figures.
#[derive(Clone)]
pub struct ListenerMetrics {
    /// Requests by the class of their status; 0: none was sent.
    pub requests: [Counter; 6],
    /// Seconds from a request's head to the end of its response.
    pub duration: Histogram,
    /// Requests under way.
    pub active: Gauge,
    /// Bytes of bodies, by direction.
    pub bytes: [Counter; 2],
    /// Responses by their flags.
    pub flags: Vec<(u32, Counter)>,
    /// gRPC calls by method.
    pub methods: Arc<GrpcMethodMetrics>,
    /// Connections.
    pub connections: ConnectionMetrics,
    /// Requests that have become tunnels and have not ended.
    pub tunnels: Gauge,
}

/// A listener's connections.
#[derive(Clone)]
pub struct ConnectionMetrics {
    /// Accepted.
    pub accepted: Counter,
    /// There are now.
    pub active: Gauge,
    /// Ended by the proxy for what the client did, by [`Refusal`].
    pub refused: [Counter; RejectReason::COUNT],
    /// Handshakes that failed, by [`Cause`](crate::tls::Cause); none if the listener has no TLS.
    pub handshakes: Option<Arc<[Counter]>>,
    /// When what was logged.
    pub warned: Arc<RejectLogLimiter>,
}

/// A cluster's figures.
#[derive(Clone)]
pub struct ClusterMetrics {
    /// Responses by class; 0: none.
    pub responses: [Counter; 6],
    /// Seconds until a response's head.
    pub latency: Histogram,
}
