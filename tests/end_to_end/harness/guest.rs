//! Filters for tests, written as WebAssembly text, so that each test shows everything that its filter does.
//!
//! In the text, `%"abc"` stands for the address and the length of this text, as host functions take them, and `%pause`
//! and the like for the ABI's constants.

use tollgate_abi::{
    Function, Ty, fast,
    proxy_wasm::{self, action, buffer, log_level, map, metric, stream},
};

use super::wasm;

/// Short names of host functions for the text. Every filter imports all host functions; the others keep their own
/// names.
const SHORT: &[(&str, &str)] = &[
    ("log", "proxy_log"),
    ("tick", "proxy_set_tick_period_milliseconds"),
    ("get_header", "proxy_get_header_map_value"),
    ("add_header", "proxy_add_header_map_value"),
    ("set_header", "proxy_replace_header_map_value"),
    ("remove_header", "proxy_remove_header_map_value"),
    ("get_buffer", "proxy_get_buffer_bytes"),
    ("set_buffer", "proxy_set_buffer_bytes"),
    ("reply", "proxy_send_local_response"),
    ("resume", "proxy_continue_stream"),
    ("get_property", "proxy_get_property"),
    ("set_property", "proxy_set_property"),
    ("foreign", "proxy_call_foreign_function"),
    ("close", "proxy_close_stream"),
    ("become", "proxy_set_effective_context"),
    ("get_shared", "proxy_get_shared_data"),
    ("set_shared", "proxy_set_shared_data"),
    ("register_queue", "proxy_register_shared_queue"),
    ("resolve_queue", "proxy_resolve_shared_queue"),
    ("enqueue", "proxy_enqueue_shared_queue"),
    ("dequeue", "proxy_dequeue_shared_queue"),
    ("define_metric", "proxy_define_metric"),
    ("call", "proxy_http_call"),
    ("grpc_call", "proxy_grpc_call"),
    ("grpc_stream", "proxy_grpc_stream"),
    ("grpc_send", "proxy_grpc_send"),
    ("grpc_cancel", "proxy_grpc_cancel"),
    ("grpc_close", "proxy_grpc_close"),
    ("increment_metric", "proxy_increment_metric"),
    ("get_status", "proxy_get_status"),
    ("intern", "header_intern"),
    ("get_many", "header_get_many"),
    ("header_add", "header_add"),
    ("header_set", "header_set"),
    ("define_bucket", "bucket_define"),
    ("define_limit", "limit_define"),
    ("acquire", "limit_acquire"),
    ("timer", "timer_set"),
    ("log_field", "log_field"),
    ("shared_get", "shared_get"),
    ("shared_set", "shared_set"),
    ("shared_delete", "shared_delete"),
    ("state_get", "state_get"),
    ("state_set", "state_set"),
    ("state_delete", "state_delete"),
    ("metadata_get", "metadata_get"),
    ("metadata_set", "metadata_set"),
    ("metadata_delete", "metadata_delete"),
];

/// The values of the words that `%` can precede.
const NAMES: &[(&str, i32)] = &[
    ("continue", action::CONTINUE),
    ("pause", action::PAUSE),
    ("request", stream::HTTP_REQUEST),
    ("response", stream::HTTP_RESPONSE),
    ("downstream", stream::DOWNSTREAM),
    ("upstream", stream::UPSTREAM),
    ("request_headers", map::HTTP_REQUEST_HEADERS),
    ("request_trailers", map::HTTP_REQUEST_TRAILERS),
    ("response_headers", map::HTTP_RESPONSE_HEADERS),
    ("response_trailers", map::HTTP_RESPONSE_TRAILERS),
    ("call_headers", map::HTTP_CALL_RESPONSE_HEADERS),
    ("call_trailers", map::HTTP_CALL_RESPONSE_TRAILERS),
    ("request_body", buffer::HTTP_REQUEST_BODY),
    ("response_body", buffer::HTTP_RESPONSE_BODY),
    ("downstream_data", buffer::DOWNSTREAM_DATA),
    ("upstream_data", buffer::UPSTREAM_DATA),
    ("call_body", buffer::HTTP_CALL_RESPONSE_BODY),
    ("grpc_message", buffer::GRPC_CALL_MESSAGE),
    ("configuration", buffer::PLUGIN_CONFIGURATION),
    ("trace", log_level::TRACE),
    ("debug", log_level::DEBUG),
    ("info", log_level::INFO),
    ("warn", log_level::WARN),
    ("error", log_level::ERROR),
    ("critical", log_level::CRITICAL),
    ("counter", metric::COUNTER),
    ("gauge", metric::GAUGE),
    ("histogram", metric::HISTOGRAM),
];

/// What every filter needs in addition to host functions: a memory and the marker of the ABI's version.
const PRELUDE: &str = r#"
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

/// An allocator that starts over at its end: nothing in these filters lives that long.
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

/// An import of a host function under this name.
pub fn import(module: &str, function: &Function, name: &str) -> String {
    let word = |ty: &Ty| if *ty == Ty::I64 { " i64" } else { " i32" };
    let params: String = function.params.iter().map(|(_, ty)| word(ty)).collect();
    let result = function.result.as_ref().map_or(String::new(), |ty| format!("(result{})", word(ty)));
    format!("(import \"{module}\" \"{}\" (func ${name} (param{params}) {result}))\n", function.name)
}

/// All host functions of Proxy-Wasm and of Tollgate, with their modules.
pub fn hostcalls() -> impl Iterator<Item = (&'static str, &'static Function)> {
    let standard = proxy_wasm::HOSTCALLS.iter().map(|function| (proxy_wasm::MODULE, function));
    standard.chain(fast::HOSTCALLS.iter().map(|function| (fast::MODULE, function)))
}

/// Imports of all host functions.
fn imports() -> String {
    let name = |long: &'static str| SHORT.iter().find(|(_, of)| *of == long).map_or(long, |(short, _)| *short);
    hostcalls().map(|(module, function)| import(module, function, name(function.name))).collect()
}

/// A filter with this code and the prelude's functions; with an allocator, unless it has its own.
pub fn filter(code: &str) -> Vec<u8> {
    let allocator = if code.contains("(export \"malloc\")") { "" } else { ALLOCATOR };
    let (mut text, mut data) = (String::new(), String::new());
    let mut rest = code;
    while let Some((before, after)) = rest.split_once('%') {
        text += before;
        rest = match after.strip_prefix('"') {
            Some(after) => {
                let (word, after) = after.split_once('"').expect("the end of a text");
                text += &format!("(i32.const {}) (i32.const {})", 1024 + data.len(), word.len());
                data += word;
                after
            }
            None => {
                let end = after.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(after.len());
                let known = NAMES.iter().find(|(name, _)| *name == &after[..end]);
                let (_, value) = known.unwrap_or_else(|| panic!("there is no %{}", &after[..end]));
                text += &format!("(i32.const {value})");
                &after[end..]
            }
        };
    }
    assert!(1024 + data.len() < 65536, "too much text");
    let data: String = data.bytes().map(|byte| format!("\\{byte:02x}")).collect();
    let imports = imports();
    wasm::from_text(&format!(
        "(module {imports} {PRELUDE} {allocator} {text}{rest} (data (i32.const 1024) \"{data}\"))"
    ))
}

/// A filter that holds the bodies of messages (`request`, `response`) until their end.
pub fn holding(messages: &[&str]) -> Vec<u8> {
    let callback = |message: &&str| {
        format!(
            r#"(func (export "proxy_on_{message}_body") (param i32 i32) (param $end i32) (result i32)
                (if (result i32) (local.get $end) (then %continue) (else %pause)))"#
        )
    };
    filter(&messages.iter().map(callback).collect::<String>())
}

/// Functions that report the results of host functions: `$answer` adds a status or a length to the line that the
/// request gets as `x-said`, `$say` adds text, `$property` a property; `$tell` puts the line into the request.
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

/// A filter that runs this code for each request and writes the results into the header `x-said`. `\00` in texts is a
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

/// Code for [`saying`]: repeats a call until its result is not `fine`, or this many times, and reports the number of
/// successful calls and the last result. `(name)` stands for the address and the length of a new name each time; the
/// reported line starts here.
pub fn until_not(fine: i32, times: u32, what: &str) -> String {
    let (name, anew) = match what.contains("(name)") {
        true => {
            ("(global.set $at (i32.const 4096)) (call $digits (global.get $n))", "(global.set $at (i32.const 8192))")
        }
        false => ("", ""),
    };
    let what = what.replace("(name)", "(i32.const 4096) (i32.sub (global.get $at) (i32.const 4096))");
    format!(
        r#"(global.set $n (i32.const 0))
        (block $full
            (loop $more
                (br_if $full (i32.ge_u (global.get $n) (i32.const {times})))
                {name}
                (br_if $full (i32.ne (call $noted {what}) (i32.const {fine})))
                (global.set $n (i32.add (global.get $n) (i32.const 1)))
                (br $more)))
        {anew}
        (call $answer (global.get $n))
        (call $answer (global.get $answered))"#
    )
}

/// A serialized map of headers, as host functions take it; as text, which works while it is short.
pub fn pairs(fields: &[(&str, &str)]) -> String {
    let mut bytes = Vec::new();
    let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
    tollgate_abi::pairs::encode(fields, &mut bytes);
    String::from_utf8(bytes).expect("short names and values")
}

/// A filter that writes its version into `x-version`, of requests and of responses.
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
