//! A filter on a worker: an instance with its streams, and what happens when it fails.
//!
//! Guests are called synchronously and never re-entered; what they ask for (callouts, timers) is done once they have
//! returned. An instance that has trapped is never called again: it is dropped, the streams inside it get what the filter's
//! `on_failure` says, and the control thread is asked for another one.

use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
    sync::{Arc, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::sync::mpsc::unbounded_channel;
use tokio::task::AbortHandle;
use tollgate_abi::{fast::phase, proxy_wasm::action};
use wasmtime::Store;

use super::{
    callout, clock,
    current::{Contexts, Scope},
    grpc::{self, Event},
    host::{CallResponse, Host},
    instance::{Exports, Instance, OnHeaders, describe},
    plugin::{Plugin, ROOT, TrapKind},
    queue::Note,
    subject::Subject,
};
use crate::{
    chain::{Action, Direction, Filter, HeadersPause, OnFailure, Stream},
    http::body::Body,
    observe,
    upstream::Pools,
};

/// One call in this many is timed.
const TIMED: u64 = 16;

/// An instance that lives for this long without failing has recovered.
const STABLE: Duration = Duration::from_secs(30);

/// Asks the control thread for another instance.
pub type Rebuild = Rc<dyn Fn(&Arc<Plugin>, Wanted)>;

/// What another instance is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The worker has none; it wants one after this time.
    Instance(Duration),
    /// The worker has taken the spare one.
    Spare,
}

/// What a VM needs of its worker.
#[derive(Clone)]
pub struct Site {
    /// For callouts.
    pub upstream: Pools<Body>,
    /// For another instance after a trap.
    pub rebuild: Rebuild,
}

/// A filter on a worker.
pub struct Vm {
    me: Weak<Vm>,
    plugin: Arc<Plugin>,
    half_call: (Duration, u64),
    site: Site,
    /// None while the control thread makes another one.
    instance: RefCell<Option<Instance>>,
    /// Counts the instances, so that no stream ever meets one that it has not begun in.
    incarnation: Cell<u32>,
    born: Cell<Instant>,
    phases: Cell<u32>,
    subscribes: Cell<bool>,
    contexts: Rc<Contexts>,
    next_context: Cell<u32>,
    calls: Cell<u64>,
    ticking: RefCell<Option<(Duration, AbortHandle)>>,
    listening: RefCell<Option<(Note, AbortHandle)>>,
    grpc: RefCell<grpc::Calls>,
    memory: Cell<i64>,
}

/// The instance is not there, or has failed just now.
struct Failed;

impl Vm {
    /// A filter with a ready instance.
    pub fn new(plugin: Arc<Plugin>, instance: Instance, site: Site) -> Rc<Vm> {
        let vm = Rc::new_cyclic(|me| Vm {
            me: me.clone(),
            half_call: plugin.half_call(),
            plugin,
            site,
            instance: RefCell::new(None),
            incarnation: Cell::new(0),
            born: Cell::new(Instant::now()),
            phases: Cell::new(0),
            subscribes: Cell::new(false),
            contexts: Rc::default(),
            next_context: Cell::new(ROOT + 1),
            calls: Cell::new(0),
            ticking: RefCell::new(None),
            listening: RefCell::new(None),
            grpc: RefCell::default(),
            memory: Cell::new(0),
        });
        vm.adopt(instance);
        vm
    }

    /// The filter.
    pub fn plugin(&self) -> &Arc<Plugin> {
        &self.plugin
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
    pub fn adopt(&self, instance: Instance) {
        self.phases.set(instance.phases());
        self.subscribes.set(instance.store.data().subscribes);
        self.incarnation.set(self.incarnation.get().wrapping_add(1));
        self.born.set(Instant::now());
        *self.instance.borrow_mut() = Some(instance);
        self.plugin.figures.instances.add(observe::shard(), 1);
        // What it asked for while it was configured.
        self.settle();
    }

    /// Calls the guest, on behalf of a stream or of none. `hears`: whoever calls denies the stream if this fails.
    fn enter<T>(
        &self,
        stream: Option<(&Subject, usize)>,
        context: u32,
        hears: bool,
        call: impl FnOnce(&mut Store<Host>, &Exports) -> wasmtime::Result<T>,
    ) -> Result<T, Failed> {
        // A guest under way on this thread means that something inside a host function has ended a stream; it must wait.
        let Ok(mut slot) = self.instance.try_borrow_mut() else {
            debug_assert!(false, "guests are not re-entered");
            return Err(Failed);
        };
        let Some(Instance { store, exports }) = slot.as_mut() else { return Err(Failed) };
        let calls = self.calls.get() + 1;
        self.calls.set(calls);
        self.plugin.figures.calls.inc(observe::shard());
        let timed = calls.is_multiple_of(TIMED).then(Instant::now);
        clock::start_ticks(store, self.half_call.0, self.half_call.1);
        store.data_mut().effective = context;
        let result = {
            let _scope = Scope::enter(stream.map(|(s, position)| (s.clone(), position)), &self.contexts);
            call(store, exports)
        };
        if let Some(start) = timed {
            self.plugin.figures.time.observe(observe::shard(), start.elapsed().as_nanos() as u64);
            self.account_memory(store);
        }
        match result {
            Ok(value) => {
                let host = store.data();
                let unsettled = !host.calls.is_empty()
                    || !host.timers.is_empty()
                    || !host.grpc_wishes.is_empty()
                    || !host.reads.is_empty()
                    || self.tick_differs(host.tick);
                drop(slot);
                if unsettled {
                    self.settle();
                }
                Ok(value)
            }
            Err(error) => {
                let denied = store.data().limiter.denied;
                let dead = slot.take();
                drop(slot);
                self.fail(&error, denied, stream.map(|(stream, _)| stream).filter(|_| hears));
                drop(dead);
                Err(Failed)
            }
        }
    }

    /// Does what the guest has asked for.
    fn settle(&self) {
        let (calls, timers, wishes, tick, reads) = {
            let mut slot = self.instance.borrow_mut();
            let Some(instance) = slot.as_mut() else { return };
            let host = instance.store.data_mut();
            (
                std::mem::take(&mut host.calls),
                std::mem::take(&mut host.timers),
                std::mem::take(&mut host.grpc_wishes),
                host.tick,
                std::mem::take(&mut host.reads),
            )
        };
        for call in calls {
            tokio::task::spawn_local(callout::run(
                self.me.clone(),
                self.site.upstream.clone(),
                call,
                self.incarnation.get(),
            ));
        }
        for wish in wishes {
            let calls = &mut self.grpc.borrow_mut();
            grpc::fulfil(calls, wish, &self.me, &self.site.upstream, self.incarnation.get());
        }
        for timer in timers {
            let stream = self.contexts.borrow().get(&timer.context).and_then(|(s, p)| Some((s.upgrade()?, *p)));
            let Some((stream, position)) = stream else { continue };
            let (me, incarnation) = (self.me.clone(), self.incarnation.get());
            let task = tokio::task::spawn_local(async move {
                tokio::time::sleep(timer.after).await;
                if let Some(vm) = me.upgrade() {
                    vm.on_timer(timer.context, timer.token, incarnation);
                }
            });
            stream.with_position(position, |p| p.timers.push(task.abort_handle()));
        }
        if self.tick_differs(tick) {
            self.set_tick(tick);
        }
        for queue in reads {
            let known = self.listening.borrow().as_ref().map(|(note, _)| note.clone());
            self.plugin.world().shared.queues.read(queue, known.unwrap_or_else(|| self.listen()));
        }
        if let Some(Instance { store, .. }) = self.instance.borrow().as_ref() {
            self.account_memory(store);
        }
    }

    fn account_memory(&self, store: &Store<Host>) {
        let now = memory_size(store);
        self.plugin.figures.memory.add(observe::shard(), now - self.memory.replace(now));
    }

    /// Tells the guest of messages in its queues, as they come, for as long as there is this instance.
    fn listen(&self) -> Note {
        let (note, mut inbox) = unbounded_channel();
        let me = self.me.clone();
        let task = tokio::task::spawn_local(async move {
            while let Some(queue) = inbox.recv().await {
                let Some(vm) = me.upgrade() else { return };
                let _ = vm.enter(None, ROOT, false, |store, exports| {
                    exports.queue_ready.as_ref().map_or(Ok(()), |f| f.call(store, (ROOT, queue)))
                });
            }
        });
        *self.listening.borrow_mut() = Some((note.clone(), task.abort_handle()));
        note
    }

    /// Ends what is done for the instance by itself.
    fn silence(&self) {
        self.set_tick(None);
        self.grpc.borrow_mut().clear();
        if let Some((_, listening)) = self.listening.take() {
            listening.abort();
        }
    }

    fn tick_differs(&self, tick: Option<Duration>) -> bool {
        self.ticking.borrow().as_ref().map(|(period, _)| *period) != tick
    }

    fn set_tick(&self, tick: Option<Duration>) {
        let me = self.me.clone();
        let new = tick.map(|period| {
            let task = tokio::task::spawn_local(async move {
                loop {
                    tokio::time::sleep(period).await;
                    let Some(vm) = me.upgrade() else { return };
                    vm.on_tick();
                }
            });
            (period, task.abort_handle())
        });
        if let Some((_, old)) = self.ticking.replace(new) {
            old.abort();
        }
    }

    fn on_tick(&self) {
        let _ = self
            .enter(None, ROOT, false, |store, exports| exports.tick.as_ref().map_or(Ok(()), |f| f.call(store, ROOT)));
    }

    fn on_timer(&self, context: u32, token: i64, incarnation: u32) {
        let found = self.contexts.borrow().get(&context).and_then(|(s, p)| Some((s.upgrade()?, *p)));
        let Some((stream, position)) = found else { return };
        if incarnation == self.incarnation.get() {
            let _ = self.enter(Some((&stream, position)), context, false, |store, exports| {
                exports.timer.as_ref().map_or(Ok(()), |f| f.call(store, (context, token)))
            });
        }
    }

    /// Hands the answer to a call with `sent` bytes over.
    pub(super) fn on_call_response(&self, id: u32, sent: usize, response: CallResponse, incarnation: u32) {
        if incarnation != self.incarnation.get() {
            return;
        }
        let _ = self.enter(None, ROOT, false, |store, exports| {
            let (calls, bytes) = &mut store.data_mut().calls_under_way;
            (*calls, *bytes) = (calls.saturating_sub(1), bytes.saturating_sub(sent));
            let Some(f) = &exports.http_call_response else { return Ok(()) };
            let headers = response.head.as_ref().map_or(0, |h| 1 + h.fields.len() as u32);
            let (body, trailers) = (response.body.len() as u32, response.trailers.len() as u32);
            store.data_mut().call_response = Some(response);
            let result = f.call(&mut *store, (ROOT, id, headers, body, trailers));
            store.data_mut().call_response = None;
            result
        });
    }

    /// Tells the guest what a gRPC call has brought. Whether it may bring more.
    pub(super) fn on_grpc_event(&self, id: u32, event: Event, incarnation: u32) -> bool {
        if incarnation != self.incarnation.get() {
            return false;
        }
        let told = self.enter(None, ROOT, false, |store, exports| {
            let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            let (f, much) = match &event {
                Event::Initial(fields) => (&exports.grpc_initial, count(fields.len())),
                Event::Message(message) => (&exports.grpc_message, count(message.len())),
                Event::Trailing(fields) => (&exports.grpc_trailing, count(fields.len())),
                Event::Closed(status, _) => (&exports.grpc_close, *status),
            };
            let host = store.data_mut();
            // It has cancelled the call, and must not hear of it again.
            if !host.grpc_calls.contains_key(&id) {
                return Ok(());
            }
            if matches!(event, Event::Closed(..)) {
                host.grpc_calls.remove(&id);
            }
            let Some(f) = f else { return Ok(()) };
            host.grpc_event = Some(event);
            let result = f.call(&mut *store, (ROOT, id, much));
            store.data_mut().grpc_event = None;
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

    /// The instance has failed and is gone.
    fn fail(&self, error: &wasmtime::Error, memory_denied: bool, cause: Option<&Subject>) {
        let (mut kind, text) = describe(error);
        if memory_denied && kind == TrapKind::Trap {
            kind = TrapKind::Memory;
        }
        let plugin = &self.plugin;
        let figures = &plugin.figures;
        let shard = observe::shard();
        figures.traps[kind as usize].inc(shard);
        figures.instances.sub(shard, 1);
        figures.memory.sub(shard, self.memory.replace(0));
        let message = format!("{}: {text}", kind.name());
        tracing::error!(target: "tollgate::filter", filter = plugin.identity.name, "the filter failed: {message}");
        plugin.last_error.store(Some(Arc::new(message)));
        self.silence();

        let inside: Vec<_> = self.contexts.borrow_mut().drain().collect();
        for (_, (stream, position)) in inside {
            let Some(stream) = stream.upgrade() else { continue };
            // Whoever has called for this stream hears of it at once.
            let is_cause = cause.is_some_and(|cause| cause.is(&stream));
            let denied = plugin.on_failure == OnFailure::Deny && !is_cause;
            let held = stream.is_held_by(position);
            stream.with_position(position, |p| {
                p.gone = true;
                p.denies = denied && !held;
            });
            if !is_cause {
                figures.failed_streams.inc(shard);
            }
            if held && denied {
                stream.deny();
            }
            stream.wake();
        }

        if self.born.get().elapsed() > STABLE {
            plugin.crashes.store(0, Ordering::Relaxed);
        }
        let crashes = plugin.crashes.fetch_add(1, Ordering::Relaxed);
        let wait = backoff(crashes);
        match plugin.spare.lock().unwrap_or_else(PoisonError::into_inner).take().filter(|_| wait.is_zero()) {
            Some(spare) => {
                self.adopt(spare);
                figures.rebuilds.inc(shard);
                (self.site.rebuild)(plugin, Wanted::Spare);
            }
            None => (self.site.rebuild)(plugin, Wanted::Instance(wait)),
        }
    }

    /// The callbacks that it wants, as bits of [`phase`].
    pub(super) fn wanted_phases(&self) -> u32 {
        self.phases.get()
    }

    /// The stream's context in this filter, made if there is none. `Err`: the filter cannot take part in the stream.
    fn context(&self, stream: &Subject, position: usize) -> Result<u32, Failed> {
        let incarnation = self.incarnation.get();
        let known = stream.with_position(position, |p| match p.context {
            _ if p.gone => Err(Failed),
            context if context == 0 || p.incarnation == incarnation => Ok(context),
            _ => Err(Failed),
        })?;
        if known != 0 {
            return Ok(known);
        }
        let context = self.next_context.get();
        // Ids are not used twice, and 0 and 1 are taken; after four billion streams they begin again.
        self.next_context.set(context.checked_add(1).unwrap_or(ROOT + 1));
        stream.with_position(position, |p| (p.context, p.incarnation) = (context, incarnation));
        self.contexts.borrow_mut().insert(context, (stream.downgrade(), position));
        if self.phases.get() & phase::LIFECYCLE != 0 {
            self.enter(Some((stream, position)), context, true, |store, exports| {
                exports.context_create.as_ref().map_or(Ok(()), |f| f.call(store, (context, ROOT)))
            })?;
        }
        Ok(context)
    }

    /// Calls a callback that answers with an action.
    pub(super) fn ask(
        &self,
        stream: &Subject,
        position: usize,
        call: impl FnOnce(&mut Store<Host>, &Exports, u32) -> wasmtime::Result<i32>,
    ) -> Action {
        let answer = self.context(stream, position).and_then(|context| {
            self.enter(Some((stream, position)), context, true, |store, exports| call(store, exports, context))
        });
        match answer {
            Ok(action::CONTINUE) => Action::Continue,
            // The C++ SDK has finer answers; all of them hold the message.
            Ok(_) => Action::Pause,
            Err(Failed) => {
                self.plugin.figures.failed_streams.inc(observe::shard());
                stream.with_position(position, |p| p.gone = true);
                Action::Failed(self.plugin.on_failure)
            }
        }
    }

    /// The stream is over: makes the last calls for it, all in the time of one. `first`: what comes before the others, if
    /// `called`.
    pub(super) fn end(
        &self,
        stream: &Subject,
        position: usize,
        called: bool,
        first: impl FnOnce(&mut Store<Host>, &Exports, u32) -> wasmtime::Result<()>,
    ) {
        let phases = self.phases.get();
        // A filter that only logs meets the stream here for the first time.
        let Ok(context) = self.context(stream, position) else { return };
        if called || phases & (phase::LIFECYCLE | phase::LOG) != 0 {
            // There is nothing left to be denied.
            let _ = self.enter(Some((stream, position)), context, true, |store, exports| {
                first(&mut *store, exports, context)?;
                if phases & phase::LIFECYCLE != 0
                    && let Some(done) = &exports.done
                {
                    done.call(&mut *store, context)?;
                }
                if phases & phase::LOG != 0
                    && let Some(log) = &exports.log
                {
                    log.call(&mut *store, context)?;
                }
                if phases & phase::LIFECYCLE != 0
                    && let Some(delete) = &exports.delete
                {
                    delete.call(&mut *store, context)?;
                }
                Ok(())
            });
        }
        self.contexts.borrow_mut().remove(&context);
    }
}

/// How long to wait with another instance after this many failures in a row: nothing, then from 100 ms doubling to a minute.
fn backoff(crashes: u32) -> Duration {
    match crashes {
        0 => Duration::ZERO,
        n => Duration::from_millis(100 << (n - 1).min(10)).min(Duration::from_secs(60)),
    }
}

impl Filter for Vm {
    fn name(&self) -> &str {
        &self.plugin.identity.name
    }

    fn phases(&self) -> u32 {
        self.phases.get()
    }

    fn headers_pause(&self) -> HeadersPause {
        self.plugin.headers_pause
    }

    fn changes_body(&self, direction: Direction) -> bool {
        let bit = [phase::REQUEST_BODY, phase::RESPONSE_BODY][direction as usize];
        self.phases.get() & bit != 0 && self.subscribes.get()
    }

    fn on_headers(&self, direction: Direction, stream: &Rc<Stream>, position: usize, end: bool) -> Action {
        self.ask(&Subject::Http(stream.clone()), position, |store, exports, context| {
            let count = header_count(stream, direction);
            match &exports.headers[direction as usize] {
                Some(OnHeaders::WithEnd(f)) => f.call(store, (context, count, end.into())),
                Some(OnHeaders::Short(f)) => f.call(store, (context, count)),
                None => Ok(action::CONTINUE),
            }
        })
    }

    fn on_body(&self, direction: Direction, stream: &Rc<Stream>, position: usize, len: usize, end: bool) -> Action {
        self.ask(&Subject::Http(stream.clone()), position, |store, exports, context| {
            match &exports.body[direction as usize] {
                Some(f) => f.call(store, (context, u32::try_from(len).unwrap_or(u32::MAX), end.into())),
                None => Ok(action::CONTINUE),
            }
        })
    }

    fn on_trailers(&self, direction: Direction, stream: &Rc<Stream>, position: usize) -> Action {
        self.ask(&Subject::Http(stream.clone()), position, |store, exports, context| {
            let count = stream.state.borrow().trailers[direction as usize].as_ref().map_or(0, |t| t.len() as u32);
            match &exports.trailers[direction as usize] {
                Some(f) => f.call(store, (context, count)),
                None => Ok(action::CONTINUE),
            }
        })
    }

    fn on_end(&self, stream: &Rc<Stream>, position: usize) {
        self.end(&Subject::Http(stream.clone()), position, false, |_, _, _| Ok(()));
    }
}

fn memory_size(store: &Store<Host>) -> i64 {
    store.data().memory.map_or(0, |memory| memory.data_size(store) as i64)
}

fn header_count(stream: &Stream, direction: Direction) -> u32 {
    let state = stream.state.borrow();
    match direction {
        Direction::Request => 4 + state.request.fields.len() as u32,
        Direction::Response => state.response.as_ref().map_or(0, |r| 1 + r.fields.len() as u32),
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.silence();
        let had = self.instance.borrow().is_some();
        let _ = self.enter(None, ROOT, false, |store, exports| {
            if let Some(done) = &exports.done {
                done.call(&mut *store, ROOT)?;
            }
            exports.delete.as_ref().map_or(Ok(()), |f| f.call(store, ROOT))
        });
        let figures = &self.plugin.figures;
        if had && self.instance.borrow().is_some() {
            figures.instances.sub(observe::shard(), 1);
            figures.memory.sub(observe::shard(), self.memory.get());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crashes_in_a_row_wait_longer_and_longer() {
        let waits: Vec<_> = (0..5).map(|n| backoff(n).as_millis()).collect();
        assert_eq!(waits, [0, 100, 200, 400, 800]);
        assert_eq!(backoff(100), Duration::from_secs(60));
    }
}
