//! Test host that runs a filter natively: `cargo test` in a filter's crate, without WebAssembly.
//!
//! A [`TestHost`] configures the filter as the proxy would and sends requests through it, several concurrently if
//! needed. It has its own clock and random numbers, so tests control the time. The services that the filter calls
//! answer as the test specifies.
//!
//! A host belongs to its thread; creating another one on the same thread ends the first.

mod blanks;
pub(crate) mod grpc;
pub(crate) mod host;
mod outcome;
mod reply;
mod request;
pub(crate) mod services;
mod stores;
mod stream;
mod tcp;

use std::{
    marker::PhantomData,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::{
    ConfigError, Filter, GrpcError,
    filter::dispatch::Dispatcher,
    sys::types::Half,
    testing::{
        grpc::GrpcEvent,
        host::{Event, with},
    },
};

pub use blanks::refuses_blanks;
pub use grpc::SentGrpc;
pub use outcome::{Outcome, Selected};
pub use request::RequestBuilder;
pub use services::{Scripted, SentCall};
pub use tcp::{TcpHost, TcpOutcome};

const ROOT: u32 = 1;

/// A test host for one filter.
pub struct TestHost<F: Filter> {
    dispatcher: Dispatcher<F>,
    // The host's state is thread-local, so the handle must not leave the thread.
    _not_send: PhantomData<*const ()>,
}

/// The only cluster name that does not exist, unless [`TestHost::with_clusters`] lists the clusters.
pub const MISSING_CLUSTER: &str = "missing";

/// The only filter name that does not exist.
pub const MISSING_FILTER: &str = "missing";

/// The only variant that no filter has.
pub const MISSING_VARIANT: &str = "missing";

impl<F: Filter> TestHost<F> {
    /// Configures the filter. Every cluster except [`MISSING_CLUSTER`] exists, and every filter except
    /// [`MISSING_FILTER`], with every variant except [`MISSING_VARIANT`].
    pub fn new(config: serde_json::Value) -> Result<Self, ConfigError> {
        Self::with_clusters(config, None)
    }

    /// Configures the filter with only these clusters existing.
    pub fn with_clusters(config: serde_json::Value, clusters: Option<&[&str]>) -> Result<Self, ConfigError> {
        let clusters = clusters.map(|names| names.iter().map(|n| n.to_string()).collect());
        host::reset(host::Host::new(serde_json::to_vec(&config).unwrap_or_default(), clusters));
        let host = TestHost { dispatcher: Dispatcher::new(), _not_send: PhantomData };
        host.dispatcher.context_create(ROOT, 0);
        begin(host.dispatcher.configure(ROOT, usize::MAX))?;
        settle(&host.dispatcher);
        Ok(host)
    }

    /// Builds a request.
    pub fn request(&self, method: &str, path: &str) -> RequestBuilder<'_, F> {
        RequestBuilder::new(&self.dispatcher, method, path)
    }

    /// Advances the clock and runs what is due: timers, and answers of services.
    pub fn advance(&self, time: Duration) {
        advance(&self.dispatcher, with(|h| h.now_ns) + time.as_nanos() as u64);
    }

    /// Sets the function that answers each call to a cluster. Calls to other clusters wait for [`answer`](Self::answer)
    /// or their timeout.
    pub fn service(&self, cluster: &str, service: impl Fn(&SentCall) -> Scripted + 'static) {
        with(|h| h.services.set(cluster, service));
    }

    /// Returns the pending calls, oldest first.
    pub fn calls(&self) -> Vec<SentCall> {
        with(|h| h.services.pending.iter().map(|(call, _)| call.clone()).collect())
    }

    /// Answers a call. Has no effect if it was answered or has failed.
    pub fn answer(&self, call: u32, scripted: Scripted) {
        with(|h| h.answer(call, scripted));
        settle(&self.dispatcher);
    }

    /// Sets the function that answers each unary gRPC call to a cluster. Other calls wait for
    /// [`grpc_message`](Self::grpc_message) and [`grpc_close`](Self::grpc_close), or their timeout.
    pub fn grpc_service(&self, cluster: &str, service: impl Fn(&SentGrpc) -> Result<Vec<u8>, GrpcError> + 'static) {
        with(|h| h.grpc.set(cluster, service));
    }

    /// Returns the pending gRPC calls and streams, oldest first.
    pub fn grpc_calls(&self) -> Vec<SentGrpc> {
        with(|h| h.grpc.pending.clone())
    }

    /// Delivers a message to the filter. For a unary call, this is the answer.
    pub fn grpc_message(&self, call: u32, message: impl Into<Vec<u8>>) {
        self.grpc(call, GrpcEvent::Message(message.into()));
    }

    /// Delivers the initial or trailing metadata of a gRPC stream to the filter.
    pub fn grpc_metadata(&self, call: u32, trailing: bool, fields: &[(&str, &str)]) {
        let fields = fields.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
        self.grpc(call, GrpcEvent::Metadata { trailing, fields });
    }

    /// Ends a gRPC call or stream with this status.
    pub fn grpc_close(&self, call: u32, status: u32, message: &str) {
        self.grpc(call, GrpcEvent::Close(GrpcError::new(status, message)));
    }

    fn grpc(&self, call: u32, event: GrpcEvent) {
        with(|h| h.schedule_grpc(call, event));
        settle(&self.dispatcher);
    }

    /// Appends a message to a queue, creating the queue if necessary.
    pub fn push(&self, queue: &str, message: impl AsRef<[u8]>) {
        with(|h| {
            let queue = h.queue(queue, false);
            h.push(queue, message.as_ref())
        });
        settle(&self.dispatcher);
    }

    /// Removes a message from a queue.
    pub fn pop(&self, queue: &str) -> Option<Vec<u8>> {
        with(|h| h.find_queue(queue).and_then(|queue| h.pop(queue)))
    }

    /// Returns a value of the shared data.
    pub fn shared(&self, key: impl AsRef<[u8]>) -> Option<Vec<u8>> {
        with(|h| h.shared_get(key.as_ref())).map(|(value, _)| value)
    }

    /// Sets a value of the shared data, as another worker would.
    pub fn set_shared(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        with(|h| h.shared_set(key.as_ref(), value.as_ref(), 0));
    }

    /// Seeds the random numbers, which are always repeatable.
    pub fn seed(&self, seed: u64) {
        with(|h| h.seed = seed);
    }

    /// Returns the value of a counter or gauge.
    pub fn metric(&self, name: &str) -> i64 {
        with(|h| h.metric(name))
    }

    /// Returns the values that a histogram has recorded.
    pub fn recorded(&self, name: &str) -> Vec<i64> {
        with(|h| h.recorded(name))
    }

    /// Returns the messages that the filter has logged.
    pub fn logs(&self) -> Vec<String> {
        with(|h| h.logs.iter().map(|(_, message)| message.clone()).collect())
    }

    /// Triggers the tick.
    pub fn tick(&self) {
        with(|h| h.enter(0, None));
        self.dispatcher.tick(ROOT);
        settle(&self.dispatcher);
    }
}

/// Access to internals for the SDK's own tests.
#[cfg(test)]
pub(crate) fn subscribed() -> u32 {
    with(|h| h.phases)
}

#[cfg(test)]
pub(crate) fn set_config(config: &serde_json::Value) {
    with(|h| h.config = config.to_string().into_bytes());
}

#[cfg(test)]
pub(crate) fn on_stream<F: Filter>(outcome: &Outcome<'_, F>, f: impl FnOnce(u32)) {
    with(|h| h.enter(outcome.context(), None));
    f(outcome.context());
}

#[cfg(test)]
impl<F: Filter> TestHost<F> {
    pub(crate) fn dispatcher(&self) -> &Dispatcher<F> {
        &self.dispatcher
    }
}

/// Checks whether a filter has accepted its configuration; otherwise returns its errors.
fn begin(configured: bool) -> Result<(), ConfigError> {
    crate::filter::dispatch::start_logging();
    if configured {
        return Ok(());
    }
    let errors = with(|h| std::mem::take(&mut h.config_errors));
    Err(ConfigError::all(errors).unwrap_or_else(|| ConfigError::new("", "the filter gave no reason")))
}

/// Parses an address with or without a port.
fn address(text: &str) -> SocketAddr {
    let with_port = || text.parse::<SocketAddr>();
    match text.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, 40_000),
        Err(_) => with_port().unwrap_or_else(|_| panic!("`{text}` is not an address")),
    }
}

/// A dispatcher as used by the simulated host.
trait Driver {
    /// Moves a stream through the filter as far as the filter allows.
    fn run_stream(&self, context: u32);
    fn queue_ready(&self, root: u32, queue: u32);
    fn timer(&self, context: u32, token: i64);
    fn http_call_response(&self, root: u32, call: u32, headers: usize, body: usize, trailers: usize);
    fn grpc(&self, root: u32, call: u32, event: &GrpcEvent);
}

impl<F: Filter> Driver for Dispatcher<F> {
    fn run_stream(&self, context: u32) {
        stream::advance(self, context, Half::Request);
        stream::advance(self, context, Half::Response);
    }

    fn queue_ready(&self, root: u32, queue: u32) {
        Dispatcher::queue_ready(self, root, queue);
    }

    fn timer(&self, context: u32, token: i64) {
        Dispatcher::timer(self, context, token);
    }

    fn http_call_response(&self, root: u32, call: u32, headers: usize, body: usize, trailers: usize) {
        Dispatcher::http_call_response(self, root, call, headers, body, trailers);
    }

    fn grpc(&self, root: u32, call: u32, event: &GrpcEvent) {
        match event {
            GrpcEvent::Metadata { trailing: false, .. } => self.grpc_initial_metadata(root, call),
            GrpcEvent::Metadata { trailing: true, .. } => self.grpc_trailing_metadata(root, call),
            GrpcEvent::Message(message) => Dispatcher::grpc_message(self, root, call, message.len()),
            GrpcEvent::Close(error) => Dispatcher::grpc_close(self, root, call, error.status),
        }
    }
}

/// Runs everything that is due now, until nothing new becomes due.
fn settle(dispatcher: &impl Driver) {
    advance(dispatcher, with(|h| h.now_ns));
}

/// Runs everything that is due up to a time.
fn advance(dispatcher: &impl Driver, until: u64) {
    loop {
        let contexts: Vec<_> = with(|h| h.streams.keys().copied().collect());
        for context in contexts {
            dispatcher.run_stream(context);
        }
        with(|h| h.enter(0, None));
        // One stream may have woken another.
        if with(|h| h.streams.values().any(stream::Stream::is_resumed)) {
            continue;
        }
        if let Some(queue) = with(|h| h.ready.pop_front()) {
            dispatcher.queue_ready(ROOT, queue);
        } else if let Some((at, event)) = with(|h| h.due(until)) {
            with(|h| h.now_ns = h.now_ns.max(at));
            fire(dispatcher, event);
        } else {
            break;
        }
    }
    with(|h| h.now_ns = h.now_ns.max(until));
}

fn fire(dispatcher: &impl Driver, event: Event) {
    match event {
        Event::Timer { context, token } => {
            if with(|h| h.streams.contains_key(&context)) {
                with(|h| h.enter(context, None));
                dispatcher.timer(context, token);
            }
        }
        Event::Grpc(id, event) => {
            if with(|h| h.deliver_grpc(id, &event)) {
                dispatcher.grpc(ROOT, id, &event);
                with(|h| h.grpc.shown = None);
            }
        }
        Event::Answer(id, result) => {
            let sent = with(|h| {
                let calls = &mut h.services.pending;
                let at = calls.iter().position(|(call, _)| call.id == id);
                at.map(|at| calls.remove(at))
            });
            // The call has failed before it was answered, or the other way round.
            if sent.is_none() {
                return;
            }
            let size = |a: &services::ServiceAnswer| (a.headers.len(), a.body.len(), a.trailers.len());
            let (headers, body, trailers) = result.as_ref().map_or((0, 0, 0), size);
            with(|h| h.answer = Some(result));
            dispatcher.http_call_response(ROOT, id, headers, body, trailers);
            with(|h| h.answer = None);
        }
    }
}
