//! Runs a filter natively: `cargo test` in a filter's crate, without WebAssembly.
//!
//! A [`TestHost`] configures the filter as the proxy would, and sends requests through it. Its clock and its dice are its
//! own, so tests say what time it is.
//!
//! A host belongs to its thread; making another one on the same thread ends the first.

pub(crate) mod host;
mod outcome;

use std::{marker::PhantomData, net::SocketAddr, time::Duration};

use tollgate_abi::proxy_wasm::action;

use crate::{ConfigError, Filter, dispatch::Dispatcher, testing::host::with};

pub use outcome::{Outcome, Selected};

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
        if host.dispatcher.configure(ROOT, usize::MAX) {
            Ok(host)
        } else {
            let errors = with(|h| std::mem::take(&mut h.config_errors));
            Err(ConfigError::all(errors).unwrap_or_else(|| ConfigError::new("", "the filter gave no reason")))
        }
    }

    /// A request to send.
    pub fn request(&self, method: &str, path: &str) -> RequestBuilder<'_, F> {
        let pseudo = [(":method", method), (":path", path), (":authority", "example.com"), (":scheme", "http")];
        RequestBuilder {
            host: self,
            headers: pseudo.iter().map(|(n, v)| (n.to_string(), v.as_bytes().to_vec())).collect(),
            body: None,
            source: SocketAddr::from(([192, 0, 2, 1], 40_000)),
            client: None,
        }
    }

    /// Lets time pass.
    pub fn advance(&self, time: Duration) {
        with(|h| h.now_ns += time.as_nanos() as u64);
    }

    /// Makes the dice repeatable in another way; they always are.
    pub fn seed(&self, seed: u64) {
        with(|h| h.seed = seed);
    }

    /// The value of a metric.
    pub fn metric(&self, name: &str) -> i64 {
        with(|h| h.metrics.iter().find(|(n, _)| n == name).map_or(0, |(_, v)| *v))
    }

    /// What the filter has logged.
    pub fn logs(&self) -> Vec<String> {
        with(|h| h.logs.iter().map(|(_, message)| message.clone()).collect())
    }

    /// Lets the tick be due.
    pub fn tick(&self) {
        self.dispatcher.tick(ROOT);
    }
}

/// A request on its way into a filter.
#[must_use]
pub struct RequestBuilder<'h, F: Filter> {
    host: &'h TestHost<F>,
    headers: Vec<(String, Vec<u8>)>,
    body: Option<Vec<u8>>,
    source: SocketAddr,
    client: Option<SocketAddr>,
}

impl<'h, F: Filter> RequestBuilder<'h, F> {
    /// Adds a header field.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_ascii_lowercase(), value.as_ref().to_vec()));
        self
    }

    /// The host that the request is for. `example.com`, if not called.
    pub fn host(mut self, authority: &str) -> Self {
        self.headers.iter_mut().filter(|(n, _)| n == ":authority").for_each(|(_, v)| *v = authority.into());
        self
    }

    /// Gives it a body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// Where it comes from: an address, with or without a port. `192.0.2.1`, if not called.
    ///
    /// # Panics
    /// If it is no address.
    pub fn source(mut self, address: &str) -> Self {
        self.source = outcome::address(address);
        self
    }

    /// The client's address, if it is not that of the connection's other end.
    ///
    /// # Panics
    /// If it is no address.
    pub fn client(mut self, address: &str) -> Self {
        self.client = Some(outcome::address(address));
        self
    }

    /// Sends it through the request's callbacks; [`Outcome`] has what came of it, and goes on from there.
    pub fn send(self) -> Outcome<'h, F> {
        let RequestBuilder { host, headers, body, source, client } = self;
        let context = with(|h| h.begin(headers, body.clone(), source, client.unwrap_or(source)));
        let d = &host.dispatcher;
        if with(|h| h.phases & tollgate_abi::fast::phase::LIFECYCLE != 0) {
            d.context_create(context, ROOT);
        }
        let mut paused = d.request_headers(context, body.is_none()) == action::PAUSE;
        let wants_body = with(|h| h.phases & tollgate_abi::fast::phase::REQUEST_BODY != 0 && h.stream.reply.is_none());
        if let (Some(body), false, true) = (&body, paused, wants_body) {
            paused = d.request_body(context, body.len(), true) == action::PAUSE;
        }
        Outcome::new(&host.dispatcher, context, paused)
    }
}
