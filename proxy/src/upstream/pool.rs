//! The connection pools of a worker for all clusters, and sending of requests on them.
//!
//! They belong to one thread: nothing here is locked, and a response wakes no task on another core. Only a cluster's
//! limits apply to all workers; they are counted in its [`ClusterStats`](super::ClusterStats).

use std::{
    cell::{Cell, RefCell},
    error::Error,
    io,
    net::{IpAddr, SocketAddr},
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Response, request};
use http_body::Body;
use rustc_hash::FxHashMap;
use tokio::{
    io::DuplexStream,
    task::spawn_local,
    time::{Instant, sleep},
};

use super::{
    body::{PooledBody, WithGuard},
    cluster::Cluster,
    clusters::{ClusterHandle, Clusters},
    connect,
    direct::count,
    downloads::{Download, DownloadSink, PATIENCE},
    endpoint::Endpoint,
    endpoint_pool::{ClusterPool, ConnectionPermit, EndpointPool, Grant, PendingConnection, WaitOptions},
    failure::{RequestError, RequestErrorKind},
    head::Head,
    link::H1Connection,
    mux::{H2Connection, H2Transport, RequestWeight, StreamSlot},
    reason::ConnectError,
    table::ClusterTable,
    uploads::UsageGuard,
};
use crate::{
    config::model::ClusterProtocol,
    h1::{self, encoder},
    net::{Stream, Transport, proxy_protocol::Addresses},
};

/// Limits on the head of a response.
#[derive(Debug, Clone, Copy)]
pub struct PoolOptions {
    /// Maximum number of header fields of a response. Up to 100 are parsed without an allocation.
    pub max_response_headers: usize,
    /// Maximum size in bytes of a response's head, including the status line.
    pub max_response_head: usize,
}

impl Default for PoolOptions {
    fn default() -> Self {
        PoolOptions { max_response_headers: 100, max_response_head: 64 << 10 }
    }
}

/// A function that opens connections within this process instead of sockets: for tests of filters, where clusters are
/// scripted.
pub type Dial = Box<dyn Fn(&Cluster, &Endpoint) -> io::Result<DuplexStream>>;

/// The requirements of a request for its connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProtocolChoice<'a> {
    /// The client's address, for endpoints that are told it.
    pub client: Option<Addresses>,
    /// Use only a connection that is newly opened or being opened.
    pub new: bool,
    /// Its body is incomplete: it waits behind complete requests.
    pub uploads: bool,
    /// Its permit among unfinished uploads and tunnels.
    pub usage: Option<&'a UsageGuard>,
    /// Its body ends with trailers, whether its head announces them or not.
    pub trailers: bool,
    /// It shares its connection with no other request, because it may make the upstream close it.
    pub alone: bool,
    /// The client that it is for: one that holds or waits for more than its share waits behind others.
    pub on_behalf_of: Option<IpAddr>,
}

/// Time that a request waited for a connection, including the time to open it.
#[derive(Debug, Clone, Copy)]
pub struct WaitTime(pub Duration);

/// A worker's upstream connection pools. `B` is the type of request bodies. Clones share the same pools.
pub struct Pools<B>(Rc<Inner<B>>);

struct Inner<B> {
    /// The clusters that the worker uses now.
    table: ClusterTable,
    /// The connections to clusters that were used, by the number of their statistics.
    clusters: RefCell<FxHashMap<u64, Rc<ClusterPool<B>>>>,
    limits: h1::Limits,
    /// Opens connections; `None`: sockets.
    dial: Option<Dial>,
    sweeping: Cell<bool>,
}

impl<B> Clone for Pools<B> {
    fn clone(&self) -> Self {
        Pools(Rc::clone(&self.0))
    }
}

impl<B> Pools<B>
where
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    /// Creates empty pools.
    pub fn new(options: PoolOptions) -> Self {
        Pools::make(options, None)
    }

    /// Creates pools whose connections are opened by `dial`.
    pub fn dialling(options: PoolOptions, dial: Dial) -> Self {
        Pools::make(options, Some(dial))
    }

    fn make(options: PoolOptions, dial: Option<Dial>) -> Self {
        let limits = h1::Limits { head: options.max_response_head, fields: options.max_response_headers };
        Pools(Rc::new(Inner {
            table: ClusterTable::default(),
            clusters: RefCell::default(),
            limits,
            dial,
            sweeping: Cell::new(false),
        }))
    }

    /// Sends a request to `endpoint` on an idle or new connection, or on a stream of an HTTP/2 connection, and returns
    /// when the head of its response was read. Interim responses are passed to [`Head::interim`]. If the request had to
    /// wait for a connection, the response's extensions contain a [`WaitTime`]. The request is in HTTP/1.1 form,
    /// whatever the endpoint speaks, with its target in origin form. Its header fields are sent unchanged: removing
    /// hop-by-hop fields is up to the caller. A cluster with `proxy_protocol` is told the `client`'s address. A request
    /// with `Upgrade` and `Connection` may be answered with 101; the body then contains the connection.
    ///
    /// At the cluster's connection limit, the request waits for a connection until the future is dropped. A connection
    /// that turns out to be closed before the request was written is replaced transparently. There are no other
    /// retries. Apart from connecting there is no timeout: dropping the future, or the body of the response, ends the
    /// exchange and closes the connection or resets the stream.
    ///
    /// # Errors
    ///
    /// A [`RequestError`]: connecting failed, the connection was closed before the response, the response was invalid,
    /// the request's body failed, or too many requests are waiting for a connection.
    ///
    /// # Panics
    ///
    /// Panics outside a context for spawning local tasks (`LocalSet`, `LocalRuntime`).
    pub async fn send(
        &self,
        cluster: &Arc<Cluster>,
        endpoint: &Arc<Endpoint>,
        choice: ProtocolChoice<'_>,
        head: &impl Head,
        mut body: B,
    ) -> Result<Response<PooledBody>, RequestError<B>> {
        let pool = self.pool(cluster);
        let slot = pool.slot(endpoint, choice.client.filter(|_| endpoint.transport.proxy_protocol.is_some()));
        let weight =
            endpoint.transport.may_speak_h2().then(|| head.show(|head| RequestWeight::of(head, body.is_end_stream())));
        let weight = weight.unwrap_or_default().with_trailers(choice.trailers);
        if let Some(refused) = weight.refused(slot.max_head.get()) {
            return Err(RequestError::unsent(refused, body));
        }
        let mut waited = None;
        let mut replaced = 0;
        loop {
            let choice = ProtocolChoice { alone: choice.alone || weight.is_alone(slot.max_head.get()), ..choice };
            let there = match speaks_h2(&slot) {
                _ if choice.new => None,
                false => slot.checkout().map(PooledConnection::Link),
                true if choice.alone || pool.keeps_room(&slot, choice.on_behalf_of) => None,
                true => {
                    slot.enter(cluster.limits.requests_per_connection, pool.is_full()).map(PooledConnection::Stream)
                }
            };
            let connection = match there {
                Some(connection) => connection,
                // Boxed, so that requests that find a connection do not reserve the space.
                None => {
                    let start = Instant::now();
                    let connection = match Box::pin(self.obtain(&pool, &slot, choice)).await {
                        Ok(connection) => connection,
                        Err(kind) => return Err(RequestError::unsent(kind, body)),
                    };
                    waited = Some(WaitTime(start.elapsed()));
                    connection
                }
            };
            head.carried(connection.local());
            let (reused, result) = match connection {
                PooledConnection::Link(link) => (link.has_served(), link.exchange(head, body).await),
                PooledConnection::Stream(place) => {
                    (replaced < MOST_REPLACED, Box::pin(H2Connection::exchange(place, head, body, weight)).await)
                }
            };
            match result {
                Err(
                    failure @ RequestError {
                        kind: RequestErrorKind::Target | RequestErrorKind::HeadTooLong { .. }, ..
                    },
                ) => {
                    return Err(failure);
                }
                // This terminates: each turn uses up an idle connection, and a new one returns in any case.
                Err(RequestError { body: Some(unsent), .. }) if reused => body = *unsent,
                Ok(mut response) => {
                    if let Some(waited) = waited {
                        response.extensions_mut().insert(waited);
                    }
                    return Ok(response);
                }
                Err(failure) => return Err(failure),
            }
            replaced += 1;
        }
    }

    /// Opens a connection to `endpoint` without sending anything on it, for a client that will talk to it through the
    /// proxy and holds a `place` among tunnels. The response is a 200 whose body contains the connection.
    ///
    /// # Errors
    ///
    /// A [`RequestError`]: connecting failed, or too many requests are waiting for a connection.
    pub async fn tunnel(
        &self,
        cluster: &Arc<Cluster>,
        endpoint: &Arc<Endpoint>,
        client: Option<Addresses>,
        place: &UsageGuard,
    ) -> Result<Response<PooledBody>, RequestError<B>> {
        let failure = |kind| RequestError { kind, body: None };
        let pool = self.pool(cluster);
        place.confirm(cluster, true).map_err(|crowded| failure(RequestErrorKind::Crowded(crowded)))?;
        let slot = pool.slot(endpoint, client.filter(|_| endpoint.transport.proxy_protocol.is_some()));
        let start = Instant::now();
        let permit = loop {
            match pool.acquire(&slot, WaitOptions { alone: true, ..WaitOptions::default() }).await.map_err(failure)? {
                Grant::Permit(permit) => break permit,
                Grant::Link(lease) => match lease.take().and_then(H1Connection::close_for_permit) {
                    Some(permit) => break permit,
                    None => continue,
                },
                Grant::Room => continue,
            }
        };
        // Over HTTP/1.1 all connections are alike.
        let permit = if speaks_h2(&slot) { permit.for_one() } else { permit };
        self.0.start_sweeping();
        let opened = connect::open(cluster, endpoint, slot.client, false).await;
        let opened =
            count(cluster, endpoint, opened).map_err(|error| failure(RequestErrorKind::Connect(Arc::new(error))));
        let (stream, _) = opened?;
        let upstream = async move { Ok(Box::new(WithGuard::new(stream, permit)) as Box<dyn Transport>) };
        let mut response = Response::new(PooledBody::switching(Box::pin(upstream)));
        response.extensions_mut().insert(WaitTime(start.elapsed()));
        Ok(response)
    }

    /// Registers a response from the cluster that `receiver` sends to `client`. If the client does not read and holds
    /// more than its share, the response may be evicted for requests that find no capacity.
    pub fn download(&self, cluster: &Arc<Cluster>, client: IpAddr, receiver: Rc<dyn DownloadSink>) -> Download {
        self.pool(cluster).downloads.begin(client, receiver)
    }

    /// Called at the cluster's request limit: evicts responses that wait for their clients. Returns whether any was
    /// evicted.
    pub fn make_room(&self, cluster: &Arc<Cluster>) -> bool {
        self.pool(cluster).downloads.look(cluster, BATCH, PATIENCE).is_some_and(|leaving| leaving > 0)
    }

    /// Obtains a connection, or a stream on one, when none is immediately available.
    async fn obtain(
        &self,
        pool: &Rc<ClusterPool<B>>,
        slot: &Rc<EndpointPool<B>>,
        choice: ProtocolChoice<'_>,
    ) -> Result<PooledConnection<B>, RequestErrorKind> {
        let mut new = choice.new;
        // A stream that the request has waited for belongs to it.
        let mut waited = false;
        loop {
            let cluster = pool.cluster();
            let h2 = speaks_h2(slot);
            let alone = h2 && choice.alone;
            if h2
                && !(new || alone)
                && (waited || !pool.keeps_room(slot, choice.on_behalf_of))
                && let Some(place) = slot.enter(cluster.limits.requests_per_connection, pool.is_full())
            {
                return Ok(PooledConnection::Stream(place));
            }
            let under_way = slot.opening.borrow().clone();
            if let Some(opening) = under_way.filter(|_| h2 && !alone) {
                opening.ended.notified().await;
                new = false;
                if let Some(error) = opening.failure.borrow().clone() {
                    return Err(RequestErrorKind::Connect(error));
                }
                continue;
            }
            choice.usage.map_or(Ok(()), |place| place.confirm(&cluster, alone)).map_err(RequestErrorKind::Crowded)?;
            let options = WaitOptions { uploads: choice.uploads, client: choice.on_behalf_of, alone };
            let permit = match pool.acquire(slot, options).await? {
                Grant::Room => {
                    (new, waited) = (false, true);
                    continue;
                }
                Grant::Permit(permit) => permit,
                Grant::Link(lease) => match lease.take() {
                    Some(link) if !(link.is_closed() || new || alone) => return Ok(PooledConnection::Link(link)),
                    // The connection was closed, or might have been; its permit remains.
                    dead => dead.and_then(H1Connection::close_for_permit).ok_or(RequestErrorKind::Overflow)?,
                },
            };
            let permit = if alone { permit.for_one() } else { permit };
            // Meanwhile, others may have opened a connection, or started to.
            if h2
                && !alone
                && (slot.opening.borrow().is_some()
                    || (!new && slot.has_room(cluster.limits.requests_per_connection, false)))
            {
                continue;
            }
            // Before the next await, so that all later requests wait for the same connection.
            let announced = (h2 && !alone).then(|| SharedOpening::new(slot));
            self.0.start_sweeping();
            let connected = self.connect(pool, permit, choice.alone).await.map_err(Arc::new);
            if let (Some(announced), Err(error)) = (&announced, &connected) {
                *announced.0.failure.borrow_mut() = Some(Arc::clone(error));
            }
            match connected.map_err(RequestErrorKind::Connect)? {
                Opened::Link(link) => return Ok(PooledConnection::Link(link)),
                Opened::Mux(mux) => {
                    mux.count_idle();
                    slot.speaks_h2.set(true);
                    // The first stream is for the request that opened it.
                    let place = mux.enter(0).map(PooledConnection::Stream).ok_or(RequestErrorKind::Overflow);
                    if !choice.alone {
                        let room = mux.room();
                        slot.add_mux(mux);
                        pool.offer_room(slot, room);
                    }
                    return place;
                }
            }
        }
    }

    async fn connect(
        &self,
        pool: &Rc<ClusterPool<B>>,
        permit: ConnectionPermit<B>,
        alone: bool,
    ) -> Result<Opened<B>, ConnectError> {
        let cluster = pool.cluster();
        let endpoint = Arc::clone(&permit.slot.endpoint);
        let opened = match &self.0.dial {
            None => match connect::open(&cluster, &endpoint, permit.slot.client, false).await {
                Ok((stream, connect::Version::H1)) => {
                    let local = stream.local_addr();
                    Ok(self.link(Box::new(stream), local, pool, permit))
                }
                Ok((stream, connect::Version::H2 { assumed })) => {
                    let under = H2Transport {
                        secure: matches!(stream, Stream::Tls(_)),
                        assumed,
                        local: stream.local_addr(),
                        alone,
                    };
                    self.mux(stream, under, pool, permit).await
                }
                Err(failed) => Err(failed),
            },
            Some(dial) => match dial(&cluster, &endpoint) {
                Ok(stream) => Ok(self.link(Box::new(stream), None, pool, permit)),
                Err(error) => Err(ConnectError::of(&error)),
            },
        };
        count(&cluster, &endpoint, opened)
    }

    fn link(
        &self,
        stream: Box<dyn Transport>,
        local: Option<SocketAddr>,
        pool: &Rc<ClusterPool<B>>,
        permit: ConnectionPermit<B>,
    ) -> Opened<B> {
        Opened::Link(H1Connection::open(stream, local, self.0.limits, Rc::downgrade(pool), permit))
    }

    async fn mux(
        &self,
        stream: Stream,
        under: H2Transport,
        pool: &Rc<ClusterPool<B>>,
        permit: ConnectionPermit<B>,
    ) -> Result<Opened<B>, ConnectError> {
        let opened = H2Connection::open(stream, under, self.0.limits.head, pool, permit).await;
        opened.map(Opened::Mux).map_err(|error| ConnectError::of(&error))
    }

    fn pool(&self, cluster: &Arc<Cluster>) -> Rc<ClusterPool<B>> {
        let mut clusters = self.0.clusters.borrow_mut();
        Rc::clone(clusters.entry(cluster.stats().id).or_insert_with(|| ClusterPool::new(cluster)))
    }

    /// The clusters that the worker uses now.
    pub fn table(&self) -> &ClusterTable {
        &self.0.table
    }

    /// The cluster that a handle stands for, for a request that began at this time; `None` if there is none.
    pub fn cluster(&self, handle: &ClusterHandle, began: Instant) -> Option<Arc<Cluster>> {
        self.0.table.get(handle, began)
    }

    /// Adopts another state of a cluster, or a new cluster. Connections to endpoints that it lacks are closed: immediately
    /// if they are idle, else when their requests have ended. A state that is older than the worker's changes nothing.
    pub fn set(&self, handle: &ClusterHandle, cluster: &Arc<Cluster>) {
        let id = cluster.stats().id;
        let now = match self.0.table.listed(handle) {
            Some(before) if before.stats().id == id => before.updated_by(cluster).unwrap_or(before),
            _ => Arc::clone(cluster),
        };
        if let Some(gone) = self.0.table.put(handle, Arc::clone(&now)).filter(|before| before.stats().id != id) {
            self.forget(&gone);
        }
        let pool = self.0.clusters.borrow().get(&id).map(Rc::clone);
        if let Some(pool) = pool {
            pool.update(&now);
        }
    }

    /// Adopts all clusters of a directory as they are now.
    pub fn adopt(&self, clusters: &Clusters) {
        for handle in clusters.handles() {
            if let Some(cluster) = handle.current() {
                self.set(&handle, &cluster);
            }
        }
    }

    /// Notes that the configuration lacks a cluster since this state of it. Its idle connections are closed. Requests that began before can still use
    /// it for the time of `grace`.
    ///
    /// # Panics
    ///
    /// Panics outside a context for spawning local tasks.
    pub fn leave(&self, handle: &ClusterHandle, last: &Cluster, grace: Duration) {
        let now = Instant::now();
        let Some(cluster) = self.0.table.mark_leaving(handle, last, now) else { return };
        let pool = self.0.clusters.borrow().get(&cluster.stats().id).map(Rc::clone);
        if let Some(pool) = pool {
            pool.retire_all();
        }
        let (inner, handle) = (Rc::downgrade(&self.0), handle.clone());
        spawn_local(async move {
            sleep(grace).await;
            let Some(pools) = inner.upgrade().map(Pools) else { return };
            if let Some(gone) = pools.0.table.take_left(&handle, now) {
                pools.forget(&gone);
            }
        });
    }

    /// Drops the connections to a cluster, except those with a request, which end with it.
    fn forget(&self, cluster: &Cluster) {
        let pool = self.0.clusters.borrow_mut().remove(&cluster.stats().id);
        if let Some(pool) = pool {
            pool.retire_all();
        }
    }

    /// Closes all idle connections immediately, and those with a request when that has ended.
    pub fn close_all(&self) {
        let pools = std::mem::take(&mut *self.0.clusters.borrow_mut());
        pools.into_values().for_each(|pool| pool.retire_all());
    }
}

impl Head for request::Parts {
    fn show<T>(&self, look: impl FnOnce(&encoder::RequestHead<'_>) -> T) -> T {
        look(&encoder::RequestHead::of(self))
    }
}

/// Maximum number of responses evicted at a time when a request is refused: others will follow before the next check.
const BATCH: usize = 32;

/// Number of times that an unsent request is moved to another HTTP/2 connection.
const MOST_REPLACED: u32 = 3;

/// The connection or stream that carries a request.
enum PooledConnection<B> {
    Link(Rc<H1Connection<B>>),
    Stream(StreamSlot<B>),
}

impl<B> PooledConnection<B> {
    /// Returns the connection's local address.
    fn local(&self) -> Option<SocketAddr> {
        match self {
            PooledConnection::Link(link) => link.local,
            PooledConnection::Stream(place) => place.local(),
        }
    }
}

/// A newly opened connection.
enum Opened<B> {
    Link(Rc<H1Connection<B>>),
    Mux(Rc<H2Connection<B>>),
}

/// An HTTP/2 connection being opened, which other requests may wait for until this is dropped.
struct SharedOpening<'s, B>(Rc<PendingConnection>, &'s EndpointPool<B>);

impl<'s, B> SharedOpening<'s, B> {
    fn new(slot: &'s EndpointPool<B>) -> Self {
        let opening = Rc::new(PendingConnection::default());
        *slot.opening.borrow_mut() = Some(Rc::clone(&opening));
        SharedOpening(opening, slot)
    }
}

impl<B> Drop for SharedOpening<'_, B> {
    fn drop(&mut self) {
        self.1.opening.take();
        self.0.ended.notify_waiters();
    }
}

/// Returns whether the endpoint's requests use HTTP/2. With `auto` that is unknown until the first connection.
fn speaks_h2<B>(slot: &EndpointPool<B>) -> bool {
    match slot.endpoint.transport.protocol {
        ClusterProtocol::H1 => false,
        ClusterProtocol::H2 => true,
        ClusterProtocol::Auto => slot.speaks_h2.get(),
    }
}

impl<B: 'static> Inner<B> {
    /// Starts one task that sweeps all of a worker's connections as long as there are any.
    fn start_sweeping(self: &Rc<Self>) {
        if !self.sweeping.replace(true) {
            let inner = Rc::downgrade(self);
            spawn_local(async move { while Self::sweep_once(&inner).await {} });
        }
    }

    async fn sweep_once(inner: &Weak<Self>) -> bool {
        let Some(pause) = inner.upgrade().map(|inner| inner.pause()) else { return false };
        sleep(pause).await;
        let Some(inner) = inner.upgrade() else { return false };
        let now = Instant::now();
        // Not while borrowed: closing a connection may let a waiting request proceed.
        let pools: Vec<_> = inner.clusters.borrow().values().map(Rc::clone).collect();
        let mut unused = Vec::new();
        for pool in pools {
            if !pool.sweep(now) {
                unused.push(pool);
            }
        }
        let mut clusters = inner.clusters.borrow_mut();
        for pool in unused {
            // A request that is about to use it holds it too.
            if Rc::strong_count(&pool) == 2 {
                clusters.remove(&pool.stats.id);
            }
        }
        let any = !clusters.is_empty();
        inner.sweeping.set(any);
        any
    }

    /// Returns the interval of sweeps. Connections are closed at most two intervals late: two seconds, or half of their
    /// idle timeout if that is less.
    fn pause(&self) -> Duration {
        let timeouts = self.clusters.borrow();
        let shortest = timeouts.values().filter_map(|pool| pool.cluster().limits.idle_timeout).min();
        shortest.map_or(Duration::MAX, |timeout| timeout / 4).clamp(Duration::from_millis(5), Duration::from_secs(1))
    }
}
