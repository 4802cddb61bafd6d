//! A filter written with the crates.io crate `proxy-wasm` alone: it knows nothing of Tollgate, and the same `.wasm` file
//! runs in any host of the Proxy-Wasm standard (Envoy, Istio, APISIX, Kong, ...).
//!
//! It tells the upstream what it has seen (`x-seen`), marks responses (`x-third-party`), counts requests, and lets a
//! service decide about requests that carry a certain header: it asks by an HTTP callout and holds the request meanwhile.
//!
//! Outside of WebAssembly there is nothing in this crate, because the host's functions exist only there. So
//! `cargo build --workspace` passes with every linker, and `cargo clippy --target wasm32-unknown-unknown` reads the code.
#![cfg(target_family = "wasm")]

use std::{rc::Rc, time::Duration};

use log::{error, warn};
use proxy_wasm::{
    hostcalls,
    traits::{Context, HttpContext, RootContext},
    types::{Action, ContextType, LogLevel, MetricType},
};
use serde::Deserialize;

/// The configuration: JSON, as it stands in the proxy's file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// The value of `x-third-party` in responses.
    tag: String,
    /// Who decides about requests that carry a certain header. Default: nobody, they pass.
    verify: Option<Verify>,
}

/// A question to a service: whether a request may pass.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Verify {
    /// The header. Its value is sent to the service; requests without it pass.
    header: String,
    /// The service's cluster.
    cluster: String,
    /// The path to ask at. A status from 200 to 299 lets the request pass.
    path: String,
    /// How long the service may take.
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
                error!("the configuration is wrong: {e}");
                return false;
            }
        }
        match hostcalls::define_metric(MetricType::Counter, "third_party.requests") {
            Ok(id) => self.requests = id,
            Err(status) => {
                error!("the host has no counter for this filter: {status:?}");
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
        // As bytes: clients send what they like, and the functions for text panic at what is not UTF-8.
        let [method, path, agent] =
            [":method", ":path", "user-agent"].map(|name| self.get_http_request_header_bytes(name).unwrap_or_default());
        self.set_http_request_header_bytes("x-seen", Some(&[&*method, b" ", &*path, b" by ", &*agent].concat()));
        // Nobody but this filter may say so.
        self.set_http_request_header("x-verified", None);

        let Some(verify) = &self.config.verify else { return Action::Continue };
        let Some(value) = self.get_http_request_header_bytes(&verify.header) else { return Action::Continue };
        let Ok(value) = str::from_utf8(&value) else {
            self.send_http_response(400, vec![], Some(b"a header is not text\n"));
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
                error!("cannot ask cluster {}: {status:?}", verify.cluster);
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
        // A call that has failed or taken too long comes without headers.
        let status = if headers == 0 { None } else { self.get_http_call_response_header(":status") };
        match status.and_then(|s| s.parse::<u16>().ok()) {
            Some(200..=299) => {
                self.set_http_request_header("x-verified", Some("yes"));
                self.resume_http_request();
            }
            Some(_) => self.send_http_response(403, vec![], Some(b"the service says no\n")),
            None => {
                warn!("the service does not answer");
                self.send_http_response(503, vec![], Some(b"the request could not be verified\n"));
            }
        }
    }
}
