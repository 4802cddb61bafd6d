//! Requests that tests send.

use std::{collections::BTreeMap, net::SocketAddr};

use tollgate_abi::fast::phase;

use super::{
    ROOT, address,
    host::with,
    outcome::Outcome,
    settle,
    stream::{MetadataMap, Part},
};
use crate::{Filter, Value, filter::dispatch::Dispatcher};

/// Builder of a request.
#[must_use]
pub struct RequestBuilder<'h, F: Filter> {
    dispatcher: &'h Dispatcher<F>,
    headers: Vec<(String, Vec<u8>)>,
    body: Option<Vec<Part>>,
    source: SocketAddr,
    client: Option<SocketAddr>,
    state: BTreeMap<Vec<u8>, Vec<u8>>,
    metadata: MetadataMap,
}

impl<'h, F: Filter> RequestBuilder<'h, F> {
    pub(super) fn new(dispatcher: &'h Dispatcher<F>, method: &str, path: &str) -> Self {
        let pseudo = [(":method", method), (":path", path), (":authority", "example.com"), (":scheme", "http")];
        RequestBuilder {
            dispatcher,
            headers: pseudo.iter().map(|(n, v)| (n.to_string(), v.as_bytes().to_vec())).collect(),
            body: None,
            source: SocketAddr::from(([192, 0, 2, 1], 40_000)),
            client: None,
            state: BTreeMap::new(),
            metadata: MetadataMap::new(),
        }
    }

    /// Adds a header field.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_ascii_lowercase(), value.as_ref().to_vec()));
        self
    }

    /// Sets the authority (host). Default: `example.com`.
    pub fn host(mut self, authority: &str) -> Self {
        self.headers.iter_mut().filter(|(n, _)| n == ":authority").for_each(|(_, v)| *v = authority.into());
        self
    }

    /// Sets the scheme, `http` or `https`. Default: `http`.
    pub fn scheme(mut self, scheme: &str) -> Self {
        self.headers.iter_mut().filter(|(n, _)| n == ":scheme").for_each(|(_, v)| *v = scheme.into());
        self
    }

    /// Sets the body, sent in one part.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(vec![Part::Data(body.into(), true)]);
        self
    }

    /// Announces a body whose parts are sent with [`Outcome::send_body`].
    pub fn streaming(mut self) -> Self {
        self.body = Some(Vec::new());
        self
    }

    /// Sets the peer's address, with or without a port. Default: `192.0.2.1`.
    ///
    /// # Panics
    /// If the address is invalid.
    pub fn source(mut self, source: &str) -> Self {
        self.source = address(source);
        self
    }

    /// Sets the client's address, if it differs from the peer's.
    ///
    /// # Panics
    /// If the address is invalid.
    pub fn client(mut self, client: &str) -> Self {
        self.client = Some(address(client));
        self
    }

    /// Sets state that an earlier filter has stored with the stream; see [`stored`](crate::resources::stored).
    pub fn state(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.state.insert(key.as_ref().to_vec(), value.as_ref().to_vec());
        self
    }

    /// Sets metadata that an earlier filter has set.
    pub fn metadata<'a>(mut self, space: &str, key: &str, value: impl Into<Value<'a>>) -> Self {
        let value = value.into();
        let bytes = value.with_bytes(<[u8]>::to_vec);
        self.metadata.insert((space.into(), key.into()), (value.kind(), bytes));
        self
    }

    /// Sends the request through the request callbacks and returns the [`Outcome`], with which the test continues.
    pub fn send(self) -> Outcome<'h, F> {
        let RequestBuilder { dispatcher, headers, body, source, client, state, metadata } = self;
        let context = with(|h| {
            let context = h.begin(headers, body, source, client.unwrap_or(source));
            if let Some(stream) = h.streams.get_mut(&context) {
                (stream.state, stream.metadata) = (state, metadata);
            }
            context
        });
        if with(|h| h.phases & phase::LIFECYCLE != 0) {
            dispatcher.context_create(context, ROOT);
        }
        settle(dispatcher);
        Outcome::new(dispatcher, context)
    }
}
