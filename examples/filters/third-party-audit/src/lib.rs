//! An audit trail, written only with the crates.io crate `proxy-wasm`; see `third-party`.
//!
//! Each request appends a line to a shared queue. One instance is notified of them, whichever worker handled the
//! request, and sends them to a collector in batches, on a timer. Lines are numbered by a counter in shared data, so
//! that the collector can detect missing ones. Lines that the collector does not accept are sent again.
#![cfg(target_family = "wasm")]

use std::{mem, rc::Rc, time::Duration};

use log::{error, warn};
use proxy_wasm::{
    traits::{Context, HttpContext, RootContext},
    types::{ContextType, LogLevel, Status},
};
use serde::Deserialize;

/// The configuration: JSON, from the `config:` block of the filter.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Cluster of the collector; lines are sent to `/lines` with POST.
    collector: String,
    /// Interval between batches, in milliseconds.
    period_ms: u64,
}

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| Box::new(Root::default()));
}}

#[derive(Default)]
struct Root {
    config: Option<Rc<Config>>,
    queue: u32,
    /// Lines taken from the queue and not yet sent.
    waiting: Vec<u8>,
    /// The batch that was sent and not yet accepted. One at a time.
    sent: Vec<u8>,
}

impl RootContext for Root {
    fn on_configure(&mut self, _: usize) -> bool {
        let config: Config = match serde_json::from_slice(&self.get_plugin_configuration().unwrap_or_default()) {
            Ok(config) => config,
            Err(e) => {
                error!("invalid configuration: {e}");
                return false;
            }
        };
        self.queue = self.register_shared_queue("audit");
        self.set_tick_period(Duration::from_millis(config.period_ms));
        self.config = Some(Rc::new(config));
        true
    }

    fn on_queue_ready(&mut self, queue: u32) {
        while let Ok(Some(line)) = self.dequeue_shared_queue(queue) {
            self.waiting.extend_from_slice(&line);
        }
    }

    fn on_tick(&mut self) {
        let Some(config) = &self.config else { return };
        if !self.sent.is_empty() || self.waiting.is_empty() {
            return;
        }
        let headers = vec![
            (":method", "POST"),
            (":path", "/lines"),
            (":authority", &*config.collector),
            ("content-type", "text/plain"),
        ];
        let timeout = Duration::from_secs(10);
        match self.dispatch_http_call(&config.collector, headers, Some(&self.waiting), vec![], timeout) {
            Ok(_) => self.sent = mem::take(&mut self.waiting),
            Err(status) => error!("cannot send to cluster {}: {status:?}", config.collector),
        }
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Stream { queue: self.queue }))
    }
}

impl Context for Root {
    fn on_http_call_response(&mut self, _: u32, _: usize, _: usize, _: usize) {
        let sent = mem::take(&mut self.sent);
        let status = self.get_http_call_response_header(":status").unwrap_or_else(|| "no answer".to_owned());
        if !status.starts_with('2') {
            warn!("the collector rejected a batch: {status}");
            // Keeps the order of arrival.
            self.waiting.splice(0..0, sent);
        }
    }
}

/// One request and its response.
struct Stream {
    queue: u32,
}

impl Context for Stream {}

impl Stream {
    /// Returns the next number, counted over all workers.
    fn number(&self) -> Result<u64, Status> {
        loop {
            let (value, cas) = self.get_shared_data("audit.lines");
            let bytes = value.and_then(|v| <[u8; 8]>::try_from(&*v).ok());
            let next = bytes.map_or(0, u64::from_le_bytes) + 1;
            match self.set_shared_data("audit.lines", Some(&next.to_le_bytes()), cas) {
                // Another worker was faster.
                Err(Status::CasMismatch) => {}
                other => return other.map(|()| next),
            }
        }
    }

    fn text(&self, path: &[&str]) -> String {
        let value = self.get_property(path.to_vec()).unwrap_or_default();
        String::from_utf8_lossy(&value).into_owned()
    }
}

impl HttpContext for Stream {
    fn on_log(&mut self) {
        let number = match self.number() {
            Ok(number) => number,
            Err(status) => return error!("cannot count lines: {status:?}"),
        };
        let (method, path) = (self.text(&["request", "method"]), self.text(&["request", "path"]));
        let code = self.get_property(vec!["response", "code"]).and_then(|v| <[u8; 8]>::try_from(&*v).ok());
        let code = code.map_or(0, i64::from_le_bytes);
        let line = format!("{number} {method} {path} {code}\n");
        if let Err(status) = self.enqueue_shared_queue(self.queue, Some(line.as_bytes())) {
            error!("cannot queue a line: {status:?}");
        }
    }
}
