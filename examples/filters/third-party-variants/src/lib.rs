//! An A/B test, written only with the crates.io crate `proxy-wasm`; see `third-party`.
//!
//! A visitor gets one of two variants of a site and keeps it by a cookie. The upstream receives the variant in a header
//! and in the path. Paths of an old site are redirected. The decision is stored as a property for other filters of the
//! chain.
#![cfg(target_family = "wasm")]

use std::rc::Rc;

use log::{error, info};
use proxy_wasm::{
    hostcalls,
    traits::{Context, HttpContext, RootContext},
    types::{Action, ContextType, LogLevel, MetricType},
};
use serde::Deserialize;

/// The configuration: JSON, from the `config:` block of the filter.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Name of the cookie that identifies the variant.
    cookie: String,
    /// Percentage of visitors that get the variant `b`.
    percent: u64,
    /// Path prefix that is redirected, and its replacement.
    moved: (String, String),
}

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| Box::new(Root::default()));
}}

#[derive(Default)]
struct Root {
    config: Rc<Config>,
    visitors: u32,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _: usize) -> bool {
        match serde_json::from_slice(&self.get_plugin_configuration().unwrap_or_default()) {
            Ok(config) => self.config = Rc::new(config),
            Err(e) => {
                error!("invalid configuration: {e}");
                return false;
            }
        }
        match hostcalls::define_metric(MetricType::Counter, "variants.visitors") {
            Ok(id) => self.visitors = id,
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
        Some(Box::new(Stream { config: self.config.clone(), visitors: self.visitors, variant: None, new: false }))
    }
}

/// One request and its response.
struct Stream {
    config: Rc<Config>,
    visitors: u32,
    /// `a` or `b`, once known.
    variant: Option<String>,
    /// Whether the visitor has no cookie yet.
    new: bool,
}

impl Context for Stream {}

impl Stream {
    /// Returns the variant from the cookie.
    fn known(&self) -> Option<String> {
        let cookies = self.get_http_request_header_bytes("cookie")?;
        let cookies = str::from_utf8(&cookies).ok()?;
        let pairs = cookies.split(';').filter_map(|pair| pair.trim().split_once('='));
        let value = pairs.filter(|(name, _)| *name == self.config.cookie).map(|(_, value)| value).next_back()?;
        ["a", "b"].contains(&value).then(|| value.to_owned())
    }

    /// Chooses a variant by the client's address and the time (FNV-1a).
    fn chosen(&self) -> String {
        let address = self.get_property(vec!["source", "address"]).unwrap_or_default();
        let time = self.get_current_time().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let bytes = address.into_iter().chain(time.to_le_bytes());
        let hash =
            bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        if (hash >> 32) % 100 < self.config.percent { "b" } else { "a" }.to_owned()
    }
}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        let headers = self.get_http_request_headers_bytes();
        let path = headers.iter().find(|(name, _)| name == ":path").map(|(_, value)| value.clone()).unwrap_or_default();
        let Ok(path) = String::from_utf8(path) else { return Action::Continue };
        let (old, now) = &self.config.moved;
        if let Some(rest) = path.strip_prefix(old) {
            self.send_http_response(308, vec![("location", &format!("{now}{rest}"))], None);
            return Action::Pause;
        }
        let variant = self.known().unwrap_or_else(|| {
            let _ = hostcalls::increment_metric(self.visitors, 1);
            self.new = true;
            self.chosen()
        });
        self.set_property(vec!["variants", "variant"], Some(variant.as_bytes()));
        // Replaces all headers together, dropping the client's own variant headers.
        let path = format!("/{variant}{path}");
        let mut head: Vec<(&str, &[u8])> = headers
            .iter()
            .filter(|(name, _)| !name.starts_with("x-variant") && name != ":path")
            .map(|(name, value)| (&**name, &**value))
            .collect();
        head.push((":path", path.as_bytes()));
        head.push(("x-variant", variant.as_bytes()));
        self.set_http_request_headers_bytes(head);
        self.variant = Some(variant);
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
        if let (Some(variant), true) = (&self.variant, self.new) {
            let cookie = format!("{}={variant}; Path=/; HttpOnly", self.config.cookie);
            self.add_http_response_header("set-cookie", &cookie);
        }
        self.add_http_response_header("vary", "cookie");
        Action::Continue
    }

    fn on_log(&mut self) {
        let variant = self.get_property(vec!["variants", "variant"]).unwrap_or_default();
        if !variant.is_empty() {
            info!("variant {} was served", String::from_utf8_lossy(&variant));
        }
    }
}
