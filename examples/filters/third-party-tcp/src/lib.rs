//! A TCP filter, written only with the crates.io crate `proxy-wasm`: the counterpart of `third-party`.
//!
//! It asks a service whether a client may connect, and holds the connection meanwhile. If the client's first line is
//! `HELLO`, the filter tells the upstream the client's identity; it converts the upstream's bytes to upper case. It can
//! also select the connections' cluster.
//!
//! Outside of WebAssembly, this crate is empty, as is `third-party`.
#![cfg(target_family = "wasm")]

use std::{rc::Rc, time::Duration};

use log::{error, info};
use proxy_wasm::{
    traits::{Context, RootContext, StreamContext},
    types::{Action, ContextType, LogLevel, PeerType},
};
use serde::Deserialize;

/// The configuration: JSON, from the `config:` block of the filter.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Cluster of the service that decides, called with `GET /may?ADDRESS`. Without it, every client may connect.
    ask: Option<String>,
    /// Cluster of the connections. Default: the listener's.
    cluster: Option<String>,
}

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| Box::new(Root::default()));
}}

#[derive(Default)]
struct Root {
    config: Rc<Config>,
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
        true
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::StreamContext)
    }

    fn create_stream_context(&self, _: u32) -> Option<Box<dyn StreamContext>> {
        Some(Box::new(Connection { config: self.config.clone(), greeted: false }))
    }
}

/// One connection.
struct Connection {
    config: Rc<Config>,
    greeted: bool,
}

impl Connection {
    fn text(&self, path: Vec<&str>) -> String {
        String::from_utf8(self.get_property(path).unwrap_or_default()).unwrap_or_default()
    }
}

impl Connection {
    /// Selects the connection's cluster as in Envoy, through filter state that its TCP proxy reads. The argument is
    /// Envoy's message `SetEnvoyFilterStateArguments`: `path` (1) and `value` (2). Each field is a tag, a length and
    /// bytes.
    fn route(&self, cluster: &str) {
        let fields = [(1u8, "envoy.tcp_proxy.cluster"), (2, cluster)];
        let field = |(number, text): (u8, &str)| [&[number << 3 | 2, text.len() as u8], text.as_bytes()].concat();
        let message = fields.map(field).concat();
        if let Err(status) = self.call_foreign_function("set_envoy_filter_state", Some(&message)) {
            error!("cannot select cluster {cluster}: {status:?}");
        }
    }
}

impl StreamContext for Connection {
    fn on_new_connection(&mut self) -> Action {
        if let Some(cluster) = &self.config.cluster {
            self.route(cluster);
        }
        let Some(cluster) = &self.config.ask else { return Action::Continue };
        let path = format!("/may?{}", self.text(vec!["source", "address"]));
        let headers = vec![(":method", "GET"), (":path", &*path), (":authority", &**cluster)];
        match self.dispatch_http_call(cluster, headers, None, vec![], Duration::from_secs(60)) {
            Ok(_) => {}
            Err(status) => {
                error!("cannot call cluster {cluster}: {status:?}");
                self.close_downstream();
            }
        }
        Action::Pause
    }

    fn on_downstream_data(&mut self, size: usize, end: bool) -> Action {
        if self.greeted {
            return Action::Continue;
        }
        let line = self.get_downstream_data(0, size).unwrap_or_default();
        match line.iter().position(|b| *b == b'\n') {
            None if !end => return Action::Pause,
            Some(at) if line.starts_with(b"HELLO") => {
                let who = format!("HELLO from {}", self.text(vec!["source", "address"]));
                self.set_downstream_data(0, at, who.as_bytes());
            }
            _ => {}
        }
        self.greeted = true;
        Action::Continue
    }

    fn on_upstream_data(&mut self, size: usize, _: bool) -> Action {
        let data = self.get_upstream_data(0, size).unwrap_or_default();
        self.set_upstream_data(0, size, &data.to_ascii_uppercase());
        Action::Continue
    }

    fn on_downstream_close(&mut self, peer: PeerType) {
        info!("the client's connection was closed: {peer:?}");
    }

    fn on_upstream_close(&mut self, peer: PeerType) {
        info!("the upstream's connection was closed: {peer:?}");
    }
}

impl Context for Connection {
    fn on_done(&mut self) -> bool {
        info!("the connection has ended");
        true
    }

    fn on_http_call_response(&mut self, _: u32, headers: usize, _: usize, _: usize) {
        // A call that has failed or timed out has no headers.
        let status = if headers == 0 { None } else { self.get_http_call_response_header(":status") };
        match status.as_deref() {
            Some("200") => self.resume_downstream(),
            _ => self.close_downstream(),
        }
    }
}
