//! Requests that affect a shared upstream connection: other requests on it must not suffer.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, mpsc},
};

use super::upstream::{config, connects};
use crate::harness::{
    H2, Proxy, Upstream,
    frames::{code, kind, setting},
    turnstile, wait_until,
};

/// Closes the connection like nginx when a head has a field of more than 8 KiB, or a request has trailers; answers
/// earlier requests only when told to.
fn fragile() -> (Upstream, mpsc::Sender<()>) {
    let (go, wait) = turnstile();
    let upstream = Upstream::by_h2(move |h2| {
        while let Ok((stream, request)) = h2.next_request() {
            // A backslash takes 19 bits.
            let length = |value: &str| value.len().max(value.matches('\\').count() * 19 / 8);
            let long = request.head().is_some_and(|head| head.iter().any(|(_, value)| length(value) > 8 << 10));
            if long || request.blocks.len() > 1 {
                return h2.goaway(stream, code::ENHANCE_YOUR_CALM);
            }
            if request.field(":path") == Some("/held") {
                wait();
            }
            h2.answer(stream, 200, b"fine");
        }
    });
    (upstream, go)
}

#[test]
fn a_request_with_a_long_head_uses_a_separate_connection() {
    let (upstream, go) = fragile();
    let proxy = Proxy::start(config(&upstream, ""));
    let mut client = proxy.h2();
    let held: Vec<_> = (0..5).map(|_| client.request("GET", "/held", &[], true)).collect();
    wait_until("the connection to be shared", || connects(&proxy) == 1.0);
    let long = "v".repeat(40_000);
    assert_eq!(proxy.request("GET", "/long", &[("X-Long", &long)], b"").status(), 502);
    let mut other = proxy.client();
    assert_eq!(other.request("GET", "/longish", &[("X-Long", &long[..8000])], b"").text(), "fine");
    held.iter().for_each(|_| go.send(()).expect("the upstream is running"));
    for stream in held {
        assert_eq!(client.response(stream).text(), "fine");
    }
    assert_eq!(proxy.entry_for("/long")["attempts"], 1);
    // The other requests stayed on the first connection; each long head has its own.
    assert_eq!(connects(&proxy), 3.0);
}

/// The length after compression counts.
#[test]
fn a_head_that_grows_when_compressed_is_a_long_one() {
    let (upstream, go) = fragile();
    let proxy = Proxy::start(config(&upstream, ""));
    let mut client = proxy.h2();
    let held = client.request("POST", "/held", &[], true);
    wait_until("the connection to be shared", || connects(&proxy) == 1.0);
    assert_eq!(proxy.request("GET", "/long", &[("X-Long", &"\\".repeat(3600))], b"").status(), 502);
    go.send(()).expect("the upstream is running");
    assert_eq!(client.response(held).text(), "fine");
    assert_eq!(connects(&proxy), 2.0);
}

/// At the connection limit, an idle connection makes room; if there is none, the request waits for one.
#[test]
fn a_request_with_a_long_head_waits_for_a_separate_connection() {
    let (upstream, go) = fragile();
    let proxy = Proxy::start(config(&upstream, "limits: {connections: 1}"));
    let mut client = proxy.h2();
    let held = client.request("GET", "/held", &[], true);
    wait_until("the connection to be in use", || connects(&proxy) == 1.0);
    let long = "v".repeat(8100);
    let mut other = proxy.client();
    other.send_request("GET", "/longish", &[("X-Long", &long)], b"");
    proxy.wait_for_metric("tollgate_cluster_requests_pending", &[("cluster", "web")], 1.0);
    go.send(()).expect("the upstream is running");
    assert_eq!(client.response(held).text(), "fine");
    assert_eq!(other.read().text(), "fine");
    assert_eq!((proxy.get("/").text(), connects(&proxy)), ("fine", 3.0));
}

#[test]
fn a_request_with_trailers_uses_a_separate_connection() {
    let (upstream, go) = fragile();
    let proxy = Proxy::start(config(&upstream, ""));
    let mut client = proxy.h2();
    let held = client.request("GET", "/held", &[], true);
    wait_until("the connection to be shared", || connects(&proxy) == 1.0);
    let mut other = proxy.h2();
    let post = |client: &mut H2, path: &str, fields: &[(&str, &str)]| {
        let stream = client.begin(path, fields, b"body");
        client.headers(stream, &[("x-sum", "7")], true);
        client.response(stream).status()
    };
    assert_eq!(post(&mut other, "/announced", &[("trailer", "x-sum")]), 502);
    go.send(()).expect("the upstream is running");
    assert_eq!(client.response(held).text(), "fine");
    assert_eq!(connects(&proxy), 2.0);
    // Unannounced trailers are dropped.
    assert_eq!(post(&mut other, "/unannounced", &[]), 200);
    assert_eq!(connects(&proxy), 2.0);
}

#[test]
fn a_head_over_the_upstreams_limit_gets_431() {
    let upstream = Upstream::by_h2_with(&[(setting::MAX_HEADER_LIST_SIZE, 16_384)], |h2, _| {
        while let Ok((stream, request)) = h2.next_request() {
            let length = request.field("x-long").map_or(0, str::len);
            h2.answer(stream, 200, length.to_string().as_bytes());
        }
    });
    let proxy = Proxy::start(config(&upstream, ""));
    let long = "v".repeat(20_000);
    // Also before the upstream's settings are known.
    for path in ["/first", "/second"] {
        assert_eq!(proxy.request("GET", path, &[("X-Long", &long)], b"").status(), 431);
        proxy.entry_for(path).expect(431, "UPE").because("upstream_head_limit");
    }
    for length in [0, 10_000, 15_000] {
        let response = proxy.request("GET", "/", &[("X-Long", &long[..length])], b"");
        assert_eq!(response.text(), length.to_string());
    }
    assert_eq!(connects(&proxy), 2.0, "heads within the upstream's limit share a connection");
}

/// The requests that an upstream received, in order, with the index of the connection.
type Seen = Arc<Mutex<Vec<(usize, String)>>>;

fn was_asked(seen: &Seen, path: &str) -> usize {
    seen.lock().unwrap().iter().filter(|(_, seen)| seen == path).count()
}

/// An upstream whose first connection ends at the request `last`, and answers nothing before; `ends` ends it.
fn ending_at(last: &'static str, ends: impl Fn(&mut H2, &[(u32, String)]) + Send + Sync + 'static) -> (Upstream, Seen) {
    let seen = Seen::default();
    let noted = seen.clone();
    let upstream = Upstream::by_h2_with(&[], move |h2, nth| {
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

/// The most recent request is the likely cause: it is not retried, so that it does not end one connection after
/// another.
#[test]
fn requests_on_a_failed_connection_are_retried_except_the_last() {
    let (upstream, seen) = ending_at("/poison", |_, _| {});
    let proxy = Proxy::start(config(&upstream, ""));
    let mut client = proxy.h2();
    let get = client.request("GET", "/get", &[], true);
    let put = client.request("PUT", "/put", &[], false);
    client.data(put, b"body", true);
    let post = client.request("POST", "/post", &[], false);
    client.data(post, b"body", true);
    wait_until("all requests to arrive", || seen.lock().unwrap().len() == 3);
    let poison = client.request("GET", "/poison", &[], true);
    let statuses = [get, put, post, poison].map(|stream| client.response(stream).status());
    assert_eq!(statuses, [200, 200, 502, 502], "non-idempotent requests are not retried");
    assert_eq!(["/get", "/put", "/post", "/poison"].map(|path| was_asked(&seen, path)), [2, 2, 1, 1]);
    assert_eq!(proxy.entry_for("/get")["attempts"], 2);
    assert_eq!(connects(&proxy), 2.0);
}

/// A GOAWAY names the last request that the upstream has processed.
#[test]
fn the_last_stream_of_a_goaway_is_not_retried() {
    let (upstream, seen) = ending_at("/later", |h2, here| {
        let poison = here.iter().find(|(_, path)| path == "/poison").expect("it has arrived");
        h2.goaway(poison.0, code::ENHANCE_YOUR_CALM);
    });
    let proxy = Proxy::start(config(&upstream, ""));
    let mut client = proxy.h2();
    let get = client.request("GET", "/get", &[], true);
    wait_until("the request to arrive", || was_asked(&seen, "/get") == 1);
    let poison = client.request("GET", "/poison", &[], true);
    wait_until("the request to arrive", || was_asked(&seen, "/poison") == 1);
    // Whatever its method.
    let later = client.request("POST", "/later", &[], false);
    client.data(later, b"body", true);
    let statuses = [get, poison, later].map(|stream| client.response(stream).status());
    assert_eq!(statuses, [200, 502, 200]);
    assert_eq!(["/get", "/poison", "/later"].map(|path| was_asked(&seen, path)), [2, 1, 2]);
}

/// What an upstream has seen of cancelled requests.
#[derive(Default)]
struct Cancellations {
    /// Requests that may be cancelled.
    asked: usize,
    /// Resets per connection.
    resets: BTreeMap<usize, usize>,
}

/// Answers requests immediately, except `/long` never, and `/held` only after the connection's limit of resets was
/// reached.
fn counting() -> (Upstream, Arc<Mutex<Cancellations>>) {
    let taken = Arc::<Mutex<Cancellations>>::default();
    let noted = taken.clone();
    let upstream = Upstream::by_h2_with(&[], move |h2, nth| {
        let mut held = Vec::new();
        while let Ok(frame) = h2.read() {
            let mut noted = noted.lock().unwrap();
            if frame.kind == kind::RST_STREAM {
                *noted.resets.entry(nth).or_default() += 1;
            }
            while let Some((stream, request)) = h2.taken(|message| message.ended) {
                match request.field(":path") {
                    Some("/long") => noted.asked += 1,
                    Some("/held") => held.push(stream),
                    _ => h2.answer(stream, 200, b"fine"),
                }
            }
            if noted.resets.get(&nth).is_some_and(|resets| *resets >= 100) {
                held.drain(..).for_each(|stream| h2.answer(stream, 200, b"fine"));
            }
        }
    });
    (upstream, taken)
}

/// Sends 50 requests and cancels them, this many times.
fn cancel(proxy: &Proxy, taken: &Mutex<Cancellations>, times: usize) {
    for _ in 0..times {
        // A new client each time, so that none exceeds its own limit.
        let mut client = proxy.h2();
        let before = taken.lock().unwrap().asked;
        let streams: Vec<_> = (0..50).map(|_| client.request("GET", "/long", &[], true)).collect();
        wait_until("all requests to arrive", || taken.lock().unwrap().asked == before + 50);
        streams.iter().for_each(|stream| client.reset(*stream, code::CANCEL));
        client.ping();
    }
}

/// Servers close connections with too many resets, whoever shares them: Envoy after 250.
#[test]
fn resets_per_upstream_connection_are_limited() {
    let (upstream, taken) = counting();
    let proxy = Proxy::start(config(&upstream, ""));
    let mut client = proxy.h2();
    let held = client.request("POST", "/held", &[], true);
    cancel(&proxy, &taken, 20);
    assert_eq!(client.response(held).text(), "fine", "it was on the first of the connections");
    assert_eq!(client.get("/").text(), "fine");
    wait_until("all to be reset", || taken.lock().unwrap().resets.values().sum::<usize>() == 1000);
    let resets = taken.lock().unwrap().resets.clone();
    assert!(resets.values().all(|count| *count <= 200), "{resets:?}");
    assert!((5..=11).contains(&upstream.connections()), "{} connections", upstream.connections());
    // The connections that accept no new streams have ended.
    proxy.wait_for_metric("tollgate_cluster_connections", &[("cluster", "web")], 1.0);
}

/// If no other connection is possible, one with many resets is still used, and closed as soon as possible.
#[test]
fn resets_do_not_block_the_only_connection() {
    let (upstream, taken) = counting();
    let proxy = Proxy::start(config(&upstream, "limits: {connections: 1}"));
    let mut client = proxy.h2();
    let long = client.request("GET", "/long", &[], true);
    wait_until("the request to arrive", || taken.lock().unwrap().asked == 1);
    cancel(&proxy, &taken, 4);
    assert_eq!((proxy.get("/").text(), upstream.connections()), ("fine", 1));
    client.reset(long, code::CANCEL);
    proxy.wait_for_metric("tollgate_cluster_connections", &[("cluster", "web")], 0.0);
    assert_eq!((proxy.get("/").text(), upstream.connections()), ("fine", 2));
}

/// Cancelling an answered request does not count, nor do the upstream's own resets.
#[test]
fn a_connection_without_own_resets_is_kept() {
    let upstream = Upstream::replying_by_h2(|h2, stream, request| match request.field(":path") {
        Some("/reset") => h2.reset(stream, code::INTERNAL_ERROR),
        _ => h2.answer(stream, 200, if request.body.is_empty() { b"" } else { b"fine" }),
    });
    let proxy = Proxy::start(config(&upstream, ""));
    let mut client = proxy.client();
    for _ in 0..150 {
        assert_eq!(client.get("/").text(), "");
        assert_eq!(client.request("POST", "/", &[], b"body").text(), "fine");
        assert_eq!(client.request("POST", "/reset", &[], b"body").status(), 502);
    }
    assert_eq!(upstream.connections(), 1);
}

/// Answers each request when it is complete.
fn patient(settings: &'static [(u16, u32)]) -> Upstream {
    Upstream::by_h2_with(settings, |h2, _| {
        while let Ok((stream, _)) = h2.next_request() {
            h2.answer(stream, 200, b"fine");
        }
    })
}

/// Begins an upload that never continues.
fn begin(client: &mut H2, path: &str, from: &str, fields: &[(&str, &str)]) -> u32 {
    client.begin(path, &[&[("x-forwarded-for", from)], fields].concat(), b"x")
}

/// The same for an upload that is rejected.
fn begin_rejected(proxy: &Proxy, client: &mut H2, path: &str, from: &str, fields: &[(&str, &str)], details: &str) {
    let stream = begin(client, path, from, fields);
    assert_eq!(client.response(stream).status(), 503);
    proxy.entry_for(path).expect(503, "UO").because(details);
}

fn wait_for_uploads(proxy: &Proxy, count: f64) {
    proxy.wait_for_metric("tollgate_cluster_uploads", &[("cluster", "web")], count);
}

/// Fields that give a request its own connection.
const ALONE: [(&str, &str); 1] = [("trailer", "x-sum")];

/// There are hundreds of streams, but few connections.
#[test]
fn uploads_with_separate_connections_leave_some_to_others() {
    let upstream = patient(&[]);
    let proxy = Proxy::start(config(&upstream, "limits: {connections: 4}").listener("trusted_hops: 1"));
    let mut client = proxy.h2();
    assert_eq!(client.get("/").text(), "fine");
    let held = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(|from| begin(&mut client, "/held", from, &ALONE));
    wait_until("each to have a connection", || connects(&proxy) == 4.0);
    for (from, fields) in [("192.0.2.1", &ALONE[..]), ("192.0.2.1", &[])] {
        begin_rejected(&proxy, &mut client, "/client", from, fields, "client_uploads_overflow");
    }
    begin_rejected(&proxy, &mut client, "/all", "192.0.2.4", &ALONE, "uploads_overflow");
    assert_eq!((client.get("/").text(), connects(&proxy)), ("fine", 4.0));
    // A finished upload frees its connection.
    client.headers(held[0], &[("x-sum", "7")], true);
    assert_eq!(client.response(held[0]).text(), "fine");
    wait_for_uploads(&proxy, 2.0);
    begin(&mut client, "/next", "192.0.2.4", &ALONE);
    wait_until("the next to have one", || connects(&proxy) == 5.0);
}

#[test]
fn tcp_tunnels_count_as_whole_connections() {
    let upstream = patient(&[]);
    let config = config(&upstream, "limits: {connections: 4}").listener("connect: true\ntrusted_hops: 1");
    let proxy = Proxy::start(config);
    let mut client = proxy.h2();
    let mut connect = |from: &str| {
        let head = [(":method", "CONNECT"), (":authority", "test:443"), ("x-forwarded-for", from)];
        let stream = client.open(&head, false);
        client.wait(stream, "a head", |message| !message.blocks.is_empty()).status()
    };
    let statuses = ["192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"].map(&mut connect);
    assert_eq!(statuses, [200, 503, 200, 200, 503]);
    assert_eq!(proxy.get("/").text(), "fine");
}

/// At the connection limit, an upload that needs a separate connection takes over the shared one; the others are never
/// left without any.
#[test]
fn an_upload_on_the_only_connection_blocks_no_other_request() {
    let upstream = patient(&[]);
    let proxy = Proxy::start(config(&upstream, "limits: {connections: 1}"));
    let mut client = proxy.h2();
    assert_eq!(client.get("/").text(), "fine");
    let held = begin(&mut client, "/held", "192.0.2.1", &ALONE);
    wait_until("the upload to have a connection", || connects(&proxy) == 2.0);
    proxy.wait_for_metric("tollgate_cluster_connections", &[("cluster", "web")], 1.0);
    for _ in 0..3 {
        assert_eq!(client.get("/").text(), "fine");
    }
    // The others do not get more than one by that, and a request that needs a separate connection waits.
    let long = "v".repeat(8100);
    let waits = client.request("GET", "/longish", &[("x-long", &long)], true);
    proxy.wait_for_metric("tollgate_cluster_requests_pending", &[("cluster", "web")], 1.0);
    assert_eq!((client.get("/").text(), connects(&proxy)), ("fine", 3.0));
    client.headers(held, &[("x-sum", "7")], true);
    assert_eq!([held, waits].map(|stream| client.response(stream).status()), [200, 200]);
}

/// The limit is a share of the upstream's streams, not of the configured ones.
#[test]
fn uploads_use_a_share_of_the_upstreams_streams() {
    let upstream = patient(&[(setting::MAX_CONCURRENT_STREAMS, 2)]);
    let proxy = Proxy::start(config(&upstream, "limits: {connections: 4}").listener("trusted_hops: 1"));
    let mut client = proxy.h2();
    assert_eq!(client.get("/").text(), "fine");
    for from in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
        let _held = [(); 2].map(|()| begin(&mut client, "/held", from, &[]));
    }
    wait_for_uploads(&proxy, 6.0);
    begin_rejected(&proxy, &mut client, "/client", "192.0.2.1", &[], "client_uploads_overflow");
    begin_rejected(&proxy, &mut client, "/all", "192.0.2.4", &[], "uploads_overflow");
    assert_eq!(client.get("/").text(), "fine");
}
