//! Resources that sources supply, while requests are in flight.

mod listeners;

mod secure;

use std::sync::{Arc, Condvar, Mutex};

use serde_json::{Value, json};

use crate::{
    guest,
    harness::{Config, Message, Proxy, Signal, Upstream, answer, wait_until},
};

/// A control plane: it answers with its state, with what has changed, or, until something does, not at all.
struct Plane {
    shared: Arc<Shared>,
    server: Upstream,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Counts the documents; the version of the last one.
    version: usize,
    document: Value,
    is_delta: bool,
    /// What requests have said about refused resources.
    refused: Vec<String>,
    over: bool,
    fails: bool,
}

impl Plane {
    fn new() -> Plane {
        let shared = Arc::<Shared>::default();
        let answers = shared.clone();
        let server = Upstream::replying(move |request| answers.answer(request));
        Plane { shared, server }
    }

    /// Sends a document. `is_delta`: to clients that have the version before.
    fn send(&self, document: Value, is_delta: bool) {
        let mut state = self.shared.state.lock().unwrap();
        (state.version, state.document, state.is_delta) = (state.version + 1, document, is_delta);
        self.shared.changed.notify_all();
    }

    fn full(&self, document: Value) {
        self.send(document, false);
    }

    fn delta(&self, document: Value) {
        self.send(document, true);
    }

    /// The section `sources` of a configuration.
    fn sources(&self) -> String {
        format!("sources: [{{name: plane, http: {{url: 'http://{}/resources'}}}}]", self.server.address)
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.shared.state.lock().unwrap().over = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn answer(&self, request: &Message) -> Vec<u8> {
        let known = request.field("if-none-match").and_then(|etag| etag.trim_matches('"').parse::<usize>().ok());
        let mut state = self.state.lock().unwrap();
        state.refused.extend(request.field("tollgate-refused").map(str::to_owned));
        while !state.over && !state.fails && known.unwrap_or(0) == state.version {
            state = self.changed.wait(state).unwrap();
        }
        if state.fails {
            return answer(500, &[], "out of order");
        }
        let etag = format!("\"{}\"", state.version);
        let etag = format!("ETag: {etag}");
        let fields = ["Content-Type: application/json", &etag];
        let document = state.document.to_string();
        match state.is_delta && known.is_some_and(|known| known + 1 == state.version) {
            true => answer(226, &[&fields[..], &["IM: resources"]].concat(), &document),
            false => answer(200, &fields, &document),
        }
    }
}

fn cluster(name: &str, endpoints: &[&Upstream]) -> Value {
    let endpoints: Vec<String> = endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect();
    json!({ "name": name, "endpoints": endpoints })
}

/// Routes everything to `api`, which only the source supplies.
fn config(plane: &Plane) -> Config {
    Config::new().top(&plane.sources()).routes("{cluster: api}")
}

fn text(proxy: &Proxy) -> String {
    proxy.get("/").text().to_owned()
}

#[test]
fn clusters_come_change_and_go() {
    let (plane, one, two) = (Plane::new(), Upstream::saying("one"), Upstream::saying("two"));
    let proxy = Proxy::start(config(&plane));
    assert_eq!(proxy.get("/none").status(), 503);
    proxy.entry_for("/none").expect(503, "NC").because("cluster_not_found");
    proxy.wait_for_metric("tollgate_clusters_missing", &[], 1.0);

    plane.full(json!({"clusters": [cluster("api", &[&one])]}));
    wait_until("the cluster to come", || proxy.get("/").status() == 200);
    assert_eq!(text(&proxy), "one");
    proxy.wait_for_zero("tollgate_clusters_missing", &[]);
    let created = proxy.metrics().sum("tollgate_filter_instances_created_total", &[]);

    plane.delta(json!({"clusters": [cluster("api", &[&two])]}));
    wait_until("its endpoints to change", || text(&proxy) == "two");
    plane.delta(json!({"removed": {"clusters": ["api"]}}));
    wait_until("the cluster to go", || proxy.get("/").status() == 503);
    assert_eq!(proxy.metrics().sum("tollgate_filter_instances_created_total", &[]), created);
    assert!(proxy.metrics().sum("tollgate_cluster_update_seconds_count", &[]) >= 3.0);
}

#[test]
fn endpoints_of_a_configured_cluster_change() {
    let (plane, one, two) = (Plane::new(), Upstream::saying("one"), Upstream::saying("two"));
    let config = Config::new().top(&plane.sources()).listener("cluster: web").cluster(
        "web",
        &[] as &[&str],
        "discovery: {source: plane, service: v1}",
    );
    let mut proxy = Proxy::start(config.clone());
    assert_eq!(proxy.get("/none").status(), 503);
    proxy.entry_for("/none").expect(503, "UH");
    plane.full(json!({"endpoints": [cluster("v1", &[&one])]}));
    wait_until("the endpoints to come", || proxy.get("/").status() == 200);
    proxy.change_config(config.top("drain_timeout: 7s"));
    assert_eq!(text(&proxy), "one", "they stay over a reload");
    plane.delta(json!({"endpoints": [cluster("v1", &[&two])]}));
    wait_until("the endpoints to change", || text(&proxy) == "two");
}

#[test]
fn refused_resource_keeps_its_last_state_and_is_reported() {
    let (plane, one) = (Plane::new(), Upstream::saying("one"));
    let proxy = Proxy::start(config(&plane));
    plane.full(json!({"clusters": [cluster("api", &[&one])]}));
    wait_until("the cluster to come", || proxy.get("/").status() == 200);
    plane.delta(json!({"clusters": [{"name": "api", "connect_timeout": "soon"}, {"name": "other"}]}));
    let refused = || plane.shared.state.lock().unwrap().refused.last().cloned();
    wait_until("the refusal to be reported", || refused().as_deref() == Some("clusters/api"));
    assert_eq!(text(&proxy), "one");
    let shown: Value = serde_json::from_slice(&proxy.admin("GET", "/resources", "").body).unwrap();
    let find = |name: &str| shown["resources"].as_array().unwrap().iter().find(|r| r["name"] == name).cloned();
    let api = find("api").unwrap();
    assert_eq!((&api["state"], &api["accepted"]["source"]), (&json!("refused"), &json!("plane")), "{shown:#}");
    assert!(api["candidates"][0]["error"].as_str().unwrap().contains("soon"), "{shown:#}");
    assert_eq!(find("other").unwrap()["state"], "accepted");
    assert_eq!(shown["sources"][0]["name"], "plane");
}

#[test]
fn what_was_accepted_stays_while_the_source_is_away() {
    let (plane, one) = (Plane::new(), Upstream::saying("one"));
    let proxy = Proxy::start(config(&plane));
    plane.full(json!({"clusters": [cluster("api", &[&one])]}));
    wait_until("the cluster to come", || proxy.get("/").status() == 200);
    plane.shared.state.lock().unwrap().fails = true;
    plane.shared.changed.notify_all();
    proxy.wait_for_metric("tollgate_source_requests_total", &[("result", "failed")], 1.0);
    assert_eq!(text(&proxy), "one");
}

#[test]
fn thousands_of_updates_make_no_instance_and_lose_no_request() {
    let (plane, one, two) = (Plane::new(), Upstream::saying("same"), Upstream::saying("same"));
    let counting = guest::version("v1");
    let proxy = Proxy::start(config(&plane).module("marker", &counting, ""));
    plane.full(json!({"clusters": [cluster("api", &[&one])]}));
    wait_until("the cluster to come", || proxy.get("/").status() == 200);
    let created = proxy.metrics().sum("tollgate_filter_instances_created_total", &[]);
    for n in 0..300 {
        let endpoints: &[&Upstream] = if n % 2 == 0 { &[&two] } else { &[&one, &two] };
        plane.delta(json!({"clusters": [cluster("api", endpoints)]}));
        assert_eq!(text(&proxy), "same", "{n}");
    }
    assert_eq!(proxy.metrics().sum("tollgate_filter_instances_created_total", &[]), created);
}

#[test]
fn kept_resources_serve_after_a_restart_without_the_source() {
    let (plane, one, cache) = (Plane::new(), Upstream::saying("one"), tempfile::tempdir().unwrap());
    let config = || {
        let sources = plane.sources().replace("http: {", "http: {keep: true, interval: 100ms, ");
        let cache = format!("cache_dir: '{}'", cache.path().display());
        Config::new().top(&sources).top(&cache).routes("{cluster: api}")
    };
    let mut proxy = Proxy::start(config());
    plane.full(json!({"clusters": [{"name": "api", "discovery": {"source": "plane"}}], "endpoints": [cluster("api", &[&one])]}));
    wait_until("the cluster to come", || proxy.get("/").status() == 200);
    // At the latest, they are written when the process stops.
    proxy.signal(Signal::TERM);
    proxy.wait_exit();

    plane.shared.state.lock().unwrap().fails = true;
    plane.shared.changed.notify_all();
    let proxy = Proxy::start(config());
    assert_eq!(text(&proxy), "one");
    // The source continues from the version that was kept.
    plane.shared.state.lock().unwrap().fails = false;
    let two = Upstream::saying("two");
    plane.delta(json!({"endpoints": [cluster("api", &[&two])]}));
    wait_until("the endpoints to change", || text(&proxy) == "two");
}

#[test]
fn resources_that_were_kept_of_another_server_are_not_used() {
    let (plane, other, one) = (Plane::new(), Plane::new(), Upstream::saying("one"));
    let cache = tempfile::tempdir().unwrap();
    let config = |plane: &Plane, keep: bool| {
        let sources = plane.sources().replace("http: {", &format!("http: {{keep: {keep}, "));
        let cache = format!("cache_dir: '{}'", cache.path().display());
        Config::new().top(&sources).top(&cache).routes("{cluster: api}")
    };
    let file = cache.path().join("sources/plane.json");
    plane.full(json!({"clusters": [cluster("api", &[&one])]}));
    let mut proxy = Proxy::start(config(&plane, true));
    wait_until("the cluster to come", || text(&proxy) == "one");
    proxy.signal(Signal::TERM);
    proxy.wait_exit();
    assert!(file.exists());

    for plane in [&plane, &other] {
        plane.shared.state.lock().unwrap().fails = true;
    }
    assert_eq!(text(&Proxy::start(config(&plane, true))), "one");
    assert_eq!(Proxy::start(config(&other, true)).get("/").status(), 503);
    // Without `keep`, nothing stays that a later process with it could take for recent.
    let proxy = Proxy::start(config(&plane, false));
    wait_until("the file to be removed", || !file.exists());
    assert_eq!(proxy.get("/").status(), 503);
}

#[test]
fn refused_resource_comes_after_a_restart_if_nothing_is_wrong_with_it_any_more() {
    let (plane, one, two) = (Plane::new(), Upstream::saying("one"), Upstream::saying("two"));
    let cache = tempfile::tempdir().unwrap();
    let config = || {
        let sources = plane.sources().replace("http: {", "http: {keep: true, ");
        let cache = format!("cache_dir: '{}'", cache.path().display());
        Config::new().top(&sources).top(&cache).routes("{cluster: api}")
    };
    let mut proxy = Proxy::start(config().cluster("api", &[&one], ""));
    plane.full(json!({"clusters": [cluster("api", &[&two])]}));
    proxy.wait_for_output("cluster `api` refused");
    let file = cache.path().join("sources/plane.json");
    wait_until("the state to be kept", || file.exists());
    proxy.signal(Signal::TERM);
    proxy.wait_exit();
    // The server has nothing new for clients with its last version.
    let proxy = Proxy::start(config());
    wait_until("the cluster to come", || text(&proxy) == "two");
}

#[test]
fn unreadable_file_of_a_directory_does_not_affect_the_others() {
    let (one, two) = (Upstream::saying("one"), Upstream::saying("two"));
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, document: &[u8]| {
        let next = dir.path().join(".next");
        std::fs::write(&next, document).unwrap();
        std::fs::rename(next, dir.path().join(name)).unwrap();
    };
    let api = |upstream| json!({"clusters": [cluster("api", &[upstream])]}).to_string();
    let sources = format!("sources: [{{name: files, directory: {{path: '{}'}}}}]", dir.path().display());
    put("api.json", api(&one).as_bytes());
    let proxy = Proxy::start(Config::new().top(&sources).routes("{cluster: api}"));
    wait_until("the cluster to come", || text(&proxy) == "one");
    put("broken.json", b"\xff");
    proxy.wait_for_output("broken.json is not UTF-8");
    put("api.json", api(&two).as_bytes());
    wait_until("its endpoints to change", || text(&proxy) == "two");
    put("other.json", json!({"removed": {"clusters": ["api"]}}).to_string().as_bytes());
    proxy.wait_for_output("a full state has no `removed`");
}

#[test]
fn files_of_a_directory_come_change_and_go() {
    let (one, two) = (Upstream::saying("one"), Upstream::saying("two"));
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, document: Value| {
        let next = dir.path().join(".next");
        std::fs::write(&next, document.to_string()).unwrap();
        std::fs::rename(next, dir.path().join(name)).unwrap();
    };
    let sources = format!("sources: [{{name: files, directory: {{path: '{}'}}}}]", dir.path().display());
    let proxy = Proxy::start(Config::new().top(&sources).routes("{cluster: api}"));
    assert_eq!(proxy.get("/none").status(), 503);
    proxy.entry_for("/none").expect(503, "NC");
    put("api.json", json!({"clusters": [cluster("api", &[&one])]}));
    wait_until("the cluster to come", || proxy.get("/").status() == 200);
    put("other.json", json!({"clusters": ["nonsense"]}));
    put("api.json", json!({"clusters": [cluster("api", &[&two])]}));
    wait_until("its endpoints to change", || text(&proxy) == "two");
    proxy.wait_for_output("an entry of `clusters` has no name");
    std::fs::remove_file(dir.path().join("api.json")).unwrap();
    wait_until("the cluster to go", || proxy.get("/").status() == 503);
}
