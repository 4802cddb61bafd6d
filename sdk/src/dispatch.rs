//! From the host's callbacks to a [`Filter`]. `export!` generates the callers; nothing else uses this.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};

use tollgate_abi::proxy_wasm::{action, buffer, log_level, stream};

use crate::{Body, ConfigError, Filter, Flow, Phases, Reply, Request, Response, Setup, config, sys};

/// Memory for data that the host returns. It is taken over as a `Vec` of exactly this size.
pub fn allocate(size: usize) -> *mut u8 {
    let mut memory = Vec::with_capacity(size);
    let start = memory.as_mut_ptr();
    std::mem::forget(memory);
    start
}

/// Prepares a module's instance: what a panic says goes to the proxy's log, which then only sees that the module has trapped.
pub fn start() {
    std::panic::set_hook(Box::new(|panic| sys::log(log_level::CRITICAL, &panic.to_string())));
}

/// The filters of a module's instance, one for each root context, and the state of their streams.
pub struct Dispatcher<F: Filter> {
    filters: RefCell<Vec<(u32, Rc<F>)>>,
    streams: RefCell<BTreeMap<u32, StreamState<F>>>,
}

struct StreamState<F: Filter> {
    root: u32,
    /// Taken out while a callback has it.
    state: Option<F::Stream>,
}

/// Which half of the stream waits: a bit in the token that is given to the host, above the filter's 32.
const RESPONSE: i64 = 1 << 32;

impl<F: Filter> Dispatcher<F> {
    /// A dispatcher without filters.
    #[allow(clippy::new_without_default)]
    pub const fn new() -> Self {
        Dispatcher { filters: RefCell::new(Vec::new()), streams: RefCell::new(BTreeMap::new()) }
    }

    pub fn context_create(&self, context: u32, parent: u32) {
        if parent != 0 {
            self.streams.borrow_mut().insert(context, StreamState { root: parent, state: Some(F::Stream::default()) });
        }
    }

    pub fn configure(&self, root: u32, size: usize) -> bool {
        let bytes = sys::buffer_get(buffer::PLUGIN_CONFIGURATION, 0, size);
        match config::read(&bytes).and_then(|config| F::configure(config, &mut Setup(()))) {
            Ok(filter) => {
                let mut filters = self.filters.borrow_mut();
                filters.retain(|(of, _)| *of != root);
                filters.push((root, Rc::new(filter)));
                sys::subscribe(Phases::bits::<F>());
                true
            }
            Err(errors) => {
                errors.iter().for_each(|ConfigError { path, message, .. }| sys::config_error(path, message));
                false
            }
        }
    }

    pub fn tick(&self, root: u32) {
        if let Some(filter) = self.filter(root) {
            filter.on_tick();
        }
    }

    pub fn request_headers(&self, context: u32, end: bool) -> i32 {
        let request = Request { end_of_stream: end };
        self.run(context, 0, |filter, state| filter.on_request(&request, state))
    }

    pub fn request_body(&self, context: u32, len: usize, end: bool) -> i32 {
        let body = Body { buffer: buffer::HTTP_REQUEST_BODY, len, end };
        self.run(context, 0, |filter, state| filter.on_request_body(&body, &Request { end_of_stream: end }, state))
    }

    pub fn response_headers(&self, context: u32, end: bool) -> i32 {
        let response = Response { end_of_stream: end };
        self.run(context, RESPONSE, |filter, state| filter.on_response(&response, state))
    }

    pub fn response_body(&self, context: u32, len: usize, end: bool) -> i32 {
        let body = Body { buffer: buffer::HTTP_RESPONSE_BODY, len, end };
        self.run(context, RESPONSE, |filter, state| {
            filter.on_response_body(&body, &Response { end_of_stream: end }, state)
        })
    }

    pub fn timer(&self, context: u32, token: i64) {
        let half = token & RESPONSE;
        let request = Request { end_of_stream: false };
        let action = self.run(context, half, |filter, state| filter.on_timer(token as u32, &request, state));
        if action == action::CONTINUE {
            sys::continue_stream(if half == 0 { stream::HTTP_REQUEST } else { stream::HTTP_RESPONSE });
        }
    }

    pub fn log(&self, context: u32) {
        let (request, response) = (Request { end_of_stream: true }, Response { end_of_stream: true });
        self.run(context, 0, |filter, state| {
            filter.on_end(&request, &response, state);
            Flow::Continue
        });
    }

    pub fn delete(&self, context: u32) {
        self.streams.borrow_mut().remove(&context);
    }

    fn filter(&self, root: u32) -> Option<Rc<F>> {
        let filters = self.filters.borrow();
        let found = filters.iter().find(|(of, _)| *of == root).or(filters.first());
        found.map(|(_, filter)| filter.clone())
    }

    /// Runs a callback with the stream's state, and does what it answers.
    fn run(&self, context: u32, half: i64, callback: impl FnOnce(&F, &mut F::Stream) -> Flow) -> i32 {
        // No borrow is held over the callback: it may log, and a native test host may look.
        let (root, mut state) = match self.streams.borrow_mut().get_mut(&context) {
            Some(stream) => (stream.root, stream.state.take().unwrap_or_default()),
            None => (0, F::Stream::default()),
        };
        let Some(filter) = self.filter(root) else { return action::CONTINUE };
        let flow = callback(&filter, &mut state);
        if size_of::<F::Stream>() > 0
            && let Some(stream) = self.streams.borrow_mut().get_mut(&context)
        {
            stream.state = Some(state);
        }
        match flow {
            Flow::Continue => action::CONTINUE,
            Flow::Pause => action::PAUSE,
            Flow::Wait(time, token) => {
                sys::timer_set(micros(time), i64::from(token) | half);
                action::PAUSE
            }
            Flow::Respond(reply) => {
                let Reply { status, headers, body, details } = *reply;
                sys::send_local_response(status, &details, &headers, &body);
                action::PAUSE
            }
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX).min(i64::MAX as u64)
}
