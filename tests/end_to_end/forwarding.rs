//! What goes in comes out: requests and responses pass the proxy as HTTP/1.1 wants it.

use crate::harness::{Config, Proxy, Upstream};

#[test]
fn a_request_reaches_the_upstream_and_its_response_the_client() {
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::start(Config::to(&upstream));
    let response = proxy.request("POST", "/path?query=1", &[("X-Some", "thing")], b"body");
    assert_eq!((response.status(), response.text()), (200, "hello"));
    let request = upstream.only_request();
    assert_eq!((request.method(), request.target()), ("POST", "/path?query=1"));
    assert_eq!((request.field("x-some"), &*request.body), (Some("thing"), &b"body"[..]));
    let entry = proxy.entry_for("/path");
    assert_eq!((&entry["status"], &entry["cluster"]), (&200.into(), &"web".into()));
    assert_eq!(proxy.metrics().sum("tollgate_requests_total", &[("class", "2xx")]), 1.0);
}
