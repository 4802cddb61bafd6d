//! What came of a request that a test has sent through a filter.

use std::time::Duration;

use tollgate_abi::fast::{flag, phase};

use super::{
    advance,
    host::with,
    settle,
    stream::{Message, Part, Stage, Stream},
};
use crate::{Filter, Metadata, Reply, doc, filter::dispatch::Dispatcher};

/// The route that a filter has selected.
#[derive(Debug, Clone, PartialEq)]
pub struct Selected {
    /// The route.
    pub route: doc::Route,
    /// What chooses among its clusters, if not chance.
    pub split: Option<u64>,
    /// What chooses among the cluster's endpoints.
    pub balance: Option<u64>,
}

/// A stream, after the request's callbacks. Dropping it ends the stream.
///
/// What it tells is what is true when it is asked: another stream's request, or the host's time, may change it.
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
        with(|h| f(h.streams.get_mut(&self.context).expect("another `TestHost` was made on this thread")))
    }

    /// A copy of something, so that tests can compare it with a literal. It is not freed: tests are short.
    fn text(&self, f: impl FnOnce(&mut Stream) -> Option<Vec<u8>>) -> Option<&str> {
        let text = self.with(f).and_then(|value| String::from_utf8(value).ok());
        text.map(|text| &*text.leak())
    }

    fn first(headers: &[(String, Vec<u8>)], name: &str) -> Option<Vec<u8>> {
        headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
    }

    /// Whether the request went on to an upstream, as far as it has come, and nothing of it or of its response is held.
    pub fn continued(&self) -> bool {
        self.with(|s| s.reply.is_none() && s.request.held.is_none() && s.response.held.is_none())
    }

    /// The filter's own response, as the filter has made it.
    pub fn reply(&self) -> Option<&Reply> {
        self.with(|s| s.reply.clone()).map(|reply| &*Box::leak(Box::new(reply)))
    }

    /// The status of the filter's own response as the client gets it: what answers a request passes the filter's own
    /// `on_response`, as it does in the proxy.
    pub fn status(&self) -> Option<u16> {
        self.with(|s| {
            s.reply.as_ref()?;
            String::from_utf8(Self::first(&s.response.headers, ":status")?).ok()?.parse().ok()
        })
    }

    /// A header of the filter's own response (the first of its name) as the client gets it, or one that the filter adds to
    /// any response.
    pub fn reply_header(&self, name: &str) -> Option<&str> {
        self.text(|s| {
            let own = s.reply.is_some().then(|| Self::first(&s.response.headers, name)).flatten();
            own.or_else(|| Self::first(&s.eventual, name))
        })
    }

    /// The body of the filter's own response as the client gets it: as far as it has passed the filter's own
    /// `on_response_body`.
    pub fn reply_body(&self) -> Option<&[u8]> {
        self.with(|s| s.reply.is_some().then(|| s.response.out.clone())).map(|body| &*body.leak())
    }

    /// The gRPC status of the filter's own response, if it has set one.
    pub fn grpc_status(&self) -> Option<u8> {
        self.reply().and_then(|r| r.grpc_status)
    }

    /// Why the filter has answered itself, as in the access log.
    pub fn details(&self) -> Option<&str> {
        self.reply().map(|r| r.details.as_str())
    }

    /// A header of the request as it leaves the filter.
    pub fn request_header(&self, name: &str) -> Option<&str> {
        self.text(|s| Self::first(&s.request.headers, name))
    }

    /// The request's body as it leaves the filter, as far as it has.
    pub fn request_body(&self) -> &[u8] {
        self.with(|s| s.request.out.clone()).leak()
    }

    /// The route that the filter has selected.
    pub fn selected(&self) -> Option<&Selected> {
        self.with(|s| s.selected.clone()).map(|selected| &*Box::leak(Box::new(selected)))
    }

    /// The name of the selected route.
    pub fn route(&self) -> Option<&str> {
        self.text(|s| s.selected.as_ref().map(|selected| selected.route.name.clone().into_bytes()))
    }

    /// The short names of the response flags that the filter has set.
    pub fn flags(&self) -> Vec<&'static str> {
        let flags = self.with(|s| s.flags);
        flag::NAMES.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect()
    }

    /// A field that the filter has set for the access log.
    pub fn log_field(&self, name: &str) -> Option<&str> {
        self.text(|s| s.log_fields.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.clone().into_bytes()))
    }

    /// What is stored with the stream under a key; see [`stored`](crate::resources::stored).
    pub fn state(&self, key: impl AsRef<[u8]>) -> Option<Vec<u8>> {
        with(|h| h.streams.get(&self.context)?.state.get(key.as_ref()).cloned())
    }

    /// A value of the stream's metadata.
    pub fn metadata(&self, space: &str, key: &str) -> Option<Metadata> {
        let (kind, bytes) = with(|h| h.streams.get(&self.context)?.metadata.get(&(space.into(), key.into())).cloned())?;
        Metadata::new(kind, bytes)
    }

    /// How long the filter waits: until the stream's next timer.
    pub fn waits(&self) -> Option<Duration> {
        with(|h| Some(Duration::from_nanos(h.next_timer(self.context)?.saturating_sub(h.now_ns))))
    }

    /// Lets the time pass until the stream's next timer, and that be due.
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

    /// Ends the body of such a request with trailers.
    pub fn send_trailers(&self) {
        self.with(|s| s.request.parts.push_back(Part::Trailers));
        settle(self.dispatcher);
    }

    /// Lets an upstream answer, and sends its response through the filter; the body in one part. Without effect if the filter
    /// has answered itself: then no upstream is asked.
    pub fn respond(self, status: u16, headers: &[(&str, &str)], body: &[u8]) -> Self {
        self.respond_with(status, headers, body.is_empty());
        if !body.is_empty() {
            self.respond_body(body, true);
        }
        self
    }

    /// Lets an upstream begin to answer. The parts of the body come by [`respond_body`](Self::respond_body).
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

    /// A header of the response as it leaves the filter, or one that it adds to any response.
    pub fn response_header(&self, name: &str) -> Option<&str> {
        self.text(|s| Self::first(&s.response.headers, name).or_else(|| Self::first(&s.eventual, name)))
    }

    /// The response's body as it leaves the filter, as far as it has.
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
        // Its end may have let others go on.
        if with(|h| !h.streams.is_empty()) {
            settle(self.dispatcher);
        }
    }
}
