//! The body filter.

use crate::harness::{Config, Proxy, Upstream, answer, wasm};

fn start(upstream: &Upstream, options: &str) -> Proxy {
    let config = Config::to(upstream).module("bodies", &wasm::example("third-party-body"), options);
    Proxy::start(config)
}

#[test]
fn json_is_validated_before_it_is_forwarded() {
    let upstream = Upstream::saying("taken");
    let proxy = start(&upstream, "config: {required: [name]}");
    let post = |kind: &str, body: &str| proxy.request("POST", "/", &[("content-type", kind)], body.as_bytes());
    for (body, mistake) in [
        ("{\"name\": }", "expected value at line 1 column 10"),
        ("[]", "invalid type"),
        ("{\"other\": 1}", "`name` is missing"),
    ] {
        let response = post("application/json; charset=utf-8", body);
        assert_eq!((response.status(), response.field("content-type")), (400, Some("application/json")));
        assert!(response.text().contains(mistake), "{}", response.text());
    }
    assert!(upstream.requests().is_empty());
    let large = format!("{{\"name\": \"{}\"}}", "x".repeat(300_000));
    assert_eq!(post("application/json", &large).text(), "taken");
    assert_eq!(post("text/plain", "[").text(), "taken");
    let requests = upstream.requests();
    assert_eq!((requests[0].text(), requests[1].text()), (&*large, "["));
    assert_eq!(proxy.filter("bodies")["traps"], 0);
}

#[test]
fn words_are_replaced_across_chunk_boundaries() {
    let upstream = Upstream::scripted(|mut connection| {
        while let Some(request) = connection.request() {
            let kind = &request.target()[1..];
            connection.send(format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n"));
            for part in ["see db7.inte", "rnal:80, db7.internal", ":81"] {
                connection.send(format!("{:x}\r\n{part}\r\n", part.len()));
            }
            connection.send("0\r\n\r\n");
        }
    });
    let proxy = start(&upstream, "config: {replace: {db7.internal: database, ':81': ''}}");
    let response = proxy.request("GET", "/text/plain", &[("accept-encoding", "gzip")], b"");
    assert_eq!(response.text(), "see database:80, database");
    assert_eq!(proxy.get("/image/png").text(), "see db7.internal:80, db7.internal:81");
    assert_eq!(upstream.requests()[0].field("accept-encoding"), None);
    assert_eq!(proxy.filter("bodies")["traps"], 0);
}

#[test]
fn a_changed_body_drops_its_content_length() {
    let upstream = Upstream::replying(|_| answer(200, &["content-type: text/html"], "a db b"));
    let proxy = start(&upstream, "config: {replace: {db: database}}");
    let mut client = proxy.client();
    for _ in 0..3 {
        assert_eq!(client.request("GET", "/", &[], b"").text(), "a database b");
    }
    assert_eq!(client.request("HEAD", "/", &[], b"").status(), 200);
}
