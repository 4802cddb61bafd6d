//! The smallest filter that does something, for measuring: it reads three headers of a request and sets one, with the
//! crates.io crate `proxy-wasm` alone. `three-headers` is the same with Tollgate's SDK.
//!
//! Outside of WebAssembly there is nothing in this crate, because the host's functions exist only there.
#![cfg(target_family = "wasm")]

use proxy_wasm::{
    traits::{Context, HttpContext},
    types::Action,
};

proxy_wasm::main! {{
    proxy_wasm::set_http_context(|_, _| Box::new(ThreeHeaders));
}}

struct ThreeHeaders;

impl Context for ThreeHeaders {}

impl HttpContext for ThreeHeaders {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        let values = [":path", "user-agent", "x-request-id"].map(|name| self.get_http_request_header_bytes(name));
        let complete = values.iter().all(Option::is_some);
        self.set_http_request_header("x-complete", Some(if complete { "yes" } else { "no" }));
        Action::Continue
    }
}
