//! A VM on a worker: an instance of one filter, or of several that share it, with its streams, and its recovery from
//! failures.
//!
//! Guests are called synchronously and never re-entered; callouts and timers that they request start after they return.
//! An instance that has trapped is never called again: see [`recovery`]. Clients whose requests make it trap are served
//! by a separate instance: see [`quarantine`].

mod callout;
pub mod filter;
pub(crate) mod grpc;
mod network;
mod quarantine;
mod recovery;
mod roots;
pub(super) mod supply;
mod suspects;
#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::{Rc, Weak},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use rustc_hash::FxHashMap;
use tokio::sync::mpsc::unbounded_channel;
use tokio::task::AbortHandle;
use tollgate_abi::fast::phase;
use wasmtime::{Store, Trap};

pub(in crate::wasm) use self::roots::RootContext;
use self::{filter::WasmFilter, quarantine::Quarantine, roots::Roots, supply::InstanceSupply};
use super::{
    engine::clock,
    host::{
        CallResponse, FIRST_ROOT, Host, HttpCall, Timer,
        grpc::{CallCommand, CallEvent},
    },
    instance::{Exports, Instance, template::VmTemplate},
    scope::{
        call_scope::CallScope,
        contexts::{ContextIds, Contexts, StreamContext},
        stream_ref::StreamRef,
    },
    stores::queue::{QueueNotification, Queues},
};
use crate::{chain::stream::FilterState, http::body::Body, observe, upstream::Pools};

/// One call in this many is timed.
const TIMED: u64 = 16;

/// The number of a guest's HTTP calls that are started back to back. Beyond that, the worker's other tasks get their
/// turn first: a guest can request thousands of calls in one go, each with a connection and a body.
const STARTED_PER_TURN: usize = 16;

/// What binds a VM to its worker.
#[derive(Clone)]
pub struct VmBinding {
    /// The connection pools, for callouts.
    pub upstream: Pools<Body>,
    /// Provides a new instance after a failure.
    pub supply: Rc<InstanceSupply>,
}

/// A VM on a worker.
pub struct Vm {
    me: Weak<Vm>,
    template: Arc<VmTemplate>,
    /// The root contexts of its filters and their variants, also for its quarantine.
    roots: Rc<Roots>,
    binding: VmBinding,
    /// The regular VM, if this one is its quarantine.
    main: Option<Weak<Vm>>,
    quarantine: Quarantine,
    /// `None` while the control thread creates a new one.
    instance: RefCell<Option<Instance>>,
    /// Instances that can replace it immediately.
    spares: RefCell<Vec<Instance>>,
    /// Another instance is being created, or will be.
    ordered: Cell<bool>,
    /// How many instances in a row have failed outside any stream in the first call made to them.
    failed_at_start: Cell<u32>,
    /// The VM stays without an instance until then.
    paused_until: Cell<Option<Instant>>,
    /// The VM is being dropped.
    closing: Cell<bool>,
    /// Counts the instances, so that a stream never meets an instance other than the one it started in.
    incarnation: Cell<u32>,
    contexts: Rc<RefCell<Contexts>>,
    ids: Cell<ContextIds>,
    calls: Cell<u64>,
    /// The value of `calls` when this instance started.
    calls_before: Cell<u64>,
    /// HTTP calls in progress.
    http: RefCell<HashMap<u32, AbortHandle>>,
    grpc: RefCell<grpc::Calls>,
    memory: Cell<i64>,
    /// The ticks of the guest's root contexts.
    ticks: Box<[RefCell<Option<Tick>>]>,
    /// Subscriptions to queues, by the number of the root context.
    subscriptions: RefCell<FxHashMap<u32, QueueSubscription>>,
}

/// The period of a tick, and its task.
type Tick = (Duration, AbortHandle);

/// A filter's subscription to its queues.
struct QueueSubscription {
    /// The filter.
    reader: Rc<RootContext>,
    note: QueueNotification,
    /// The queues that it has registered.
    queues: Vec<u32>,
    task: AbortHandle,
}

impl QueueSubscription {
    /// Stops reading the queues. Pending notifications go to the previous reader, or to the next one that registers.
    fn stop(self, queues: &Queues) {
        self.task.abort();
        self.queues.into_iter().for_each(|queue| queues.pass_on(queue, &self.note));
    }
}

/// A stream's context in a call.
#[derive(Clone, Copy)]
pub(super) struct CallContext {
    /// The context's id.
    pub id: u32,
    /// The root context to create it under first, if the guest does not know it yet.
    pub parent: Option<u32>,
}

impl CallContext {
    /// Creates the context if the guest does not know it yet. Returns its id.
    pub fn create(self, store: &mut Store<Host>, exports: &Exports) -> wasmtime::Result<u32> {
        if let (Some(parent), Some(create)) = (self.parent, &exports.context_create) {
            create.call(store, (self.id, parent))?;
        }
        Ok(self.id)
    }
}

/// There is no instance, or it has just failed.
pub(super) struct InstanceUnavailable;

impl Vm {
    /// Creates a VM with a ready instance.
    pub fn new(template: Arc<VmTemplate>, instance: Instance, binding: VmBinding) -> Rc<Vm> {
        let roots = Roots::new(&template);
        let vm = Vm::without_instance(template, roots, binding, None);
        vm.template.availability.join();
        vm.template.availability.found();
        vm.adopt(instance);
        vm
    }

    fn without_instance(
        template: Arc<VmTemplate>,
        roots: Rc<Roots>,
        binding: VmBinding,
        main: Option<Weak<Vm>>,
    ) -> Rc<Vm> {
        Rc::new_cyclic(|me| Vm {
            me: me.clone(),
            ids: Cell::new(ContextIds::from(FIRST_ROOT + roots.count() as u32)),
            ticks: (0..roots.count()).map(|_| RefCell::default()).collect(),
            subscriptions: RefCell::default(),
            template,
            roots,
            binding,
            main,
            quarantine: Quarantine::default(),
            instance: RefCell::new(None),
            spares: RefCell::default(),
            ordered: Cell::new(false),
            failed_at_start: Cell::new(0),
            paused_until: Cell::new(None),
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

    /// Adopts its filters' settings as they are now, without new instances.
    pub fn adopt_settings(&self) {
        self.roots.adopt_settings();
    }

    /// Adopts the filters that share it now, without new instances.
    pub fn adopt_filters(&self) {
        let plugins = self.template.plugins();
        if !self.roots.adopt(plugins.clone()) {
            return;
        }
        let (first, stores) = VmTemplate::filters_of(&plugins);
        let apart = self.quarantine_vm();
        for vm in [self].into_iter().chain(apart.as_deref()) {
            let (mut instance, mut spares) = (vm.instance.borrow_mut(), vm.spares.borrow_mut());
            let all = instance.iter_mut().chain(spares.iter_mut());
            all.for_each(|instance| instance.store.data_mut().retain_filters(&first, &stores));
        }
        self.stop_listening(|root_context| !stores.contains(&root_context.plugin.info.store_address()));
    }

    /// The template of its instances.
    pub fn template(&self) -> &Arc<VmTemplate> {
        &self.template
    }

    /// Its filters, in the template's order.
    pub fn filters(self: &Rc<Self>) -> impl Iterator<Item = Rc<WasmFilter>> {
        let filters = self.roots.filters();
        let filter = |root_context: &Rc<RootContext>| Rc::new(WasmFilter::new(self.clone(), root_context.clone()));
        filters.iter().map(filter).collect::<Vec<_>>().into_iter()
    }

    /// The number of host calls by the guest and of bytes copied for them. For benchmarks.
    pub fn traffic(&self) -> (u64, u64) {
        self.instance.borrow().as_ref().map_or((0, 0), |i| (i.store.data().hostcalls, i.store.data().copied))
    }

    /// Bytes of linear memory.
    pub fn memory_bytes(&self) -> u64 {
        self.instance.borrow().as_ref().map_or(0, |i| memory_size(&i.store)) as u64
    }

    /// Makes an instance the current one.
    fn adopt(&self, mut instance: Instance) {
        // A worker only receives instances of an applied configuration.
        instance.store.data().env.undo_log.succeed();
        let reads: Vec<u32> = instance.store.data().reads.iter().map(|(reader, _)| *reader).collect();
        // A tick continues over a failure if its period is unchanged; without a tick in the new instance, it ends.
        instance.store.data_mut().ticks_changed = true;
        // A quarantine VM is called for the phases of the regular one.
        if !self.is_apart() {
            self.roots.adopt_phases(&instance);
        }
        self.gauge().add(observe::shard(), 1);
        self.incarnation.set(self.incarnation.get().wrapping_add(1));
        self.calls_before.set(self.calls.get());
        *self.instance.borrow_mut() = Some(instance);
        // Carries out what the guest requested while it was configured.
        self.settle();
        self.stop_listening(|root_context| !reads.contains(&root_context.identity.number));
    }

    /// Stops reading the queues of some filters.
    fn stop_listening(&self, which: impl Fn(&RootContext) -> bool) {
        let stopped = self.subscriptions.borrow_mut().extract_if(|_, known| which(&known.reader)).collect::<Vec<_>>();
        for (_, subscription) in stopped {
            let shared = subscription.reader.plugin.env.shared.clone();
            subscription.stop(&shared.queues);
        }
    }

    /// Calls the guest for one of its filters, on behalf of a stream or of none. `handled`: the caller denies the stream
    /// if this fails.
    pub(super) fn enter<T>(
        &self,
        root_context: &RootContext,
        stream: Option<(&StreamRef, usize)>,
        context: u32,
        handled: bool,
        call: impl FnOnce(&mut Store<Host>, &Exports) -> wasmtime::Result<T>,
    ) -> Result<T, InstanceUnavailable> {
        // If a guest is already running on this thread, something inside a host function has ended a stream; that must
        // wait.
        let Ok(mut slot) = self.instance.try_borrow_mut() else {
            debug_assert!(false, "guests are not re-entered");
            return Err(InstanceUnavailable);
        };
        let Some(Instance { store, exports, .. }) = slot.as_mut() else { return Err(InstanceUnavailable) };
        let calls = self.calls.get() + 1;
        self.calls.set(calls);
        // A VM is called only on its worker's thread, so this shard has no other writer.
        root_context.plugin.metrics.calls.inc_alone(observe::shard());
        let timed = calls.is_multiple_of(TIMED).then(Instant::now);
        let (half, ticks) = root_context.half_call.get();
        let began = clock::begin(store, half, ticks);
        store.data_mut().act_for(&root_context.identity, context);
        let result = {
            let _scope = CallScope::enter(stream, &self.contexts);
            call(store, exports)
        };
        if let Some(start) = timed {
            root_context.plugin.metrics.time.observe(observe::shard(), start.elapsed().as_nanos() as u64);
            self.account_memory(store);
        }
        let result = match result {
            Ok(_) if clock::overran(store, began, root_context.settings.get().call_time) => Err(Trap::Interrupt.into()),
            result => result,
        };
        match result {
            Ok(value) => {
                let host = store.data();
                let unsettled = !host.calls.is_empty()
                    || !host.timers.is_empty()
                    || !host.grpc_commands.is_empty()
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
                self.fail(root_context, &error, (denied, effective), stream, handled);
                drop(dead);
                Err(InstanceUnavailable)
            }
        }
    }

    /// Carries out what the guest has requested.
    fn settle(&self) {
        let (calls, timers, wishes, reads) = {
            let mut slot = self.instance.borrow_mut();
            let Some(instance) = slot.as_mut() else { return };
            let host = instance.store.data_mut();
            if std::mem::take(&mut host.ticks_changed) {
                host.roots.iter().enumerate().for_each(|(root, state)| self.set_tick(root, state.tick));
            }
            // Calls that were cancelled in the same callback are never started.
            let grpc_calls = &host.grpc_calls;
            host.grpc_commands.retain(|wish| match wish {
                CallCommand::Open(call) => grpc_calls.contains_key(&call.id),
                _ => true,
            });
            (
                std::mem::take(&mut host.calls),
                std::mem::take(&mut host.timers),
                std::mem::take(&mut host.grpc_commands),
                std::mem::take(&mut host.reads),
            )
        };
        let mut calls = calls.into_iter();
        calls.by_ref().take(STARTED_PER_TURN).for_each(|call| self.begin(call));
        if calls.len() > 0 {
            let (me, incarnation) = (self.me.clone(), self.incarnation.get());
            tokio::task::spawn_local(async move {
                while calls.len() > 0 {
                    tokio::task::yield_now().await;
                    let Some(vm) = me.upgrade().filter(|vm| vm.incarnation.get() == incarnation) else { return };
                    calls.by_ref().take(STARTED_PER_TURN).for_each(|call| vm.begin(call));
                }
            });
        }
        for wish in wishes {
            let calls = &mut self.grpc.borrow_mut();
            grpc::execute(calls, wish, &self.me, &self.binding.upstream, self.incarnation.get());
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
        // A queue's messages go to the reader that registered last; a quarantine VM, which may fail at any time, must
        // not be a reader.
        for (reader, queue) in reads.into_iter().filter(|_| !self.is_apart()) {
            let Some(root_context) = self.roots.get(reader) else { continue };
            let mut subscriptions = self.subscriptions.borrow_mut();
            let known = subscriptions.entry(reader).or_insert_with(|| self.listen(&root_context));
            if !known.queues.contains(&queue) {
                known.queues.push(queue);
            }
            root_context.plugin.env.shared.queues.read(queue, known.note.clone());
        }
        if let Some(Instance { store, .. }) = self.instance.borrow().as_ref() {
            self.account_memory(store);
        }
    }

    /// Starts an HTTP call.
    fn begin(&self, call: HttpCall) {
        let id = call.id;
        let task = callout::run(self.me.clone(), self.binding.upstream.clone(), call, self.incarnation.get());
        self.http.borrow_mut().insert(id, tokio::task::spawn_local(task).abort_handle());
    }

    /// Looks a stream up by its context: the stream, the filter's position in its chain, and the filter.
    fn find(&self, context: u32) -> Option<(StreamRef, usize, Rc<RootContext>)> {
        let contexts = self.contexts.borrow();
        let StreamContext { stream, position, root } = contexts.get(context)?;
        Some((stream.upgrade()?, *position, self.roots.get(root.number)?))
    }

    fn account_memory(&self, store: &Store<Host>) {
        let now = memory_size(store);
        self.template.gauges.memory.add(observe::shard(), now - self.memory.replace(now));
    }

    /// Notifies a filter of messages in its queues for as long as there is an instance.
    fn listen(&self, root_context: &Rc<RootContext>) -> QueueSubscription {
        let (note, mut inbox) = unbounded_channel();
        let (me, listener) = (self.me.clone(), root_context.clone());
        let task = tokio::task::spawn_local(async move {
            while let Some(queue) = inbox.recv().await {
                while listener.plugin.env.shared.queues.tell(queue) {
                    let Some(vm) = me.upgrade() else { return };
                    let root = listener.root();
                    let _ = vm.enter(&listener, None, root, false, |store, exports| {
                        exports.queue_ready.as_ref().map_or(Ok(()), |f| f.call(store, (root, queue)))
                    });
                    drop(vm);
                    // Yields after each message, however many there are, to the worker's other tasks.
                    tokio::task::yield_now().await;
                }
            }
        });
        QueueSubscription { reader: root_context.clone(), note, queues: Vec::new(), task: task.abort_handle() }
    }

    /// Sets the tick of one of the guest's root contexts. If filters share it, it runs for the first of them.
    fn set_tick(&self, root: usize, tick: Option<Duration>) {
        if self.ticks[root].borrow().as_ref().map(|(period, _)| *period) == tick {
            return;
        }
        let me = self.me.clone();
        let new = tick.map(|period| {
            let task = tokio::task::spawn_local(async move {
                loop {
                    tokio::time::sleep(period).await;
                    let Some(vm) = me.upgrade() else { return };
                    let Some(root_context) = vm.roots.first(root) else { return };
                    let root = root_context.root();
                    let _ = vm.enter(&root_context, None, root, false, |store, exports| {
                        exports.tick.as_ref().map_or(Ok(()), |f| f.call(store, root))
                    });
                }
            });
            (period, task.abort_handle())
        });
        if let Some((_, old)) = self.ticks[root].replace(new) {
            old.abort();
        }
    }

    fn on_timer(&self, context: u32, token: i64, incarnation: u32) {
        let Some((stream, position, root_context)) = self.find(context) else { return };
        if incarnation == self.incarnation.get() {
            let _ = self.enter(&root_context, Some((&stream, position)), context, false, |store, exports| {
                exports.timer.as_ref().map_or(Ok(()), |f| f.call(store, (context, token)))
            });
        }
    }

    /// Passes the response to a filter's HTTP call to the guest.
    pub(super) fn on_call_response(&self, caller: u32, id: u32, response: CallResponse, incarnation: u32) {
        if incarnation != self.incarnation.get() {
            return;
        }
        self.http.borrow_mut().remove(&id);
        let Some(root_context) = self.roots.caller(caller) else { return };
        let _ = self.enter(&root_context, None, root_context.root(), false, |store, exports| {
            let calls = &mut store.data_mut().calls_under_way;
            *calls = calls.saturating_sub(1);
            let Some(f) = &exports.http_call_response else { return Ok(()) };
            let headers = response.head.as_ref().map_or(0, |h| 1 + h.fields.len() as u32);
            let (body, trailers) = (response.body.len() as u32, response.trailers.len() as u32);
            store.data_mut().answers.call_response = Some(response);
            let result = f.call(&mut *store, (root_context.root(), id, headers, body, trailers));
            store.data_mut().answers.clear();
            result
        });
    }

    /// Passes an event of a filter's gRPC call to the guest. Returns whether further events may follow.
    pub(super) fn on_grpc_event(&self, caller: u32, id: u32, event: CallEvent, incarnation: u32) -> bool {
        if incarnation != self.incarnation.get() {
            return false;
        }
        let Some(root_context) = self.roots.caller(caller) else { return false };
        let delivered = self.enter(&root_context, None, root_context.root(), false, |store, exports| {
            let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            let (f, size) = match &event {
                CallEvent::Initial(fields) => (&exports.grpc_initial, count(fields.len())),
                CallEvent::Message(message) => (&exports.grpc_message, count(message.len())),
                CallEvent::Trailing(fields) => (&exports.grpc_trailing, count(fields.len())),
                CallEvent::Closed(status, _) => (&exports.grpc_close, *status),
            };
            let host = store.data_mut();
            // The guest has cancelled the call and must not receive further events of it.
            if !host.grpc_calls.contains_key(&id) {
                return Ok(());
            }
            if matches!(event, CallEvent::Closed(..)) {
                host.grpc_calls.remove(&id);
                host.grpc_over.add(id);
            }
            let Some(f) = f else { return Ok(()) };
            host.answers.grpc_event = Some(event);
            let result = f.call(&mut *store, (root_context.root(), id, size));
            store.data_mut().answers.clear();
            result
        });
        delivered.is_ok()
    }

    /// Removes a gRPC call that has ended.
    pub(super) fn grpc_ended(&self, id: u32, incarnation: u32) {
        if incarnation == self.incarnation.get() {
            if let Some(instance) = self.instance.borrow_mut().as_mut() {
                instance.store.data_mut().grpc_calls.remove(&id);
            }
            self.grpc.borrow_mut().remove(&id);
        }
    }

    /// Calls the guest for a stream; `call` receives the stream's context. The caller denies the stream if this fails.
    pub(super) fn call<T>(
        &self,
        root_context: &RootContext,
        (stream, position): (&StreamRef, usize),
        call: impl FnOnce(&mut Store<Host>, &Exports, CallContext) -> wasmtime::Result<T>,
    ) -> Result<T, InstanceUnavailable> {
        let apart = self.apart(stream, position);
        let vm = apart.as_deref().unwrap_or(self);
        let (id, new) = vm.context(root_context, stream, position)?;
        let parent = (new && root_context.phases.get() & phase::LIFECYCLE != 0).then(|| root_context.root());
        vm.enter(root_context, Some((stream, position)), id, true, |store, exports| {
            call(store, exports, CallContext { id, parent })
        })
    }

    /// Returns the stream's context id in a filter, and whether it is new. `Err`: the filter cannot take part in the
    /// stream.
    pub(super) fn context(
        &self,
        root_context: &RootContext,
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
            let known = StreamContext { stream: stream.downgrade(), position, root: root_context.identity.clone() };
            let mut contexts = self.contexts.borrow_mut();
            contexts.insert(context, known);
            self.ids.set(self.ids.get().taken(|id| contexts.get(id).is_some()));
        }
        Ok((context, new))
    }

    /// Removes a stream's context.
    pub(super) fn forget(&self, position: &FilterState) {
        let apart = if position.quarantined { self.quarantine_vm() } else { None };
        let vm = apart.as_deref().unwrap_or(self);
        // An id from an earlier instance may belong to another stream by now.
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
        self.ticks.iter().filter_map(RefCell::take).for_each(|(_, task)| task.abort());
        self.stop_listening(|_| true);
        self.grpc.borrow_mut().clear();
        let had = self.instance.borrow().is_some();
        if !self.is_apart() {
            self.template.availability.leave(had);
        }
        self.template.kept.fetch_sub(self.spares.borrow().len(), Ordering::Relaxed);
        for root_context in (0..self.roots.count()).filter_map(|root| self.roots.first(root)) {
            let root = root_context.root();
            let _ = self.enter(&root_context, None, root, false, |store, exports| {
                if let Some(done) = &exports.done {
                    done.call(&mut *store, root)?;
                }
                exports.delete.as_ref().map_or(Ok(()), |f| f.call(store, root))
            });
        }
        if had && self.instance.borrow().is_some() {
            self.gauge().sub(observe::shard(), 1);
            self.template.gauges.memory.sub(observe::shard(), self.memory.get());
        }
    }
}
