//! The standard filters.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{Running, Site};
use crate::harness::{Upstream, answer, peer::needs, wait_until, wasm};

#[test]
fn authz_matches_all_parts_of_a_request() {
    let envoy = needs!("envoy");
    let upstream = Upstream::saying("ok");
    let config = json!({"policies": [
        {"name": "admin", "action": "deny", "rules": [{
            "to": [{"operation": {"paths": ["/admin*"]}}],
            "when": [{"key": "request.headers[x-role]", "not_values": ["boss"]}],
        }]},
        {"name": "near", "action": "deny", "rules": [{"from": [{"source": {"not_ip_blocks": ["127.0.0.0/8"]}}]}]},
        {"name": "far", "action": "deny", "rules": [{
            "from": [{"source": {"ip_blocks": ["127.0.0.1"]}}],
            "to": [{"operation": {"methods": ["DELETE"]}}],
        }]},
        {"name": "later", "action": "deny", "dry_run": true, "rules": [{"to": [{"operation": {"paths": ["/tried"]}}]}]},
    ]});
    let site = || Site::to(upstream.address).filter("authz", config.clone());
    Site::each(&envoy, site, |host| {
        let twice = [("x-role", "boss"), ("x-role", "clerk")];
        let asked: [(&str, &[(&str, &str)]); 4] =
            [("/", &[]), ("/admin/x", &[]), ("/admin/x", &[("x-role", "boss")]), ("/admin/x", &twice)];
        // The last one: the upstream would see all of the fields, not only the first one.
        assert_eq!(host.statuses(&asked), [200, 403, 200, 403]);
        let denied = host.request("DELETE", "/", &[], b"");
        assert_eq!((denied.status(), denied.text()), (403, "access denied"));
        assert_eq!(host.get("/tried", &[]).status(), 200);
        if let Running::Envoy(envoy) = host {
            envoy.wait_for("/ 403 flags=UAEX dry_run=-");
            envoy.wait_for("/tried 200 flags=- dry_run=rbac_access_denied_matched_policy[later]");
        }
    });
}

#[test]
fn fault_delays_and_aborts() {
    let envoy = needs!("envoy");
    let upstream = Upstream::saying("ok");
    let config = json!({
        "rules": [{"match": {"path": {"prefix": "/broken"}}, "abort": {"status": 418, "percent": 100}}],
        "headers": true,
    });
    let site = || Site::to(upstream.address).filter("fault", config.clone());
    Site::each(&envoy, site, |host| {
        assert_eq!(host.get("/", &[]).status(), 200);
        let aborted = host.get("/broken", &[]);
        assert_eq!((aborted.status(), aborted.text()), (418, "fault filter abort"));
        // Several concurrently, the longest first: each has its own timer.
        let times = [400, 100, 250, 30];
        let start = Instant::now();
        let mut clients: Vec<_> = times.iter().map(|_| host.client()).collect();
        for (client, ms) in clients.iter_mut().zip(times) {
            client.send_request("GET", "/", &[("x-envoy-fault-delay-request", &ms.to_string())], b"");
        }
        for (client, ms) in clients.iter_mut().zip(times) {
            assert_eq!(client.read().status(), 200);
            // A lower bound, which holds on a busy machine, too.
            assert!(start.elapsed() >= Duration::from_millis(ms), "{ms} ms");
        }
        let both = [("x-envoy-fault-delay-request", "20"), ("x-envoy-fault-abort-request", "429")];
        assert_eq!(host.get("/", &both).status(), 429, "delayed first, aborted then");
    });
}

/// The limit applies across workers, and a slot is free again when its stream has ended.
#[test]
fn concurrent_faults_are_limited() {
    let envoy = needs!("envoy");
    let upstream = Upstream::saying("ok");
    let config = json!({"max_active": 1, "headers": {"delay": {"max": "1h"}, "abort": {}}});
    let site = || Site::to(upstream.address).filter("fault", config.clone());
    Site::each(&envoy, site, |host| {
        let abort = || host.get("/", &[("x-envoy-fault-abort-request", "418")]).status();
        let mut held = host.client();
        held.send_request("GET", "/held", &[("x-envoy-fault-delay-request", "3600000")], b"");
        // A probing request takes the slot for a moment, so this request must get it first.
        thread::sleep(Duration::from_millis(300));
        wait_until("the slot to be taken", || abort() == 200);
        assert_eq!([abort(), abort(), abort()], [200; 3]);
        drop(held);
        wait_until("the slot to be free", || abort() == 418);
    });
    assert!(upstream.requests().iter().all(|request| request.target() != "/held"));
}

#[test]
fn ratelimit_counts_across_workers() {
    let envoy = needs!("envoy");
    let upstream = Upstream::saying("ok");
    let config = json!({"limits": [
        {"name": "few", "requests": 1, "per": "24h", "burst": 3, "match": {"path": {"prefix": "/few"}}},
        {"name": "each", "requests": 1, "per": "24h", "burst": 2, "key": [{"header": "x-user"}], "max_keys": 100},
    ]});
    let site = || Site::to(upstream.address).filter("ratelimit", config.clone());
    Site::each(&envoy, site, |host| {
        let all: Vec<_> = (0..5).map(|_| host.get("/few", &[])).collect();
        let statuses: Vec<_> = all.iter().map(|response| response.status()).collect();
        assert_eq!(statuses, [200, 200, 200, 429, 429]);
        assert!(all[0].field("ratelimit").is_some_and(|state| state.starts_with("\"few\";r=2;")), "{:?}", all[0]);
        assert_eq!(all[0].field("ratelimit-policy"), all[4].field("ratelimit-policy"));
        assert_eq!(all[4].text(), "too many requests");
        assert!(all[4].field("retry-after").is_some());
        for user in ["ann", "bob", "carol"] {
            let by = [("x-user", user)];
            assert_eq!(host.statuses(&[("/", &by), ("/", &by), ("/", &by)]), [200, 200, 429], "{user}");
        }
    });
}

/// In Envoy, the router's choice is a header on which Envoy's own router is configured.
#[test]
fn router_selects_the_right_cluster() {
    let envoy = needs!("envoy");
    let echo = |name: &'static str| {
        Upstream::replying(move |request| {
            let seen = ["x-route", "cookie"].map(|field| request.field(field).unwrap_or("-"));
            let host = request.field("host").unwrap_or_default();
            answer(200, &["server-says: x"], format!("{name} {host} {} {}", request.target(), seen.join(" ")))
        })
    };
    let (one, two) = (echo("one"), echo("two"));
    let config = json!({"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
        {"match": {"path": {"prefix": "/api"}}, "cluster": "two", "prefix_rewrite": "/", "host_rewrite": "api.internal",
         "request_headers": {"set": {"x-route": "api"}, "remove": ["cookie"]},
         "response_headers": {"set": {"x-from": "two"}, "remove": ["server-says"]}},
        {"match": {"path": {"regex": "/users/[0-9]+"}}, "cluster": "two",
         "regex_rewrite": {"pattern": "^/users/([0-9]+)", "substitution": r"/u/\1"}},
        {"match": {"path": {"prefix": "/old"}}, "redirect": {"prefix_rewrite": "/new", "status": 308}},
        {"match": {"path": {"exact": "/robots.txt"}}, "respond": {"status": 200, "body": "nothing"}},
        {"match": {"path": {"prefix": "/sticky"}},
         "split": {"clusters": [{"cluster": "one", "weight": 1}, {"cluster": "two", "weight": 1}],
                   "sticky": {"header": "x-user"}}},
        {"match": {"path": {"prefix": "/slow"}}, "cluster": "silent", "timeout": "50ms"},
        {"match": {"path": {"prefix": "/down"}}, "cluster": "down", "retry": {"on": ["connect_failure"], "attempts": 1}},
        {"match": {"path": {"exact": "/"}}, "cluster": "one"},
    ]}]});
    let silent = Upstream::silent();
    let site = Site::routed()
        .cluster("one", one.address)
        .cluster("two", two.address)
        .cluster("silent", silent.address)
        .cluster("down", Upstream::refusing())
        .filter("router", config);
    for host in [site.tollgate(wasm::example), site.envoy(&envoy)] {
        let text = |target: &str, fields: &[(&str, &str)]| host.get(target, fields).text().to_owned();
        assert_eq!(text("/", &[]), "one test / - -");
        let api = host.get("/api/x?q=1", &[("cookie", "a=b")]);
        assert_eq!(api.text(), "two api.internal /x?q=1 api -");
        assert_eq!((api.field("x-from"), api.field("server-says")), (Some("two"), None));
        assert_eq!(text("/users/17", &[("cookie", "a=b")]), "two test /u/17 - a=b");
        let old = host.get("/old/page", &[]);
        assert_eq!((old.status(), old.field("location")), (308, Some("http://test/new/page")));
        assert_eq!(text("/robots.txt", &[]), "nothing");
        assert_eq!(host.get("/nowhere", &[]).status(), 404);
        let words = |user: &str| text("/sticky", &[("x-user", user)]).split(' ').next().map(str::to_owned);
        let chosen: Vec<_> = (0..20).map(|n| (words(&n.to_string()), words(&n.to_string()))).collect();
        assert!(chosen.iter().all(|(first, second)| first == second), "{chosen:?}");
        assert!(chosen.iter().any(|(first, _)| *first != chosen[0].0), "{chosen:?}");
        assert_eq!(host.get("/slow", &[]).status(), 504);
        assert_eq!(host.get("/down", &[]).status(), 503);
    }
}

/// All four, as in `examples/quickstart.yaml`.
#[test]
fn the_standard_filters_work_as_a_chain() {
    let envoy = needs!("envoy");
    let upstream = Upstream::saying("ok");
    let site = Site::routed()
        .cluster("web", upstream.address)
        .filter("fault", json!({"headers": true}))
        .filter(
            "authz",
            json!({"policies": [{"name": "no", "action": "deny", "rules": [{"to": [{"operation": {"paths": ["/no*"]}}]}]}]}),
        )
        .filter("ratelimit", json!({"limits": [{"name": "all", "requests": 1, "per": "24h", "burst": 2}]}))
        .filter("router", json!({"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"cluster": "web"}]}]}));
    for host in [site.tollgate(wasm::example), site.envoy(&envoy)] {
        let abort: &[(&str, &str)] = &[("x-envoy-fault-abort-request", "418")];
        let asked: [(&str, &[(&str, &str)]); 5] = [("/no", &[]), ("/", abort), ("/", &[]), ("/", &[]), ("/", &[])];
        assert_eq!(host.statuses(&asked), [403, 418, 200, 200, 429]);
    }
}
