//! A worker: a thread that carries traffic on its own, up to its graceful shutdown (drain). It owns its sockets,
//! connections, filter instances and upstream connections. The control thread sends it commands; it only ever asks the
//! control thread to replace failed filter instances.

use std::{
    cell::RefCell,
    collections::HashMap,
    os::fd::AsFd,
    rc::Rc,
    sync::{Arc, mpsc as std_mpsc},
    thread,
    time::Duration,
};

use tokio::{
    runtime::LocalOptions,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use crate::{
    chain::{
        Chain, Filter, Route,
        network::{NetworkChain, NetworkFilter},
    },
    config::units::Address,
    downstream::connection::ListenerHandle,
    exchange::{self, ListenerContext, RejectReason, RejectedConnection},
    http::body::Body,
    listener::{
        clients::Clients,
        connection,
        count::{ConnectionCount, ConnectionGuard, full},
        overload::RejectedConnections,
        socket::{HANDSHAKES, ListenerShared},
    },
    net::{
        Listener, Socket,
        descriptors::{self, DescriptorUse},
    },
    observe::{LogLimiter, Shard, set_shard, target},
    snapshot::{Snapshot, Sockets},
    tcp::{Routes, TcpListenerContext},
    upstream::{ClusterHandle, ClusterTable, PoolOptions, Pools},
    wasm::{self, Instance, InstanceOrder, InstanceSupply, Vm, VmTemplate, WasmFilter},
};

#[cfg(feature = "http3")]
use crate::listener::quic::Quic;
/// Guests run on the worker's stack; see `wasm::engine`.
const STACK: usize = 4 << 20;

/// A command of the control thread to a worker.
pub enum Command {
    /// Use this snapshot from now on.
    Apply(Box<WorkerUpdate>, oneshot::Sender<()>),
    /// Adopt an instance that the worker requested.
    Adopt(Arc<VmTemplate>, Box<Instance>),
    /// Accept no more connections, and close existing ones as soon as they are idle. Answered when none are left.
    Drain(oneshot::Sender<()>),
}

/// A snapshot with the parts that one worker owns.
pub struct WorkerUpdate {
    /// The snapshot.
    pub snapshot: Arc<Snapshot>,
    /// An instance of each VM template.
    pub instances: Vec<Instance>,
    /// New sockets.
    pub sockets: Sockets,
    /// Clusters that the configuration lacks.
    pub removed: Vec<ClusterHandle>,
}

/// A request for another instance.
pub struct RebuildRequest {
    /// The worker that requests it.
    pub worker: usize,
    /// The instance to create.
    pub order: InstanceOrder,
}

/// The control thread's handle of a worker.
pub struct WorkerHandle {
    /// Sends commands to the worker.
    pub commands: mpsc::UnboundedSender<Command>,
    thread: thread::JoinHandle<()>,
}

impl WorkerHandle {
    /// Waits for the thread to end, which it does when its command channel closes.
    pub fn join(self) {
        drop(self.commands);
        let _ = self.thread.join();
    }
}

/// Starts a worker.
pub fn start(index: usize, rebuilds: mpsc::UnboundedSender<RebuildRequest>) -> std::io::Result<WorkerHandle> {
    let (commands, inbox) = mpsc::unbounded_channel();
    let (ready, started) = std_mpsc::channel();
    let thread = thread::Builder::new().name(format!("tollgate-{index}")).stack_size(STACK).spawn(move || {
        set_shard(Shard::worker(index));
        // Local tasks run directly on the runtime: a `LocalSet` would be a second scheduler within the first.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(e) => {
                let _ = ready.send(Err(e));
                return;
            }
        };
        let _ = ready.send(Ok(()));
        runtime.block_on(Worker::new(index, rebuilds).run(inbox));
        exchange::worker_ends();
    })?;
    started.recv().unwrap_or_else(|_| Err(std::io::Error::other("a worker did not start")))?;
    Ok(WorkerHandle { commands, thread })
}

struct BoundListener {
    /// The name of the listener that owns the socket.
    name: String,
    socket: Rc<Listener>,
    handle: Rc<ListenerHandle>,
    tcp: Rc<connection::TcpRules>,
    accept: JoinHandle<()>,
    stop: watch::Sender<bool>,
    shared: Arc<ListenerShared>,
    #[cfg(feature = "http3")]
    quic: Option<Quic>,
}

struct Worker {
    supply: Rc<InstanceSupply>,
    pools: Pools<Body>,
    /// By address: sockets belong to an address, and can move from one listener to another.
    listeners: RefCell<HashMap<Address, BoundListener>>,
    vms: RefCell<Vec<Rc<Vm>>>,
    connections: Rc<ConnectionCount>,
    clients: Rc<Clients>,
}

impl Worker {
    fn new(index: usize, rebuilds: mpsc::UnboundedSender<RebuildRequest>) -> Worker {
        Worker {
            supply: InstanceSupply::new(move |order| {
                // The control thread ends only when the process ends.
                let _ = rebuilds.send(RebuildRequest { worker: index, order });
            }),
            pools: Pools::new(PoolOptions::default()),
            listeners: RefCell::default(),
            vms: RefCell::default(),
            connections: Rc::default(),
            clients: Rc::default(),
        }
    }

    async fn run(self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        while let Some(command) = inbox.recv().await {
            match command {
                Command::Apply(update, done) => {
                    let closing = self.apply(*update);
                    // The next configuration may use these addresses again.
                    tokio::task::spawn_local(async move {
                        closed(closing).await;
                        let _ = done.send(());
                    });
                }
                Command::Adopt(template, instance) => {
                    self.supply.charge(instance.made_in);
                    let vms = self.vms.borrow();
                    // Instances for a snapshot that is gone are dropped.
                    if let Some(vm) = vms.iter().find(|vm| Arc::ptr_eq(vm.template(), &template)) {
                        vm.deliver(*instance);
                    }
                }
                Command::Drain(done) => self.drain(done),
            }
        }
    }

    /// Applies another snapshot. Returns the sockets that it no longer has, which are being closed.
    fn apply(&self, update: WorkerUpdate) -> Vec<JoinHandle<()>> {
        let WorkerUpdate { snapshot, instances, sockets, removed } = update;
        for (handle, cluster) in &snapshot.clusters {
            self.pools.set(handle, cluster);
        }
        let binding = wasm::VmBinding { upstream: self.pools.clone(), supply: self.supply.clone() };
        let vms = snapshot.templates.iter().zip(instances);
        let vms: Vec<_> =
            vms.map(|(template, instance)| Vm::new(template.clone(), instance, binding.clone())).collect();
        let filters = snapshot.in_order(&vms);
        let mut streams: HashMap<_, _> = by_place(sockets.streams);
        #[cfg(feature = "http3")]
        let mut datagrams: HashMap<_, _> = by_place(sockets.datagrams);
        let mut listening = self.listeners.borrow_mut();
        let mut kept = HashMap::new();
        for (index, parts) in snapshot.listeners.iter().enumerate() {
            let context = Rc::new(self.listener_context(&snapshot, index, &filters));
            let tcp = tcp_context(&snapshot, index, &filters, self.pools.table().clone()).map(Rc::new);
            for address in parts.config.all_addresses() {
                let name = &parts.config.name;
                let place = (index, address.clone());
                let bound = match (listening.remove(address), streams.remove(&place)) {
                    (Some(bound), _) if bound.name == *name => {
                        bound.handle.set_context(context.clone());
                        *bound.tcp.borrow_mut() = tcp.clone();
                        bound
                    }
                    // Existing connections belong to another listener; they end with it.
                    (Some(bound), _) => bound.passes_to(|socket| {
                        self.listen(name.clone(), socket, context.clone(), tcp.clone(), parts.shared.clone())
                    }),
                    (None, Some(socket)) => match Listener::try_from(socket) {
                        Ok(socket) => {
                            let socket = Rc::new(socket);
                            self.listen(name.clone(), socket, context.clone(), tcp.clone(), parts.shared.clone())
                        }
                        Err(e) => {
                            tracing::error!(
                                target: target::LISTENER,
                                listener = name, "cannot accept connections: {e}"
                            );
                            continue;
                        }
                    },
                    (None, None) => continue,
                };
                #[cfg(feature = "http3")]
                let bound = self.with_quic(bound, datagrams.remove(&place), &context);
                kept.insert(address.clone(), bound);
            }
        }
        let gone = std::mem::replace(&mut *listening, kept);
        let closing = gone.into_values().map(BoundListener::end).collect();
        // In-flight requests keep their filters and clusters alive.
        *self.vms.borrow_mut() = vms;
        for handle in &removed {
            self.pools.leave(handle, snapshot.loaded.config.drain_timeout.0);
        }
        closing
    }

    /// Creates a listener's context for this worker.
    fn listener_context(&self, snapshot: &Snapshot, index: usize, filters: &[Rc<WasmFilter>]) -> ListenerContext {
        let parts = &snapshot.listeners[index];
        let config = &parts.config;
        let filters = parts.chain.iter().filter_map(|i| filters.get(*i));
        let filters = filters.map(|filter| filter.clone() as Rc<dyn Filter>).collect();
        let mut context = ListenerContext::new(
            config.clone(),
            Rc::new(Chain::new(filters)),
            parts.metrics.clone(),
            self.pools.clone(),
        );
        let cluster = config.cluster.as_ref().map(|name| snapshot.directory.handle(name));
        context.default_route = cluster.map(|cluster| Arc::new(Route::to_cluster(cluster)));
        context.tls = parts.tls.clone();
        context.access_log = parts.access_log.clone();
        context
    }

    fn listen(
        &self,
        name: String,
        socket: Rc<Listener>,
        context: Rc<ListenerContext>,
        tcp: Option<Rc<TcpListenerContext>>,
        shared: Arc<ListenerShared>,
    ) -> BoundListener {
        let handle = Rc::new(ListenerHandle::new(context));
        let tcp = Rc::new(RefCell::new(tcp));
        let (stop, stopped) = watch::channel(false);
        let all = (self.connections.clone(), self.clients.clone());
        let accept = accept(socket.clone(), handle.clone(), tcp.clone(), shared.clone(), all, stopped);
        let accept = tokio::task::spawn_local(accept);
        BoundListener {
            name,
            socket,
            handle,
            tcp,
            accept,
            stop,
            shared,
            #[cfg(feature = "http3")]
            quic: None,
        }
    }

    /// Adds HTTP/3 to a listener, or removes it, according to its current configuration.
    #[cfg(feature = "http3")]
    fn with_quic(
        &self,
        mut listening: BoundListener,
        socket: Option<std::net::UdpSocket>,
        context: &Rc<ListenerContext>,
    ) -> BoundListener {
        listening.quic = match (listening.quic, socket) {
            (Some(quic), _) if context.config.http3 => {
                quic.set_site(context.clone());
                Some(quic)
            }
            (None, Some(socket)) => {
                let connections = self.connections.clone();
                let new = Quic::listen(socket, context.clone(), listening.shared.clone(), connections);
                new.map_err(|e| {
                    tracing::error!(
                        target: target::LISTENER,
                        listener = &*context.name, "cannot serve HTTP/3: {e}"
                    )
                })
                .ok()
            }
            (before, _) => {
                before.into_iter().for_each(Quic::end);
                None
            }
        };
        listening
    }

    fn drain(&self, done: oneshot::Sender<()>) {
        let closing = self.listeners.borrow_mut().drain().map(|(_, listening)| listening.end()).collect();
        let connections = self.connections.clone();
        tokio::task::spawn_local(async move {
            closed(closing).await;
            *connections.waiting.borrow_mut() = Some(done);
            connections.check();
        });
    }
}

/// Waits until the sockets are closed, and their pending connections are accepted.
async fn closed(closing: Vec<JoinHandle<()>>) {
    for socket in closing {
        let _ = socket.await;
    }
}

/// Creates a listener's context for TCP connections, if it accepts any.
fn tcp_context(
    snapshot: &Snapshot,
    index: usize,
    filters: &[Rc<WasmFilter>],
    clusters: ClusterTable,
) -> Option<TcpListenerContext> {
    let parts = &snapshot.listeners[index];
    let (config, figures) = (&parts.config, parts.tcp.clone()?);
    let filters = parts.chain.iter().filter_map(|i| filters.get(*i));
    let filters = filters.map(|filter| filter.clone() as Rc<dyn NetworkFilter>);
    Some(TcpListenerContext {
        name: config.name.as_str().into(),
        chain: Rc::new(NetworkChain::new(filters.collect())),
        routes: Routes::new(config, &snapshot.directory),
        idle: config.timeouts.idle.bound(),
        age: config.timeouts.connection_age.bound(),
        buffered: usize::try_from(config.limits.buffered_body.0).unwrap_or(usize::MAX),
        access_log: parts.access_log.clone(),
        metrics: figures,
        clusters,
    })
}

impl BoundListener {
    /// Accepts no more connections, and drains existing ones. The socket is closed when the task ends.
    fn end(self) -> JoinHandle<()> {
        let _ = self.stop.send(true);
        self.handle.drain();
        #[cfg(feature = "http3")]
        self.quic.into_iter().for_each(Quic::end);
        self.accept
    }

    /// Hands the sockets over to another listener, and drains the connections. HTTP/3 connections, which have no other
    /// socket, continue under the other listener's configuration.
    fn passes_to(self, listen: impl FnOnce(Rc<Listener>) -> BoundListener) -> BoundListener {
        self.accept.abort();
        self.handle.drain();
        #[cfg_attr(not(feature = "http3"), expect(unused_mut, reason = "there is nothing else to give"))]
        let mut other = listen(self.socket);
        #[cfg(feature = "http3")]
        {
            other.quic = self.quic;
        }
        other
    }
}

/// Returns sockets keyed by listener and address.
fn by_place<S>(sockets: Vec<(usize, Address, S)>) -> HashMap<(usize, Address), S> {
    sockets.into_iter().map(|(index, address, socket)| ((index, address), socket)).collect()
}

/// Returns the rejection for a client when all descriptors for clients are in use and no connection is idle.
fn scarce() -> RejectedConnection {
    let why = "no file descriptors are left for clients, and no connection is idle (`ulimit -n`)".to_owned();
    RejectedConnection::new(RejectReason::Descriptors, why)
}

/// Accepts connections until it is stopped. Then it stops receiving new ones, accepts those that are still in their
/// handshakes, and closes the socket.
async fn accept(
    socket: Rc<Listener>,
    handle: Rc<ListenerHandle>,
    tcp: Rc<connection::TcpRules>,
    shared: Arc<ListenerShared>,
    (connections, clients): (Rc<ConnectionCount>, Rc<Clients>),
    mut stopped: watch::Receiver<bool>,
) {
    let (refusals, unaccepted) = (RejectedConnections::default(), LogLimiter::default());
    let refuse = |stream, peer, refused: &RejectedConnection| {
        let context = handle.context();
        context.reject(peer, "TCP", refused);
        let tls = context.config.tls.as_ref().map(|tls| tls.mode);
        refusals.reject(stream, context.config.protocol, tls, refused.refusal != RejectReason::Descriptors);
    };
    // Returns whether other connections were closed to make room.
    let begin = |stream: Socket, peer| {
        let Some(place) = shared.enter() else {
            refuse(stream, peer, &full());
            return false;
        };
        let crowded = !DescriptorUse::Client.may_keep(stream.as_fd());
        if crowded && clients.close_idle() == 0 {
            refuse(stream, peer, &scarce());
            return false;
        }
        let Ok(local) = stream.local_addr() else { return false };
        let connected = ConnectionGuard::begin(&connections, &handle.context(), place);
        let (handle, tcp) = (handle.clone(), tcp.clone());
        clients.admit(|seat| {
            let serve = async move {
                connection::serve(handle, tcp, stream, (peer, local), &seat).await;
                drop(connected);
            };
            tokio::task::spawn_local(serve).abort_handle()
        });
        crowded
    };
    let mut closes = None;
    loop {
        let over = async {
            match closes {
                None => _ = stopped.wait_for(|stopped| *stopped).await,
                Some(at) => sleep_until(at).await,
            }
        };
        tokio::select! {
            biased;
            () = over => {
                if closes.is_some() {
                    break;
                }
                if let Err(e) = socket.leave_to_others() {
                    tracing::debug!(
                        target: target::LISTENER,
                        "connections may still arrive at a closing socket: {e}"
                    );
                }
                closes = Some(Instant::now() + HANDSHAKES);
            }
            accepted = socket.accept() => match accepted {
                // They close in their own tasks, which run before the next client is accepted.
                Ok((stream, peer)) => if begin(stream, peer) {
                    tokio::task::yield_now().await;
                },
                Err(e) => {
                    if descriptors::are_used_up(&e) {
                        clients.close_idle();
                    }
                    if let Some(left_out) = unaccepted.may_warn() {
                        tracing::warn!(target: target::LISTENER, left_out, "cannot accept a connection: {e}");
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
        }
    }
    for (stream, peer) in Rc::into_inner(socket).map(Listener::close).unwrap_or_default() {
        begin(stream, peer);
    }
}
