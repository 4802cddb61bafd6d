//! A module's abilities in words, derived from its imports and exports. Only running it shows what it actually does.

use super::anatomy::Anatomy;

/// An ability, and the imports that indicate it; one of them is enough.
const ABILITIES: &[(&str, &[&str])] = &[
    ("responds to requests itself", &["proxy_send_local_response"]),
    ("closes connections", &["proxy_close_stream"]),
    ("selects routes", &["route_select"]),
    ("takes from token buckets (rate limits)", &["bucket_take"]),
    ("limits concurrency", &["limit_acquire"]),
    ("sends its own HTTP requests", &["proxy_http_call"]),
    ("makes gRPC calls", &["proxy_grpc_call", "proxy_grpc_stream"]),
    ("delays requests", &["timer_set"]),
    ("runs periodically", &["proxy_set_tick_period_milliseconds"]),
    ("shares data with other filters and workers", &["proxy_get_shared_data", "proxy_set_shared_data"]),
    (
        "sends messages to other filters and workers",
        &["proxy_register_shared_queue", "proxy_resolve_shared_queue", "proxy_enqueue_shared_queue"],
    ),
    ("calls foreign functions", &["proxy_call_foreign_function"]),
    ("reads headers", &["header_get", "header_get_many", "proxy_get_header_map_value", "proxy_get_header_map_pairs"]),
    (
        "changes headers",
        &[
            "header_set",
            "header_add",
            "header_remove",
            "proxy_add_header_map_value",
            "proxy_replace_header_map_value",
            "proxy_remove_header_map_value",
            "proxy_set_header_map_pairs",
        ],
    ),
    ("changes bodies, or the bytes of connections", &["proxy_set_buffer_bytes"]),
    ("reads the client's address", &["source_address"]),
    ("reads properties of requests", &["proxy_get_property"]),
    (
        "stores data with requests, for other filters",
        &["proxy_set_property", "state_get", "state_set", "metadata_get", "metadata_set"],
    ),
    ("adds to the access log", &["log_field", "flag_set"]),
    ("counts events (metrics)", &["proxy_define_metric"]),
    ("writes to the log", &["proxy_log", "fd_write"]),
    ("reads the clock", &["proxy_get_current_time_nanoseconds", "now", "clock_time_get"]),
    ("uses random numbers", &["random", "random_get"]),
    ("reads its environment", &["environ_get"]),
];

/// The stream callbacks: for headers, bodies and trailers, for TCP connections and their bytes.
pub const PHASES: &[(&str, &str, u32)] = &[
    ("request headers", "proxy_on_request_headers", tollgate_abi::fast::phase::REQUEST_HEADERS),
    ("request body", "proxy_on_request_body", tollgate_abi::fast::phase::REQUEST_BODY),
    ("request trailers", "proxy_on_request_trailers", tollgate_abi::fast::phase::REQUEST_TRAILERS),
    ("response headers", "proxy_on_response_headers", tollgate_abi::fast::phase::RESPONSE_HEADERS),
    ("response body", "proxy_on_response_body", tollgate_abi::fast::phase::RESPONSE_BODY),
    ("response trailers", "proxy_on_response_trailers", tollgate_abi::fast::phase::RESPONSE_TRAILERS),
    ("new connection (TCP)", "proxy_on_new_connection", tollgate_abi::fast::phase::NEW_CONNECTION),
    ("downstream data (TCP)", "proxy_on_downstream_data", tollgate_abi::fast::phase::DOWNSTREAM_DATA),
    ("upstream data (TCP)", "proxy_on_upstream_data", tollgate_abi::fast::phase::UPSTREAM_DATA),
    ("downstream close (TCP)", "proxy_on_downstream_connection_close", tollgate_abi::fast::phase::DOWNSTREAM_CLOSE),
    ("upstream close (TCP)", "proxy_on_upstream_connection_close", tollgate_abi::fast::phase::UPSTREAM_CLOSE),
    ("log", "proxy_on_log", tollgate_abi::fast::phase::LOG),
];

/// Returns the module's abilities.
pub fn abilities(anatomy: &Anatomy) -> Vec<&'static str> {
    let can = |needs: &&[&str]| needs.iter().any(|name| anatomy.imports(name));
    ABILITIES.iter().filter(|(_, needs)| can(needs)).map(|(words, _)| *words).collect()
}

/// Returns the stream callbacks that the module exports.
pub fn phases(anatomy: &Anatomy) -> Vec<&'static str> {
    PHASES.iter().filter(|(_, export, _)| anatomy.exports(export)).map(|(words, ..)| *words).collect()
}

#[cfg(test)]
mod tests {
    use tollgate_abi::{fast, proxy_wasm, wasi};

    use super::*;

    #[test]
    fn abilities_refer_to_existing_functions() {
        let known = |name: &str| {
            let mut all = proxy_wasm::HOSTCALLS.iter().chain(fast::HOSTCALLS).chain(wasi::HOSTCALLS);
            all.any(|f| f.name == name)
        };
        for name in ABILITIES.iter().flat_map(|(_, names)| *names) {
            assert!(known(name), "{name}");
        }
    }
}
