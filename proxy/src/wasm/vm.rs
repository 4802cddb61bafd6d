//! A VM on a worker: an instance of one filter, or of several that share it, with its streams; and what happens when it
//! fails.
//!
//! Guests are called synchronously and never re-entered; what they ask for (callouts, timers) is done once they have
//! returned. An instance that has trapped is never called again: see [`recovery`]. Clients whose requests make it trap are served
//! apart: see [`quarantine`].

mod callout;
pub mod filter;
pub(crate) mod grpc;
mod network;
mod quarantine;
mod recovery;
pub(super) mod supply;
mod suspects;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::{Rc, Weak},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::sync::mpsc::unbounded_channel;
use tokio::task::AbortHandle;
use tollgate_abi::fast::phase;
use wasmtime::{Store, Trap};

use self::{filter::WasmFilter, quarantine::Quarantine, supply::InstanceSupply};
use super::{
    engine::clock,
    host::{
        CallResponse, FIRST_ROOT, Host, HttpCall, Timer,
        grpc::{CallCommand, CallEvent},
    },
    instance::{Exports, Instance, plugin::Plugin, template::VmTemplate},
    scope::{
        call_scope::CallScope,
        contexts::{ContextIds, Contexts, StreamContext},
        stream_ref::StreamRef,
    },
    stores::queue::QueueNotification,
};
use crate::{chain::stream::FilterState, http::body::Body, observe, upstream::Pools};

/// One call in this many is timed.
const TIMED: u64 = 16;

/// HTTP calls of a guest that are begun one after the other. With more of them the worker's other tasks get their turn first:
/// a guest can ask for thousands at once, each with a connection and a body.
const BEGUN_AT_ONCE: usize = 16;

/// What a VM needs of its worker.
#[derive(Clone)]
pub struct VmBinding {
    /// For callouts.
    pub upstream: Pools<Body>,
    /// For another instance after a failure.
    pub supply: Rc<InstanceSupply>,
}

/// A VM on a worker.
pub struct Vm {
    me: Weak<Vm>,
    machine: Arc<VmTemplate>,
    /// Its filters, in the order of their root contexts.
    tenants: Box<[Rc<RootContext>]>,
    site: VmBinding,
    /// The one that it stands beside, if it serves clients apart.
    main: Option<Weak<Vm>>,
    quarantine: Quarantine,
    /// None while the control thread makes another one.
    instance: RefCell<Option<Instance>>,
    /// Instances that can take its place at once.
    spares: RefCell<Vec<Instance>>,
    /// Another one is being made, or will be.
    ordered: Cell<bool>,
    /// How often in a row an instance has failed by itself, in the first call that was made to it.
    still_born: Cell<u32>,
    /// It does without one until then.
    resting: Cell<Option<Instant>>,
    /// It is being dropped.
    closing: Cell<bool>,
    /// Counts the instances, so that no stream ever meets one that it has not begun in.
    incarnation: Cell<u32>,
    contexts: Rc<RefCell<Contexts>>,
    ids: Cell<ContextIds>,
    calls: Cell<u64>,
    /// How many of them were for instances before this one.
    calls_before: Cell<u64>,
    /// HTTP calls under way.
    http: RefCell<HashMap<u32, AbortHandle>>,
    grpc: RefCell<grpc::Calls>,
    memory: Cell<i64>,
}

/// A filter in a VM.
pub(in crate::wasm) struct RootContext {
    /// The filter.
    pub plugin: Arc<Plugin>,
    /// The callbacks that it wants, as bits of [`phase`](tollgate_abi::fast::phase).
    pub phases: Cell<u32>,
    /// It has said which ones those are.
    pub subscribes: Cell<bool>,
    /// Which of the VM's filters it is.
    index: usize,
    half_call: (Duration, u64),
    ticking: RefCell<Option<(Duration, AbortHandle)>>,
    listening: RefCell<Option<QueueSubscription>>,
}

/// A filter hears of messages in its queues.
struct QueueSubscription {
    note: QueueNotification,
    /// Those that it has registered.
    queues: Vec<u32>,
    task: AbortHandle,
}

impl RootContext {
    /// Its root context.
    pub fn root(&self) -> u32 {
        FIRST_ROOT + self.index as u32
    }

    /// Ends what is done for its root context by itself.
    fn silence(&self) {
        if let Some((_, ticking)) = self.ticking.take() {
            ticking.abort();
        }
        self.stop_listening();
    }

    /// Hears no more of its queues. What it was told and has not heard is told to the reader before it, or the next one.
    fn stop_listening(&self) {
        let Some(QueueSubscription { note, queues, task }) = self.listening.take() else { return };
        task.abort();
        queues.into_iter().for_each(|queue| self.plugin.env.shared.queues.pass_on(queue, &note));
    }
}

/// A stream's context, for a call.
#[derive(Clone, Copy)]
pub(super) struct CallContext {
    /// Its id.
    pub id: u32,
    /// The root that it has to be made under first: the guest does not know it yet.
    pub parent: Option<u32>,
}

impl CallContext {
    /// Makes it, if the guest does not know it yet. Its id.
    pub fn create(self, store: &mut Store<Host>, exports: &Exports) -> wasmtime::Result<u32> {
        if let (Some(parent), Some(create)) = (self.parent, &exports.context_create) {
            create.call(store, (self.id, parent))?;
        }
        Ok(self.id)
    }
}

/// The instance is not there, or has failed just now.
pub(super) struct InstanceUnavailable;

impl Vm {
    /// A VM with a ready instance.
    pub fn new(machine: Arc<VmTemplate>, instance: Instance, site: VmBinding) -> Rc<Vm> {
        let vm = Vm::without_instance(machine, site, None);
        vm.machine.presence.join();
        vm.machine.presence.found();
        vm.adopt(instance);
        vm
    }

    fn without_instance(machine: Arc<VmTemplate>, site: VmBinding, main: Option<Weak<Vm>>) -> Rc<Vm> {
        let tenants: Box<[_]> = (machine.plugins().iter().enumerate())
            .map(|(index, plugin)| {
                Rc::new(RootContext {
                    plugin: plugin.clone(),
                    phases: Cell::new(0),
                    subscribes: Cell::new(false),
                    index,
                    half_call: plugin.half_call(),
                    ticking: RefCell::new(None),
                    listening: RefCell::new(None),
                })
            })
            .collect();
        Rc::new_cyclic(|me| Vm {
            me: me.clone(),
            ids: Cell::new(ContextIds::from(FIRST_ROOT + tenants.len() as u32)),
            machine,
            tenants,
            site,
            main,
            quarantine: Quarantine::default(),
            instance: RefCell::new(None),
            spares: RefCell::default(),
            ordered: Cell::new(false),
            still_born: Cell::new(0),
            resting: Cell::new(None),
            closing: Cell::new(false),
            incarnation: Cell::new(0),
            contexts: Rc::default(),
            calls: Cell::new(0),
            calls_before: Cell::new(0),
            http: RefCell::default(),
            grpc: RefCell::default(),
            memory: Cell::new(0),
        })
    }

    /// What it is made from.
    pub fn machine(&self) -> &Arc<VmTemplate> {
        &self.machine
    }

    /// Its filters, in the machine's order.
    pub fn filters(self: &Rc<Self>) -> impl Iterator<Item = Rc<WasmFilter>> {
        self.tenants.iter().map(|tenant| Rc::new(WasmFilter::new(self.clone(), tenant.clone())))
    }

    /// How often the guest has called the host, and how many bytes were copied for it. For benchmarks.
    pub fn traffic(&self) -> (u64, u64) {
        self.instance.borrow().as_ref().map_or((0, 0), |i| (i.store.data().hostcalls, i.store.data().copied))
    }

    /// Bytes of linear memory.
    pub fn memory_bytes(&self) -> u64 {
        self.instance.borrow().as_ref().map_or(0, |i| memory_size(&i.store)) as u64
    }

    /// Takes an instance into use.
    fn adopt(&self, mut instance: Instance) {
        // A worker only gets what is in force.
        self.tenants[0].plugin.env.trial.succeed();
        let reads: Vec<usize> = instance.store.data().reads.iter().map(|(root, _)| *root).collect();
        // A tick goes on over a failure if it is the same, and ends if it is none.
        instance.store.data_mut().ticks_changed = true;
        for tenant in &self.tenants {
            tenant.phases.set(instance.phases(tenant.index));
            tenant.subscribes.set(instance.subscribed(tenant.index).is_some());
            self.gauge(tenant).add(observe::shard(), 1);
        }
        self.incarnation.set(self.incarnation.get().wrapping_add(1));
        self.calls_before.set(self.calls.get());
        *self.instance.borrow_mut() = Some(instance);
        // What it asked for while it was configured.
        self.settle();
        self.tenants.iter().filter(|tenant| !reads.contains(&tenant.index)).for_each(|tenant| tenant.stop_listening());
    }

    /// Calls the guest for one of its filters, on behalf of a stream or of none. `hears`: whoever calls denies the stream if
    /// this fails.
    pub(super) fn enter<T>(
        &self,
        tenant: &RootContext,
        stream: Option<(&StreamRef, usize)>,
        context: u32,
        hears: bool,
        call: impl FnOnce(&mut Store<Host>, &Exports) -> wasmtime::Result<T>,
    ) -> Result<T, InstanceUnavailable> {
        // A guest under way on this thread means that something inside a host function has ended a stream; it must wait.
        let Ok(mut slot) = self.instance.try_borrow_mut() else {
            debug_assert!(false, "guests are not re-entered");
            return Err(InstanceUnavailable);
        };
        let Some(Instance { store, exports, .. }) = slot.as_mut() else { return Err(InstanceUnavailable) };
        let calls = self.calls.get() + 1;
        self.calls.set(calls);
        // A VM is only ever called on its worker's thread, whose shard it is.
        tenant.plugin.metrics.calls.inc_alone(observe::shard());
        let timed = calls.is_multiple_of(TIMED).then(Instant::now);
        clock::start_ticks(store, tenant.half_call.0, tenant.half_call.1);
        let began = clock::begin();
        store.data_mut().act_for(tenant.index, context);
        let result = {
            let _scope = CallScope::enter(stream, &self.contexts);
            call(store, exports)
        };
        if let Some(start) = timed {
            tenant.plugin.metrics.time.observe(observe::shard(), start.elapsed().as_nanos() as u64);
            self.account_memory(store);
        }
        let result = match result {
            Ok(_) if clock::overran(began, tenant.plugin.call_time) => Err(Trap::Interrupt.into()),
            result => result,
        };
        match result {
            Ok(value) => {
                let host = store.data();
                let unsettled = !host.calls.is_empty()
                    || !host.timers.is_empty()
                    || !host.grpc_wishes.is_empty()
                    || !host.reads.is_empty()
                    || host.ticks_changed;
                drop(slot);
                if unsettled {
                    self.settle();
                }
                Ok(value)
            }
            Err(error) => {
                let (denied, effective) = (store.data().limiter.denied, store.data().effective);
                let dead = slot.take();
                drop(slot);
                self.fail(tenant, &error, (denied, effective), stream, hears);
                drop(dead);
                Err(InstanceUnavailable)
            }
        }
    }

    /// Does what the guest has asked for.
    fn settle(&self) {
        let (calls, timers, wishes, reads) = {
            let mut slot = self.instance.borrow_mut();
            let Some(instance) = slot.as_mut() else { return };
            let host = instance.store.data_mut();
            if std::mem::take(&mut host.ticks_changed) {
                self.tenants.iter().zip(&host.roots).for_each(|(tenant, root)| self.set_tick(tenant, root.tick));
            }
            // What was cancelled at once is never begun.
            let grpc_calls = &host.grpc_calls;
            host.grpc_wishes.retain(|wish| match wish {
                CallCommand::Open(call) => grpc_calls.contains_key(&call.id),
                _ => true,
            });
            (
                std::mem::take(&mut host.calls),
                std::mem::take(&mut host.timers),
                std::mem::take(&mut host.grpc_wishes),
                std::mem::take(&mut host.reads),
            )
        };
        let mut calls = calls.into_iter();
        calls.by_ref().take(BEGUN_AT_ONCE).for_each(|call| self.begin(call));
        if calls.len() > 0 {
            let (me, incarnation) = (self.me.clone(), self.incarnation.get());
            tokio::task::spawn_local(async move {
                while calls.len() > 0 {
                    tokio::task::yield_now().await;
                    let Some(vm) = me.upgrade().filter(|vm| vm.incarnation.get() == incarnation) else { return };
                    calls.by_ref().take(BEGUN_AT_ONCE).for_each(|call| vm.begin(call));
                }
            });
        }
        for wish in wishes {
            let calls = &mut self.grpc.borrow_mut();
            grpc::execute(calls, wish, &self.me, &self.site.upstream, self.incarnation.get());
        }
        for timer in timers {
            let Some((stream, position, _)) = self.find(timer.context) else { continue };
            if stream.with_position(position, |p| p.over) {
                continue;
            }
            let (me, incarnation) = (self.me.clone(), self.incarnation.get());
            let task = tokio::task::spawn_local(async move {
                let Timer { context, after, token, charge } = timer;
                tokio::time::sleep(after).await;
                if let Some(vm) = me.upgrade() {
                    vm.on_timer(context, token, incarnation);
                }
                drop(charge);
            });
            stream.with_position(position, |p| p.timers.push(task.abort_handle()));
        }
        // Messages go to whoever has asked for them last, and must not go to one that may fail at any time.
        for (root, queue) in reads.into_iter().filter(|_| !self.is_apart()) {
            let tenant = &self.tenants[root];
            let known = tenant.listening.borrow().as_ref().map(|listening| listening.note.clone());
            let note = known.unwrap_or_else(|| self.listen(tenant));
            if let Some(listening) = &mut *tenant.listening.borrow_mut()
                && !listening.queues.contains(&queue)
            {
                listening.queues.push(queue);
            }
            tenant.plugin.env.shared.queues.read(queue, note);
        }
        if let Some(Instance { store, .. }) = self.instance.borrow().as_ref() {
            self.account_memory(store);
        }
    }

    /// Sends an HTTP call.
    fn begin(&self, call: HttpCall) {
        let id = call.id;
        let task = callout::run(self.me.clone(), self.site.upstream.clone(), call, self.incarnation.get());
        self.http.borrow_mut().insert(id, tokio::task::spawn_local(task).abort_handle());
    }

    /// A stream by its context: the filter's position in its chain, and the filter.
    fn find(&self, context: u32) -> Option<(StreamRef, usize, &Rc<RootContext>)> {
        let contexts = self.contexts.borrow();
        let StreamContext { stream, position, root } = contexts.get(context)?;
        Some((stream.upgrade()?, *position, &self.tenants[*root]))
    }

    /// Memory counts for the first of the filters that share it.
    fn account_memory(&self, store: &Store<Host>) {
        let now = memory_size(store);
        self.tenants[0].plugin.metrics.memory.add(observe::shard(), now - self.memory.replace(now));
    }

    /// Tells a filter of messages in its queues, as they come, for as long as there is an instance.
    fn listen(&self, tenant: &Rc<RootContext>) -> QueueNotification {
        let (note, mut inbox) = unbounded_channel();
        let (me, listener) = (self.me.clone(), tenant.clone());
        let task = tokio::task::spawn_local(async move {
            while let Some(queue) = inbox.recv().await {
                while listener.plugin.env.shared.queues.tell(queue) {
                    let Some(vm) = me.upgrade() else { return };
                    let root = listener.root();
                    let _ = vm.enter(&listener, None, root, false, |store, exports| {
                        exports.queue_ready.as_ref().map_or(Ok(()), |f| f.call(store, (root, queue)))
                    });
                    drop(vm);
                    // However many there are, the worker has other things to do.
                    tokio::task::yield_now().await;
                }
            }
        });
        let (queues, task) = (Vec::new(), task.abort_handle());
        *tenant.listening.borrow_mut() = Some(QueueSubscription { note: note.clone(), queues, task });
        note
    }

    fn set_tick(&self, tenant: &Rc<RootContext>, tick: Option<Duration>) {
        if tenant.ticking.borrow().as_ref().map(|(period, _)| *period) == tick {
            return;
        }
        let (me, ticking) = (self.me.clone(), tenant.clone());
        let new = tick.map(|period| {
            let task = tokio::task::spawn_local(async move {
                loop {
                    tokio::time::sleep(period).await;
                    let Some(vm) = me.upgrade() else { return };
                    let root = ticking.root();
                    let _ = vm.enter(&ticking, None, root, false, |store, exports| {
                        exports.tick.as_ref().map_or(Ok(()), |f| f.call(store, root))
                    });
                }
            });
            (period, task.abort_handle())
        });
        if let Some((_, old)) = tenant.ticking.replace(new) {
            old.abort();
        }
    }

    fn on_timer(&self, context: u32, token: i64, incarnation: u32) {
        let Some((stream, position, tenant)) = self.find(context) else { return };
        if incarnation == self.incarnation.get() {
            let _ = self.enter(tenant, Some((&stream, position)), context, false, |store, exports| {
                exports.timer.as_ref().map_or(Ok(()), |f| f.call(store, (context, token)))
            });
        }
    }

    /// Hands the answer to a root context's call over.
    pub(super) fn on_call_response(&self, root: usize, id: u32, response: CallResponse, incarnation: u32) {
        if incarnation != self.incarnation.get() {
            return;
        }
        self.http.borrow_mut().remove(&id);
        let tenant = &self.tenants[root];
        let _ = self.enter(tenant, None, tenant.root(), false, |store, exports| {
            let calls = &mut store.data_mut().calls_under_way;
            *calls = calls.saturating_sub(1);
            let Some(f) = &exports.http_call_response else { return Ok(()) };
            let headers = response.head.as_ref().map_or(0, |h| 1 + h.fields.len() as u32);
            let (body, trailers) = (response.body.len() as u32, response.trailers.len() as u32);
            store.data_mut().answers.call_response = Some(response);
            let result = f.call(&mut *store, (tenant.root(), id, headers, body, trailers));
            store.data_mut().answers.clear();
            result
        });
    }

    /// Tells the guest what a root context's gRPC call has brought. Whether it may bring more.
    pub(super) fn on_grpc_event(&self, root: usize, id: u32, event: CallEvent, incarnation: u32) -> bool {
        if incarnation != self.incarnation.get() {
            return false;
        }
        let tenant = &self.tenants[root];
        let told = self.enter(tenant, None, tenant.root(), false, |store, exports| {
            let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            let (f, much) = match &event {
                CallEvent::Initial(fields) => (&exports.grpc_initial, count(fields.len())),
                CallEvent::Message(message) => (&exports.grpc_message, count(message.len())),
                CallEvent::Trailing(fields) => (&exports.grpc_trailing, count(fields.len())),
                CallEvent::Closed(status, _) => (&exports.grpc_close, *status),
            };
            let host = store.data_mut();
            // It has cancelled the call, and must not hear of it again.
            if !host.grpc_calls.contains_key(&id) {
                return Ok(());
            }
            if matches!(event, CallEvent::Closed(..)) {
                host.grpc_calls.remove(&id);
                host.grpc_over.add(id);
            }
            let Some(f) = f else { return Ok(()) };
            host.answers.grpc_event = Some(event);
            let result = f.call(&mut *store, (tenant.root(), id, much));
            store.data_mut().answers.clear();
            result
        });
        told.is_ok()
    }

    /// A gRPC call is over.
    pub(super) fn grpc_ended(&self, id: u32, incarnation: u32) {
        if incarnation == self.incarnation.get() {
            if let Some(instance) = self.instance.borrow_mut().as_mut() {
                instance.store.data_mut().grpc_calls.remove(&id);
            }
            self.grpc.borrow_mut().remove(&id);
        }
    }

    /// Calls the guest for a stream; `call` is given the stream's context. Whoever calls denies the stream if this fails.
    pub(super) fn call<T>(
        &self,
        tenant: &RootContext,
        (stream, position): (&StreamRef, usize),
        call: impl FnOnce(&mut Store<Host>, &Exports, CallContext) -> wasmtime::Result<T>,
    ) -> Result<T, InstanceUnavailable> {
        let apart = self.apart(stream, position);
        let (vm, tenant) = match &apart {
            Some(vm) => (&**vm, &*vm.tenants[tenant.index]),
            None => (self, tenant),
        };
        let (id, new) = vm.context(tenant, stream, position)?;
        let parent = (new && tenant.phases.get() & phase::LIFECYCLE != 0).then(|| tenant.root());
        vm.enter(tenant, Some((stream, position)), id, true, |store, exports| {
            call(store, exports, CallContext { id, parent })
        })
    }

    /// The stream's context in a filter, and whether it is new: made because there was none. `Err`: the filter cannot take part
    /// in the stream.
    pub(super) fn context(
        &self,
        tenant: &RootContext,
        stream: &StreamRef,
        position: usize,
    ) -> Result<(u32, bool), InstanceUnavailable> {
        let (next, incarnation) = (self.ids.get().next(), self.incarnation.get());
        let there = self.instance.try_borrow().is_ok_and(|instance| instance.is_some());
        let (context, new) = stream.with_position(position, |p| match p.context {
            _ if p.gone || !there => Err(InstanceUnavailable),
            0 => {
                (p.context, p.incarnation) = (next, incarnation);
                Ok((next, true))
            }
            context if p.incarnation == incarnation => Ok((context, false)),
            _ => Err(InstanceUnavailable),
        })?;
        if new {
            let known = StreamContext { stream: stream.downgrade(), position, root: tenant.index };
            let mut contexts = self.contexts.borrow_mut();
            contexts.insert(context, known);
            self.ids.set(self.ids.get().taken(|id| contexts.get(id).is_some()));
        }
        Ok((context, new))
    }

    /// A stream's context is no more.
    pub(super) fn forget(&self, position: &FilterState) {
        let apart = if position.quarantined { self.quarantine_vm() } else { None };
        let vm = apart.as_deref().unwrap_or(self);
        // The id of one that an earlier instance had may be another stream's by now.
        if position.incarnation == vm.incarnation.get() {
            vm.contexts.borrow_mut().remove(position.context);
        }
    }
}

fn memory_size(store: &Store<Host>) -> i64 {
    store.data().memory.map_or(0, |memory| memory.data_size(store) as i64)
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.closing.set(true);
        self.tenants.iter().for_each(|tenant| tenant.silence());
        self.grpc.borrow_mut().clear();
        let had = self.instance.borrow().is_some();
        if !self.is_apart() {
            self.machine.presence.leave(had);
        }
        self.machine.kept.fetch_sub(self.spares.borrow().len(), Ordering::Relaxed);
        for tenant in &self.tenants {
            let root = tenant.root();
            let _ = self.enter(tenant, None, root, false, |store, exports| {
                if let Some(done) = &exports.done {
                    done.call(&mut *store, root)?;
                }
                exports.delete.as_ref().map_or(Ok(()), |f| f.call(store, root))
            });
        }
        if had && self.instance.borrow().is_some() {
            self.tenants.iter().for_each(|tenant| self.gauge(tenant).sub(observe::shard(), 1));
            self.tenants[0].plugin.metrics.memory.sub(observe::shard(), self.memory.get());
        }
    }
}
