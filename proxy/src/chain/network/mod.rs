//! TCP connections in a chain: which filters process one, in which order, and the state they work on. The TCP
//! counterpart of [`Filter`](super::Filter), [`Chain`](super::Chain) and [`Stream`](super::Stream).
//!
//! Data from the client passes the filters in order, data from the upstream in reverse order; [`flow`] moves both past
//! them.

pub mod flow;

use std::{
    borrow::Cow,
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::{Context, Waker},
    time::SystemTime,
};

use smallvec::SmallVec;
use tokio::time::Instant;
use tollgate_abi::fast::{flag, phase};

pub use self::flow::{ConnectionDenied, ConnectionFlow};
use super::{
    Action, SelectedRoute,
    charge::{DeferredCharge, MemoryBudget},
    limits,
    stored::StreamMetadata,
    stream::{Buffer, ConnectionInfo, FilterState, TransportFailures, size_of_log_fields},
    variants::{Choices, FilterTable, Variants},
};
use crate::{
    config::units::Address,
    observe::{Detail, detail},
};

/// The source of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The client.
    Downstream = 0,
    /// The upstream.
    Upstream = 1,
}

impl Side {
    /// Both sides.
    pub const BOTH: [Side; 2] = [Side::Downstream, Side::Upstream];

    /// The bit of its data callback.
    fn data_bit(self) -> u32 {
        match self {
            Side::Downstream => phase::DOWNSTREAM_DATA,
            Side::Upstream => phase::UPSTREAM_DATA,
        }
    }
}

/// Who closed a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClosedBy {
    /// The proxy.
    Local,
    /// The peer.
    Remote,
}

/// A filter of TCP connections on one worker.
pub trait NetworkFilter {
    /// Its name.
    fn name(&self) -> &str;
    /// Its variants: the same filter with other configurations.
    fn variants(&self) -> Variants<dyn NetworkFilter> {
        Vec::new()
    }
    /// The callbacks that it subscribes to, as bits of [`phase`].
    fn phases(&self) -> u32;
    /// Called when a client has connected. `Pause`: the connection is held until the filter resumes the downstream
    /// side.
    fn on_connection(&self, stream: &Rc<NetworkStream>, position: usize) -> Action;
    /// Called when the filter's buffer of this side has received data; it holds `len` bytes. `end`: nothing follows.
    fn on_data(&self, side: Side, stream: &Rc<NetworkStream>, position: usize, len: usize, end: bool) -> Action;
    /// Called when the upstream sends nothing more.
    fn on_upstream_close(&self, stream: &Rc<NetworkStream>, position: usize, closed: ClosedBy);
    /// Called at the end of the connection. `upstream`: who closed the upstream connection, if the filter was not
    /// notified yet.
    fn on_end(&self, stream: &Rc<NetworkStream>, position: usize, downstream: ClosedBy, upstream: Option<ClosedBy>);
}

/// The filters of a listener for TCP connections on one worker.
pub struct NetworkChain {
    table: FilterTable<dyn NetworkFilter>,
    /// The callbacks that any filter subscribes to, or a variant of it.
    phases: u32,
}

impl NetworkChain {
    /// Creates a chain of these filters, in the order in which they see the client's data.
    pub fn new(filters: Vec<Rc<dyn NetworkFilter>>) -> NetworkChain {
        let table = FilterTable::new(filters, |filter| (filter.name(), filter.variants()));
        let phases = table.all().fold(0, |all, f| all | f.phases());
        NetworkChain { table, phases }
    }

    /// The number of filters.
    fn len(&self) -> usize {
        self.table.filters().len()
    }

    /// Whether any filter subscribes to the bytes of a side.
    pub fn wants_data(&self, side: Side) -> bool {
        self.phases & side.data_bit() != 0
    }

    /// The position of the `nth` filter that processes data from this side.
    fn position(&self, side: Side, nth: usize) -> usize {
        match side {
            Side::Downstream => nth,
            Side::Upstream => self.len() - 1 - nth,
        }
    }
}

/// One filter's state of a connection, in addition to its [`FilterState`].
#[derive(Debug, Default)]
pub struct ConnectionFilterState {
    /// The bytes of a side that it is processing or holds.
    pub buffers: [Option<Buffer>; 2],
    /// Whether they include the side's end.
    ends: [bool; 2],
    /// Bytes that it has added to a side outside a data callback.
    pub added: [Buffer; 2],
    /// The connection may proceed past it.
    open: bool,
    /// It was notified of the connection.
    begun: bool,
    /// Bytes that it has let pass, and whether their end is included, while the connection itself is held.
    waiting: (Buffer, bool),
    /// It was notified that the upstream sends nothing more.
    upstream_closed: bool,
}

/// The state of a connection that filters can read and change.
#[derive(Debug)]
pub struct ConnectionState {
    /// One per filter of the chain.
    pub positions: SmallVec<[FilterState; 6]>,
    /// One per filter of the chain.
    pub filters: SmallVec<[ConnectionFilterState; 2]>,
    /// The route, if a filter has selected one.
    pub route: Option<SelectedRoute>,
    /// The configurations of filters that routes have selected.
    choices: Choices,
    /// The cluster, once known.
    pub cluster: Option<Arc<str>>,
    /// The last endpoint that was tried.
    pub endpoint: Option<Address>,
    /// The local address of the upstream connection.
    pub upstream_local: Option<SocketAddr>,
    /// Number of endpoints tried.
    pub attempts: u32,
    /// The connection is being closed, by a filter or because one failed.
    pub closed: bool,
    /// Response flags, as bits of [`flag`].
    pub flags: u32,
    /// Why the connection was ended by the proxy.
    pub details: Cow<'static, str>,
    /// Transport errors, if any.
    pub failures: Option<Box<TransportFailures>>,
    /// Fields for the access log.
    pub log_fields: Vec<(String, String)>,
    /// Filter state and dynamic metadata.
    pub stored: StreamMetadata,
    /// Permits of concurrency limits, released when the connection ends.
    pub held: SmallVec<[limits::Permit; 1]>,
    /// The charges for growth caused by filters.
    pub deferred: DeferredCharge,
    /// Bytes received, by side.
    pub received: [u64; 2],
    /// Bytes forwarded, by the side they came from.
    pub sent: [u64; 2],
}

impl ConnectionState {
    /// Charges a filter for `more` additional bytes of log fields. Returns whether they may be added.
    pub fn owe(&mut self, ledger: &Arc<MemoryBudget>, more: usize) -> bool {
        self.deferred.add(more) || self.deferred.weigh(ledger, size_of_log_fields(&self.log_fields), more)
    }
}

/// A TCP connection.
pub struct NetworkStream {
    /// Information on the connection.
    pub connection: Rc<ConnectionInfo>,
    /// The filters that process it.
    pub chain: Rc<NetworkChain>,
    /// The server name in the client's TLS ClientHello.
    pub server_name: Option<Box<str>>,
    /// When it was accepted.
    pub start: Instant,
    /// When it was accepted, in wall-clock time.
    pub start_time: SystemTime,
    /// Maximum bytes of a side that a filter may hold before reading stops.
    pub buffer_limit: usize,
    /// The state that filters can read and change.
    pub state: RefCell<ConnectionState>,
    /// When a byte was last moved.
    pub active: Cell<Instant>,
    waker: RefCell<Option<Waker>>,
}

impl NetworkStream {
    /// Starts a connection.
    pub fn new(
        connection: Rc<ConnectionInfo>,
        chain: Rc<NetworkChain>,
        server_name: Option<&str>,
        buffer_limit: usize,
    ) -> Rc<NetworkStream> {
        let start = Instant::now();
        let filters = 0..chain.len();
        let state = ConnectionState {
            positions: filters.clone().map(|_| FilterState::default()).collect(),
            filters: filters.map(|_| ConnectionFilterState::default()).collect(),
            route: None,
            choices: Choices::default(),
            cluster: None,
            endpoint: None,
            upstream_local: None,
            attempts: 0,
            closed: false,
            flags: 0,
            details: Cow::Borrowed(""),
            failures: None,
            log_fields: Vec::new(),
            stored: StreamMetadata::default(),
            held: SmallVec::new(),
            deferred: DeferredCharge::default(),
            received: [0, 0],
            sent: [0, 0],
        };
        Rc::new(NetworkStream {
            connection,
            chain,
            server_name: server_name.map(Into::into),
            start,
            start_time: SystemTime::now(),
            buffer_limit,
            state: RefCell::new(state),
            active: Cell::new(start),
            waker: RefCell::default(),
        })
    }

    /// Selects the connection's route, or drops it, as the filter at this position.
    pub fn select(&self, position: usize, selected: Option<SelectedRoute>) {
        let state = &mut *self.state.borrow_mut();
        let filters = selected.as_ref().and_then(|selected| selected.route.filters.as_ref());
        if filters.is_some() || state.choices.are_made() {
            let behind = |at: usize| at > position && !state.filters[at].begun;
            self.chain.table.choose(filters, &mut state.choices, &mut state.positions, behind);
        }
        state.route = selected;
    }

    /// The filter at this position, in the configuration that it uses for the connection.
    fn filter(&self, position: usize) -> &Rc<dyn NetworkFilter> {
        self.chain.table.get(position, &self.state.borrow().choices)
    }

    /// Releases what a filter holds of a side and, for the downstream side, the connection; wakes the connection's
    /// task.
    pub fn resume(&self, position: usize, side: Side) {
        if let Some(p) = self.state.borrow_mut().positions.get_mut(position) {
            p.resumed[side as usize] = true;
        }
        self.wake();
    }

    /// Records a transport error of one side.
    pub fn failed(&self, side: Side, why: String) {
        let mut state = self.state.borrow_mut();
        let failures = state.failures.get_or_insert_default();
        match side {
            Side::Downstream => failures.downstream = why,
            Side::Upstream => failures.upstream = why,
        }
    }

    /// Closes the connection once the data that has passed the filters is sent.
    pub fn close(&self, flags: u32, details: Detail) {
        {
            let mut state = self.state.borrow_mut();
            // Only the first reason is recorded.
            if !state.closed {
                state.closed = true;
                state.flags |= flags;
                state.details = details.into();
            }
        }
        self.wake();
    }

    /// Replaces bytes of a side that a filter is processing or holds; without any, adds to the side's data.
    pub fn splice(&self, position: usize, side: Side, (start, size): (usize, usize), data: &[u8]) {
        let limit = self.buffer_limit;
        let overflown = {
            let mut state = self.state.borrow_mut();
            let place = &mut state.filters[position];
            let shown = place.buffers[side as usize].as_mut();
            let adds = shown.is_none();
            let buffer = shown.unwrap_or(&mut place.added[side as usize]);
            match adds {
                true => buffer.splice(usize::MAX, 0, data, limit),
                false => buffer.splice(start, size, data, limit),
            }
            buffer.is_overflown()
        };
        match overflown {
            true => self.close(flag::BODY_TOO_LARGE, detail::FILTER_BUFFER_FULL),
            false => self.wake(),
        }
    }

    /// Whether a filter holds the connection, or bytes of it.
    pub fn is_held_by(&self, position: usize) -> bool {
        let state = self.state.borrow();
        let (p, place) = (&state.positions[position], &state.filters[position]);
        p.paused[0] || p.paused[1] || (place.begun && !place.open)
    }

    /// Whether any filter holds the connection, or bytes of it.
    pub fn is_held(&self) -> bool {
        (0..self.chain.len()).any(|position| self.is_held_by(position))
    }

    /// Registers the waker for changes that no socket reports.
    pub fn register(&self, cx: &Context<'_>) {
        let mut slot = self.waker.borrow_mut();
        match &*slot {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => *slot = Some(cx.waker().clone()),
        }
    }

    /// Wakes the task that drives the connection.
    pub fn wake(&self) {
        // Outside the borrow, because waking may run anything.
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Records that a byte was moved.
    pub fn touch(&self) {
        self.active.set(Instant::now());
    }

    /// Whether the filter at this position is out of the connection, and whether the connection must be denied because
    /// of it, which is reported once.
    fn gone(&self, position: usize) -> (bool, bool) {
        let p = &mut self.state.borrow_mut().positions[position];
        (p.gone, std::mem::take(&mut p.denies))
    }

    /// Ends the connection for the filters that have seen it.
    pub fn end(self: &Rc<Self>, downstream: ClosedBy, upstream: Option<ClosedBy>) {
        for position in 0..self.chain.len() {
            let (filter, seen, told) = {
                let mut state = self.state.borrow_mut();
                let told = state.filters[position].upstream_closed;
                let filter = self.chain.table.get(position, &state.choices);
                let p = &mut state.positions[position];
                p.end();
                let wants = phase::LOG | phase::DOWNSTREAM_CLOSE | phase::UPSTREAM_CLOSE;
                (filter, !p.gone && (p.context != 0 || filter.phases() & wants != 0), told)
            };
            if seen {
                filter.on_end(self, position, downstream, upstream.filter(|_| !told));
            }
        }
        self.state.borrow_mut().held.clear();
    }
}

#[cfg(test)]
mod tests;
