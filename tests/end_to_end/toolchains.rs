//! Filters built by the standard Go toolchain and by clang with wasi-libc, with their runtimes and standard libraries.
//! Their sources are in `tests/conformance/go/signature` and `tests/conformance/cpp/cors.cpp`; `setup.sh` there
//! compiles them.

use crate::harness::{Config, Proxy, Upstream, answer, peer};

fn signed(upstream: &Upstream, options: &str) -> Option<Result<Proxy, String>> {
    let module = peer::module("go/signature")?;
    let config = Config::to(upstream).filter("signature", "filter.wasm", options);
    Some(Proxy::try_start(config, &[("filter.wasm", &module)]))
}

const SIGNED: &str = "
    env: {WEBHOOK_SECRET: \"It's a Secret to Everybody\"}
    config: {header: x-hub-signature-256, secret: WEBHOOK_SECRET}";

/// The example in GitHub's documentation of webhooks.
const SIGNATURE: &str = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

#[test]
fn go_checks_signatures() {
    let upstream = Upstream::saying("taken");
    let Some(proxy) = signed(&upstream, SIGNED) else { return };
    let proxy = proxy.expect("it starts");
    proxy.wait_for_output("signatures are checked from 20");
    assert_eq!(proxy.filter("signature")["abi"], "0.2.1");
    let post = |signature: &str, body: &str| {
        proxy.request("POST", "/", &[("x-hub-signature-256", signature)], body.as_bytes())
    };
    assert_eq!(post(SIGNATURE, "Hello, World!").text(), "taken");
    assert_eq!(upstream.only_request().text(), "Hello, World!");
    for (signature, body, status, reason) in [
        (SIGNATURE, "Hello, World?", 403, "invalid signature"),
        ("sha256=00", "Hello, World!", 403, "invalid signature"),
        ("sha256=xyz", "Hello, World!", 400, "encoding/hex: invalid byte: U+0078 'x'"),
        ("", "Hello, World!", 401, "missing signature"),
    ] {
        let response = post(signature, body);
        assert_eq!((response.status(), response.field("content-type")), (status, Some("application/json")));
        assert_eq!(response.text(), format!("{{\"error\":\"{reason}\"}}"));
    }
    let deliveries: Vec<_> = upstream.requests().iter().map(|r| r.field("x-delivery").map(str::len)).collect();
    assert_eq!(deliveries, [Some(16)]);
    let metrics = proxy.metrics();
    assert_eq!(metrics.sum("wasmcustom_signature_good", &[]), 1.0);
    assert_eq!(metrics.sum("wasmcustom_signature_bad", &[]), 4.0);
    assert_eq!(proxy.filter("signature")["traps"], 0);
}

#[test]
fn go_garbage_collection_works() {
    let upstream = Upstream::saying("taken");
    let Some(proxy) = signed(&upstream, &format!("{SIGNED}\n    limits: {{memory: 32MiB}}")) else { return };
    let proxy = proxy.expect("it starts");
    // More than its memory holds, in total.
    let body = vec![b'x'; 900_000];
    let mut client = proxy.client();
    for _ in 0..60 {
        let response = client.request("POST", "/", &[("x-hub-signature-256", SIGNATURE)], &body);
        assert_eq!(response.status(), 403);
    }
    assert_eq!(proxy.filter("signature")["traps"], 0);
}

#[test]
fn go_rejects_an_invalid_configuration() {
    let upstream = Upstream::saying("taken");
    for (options, reason) in [
        ("config: {header: 1}", "invalid configuration: json: cannot unmarshal number into Go struct field"),
        ("config: {secret: NOT_SET}", "environment variable \"NOT_SET\" is not set"),
    ] {
        let Some(started) = signed(&upstream, options) else { return };
        let Err(output) = started else { panic!("it must not start") };
        assert!(output.contains(reason), "{output}");
    }
}

fn cors(upstream: &Upstream, lines: &str) -> Option<Result<Proxy, String>> {
    let module = peer::module("cpp/cors")?;
    let text = serde_json::to_string(lines).expect("a text");
    let options = format!("env: {{CORS_ORIGIN: 'https://c.test'}}\nconfig: {text}");
    let config = Config::to(upstream).filter("cors", "filter.wasm", &options);
    Some(Proxy::try_start(config, &[("filter.wasm", &module)]))
}

const ORIGINS: &str = "origin https://a.test\norigin https://b.test\nmethods GET, PUT\nmax-age 600\n";

#[test]
fn cpp_answers_preflight_requests() {
    let upstream = Upstream::replying(|_| answer(200, &["access-control-allow-origin: *", "x-kept: 1"], "body"));
    let Some(proxy) = cors(&upstream, ORIGINS) else { return };
    let proxy = proxy.expect("it starts");
    proxy.wait_for_output("3 origins");
    let preflight = |origin: &str| {
        let fields = [
            ("origin", origin),
            ("access-control-request-method", "PUT"),
            ("access-control-request-headers", "x-mine"),
        ];
        proxy.request("OPTIONS", "/", &fields, b"")
    };
    let response = preflight("https://a.test");
    let allow = |what: &str| response.field(&format!("access-control-{what}"));
    assert_eq!((response.status(), allow("allow-origin")), (204, Some("https://a.test")));
    assert_eq!((allow("allow-methods"), allow("allow-headers")), (Some("GET, PUT"), Some("x-mine")));
    assert_eq!((allow("max-age"), response.field("vary")), (Some("600"), Some("origin")));
    assert!(upstream.requests().is_empty());
    for (origin, allowed) in [("https://c.test", Some("https://c.test")), ("https://evil.test", None)] {
        let response = proxy.request("GET", "/", &[("origin", origin)], b"");
        assert_eq!((response.status(), response.text()), (200, "body"));
        assert_eq!(response.all("access-control-allow-origin"), Vec::from_iter(allowed));
        assert_eq!(response.field("x-kept"), Some("1"));
    }
    assert_eq!(preflight("https://evil.test").text(), "body", "the upstream answers");
    assert_eq!(proxy.filter("cors")["traps"], 0);
}

#[test]
fn cpp_rejects_an_invalid_configuration() {
    let upstream = Upstream::saying("");
    for (lines, reason) in [("max-age soon", "`soon` is not a number"), ("orign x", "unknown option `orign`")] {
        let Some(started) = cors(&upstream, lines) else { return };
        let Err(output) = started else { panic!("it must not start") };
        assert!(output.contains(reason), "{output}");
    }
}
