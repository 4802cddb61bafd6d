//! Mirroring: copies of requests go to another cluster, without affecting the requests themselves.

use crate::harness::{Config, Proxy, Upstream, answer, wait_until};

/// A proxy whose only route mirrors this percentage of its requests to an endpoint.
fn mirroring(upstream: &Upstream, mirror: &str, percent: f64) -> Proxy {
    let old = "cluster: web, prefix_rewrite: /new, match: {path: {prefix: /old}}";
    let config = Config::new().routes(&format!("{{{old}, mirror: {{cluster: shadow, percent: {percent}}}}}"));
    Proxy::start(config.cluster("web", &[upstream], "").cluster("shadow", &[mirror], ""))
}

#[test]
fn a_mirror_gets_copies() {
    let upstream = Upstream::saying("real");
    let shadow = Upstream::replying(|_| answer(500, &[], "shadow"));
    let proxy = mirroring(&upstream, &shadow.to_string(), 100.0);
    let body = "x".repeat(100_000);
    assert_eq!(proxy.request("POST", "/old/a?b", &[("X-A", "1")], body.as_bytes()).text(), "real");
    assert_eq!(proxy.get("/old/b").text(), "real");
    let copies = shadow.wait_for_requests(2);
    let post = copies.iter().find(|copy| copy.method() == "POST").expect("a copy of POST");
    assert_eq!((post.target(), post.field("x-a"), post.text()), ("/new/a?b", Some("1"), body.as_str()));
    assert_eq!(upstream.requests().len(), 2);
}

/// After the upgrade, the bytes concern only the two ends.
#[test]
fn an_upgrade_is_not_mirrored() {
    let upstream = Upstream::replying(|request| match request.field("upgrade") {
        Some(_) => b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n".to_vec(),
        None => answer(200, &[], "real"),
    });
    let shadow = Upstream::replying(|_| answer(200, &[], "shadow"));
    let proxy = mirroring(&upstream, &shadow.to_string(), 100.0);
    let mut client = proxy.client();
    client.send_request("GET", "/old/chat", &[("Connection", "upgrade"), ("Upgrade", "websocket")], b"");
    assert_eq!(client.read().status(), 101);
    assert_eq!(proxy.get("/old/b").text(), "real");
    let copies = shadow.wait_for_requests(1);
    assert_eq!(copies.iter().map(|copy| copy.target()).collect::<Vec<_>>(), ["/new/b"]);
    assert_eq!(shadow.connections(), 1);
}

#[test]
fn failing_mirrors_do_not_affect_requests() {
    let upstream = Upstream::saying("real");
    let (silent, resetting) = (Upstream::silent(), Upstream::resetting());
    let garbage = Upstream::canned("nonsense\r\n\r\n");
    let mirrors = [Upstream::refusing().to_string(), silent.to_string(), resetting.to_string(), garbage.to_string()];
    for mirror in mirrors {
        let proxy = mirroring(&upstream, &mirror, 100.0).leaving_things_behind();
        let mut client = proxy.client();
        for _ in 0..20 {
            let response = client.request("POST", "/old", &[], b"body");
            assert_eq!((response.status(), response.text()), (200, "real"));
        }
        let metrics = proxy.metrics();
        assert_eq!(metrics.sum("tollgate_requests_total", &[("class", "2xx")]), 20.0);
        assert_eq!(metrics.sum("tollgate_response_flags_total", &[]), 0.0, "{mirror}");
        // The mirror has received its copies.
        wait_until("the copies", || {
            let of_the_mirror = |name: &str| proxy.metrics().sum(name, &[("cluster", "shadow")]);
            of_the_mirror("tollgate_cluster_connect_failures_total") + of_the_mirror("tollgate_cluster_connects_total")
                == 20.0
        });
    }
    assert_eq!(upstream.requests().len(), 80);
}

/// A mirror that reads slowly, or not at all, must not delay the request.
#[test]
fn a_large_body_does_not_wait_for_its_mirror() {
    let upstream = Upstream::replying(|request| answer(200, &[], request.body.len().to_string()));
    let unread = Upstream::scripted(|mut connection| {
        connection.head();
        // Kept open and unread.
        std::thread::sleep(crate::harness::DEADLINE);
    });
    let proxy = mirroring(&upstream, &unread.to_string(), 100.0).leaving_things_behind();
    let body = vec![b'x'; 64 << 20];
    assert_eq!(proxy.request("POST", "/old", &[], &body).text(), body.len().to_string());
    unread.wait_for_requests(1);
}

#[test]
fn a_mirror_gets_its_percentage() {
    let (upstream, shadow) = (Upstream::saying("real"), Upstream::saying("shadow"));
    let proxy = mirroring(&upstream, &shadow.to_string(), 50.0);
    let mut client = proxy.client();
    for _ in 0..400 {
        assert_eq!(client.get("/old").text(), "real");
    }
    // Half of them, within six standard deviations.
    shadow.wait_for_requests(140);
    assert!(shadow.requests().len() <= 260);
}

#[test]
fn a_mirror_of_zero_percent_gets_nothing() {
    let (upstream, shadow) = (Upstream::saying("real"), Upstream::saying("shadow"));
    let proxy = mirroring(&upstream, &shadow.to_string(), 0.0);
    let mut client = proxy.client();
    for _ in 0..20 {
        assert_eq!(client.get("/old").text(), "real");
    }
    assert_eq!(shadow.connections(), 0);
}
