//! Root rotation: no handshake fails, even if proxies restart meanwhile, and steps that would break handshakes are
//! rejected.

use std::{
    fs, mem,
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use super::{Folder, WEB, held, inner, late_authority, outer, request_for, sign, workload};
use crate::harness::{Client, Proxy, Signal, Upstream, wait_until};

/// How many roots a proxy trusts, according to its directory.
fn roots(proxy: &Proxy) -> usize {
    let text = fs::read_to_string(proxy.dir().join("run/ca.pem")).expect("the roots");
    text.matches("BEGIN CERTIFICATE").count()
}

/// Whether the proxy's certificate was signed by this root.
fn is_signed_by(proxy: &Proxy, root: &str) -> bool {
    super::verify(&held(&proxy.dir().join("run")).0, root, None).is_ok()
}

/// Waits until the proxy uses the current files.
fn in_force(proxy: &Proxy) {
    wait_until("the files to be used", || proxy.reload().1["result"] == "unchanged");
}

/// Replaces a proxy by a successor process.
fn restart(proxy: &mut Proxy) {
    let next = proxy.beside(&["--replace", &proxy.pid().to_string()]);
    next.wait_for_ready_line();
    mem::replace(proxy, next).wait_exit();
}

#[test]
fn rotating_the_root_fails_no_handshake() {
    let folder = Folder::new();
    let ca = folder.serve("");
    let token = folder.token("spiffe://mesh.local/*", "1h");
    let files = [("token", token.as_bytes())];
    let upstream = Upstream::saying("through both");
    let mut inner = Proxy::start_with(inner(ca.address("admin"), &upstream), &files);
    // One handshake per request.
    let outer = outer(ca.address("admin"), &inner, WEB, "limits: {requests_per_connection: 1}\n");
    let mut outer = Proxy::start_with(outer, &files);
    let first = folder.read("ca/ca.pem");

    let (over, answered, address) = (AtomicBool::new(false), AtomicUsize::new(0), outer.address("main"));
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let response = Client::connect(address).request("GET", "/", &[("Connection", "close")], b"");
                assert_eq!((response.status(), response.text()), (200, "through both"));
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
        let more = || {
            let before = answered.load(Ordering::Relaxed);
            wait_until("more answers", || {
                assert!(!client.is_finished(), "a request has failed");
                answered.load(Ordering::Relaxed) > before + 20
            });
        };
        let restart_both = |proxies: [&mut Proxy; 2]| {
            for proxy in proxies {
                restart(proxy);
                more();
            }
        };
        more();
        folder.run(&["rotate", "prepare"]);
        restart_both([&mut inner, &mut outer]);
        for proxy in [&inner, &outer] {
            wait_until("both roots to be known", || roots(proxy) == 2);
            in_force(proxy);
            assert!(is_signed_by(proxy, &first), "the old one signs");
        }
        more();
        folder.run(&["rotate", "switch", "--now"]);
        let both = folder.read("ca/ca.pem");
        let second = both.strip_prefix(&first).expect("the old one is still there");
        restart_both([&mut inner, &mut outer]);
        for proxy in [&inner, &outer] {
            wait_until("a certificate of the new root", || is_signed_by(proxy, second));
            in_force(proxy);
        }
        more();
        folder.run(&["rotate", "retire", "--now"]);
        assert_eq!(folder.read("ca/ca.pem").trim(), second.trim());
        for proxy in [&inner, &outer] {
            wait_until("the old root to be removed", || roots(proxy) == 1);
            in_force(proxy);
        }
        restart_both([&mut inner, &mut outer]);
        over.store(true, Ordering::Relaxed);
        client.join().expect("no request fails");
    });
    assert_eq!(inner.metrics().sum("tollgate_tls_handshake_failures_total", &[]), 0.0);
    assert_eq!(outer.metrics().sum("tollgate_cluster_connect_failures_total", &[]), 0.0);
    ca.wait_for_output("signing root changed");
}

#[test]
fn the_root_of_a_signing_proxy_is_not_replaced() {
    let folder = Folder::new();
    let mut ca = folder.serve("");
    let root = folder.read("ca/ca.pem");
    let refused = folder.refusal(&["init", "--force"]);
    assert!(refused.contains("a proxy signs with `ca`; use `tollgate ca rotate` to replace its root"), "{refused}");
    assert_eq!(folder.read("ca/ca.pem"), root);
    // Whatever happens to the directory, the signing root is always among the trusted roots.
    let token = folder.token(WEB, "1h");
    let signed = || -> serde_json::Value { super::read_json(&sign(&ca, Some(&token), "", &request_for(WEB))) };
    let other = Folder::new();
    for name in ["ca.pem", "ca.key"] {
        fs::copy(other.path("ca").join(name), folder.path("ca").join(name)).expect("it can be written");
        let answer = signed();
        match name {
            "ca.pem" => assert_eq!(answer["reason"], "failed", "half of it"),
            _ => {
                let text = |key: &str| answer[key].as_str().expect("a text").to_owned();
                super::verify(&text("certificate"), &text("root"), None).expect("they belong together");
                assert_eq!(text("root"), other.read("ca/ca.pem"));
            }
        }
    }
    ca.signal(Signal::TERM);
    ca.wait_exit();
    folder.run(&["init", "--force"]);
}

#[test]
fn rotation_steps_out_of_order_are_rejected() {
    let folder = Folder::new();
    assert!(folder.run(&["rotate"]).contains("no rotation in progress; start one with `tollgate ca rotate prepare`"));
    assert!(folder.refusal(&["rotate", "switch"]).contains("there is no next root"));
    assert!(folder.refusal(&["rotate", "retire"]).contains("there is only one root"));
    assert!(folder.run(&["rotate", "prepare"]).contains("in 5 minutes, when all workloads know it"));
    assert!(folder.run(&["rotate"]).contains("`tollgate ca rotate switch` makes it the signing root"));
    assert!(folder.refusal(&["rotate", "switch"]).contains("too early by "));
    assert!(folder.refusal(&["issue", "--spiffe", WEB, "--out", "ca/next"]).contains("belongs to the authority"));
    folder.run(&["rotate", "switch", "--now"]);
    assert!(folder.refusal(&["rotate", "retire", "--ttl", "1h"]).contains("too early by "));
    folder.run(&["rotate", "retire", "--now", "--dir", "ca"]);
    assert!(folder.run(&["show"]).contains("certificate 1 of 1"));
}

/// With an authority whose clock is far behind, each new certificate is due for renewal when it arrives.
#[test]
fn renewals_from_an_authority_with_a_late_clock_are_rate_limited() {
    let (ca, _) = late_authority(None);
    let web = Proxy::start_with(workload(ca.address, ""), &[("token", b"token")]);
    // The first renewal is due immediately; the next one only after five minutes.
    let renewals = || web.metrics().sum("tollgate_workload_renewals_total", &[("result", "success")]);
    wait_until("the first renewal", || renewals() == 2.0);
    // (If this is too short, the test passes without having waited long enough.)
    thread::sleep(Duration::from_secs(3));
    assert_eq!(renewals(), 2.0);
    let folders = fs::read_dir(Path::new(&web.dir().join("run"))).expect("a folder");
    let folders = folders.filter(|entry| entry.as_ref().is_ok_and(|e| e.file_type().is_ok_and(|kind| kind.is_dir())));
    assert_eq!(folders.count(), 2);
}
