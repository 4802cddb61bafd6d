//! Differences of the crate's 0.1 line.

use proxy_wasm::{
    hostcalls as host,
    traits::RootContext,
    types::{Bytes, MapType},
};

/// Cases about the plugin's configuration.
pub const CONFIGURING: &[&str] = &["proxy_on_configure/ok", "proxy_get_configuration/ok"];

pub fn vm_configuration(root: &impl RootContext) -> Option<Bytes> {
    root.get_configuration()
}

pub fn plugin_configuration(root: &impl RootContext) -> Option<Bytes> {
    root.get_configuration()
}

/// The callbacks of `HttpContext` that the two lines declare differently.
macro_rules! heads {
    () => {
        fn on_http_request_headers(&mut self, count: usize) -> Action {
            self.request(count, None)
        }

        fn on_http_response_headers(&mut self, count: usize) -> Action {
            self.at(At::ResponseHeaders { count, end: None })
        }
    };
}

/// This line has no function for this.
pub fn remove(map: MapType, name: &str) {
    host::set_map_value(map, name, None).unwrap();
}

pub fn log_level_is_info() -> bool {
    false
}

/// Cases of functions that only this line has.
pub fn other(case: &str) -> Result<(), String> {
    match case {
        "proxy_clear_route_cache/ok" if host::clear_http_route_cache() == Ok(()) => Ok(()),
        _ => Err("no such case".to_owned()),
    }
}
