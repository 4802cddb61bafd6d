//! Load balancing: which cluster and which endpoint a request is sent to.
//!
//! Where the choice is random, the tolerance is six standard deviations: such a test fails once in 10^8 runs.

use std::{
    collections::{HashMap, HashSet},
    thread,
};

use crate::{
    grpc::{GRPC, whole},
    harness::{Config, Gate, Proxy, Upstream, answer, wait_until},
};

const NONE: &[&str] = &[];

/// Upstreams that respond with their index.
fn numbered(count: usize) -> Vec<Upstream> {
    (0..count).map(|n| Upstream::saying(&n.to_string())).collect()
}

/// A proxy with one cluster of these endpoints and weights.
fn weighted(endpoints: &[(&Upstream, u32)], options: &str) -> Proxy {
    let endpoints: Vec<_> =
        endpoints.iter().map(|(u, weight)| format!("{{address: '{u}', weight: {weight}}}")).collect();
    let options = format!("endpoints: [{}]\n{options}", endpoints.join(", "));
    Proxy::start(Config::new().listener("cluster: web").cluster("web", NONE, &options))
}

/// Counts how many of these requests each upstream receives, by their responses.
fn shares(proxy: &Proxy, requests: usize) -> HashMap<String, usize> {
    let mut client = proxy.client();
    let mut shares = HashMap::new();
    for _ in 0..requests {
        *shares.entry(client.get("/").text().to_owned()).or_default() += 1;
    }
    shares
}

/// Asserts that a share is plausible: `probability` of `requests`, within six standard deviations.
fn assert_share(count: usize, requests: usize, probability: f64) {
    let (n, p) = (requests as f64, probability);
    let (mean, deviation) = (n * p, (n * p * (1.0 - p)).sqrt());
    assert!((count as f64 - mean).abs() <= 6.0 * deviation, "{count} of {requests}, expected about {mean}");
}

#[test]
fn round_robin_follows_weights_exactly() {
    let upstreams = numbered(4);
    let [a, b, c, none] = &upstreams[..] else { unreachable!() };
    let proxy = weighted(&[(a, 5), (b, 1), (c, 2), (none, 0)], "balancer: round_robin");
    let shares = shares(&proxy, 80);
    assert_eq!((shares["0"], shares["1"], shares["2"], shares.get("3")), (50, 10, 20, None));
    // Also across workers and connections.
    for _ in 0..40 {
        proxy.get("/");
    }
    assert_eq!(upstreams.iter().map(|u| u.requests().len()).collect::<Vec<_>>(), [75, 15, 30, 0]);
}

/// With a short `decay`, an endpoint that has refused a request is soon used again, unless it asks for more time.
#[test]
fn endpoint_that_asks_for_no_requests_gets_none() {
    let head = |status, fields: &[&str]| answer(status, &[&["content-type: application/grpc"], fields].concat(), "");
    let trailers = |fields: &str| {
        let whole = String::from_utf8(whole(8)).expect("text");
        whole.replace("grpc-status: 8\r\n", &format!("grpc-status: 8\r\n{fields}")).into_bytes()
    };
    let (limited, unlimited) = ("", ", max_retry_after: 0s");
    for (reply, option, is_avoided) in [
        (head(429, &["retry-after: 3600"]), limited, true),
        (head(503, &["retry-after: 3600"]), limited, true),
        (head(200, &["grpc-status: 8", "grpc-retry-pushback-ms: 3600000"]), limited, true),
        (trailers("grpc-retry-pushback-ms: 3600000\r\n"), limited, true),
        (head(429, &["retry-after: 3600"]), unlimited, false),
        (head(429, &[]), limited, false),
        (trailers(""), limited, false),
        // It does not refuse this call.
        (head(200, &["grpc-status: 5", "retry-after: 3600"]), limited, false),
    ] {
        let shown = String::from_utf8_lossy(&reply).into_owned();
        let busy = Upstream::replying(move |_| reply.clone());
        let good = Upstream::replying(|_| whole(0));
        let options = format!("balancer: {{policy: peak_ewma, decay: 1ms{option}}}");
        let endpoints = [busy.address, good.address];
        let proxy = Proxy::start(Config::new().listener("cluster: web").cluster("web", &endpoints, &options));
        let mut client = proxy.client();
        let mut call = || _ = client.request("POST", "/a.B/C", &GRPC, b"\0\0\0\0\0");
        let mut wait_for_requests = |count| {
            wait_until("the endpoint to be used", || {
                call();
                busy.requests().len() >= count
            });
        };
        wait_for_requests(1);
        if is_avoided {
            (0..200).for_each(|_| call());
            assert_eq!(busy.requests().len(), 1, "{shown}");
        } else {
            wait_for_requests(2);
        }
    }
}

#[test]
fn random_follows_weights_approximately() {
    let upstreams = numbered(2);
    let proxy = weighted(&[(&upstreams[0], 2), (&upstreams[1], 1)], "balancer: random");
    assert_share(shares(&proxy, 600)["0"], 600, 2.0 / 3.0);
}

#[test]
fn least_request_prefers_the_less_loaded_endpoint() {
    let doors = [Gate::default(), Gate::default()];
    let [busy, idle] = doors.each_ref().map(|door| Upstream::held(door, "/", |_| answer(200, &[], "ok")));
    let proxy = weighted(&[(&busy, 1), (&idle, 1)], "balancer: least_request");
    let mut held: Vec<_> = (0..10).map(|_| proxy.client()).collect();
    for (n, client) in held.iter_mut().enumerate() {
        client.send_request("GET", "/", &[], b"");
        proxy.wait_for_metric("tollgate_cluster_requests_active", &[("cluster", "web")], n as f64 + 1.0);
    }
    // Requests that arrived one after the other were distributed evenly.
    assert_eq!((busy.wait_for_requests(5).len(), idle.wait_for_requests(5).len()), (5, 5));
    doors[1].open();
    wait_until("the idle endpoint to have no requests", || {
        proxy.metrics().sum("tollgate_cluster_requests_active", &[("cluster", "web")]) == 5.0
    });
    for _ in 0..50 {
        assert_eq!(proxy.get("/").status(), 200);
    }
    assert_eq!((busy.requests().len(), idle.requests().len()), (5, 55));
    doors[0].open();
    held.iter_mut().for_each(|client| assert_eq!(client.read().status(), 200));
}

/// A failed attempt counts as slow, whatever the protocol.
#[test]
fn peak_ewma_avoids_an_endpoint_that_fails() {
    let (good, bad) = (Upstream::saying("good"), Upstream::canned(answer(503, &[], "bad")));
    let proxy = weighted(&[(&good, 1), (&bad, 1)], "balancer: peak_ewma");
    let shares = shares(&proxy, 100);
    assert!(shares["good"] >= 99, "{shares:?}");
    let endpoints = format!("endpoints: ['{good}', '{}']\nbalancer: peak_ewma", Upstream::refusing());
    let config = Config::new().listener("protocol: tcp\ncluster: web").cluster("web", NONE, &endpoints);
    let proxy = Proxy::start(config);
    for _ in 0..20 {
        assert_eq!(proxy.get("/").text(), "good");
    }
    let failures = proxy.metrics().sum("tollgate_cluster_connect_failures_total", &[("cluster", "web")]);
    assert!(failures <= 1.0, "{failures} failures to connect");
}

#[test]
fn a_bounded_load_spreads_a_popular_key() {
    let doors: Vec<_> = (0..3).map(|_| Gate::default()).collect();
    let upstreams: Vec<_> = doors.iter().map(|door| Upstream::held(door, "/", |_| answer(200, &[], "ok"))).collect();
    let options = "balancer: {policy: ring_hash, hash_balance_factor: 125}";
    let proxy = routed("{cluster: web, hash_key: {header: x-user}}", &[("web", &upstreams, options)]);
    let mut held: Vec<_> = (0..12).map(|_| proxy.client()).collect();
    for (n, client) in held.iter_mut().enumerate() {
        client.send_request("GET", "/", &[("X-User", "the same")], b"");
        proxy.wait_for_metric("tollgate_cluster_requests_active", &[("cluster", "web")], n as f64 + 1.0);
    }
    wait_until("all requests to arrive", || upstreams.iter().map(|u| u.requests().len()).sum::<usize>() == 12);
    // 125 % of a third of twelve.
    let most = upstreams.iter().map(|u| u.requests().len()).max();
    assert_eq!(most, Some(5));
    doors.iter().for_each(Gate::open);
    held.iter_mut().for_each(|client| assert_eq!(client.read().status(), 200));
}

fn routed(route: &str, clusters: &[(&str, &[Upstream], &str)]) -> Proxy {
    Proxy::start(clusters.iter().fold(Config::new().routes(route), |config, (name, endpoints, options)| {
        config.cluster(name, &endpoints.iter().collect::<Vec<_>>(), options)
    }))
}

#[test]
fn a_hash_key_sticks_to_its_endpoint() {
    for (policy, most_moved) in [("hash", 0), ("ring_hash", 0), ("maglev", 3)] {
        let (upstreams, options) = (numbered(5), format!("balancer: {policy}"));
        let mut proxy = routed("{cluster: web, hash_key: {header: x-user}}", &[("web", &upstreams, &options)]);
        let ask = |proxy: &Proxy, key: usize| {
            proxy.request("GET", "/", &[("X-User", &format!("user-{key}"))], b"").text().to_owned()
        };
        let places = |proxy: &Proxy| (0..60).map(|key| ask(proxy, key)).collect::<Vec<_>>();
        await_table(|| places(&proxy));
        let before = places(&proxy);
        assert_eq!(places(&proxy), before, "{policy}: keys have moved");
        let used: HashSet<_> = before.iter().collect();
        assert!(used.len() >= 4, "60 keys are spread over the endpoints: {before:?}");
        // Without its endpoint a key moves; the others stay.
        let left: Vec<_> = upstreams.iter().skip(1).collect();
        let route = "{cluster: web, hash_key: {header: x-user}}";
        proxy.change_config(Config::new().routes(route).cluster("web", &left, &options));
        await_table(|| places(&proxy));
        let (mut moved, after) = (0, places(&proxy));
        for (old, new) in before.iter().zip(&after) {
            assert_ne!(new, "0");
            moved += usize::from(old != "0" && old != new);
        }
        assert!(moved <= most_moved, "{policy}: {before:?} {after:?}");
    }
}

#[test]
fn an_issued_cookie_keeps_a_client_with_its_endpoint() {
    let upstreams = numbered(5);
    let route = "{cluster: web, hash_key: [{query: user}, {cookie: {name: node, ttl: 1h}}]}";
    let proxy = routed(route, &[("web", &upstreams, "balancer: hash")]);
    let mut used = HashSet::new();
    for _ in 0..20 {
        let first = proxy.get("/");
        let cookie = first.field("set-cookie").expect("a cookie").to_owned();
        assert!(cookie.ends_with("; HttpOnly; Max-Age=3600; Path=/"), "{cookie}");
        let pair = cookie.split(';').next().unwrap_or_default();
        for _ in 0..3 {
            let again = proxy.request("GET", "/", &[("Cookie", pair)], b"");
            assert_eq!((again.text(), again.field("set-cookie")), (first.text(), None));
        }
        used.insert(first.text().to_owned());
    }
    assert!(used.len() >= 3, "clients are spread over the endpoints: {used:?}");
    assert_eq!(proxy.get("/?user=1").field("set-cookie"), None);
}

#[test]
fn a_request_is_retried_at_a_lower_priority() {
    let good = Upstream::saying("good");
    let refusing = [Upstream::refusing(), Upstream::refusing()];
    let high: Vec<_> = refusing.iter().map(|address| format!("'{address}'")).collect();
    let endpoints = format!("endpoints: [{{address: '{good}', priority: 1}}, {}]", high.join(", "));
    for options in ["cluster: web", "protocol: tcp\ncluster: web"] {
        let retry = format!("{endpoints}\nretry: {{attempts: 2, on: [connect_failure]}}");
        let proxy = Proxy::start(Config::new().listener(options).cluster("web", NONE, &retry));
        for _ in 0..10 {
            assert_eq!(proxy.get("/").text(), "good", "{options}");
        }
    }
}

/// A large table is built in the background; until then keys are placed in another way. Waits until they no longer move.
fn await_table(places: impl Fn() -> Vec<String>) {
    wait_until("keys to stay", || places() == places());
}

#[test]
fn requests_without_a_hash_key_are_spread_at_random() {
    let upstreams = numbered(2);
    let proxy = routed("{cluster: web, hash_key: {header: x-user}}", &[("web", &upstreams, "balancer: hash")]);
    assert_share(shares(&proxy, 200)["0"], 200, 0.5);
}

#[test]
fn a_split_distributes_requests_by_weight() {
    let (old, new) = (numbered(1), [Upstream::saying("new")]);
    let split = "{split: {clusters: [{cluster: old, weight: 90}, {cluster: new, weight: 10}]}}";
    let proxy = routed(split, &[("old", &old, ""), ("new", &new, "")]);
    assert_share(shares(&proxy, 600)["new"], 600, 0.1);
    let all = "{split: {clusters: [{cluster: old, weight: 0}, {cluster: new, weight: 1}]}}";
    let proxy = routed(all, &[("old", &old, ""), ("new", &new, "")]);
    assert_eq!(shares(&proxy, 50)["new"], 50);
}

#[test]
fn a_sticky_split_keeps_each_client_on_one_side() {
    let (old, new) = (numbered(1), [Upstream::saying("new")]);
    let split = "{split: {clusters: [{cluster: old, weight: 70}, {cluster: new, weight: 30}], sticky: {cookie: id}}}";
    let proxy = routed(split, &[("old", &old, ""), ("new", &new, "")]);
    let mut client = proxy.client();
    let mut ask = |user: usize| {
        client.request("GET", "/", &[("Cookie", &format!("a=b; id=user{user}; c=d"))], b"").text().to_owned()
    };
    let sides: Vec<_> = (0..400).map(&mut ask).collect();
    assert_share(sides.iter().filter(|side| *side == "new").count(), 400, 0.3);
    assert!((0..400).all(|user| ask(user) == sides[user]));
}

/// Each worker's share of the requests must not matter: many concurrent connections see the same weights.
#[test]
fn weights_hold_under_concurrency() {
    let upstreams = numbered(2);
    let proxy = weighted(&[(&upstreams[0], 3), (&upstreams[1], 1)], "balancer: round_robin");
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| shares(&proxy, 50));
        }
    });
    assert_eq!((upstreams[0].requests().len(), upstreams[1].requests().len()), (300, 100));
}
