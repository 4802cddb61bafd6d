//! The simulated host of a thread: what the real one would know of one filter and its current stream.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use tollgate_abi::{
    fast::{self, Take},
    gcra::{Figures, TICKS_PER_NANO},
    proxy_wasm::{Status, buffer, map},
};

use super::{MISSING_CLUSTER, Selected};
use crate::{ConfigError, Reply, doc, message::Name};

pub(crate) type Headers = Vec<(String, Vec<u8>)>;

thread_local! {
    static HOST: RefCell<Option<Host>> = const { RefCell::new(None) };
}

/// Runs `f` on this thread's host.
pub(crate) fn with<T>(f: impl FnOnce(&mut Host) -> T) -> T {
    HOST.with(|host| {
        let mut host = host.borrow_mut();
        f(host.as_mut().expect("a filter's functions need a `TestHost` on this thread"))
    })
}

pub(super) fn reset(host: Host) {
    HOST.with(|slot| *slot.borrow_mut() = Some(host));
}

/// One stream.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub(crate) request: Headers,
    pub(crate) request_body: Vec<u8>,
    pub(crate) response: Headers,
    pub(crate) response_body: Vec<u8>,
    pub(crate) eventual: Headers,
    pub(crate) source: Option<SocketAddr>,
    pub(crate) client: Option<SocketAddr>,
    pub(crate) selected: Option<Selected>,
    pub(crate) reply: Option<Reply>,
    pub(crate) flags: u32,
    pub(crate) log_fields: Vec<(String, String)>,
    pub(crate) timer: Option<(u64, i64)>,
    pub(crate) continued: bool,
    limits_held: Vec<u32>,
}

/// The host.
#[derive(Debug)]
pub(crate) struct Host {
    config: Vec<u8>,
    clusters: Option<HashSet<String>>,
    pub(crate) phases: u32,
    pub(crate) config_errors: Vec<ConfigError>,
    names: Vec<String>,
    routes: Vec<doc::Route>,
    buckets: Vec<(Figures, HashMap<Vec<u8>, u64>)>,
    /// Most that may be held, and how many are.
    pub(crate) limits: Vec<(u32, u32)>,
    pub(crate) metrics: Vec<(String, i64)>,
    pub(crate) logs: Vec<(i32, String)>,
    pub(crate) tick_ms: u32,
    pub(crate) now_ns: u64,
    pub(crate) seed: u64,
    pub(crate) stream: Stream,
    last_context: u32,
}

impl Host {
    pub(super) fn new(config: Vec<u8>, clusters: Option<HashSet<String>>) -> Host {
        Host {
            config,
            clusters,
            phases: fast::phase::ALL,
            config_errors: Vec::new(),
            names: Vec::new(),
            routes: Vec::new(),
            buckets: Vec::new(),
            limits: Vec::new(),
            metrics: Vec::new(),
            logs: Vec::new(),
            tick_ms: 0,
            now_ns: 1_000_000_000,
            seed: 1,
            stream: Stream::default(),
            last_context: super::ROOT,
        }
    }

    pub(super) fn begin(
        &mut self,
        request: Headers,
        body: Option<Vec<u8>>,
        source: SocketAddr,
        client: SocketAddr,
    ) -> u32 {
        self.stream = Stream {
            request,
            request_body: body.unwrap_or_default(),
            source: Some(source),
            client: Some(client),
            ..Stream::default()
        };
        self.last_context += 1;
        self.last_context
    }

    pub(super) fn end(&mut self, stream: &Stream) {
        for limit in &stream.limits_held {
            self.limits[*limit as usize].1 -= 1;
        }
    }

    pub(crate) fn intern(&mut self, name: &str) -> i32 {
        let known = self.names.iter().position(|n| n == name);
        known.unwrap_or_else(|| {
            self.names.push(name.into());
            self.names.len() - 1
        }) as i32
    }

    pub(crate) fn map(&mut self, map: i32) -> &mut Headers {
        match map {
            map::HTTP_REQUEST_HEADERS => &mut self.stream.request,
            map::HTTP_RESPONSE_HEADERS => &mut self.stream.response,
            fast::map::EVENTUAL_RESPONSE => &mut self.stream.eventual,
            _ => panic!("the test host has no header map {map}"),
        }
    }

    pub(crate) fn header(&mut self, map: i32, name: Name) -> Option<Vec<u8>> {
        let name = self.names.get(name.0 as usize)?.clone();
        let separator: &[u8] = if name == "cookie" { b"; " } else { b", " };
        let values: Vec<_> = self.map(map).iter().filter(|(n, _)| *n == name).map(|(_, v)| v.as_slice()).collect();
        (!values.is_empty()).then(|| values.join(separator))
    }

    pub(crate) fn set_header(&mut self, map: i32, name: Name, value: &[u8]) {
        let text = self.names[name.0 as usize].clone();
        let headers = self.map(map);
        match headers.iter().position(|(n, _)| *n == text) {
            Some(first) => {
                headers[first].1 = value.to_vec();
                let mut index = 0;
                headers.retain(|(n, _)| {
                    index += 1;
                    *n != text || index - 1 == first
                });
            }
            None => headers.push((text, value.to_vec())),
        }
    }

    pub(crate) fn add_header(&mut self, map: i32, name: Name, value: &[u8]) {
        let text = self.names[name.0 as usize].clone();
        self.map(map).push((text, value.to_vec()));
    }

    pub(crate) fn remove_header(&mut self, map: i32, name: Name) {
        let text = self.names[name.0 as usize].clone();
        self.map(map).retain(|(n, _)| *n != text);
    }

    pub(crate) fn source(&self, which: i32) -> ([u8; 16], u16) {
        let address = if which == fast::source::CLIENT { self.stream.client } else { self.stream.source };
        let address = address.expect("there is a stream");
        let ip = match address.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        (ip.octets(), address.port())
    }

    pub(crate) fn cluster_exists(&self, name: &str) -> bool {
        self.clusters.as_ref().map_or(name != MISSING_CLUSTER, |known| known.contains(name))
    }

    pub(crate) fn define_route(&mut self, doc: &[u8]) -> i32 {
        let Ok(route) = serde_json::from_slice::<doc::Route>(doc) else { return -(Status::ParseFailure as i32) };
        let total: u64 = route.clusters.iter().map(|c| u64::from(c.weight)).sum();
        if total == 0 {
            return -(Status::BadArgument as i32);
        }
        let clusters = route.clusters.iter().map(|c| &c.cluster).chain(route.mirror.iter().map(|m| &m.cluster));
        if clusters.into_iter().any(|name| !self.cluster_exists(name)) {
            return -(Status::NotFound as i32);
        }
        self.routes.push(route);
        self.routes.len() as i32 - 1
    }

    pub(crate) fn select_route(&mut self, route: u32, given: u32, split: u64, balance: u64) {
        let route = self.routes[route as usize].clone();
        let hash = |bit, value| (given & bit != 0).then_some(value);
        let (split, balance) = (hash(fast::hash::SPLIT, split), hash(fast::hash::BALANCE, balance));
        self.stream.selected = Some(Selected { route, split, balance });
    }

    pub(crate) fn define_bucket(&mut self, doc: &[u8]) -> i32 {
        let Ok(bucket) = serde_json::from_slice::<doc::Bucket>(doc) else { return -(Status::ParseFailure as i32) };
        let Some(figures) = Figures::new(&bucket) else { return -(Status::BadArgument as i32) };
        self.buckets.push((figures, HashMap::new()));
        self.buckets.len() as i32 - 1
    }

    pub(crate) fn take(&mut self, bucket: u32, key: &[u8], tokens: i32) -> (i32, Take) {
        let (figures, keys) = &mut self.buckets[bucket as usize];
        let tat = keys.entry(key.to_vec()).or_default();
        let (taken, next, take) = figures.take(*tat, self.now_ns * TICKS_PER_NANO, tokens);
        *tat = next;
        (taken.into(), take)
    }

    pub(crate) fn acquire(&mut self, limit: u32) -> i32 {
        let (max, held) = &mut self.limits[limit as usize];
        if held >= max {
            return 0;
        }
        *held += 1;
        self.stream.limits_held.push(limit);
        1
    }

    pub(crate) fn release(&mut self, limit: u32) {
        if let Some(at) = self.stream.limits_held.iter().position(|l| *l == limit) {
            self.stream.limits_held.swap_remove(at);
            self.limits[limit as usize].1 -= 1;
        }
    }

    /// SplitMix64: good enough for dice, and the same on every run.
    pub(crate) fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn buffer(&mut self, which: i32) -> &mut Vec<u8> {
        match which {
            buffer::PLUGIN_CONFIGURATION => &mut self.config,
            buffer::HTTP_REQUEST_BODY => &mut self.stream.request_body,
            buffer::HTTP_RESPONSE_BODY => &mut self.stream.response_body,
            _ => panic!("the test host has no buffer {which}"),
        }
    }
}
