//! A filter's test needs neither WebAssembly nor a proxy. Run with `cargo test -p hello`.

use hello::Hello;
use serde_json::json;
use tollgate_sdk::testing::TestHost;

#[test]
fn greets() {
    let host = TestHost::<Hello>::new(json!({})).unwrap();
    let outcome = host.request("GET", "/").send().respond(200, &[("x-other", "stays")], b"body");
    assert_eq!(outcome.response_header("x-hello"), Some("hello from a filter"));
    assert_eq!(outcome.response_header("x-other"), Some("stays"));
}

#[test]
fn uses_the_configured_greeting() {
    let host = TestHost::<Hello>::new(json!({"greeting": "good evening"})).unwrap();
    let outcome = host.request("GET", "/").send().respond(404, &[], b"");
    assert_eq!(outcome.response_header("x-hello"), Some("good evening"));
}

#[test]
fn rejects_an_invalid_configuration() {
    let Err(error) = TestHost::<Hello>::new(json!({"greeting": "two\nlines"})) else {
        panic!("the configuration was accepted")
    };
    assert_eq!(error.path, "greeting");
    assert!(TestHost::<Hello>::new(json!({"greting": "hello"})).is_err(), "misspelt field name");
}
