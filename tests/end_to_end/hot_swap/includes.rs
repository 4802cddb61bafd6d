//! Included files change, appear and disappear while requests are in flight. The main file and the included ones are
//! accepted or rejected together.

use std::{fs, path::Path};

use serde_json::Value;

use super::{Load, no_failures, telling, version};
use crate::{
    guest,
    harness::{Config, Proxy, Upstream, wait_until},
};

/// A listener with the cluster `web`, and everything else in included files.
fn including() -> Config {
    Config::new().top("include: [parts/*.yaml, one.yaml]").listener("cluster: web")
}

/// Replaces a file in a directory atomically.
fn put(dir: &Path, name: &str, content: impl AsRef<[u8]>) {
    let path = dir.join(name);
    let temporary = path.with_extension("new");
    fs::create_dir_all(path.parent().unwrap()).expect("a folder");
    fs::write(&temporary, content).expect("a file can be written");
    fs::rename(temporary, path).expect("a file can be renamed");
}

fn cluster(name: &str, endpoint: &Upstream) -> String {
    format!("clusters:\n- name: {name}\n  endpoints: ['{endpoint}']\n")
}

/// Starts a proxy whose cluster `web` is defined in `parts/web.yaml`.
fn started(upstream: &Upstream) -> Proxy {
    let mut proxy = Proxy::start(Config::to(upstream));
    put(proxy.dir(), "one.yaml", cluster("one", upstream));
    put(proxy.dir(), "parts/web.yaml", cluster("web", upstream));
    proxy.change_config(including());
    proxy
}

/// The names of the clusters, in the order of the configuration.
fn clusters(proxy: &Proxy) -> Vec<String> {
    let config = proxy.config();
    let all = config["config"]["clusters"].as_array().expect("a list of clusters");
    all.iter().filter_map(|cluster| cluster["name"].as_str().map(str::to_owned)).collect()
}

#[test]
fn included_files_change_appear_and_disappear_under_load() {
    let (old, new) = (Upstream::saying("old"), Upstream::saying("new"));
    let proxy = started(&old);
    let dir = proxy.dir().to_owned();
    let load = Load::start(&proxy, |response| response.text().to_owned());
    load.meet("old");

    put(&dir, "parts/web.yaml", cluster("web", &new));
    load.meet("new");
    // A file that is renamed into place, and one that is written in place.
    put(&dir, "parts/a.yaml", cluster("a", &old));
    wait_until("the new file to be noticed", || clusters(&proxy) == ["a", "web", "one"]);
    fs::write(dir.join("parts/b.yaml"), cluster("b", &old)).expect("a file");
    wait_until("the second new file to be noticed", || clusters(&proxy) == ["a", "b", "web", "one"]);
    fs::remove_file(dir.join("parts/a.yaml")).expect("a file");
    wait_until("the removal to be noticed", || clusters(&proxy) == ["b", "web", "one"]);
    // `web` moves to another file, and back to its first endpoint.
    fs::remove_file(dir.join("parts/web.yaml")).expect("a file");
    proxy.wait_for_output("there is no cluster named `web`");
    load.meet("new");
    put(&dir, "parts/moved.yaml", cluster("web", &old));
    load.meet("old");
    // The whole directory disappears, and comes back.
    fs::remove_dir_all(dir.join("parts")).expect("a folder");
    proxy.wait_for_metric("tollgate_config_reloads_total", &[("result", "refused")], 2.0);
    load.meet("old");
    put(&dir, "parts/again.yaml", cluster("web", &new));
    load.meet("new");
    wait_until("the new file to be reported", || clusters(&proxy) == ["web", "one"]);
    assert_eq!(load.end(), ["new", "old"]);
    no_failures(&proxy);
}

#[test]
fn a_missing_included_file_is_noticed_when_it_appears() {
    let upstream = Upstream::saying("web");
    let proxy = started(&upstream);
    fs::remove_file(proxy.dir().join("one.yaml")).expect("a file");
    proxy.wait_for_output("there is no file `one.yaml`");
    assert_eq!(proxy.get("/").text(), "web");
    put(proxy.dir(), "one.yaml", cluster("other", &upstream));
    wait_until("the file to be noticed", || clusters(&proxy) == ["web", "other"]);
    no_failures(&proxy);
}

#[test]
fn errors_in_two_files_are_reported_together_and_change_nothing() {
    let upstream = Upstream::saying("web");
    let proxy = started(&upstream);
    put(proxy.dir(), "parts/web.yaml", cluster("web", &upstream).replace("endpoints", "endpionts"));
    put(proxy.dir(), "one.yaml", "workers: 2\nclusters:\n- {name: web}\n");
    let (status, told) = proxy.reload();
    assert_eq!(status, 422, "{told:#}");
    let told: Vec<_> = told["errors"].as_array().expect("errors").iter().collect();
    let places: Vec<_> = told.iter().map(|one| format!("{}:{}", one["file"], one["line"]).replace('"', "")).collect();
    assert_eq!(places, ["parts/web.yaml:3", "one.yaml:1", "one.yaml:3"], "{told:#?}");
    assert_eq!(told[1]["message"], "`workers` belongs in the main file");
    // A clash names both places.
    assert_eq!(told[2]["message"], "there are two clusters named `web`");
    let note = &told[2]["notes"][0];
    assert_eq!((&note["file"], &note["line"]), (&"parts/web.yaml".into(), &2.into()));
    assert_eq!(proxy.get("/").text(), "web");
    // One of the two mended files is not enough.
    put(proxy.dir(), "parts/web.yaml", cluster("web", &upstream));
    assert_eq!(proxy.reload().0, 422);
    put(proxy.dir(), "one.yaml", cluster("last", &upstream));
    wait_until("the mended files to be applied", || clusters(&proxy) == ["web", "last"]);
    no_failures(&proxy);
}

#[test]
fn a_module_next_to_an_included_file_is_loaded_and_watched() {
    let upstream = telling();
    let mut proxy = started(&upstream);
    put(proxy.dir(), "parts/marker.wasm", guest::version("v1"));
    put(proxy.dir(), "parts/marker.yaml", "filters: [{name: marker, wasm: marker.wasm}]\n");
    proxy.change_config(String::from(including()).replace("chain: []", "chain: [marker]"));
    let load = Load::start(&proxy, version);
    load.meet("v1");
    put(proxy.dir(), "parts/marker.wasm", guest::version("v2"));
    load.meet("v2");
    assert_eq!(load.end(), ["v1", "v2"]);
    no_failures(&proxy);
}

#[test]
fn variables_in_included_files_are_shown_by_name() {
    const SECRET: &str = env!("CARGO_MANIFEST_DIR");
    let upstream = Upstream::saying("web");
    let proxy = started(&upstream);
    let filter = "filters: [{name: f, wasm: builtin:router, config: {routes: [{cluster: x}]}, vm_config: 'in ${CARGO_MANIFEST_DIR}'}]\n";
    put(proxy.dir(), "parts/x.yaml", format!("{}{filter}", cluster("x", &upstream)));
    wait_until("the file to be noticed", || clusters(&proxy) == ["web", "x", "one"]);
    let shown: Value = proxy.config();
    assert_eq!(shown["config"]["filters"][0]["vm_config"], "in ${CARGO_MANIFEST_DIR}");
    assert_eq!(shown["config"]["include"], serde_json::json!(["parts/*.yaml", "one.yaml"]));
    assert!(!shown.to_string().contains(SECRET), "{shown:#}");
}
