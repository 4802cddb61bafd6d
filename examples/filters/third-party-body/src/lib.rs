//! A filter that checks and changes bodies, written only with the crates.io crate `proxy-wasm`; see `third-party`.
//!
//! It rejects requests whose JSON is invalid or not an object, stating the location of the error, and replaces words in
//! the text of responses, such as internal host names. It holds bodies until they are complete.
#![cfg(target_family = "wasm")]

use std::{collections::BTreeMap, rc::Rc};

use log::error;
use proxy_wasm::{
    traits::{Context, HttpContext, RootContext},
    types::{Action, ContextType, LogLevel},
};
use serde::Deserialize;
use serde_json::{Map, Value};

/// The configuration: JSON, from the `config:` block of the filter.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Words to replace in the text of responses, with their replacements.
    replace: BTreeMap<String, String>,
    /// Fields that every JSON object in a request must have.
    required: Vec<String>,
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
        match serde_json::from_slice(&self.get_plugin_configuration().unwrap_or_else(|| b"{}".to_vec())) {
            Ok(config) => self.config = Rc::new(config),
            Err(e) => {
                error!("invalid configuration: {e}");
                return false;
            }
        }
        true
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Stream { config: self.config.clone(), json: false, text: false }))
    }
}

/// One request and its response.
struct Stream {
    config: Rc<Config>,
    /// Whether the request's body is JSON.
    json: bool,
    /// Whether the response's body is text in which words are replaced.
    text: bool,
}

impl Context for Stream {}

impl Stream {
    /// Describes what is wrong with the JSON of a request.
    fn mistake(&self, body: &[u8]) -> Option<String> {
        let object: Map<String, Value> = match serde_json::from_slice(body) {
            Ok(object) => object,
            Err(e) => return Some(e.to_string()),
        };
        let missing = self.config.required.iter().find(|name| !object.contains_key(*name))?;
        Some(format!("`{missing}` is missing"))
    }
}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _: usize, end: bool) -> Action {
        // The filter cannot read encoded bodies.
        self.set_http_request_header("accept-encoding", None);
        let kind = self.get_http_request_header_bytes("content-type").unwrap_or_default();
        self.json = !end && kind.starts_with(b"application/json");
        Action::Continue
    }

    fn on_http_request_body(&mut self, size: usize, end: bool) -> Action {
        if !self.json {
            return Action::Continue;
        }
        if !end {
            return Action::Pause;
        }
        let body = self.get_http_request_body(0, size).unwrap_or_default();
        if let Some(mistake) = self.mistake(&body) {
            let answer = serde_json::json!({ "error": mistake }).to_string();
            self.send_http_response(400, vec![("content-type", "application/json")], Some(answer.as_bytes()));
            return Action::Pause;
        }
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _: usize, end: bool) -> Action {
        let kind = self.get_http_response_header_bytes("content-type").unwrap_or_default();
        self.text = !end && !self.config.replace.is_empty() && kind.starts_with(b"text/");
        if self.text {
            // The length may change.
            self.set_http_response_header("content-length", None);
        }
        Action::Continue
    }

    fn on_http_response_body(&mut self, size: usize, end: bool) -> Action {
        if !self.text {
            return Action::Continue;
        }
        // A word may span two parts.
        if !end {
            return Action::Pause;
        }
        let Some(body) = self.get_http_response_body(0, size) else { return Action::Continue };
        if let Ok(mut text) = String::from_utf8(body) {
            for (from, to) in &self.config.replace {
                text = text.replace(from, to);
            }
            self.set_http_response_body(0, size, text.as_bytes());
        }
        Action::Continue
    }
}
