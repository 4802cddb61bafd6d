//! A stream: one request and its response, as the filters of a chain work on it.
//!
//! Filters change it through host functions while they run, and others (a timer, a callout's answer) may change it between
//! callbacks; whoever waits for it is woken. It lives on one worker, so a `RefCell` guards it; a borrow is held for one host
//! function at most, never while a filter runs.

use std::{
    borrow::Cow,
    cell::{Cell, OnceCell, RefCell},
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Waker},
    time::{self, Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};
use smallvec::SmallVec;
use tokio::{
    task::AbortHandle,
    time::{Instant, Sleep},
};
use tollgate_abi::fast::{flag, phase};

use super::{
    Chain, Direction, RequestHead, ResponseHead, SelectedRoute,
    charge::{DeferredCharge, ITEM, MemoryBudget},
    head,
    interim::Interims,
    limits::Permit,
    stored::StreamMetadata,
};
use crate::{config::units::Address, tls::ConnectionTls, upstream::DownloadSink};

/// What is known of the connection that a stream came on.
#[derive(Debug)]
pub struct ConnectionInfo {
    /// A number for each connection of the process.
    pub id: u64,
    /// The name of the listener.
    pub listener: Rc<str>,
    /// The other end.
    pub peer: SocketAddr,
    /// Its address, as a field's value.
    pub peer_value: HeaderValue,
    /// This end.
    pub local: SocketAddr,
    /// Its TLS; none: it is plain.
    pub tls: Option<Rc<ConnectionTls>>,
    /// The connection ends with the next response.
    pub closing: Cell<bool>,
    /// Requests under way.
    pub active: Cell<u32>,
    /// Requests so far.
    pub requests: Cell<u32>,
    /// Since when there has been none under way.
    pub idle_since: Cell<time::Instant>,
}

impl ConnectionInfo {
    /// A connection that has just been accepted.
    pub fn new(listener: Rc<str>, peer: SocketAddr, local: SocketAddr) -> ConnectionInfo {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let peer_value = HeaderValue::from_str(&peer.ip().to_canonical().to_string());
        ConnectionInfo {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            listener,
            peer,
            peer_value: peer_value.unwrap_or(HeaderValue::from_static("unknown")),
            local,
            tls: None,
            closing: Cell::new(false),
            active: Cell::new(0),
            requests: Cell::new(0),
            idle_since: Cell::new(time::Instant::now()),
        }
    }

    /// The same, with what its TLS handshake has come to.
    pub fn with_tls(self, tls: Option<Rc<ConnectionTls>>) -> ConnectionInfo {
        ConnectionInfo { tls, ..self }
    }

    /// What URLs of requests on it begin with.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}

/// How a stream moves, for whoever carries it: of an HTTP/1.1 connection, which has one at a time, or of one HTTP/2 stream.
pub struct StreamProgress {
    /// When a byte last moved.
    pub active: Cell<Instant>,
    /// When the response must be over, if its client reads at all.
    pub due: Cell<Option<Instant>>,
    /// The stream was given up because the client does not read.
    pub stalled: Cell<bool>,
    /// Since when the client has not taken what there is of an upstream's response.
    pub waits_since: Cell<Option<Instant>>,
    /// The request's body holds a place among the unfinished uploads.
    pub uploads: Cell<bool>,
    /// The stream was ended because others need its upstream, and its client does not read.
    pub evicted: Cell<bool>,
    /// Who sends the response, once it may have to wait for its client.
    pub sender: Cell<Option<Waker>>,
    /// Interim responses for the client.
    pub interims: Interims,
    /// A timer that nobody waits for: taking it over, as it is set, costs less than making one for each stream.
    pub timer: Cell<Option<Pin<Box<Sleep>>>>,
}

impl std::fmt::Debug for StreamProgress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let StreamProgress { active, due, stalled, waits_since, uploads, evicted, interims, sender: _, timer: _ } =
            self;
        let mut progress = f.debug_struct("Progress");
        progress.field("active", active).field("due", due).field("stalled", stalled).field("waits_since", waits_since);
        progress.field("uploads", uploads).field("evicted", evicted).field("interims", interims).finish_non_exhaustive()
    }
}

impl DownloadSink for StreamProgress {
    fn waits_since(&self) -> Option<Instant> {
        self.waits_since.get()
    }

    fn is_uploading(&self) -> bool {
        self.uploads.get()
    }

    fn evict(&self) {
        self.evicted.set(true);
        if let Some(sender) = self.sender.take() {
            sender.wake();
        }
    }
}

impl Default for StreamProgress {
    fn default() -> StreamProgress {
        StreamProgress {
            active: Cell::new(Instant::now()),
            due: Cell::new(None),
            stalled: Cell::new(false),
            waits_since: Cell::new(None),
            uploads: Cell::new(false),
            evicted: Cell::new(false),
            sender: Cell::new(None),
            interims: Interims::default(),
            timer: Cell::new(None),
        }
    }
}

/// A response made by a filter or by the proxy.
#[derive(Debug, Default)]
pub struct LocalReply {
    /// The status.
    pub status: StatusCode,
    /// Why; for the access log.
    pub details: Cow<'static, str>,
    /// The fields.
    pub fields: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// The gRPC status in place of the one that follows from `status`, if the request is gRPC.
    pub grpc_status: Option<u32>,
}

/// A part of a body that is shown to a filter: as it came, or changed by it.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Bytes,
    own: Option<Vec<u8>>,
    /// What a filter wanted to put into it was too much.
    overflown: bool,
}

impl Buffer {
    /// These bytes, unchanged.
    pub fn new(bytes: Bytes) -> Buffer {
        Buffer { bytes, own: None, overflown: false }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        self.own.as_deref().unwrap_or(&self.bytes)
    }

    /// The bytes, for changing them.
    pub fn to_mut(&mut self) -> &mut Vec<u8> {
        let Buffer { bytes, own, .. } = self;
        own.get_or_insert_with(|| std::mem::take(bytes).into())
    }

    /// Replaces `size` bytes from `start` on, both cut to what is there, unless the buffer would grow beyond `limit`: then it
    /// stays, and is marked.
    pub fn splice(&mut self, start: usize, size: usize, data: &[u8], limit: usize) {
        let len = self.as_slice().len();
        let start = start.min(len);
        let end = start.saturating_add(size).min(len);
        let new = len - (end - start) + data.len();
        if new > limit && new > len {
            self.overflown = true;
            return;
        }
        self.to_mut().splice(start..end, data.iter().copied());
    }

    /// Whether a filter has wanted to put more into it than fits.
    pub fn is_overflown(&self) -> bool {
        self.overflown
    }

    /// Adds bytes at the end.
    pub fn append(&mut self, more: Bytes) {
        match self.as_slice().is_empty() {
            true => *self = Buffer::new(more),
            false => self.to_mut().extend_from_slice(&more),
        }
    }

    /// Takes the bytes out.
    pub fn take(&mut self) -> Bytes {
        self.own.take().map_or_else(|| std::mem::take(&mut self.bytes), Bytes::from)
    }
}

/// What one filter knows and has done of a stream.
#[derive(Debug, Default)]
pub struct FilterState {
    /// The filter's context for this stream; 0: none yet.
    pub context: u32,
    /// Which incarnation of the filter's instance the context lives in.
    pub incarnation: u32,
    /// The context lives in an instance apart, which serves clients whose requests have made the filter fail.
    pub quarantined: bool,
    /// The filter is out of this stream: it has failed.
    pub gone: bool,
    /// It has failed because of another stream, and its policy is to deny; that has still to be done, as soon as something
    /// comes that it wanted to see.
    pub denies: bool,
    /// It holds the message (by direction).
    pub paused: [bool; 2],
    /// It has asked for the message (by direction) to go on.
    pub resumed: [bool; 2],
    /// Timers under way.
    pub timers: SmallVec<[AbortHandle; 1]>,
    /// The stream is over for the filter: nothing can be set for it any more.
    pub over: bool,
}

impl FilterState {
    /// A callback for the message that goes `way` begins. Asking for a message to go on that is not held means nothing, and
    /// must not let out what is held later.
    pub(super) fn begin(&mut self, way: usize) {
        self.resumed[way] &= self.paused[way];
    }

    /// The stream is over for the filter.
    pub fn end(&mut self) {
        self.over = true;
        if !self.timers.is_empty() {
            self.timers.drain(..).for_each(|timer| timer.abort());
        }
    }
}

/// Why the transport on either side has failed, for the access log; empty where it has not.
#[derive(Debug, Default)]
pub struct TransportFailures {
    /// Towards the upstream, in the last try that failed.
    pub upstream: String,
    /// Towards the client.
    pub downstream: String,
}

/// What filters can see and change of a stream.
#[derive(Debug)]
pub struct StreamState {
    /// The request's head.
    pub request: RequestHead,
    /// The response's head, once there is one.
    pub response: Option<ResponseHead>,
    /// Trailers, by direction, while they are under way.
    pub trailers: [Option<HeaderMap>; 2],
    /// The last part of a body (by direction) is shown to a filter, and no trailers follow, so that it may add some.
    pub shows_end: [bool; 2],
    /// The part of a body (by direction) that is shown to a filter.
    pub buffers: [Option<Buffer>; 2],
    /// Where the request goes.
    pub route: Option<SelectedRoute>,
    /// A response that a filter wants to be sent, or that is due to a filter's failure, and the flag that says which.
    pub reply: Option<(LocalReply, u32)>,
    /// A filter wants the stream to be ended without a response.
    pub closed: bool,
    /// Fields for whatever response there will be.
    pub eventual: Vec<(HeaderName, HeaderValue)>,
    /// Response flags, as bits of [`flag`].
    pub flags: u32,
    /// Why the proxy or a filter has answered itself.
    pub details: Cow<'static, str>,
    /// What has failed beneath it; nothing at all unless something has.
    pub failures: Option<Box<TransportFailures>>,
    /// Fields for the access log.
    pub log_fields: Vec<(String, String)>,
    /// What filters have stored with the stream.
    pub stored: StreamMetadata,
    /// Where the request was sent.
    pub endpoint: Option<Address>,
    /// This end's address of the connection by which it was sent there.
    pub upstream_local: Option<SocketAddr>,
    /// How often it was tried.
    pub attempts: u32,
    /// Bytes of bodies, by direction.
    pub bytes: [u64; 2],
    /// How far filters may make a part of a body grow.
    pub buffer_limit: usize,
    /// One for each filter of the chain.
    pub positions: SmallVec<[FilterState; 6]>,
    /// Places of limits that are held, given back when the stream ends.
    pub held: SmallVec<[Permit; 1]>,
    /// What filters are charged for.
    pub owed: DeferredCharge,
}

impl StreamState {
    /// Charges a filter for so many bytes more in heads, trailers and log fields. Whether they may be added.
    #[inline]
    pub fn owe(&mut self, ledger: &Arc<MemoryBudget>, more: usize) -> bool {
        if self.owed.add(more) {
            return true;
        }
        let RequestHead { path, authority, fields, .. } = &self.request;
        let maps = self.trailers.iter().flatten().chain(self.response.as_ref().map(|r| &r.fields)).chain([fields]);
        let maps: usize = maps.map(head::size).sum();
        let eventual: usize = self.eventual.iter().map(|(_, value)| value.len() + ITEM).sum();
        let there = path.len() + authority.len() + maps + eventual + size_of_log_fields(&self.log_fields);
        self.owed.weigh(ledger, there, more)
    }
}

/// What fields for the access log take.
pub fn size_of_log_fields(fields: &[(String, String)]) -> usize {
    fields.iter().map(|(name, value)| name.len() + value.len() + ITEM).sum()
}

/// When things happened, for timings.
#[derive(Debug, Default)]
pub struct StreamTimes {
    /// The request filters were through with the head.
    pub routed: Cell<Option<Instant>>,
    /// The request's last byte had come.
    pub request_end: Cell<Option<Instant>>,
    /// How long it waited for a connection to the upstream; none if one was idle.
    pub connected: Cell<Option<Duration>>,
    /// The response's head had come.
    pub response_start: Cell<Option<Instant>>,
    /// The last try had begun; if it had to wait for a connection (`connected`), that began then.
    pub tried: Cell<Option<Instant>>,
    /// The response's last byte had come.
    pub response_end: Cell<Option<Instant>>,
}

impl StreamTimes {
    /// From the first byte that was sent to the upstream to the last one that came from there, once that is over.
    pub fn of_upstream(&self) -> Option<Duration> {
        let sent = self.tried.get()? + self.connected.get().unwrap_or_default();
        Some(self.response_end.get()?.saturating_duration_since(sent))
    }
}

/// What is known of a gRPC call, beside what any request has.
#[derive(Debug, Default)]
pub struct GrpcCall {
    /// When it must be over, by its client's word.
    pub deadline: Cell<Option<Instant>>,
    /// Its status, once a head or trailers have told it.
    pub status: Cell<Option<u32>>,
}

/// A request, as it came.
#[derive(Debug, Clone)]
pub struct IncomingRequest {
    /// The client's address, as far as it can be trusted.
    pub client: SocketAddr,
    /// Its head.
    pub head: RequestHead,
    /// The path and query as they were asked for.
    pub original_path: Bytes,
    /// The version of HTTP that the client speaks.
    pub version: Version,
    /// A name for it across proxies.
    pub request_id: HeaderValue,
}

/// A stream.
pub struct Stream {
    /// The connection it came on.
    pub connection: Rc<ConnectionInfo>,
    /// The client's address, as far as it can be trusted.
    pub client: SocketAddr,
    /// The filters that see it.
    pub chain: Rc<Chain>,
    /// When its head had come.
    pub start: Instant,
    /// The path and query as they were asked for.
    pub original_path: Bytes,
    /// The version of HTTP that the client speaks.
    pub version: Version,
    /// A name for it across proxies.
    pub request_id: HeaderValue,
    /// What filters see and change.
    pub state: RefCell<StreamState>,
    /// When things happened.
    pub times: StreamTimes,
    /// Set if the request is gRPC.
    pub grpc: OnceCell<GrpcCall>,
    /// How it moves.
    pub progress: Rc<StreamProgress>,
    start_time: OnceCell<SystemTime>,
    wakers: RefCell<[Option<Waker>; 2]>,
}

impl Stream {
    /// What the client speaks, for logs and filters.
    pub fn protocol(&self) -> &'static str {
        match self.version {
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2",
            Version::HTTP_3 => "HTTP/3",
            _ => "HTTP/1.1",
        }
    }

    /// A stream at its beginning.
    pub fn new(
        connection: Rc<ConnectionInfo>,
        progress: Rc<StreamProgress>,
        chain: Rc<Chain>,
        arrival: IncomingRequest,
    ) -> Rc<Stream> {
        let IncomingRequest { client, head, original_path, version, request_id } = arrival;
        let positions = (0..chain.filters().len()).map(|_| FilterState::default()).collect();
        let start = Instant::now();
        progress.active.set(start);
        Rc::new(Stream {
            connection,
            client,
            chain,
            start,
            original_path,
            version,
            request_id,
            times: StreamTimes::default(),
            grpc: OnceCell::new(),
            progress,
            start_time: OnceCell::new(),
            wakers: RefCell::default(),
            state: RefCell::new(StreamState {
                request: head,
                response: None,
                trailers: [None, None],
                buffers: [None, None],
                route: None,
                reply: None,
                closed: false,
                shows_end: [false; 2],
                buffer_limit: 0,
                eventual: Vec::new(),
                flags: 0,
                details: Cow::Borrowed(""),
                failures: None,
                log_fields: Vec::new(),
                stored: StreamMetadata::default(),
                endpoint: None,
                upstream_local: None,
                attempts: 0,
                bytes: [0, 0],
                positions,
                held: SmallVec::new(),
                owed: DeferredCharge::default(),
            }),
        })
    }

    /// When its head had come, by the clock on the wall.
    pub fn start_time(&self) -> SystemTime {
        *self.start_time.get_or_init(|| SystemTime::now() - self.start.elapsed())
    }

    /// Notes why the transport to the upstream has failed.
    pub fn upstream_failed(&self, why: String) {
        self.state.borrow_mut().failures.get_or_insert_default().upstream = why;
    }

    /// Notes why the transport from the client has failed.
    pub fn downstream_failed(&self, why: String) {
        self.state.borrow_mut().failures.get_or_insert_default().downstream = why;
    }

    /// Adds response flags.
    pub fn flag(&self, flags: u32) {
        self.state.borrow_mut().flags |= flags;
    }

    /// Lets the message go on past a filter that has paused, and wakes who waits for that.
    pub fn resume(&self, position: usize, direction: Direction) {
        if let Some(p) = self.state.borrow_mut().positions.get_mut(position) {
            p.resumed[direction as usize] = true;
        }
        self.wake();
    }

    /// Answers the request, unless the response has begun to be sent, and wakes who waits for that. `flag`: why.
    pub fn reply(&self, reply: LocalReply, flag: u32) {
        self.state.borrow_mut().reply.get_or_insert((reply, flag));
        self.wake();
    }

    /// Ends the stream without a response.
    pub fn close(&self) {
        self.state.borrow_mut().closed = true;
        self.wake();
    }

    /// Remembers whom to wake, for one half of the stream, when something changes that no future of its own announces.
    pub fn register(&self, direction: Direction, cx: &Context<'_>) {
        let slot = &mut self.wakers.borrow_mut()[direction as usize];
        match slot {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => *slot = Some(cx.waker().clone()),
        }
    }

    /// Whether the filter at this position is out of the stream, and whether the stream must be denied for it, which is said
    /// once and flagged.
    pub fn gone(&self, position: usize) -> (bool, bool) {
        let mut state = self.state.borrow_mut();
        let p = &mut state.positions[position];
        let (gone, denies) = (p.gone, std::mem::take(&mut p.denies));
        if denies {
            state.flags |= flag::FILTER_FAILED;
        }
        (gone, denies)
    }

    /// Wakes whoever works on the stream.
    pub fn wake(&self) {
        for waker in self.wakers.borrow_mut().iter_mut().filter_map(Option::take) {
            waker.wake();
        }
    }

    /// A byte has moved.
    pub fn touch(&self) {
        self.progress.active.set(Instant::now());
    }

    /// Ends the stream for the filters that have seen it.
    pub fn end(self: &Rc<Self>) {
        for (position, filter) in self.chain.filters().iter().enumerate() {
            let seen = {
                let mut state = self.state.borrow_mut();
                let p = &mut state.positions[position];
                p.end();
                !p.gone && (p.context != 0 || filter.phases() & phase::LOG != 0)
            };
            if seen {
                filter.on_end(self, position);
            }
        }
        self.state.borrow_mut().held.clear();
    }
}
