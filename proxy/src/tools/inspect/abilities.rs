//! What a module can do, in words: told by what it imports and exports. What it does, only running it shows.

use super::anatomy::Anatomy;

/// An ability, and the imports and exports of which one is enough to have it.
const ABILITIES: &[(&str, &[&str])] = &[
    ("answers requests itself", &["proxy_send_local_response"]),
    ("closes connections", &["proxy_close_stream"]),
    ("chooses routes", &["route_select"]),
    ("takes from token buckets (rate limits)", &["bucket_take"]),
    ("bounds how many requests do something at once", &["limit_acquire"]),
    ("sends HTTP requests of its own", &["proxy_http_call"]),
    ("asks for gRPC calls", &["proxy_grpc_call", "proxy_grpc_stream"]),
    ("holds requests for a time", &["timer_set"]),
    ("does something at regular times", &["proxy_set_tick_period_milliseconds"]),
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
    ("asks who the client is", &["source_address"]),
    ("reads properties of requests", &["proxy_get_property"]),
    (
        "keeps things with requests, for other filters",
        &["proxy_set_property", "state_get", "state_set", "metadata_get", "metadata_set"],
    ),
    ("adds to the access log", &["log_field", "flag_set"]),
    ("counts things (metrics)", &["proxy_define_metric"]),
    ("writes to the log", &["proxy_log", "fd_write"]),
    ("looks at the clock", &["proxy_get_current_time_nanoseconds", "now", "clock_time_get"]),
    ("throws dice", &["random", "random_get"]),
    ("reads its environment", &["environ_get"]),
];

/// Callbacks for streams: whether the filter looks at heads, bodies, trailers; at TCP connections and their bytes.
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

/// What the module can do.
pub fn abilities(anatomy: &Anatomy) -> Vec<&'static str> {
    let can = |needs: &&[&str]| needs.iter().any(|name| anatomy.imports(name));
    ABILITIES.iter().filter(|(_, needs)| can(needs)).map(|(words, _)| *words).collect()
}

/// The callbacks for streams that it exports.
pub fn phases(anatomy: &Anatomy) -> Vec<&'static str> {
    PHASES.iter().filter(|(_, export, _)| anatomy.exports(export)).map(|(words, ..)| *words).collect()
}

#[cfg(test)]
mod tests {
    use tollgate_abi::{fast, proxy_wasm, wasi};

    use super::*;

    #[test]
    fn abilities_are_those_of_functions_that_there_are() {
        let known = |name: &str| {
            let mut all = proxy_wasm::HOSTCALLS.iter().chain(fast::HOSTCALLS).chain(wasi::HOSTCALLS);
            all.any(|f| f.name == name)
        };
        for name in ABILITIES.iter().flat_map(|(_, names)| *names) {
            assert!(known(name), "{name}");
        }
    }
}
