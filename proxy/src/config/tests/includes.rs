use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use serde_json::{Value, json};

use crate::config::{ConfigSource, Dependencies, Diagnostics, Loaded, Loader};

const MAIN: &str = "include: [clusters.d/*.yaml, extra.json]\n\
                    listeners:\n- {name: a, address: '127.0.0.1:1', chain: [f], cluster: c}\n";

struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new(files: &[(&str, &str)]) -> World {
        let world = World { dir: tempfile::tempdir().unwrap() };
        files.iter().for_each(|(name, text)| world.write(name, text));
        world
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn reload(&self, previous: Option<&Loaded>) -> (Dependencies, Result<Loaded, Diagnostics>) {
        let env = |name: &str| (name == "SECRET").then(|| "sekrit".to_owned());
        let previous = previous.map(|loaded| &*loaded.source);
        Loader::default().env(env).reload(&self.dir.path().join("main.yaml"), previous)
    }

    fn load(&self) -> Loaded {
        self.reload(None).1.unwrap_or_else(|wrong| panic!("{wrong}"))
    }

    fn wrong(&self) -> Diagnostics {
        self.reload(None).1.unwrap_err()
    }

    /// Returns a text without the directory.
    fn local(&self, text: impl ToString) -> String {
        text.to_string().replace(&format!("{}/", self.dir.path().display()), "")
    }

    /// Returns the names of the files, without the directory.
    fn names(&self, source: &ConfigSource) -> String {
        source.files().iter().map(|file| self.local(file.name())).collect::<Vec<_>>().join(" ")
    }
}

fn world() -> World {
    World::new(&[
        ("main.yaml", MAIN),
        ("extra.json", r#"{"filters": [{"name": "f", "wasm": "builtin:router"}]}"#),
        ("clusters.d/2.yaml", "clusters:\n- name: c\n  endpoints: [127.0.0.1:2]\n"),
        ("clusters.d/1.yaml", "clusters: [{name: b, endpoints: ['127.0.0.1:3']}]\n"),
    ])
}

#[test]
fn included_files_and_the_main_file_are_one_configuration() {
    let world = world();
    let (dependencies, loaded) = world.reload(None);
    let loaded = loaded.unwrap();
    let clusters: Vec<_> = loaded.config.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
    assert_eq!(clusters, ["b", "c"]);
    assert_eq!(loaded.config.filters[0].name, "f");
    assert_eq!(world.names(&loaded.source), "main.yaml clusters.d/1.yaml clusters.d/2.yaml extra.json");
    let files: Vec<_> = dependencies.files.iter().map(|path| world.local(path.display())).collect();
    assert_eq!(files, ["main.yaml", "clusters.d/1.yaml", "clusters.d/2.yaml", "extra.json"]);
    assert_eq!(dependencies.folders.len(), 1);
    assert_eq!(dependencies.folders[0].path, world.dir.path().join("clusters.d"));
    // Later errors are located in the file.
    let error = loaded.source.diagnostic("/clusters/1/endpoints/0", "w", None);
    let shown = Diagnostics::new(&*loaded.source, vec![error]);
    assert_eq!(world.local(shown), "clusters.d/2.yaml:3:15: error: w");
    let of_all = loaded.hash();
    // The hash does not depend on the file that contains a resource, apart from `include` itself.
    fs::remove_file(world.dir.path().join("clusters.d/1.yaml")).unwrap();
    world.write(
        "clusters.d/2.yaml",
        "clusters: [{name: b, endpoints: ['127.0.0.1:3']}, {name: c, endpoints: ['127.0.0.1:2']}]",
    );
    assert_eq!(world.load().hash(), of_all);
}

#[test]
fn the_errors_of_all_files_are_reported_together() {
    let world = world();
    world.write("main.yaml", &MAIN.replace("cluster: c", "cluster: d, clutser: c"));
    world.write(
        "clusters.d/1.yaml",
        "clusters: [{name: b, endpoints: ['127.0.0.1']}]\nworkers: 2\ninclude: x\nclutsers: []\n",
    );
    world.write("clusters.d/2.yaml", "");
    world.write("clusters.d/3.yaml", "clusters: [\n");
    let wrong = world.wrong();
    let places = world.local(&wrong);
    let places: Vec<_> = places.lines().map(|line| line.split(" (").next().unwrap()).collect();
    assert_eq!(
        places,
        [
            "main.yaml:3:61: error: unknown field `clutser`",
            "clusters.d/1.yaml:1:34: error: `127.0.0.1` is not a socket address",
            "clusters.d/1.yaml:2:1: error: `workers` belongs in the main file",
            "clusters.d/1.yaml:3:1: error: `include` belongs in the main file",
            "clusters.d/1.yaml:4:1: error: unknown field `clutsers`",
            "clusters.d/2.yaml: error: the file is empty",
            "clusters.d/3.yaml:2:1: error: this is not YAML: while parsing a node, did not find expected node content",
        ]
    );
    assert_eq!(wrong.to_json()[1]["file"], world.dir.path().join("clusters.d/1.yaml").display().to_string());
    // `d` may be in one of the files that cannot be parsed. If all can be, it is unknown.
    fs::remove_file(world.dir.path().join("clusters.d/2.yaml")).unwrap();
    fs::remove_file(world.dir.path().join("clusters.d/3.yaml")).unwrap();
    assert!(world.local(world.wrong()).starts_with("main.yaml:3:58: error: there is no cluster named `d`"));
}

#[test]
fn a_clash_of_names_names_both_places() {
    let world = world();
    world.write("clusters.d/1.yaml", "\nclusters: [{name: c, endpoints: ['127.0.0.1:3']}]\n");
    world.write("clusters.d/4.yaml", "listeners: [{name: l, address: '127.0.0.1:1', cluster: c}]\n");
    let wrong = world.wrong();
    assert_eq!(
        world.local(&wrong),
        "clusters.d/2.yaml:2:9: error: there are two clusters named `c` (the first one: clusters.d/1.yaml:2:19)\n\
         clusters.d/4.yaml:1:32: error: `127.0.0.1:1` is already the address of another listener (here: main.yaml:3:22)"
    );
    let note = &wrong.to_json()[0]["notes"][0];
    assert_eq!((&note["line"], &note["column"], &note["message"]), (&json!(2), &json!(19), &json!("the first one")));
    assert!(note["file"].as_str().unwrap().ends_with("/clusters.d/1.yaml"));
    assert_eq!(
        world.local(wrong.render(false)).split("\n\n").next().unwrap(),
        "error: there are two clusters named `c`\n \
         --> clusters.d/2.yaml:2:9\n  |\n2 | - name: c\n  |         ^\n  |\n \
         ::: clusters.d/1.yaml:2:19\n  |\n2 | clusters: [{name: c, endpoints: ['127.0.0.1:3']}]\n  |                   - the first one"
    );
}

#[test]
fn patterns_that_name_nothing() {
    let world = world();
    world.write("main.yaml", &MAIN.replace("extra.json", "nothing/*.yaml, extra.json"));
    world.load();
    world.write("main.yaml", &MAIN.replace("extra.json", "none.yaml, '[', 'a/**/b', main.yaml"));
    let (dependencies, wrong) = world.reload(None);
    assert_eq!(
        world.local(wrong.unwrap_err()),
        "main.yaml:1:30: error: there is no file `none.yaml`\n\
         main.yaml:1:41: error: `[` is not a pattern: invalid range pattern\n\
         main.yaml:1:46: error: `**` is not supported (name each level of directories, such as `*/*.yaml`)\n\
         main.yaml:1:56: error: a file cannot include itself\n\
         main.yaml:3:45: error: there is no filter named `f` (there are no filters in these files)"
    );
    assert!(dependencies.files.contains(&world.dir.path().join("none.yaml")), "its appearance is noticed");
    world.write("clusters.d/notes.txt", "");
    world.write("main.yaml", &MAIN.replace("*.yaml", "*"));
    assert_eq!(
        world.local(world.wrong()),
        "clusters.d/notes.txt: error: unknown file format (use the extension .yaml, .yml, .json or .toml)"
    );
}

#[test]
fn a_file_is_included_once_and_the_main_file_is_not() {
    let world = world();
    world.write(
        "main.yaml",
        &MAIN.replace("clusters.d/*.yaml", "'*.yaml', clusters.d/2.yaml, './clusters.d/*.yaml', '*.json'"),
    );
    world.write("b.yaml", "clusters: [{name: d, endpoints: ['127.0.0.1:4']}]");
    let source = world.load().source;
    assert_eq!(world.names(&source), "main.yaml b.yaml clusters.d/2.yaml clusters.d/1.yaml extra.json");
}

#[test]
fn paths_are_relative_to_the_file_that_contains_them() {
    let world = world();
    world.write("clusters.d/f.wasm", "");
    world.write(
        "clusters.d/1.yaml",
        "filters: [{name: g, wasm: f.wasm}]\n\
         listeners:\n- name: l\n  address: unix:l.sock\n  chain: [g]\n  access_log: l.log\n  \
         tls: {certificates: [{certificate: ../x.pem, key: x.key}], client_ca: [/ca.pem], client_certificates: require}\n\
         clusters: [{name: b, endpoints: ['unix:b.sock'], tls: {ca: [ca.pem], crl: ['${SECRET}.crl'], sni: x}}]\n",
    );
    let (dependencies, loaded) = world.reload(None);
    let Loaded { config, source, .. } = &loaded.unwrap();
    let here = |path: &str| world.dir.path().join(path);
    let [listener] = &config.listeners[1..] else { panic!() };
    assert_eq!(listener.address.to_string(), format!("unix:{}", here("clusters.d/l.sock").display()));
    assert_eq!(
        config.clusters[0].endpoints[0].address.to_string(),
        format!("unix:{}", here("clusters.d/b.sock").display())
    );
    let tls = listener.tls.as_ref().unwrap();
    let paths = [
        source.resolve(&config.filters[0].wasm),
        source.resolve(&listener.access_log.as_ref().unwrap().to),
        source.resolve(&tls.certificates[0].certificate),
        source.resolve(&tls.client_ca[0]),
        source.resolve(&config.clusters[0].tls.as_ref().unwrap().ca[0]),
    ];
    let expected = ["f.wasm", "l.log", "../x.pem", "/ca.pem", "ca.pem"].map(|path| here("clusters.d").join(path));
    assert_eq!(paths, expected);
    for path in ["f.wasm", "../x.pem", "x.key", "/ca.pem", "ca.pem", "sekrit.crl"] {
        assert!(dependencies.files.contains(&here("clusters.d").join(path)), "{path}");
    }
    // The same text means other files elsewhere.
    let before = source.files()[1].clusters[0].sha256;
    fs::rename(here("clusters.d"), here("other")).unwrap();
    world.write("main.yaml", &MAIN.replace("clusters.d", "other"));
    assert_ne!(world.load().source.files()[1].clusters[0].sha256, before);
}

#[test]
fn variables_of_included_files_are_masked() {
    let world = world();
    world.write(
        "clusters.d/2.yaml",
        "clusters:\n- {name: x, endpoints: ['127.0.0.1:2']}\n- {name: c, tls: {sni: '${SECRET}.test'}}\n",
    );
    let loaded = world.load();
    let shown: Value = loaded.shown();
    assert_eq!(shown["clusters"][2]["tls"]["sni"], "${SECRET}.test");
    assert!(!shown.to_string().contains("sekrit"));
    assert_eq!(shown["include"], json!(["clusters.d/*.yaml", "extra.json"]));
    // A message about another file may contain the value, too.
    let error = loaded.source.diagnostic("/listeners/0", "not `sekrit.test`", None);
    let shown = Diagnostics::new(&*loaded.source, vec![error]);
    assert_eq!(world.local(shown), "main.yaml:3:3: error: not `${SECRET}.test`");
}

#[test]
fn only_changed_files_are_parsed_again() {
    let world = world();
    let first = world.load();
    let kept = |second: &Loaded| {
        let is_kept = |file| first.source.files().iter().any(|old| Arc::ptr_eq(old, file));
        second
            .source
            .files()
            .iter()
            .map(|file| if is_kept(file) { "kept" } else { "new" })
            .collect::<Vec<_>>()
            .join(" ")
    };
    world.write("clusters.d/1.yaml", "clusters: [{name: b, endpoints: ['127.0.0.1:4']}]\n");
    let again = || world.reload(Some(&first)).1;
    assert_eq!(kept(&again().unwrap()), "kept new kept kept");
    // It is checked against the files that are kept.
    world.write("clusters.d/1.yaml", "clusters: [{name: c, endpoints: ['127.0.0.1:4']}]\n");
    assert!(
        world.local(again().unwrap_err()).starts_with("clusters.d/2.yaml:2:9: error: there are two clusters named `c`")
    );
    world.write("clusters.d/0.yaml", "clusters: [{name: a, endpoints: ['127.0.0.1:4']}]\n");
    fs::remove_file(world.dir.path().join("clusters.d/1.yaml")).unwrap();
    assert_eq!(kept(&again().unwrap()), "kept new kept kept");
    fs::remove_file(world.dir.path().join("clusters.d/2.yaml")).unwrap();
    assert!(world.local(again().unwrap_err()).starts_with("main.yaml:3:58: error: there is no cluster named `c`"));
}

#[test]
fn an_unreadable_directory_is_reported_at_the_pattern() {
    let world = world();
    let dir = world.dir.path().join("clusters.d");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o000)).unwrap();
    // The superuser can read it nevertheless.
    if fs::read_dir(&dir).is_err() {
        assert!(
            world.local(world.wrong()).starts_with("main.yaml:1:11: error: cannot read the directory `clusters.d`: ")
        );
    }
    fs::set_permissions(Path::new(&dir), fs::Permissions::from_mode(0o700)).unwrap();
}
