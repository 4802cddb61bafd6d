//! A worker's connections to all clusters, and sending requests on them.
//!
//! They belong to one thread: nothing here is locked, and a response wakes nobody on another core. Only the limits of a
//! cluster hold over all workers; they are counted in its [`Stats`](super::Stats).

use std::{
    cell::{Cell, RefCell},
    error::Error,
    io,
    rc::{Rc, Weak},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body::Body;
use hyper::client::conn::http1::Builder;
use rustc_hash::FxHashMap;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream},
    task::spawn_local,
    time::{Instant, sleep},
};

use super::{
    cluster::{Cluster, Endpoint},
    failure::{Failure, FailureKind},
    link::{Link, PooledBody},
    slots::{ClusterPool, Grant, Permit, Slot},
};
use crate::net::Socket;

/// Bounds on what an upstream may send before its response's body.
#[derive(Debug, Clone, Copy)]
pub struct PoolOptions {
    /// Header fields of a response, at most. Up to 100 they are parsed without an allocation.
    pub max_response_headers: usize,
    /// Bytes of a response's head, at most, status line included; the same for its trailers. At least 8 KiB.
    pub max_response_head: usize,
}

impl Default for PoolOptions {
    fn default() -> Self {
        PoolOptions { max_response_headers: HYPER_MAX_HEADERS, max_response_head: 64 << 10 }
    }
}

/// How many header fields hyper parses on its stack.
const HYPER_MAX_HEADERS: usize = 100;

/// The least that hyper allows for a connection's buffers.
const HYPER_MIN_BUFFER: usize = 8 << 10;

/// How much of a body is read or written at a time, at most. Larger buffers bring no more speed, but each
/// connection keeps its own.
const MAX_BUFFER: usize = 64 << 10;

/// Opens connections within this process instead of sockets: for tests of filters, where clusters are scripts.
pub type Dial = Box<dyn Fn(&Cluster, &Endpoint) -> io::Result<DuplexStream>>;

/// How long a request has waited for a connection, the time for opening it included.
#[derive(Debug, Clone, Copy)]
pub struct Waited(pub Duration);

/// A worker's upstream connections. `B` is the type of request bodies. Clones are the same pools.
pub struct Pools<B>(Rc<Inner<B>>);

struct Inner<B> {
    clusters: RefCell<FxHashMap<u64, Rc<ClusterPool<B>>>>,
    http: Builder,
    /// None: by TCP.
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
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    /// Pools without any connection.
    pub fn new(options: PoolOptions) -> Self {
        Pools::make(options, None)
    }

    /// Pools whose connections are opened by `dial`.
    pub fn dialling(options: PoolOptions, dial: Dial) -> Self {
        Pools::make(options, Some(dial))
    }

    fn make(options: PoolOptions, dial: Option<Dial>) -> Self {
        let mut http = Builder::new();
        let head = options.max_response_head.max(HYPER_MIN_BUFFER);
        http.max_header_size(head).max_buf_size(head.max(MAX_BUFFER));
        if options.max_response_headers != HYPER_MAX_HEADERS {
            http.max_headers(options.max_response_headers);
        }
        Pools(Rc::new(Inner { clusters: RefCell::default(), http, dial, sweeping: Cell::new(false) }))
    }

    /// Sends `request` to `endpoint` on an idle connection or a new one, and returns when the head of its response has
    /// been read (interim responses are skipped). Unless the connection was idle, the response's extensions have
    /// [`Waited`]. It is sent as HTTP/1.1, its target as it stands (origin form) and
    /// with the header fields that it has: `Host` and the removal of hop-by-hop fields are the caller's part.
    ///
    /// If the cluster may not have another connection, it waits for one, for as long as the future is not dropped. An
    /// idle connection that turns out to be closed before the request was written is replaced unnoticed. It is not
    /// retried otherwise. Apart from connecting there is no timeout: dropping the future, or the body of the response,
    /// ends the exchange and closes the connection.
    ///
    /// # Errors
    ///
    /// A [`Failure`]: no connection, the connection closed before the response, an invalid response, the request's body
    /// failed, or too many requests wait for a connection.
    ///
    /// # Panics
    ///
    /// Outside a place to spawn local tasks (`LocalSet`, `LocalRuntime`).
    pub async fn send(
        &self,
        cluster: &Arc<Cluster>,
        endpoint: &Arc<Endpoint>,
        mut request: Request<B>,
    ) -> Result<Response<PooledBody>, Failure<B>> {
        *request.version_mut() = Version::HTTP_11;
        let pool = self.cluster(cluster);
        let slot = pool.slot(endpoint);
        let mut waited = None;
        loop {
            let link = match slot.checkout() {
                Some(link) => link,
                // Boxed, so that requests which find a connection do not carry the space for this.
                None => {
                    let start = Instant::now();
                    let link = match Box::pin(self.obtain(&pool, &slot)).await {
                        Ok(link) => link,
                        Err(kind) => return Err(Failure::unsent(kind, request)),
                    };
                    waited = Some(Waited(start.elapsed()));
                    link
                }
            };
            let reused = link.has_served();
            match link.exchange(request).await {
                // Ends: each turn uses up an idle connection, and a new one returns whatever comes of it.
                Err(Failure { request: Some(unsent), .. }) if reused => request = *unsent,
                Ok(mut response) => {
                    if let Some(waited) = waited {
                        response.extensions_mut().insert(waited);
                    }
                    return Ok(response);
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// A connection when none is idle.
    async fn obtain(&self, pool: &Rc<ClusterPool<B>>, slot: &Rc<Slot<B>>) -> Result<Rc<Link<B>>, FailureKind> {
        let permit = match pool.acquire(slot).await? {
            Grant::Permit(permit) => permit,
            Grant::Link(lease) => match lease.take() {
                Some(link) if !link.is_closed() => return Ok(link),
                // It was closed on its way here; its place remains.
                dead => dead.and_then(Link::close_for_permit).ok_or(FailureKind::Overflow)?,
            },
        };
        self.0.start_sweeping();
        self.connect(pool, permit).await
    }

    async fn connect(&self, pool: &Rc<ClusterPool<B>>, permit: Permit<B>) -> Result<Rc<Link<B>>, FailureKind> {
        let cluster = pool.cluster();
        let endpoint = Arc::clone(&permit.slot.endpoint);
        let opened = match &self.0.dial {
            None => match Socket::connect(&endpoint.address, cluster.connect_timeout).await {
                Ok(stream) => self.open(stream, pool, permit).await,
                Err(failed) => Err(failed),
            },
            Some(dial) => match dial(&cluster, &endpoint) {
                Ok(stream) => self.open(stream, pool, permit).await,
                Err(error) => Err((error, false)),
            },
        };
        let stats = cluster.stats();
        opened.inspect(|_| _ = stats.connects.fetch_add(1, Relaxed)).map_err(|(source, timeout)| {
            stats.connect_failures.fetch_add(1, Relaxed);
            stats.connect_timeouts.fetch_add(timeout.into(), Relaxed);
            endpoint.connect_failures.fetch_add(1, Relaxed);
            FailureKind::Connect { source, timeout }
        })
    }

    async fn open(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
        pool: &Rc<ClusterPool<B>>,
        permit: Permit<B>,
    ) -> Result<Rc<Link<B>>, (io::Error, bool)> {
        let opened = Link::open(stream, &self.0.http, Rc::downgrade(pool), permit).await;
        opened.map_err(|error| (io::Error::other(error), false))
    }

    fn cluster(&self, cluster: &Arc<Cluster>) -> Rc<ClusterPool<B>> {
        let mut clusters = self.0.clusters.borrow_mut();
        let pool = clusters.entry(cluster.stats().id).or_insert_with(|| ClusterPool::new(cluster));
        pool.update(cluster);
        Rc::clone(pool)
    }

    /// Takes a new configuration snapshot over: idle connections to clusters and endpoints that it does not have are
    /// closed at once, those with a request when that has ended.
    pub fn retain<'a>(&self, clusters: impl IntoIterator<Item = &'a Arc<Cluster>>) {
        let mut kept = FxHashMap::default();
        {
            let mut current = self.0.clusters.borrow_mut();
            for cluster in clusters {
                if let Some(pool) = current.remove(&cluster.stats().id) {
                    pool.update(cluster);
                    kept.insert(cluster.stats().id, pool);
                }
            }
            std::mem::swap(&mut *current, &mut kept);
        }
        // Now `kept` holds what is not kept. A request that is about to use one of these keeps it until it has ended.
        for gone in kept.into_values() {
            gone.retire_all();
        }
        let pools: Vec<_> = self.0.clusters.borrow().values().map(Rc::clone).collect();
        for pool in pools {
            pool.retire_missing();
        }
    }

    /// Closes all idle connections at once, and those with a request when that has ended.
    pub fn close_all(&self) {
        self.retain([]);
    }
}

impl<B: 'static> Inner<B> {
    /// One task for all of a worker's connections, as long as there are any.
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
        // Not under the borrow: closing a connection may let a request go on that waits for one.
        let pools: Vec<_> = inner.clusters.borrow().values().map(Rc::clone).collect();
        let mut any = false;
        for pool in pools {
            any |= pool.sweep(now);
        }
        inner.sweeping.set(any);
        any
    }

    /// Connections are closed at most two pauses late: two seconds, or half of their idle timeout if that is less.
    fn pause(&self) -> Duration {
        let timeouts = self.clusters.borrow();
        let shortest = timeouts.values().filter_map(|pool| pool.cluster().limits.idle_timeout).min();
        shortest.map_or(Duration::MAX, |timeout| timeout / 4).clamp(Duration::from_millis(5), Duration::from_secs(1))
    }
}
