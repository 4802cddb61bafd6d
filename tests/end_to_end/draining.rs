//! Signals: SIGTERM ends the proxy without losing a request, SIGHUP reloads, and none ends it in a way of its own.

use std::{
    collections::HashSet,
    thread,
    time::{Duration, Instant},
};

use crate::{
    guest,
    harness::{Client, Config, Proxy, Signal, Upstream, answer, not_run, turnstile, wait_until},
};

/// Sends it a signal, and waits until it takes no more connections.
fn drain(proxy: &Proxy, signal: Signal) {
    proxy.signal(signal);
    wait_until("the proxy to be no longer ready", || proxy.admin("GET", "/ready", "").status() == 503);
}

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
        let now = Instant::now();
        let sent = client.wire.send(request);
        // From before the last one was sent until this one is: however long this thread is kept waiting, it is not less.
        seen.in_time = before.elapsed() < GRACE;
        before = now;
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
        let running = &proxy;
        let clients: Vec<_> = (0..8).map(|name| scope.spawn(move || load(running, name))).collect();
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
    go.send(()).expect("the upstream is there");
    let response = client.read();
    assert_eq!((response.text(), response.field("connection")), ("finished", Some("close")));
    assert!(client.wire.is_closed());
    assert_eq!(proxy.wait_exit().code(), Some(0), "an idle connection is not waited for");
    drop(idle);
}

#[test]
fn bodies_under_way_are_finished() {
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
    go.send(()).expect("the upstream is there");
    down.wire.read_body(&mut response, false).expect("the rest of the body");
    assert_eq!(response.text(), "download");
    assert!(down.wire.is_closed() && up.wire.is_closed());
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

/// A proxy with this `drain_timeout`, and a client whose request nobody answers.
fn hanging(upstream: &Upstream, drain_timeout: &str) -> (Proxy, Client) {
    let config = Config::to_with(upstream, "request_timeout: 0s").top(&format!("drain_timeout: {drain_timeout}"));
    let proxy = Proxy::start(config);
    let mut client = proxy.client();
    client.send_request("GET", "/hangs", &[], b"");
    upstream.wait_for_requests(1);
    (proxy, client)
}

#[test]
fn a_request_that_hangs_is_waited_for_only_so_long() {
    let upstream = Upstream::silent();
    let (mut proxy, mut client) = hanging(&upstream, "1s");
    proxy.signal(Signal::TERM);
    // Without the bound it would wait for the listener's idle timeout: five minutes.
    assert_eq!(proxy.wait_exit().code(), Some(0));
    assert!(client.wire.is_closed());
    assert!(proxy.output().contains("the drain timeout is over"), "{}", proxy.output());
    // Its client has not gone away.
    proxy.entry_for("/hangs").expect((), "UT").because("shutdown");
}

#[test]
fn sigint_and_sigquit_end_it_too() {
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
        proxy.wait_for_output("the configuration is not read again");
        assert!(!proxy.has_ended());
        proxy.signal(second);
        assert_eq!(proxy.wait_exit().code(), Some(0));
        assert!(client.wire.is_closed());
        assert_eq!(proxy.entry_for("/hangs")["status"], serde_json::Value::Null, "what was cut is in the access log");
        assert!(proxy.last_words().contains("while draining; connections that are left are cut"));
    }
}

/// Renames the access log as logrotate does it, and sends a signal, upon which there is a new one.
fn rotate(proxy: &Proxy, signal: Signal) {
    proxy.get("/first");
    proxy.entry_for("/first");
    std::fs::rename(proxy.dir().join("access.log"), proxy.dir().join("access.log.1")).expect("a file can be renamed");
    proxy.signal(signal);
    wait_until("the log to be there again", || proxy.dir().join("access.log").exists());
    proxy.get("/second");
    proxy.entry_for("/second");
    assert_eq!(proxy.entries().len(), 1);
}

#[test]
fn sigusr1_opens_the_logs_anew_and_does_nothing_else() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream));
    rotate(&proxy, Signal::USR1);
    proxy.wait_for_output("access logs were opened again");
    assert_eq!(proxy.config()["last_attempt"]["cause"], "start", "nothing was read again");
}

#[test]
fn sigusr2_does_nothing_and_says_so() {
    let proxy = Proxy::start(Config::new());
    proxy.signal(Signal::USR2);
    proxy.wait_for_output("SIGUSR2 does nothing here");
    assert_eq!(proxy.get("/").status(), 404);
}

/// While it waits for its certificate, which nobody gives it.
#[test]
fn signals_are_heard_before_the_proxy_is_ready() {
    let authority = Upstream::silent();
    let config = format!(
        "workload: {{spiffe: 'spiffe://mesh.local/a', ca: 'http://{}', token: a.token, dir: run}}\n\
         listeners: [{{name: main, address: '@main@'}}]",
        authority
    );
    let mut proxy = Proxy::begin(config, &[("a.token", b"token")]);
    proxy.wait_for_output("a certificate for this workload is asked for");
    for signal in [Signal::HUP, Signal::USR1, Signal::USR2] {
        proxy.signal(signal);
    }
    assert_eq!(proxy.admin("GET", "/live", "").status(), 200);
    assert_eq!(proxy.admin("GET", "/ready", "").status(), 503);
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait_exit().code(), Some(0));
    assert!(proxy.last_words().contains("SIGTERM: stopped before anything was served"));
}

/// A filter that takes for ever to be configured.
fn endless() -> Vec<u8> {
    guest::filter(r#"(func (export "proxy_on_configure") (param i32 i32) (result i32) (loop (br 0)) (i32.const 1))"#)
}

/// Threads that load a configuration: there are some only while that is done.
fn is_loading(proxy: &Proxy) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", proxy.pid())).expect("it runs");
    let names = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.into_iter().any(|name| name.starts_with("tollgate-load"))
}

#[test]
fn signals_are_heard_while_the_first_configuration_loads() {
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
fn a_load_holds_nothing_up_and_is_given_up_at_sigterm() {
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
    assert!(is_loading(&proxy), "nothing of this has waited for it");
    // The spare instance takes the first one's place; others must be made now.
    assert_eq!(proxy.request("GET", "/", &[("x-trap", "1")], b"").status(), 503);
    wait_until("other spares", || proxy.filter("weak")["spares"] == 3);
    assert_eq!(proxy.get("/").status(), 200);
    assert!(is_loading(&proxy));
    assert_eq!(proxy.admin("GET", "/ready", "").status(), 200);
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

#[test]
fn sighup_reloads_and_opens_the_logs_anew() {
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
    assert_eq!(proxy.get("/").status(), 404, "the first one goes on");
}

/// The first process of a container has no signal handlers but its own: what it does not handle, it does not get.
#[test]
fn the_first_process_of_a_container_hears_signals() {
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
    // What is started first is PID 1; what that starts, waits, and signals it.
    let script = "while ! [ -S a.sock ]; do sleep 0.02; done; kill -HUP 1; kill -TERM 1";
    let inside = format!("({script}) & exec {} run other.yaml", env!("CARGO_BIN_EXE_tollgate"));
    let status = namespace(&["sh", "-c", &inside]).status().expect("it runs");
    assert_eq!(status.code(), Some(0));
}
