//! Runs a filter natively: `cargo test` in a filter's crate, without WebAssembly.
//!
//! A [`TestHost`] configures the filter as the proxy would, and sends requests through it; several may be under way at a
//! time. Its clock and its dice are its own, so tests say what time it is; the services that the filter calls answer what
//! the test lets them.
//!
//! A host belongs to its thread; making another one on the same thread ends the first.

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

/// A host for one filter.
pub struct TestHost<F: Filter> {
    dispatcher: Dispatcher<F>,
    // The host's state is the thread's, so the handle must not leave it.
    _not_send: PhantomData<*const ()>,
}

/// Clusters that exist for the filter, unless [`TestHost::with_clusters`] names others: any name but this one.
pub const MISSING_CLUSTER: &str = "missing";

impl<F: Filter> TestHost<F> {
    /// Configures the filter. Every cluster exists but [`MISSING_CLUSTER`].
    pub fn new(config: serde_json::Value) -> Result<Self, ConfigError> {
        Self::with_clusters(config, None)
    }

    /// Configures the filter where only these clusters exist.
    pub fn with_clusters(config: serde_json::Value, clusters: Option<&[&str]>) -> Result<Self, ConfigError> {
        let clusters = clusters.map(|names| names.iter().map(|n| n.to_string()).collect());
        host::reset(host::Host::new(serde_json::to_vec(&config).unwrap_or_default(), clusters));
        let host = TestHost { dispatcher: Dispatcher::new(), _not_send: PhantomData };
        host.dispatcher.context_create(ROOT, 0);
        begin(host.dispatcher.configure(ROOT, usize::MAX))?;
        settle(&host.dispatcher);
        Ok(host)
    }

    /// A request to send.
    pub fn request(&self, method: &str, path: &str) -> RequestBuilder<'_, F> {
        RequestBuilder::new(&self.dispatcher, method, path)
    }

    /// Lets time pass, and what is due in it happen: timers, and answers of services.
    pub fn advance(&self, time: Duration) {
        advance(&self.dispatcher, with(|h| h.now_ns) + time.as_nanos() as u64);
    }

    /// What the service of a cluster does with each call. Calls to clusters without one wait for
    /// [`answer`](Self::answer), or until their time is over.
    pub fn service(&self, cluster: &str, service: impl Fn(&SentCall) -> Scripted + 'static) {
        with(|h| h.services.set(cluster, service));
    }

    /// The calls that have not been answered yet, the oldest first.
    pub fn calls(&self) -> Vec<SentCall> {
        with(|h| h.services.under_way.iter().map(|(call, _)| call.clone()).collect())
    }

    /// Answers a call. Without effect if it has been answered, or has failed.
    pub fn answer(&self, call: u32, scripted: Scripted) {
        with(|h| h.answer(call, scripted));
        settle(&self.dispatcher);
    }

    /// What the gRPC service of a cluster answers to each call that is no stream. Others wait for
    /// [`grpc_message`](Self::grpc_message) and [`grpc_close`](Self::grpc_close), or until their time is over.
    pub fn grpc_service(&self, cluster: &str, service: impl Fn(&SentGrpc) -> Result<Vec<u8>, GrpcError> + 'static) {
        with(|h| h.grpc.set(cluster, service));
    }

    /// The gRPC calls and streams that have not ended yet, the oldest first.
    pub fn grpc_calls(&self) -> Vec<SentGrpc> {
        with(|h| h.grpc.under_way.clone())
    }

    /// A message comes to the filter. If its call is no stream, that is the answer.
    pub fn grpc_message(&self, call: u32, message: impl Into<Vec<u8>>) {
        self.grpc(call, GrpcEvent::Message(message.into()));
    }

    /// The initial or the trailing metadata of a gRPC stream come to the filter.
    pub fn grpc_metadata(&self, call: u32, trailing: bool, fields: &[(&str, &str)]) {
        let fields = fields.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
        self.grpc(call, GrpcEvent::Metadata { trailing, fields });
    }

    /// A gRPC call or stream ends with this status.
    pub fn grpc_close(&self, call: u32, status: u32, message: &str) {
        self.grpc(call, GrpcEvent::Close(GrpcError::new(status, message)));
    }

    fn grpc(&self, call: u32, event: GrpcEvent) {
        with(|h| h.grpc_comes(call, event));
        settle(&self.dispatcher);
    }

    /// Puts a message in a queue, which is made if it is not there.
    pub fn push(&self, queue: &str, message: impl AsRef<[u8]>) {
        with(|h| {
            let queue = h.queue(queue, false);
            h.push(queue, message.as_ref())
        });
        settle(&self.dispatcher);
    }

    /// Takes a message out of a queue.
    pub fn pop(&self, queue: &str) -> Option<Vec<u8>> {
        with(|h| h.find_queue(queue).and_then(|queue| h.pop(queue)))
    }

    /// A value of the shared data.
    pub fn shared(&self, key: impl AsRef<[u8]>) -> Option<Vec<u8>> {
        with(|h| h.shared_get(key.as_ref())).map(|(value, _)| value)
    }

    /// Sets a value of the shared data, as another worker would.
    pub fn set_shared(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        with(|h| h.shared_set(key.as_ref(), value.as_ref(), 0));
    }

    /// Makes the dice repeatable in another way; they always are.
    pub fn seed(&self, seed: u64) {
        with(|h| h.seed = seed);
    }

    /// The value of a counter or gauge.
    pub fn metric(&self, name: &str) -> i64 {
        with(|h| h.metric(name))
    }

    /// The values that a histogram has counted.
    pub fn recorded(&self, name: &str) -> Vec<i64> {
        with(|h| h.recorded(name))
    }

    /// What the filter has logged.
    pub fn logs(&self) -> Vec<String> {
        with(|h| h.logs.iter().map(|(_, message)| message.clone()).collect())
    }

    /// Lets the tick be due.
    pub fn tick(&self) {
        with(|h| h.enter(0, None));
        self.dispatcher.tick(ROOT);
        settle(&self.dispatcher);
    }
}

/// For the SDK's own tests: what lies behind.
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

/// Whether a filter has taken its configuration; else why not.
fn begin(configured: bool) -> Result<(), ConfigError> {
    crate::filter::dispatch::start_logging();
    if configured {
        return Ok(());
    }
    let errors = with(|h| std::mem::take(&mut h.config_errors));
    Err(ConfigError::all(errors).unwrap_or_else(|| ConfigError::new("", "the filter gave no reason")))
}

/// Reads an address with or without a port.
fn address(text: &str) -> SocketAddr {
    let with_port = || text.parse::<SocketAddr>();
    match text.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, 40_000),
        Err(_) => with_port().unwrap_or_else(|_| panic!("`{text}` is not an address")),
    }
}

/// A dispatcher, as the simulated host sees it.
trait Driver {
    /// Moves a stream as far through the filter as that lets it.
    fn go_on(&self, context: u32);
    fn queue_ready(&self, root: u32, queue: u32);
    fn timer(&self, context: u32, token: i64);
    fn http_call_response(&self, root: u32, call: u32, headers: usize, body: usize, trailers: usize);
    fn grpc(&self, root: u32, call: u32, event: &GrpcEvent);
}

impl<F: Filter> Driver for Dispatcher<F> {
    fn go_on(&self, context: u32) {
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

/// Lets everything happen that is due now, until nothing more comes of it.
fn settle(dispatcher: &impl Driver) {
    advance(dispatcher, with(|h| h.now_ns));
}

/// Lets everything happen that is due up to a time.
fn advance(dispatcher: &impl Driver, until: u64) {
    loop {
        let contexts: Vec<_> = with(|h| h.streams.keys().copied().collect());
        for context in contexts {
            dispatcher.go_on(context);
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
            if with(|h| h.grpc_begins(id, &event)) {
                dispatcher.grpc(ROOT, id, &event);
                with(|h| h.grpc.shown = None);
            }
        }
        Event::Answer(id, result) => {
            let sent = with(|h| {
                let calls = &mut h.services.under_way;
                let at = calls.iter().position(|(call, _)| call.id == id);
                at.map(|at| calls.remove(at))
            });
            // It has failed before it was answered, or the other way round.
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
