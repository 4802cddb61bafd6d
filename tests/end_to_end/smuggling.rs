//! Request smuggling: messages that two parsers could interpret differently are rejected before an upstream sees any of
//! them.

use crate::{
    guest,
    harness::{Config, Proxy, Upstream},
};

const NEXT: &str = "GET /smuggled HTTP/1.1\r\nHost: test\r\n\r\n";

/// Heads and bodies whose framing is invalid or ambiguous. `{chunked}` and the like are placeholders, see [`expanded`];
/// another request follows each.
const FRAMING: &[(&str, &str)] = &[
    ("two different lengths", "{post}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
    ("one length twice", "{post}Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"),
    ("a list of lengths", "{post}Content-Length: 5, 5\r\n\r\nhello"),
    ("a list of different lengths", "{post}Content-Length: 5, 6\r\n\r\nhello"),
    ("a length with a sign", "{post}Content-Length: +5\r\n\r\nhello"),
    ("a negative length", "{post}Content-Length: -5\r\n\r\nhello"),
    ("a hexadecimal length", "{post}Content-Length: 0x5\r\n\r\nhello"),
    ("a length with an underscore", "{post}Content-Length: 1_0\r\n\r\nhello"),
    ("a length with a space in it", "{post}Content-Length: 1 0\r\n\r\nhello"),
    ("a fraction of a length", "{post}Content-Length: 5.0\r\n\r\nhello"),
    ("an empty length", "{post}Content-Length: \r\n\r\nhello"),
    ("a length that overflows", "{post}Content-Length: 18446744073709551621\r\n\r\nhello"),
    ("a length with chunks", "{post}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("chunks with a length", "{post}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
    ("chunks with a length of 0", "{post}Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n"),
    ("identity", "{post}Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello"),
    ("only identity", "{post}Transfer-Encoding: identity\r\n\r\n"),
    ("an unknown encoding", "{post}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    ("gzip and chunked", "{post}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ("chunked and identity", "{post}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
    ("chunked in quotes", "{post}Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n"),
    ("chunked with a parameter", "{post}Transfer-Encoding: chunked;x=y\r\n\r\n0\r\n\r\n"),
    ("chunked twice", "{post}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("chunked and another", "{post}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n"),
    ("an empty encoding", "{post}Transfer-Encoding: \r\n\r\n0\r\n\r\n"),
    ("chunked after a vertical tab", "{post}Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
    ("chunks in HTTP/1.0", "POST / HTTP/1.0\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("a folded line", "{get}X-A: 1\r\n 2\r\n\r\n"),
    ("a folded line with a tab", "{get}X-A: 1\r\n\tTransfer-Encoding: chunked\r\n\r\n"),
    ("a folded first field", "GET / HTTP/1.1\r\n Host: test\r\n\r\n"),
    ("a folded encoding", "{post}Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
    ("LF after the request line", "GET / HTTP/1.1\nHost: test\r\n\r\n"),
    ("LF after a field", "GET / HTTP/1.1\r\nHost: test\n\r\n"),
    ("LF at the end of the head", "GET / HTTP/1.1\r\nHost: test\r\n\n"),
    ("LF everywhere", "GET / HTTP/1.1\nHost: test\n\n"),
    ("CR in a value", "{get}X-A: 1\r2\r\n\r\n"),
    ("CR CR LF", "{get}X-A: 1\r\r\n\r\n"),
    ("CR instead of CR LF", "{get}X-A: 1\rX-B: 2\r\n\r\n"),
    ("a space before the colon", "{post}Content-Length : 5\r\n\r\nhello"),
    ("a tab before the colon", "{post}Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n"),
    ("a space in a name", "{get}X A: 1\r\n\r\n"),
    ("a name with a slash", "{get}X/A: 1\r\n\r\n"),
    ("a name with a control byte", "{get}X\x01A: 1\r\n\r\n"),
    ("a name with a high byte", "{get}X\u{e9}: 1\r\n\r\n"),
    ("an empty name", "{get}: 1\r\n\r\n"),
    ("no colon", "{get}X-A\r\n\r\n"),
    ("NUL in a value", "{get}X-A: 1\x002\r\n\r\n"),
    ("a control byte in a value", "{get}X-A: 1\x012\r\n\r\n"),
    ("DEL in a value", "{get}X-A: 1\x7f2\r\n\r\n"),
    ("NUL in the target", "GET /\x00 HTTP/1.1\r\nHost: test\r\n\r\n"),
    ("a space in the target", "GET /a b HTTP/1.1\r\nHost: test\r\n\r\n"),
    ("a tab in the request line", "GET\t/ HTTP/1.1\r\nHost: test\r\n\r\n"),
    ("two spaces in the request line", "GET  / HTTP/1.1\r\nHost: test\r\n\r\n"),
    ("a request line of three words and more", "GET / HTTP/1.1 HTTP/1.1\r\nHost: test\r\n\r\n"),
    ("no version", "GET /\r\nHost: test\r\n\r\n"),
    ("an unknown version", "GET / HTTP/1.2\r\nHost: test\r\n\r\n"),
    ("a version of the future", "GET / HTTP/3.0\r\nHost: test\r\n\r\n"),
    ("an invalid version", "GET / HTTX/1.1\r\nHost: test\r\n\r\n"),
    ("a version in lower case", "GET / http/1.1\r\nHost: test\r\n\r\n"),
    ("an invalid method", "G@T / HTTP/1.1\r\nHost: test\r\n\r\n"),
    ("a negative chunk", "{chunked}-1\r\nhello\r\n0\r\n\r\n"),
    ("a chunk size with 0x", "{chunked}0x5\r\nhello\r\n0\r\n\r\n"),
    ("a chunk size with a sign", "{chunked}+5\r\nhello\r\n0\r\n\r\n"),
    ("a chunk size that overflows", "{chunked}10000000000000005\r\nhello\r\n0\r\n\r\n"),
    ("an invalid chunk size", "{chunked}five\r\nhello\r\n0\r\n\r\n"),
    ("an empty chunk size", "{chunked}\r\nhello\r\n0\r\n\r\n"),
    ("a space before the chunk size", "{chunked} 5\r\nhello\r\n0\r\n\r\n"),
    ("LF after the chunk size", "{chunked}5\nhello\r\n0\r\n\r\n"),
    ("LF in a chunk extension", "{chunked}5;a\nb\r\nhello\r\n0\r\n\r\n"),
    ("CR in a chunk extension", "{chunked}5;a\rb\r\nhello\r\n0\r\n\r\n"),
    ("no CR LF after the data", "{chunked}5\r\nhello0\r\n\r\n"),
    ("LF after the data", "{chunked}5\r\nhello\n0\r\n\r\n"),
    ("more data than the chunk's size", "{chunked}4\r\nhello\r\n0\r\n\r\n"),
    ("LF after the last chunk", "{chunked}5\r\nhello\r\n0\n\n"),
    ("a folded trailer", "{chunked}0\r\nX-A: 1\r\n 2\r\n\r\n"),
    ("a trailer with a space before its colon", "{chunked}0\r\nX-A : 1\r\n\r\n"),
    ("an invalid trailer", "{chunked}0\r\nGET / HTTP/1.1\r\n\r\n"),
];

/// Requests with valid framing that are invalid for another reason.
const MEANING: &[(&str, &str)] = &[
    ("no host", "GET / HTTP/1.1\r\n\r\n"),
    ("two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    ("one host twice", "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
    ("an empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n"),
    ("two hosts in one", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n"),
    ("a host with a space", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
    ("a host with a path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    ("a host with a user", "GET / HTTP/1.1\r\nHost: user@a\r\n\r\n"),
    ("two hosts and an absolute target", "GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    ("an asterisk that is not for OPTIONS", "GET * HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("a broken percent-encoding", "GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("an encoded NUL", "GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n"),
];

/// The same for targets that contain a host.
const TARGETS: &[(&str, &str)] = &[
    ("a target with a user", "GET http://user@a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("a target that is an authority", "GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n"),
];

fn expanded(vector: &str) -> String {
    let post = "POST / HTTP/1.1\r\nHost: test\r\n";
    vector
        .replace("{post}", post)
        .replace("{get}", "GET / HTTP/1.1\r\nHost: test\r\n")
        .replace("{chunked}", &format!("{post}Transfer-Encoding: chunked\r\n\r\n"))
}

#[test]
fn ambiguous_framing_is_rejected_and_the_connection_closed() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream));
    let mut wrong = Vec::new();
    for (name, vector) in FRAMING {
        let before = upstream.requests().len();
        let mut client = proxy.client();
        client.send(expanded(vector) + NEXT);
        // The client does not close the connection: the proxy must.
        let answers = client.wire.read_to_end().escape_ascii().to_string();
        let refused = answers.starts_with("HTTP/1.1 400 ") && answers.matches("HTTP/1.1 ").count() == 1;
        let seen = &upstream.requests()[before..];
        if !refused || !seen.is_empty() {
            wrong.push(format!("{name}: {answers} {seen:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let refused = FRAMING.len() as f64;
    proxy.wait_for_metric("tollgate_requests_total", &[("class", "4xx")], refused);
    proxy.wait_for_metric("tollgate_response_flags_total", &[("flag", "DPE")], refused);
    assert_eq!(proxy.metrics().sum("tollgate_requests_total", &[]), refused, "each is counted once");
}

/// Independent of how the bytes are split.
#[test]
fn ambiguous_framing_is_rejected_byte_by_byte_too() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream));
    for wanted in ["chunks with a length", "LF in a chunk extension", "a folded encoding", "LF after the data"] {
        let (_, vector) = FRAMING.iter().find(|(name, _)| *name == wanted).expect("a known vector");
        let mut client = proxy.client();
        for byte in expanded(vector).bytes() {
            // The proxy may have rejected it already.
            if client.wire.send([byte]).is_err() {
                break;
            }
        }
        let answers = client.wire.read_to_end().escape_ascii().to_string();
        assert!(answers.starts_with("HTTP/1.1 400 "), "{wanted}: {answers}");
    }
    assert!(upstream.requests().is_empty());
}

#[test]
fn invalid_requests_with_valid_framing_are_rejected() {
    refuses(MEANING);
}

#[test]
fn absolute_targets_follow_the_same_rules() {
    refuses(TARGETS);
}

#[test]
fn ports_must_be_numbers() {
    refuses(&[
        ("a port in letters", "GET / HTTP/1.1\r\nHost: a:b\r\n\r\n"),
        ("a port that is too large", "GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n"),
        ("a port in letters in the target", "GET http://a:b/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    ]);
}

fn refuses(vectors: &[(&str, &str)]) {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream));
    let answered = |vector: &str| {
        let mut client = proxy.client();
        client.send(vector);
        client.wire.read_response("GET").map_or(0, |response| response.status())
    };
    let wrong: Vec<_> =
        vectors.iter().map(|(name, vector)| (name, answered(vector))).filter(|(_, status)| *status != 400).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(upstream.requests().is_empty(), "{:#?}", upstream.requests());
}

/// RFC 9112, section 3.2.2: the target decides, and `Host` is rewritten to match it.
#[test]
fn an_absolute_target_overrides_the_host() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.client();
    client.send("GET http://real:81/x?y HTTP/1.1\r\nHost: other\r\n\r\n");
    assert_eq!(client.read().status(), 200);
    let request = upstream.only_request();
    assert_eq!((request.target(), request.field("host")), ("/x?y", Some("real:81")));
    assert_eq!(request.field("x-forwarded-host"), Some("real:81"));
    assert_eq!(proxy.entry_for("/x?y")["authority"], "real:81");
}

#[test]
fn unusual_but_valid_requests_pass() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream));
    let vectors = [
        ("empty lines before a request", "\r\n\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\n".to_owned()),
        ("leading zeros in a length", expanded("{post}Content-Length: 005\r\n\r\nhello")),
        ("a chunk extension", expanded("{chunked}5;name=value\r\nhello\r\n0\r\n\r\n")),
        ("capitals in chunked", expanded("{post}Transfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")),
        ("leading zeros in a chunk size", expanded("{chunked}0005\r\nhello\r\n000\r\n\r\n")),
        ("no space after a colon", "GET / HTTP/1.1\r\nHost:test\r\n\r\n".to_owned()),
        ("a high byte in a value", expanded("{get}X-A: \u{e9}\r\n\r\n")),
    ];
    for (name, vector) in &vectors {
        let mut client = proxy.client();
        client.send(vector);
        assert_eq!(client.read().status(), 200, "{name}");
    }
    let bodies: Vec<_> = upstream.requests().iter().map(|r| r.text().to_owned()).collect();
    assert_eq!(bodies, ["", "hello", "hello", "hello", "hello", "", ""]);
}

/// Responses, too, could be ambiguous to a parser behind the client.
#[test]
fn ambiguous_upstream_responses_are_rejected() {
    for (name, response) in [
        ("two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!"),
        ("a negative length", "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok"),
        ("a list of lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nok!"),
        ("NUL in a value", "HTTP/1.1 200 OK\r\nX-A: \x00\r\nContent-Length: 2\r\n\r\nok"),
        ("an unrequested switch", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"),
    ] {
        let upstream = Upstream::canned(response);
        let proxy = Proxy::start(Config::to(&upstream));
        assert_eq!(proxy.get("/").status(), 502, "{name}");
        assert_eq!(proxy.entry_for("/")["details"], "upstream_protocol_error", "{name}");
    }
}

/// Framing fields set by a filter are never sent: messages have the framing of their bodies.
#[test]
fn filters_cannot_change_the_framing() {
    const SAID: [(&str, &str); 2] = [("transfer-encoding", "chunked"), ("x-kept", "1")];
    let target = [(":method", "POST"), (":path", "/asked"), (":authority", "calls")];
    let long = [("content-length", "99")];
    let asked = guest::pairs(&[&target[..], &long, &[("upgrade", "websocket")], &SAID].concat());
    let replied = guest::pairs(&[&long[..], &SAID].concat());
    let add = |map: u8| -> String {
        let add = |(name, value)| format!("(drop (call $add_header (i32.const {map}) %\"{name}\" %\"{value}\"))\n");
        SAID.map(add).concat()
    };
    let (nothing, to_request, to_response) = ("(i32.const 0) (i32.const 0)", add(0), add(2));
    let module = guest::filter(&format!(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (if (call $has (i32.const 0) %"x-reply") (then
                (drop (call $reply (i32.const 200) {nothing} %"hello" %"{replied}" (i32.const -1)))
                (return (i32.const 1))))
            {to_request}
            (drop (call $call %"calls" %"{asked}" %"hello" {nothing} (i32.const 0) (i32.const 24)))
            (i32.const 0))
        (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32) {to_response} (i32.const 0))"#
    ));
    let (upstream, calls) = (Upstream::saying("hello"), Upstream::saying(""));
    let proxy = Proxy::start(Config::to(&upstream).cluster("calls", &[&calls], "").module("f", &module, ""));
    let mut client = proxy.client();
    let response = client.request("POST", "/", &[], b"hello");
    let reply = client.request("GET", "/", &[("x-reply", "1")], b"");
    let (request, call) = (upstream.only_request(), calls.wait_for_requests(1).remove(0));
    for (name, message) in [("request", request), ("call", call), ("response", response), ("reply", reply)] {
        let framing = ["content-length", "transfer-encoding", "upgrade"];
        let framing = framing.map(|name| message.all(name).join(" and "));
        assert_eq!(framing, ["5", "", ""], "{name}: {message:?}");
        assert_eq!((message.text(), message.all("x-kept").is_empty()), ("hello", false), "{name}: {message:?}");
    }
}
