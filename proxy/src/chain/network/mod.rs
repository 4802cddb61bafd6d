//! TCP connections in a chain: which filters see one, in which order, and what they work on. The counterpart of what
//! [`Filter`](super::Filter), [`Chain`](super::Chain) and [`Stream`](super::Stream) are for HTTP.
//!
//! What comes from the client goes through the filters in order, what comes from the upstream in the reverse order;
//! [`flow`] moves both past them.

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
};
use crate::{
    config::units::Address,
    observe::{Detail, detail},
};

/// Where bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The client.
    Downstream = 0,
    /// The upstream.
    Upstream = 1,
}

impl Side {
    /// Both.
    pub const BOTH: [Side; 2] = [Side::Downstream, Side::Upstream];

    /// The bit of its data's callback.
    fn data_bit(self) -> u32 {
        match self {
            Side::Downstream => phase::DOWNSTREAM_DATA,
            Side::Upstream => phase::UPSTREAM_DATA,
        }
    }
}

/// Who has ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClosedBy {
    /// The proxy.
    Local,
    /// Whoever is at the other end.
    Remote,
}

/// A filter of TCP connections, as one worker has it.
pub trait NetworkFilter {
    /// The callbacks it wants, as bits of [`phase`].
    fn phases(&self) -> u32;
    /// A client has connected. `Pause`: the connection goes no further until the filter resumes the downstream side.
    fn on_connection(&self, stream: &Rc<NetworkStream>, position: usize) -> Action;
    /// The filter's buffer of this side holds what has come: `len` bytes. `end`: nothing follows.
    fn on_data(&self, side: Side, stream: &Rc<NetworkStream>, position: usize, len: usize, end: bool) -> Action;
    /// Nothing more comes from the upstream.
    fn on_upstream_close(&self, stream: &Rc<NetworkStream>, position: usize, closed: ClosedBy);
    /// The connection is over. `upstream`: who has closed the connection to the upstream, if the filter has not been told.
    fn on_end(&self, stream: &Rc<NetworkStream>, position: usize, downstream: ClosedBy, upstream: Option<ClosedBy>);
}

/// The filters of a listener for its TCP connections, as one worker has them.
pub struct NetworkChain {
    filters: Box<[Rc<dyn NetworkFilter>]>,
    /// The callbacks that any of them wants.
    phases: u32,
}

impl NetworkChain {
    /// A chain of these filters, in the order in which they see what the client sends.
    pub fn new(filters: Vec<Rc<dyn NetworkFilter>>) -> NetworkChain {
        let phases = filters.iter().fold(0, |all, f| all | f.phases());
        NetworkChain { filters: filters.into(), phases }
    }

    /// Whether any filter wants to see the bytes of a side.
    pub fn wants_data(&self, side: Side) -> bool {
        self.phases & side.data_bit() != 0
    }

    /// The position of the `nth` filter that sees what comes from this side.
    fn position(&self, side: Side, nth: usize) -> usize {
        match side {
            Side::Downstream => nth,
            Side::Upstream => self.filters.len() - 1 - nth,
        }
    }
}

/// What one filter has of a connection, beside its [`Position`].
#[derive(Debug, Default)]
pub struct ConnectionFilterState {
    /// The bytes of a side that it is shown now, or holds.
    pub buffers: [Option<Buffer>; 2],
    /// The side's end is among them.
    ends: [bool; 2],
    /// Bytes that it adds to a side while it is shown none.
    pub added: [Buffer; 2],
    /// The connection may go on past it.
    open: bool,
    /// It has been told of the connection.
    begun: bool,
    /// What it has let pass, with its end, while the connection may not.
    waiting: (Buffer, bool),
    /// It has been told that nothing more comes from the upstream.
    upstream_closed: bool,
}

/// What filters can see and change of a connection.
#[derive(Debug)]
pub struct ConnectionState {
    /// One for each filter of the chain.
    pub positions: SmallVec<[FilterState; 6]>,
    /// The same.
    pub places: SmallVec<[ConnectionFilterState; 2]>,
    /// Where the connection goes, if a filter says so.
    pub route: Option<SelectedRoute>,
    /// The cluster that it goes to, once that is known.
    pub cluster: Option<Box<str>>,
    /// The endpoint that it was tried with last.
    pub endpoint: Option<Address>,
    /// This end's address of the connection to it.
    pub upstream_local: Option<SocketAddr>,
    /// How many endpoints were tried.
    pub attempts: u32,
    /// A filter, or what became of one, ends the connection.
    pub closed: bool,
    /// Response flags, as bits of [`flag`].
    pub flags: u32,
    /// Why the connection has ended, if not by its ends.
    pub details: Cow<'static, str>,
    /// What has failed beneath it; nothing at all unless something has.
    pub failures: Option<Box<TransportFailures>>,
    /// Fields for the access log.
    pub log_fields: Vec<(String, String)>,
    /// What filters have stored with the connection.
    pub stored: StreamMetadata,
    /// Places of limits that are held, given back when the connection ends.
    pub held: SmallVec<[limits::Permit; 1]>,
    /// What filters are charged for.
    pub owed: DeferredCharge,
    /// Bytes by the side they came from, as they came.
    pub received: [u64; 2],
    /// Bytes by the side they came from, as they were sent on.
    pub sent: [u64; 2],
}

impl ConnectionState {
    /// Charges a filter for so many bytes more in log fields. Whether they may be added.
    pub fn owe(&mut self, ledger: &Arc<MemoryBudget>, more: usize) -> bool {
        self.owed.add(more) || self.owed.weigh(ledger, size_of_log_fields(&self.log_fields), more)
    }
}

/// A TCP connection.
pub struct NetworkStream {
    /// What is known of it.
    pub connection: Rc<ConnectionInfo>,
    /// The filters that see it.
    pub chain: Rc<NetworkChain>,
    /// The server name that the client has asked for by TLS.
    pub server_name: Option<Box<str>>,
    /// When it began.
    pub start: Instant,
    /// The same, by the clock on the wall.
    pub start_time: SystemTime,
    /// How many bytes of a side a filter may hold before no more are read.
    pub buffer_limit: usize,
    /// What filters see and change.
    pub state: RefCell<ConnectionState>,
    /// When a byte last moved.
    pub active: Cell<Instant>,
    waker: RefCell<Option<Waker>>,
}

impl NetworkStream {
    /// A connection at its beginning.
    pub fn new(
        connection: Rc<ConnectionInfo>,
        chain: Rc<NetworkChain>,
        server_name: Option<&str>,
        buffer_limit: usize,
    ) -> Rc<NetworkStream> {
        let start = Instant::now();
        let filters = 0..chain.filters.len();
        let state = ConnectionState {
            positions: filters.clone().map(|_| FilterState::default()).collect(),
            places: filters.map(|_| ConnectionFilterState::default()).collect(),
            route: None,
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
            owed: DeferredCharge::default(),
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

    /// Lets what a filter holds of a side go on, and with the downstream side, the connection; wakes who waits for that.
    pub fn resume(&self, position: usize, side: Side) {
        if let Some(p) = self.state.borrow_mut().positions.get_mut(position) {
            p.resumed[side as usize] = true;
        }
        self.wake();
    }

    /// Notes why one of its two ends has failed.
    pub fn failed(&self, side: Side, why: String) {
        let mut state = self.state.borrow_mut();
        let failures = state.failures.get_or_insert_default();
        match side {
            Side::Downstream => failures.downstream = why,
            Side::Upstream => failures.upstream = why,
        }
    }

    /// Ends the connection, once what has passed the filters is sent.
    pub fn close(&self, flags: u32, details: Detail) {
        {
            let mut state = self.state.borrow_mut();
            // The first reason is the reason.
            if !state.closed {
                state.closed = true;
                state.flags |= flags;
                state.details = details.into();
            }
        }
        self.wake();
    }

    /// Replaces bytes that a filter is shown or holds of a side; adds them to what comes from there if it has none now.
    pub fn splice(&self, position: usize, side: Side, (start, size): (usize, usize), data: &[u8]) {
        let limit = self.buffer_limit;
        let overflown = {
            let mut state = self.state.borrow_mut();
            let place = &mut state.places[position];
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
        let (p, place) = (&state.positions[position], &state.places[position]);
        p.paused[0] || p.paused[1] || (place.begun && !place.open)
    }

    /// Whether any filter does.
    pub fn is_held(&self) -> bool {
        (0..self.chain.filters.len()).any(|position| self.is_held_by(position))
    }

    /// Remembers whom to wake when something changes that no socket announces.
    pub fn register(&self, cx: &Context<'_>) {
        let mut slot = self.waker.borrow_mut();
        match &*slot {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => *slot = Some(cx.waker().clone()),
        }
    }

    /// Wakes whoever works on the connection.
    pub fn wake(&self) {
        // Not under the borrow: waking may run anything.
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// A byte has moved.
    pub fn touch(&self) {
        self.active.set(Instant::now());
    }

    /// Whether the filter at this position is out of the connection, and whether that must be denied for it, which is said
    /// once.
    fn gone(&self, position: usize) -> (bool, bool) {
        let p = &mut self.state.borrow_mut().positions[position];
        (p.gone, std::mem::take(&mut p.denies))
    }

    /// Ends the connection for the filters that have seen it.
    pub fn end(self: &Rc<Self>, downstream: ClosedBy, upstream: Option<ClosedBy>) {
        for (position, filter) in self.chain.filters.iter().enumerate() {
            let (seen, told) = {
                let mut state = self.state.borrow_mut();
                let told = state.places[position].upstream_closed;
                let p = &mut state.positions[position];
                p.end();
                let wants = phase::LOG | phase::DOWNSTREAM_CLOSE | phase::UPSTREAM_CLOSE;
                (!p.gone && (p.context != 0 || filter.phases() & wants != 0), told)
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
