//! What operators see of every kind of source.

use std::fs;

use serde_json::{Value, json};

use super::{Farm, endpoints, shown};
use crate::harness::{
    Config, Proxy, Upstream, answer,
    consul::{Consul, Fault},
    kubernetes::{self, Api},
    wait_until,
};

/// The clusters, which are named after their kinds of source.
const ALL: [&str; 6] = ["consul", "directory", "dns", "file", "http", "kubernetes"];

#[test]
fn all_kinds_are_shown_alike_while_they_work_and_while_they_fail() {
    let (farm, consul, api) = (Farm::new(1), Consul::start(), Api::new());
    let address = format!("127.0.0.1:{}", farm.port);
    consul.set_healthy("web", &[&address]);
    api.set("web-1", "web", farm.port, &[1]);
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| {
        fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
        fs::write(dir.path().join(name), text).unwrap();
    };
    put("hosts", "127.0.0.1 web.test\n");
    put("resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n");
    put("endpoints.yaml", &format!("endpoints: ['{address}']"));
    put("sources/a.yaml", &format!("endpoints: [{{name: directory, endpoints: ['{address}']}}]"));
    let document = json!({"endpoints": [{"name": "http", "endpoints": [address]}]}).to_string();
    let works = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let is_working = works.clone();
    let plane = Upstream::replying(move |_| match is_working.load(std::sync::atomic::Ordering::SeqCst) {
        true => answer(200, &["Content-Type: application/json"], &document),
        false => answer(500, &[], "out of order"),
    });
    let at = |name: &str| dir.path().join(name).display().to_string();
    let top = format!(
        "dns: {{resolv_conf: '{}', hosts: '{}', timeout: 200ms}}\n\
         consul: {{url: 'http://{}'}}\n\
         kubernetes: {{url: 'http://{}'}}\n\
         sources:\n\
         - {{name: central, http: {{url: 'http://{plane}/r', interval: 10ms}}}}\n\
         - {{name: local, directory: {{path: '{}'}}}}",
        at("resolv.conf"),
        at("hosts"),
        consul.address,
        api.server.address,
        at("sources"),
    );
    let none: &[&str] = &[];
    let config = Config::new()
        .top(&top)
        .listener("cluster: dns")
        .cluster("consul", none, "discovery: {consul: {service: web}}")
        .cluster("directory", none, "discovery: {source: local}")
        .cluster(
            "dns",
            none,
            &format!("discovery: {{dns: {{name: web.test., port: {}, min_ttl: 50ms, max_ttl: 50ms}}}}", farm.port),
        )
        .cluster("file", none, &format!("discovery: {{file: '{}'}}", at("endpoints.yaml")))
        .cluster("http", none, "discovery: {source: central}")
        .cluster("kubernetes", none, "discovery: {kubernetes: {service: web, namespace: shop, port: http}}");
    let proxy = Proxy::start(config);
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    for name in ALL {
        wait_until(name, || endpoints(&proxy, name) == [address.as_str()]);
        let cluster = shown(&proxy, name);
        assert_eq!(cluster["endpoints_by_state"], json!({"healthy": 1, "unhealthy": 0, "without_weight": 0}), "{name}");
        let discovery = &cluster["discovery"];
        let expected = ["source", "service", "last_answer", "age_seconds", "last_error", "attempts", "states"];
        assert_eq!((keys(discovery), &discovery["source"]), (expected.map(str::to_owned).to_vec(), &json!(name)));
        assert!(discovery["last_answer"].is_string() && discovery["age_seconds"].is_u64(), "{discovery}");
        let labels = [("cluster", name), ("source", name)];
        let metrics = proxy.metrics();
        assert!(metrics.sum("tollgate_cluster_discovery_last_answer_timestamp_seconds", &labels) > 1e9, "{name}");
        assert!(metrics.has("tollgate_cluster_discovery_attempts", &labels), "{name}");
    }
    let passing = [("cluster", "consul"), ("source", "consul"), ("state", "passing")];
    assert_eq!(proxy.metrics().sum("tollgate_cluster_discovery_endpoints", &passing), 1.0);

    consul.fail(Some(Fault::Status(500, "", "")));
    put("hosts", "");
    put("endpoints.yaml", "endpoints: {");
    put("sources/a.yaml", "endpoints: {");
    works.store(false, std::sync::atomic::Ordering::SeqCst);
    api.begin_to_fail(kubernetes::Fault::Close);
    for name in ALL {
        let labels = [("cluster", name), ("source", name)];
        wait_until(name, || proxy.metrics().sum("tollgate_cluster_discovery_attempts", &labels) >= 1.0);
        let cluster = shown(&proxy, name);
        assert_eq!(cluster["endpoints_by_state"]["healthy"], 1, "{name}");
        assert!(cluster["discovery"]["last_error"]["error"].is_string(), "{name}");
    }
}
