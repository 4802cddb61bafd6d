//! Signals: SIGTERM ends the proxy without losing a request, SIGHUP reloads, and no signal kills it.

use std::{
    collections::HashSet,
    thread,
    time::{Duration, Instant},
};

use crate::{
    guest,
    harness::{Client, Config, Proxy, Signal, Upstream, answer, not_run, turnstile, wait_until},
};

/// Sends this signal, and waits until it accepts no more connections.
fn drain(proxy: &Proxy, signal: Signal) {
    proxy.signal(signal);
    wait_until("the proxy to be no longer ready", || proxy.admin("GET", "/ready", "").status() == 503);
}

/// The minimum time that an idle connection is kept after SIGTERM, for a request that may be in transit.
const GRACE: Duration = Duration::from_millis(400);

/// The observations of one client under load.
#[derive(Default)]
struct Seen {
    answered: usize,
    /// The request without a response, if any.
    unanswered: Option<String>,
    /// It was sent so soon after the previous one that the connection cannot have been closed for being idle.
    in_time: bool,
    told: bool,
}

/// Sends requests one after the other on one connection until it ends.
fn load(proxy: &Proxy, name: usize) -> Seen {
    let mut client = proxy.client();
    let mut seen = Seen::default();
    let mut before = Instant::now();
    for n in 0.. {
        let target = format!("/{name}/{n}");
        let request = format!("POST {target} HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nbody");
        let now = Instant::now();
        let sent = client.wire.send(request);
        // From before the previous request was sent until this one is: delays of this thread only make it longer.
        seen.in_time = before.elapsed() < GRACE;
        before = now;
        match sent.and_then(|()| client.wire.read_response("POST")) {
            Ok(response) => {
                assert_eq!((response.status(), response.text()), (200, target.as_str()));
                seen.answered += 1;
                seen.told = response.field("connection") == Some("close");
                if seen.told {
                    assert!(client.wire.is_closed(), "the announced close happens");
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
        let running = &proxy;
        let clients: Vec<_> = (0..8).map(|name| scope.spawn(move || load(running, name))).collect();
        // In the middle of the load.
        upstream.wait_for_requests(400);
        proxy.signal(Signal::TERM);
        clients.into_iter().map(|client| client.join().expect("a client's observations")).collect()
    });
    assert_eq!(proxy.wait_exit().code(), Some(0));
    let reached: HashSet<String> = upstream.requests().iter().map(|r| r.target().to_owned()).collect();
    for (name, seen) in clients.iter().enumerate() {
        if let Some(target) = &seen.unanswered {
            assert!(!reached.contains(target), "{target} was processed and not answered");
            assert!(!seen.in_time, "{target} was sent in time and not answered");
        }
        assert!(seen.told || seen.unanswered.is_some(), "client {name} did not get `connection: close`");
    }
    let answered: usize = clients.iter().map(|seen| seen.answered).sum();
    assert_eq!(answered, reached.len(), "every processed request was answered");
    assert_eq!(proxy.entries().len(), answered, "and all of them are in the access log");
}

#[test]
fn sigterm_lets_an_active_request_finish() {
    let (go, wait) = turnstile();
    let upstream = Upstream::replying(move |_| {
        wait();
        answer(200, &[], "finished")
    });
    let mut proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.client();
    client.send_request("GET", "/", &[], b"");
    upstream.wait_for_requests(1);
    let idle = proxy.client();
    drain(&proxy, Signal::TERM);
    assert_eq!(proxy.admin("GET", "/live", "").status(), 200);
    wait_until("new connections to be refused", || std::net::TcpStream::connect(proxy.address("main")).is_err());
    go.send(()).expect("the upstream is running");
    let response = client.read();
    assert_eq!((response.text(), response.field("connection")), ("finished", Some("close")));
    assert!(client.wire.is_closed());
    assert_eq!(proxy.wait_exit().code(), Some(0), "an idle connection is not waited for");
    drop(idle);
}

#[test]
fn sigterm_lets_bodies_finish() {
    let (go, wait) = turnstile();
    let upstream = Upstream::scripted(move |mut connection| match connection.request() {
        Some(request) if request.method() == "POST" => connection.send(answer(200, &[], &request.body)),
        Some(_) => {
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\ndown");
            wait();
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
    drain(&proxy, Signal::TERM);
    up.send("load");
    assert_eq!(up.read().text(), "upload");
    go.send(()).expect("the upstream is running");
    down.wire.read_body(&mut response, false).expect("the rest of the body");
    assert_eq!(response.text(), "download");
    assert!(down.wire.is_closed() && up.wire.is_closed());
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

/// A proxy with this `drain_timeout`, and a client whose request is never answered.
fn hanging(upstream: &Upstream, drain_timeout: &str) -> (Proxy, Client) {
    let config = Config::to_with(upstream, "request_timeout: 0s").top(&format!("drain_timeout: {drain_timeout}"));
    let proxy = Proxy::start(config);
    let mut client = proxy.client();
    client.send_request("GET", "/hangs", &[], b"");
    upstream.wait_for_requests(1);
    (proxy, client)
}

#[test]
fn the_drain_timeout_bounds_a_hanging_request() {
    let upstream = Upstream::silent();
    let (mut proxy, mut client) = hanging(&upstream, "1s");
    proxy.signal(Signal::TERM);
    // Without the timeout it would wait for the listener's idle timeout: five minutes.
    assert_eq!(proxy.wait_exit().code(), Some(0));
    assert!(client.wire.is_closed());
    assert!(proxy.output().contains("drain timeout expired"), "{}", proxy.output());
    // Its client did not disconnect.
    proxy.entry_for("/hangs").expect((), "UT").because("shutdown");
}

#[test]
fn sigint_and_sigquit_drain_too() {
    for (signal, name) in [(Signal::INT, "SIGINT"), (Signal::QUIT, "SIGQUIT")] {
        let mut proxy = Proxy::start(Config::new());
        proxy.signal(signal);
        assert_eq!(proxy.wait_exit().code(), Some(0));
        let output = proxy.last_words();
        assert!(output.contains("stopped") && output.contains(name), "{output}");
    }
}

#[test]
fn a_second_signal_ends_the_draining() {
    for (first, second) in [(Signal::TERM, Signal::TERM), (Signal::INT, Signal::INT), (Signal::QUIT, Signal::TERM)] {
        let upstream = Upstream::silent();
        let (mut proxy, mut client) = hanging(&upstream, "1h");
        drain(&proxy, first);
        // Neither of these ends it.
        proxy.signal(Signal::HUP);
        proxy.signal(Signal::USR1);
        proxy.wait_for_output("SIGHUP ignored: the process is stopping");
        assert!(!proxy.has_ended());
        proxy.signal(second);
        assert_eq!(proxy.wait_exit().code(), Some(0));
        assert!(client.wire.is_closed());
        assert_eq!(
            proxy.entry_for("/hangs")["status"],
            serde_json::Value::Null,
            "the aborted request is in the access log"
        );
        assert!(proxy.last_words().contains("while draining; closing the remaining connections"));
    }
}

/// Renames the access log as logrotate does, and sends a signal that must reopen it.
fn rotate(proxy: &Proxy, signal: Signal) {
    proxy.get("/first");
    proxy.entry_for("/first");
    std::fs::rename(proxy.dir().join("access.log"), proxy.dir().join("access.log.1")).expect("a file can be renamed");
    proxy.signal(signal);
    wait_until("the log to exist again", || proxy.dir().join("access.log").exists());
    proxy.get("/second");
    proxy.entry_for("/second");
    assert_eq!(proxy.entries().len(), 1);
}

#[test]
fn sigusr1_only_reopens_the_logs() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream));
    rotate(&proxy, Signal::USR1);
    proxy.wait_for_output("access logs reopened");
    assert_eq!(proxy.config()["last_attempt"]["cause"], "start", "no reload happened");
}

#[test]
fn sigusr2_is_ignored_and_logged() {
    let proxy = Proxy::start(Config::new());
    proxy.signal(Signal::USR2);
    proxy.wait_for_output("SIGUSR2 ignored");
    assert_eq!(proxy.get("/").status(), 404);
}

/// While it waits for a certificate that the authority does not issue.
#[test]
fn signals_are_handled_before_the_proxy_is_ready() {
    let authority = Upstream::silent();
    let config = format!(
        "workload: {{spiffe: 'spiffe://mesh.local/a', ca: 'http://{}', token: a.token, dir: run}}\n\
         listeners: [{{name: main, address: '@main@'}}]",
        authority
    );
    let mut proxy = Proxy::begin(config, &[("a.token", b"token")]);
    proxy.wait_for_output("requesting a workload certificate");
    for signal in [Signal::HUP, Signal::USR1, Signal::USR2] {
        proxy.signal(signal);
    }
    assert_eq!(proxy.admin("GET", "/live", "").status(), 200);
    assert_eq!(proxy.admin("GET", "/ready", "").status(), 503);
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait_exit().code(), Some(0));
    assert!(proxy.last_words().contains("SIGTERM: stopped before serving any traffic"));
}

/// A filter that never finishes its configuration.
fn endless() -> Vec<u8> {
    guest::filter(r#"(func (export "proxy_on_configure") (param i32 i32) (result i32) (loop (br 0)) (i32.const 1))"#)
}

/// Whether a configuration is being loaded: only then are there threads that load it.
fn is_loading(proxy: &Proxy) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", proxy.pid())).expect("it runs");
    let names = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.into_iter().any(|name| name.starts_with("tollgate-load"))
}

#[test]
fn signals_are_handled_while_the_first_configuration_loads() {
    let config = Config::new().filter("slow", "slow.wasm", "limits: {call_time: 1h}");
    let mut proxy = Proxy::begin(config, &[("slow.wasm", &endless())]);
    wait_until("the admin listener to answer", || std::net::TcpStream::connect(proxy.address("admin")).is_ok());
    wait_until("loading to begin", || is_loading(&proxy));
    assert_eq!(proxy.admin("GET", "/live", "").status(), 200);
    assert_eq!(proxy.admin("GET", "/ready", "").status(), 503);
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

#[test]
fn a_load_blocks_nothing_and_is_abandoned_at_sigterm() {
    let upstream = Upstream::saying("ok");
    let weak = guest::filter(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (if (call $has (i32.const 0) %"x-trap") (then (unreachable)))
            (i32.const 0))"#,
    );
    let config = Config::to(&upstream).top("workers: 1").filter("weak", "weak.wasm", "");
    let files: &[(&str, &[u8])] = &[("weak.wasm", &weak), ("slow.wasm", &endless())];
    let mut proxy = Proxy::start_with(config.clone(), files);
    proxy.put_config(config.filter("slow", "slow.wasm", "limits: {call_time: 1h}"));
    wait_until("loading to begin", || is_loading(&proxy));
    proxy.asks_all_workers();
    assert!(is_loading(&proxy), "none of this waited for the load");
    // The spare instance replaces the first one; other spares must be created now.
    assert_eq!(proxy.request("GET", "/", &[("x-trap", "1")], b"").status(), 503);
    wait_until("other spares", || proxy.filter("weak")["spares"] == 3);
    assert_eq!(proxy.get("/").status(), 200);
    assert!(is_loading(&proxy));
    assert_eq!(proxy.admin("GET", "/ready", "").status(), 200);
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

#[test]
fn sighup_reloads_and_reopens_the_logs() {
    let upstream = Upstream::saying("ok");
    let mut proxy = Proxy::start(Config::to(&upstream));
    rotate(&proxy, Signal::HUP);
    wait_until("the reload", || proxy.config()["last_attempt"]["cause"] == "SIGHUP");
    assert_eq!(proxy.version(), 1, "nothing has changed");

    proxy.put_config(Config::to(&upstream).listener("via: new"));
    proxy.signal(Signal::HUP);
    wait_until("the new configuration", || proxy.get("/").field("via") == Some("1.1 new"));
}

#[test]
fn a_second_proxy_on_the_same_address_does_not_start() {
    let proxy = Proxy::start(Config::new());
    let config = format!("listeners: [{{name: main, address: '{}'}}]", proxy.address("main"));
    let output = Proxy::try_start(config, &[]).err().expect("it does not start");
    assert!(output.contains("cannot listen on"), "{output}");
    assert_eq!(proxy.get("/").status(), 404, "the first one keeps running");
}

/// The kernel does not deliver a signal to the first process of a container unless it has a handler.
#[test]
fn signals_work_for_the_first_process_of_a_container() {
    use std::process::{Command, Stdio};
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream));
    let namespace = |program: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--pid", "--fork", "--kill-child"]).args(program);
        command.current_dir(proxy.dir()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    if !namespace(&["true"]).status().is_ok_and(|status| status.success()) {
        return not_run::for_want_of("namespaces", "`unshare` fails");
    }
    std::fs::write(proxy.dir().join("other.yaml"), "admin: false\nlisteners: [{name: a, address: 'unix:a.sock'}]")
        .expect("a file");
    // The `exec` makes the proxy PID 1; the background script waits and signals it.
    let script = "while ! [ -S a.sock ]; do sleep 0.02; done; kill -HUP 1; kill -TERM 1";
    let inside = format!("({script}) & exec {} run other.yaml", env!("CARGO_BIN_EXE_tollgate"));
    let status = namespace(&["sh", "-c", &inside]).status().expect("it runs");
    assert_eq!(status.code(), Some(0));
}
