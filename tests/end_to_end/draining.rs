//! Signals: SIGTERM ends the proxy without losing a request, SIGHUP reloads.

use std::{
    collections::HashSet,
    thread,
    time::{Duration, Instant},
};

use crate::harness::{Config, Proxy, Signal, Upstream, answer, wait_until};

/// For so long at least, an idle connection is kept after SIGTERM, for a request that may be on its way.
const GRACE: Duration = Duration::from_millis(400);

/// What one client under load has seen.
#[derive(Default)]
struct Seen {
    answered: usize,
    /// The request that got no answer, if one did not.
    unanswered: Option<String>,
    /// It was sent so soon after the one before that the connection cannot have been closed for being idle.
    in_time: bool,
    told: bool,
}

/// Requests one after the other on one connection until that ends.
fn load(proxy: &Proxy, name: usize) -> Seen {
    let mut client = proxy.client();
    let mut seen = Seen::default();
    let mut before = Instant::now();
    for n in 0.. {
        let target = format!("/{name}/{n}");
        let request = format!("POST {target} HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nbody");
        let sent = client.wire.send(request);
        seen.in_time = before.elapsed() < GRACE;
        before = Instant::now();
        match sent.and_then(|()| client.wire.read_response("POST")) {
            Ok(response) => {
                assert_eq!((response.status(), response.text()), (200, target.as_str()));
                seen.answered += 1;
                seen.told = response.field("connection") == Some("close");
                if seen.told {
                    assert!(client.wire.is_closed(), "what is announced happens");
                    return seen;
                }
            }
            Err(_) => {
                seen.unanswered = Some(target);
                return seen;
            }
        }
    }
    seen
}

#[test]
fn sigterm_under_load_loses_no_request() {
    let upstream = Upstream::replying(|request| answer(200, &[], request.target()));
    let mut proxy = Proxy::start(Config::to(&upstream));
    let clients: Vec<Seen> = thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|name| {
                scope.spawn({
                    let proxy = &proxy;
                    move || load(proxy, name)
                })
            })
            .collect();
        // In the middle of it.
        upstream.wait_for_requests(400);
        proxy.signal(Signal::TERM);
        clients.into_iter().map(|client| client.join().expect("what a client saw")).collect()
    });
    assert_eq!(proxy.wait_exit().code(), Some(0));
    let reached: HashSet<String> = upstream.requests().iter().map(|r| r.target().to_owned()).collect();
    for (name, seen) in clients.iter().enumerate() {
        if let Some(target) = &seen.unanswered {
            assert!(!reached.contains(target), "{target} was done and not answered");
            assert!(!seen.in_time, "{target} was sent in time and not answered");
        }
        assert!(seen.told || seen.unanswered.is_some(), "client {name} was not told");
    }
    let answered: usize = clients.iter().map(|seen| seen.answered).sum();
    assert_eq!(answered, reached.len(), "all that was done was answered");
    assert_eq!(proxy.entries().len(), answered, "and all of it is in the access log");
}

#[test]
fn a_request_under_way_is_finished() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let upstream = Upstream::replying(move |_| {
        let _ = wait.lock().unwrap().recv();
        answer(200, &[], "finished")
    });
    let mut proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.client();
    client.send_request("GET", "/", &[], b"");
    upstream.wait_for_requests(1);
    let idle = proxy.client();
    proxy.signal(Signal::TERM);
    wait_until("the proxy to be no longer ready", || proxy.admin("GET", "/ready", "").status() == 503);
    assert_eq!(proxy.admin("GET", "/live", "").status(), 200);
    wait_until("new connections to be refused", || std::net::TcpStream::connect(proxy.address("main")).is_err());
    go.send(()).expect("the upstream is there");
    let response = client.read();
    assert_eq!((response.text(), response.field("connection")), ("finished", Some("close")));
    assert!(client.wire.is_closed());
    assert_eq!(proxy.wait_exit().code(), Some(0), "an idle connection is not waited for");
    drop(idle);
}

#[test]
fn bodies_under_way_are_finished() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let upstream = Upstream::scripted(move |mut connection| match connection.request() {
        Some(request) if request.method() == "POST" => connection.send(answer(200, &[], &request.body)),
        Some(_) => {
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\ndown");
            let _ = wait.lock().unwrap().recv();
            connection.send("load");
        }
        None => {}
    });
    let mut proxy = Proxy::start(Config::to(&upstream));
    let (mut up, mut down) = (proxy.client(), proxy.client());
    up.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 6\r\n\r\nup");
    down.send_request("GET", "/", &[], b"");
    let mut response = down.wire.read_head().expect("a response");
    proxy.wait_for_metric("tollgate_requests_active", &[], 2.0);
    proxy.signal(Signal::TERM);
    wait_until("the proxy to be no longer ready", || proxy.admin("GET", "/ready", "").status() == 503);
    up.send("load");
    assert_eq!(up.read().text(), "upload");
    go.send(()).expect("the upstream is there");
    down.wire.read_body(&mut response, false).expect("the rest of the body");
    assert_eq!(response.text(), "download");
    assert!(down.wire.is_closed() && up.wire.is_closed());
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

#[test]
fn a_request_that_hangs_is_waited_for_only_so_long() {
    let upstream = Upstream::silent();
    let config = Config::new().top("drain_timeout: 1s").listener("cluster: web");
    let mut proxy = Proxy::start(config.cluster("web", &[&upstream], "request_timeout: 0s"));
    let mut client = proxy.client();
    client.send_request("GET", "/hangs", &[], b"");
    upstream.wait_for_requests(1);
    proxy.signal(Signal::TERM);
    // Without the bound it would wait for the listener's idle timeout: five minutes.
    assert_eq!(proxy.wait_exit().code(), Some(0));
    assert!(client.wire.is_closed());
    assert!(proxy.output().contains("the drain timeout is over"), "{}", proxy.output());
    assert_eq!(proxy.entry_for("/hangs")["status"], serde_json::Value::Null);
}

#[test]
fn sigint_ends_it_too() {
    let mut proxy = Proxy::start(Config::new());
    proxy.signal(Signal::INT);
    assert_eq!(proxy.wait_exit().code(), Some(0));
    assert!(proxy.output().contains("stopped"));
}

#[test]
fn sighup_reloads_and_opens_the_logs_anew() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream));
    proxy.get("/first");
    proxy.entry_for("/first");
    // As logrotate does it.
    std::fs::rename(proxy.dir().join("access.log"), proxy.dir().join("access.log.1")).expect("a file can be renamed");
    proxy.signal(Signal::HUP);
    wait_until("the log to be there again", || proxy.dir().join("access.log").exists());
    proxy.get("/second");
    proxy.entry_for("/second");
    assert_eq!(proxy.entries().len(), 1);
    wait_until("the reload", || proxy.config()["last_attempt"]["cause"] == "SIGHUP");
    assert_eq!(proxy.version(), 1, "nothing has changed");

    let config: String = Config::to(&upstream).listener("via: new").into();
    let text = std::fs::read_to_string(proxy.dir().join("config.yaml")).expect("a configuration");
    assert!(!text.contains("via") && config.contains("via"));
    proxy.put("config.yaml", text.replace("cluster: web", "cluster: web\n    via: new"));
    proxy.signal(Signal::HUP);
    wait_until("the new configuration", || proxy.get("/").field("via") == Some("1.1 new"));
}

#[test]
fn a_second_proxy_on_the_same_address_does_not_start() {
    let proxy = Proxy::start(Config::new());
    let config = format!("listeners: [{{name: main, address: '{}'}}]", proxy.address("main"));
    let output = Proxy::try_start(config, &[]).err().expect("it does not start");
    assert!(output.contains("cannot listen on"), "{output}");
    assert_eq!(proxy.get("/").status(), 404, "the first one goes on");
}
