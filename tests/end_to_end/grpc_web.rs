//! gRPC-Web is translated to gRPC for the upstream, and back for the client.

use crate::{
    grpc::{head_only, whole},
    harness::{Config, Message, Proxy, Upstream},
};

/// The message of [`whole`] and its trailers, as a gRPC-Web client sees them.
const BINARY: &[u8] = b"\0\0\0\0\x01m\x80\0\0\0\x24grpc-status: 7\r\ngrpc-message: said\r\n";

fn translating(upstream: &Upstream) -> Proxy {
    Proxy::start(Config::to(upstream).listener("grpc_web: true"))
}

fn call(proxy: &Proxy, kind: &str, body: &[u8]) -> Message {
    proxy.request("POST", "/a.B/C", &[("content-type", kind)], body)
}

#[test]
fn binary_calls_are_translated() {
    let upstream = Upstream::replying(|_| whole(7));
    let proxy = translating(&upstream);
    let response = call(&proxy, "application/grpc-web+proto", b"\0\0\0\0\x01x");
    assert_eq!((response.status(), response.field("content-type")), (200, Some("application/grpc-web+proto")));
    assert_eq!(response.body.escape_ascii().to_string(), BINARY.escape_ascii().to_string());
    assert!(response.trailers.is_empty());
    let request = upstream.only_request();
    assert_eq!(
        (request.field("content-type"), request.field("te")),
        (Some("application/grpc+proto"), Some("trailers"))
    );
    assert_eq!(request.body, b"\0\0\0\0\x01x");
    assert_eq!(proxy.entry_for("/a.B/C")["grpc_status"], 7);
}

#[test]
fn text_calls_are_translated() {
    let upstream = Upstream::replying(|_| whole(7));
    let proxy = translating(&upstream);
    // Two pieces, each padded, cut in the middle of a base64 group.
    let mut client = proxy.client();
    let fields = [("content-type", "application/grpc-web-text"), ("transfer-encoding", "chunked")];
    client.send_request("POST", "/a.B/C", &fields, b"5\r\nAAAAA\r\n8\r\nAF4eA==e\r\n3\r\nQ==\r\n0\r\n\r\n");
    let response = client.read();
    assert_eq!(response.field("content-type"), Some("application/grpc-web-text"));
    // The message and the trailers, each encoded separately.
    assert_eq!(response.text(), "AAAAAAFtgAAAACRncnBjLXN0YXR1czogNw0KZ3JwYy1tZXNzYWdlOiBzYWlkDQo=");
    let request = upstream.only_request();
    assert_eq!(request.field("content-type"), Some("application/grpc"));
    assert_eq!(request.body.escape_ascii().to_string(), r"\x00\x00\x00\x00\x01xxy");
}

#[test]
fn a_trailers_only_response_stays_one() {
    let upstream = Upstream::replying(|_| head_only(5));
    let proxy = translating(&upstream);
    let response = call(&proxy, "application/grpc-web-text+proto", b"AAAAAAA=");
    let kind = Some("application/grpc-web-text+proto");
    assert_eq!((response.field("content-type"), response.field("grpc-status")), (kind, Some("5")));
    assert!(response.body.is_empty());

    let proxy = Proxy::start(Config::new().listener("grpc_web: true"));
    let response = call(&proxy, "application/grpc-web", b"");
    assert_eq!((response.status(), response.field("grpc-status")), (200, Some("12")));
    assert_eq!(response.field("content-type"), Some("application/grpc-web"));
}

#[test]
fn a_body_that_is_not_base64_is_rejected() {
    let upstream = Upstream::replying(|_| whole(0));
    let proxy = translating(&upstream);
    let response = call(&proxy, "application/grpc-web-text", b"AAAA*");
    assert_eq!(response.field("grpc-status"), Some("13"), "{response:?}");
    assert_eq!(proxy.entry_for("/a.B/C")["details"], "bad_request_body");
}

#[test]
fn filters_see_grpc() {
    let upstream = Upstream::replying(|_| whole(0));
    let routes = "config: {virtual_hosts: [{name: a, domains: ['*'], routes: [
        {match: {headers: [{name: content-type, exact: application/grpc}]}, cluster: web,
         response_headers: {set: {x-seen: grpc}}}]}]}";
    let config = Config::new().listener("grpc_web: true").filter("routes", "builtin:router", routes);
    let proxy = Proxy::start(config.cluster("web", &[&upstream], ""));
    assert_eq!(call(&proxy, "application/grpc-web", b"").field("x-seen"), Some("grpc"));
}

#[test]
fn only_configured_listeners_translate() {
    let upstream = Upstream::replying(|_| whole(0));
    let proxy = Proxy::start(Config::to(&upstream));
    call(&proxy, "application/grpc-web-text", b"AAAA");
    let request = upstream.only_request();
    assert_eq!((request.field("content-type"), request.text()), (Some("application/grpc-web-text"), "AAAA"));
    // Other requests are not translated.
    let proxy = translating(&upstream);
    call(&proxy, "text/plain", b"AAAA");
    assert_eq!(upstream.requests()[1].field("content-type"), Some("text/plain"));
}
