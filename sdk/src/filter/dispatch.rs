//! Dispatches the host's callbacks to a [`Filter`]. The functions that `export!` generates are its only callers.

use std::{cell::RefCell, rc::Rc};

use tollgate_abi::{
    fast::phase,
    proxy_wasm::{action, buffer, log_level},
};

use super::asks::{Answered, Ask, Asks};
pub use crate::sys::types::Half;
use crate::{
    Body, ConfigError, Filter, Flow, GrpcError, Phases, Queue, Request, Response, Setup, config,
    futures::executor::{self, grpc::News},
    sys::{self, Due, types::micros},
    table::{Roots, Table, borrow},
};

/// Allocates memory for data that the host returns. Ownership is taken back as a `Box` of exactly this size; a `Vec`
/// may have a larger capacity.
pub fn allocate(size: usize) -> *mut u8 {
    Box::into_raw(Box::<[u8]>::new_uninit_slice(size)).cast()
}

/// Initializes an instance of the module: panic messages go to the proxy's log, since the proxy itself only sees a
/// trap.
pub fn start() {
    std::panic::set_hook(Box::new(|panic| {
        // Same format as the standard library's, without its formatting code, which many filters do not need.
        let mut text = String::from("panicked");
        if let Some(place) = panic.location() {
            text.push_str(" at ");
            text.push_str(place.file());
            [place.line(), place.column()].iter().for_each(|number| {
                text.push(':');
                push_number(&mut text, *number);
            });
        }
        text.push_str(":\n");
        text.push_str(panic.payload_as_str().unwrap_or("(no message)"));
        sys::log(log_level::CRITICAL, &text);
    }));
    start_logging();
}

/// Connects the enabled logging crates to the proxy's log.
pub(crate) fn start_logging() {
    #[cfg(feature = "log")]
    crate::log::log_crate::install();
    #[cfg(feature = "tracing")]
    crate::log::tracing_crate::install();
}

fn push_number(text: &mut String, number: u32) {
    if number >= 10 {
        push_number(text, number / 10);
    }
    text.push(char::from(b'0' + (number % 10) as u8));
}

/// An event of a stream, for an [`AsyncFilter`](crate::AsyncFilter).
#[derive(Debug)]
pub enum Event {
    /// Headers were received; `end`: no body follows.
    Head { context: u32, half: Half, end: bool },
    /// A part of a body was received.
    Body { half: Half, len: usize, end: bool },
}

/// An event that belongs to no stream, for an [`AsyncFilter`](crate::AsyncFilter).
#[derive(Debug)]
pub enum RootEvent {
    /// The tick is due.
    Tick,
    /// A queue has a message.
    Message(Queue, Vec<u8>),
}

/// The filters of an instance, one per root context, and the state of their streams.
pub struct Dispatcher<F: Filter> {
    filters: RefCell<Roots<F>>,
    streams: RefCell<Table<StreamState<F>>>,
    asks: Asks,
}

struct StreamState<F: Filter> {
    root: u32,
    /// `None` while a callback uses it.
    state: Option<F::Stream>,
}

impl<F: Filter> Dispatcher<F> {
    /// Whether answers are delivered to the filter's own callbacks.
    const ASKS: bool = !F::ASYNC && F::PHASES.has(Phases::ANSWERS);

    /// Creates a dispatcher without filters.
    #[allow(clippy::new_without_default)]
    pub const fn new() -> Self {
        Dispatcher { filters: RefCell::new(Roots::new()), streams: RefCell::new(Table::new()), asks: Asks::new() }
    }

    pub fn context_create(&self, context: u32, parent: u32) {
        if parent != 0 {
            let state = StreamState { root: parent, state: Some(F::Stream::default()) };
            borrow(&self.streams).insert(context, state);
        }
    }

    pub fn configure(&self, root: u32, size: usize) -> bool {
        sys::enter(root);
        let bytes = sys::buffer_get(buffer::PLUGIN_CONFIGURATION, 0, size);
        match config::read(&bytes).and_then(|config| F::configure(config, &mut Setup(()))) {
            Ok(filter) => {
                let mut filters = borrow(&self.filters);
                filters.set(root, Rc::new(filter));
                // The host announces a stream if the filter keeps state for it (including pending calls), or if several
                // filters share the instance. Unannounced streams belong to the first root; a single filter thus saves
                // three calls per stream.
                let announced = size_of::<F::Stream>() > 0 || !filters.is_alone() || Self::ASKS;
                sys::subscribe(F::PHASES.bits() | if announced { phase::LIFECYCLE } else { 0 });
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
            Due::Tick(root) => self.root_tick(root),
            Due::Timer(context, token) => self.timer(context, token),
        });
    }

    fn root_tick(&self, root: u32) {
        let Some(filter) = self.filter(root) else { return };
        if F::ASYNC {
            self.drive_root(root, &filter, RootEvent::Tick);
        } else {
            filter.on_tick();
        }
    }

    pub fn queue_ready(&self, root: u32, queue: u32) {
        sys::enter(root);
        let Some(filter) = self.filter(root) else { return };
        let queue = Queue(queue);
        while let Some(message) = queue.pop() {
            if F::ASYNC {
                self.drive_root(root, &filter, RootEvent::Message(queue, message));
            } else {
                filter.on_queue(queue, message);
            }
        }
    }

    fn drive_root(&self, root: u32, filter: &Rc<F>, event: RootEvent) {
        executor::enter(root);
        filter.drive_root(root, event);
        executor::run_woken();
    }

    pub fn headers(&self, context: u32, half: Half, end: bool) -> i32 {
        if half == Half::Response {
            sys::enter(context);
            sys::begin_response();
        }
        if F::ASYNC {
            return self.drive(context, half, Event::Head { context, half, end });
        }
        if !F::PHASES.has(half.head()) {
            return action::CONTINUE;
        }
        let action = self.run(context, half, |filter, state| match half {
            Half::Request => filter.on_request(&Request { end_of_stream: end }, state),
            Half::Response => filter.on_response(&Response { end_of_stream: end }, state),
        });
        if !end && F::PHASES.has(half.body()) {
            sys::body_may_change(half);
        }
        action
    }

    pub fn body(&self, context: u32, half: Half, len: usize, end: bool) -> i32 {
        if !F::PHASES.has(half.body()) {
            return action::CONTINUE;
        }
        if F::ASYNC {
            return self.drive(context, half, Event::Body { half, len, end });
        }
        let body = Body { buffer: half.buffer(), len, end };
        self.run(context, half, |filter, state| match half {
            Half::Request => filter.on_request_body(&body, &Request { end_of_stream: end }, state),
            Half::Response => filter.on_response_body(&body, &Response { end_of_stream: end }, state),
        })
    }

    /// Handles the end of a body that ends with trailers. Such a body has no last part, so this one takes its place,
    /// with whatever the filter holds or empty.
    pub fn trailers(&self, context: u32, half: Half) -> i32 {
        if !F::PHASES.has(half.body()) {
            return action::CONTINUE;
        }
        self.body(context, half, sys::buffer_len(half.buffer()), true)
    }

    pub fn timer(&self, context: u32, token: i64) {
        if F::ASYNC {
            executor::enter(context);
            executor::sleeps::due(context, token);
            return executor::run_woken();
        }
        let half = if token & Half::Response.bit() == 0 { Half::Request } else { Half::Response };
        let request = Request { end_of_stream: false };
        let action = self.run(context, half, |filter, state| filter.on_timer(token as u32, &request, state));
        if action == action::CONTINUE {
            half.resume();
        }
    }

    pub fn http_call_response(&self, root: u32, call: u32, headers: usize, body_size: usize, trailers: usize) {
        if F::ASYNC {
            executor::enter(root);
            executor::calls::answered(call, headers, body_size, trailers);
            executor::run_woken();
        } else if Self::ASKS
            && let Some(ask) = self.asks.take(call, false)
        {
            self.resume_with(ask, Answered::Http(executor::calls::read(headers, body_size, trailers)));
        }
    }

    pub fn grpc_initial_metadata(&self, root: u32, call: u32) {
        self.grpc(root, call, News::Metadata { trailing: false });
    }

    pub fn grpc_message(&self, root: u32, call: u32, size: usize) {
        self.grpc(root, call, News::Message(size));
        if Self::ASKS
            && let Some(ask) = self.asks.take(call, true)
        {
            self.resume_with(ask, Answered::Grpc(Ok(executor::grpc::read(size))));
        }
    }

    pub fn grpc_trailing_metadata(&self, root: u32, call: u32) {
        self.grpc(root, call, News::Metadata { trailing: true });
    }

    pub fn grpc_close(&self, root: u32, call: u32, status: u32) {
        self.grpc(root, call, News::Close(status));
        if Self::ASKS
            && let Some(ask) = self.asks.take(call, true)
        {
            self.resume_with(ask, Answered::Grpc(Err(GrpcError::new(status, sys::status_message()))));
        }
    }

    /// Delivers an answer to the filter's callback; called from a callback of the root context.
    fn resume_with(&self, ask: Ask, answer: Answered) {
        sys::set_effective_context(ask.context);
        if self.answer(ask.context, ask.half, ask.token, answer) == action::CONTINUE {
            ask.half.resume();
        }
    }

    fn answer(&self, context: u32, half: Half, token: u32, answer: Answered) -> i32 {
        let request = Request { end_of_stream: false };
        self.run(context, half, |filter, state| match answer {
            Answered::Http(answer) => filter.on_answer(token, answer, &request, state),
            Answered::Grpc(answer) => filter.on_grpc_answer(token, answer, &request, state),
        })
    }

    fn grpc(&self, root: u32, call: u32, news: News) {
        if F::ASYNC {
            executor::enter(root);
            executor::grpc_news(call, news);
            executor::run_woken();
        }
    }

    pub fn log(&self, context: u32) {
        if !F::PHASES.has(Phases::END) {
            return;
        }
        let (request, response) = (Request { end_of_stream: true }, Response { end_of_stream: true });
        self.run(context, Half::Request, |filter, state| {
            filter.on_end(&request, &response, state);
            Flow::Continue
        });
    }

    /// Handles the end of a stream, or the removal of a filter.
    pub fn delete(&self, context: u32) {
        if F::ASYNC {
            executor::enter(context);
        }
        sys::leave(context);
        if Self::ASKS {
            self.asks.leave(context);
        }
        // The stream's state is dropped when nothing is borrowed any more.
        let stream = borrow(&self.streams).remove(context);
        if stream.is_none() {
            let filter = borrow(&self.filters).remove(context);
            if F::ASYNC && filter.is_some() {
                executor::end_root(context);
            }
        }
        drop(stream);
        if F::ASYNC {
            // Other futures may have waited for this, such as for a released permit or for something that its `on_end`
            // sent them.
            executor::run_woken();
        }
    }

    fn filter(&self, root: u32) -> Option<Rc<F>> {
        borrow(&self.filters).get(root).cloned()
    }

    fn drive(&self, context: u32, half: Half, event: Event) -> i32 {
        executor::enter(context);
        let action = self.run(context, half, |filter, state| filter.drive(event, state));
        executor::run_woken();
        action
    }

    /// Runs a callback with the stream's state and applies its result.
    fn run(&self, context: u32, half: Half, callback: impl FnOnce(&Rc<F>, &mut F::Stream) -> Flow) -> i32 {
        sys::enter(context);
        // No borrow is held across the callback: it may log, and a native test host may inspect the state.
        let (root, mut state) = match borrow(&self.streams).get_mut(context) {
            Some(stream) => (stream.root, stream.state.take().unwrap_or_default()),
            None => (0, F::Stream::default()),
        };
        let Some(filter) = self.filter(root) else { return action::CONTINUE };
        let flow = callback(&filter, &mut state);
        if size_of::<F::Stream>() > 0
            && let Some(stream) = borrow(&self.streams).get_mut(context)
        {
            stream.state = Some(state);
        }
        match flow {
            Flow::Continue => action::CONTINUE,
            Flow::Pause => action::PAUSE,
            Flow::Wait(time, token) => {
                sys::timer_set(micros(time), i64::from(token) | half.bit());
                action::PAUSE
            }
            Flow::Ask(asked) => {
                assert!(Self::ASKS, "a filter that asks must have `ANSWERS` in its `PHASES`");
                match self.asks.add(context, half, asked) {
                    Some((token, answer)) => self.answer(context, half, token, answer),
                    None => action::PAUSE,
                }
            }
            Flow::Respond(reply) => {
                reply.send();
                action::PAUSE
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Buffer, Name,
        testing::{self, TestHost},
    };
    use serde_json::json;

    /// Identifies itself among the filters of a module.
    struct Which {
        seen: Name,
        name: String,
    }

    #[derive(serde::Deserialize)]
    struct Config {
        name: String,
    }

    impl Filter for Which {
        type Config = Config;
        type Stream = ();
        const PHASES: Phases = Phases::REQUEST_HEADERS;

        fn configure(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
            Ok(Which { seen: setup.name("x-seen"), name: config.name })
        }

        fn on_request(&self, request: &Request, _: &mut ()) -> Flow {
            let mut buffer = Buffer::new();
            let before = request.header(self.seen, &mut buffer).unwrap_or_default();
            request.set_header(self.seen, [before, self.name.as_bytes()].concat());
            Flow::Continue
        }
    }

    #[test]
    fn streams_are_dispatched_to_the_filter_of_their_root() {
        let host = TestHost::<Which>::new(json!({"name": "one"})).unwrap();
        assert_eq!(testing::subscribed() & phase::LIFECYCLE, 0, "a single filter gets no stream announcements");
        let d = host.dispatcher();
        d.context_create(7, 0);
        testing::set_config(&json!({"name": "two"}));
        assert!(d.configure(7, usize::MAX));
        assert_ne!(testing::subscribed() & phase::LIFECYCLE, 0);

        // The host's own context serves as the stream. It was not announced, so it belongs to the first root.
        let outcome = host.request("GET", "/").send();
        testing::on_stream(&outcome, |context| {
            d.delete(context);
            d.headers(context, Half::Request, true);
            d.context_create(context, 7);
            d.headers(context, Half::Request, true);
        });
        assert_eq!(outcome.request_header("x-seen"), Some("oneonetwo"));

        d.delete(7);
        assert!(d.filter(7).is_some_and(|filter| filter.name == "one"), "the other one is gone");
    }
}
