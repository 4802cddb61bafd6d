//! Dispatches the host's callbacks to a [`TcpFilter`]. The functions that `export_tcp!` generates are its only callers.

use std::{cell::RefCell, rc::Rc};

use tollgate_abi::{
    fast::phase,
    proxy_wasm::{action, buffer, peer, stream},
};

use super::{ClosedBy, Connection, Data, TcpFilter, TcpFlow, TcpPhases};
use crate::{
    ConfigError, Queue, Setup, config,
    sys::{self, Due, types::micros},
    table::{Table, borrow},
};

/// The side that sent the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Downstream,
    Upstream,
}

impl Side {
    const fn buffer(self) -> i32 {
        if matches!(self, Side::Downstream) { buffer::DOWNSTREAM_DATA } else { buffer::UPSTREAM_DATA }
    }

    const fn phase(self) -> TcpPhases {
        if matches!(self, Side::Downstream) { TcpPhases::DOWNSTREAM_DATA } else { TcpPhases::UPSTREAM_DATA }
    }

    const fn stream(self) -> i32 {
        if matches!(self, Side::Downstream) { stream::DOWNSTREAM } else { stream::UPSTREAM }
    }

    /// Returns the bit in a timer's token, above the filter's 32.
    const fn bit(self) -> i64 {
        if matches!(self, Side::Downstream) { 0 } else { 1 << 32 }
    }
}

/// The filters of an instance, one per root context, and the state of their connections.
pub struct TcpDispatcher<F: TcpFilter> {
    filters: RefCell<Vec<(u32, Rc<F>)>>,
    streams: RefCell<Table<StreamState<F>>>,
}

struct StreamState<F: TcpFilter> {
    root: u32,
    /// `None` while a callback uses it.
    state: Option<F::Stream>,
    /// The filter holds the connection until it lets bytes pass.
    undecided: bool,
}

impl<F: TcpFilter> TcpDispatcher<F> {
    /// Whether undecided connections must be tracked.
    const DECIDES: bool = F::PHASES.has(TcpPhases::CONNECTION) && F::PHASES.has(TcpPhases::DOWNSTREAM_DATA);

    /// Creates a dispatcher without filters.
    #[allow(clippy::new_without_default)]
    pub const fn new() -> Self {
        TcpDispatcher { filters: RefCell::new(Vec::new()), streams: RefCell::new(Table::new()) }
    }

    pub fn context_create(&self, context: u32, parent: u32) {
        if parent != 0 {
            let state = StreamState { root: parent, state: Some(F::Stream::default()), undecided: false };
            borrow(&self.streams).insert(context, state);
        }
    }

    pub fn configure(&self, root: u32, size: usize) -> bool {
        sys::enter(root);
        let bytes = sys::buffer_get(buffer::PLUGIN_CONFIGURATION, 0, size);
        match config::read(&bytes).and_then(|config| F::configure(config, &mut Setup(()))) {
            Ok(filter) => {
                let mut filters = borrow(&self.filters);
                match filters.iter_mut().find(|(of, _)| *of == root) {
                    Some((_, old)) => *old = Rc::new(filter),
                    None => filters.push((root, Rc::new(filter))),
                }
                // As for HTTP filters, the host announces a connection only if state is kept for it.
                let announced = size_of::<F::Stream>() > 0 || Self::DECIDES || filters.len() > 1;
                sys::subscribe(F::PHASES.0 | if announced { phase::LIFECYCLE } else { 0 });
                true
            }
            Err(errors) => {
                errors.iter().for_each(|ConfigError { path, message, .. }| sys::config_error(path, message));
                false
            }
        }
    }

    pub fn tick(&self, root: u32) {
        sys::tick(root, |due| match due {
            Due::Tick(root) => {
                if let Some(filter) = self.filter(root) {
                    filter.on_tick();
                }
            }
            Due::Timer(context, token) => self.timer(context, token),
        });
    }

    pub fn queue_ready(&self, root: u32, queue: u32) {
        sys::enter(root);
        let Some(filter) = self.filter(root) else { return };
        let queue = Queue(queue);
        while let Some(message) = queue.pop() {
            filter.on_queue(queue, message);
        }
    }

    pub fn new_connection(&self, context: u32) -> i32 {
        if !F::PHASES.has(TcpPhases::CONNECTION) {
            return action::CONTINUE;
        }
        let flow = self.run(context, |filter, state| filter.on_connection(&Connection(()), state));
        if matches!(flow, TcpFlow::Pause | TcpFlow::Wait(..))
            && let Some(stream) = borrow(&self.streams).get_mut(context)
        {
            stream.undecided = true;
        }
        answer(flow, Side::Downstream)
    }

    pub fn data(&self, context: u32, side: Side, len: usize, end: bool) -> i32 {
        if !F::PHASES.has(side.phase()) {
            return action::CONTINUE;
        }
        let data = Data { buffer: side.buffer(), len, end };
        let flow = self.run(context, |filter, state| match side {
            Side::Downstream => filter.on_downstream_data(&data, &Connection(()), state),
            Side::Upstream => filter.on_upstream_data(&data, &Connection(()), state),
        });
        if flow == TcpFlow::Continue && side == Side::Downstream && self.decide(context) {
            sys::continue_stream(side.stream());
        }
        answer(flow, side)
    }

    /// Marks the connection as decided. Returns whether the filter held it until now.
    fn decide(&self, context: u32) -> bool {
        Self::DECIDES && borrow(&self.streams).get_mut(context).is_some_and(|s| std::mem::take(&mut s.undecided))
    }

    pub fn timer(&self, context: u32, token: i64) {
        let side = if token & Side::Upstream.bit() == 0 { Side::Downstream } else { Side::Upstream };
        let flow = self.run(context, |filter, state| filter.on_timer(token as u32, &Connection(()), state));
        if answer(flow, side) == action::CONTINUE {
            if side == Side::Downstream {
                self.decide(context);
            }
            sys::continue_stream(side.stream());
        }
    }

    pub fn close(&self, context: u32, by: i32) {
        if F::PHASES.has(TcpPhases::CLOSE) {
            let by = if by == peer::REMOTE { ClosedBy::Client } else { ClosedBy::Proxy };
            self.run(context, |filter, state| {
                filter.on_close(by, &Connection(()), state);
                TcpFlow::Continue
            });
        }
    }

    /// Handles the end of a connection, or the removal of a filter.
    pub fn delete(&self, context: u32) {
        sys::leave(context);
        // The connection's state is dropped when nothing is borrowed any more.
        let stream = borrow(&self.streams).remove(context);
        if stream.is_none() {
            let filter = {
                let mut filters = borrow(&self.filters);
                filters.iter().position(|(of, _)| *of == context).map(|at| filters.remove(at))
            };
            drop(filter);
        }
    }

    /// Returns the filter of a root context, or the first one.
    fn filter(&self, root: u32) -> Option<Rc<F>> {
        let filters = borrow(&self.filters);
        let found = filters.iter().find(|(of, _)| *of == root).or(filters.first());
        found.map(|(_, filter)| filter.clone())
    }

    /// Runs a callback with the connection's state.
    fn run(&self, context: u32, callback: impl FnOnce(&F, &mut F::Stream) -> TcpFlow) -> TcpFlow {
        sys::enter(context);
        // No borrow is held across the callback, as for HTTP filters.
        let (root, mut state) = match borrow(&self.streams).get_mut(context) {
            Some(stream) => (stream.root, stream.state.take().unwrap_or_default()),
            None => (0, F::Stream::default()),
        };
        let Some(filter) = self.filter(root) else { return TcpFlow::Continue };
        let flow = callback(&filter, &mut state);
        if size_of::<F::Stream>() > 0
            && let Some(stream) = borrow(&self.streams).get_mut(context)
        {
            stream.state = Some(state);
        }
        flow
    }
}

/// Applies a callback's result and returns the host's action.
fn answer(flow: TcpFlow, side: Side) -> i32 {
    match flow {
        TcpFlow::Continue => action::CONTINUE,
        TcpFlow::Pause => action::PAUSE,
        TcpFlow::Wait(time, token) => {
            sys::timer_set(micros(time), i64::from(token) | side.bit());
            action::PAUSE
        }
        TcpFlow::Close => {
            sys::close_stream(stream::DOWNSTREAM);
            action::PAUSE
        }
    }
}
