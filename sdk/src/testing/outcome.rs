//! What came of a request that a test has sent through a filter.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tollgate_abi::{fast::flag, proxy_wasm::action};

use super::host::{Stream, with};
use crate::{Filter, Reply, dispatch::Dispatcher, doc};

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
pub struct Outcome<'h, F: Filter> {
    dispatcher: &'h Dispatcher<F>,
    context: u32,
    paused: bool,
    state: Stream,
}

impl<'h, F: Filter> Outcome<'h, F> {
    pub(super) fn new(dispatcher: &'h Dispatcher<F>, context: u32, paused: bool) -> Self {
        // The stream's state is taken out of the host, so that several streams can be under way.
        Outcome { dispatcher, context, paused, state: with(|h| std::mem::take(&mut h.stream)) }
    }

    /// Runs a callback on this stream.
    fn enter<T>(&mut self, callback: impl FnOnce(&Dispatcher<F>, u32) -> T) -> T {
        with(|h| h.stream = std::mem::take(&mut self.state));
        let result = callback(self.dispatcher, self.context);
        self.state = with(|h| std::mem::take(&mut h.stream));
        result
    }

    /// Whether the request went on to an upstream.
    pub fn continued(&self) -> bool {
        !self.paused && self.state.reply.is_none()
    }

    /// The filter's own response.
    pub fn reply(&self) -> Option<&Reply> {
        self.state.reply.as_ref()
    }

    /// The status of the filter's own response.
    pub fn status(&self) -> Option<u16> {
        self.reply().map(|r| r.status)
    }

    /// A header of the filter's own response (the first of its name), or one that it adds to any response.
    pub fn reply_header(&self, name: &str) -> Option<&str> {
        let own = self.state.reply.iter().flat_map(|r| &r.headers);
        let value = own.chain(&self.state.eventual).find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v);
        value.and_then(|v| std::str::from_utf8(v).ok())
    }

    /// The body of the filter's own response.
    pub fn reply_body(&self) -> Option<&[u8]> {
        self.reply().map(|r| r.body.as_slice())
    }

    /// Why the filter has answered itself, as in the access log.
    pub fn details(&self) -> Option<&str> {
        self.reply().map(|r| r.details.as_str())
    }

    /// A header of the request as it leaves the filter.
    pub fn request_header(&self, name: &str) -> Option<&str> {
        let value = self.state.request.iter().find(|(n, _)| n == name).map(|(_, v)| v);
        value.and_then(|v| std::str::from_utf8(v).ok())
    }

    /// The request's body as it leaves the filter.
    pub fn request_body(&self) -> &[u8] {
        &self.state.request_body
    }

    /// The route that the filter has selected.
    pub fn selected(&self) -> Option<&Selected> {
        self.state.selected.as_ref()
    }

    /// The name of the selected route.
    pub fn route(&self) -> Option<&str> {
        self.selected().map(|s| s.route.name.as_str())
    }

    /// The short names of the response flags that the filter has set.
    pub fn flags(&self) -> Vec<&'static str> {
        flag::NAMES.iter().filter(|(bit, _)| self.state.flags & bit != 0).map(|(_, name)| *name).collect()
    }

    /// A field that the filter has set for the access log.
    pub fn log_field(&self, name: &str) -> Option<&str> {
        self.state.log_fields.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// How long the filter holds the stream.
    pub fn waits(&self) -> Option<Duration> {
        let (due, _) = self.state.timer?;
        Some(Duration::from_nanos(due.saturating_sub(with(|h| h.now_ns))))
    }

    /// Lets the time of a [`Flow::Wait`](crate::Flow::Wait) pass, and the timer be due.
    pub fn wait(mut self) -> Self {
        if let Some((due, token)) = self.state.timer.take() {
            with(|h| h.now_ns = h.now_ns.max(due));
            self.enter(|d, context| d.timer(context, token));
            if std::mem::take(&mut self.state.continued) {
                self.paused = false;
            }
        }
        self
    }

    /// Lets an upstream answer, and sends its response through the filter.
    pub fn respond(mut self, status: u16, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let pairs = headers.iter().map(|(n, v)| (n.to_ascii_lowercase(), v.as_bytes().to_vec()));
        self.state.response =
            std::iter::once((":status".to_string(), status.to_string().into_bytes())).chain(pairs).collect();
        self.state.response_body = body.to_vec();
        let (len, phases) = (body.len(), with(|h| h.phases));
        self.paused = self.enter(|d, context| {
            let mut action = action::CONTINUE;
            if phases & tollgate_abi::fast::phase::RESPONSE_HEADERS != 0 {
                action = d.response_headers(context, len == 0);
            }
            if phases & tollgate_abi::fast::phase::RESPONSE_BODY != 0 && len > 0 && action == action::CONTINUE {
                action = d.response_body(context, len, true);
            }
            action == action::PAUSE
        });
        self
    }

    /// A header of the upstream's response as it leaves the filter, or one that it adds to any response.
    pub fn response_header(&self, name: &str) -> Option<&str> {
        let all = self.state.response.iter().chain(&self.state.eventual);
        all.filter(|(n, _)| n == name).find_map(|(_, v)| std::str::from_utf8(v).ok())
    }

    /// The upstream's body as it leaves the filter.
    pub fn response_body(&self) -> &[u8] {
        &self.state.response_body
    }
}

impl<F: Filter> Drop for Outcome<'_, F> {
    fn drop(&mut self) {
        self.enter(|d, context| {
            if with(|h| h.phases & tollgate_abi::fast::phase::LOG != 0) {
                d.log(context);
            }
            d.delete(context);
        });
        with(|h| h.end(&self.state));
    }
}

/// Reads an address with or without a port.
pub(super) fn address(text: &str) -> SocketAddr {
    let with_port = || text.parse::<SocketAddr>();
    match text.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, 40_000),
        Err(_) => with_port().unwrap_or_else(|_| panic!("`{text}` is not an address")),
    }
}
