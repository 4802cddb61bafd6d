//! Circuit breaking: beyond a cluster's limits, some requests wait, some are rejected, and none is forgotten.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
};

use crate::harness::{Config, Proxy, Upstream, answer, wait_until};

/// An upstream that answers one request per demand.
fn on_demand() -> (Upstream, mpsc::Sender<()>) {
    let (answer_one, demands) = mpsc::channel();
    let demands = Mutex::new(demands);
    let upstream = Upstream::replying(move |_| {
        // At the end of the test the sender is gone.
        let _ = demands.lock().unwrap().recv();
        answer(200, &[], "ok")
    });
    (upstream, answer_one)
}

#[test]
fn requests_over_a_clusters_limit_get_503() {
    let (upstream, answer_one) = on_demand();
    let proxy = Proxy::start(Config::to_with(&upstream, "limits: {requests: 2}"));
    let mut inside: Vec<_> = (0..2).map(|_| proxy.client()).collect();
    inside.iter_mut().for_each(|client| client.send_request("GET", "/in", &[], b""));
    upstream.wait_for_requests(2);
    assert_eq!(proxy.get("/over").status(), 503);
    proxy.entry_for("/over").flagged("UO").because("overflow");
    assert_eq!(proxy.metrics().sum("tollgate_cluster_request_overflows_total", &[("cluster", "web")]), 1.0);
    (0..2).for_each(|_| answer_one.send(()).expect("the upstream is running"));
    inside.iter_mut().for_each(|client| assert_eq!(client.read().status(), 200));
    assert_eq!(upstream.requests().len(), 2);
}

#[test]
fn requests_wait_for_a_connection_up_to_the_pending_limit() {
    let (upstream, answer_one) = on_demand();
    // One worker, because each worker may always have one connection.
    let config = Config::to_with(&upstream, "limits: {connections: 1, pending: 1}").top("workers: 1");
    let proxy = Proxy::start(config);
    let mut first = proxy.client();
    first.send_request("GET", "/first", &[], b"");
    upstream.wait_for_requests(1);
    let mut second = proxy.client();
    second.send_request("GET", "/second", &[], b"");
    proxy.wait_for_metric("tollgate_cluster_requests_pending", &[("cluster", "web")], 1.0);
    assert_eq!(proxy.get("/third").status(), 503);
    assert_eq!(proxy.entry_for("/third")["flags"], "UO");
    assert_eq!(proxy.metrics().sum("tollgate_cluster_pending_overflows_total", &[]), 1.0);
    answer_one.send(()).expect("the upstream is running");
    assert_eq!(first.read().status(), 200);
    answer_one.send(()).expect("the upstream is running");
    assert_eq!(second.read().status(), 200);
    assert_eq!((upstream.requests().len(), upstream.connections()), (2, 1));
}

fn pending(proxy: &Proxy) -> f64 {
    proxy.metrics().sum("tollgate_cluster_requests_pending", &[("cluster", "web")])
}

#[test]
fn a_pending_request_can_time_out_or_be_cancelled() {
    let (upstream, answer_one) = on_demand();
    let routes = "{match: {path: {exact: /hurry}}, cluster: web, timeout: 300ms}, {cluster: web}";
    let config = Config::new().top("workers: 1").routes(routes);
    let proxy = Proxy::start(config.cluster("web", &[&upstream], "limits: {connections: 1}\nrequest_timeout: 0s"));
    let mut first = proxy.client();
    first.send_request("GET", "/first", &[], b"");
    upstream.wait_for_requests(1);
    // It times out while it waits.
    assert_eq!(proxy.get("/hurry").status(), 504);
    assert_eq!((&proxy.entry_for("/hurry")["flags"], pending(&proxy)), (&"UT".into(), 0.0));
    // Its client disconnects while it waits.
    let mut gone = proxy.client();
    gone.send_request("GET", "/gone", &[], b"");
    wait_until("the second to wait", || pending(&proxy) == 1.0);
    drop(gone);
    wait_until("no request to wait", || pending(&proxy) == 0.0);
    assert_eq!(proxy.entry_for("/gone")["flags"], "DC");

    answer_one.send(()).expect("the upstream is running");
    assert_eq!(first.read().status(), 200);
    answer_one.send(()).expect("the upstream is running");
    assert_eq!(proxy.get("/next").status(), 200);
    let targets: Vec<_> = upstream.requests().iter().map(|r| r.target().to_owned()).collect();
    assert_eq!(targets, ["/first", "/next"]);
}

/// Across workers, with fewer connections than concurrent requests.
#[test]
fn all_pending_requests_are_served() {
    let (under_way, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (theirs, peak) = (under_way.clone(), most.clone());
    let upstream = Upstream::replying(move |_| {
        peak.fetch_max(theirs.fetch_add(1, SeqCst) + 1, SeqCst);
        thread::yield_now();
        theirs.fetch_sub(1, SeqCst);
        answer(200, &[], "ok")
    });
    let proxy = Proxy::start(Config::to_with(&upstream, "limits: {connections: 3}\nrequest_timeout: 0s"));
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let mut client = proxy.client();
                (0..20).for_each(|_| assert_eq!(client.get("/").status(), 200));
            });
        }
    });
    assert_eq!(upstream.requests().len(), 400);
    // Each of the two workers may always have one.
    assert!(most.load(SeqCst) <= 4, "{} concurrent connections", most.load(SeqCst));
    assert_eq!(pending(&proxy), 0.0);
}

/// An idle connection to one endpoint makes room for one to another endpoint.
#[test]
fn endpoints_share_the_connection_limit() {
    let upstreams = [Upstream::saying("a"), Upstream::saying("b"), Upstream::saying("c")];
    let config = Config::new().top("workers: 1").listener("cluster: web");
    let endpoints: Vec<_> = upstreams.iter().collect();
    let proxy = Proxy::start(config.cluster("web", &endpoints, "limits: {connections: 1}"));
    let mut client = proxy.client();
    for _ in 0..30 {
        assert_eq!(client.get("/").status(), 200);
    }
    assert!(upstreams.iter().all(|upstream| upstream.requests().len() == 10));
    assert_eq!(proxy.metrics().sum("tollgate_cluster_connections", &[("cluster", "web")]), 1.0);
}
