//! A response without a body has the `content-length` of the body it would have, or none (RFC 9110 section 8.6).

use super::both;
use crate::{
    guest,
    harness::{Config, Proxy, Upstream, answer},
};

/// A filter that changes the length of each response's body, and leaves heads unchanged.
pub(crate) fn longer() -> Vec<u8> {
    guest::filter(&both(r#"(drop (call $set_buffer BUFFER (i32.const 0) (i32.const 0) %"more ")) (i32.const 0)"#))
}

/// A filter with a headers callback only.
fn heads() -> Vec<u8> {
    guest::filter(r#"(func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32) (i32.const 0))"#)
}

/// An upstream whose responses to `HEAD`, and to a `GET` of `/304`, have a `content-length` without a body.
pub(crate) fn upstream() -> Upstream {
    Upstream::replying(|request| match (request.method(), request.target()) {
        (_, "/304") => b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n".to_vec(),
        ("HEAD", _) => b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n".to_vec(),
        _ => answer(200, &[], "hello"),
    })
}

#[test]
fn a_head_response_omits_a_length_that_a_filter_might_change() {
    let upstream = upstream();
    for (module, get, head) in [(longer(), "10", None), (heads(), "5", Some("5"))] {
        let proxy = Proxy::start_with(Config::to(&upstream).filter("body", "body.wasm", ""), &[("body.wasm", &module)]);
        let mut client = proxy.client();
        assert_eq!(client.get("/").field("content-length"), Some(get));
        for (method, target) in [("HEAD", "/"), ("GET", "/304"), ("HEAD", "/304")] {
            let response = client.request(method, target, &[], b"");
            assert_eq!(response.field("content-length"), head, "{method} {target}: {response:?}");
            assert_eq!(response.field("transfer-encoding"), None, "{method} {target}");
        }
        assert_eq!(client.get("/").status(), 200, "the connection can be reused");

        let mut client = proxy.h2();
        for (method, target) in [("HEAD", "/"), ("GET", "/304")] {
            let response = client.exchange(method, target, &[], b"");
            assert_eq!(response.field("content-length"), head, "HTTP/2, {method} {target}: {response:?}");
        }
    }
}

#[test]
fn a_local_reply_to_head_omits_such_a_length_too() {
    let module = longer();
    let config = Config::new().filter("body", "body.wasm", "");
    let proxy = Proxy::start_with(config, &[("body.wasm", &module)]);
    let whole = proxy.request("GET", "/", &[], b"");
    assert_eq!((whole.status(), whole.text()), (404, "more Not Found"));
    let mut client = proxy.client();
    let head = client.request("HEAD", "/", &[], b"");
    assert_eq!((head.status(), head.field("content-length")), (404, None));
}
