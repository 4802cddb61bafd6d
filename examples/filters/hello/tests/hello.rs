//! A filter's test needs neither WebAssembly nor a proxy: `cargo test -p hello`.

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
fn says_what_it_is_told() {
    let host = TestHost::<Hello>::new(json!({"greeting": "good evening"})).unwrap();
    let outcome = host.request("GET", "/").send().respond(404, &[], b"");
    assert_eq!(outcome.response_header("x-hello"), Some("good evening"));
}

#[test]
fn refuses_a_wrong_configuration() {
    let Err(error) = TestHost::<Hello>::new(json!({"greeting": "two\nlines"})) else { panic!("it was taken") };
    assert_eq!(error.path, "greeting");
    assert!(TestHost::<Hello>::new(json!({"greting": "hello"})).is_err(), "a misspelt name");
}
