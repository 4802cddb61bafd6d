//! Bodies: large ones, in both directions concurrently, with trailers, and clients that do not read them.

use serde_json::json;

use super::{Site, code};
use crate::{
    harness::{Config, Upstream, answer, peer::needs},
    response_heads::flowing,
};

#[test]
fn large_bodies_pass_in_both_directions() {
    needs!("aioquic");
    let upstream = Upstream::replying(|request| answer(200, &[], &request.body));
    let site = Site::to(&upstream, "");
    let mut client = site.connect();
    let size = 16 << 20;
    let response = client.request("a", json!({ "method": "POST", "size": size }));
    assert_eq!((&response["status"], &response["length"]), (&json!(200), &json!(size)), "{response}");
    assert_eq!(response["echo"], true);
    assert_eq!(upstream.only_request().body.len(), size);
}

#[test]
fn trailers_pass_in_both_directions() {
    needs!("aioquic");
    let upstream = Upstream::canned(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 7\r\n\r\n",
    );
    let site = Site::to(&upstream, "");
    let mut client = site.connect();
    for (id, body) in [("a", "up"), ("b", "")] {
        let trailers = json!([["x-check", "9"]]);
        let request =
            json!({ "method": "POST", "fields": [["trailer", "x-check"]], "body": body, "trailers": trailers });
        let response = client.request(id, request);
        assert_eq!((&response["status"], &response["body"]), (&json!(200), &json!("hello")), "{response}");
        assert_eq!(response["trailers"], json!([["x-sum", "7"]]));
    }
    for request in upstream.wait_for_requests(2) {
        assert_eq!(request.trailers.iter().find(|(name, _)| name == "x-check").map(|(_, value)| &**value), Some("9"));
    }
}

/// More than all buffers on the path hold.
const LARGE: usize = 32 << 20;

/// Answers `/large` with this size, and other paths with a word.
fn large() -> Upstream {
    Upstream::replying(|request| match request.target() {
        "/large" => answer(200, &[], vec![b'x'; LARGE]),
        _ => answer(200, &[], "small"),
    })
}

#[test]
fn an_unread_response_does_not_block_others() {
    needs!("aioquic");
    let upstream = large();
    let site = Site::to(&upstream, "");
    let mut client = site.connect();
    client.send("large", json!({ "path": "/large", "paused": true }));
    client.wait(|said| said["id"] == "large" && said["began"] == 200);
    for n in 0..50 {
        assert_eq!(client.request(&n.to_string(), json!({ "path": "/small" }))["body"], "small");
    }
    client.tell(json!({ "do": "resume", "id": "large" }));
    let response = client.end("large");
    assert_eq!((&response["length"], &response["reset"]), (&json!(LARGE), &json!(null)), "{response}");
}

#[test]
fn an_unread_response_is_aborted_after_the_idle_timeout() {
    needs!("aioquic");
    let upstream = large();
    for (listener, cluster, flag) in [("timeouts: {idle: 1s}", "", "SI"), ("", "request_timeout: 2s", "UT")] {
        let site = Site::start(Config::to_with(&upstream, cluster).listener(listener));
        let mut client = site.connect();
        client.send("a", json!({ "path": "/large", "paused": true }));
        assert_eq!(client.end("a")["reset"], code::REQUEST_CANCELLED);
        site.proxy.entry_for("/large").expect(200, flag);
        // The connection is still usable.
        assert_eq!(client.request("b", json!({ "path": "/b" }))["status"], 200);
    }
}

/// Even for other requests of the same client.
#[test]
fn an_unread_response_makes_room_for_others() {
    needs!("aioquic");
    let upstream = large();
    let config = Config::to_with(&upstream, "request_timeout: 0s\nlimits: {connections: 4}").top("workers: 1");
    let site = Site::start(config);
    let mut client = site.connect();
    let held = ["1", "2", "3", "4"];
    held.iter().for_each(|id| client.send(id, json!({ "path": "/large", "paused": true })));
    upstream.wait_for_requests(4);
    assert_eq!(client.request("small", json!({ "path": "/small" }))["body"], "small");
    site.proxy.entry_for("/large").expect(200, "UO").because("download_evicted");
    client.wait(|said| held.iter().any(|id| said["id"] == *id) && said["reset"] == code::REQUEST_CANCELLED);
}

#[test]
fn a_truncated_response_is_reset() {
    needs!("aioquic");
    let upstream = Upstream::canned("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
    let site = Site::to(&upstream, "");
    let mut client = site.connect();
    let response = client.request("a", json!({ "path": "/a" }));
    assert!(response["reset"].is_number(), "{response}");
    site.proxy.entry_for("/a").expect(200, "UC");
}

/// By default only the head of a response has a timeout.
#[test]
fn a_flowing_response_has_no_timeout() {
    needs!("aioquic");
    let upstream = flowing(1500);
    let site = Site::start(Config::to_with(&upstream, "response_head_timeout: 500ms"));
    let response = site.connect().request("a", json!({ "path": "/a" }));
    assert_eq!((&response["status"], &response["body"]), (&json!(200), &json!("xxxxxxxxxx")), "{response}");
}

/// A browser that receives STOP_SENDING before the response treats that as a failure, and sends the whole request
/// again.
#[test]
fn an_early_response_precedes_stop_sending() {
    needs!("aioquic");
    let upstream = Upstream::saying("unused");
    let site = Site::to(&upstream, "limits: {request_body: 1KiB}");
    let mut client = site.connect();
    for (id, size, announced) in [("/a", 300_000, true), ("/b", 300_000, false), ("/c", 16 << 20, true)] {
        let fields = if announced { json!([["content-length", size.to_string()]]) } else { json!([]) };
        let response = client.request(id, json!({ "method": "POST", "path": id, "size": size, "fields": fields }));
        assert_eq!((&response["status"], &response["reset"]), (&json!(413), &json!(null)), "{id} {response}");
        assert_eq!(response["stopped"], json!(null), "{id} {response}");
        site.proxy.entry_for(id).expect(413, "OM").because("request_body_limit");
    }
    assert_eq!(client.request("d", json!({ "path": "/d" }))["status"], 200);
}
