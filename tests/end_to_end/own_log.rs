//! Tollgate's own log, on standard error.

use std::{
    fs::{self, File},
    io::Read,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use crate::harness::{Config, Proxy, Signal, Upstream, wait_until};

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Each line written there is an event in a watched directory.
#[test]
fn a_log_next_to_the_configuration_does_not_cause_log_lines() {
    let dir = tempfile::tempdir().expect("a folder");
    let (config, log) = (dir.path().join("config.yaml"), dir.path().join("tollgate.log"));
    let text = |timeout: &str| {
        format!(
            "admin: {{enabled: false}}\nlog: {{level: trace}}\ndrain_timeout: {timeout}\n\
             listeners: [{{name: main, address: '127.0.0.1:0', chain: [faults]}}]\n\
             filters: [{{name: faults, wasm: 'builtin:fault'}}]\n"
        )
    };
    fs::write(&config, text("1s")).expect("a file");
    let _proxy = Killed(
        Command::new(env!("CARGO_BIN_EXE_tollgate"))
            .arg("run")
            .arg(&config)
            .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
            .env_remove("TOLLGATE_LOG")
            .stdin(Stdio::null())
            .stderr(File::create(&log).expect("a file"))
            .spawn()
            .expect("the proxy can be run"),
    );
    let said = |what: &str| fs::read_to_string(&log).expect("the log").contains(what);
    wait_until("the proxy to be ready", || said("ready workers="));
    for timeout in ["2s", "3s"] {
        fs::write(&config, text(timeout)).expect("a file");
        let version = format!("version={}", timeout.trim_end_matches('s'));
        wait_until("the change", || said(&version));
    }
    assert!(said("TRACE"), "the trace level is on");
    assert!(!said("notify"), "{}", fs::read_to_string(&log).expect("the log"));
}

#[test]
fn options_at_the_start_override_the_configuration() {
    let first = Proxy::start(Config::new().top("log: {level: warn}"));
    assert_eq!(first.admin("GET", "/log", "").text(), "warn\n");
    drop(first);
    let first = Proxy::start(Config::new().top("log: {level: warn}"));
    let mut given = first.beside(&["--replace", &first.pid().to_string(), "--log-level", "info,tollgate=debug"]);
    given.wait_for_output("admin listener on");
    assert_eq!(given.admin("GET", "/log", "").text(), "tollgate=debug,info\n");
    assert_eq!(given.admin("POST", "/log", "debug").status(), 200);
    given.change_config(Config::new().top("log: {level: error}"));
    assert_eq!(given.admin("GET", "/log", "").text(), "tollgate=debug,info\n");
}

/// A proxy that logs a line per request, as long as its path.
fn talkative(upstream: &Upstream) -> Config {
    let policies = "config: {dry_run: true, policies: [{name: all, action: deny, rules: [{}]}]}";
    Config::to(upstream).filter("authz", "builtin:authz", policies)
}

/// A log collector that is stuck must not block traffic.
#[test]
fn unread_standard_error_does_not_block_traffic() {
    let upstream = Upstream::saying("ok");
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let access = "{to: stdout, format: '%path% %req(x-fill)%'}";
    let mut proxy =
        Proxy::start_unheard(talkative(&upstream).log(access), || writer.try_clone().expect("a descriptor").into());
    drop(writer);
    let (path, fill) = (format!("/{}", "x".repeat(3000)), "y".repeat(4000));
    let mut client = proxy.client();
    let lost = || {
        let metrics = proxy.metrics();
        let lost = |log: &str| metrics.sum(&format!("tollgate_{log}_dropped_total"), &[("reason", "overflow")]);
        lost("log") > 0.0 && lost("access_log") > 0.0
    };
    wait_until("lines to be dropped", || {
        (0..100).for_each(|_| assert_eq!(client.request("GET", &path, &[("X-Fill", &fill)], b"").status(), 200));
        lost()
    });
    assert_eq!(proxy.admin("GET", "/live", "").status(), 200);
    let read = Arc::new(Mutex::new(Vec::new()));
    let reading = thread::spawn({
        let read = read.clone();
        move || {
            let mut some = vec![0; 64 << 10];
            while let Ok(n @ 1..) = reader.read(&mut some) {
                read.lock().unwrap().extend_from_slice(&some[..n]);
            }
        }
    });
    let said = |what: &str| String::from_utf8_lossy(&read.lock().unwrap()).contains(what);
    wait_until("the log to report lost lines", || said("lines of this log were lost"));
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait_exit().code(), Some(0));
    drop(proxy);
    reading.join().expect("it reads");
    assert!(said("stopped"), "the last lines are written");
}

#[test]
fn a_process_with_unread_output_can_exit() {
    let upstream = Upstream::saying("ok");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut proxy = Proxy::start_unheard(talkative(&upstream), || writer.try_clone().expect("a descriptor").into());
    drop(writer);
    let path = format!("/{}", "x".repeat(3000));
    let mut client = proxy.client();
    (0..100).for_each(|_| assert_eq!(client.get(&path).status(), 200));
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait_exit().code(), Some(0));
    drop(reader);
}

#[test]
fn startup_errors_are_written_completely() {
    let config =
        Config::new().top(&format!("admin: {{address: '@admin@', hosts: [{}]}}\nnonsense: 1", "x".repeat(100_000)));
    let output = Proxy::try_start(config, &[]).map(|_| ()).expect_err("it must not start");
    assert!(
        output.contains("unknown field `nonsense`") && output.ends_with("the configuration cannot be used\n"),
        "{output}"
    );
}

/// Neither a filter nor what it quotes can inject a line, or a color, into the log.
#[test]
fn filter_log_lines_cannot_forge_log_lines() {
    let upstream = Upstream::saying("ok");
    let policies =
        "config: {dry_run: true, policies: [{name: all, action: deny, rules: [{to: [{operation: {paths: ['/*']}}]}]}]}";
    let proxy = Proxy::start(Config::to(&upstream).filter("authz", "builtin:authz", policies));
    let target = "/a%0A2026-01-01T00:00:00Z%20%20INFO%20forged%1B%5B2J";
    assert_eq!(proxy.get(target).status(), 200);
    proxy.wait_for_output("tollgate::filter");
    assert!(!proxy.output().lines().any(|line| line.starts_with("2026-01-01")) && !proxy.output().contains('\u{1b}'));
}
