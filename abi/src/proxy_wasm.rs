//! Proxy-Wasm 0.2.1 (and the differences in 0.2.0 and 0.1.0): numbers and signatures of the standard.
//!
//! Source: the `proxy-wasm/spec` repository, `abi-versions/v0.2.1`; where it does not specify a behaviour, its C++
//! host's.

use crate::Function;

/// The import module of the standard's functions.
pub const MODULE: &str = "env";

/// The result of a host function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
#[allow(missing_docs)]
pub enum Status {
    Ok = 0,
    NotFound = 1,
    BadArgument = 2,
    SerializationFailure = 3,
    ParseFailure = 4,
    InvalidMemoryAccess = 6,
    Empty = 7,
    CasMismatch = 8,
    InternalFailure = 10,
    Unimplemented = 12,
}

impl Status {
    /// Every status, with its name.
    pub const ALL: &[(Status, &str)] = &[
        (Status::Ok, "Ok"),
        (Status::NotFound, "NotFound"),
        (Status::BadArgument, "BadArgument"),
        (Status::SerializationFailure, "SerializationFailure"),
        (Status::ParseFailure, "ParseFailure"),
        (Status::InvalidMemoryAccess, "InvalidMemoryAccess"),
        (Status::Empty, "Empty"),
        (Status::CasMismatch, "CasMismatch"),
        (Status::InternalFailure, "InternalFailure"),
        (Status::Unimplemented, "Unimplemented"),
    ];
}

/// A callback's result.
pub mod action {
    /// Continue.
    pub const CONTINUE: i32 = 0;
    /// Pause the stream until `proxy_continue_stream` or a local response.
    pub const PAUSE: i32 = 1;
}

/// Severities of `proxy_log`.
pub mod log_level {
    #![allow(missing_docs)]
    pub const TRACE: i32 = 0;
    pub const DEBUG: i32 = 1;
    pub const INFO: i32 = 2;
    pub const WARN: i32 = 3;
    pub const ERROR: i32 = 4;
    pub const CRITICAL: i32 = 5;
}

/// Buffers.
pub mod buffer {
    #![allow(missing_docs)]
    pub const HTTP_REQUEST_BODY: i32 = 0;
    pub const HTTP_RESPONSE_BODY: i32 = 1;
    pub const DOWNSTREAM_DATA: i32 = 2;
    pub const UPSTREAM_DATA: i32 = 3;
    pub const HTTP_CALL_RESPONSE_BODY: i32 = 4;
    pub const GRPC_CALL_MESSAGE: i32 = 5;
    pub const VM_CONFIGURATION: i32 = 6;
    pub const PLUGIN_CONFIGURATION: i32 = 7;
    pub const FOREIGN_FUNCTION_ARGUMENTS: i32 = 8;
}

/// Header maps.
pub mod map {
    #![allow(missing_docs)]
    pub const HTTP_REQUEST_HEADERS: i32 = 0;
    pub const HTTP_REQUEST_TRAILERS: i32 = 1;
    pub const HTTP_RESPONSE_HEADERS: i32 = 2;
    pub const HTTP_RESPONSE_TRAILERS: i32 = 3;
    pub const GRPC_INITIAL_METADATA: i32 = 4;
    pub const GRPC_TRAILING_METADATA: i32 = 5;
    pub const HTTP_CALL_RESPONSE_HEADERS: i32 = 6;
    pub const HTTP_CALL_RESPONSE_TRAILERS: i32 = 7;
}

/// Streams of `proxy_continue_stream` and `proxy_close_stream`.
pub mod stream {
    #![allow(missing_docs)]
    pub const HTTP_REQUEST: i32 = 0;
    pub const HTTP_RESPONSE: i32 = 1;
    pub const DOWNSTREAM: i32 = 2;
    pub const UPSTREAM: i32 = 3;
}

/// Who closed a connection, in `proxy_on_*_connection_close`.
pub mod peer {
    #![allow(missing_docs)]
    pub const UNKNOWN: i32 = 0;
    pub const LOCAL: i32 = 1;
    pub const REMOTE: i32 = 2;
}

/// Kinds of metrics.
pub mod metric {
    #![allow(missing_docs)]
    pub const COUNTER: i32 = 0;
    pub const GAUGE: i32 = 1;
    pub const HISTOGRAM: i32 = 2;
}

/// The prefix of exports that mark an ABI version.
pub const VERSION_MARKER: &str = "proxy_abi_version_";

/// Exports that mark a module's ABI version, with the version; newest first.
pub const VERSION_MARKERS: &[(&str, &str)] =
    &[("proxy_abi_version_0_2_1", "0.2.1"), ("proxy_abi_version_0_2_0", "0.2.0"), ("proxy_abi_version_0_1_0", "0.1.0")];

/// Exports through which the host allocates guest memory, in order of preference (the C++ host's order).
pub const ALLOCATORS: &[&str] = &["malloc", "proxy_on_memory_allocate"];

/// Every function of the standard.
pub const HOSTCALLS: &[Function] = crate::function_table! {
    fn proxy_log(level: i32, message_ptr: i32, message_len: i32) -> i32;
    fn proxy_get_log_level(level_out: i32) -> i32;
    fn proxy_get_current_time_nanoseconds(time_out: i32) -> i32;
    fn proxy_set_tick_period_milliseconds(period: i32) -> i32;
    fn proxy_get_buffer_bytes(buffer: i32, start: i32, max_size: i32, data_out: i32, size_out: i32) -> i32;
    fn proxy_get_buffer_status(buffer: i32, length_out: i32, flags_out: i32) -> i32;
    fn proxy_set_buffer_bytes(buffer: i32, start: i32, size: i32, data_ptr: i32, data_len: i32) -> i32;
    fn proxy_get_header_map_size(map: i32, size_out: i32) -> i32;
    fn proxy_get_header_map_pairs(map: i32, data_out: i32, size_out: i32) -> i32;
    fn proxy_set_header_map_pairs(map: i32, data_ptr: i32, data_len: i32) -> i32;
    fn proxy_get_header_map_value(map: i32, key_ptr: i32, key_len: i32, value_out: i32, size_out: i32) -> i32;
    fn proxy_add_header_map_value(map: i32, key_ptr: i32, key_len: i32, value_ptr: i32, value_len: i32) -> i32;
    fn proxy_replace_header_map_value(map: i32, key_ptr: i32, key_len: i32, value_ptr: i32, value_len: i32) -> i32;
    fn proxy_remove_header_map_value(map: i32, key_ptr: i32, key_len: i32) -> i32;
    fn proxy_continue_stream(stream: i32) -> i32;
    fn proxy_close_stream(stream: i32) -> i32;
    fn proxy_get_status(code_out: i32, message_out: i32, size_out: i32) -> i32;
    fn proxy_send_local_response(code: i32, details_ptr: i32, details_len: i32, body_ptr: i32, body_len: i32, headers_ptr: i32, headers_len: i32, grpc_status: i32) -> i32;
    fn proxy_http_call(upstream_ptr: i32, upstream_len: i32, headers_ptr: i32, headers_len: i32, body_ptr: i32, body_len: i32, trailers_ptr: i32, trailers_len: i32, timeout: i32, id_out: i32) -> i32;
    fn proxy_grpc_call(upstream_ptr: i32, upstream_len: i32, service_ptr: i32, service_len: i32, method_ptr: i32, method_len: i32, metadata_ptr: i32, metadata_len: i32, message_ptr: i32, message_len: i32, timeout: i32, id_out: i32) -> i32;
    fn proxy_grpc_stream(upstream_ptr: i32, upstream_len: i32, service_ptr: i32, service_len: i32, method_ptr: i32, method_len: i32, metadata_ptr: i32, metadata_len: i32, id_out: i32) -> i32;
    fn proxy_grpc_send(id: i32, message_ptr: i32, message_len: i32, end_stream: i32) -> i32;
    fn proxy_grpc_cancel(id: i32) -> i32;
    fn proxy_grpc_close(id: i32) -> i32;
    fn proxy_set_shared_data(key_ptr: i32, key_len: i32, value_ptr: i32, value_len: i32, cas: i32) -> i32;
    fn proxy_get_shared_data(key_ptr: i32, key_len: i32, value_out: i32, size_out: i32, cas_out: i32) -> i32;
    fn proxy_register_shared_queue(name_ptr: i32, name_len: i32, id_out: i32) -> i32;
    fn proxy_resolve_shared_queue(vm_ptr: i32, vm_len: i32, name_ptr: i32, name_len: i32, id_out: i32) -> i32;
    fn proxy_enqueue_shared_queue(id: i32, value_ptr: i32, value_len: i32) -> i32;
    fn proxy_dequeue_shared_queue(id: i32, value_out: i32, size_out: i32) -> i32;
    fn proxy_define_metric(kind: i32, name_ptr: i32, name_len: i32, id_out: i32) -> i32;
    fn proxy_record_metric(id: i32, value: i64) -> i32;
    fn proxy_increment_metric(id: i32, delta: i64) -> i32;
    fn proxy_get_metric(id: i32, value_out: i32) -> i32;
    fn proxy_get_property(path_ptr: i32, path_len: i32, value_out: i32, size_out: i32) -> i32;
    fn proxy_set_property(path_ptr: i32, path_len: i32, value_ptr: i32, value_len: i32) -> i32;
    fn proxy_call_foreign_function(name_ptr: i32, name_len: i32, args_ptr: i32, args_len: i32, result_out: i32, size_out: i32) -> i32;
    fn proxy_set_effective_context(context: i32) -> i32;
    fn proxy_done() -> i32;
};

/// Every callback of the standard that a module may export. An export of another type is an error, except for
/// `proxy_on_request_headers` and `proxy_on_response_headers`, which lack `end_of_stream` in 0.1.0.
pub const CALLBACKS: &[Function] = crate::function_table! {
    fn proxy_on_context_create(context: i32, parent: i32);
    fn proxy_on_vm_start(root: i32, configuration_size: i32) -> i32;
    fn proxy_on_configure(root: i32, configuration_size: i32) -> i32;
    fn proxy_on_tick(root: i32);
    fn proxy_on_queue_ready(root: i32, queue: i32);
    fn proxy_on_new_connection(context: i32) -> i32;
    fn proxy_on_downstream_data(context: i32, size: i32, end_of_stream: i32) -> i32;
    fn proxy_on_upstream_data(context: i32, size: i32, end_of_stream: i32) -> i32;
    fn proxy_on_downstream_connection_close(context: i32, peer: i32);
    fn proxy_on_upstream_connection_close(context: i32, peer: i32);
    fn proxy_on_request_headers(context: i32, count: i32, end_of_stream: i32) -> i32;
    fn proxy_on_request_body(context: i32, size: i32, end_of_stream: i32) -> i32;
    fn proxy_on_request_trailers(context: i32, count: i32) -> i32;
    fn proxy_on_response_headers(context: i32, count: i32, end_of_stream: i32) -> i32;
    fn proxy_on_response_body(context: i32, size: i32, end_of_stream: i32) -> i32;
    fn proxy_on_response_trailers(context: i32, count: i32) -> i32;
    fn proxy_on_http_call_response(root: i32, call: i32, headers: i32, body_size: i32, trailers: i32);
    fn proxy_on_grpc_receive_initial_metadata(root: i32, call: i32, headers: i32);
    fn proxy_on_grpc_receive(root: i32, call: i32, size: i32);
    fn proxy_on_grpc_receive_trailing_metadata(root: i32, call: i32, trailers: i32);
    fn proxy_on_grpc_close(root: i32, call: i32, status: i32);
    fn proxy_on_foreign_function(root: i32, function: i32, size: i32);
    fn proxy_on_done(context: i32) -> i32;
    fn proxy_on_log(context: i32);
    fn proxy_on_delete(context: i32);
};
