//! What one request does to a connection that others share with it: they do not pay for it.

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

/// Ends the connection as nginx does when a head has a field of more than 8 KiB, or a request has trailers; answers
/// what came before only when it is told to.
fn fragile() -> (Upstream, mpsc::Sender<()>) {
    let (go, wait) = turnstile();
    let upstream = Upstream::by_h2(move |h2| {
        while let Ok((stream, request)) = h2.next_request() {
            // It has 19 bits for each backslash.
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

/// What counts is how long it is on the way.
#[test]
fn a_head_that_grows_when_it_is_compressed_is_a_long_one() {
    let (upstream, go) = fragile();
    let proxy = Proxy::start(config(&upstream, ""));
    let mut client = proxy.h2();
    let held = client.request("POST", "/held", &[], true);
    wait_until("the connection to be shared", || connects(&proxy) == 1.0);
    assert_eq!(proxy.request("GET", "/long", &[("X-Long", &"\\".repeat(3600))], b"").status(), 502);
    go.send(()).expect("the upstream is there");
    assert_eq!(client.response(held).text(), "fine");
    assert_eq!(connects(&proxy), 2.0);
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
        let stream = client.begin(path, fields, b"body");
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
    let upstream = Upstream::by_h2_with(&[(setting::MAX_HEADER_LIST_SIZE, 16_384)], |h2, _| {
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
        proxy.entry_for(path).expect(431, "UPE").because("upstream_head_limit");
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

/// What an upstream has seen of requests that were taken back.
#[derive(Default)]
struct Taken {
    /// Requests that may be taken back.
    asked: usize,
    /// Resets on each connection.
    resets: BTreeMap<usize, usize>,
}

/// Answers requests at once, but `/long` never, and `/held` only when as much has been reset on its connection as may be.
fn counting() -> (Upstream, Arc<Mutex<Taken>>) {
    let taken = Arc::<Mutex<Taken>>::default();
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

/// Asks for much and takes it back, so many times 50.
fn take_back(proxy: &Proxy, taken: &Mutex<Taken>, times: usize) {
    for _ in 0..times {
        // None of them does too much of it.
        let mut client = proxy.h2();
        let before = taken.lock().unwrap().asked;
        let streams: Vec<_> = (0..50).map(|_| client.request("GET", "/long", &[], true)).collect();
        wait_until("all to have come", || taken.lock().unwrap().asked == before + 50);
        streams.iter().for_each(|stream| client.reset(*stream, code::CANCEL));
        client.ping();
    }
}

/// Servers end connections on which too much is reset, whoever is on them: Envoy from 250 resets on.
#[test]
fn no_connection_gets_more_resets_than_an_upstream_bears() {
    let (upstream, taken) = counting();
    let proxy = Proxy::start(config(&upstream, ""));
    let mut client = proxy.h2();
    let held = client.request("POST", "/held", &[], true);
    take_back(&proxy, &taken, 20);
    assert_eq!(client.response(held).text(), "fine", "it was on the first of the connections");
    assert_eq!(client.get("/").text(), "fine");
    wait_until("all to be reset", || taken.lock().unwrap().resets.values().sum::<usize>() == 1000);
    let resets = taken.lock().unwrap().resets.clone();
    assert!(resets.values().all(|count| *count <= 200), "{resets:?}");
    assert!((5..=11).contains(&upstream.connections()), "{} connections", upstream.connections());
    // Those that take no new streams have ended.
    proxy.wait_for_metric("tollgate_cluster_connections", &[("cluster", "web")], 1.0);
}

/// Then one on which much has been reset is better than none, and ends as soon as it can.
#[test]
fn resets_leave_nobody_without_a_connection_where_there_may_be_no_other() {
    let (upstream, taken) = counting();
    let proxy = Proxy::start(config(&upstream, "limits: {connections: 1}"));
    let mut client = proxy.h2();
    let long = client.request("GET", "/long", &[], true);
    wait_until("it to have come", || taken.lock().unwrap().asked == 1);
    take_back(&proxy, &taken, 4);
    assert_eq!((proxy.get("/").text(), upstream.connections()), ("fine", 1));
    client.reset(long, code::CANCEL);
    proxy.wait_for_metric("tollgate_cluster_connections", &[("cluster", "web")], 0.0);
    assert_eq!((proxy.get("/").text(), upstream.connections()), ("fine", 2));
}

/// What has had its answer counts as none, and neither does what the upstream resets itself.
#[test]
fn a_connection_without_resets_from_here_lasts() {
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

/// Answers what is there as a whole, and waits for the rest of what is not.
fn patient(settings: &'static [(u16, u32)]) -> Upstream {
    Upstream::by_h2_with(settings, |h2, _| {
        while let Ok((stream, _)) = h2.next_request() {
            h2.answer(stream, 200, b"fine");
        }
    })
}

/// Begins an upload that does not go on.
fn begin(client: &mut H2, path: &str, from: &str, fields: &[(&str, &str)]) -> u32 {
    client.begin(path, &[&[("x-forwarded-for", from)], fields].concat(), b"x")
}

/// The same, which is refused.
fn begin_in_vain(proxy: &Proxy, client: &mut H2, path: &str, from: &str, fields: &[(&str, &str)], details: &str) {
    let stream = begin(client, path, from, fields);
    assert_eq!(client.response(stream).status(), 503);
    proxy.entry_for(path).expect(503, "UO").because(details);
}

fn wait_for_uploads(proxy: &Proxy, count: f64) {
    proxy.wait_for_metric("tollgate_cluster_uploads", &[("cluster", "web")], count);
}

/// The fields of a request that has a connection to itself.
const ALONE: [(&str, &str); 1] = [("trailer", "x-sum")];

/// There are hundreds of streams, but few connections.
#[test]
fn uploads_that_have_a_connection_each_leave_some_to_others() {
    let upstream = patient(&[]);
    let proxy = Proxy::start(config(&upstream, "limits: {connections: 4}").listener("trusted_hops: 1"));
    let mut client = proxy.h2();
    assert_eq!(client.get("/").text(), "fine");
    let held = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(|from| begin(&mut client, "/held", from, &ALONE));
    wait_until("each to have a connection", || connects(&proxy) == 4.0);
    for (from, fields) in [("192.0.2.1", &ALONE[..]), ("192.0.2.1", &[])] {
        begin_in_vain(&proxy, &mut client, "/client", from, fields, "client_uploads_overflow");
    }
    begin_in_vain(&proxy, &mut client, "/all", "192.0.2.4", &ALONE, "uploads_overflow");
    assert_eq!((client.get("/").text(), connects(&proxy)), ("fine", 4.0));
    // One that has ended leaves its connection to another.
    client.headers(held[0], &[("x-sum", "7")], true);
    assert_eq!(client.response(held[0]).text(), "fine");
    wait_for_uploads(&proxy, 2.0);
    begin(&mut client, "/next", "192.0.2.4", &ALONE);
    wait_until("the next to have one", || connects(&proxy) == 5.0);
}

#[test]
fn tunnels_of_tcp_count_for_whole_connections() {
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

/// Where there may be no further connection, an upload that needs one to itself gets the one that others have used.
/// These are never left with none.
#[test]
fn an_upload_that_has_the_only_connection_keeps_nobody_out() {
    let upstream = patient(&[]);
    let proxy = Proxy::start(config(&upstream, "limits: {connections: 1}"));
    let mut client = proxy.h2();
    assert_eq!(client.get("/").text(), "fine");
    let held = begin(&mut client, "/held", "192.0.2.1", &ALONE);
    wait_until("it to have a connection", || connects(&proxy) == 2.0);
    proxy.wait_for_metric("tollgate_cluster_connections", &[("cluster", "web")], 1.0);
    for _ in 0..3 {
        assert_eq!(client.get("/").text(), "fine");
    }
    // Nor do they get more than one by that, and whoever needs one to itself waits.
    let long = "v".repeat(8100);
    let waits = client.request("GET", "/longish", &[("x-long", &long)], true);
    proxy.wait_for_metric("tollgate_cluster_requests_pending", &[("cluster", "web")], 1.0);
    assert_eq!((client.get("/").text(), connects(&proxy)), ("fine", 3.0));
    client.headers(held, &[("x-sum", "7")], true);
    assert_eq!([held, waits].map(|stream| client.response(stream).status()), [200, 200]);
}

/// Not of those that are configured.
#[test]
fn uploads_hold_a_part_of_the_streams_that_the_upstream_allows() {
    let upstream = patient(&[(setting::MAX_CONCURRENT_STREAMS, 2)]);
    let proxy = Proxy::start(config(&upstream, "limits: {connections: 4}").listener("trusted_hops: 1"));
    let mut client = proxy.h2();
    assert_eq!(client.get("/").text(), "fine");
    for from in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
        let _held = [(); 2].map(|()| begin(&mut client, "/held", from, &[]));
    }
    wait_for_uploads(&proxy, 6.0);
    begin_in_vain(&proxy, &mut client, "/client", "192.0.2.1", &[], "client_uploads_overflow");
    begin_in_vain(&proxy, &mut client, "/all", "192.0.2.4", &[], "uploads_overflow");
    assert_eq!(client.get("/").text(), "fine");
}
