//! The connection pool of one worker for one cluster: idle connections, limits, and the queue of waiting requests.
//!
//! A connection's share of the cluster's limit is a [`ConnectionPermit`]. It is acquired before connecting and released
//! when the connection is dropped, for whatever reason; releasing it lets the first waiting request proceed. So
//! dropping an [`H1Connection`] or a [`ConnectionPermit`] runs code in this file: neither may happen while one of its
//! `RefCell`s is borrowed.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    net::IpAddr,
    rc::{Rc, Weak},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use rustc_hash::FxHashMap;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, timeout},
};

use super::{
    cluster::Cluster,
    downloads::{Downloads, LONG_PATIENCE, PATIENCE},
    endpoint::Endpoint,
    failure::RequestErrorKind,
    link::{H1Connection, Lease},
    mux::{H2Connection, StreamSlot},
    reason::ConnectError,
    stats::ClusterStats,
    uploads::QueueGuard,
};
use crate::net::proxy_protocol::Addresses;

/// An endpoint's id, and the client reported to it by the PROXY protocol, if any.
type PoolKey = (u64, Option<Addresses>);

/// A worker's connections to a cluster.
pub(super) struct ClusterPool<B> {
    /// The cluster as this worker sees it.
    cluster: RefCell<Arc<Cluster>>,
    pub(super) stats: Arc<ClusterStats>,
    /// Pools by endpoint, and by client if endpoints are told the client's address.
    slots: RefCell<FxHashMap<PoolKey, Rc<EndpointPool<B>>>>,
    /// In order of arrival, except that some requests wait behind all others (see [`BEHIND`]).
    waiters: RefCell<VecDeque<Waiter<B>>>,
    next_waiter: Cell<u64>,
    /// Connections of this worker, over all endpoints.
    connections: Cell<usize>,
    /// Of these, HTTP/2 connections and tunnels with a single request.
    alone: Cell<usize>,
    pub(super) downloads: Rc<Downloads>,
}

/// A worker's connections to an endpoint or, if the endpoint is told the client's address, those for one client.
pub(super) struct EndpointPool<B> {
    pub(super) endpoint: Arc<Endpoint>,
    /// The client reported to the endpoint.
    pub(super) client: Option<Addresses>,
    pub(super) stats: Arc<ClusterStats>,
    /// Idle HTTP/1.1 connections, the most recently used last. It is taken first, so that surplus connections grow old.
    idle: RefCell<Vec<Rc<H1Connection<B>>>>,
    /// The HTTP/2 connections.
    muxes: RefCell<Vec<Rc<H2Connection<B>>>>,
    /// An HTTP/2 connection being opened.
    pub(super) opening: RefCell<Option<Rc<PendingConnection>>>,
    /// Whether the endpoint has chosen HTTP/2 by ALPN.
    pub(super) speaks_h2: Cell<bool>,
    /// Maximum size of a request's head over HTTP/2, as last announced by the endpoint.
    pub(super) max_head: Cell<Option<u32>>,
    connections: Cell<usize>,
    /// Whether the endpoint is no longer configured: its connections do not become idle any more.
    retired: Cell<bool>,
}

/// An HTTP/2 connection being opened, which several requests may wait for.
#[derive(Default)]
pub(super) struct PendingConnection {
    /// Notifies the waiting requests.
    pub(super) ended: Notify,
    /// The error, if connecting failed.
    pub(super) failure: RefCell<Option<Arc<ConnectError>>>,
}

/// A connection's share of its cluster's connection limit.
pub(super) struct ConnectionPermit<B> {
    pool: Weak<ClusterPool<B>>,
    pub(super) slot: Rc<EndpointPool<B>>,
    alone: bool,
}

/// The result of waiting in the queue.
pub(super) enum Grant<B> {
    /// A connection to the wanted endpoint.
    Link(Lease<B>),
    /// An HTTP/2 connection of the endpoint may have room for a stream.
    Room,
    /// A permit to open a connection.
    Permit(ConnectionPermit<B>),
}

/// The way in which a request waits for a connection.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct WaitOptions {
    /// Whether its body is incomplete: it waits behind complete requests, and only while the queue has room for more of
    /// its kind.
    pub(super) uploads: bool,
    /// The client. One over its share waits behind all others, and gives up its place in a full queue to them.
    pub(super) client: Option<IpAddr>,
    /// Whether it shares no connection, so that room on an existing one is of no use.
    pub(super) alone: bool,
}

struct Waiter<B> {
    /// The sort key.
    id: u64,
    alone: bool,
    slot: Rc<EndpointPool<B>>,
    grant: oneshot::Sender<Grant<B>>,
}

/// A request in the queue, removed on drop.
struct Queued<'a, B> {
    pool: &'a ClusterPool<B>,
    id: u64,
}

/// The bit in a waiter's id that marks clients over their shares.
const OVER: u64 = 1 << 63;

/// The bit that marks unfinished uploads.
const UPLOAD: u64 = 1 << 62;

/// The bits of requests that wait behind others.
const BEHIND: u64 = OVER | UPLOAD;

/// Interval at which a waiting request checks whether another worker has released capacity, or could.
const LOOK: Duration = Duration::from_millis(250);

/// A guard that counts one in a gauge.
struct GaugeGuard<'a>(&'a AtomicU64);

impl<B> ClusterPool<B> {
    pub(super) fn new(cluster: &Arc<Cluster>) -> Rc<Self> {
        Rc::new(ClusterPool {
            cluster: RefCell::new(Arc::clone(cluster)),
            stats: Arc::clone(cluster.stats()),
            slots: RefCell::default(),
            waiters: RefCell::default(),
            next_waiter: Cell::new(0),
            connections: Cell::new(0),
            alone: Cell::new(0),
            downloads: Downloads::new(),
        })
    }

    /// The cluster as this worker sees it.
    pub(super) fn cluster(&self) -> Arc<Cluster> {
        Arc::clone(&self.cluster.borrow())
    }

    /// Adopts another state of the cluster. Idle connections to endpoints that it lacks are closed immediately, others when
    /// their requests have ended.
    pub(super) fn update(&self, cluster: &Arc<Cluster>) {
        let before = self.cluster.replace(Arc::clone(cluster));
        if !Arc::ptr_eq(before.membership(), cluster.membership()) {
            self.retire(|endpoint| !cluster.membership().contains(endpoint));
        }
    }

    pub(super) fn slot(&self, endpoint: &Arc<Endpoint>, client: Option<Addresses>) -> Rc<EndpointPool<B>> {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.entry((endpoint.id, client)).or_insert_with(|| {
            Rc::new(EndpointPool {
                endpoint: Arc::clone(endpoint),
                client,
                stats: Arc::clone(&self.stats),
                idle: RefCell::default(),
                muxes: RefCell::default(),
                opening: RefCell::default(),
                speaks_h2: Cell::new(false),
                max_head: Cell::new(None),
                connections: Cell::new(0),
                retired: Cell::new(false),
            })
        });
        Rc::clone(slot)
    }

    /// Acquires a permit for a new connection to `slot`'s endpoint, if necessary from an idle connection to another
    /// endpoint.
    fn try_permit(self: &Rc<Self>, slot: &Rc<EndpointPool<B>>, alone: bool) -> Option<ConnectionPermit<B>> {
        let limit = self.cluster.borrow().limits.connections;
        let before = self.stats.connections.fetch_add(1, Relaxed);
        if before < limit || self.is_owed(alone) {
            self.connections.set(self.connections.get() + 1);
            slot.count(1);
            return Some(ConnectionPermit { pool: Rc::downgrade(self), slot: Rc::clone(slot), alone: false });
        }
        self.stats.connections.fetch_sub(1, Relaxed);
        // A request with its own connection does not get the one that was opened beyond the limit because of similar
        // requests.
        if alone && before > limit && self.alone.get() > 0 && self.shared() < 2 {
            return None;
        }
        let spare = self.slots.borrow().values().find_map(|slot| slot.take_oldest());
        if let Some(spare) = spare {
            return spare.close_for_permit().map(|permit| permit.move_to(slot));
        }
        let spare = self.slots.borrow().values().find_map(|slot| slot.take_idle_mux())?;
        spare.close_for_permit().map(|permit| permit.move_to(slot))
    }

    /// Returns the number of connections that several requests can use.
    fn shared(&self) -> usize {
        self.connections.get() - self.alone.get()
    }

    /// Returns whether a request may open a connection even beyond the limit: without a connection usable by its
    /// requests, a worker could never serve them.
    fn is_owed(&self, alone: bool) -> bool {
        self.connections.get() == 0 || (!alone && self.shared() == 0)
    }

    /// Obtains a connection when none is idle: a permit to open one, or one released by another request.
    pub(super) async fn acquire(
        self: &Rc<Self>,
        slot: &Rc<EndpointPool<B>>,
        options: WaitOptions,
    ) -> Result<Grant<B>, RequestErrorKind> {
        let WaitOptions { uploads, client, alone } = options;
        let over = self.cluster.borrow().is_over_share(client);
        let behind = uploads || over;
        // Another worker may have released a permit meanwhile: serve earlier waiters first.
        self.serve();
        let first = self.waiters.borrow().is_empty() && !(behind && self.stats.whole_wait());
        if (first || (!alone && self.shared() == 0))
            && let Some(permit) = self.try_permit(slot, alone)
        {
            return Ok(Grant::Permit(permit));
        }
        let limits = self.cluster.borrow().limits;
        let limit = if uploads { limits.pending_uploads } else { limits.pending };
        // Clients over their shares make room for one that is not.
        let beside = if over { 0 } else { self.stats.pending_over.load(Relaxed) };
        let Some(_pending) = GaugeGuard::try_new(&self.stats.pending, limit + beside) else {
            self.stats.pending_overflows.fetch_add(1, Relaxed);
            return Err(RequestErrorKind::Overflow);
        };
        let _behind = behind.then(|| GaugeGuard::new(&self.stats.pending_behind));
        let _in_queue = QueueGuard::enter(&self.stats, client, over);
        let (grant, mut granted) = oneshot::channel();
        let rank = if over { OVER } else { 0 } | if uploads { UPLOAD } else { 0 };
        let id = self.next_waiter.replace(self.next_waiter.get() + 1) | rank;
        {
            let mut waiters = self.waiters.borrow_mut();
            let at = waiters.partition_point(|waiter| waiter.id < id);
            waiters.insert(at, Waiter { id, alone, slot: Rc::clone(slot), grant });
        }
        let _queued = Queued { pool: self, id };
        self.displace();
        self.make_room();
        loop {
            match timeout(LOOK, &mut granted).await {
                Ok(granted) => return granted.map_err(|_| RequestErrorKind::Overflow),
                // The endpoint may allow more streams now.
                Err(_) if !alone && slot.has_room(limits.requests_per_connection, self.is_full()) => {
                    return Ok(Grant::Room);
                }
                Err(_) => {
                    self.displace();
                    self.serve();
                    self.make_room();
                }
            }
        }
    }

    /// Returns whether the connection limit is reached. Then even a connection with many resets is better than none.
    pub(super) fn is_full(&self) -> bool {
        self.stats.connections.load(Relaxed) >= self.cluster.borrow().limits.connections
    }

    /// Refuses the newest request of a client over its share if the queue is too long. Requests queued on another
    /// worker are refused there, when one of its waiters checks.
    fn displace(&self) {
        if self.stats.pending.load(Relaxed) <= self.cluster.borrow().limits.pending {
            return;
        }
        let displaced = {
            let mut waiters = self.waiters.borrow_mut();
            waiters.pop_back_if(|waiter| waiter.id & OVER != 0)
        };
        if displaced.is_some() {
            self.stats.pending_overflows.fetch_add(1, Relaxed);
        }
        // Dropping the sender notifies the waiter.
        drop(displaced);
    }

    /// Evicts responses that wait for their clients if requests wait for capacity: first for requests of clients within
    /// their shares.
    fn make_room(&self) {
        let (all, within) = {
            let waiters = self.waiters.borrow();
            (waiters.len(), waiters.partition_point(|waiter| waiter.id & OVER == 0))
        };
        let (wanted, patience) = if within > 0 { (within, PATIENCE) } else { (all, LONG_PATIENCE) };
        self.downloads.look(&self.cluster(), wanted, patience);
    }

    /// Returns whether the next stream to this endpoint is reserved for waiting requests, rather than for a new one of
    /// `client`.
    pub(super) fn keeps_room(&self, slot: &Rc<EndpointPool<B>>, client: Option<IpAddr>) -> bool {
        let awaited = self.waiters.borrow().iter().any(|waiter| !waiter.alone && Rc::ptr_eq(&waiter.slot, slot));
        awaited && self.cluster.borrow().is_over_share(client)
    }

    /// Returns whether the first waiter must leave freed capacity to another worker's.
    fn yields(&self) -> bool {
        self.waiters.borrow().front().is_some_and(|waiter| waiter.id & BEHIND != 0) && self.stats.whole_wait()
    }

    /// Lets waiting requests proceed as far as there are permits.
    fn serve(self: &Rc<Self>) {
        loop {
            let (index, slot, alone) = {
                let waiters = self.waiters.borrow();
                let owed = match self.shared() {
                    0 => waiters.iter().position(|waiter| self.is_owed(waiter.alone)),
                    _ => None,
                };
                // A worker that is owed a connection has nothing that others could use.
                if owed.is_none() && self.yields() {
                    return;
                }
                let index = owed.unwrap_or(0);
                let Some(waiter) = waiters.get(index) else { return };
                (index, Rc::clone(&waiter.slot), waiter.alone)
            };
            let Some(permit) = self.try_permit(&slot, alone) else { return };
            self.grant_to(index, Grant::Permit(permit));
        }
    }

    /// Grants to the waiter at `index`; if it has just left, the grant is released.
    fn grant_to(&self, index: usize, grant: Grant<B>) {
        let waiter = self.waiters.borrow_mut().remove(index);
        if let Some(waiter) = waiter {
            // If the receiver is gone, the grant is dropped and passes to the next waiter.
            let _ = waiter.grant.send(grant);
        }
    }

    /// Takes back a connection that can carry another request: for a waiting request, or as idle.
    pub(super) fn release(self: &Rc<Self>, link: Rc<H1Connection<B>>) {
        let slot = Rc::clone(&link.slot);
        let limits = self.cluster.borrow().limits;
        if slot.retired.get() || !link.has_requests_left(limits.requests_per_connection) {
            return;
        }
        if !self.waiters.borrow().is_empty() && (self.connections.get() < 2 || !self.yields()) {
            return self.hand_over(link);
        }
        // Requests of other workers wait, or the limit was lowered: this worker keeps only the one connection that it
        // is entitled to.
        let wanted = self.stats.pending.load(Relaxed) > 0 || self.stats.connections.load(Relaxed) > limits.connections;
        if wanted && self.connections.get() > 1 {
            return;
        }
        if !link.rest() {
            return;
        }
        self.stats.idle.fetch_add(1, Relaxed);
        slot.idle.borrow_mut().push(link);
    }

    /// Handles the end of an HTTP/2 stream: another request may take its place.
    pub(super) fn stream_ended(self: &Rc<Self>, mux: &Rc<H2Connection<B>>, slot: &Rc<EndpointPool<B>>) {
        let limits = self.cluster.borrow().limits;
        if slot.retired.get() || !mux.is_useful(limits.requests_per_connection) {
            return slot.forget_mux(&Rc::downgrade(mux));
        }
        self.offer_room(slot, 1);
    }

    /// Wakes up to `count` requests that wait for streams on the endpoint's HTTP/2 connections.
    pub(super) fn offer_room(&self, slot: &Rc<EndpointPool<B>>, count: u32) {
        for _ in 0..count {
            // Not within the `let`, which would hold the borrow until its end.
            let first = self.waiters.borrow().iter().position(|w| !w.alone && Rc::ptr_eq(&w.slot, slot));
            let Some(index) = first else { return };
            self.grant_to(index, Grant::Room);
        }
    }

    /// Gives a released connection to the first waiter if it wants this endpoint, or if no connection could become free
    /// for it (it then gets this one's permit); otherwise to the first waiter for this endpoint.
    fn hand_over(&self, link: Rc<H1Connection<B>>) {
        let (index, wanted) = {
            let waiters = self.waiters.borrow();
            let Some(head) = waiters.front() else { return };
            let stuck = head.slot.connections.get() == 0;
            let same =
                waiters.iter().position(|w| Rc::ptr_eq(&w.slot, &link.slot)).filter(|index| *index == 0 || !stuck);
            (same.unwrap_or(0), same.is_none().then(|| Rc::clone(&head.slot)))
        };
        let grant = match wanted {
            None => Grant::Link(Lease::new(link)),
            Some(wanted) => match link.close_for_permit() {
                Some(permit) => Grant::Permit(permit.move_to(&wanted)),
                None => return,
            },
        };
        self.grant_to(index, grant);
    }

    /// Closes expired idle connections, removes endpoints without connections, and uses permits that other workers have
    /// released (which does not wake this one). Returns whether another sweep is needed.
    pub(super) fn sweep(self: &Rc<Self>, now: Instant) -> bool {
        let timeout = self.cluster.borrow().limits.idle_timeout;
        let (mut expired, mut expired_muxes) = (Vec::new(), Vec::new());
        self.slots.borrow_mut().retain(|_, slot| {
            slot.take_expired(now, timeout, &mut expired);
            slot.take_expired_muxes(now, timeout, &mut expired_muxes);
            // Each connection owns its pool, and so does a request that has not got a connection yet.
            Rc::strong_count(slot) > 1
        });
        drop((expired, expired_muxes));
        self.serve();
        if self.stats.pending.load(Relaxed) > 0 || self.downloads.has_published() {
            self.make_room();
        }
        self.connections.get() > 0 || !self.waiters.borrow().is_empty()
    }

    /// Closes all idle connections, and prevents others from becoming idle again.
    pub(super) fn retire_all(&self) {
        self.retire(|_| true);
    }

    fn retire(&self, gone: impl Fn(&Arc<Endpoint>) -> bool) {
        let (mut idle, mut muxes) = (Vec::new(), Vec::new());
        self.slots.borrow_mut().retain(|_, slot| {
            let gone = gone(&slot.endpoint);
            if gone {
                slot.retired.set(true);
                slot.stats.idle.fetch_sub(slot.idle.borrow().len() as u64, Relaxed);
                idle.append(&mut slot.idle.borrow_mut());
                muxes.append(&mut slot.muxes.borrow_mut());
            }
            !gone
        });
        drop((idle, muxes));
    }
}

impl<B> Drop for ClusterPool<B> {
    fn drop(&mut self) {
        // Break the cycle: pools and idle connections own each other.
        self.retire_all();
        self.downloads.end(&self.stats);
    }
}

impl<B> EndpointPool<B> {
    /// Returns the most recently used idle connection that is not known to be closed.
    pub(super) fn checkout(&self) -> Option<Rc<H1Connection<B>>> {
        loop {
            let link = self.idle.borrow_mut().pop()?;
            self.stats.idle.fetch_sub(1, Relaxed);
            if !link.is_closed() {
                return Some(link);
            }
        }
    }

    /// Acquires a stream on one of the HTTP/2 connections. Connections with many resets are used only if `worn` is set
    /// and no other has room.
    pub(super) fn enter(&self, requests: u32, worn: bool) -> Option<StreamSlot<B>> {
        let muxes = self.muxes.borrow();
        let enter = |worn| {
            let mut open = muxes.iter().filter(|mux| mux.is_worn() == worn && !mux.is_closed());
            open.find_map(|mux| mux.enter(requests))
        };
        enter(false).or_else(|| worn.then(|| enter(true)).flatten())
    }

    /// Returns whether one of the HTTP/2 connections has room for another stream.
    pub(super) fn has_room(&self, requests: u32, worn: bool) -> bool {
        let muxes = self.muxes.borrow();
        muxes.iter().any(|mux| (worn || !mux.is_worn()) && !mux.is_closed() && mux.has_room(requests))
    }

    /// Adds a new HTTP/2 connection.
    pub(super) fn add_mux(&self, mux: Rc<H2Connection<B>>) {
        self.muxes.borrow_mut().push(mux);
    }

    /// Stops using an HTTP/2 connection for new streams; existing ones continue.
    pub(super) fn forget_mux(&self, mux: &Weak<H2Connection<B>>) {
        let position = self.muxes.borrow().iter().position(|known| std::ptr::eq(Rc::as_ptr(known), mux.as_ptr()));
        let Some(position) = position else { return };
        let gone = self.muxes.borrow_mut().swap_remove(position);
        drop(gone);
    }

    fn take_idle_mux(&self) -> Option<Rc<H2Connection<B>>> {
        let mut muxes = self.muxes.borrow_mut();
        let position = muxes.iter().position(|mux| mux.is_idle())?;
        Some(muxes.swap_remove(position))
    }

    fn take_expired_muxes(
        &self,
        now: Instant,
        timeout: Option<std::time::Duration>,
        expired: &mut Vec<Rc<H2Connection<B>>>,
    ) {
        let Some(timeout) = timeout else { return };
        self.muxes.borrow_mut().retain(|mux| {
            let seen = match mux.is_idle() {
                true => mux.seen_idle.get().unwrap_or(now),
                false => return true,
            };
            mux.seen_idle.set(Some(seen));
            let keep = now - seen < timeout;
            if !keep {
                expired.push(Rc::clone(mux));
            }
            keep
        });
    }

    fn take_oldest(&self) -> Option<Rc<H1Connection<B>>> {
        let mut idle = self.idle.borrow_mut();
        let oldest = (!idle.is_empty()).then(|| idle.remove(0))?;
        self.stats.idle.fetch_sub(1, Relaxed);
        Some(oldest)
    }

    /// Removes a connection that has ended from the idle ones, if it is among them.
    pub(super) fn forget(&self, link: &Weak<H1Connection<B>>) {
        let position = self.idle.borrow().iter().position(|idle| std::ptr::eq(Rc::as_ptr(idle), link.as_ptr()));
        let Some(position) = position else { return };
        let ended = self.idle.borrow_mut().remove(position);
        self.stats.idle.fetch_sub(1, Relaxed);
        drop(ended);
    }

    /// Marks connections that are idle for the first time at a sweep, and takes those marked at least `timeout` ago. So
    /// the idle time is never too short, and requests need not read the clock.
    fn take_expired(&self, now: Instant, timeout: Option<std::time::Duration>, expired: &mut Vec<Rc<H1Connection<B>>>) {
        let Some(timeout) = timeout else { return };
        let mut idle = self.idle.borrow_mut();
        // The oldest come first, so marked ones precede the others, and expired ones precede all.
        for link in idle.iter().rev().take_while(|link| link.seen_idle.get().is_none()) {
            link.seen_idle.set(Some(now));
        }
        let is_expired = |link: &Rc<H1Connection<B>>| link.seen_idle.get().is_some_and(|seen| now - seen >= timeout);
        let count = idle.iter().take_while(|link| is_expired(link)).count();
        expired.extend(idle.drain(..count));
        self.stats.idle.fetch_sub(count as u64, Relaxed);
    }

    fn count(&self, connections: i8) {
        if connections > 0 {
            self.connections.set(self.connections.get() + 1);
            self.endpoint.state.connections.fetch_add(1, Relaxed);
        } else {
            self.connections.set(self.connections.get() - 1);
            self.endpoint.state.connections.fetch_sub(1, Relaxed);
        }
    }
}

impl<B> ConnectionPermit<B> {
    /// Converts to a permit of a connection with a single request.
    pub(super) fn for_one(mut self) -> Self {
        if let Some(pool) = self.pool.upgrade()
            && !std::mem::replace(&mut self.alone, true)
        {
            pool.alone.set(pool.alone.get() + 1);
            // It may have been the last connection that others could use.
            pool.serve();
        }
        self
    }

    /// Converts to a permit of a connection to another endpoint.
    fn move_to(mut self, slot: &Rc<EndpointPool<B>>) -> Self {
        self.slot.count(-1);
        slot.count(1);
        self.slot = Rc::clone(slot);
        self
    }
}

impl<B> Drop for ConnectionPermit<B> {
    fn drop(&mut self) {
        self.slot.count(-1);
        self.slot.stats.connections.fetch_sub(1, Relaxed);
        if let Some(pool) = self.pool.upgrade() {
            pool.connections.set(pool.connections.get() - 1);
            pool.alone.set(pool.alone.get() - usize::from(self.alone));
            pool.serve();
        }
    }
}

impl<B> Drop for Queued<'_, B> {
    fn drop(&mut self) {
        let waiter = {
            let mut waiters = self.pool.waiters.borrow_mut();
            waiters.binary_search_by_key(&self.id, |w| w.id).ok().and_then(|at| waiters.remove(at))
        };
        drop(waiter);
    }
}

impl<'a> GaugeGuard<'a> {
    fn new(gauge: &'a AtomicU64) -> Self {
        gauge.fetch_add(1, Relaxed);
        GaugeGuard(gauge)
    }

    fn try_new(gauge: &'a AtomicU64, limit: u64) -> Option<Self> {
        let counted = GaugeGuard(gauge);
        // If refused, the guard's drop subtracts it again.
        (gauge.fetch_add(1, Relaxed) < limit).then_some(counted)
    }
}

impl Drop for GaugeGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
