//! A filter written only with the crates.io crate `proxy-wasm`: it contains nothing specific to Tollgate, and the same
//! `.wasm` file runs in any Proxy-Wasm host (Envoy, Istio, APISIX, Kong, ...).
//!
//! It passes facts about the request to the upstream (`x-seen`), marks responses (`x-third-party`), counts requests,
//! and lets a service decide about requests that carry a certain header: it makes an HTTP callout and holds the request
//! meanwhile.
//!
//! Outside of WebAssembly this crate is empty, because the host's functions exist only there. So `cargo build
//! --workspace` passes with every linker, and `cargo clippy --target wasm32-unknown-unknown` checks the code.
#![cfg(target_family = "wasm")]

use std::{rc::Rc, time::Duration};

use log::{error, warn};
use proxy_wasm::{
    hostcalls,
    traits::{Context, HttpContext, RootContext},
    types::{Action, ContextType, LogLevel, MetricType},
};
use serde::Deserialize;

/// The configuration: JSON, from the `config:` block of the filter.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Value of `x-third-party` in responses.
    tag: String,
    /// Service that decides about requests with a certain header. Default: none, and all requests pass.
    verify: Option<Verify>,
}

/// A service that decides whether a request may pass.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Verify {
    /// Header whose value is sent to the service. Requests without it pass.
    header: String,
    /// Cluster of the service.
    cluster: String,
    /// Path of the call. A status from 200 to 299 lets the request pass.
    path: String,
    /// Timeout of the call, in milliseconds.
    timeout_ms: u64,
}

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| Box::new(Root::default()));
}}

#[derive(Default)]
struct Root {
    config: Rc<Config>,
    requests: u32,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _: usize) -> bool {
        let text = self.get_plugin_configuration().unwrap_or_default();
        let config = if text.is_empty() { Ok(Config::default()) } else { serde_json::from_slice(&text) };
        match config {
            Ok(config) => self.config = Rc::new(config),
            Err(e) => {
                error!("invalid configuration: {e}");
                return false;
            }
        }
        match hostcalls::define_metric(MetricType::Counter, "third_party.requests") {
            Ok(id) => self.requests = id,
            Err(status) => {
                error!("cannot define a counter: {status:?}");
                return false;
            }
        }
        true
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Stream { config: self.config.clone(), requests: self.requests }))
    }
}

/// One request and its response.
struct Stream {
    config: Rc<Config>,
    requests: u32,
}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        let _ = hostcalls::increment_metric(self.requests, 1);
        // Read as bytes: clients can send anything, and the functions for text panic on invalid UTF-8.
        let [method, path, agent] =
            [":method", ":path", "user-agent"].map(|name| self.get_http_request_header_bytes(name).unwrap_or_default());
        self.set_http_request_header_bytes("x-seen", Some(&[&*method, b" ", &*path, b" by ", &*agent].concat()));
        // Only this filter may set it.
        self.set_http_request_header("x-verified", None);

        let Some(verify) = &self.config.verify else { return Action::Continue };
        let Some(value) = self.get_http_request_header_bytes(&verify.header) else { return Action::Continue };
        let Ok(value) = str::from_utf8(&value) else {
            self.send_http_response(400, vec![], Some(b"a header is not valid UTF-8\n"));
            return Action::Pause;
        };
        let headers = vec![
            (":method", "GET"),
            (":path", &*verify.path),
            (":authority", &*verify.cluster),
            (&*verify.header, value),
        ];
        let timeout = Duration::from_millis(verify.timeout_ms);
        match self.dispatch_http_call(&verify.cluster, headers, None, vec![], timeout) {
            // `on_http_call_response` decides.
            Ok(_) => Action::Pause,
            Err(status) => {
                error!("cannot call cluster {}: {status:?}", verify.cluster);
                self.send_http_response(503, vec![], Some(b"the request could not be verified\n"));
                Action::Pause
            }
        }
    }

    fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
        self.add_http_response_header("x-third-party", &self.config.tag);
        Action::Continue
    }
}

impl Context for Stream {
    fn on_http_call_response(&mut self, _: u32, headers: usize, _: usize, _: usize) {
        // A call that has failed or timed out has no headers.
        let status = if headers == 0 { None } else { self.get_http_call_response_header(":status") };
        match status.and_then(|s| s.parse::<u16>().ok()) {
            Some(200..=299) => {
                self.set_http_request_header("x-verified", Some("yes"));
                self.resume_http_request();
            }
            Some(_) => self.send_http_response(403, vec![], Some(b"denied by the service\n")),
            None => {
                warn!("the service does not answer");
                self.send_http_response(503, vec![], Some(b"the request could not be verified\n"));
            }
        }
    }
}
