//! The simulated host of a thread: the state that the real one would keep for one filter and its streams.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use tollgate_abi::{
    fast::{self, limit},
    pairs,
    proxy_wasm::{Status, buffer, map, stream},
};

use super::{
    MISSING_CLUSTER, MISSING_FILTER, MISSING_VARIANT,
    grpc::{GrpcCalls, GrpcEvent},
    services::{ServiceAnswer, Services},
    stores::{Buckets, Metric, SharedQueue, SharedValue},
    stream::{Message, Part, SelectedRoute, Stage, Stream},
};
use crate::{
    CallError, ConfigError, doc,
    sys::types::{Half, Name},
    tcp::dispatch::Side,
};

pub(crate) type Headers = Vec<(String, Vec<u8>)>;

thread_local! {
    static HOST: RefCell<Option<Host>> = const { RefCell::new(None) };
}

/// Runs `f` with this thread's host.
pub(crate) fn with<T>(f: impl FnOnce(&mut Host) -> T) -> T {
    HOST.with(|host| {
        let mut host = host.borrow_mut();
        f(host.as_mut().expect("a filter's functions need a `TestHost` on this thread"))
    })
}

/// Records a log message if there is a host: other threads of a test may log too.
pub(crate) fn log(level: i32, message: &str) {
    HOST.with(|host| {
        if let Some(host) = host.borrow_mut().as_mut() {
            host.logs.push((level, message.into()));
        }
    });
}

pub(super) fn reset(host: Host) {
    crate::futures::executor::reset();
    HOST.with(|slot| *slot.borrow_mut() = Some(host));
}

/// The simulated host.
pub(crate) struct Host {
    pub(super) config: Vec<u8>,
    clusters: Option<HashSet<String>>,
    pub(crate) phases: u32,
    pub(crate) config_errors: Vec<ConfigError>,
    names: Vec<String>,
    routes: Vec<Rc<doc::Route>>,
    pub(super) buckets: Vec<Buckets>,
    /// Maximum and current number of permits.
    pub(crate) limits: Vec<(u32, u32)>,
    pub(super) metrics: Vec<Metric>,
    pub(super) shared: HashMap<Vec<u8>, SharedValue>,
    pub(super) shared_version: u32,
    pub(super) queues: Vec<SharedQueue>,
    /// Queues whose reader must be notified, once per message.
    pub(super) ready: VecDeque<u32>,
    pub(crate) logs: Vec<(i32, String)>,
    pub(crate) tick_ms: u32,
    pub(crate) now_ns: u64,
    pub(crate) seed: u64,
    pub(super) services: Services,
    pub(super) grpc: GrpcCalls,
    /// Scheduled events with their times; events at the same time are in order.
    events: Vec<(u64, Event)>,
    pub(super) streams: BTreeMap<u32, Stream>,
    /// The stream that host functions act on, if any.
    effective: u32,
    /// The body available to the filter.
    shown: Option<Half>,
    /// The answer being delivered to the filter.
    pub(super) answer: Option<Result<ServiceAnswer, CallError>>,
    last_context: u32,
}

/// A scheduled event.
pub(super) enum Event {
    /// A timer of a stream is due.
    Timer { context: u32, token: i64 },
    /// A call ends.
    Answer(u32, Result<ServiceAnswer, CallError>),
    /// An event of a gRPC call.
    Grpc(u32, GrpcEvent),
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
            shared: HashMap::new(),
            shared_version: 0,
            queues: Vec::new(),
            ready: VecDeque::new(),
            logs: Vec::new(),
            tick_ms: 0,
            now_ns: 1_000_000_000,
            seed: 1,
            services: Services::default(),
            grpc: GrpcCalls::default(),
            events: Vec::new(),
            streams: BTreeMap::new(),
            effective: 0,
            shown: None,
            answer: None,
            last_context: super::ROOT,
        }
    }

    /// Begins a stream. `body`: `None`, or the parts available so far.
    pub(super) fn begin(
        &mut self,
        headers: Headers,
        body: Option<Vec<Part>>,
        source: SocketAddr,
        client: SocketAddr,
    ) -> u32 {
        let stage = Stage::Head { end: body.is_none() };
        let parts = body.unwrap_or_default().into();
        let request = Message { headers, stage, parts, ..Message::default() };
        self.insert(Stream { request, source: Some(source), client: Some(client), ..Stream::default() })
    }

    /// Adds a stream.
    pub(super) fn insert(&mut self, stream: Stream) -> u32 {
        self.last_context += 1;
        self.streams.insert(self.last_context, stream);
        self.last_context
    }

    pub(super) fn end(&mut self, context: u32) {
        for limit in self.streams.remove(&context).map(|s| s.limits_held).unwrap_or_default() {
            self.limits[limit as usize].1 -= 1;
        }
    }

    /// Begins a callback that acts on this stream (or none) with this body (or none) available.
    pub(super) fn enter(&mut self, context: u32, shown: Option<Half>) {
        (self.effective, self.shown) = (context, shown);
    }

    pub(crate) fn set_effective(&mut self, context: u32) {
        self.effective = context;
    }

    /// Returns the stream that host functions act on.
    pub(crate) fn stream(&mut self) -> &mut Stream {
        let effective = self.effective;
        self.streams.get_mut(&effective).expect("this host function needs a stream, and the callback has none")
    }

    pub(super) fn schedule(&mut self, at: u64, event: Event) {
        self.events.push((at, event));
    }

    /// Takes the first event up to this time.
    pub(super) fn due(&mut self, until: u64) -> Option<(u64, Event)> {
        let first = self.events.iter().enumerate().filter(|(_, (at, _))| *at <= until).min_by_key(|(_, (at, _))| *at);
        let (index, _) = first?;
        Some(self.events.remove(index))
    }

    /// Returns the time of a stream's next timer.
    pub(super) fn next_timer(&self, of: u32) -> Option<u64> {
        let timers = self.events.iter().filter(|(_, e)| matches!(e, Event::Timer { context, .. } if *context == of));
        timers.map(|(at, _)| *at).min()
    }

    /// Returns whether the timer was set.
    pub(crate) fn set_timer(&mut self, microseconds: u64, token: i64) -> bool {
        let context = self.effective;
        let timers = self.events.iter().filter(|(_, e)| matches!(e, Event::Timer { context: c, .. } if *c == context));
        if !self.streams.contains_key(&context) || timers.count() >= limit::STREAM_TIMERS {
            return false;
        }
        self.schedule(self.now_ns.saturating_add(microseconds.saturating_mul(1000)), Event::Timer { context, token });
        true
    }

    pub(crate) fn resume(&mut self, which: i32) {
        let Some(stream) = self.streams.get_mut(&self.effective) else { return };
        match (which, &mut stream.tcp) {
            (stream::DOWNSTREAM, Some(tcp)) => tcp.resume(Side::Downstream),
            (stream::UPSTREAM, Some(tcp)) => tcp.resume(Side::Upstream),
            (stream::HTTP_REQUEST, None) => stream.request.resumed = true,
            (stream::HTTP_RESPONSE, None) => stream.response.resumed = true,
            _ => {}
        }
    }

    pub(crate) fn close(&mut self) {
        if let Some(tcp) = self.streams.get_mut(&self.effective).and_then(|s| s.tcp.as_mut()) {
            tcp.closed = true;
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
            map::HTTP_REQUEST_HEADERS => &mut self.stream().request.headers,
            map::HTTP_RESPONSE_HEADERS => &mut self.stream().response.headers,
            fast::map::EVENTUAL_RESPONSE => &mut self.stream().eventual,
            _ => panic!("the test host has no header map {map}"),
        }
    }

    /// Returns a map in the host's encoding.
    pub(crate) fn encoded_map(&mut self, which: i32) -> Vec<u8> {
        let none = ServiceAnswer::default();
        let answer = self.answer.as_ref().and_then(|a| a.as_ref().ok()).unwrap_or(&none);
        let pairs = match which {
            map::HTTP_CALL_RESPONSE_HEADERS => &answer.headers,
            map::HTTP_CALL_RESPONSE_TRAILERS => &answer.trailers,
            map::GRPC_INITIAL_METADATA | map::GRPC_TRAILING_METADATA => match &self.grpc.shown {
                Some(GrpcEvent::Metadata { fields, .. }) => fields,
                _ => &answer.headers,
            },
            _ => &*self.map(which),
        };
        let mut bytes = Vec::new();
        pairs::encode(pairs.iter().map(|(name, value)| (name.as_bytes(), value.as_slice())), &mut bytes);
        bytes
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

    pub(crate) fn source(&mut self, which: i32) -> ([u8; 16], u16) {
        let stream = self.stream();
        let address = if which == fast::source::CLIENT { stream.client } else { stream.source };
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

    pub(crate) fn variant_exists(&self, filter: &str, variant: &str) -> i32 {
        match (filter, variant) {
            (MISSING_FILTER, _) => fast::variant::NO_FILTER,
            (_, MISSING_VARIANT) => fast::variant::NO_VARIANT,
            _ => fast::variant::EXISTS,
        }
    }

    pub(crate) fn define_route(&mut self, route: &doc::Route) -> i32 {
        let total: u64 = route.clusters.iter().map(|c| u64::from(c.weight)).sum();
        if total == 0 {
            return -(Status::BadArgument as i32);
        }
        let clusters = route.clusters.iter().map(|c| &c.cluster).chain(route.mirror.iter().map(|m| &m.cluster));
        let missing = |(filter, variant)| self.variant_exists(filter, variant) != fast::variant::EXISTS;
        if clusters.into_iter().any(|name| !self.cluster_exists(name))
            || route.filters.iter().map(|(filter, variant)| (filter.as_str(), variant.as_str())).any(missing)
        {
            return -(Status::NotFound as i32);
        }
        self.routes.push(Rc::new(route.clone()));
        self.routes.len() as i32 - 1
    }

    pub(crate) fn select_route(&mut self, route: u32, given: u32, split: u64, balance: u64) {
        let route = self.routes[route as usize].clone();
        let hash = |bit, value| (given & bit != 0).then_some(value);
        let (split, balance) = (hash(fast::hash::SPLIT, split), hash(fast::hash::BALANCE, balance));
        self.stream().selected = Some(SelectedRoute { route, split, balance });
    }

    /// The simulated wall clock: the monotonic clock plus a start in 2026.
    pub(crate) fn wall_clock(&self) -> u64 {
        1_767_225_600_000_000_000 + self.now_ns
    }

    /// Returns why the call failed whose answer is being delivered.
    pub(crate) fn failure(&self) -> CallError {
        self.answer.as_ref().and_then(|a| a.as_ref().err()).copied().unwrap_or(CallError::Reset)
    }

    /// SplitMix64: deterministic, and random enough for tests.
    pub(crate) fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a buffer, if it is available to the filter now.
    pub(crate) fn buffer(&mut self, which: i32) -> Option<&mut Vec<u8>> {
        match which {
            buffer::PLUGIN_CONFIGURATION => Some(&mut self.config),
            buffer::DOWNSTREAM_DATA => self.stream().tcp.as_mut().map(|tcp| tcp.buffer(Side::Downstream)),
            buffer::UPSTREAM_DATA => self.stream().tcp.as_mut().map(|tcp| tcp.buffer(Side::Upstream)),
            buffer::GRPC_CALL_MESSAGE => match &mut self.grpc.shown {
                Some(GrpcEvent::Message(message)) => Some(message),
                _ => None,
            },
            buffer::HTTP_CALL_RESPONSE_BODY => self.answer.as_mut()?.as_mut().ok().map(|answer| &mut answer.body),
            buffer::HTTP_REQUEST_BODY if self.shown == Some(Half::Request) => Some(&mut self.stream().request.kept),
            buffer::HTTP_RESPONSE_BODY if self.shown == Some(Half::Response) => Some(&mut self.stream().response.kept),
            _ => None,
        }
    }
}
