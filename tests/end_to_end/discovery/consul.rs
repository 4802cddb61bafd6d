//! Endpoints from a server that answers like Consul, and fails in all ways.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{Farm, bodies, endpoints, of_round, shown, under_traffic};
use crate::harness::{
    Config, Proxy,
    consul::{Consul, Fault, instance},
    pki::Authority,
    wait_until,
};

const WEB: &str = "discovery: {consul: {service: web}}";

/// A configuration whose cluster `web` has these options.
fn config(consul: &Consul, cluster: &str) -> Config {
    Config::new().top(&format!("consul: {{url: 'http://{}'}}", consul.address)).listener("cluster: web").cluster(
        "web",
        &[] as &[&str],
        cluster,
    )
}

impl Farm {
    /// The addresses of its upstreams 127.0.0.x.
    fn at(&self, all: &[u8]) -> Vec<String> {
        all.iter().map(|n| format!("127.0.0.{n}:{}", self.port)).collect()
    }
}

fn error(proxy: &Proxy) -> String {
    shown(proxy, "web")["discovery"]["last_error"]["error"].as_str().unwrap_or_default().to_owned()
}

fn attempts(proxy: &Proxy) -> u64 {
    shown(proxy, "web")["discovery"]["attempts"].as_u64().expect("a number")
}

#[test]
fn instances_come_change_and_go() {
    let (farm, consul) = (Farm::new(3), Consul::start());
    consul.set_healthy("web", &farm.at(&[1]));
    let proxy = Proxy::start(config(&consul, WEB));
    assert_eq!(bodies(&proxy), ["127.0.0.1"]);
    let web = shown(&proxy, "web");
    let discovery = &web["discovery"];
    assert_eq!((&discovery["source"], &discovery["service"]), (&json!("consul"), &json!("consul:web")), "{discovery}");
    assert_eq!((&discovery["attempts"], &discovery["last_error"]), (&json!(0), &Value::Null));
    assert_eq!(discovery["states"], json!({"passing": 1, "warning": 0, "critical": 0}));
    let endpoint = &web["endpoints"][0];
    assert_eq!((&endpoint["weight"], &endpoint["metadata"]["version"]), (&json!(10), &json!("2")), "{endpoint}");
    assert_eq!(endpoint["metadata"]["consul.tags"], "v1");

    consul.set_healthy("web", &farm.at(&[1, 2, 3]));
    wait_until("more instances", || endpoints(&proxy, "web") == farm.at(&[1, 2, 3]));
    let at = farm.at(&[1, 2, 3]);
    let all =
        [instance(&at[0], &["passing"]), instance(&at[1], &["passing", "warning"]), instance(&at[2], &["critical"])];
    consul.set("web", &all);
    wait_until("the critical one to go", || endpoints(&proxy, "web") == at[..2]);
    let web = shown(&proxy, "web");
    assert_eq!(web["discovery"]["states"], json!({"passing": 1, "warning": 1, "critical": 1}));
    let weights: Vec<_> =
        web["endpoints"].as_array().unwrap().iter().map(|endpoint| endpoint["weight"].clone()).collect();
    assert_eq!(weights, [10, 1]);
    consul.set_healthy("web", &farm.at(&[3]));
    wait_until("the others to go", || bodies(&proxy) == ["127.0.0.3"]);
    assert_eq!(proxy.version(), 1, "nothing was reloaded");
    assert!(
        proxy.metrics().sum("tollgate_discovery_answers_total", &[("source", "consul"), ("result", "changed")]) >= 4.0
    );
    assert!(proxy.metrics().has("tollgate_cluster_discovery_last_answer_timestamp_seconds", &[("source", "consul")]));
}

#[test]
fn query_is_held_until_something_changes_and_shared_by_clusters() {
    let (farm, consul) = (Farm::new(2), Consul::start());
    consul.set_healthy("web", &farm.at(&[1]));
    let proxy = Proxy::start(config(&consul, WEB).cluster("same", &[] as &[&str], WEB).cluster(
        "other",
        &[] as &[&str],
        "discovery: {consul: {service: web, tags: [v1, blue], datacenter: dc2, consistency: stale}}",
    ));
    wait_until("three queries and two that are held", || consul.asked().len() >= 4);
    let targets: Vec<_> = consul.asked().iter().map(|asked| asked.target().to_owned()).collect();
    let count = |part: &str| targets.iter().filter(|target| target.contains(part)).count();
    assert_eq!((targets.len(), count("?stale&dc=dc2&tag=v1&tag=blue")), (4, 2), "{targets:?}");
    assert_eq!(count("/web?index=1&wait=300000ms"), 1);
    consul.set_healthy("web", &farm.at(&[2]));
    wait_until("both clusters", || {
        ["web", "same", "other"].map(|name| endpoints(&proxy, name)) == [(); 3].map(|()| farm.at(&[2]))
    });
}

#[test]
fn index_that_is_reset_does_not_hide_changes() {
    let (farm, consul) = (Farm::new(3), Consul::start());
    consul.restore(1_000_000);
    consul.set_healthy("web", &farm.at(&[1]));
    let proxy = Proxy::start(config(&consul, WEB));
    assert_eq!(bodies(&proxy), ["127.0.0.1"]);
    // As after a restore from a backup.
    consul.restore(5);
    consul.set_healthy("web", &farm.at(&[2]));
    wait_until("the change", || bodies(&proxy) == ["127.0.0.2"]);
    consul.set_healthy("web", &farm.at(&[3]));
    wait_until("the next change", || bodies(&proxy) == ["127.0.0.3"]);
    for index in [Some(0), None, Some(1)] {
        consul.fail(Some(Fault::Index(index)));
        consul.set_healthy("web", &farm.at(&[1]));
        wait_until("a change without an index", || bodies(&proxy) == ["127.0.0.1"]);
        consul.set_healthy("web", &farm.at(&[2]));
        wait_until("another one", || bodies(&proxy) == ["127.0.0.2"]);
    }
}

#[test]
fn errors_keep_the_endpoints() {
    let (farm, mut consul) = (Farm::new(2), Consul::start());
    consul.set_healthy("web", &farm.at(&[1, 2]));
    let proxy = Proxy::start(config(&consul, "discovery: {consul: {service: web, on_empty: remove}}"));
    let filtered = Fault::Nothing("X-Consul-Results-Filtered-By-ACLs: true");
    for (fault, said) in [
        (
            Fault::Status(500, "", "No path to datacenter"),
            "Consul answered 500 Internal Server Error: \"No path to datacenter\"",
        ),
        (Fault::Status(403, "", "Permission denied"), "Consul answered 403 Forbidden: \"Permission denied\""),
        (Fault::Status(429, "Retry-After: 1", "too many"), "Consul answered 429 Too Many Requests: \"too many\""),
        (Fault::Garbage, "the answer is not what Consul sends"),
        (Fault::CutOff, "incomplete"),
        (filtered, "the token may not see all instances"),
        (Fault::Nothing("X-Consul-KnownLeader: false"), "the server that answered knows no leader"),
    ] {
        consul.fail(Some(fault));
        wait_until(said, || error(&proxy).contains(said));
        assert!(attempts(&proxy) >= 1, "{said}");
        assert_eq!(bodies(&proxy), ["127.0.0.1", "127.0.0.2"], "{said}");
        consul.fail(None);
        wait_until("the recovery", || attempts(&proxy) == 0);
    }
    consul.stop();
    wait_until("a refused connection", || error(&proxy).contains("cannot connect to `127.0.0.1`"));
    assert_eq!(bodies(&proxy), ["127.0.0.1", "127.0.0.2"]);
    consul.set_healthy("web", &farm.at(&[2]));
    consul.start_again();
    wait_until("the change meanwhile", || bodies(&proxy) == ["127.0.0.2"]);
    proxy.wait_for_output("endpoints not found: ");
    proxy.wait_for_output("endpoints found again");
    assert!(
        proxy.metrics().sum("tollgate_discovery_answers_total", &[("source", "consul"), ("result", "failed")]) >= 8.0
    );
}

#[test]
fn empty_answers_remove_the_endpoints_at_once_only_if_configured() {
    let (farm, consul) = (Farm::new(1), Consul::start());
    for service in ["keep", "gone"] {
        consul.set_healthy(service, &farm.at(&[1]));
    }
    let config = Config::new()
        .top(&format!("consul: {{url: 'http://{}'}}", consul.address))
        .routes("{match: {path: {prefix: /keep}}, cluster: keep}, {cluster: gone}")
        .cluster("keep", &[] as &[&str], "discovery: {consul: {service: keep}}")
        .cluster("gone", &[] as &[&str], "discovery: {consul: {service: gone, on_empty: remove}}");
    let proxy = Proxy::start(config);
    assert_eq!((proxy.get("/keep").status(), proxy.get("/gone").status()), (200, 200));
    consul.set("gone", &[instance(&farm.at(&[1])[0], &["critical"])]);
    consul.set("keep", &[]);
    wait_until("the endpoints to be removed", || proxy.get("/gone").status() == 503);
    proxy.entry(|entry| entry["status"] == 503).expect(503, "UH").because("no_endpoint");
    let says = |name: &str, text: &str| shown(&proxy, name)["discovery"]["last_error"]["error"] == text;
    wait_until("the reason", || says("gone", "none of the 1 instances is healthy enough"));
    wait_until("the other reason", || says("keep", "the service has no instances"));
    assert_eq!(proxy.get("/keep").status(), 200, "not before half a minute has passed");
    consul.set_healthy("gone", &farm.at(&[1]));
    wait_until("the endpoints to come back", || proxy.get("/gone").status() == 200);
}

#[test]
fn start_and_reload_wait_for_the_first_answer_and_then_go_on_without() {
    let (farm, mut consul) = (Farm::new(2), Consul::start());
    consul.set_healthy("web", &farm.at(&[1]));
    consul.stop();
    let start = Instant::now();
    let mut proxy = Proxy::start(config(&consul, WEB).top("dns: {initial_wait: 700ms}"));
    assert!(proxy.is_ready() && start.elapsed().as_millis() >= 700);
    assert_eq!(proxy.get("/none").status(), 503);
    proxy.entry_for("/none").expect(503, "UH").because("no_endpoint");
    assert!(shown(&proxy, "web")["discovery"]["last_answer"].is_null());
    consul.start_again();
    wait_until("the answer", || proxy.get("/").status() == 200);
    // Another server is asked at once, and what is known stays until it answers.
    let other = Consul::start();
    other.set_healthy("web", &farm.at(&[2]));
    proxy.change_config(config(&other, WEB));
    wait_until("the answer of the other server", || bodies(&proxy) == ["127.0.0.2"]);
    let before = consul.asked().len();
    consul.set_healthy("web", &farm.at(&[1]));
    other.set_healthy("web", &farm.at(&[1, 2]));
    wait_until("its next answer", || endpoints(&proxy, "web") == farm.at(&[1, 2]));
    assert_eq!(consul.asked().len(), before, "the first one is not asked any more");
}

#[test]
fn server_is_reached_with_a_token_over_tls_and_unix_sockets() {
    let (farm, consul) = (Farm::new(3), Consul::start());
    consul.set_healthy("web", &farm.at(&[1]));
    let (authority, dir) = (Authority::with(&["consul.test"]), tempfile::tempdir().unwrap());
    let socket = dir.path().join("consul.sock").display().to_string();
    let before = Config::new().listener(&authority.tls(&["consul.test"], "")).listener("cluster: web");
    let front = before.beside("unix", &format!("address: 'unix:{socket}'\ncluster: web"));
    let front = Proxy::start(front.cluster("web", &[consul.address.to_string()], "response_head_timeout: 0s"));
    let port = front.address("main").port();
    std::fs::write(dir.path().join("token"), "first-token\n").unwrap();
    let token = dir.path().join("token").display().to_string();
    let with = |consul: &str| {
        let web = Config::new().listener("cluster: web").cluster("web", &[] as &[&str], WEB);
        web.top(&format!("consul: {{{consul}, token_file: '{token}'}}"))
    };
    let ca = authority.path("ca.pem");
    let secure = format!("url: 'https://consul.test', address: '127.0.0.1:{port}', tls: {{ca: ['{ca}']}}");
    let mut proxy = Proxy::start(with(&secure));
    assert_eq!(bodies(&proxy), ["127.0.0.1"]);
    assert_eq!(consul.asked()[0].field("x-consul-token"), Some("first-token"));
    assert_eq!(consul.asked()[0].field("host"), Some("consul.test"));
    // The token is replaced.
    std::fs::write(dir.path().join("token"), "second-token\n").unwrap();
    for n in [2, 3] {
        consul.set_healthy("web", &farm.at(&[n]));
        wait_until("the change", || endpoints(&proxy, "web") == farm.at(&[n]));
    }
    wait_until("the other token", || {
        consul.asked().last().is_some_and(|asked| asked.field("x-consul-token") == Some("second-token"))
    });
    assert!(!proxy.output().contains("token\n"));
    // Another authority.
    let wrong = Authority::with(&["consul.test"]);
    let ca = wrong.path("ca.pem");
    proxy.change_config(with(&format!(
        "url: 'https://consul.test', address: '127.0.0.1:{port}', tls: {{ca: ['{ca}']}}"
    )));
    wait_until("the certificate to be refused", || error(&proxy).contains("TLS: "));
    assert_eq!(bodies(&proxy), ["127.0.0.3"], "they stay");
    proxy.change_config(with(&format!("url: 'http://consul.test', address: 'unix:{socket}'")));
    consul.set_healthy("web", &farm.at(&[1]));
    wait_until("the answer on the socket", || bodies(&proxy) == ["127.0.0.1"]);
}

#[test]
fn no_request_fails_while_instances_and_servers_come_and_go() {
    let (farm, mut consul) = (Farm::new(5), Consul::start());
    consul.set_healthy("web", &farm.at(&[1]));
    let proxy = Proxy::start(config(&consul, WEB));
    // Not as fast as they can: other tests run at the same time.
    let sent = under_traffic(&proxy, Duration::from_millis(4), || {
        for round in 0..10u8 {
            let next = of_round(round);
            match round % 10 {
                1 => consul.fail(Some(Fault::Status(500, "", "rpc error"))),
                3 => consul.fail(Some(Fault::Garbage)),
                5 => consul.stop(),
                7 => consul.restore(1),
                9 => consul.fail(Some(Fault::CutOff)),
                _ => {}
            }
            thread::sleep(Duration::from_millis(5));
            consul.set_healthy("web", &farm.at(&next));
            consul.fail(None);
            if round % 10 == 5 {
                consul.start_again();
            }
            wait_until("the instances to be used", || endpoints(&proxy, "web") == farm.at(&next));
        }
    });
    assert!(sent > 100, "{sent:?}");
    assert_eq!(proxy.metrics().sum("tollgate_requests_total", &[("class", "5xx")]), 0.0);
}
