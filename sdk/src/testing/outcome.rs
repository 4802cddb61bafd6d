//! The outcome of a request that a test has sent through a filter.

use std::time::Duration;

use tollgate_abi::fast::{flag, phase};

use super::{
    advance,
    host::with,
    settle,
    stream::{Message, Part, SelectedRoute, Stage, Stream},
};
use crate::{Filter, Metadata, Reply, doc, filter::dispatch::Dispatcher};

/// The route that a filter has selected.
#[derive(Debug, Clone, PartialEq)]
pub struct Selected {
    /// The route.
    pub route: doc::Route,
    /// Hash that selects one of its clusters; random if `None`.
    pub split: Option<u64>,
    /// Hash that selects one of the cluster's endpoints.
    pub balance: Option<u64>,
}

/// A stream after the request's callbacks. Dropping it ends the stream.
///
/// The methods return the current state, which another stream's request or the passing of time may change.
pub struct Outcome<'h, F: Filter> {
    dispatcher: &'h Dispatcher<F>,
    context: u32,
}

impl<'h, F: Filter> Outcome<'h, F> {
    pub(super) fn new(dispatcher: &'h Dispatcher<F>, context: u32) -> Self {
        Outcome { dispatcher, context }
    }

    #[cfg(test)]
    pub(super) fn context(&self) -> u32 {
        self.context
    }

    fn with<T>(&self, f: impl FnOnce(&mut Stream) -> T) -> T {
        with(|h| f(h.streams.get_mut(&self.context).expect("another `TestHost` was created on this thread")))
    }

    /// Copies a text so that tests can compare it with a literal. The copy is leaked, which is fine in short-lived
    /// tests.
    fn text(&self, f: impl FnOnce(&mut Stream) -> Option<Vec<u8>>) -> Option<&str> {
        let text = self.with(f).and_then(|value| String::from_utf8(value).ok());
        text.map(|text| &*text.leak())
    }

    fn first(headers: &[(String, Vec<u8>)], name: &str) -> Option<Vec<u8>> {
        headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
    }

    /// Reports whether everything received of the request has continued to an upstream, and nothing of it or of its
    /// response is held.
    pub fn continued(&self) -> bool {
        self.with(|s| s.reply.is_none() && s.request.held.is_none() && s.response.held.is_none())
    }

    /// Returns the filter's own response as the filter created it.
    pub fn reply(&self) -> Option<&Reply> {
        self.with(|s| s.reply.clone()).map(|reply| &*Box::leak(Box::new(reply)))
    }

    /// Returns the status of the filter's own response as the client receives it. As in the proxy, an answer to a
    /// request passes the filter's own `on_response`.
    pub fn status(&self) -> Option<u16> {
        self.with(|s| {
            s.reply.as_ref()?;
            String::from_utf8(Self::first(&s.response.headers, ":status")?).ok()?.parse().ok()
        })
    }

    /// Returns a header (the first of its name) of the filter's own response as the client receives it, or one that the
    /// filter adds to any response.
    pub fn reply_header(&self, name: &str) -> Option<&str> {
        self.text(|s| {
            let own = s.reply.is_some().then(|| Self::first(&s.response.headers, name)).flatten();
            own.or_else(|| Self::first(&s.eventual, name))
        })
    }

    /// Returns the body of the filter's own response as the client receives it, as far as it has passed the filter's
    /// own `on_response_body`.
    pub fn reply_body(&self) -> Option<&[u8]> {
        self.with(|s| s.reply.is_some().then(|| s.response.out.clone())).map(|body| &*body.leak())
    }

    /// Returns the gRPC status of the filter's own response, if set.
    pub fn grpc_status(&self) -> Option<u8> {
        self.reply().and_then(|r| r.grpc_status)
    }

    /// Returns the details of the filter's own response, as in the access log.
    pub fn details(&self) -> Option<&str> {
        self.reply().map(|r| r.details.as_str())
    }

    /// Returns a header of the request as it leaves the filter.
    pub fn request_header(&self, name: &str) -> Option<&str> {
        self.text(|s| Self::first(&s.request.headers, name))
    }

    /// Returns what has left the filter of the request's body.
    pub fn request_body(&self) -> &[u8] {
        self.with(|s| s.request.out.clone()).leak()
    }

    /// Returns the route that the filter has selected.
    pub fn selected(&self) -> Option<&Selected> {
        self.with(|s| s.selected.as_ref().map(SelectedRoute::shown)).map(|selected| &*Box::leak(Box::new(selected)))
    }

    /// Returns the name of the selected route.
    pub fn route(&self) -> Option<&str> {
        self.text(|s| s.selected.as_ref().map(|selected| selected.route.name.clone().into_bytes()))
    }

    /// Returns the short names of the response flags that the filter has set.
    pub fn flags(&self) -> Vec<&'static str> {
        let flags = self.with(|s| s.flags);
        flag::NAMES.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect()
    }

    /// Returns a field that the filter has set for the access log.
    pub fn log_field(&self, name: &str) -> Option<&str> {
        self.text(|s| s.log_fields.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.clone().into_bytes()))
    }

    /// Returns the stream's state under a key; see [`stored`](crate::resources::stored).
    pub fn state(&self, key: impl AsRef<[u8]>) -> Option<Vec<u8>> {
        with(|h| h.streams.get(&self.context)?.state.get(key.as_ref()).cloned())
    }

    /// Returns a value of the stream's metadata.
    pub fn metadata(&self, space: &str, key: &str) -> Option<Metadata> {
        let (kind, bytes) = with(|h| h.streams.get(&self.context)?.metadata.get(&(space.into(), key.into())).cloned())?;
        Metadata::new(kind, bytes)
    }

    /// Returns how long the filter waits: the time until the stream's next timer.
    pub fn waits(&self) -> Option<Duration> {
        with(|h| Some(Duration::from_nanos(h.next_timer(self.context)?.saturating_sub(h.now_ns))))
    }

    /// Advances the clock to the stream's next timer and runs it.
    pub fn wait(self) -> Self {
        if let Some(due) = with(|h| h.next_timer(self.context)) {
            advance(self.dispatcher, due);
        }
        self
    }

    /// Sends a part of the body of a [`streaming`](super::RequestBuilder::streaming) request.
    pub fn send_body(&self, part: &[u8], last: bool) {
        self.with(|s| s.request.parts.push_back(Part::Data(part.to_vec(), last)));
        settle(self.dispatcher);
    }

    /// Ends the body of a streaming request with trailers.
    pub fn send_trailers(&self) {
        self.with(|s| s.request.parts.push_back(Part::Trailers));
        settle(self.dispatcher);
    }

    /// Sends an upstream's response through the filter, with the body in one part. Has no effect if the filter has
    /// answered itself, because then no upstream is contacted.
    pub fn respond(self, status: u16, headers: &[(&str, &str)], body: &[u8]) -> Self {
        self.respond_with(status, headers, body.is_empty());
        if !body.is_empty() {
            self.respond_body(body, true);
        }
        self
    }

    /// Sends the headers of an upstream's response. The body follows with [`respond_body`](Self::respond_body).
    pub fn respond_head(&self, status: u16, headers: &[(&str, &str)]) {
        self.respond_with(status, headers, false);
    }

    /// Sends a part of the response's body.
    pub fn respond_body(&self, part: &[u8], last: bool) {
        self.with(|s| {
            if s.reply.is_none() {
                s.response.parts.push_back(Part::Data(part.to_vec(), last));
            }
        });
        settle(self.dispatcher);
    }

    fn respond_with(&self, status: u16, headers: &[(&str, &str)], end: bool) {
        let pairs = headers.iter().map(|(n, v)| (n.to_ascii_lowercase(), v.as_bytes().to_vec()));
        let status = (":status".to_string(), status.to_string().into_bytes());
        let headers = std::iter::once(status).chain(pairs).collect();
        self.with(|s| {
            if s.reply.is_none() {
                s.response = Message { headers, stage: Stage::Head { end }, ..Message::default() };
            }
        });
        settle(self.dispatcher);
    }

    /// Returns a header of the response as it leaves the filter, or one that the filter adds to any response.
    pub fn response_header(&self, name: &str) -> Option<&str> {
        self.text(|s| Self::first(&s.response.headers, name).or_else(|| Self::first(&s.eventual, name)))
    }

    /// Returns what has left the filter of the response's body.
    pub fn response_body(&self) -> &[u8] {
        self.with(|s| s.response.out.clone()).leak()
    }
}

impl<F: Filter> Drop for Outcome<'_, F> {
    fn drop(&mut self) {
        if with(|h| !h.streams.contains_key(&self.context)) {
            return;
        }
        with(|h| h.enter(self.context, None));
        if with(|h| h.phases & phase::LOG != 0) {
            self.dispatcher.log(self.context);
        }
        self.dispatcher.delete(self.context);
        with(|h| {
            h.enter(0, None);
            h.end(self.context);
        });
        // The end of this stream may have let others continue.
        if with(|h| !h.streams.is_empty()) {
            settle(self.dispatcher);
        }
    }
}
