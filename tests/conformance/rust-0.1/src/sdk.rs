//! What the crate's 0.1 line has, and the other has not.

use proxy_wasm::{hostcalls as host, types::MapType};

/// There is no function for this yet.
pub fn remove(map: MapType, name: &str) {
    host::set_map_value(map, name, None).unwrap();
}

pub fn log_level_is_info() -> bool {
    false
}

/// The cases of functions that only this line has.
pub fn other(case: &str) -> Result<(), String> {
    match case {
        "proxy_clear_route_cache/ok" if host::clear_http_route_cache() == Ok(()) => Ok(()),
        _ => Err("no such case".to_owned()),
    }
}
