//! A filter on a worker as its chains see it: a handle to a root context in a [`Vm`].

use std::{rc::Rc, sync::atomic::Ordering};

use tollgate_abi::{fast::phase, proxy_wasm::action};
use wasmtime::Store;

use super::{CallContext, InstanceUnavailable, RootContext, Vm};
use crate::{
    chain::{Action, Direction, Filter, HeadersPause, Stream, Variants},
    observe,
    wasm::{
        host::Host,
        instance::{Exports, OnHeaders, plugin::Plugin},
        scope::stream_ref::StreamRef,
    },
};

/// A filter on a worker.
pub struct WasmFilter {
    vm: Rc<Vm>,
    root: Rc<RootContext>,
}

impl WasmFilter {
    pub(in crate::wasm) fn new(vm: Rc<Vm>, root_context: Rc<RootContext>) -> WasmFilter {
        WasmFilter { vm, root: root_context }
    }

    /// The filter's plugin.
    pub fn plugin(&self) -> &Plugin {
        &self.root.plugin
    }

    /// The VM that it runs in.
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// Its variants, by name.
    pub fn own_variants(&self) -> impl Iterator<Item = (String, Rc<WasmFilter>)> {
        let variant = |root_context: &Rc<RootContext>| WasmFilter::new(self.vm.clone(), root_context.clone());
        self.root.variants.iter().map(move |(name, root)| (name.clone().into(), Rc::new(variant(root))))
    }

    /// The callbacks that it subscribes to, as bits of [`phase`].
    pub(super) fn wanted_phases(&self) -> u32 {
        self.root.phases.get()
    }

    /// Calls a callback that returns an action.
    pub(in crate::wasm) fn ask(
        &self,
        stream: &StreamRef,
        position: usize,
        call: impl FnOnce(&mut Store<Host>, &Exports, u32) -> wasmtime::Result<i32>,
    ) -> Action {
        self.ask_first(stream, position, |store, exports, context| {
            let context = context.create(store, exports)?;
            call(store, exports, context)
        })
    }

    /// Like [`ask`](Self::ask), for a callback that may be the first of its context and then has to create it.
    fn ask_first(
        &self,
        stream: &StreamRef,
        position: usize,
        call: impl FnOnce(&mut Store<Host>, &Exports, CallContext) -> wasmtime::Result<i32>,
    ) -> Action {
        let root_context = &*self.root;
        match self.vm.call(root_context, (stream, position), call) {
            Ok(action::CONTINUE) => Action::Continue,
            // The C++ SDK has more specific actions; all of them pause the message.
            Ok(_) => Action::Pause,
            Err(InstanceUnavailable) => {
                root_context.plugin.metrics.failed_streams.inc(observe::shard());
                stream.with_position(position, |p| p.gone = true);
                Action::Failed(root_context.settings.get().on_failure)
            }
        }
    }

    /// Makes the last calls for a stream that has ended, all within the time limit of one. `first` runs before the
    /// others, if `called`.
    pub(in crate::wasm) fn end(
        &self,
        stream: &StreamRef,
        position: usize,
        called: bool,
        first: impl FnOnce(&mut Store<Host>, &Exports, u32) -> wasmtime::Result<()>,
    ) {
        let phases = self.wanted_phases();
        if called || phases & (phase::LIFECYCLE | phase::LOG) != 0 {
            // A filter that only logs sees the stream here for the first time. If it fails, there is nothing left to
            // deny.
            let _ = self.vm.call(&self.root, (stream, position), |store, exports, context| {
                let context = context.create(store, exports)?;
                first(&mut *store, exports, context)?;
                const BOTH: u32 = phase::LIFECYCLE | phase::LOG;
                if phases & BOTH == BOTH
                    && let Some(joined) = &exports.trampoline
                {
                    return joined.end.call(store, context);
                }
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
        stream.with_position(position, |p| self.vm.forget(p));
    }
}

impl Filter for WasmFilter {
    fn name(&self) -> &str {
        &self.root.plugin.info.name
    }

    fn variants(&self) -> Variants<dyn Filter> {
        self.own_variants().map(|(name, filter)| (name, filter as Rc<dyn Filter>)).collect()
    }

    fn phases(&self) -> u32 {
        self.wanted_phases()
    }

    fn headers_pause(&self) -> HeadersPause {
        self.root.settings.get().headers_pause
    }

    fn changes_body(&self, direction: Direction) -> bool {
        let bit = [phase::REQUEST_BODY, phase::RESPONSE_BODY][direction as usize];
        self.wanted_phases() & bit != 0 && self.root.subscribes.get()
    }

    fn on_headers(&self, direction: Direction, stream: &Rc<Stream>, position: usize, end: bool) -> Action {
        self.ask_first(&StreamRef::Http(stream.clone()), position, |store, exports, context| {
            if direction == Direction::Request
                && let (Some(parent), Some(joined)) = (context.parent, &exports.trampoline)
            {
                let count = header_count(stream, direction);
                return joined.begin.call(store, (context.id, parent, count, end.into()));
            }
            let context = context.create(store, exports)?;
            let count = header_count(stream, direction);
            match &exports.headers[direction as usize] {
                Some(OnHeaders::WithEnd(f)) => f.call(store, (context, count, end.into())),
                Some(OnHeaders::Short(f)) => f.call(store, (context, count)),
                None => Ok(action::CONTINUE),
            }
        })
    }

    fn on_body(&self, direction: Direction, stream: &Rc<Stream>, position: usize, len: usize, end: bool) -> Action {
        self.ask(&StreamRef::Http(stream.clone()), position, |store, exports, context| {
            match &exports.body[direction as usize] {
                Some(f) => f.call(store, (context, u32::try_from(len).unwrap_or(u32::MAX), end.into())),
                None => Ok(action::CONTINUE),
            }
        })
    }

    fn on_trailers(&self, direction: Direction, stream: &Rc<Stream>, position: usize) -> Action {
        self.ask(&StreamRef::Http(stream.clone()), position, |store, exports, context| {
            let count = stream.state.borrow().trailers[direction as usize].as_ref().map_or(0, |t| t.len() as u32);
            match &exports.trailers[direction as usize] {
                Some(f) => f.call(store, (context, count)),
                None => Ok(action::CONTINUE),
            }
        })
    }

    fn on_stall(&self, direction: Direction) {
        let plugin = &self.root.plugin;
        if !plugin.stall_hint_logged.swap(true, Ordering::Relaxed) {
            let message = ["request", "response"][direction as usize];
            plugin.info.complain(format_args!(
                "it paused a {message} in its headers callback until the timeout, and received nothing of the body \
                 meanwhile; if it waits for the body, set `headers_pause: hold_headers` (logged once)"
            ));
        }
    }

    fn on_end(&self, stream: &Rc<Stream>, position: usize) {
        if self.wanted_phases() & (phase::LIFECYCLE | phase::LOG) == 0 {
            return self.vm.forget(&stream.state.borrow().filters[position]);
        }
        self.end(&StreamRef::Http(stream.clone()), position, false, |_, _, _| Ok(()));
    }
}

fn header_count(stream: &Stream, direction: Direction) -> u32 {
    let state = stream.state.borrow();
    match direction {
        Direction::Request => 4 + state.request.fields.len() as u32,
        Direction::Response => state.response.as_ref().map_or(0, |r| 1 + r.fields.len() as u32),
    }
}
