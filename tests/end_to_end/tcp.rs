//! TCP listeners: bytes pass unchanged, ends are forwarded, and every connection is logged and counted.

mod around;
mod filters;
mod third_party;

use std::{fs, io::Write, thread, time::Duration};

use crate::{
    guest,
    harness::{Config, Entry, Proxy, Signal, Upstream, Wire, in_time, wait_until},
};

/// An upstream that echoes what it receives, and ends when its client has ended.
fn echo() -> Upstream {
    Upstream::scripted(|mut connection| {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(n @ 1..) = connection.wire.read_some(&mut buffer) {
            connection.send(&buffer[..n]);
        }
    })
}

/// All connections go to one cluster.
fn to(upstream: &Upstream) -> Config {
    Config::to(upstream).listener("protocol: tcp")
}

/// Three clusters `a`, `b` and `c`; the listener's options route connections.
fn to_three(upstreams: &[Upstream; 3], listener: &str) -> Config {
    let config = Config::new().listener("protocol: tcp").listener(listener);
    ["a", "b", "c"].iter().zip(upstreams).fold(config, |config, (name, upstream)| config.cluster(name, &[upstream], ""))
}

fn connect(proxy: &Proxy) -> Wire {
    proxy.client().wire
}

/// The line of the only connection so far, once that has ended.
fn logged(proxy: &Proxy) -> Entry {
    proxy.entry(|entry| entry["protocol"] == "TCP")
}

/// Waits for the line of a connection that ended for this reason.
fn ended(proxy: &Proxy, flags: &str, details: &str) -> Entry {
    proxy.entry(|entry| entry["details"] == details).expect((), flags)
}

/// Sends some bytes and waits for their echo.
fn echoes(wire: &mut Wire, text: &str) {
    wire.send(text).expect("the proxy reads");
    assert_eq!(wire.read_exact(text.len()).expect("an echo"), text.as_bytes());
}

#[test]
fn bytes_pass_and_are_counted() {
    let upstream = echo();
    let proxy = Proxy::start(to(&upstream));
    let mut wire = connect(&proxy);
    echoes(&mut wire, "hello");
    assert_eq!(proxy.metrics().sum("tollgate_tcp_connections_active", &[("listener", "main")]), 1.0);
    wire.finish();
    assert_eq!(wire.read_to_end(), b"");

    let entry = logged(&proxy).expect((), "");
    assert_eq!((&entry["request_bytes"], &entry["response_bytes"]), (&5.into(), &5.into()));
    assert_eq!((&entry["cluster"], &entry["endpoint"]), (&"web".into(), &upstream.to_string().into()));
    assert!(entry["details"].is_null());
    assert_eq!((&entry["attempts"], &entry["listener"]), (&1.into(), &"main".into()));
    assert!(entry["upstream_connect_ms"].is_number() && entry["upstream_first_byte_ms"].is_number());
    let metrics = proxy.metrics();
    let (main, web) = (("listener", "main"), ("cluster", "web"));
    for direction in ["received", "sent"] {
        let direction = ("direction", direction);
        assert_eq!(metrics.sum("tollgate_tcp_bytes_total", &[main, direction]), 5.0, "{direction:?}");
        assert_eq!(metrics.sum("tollgate_upstream_tcp_bytes_total", &[web, direction]), 5.0, "{direction:?}");
    }
    for (name, label, value) in [
        ("tollgate_tcp_connections_total", main, 1.0),
        ("tollgate_tcp_connections_active", main, 0.0),
        ("tollgate_cluster_connects_total", web, 1.0),
        ("tollgate_cluster_requests_active", web, 0.0),
        ("tollgate_cluster_connections", web, 0.0),
    ] {
        assert_eq!(metrics.sum(name, &[label]), value, "{name}");
    }
}

#[test]
fn either_end_may_speak_first_and_end_first() {
    let upstream = Upstream::scripted(|mut connection| {
        connection.send("welcome\n");
        connection.wire.finish();
        let rest = connection.wire.read_to_end();
        assert_eq!(rest, b"thank you");
    });
    let proxy = Proxy::start(to(&upstream));
    let mut wire = connect(&proxy);
    assert_eq!(wire.read_to_end(), b"welcome\n", "and the end");
    wire.send("thank you").expect("the other direction is still open");
    wire.finish();
    assert_eq!(logged(&proxy).expect((), "")["request_bytes"], 9);

    let upstream = Upstream::scripted(|mut connection| {
        let all = connection.wire.read_to_end();
        connection.send(format!("{} bytes", all.len()));
    });
    let proxy = Proxy::start(to(&upstream));
    let mut wire = connect(&proxy);
    wire.send(vec![1; 100_000]).expect("the proxy reads");
    wire.finish();
    assert_eq!(wire.read_to_end(), b"100000 bytes");
}

#[test]
fn a_large_transfer_uses_bounded_memory() {
    const SIZE: usize = 128 << 20;
    let filter =
        guest::filter(r#"(func (export "proxy_on_upstream_data") (param i32 i32 i32) (result i32) (i32.const 0))"#);
    // Moved by the kernel, and through a filter.
    for config in [to, |upstream: &Upstream| to(upstream).filter("pass", "pass.wasm", "")] {
        let upstream = Upstream::scripted(|mut connection| {
            let piece: Vec<u8> = (0..1 << 20).map(|i: u32| (i % 251) as u8).collect();
            (0..SIZE / piece.len()).for_each(|_| connection.send(&piece));
        });
        let proxy = Proxy::start_with(config(&upstream), &[("pass.wasm", &filter)]);
        let mut wire = connect(&proxy);
        let before = proxy.peak_kib();
        // Nothing is read until no more bytes can be in transit.
        let moved = || proxy.metrics().sum("tollgate_tcp_bytes_total", &[("direction", "sent")]) as usize;
        let mut last = 0;
        wait_until("the transfer to stall", || {
            thread::sleep(Duration::from_millis(100));
            let now = moved();
            std::mem::replace(&mut last, now) == now && now > 0
        });
        assert!(last < SIZE, "a client that does not read was sent everything");
        let (mut got, mut buffer) = (0, vec![0; 1 << 20]);
        while let Ok(n @ 1..) = wire.read_some(&mut buffer) {
            let expected = |i: usize| (((got + i) % (1 << 20)) % 251) as u8;
            assert!((0..n).step_by(997).all(|i| buffer[i] == expected(i)));
            got += n;
        }
        assert_eq!(got, SIZE);
        let grown = proxy.peak_kib() - before;
        assert!(grown < 32 << 10, "{grown} KiB more");
    }
}

#[test]
fn resets_are_forwarded_and_flagged() {
    let upstream = Upstream::scripted(|mut connection| {
        if connection.wire.read_exact(1).is_ok_and(|word| word == b"!") {
            connection.wire.reset();
        } else {
            connection.send("x");
            let mut byte = [0];
            let error = connection.wire.read_some(&mut byte).expect_err("a reset");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
    });
    let proxy = Proxy::start(to(&upstream));
    let mut wire = connect(&proxy);
    wire.send("!").expect("the proxy reads");
    let error = wire.read_some(&mut [0]).expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    ended(&proxy, "UC", "upstream_reset");

    let mut wire = connect(&proxy);
    wire.send("?").expect("the proxy reads");
    wire.read_exact(1).expect("an answer");
    wire.reset();
    ended(&proxy, "DC", "client_reset");
}

#[test]
fn unconnectable_connections_are_closed_and_flagged() {
    let (refusing, full) = (Upstream::refusing().to_string(), echo());
    for (endpoints, options, flags, details) in [
        (&[refusing.clone()][..], "", "UF", "connect_failure"),
        (&[refusing], "retry: {attempts: 2}", "UF,URX", "connect_failure"),
        (&[], "", "UH", "no_endpoint"),
        (&[full.to_string()], "limits: {connections: 1}", "UO", "overflow"),
    ] {
        let config = Config::new().listener("protocol: tcp\ncluster: web").cluster("web", endpoints, options);
        let proxy = Proxy::start(config);
        let mut held = connect(&proxy);
        if flags == "UO" {
            echoes(&mut held, "this one is open");
        }
        assert!(connect(&proxy).is_closed());
        assert_eq!(ended(&proxy, flags, details)["cluster"], "web");
        proxy.wait_for_metric("tollgate_response_flags_total", &[("flag", &flags[..2])], 1.0);
    }
}

#[test]
fn idle_and_old_connections_are_closed() {
    let upstream = echo();
    in_time(|ms| {
        let proxy = Proxy::start(to(&upstream).listener(&format!("timeouts: {{idle: {ms}ms}}")));
        let mut wire = connect(&proxy);
        let echo = wire.send("awake").and_then(|()| wire.read_exact(5));
        assert!(wire.is_closed());
        ended(&proxy, "SI", "idle_timeout");
        echo.is_ok().then_some(())
    });

    let proxy = Proxy::start(to(&upstream).listener("timeouts: {connection_age: 300ms}"));
    let mut wire = connect(&proxy);
    while wire.send("x").and_then(|()| wire.read_exact(1)).is_ok() {}
    ended(&proxy, "DT", "connection_age");
}

#[test]
fn clusters_share_connections_by_weight() {
    let upstreams = [echo(), echo(), echo()];
    let proxy = Proxy::start(to_three(
        &upstreams,
        "tcp: {clusters: [{cluster: a, weight: 9}, {cluster: b}, {cluster: c, weight: 0}]}",
    ));
    for _ in 0..400 {
        echoes(&mut connect(&proxy), "x");
    }
    let counts = upstreams.map(|u| u.connections());
    assert_eq!((counts[0] + counts[1], counts[2]), (400, 0));
    // 360 and 40, within eight standard deviations of 6.
    assert!((312..400).contains(&counts[0]), "{counts:?}");
}

#[test]
fn a_reload_keeps_existing_connections() {
    let (old, new) = (echo(), echo());
    let mut proxy = Proxy::start(to(&old));
    let mut before = connect(&proxy);
    echoes(&mut before, "to the old one");
    proxy.change_config(to(&new));
    echoes(&mut before, "still there");
    let mut after = connect(&proxy);
    echoes(&mut after, "to the new one");
    assert_eq!((old.connections(), new.connections()), (1, 1));
    // Not even removing their listener ends them.
    proxy.change_config(
        "listeners: [{name: other, address: '@other@', protocol: tcp, cluster: web}]\nclusters: [{name: web}]\n",
    );
    echoes(&mut before, "and there");
    echoes(&mut after, "and here");
}

#[test]
fn shutdown_waits_for_connections_until_the_drain_timeout() {
    let upstream = echo();
    let mut proxy = Proxy::start(to(&upstream).top("drain_timeout: 60s"));
    let (mut one, mut other) = (connect(&proxy), connect(&proxy));
    echoes(&mut one, "x");
    echoes(&mut other, "x");
    proxy.signal(Signal::TERM);
    proxy.wait_for_output("stopping");
    echoes(&mut one, "not cut");
    for mut wire in [one, other] {
        wire.finish();
        assert_eq!(wire.read_to_end(), b"");
    }
    assert_eq!(proxy.wait_exit().code(), Some(0));
    assert!(!proxy.output().contains("drain timeout expired"));

    let mut proxy = Proxy::start(to(&upstream).top("drain_timeout: 300ms"));
    let mut wire = connect(&proxy);
    echoes(&mut wire, "x");
    proxy.signal(Signal::TERM);
    assert!(wire.is_closed());
    assert_eq!(proxy.wait_exit().code(), Some(0));
    logged(&proxy).because("shutdown");
}

#[test]
fn many_connections_end_without_leaks() {
    let upstream = echo();
    let proxy = Proxy::start(to(&upstream));
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", proxy.pid())).expect("its files").count();
    echoes(&mut connect(&proxy), "warm");
    proxy.wait_for_zero("tollgate_tcp_connections_active", &[]);
    let before = descriptors();
    thread::scope(|scope| {
        for nth in 0..8 {
            let proxy = &proxy;
            scope.spawn(move || {
                for n in 0..25 {
                    let mut wire = connect(proxy);
                    let text = vec![nth as u8; 1 + n * 5000];
                    let mut writing = wire.socket().try_clone().expect("a second handle");
                    scope.spawn({
                        let text = text.clone();
                        move || writing.write_all(&text).expect("the proxy reads")
                    });
                    assert_eq!(wire.read_exact(text.len()).expect("an echo"), text);
                    if n % 3 == 0 {
                        wire.reset();
                    }
                }
            });
        }
    });
    proxy.wait_for_zero("tollgate_tcp_connections_active", &[]);
    // A few pipes are cached per worker.
    wait_until("all to be closed", || descriptors() <= before + 32);
    assert_eq!(proxy.metrics().sum("tollgate_tcp_connections_total", &[]), 201.0);
}

#[test]
fn configuration_errors_have_a_location() {
    for (listener, said) in [
        ("protocol: tcp", "TCP connections have no destination"),
        ("protocol: tcp\ntcp: {clusters: [{cluster: wbe}]}", "there is no cluster named `wbe`"),
        ("protocol: tcp\ntcp: {clusters: [{cluster: web, weight: 0}]}", "the weights of all clusters are 0"),
        ("protocol: tcp\ntcp: {sni: [{names: ['*.*.example'], cluster: web}]}", "server name"),
    ] {
        let config = Config::new().listener(listener).cluster("web", &[Upstream::refusing()], "");
        let Err(output) = Proxy::try_start(config, &[]) else { panic!("{listener} must be rejected") };
        assert!(output.contains(said), "{output}");
    }
    let config = Config::new().listener("protocol: tcp").filter("guard", "builtin:authz", "config: {policies: []}");
    let Err(output) = Proxy::try_start(config, &[]) else { panic!("it must be rejected") };
    assert!(output.contains("filter `guard` does not handle TCP connections"), "{output}");
}
