//! Every failure has a reason and a hint on what to change: for upstreams in the access log, in `GET /clusters` and in
//! the log; for clients in the access log, in the log and in a counter.

mod calls;
mod clients;
mod pair;
mod upstreams;

use serde_json::Value;

use crate::harness::Proxy;

/// The first endpoint of a cluster in `GET /clusters`.
fn endpoint(proxy: &Proxy, cluster: &str) -> Value {
    let said: Value = serde_json::from_slice(&proxy.admin("GET", "/clusters", "").body).expect("JSON");
    let clusters = said["clusters"].as_array().expect("clusters");
    let found = clusters.iter().find(|c| c["name"] == cluster).unwrap_or_else(|| panic!("no {cluster}: {said}"));
    found["endpoints"][0].clone()
}

/// Asserts the reason in an access log line: it contains all of these parts, is the endpoint's last error of this kind,
/// and is logged.
fn assert_told(name: &str, proxy: &Proxy, entry: &Value, kind: &str, parts: &[&str]) {
    let why = entry["upstream_failure"].as_str().unwrap_or_else(|| panic!("{name}: no reason in {entry}"));
    parts.iter().for_each(|part| assert!(why.contains(part), "{name}: no {part:?} in {why:?}"));
    let last = &endpoint(proxy, "web")["last_error"];
    assert_eq!((&last["error"], &last["kind"]), (&entry["upstream_failure"], &kind.into()), "{name}");
    assert!(last["at"].as_str().is_some_and(|at| at.starts_with("20") && at.ends_with('Z')), "{name}: {last}");
    proxy.wait_for_output(&format!("an endpoint failed: {why}"));
}
