//! Quarantine: clients whose requests repeatedly make a filter fail get a separate instance.

use super::{
    crowd::{holding, one_instance},
    poison::{costly, from_new_client},
};
use crate::{
    guest,
    harness::{Client, Gate, Message, Proxy, Upstream, answer, wait_until},
};

/// Sends a request from a client at this address, as reported by the proxy in front.
fn from(client: &mut Client, address: &str, path: &str, boom: bool) -> Message {
    let fields = [("x-forwarded-for", address), ("x-boom", "1")];
    client.request("GET", path, &fields[..if boom { 2 } else { 1 }], b"")
}

const POISONER: &str = "192.0.2.1";

/// Lets the poisoner fail until it has a separate instance.
fn quarantine(proxy: &Proxy, client: &mut Client) {
    wait_until("a separate instance", || {
        assert_eq!(from(client, POISONER, "/boom", true).status(), 503);
        proxy.filter("boom")["quarantine"] == 1
    });
}

/// An upstream that answers slow requests only when the gate is open.
pub(super) fn slow(gate: &Gate) -> Upstream {
    Upstream::held(gate, "/slow", |_| answer(200, &[], "hello"))
}

/// In-flight requests of many clients in the filter's shared instance.
fn innocents(proxy: &Proxy, upstream: &Upstream) -> Vec<Client> {
    let before = upstream.requests().len();
    let all = (0..10).map(|nth| {
        let mut client = proxy.client();
        client.send_request("GET", "/slow", &[("x-forwarded-for", &format!("198.51.100.{nth}"))], b"");
        client
    });
    let all = all.collect();
    upstream.wait_for_requests(before + 10);
    all
}

#[test]
fn a_client_that_poisons_repeatedly_fails_alone() {
    let gate = Gate::default();
    let upstream = slow(&gate);
    let proxy = one_instance(&upstream, "deny", &holding());
    let mut poisoner = proxy.client();
    quarantine(&proxy, &mut poisoner);
    let mut innocents = innocents(&proxy, &upstream);
    for _ in 0..20 {
        assert_eq!(from(&mut poisoner, POISONER, "/boom", true).status(), 503);
    }
    gate.open();
    for client in &mut innocents {
        let response = client.read();
        assert_eq!((response.status(), response.field("x-marked")), (200, Some("yes")));
    }
    // The client's other requests are served, but by a separate instance.
    wait_until("an instance for it", || {
        let response = from(&mut poisoner, POISONER, "/", false);
        response.status() == 200 && response.field("x-marked") == Some("yes")
    });
    let info = proxy.filter("boom");
    assert_eq!((&info["instances"], &info["quarantine"]), (&1.into(), &1.into()), "{info}");
    let labels = [("filter", "boom")];
    assert_eq!(proxy.metrics().sum("tollgate_filter_quarantine_instances", &labels), 1.0);
    let output = proxy.output();
    assert!(output.contains("clients whose requests made the filter fail get a separate instance"), "{output}");
}

#[test]
fn streams_in_quarantine_fail_together() {
    let gate = Gate::default();
    let upstream = slow(&gate);
    let proxy = one_instance(&upstream, "deny", &holding());
    let mut poisoner = proxy.client();
    quarantine(&proxy, &mut poisoner);
    let mut other = proxy.client();
    let before = upstream.requests().len();
    wait_until("an instance for it", || from(&mut other, POISONER, "/", false).status() == 200);
    other.send_request("GET", "/slow", &[("x-forwarded-for", POISONER)], b"");
    upstream.wait_for_requests(before + 2);
    assert_eq!(from(&mut poisoner, POISONER, "/boom", true).status(), 503);
    gate.open();
    assert_eq!(other.read().status(), 503, "the filter could not have seen its response");
}

#[test]
fn only_the_client_that_exhausts_the_budget_is_denied() {
    let upstream = Upstream::saying("hello");
    let proxy = one_instance(&upstream, "deny", &costly());
    let (mut poisoner, mut innocent) = (proxy.client(), proxy.client());
    wait_until("a separate instance", || {
        from(&mut poisoner, POISONER, "/", true);
        proxy.filter("boom")["quarantine"] == 1
    });
    wait_until("the filter to be available", || proxy.filter("boom")["instances"] == 1);
    wait_until("the budget to be used up", || {
        assert_eq!(from(&mut poisoner, POISONER, "/", true).status(), 503);
        let response = from(&mut innocent, "198.51.100.1", "/", false);
        assert_eq!((response.status(), response.field("x-marked")), (200, Some("yes")));
        proxy.metrics().sum("tollgate_filter_rebuild_budget_exhausted_total", &[("filter", "boom")]) >= 1.0
    });
    assert_eq!(proxy.admin("GET", "/ready", "").text(), "ready\n");
    // The instance comes back, for other clients that share the poisoner's address.
    wait_until("another separate instance", || from(&mut poisoner, POISONER, "/", false).status() == 200);
}

/// A call's response goes to the filter, not to a stream; but the host knows for which stream the filter then acts.
#[test]
fn a_failure_in_a_call_response_is_attributed_to_its_client() {
    let asked = guest::pairs(&[(":method", "GET"), (":path", "/asked"), (":authority", "web")]);
    let nothing = "(i32.const 0) (i32.const 0)";
    let module = guest::filter(&format!(
        r#"(global $asks (mut i32) (i32.const 0))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (if (i32.eqz (call $has (i32.const 0) %"x-boom")) (then (return (i32.const 0))))
            (global.set $asks (local.get 0))
            (drop (call $call %"web" %"{asked}" {nothing} {nothing} (i32.const 60000) (i32.const 24)))
            (i32.const 1))
        (func (export "proxy_on_http_call_response") (param i32 i32 i32 i32 i32)
            (drop (call $become (global.get $asks)))
            unreachable)"#
    ));
    let upstream = Upstream::saying("hello");
    let proxy = one_instance(&upstream, "deny", &module);
    let mut poisoner = proxy.client();
    quarantine(&proxy, &mut poisoner);
    let info = proxy.filter("boom");
    assert_eq!(info["poisoned_by"]["clients"][0]["client"], POISONER, "{info}");
}

#[test]
fn clients_that_poison_once_are_not_quarantined() {
    let upstream = Upstream::saying("hello");
    let proxy = one_instance(&upstream, "deny", &holding());
    let mut client = proxy.client();
    for _ in 0..5 {
        assert_eq!(from_new_client(&mut client).status(), 503);
        wait_until("the filter to be available", || client.get("/").status() == 200);
    }
    assert_eq!(proxy.filter("boom")["quarantine"], 0);
}
