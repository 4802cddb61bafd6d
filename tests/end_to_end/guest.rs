//! Filters for tests, written as WebAssembly text: each test shows all that its filter does.
//!
//! In the text, `%"abc"` stands for the address and the length of this text, as host functions want them.

use crate::harness::wasm;

/// What every filter needs: host functions, a memory, a marker of the ABI's version.
const PRELUDE: &str = r#"
    (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
    (import "env" "proxy_set_tick_period_milliseconds" (func $tick (param i32) (result i32)))
    (import "env" "proxy_get_header_map_value" (func $get_header (param i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_add_header_map_value" (func $add_header (param i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_replace_header_map_value" (func $set_header (param i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_remove_header_map_value" (func $remove_header (param i32 i32 i32) (result i32)))
    (import "env" "proxy_get_buffer_bytes" (func $get_buffer (param i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_set_buffer_bytes" (func $set_buffer (param i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_send_local_response" (func $reply (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_continue_stream" (func $resume (param i32) (result i32)))
    (import "env" "proxy_get_property" (func $get_property (param i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_set_property" (func $set_property (param i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_call_foreign_function" (func $foreign (param i32 i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_close_stream" (func $close (param i32) (result i32)))
    (import "env" "proxy_set_effective_context" (func $become (param i32) (result i32)))
    (import "env" "proxy_get_shared_data" (func $get_shared (param i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_set_shared_data" (func $set_shared (param i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_register_shared_queue" (func $register_queue (param i32 i32 i32) (result i32)))
    (import "env" "proxy_resolve_shared_queue" (func $resolve_queue (param i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_enqueue_shared_queue" (func $enqueue (param i32 i32 i32) (result i32)))
    (import "env" "proxy_dequeue_shared_queue" (func $dequeue (param i32 i32 i32) (result i32)))
    (import "env" "proxy_define_metric" (func $define_metric (param i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_http_call"
        (func $call (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_grpc_call"
        (func $grpc_call (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_grpc_stream"
        (func $grpc_stream (param i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_grpc_send" (func $grpc_send (param i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_grpc_cancel" (func $grpc_cancel (param i32) (result i32)))
    (import "env" "proxy_grpc_close" (func $grpc_close (param i32) (result i32)))
    (import "env" "proxy_increment_metric" (func $increment_metric (param i32 i64) (result i32)))
    (import "env" "proxy_get_status" (func $get_status (param i32 i32 i32) (result i32)))
    (import "tollgate_v1" "now" (func $now (result i64)))
    (import "tollgate_v1" "header_intern" (func $intern (param i32 i32) (result i32)))
    (import "tollgate_v1" "header_get_many" (func $get_many (param i32 i32 i32 i32 i32 i32) (result i32)))
    (import "tollgate_v1" "header_add" (func $header_add (param i32 i32 i32 i32) (result i32)))
    (import "tollgate_v1" "header_set" (func $header_set (param i32 i32 i32 i32) (result i32)))
    (import "tollgate_v1" "bucket_define" (func $define_bucket (param i32 i32) (result i32)))
    (import "tollgate_v1" "limit_define" (func $define_limit (param i32 i32 i32) (result i32)))
    (import "tollgate_v1" "limit_acquire" (func $acquire (param i32) (result i32)))
    (import "tollgate_v1" "timer_set" (func $timer (param i64 i64) (result i32)))
    (import "tollgate_v1" "log_field" (func $log_field (param i32 i32 i32 i32) (result i32)))
    (import "tollgate_v1" "shared_get" (func $shared_get (param i32 i32 i32 i32 i32) (result i32)))
    (import "tollgate_v1" "shared_set" (func $shared_set (param i32 i32 i32 i32 i64 i64) (result i32)))
    (import "tollgate_v1" "shared_delete" (func $shared_delete (param i32 i32 i64) (result i32)))
    (import "tollgate_v1" "state_get" (func $state_get (param i32 i32 i32 i32) (result i32)))
    (import "tollgate_v1" "state_set" (func $state_set (param i32 i32 i32 i32) (result i32)))
    (import "tollgate_v1" "state_delete" (func $state_delete (param i32 i32) (result i32)))
    (import "tollgate_v1" "metadata_get" (func $metadata_get (param i32 i32 i32 i32 i32 i32 i32) (result i32)))
    (import "tollgate_v1" "metadata_set" (func $metadata_set (param i32 i32 i32 i32 i32 i32 i32) (result i32)))
    (import "tollgate_v1" "metadata_delete" (func $metadata_delete (param i32 i32 i32 i32) (result i32)))

    (memory (export "memory") 16)
    (func (export "proxy_abi_version_0_2_1"))

    ;; Where host functions put an address and a length.
    (global $out i32 (i32.const 16))
    (global $out_len i32 (i32.const 20))

    ;; Whether a map has a header.
    (func $has (param $map i32) (param $name i32) (param $len i32) (result i32)
        (i32.eqz (call $get_header
            (local.get $map) (local.get $name) (local.get $len) (global.get $out) (global.get $out_len))))
"#;

/// An allocator that starts over when it is through: nothing in these filters lives that long.
const ALLOCATOR: &str = r#"
    (global $free (mut i32) (i32.const 65536))
    (func (export "malloc") (param $size i32) (result i32)
        (local $at i32)
        (local.set $at (global.get $free))
        (if (i32.gt_u (i32.add (local.get $at) (local.get $size)) (i32.const 1048576))
            (then (local.set $at (i32.const 65536))))
        (global.set $free (i32.add (local.get $at) (local.get $size)))
        (local.get $at))
"#;

/// A filter of this code, with the prelude's functions; with an allocator, unless it has its own.
pub fn filter(code: &str) -> Vec<u8> {
    let allocator = if code.contains("(export \"malloc\")") { "" } else { ALLOCATOR };
    let (mut text, mut data) = (String::new(), String::new());
    let mut rest = code;
    while let Some((before, after)) = rest.split_once("%\"") {
        let (word, after) = after.split_once('"').expect("the end of a text");
        let at = 1024 + data.len();
        text += &format!("{before}(i32.const {at}) (i32.const {})", word.len());
        data += word;
        rest = after;
    }
    assert!(1024 + data.len() < 65536, "too much text");
    let data: String = data.bytes().map(|byte| format!("\\{byte:02x}")).collect();
    wasm::from_text(&format!("(module {PRELUDE} {allocator} {text}{rest} (data (i32.const 1024) \"{data}\"))"))
}

/// What filters have that say what host functions answer: `$answer` adds a status or a length to the line that the request
/// gets as `x-said`, `$say` adds text, `$property` a property; `$tell` puts the line into the request.
const SAYING: &str = r#"
    (global $at (mut i32) (i32.const 8192))
    (global $n (mut i32) (i32.const 0))
    (global $answered (mut i32) (i32.const 0))
    (global $stream (mut i32) (i32.const 0))
    (func $noted (param $answer i32) (result i32)
        (global.set $answered (local.get $answer))
        (local.get $answer))
    ;; Opens a gRPC stream, if there is none yet.
    (func $once_stream (result i32)
        (if (global.get $stream) (then (return (i32.const 0))))
        (drop (call $grpc_stream %"calls" %"service" %"method" %"" (i32.const 24)))
        (global.set $stream (i32.load (i32.const 24)))
        (i32.const 0))
    (func $say (param $text i32) (param $len i32)
        (memory.copy (global.get $at) (local.get $text) (local.get $len))
        (global.set $at (i32.add (global.get $at) (local.get $len))))
    (func $digits (param $n i32)
        (if (i32.ge_u (local.get $n) (i32.const 10))
            (then (call $digits (i32.div_u (local.get $n) (i32.const 10)))))
        (i32.store8 (global.get $at) (i32.add (i32.rem_u (local.get $n) (i32.const 10)) (i32.const 48)))
        (global.set $at (i32.add (global.get $at) (i32.const 1))))
    (func $answer (param $n i32)
        (if (i32.lt_s (local.get $n) (i32.const 0))
            (then (call $say %"-") (local.set $n (i32.sub (i32.const 0) (local.get $n)))))
        (call $digits (local.get $n))
        (call $say %" "))
    (func $tell
        (drop (call $add_header (i32.const 0) %"x-said" (i32.const 8192) (i32.sub (global.get $at) (i32.const 8193))))
        (global.set $at (i32.const 8192)))
    (func $property (param $path i32) (param $len i32)
        (call $answer (call $get_property
            (local.get $path) (local.get $len) (global.get $out) (global.get $out_len)))
        (call $say (i32.load (global.get $out)) (i32.load (global.get $out_len)))
        (i32.store (global.get $out_len) (i32.const 0))
        (call $say %" "))"#;

/// A filter that does this when a request comes, and says in its header `x-said` what it was answered. `\00` in texts is a
/// NUL.
pub fn saying(code: &str) -> Vec<u8> {
    let code = code.replace("\\00", "\0");
    filter(&format!(
        r#"{SAYING}
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            {code}
            (call $tell)
            (i32.const 0))"#
    ))
}

/// A map of headers as host functions want it; as a text, which it is as long as it is short.
pub fn pairs(fields: &[(&str, &str)]) -> String {
    let mut bytes = Vec::new();
    let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
    tollgate_abi::pairs::encode(fields, &mut bytes);
    String::from_utf8(bytes).expect("short names and values")
}

/// A filter that puts its version into `x-version`, of requests and of responses.
pub fn version(version: &str) -> Vec<u8> {
    let marking = |callback: &str, map: u8| {
        format!(
            r#"(func (export "{callback}") (param i32 i32 i32) (result i32)
                (drop (call $add_header (i32.const {map}) %"x-version" %"{version}"))
                (i32.const 0))"#
        )
    };
    filter(&(marking("proxy_on_request_headers", 0) + &marking("proxy_on_response_headers", 2)))
}
