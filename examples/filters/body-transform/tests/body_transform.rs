//! Bodies that are changed, and bodies that cannot be.

use body_transform::BodyTransform;
use serde_json::json;
use tollgate_sdk::testing::{Outcome, TestHost};

fn host() -> TestHost<BodyTransform> {
    let config = json!({"redact": ["pin"], "replace": [{"find": "colour", "with": "color"}], "max_bytes": 40});
    TestHost::new(config).unwrap()
}

fn respond<'h>(host: &'h TestHost<BodyTransform>, headers: &[(&str, &str)], body: &[u8]) -> Outcome<'h, BodyTransform> {
    host.request("GET", "/").send().respond(200, headers, body)
}

#[test]
fn fields_are_redacted() {
    let host = host();
    let headers = [("content-type", "application/json; charset=utf-8"), ("etag", "\"1\""), ("x-other", "stays")];
    let outcome = respond(&host, &headers, br#"{"user": "ann", "pin": 1234}"#);
    assert_eq!(outcome.response_body(), br#"{"user": "ann", "pin": "***"}"#);
    assert_eq!((outcome.response_header("etag"), outcome.response_header("x-other")), (None, Some("stays")));
}

#[test]
fn parts_are_joined_first() {
    let host = host();
    let outcome = host.request("GET", "/").send();
    outcome.respond_head(200, &[("content-type", "text/plain")]);
    outcome.respond_body(b"col", false);
    assert_eq!(outcome.response_body(), b"");
    outcome.respond_body(b"our, colours", true);
    assert_eq!(outcome.response_body(), b"color, colors");
}

#[test]
fn other_bodies_pass_unchanged() {
    let host = host();
    let image = respond(&host, &[("content-type", "image/png"), ("etag", "\"1\"")], &[b'x'; 100]);
    assert_eq!((image.response_body().len(), image.response_header("etag")), (100, Some("\"1\"")));
    assert!(respond(&host, &[("content-type", "application/json")], b"").continued());
}

#[test]
fn bodies_that_cannot_be_changed_are_rejected() {
    let host = host();
    for (headers, body, details) in [
        (&[("content-type", "application/json")][..], &[b' '; 41][..], "body_too_large"),
        (&[("content-type", "application/json")], b"{\"pin\": ", "invalid_json"),
        (&[("content-type", "text/html"), ("content-encoding", "br")], b"...", "encoded_body"),
    ] {
        let outcome = respond(&host, headers, body);
        assert_eq!((outcome.status(), outcome.details()), (Some(502), Some(details)));
        assert_eq!(outcome.response_body(), b"");
    }
}

#[test]
fn requests_ask_for_unencoded_whole_bodies() {
    let host = host();
    let outcome = host.request("GET", "/").header("accept-encoding", "br").header("range", "bytes=0-1").send();
    assert_eq!((outcome.request_header("accept-encoding"), outcome.request_header("range")), (None, None));
}
