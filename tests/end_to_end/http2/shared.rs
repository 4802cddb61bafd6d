//! What one request does to a connection that others share with it: they do not pay for it.

use std::sync::{Arc, Mutex, mpsc};

use super::upstream::{config, connects, speaking};
use crate::harness::{
    H2, Proxy, Upstream,
    frames::{code, setting},
    wait_until,
};

/// Ends the connection as nginx does when a head has a field of more than 8 KiB, or a request has trailers; answers what came before
/// only when it is told to.
fn fragile() -> (Upstream, mpsc::Sender<()>) {
    let (go, told) = mpsc::channel();
    let told = Mutex::new(told);
    let upstream = speaking(&[], move |h2, _| {
        while let Ok((stream, request)) = h2.next_request() {
            let long = request.head().is_some_and(|head| head.iter().any(|(_, value)| value.len() > 8 << 10));
            if long || request.blocks.len() > 1 {
                return h2.goaway(stream, code::ENHANCE_YOUR_CALM);
            }
            if request.field(":path") == Some("/held") {
                told.lock().unwrap().recv().expect("the test tells");
            }
            h2.answer(stream, 200, b"fine");
        }
    });
    (upstream, go)
}

#[test]
fn a_request_with_a_long_head_goes_by_a_connection_of_its_own() {
    let (upstream, go) = fragile();
    let proxy = Proxy::start(config(&upstream, ""));
    let mut client = proxy.h2();
    let held: Vec<_> = (0..5).map(|_| client.request("GET", "/held", &[], true)).collect();
    wait_until("the connection to be shared", || connects(&proxy) == 1.0);
    let long = "v".repeat(40_000);
    assert_eq!(proxy.request("GET", "/long", &[("X-Long", &long)], b"").status(), 502);
    let mut other = proxy.client();
    assert_eq!(other.request("GET", "/longish", &[("X-Long", &long[..8000])], b"").text(), "fine");
    held.iter().for_each(|_| go.send(()).expect("the upstream is there"));
    for stream in held {
        assert_eq!(client.response(stream).text(), "fine");
    }
    assert_eq!(proxy.entry_for("/long")["attempts"], 1);
    // They were on the first connection all the time; heads of some length have one each.
    assert_eq!(connects(&proxy), 3.0);
}

/// Where there may be no further connection, one without a request makes room, and is waited for if there is none.
#[test]
fn a_request_with_a_long_head_waits_for_a_place_of_its_own() {
    let (upstream, go) = fragile();
    let proxy = Proxy::start(config(&upstream, "limits: {connections: 1}"));
    let mut client = proxy.h2();
    let held = client.request("GET", "/held", &[], true);
    wait_until("the connection to be in use", || connects(&proxy) == 1.0);
    let long = "v".repeat(8100);
    let mut other = proxy.client();
    other.send_request("GET", "/longish", &[("X-Long", &long)], b"");
    proxy.wait_for_metric("tollgate_cluster_requests_pending", &[("cluster", "web")], 1.0);
    go.send(()).expect("the upstream is there");
    assert_eq!(client.response(held).text(), "fine");
    assert_eq!(other.read().text(), "fine");
    assert_eq!((proxy.get("/").text(), connects(&proxy)), ("fine", 3.0));
}

#[test]
fn a_request_with_trailers_goes_by_a_connection_of_its_own() {
    let (upstream, go) = fragile();
    let proxy = Proxy::start(config(&upstream, ""));
    let mut client = proxy.h2();
    let held = client.request("GET", "/held", &[], true);
    wait_until("the connection to be shared", || connects(&proxy) == 1.0);
    let mut other = proxy.h2();
    let post = |client: &mut H2, path: &str, fields: &[(&str, &str)]| {
        let stream = client.request("POST", path, fields, false);
        client.data(stream, b"body", false);
        client.headers(stream, &[("x-sum", "7")], true);
        client.response(stream).status()
    };
    assert_eq!(post(&mut other, "/announced", &[("trailer", "x-sum")]), 502);
    go.send(()).expect("the upstream is there");
    assert_eq!(client.response(held).text(), "fine");
    assert_eq!(connects(&proxy), 2.0);
    // Those that were not announced are left out.
    assert_eq!(post(&mut other, "/unannounced", &[]), 200);
    assert_eq!(connects(&proxy), 2.0);
}

#[test]
fn a_head_that_is_longer_than_the_upstream_says_is_answered_with_431() {
    let upstream = speaking(&[(setting::MAX_HEADER_LIST_SIZE, 16_384)], |h2, _| {
        while let Ok((stream, request)) = h2.next_request() {
            let length = request.field("x-long").map_or(0, str::len);
            h2.answer(stream, 200, length.to_string().as_bytes());
        }
    });
    let proxy = Proxy::start(config(&upstream, ""));
    let long = "v".repeat(20_000);
    // Also when nothing is known of the upstream yet.
    for path in ["/first", "/second"] {
        assert_eq!(proxy.request("GET", path, &[("X-Long", &long)], b"").status(), 431);
        let entry = proxy.entry_for(path);
        assert_eq!((&entry["flags"], &entry["details"]), (&"UPE".into(), &"upstream_head_limit".into()));
    }
    for length in [0, 10_000, 15_000] {
        let response = proxy.request("GET", "/", &[("X-Long", &long[..length])], b"");
        assert_eq!(response.text(), length.to_string());
    }
    assert_eq!(connects(&proxy), 2.0, "what the upstream takes by its own word shares a connection");
}

/// What an upstream was asked, in that order, with the connections.
type Seen = Arc<Mutex<Vec<(usize, String)>>>;

fn was_asked(seen: &Seen, path: &str) -> usize {
    seen.lock().unwrap().iter().filter(|(_, seen)| seen == path).count()
}

/// An upstream whose first connection ends when it is asked for `last`, and answers nothing before; `ends` says how.
fn ending_at(last: &'static str, ends: impl Fn(&mut H2, &[(u32, String)]) + Send + Sync + 'static) -> (Upstream, Seen) {
    let seen = Seen::default();
    let noted = seen.clone();
    let upstream = speaking(&[], move |h2, nth| {
        let mut here = Vec::new();
        while let Ok((stream, request)) = h2.next_request() {
            let path = request.field(":path").unwrap_or_default().to_owned();
            noted.lock().unwrap().push((nth, path.clone()));
            here.push((stream, path.clone()));
            match nth {
                0 if path == last => return ends(h2, &here),
                0 => {}
                _ => h2.answer(stream, 200, b"fine"),
            }
        }
    });
    (upstream, seen)
}

/// The likely reason is the request that has begun last: that one does not walk through all connections.
#[test]
fn those_on_a_connection_that_ends_are_asked_again_but_the_last_one() {
    let (upstream, seen) = ending_at("/poison", |_, _| {});
    let proxy = Proxy::start(config(&upstream, ""));
    let mut client = proxy.h2();
    let get = client.request("GET", "/get", &[], true);
    let put = client.request("PUT", "/put", &[], false);
    client.data(put, b"body", true);
    let post = client.request("POST", "/post", &[], false);
    client.data(post, b"body", true);
    wait_until("all to have come", || seen.lock().unwrap().len() == 3);
    let poison = client.request("GET", "/poison", &[], true);
    let statuses = [get, put, post, poison].map(|stream| client.response(stream).status());
    assert_eq!(statuses, [200, 200, 502, 502], "what is not idempotent is not sent twice");
    assert_eq!(["/get", "/put", "/post", "/poison"].map(|path| was_asked(&seen, path)), [2, 2, 1, 1]);
    assert_eq!(proxy.entry_for("/get")["attempts"], 2);
    assert_eq!(connects(&proxy), 2.0);
}

/// A GOAWAY says which request was the last that the upstream has looked at.
#[test]
fn the_reason_for_a_goaway_is_the_last_stream_that_it_names() {
    let (upstream, seen) = ending_at("/later", |h2, here| {
        let poison = here.iter().find(|(_, path)| path == "/poison").expect("it was there");
        h2.goaway(poison.0, code::ENHANCE_YOUR_CALM);
    });
    let proxy = Proxy::start(config(&upstream, ""));
    let mut client = proxy.h2();
    let get = client.request("GET", "/get", &[], true);
    wait_until("it to have come", || was_asked(&seen, "/get") == 1);
    let poison = client.request("GET", "/poison", &[], true);
    wait_until("it to have come", || was_asked(&seen, "/poison") == 1);
    // Whatever its method.
    let later = client.request("POST", "/later", &[], false);
    client.data(later, b"body", true);
    let statuses = [get, poison, later].map(|stream| client.response(stream).status());
    assert_eq!(statuses, [200, 502, 200]);
    assert_eq!(["/get", "/poison", "/later"].map(|path| was_asked(&seen, path)), [2, 1, 2]);
}
