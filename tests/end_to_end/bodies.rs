//! Filters that read, change and buffer bodies: the output is what they produced, and the heads describe it correctly.

mod held;
pub(crate) mod length;
mod stopped;

use crate::{
    guest,
    harness::{Config, Message, Proxy, Upstream, answer},
    hot_swap::Gate,
};

/// Instantiates this code for requests and for responses; `MESSAGE` in it becomes `request` or `response`.
fn for_both(code: &str) -> String {
    ["request", "response"].map(|message| code.replace("MESSAGE", message)).concat()
}

/// The same for the body callbacks. The code can use `(local.get $size)`, `(local.get $end)` and `BUFFER`, and returns
/// the callback's result.
fn both(code: &str) -> String {
    let code = code.replace("BUFFER", "%MESSAGE_body");
    for_both(&format!(
        r#"(func (export "proxy_on_MESSAGE_body")
            (param $context i32) (param $size i32) (param $end i32) (result i32) {code})"#
    ))
}

/// Uppercases each part in place.
fn capitals() -> Vec<u8> {
    let code = r#"
        (drop (call $get_buffer BUFFER (i32.const 0) (local.get $size) (global.get $out) (global.get $out_len)))
        (call $raise (i32.load (global.get $out)) (i32.load (global.get $out_len)))
        (drop (call $set_buffer BUFFER (i32.const 0) (local.get $size)
            (i32.load (global.get $out)) (i32.load (global.get $out_len))))
        (i32.const 0)"#;
    let raise = r#"
        (func $raise (param $at i32) (param $len i32)
            (local $end i32)
            (local.set $end (i32.add (local.get $at) (local.get $len)))
            (loop $more
                (if (i32.lt_u (local.get $at) (local.get $end)) (then
                    (if (i32.lt_u (i32.sub (i32.load8_u (local.get $at)) (i32.const 97)) (i32.const 26))
                        (then (i32.store8 (local.get $at) (i32.sub (i32.load8_u (local.get $at)) (i32.const 32)))))
                    (local.set $at (i32.add (local.get $at) (i32.const 1)))
                    (br $more)))))"#;
    guest::filter(&(raise.to_owned() + &both(code)))
}

/// Buffers a body until its end, then lets `code` change it.
fn at_the_end(code: &str) -> Vec<u8> {
    guest::filter(&both(&format!("(if (i32.eqz (local.get $end)) (then (return (i32.const 1)))) {code} (i32.const 0)")))
}

/// An upstream that answers with a body in two parts, framed by a length or in chunks, depending on the path.
fn in_parts(first: &'static str, second: &'static str) -> Upstream {
    Upstream::scripted(move |mut connection| {
        while let Some(request) = connection.request() {
            if request.target() == "/chunked" {
                connection.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
                for part in [first, second] {
                    connection.send(format!("{:x}\r\n{part}\r\n", part.len()));
                }
                connection.send("0\r\n\r\n");
            } else {
                let length = first.len() + second.len();
                connection.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{first}"));
                connection.send(second);
            }
        }
    })
}

fn with(upstream: &Upstream, module: &[u8], options: &str, listener: &str) -> Proxy {
    let config = Config::to(upstream).listener(listener).filter("body", "body.wasm", options);
    Proxy::start_with(config, &[("body.wasm", module)])
}

/// Sends a body in two parts, in both framings, and returns the bodies that the upstream and the client received.
/// Asserts that `content-length`, if present, is the body's length.
fn passed(proxy: &Proxy, upstream: &Upstream, first: &str, second: &str) -> [(String, String); 2] {
    let told = |message: &Message| {
        if let Some(length) = message.field("content-length") {
            assert_eq!(length, message.body.len().to_string());
        }
        message.text().to_owned()
    };
    let length = first.len() + second.len();
    let framed = |target: &str, framing: &str, parts: [String; 2]| {
        let mut client = proxy.client();
        client.send(format!("POST {target} HTTP/1.1\r\nhost: test\r\n{framing}\r\n\r\n{}", parts[0]));
        client.send(&parts[1]);
        let response = client.read();
        assert_eq!(response.status(), 200, "{response:?}");
        assert!(client.get("/length").status() == 200, "the connection is reused");
        let request = upstream.requests().into_iter().rfind(|r| r.method() == "POST").expect("the request");
        (told(&request), told(&response))
    };
    let chunk = |part: &str| format!("{:x}\r\n{part}\r\n", part.len());
    [
        framed("/length", &format!("content-length: {length}"), [first.to_owned(), second.to_owned()]),
        framed("/chunked", "transfer-encoding: chunked", [chunk(first), chunk(second) + "0\r\n\r\n"]),
    ]
}

fn both_ways(request: &str, response: &str) -> [(String, String); 2] {
    [(); 2].map(|()| (request.to_owned(), response.to_owned()))
}

#[test]
fn each_part_is_changed_in_place() {
    let upstream = in_parts("good ", "evening");
    let proxy = with(&upstream, &capitals(), "", "");
    assert_eq!(passed(&proxy, &upstream, "hello ", "world"), both_ways("HELLO WORLD", "GOOD EVENING"));
    // Large ones, too.
    let large = "abc".repeat(200_000);
    assert_eq!(proxy.request("POST", "/length", &[], large.as_bytes()).status(), 200);
    assert!(upstream.requests().last().expect("the large one").text() == large.to_uppercase());
}

#[test]
fn a_part_is_forwarded_before_the_next_one_arrives() {
    let (arrived, answered) = (Gate::default(), Gate::default());
    let (arrives, go_on) = (arrived.clone(), answered.clone());
    let upstream = Upstream::scripted(move |mut connection| {
        connection.head();
        assert_eq!(connection.wire.read_exact(11).expect("a part"), b"6\r\nHELLO \r\n");
        arrives.open();
        assert_eq!(connection.wire.read_exact(15).expect("a part"), b"5\r\nWORLD\r\n0\r\n\r\n");
        connection.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\ngood \r\n");
        go_on.wait();
        connection.send("7\r\nevening\r\n0\r\n\r\n");
    });
    let proxy = with(&upstream, &capitals(), "", "");
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n6\r\nhello \r\n");
    arrived.wait();
    client.send("5\r\nworld\r\n0\r\n\r\n");
    assert_eq!(client.wire.read_head().expect("a head").status(), 200);
    assert_eq!(client.wire.read_exact(10).expect("a part"), b"5\r\nGOOD \r\n");
    answered.open();
    assert_eq!(client.wire.read_exact(17).expect("a part"), b"7\r\nEVENING\r\n0\r\n\r\n");
}

#[test]
fn a_whole_body_is_replaced() {
    let upstream = in_parts("good ", "evening");
    for by in ["other", "a body longer than the original", ""] {
        let code = format!("(drop (call $set_buffer BUFFER (i32.const 0) (i32.const -1) %\"{by}\"))");
        let proxy = with(&upstream, &at_the_end(&code), "", "");
        assert_eq!(passed(&proxy, &upstream, "hello ", "world"), both_ways(by, by));
    }
}

#[test]
fn a_whole_body_is_prepended_patched_and_appended_to() {
    let upstream = in_parts("good ", "evening");
    let code = r#"
        (drop (call $set_buffer BUFFER (local.get $size) (i32.const 0) %"]"))
        (drop (call $set_buffer BUFFER (i32.const 0) (i32.const 0) %"["))
        (drop (call $set_buffer BUFFER (i32.const 3) (i32.const 2) %"|"))"#;
    let proxy = with(&upstream, &at_the_end(code), "", "");
    assert_eq!(passed(&proxy, &upstream, "hello ", "world"), both_ways("[he|o world]", "[go| evening]"));
}

#[test]
fn bytes_are_appended_at_the_end() {
    // As the standard requires, the filter removes `content-length`, because it forwards parts before it knows the length.
    let heads = for_both(
        r#"(func (export "proxy_on_MESSAGE_headers") (param i32 i32 i32) (result i32)
            (drop (call $remove_header %MESSAGE_headers %"content-length"))
            %continue)"#,
    );
    let code = r#"
        (if (local.get $end)
            (then (drop (call $set_buffer BUFFER (local.get $size) (i32.const 0) %"!"))))
        (i32.const 0)"#;
    let upstream = in_parts("good ", "evening");
    let proxy = with(&upstream, &guest::filter(&(heads + &both(code))), "", "");
    assert_eq!(passed(&proxy, &upstream, "hello ", "world"), both_ways("hello world!", "good evening!"));
}

#[test]
fn a_content_length_that_filters_changed_is_not_sent() {
    // A filter that makes every part longer and leaves the head unchanged. Small bodies are complete before the head is
    // forwarded; with larger ones, a partial body must not look complete.
    let code = r#"(drop (call $set_buffer BUFFER (i32.const 0) (i32.const 0) %"more ")) (i32.const 0)"#;
    let module = guest::filter(&both(code));
    let small = Upstream::saying("small");
    let proxy = with(&small, &module, "", "");
    let response = proxy.request("POST", "/", &[], b"body");
    assert_eq!((response.status(), response.text()), (200, "more small"));
    assert_eq!(small.only_request().text(), "more body");

    let large: &str = "x".repeat(500_000).leak();
    let upstream = in_parts("large ", large);
    let proxy = with(&upstream, &module, "", "");
    let mut client = proxy.client();
    // The whole body, with the addition to each part, however many parts there were.
    let whole = |message: &Message| {
        assert_eq!((message.field("content-length"), message.field("transfer-encoding")), (None, Some("chunked")));
        assert!(message.text().starts_with("more ") && message.text().matches('x').count() == 500_000);
    };
    let response = client.get("/length");
    assert_eq!(response.status(), 200);
    whole(&response);

    let upstream = Upstream::saying("small");
    let proxy = with(&upstream, &module, "", "");
    assert_eq!(proxy.request("POST", "/", &[], large.as_bytes()).text(), "more small");
    whole(&upstream.only_request());
}

#[test]
fn two_filters_see_bodies_in_order() {
    let upstream = in_parts("good ", "evening");
    let sign = |sign: &str| {
        at_the_end(&format!("(drop (call $set_buffer BUFFER (local.get $size) (i32.const 0) %\"{sign}\"))"))
    };
    let (capitals, one, two) = (capitals(), sign("-one"), sign("-two"));
    let config = Config::to(&upstream)
        .filter("one", "one.wasm", "")
        .filter("capitals", "capitals.wasm", "")
        .filter("two", "two.wasm", "");
    let files: &[(&str, &[u8])] = &[("one.wasm", &one), ("capitals.wasm", &capitals), ("two.wasm", &two)];
    let proxy = Proxy::start_with(config, files);
    let expected = both_ways("HELLO WORLD-ONE-two", "GOOD EVENING-TWO-one");
    assert_eq!(passed(&proxy, &upstream, "hello ", "world"), expected);
}

#[test]
fn a_local_reply_passes_the_filters_that_saw_the_request() {
    let gate = guest::filter(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (drop (call $reply (i32.const 403) %"why" %"no" %"" (i32.const -1)))
            (i32.const 1))
        (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
            (drop (call $add_header (i32.const 2) %"x-own" %"seen"))
            (i32.const 0))"#,
    );
    let capitals = capitals();
    let files: &[(&str, &[u8])] = &[("gate.wasm", &gate), ("capitals.wasm", &capitals)];
    for (first, second, body) in [("gate", "capitals", "no"), ("capitals", "gate", "NO")] {
        let config =
            Config::new().filter(first, &format!("{first}.wasm"), "").filter(second, &format!("{second}.wasm"), "");
        let response = Proxy::start_with(config, files).get("/");
        assert_eq!((response.status(), response.text()), (403, body), "{first}, {second}");
        assert_eq!(response.field("x-own"), Some("seen"), "the filter that replied sees its own response");
    }
}

#[test]
fn messages_without_a_body_stay_without_one() {
    // The body callback is not called for them, or called with an empty body; both are fine.
    let code = r#"(drop (call $set_buffer BUFFER (i32.const 0) (i32.const 0) %"more ")) (i32.const 0)"#;
    let upstream = Upstream::replying(|request| match request.target() {
        "/204" => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        "/304" => b"HTTP/1.1 304 Not Modified\r\ncontent-length: 100\r\n\r\n".to_vec(),
        _ if request.method() == "HEAD" => b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n".to_vec(),
        _ => answer(200, &[], ""),
    });
    let proxy = with(&upstream, &guest::filter(&both(code)), "", "");
    let mut client = proxy.client();
    for (method, target, status) in [("GET", "/204", 204), ("GET", "/304", 304), ("HEAD", "/", 200)] {
        let response = client.request(method, target, &[], b"");
        assert_eq!((response.status(), &*response.body), (status, &b""[..]), "{method} {target}");
    }
    assert_eq!(client.get("/").status(), 200);
    let bodies: Vec<_> = upstream.requests().into_iter().map(|request| request.body).collect();
    assert_eq!(bodies, [b""; 4]);
}

/// Adds a trailer at a body's last part.
fn adding_trailers() -> Vec<u8> {
    guest::filter(&both(
        r#"(if (local.get $end)
            (then (drop (call $add_header %MESSAGE_trailers %"x-added" %"1"))))
        (i32.const 0)"#,
    ))
}

#[test]
fn trailers_are_added_to_messages_without_any() {
    // HTTP/2 on both sides; the conformance suite covers HTTP/1.1.
    let upstream = Upstream::replying_by_h2(|h2, stream, request| {
        let seen = ["x-added", "x-saw"].map(|name| request.trailer(name).unwrap_or("none").to_owned());
        h2.answer(stream, 200, format!("{} {}", request.text(), seen.join(" ")).as_bytes());
    });
    let seeing = guest::filter(&for_both(
        r#"(func (export "proxy_on_MESSAGE_trailers") (param i32 i32) (result i32)
            (drop (call $add_header %MESSAGE_trailers %"x-saw" %"it")) %continue)"#,
    ));
    // Filters after the one that adds them see the trailers, in both directions.
    let config = Config::to_with(&upstream, "protocol: h2")
        .filter("first", "adding.wasm", "")
        .filter("seeing", "seeing.wasm", "")
        .filter("last", "adding.wasm", "");
    let proxy = Proxy::start_with(config, &[("adding.wasm", &adding_trailers()), ("seeing.wasm", &seeing)]);
    let mut client = proxy.h2();
    for parts in [&[(&b"x"[..], true)][..], &[(b"x", false), (b"", true)]] {
        let stream = client.request("POST", "/", &[], false);
        parts.iter().for_each(|(data, end)| client.data(stream, data, *end));
        let response = client.response(stream);
        assert_eq!(response.text(), "x 1 it");
        assert_eq!((response.trailer("x-added"), response.trailer("x-saw")), (Some("1"), Some("it")));
    }
}
