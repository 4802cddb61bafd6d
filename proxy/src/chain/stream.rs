//! A stream: one request and its response, as the filters of a chain process it.
//!
//! Filters change it through host functions while they run; timers and callout responses may change it between
//! callbacks, and wake the task that drives it. It lives on one worker, guarded by a `RefCell`; a borrow lasts for one
//! host function at most, never across a filter's callback.

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
    Chain, Direction, Filter, RequestHead, ResponseHead, SelectedRoute, body_bit,
    charge::{DeferredCharge, ITEM, MemoryBudget},
    head,
    interim::Interims,
    limits::Permit,
    stored::StreamMetadata,
    variants::{Choice, Choices},
};
use crate::{config::units::Address, tls::ConnectionTls, upstream::DownloadSink};

/// Information on the connection that a stream arrived on.
#[derive(Debug)]
pub struct ConnectionInfo {
    /// A process-wide unique number.
    pub id: u64,
    /// The name of the listener.
    pub listener: Rc<str>,
    /// The peer's address.
    pub peer: SocketAddr,
    /// The peer's IP address as a header value.
    pub peer_value: HeaderValue,
    /// The local address.
    pub local: SocketAddr,
    /// Its TLS session; `None` for plain text.
    pub tls: Option<Rc<ConnectionTls>>,
    /// The connection closes after the next response.
    pub closing: Cell<bool>,
    /// Number of active requests.
    pub active: Cell<u32>,
    /// Number of requests so far.
    pub requests: Cell<u32>,
    /// When the last active request ended.
    pub idle_since: Cell<time::Instant>,
}

impl ConnectionInfo {
    /// A newly accepted connection.
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

    /// Adds the result of the TLS handshake.
    pub fn with_tls(self, tls: Option<Rc<ConnectionTls>>) -> ConnectionInfo {
        ConnectionInfo { tls, ..self }
    }

    /// The URL scheme of its requests.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}

/// A stream's progress, as seen by its transport: an HTTP/1.1 connection, which has one stream at a time, or an HTTP/2
/// stream.
pub struct StreamProgress {
    /// When a byte was last moved.
    pub active: Cell<Instant>,
    /// The deadline of the response if its client reads at all.
    pub due: Cell<Option<Instant>>,
    /// The stream was aborted because the client does not read.
    pub stalled: Cell<bool>,
    /// Since when the client has left a received part of the upstream's response unread.
    pub waits_since: Cell<Option<Instant>>,
    /// The request's body is counted among the unfinished uploads.
    pub uploads: Cell<bool>,
    /// The stream was ended because others need its upstream and its client does not read.
    pub evicted: Cell<bool>,
    /// Wakes the task that sends the response, once that may have to wait for the client.
    pub sender: Cell<Option<Waker>>,
    /// Interim responses for the client.
    pub interims: Interims,
    /// A spare timer for reuse, which costs less than creating one per stream.
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

/// A response generated by a filter or by the proxy.
#[derive(Debug, Default)]
pub struct LocalReply {
    /// The status.
    pub status: StatusCode,
    /// The reason, for the access log.
    pub details: Cow<'static, str>,
    /// The fields.
    pub fields: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// For gRPC requests, replaces the gRPC status derived from `status`.
    pub grpc_status: Option<u32>,
}

/// A part of a body that is passed to a filter: as received, or changed by it.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Bytes,
    own: Option<Vec<u8>>,
    /// A filter tried to exceed its limit.
    overflown: bool,
}

impl Buffer {
    /// Wraps these bytes.
    pub fn new(bytes: Bytes) -> Buffer {
        Buffer { bytes, own: None, overflown: false }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        self.own.as_deref().unwrap_or(&self.bytes)
    }

    /// The bytes, for modification.
    pub fn to_mut(&mut self) -> &mut Vec<u8> {
        let Buffer { bytes, own, .. } = self;
        own.get_or_insert_with(|| std::mem::take(bytes).into())
    }

    /// Replaces `size` bytes from `start` on, both clamped to the buffer. If it would grow beyond `limit`, it is left
    /// unchanged and marked.
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

    /// Whether a filter tried to exceed its limit.
    pub fn is_overflown(&self) -> bool {
        self.overflown
    }

    /// Appends bytes.
    pub fn append(&mut self, more: Bytes) {
        match self.as_slice().is_empty() {
            true => *self = Buffer::new(more),
            false => self.to_mut().extend_from_slice(&more),
        }
    }

    /// Takes the bytes.
    pub fn take(&mut self) -> Bytes {
        self.own.take().map_or_else(|| std::mem::take(&mut self.bytes), Bytes::from)
    }
}

/// One filter's state of a stream.
#[derive(Debug, Default)]
pub struct FilterState {
    /// The filter's context for this stream; 0 before it is created.
    pub context: u32,
    /// The incarnation of the filter's instance that the context belongs to.
    pub incarnation: u32,
    /// The context belongs to the quarantine instance, for clients whose requests made the filter fail.
    pub quarantined: bool,
    /// The filter is out of this stream: it has failed, or a route has turned it off.
    pub gone: bool,
    /// It failed because of another stream and its policy is to deny; the denial is due at the next event that it
    /// subscribes to.
    pub denies: bool,
    /// It holds the message (by direction).
    pub paused: [bool; 2],
    /// It has resumed the message (by direction).
    pub resumed: [bool; 2],
    /// Its active timers.
    pub timers: SmallVec<[AbortHandle; 1]>,
    /// The stream has ended for the filter: no timers can be set any more.
    pub over: bool,
}

impl FilterState {
    /// Marks the start of a callback in direction `way`. Resuming a message that is not held has no effect, and must
    /// not release a message that is held later.
    pub(super) fn begin(&mut self, way: usize) {
        self.resumed[way] &= self.paused[way];
    }

    /// Marks the end of the stream for the filter.
    pub fn end(&mut self) {
        self.over = true;
        if !self.timers.is_empty() {
            self.timers.drain(..).for_each(|timer| timer.abort());
        }
    }
}

/// Transport errors on either side, for the access log; empty if none.
#[derive(Debug, Default)]
pub struct TransportFailures {
    /// The upstream side, in the last failed attempt.
    pub upstream: String,
    /// The client's side.
    pub downstream: String,
}

/// The state of a stream that filters can read and change.
#[derive(Debug)]
pub struct StreamState {
    /// The request's head.
    pub request: RequestHead,
    /// The response's head, once there is one.
    pub response: Option<ResponseHead>,
    /// Trailers by direction, while they pass the filters.
    pub trailers: [Option<HeaderMap>; 2],
    /// A filter is processing the last part of the body (by direction) and no trailers follow, so it may add some.
    pub shows_end: [bool; 2],
    /// The part of the body (by direction) that a filter is processing.
    pub buffers: [Option<Buffer>; 2],
    /// The selected route.
    pub route: Option<SelectedRoute>,
    /// The configurations of filters that routes have selected.
    pub choices: Choices,
    /// How many filters the request's head has reached, at least. Filters that have a context were reached too.
    pub(super) reached: usize,
    /// A local reply by a filter or because of a filter's failure, and the response flag for it.
    pub reply: Option<(LocalReply, u32)>,
    /// A filter has closed the stream without a response.
    pub closed: bool,
    /// Fields to add to whatever response is sent.
    pub eventual: Vec<(HeaderName, HeaderValue)>,
    /// Response flags, as bits of [`flag`].
    pub flags: u32,
    /// Why the proxy or a filter sent a local reply.
    pub details: Cow<'static, str>,
    /// Transport errors, if any.
    pub failures: Option<Box<TransportFailures>>,
    /// Fields for the access log.
    pub log_fields: Vec<(String, String)>,
    /// Filter state and dynamic metadata.
    pub stored: StreamMetadata,
    /// The endpoint that the request was sent to.
    pub endpoint: Option<Address>,
    /// The local address of the upstream connection.
    pub upstream_local: Option<SocketAddr>,
    /// Number of attempts.
    pub attempts: u32,
    /// Body bytes by direction.
    pub bytes: [u64; 2],
    /// Maximum bytes of a body part after changes by a filter.
    pub buffer_limit: usize,
    /// One per filter of the chain.
    pub filters: SmallVec<[FilterState; 6]>,
    /// Permits of concurrency limits, released when the stream ends.
    pub held: SmallVec<[Permit; 1]>,
    /// The charges for growth caused by filters.
    pub deferred: DeferredCharge,
}

impl StreamState {
    /// Charges a filter for `more` additional bytes of heads, trailers or log fields. Returns whether they may be
    /// added.
    #[inline]
    pub fn owe(&mut self, ledger: &Arc<MemoryBudget>, more: usize) -> bool {
        if self.deferred.add(more) {
            return true;
        }
        let RequestHead { path, authority, fields, .. } = &self.request;
        let maps = self.trailers.iter().flatten().chain(self.response.as_ref().map(|r| &r.fields)).chain([fields]);
        let maps: usize = maps.map(head::size).sum();
        let eventual: usize = self.eventual.iter().map(|(_, value)| value.len() + ITEM).sum();
        let there = path.len() + authority.len() + maps + eventual + size_of_log_fields(&self.log_fields);
        self.deferred.weigh(ledger, there, more)
    }
}

/// Memory cost of access log fields.
pub fn size_of_log_fields(fields: &[(String, String)]) -> usize {
    fields.iter().map(|(name, value)| name.len() + value.len() + ITEM).sum()
}

/// Timestamps for timings.
#[derive(Debug, Default)]
pub struct StreamTimes {
    /// The request's head has passed the filters.
    pub routed: Cell<Option<Instant>>,
    /// The request's last byte was received.
    pub request_end: Cell<Option<Instant>>,
    /// Time spent waiting for an upstream connection; `None` if one was idle.
    pub connected: Cell<Option<Duration>>,
    /// The response's head was received.
    pub response_start: Cell<Option<Instant>>,
    /// The last attempt started, including any wait for a connection (`connected`).
    pub tried: Cell<Option<Instant>>,
    /// The response's last byte was received.
    pub response_end: Cell<Option<Instant>>,
}

impl StreamTimes {
    /// Time from the first byte sent to the upstream to the last byte received, once complete.
    pub fn of_upstream(&self) -> Option<Duration> {
        let sent = self.tried.get()? + self.connected.get().unwrap_or_default();
        Some(self.response_end.get()?.saturating_duration_since(sent))
    }
}

/// Additional state of a gRPC call.
#[derive(Debug, Default)]
pub struct GrpcCall {
    /// The deadline set by its client.
    pub deadline: Cell<Option<Instant>>,
    /// Its status, once received in a head or trailers.
    pub status: Cell<Option<u32>>,
}

/// A request as received.
#[derive(Debug, Clone)]
pub struct IncomingRequest {
    /// The client's address, as far as it can be trusted.
    pub client: SocketAddr,
    /// Its head.
    pub head: RequestHead,
    /// The path and query as requested.
    pub original_path: Bytes,
    /// The client's HTTP version.
    pub version: Version,
    /// The request id, which identifies it across proxies.
    pub request_id: HeaderValue,
}

/// A stream.
pub struct Stream {
    /// The connection it arrived on.
    pub connection: Rc<ConnectionInfo>,
    /// The client's address, as far as it can be trusted.
    pub client: SocketAddr,
    /// The filters that process it.
    pub chain: Rc<Chain>,
    /// When its head was received.
    pub start: Instant,
    /// The path and query as requested.
    pub original_path: Bytes,
    /// The client's HTTP version.
    pub version: Version,
    /// The request id, which identifies it across proxies.
    pub request_id: HeaderValue,
    /// The state that filters can read and change.
    pub state: RefCell<StreamState>,
    /// Timestamps.
    pub times: StreamTimes,
    /// Set if the request is gRPC.
    pub grpc: OnceCell<GrpcCall>,
    /// The deadline that a trusted client or proxy has set in a header.
    pub deadline: Cell<Option<Instant>>,
    /// Its progress.
    pub progress: Rc<StreamProgress>,
    start_time: OnceCell<SystemTime>,
    wakers: RefCell<[Option<Waker>; 2]>,
}

impl Stream {
    /// The client's protocol, for logs and filters.
    pub fn protocol(&self) -> &'static str {
        match self.version {
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2",
            Version::HTTP_3 => "HTTP/3",
            _ => "HTTP/1.1",
        }
    }

    /// Starts a stream.
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
            deadline: Cell::new(None),
            progress,
            start_time: OnceCell::new(),
            wakers: RefCell::default(),
            state: RefCell::new(StreamState {
                request: head,
                response: None,
                trailers: [None, None],
                buffers: [None, None],
                route: None,
                choices: Choices::default(),
                reached: 0,
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
                filters: positions,
                held: SmallVec::new(),
                deferred: DeferredCharge::default(),
            }),
        })
    }

    /// When its head was received, in wall-clock time.
    pub fn start_time(&self) -> SystemTime {
        *self.start_time.get_or_init(|| SystemTime::now() - self.start.elapsed())
    }

    /// Selects the stream's route, or drops it, as the filter at this position.
    pub fn select(&self, position: usize, selected: Option<SelectedRoute>) {
        let state = &mut *self.state.borrow_mut();
        let filters = selected.as_ref().and_then(|selected| selected.route.filters.as_ref());
        if filters.is_some() || state.choices.are_made() {
            let behind = state.reached.max(position + 1);
            self.chain.table().choose(filters, &mut state.choices, &mut state.filters, |position| position >= behind);
        }
        state.route = selected;
    }

    /// The filter at this position, in the configuration that it uses for the stream.
    pub fn filter(&self, position: usize) -> &Rc<dyn Filter> {
        self.chain.table().get(position, &self.state.borrow().choices)
    }

    /// Whether any filter subscribes to bodies of this direction, and may therefore change their length.
    pub fn sees_body(&self, direction: Direction) -> bool {
        self.any_filter(|filter| filter.phases() & body_bit(direction) != 0)
    }

    /// Whether the length of a body in this direction may change.
    pub fn changes_body(&self, direction: Direction) -> bool {
        self.any_filter(|filter| filter.changes_body(direction))
    }

    fn any_filter(&self, is: impl Fn(&dyn Filter) -> bool) -> bool {
        let (state, table) = (self.state.borrow(), self.chain.table());
        let choices = &state.choices;
        (0..state.filters.len()).any(|at| choices.of(at) != Choice::Off && is(&**table.get(at, choices)))
    }

    /// Records why the transport to the upstream failed.
    pub fn upstream_failed(&self, why: String) {
        self.state.borrow_mut().failures.get_or_insert_default().upstream = why;
    }

    /// Records why the transport from the client failed.
    pub fn downstream_failed(&self, why: String) {
        self.state.borrow_mut().failures.get_or_insert_default().downstream = why;
    }

    /// Adds response flags.
    pub fn flag(&self, flags: u32) {
        self.state.borrow_mut().flags |= flags;
    }

    /// Resumes a message that a filter has paused, and wakes the stream's task.
    pub fn resume(&self, position: usize, direction: Direction) {
        if let Some(p) = self.state.borrow_mut().filters.get_mut(position) {
            p.resumed[direction as usize] = true;
        }
        self.wake();
    }

    /// Sends a local reply unless the response has started, and wakes the stream's task. `flag`: the reason.
    pub fn reply(&self, reply: LocalReply, flag: u32) {
        self.state.borrow_mut().reply.get_or_insert((reply, flag));
        self.wake();
    }

    /// Ends the stream without a response.
    pub fn close(&self) {
        self.state.borrow_mut().closed = true;
        self.wake();
    }

    /// Registers the waker for one half of the stream, for changes that no polled future reports.
    pub fn register(&self, direction: Direction, cx: &Context<'_>) {
        let slot = &mut self.wakers.borrow_mut()[direction as usize];
        match slot {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => *slot = Some(cx.waker().clone()),
        }
    }

    /// Whether the filter at this position is out of the stream, and whether the stream must be denied because of it,
    /// which is reported and flagged once.
    pub fn gone(&self, position: usize) -> (bool, bool) {
        let mut state = self.state.borrow_mut();
        let p = &mut state.filters[position];
        let (gone, denies) = (p.gone, std::mem::take(&mut p.denies));
        if denies {
            state.flags |= flag::FILTER_FAILED;
        }
        (gone, denies)
    }

    /// Wakes the task that drives the stream.
    pub fn wake(&self) {
        for waker in self.wakers.borrow_mut().iter_mut().filter_map(Option::take) {
            waker.wake();
        }
    }

    /// Records that a byte was moved.
    pub fn touch(&self) {
        self.progress.active.set(Instant::now());
    }

    /// Ends the stream for the filters that have seen it.
    pub fn end(self: &Rc<Self>) {
        for position in 0..self.chain.filters().len() {
            let (filter, seen) = {
                let mut state = self.state.borrow_mut();
                let filter = self.chain.table().get(position, &state.choices);
                let p = &mut state.filters[position];
                p.end();
                (filter, !p.gone && (p.context != 0 || filter.phases() & phase::LOG != 0))
            };
            if seen {
                filter.on_end(self, position);
            }
        }
        self.state.borrow_mut().held.clear();
    }
}
