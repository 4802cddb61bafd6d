//! Hot restart: a new process replaces a running one without losing a request.

use std::{
    net::TcpStream,
    os::unix::net::UnixStream,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use crate::harness::{Client, Config, Gate, Proxy, Signal, Upstream, answer, wait_until};

/// An upstream that answers `/slow` only when told to, and everything else immediately.
fn upstream(go: &Gate) -> Upstream {
    Upstream::held(go, "/slow", |request| answer(200, &[], request.target()))
}

/// Starts a successor, and waits until it reports that it is ready.
fn successor(proxy: &Proxy) -> Proxy {
    let next = proxy.beside(&["--replace", &proxy.pid().to_string()]);
    next.wait_for_ready_line();
    next
}

#[test]
fn a_successor_takes_over_under_load_and_no_request_fails() {
    let go = Gate::default();
    let upstream = upstream(&go);
    let mut old = Proxy::start(Config::to(&upstream));
    let mut slow = old.client();
    slow.send_request("GET", "/slow", &[], b"");
    upstream.wait_for_requests(1);
    let (over, answered, address) = (AtomicBool::new(false), AtomicUsize::new(0), old.address("main"));
    let next = thread::scope(|scope| {
        let mut clients = Vec::new();
        for keeps in [true, true, false, false] {
            let (over, answered) = (&over, &answered);
            clients.push(scope.spawn(move || {
                let mut client = None;
                while !over.load(Ordering::Relaxed) {
                    let response = client.get_or_insert_with(|| Client::connect(address)).get("/quick");
                    assert_eq!((response.status(), response.text()), (200, "/quick"));
                    answered.fetch_add(1, Ordering::Relaxed);
                    if !keeps || response.field("connection") == Some("close") {
                        client = None;
                    }
                }
            }));
        }
        let more = |count: usize| {
            let before = answered.load(Ordering::Relaxed);
            wait_until("more answers", || {
                assert!(!clients.iter().any(|client| client.is_finished()), "a request has failed");
                answered.load(Ordering::Relaxed) >= before + count
            });
        };
        more(200);
        let next = successor(&old);
        old.wait_for_output("stopping: no new connections are accepted");
        more(200);
        // The old process still runs, but the new one answers on the admin listener.
        assert!(!old.has_ended());
        next.wait_for_output("admin listener on");
        wait_until("the new process to answer", || next.is_ready());
        more(200);
        go.open();
        assert_eq!(slow.read().text(), "/slow", "the old process finishes its requests");
        assert_eq!(old.wait_exit().code(), Some(0));
        more(200);
        over.store(true, Ordering::Relaxed);
        clients.into_iter().for_each(|client| client.join().expect("no request fails"));
        next
    });
    assert!(next.is_ready());
    assert_eq!(next.get("/quick").status(), 200);
    assert!(next.metrics().sum("tollgate_requests_total", &[("class", "2xx")]) > 200.0);
}

#[test]
fn a_unix_socket_is_handed_over() {
    let upstream = Upstream::saying("ok");
    let mut old = Proxy::start(Config::to(&upstream).listener("addresses: ['unix:a.sock']"));
    let path = old.dir().join("a.sock");
    let next = successor(&old);
    assert_eq!(old.wait_exit().code(), Some(0));
    UnixStream::connect(&path).expect("the new process listens");
    assert!(next.dir().join("a.sock").exists());
}

#[test]
fn the_admin_listener_answers_while_draining_until_its_address_is_needed() {
    let go = Gate::default();
    let upstream = upstream(&go);
    let mut old = Proxy::start(Config::to(&upstream));
    assert_eq!(old.admin("POST", "/yield", "").status(), 409, "it is not shutting down");
    let mut slow = old.client();
    slow.send_request("GET", "/slow", &[], b"");
    upstream.wait_for_requests(1);
    old.signal(Signal::TERM);
    wait_until("the proxy to be no longer ready", || old.admin("GET", "/ready", "").status() == 503);
    assert_eq!(old.admin("GET", "/ready", "").text(), "draining\n");
    assert_eq!(old.admin("GET", "/live", "").status(), 200);
    wait_until("the address to be free", || TcpStream::connect(old.address("main")).is_err());
    // Started as if there were no running process.
    let next = old.beside(&[]);
    wait_until("the new process to be ready", || next.is_ready());
    assert_eq!(next.get("/quick").text(), "/quick");
    assert!(!old.has_ended());
    go.open();
    assert_eq!(slow.read().text(), "/slow");
    assert_eq!(old.wait_exit().code(), Some(0));
    assert!(next.is_ready());
}

#[test]
fn a_successor_that_cannot_start_leaves_the_old_process_running() {
    let upstream = Upstream::saying("ok");
    let old = Proxy::start(Config::to(&upstream));
    std::fs::write(old.dir().join("wrong.yaml"), "listeners: []").expect("a file can be written");
    let mut next = old.beside(&["--replace", &old.pid().to_string(), "--log-level", "inof"]);
    assert_eq!(next.wait_exit().code(), Some(1));
    assert!(
        next.last_words().contains("`--log-level` (or TOLLGATE_LOG): `inof` is not a log level: did you mean `info`?")
    );
    assert_eq!(old.get("/").text(), "ok");
    assert!(old.is_ready());
}

#[test]
fn only_a_tollgate_process_is_replaced() {
    let proxy = Proxy::start(Config::new());
    for (pid, said) in [
        (std::process::id().to_string(), "not a tollgate"),
        (i32::MAX.to_string(), "cannot be replaced"),
        ("0".to_owned(), "is not the id of a process"),
    ] {
        let mut next = proxy.beside(&["--replace", &pid]);
        assert_eq!(next.wait_exit().code(), Some(1));
        let words = next.last_words();
        assert!(words.contains(said), "{words}");
    }
}
