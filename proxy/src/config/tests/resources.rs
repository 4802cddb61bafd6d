use std::{fs, path::PathBuf};

use serde_json::json;

use super::*;
use crate::config::{Diagnostics, Format, Loaded, Loader};

const CONFIG: &str = "listeners:\n- {name: a, address: '127.0.0.1:1', cluster: c}\n\
                      filters:\n- name: f\n  wasm: builtin:router\n  config: {rules: [1, {x: 2}]}\n\
                      clusters:\n- {name: b}\n# a comment\n- name: c\n  endpoints: [127.0.0.1:2, '${HOST:-127.0.0.1}:3']\n";

struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new(text: &str) -> World {
        let world = World { dir: tempfile::tempdir().unwrap() };
        world.write(text);
        world
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("x.yaml")
    }

    fn write(&self, text: &str) {
        fs::write(self.path(), text).unwrap();
    }

    fn load(&self, previous: Option<&Loaded>, host: Option<&str>) -> Loaded {
        let env = |name: &str| (name == "HOST").then(|| host.map(str::to_owned)).flatten();
        let loader = Loader::default().env(env);
        loader.reload(&self.path(), previous.map(|loaded| &*loaded.source)).1.unwrap_or_else(|e| panic!("{e}"))
    }

    /// Returns an error without the directory.
    fn shown(&self, source: &ConfigSource, error: Diagnostic) -> String {
        Diagnostics::new(source, vec![error]).to_string().replace(&format!("{}/", self.dir.path().display()), "")
    }
}

#[test]
fn a_resource_is_kept_with_its_hash_and_place() {
    let loaded = World::new(CONFIG).load(None, None);
    let file = &loaded.source.files()[0];
    let names: Vec<_> = file.clusters.iter().map(|c| (c.value.name.as_str(), c.line)).collect();
    assert_eq!(names, [("b", 8), ("c", 10)]);
    assert_eq!((file.listeners[0].line, file.filters[0].line), (2, 4));
    assert!(CONFIG[file.clusters[1].span.start..].starts_with("name: c"));
    assert_eq!(file.clusters[0].sha256, sha256(br#"{"name":"b"}"#));
    assert!(std::ptr::eq(&*file.clusters[1].value, &*loaded.config.clusters[1]), "the values are shared");
    assert_eq!(file.sha256, sha256(CONFIG.as_bytes()));
}

#[test]
fn only_values_change_the_hash_of_a_resource() {
    let world = World::new(CONFIG);
    let first = world.load(None, None);
    let hash = |loaded: &Loaded, index: usize| loaded.source.files()[0].clusters[index].sha256;
    world.write(&CONFIG.replace("{name: b}", "{name:   b} # first").replace("${HOST:-127.0.0.1}:3", "127.0.0.1:3"));
    let second = world.load(Some(&first), None);
    assert_eq!((hash(&first, 0), hash(&first, 1)), (hash(&second, 0), hash(&second, 1)));
    assert_eq!(first.hash(), second.hash());
    world.write(CONFIG);
    let third = world.load(Some(&first), Some("127.0.0.9"));
    assert_eq!(hash(&first, 0), hash(&third, 0));
    assert_ne!(hash(&first, 1), hash(&third, 1));
}

#[test]
fn an_unchanged_file_is_not_parsed_again() {
    let world = World::new(CONFIG);
    let first = world.load(None, None);
    let is_kept = |second: &Loaded| Arc::ptr_eq(&first.source.files()[0], &second.source.files()[0]);
    let second = world.load(Some(&first), None);
    assert!(is_kept(&second));
    assert_eq!(json!(first.config), json!(second.config));
    assert_eq!(first.warnings.to_string(), second.warnings.to_string());
    assert!(first.warnings.to_string().contains(":8:3: warning: cluster `b` has no endpoints"), "{}", first.warnings);
    assert!(!is_kept(&world.load(Some(&first), Some("127.0.0.9"))), "another variable");
    world.write(&format!("{CONFIG}# more\n"));
    assert!(!is_kept(&world.load(Some(&first), None)), "other bytes");
}

#[test]
fn a_file_whose_module_has_gone_is_checked_again() {
    let world = World::new("");
    let module = world.dir.path().join("f.wasm");
    fs::write(&module, "").unwrap();
    world.write(&CONFIG.replace("builtin:router", "f.wasm"));
    let first = world.load(None, None);
    fs::remove_file(&module).unwrap();
    let (files, second) = Loader::default().reload(&world.path(), Some(&first.source));
    assert!(second.unwrap_err().to_string().contains(":5:9: error: there is no file"));
    assert_eq!(files.files, [world.path(), module]);
}

/// The text is dropped after the load.
#[test]
fn later_errors_are_located_by_reading_the_file_again() {
    let world = World::new(CONFIG);
    let source = world.load(None, Some("127.0.0.9")).source;
    assert!(source.files()[0].open.lock().unwrap().is_none());
    let config = || source.diagnostic_in("/filters/0/config", "rules[1].x", "wrong", None);
    let host = || source.diagnostic("/clusters/1/endpoints/1/address", "`127.0.0.9` is wrong", None);
    assert_eq!(world.shown(&source, config()), "x.yaml:6:27: error: wrong");
    assert_eq!(world.shown(&source, host()), "x.yaml:11:28: error: `${HOST}` is wrong");
    assert!(source.files()[0].open.lock().unwrap().is_none());
    // In another file, the same place may mean something else.
    world.write(&format!("\n{CONFIG}"));
    assert_eq!(world.shown(&source, config()), "x.yaml: error: filter `f`: `config.rules[1].x`: wrong");
    assert_eq!(world.shown(&source, host()), "x.yaml: error: cluster `c`: `endpoints.1.address`: `${HOST}` is wrong");
    assert_eq!(world.shown(&source, source.diagnostic("/cluster", "w", None)), "x.yaml: error: `cluster`: w");
    let said = vec![("rules[1].x".to_owned(), "wrong".to_owned())];
    let Answer::Mistakes(all) = source.all_mistakes("/filters/0/config", "f", said, |_| Ok(())) else { panic!() };
    assert_eq!(all, [config()]);
    assert!(source.locate("/filters/0", "").is_none());
    fs::remove_file(world.path()).unwrap();
    assert_eq!(world.shown(&source, config()), "x.yaml: error: filter `f`: `config.rules[1].x`: wrong");
}

/// A text cannot be read again.
#[test]
fn a_parsed_text_is_kept() {
    let source = Loader::default().parse("y.yaml", CONFIG, Format::Yaml).unwrap().source;
    let error = source.diagnostic("/clusters/1/name", "wrong", None);
    assert_eq!(Diagnostics::new(&*source, vec![error]).to_string(), "y.yaml:10:9: error: wrong");
}
