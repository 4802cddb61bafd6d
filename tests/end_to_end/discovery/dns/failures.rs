//! Name servers that fail or lie, and names without addresses.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::json;

use super::{Farm, Zone, bodies, config, dns, endpoints, shown};
use crate::harness::{
    Config, Proxy,
    name_server::{A, NameServer, Record, Reply},
    wait_until,
};

/// Waits until a name was looked up a few more times.
fn more_lookups(server: &NameServer, name: &str) {
    let before = server.count(name);
    wait_until("more lookups", || server.count(name) >= before + 3);
}

#[test]
fn errors_and_silence_keep_the_endpoints() {
    let (farm, zone) = (Farm::new(2), Zone::default());
    zone.set("api.test", &[1, 2]);
    let server = zone.server();
    let cluster = format!(
        "discovery: {{dns: {{name: api.test., port: {}, min_ttl: 50ms, max_ttl: 50ms, on_empty: remove}}}}",
        farm.port
    );
    let proxy = Proxy::start(config(&server, &cluster));
    let garbage = Reply::Garbage(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec());
    for (reply, error) in [
        (Reply::Error(2), "Server Failure"),
        (Reply::Error(5), "Refused"),
        (garbage, "api.test"),
        (Reply::Silence, "timed out"),
    ] {
        zone.reply("api.test", reply);
        more_lookups(&server, "api.test");
        assert_eq!(bodies(&proxy), ["127.0.0.1", "127.0.0.2"], "{error}");
        let says = |text: &str| {
            let discovery = shown(&proxy, "web")["discovery"].clone();
            discovery["last_error"]["error"]
                .as_str()
                .is_some_and(|error| error.to_lowercase().contains(&text.to_lowercase()))
        };
        wait_until(&format!("the error {error}"), || says(error));
        wait_until("a failed lookup", || shown(&proxy, "web")["discovery"]["attempts"].as_u64().unwrap() >= 1);
        zone.set("api.test", &[1, 2]);
        wait_until("the server to recover", || shown(&proxy, "web")["discovery"]["attempts"] == 0);
    }
    proxy.wait_for_output("host not found: ");
    proxy.wait_for_output("host found again");
    assert!(proxy.metrics().sum("tollgate_dns_lookups_total", &[("result", "failed")]) >= 4.0);
}

#[test]
fn failure_of_one_family_keeps_its_addresses() {
    let (farm, zone) = (Farm::new(2), Zone::default());
    zone.set("api.test", &[1, 2]);
    let answers = zone.clone();
    let fails = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_failing = fails.clone();
    let server = NameServer::new(move |asked| match asked.kind {
        A if is_failing.load(std::sync::atomic::Ordering::SeqCst) => Reply::Error(2),
        _ => answers.answer(asked),
    });
    let cluster = format!("discovery: {{dns: {{name: api.test., port: {}, min_ttl: 50ms, max_ttl: 50ms}}}}", farm.port);
    let proxy = Proxy::start(config(&server, &cluster));
    fails.store(true, std::sync::atomic::Ordering::SeqCst);
    more_lookups(&server, "api.test");
    assert_eq!(bodies(&proxy), ["127.0.0.1", "127.0.0.2"]);
}

#[test]
fn empty_answers_remove_the_endpoints_at_once_only_if_configured() {
    let (farm, zone) = (Farm::new(1), Zone::default());
    zone.set("keep.test", &[1]);
    zone.set("gone.test", &[1]);
    let server = zone.server();
    let cluster = |name: &str, on_empty: &str| {
        format!(
            "discovery: {{dns: {{name: {name}.test., port: {}, min_ttl: 50ms, max_ttl: 50ms{on_empty}}}}}",
            farm.port
        )
    };
    let config = Config::new()
        .top(&dns(server.address, ""))
        .routes("{match: {path: {prefix: /keep}}, cluster: keep}, {cluster: gone}")
        .cluster("keep", &[] as &[&str], &cluster("keep", ""))
        .cluster("gone", &[] as &[&str], &cluster("gone", ", on_empty: remove"));
    let proxy = Proxy::start(config);
    assert_eq!((proxy.get("/keep").status(), proxy.get("/gone").status()), (200, 200));
    zone.reply("gone.test", Reply::Error(3));
    zone.reply("keep.test", Reply::Records(Vec::new()));
    wait_until("the endpoints to be removed", || proxy.get("/gone").status() == 503);
    proxy.entry(|entry| entry["status"] == 503).expect(503, "UH").because("no_endpoint");
    more_lookups(&server, "keep.test");
    more_lookups(&server, "keep.test");
    assert_eq!(proxy.get("/keep").status(), 200, "not before half a minute has passed");
    let discovery = shown(&proxy, "keep")["discovery"].clone();
    assert_eq!(discovery["last_error"]["error"], "the name has no addresses");
    assert!(proxy.metrics().sum("tollgate_cluster_discovery_attempts", &[("cluster", "keep")]) >= 3.0);
    zone.set("gone.test", &[1]);
    wait_until("the endpoints to come back", || proxy.get("/gone").status() == 200);
}

#[test]
fn start_and_reload_wait_for_the_first_answers_and_then_go_on_without() {
    let (farm, zone) = (Farm::new(2), Zone::default());
    zone.reply("late.test", Reply::Silence);
    zone.set("api.test", &[1]);
    let server = zone.server();
    let config = |name: &str, wait: &str| {
        Config::new().top(&dns(server.address, &format!(", initial_wait: {wait}"))).listener("cluster: web").cluster(
            "web",
            &[format!("{name}.test.:{}", farm.port)],
            "",
        )
    };
    let start = std::time::Instant::now();
    let mut proxy = Proxy::start(config("late", "700ms"));
    assert!(proxy.is_ready() && start.elapsed().as_millis() >= 700);
    assert_eq!(proxy.get("/none").status(), 503);
    proxy.entry_for("/none").expect(503, "UH").because("no_endpoint");
    assert_eq!(endpoints(&proxy, "web"), [""; 0]);
    assert!(shown(&proxy, "web")["discovery"]["last_answer"].is_null());
    zone.set("late.test", &[2]);
    wait_until("the answer", || proxy.get("/").status() == 200);
    // A reload to a name that is not answered: nothing of the old name stays.
    zone.reply("never.test", Reply::Silence);
    proxy.put_config(config("never", "300ms"));
    let start = std::time::Instant::now();
    assert_eq!(proxy.reload().0, 200);
    assert!(start.elapsed().as_millis() >= 300);
    assert_eq!(proxy.get("/").status(), 503);
    // What is known needs no wait.
    proxy.change_config(config("api", "1h"));
    assert_eq!(bodies(&proxy), ["127.0.0.1"]);
    // A name that does not exist is an answer, too.
    proxy.put_config(config("nonexistent", "1h"));
    assert_eq!(proxy.reload().0, 200);
    assert_eq!(proxy.get("/").status(), 503);
}

#[test]
fn truncated_answer_is_asked_for_again_over_tcp() {
    let (farm, zone) = (Farm::new(100), Zone::default());
    let all: Vec<u8> = (1..=100).collect();
    zone.set("api.test", &all);
    let answers = zone.clone();
    let server = NameServer::new(move |asked| match asked.over_tcp {
        true => answers.answer(asked),
        false => Reply::Truncated,
    });
    let proxy = Proxy::start(config(&server, &format!("endpoints: ['api.test.:{}']", farm.port)));
    assert_eq!(endpoints(&proxy, "web").len(), 100);
    assert!(server.asked().iter().any(|asked| asked.over_tcp));
}

#[test]
fn lies_do_no_harm() {
    let (farm, zone) = (Farm::new(1), Zone::default());
    zone.set("api.test", &[1]);
    let many = |n: u32| Record::address("many.test", 1, IpAddr::V4(Ipv4Addr::from(0x7f01_0000 + n)));
    zone.reply("many.test", Reply::Records((0..1_000).map(many).collect()));
    // An address of another name.
    zone.reply("other.test", Reply::Records(vec![Record::address("api.test", 1, IpAddr::V4(Farm::ip(1)))]));
    let answers = zone.clone();
    let server = NameServer::new(move |asked| match (&*asked.name, asked.over_tcp) {
        ("loop.test", _) => Reply::Records(vec![Record::cname("loop.test", "pool.test")]),
        ("pool.test", _) => Reply::Records(vec![Record::cname("pool.test", "loop.test")]),
        ("self.test", _) => Reply::Records(vec![Record::cname("self.test", "self.test")]),
        ("both.test", _) => {
            Reply::Records(vec![Record::cname("both.test", "pool.test"), Record::cname("pool.test", "both.test")])
        }
        ("many.test", false) => Reply::Truncated,
        // A chain without end.
        (chain, _) if chain.starts_with("chain") => {
            let next = chain.trim_start_matches("chain").trim_end_matches(".test").parse::<u32>().unwrap_or(0) + 1;
            Reply::Records(vec![Record::cname(chain, &format!("chain{next}.test"))])
        }
        _ => answers.answer(asked),
    });
    let names = ["loop", "self", "both", "chain", "other"];
    let mut config = Config::new()
        .top(&dns(server.address, ""))
        .listener("cluster: web")
        .cluster("web", &[format!("api.test.:{}", farm.port)], "")
        .cluster("many", &[format!("many.test.:{}", farm.port)], "");
    for name in names {
        config = config.cluster(name, &[format!("{name}.test.:{}", farm.port)], "");
    }
    let proxy = Proxy::start(config);
    assert_eq!(bodies(&proxy), ["127.0.0.1"]);
    let many = endpoints(&proxy, "many");
    assert_eq!((many.len(), &*many[255]), (256, &*format!("127.1.0.255:{}", farm.port)), "the lowest addresses");
    for name in names {
        assert_eq!(endpoints(&proxy, name), [""; 0], "{name}");
        assert!(shown(&proxy, name)["discovery"]["attempts"].as_u64().unwrap() >= 1, "{name}");
    }
    let asked = server.asked();
    let chain = asked.iter().filter(|asked| asked.name.starts_with("chain")).map(|asked| &asked.name);
    assert!(chain.collect::<std::collections::BTreeSet<_>>().len() <= 20, "chains are bounded");
    assert_eq!(shown(&proxy, "web")["discovery"]["source"], json!("dns"));
}
