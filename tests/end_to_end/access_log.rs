//! Access logs: one line per request, whatever a client sends.

use std::{fs, os::fd::OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
use tempfile::TempDir;

use crate::harness::{Config, Proxy, Signal, Upstream, answer, wait_for};

/// Starts a proxy with this `access_log` in front of an upstream.
fn logging(upstream: &Upstream, access_log: &str) -> Proxy {
    Proxy::start(Config::to(upstream).log(access_log))
}

/// A FIFO in a temporary directory, and its reader.
fn fifo() -> (TempDir, String, OwnedFd) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("fifo");
    mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("a FIFO");
    let reader = open(&path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).expect("a reader");
    let path = path.display().to_string();
    (dir, path, reader)
}

/// When the reader stops reading, lines are lost and counted, including those still queued at shutdown.
#[test]
fn unread_lines_at_shutdown_are_counted_as_lost() {
    let (_dir, path, _reader) = fifo();
    let upstream = Upstream::saying("ok");
    let mut proxy = logging(&upstream, &format!("{{to: {path}, format: '%path%'}}"));
    let mut client = proxy.client();
    let long = format!("/{}", "x".repeat(2000));
    // More than the pipe holds, and less than the queue of lines holds.
    (0..100).for_each(|_| assert_eq!(client.get(&long).status(), 200));
    drop(client);
    proxy.signal(Signal::TERM);
    let output = proxy.last_words();
    let line = output.lines().find(|line| line.contains("access log lines lost")).unwrap_or_else(|| panic!("{output}"));
    let lost: u32 = line.rsplit_once("lines=").and_then(|(_, n)| n.parse().ok()).unwrap_or_else(|| panic!("{line}"));
    assert!((60..=90).contains(&lost), "a pipe holds 64 KiB: {lost}");
}

#[test]
fn client_input_cannot_forge_a_line() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream).listener("trusted_hops: 1"));
    let nasty = "a\"},{\"x\":1\\u000a \u{2028}\u{202e}\t<script>";
    let fields = [("User-Agent", nasty), ("Referer", nasty), ("X-Request-Id", nasty)];
    assert_eq!(proxy.request("GET", "/nasty'?x={y}|\\", &fields, b"").status(), 200);
    let entry = proxy.entry(|entry| entry["path"].as_str().is_some_and(|path| path.starts_with("/nasty")));
    assert_eq!((&entry["user_agent"], &entry["referer"]), (&nasty.into(), &nasty.into()));
    assert_eq!((&entry["request_id"], &entry["path"]), (&nasty.into(), &"/nasty'?x={y}|\\".into()));
    let raw = fs::read_to_string(proxy.dir().join("access.log")).expect("a log");
    assert!(!raw.contains(['\u{2028}', '\u{202e}', '\t']), "{raw}");
    assert_eq!(raw.lines().count(), 1);
}

#[test]
fn a_line_has_the_configured_fields() {
    let upstream = Upstream::replying(|_| answer(201, &["X-Kind: new"], "done"));
    let format =
        "%method% %path% %status% [%req(x-a)%] [%req(x-none)%] [%resp(x-kind)%] %flags% %response_bytes% 100%%";
    let proxy = logging(&upstream, &format!("{{to: access.log, format: '{format}'}}"));
    proxy.request("POST", "/a", &[("X-A", "one \"two\"")], b"");
    let line = wait_for("a line", || {
        fs::read_to_string(proxy.dir().join("access.log")).ok().filter(|text| text.ends_with('\n'))
    });
    assert_eq!(line, "POST /a 201 [one \\\"two\\\"] [-] [new] - 4 100%\n");
}

#[test]
fn lines_can_go_to_standard_output() {
    let upstream = Upstream::saying("ok");
    let proxy = logging(&upstream, "{to: stdout, format: 'line %path% %status%'}");
    proxy.get("/out");
    proxy.wait_for_output("line /out 200\n");
}

#[test]
fn timestamps_are_ordered() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream));
    proxy.request("POST", "/", &[], b"body");
    let entry = proxy.entry_for("/");
    let ms = |name: &str| entry[name].as_f64().unwrap_or_else(|| panic!("{name}: {entry}"));
    assert!(ms("chain_request_ms") <= ms("upstream_first_byte_ms"), "{entry}");
    assert!(ms("upstream_connect_ms") <= ms("upstream_first_byte_ms"), "{entry}");
    assert!(ms("upstream_first_byte_ms") <= ms("upstream_ms") && ms("upstream_ms") <= ms("duration_ms"), "{entry}");
    assert!(ms("request_received_ms") <= ms("duration_ms"), "{entry}");
    assert!(entry["start"].as_str().is_some_and(|start| start.len() == 24 && start.ends_with('Z')), "{entry}");
}

/// Every request gets exactly one line, and no line is torn.
#[test]
fn no_line_is_lost_or_torn_under_load() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream));
    std::thread::scope(|scope| {
        for name in 0..8 {
            let proxy = &proxy;
            scope.spawn(move || {
                let mut client = proxy.client();
                (0..250).for_each(|n| assert_eq!(client.get(&format!("/{name}/{n}")).status(), 200));
            });
        }
    });
    wait_for("all lines", || (proxy.entries().len() >= 2000).then_some(()));
    let paths: std::collections::HashSet<String> = proxy.entries().iter().map(|e| e["path"].to_string()).collect();
    assert_eq!((paths.len(), proxy.entries().len()), (2000, 2000));
    assert_eq!(proxy.metrics().sum("tollgate_access_log_dropped_total", &[]), 0.0);
}

#[test]
fn a_fifo_without_a_reader_blocks_nothing() {
    let (_dir, path, reader) = fifo();
    let upstream = Upstream::saying("ok");
    let mut proxy = logging(&upstream, &format!("{{to: {path}}}"));
    drop(reader);
    proxy.signal(Signal::HUP);
    proxy.wait_for_output("no process reads from this FIFO");
    assert_eq!(proxy.admin("GET", "/live", "").status(), 200);
    assert_eq!(proxy.get("/").status(), 200);
    // A reload that adds another such log is rejected; the next signal is still handled.
    proxy.put_config(format!("listeners: [{{name: other, address: '@main@', access_log: {{to: {path}}}}}]"));
    let (status, response) = proxy.reload();
    assert_eq!(status, 422, "{response}");
    assert!(response.to_string().contains("no process reads from this FIFO"), "{response}");
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

/// The flag `LR` means that a filter replied; a reply that comes too late does not count.
#[test]
fn a_local_reply_from_on_log_is_ignored() {
    let answers = crate::guest::filter(
        r#"(func (export "proxy_on_log") (param i32)
            (drop (call $reply (i32.const 403) %"why" %"no" (i32.const 0) (i32.const 0) (i32.const -1))))"#,
    );
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream).module("late", &answers, ""));
    assert_eq!(proxy.get("/").text(), "ok");
    proxy.entry_for("/").expect(200, "");
}
