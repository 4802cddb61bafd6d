//! What names mean: addresses, families, search domains, hosts, SRV records, certificates.

use std::net::IpAddr;

use serde_json::json;

use super::{Farm, Zone, bodies, config, dns, endpoints, shown};
use crate::harness::{
    Config, Proxy, Upstream,
    name_server::{NameServer, Record, Reply, SRV},
    pki::Authority,
    run_in, wait_for, wait_until,
};

#[test]
fn host_name_stands_for_all_its_addresses() {
    let (farm, zone) = (Farm::new(4), Zone::default());
    zone.set("api.test", &[2, 1]);
    let server = zone.server();
    let cluster = format!("endpoints: [{{address: 'API.test.:{}', weight: 3, metadata: {{a: 1}}}}]", farm.port);
    let proxy = Proxy::start(config(&server, &cluster));
    // Known before the first request.
    assert_eq!(bodies(&proxy), ["127.0.0.1", "127.0.0.2"]);
    let web = shown(&proxy, "web");
    let endpoint = &web["endpoints"][0];
    assert_eq!(
        (&endpoint["weight"], &endpoint["metadata"], &endpoint["hostname"]),
        (&json!(3), &json!({"a": 1}), &json!("API.test"))
    );
    let discovery = &web["discovery"];
    assert_eq!((&discovery["source"], &discovery["attempts"]), (&json!("dns"), &json!(0)), "{discovery}");
    assert!(discovery["age_seconds"].as_u64().is_some() && discovery["last_error"].is_null(), "{discovery}");
    assert!(proxy.metrics().has("tollgate_cluster_discovery_last_answer_timestamp_seconds", &[("cluster", "web")]));
    assert_eq!(proxy.metrics().sum("tollgate_cluster_endpoints", &[("state", "healthy")]), 2.0);
    let resources: serde_json::Value = serde_json::from_slice(&proxy.admin("GET", "/resources", "").body).unwrap();
    let service = resources["resources"].as_array().unwrap().iter().find(|resource| resource["kind"] == "endpoints");
    let service = service.unwrap_or_else(|| panic!("{resources:#}"));
    assert_eq!(
        (&service["state"], &service["accepted"]["source"]),
        (&json!("accepted"), &json!("discovery")),
        "{service}"
    );
    assert_eq!(service["discovery"]["service"], service["name"]);

    zone.set("api.test", &[4]);
    wait_until("other addresses", || bodies(&proxy) == ["127.0.0.4"]);
    assert_eq!(proxy.metrics().sum("tollgate_config_reloads_total", &[("result", "applied")]), 1.0);
    assert_eq!(farm.upstreams.len(), 4);
}

#[test]
fn host_names_and_addresses_can_be_mixed_and_come_with_a_reload() {
    let (farm, zone) = (Farm::new(3), Zone::default());
    zone.set("one.test", &[2]);
    zone.set("two.test", &[2, 3]);
    let server = zone.server();
    let port = farm.port;
    let mut proxy = Proxy::start(config(&server, &format!("endpoints: ['127.0.0.1:{port}']")));
    assert_eq!(bodies(&proxy), ["127.0.0.1"]);
    let all = format!("endpoints: ['127.0.0.1:{port}', 'one.test:{port}', 'two.test:{port}']");
    proxy.change_config(config(&server, &all));
    assert_eq!(endpoints(&proxy, "web").len(), 3, "complete as soon as the reload is");
    assert_eq!(bodies(&proxy), ["127.0.0.1", "127.0.0.2", "127.0.0.3"]);
    proxy.change_config(config(&server, &format!("endpoints: ['two.test:{port}']")));
    assert_eq!(bodies(&proxy), ["127.0.0.2", "127.0.0.3"]);
}

#[test]
fn clusters_of_the_same_name_share_its_lookups() {
    let (farm, zone) = (Farm::new(1), Zone::default());
    zone.reply("api.test", Reply::Records(vec![Record::address("api.test", 60, IpAddr::V4(Farm::ip(1)))]));
    let server = zone.server();
    let mut config = Config::new().top(&dns(server.address, "")).listener("cluster: c0");
    for n in 0..20 {
        // The ports differ, but not what is asked.
        config = config.cluster(&format!("c{n}"), &[format!("api.test.:{}", farm.port + n % 2)], "");
    }
    let proxy = Proxy::start(config);
    assert_eq!(bodies(&proxy), ["127.0.0.1"]);
    assert!((0..20).all(|n| endpoints(&proxy, &format!("c{n}")).len() == 1));
    assert_eq!(server.count("api.test"), 1);
}

#[test]
fn ttl_of_zero_is_no_reason_to_ask_all_the_time() {
    let (farm, zone) = (Farm::new(1), Zone::default());
    zone.reply("api.test", Reply::Records(vec![Record::address("api.test", 0, IpAddr::V4(Farm::ip(1)))]));
    let server = zone.server();
    let start = std::time::Instant::now();
    let proxy = Proxy::start(config(&server, &format!("endpoints: ['api.test.:{}']", farm.port)));
    wait_until("the name to be looked up again", || server.count("api.test") >= 3);
    let most = start.elapsed().as_secs() as usize + 1;
    assert!(server.count("api.test") <= most, "{} queries in {most} s", server.count("api.test"));
    assert_eq!(bodies(&proxy), ["127.0.0.1"]);
}

#[test]
fn logical_name_is_one_endpoint_whose_connections_outlive_an_answer() {
    let (farm, zone) = (Farm::new(3), Zone::default());
    zone.set("api.test", &[9, 2]);
    let server = zone.server();
    let cluster = format!("discovery: {{dns: {{name: api.test., port: {}, mode: logical}}}}", farm.port);
    // One worker has one connection.
    let proxy = Proxy::start(config(&server, &cluster).top("workers: 1"));
    assert_eq!(endpoints(&proxy, "web"), [format!("api.test.:{}", farm.port)]);
    assert_eq!(bodies(&proxy), ["127.0.0.2"]);
    // The connection stays although the address is gone, and nothing is lost.
    zone.set("api.test", &[3]);
    let seen = server.count("api.test");
    wait_until("the change to be seen", || server.count("api.test") > seen + 1);
    assert_eq!(bodies(&proxy), ["127.0.0.2"]);
    assert_eq!(farm.upstreams[1].connections() + farm.upstreams[2].connections(), 1);
    proxy.entry_for("/").expect(200, "");
    assert_eq!(proxy.entry_for("/")["endpoint"], format!("api.test.:{}", farm.port));
}

#[test]
fn logical_name_whose_first_addresses_refuse_connects_to_another() {
    let (farm, zone) = (Farm::new(1), Zone::default());
    let server = zone.server();
    // IPv6 comes first, and nothing listens there.
    let refused = "::1".parse().unwrap();
    let records =
        vec![Record::address("api.test", 1, refused), Record::address("api.test", 1, IpAddr::V4(Farm::ip(1)))];
    zone.reply("api.test", Reply::Records(records));
    let cluster = format!("discovery: {{dns: {{name: api.test., port: {}, mode: logical}}}}", farm.port);
    let proxy = Proxy::start(config(&server, &cluster));
    assert_eq!(bodies(&proxy), ["127.0.0.1"]);
    assert_eq!(shown(&proxy, "web")["endpoints"][0]["connect_failures"], 0);
}

#[test]
fn srv_records_have_ports_priorities_and_weights() {
    let (farm, zone) = (Farm::new(2), Zone::default());
    zone.set("a.test", &[1]);
    zone.set("b.test", &[2]);
    let port = farm.port;
    let zone_of_services = zone.clone();
    let server = NameServer::new(move |asked| match (asked.kind, &*asked.name) {
        (SRV, "_http._tcp.api.test") => Reply::Records(vec![
            Record::srv(&asked.name, [10, 3, port], "a.test"),
            Record::srv(&asked.name, [10, 1, port], "b.test"),
            Record::srv(&asked.name, [20, 0, 9], "a.test"),
            Record::srv(&asked.name, [5, 0, 0], "."),
        ]),
        _ => zone_of_services.answer(asked),
    });
    let proxy = Proxy::start(config(&server, "discovery: {dns: {name: _http._tcp.api.test., mode: srv}}"));
    let list = shown(&proxy, "web")["endpoints"].clone();
    let list: Vec<_> =
        list.as_array().unwrap().iter().map(|e| json!([e["address"], e["priority"], e["weight"]])).collect();
    let expected = [
        json!([format!("127.0.0.1:{port}"), 0, 180]),
        json!([format!("127.0.0.2:{port}"), 0, 60]),
        json!(["127.0.0.1:9", 1, 60]),
    ];
    assert_eq!(list, expected);
    assert_eq!(shown(&proxy, "web")["endpoints"][0]["hostname"], "api.test", "not the target's");
}

#[test]
fn search_domains_and_hosts_are_read_again_when_they_change() {
    let (farm, zone) = (Farm::new(4), Zone::default());
    zone.set("api.one.test", &[1]);
    zone.set("api.two.test", &[2]);
    let server = zone.server();
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| {
        let next = dir.path().join("next");
        std::fs::write(&next, text).unwrap();
        std::fs::rename(next, dir.path().join(name)).unwrap();
    };
    put("resolv.conf", "search one.test two.test\nnameserver 127.0.0.1\n");
    put("hosts", "127.0.0.3 other\n");
    let path = dir.path().display();
    let dns =
        format!("dns: {{name_servers: ['{}'], resolv_conf: {path}/resolv.conf, hosts: {path}/hosts}}", server.address);
    let config = Config::new().top(&dns).listener("cluster: web").cluster("web", &[format!("api:{}", farm.port)], "");
    let proxy = Proxy::start(config);
    assert_eq!(bodies(&proxy), ["127.0.0.1"]);
    put("resolv.conf", "search two.test one.test\nnameserver 127.0.0.1\n");
    wait_until("the other search domain", || bodies(&proxy) == ["127.0.0.2"]);
    put("hosts", "127.0.0.3 api\n127.0.0.4 api\n");
    wait_until("the hosts", || bodies(&proxy) == ["127.0.0.3", "127.0.0.4"]);
    put("hosts", "");
    wait_until("no hosts", || bodies(&proxy) == ["127.0.0.2"]);
}

#[test]
fn certificate_must_be_for_the_host_name() {
    let zone = Zone::default();
    zone.set("api.test", &[1]);
    zone.set("other.test", &[1]);
    let server = zone.server();
    let authority = Authority::with(&["api.test"]);
    let behind = Upstream::saying("secure");
    let front = Config::new().listener(&authority.tls(&["api.test"], "")).listener("cluster: web");
    let upstream = Proxy::start(front.cluster("web", &[&behind.address], ""));
    let port = upstream.address("main").port();
    let tls = format!("tls: {{ca: [{}]}}", authority.path("ca.pem"));
    let cluster = |host: &str, tls: &str| config(&server, &format!("endpoints: ['{host}.:{port}']\n{tls}"));
    let mut proxy = Proxy::start(cluster("api.test", &tls));
    assert_eq!(proxy.get("/").text(), "secure", "the cluster's name, `web`, is not the server's");
    proxy.change_config(cluster("other.test", &tls));
    assert_eq!(proxy.get("/refused").status(), 503);
    proxy.entry_for("/refused").expect(503, "UF");
    proxy.change_config(cluster("other.test", &tls.replace("{ca", "{sni: api.test, ca")));
    assert_eq!(proxy.get("/").text(), "secure", "`sni` takes precedence");
}

#[test]
fn checking_asks_no_name_server() {
    let server = Zone::default().server();
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "{}\nlisteners: [{{name: a, address: '127.0.0.1:0', cluster: web}}]\nclusters: [{{name: web, endpoints: ['api.test:80']}}]\n",
        dns(server.address, "")
    );
    std::fs::write(dir.path().join("c.yaml"), text).unwrap();
    let (success, output) = run_in(dir.path(), &["check", "c.yaml"], &[]);
    assert!(success, "{output}");
    assert_eq!(server.asked(), []);
}

#[test]
fn clusters_of_a_source_can_have_host_names() {
    let (farm, zone) = (Farm::new(2), Zone::default());
    zone.set("api.test", &[2]);
    let server = zone.server();
    let dir = tempfile::tempdir().unwrap();
    let sources = format!("sources: [{{name: files, directory: {{path: '{}'}}}}]", dir.path().display());
    let put = |text: &str| {
        std::fs::write(dir.path().join(".next"), text).unwrap();
        std::fs::rename(dir.path().join(".next"), dir.path().join("c.yaml")).unwrap();
    };
    put(&format!("clusters: [{{name: web, endpoints: ['api.test.:{}']}}]", farm.port));
    let config = Config::new().top(&dns(server.address, "")).top(&sources).routes("{cluster: web}");
    let proxy = Proxy::start(config);
    wait_until("the cluster", || proxy.get("/").status() == 200);
    assert_eq!(bodies(&proxy), ["127.0.0.2"]);
    let asked = wait_for("a second lookup", || Some(server.count("api.test")).filter(|count| *count > 1));
    put("clusters: []");
    wait_until("the cluster to go", || proxy.get("/").status() == 503);
    // A lookup may be in progress.
    let after = server.count("api.test");
    std::thread::sleep(std::time::Duration::from_millis(2500));
    assert!(server.count("api.test") <= after + 1, "{asked}: what nothing uses is not looked up");
}
