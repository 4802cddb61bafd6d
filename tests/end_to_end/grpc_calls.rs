//! gRPC calls that filters make: unary calls and streams.

use std::sync::mpsc;

use crate::{
    guest::{filter, pairs},
    harness::{
        Config, H2, Proxy, Upstream,
        frames::{code, kind},
    },
};

/// A message with its gRPC framing.
fn framed(message: &[u8]) -> Vec<u8> {
    [&[0], &(message.len() as u32).to_be_bytes()[..], message].concat()
}

/// A filter that makes a call per request, holds the request, and responds with everything it receives: messages
/// verbatim, `I` for the head, `T` for trailers, and the status as a digit at the end.
fn calling(call: &str) -> Vec<u8> {
    let answering = r#"
        (global $stream (mut i32) (i32.const 0))
        (global $said (mut i32) (i32.const 8192))
        (func $say (param $byte i32)
            (i32.store8 (global.get $said) (local.get $byte))
            (global.set $said (i32.add (global.get $said) (i32.const 1))))
        (func (export "proxy_on_grpc_receive_initial_metadata") (param i32 i32 i32) (call $say (i32.const 73)))
        (func (export "proxy_on_grpc_receive_trailing_metadata") (param i32 i32 i32) (call $say (i32.const 84)))
        (func $answer (param $status i32)
            (call $say (i32.add (local.get $status) (i32.const 48)))
            (drop (call $become (global.get $stream)))
            (drop (call $reply (i32.const 200) (i32.const 0) (i32.const 0)
                (i32.const 8192) (i32.sub (global.get $said) (i32.const 8192))
                (i32.const 0) (i32.const 0) (i32.const -1)))
            (global.set $said (i32.const 8192)))
        (func (export "proxy_on_grpc_close") (param $root i32) (param $id i32) (param $status i32)
            (call $answer (local.get $status)))
        (global $unary (mut i32) (i32.const 0))
        (func (export "proxy_on_grpc_receive") (param $root i32) (param $id i32) (param $size i32)
            (drop (call $get_buffer (i32.const 5) (i32.const 0) (local.get $size) (global.get $out) (global.get $out_len)))
            (memory.copy (global.get $said) (i32.load (global.get $out)) (i32.load (global.get $out_len)))
            (global.set $said (i32.add (global.get $said) (i32.load (global.get $out_len))))
            (if (global.get $unary) (then (call $answer (i32.const 0)))))
    "#;
    let metadata = pairs(&[("x-token", "t")]);
    let call = call.replace("METADATA", &format!("%\"{metadata}\""));
    filter(&format!(
        r#"{answering}
        (func (export "proxy_on_request_headers") (param $context i32) (param i32 i32) (result i32)
            (global.set $stream (local.get $context))
            {call}
            (i32.const 1))"#
    ))
}

fn unary(cluster: &str, timeout: u32) -> Vec<u8> {
    calling(&format!(
        r#"(global.set $unary (i32.const 1))
        (if (call $grpc_call %"{cluster}" %"a.B" %"Check" METADATA %"ping" (i32.const {timeout}) (global.get $out))
            (then (call $answer (i32.const 9))))"#
    ))
}

fn answer_head(h2: &mut H2, stream: u32) {
    h2.headers(stream, &[(":status", "200"), ("content-type", "application/grpc")], false);
}

/// The head of a response, its message, and its end with a status.
fn answer(h2: &mut H2, stream: u32, messages: &[&[u8]], status: &str) {
    answer_head(h2, stream);
    for message in messages {
        h2.data(stream, &framed(message), false);
    }
    h2.headers(stream, &[("grpc-status", status), ("grpc-message", "so%20it%20is")], true);
}

fn proxy(upstream: &Upstream, module: &[u8]) -> Proxy {
    let config = Config::new().top("workers: 1").cluster("calls", &[upstream], "protocol: h2");
    Proxy::start_with(config.filter("caller", "caller.wasm", ""), &[("caller.wasm", module)])
}

#[test]
fn a_unary_call_delivers_its_whole_response() {
    let (seen, saw) = mpsc::channel();
    let upstream = Upstream::replying_by_h2(move |h2, stream, request| {
        seen.send(request).unwrap();
        answer(h2, stream, &[b"pong"], "0");
    });
    let proxy = proxy(&upstream, &unary("calls", 2000));
    assert_eq!(proxy.get("/").text(), "pong0");
    let request = saw.recv().unwrap();
    for (name, value) in [
        (":method", "POST"),
        (":path", "/a.B/Check"),
        (":authority", "calls"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("x-token", "t"),
        ("grpc-timeout", "2000000u"),
    ] {
        assert_eq!(request.field(name), Some(value), "{name}");
    }
    assert_eq!(request.body, framed(b"ping"));
}

#[test]
fn a_call_that_fails_ends_with_its_status() {
    let refusing = Upstream::replying_by_h2(|h2, stream, request| match request.field("x-token") {
        Some("t") => answer(h2, stream, &[], "7"),
        _ => h2.reset(stream, code::CANCEL),
    });
    let nothing_but_a_head = Upstream::replying_by_h2(|h2, stream, _| {
        h2.headers(stream, &[(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "5")], true);
    });
    let no_grpc = Upstream::replying_by_h2(|h2, stream, _| h2.answer(stream, 404, b""));
    let silent = Upstream::by_h2(|h2| while h2.next_request().is_ok() {});
    for (upstream, cluster, timeout, status) in [
        (refusing, "calls", 0, "7"),
        (nothing_but_a_head, "calls", 0, "5"),
        // 12, as a digit after `9`.
        (no_grpc, "calls", 0, "<"),
        (silent, "calls", 100, "4"),
        (Upstream::silent(), "nobody", 100, "9"),
    ] {
        assert_eq!(proxy(&upstream, &unary(cluster, timeout)).get("/").text(), status);
    }
}

/// A task that always has something to read must check its deadline, too.
#[test]
fn a_call_times_out_even_if_messages_keep_arriving() {
    let upstream = Upstream::by_h2(|h2| {
        let Ok((stream, _)) = h2.next_request() else { return };
        answer_head(h2, stream);
        let messages = framed(&[b'x'; 100]).repeat(100);
        let mut rest = &messages[..];
        loop {
            match h2.data_within(stream, rest) {
                0 if h2.read().is_err() || h2.so_far(stream).reset.is_some() => return,
                0 => {}
                sent if sent == rest.len() => rest = &messages,
                sent => rest = &rest[sent..],
            }
        }
    });
    assert_eq!(proxy(&upstream, &unary("calls", 300)).get("/").text(), "4");
}

#[test]
fn a_stream_carries_messages_in_both_directions() {
    let upstream = Upstream::replying_by_h2(|h2, stream, request| {
        assert_eq!(request.body, [framed(b"one"), framed(b"two")].concat());
        answer(h2, stream, &[b"three", b"four"], "0");
    });
    let module = calling(
        r#"(drop (call $grpc_stream %"calls" %"a.B" %"Talk" METADATA (global.get $out)))
        (drop (call $grpc_send (i32.load (global.get $out)) %"one" (i32.const 0)))
        (drop (call $grpc_send (i32.load (global.get $out)) %"two" (i32.const 1)))"#,
    );
    let proxy = proxy(&upstream, &module);
    for _ in 0..3 {
        assert_eq!(proxy.get("/").text(), "IthreefourT0");
    }
}

#[test]
fn a_closed_stream_sends_no_further_messages() {
    let upstream = Upstream::replying_by_h2(|h2, stream, request| {
        assert!(request.body.is_empty());
        answer(h2, stream, &[b"so"], "0");
    });
    let module = calling(
        r#"(drop (call $grpc_stream %"calls" %"a.B" %"Talk" METADATA (global.get $out)))
        (drop (call $grpc_close (i32.load (global.get $out))))"#,
    );
    assert_eq!(proxy(&upstream, &module).get("/").text(), "IsoT0");
}

#[test]
fn a_cancelled_call_delivers_nothing_more() {
    let (reset, was_reset) = mpsc::channel();
    let upstream = Upstream::by_h2(move |h2| {
        let (stream, _) = h2.next_head().unwrap();
        answer_head(h2, stream);
        let frame = h2.read_until("the stream's reset", |frame| frame.kind == kind::RST_STREAM);
        reset.send(frame.code()).unwrap();
    });
    // Cancelled when its head arrives; a second cancellation finds no call.
    let module = filter(
        r#"(global $stream (mut i32) (i32.const 0))
        (func (export "proxy_on_request_headers") (param $context i32) (param i32 i32) (result i32)
            (global.set $stream (local.get $context))
            (drop (call $grpc_stream %"calls" %"a.B" %"Talk" (i32.const 0) (i32.const 0) (global.get $out)))
            (i32.const 1))
        (func (export "proxy_on_grpc_receive_initial_metadata") (param $root i32) (param $id i32) (param i32)
            (if (call $grpc_cancel (local.get $id)) (then (unreachable)))
            (if (i32.ne (call $grpc_cancel (local.get $id)) (i32.const 1)) (then (unreachable)))
            (if (i32.ne (call $grpc_send (local.get $id) %"x" (i32.const 0)) (i32.const 1)) (then (unreachable)))
            (drop (call $become (global.get $stream)))
            (drop (call $reply (i32.const 200) %"" %"cancelled" (i32.const 0) (i32.const 0) (i32.const -1))))
        (func (export "proxy_on_grpc_close") (param i32 i32 i32) (unreachable))"#,
    );
    let proxy = proxy(&upstream, &module);
    assert_eq!(proxy.get("/").text(), "cancelled");
    assert_eq!(was_reset.recv().unwrap(), code::CANCEL);
}
