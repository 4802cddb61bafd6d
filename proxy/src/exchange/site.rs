//! What a worker knows of a listener: the rules of one snapshot.

use std::{rc::Rc, sync::Arc};

use http::{HeaderValue, Version};
use rustc_hash::FxHashMap;

use super::Methods;
use crate::{
    chain::{Chain, Route, route::RetryPolicy},
    config::model,
    http::body::Body,
    observe::{self, AccessLog, Counter, Gauge, Histogram},
    tls::ServerTls,
    upstream::Pools,
};

/// What a worker knows of a listener.
pub struct Site {
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
    /// Bytes of a body that are held back.
    pub buffered_body: usize,
    /// TLS, if there is any.
    pub tls: Option<Arc<ServerTls>>,
    /// Where requests are logged.
    pub access_log: Option<AccessLog>,
    /// The listener's figures.
    pub figures: Figures,
    /// The clusters' figures, by name.
    pub clusters: FxHashMap<Box<str>, ClusterFigures>,
    /// Retries of clusters, unless a route says otherwise.
    pub retries: FxHashMap<Box<str>, RetryPolicy>,
    /// The way to upstreams.
    pub pools: Pools<Body>,
}

impl Site {
    /// The rules of a listener, with no logs, and nothing known of clusters.
    pub fn new(config: Arc<model::Listener>, chain: Rc<Chain>, figures: Figures, pools: Pools<Body>) -> Site {
        Site {
            name: config.name.as_str().into(),
            chain,
            default_route: None,
            via: Via::new(&config.via),
            buffered_body: usize::try_from(config.limits.buffered_body.0).unwrap_or(usize::MAX),
            tls: None,
            access_log: None,
            figures,
            clusters: FxHashMap::default(),
            retries: FxHashMap::default(),
            pools,
            config,
        }
    }

    /// Counts a connection that was ended for what the client did.
    pub fn refuse(&self, refusal: Refusal) {
        self.figures.connections.refused[refusal as usize].inc(observe::shard());
    }
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
pub struct Figures {
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
    pub methods: Arc<Methods>,
    /// Connections.
    pub connections: Connections,
    /// Requests that have become tunnels and have not ended.
    pub tunnels: Gauge,
}

/// A listener's connections.
#[derive(Clone)]
pub struct Connections {
    /// Accepted.
    pub accepted: Counter,
    /// There are now.
    pub active: Gauge,
    /// Ended by the proxy for what the client did, by [`Refusal`].
    pub refused: [Counter; Refusal::COUNT],
}

/// Why the proxy ended a connection on which no request could be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The listener has as many as it may.
    Limit,
    /// Nothing that shows what is spoken has come in time.
    Silent,
    /// The PROXY protocol's header is wrong, or missing.
    ProxyProtocol,
    /// What is spoken is none of what the listener takes.
    Protocol,
    /// The TLS handshake has failed.
    Handshake,
    /// The client broke HTTP/2 (RFC 9113).
    Http2,
    /// The client sent so much of what leads to nothing that it must be an attack.
    Flood,
}

impl Refusal {
    /// How many there are.
    pub const COUNT: usize = 7;
    /// All, with their names in metrics.
    pub const ALL: [(Refusal, &'static str); Refusal::COUNT] = [
        (Refusal::Limit, "limit"),
        (Refusal::Silent, "silent"),
        (Refusal::ProxyProtocol, "proxy_protocol"),
        (Refusal::Protocol, "protocol"),
        (Refusal::Handshake, "handshake"),
        (Refusal::Http2, "http2"),
        (Refusal::Flood, "flood"),
    ];
}

/// A cluster's figures.
#[derive(Clone)]
pub struct ClusterFigures {
    /// Responses by class; 0: none.
    pub responses: [Counter; 6],
    /// Seconds until a response's head.
    pub latency: Histogram,
}
