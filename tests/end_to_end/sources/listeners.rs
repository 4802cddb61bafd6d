//! Listeners and filters of sources: they come, change, break, and go, and nothing else notices.

use std::{
    net::{SocketAddr, TcpStream},
    path::Path,
};

use serde_json::{Value, json};

use super::Plane;
use crate::{
    guest,
    harness::{Client, Config, Proxy, Signal, Upstream, Wire, reserve, wait_until},
    hot_swap::{ANY, Load, telling},
};

const ALL_KINDS: &str = "[listeners, filters, clusters, endpoints]";

/// The section `sources` with permission for all kinds.
fn sources(plane: &Plane) -> String {
    plane.sources().replace("http: {", &format!("supplies: {ALL_KINDS}, http: {{"))
}

fn listener(name: &str, address: SocketAddr, chain: &[&str], cluster: &str) -> Value {
    json!({"name": name, "address": address, "chain": chain, "cluster": cluster})
}

fn filter(name: &str, wasm: &str) -> Value {
    json!({"name": name, "wasm": wasm})
}

/// The answer of a listener, if there is one at this address.
fn answer_at(address: SocketAddr) -> Option<String> {
    let mut client = Client { wire: Wire::new(TcpStream::connect(address).ok()?) };
    Some(client.get("/").text().to_owned())
}

fn wait_for_answer(address: SocketAddr, text: &str) {
    wait_until(&format!("{text} at {address}"), || answer_at(address).as_deref() == Some(text));
}

/// Clients with one connection each, which note the answers.
fn asking(address: SocketAddr) -> Load {
    Load::by(&[address; 2], |address| {
        let mut client = Client::connect(address);
        move || {
            let response = client.get("/");
            assert_eq!(response.status(), 200, "{response:?}");
            response.text().to_owned()
        }
    })
}

fn resource(proxy: &Proxy, kind: &str, name: &str) -> Value {
    let shown: Value = serde_json::from_slice(&proxy.admin("GET", "/resources", "").body).unwrap();
    let all = shown["resources"].as_array().unwrap();
    all.iter().find(|r| r["kind"] == kind && r["name"] == name).cloned().unwrap_or_default()
}

fn wait_for_state(proxy: &Proxy, kind: &str, name: &str, state: &str) {
    wait_until(&format!("{kind} {name} to be {state}"), || resource(proxy, kind, name)["state"] == state);
}

fn error(proxy: &Proxy, kind: &str, name: &str) -> String {
    resource(proxy, kind, name)["candidates"][0]["error"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn listeners_and_filters_come_change_break_and_go_under_traffic() {
    let (plane, upstream, extra, other) = (Plane::new(), telling(), reserve(), reserve());
    let config = Config::to(&upstream).top(&sources(&plane)).module("marker", &guest::version("file"), "");
    let proxy = Proxy::start(config);
    for version in ["one", "two"] {
        proxy.put(&format!("{version}.wasm"), guest::version(version));
    }
    let created = || proxy.metrics().sum("tollgate_filter_instances_created_total", &[("filter", "marker")]);
    let before = created();
    let main = asking(proxy.address("main"));

    let mark = |wasm| filter("mark", wasm);
    plane.full(json!({"filters": [mark("one.wasm")], "listeners": [listener("extra", *extra, &["mark"], "web")]}));
    wait_for_answer(*extra, "one");
    proxy.wait_for_output("added listener `extra` of source `plane`");
    let config: Value = serde_json::from_slice(&proxy.admin("GET", "/config", "").body).unwrap();
    let names = |kind: &str| {
        let of = |at: &Value| at[kind].as_array().unwrap().iter().map(|one| one["name"].clone()).collect::<Vec<_>>();
        (of(&config["config"]), of(&config["supplied"]))
    };
    assert_eq!(names("listeners"), (vec![json!("main")], vec![json!("extra")]));
    assert_eq!(names("filters"), (vec![json!("marker")], vec![json!("mark")]));
    let load = asking(*extra);
    load.meet("one");
    plane.delta(json!({"filters": [mark("two.wasm")]}));
    load.meet("two");

    // The file's listener has the address of `taken`.
    let taken = listener("taken", proxy.address("main"), &[], "web");
    plane.delta(json!({"filters": [mark("none.wasm")], "listeners": [{"name": "extra", "address": "nowhere"}, taken]}));
    wait_for_state(&proxy, "listener", "taken", "refused");
    assert!(error(&proxy, "listener", "taken").contains("is already the address of another listener"));
    assert!(error(&proxy, "filter", "mark").contains("there is no file"));
    plane.delta(json!({}));
    let refused = || plane.shared.state.lock().unwrap().refused.last().cloned();
    let all = "listeners/extra, listeners/taken, filters/mark";
    wait_until("the refusals to be reported", || refused().as_deref() == Some(all));
    load.meet("two");

    let mended = json!([listener("extra", *extra, &["mark"], "web"), listener("taken", *other, &["marker"], "web")]);
    plane.delta(json!({"filters": [mark("one.wasm")], "listeners": mended}));
    wait_for_answer(*other, "file");
    load.meet("one");
    // A filter does not go before its last listener.
    plane.delta(json!({"removed": {"filters": ["mark"]}}));
    wait_for_state(&proxy, "filter", "mark", "requested");
    load.meet("one");
    assert_eq!(load.end(), ["one", "two"]);

    plane.delta(json!({"removed": {"listeners": ["extra", "taken"]}}));
    for address in [*extra, *other] {
        wait_until("the listener to go", || TcpStream::connect(address).is_err());
    }
    wait_until("the filter to go", || {
        !proxy.metrics().has("tollgate_filter_instances_created_total", &[("filter", "mark")])
    });
    main.meet("file");
    assert_eq!((main.end(), created(), proxy.version()), (vec!["file".to_owned()], before, 1));
}

#[test]
fn resources_that_come_together_are_built_together_and_only_the_bad_ones_are_refused() {
    let (plane, upstream) = (Plane::new(), telling());
    let proxy = Proxy::start(Config::to(&upstream).top(&sources(&plane)));
    proxy.put("one.wasm", guest::version("one"));
    let addresses: Vec<_> = (0..6).map(|_| reserve()).collect();
    let listeners = addresses.iter().enumerate().map(|(n, address)| {
        let name = format!("l{n}");
        // The last two have the same address.
        listener(&name, **(if n == 5 { &addresses[4] } else { address }), &["mark"], "web")
    });
    let bad = json!({"name": "bad", "wasm": "builtin:authz", "config": {"nonsense": 1}});
    let (listeners, filters) = (listeners.collect::<Vec<_>>(), json!([bad, filter("mark", "one.wasm")]));
    plane.full(json!({"listeners": listeners, "filters": filters}));
    for address in &addresses[..4] {
        wait_for_answer(**address, "one");
    }
    wait_for_state(&proxy, "filter", "bad", "refused");
    assert!(error(&proxy, "filter", "bad").contains("nonsense"), "{}", error(&proxy, "filter", "bad"));
    let has_state = |state: &str| ["l4", "l5"].iter().any(|name| resource(&proxy, "listener", name)["state"] == state);
    wait_until("one of them to be refused", || has_state("refused"));
    assert!(has_state("accepted"));
    assert_eq!(proxy.output().matches("resources of sources applied").count(), 1, "{}", proxy.output());
    assert_eq!(proxy.admin("POST", "/reload", "").status(), 200);
    proxy.wait_for_output("the configuration is unchanged");
    assert_eq!(proxy.version(), 1);
}

#[test]
fn listeners_swap_addresses_and_take_them_over_without_a_refused_connection() {
    let (plane, a, b, one, two) = (Plane::new(), Upstream::saying("a"), Upstream::saying("b"), reserve(), reserve());
    let config = Config::to(&a).cluster("b", &[&b], "").top(&sources(&plane));
    let proxy = Proxy::start(config);
    proxy.put("mark.wasm", guest::version("new"));
    plane.full(json!({"listeners": [listener("one", *one, &[], "web"), listener("two", *two, &[], "b")]}));
    wait_for_answer(*one, "a");
    wait_for_answer(*two, "b");
    let load = Load::connecting(&[*one, *two]);
    load.meet(ANY);
    plane.delta(json!({"listeners": [listener("one", *two, &[], "web"), listener("two", *one, &[], "b")]}));
    wait_for_answer(*one, "b");
    load.meet(ANY);
    // With a filter that is new as well.
    plane.delta(json!({
        "removed": {"listeners": ["one"]},
        "filters": [filter("mark", "mark.wasm")],
        "listeners": [listener("three", *two, &["mark"], "b")],
    }));
    wait_for_answer(*two, "b");
    load.meet(ANY);
    load.end();
    assert_eq!(proxy.metrics().sum("tollgate_connections_refused_total", &[]), 0.0);
}

#[test]
fn files_win_and_give_way_and_a_rollback_leaves_sources_alone() {
    let (plane, a, b, extra) = (Plane::new(), Upstream::saying("a"), Upstream::saying("b"), reserve());
    let config = Config::to(&a).cluster("b", &[&b], "").top(&sources(&plane));
    let mut proxy = Proxy::start(config.clone());
    plane.full(json!({"listeners": [listener("extra", *extra, &[], "b")]}));
    wait_for_answer(*extra, "b");
    let load = Load::connecting(&[*extra; 2]);
    let with = |name: &str| config.clone().beside(name, &format!("address: '{extra}'\ncluster: web"));
    proxy.change_config(with("extra"));
    wait_for_answer(*extra, "a");
    load.meet(ANY);
    wait_until("the clash to be shown", || error(&proxy, "listener", "extra").contains("the name is taken by"));
    assert_eq!(proxy.admin("POST", "/config/rollback/1", "").status(), 200);
    wait_for_answer(*extra, "b");
    load.meet(ANY);
    assert_eq!(resource(&proxy, "listener", "extra")["accepted"]["source"], "plane");
    assert_eq!(proxy.admin("POST", "/config/resume", "").status(), 200);
    wait_for_answer(*extra, "a");
    // The address, under another name.
    proxy.change_config(with("own"));
    assert_eq!(answer_at(*extra).as_deref(), Some("a"));
    wait_for_state(&proxy, "listener", "extra", "refused");
    proxy.change_config(config.clone());
    wait_for_answer(*extra, "b");
    load.meet(ANY);
    load.end();
}

#[test]
fn source_must_be_allowed_to_supply_listeners_and_filters() {
    let (plane, extra) = (Plane::new(), reserve());
    let proxy = Proxy::start(Config::new().top(&plane.sources()).routes("{cluster: api}"));
    let filters = json!([filter("mark", "builtin:authz")]);
    plane.full(json!({"listeners": [listener("extra", *extra, &[], "api")], "filters": filters}));
    for (kind, name, section) in [("listener", "extra", "listeners"), ("filter", "mark", "filters")] {
        wait_for_state(&proxy, kind, name, "refused");
        let advice = format!("add `{section}` to its `supplies`");
        assert!(error(&proxy, kind, name).contains(&advice), "{}", error(&proxy, kind, name));
    }
    assert!(TcpStream::connect(*extra).is_err());
}

#[test]
fn kept_listeners_serve_without_the_source_after_a_restart_and_in_a_successor() {
    let (plane, upstream, extra) = (Plane::new(), telling(), reserve());
    let cache = tempfile::tempdir().unwrap();
    std::fs::write(cache.path().join("one.wasm"), guest::version("one")).unwrap();
    let config = || {
        let sources = sources(&plane).replace("http: {", "http: {keep: true, interval: 100ms, ");
        Config::to(&upstream).top(&sources).top(&format!("cache_dir: '{}'", cache.path().display()))
    };
    let mut proxy = Proxy::start(config());
    let wasm = cache.path().join("one.wasm");
    let document = json!({
        "listeners": [listener("extra", *extra, &["mark"], "web")],
        "filters": [filter("mark", wasm.to_str().unwrap())],
    });
    plane.full(document);
    wait_for_answer(*extra, "one");
    let file = cache.path().join("sources/plane.json");
    wait_until("the resources to be kept", || {
        std::fs::read_to_string(&file).is_ok_and(|text| text.contains("\"extra\"") && text.contains("\"mark\""))
    });
    proxy.signal(Signal::TERM);
    proxy.wait_exit();
    plane.shared.state.lock().unwrap().fails = true;
    plane.shared.changed.notify_all();
    let mut proxy = Proxy::start(config());
    proxy.wait_for_ready_line();
    assert_eq!(answer_at(*extra).as_deref(), Some("one"), "they serve once the proxy is ready");
    let load = Load::connecting(&[*extra; 2]);
    load.meet(ANY);
    let next = proxy.beside(&["--replace", &proxy.pid().to_string()]);
    next.wait_for_ready_line();
    proxy.wait_exit();
    load.meet(ANY);
    load.end();
}

#[test]
fn kept_clusters_are_there_before_the_first_request_of_a_successor() {
    let (plane, upstream, cache) = (Plane::new(), telling(), tempfile::tempdir().unwrap());
    let sources = sources(&plane).replace("http: {", "http: {keep: true, interval: 100ms, ");
    let config = Config::to(&upstream).top(&sources).top(&format!("cache_dir: '{}'", cache.path().display()));
    let mut proxy = Proxy::start(config.beside("kept", "cluster: kept"));
    plane.full(json!({"clusters": [{"name": "kept", "endpoints": [{"address": upstream.to_string()}]}]}));
    let address = proxy.address("kept");
    wait_until("the cluster to come", || Client::connect(address).get("/").status() == 200);
    let file = cache.path().join("sources/plane.json");
    wait_until("the cluster to be kept", || std::fs::read_to_string(&file).is_ok_and(|text| text.contains("\"kept\"")));
    plane.shared.state.lock().unwrap().fails = true;
    plane.shared.changed.notify_all();
    let load = Load::connecting(&[address; 2]);
    for _ in 0..3 {
        load.meet(ANY);
        let next = proxy.beside(&["--replace", &proxy.pid().to_string()]);
        next.wait_for_ready_line();
        proxy.wait_exit();
        proxy = next;
    }
    load.meet(ANY);
    load.end();
}

#[test]
fn what_a_kept_source_may_supply_can_change() {
    let (plane, upstream, extra) = (Plane::new(), telling(), reserve());
    let cache = tempfile::tempdir().unwrap();
    let config = |supplies: &str| {
        let sources = sources(&plane).replace("http: {", "http: {keep: true, ").replace(ALL_KINDS, supplies);
        Config::to(&upstream).top(&sources).top(&format!("cache_dir: '{}'", cache.path().display()))
    };
    let mut proxy = Proxy::start(config(ALL_KINDS));
    let limits = json!({"name": "limits", "wasm": "builtin:ratelimit", "config": {"limits": []}});
    plane.full(json!({"listeners": [listener("extra", *extra, &["limits"], "web")], "filters": [limits]}));
    wait_until("the listener to come", || TcpStream::connect(*extra).is_ok());
    proxy.change_config(config("[clusters]"));
    wait_until("the listener to go", || TcpStream::connect(*extra).is_err());
    // The server has nothing new for clients with its last version.
    proxy.change_config(config(ALL_KINDS));
    wait_until("the listener to come back", || TcpStream::connect(*extra).is_ok());
}

#[test]
fn listeners_in_the_files_of_a_directory_come_break_and_go() {
    let (upstream, extra) = (telling(), reserve());
    let dir = tempfile::tempdir().unwrap();
    let put = |document: &Value| {
        let next = dir.path().join(".next");
        std::fs::write(&next, document.to_string()).unwrap();
        std::fs::rename(next, dir.path().join("extra.json")).unwrap();
    };
    let sources = |dir: &Path| {
        format!("sources: [{{name: files, supplies: [listeners, filters], directory: {{path: '{}'}}}}]", dir.display())
    };
    let proxy = Proxy::start(Config::to(&upstream).top(&sources(dir.path())));
    proxy.put("one.wasm", guest::version("one"));
    let document =
        |wasm| json!({"filters": [filter("mark", wasm)], "listeners": [listener("extra", *extra, &["mark"], "web")]});
    put(&document("one.wasm"));
    wait_for_answer(*extra, "one");
    let load = asking(*extra);
    put(&document("two.wasm"));
    wait_for_state(&proxy, "filter", "mark", "refused");
    load.meet("one");
    proxy.put("two.wasm", guest::version("two"));
    // The module exists now; the file is read again when it changes.
    put(
        &json!({"filters": document("two.wasm")["filters"], "listeners": document("two.wasm")["listeners"], "clusters": []}),
    );
    load.meet("two");
    load.end();
    std::fs::remove_file(dir.path().join("extra.json")).unwrap();
    wait_until("the listener to go", || TcpStream::connect(*extra).is_err());
}
