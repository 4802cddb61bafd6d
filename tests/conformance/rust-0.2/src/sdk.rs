//! Differences of the crate's newest line.

use proxy_wasm::{
    hostcalls as host,
    traits::RootContext,
    types::{Bytes, GrpcStatusCode, LogLevel, MapType, Status},
};

/// Cases about the plugin's configuration.
pub const CONFIGURING: &[&str] = &["proxy_on_configure/ok"];

pub fn vm_configuration(root: &impl RootContext) -> Option<Bytes> {
    root.get_vm_configuration()
}

pub fn plugin_configuration(root: &impl RootContext) -> Option<Bytes> {
    root.get_plugin_configuration()
}

/// The callbacks of `HttpContext` that the two lines declare differently.
macro_rules! heads {
    () => {
        fn on_http_request_headers(&mut self, count: usize, end: bool) -> Action {
            self.request(count, Some(end))
        }

        fn on_http_response_headers(&mut self, count: usize, end: bool) -> Action {
            self.at(At::ResponseHeaders { count, end: Some(end) })
        }
    };
}

pub fn remove(map: MapType, name: &str) {
    host::remove_map_value(map, name).unwrap();
}

pub fn log_level_is_info() -> bool {
    host::get_log_level() == Ok(LogLevel::Info)
}

/// Cases of functions that only this line has.
pub fn other(case: &str) -> Result<(), String> {
    let is = |wanted: bool| if wanted { Ok(()) } else { Err("unexpected result".to_owned()) };
    match case {
        "proxy_call_foreign_function/ok" => {
            is(host::call_foreign_function("clear_route_cache", None) == Ok(None))?;
            is(host::call_foreign_function("declare_property", Some(b"\n\x01p")) == Ok(None))
        }
        "proxy_call_foreign_function/not-found" => {
            is(host::call_foreign_function("no_such_function", Some(b"x")) == Err(Status::NotFound))
        }
        "proxy_close_stream/ok" => is(host::reset_http_request() == Ok(())),
        "proxy_close_stream/ok-response" => is(host::reset_http_response() == Ok(())),
        "proxy_close_stream/tcp" => is(host::close_downstream() == Ok(())),
        "proxy_continue_stream/tcp" => is(host::resume_downstream() == Ok(()) && host::resume_upstream() == Ok(())),
        "proxy_send_local_response/ok-of-a-grpc-request" => {
            let metadata = vec![("x-meta", &b"1"[..])];
            is(host::send_grpc_response(GrpcStatusCode::PermissionDenied, Some("denied"), metadata) == Ok(()))
        }
        _ => Err("no such case".to_owned()),
    }
}
