//! Documents in, updates of workers out.

use serde_json::json;

use super::*;
use crate::{config::Format, control::source::http, worker::mailbox::NextState};

/// The thread's state with one mailbox, and a source `plane`.
struct Fixture {
    keeper: Keeper,
    clusters: Arc<Clusters>,
    mailbox: Arc<Mailbox>,
    version: u64,
}

impl Fixture {
    /// A configuration whose files have these clusters.
    fn new(files: &Value) -> Fixture {
        let (clusters, mailbox) = (Arc::<Clusters>::default(), Arc::<Mailbox>::default());
        let lane = ClusterLane::new(clusters.clone(), 1, vec![mailbox.clone()]);
        let (documents, listings) = (mpsc::channel(1).0, mpsc::channel(1).0);
        let keeper = Keeper::new(lane, Registry::new(1), Outputs { documents, listings });
        let mut fixture = Fixture { keeper, clusters, mailbox, version: 0 };
        fixture.files(files);
        fixture
    }

    /// Applies other files, as the builder does.
    fn files(&mut self, clusters: &Value) {
        // Neither of the two: it has no task.
        let source = json!({"name": "plane", "http": {"url": "http://127.0.0.1:1/"}});
        self.apply(clusters, &json!([source]));
    }

    fn without_source(&mut self) {
        self.apply(&json!([]), &json!([]));
    }

    fn apply(&mut self, clusters: &Value, sources: &Value) {
        let listener = json!({"name": "l", "address": "127.0.0.1:1"});
        let config = json!({"listeners": [listener], "sources": sources, "clusters": clusters});
        let loaded = crate::config::parse("c.json", &config.to_string(), Format::Json).unwrap();
        for cluster in &loaded.config.clusters {
            let handle = self.clusters.handle(&cluster.name);
            let built = crate::upstream::Cluster::with_tls(cluster, handle.current().as_ref(), None, 1);
            self.clusters.publish(&handle, &built);
        }
        self.version += 1;
        let (done, _) = oneshot::channel();
        let mut sources = loaded.config.sources.clone();
        sources.iter_mut().for_each(|source| source.http = None);
        let grace = Duration::from_secs(7);
        let (files, version, cache) = (loaded.source, self.version, None);
        self.keeper.handle(Request::Files { files, version, sources, grace, cache, done });
    }

    fn supply(&mut self, document: &Value, is_delta: bool) -> Result<Vec<String>, String> {
        let (verdict, mut answer) = oneshot::channel();
        self.keeper.fetched(Fetched {
            source: "plane".into(),
            body: document.to_string().into(),
            format: http::Format::Json,
            etag: None,
            is_delta,
            arrived: tokio::time::Instant::now(),
            verdict,
        });
        match answer.try_recv().unwrap() {
            Verdict::Applied { refused } => Ok(refused),
            Verdict::Unusable(why) => Err(why),
        }
    }

    fn full(&mut self, document: &Value) -> Vec<String> {
        self.supply(document, false).unwrap()
    }

    fn delta(&mut self, document: &Value) -> Vec<String> {
        self.supply(document, true).unwrap()
    }

    /// The updates since the last call, sorted: the cluster, and the number of its endpoints or `gone`.
    fn updates(&self) -> Vec<String> {
        let mut taken = self.mailbox.try_take();
        taken.sort_by(|a, b| a.handle.name().cmp(b.handle.name()));
        let text = |next: &NextState| match next {
            NextState::Is(cluster) => cluster.members().len().to_string(),
            NextState::Gone { grace, .. } => format!("gone in {grace:?}"),
        };
        taken.iter().map(|update| format!("{} {}", update.handle.name(), text(&update.next))).collect()
    }

    fn state(&self, kind: &str, name: &str) -> Value {
        let all = shown::all(&self.keeper.store, &self.keeper.sources, self.keeper.now());
        let found = all["resources"].as_array().unwrap().iter().find(|r| r["kind"] == kind && r["name"] == name);
        found.cloned().unwrap_or_default()
    }
}

fn cluster(name: &str, endpoints: usize) -> Value {
    let list: Vec<_> = (1..=endpoints).map(|n| format!("10.0.0.{n}:80")).collect();
    json!({"name": name, "endpoints": list})
}

fn discovered(name: &str) -> Value {
    json!({"name": name, "discovery": {"source": "plane"}})
}

#[test]
fn clusters_come_change_and_go() {
    let mut fixture = Fixture::new(&json!([cluster("web", 1)]));
    assert_eq!(fixture.full(&json!({"clusters": [cluster("api", 2), cluster("db", 1)]})), [""; 0]);
    assert_eq!(fixture.updates(), ["api 2", "db 1"]);
    assert_eq!(fixture.full(&json!({"clusters": [cluster("api", 2), cluster("db", 1)]})), [""; 0]);
    assert_eq!(fixture.updates(), [""; 0], "nothing has changed");
    fixture.delta(&json!({"clusters": [cluster("api", 3)]}));
    assert_eq!(fixture.updates(), ["api 3"]);
    fixture.delta(&json!({"removed": {"clusters": ["api", "unknown"]}}));
    assert_eq!(fixture.updates(), ["api gone in 7s"]);
    fixture.full(&json!({}));
    assert_eq!(fixture.updates(), ["db gone in 7s"]);
    assert!(fixture.clusters.get("web").is_some());
}

#[test]
fn cluster_waits_for_its_endpoints_and_follows_them() {
    let mut fixture = Fixture::new(&json!([]));
    fixture.full(&json!({"clusters": [discovered("api")]}));
    assert_eq!((fixture.updates(), fixture.state("cluster", "api")["state"].clone()), (vec![], json!("warming")));
    fixture.delta(&json!({"endpoints": [cluster("api", 2)]}));
    assert_eq!(fixture.updates(), ["api 2"]);
    fixture.delta(&json!({"endpoints": [cluster("api", 5)]}));
    assert_eq!(fixture.updates(), ["api 5"]);
    // Other settings, the same endpoints.
    let slow = json!({"name": "api", "discovery": {"source": "plane"}, "connect_timeout": "9s"});
    fixture.delta(&json!({"clusters": [slow]}));
    assert_eq!(fixture.updates(), ["api 5"]);
    fixture.delta(&json!({"removed": {"endpoints": ["api"]}}));
    assert_eq!(fixture.updates(), ["api 0"]);
}

#[test]
fn cluster_of_the_files_takes_its_endpoints_from_a_source() {
    let mut fixture = Fixture::new(&json!([discovered("web")]));
    fixture.full(&json!({"endpoints": [cluster("web", 2)]}));
    assert_eq!(fixture.updates(), ["web 2"]);
    fixture.files(&json!([discovered("web"), cluster("more", 1)]));
    assert_eq!(fixture.updates(), [""; 0]);
    assert_eq!(fixture.clusters.get("web").unwrap().members().len(), 2, "they stay over a reload");
    let other = json!({"name": "other", "discovery": {"source": "plane", "service": "web"}});
    fixture.files(&json!([discovered("web"), other]));
    assert_eq!(fixture.updates(), ["more gone in 7s", "other 2"]);
}

#[test]
fn files_win_and_give_way_without_a_gap() {
    let mut fixture = Fixture::new(&json!([cluster("web", 1)]));
    assert_eq!(fixture.full(&json!({"clusters": [cluster("web", 3), cluster("api", 1)]})), ["clusters/web"]);
    assert_eq!(fixture.updates(), ["api 1"]);
    let why = fixture.state("cluster", "web")["candidates"][0]["error"].clone();
    assert!(why.as_str().unwrap().contains("the name is taken by c.json"), "{why}");
    fixture.files(&json!([]));
    assert_eq!(fixture.updates(), ["web 3"], "the source's cluster takes over");
    fixture.files(&json!([cluster("web", 1)]));
    assert_eq!(fixture.clusters.get("web").unwrap().members().len(), 1);
}

#[test]
fn wrong_resource_is_refused_alone_and_keeps_its_last_state() {
    let mut fixture = Fixture::new(&json!([]));
    fixture.full(&json!({"clusters": [cluster("a", 1), cluster("b", 1)]}));
    fixture.updates();
    let wrong = json!({"name": "a", "connect_timeout": "soon"});
    assert_eq!(fixture.full(&json!({"clusters": [wrong, cluster("b", 2)]})), ["clusters/a"]);
    assert_eq!(fixture.updates(), ["b 2"]);
    let shown = fixture.state("cluster", "a");
    assert_eq!((&shown["state"], shown["accepted"].is_object()), (&json!("refused"), true), "{shown:#}");
    let tls = json!({"name": "c", "tls": {"ca": "/none.pem"}});
    assert_eq!(fixture.delta(&json!({"clusters": [tls]})), ["clusters/a", "clusters/c"]);
}

#[test]
fn unusable_document_changes_nothing() {
    let mut fixture = Fixture::new(&json!([]));
    fixture.full(&json!({"clusters": [cluster("a", 1)]}));
    fixture.updates();
    for (document, is_delta) in [
        (json!({"listeners": []}), false),
        (json!({"removed": {"clusters": ["a"]}}), false),
        (json!({"clusters": [cluster("a", 2), cluster("a", 3)]}), true),
    ] {
        assert!(fixture.supply(&document, is_delta).is_err(), "{document}");
        assert_eq!(fixture.updates(), [""; 0], "{document}");
    }
}

#[test]
fn source_that_is_gone_takes_its_resources_along() {
    let mut fixture = Fixture::new(&json!([]));
    fixture.full(&json!({"clusters": [cluster("a", 1)]}));
    fixture.updates();
    fixture.without_source();
    assert_eq!(fixture.updates(), ["a gone in 7s"]);
    assert!(fixture.supply(&json!({"clusters": []}), false).is_err());
}

#[test]
fn source_supplies_only_what_it_may() {
    let mut fixture = Fixture::new(&json!([discovered("web")]));
    let running = fixture.keeper.sources.get_mut("plane").unwrap();
    running.config.supplies = vec![model::Supply::Endpoints];
    let document = json!({"clusters": [cluster("a", 1)], "endpoints": [cluster("web", 2)]});
    assert_eq!(fixture.full(&document), ["clusters/a"]);
    assert_eq!(fixture.updates(), ["web 2"]);
}

#[test]
fn each_file_of_a_directory_is_accepted_or_refused_alone() {
    let mut fixture = Fixture::new(&json!([]));
    let list = |fixture: &mut Fixture, files: &[(&str, Option<Value>)]| {
        let state = |text: &Option<Value>| match text {
            Some(text) => FileState::Text(text.to_string(), Format::Json),
            None => FileState::Gone,
        };
        let files = files.iter().map(|(name, text)| (PathBuf::from(name), state(text))).collect();
        fixture.keeper.listed(Listing { source: "plane".into(), files, arrived: tokio::time::Instant::now() });
    };
    let document = |names: &[&str]| json!({"clusters": names.iter().map(|n| cluster(n, 1)).collect::<Vec<_>>()});
    list(&mut fixture, &[("a.json", Some(document(&["a"]))), ("b.json", Some(document(&["b", "c"])))]);
    assert_eq!(fixture.updates(), ["a 1", "b 1", "c 1"]);
    list(&mut fixture, &[("a.json", Some(json!({"listeners": []}))), ("b.json", Some(document(&["b"])))]);
    assert_eq!(fixture.updates(), ["c gone in 7s"], "a broken file keeps its last state");
    list(&mut fixture, &[("a.json", None)]);
    assert_eq!(fixture.updates(), ["a gone in 7s"]);
    list(&mut fixture, &[("c.json", Some(document(&["b"])))]);
    assert_eq!(fixture.state("cluster", "b")["candidates"][0]["state"], "refused", "two files have it");
    fixture.without_source();
    assert_eq!(fixture.updates(), ["b gone in 7s"]);
}
