//! File descriptors: clients can exhaust their share, but not what the admin listener, probes and upstreams need.

use std::{
    fs,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::harness::{Config, Gate, Proxy, Upstream, Wire, answer, wait_until};

/// With a limit of 256 descriptors, clients may use those below 160.
const FEW: u32 = 256;

fn connections(proxy: &Proxy, listener: &str, n: usize) -> Vec<TcpStream> {
    (0..n).map(|_| TcpStream::connect(proxy.address(listener)).expect("a connection")).collect()
}

#[test]
fn idle_clients_make_room_for_others() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start_with_descriptors(Config::to(&upstream).top("workers: 1"), FEW);
    let idle = connections(&proxy, "main", 400);
    proxy.wait_for_metric("tollgate_connections_total", &[("listener", "main")], 400.0);
    let mut busy = proxy.client();
    for _ in 0..50 {
        assert_eq!(proxy.get("/").status(), 200);
        assert_eq!(busy.get("/").status(), 200, "its client has sent a request");
    }
    assert_eq!(proxy.admin("GET", "/live", "").status(), 200);
    assert!(proxy.metrics().sum("process_open_fds", &[]) < 200.0);
    assert_eq!(proxy.metrics().sum("tollgate_connections_refused_total", &[]), 0.0);
    drop(idle);
}

#[test]
fn busy_clients_leave_descriptors_for_probes_and_upstreams() {
    let gate = Gate::default();
    let upstream = Upstream::held(&gate, "/slow", |_| answer(200, &[], "ok"));
    let top = "workers: 1\nadmin: {address: '@admin@', probes: {address: '@probes@'}}";
    // All pending requests use one upstream connection, so clients use up the descriptors here.
    let config = Config::to_with(&upstream, "limits: {connections: 1, pending: 1000, requests: 1000}").top(top);
    let proxy = Proxy::start_with_descriptors(config, FEW);
    let mut slow = Vec::new();
    wait_until("descriptors to be used up", || {
        slow.extend(connections(&proxy, "main", 20).into_iter().map(|stream| {
            let mut wire = Wire::new(stream);
            let _ = wire.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
            wire
        }));
        proxy.metrics().sum("tollgate_connections_refused_total", &[("reason", "descriptors")]) > 0.0
    });
    wait_until("a client to be rejected instead of left waiting", || {
        slow.iter().any(|wire| {
            let mut first = [0; 12];
            wire.socket().set_nonblocking(true).expect("a socket");
            wire.socket().peek(&mut first).is_ok() && first == *b"HTTP/1.1 503"
        })
    });
    for listener in ["admin", "probes"] {
        for path in ["/live", "/ready", "/metrics"] {
            assert_eq!(proxy.ask_admin(listener, "GET", path, &[("Host", "localhost")], "").status(), 200);
        }
    }
    assert_eq!(proxy.reload().0, 200);
    drop(slow);
    gate.open();
    wait_until("room", || proxy.get("/").status() == 200);
}

/// The limit is lowered from outside, so that not even reserved descriptors are left.
#[test]
fn without_descriptors_accepting_is_retried_and_active_requests_continue() {
    let gate = Gate::default();
    let upstream = Upstream::held(&gate, "/slow", |_| answer(200, &[], "ok"));
    let proxy = Proxy::start(Config::to(&upstream).top("workers: 1"));
    let mut busy = proxy.client();
    busy.send_request("GET", "/slow", &[], b"");
    upstream.wait_for_requests(1);
    let pid = Pid::from_raw(proxy.pid().cast_signed());
    let hard = rustix::process::getrlimit(Resource::Nofile).maximum;
    let allow =
        |most| prlimit(pid, Resource::Nofile, Rlimit { current: most, maximum: hard }).expect("a limit").current;
    let before = allow(Some(3));
    let mut waiting = proxy.client();
    waiting.send_request("GET", "/", &[], b"");
    proxy.wait_for_output("cannot accept a connection: Too many open files");
    // Accepting is retried from time to time, not in a busy loop.
    let spent = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", proxy.pid())).expect("it runs");
        let ticks = stat.rsplit(") ").next().expect("its state").split(' ').skip(11).take(2);
        ticks.map(|ticks| ticks.parse::<u64>().expect("a number")).sum::<u64>() * 10
    };
    let (from, began) = (spent(), Instant::now());
    thread::sleep(Duration::from_secs(1));
    let (spent, passed) = (u128::from(spent() - from), began.elapsed().as_millis());
    assert!(spent < passed / 2, "{spent} ms of the processor's in {passed} ms");
    gate.open();
    assert_eq!(busy.read().status(), 200);
    allow(before);
    assert_eq!(waiting.read().status(), 200);
    assert_eq!(proxy.get("/").status(), 200);
}

#[test]
fn partial_heads_do_not_block_the_admin_listener() {
    let top = "workers: 1\nadmin: {address: '@admin@', probes: {address: '@probes@'}}";
    let proxy = Proxy::start(Config::new().top(top));
    for listener in ["admin", "probes"] {
        let half: Vec<Wire> = connections(&proxy, listener, 200)
            .into_iter()
            .map(|stream| {
                let mut wire = Wire::new(stream);
                let _ = wire.send("GET /live HTTP/1.1\r\nHost: localhost\r\n");
                wire
            })
            .collect();
        let open = proxy.metrics().sum("process_open_fds", &[]);
        assert!(open < 120.0, "{open} files are open");
        assert_eq!(proxy.ask_admin(listener, "GET", "/live", &[("Host", "localhost")], "").status(), 200);
        drop(half);
    }
}

#[test]
fn heads_and_bodies_to_the_admin_listener_time_out() {
    let proxy = Proxy::start(Config::new());
    let open = |sent: &str| {
        let mut wire = Wire::new(TcpStream::connect(proxy.address("admin")).expect("a connection"));
        wire.send(sent).expect("it can be sent");
        wire
    };
    let body = "POST /log HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nin";
    let (mut head, mut body) = (open("GET /live HTTP/1.1\r\nHost:"), open(body));
    thread::scope(|scope| {
        scope.spawn(move || assert_eq!(body.read_response("POST").map(|r| r.status()).ok(), Some(408)));
        // hyper closes without a response.
        scope.spawn(move || assert!(head.is_closed()));
    });
    let large = format!("POST /log HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n{}", "x".repeat(5000));
    assert_eq!(open(&large).read_response("POST").map(|r| r.status()).ok(), Some(413));
}
