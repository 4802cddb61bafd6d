//! Documents in, updates of workers out.

use std::path::Path;

use serde_json::json;

use super::*;
use crate::{
    config::Format,
    control::{
        load::loader,
        source::{directory::FileState, http::Verdict},
    },
    worker::mailbox::NextState,
};

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
        let build = BuildLane::new(Arc::default());
        let out = Outputs { documents, listings, discovery: Discovery::none() };
        let keeper = Keeper::new(lane, build, Registry::new(1), out);
        let mut fixture = Fixture { keeper, clusters, mailbox, version: 0 };
        fixture.files(files);
        fixture
    }

    /// Applies other files, as the builder does.
    fn files(&mut self, clusters: &Value) {
        // Neither of the two: it has no task.
        let supplies = ["listeners", "filters", "clusters", "endpoints"];
        let source = json!({"name": "plane", "http": {"url": "http://127.0.0.1:1/"}, "supplies": supplies});
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
            let node = self.clusters.node(None);
            let built = crate::upstream::Cluster::with_tls(cluster, handle.current().as_ref(), None, 1, node);
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
            format: Format::Json,
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
        let Keeper { store, sources, build, out, .. } = &self.keeper;
        let all = shown::all(store, sources, build, &out.discovery.table, self.keeper.now());
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
}

#[tokio::test]
async fn certificates_of_a_cluster_are_read_elsewhere_and_hold_up_nothing() {
    let mut fixture = Fixture::new(&json!([]));
    let wrong = json!({"name": "c", "tls": {"ca": "none.pem"}, "endpoints": ["10.0.0.1:80"]});
    let right = json!({"name": "d", "tls": {"insecure": true}, "endpoints": ["10.0.0.1:80"]});
    assert_eq!(fixture.full(&json!({"clusters": [wrong, right, cluster("a", 1)]})), [""; 0]);
    assert_eq!(fixture.updates(), ["a 1"]);
    while let Some(loaded) = fixture.keeper.certificates.join_next().await {
        fixture.keeper.loaded(loaded.unwrap());
    }
    assert_eq!(fixture.updates(), ["d 1"]);
    assert_eq!(fixture.delta(&json!({})), ["clusters/c"]);
    // A newer offer replaces one whose certificates are being read.
    fixture.delta(&json!({"clusters": [{"name": "d", "tls": {"insecure": true}}]}));
    fixture.delta(&json!({"clusters": [cluster("d", 3)]}));
    let loaded = fixture.keeper.certificates.join_next().await.unwrap().unwrap();
    fixture.keeper.loaded(loaded);
    assert_eq!(fixture.updates(), ["d 3"]);
}

#[test]
fn unusable_document_changes_nothing() {
    let mut fixture = Fixture::new(&json!([]));
    fixture.full(&json!({"clusters": [cluster("a", 1)]}));
    fixture.updates();
    for (document, is_delta) in [
        (json!({"admin": []}), false),
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
    list(&mut fixture, &[("a.json", Some(json!({"admin": []}))), ("b.json", Some(document(&["b"])))]);
    assert_eq!(fixture.updates(), ["c gone in 7s"], "a broken file keeps its last state");
    list(&mut fixture, &[("a.json", None)]);
    assert_eq!(fixture.updates(), ["a gone in 7s"]);
    list(&mut fixture, &[("c.json", Some(document(&["b"])))]);
    assert_eq!(fixture.state("cluster", "b")["candidates"][0]["state"], "refused", "two files have it");
    fixture.without_source();
    assert_eq!(fixture.updates(), ["b gone in 7s"]);
}

impl Fixture {
    /// What is to be built: names, with a `?` for candidates.
    fn plan(&mut self, occasion: Occasion) -> Option<(Vec<Part>, Vec<String>)> {
        let parts = self.keeper.build.plan(&self.keeper.store, self.keeper.files, &occasion)?;
        let shown = |part: &Part| format!("{}{}", part.key.name, if part.is_candidate() { "?" } else { "" });
        let mut names: Vec<_> = parts.iter().map(shown).collect();
        names.sort();
        Some((parts, names))
    }

    fn of_sources(&mut self) -> Option<(Vec<Part>, Vec<String>)> {
        self.plan(Occasion::Sources(FxHashSet::default()))
    }

    fn commit(&mut self, parts: Vec<Part>, refused: Vec<RefusedPart>) -> Vec<String> {
        let (superseded, mut answer) = oneshot::channel();
        self.keeper.handle(Request::Commit(Commit { parts, refused, must_be_current: true, superseded }));
        answer.try_recv().unwrap().iter().map(|key| key.name.to_string()).collect()
    }

    /// Builds everything.
    fn build(&mut self) -> Vec<String> {
        let (parts, names) = self.of_sources().unwrap();
        assert_eq!(self.commit(parts, Vec::new()), [""; 0]);
        names
    }
}

fn listener(port: u16, chain: &[&str]) -> Value {
    json!({"name": "web", "address": format!("127.0.0.1:{port}"), "chain": chain})
}

fn filter(config: u32) -> Value {
    json!({"name": "f", "wasm": "builtin:router", "config": config})
}

#[test]
fn listener_is_built_together_with_the_filter_that_it_waits_for() {
    let mut fixture = Fixture::new(&json!([]));
    fixture.full(&json!({"listeners": [listener(1, &["f"])], "filters": [filter(1)]}));
    assert_eq!(fixture.state("listener", "web")["state"], "warming");
    assert_eq!(fixture.build(), ["f?", "web?"]);
    assert_eq!(fixture.state("listener", "web")["state"], "accepted", "it needs no second build");
    assert!(fixture.of_sources().is_none());
    fixture.delta(&json!({"listeners": [listener(2, &["f"])]}));
    assert_eq!(fixture.build(), ["f", "web?"]);
    fixture.delta(&json!({"removed": {"listeners": ["web"]}}));
    assert_eq!(fixture.build(), ["f"]);
    fixture.without_source();
    assert_eq!(fixture.build(), [""; 0]);
    assert!(fixture.of_sources().is_none());
}

#[test]
fn build_of_an_older_candidate_does_not_take_effect() {
    let mut fixture = Fixture::new(&json!([]));
    fixture.full(&json!({"listeners": [listener(1, &[])], "filters": [filter(1)]}));
    let (parts, _) = fixture.of_sources().unwrap();
    fixture.delta(&json!({"filters": [filter(2)]}));
    assert_eq!(fixture.commit(parts, Vec::new()), ["f"]);
    assert_eq!(fixture.state("listener", "web")["accepted"], Value::Null);
    let without = FxHashSet::from_iter([Key::new(Kind::Filter, "f")]);
    let (parts, names) = fixture.plan(Occasion::Sources(without)).unwrap();
    assert_eq!((names, fixture.commit(parts, Vec::new())), (vec!["web?".to_owned()], vec![]));
    assert_eq!(fixture.build(), ["f?", "web"]);
}

#[test]
fn build_refuses_no_candidate_that_has_come_meanwhile() {
    let mut fixture = Fixture::new(&json!([]));
    fixture.full(&json!({"filters": [filter(1)]}));
    let (mut parts, _) = fixture.of_sources().unwrap();
    fixture.delta(&json!({"filters": [filter(2)]}));
    let wrong = vec![FieldError { field: String::new(), message: "wrong".to_owned() }];
    fixture.commit(Vec::new(), vec![(parts.remove(0), wrong)]);
    assert_eq!(fixture.state("filter", "f")["state"], "building");
    assert_eq!(fixture.build(), ["f?"]);
    assert_eq!(fixture.state("filter", "f")["state"], "accepted");
}

#[test]
fn refused_candidate_leaves_the_accepted_resource_in_effect() {
    let mut fixture = Fixture::new(&json!([]));
    fixture.full(&json!({"filters": [filter(1)]}));
    fixture.build();
    fixture.delta(&json!({"filters": [filter(2)]}));
    let (mut parts, _) = fixture.of_sources().unwrap();
    let bad = parts.remove(0);
    let crate::control::supplied::PartState::Candidate(Some(accepted)) = &bad.state else { panic!("{bad:?}") };
    let wrong = vec![FieldError { field: String::new(), message: "wrong".to_owned() }];
    fixture.commit(vec![(**accepted).clone()], vec![(bad, wrong)]);
    let shown = fixture.state("filter", "f");
    assert_eq!((&shown["state"], &shown["candidates"][0]["error"]), (&json!("refused"), &json!("wrong")));
    assert!(fixture.of_sources().is_none());
    let late = |fixture: &Fixture| fixture.keeper.sources["plane"].status.take_refused();
    assert_eq!(late(&fixture), Some(vec!["filters/f".to_owned()]), "the next request names it");
    assert_eq!(fixture.delta(&json!({})), ["filters/f"]);
    fixture.keeper.decided_later();
    assert_eq!(fixture.delta(&json!({"removed": {"filters": ["f"]}})), [""; 0]);
    assert_eq!(late(&fixture), None, "the verdict is newer");
}

#[test]
fn accepted_resource_that_the_files_make_impossible_is_shown_as_refused_until_it_is_built_again() {
    let mut fixture = Fixture::new(&json!([]));
    fixture.full(&json!({"filters": [filter(1)]}));
    fixture.build();
    let (parts, names) = fixture.plan(Occasion::Files).unwrap();
    assert_eq!(names, ["f"]);
    let wrong = vec![FieldError { field: String::new(), message: "taken".to_owned() }];
    fixture.commit(Vec::new(), parts.into_iter().map(|part| (part, wrong.clone())).collect());
    let shown = fixture.state("filter", "f");
    assert_eq!((&shown["state"], &shown["accepted"]), (&json!("refused"), &Value::Null));
    assert!(fixture.of_sources().is_none(), "it is not tried again without a reason");
    assert_eq!(fixture.delta(&json!({})), ["filters/f"]);
    let (parts, _) = fixture.plan(Occasion::Files).unwrap();
    fixture.commit(parts, Vec::new());
    assert_eq!(fixture.state("filter", "f")["state"], "accepted");
    assert_eq!(fixture.delta(&json!({})), [""; 0]);
}

#[test]
fn listener_may_use_filters_of_its_own_source_and_of_the_files_only() {
    let mut fixture = Fixture::new(&json!([]));
    let other = fixture.keeper.store.add_source("other", SourceOptions { rank: 1, ..SourceOptions::default() });
    let text = json!({"filters": [filter(1)]}).to_string();
    let fragment = loader().fragment("other", Path::new("/"), text, Format::Json).unwrap();
    let (source, supplies) = ((other, &"other".into()), [model::Supply::Filters]);
    let batch = documents::of_document(fragment, source, fixture.keeper.discovery, &"1".into(), &supplies, false);
    fixture.keeper.store.offer(batch, Duration::ZERO).unwrap();
    fixture.keeper.settle();
    assert_eq!(fixture.build(), ["f?"]);
    fixture.full(&json!({"listeners": [listener(1, &["f"])]}));
    let why = fixture.state("listener", "web")["candidates"][0]["error"].clone();
    assert_eq!(why, "chain: filter `f` belongs to another source, `other`");
    fixture.full(&json!({"listeners": [listener(1, &["none"])]}));
    assert_eq!(fixture.state("listener", "web")["state"], "warming");
    fixture.keeper.store.tick(Duration::from_secs(60));
    fixture.keeper.settle();
    let why = fixture.state("listener", "web")["candidates"][0]["error"].clone();
    assert_eq!(why, "chain: there is no filter named `none`");
}

#[test]
fn error_about_a_chain_names_the_variable_and_not_what_it_holds() {
    let mut fixture = Fixture::new(&json!([]));
    let text = json!({"listeners": [listener(1, &["${TOKEN}"])]}).to_string();
    let loader = crate::config::Loader::default().env(|_| Some("hunter2-hunter2".into()));
    let fragment = loader.fragment("plane", Path::new("/"), text, Format::Json).unwrap();
    let (source, name) = (fixture.keeper.sources["plane"].id, "plane".into());
    let supplies = [model::Supply::Listeners];
    let batch =
        documents::of_document(fragment, (source, &name), fixture.keeper.discovery, &"1".into(), &supplies, false);
    fixture.keeper.store.offer(batch, Duration::ZERO).unwrap();
    fixture.keeper.store.tick(Duration::from_secs(60));
    fixture.keeper.settle();
    let why = fixture.state("listener", "web")["candidates"][0]["error"].clone();
    assert_eq!(why, "chain: there is no filter named `${TOKEN}`");
}

#[test]
fn cluster_takes_the_endpoints_of_the_source_that_it_names() {
    let mut fixture = Fixture::new(&json!([discovered("web")]));
    fixture.updates();
    let other = fixture.keeper.store.add_source("other", SourceOptions { rank: 1, ..SourceOptions::default() });
    let text = json!({"endpoints": [cluster("web", 3)]}).to_string();
    let fragment = loader().fragment("other", Path::new("/"), text, Format::Json).unwrap();
    let supplies = [model::Supply::Endpoints];
    let batch = documents::of_document(
        fragment,
        (other, &"other".into()),
        fixture.keeper.discovery,
        &"1".into(),
        &supplies,
        false,
    );
    fixture.keeper.store.offer(batch, Duration::ZERO).unwrap();
    fixture.keeper.settle();
    assert_eq!(fixture.updates(), [""; 0]);
    assert_eq!(fixture.full(&json!({"endpoints": [cluster("web", 2)]})), [""; 0]);
    assert_eq!(fixture.updates(), ["web 2"]);
    assert_eq!(fixture.full(&json!({"endpoints": [{"name": "web", "endpoints": ["nowhere"]}]})), ["endpoints/web"]);
}

#[test]
fn what_a_source_may_not_supply_is_refused_at_once_and_comes_when_it_may() {
    let mut fixture = Fixture::new(&json!([]));
    let document = json!({"filters": [filter(1)], "listeners": [listener(1, &["f"])]});
    fixture.keeper.sources.get_mut("plane").unwrap().config.supplies = vec![model::Supply::Clusters];
    assert_eq!(fixture.full(&document), ["listeners/web", "filters/f"]);
    fixture.keeper.sources.get_mut("plane").unwrap().config.supplies =
        vec![model::Supply::Listeners, model::Supply::Filters];
    fixture.full(&document);
    fixture.build();
    assert_eq!(fixture.state("listener", "web")["state"], "accepted");
}
