//! A worker: a thread that carries traffic on its own, up to its graceful shutdown (drain). It owns its sockets,
//! connections, filter instances and upstream connections. The control thread sends it commands; it only ever asks the
//! control thread to replace failed filter instances.

pub mod mailbox;
mod turn;

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

use self::{
    mailbox::{ClusterUpdate, Mailbox, NextState},
    turn::Turn,
};
use crate::{
    chain::{Filter, Route, network::NetworkFilter, slot::SlottedChain},
    config::units::Address,
    exchange::{self, ListenerContext, RejectReason, RejectedConnection},
    http::body::Body,
    listener::{
        chains::{ActiveChains, ChainRules},
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
    observe::{self, Histogram, LogLimiter, Shard, set_shard, target},
    snapshot::{Delta, FilterChain, ListenerParts, Snapshot, Sockets},
    tcp::{Routes, TcpListenerContext},
    upstream::{ClusterTable, PoolOptions, Pools},
    wasm::{self, Instance, InstanceOrder, InstanceSupply, Plugin, Vm, VmTemplate, WasmFilter},
};

#[cfg(feature = "http3")]
use crate::listener::quic::Quic;
/// Guests run on the worker's stack; see `wasm::engine`.
const STACK: usize = 4 << 20;

/// A command of the control thread to a worker.
pub enum Command {
    /// Apply this difference to the running configuration.
    Apply(Box<Delta>, oneshot::Sender<()>),
    /// Adopt an instance that the worker requested.
    Adopt(Arc<VmTemplate>, Box<Instance>),
    /// Accept no more connections, and close existing ones as soon as they are idle. Answered when none are left.
    Drain(oneshot::Sender<()>),
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
    /// Takes changes of clusters.
    pub mailbox: Arc<Mailbox>,
    thread: thread::JoinHandle<()>,
}

impl WorkerHandle {
    /// Waits for the thread to end, which it does when its command channel closes.
    pub fn join(self) {
        drop(self.commands);
        let _ = self.thread.join();
    }
}

/// Starts a worker. `lag` records how long after its arrival at the proxy a change of a cluster takes effect.
pub fn start(
    index: usize,
    rebuilds: mpsc::UnboundedSender<RebuildRequest>,
    lag: Histogram,
) -> std::io::Result<WorkerHandle> {
    let (commands, inbox) = mpsc::unbounded_channel();
    let mailbox = Arc::<Mailbox>::default();
    let updates = mailbox.clone();
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
        runtime.block_on(async {
            let worker = Worker::new(index, rebuilds);
            tokio::task::spawn_local(update_clusters(worker.pools.clone(), updates, lag));
            worker.run(inbox).await;
        });
        exchange::worker_ends();
    })?;
    started.recv().unwrap_or_else(|_| Err(std::io::Error::other("a worker did not start")))?;
    Ok(WorkerHandle { commands, mailbox, thread })
}

/// Applies changes of clusters as they arrive, also while a larger change is being prepared.
async fn update_clusters(pools: Pools<Body>, mailbox: Arc<Mailbox>, lag: Histogram) {
    loop {
        let updates = mailbox.take().await;
        let mut turn = Turn::begin();
        for ClusterUpdate { handle, next, since } in updates {
            match next {
                NextState::Is(cluster) => pools.set(&handle, &cluster),
                NextState::Gone { last, grace } => pools.leave(&handle, &last, grace),
            }
            lag.observe(observe::shard(), u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX));
            turn.end().await;
        }
    }
}

/// A worker's filters, by plugin.
type Filters = HashMap<*const Plugin, Rc<WasmFilter>>;

struct BoundListener {
    /// The name of the listener that owns the socket.
    name: String,
    socket: Rc<Listener>,
    chains: Rc<ActiveChains>,
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
    /// By template.
    vms: RefCell<HashMap<*const VmTemplate, Rc<Vm>>>,
    /// The filters of the VMs, by plugin.
    filters: RefCell<Filters>,
    /// The parts that the listeners are made of, by name.
    parts: RefCell<HashMap<String, Arc<ListenerParts>>>,
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
            filters: RefCell::default(),
            parts: RefCell::default(),
            connections: Rc::default(),
            clients: Rc::default(),
        }
    }

    async fn run(self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        while let Some(command) = inbox.recv().await {
            match command {
                Command::Apply(delta, done) => {
                    let closing = self.apply(*delta).await;
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
                    if let Some(vm) = vms.get(&Arc::as_ptr(&template)) {
                        vm.deliver(*instance);
                    }
                }
                Command::Drain(done) => self.drain(done),
            }
        }
    }

    /// Applies a difference to the running configuration. Returns the sockets that it no longer has, which are being closed.
    ///
    /// What is new is made first, in turns, between which the worker serves requests. Then everything takes effect within
    /// one poll, so that a request sees the change as a whole or not at all. What is replaced is dropped in turns again.
    async fn apply(&self, delta: Delta) -> Vec<JoinHandle<()>> {
        let Delta { snapshot, clusters, instances, mut sockets } = delta;
        let mut turn = Turn::begin();
        let binding = wasm::VmBinding { upstream: self.pools.clone(), supply: self.supply.clone() };
        let mut new = HashMap::new();
        for (template, instance) in instances {
            new.insert(Arc::as_ptr(&template), Vm::new(template, instance, binding.clone()));
            turn.end().await;
        }
        let (mut vms, mut filters) = (HashMap::new(), HashMap::new());
        for template in &snapshot.templates {
            let key = Arc::as_ptr(template);
            let running = || self.vms.borrow().get(&key).cloned();
            let Some(vm) = new.remove(&key).or_else(running) else { continue };
            vm.adopt_filters();
            filters.extend(Vm::filters(&vm).map(|filter| (std::ptr::from_ref(filter.plugin()), filter)));
            vms.insert(key, vm);
        }
        let mut contexts = HashMap::new();
        for parts in &snapshot.listeners {
            let is_same = self.parts.borrow().get(&parts.config.name).is_some_and(|before| Arc::ptr_eq(before, parts));
            if !is_same {
                let rules = |chain| self.chain_rules(&snapshot, parts, chain, &filters);
                contexts.insert(parts.config.name.as_str(), parts.chains.iter().map(rules).collect::<Vec<_>>());
                turn.end().await;
            }
        }

        // From here to the end of the block nothing is awaited.
        let (closing, replaced) = {
            clusters.iter().for_each(|(handle, cluster)| self.pools.set(handle, cluster));
            vms.values().for_each(|vm: &Rc<Vm>| vm.adopt_settings());
            let closing = self.bind(&snapshot, &contexts, &mut sockets);
            // In-flight requests keep their filters and clusters alive.
            let replaced = (self.vms.replace(vms), self.filters.replace(filters));
            let named = |parts: &Arc<ListenerParts>| (parts.config.name.clone(), parts.clone());
            self.parts.replace(snapshot.listeners.iter().map(named).collect());
            (closing, replaced)
        };
        tokio::task::spawn_local(async move {
            let mut turn = Turn::begin();
            drop(replaced.1);
            for vm in replaced.0.into_values() {
                drop(vm);
                turn.end().await;
            }
        });
        closing
    }

    /// Gives listeners their new contexts, and changes the sockets to those of the configuration. Returns the sockets that it
    /// no longer has, which are being closed.
    fn bind(
        &self,
        snapshot: &Snapshot,
        contexts: &HashMap<&str, Vec<ChainRules>>,
        sockets: &mut Sockets,
    ) -> Vec<JoinHandle<()>> {
        let mut listening = self.listeners.borrow_mut();
        let mut kept = HashMap::new();
        for parts in &snapshot.listeners {
            let name = &parts.config.name;
            let changed = contexts.get(name.as_str());
            for address in parts.config.all_addresses() {
                let listen = |socket, rules: &Vec<ChainRules>| {
                    self.listen(name.clone(), socket, rules.clone(), parts.shared.clone())
                };
                let bound = match (listening.remove(address), sockets.streams.remove(address), changed) {
                    (Some(bound), _, Some(rules)) if bound.name == *name => {
                        bound.chains.update(rules.clone());
                        bound
                    }
                    // Existing connections belong to another listener; they end with it.
                    (Some(bound), _, Some(changed)) => bound.passes_to(|socket| listen(socket, changed)),
                    (Some(bound), _, None) => bound,
                    (None, Some(socket), Some(changed)) => match Listener::try_from(socket) {
                        Ok(socket) => listen(Rc::new(socket), changed),
                        Err(e) => {
                            tracing::error!(
                                target: target::LISTENER,
                                listener = name, "cannot accept connections: {e}"
                            );
                            continue;
                        }
                    },
                    // A listener without new contexts has all its sockets.
                    (None, ..) => continue,
                };
                #[cfg(feature = "http3")]
                // A QUIC connection gets the first chain: quinn has one configuration of TLS per socket.
                let bound = match changed.and_then(|rules| rules.first()) {
                    Some(rules) => self.with_quic(bound, sockets.datagrams.remove(address), &rules.context),
                    None => bound,
                };
                kept.insert(address.clone(), bound);
            }
        }
        let gone = std::mem::replace(&mut *listening, kept);
        gone.into_values().map(BoundListener::end).collect()
    }

    /// Creates the rules of a listener's filter chain for this worker.
    fn chain_rules(
        &self,
        snapshot: &Snapshot,
        parts: &ListenerParts,
        chain: &FilterChain,
        filters: &Filters,
    ) -> ChainRules {
        let config = &parts.config;
        let running = || chain.filters.iter().filter_map(|plugin| filters.get(&Arc::as_ptr(plugin)));
        let http = running().map(|filter| filter.clone() as Rc<dyn Filter>).collect();
        let mut context =
            ListenerContext::new(config.clone(), SlottedChain::single(http), parts.metrics.clone(), self.pools.clone());
        let cluster = config.cluster.as_ref().map(|name| snapshot.directory.handle(name));
        context.default_route = cluster.map(|cluster| Arc::new(Route::to_cluster(cluster)));
        context.tls = chain.tls.clone();
        context.access_log = parts.access_log.clone();
        let network = running().map(|filter| filter.clone() as Rc<dyn NetworkFilter>).collect();
        let tcp = tcp_context(snapshot, parts, network, self.pools.table().clone()).map(Rc::new);
        ChainRules { matches: chain.matches.clone(), context: Rc::new(context), tcp }
    }

    fn listen(
        &self,
        name: String,
        socket: Rc<Listener>,
        rules: Vec<ChainRules>,
        shared: Arc<ListenerShared>,
    ) -> BoundListener {
        let chains = Rc::new(ActiveChains::new(rules));
        let (stop, stopped) = watch::channel(false);
        let all = (self.connections.clone(), self.clients.clone());
        let accept = accept(socket.clone(), chains.clone(), shared.clone(), all, stopped);
        let accept = tokio::task::spawn_local(accept);
        BoundListener {
            name,
            socket,
            chains,
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
    parts: &ListenerParts,
    chain: Vec<Rc<dyn NetworkFilter>>,
    clusters: ClusterTable,
) -> Option<TcpListenerContext> {
    let (config, metrics) = (&parts.config, parts.tcp.clone()?);
    Some(TcpListenerContext {
        name: config.name.as_str().into(),
        chain: SlottedChain::single(chain),
        routes: Routes::new(config, &snapshot.directory),
        idle: config.timeouts.idle.bound(),
        age: config.timeouts.connection_age.bound(),
        buffered: usize::try_from(config.limits.buffered_body.0).unwrap_or(usize::MAX),
        access_log: parts.access_log.clone(),
        metrics,
        clusters,
    })
}

impl BoundListener {
    /// Accepts no more connections, and drains existing ones. The socket is closed when the task ends.
    fn end(self) -> JoinHandle<()> {
        let _ = self.stop.send(true);
        self.chains.drain();
        #[cfg(feature = "http3")]
        self.quic.into_iter().for_each(Quic::end);
        self.accept
    }

    /// Hands the sockets over to another listener, and drains the connections. HTTP/3 connections, which have no other
    /// socket, continue under the other listener's configuration.
    fn passes_to(self, listen: impl FnOnce(Rc<Listener>) -> BoundListener) -> BoundListener {
        self.accept.abort();
        self.chains.drain();
        #[cfg_attr(not(feature = "http3"), expect(unused_mut, reason = "there is nothing else to give"))]
        let mut other = listen(self.socket);
        #[cfg(feature = "http3")]
        {
            other.quic = self.quic;
        }
        other
    }
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
    chains: Rc<ActiveChains>,
    shared: Arc<ListenerShared>,
    (connections, clients): (Rc<ConnectionCount>, Rc<Clients>),
    mut stopped: watch::Receiver<bool>,
) {
    let (refusals, unaccepted) = (RejectedConnections::default(), LogLimiter::default());
    let refuse = |stream, peer, refused: &RejectedConnection| {
        let context = chains.first().handle.context();
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
        let connected = ConnectionGuard::begin(&connections, &chains.first().handle.context(), place);
        let chains = chains.clone();
        clients.admit(|seat| {
            let serve = async move {
                connection::serve(chains, stream, (peer, local), &seat).await;
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
