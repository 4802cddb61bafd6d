//! Hedging over sockets: the loser is cancelled at its upstream, over each version of HTTP.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
    mpsc,
};

use crate::harness::{
    Config, Gate, H2, Proxy, Upstream, answer,
    exchange::{Everywhere, Outcome, Request},
    frames::{code, kind},
    telling, wait_for,
};

/// Two upstreams that take turns: each odd request, whichever of them gets it, is never answered, and each even one at once.
/// What the first one sees in the end is told: `closed`, or the code of the reset.
fn alternating(by_h2: bool) -> ([Upstream; 2], mpsc::Receiver<String>) {
    let (tell, told) = telling();
    let (tell, turn) = (Arc::new(tell), Arc::new(AtomicUsize::new(0)));
    let upstream = || {
        let (tell, turn) = (tell.clone(), turn.clone());
        let is_late = move || turn.fetch_add(1, SeqCst) % 2 == 0;
        if by_h2 {
            Upstream::by_h2(move |h2| {
                while let Ok((stream, _)) = h2.next_request() {
                    if !is_late() {
                        h2.answer(stream, 200, b"second");
                        continue;
                    }
                    let end = h2.read_until("the end of the first attempt", |frame| frame.kind == kind::RST_STREAM);
                    tell(end.code().to_string());
                }
            })
        } else {
            Upstream::scripted(move |mut connection| {
                while connection.request().is_some() {
                    if is_late() {
                        connection.wait_for_end();
                        return tell("closed".to_owned());
                    }
                    connection.send(answer(200, &[], "second"));
                }
            })
        }
    };
    ([upstream(), upstream()], told)
}

#[test]
fn the_loser_is_cancelled_at_its_upstream() {
    for (by_h2, protocol, end) in [(false, "h1", "closed".to_owned()), (true, "h2", code::CANCEL.to_string())] {
        let (upstreams, told) = alternating(by_h2);
        let options = format!("protocol: {protocol}\nhedging: {{delay: 100ms}}\nretry_budget: {{min_concurrent: 3}}");
        let config = Config::new().top("workers: 1").listener("cluster: web");
        let proxy = Everywhere::start(config.cluster("web", &[&upstreams[0], &upstreams[1]], &options));
        let mut count = 0;
        proxy.each(&Request::get("/hedged"), |version, outcome| match outcome {
            Outcome::Whole(response) => {
                assert_eq!((response.status, &*response.body), (200, &b"second"[..]), "{protocol} {version:?}");
                assert_eq!(told.recv().unwrap(), end, "{protocol} {version:?}");
                count += 1;
            }
            other => panic!("{protocol} {version:?}: {other:?}"),
        });
        let entry = proxy.entry_for("/hedged").expect(200, "HG");
        assert_eq!(entry["attempts"], 2);
        let metric = |name: &str| proxy.metrics().sum(name, &[("cluster", "web")]);
        assert_eq!(metric("tollgate_cluster_hedges_total"), f64::from(count));
        assert_eq!(metric("tollgate_cluster_hedges_won_total"), f64::from(count));
        assert_eq!(metric("tollgate_cluster_retries_total"), 0.0);
    }
}

/// The endpoint in the access log is the one that answered; a request with a body is sent to both.
#[test]
fn a_route_can_hedge_requests_that_are_not_idempotent() {
    let gate = Gate::default();
    let slow = Upstream::held(&gate, "/", |_| answer(200, &[], "slow"));
    let quick = Upstream::saying("quick");
    // The hash balancer chooses the same first endpoint for the same key.
    let start = |hedging: &str| {
        let routes = format!("{{cluster: web, hash_key: {{header: x-key}}, hedging: {hedging}}}");
        let options = "balancer: hash\nhedging: {delay: 1ms, methods: [GET, POST]}";
        Proxy::start(Config::new().routes(&routes).cluster("web", &[&slow, &quick], options))
    };
    let proxy = start("{delay: 100ms, methods: [POST]}");
    let body = vec![b'x'; 100_000];
    let mut keys = (0..).map(|key: u32| key.to_string());
    let (key, entry) = wait_for("a key whose first endpoint is the slow one", || {
        let key = keys.next().unwrap();
        let path = format!("/{key}");
        assert_eq!(proxy.request("POST", &path, &[("x-key", &key)], &body).text(), "quick");
        let entry = proxy.entry_for(&path);
        (entry["attempts"] == 2).then_some((key, entry))
    });
    assert_eq!((&entry["endpoint"], &entry["flags"]), (&quick.address.to_string().into(), &"HG".into()));
    let at = |upstream: &Upstream| upstream.requests().into_iter().find(|r| r.target() == format!("/{key}")).unwrap();
    assert!(at(&slow).body == body && at(&quick).body == body);

    // A route's own section replaces the cluster's.
    gate.open();
    for hedging in ["{delay: 1ms}", "{delay: 1ms, methods: []}"] {
        let proxy = start(hedging);
        assert_eq!(proxy.request("POST", "/one", &[("x-key", &key)], &body).text(), "slow", "{hedging}");
        proxy.entry_for("/one").expect(200, "");
    }
}

/// A call whose status the retry policy lists does not win.
#[test]
fn grpc_calls_can_be_hedged() {
    let turn = AtomicUsize::new(0);
    let gate = Gate::default();
    let held = gate.clone();
    let upstream = Arc::new(move |h2: &mut H2, stream: u32| match turn.fetch_add(1, SeqCst) {
        // The first attempt waits for the second one's failure.
        0 => {
            held.wait();
            h2.headers(stream, &[(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "0")], true);
        }
        _ => {
            h2.headers(
                stream,
                &[(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "14")],
                true,
            );
            held.open();
        }
    });
    let serve = || {
        let reply = upstream.clone();
        Upstream::replying_by_h2(move |h2, stream, _| reply(h2, stream))
    };
    let (one, other) = (serve(), serve());
    let options = "protocol: h2\nhedging: {delay: 50ms, methods: [POST]}\nretry: {on: [grpc_unavailable], attempts: 1}";
    let proxy = Proxy::start(Config::new().listener("cluster: web").cluster("web", &[&one, &other], options));
    let fields = [("content-type", "application/grpc"), ("te", "trailers")];
    let response = proxy.request("POST", "/a.B/C", &fields, b"\0\0\0\0\0");
    assert_eq!(response.field("grpc-status"), Some("0"));
    let entry = proxy.entry_for("/a.B/C");
    assert_eq!((&entry["flags"], &entry["attempts"], &entry["grpc_status"]), (&"HG".into(), &2.into(), &0.into()));
}
