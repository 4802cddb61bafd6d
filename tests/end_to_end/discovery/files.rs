//! Endpoints from files, replaced in all the ways in which programs replace files.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{Farm, bodies, endpoints, of_round, shown, under_traffic};
use crate::harness::{Config, Proxy, run_in, wait_until};

const FILE: &str = "discovery: {file: endpoints.yaml}";

fn config(cluster: &str) -> Config {
    Config::new().listener("cluster: web").cluster("web", &[] as &[&str], cluster)
}

/// The content of a file with the addresses 127.0.0.x.
fn content(farm: &Farm, addresses: &[u8]) -> String {
    let line = |n: &u8| format!("- 127.0.0.{n}:{}\n", farm.port);
    match addresses.is_empty() {
        true => "endpoints: []\n".to_owned(),
        false => format!("endpoints:\n{}", addresses.iter().map(line).collect::<String>()),
    }
}

/// Replaces a file by renaming another one.
fn replace(file: &Path, text: &str) {
    let next = file.with_extension("next");
    fs::write(&next, text).unwrap();
    fs::rename(next, file).unwrap();
}

fn addresses(farm: &Farm, addresses: &[u8]) -> Vec<String> {
    addresses.iter().map(|n| format!("127.0.0.{n}:{}", farm.port)).collect()
}

#[test]
fn file_is_read_again_when_it_is_replaced_or_written() {
    let farm = Farm::new(3);
    let proxy = Proxy::start_with(config(FILE), &[("endpoints.yaml", content(&farm, &[1]).as_bytes())]);
    assert_eq!(bodies(&proxy), ["127.0.0.1"]);
    let discovery = shown(&proxy, "web")["discovery"].clone();
    assert_eq!((&discovery["source"], &discovery["attempts"]), (&json!("file"), &json!(0)), "{discovery}");
    assert!(discovery["service"].as_str().unwrap().ends_with("/endpoints.yaml") && discovery["age_seconds"].is_u64());
    let file = proxy.dir().join("endpoints.yaml");
    replace(&file, &content(&farm, &[1, 2]));
    wait_until("a renamed file", || endpoints(&proxy, "web") == addresses(&farm, &[1, 2]));
    fs::write(&file, content(&farm, &[3])).unwrap();
    wait_until("a written file", || endpoints(&proxy, "web") == addresses(&farm, &[3]));
    // Weights and the other fields of endpoints, in JSON, which is YAML, too.
    let address = &addresses(&farm, &[2])[0];
    replace(&file, &json!({"endpoints": [{"address": address, "weight": 7, "metadata": {"a": 1}}]}).to_string());
    wait_until("another format", || endpoints(&proxy, "web") == addresses(&farm, &[2]));
    let endpoint = shown(&proxy, "web")["endpoints"][0].clone();
    assert_eq!((&endpoint["weight"], &endpoint["metadata"]), (&json!(7), &json!({"a": 1})));
    // That there are none is an order.
    replace(&file, "endpoints: []");
    wait_until("no endpoints", || proxy.get("/").status() == 503);
    proxy.entry(|entry| entry["status"] == 503).expect(503, "UH").because("no_endpoint");
    replace(&file, &content(&farm, &[1]));
    wait_until("endpoints again", || proxy.get("/").status() == 200);
    assert!(
        proxy.metrics().sum("tollgate_discovery_answers_total", &[("source", "file"), ("result", "changed")]) >= 5.0
    );
    assert_eq!(proxy.version(), 1, "nothing was reloaded");
}

#[test]
fn broken_or_missing_file_keeps_the_last_endpoints_and_shows_why() {
    let farm = Farm::new(2);
    let proxy = Proxy::start_with(config(FILE), &[("endpoints.yaml", content(&farm, &[1]).as_bytes())]);
    let file = proxy.dir().join("endpoints.yaml");
    let error = || shown(&proxy, "web")["discovery"]["last_error"]["error"].as_str().unwrap_or_default().to_owned();
    for (text, wrong) in [
        ("endpoints:\n- 127.0.0.1:80\n- {address: nowhere}\n", "endpoints.yaml:3:13: "),
        ("endpoints: [", "endpoints.yaml:1:"),
        ("endpoints:\n- {address: '127.0.0.1:80', wieght: 1}\n", "endpoints.yaml:2:29: unknown field `wieght`"),
        ("", "endpoints.yaml:1:1: error: the field `endpoints` is missing"),
    ] {
        replace(&file, text);
        wait_until(wrong, || error().contains(wrong));
        assert_eq!(bodies(&proxy), ["127.0.0.1"], "{wrong}");
        assert!(
            proxy.metrics().sum("tollgate_cluster_discovery_attempts", &[("cluster", "web"), ("source", "file")])
                >= 1.0
        );
    }
    fs::remove_file(&file).unwrap();
    wait_until("the file to be missed", || error().contains("No such file"));
    assert_eq!(bodies(&proxy), ["127.0.0.1"]);
    replace(&file, &content(&farm, &[2]));
    wait_until("the file to come back", || bodies(&proxy) == ["127.0.0.2"]);
    assert_eq!(shown(&proxy, "web")["discovery"]["attempts"], 0);
    proxy.wait_for_output("endpoints not found: ");
    proxy.wait_for_output("endpoints found again");
}

#[test]
fn links_that_kubernetes_swaps_are_followed() {
    let farm = Farm::new(2);
    let dir = tempfile::tempdir().unwrap();
    // As for a ConfigMap: the file is a link into `..data`, which is a link to a directory that is replaced as a whole.
    let version = |name: &str, addresses: &[u8]| {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("web"), content(&farm, addresses)).unwrap();
        symlink(name, dir.path().join("..data_tmp")).unwrap();
        fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
    };
    version("..2026_1", &[1]);
    symlink("..data/web", dir.path().join("web")).unwrap();
    let proxy = Proxy::start(config(&format!("discovery: {{file: '{}'}}", dir.path().join("web").display())));
    assert_eq!(bodies(&proxy), ["127.0.0.1"]);
    version("..2026_2", &[2]);
    fs::remove_dir_all(dir.path().join("..2026_1")).unwrap();
    wait_until("the other directory", || bodies(&proxy) == ["127.0.0.2"]);
}

#[test]
fn start_waits_for_a_missing_file_and_then_goes_on_without() {
    let farm = Farm::new(1);
    let start = Instant::now();
    let proxy = Proxy::start(config(FILE).top("dns: {initial_wait: 700ms}"));
    assert!(proxy.is_ready() && start.elapsed().as_millis() >= 700);
    assert_eq!(proxy.get("/none").status(), 503);
    proxy.entry_for("/none").expect(503, "UH").because("no_endpoint");
    assert!(shown(&proxy, "web")["discovery"]["last_answer"].is_null());
    replace(&proxy.dir().join("endpoints.yaml"), &content(&farm, &[1]));
    wait_until("the file", || proxy.get("/").status() == 200);
}

#[test]
fn file_is_shared_by_clusters_and_followed_by_those_that_use_it() {
    let farm = Farm::new(2);
    let both = |one: &str, other: &str| {
        Config::new()
            .routes("{match: {path: {prefix: /one}}, cluster: one}, {cluster: other}")
            .cluster("one", &[] as &[&str], one)
            .cluster("other", &[] as &[&str], other)
    };
    let files = [("endpoints.yaml", content(&farm, &[1])), ("more.yaml", content(&farm, &[2]))];
    let files = files.each_ref().map(|(name, text)| (*name, text.as_bytes()));
    let mut proxy = Proxy::start_with(both(FILE, "discovery: {file: ./endpoints.yaml}"), &files);
    let service = |name: &str| shown(&proxy, name)["discovery"]["service"].clone();
    assert_eq!(service("one"), service("other"), "equal paths");
    assert_eq!((proxy.get("/one").text(), proxy.get("/").text()), ("127.0.0.1", "127.0.0.1"));
    proxy.change_config(both(FILE, "discovery: {file: more.yaml}"));
    assert_eq!((proxy.get("/one").text(), proxy.get("/").text()), ("127.0.0.1", "127.0.0.2"));
    replace(&proxy.dir().join("more.yaml"), &content(&farm, &[1, 2]));
    wait_until("the other file", || endpoints(&proxy, "other") == addresses(&farm, &[1, 2]));
    assert_eq!(endpoints(&proxy, "one"), addresses(&farm, &[1]));
}

#[test]
fn checking_reads_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let text = "listeners: [{name: a, address: '127.0.0.1:0', cluster: web}]\nclusters: [{name: web, discovery: {file: none.yaml}}]\n";
    fs::write(dir.path().join("c.yaml"), text).unwrap();
    let (success, output) = run_in(dir.path(), &["check", "c.yaml"], &[]);
    assert!(success, "{output}");
}

#[test]
fn no_request_fails_while_a_file_changes_all_the_time() {
    let farm = Farm::new(5);
    let proxy = Proxy::start_with(config(FILE), &[("endpoints.yaml", content(&farm, &[1]).as_bytes())]);
    let file = proxy.dir().join("endpoints.yaml");
    // Not as fast as they can: other tests run at the same time.
    let sent = under_traffic(&proxy, Duration::from_millis(1), || {
        for round in 0..100u8 {
            let next = of_round(round);
            match round % 4 {
                1 => replace(&file, "endpoints: {"),
                2 => drop(fs::remove_file(&file)),
                _ => {}
            }
            replace(&file, &content(&farm, &next));
            wait_until("the endpoints to be used", || endpoints(&proxy, "web") == addresses(&farm, &next));
        }
    });
    assert!(sent > 1_000, "{sent:?}");
    assert_eq!(proxy.metrics().sum("tollgate_requests_total", &[("class", "5xx")]), 0.0);
}
