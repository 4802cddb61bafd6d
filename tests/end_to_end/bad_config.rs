//! What `tollgate check` reports for bad configuration files. Each file in `bad_config` has its expected output next to
//! it; with `UPDATE=1` the tests write that output instead of comparing it.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use crate::{guest, harness::wasm};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/end_to_end/bad_config")
}

/// The configuration files, without the expected outputs.
fn files() -> Vec<PathBuf> {
    let entries = fs::read_dir(folder()).expect("the folder of bad files");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("a file").path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension != "expected"));
    files.sort();
    files
}

/// A directory with the modules that the files reference.
fn workplace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let configuring = |code: &str| {
        guest::filter(&format!(
            "(func $check (export \"proxy_on_configure\") (param i32 i32) (result i32) {code} (i32.const 0))"
        ))
    };
    let modules = [
        ("text.wasm", b"#!/bin/sh\n".to_vec()),
        ("refusing.wasm", configuring("(drop (call $log (i32.const 4) %\"`some` must not be a list\"))")),
        ("silent.wasm", configuring("")),
        ("trapping.wasm", configuring("unreachable")),
        ("endless.wasm", configuring("(loop $forever (br $forever))")),
        (
            "lacking.wasm",
            wasm::from_text(
                r#"(module (import "env" "launch" (func)) (import "other" "land" (func))
                    (memory (export "memory") 1)
                    (func (export "proxy_abi_version_0_2_1"))
                    (func (export "malloc") (param i32) (result i32) (i32.const 0)))"#,
            ),
        ),
    ];
    modules.iter().for_each(|(name, bytes)| fs::write(dir.path().join(name), bytes).expect("a module"));
    dir
}

fn tollgate(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(arguments)
        .current_dir(dir)
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .output()
        .expect("the binary can be run")
}

/// Runs `tollgate check --json` on a file: the exit status and the diagnostics.
fn check(dir: &Path, name: &str) -> (Option<i32>, Vec<Value>) {
    let output = tollgate(dir, &["check", "--json", name]);
    let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(text(&output.stderr), "", "{name}");
    assert_eq!(said["ok"], output.status.success(), "{name}");
    (output.status.code(), said["diagnostics"].as_array().expect("a list").clone())
}

/// The same for a file with this text, in a directory with the usual modules.
fn check_text(name: &str, text: &str) -> (Option<i32>, Vec<Value>) {
    let dir = workplace();
    fs::write(dir.path().join(name), text).expect("a file");
    check(dir.path(), name)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

#[test]
fn bad_files_are_explained() {
    let dir = workplace();
    let (files, mut wrong) = (files(), Vec::new());
    for file in &files {
        let name = file.file_name().and_then(|name| name.to_str()).expect("a name");
        fs::copy(file, dir.path().join(name)).expect("a copy");
        let output = tollgate(dir.path(), &["check", name]);
        assert_eq!(output.status.code(), Some(1), "{name}: {output:?}");
        assert!(output.stdout.is_empty(), "{name}: {output:?}");
        let (said, expected) = (text(&output.stderr), PathBuf::from(format!("{}.expected", file.display())));
        if std::env::var_os("UPDATE").is_some() {
            fs::write(expected, said).expect("the folder can be written");
        } else if fs::read_to_string(expected).unwrap_or_default() != said {
            wrong.push(format!("--- {name}:\n{said}"));
        }
    }
    assert!(files.len() >= 20, "{}", files.len());
    assert!(wrong.is_empty(), "not as expected (UPDATE=1 accepts this):\n{}", wrong.join("\n"));
}

#[test]
fn json_diagnostics_match_the_text() {
    let dir = workplace();
    for file in files() {
        let name = file.file_name().and_then(|name| name.to_str()).expect("a name");
        fs::copy(&file, dir.path().join(name)).expect("a copy");
        let (status, diagnostics) = check(dir.path(), name);
        assert_eq!(status, Some(1), "{name}");
        let for_people = text(&tollgate(dir.path(), &["check", name]).stderr);
        let count = for_people.lines().filter(|line| line.starts_with("error: ")).count();
        assert_eq!(diagnostics.iter().filter(|d| d["severity"] == "error").count(), count, "{name}");
        for diagnostic in diagnostics {
            // Errors that concern the whole file have no line.
            let place = match diagnostic["line"].as_u64() {
                Some(line) => format!("{name}:{line}:{}", diagnostic["column"]),
                None => name.to_owned(),
            };
            assert!(for_people.contains(&place), "{place}\n{for_people}");
            let message = diagnostic["message"].as_str().expect("a message");
            let first = message.lines().next().unwrap_or_default();
            assert!(for_people.contains(first), "{first}\n{for_people}");
        }
    }
}

#[test]
fn a_bad_file_does_not_start() {
    let dir = workplace();
    for name in ["unknown_fields.yaml", "ratelimit.yaml", "log_level.yaml", "log_filter.yaml"] {
        let file = fs::read_to_string(folder().join(name)).expect("a file");
        // The admin listener is opened before the filters are loaded, and its default address may be in use.
        let admin = if file.contains("admin") { "" } else { "admin: false\n" };
        fs::write(dir.path().join(name), format!("{file}{admin}")).expect("a copy");
        let (check, run) = (tollgate(dir.path(), &["check", name]), tollgate(dir.path(), &["run", name]));
        assert_eq!(run.status.code(), Some(1), "{run:?}");
        assert!(text(&run.stderr).contains(text(&check.stderr).trim_end()), "{}", text(&run.stderr));
    }
}

#[test]
fn good_files_pass() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let output = tollgate(&root, &["check", "examples/quickstart.yaml"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(text(&output.stdout), "ok: examples/quickstart.yaml: 1 listener, 4 filters, 3 clusters\n");
    assert_eq!(text(&output.stderr), "");
    assert_eq!(check(&root, "examples/quickstart.yaml"), (Some(0), Vec::new()));
}

#[test]
fn a_suspicious_timeout_is_a_warning() {
    let dir = workplace();
    let config = "listeners: [{name: main, address: '127.0.0.1:8080', cluster: web}]\n\
                  clusters:\n  - {name: web, request_timeout: 1s, retry: {per_try_timeout: 2s}, endpoints: [{address: '127.0.0.1:1'}]}\n";
    fs::write(dir.path().join("odd.yaml"), config).expect("a file");
    let output = tollgate(dir.path(), &["check", "odd.yaml"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), "ok: odd.yaml: 1 listener, 0 filters, 1 cluster\n");
    assert!(text(&output.stderr).starts_with("warning: `per_try_timeout` (2s) is longer"), "{output:?}");
    assert_eq!(check(dir.path(), "odd.yaml").1[0]["severity"], "warning");
}

#[test]
fn unused_parts_are_a_warning() {
    let dir = workplace();
    let config = "\
listeners:
  - {name: nowhere, address: '127.0.0.1:8080'}
  - {name: main, address: '127.0.0.1:8081', chain: routes, cluster: direct}
  - {name: raw, address: '127.0.0.1:8082', protocol: tcp, tcp: {clusters: [{cluster: shared}], sni: [{names: [a.example], cluster: named}]}}
filters:
  - {name: guard, wasm: builtin:authz, config: {policies: [{name: nobody, action: deny, rules: [{}]}]}}
  - {name: routes, wasm: builtin:router, config: {routes: [{cluster: routed, mirror: {cluster: mirrored}}]}}
  - {name: idle, wasm: naming.wasm}
  - {name: serving, wasm: naming.wasm, vm_id: shared-by-others, config: {service: 'called:80'}}
clusters:
  - {name: direct, endpoints: [{address: '127.0.0.1:1'}]}
  - {name: shared, endpoints: [{address: '127.0.0.1:1'}]}
  - {name: named, endpoints: [{address: '127.0.0.1:1'}]}
  - {name: routed, endpoints: [{address: '127.0.0.1:1'}]}
  - {name: mirrored, endpoints: [{address: '127.0.0.1:1'}]}
  - {name: called, endpoints: [{address: '127.0.0.1:1'}]}
  - {name: in-the-module, endpoints: [{address: '127.0.0.1:1'}]}
  - {name: forgotten, endpoints: [{address: '127.0.0.1:1'}]}
";
    fs::write(dir.path().join("odd.yaml"), config).expect("a file");
    let naming = guest::filter("(data (i32.const 60000) \"in-the-module\")");
    fs::write(dir.path().join("naming.wasm"), naming).expect("a module");
    let (status, told) = check(dir.path(), "odd.yaml");
    assert_eq!(status, Some(0), "{told:?}");
    assert!(told.iter().all(|one| one["severity"] == "warning"), "{told:?}");
    let told: Vec<_> = told.iter().map(|one| (one["line"].as_u64(), one["message"].as_str())).collect();
    let expected = [
        (2, "listener `nowhere` has neither `chain` nor `cluster`: all requests get 404"),
        (6, "filter `guard` is in no chain: it handles no traffic"),
        (8, "filter `idle` is in no chain: it handles no traffic"),
        (18, "cluster `forgotten` is not used by any listener or filter"),
    ];
    assert_eq!(told, expected.map(|(line, message)| (Some(line), Some(message))));
}

#[test]
fn many_unused_clusters_end_in_one_warning() {
    let dir = workplace();
    let mut config = "listeners: [{name: l, address: '127.0.0.1:0', cluster: used}]\nclusters:\n".to_owned();
    for name in ["used".to_owned()].into_iter().chain((0..25).map(|i| format!("c{i}"))) {
        config += &format!("  - {{name: {name}, endpoints: [{{address: '127.0.0.1:1'}}]}}\n");
    }
    fs::write(dir.path().join("many.yaml"), config).expect("a file");
    let (status, told) = check(dir.path(), "many.yaml");
    assert_eq!(status, Some(0), "{told:?}");
    let told: Vec<_> = told.iter().map(|one| (one["line"].as_u64(), one["message"].as_str())).collect();
    assert_eq!(told.len(), 21);
    assert_eq!(told[19], (Some(23), Some("cluster `c19` is not used by any listener or filter")));
    assert_eq!(told[20], (Some(24), Some("5 more clusters are not used by any listener or filter")));
}

#[test]
fn selections_without_effect_are_a_warning() {
    let dir = workplace();
    let config = "\
listeners:
  - {name: good, address: '127.0.0.1:8080', chain: [routes, limits, guard]}
  - {name: bad, address: '127.0.0.1:8081', chain: [guard, routes, limits]}
  - {name: other, address: '127.0.0.1:8082', chain: [elsewhere, second], cluster: web}
filters:
  - name: routes
    wasm: builtin:router
    config:
      routes:
        - {match: {path: {exact: /a}}, cluster: web, filters: {limits: strict, routes: off}}
        - {cluster: web, filters: {guard: off, elsewhere: off}}
  - {name: limits, wasm: builtin:ratelimit, config: {limits: []}, variants: {strict: {limits: []}, lax: {limits: []}}}
  - {name: guard, wasm: builtin:authz, config: {policies: [{name: nobody, action: deny, rules: [{}]}]}}
  - {name: elsewhere, wasm: builtin:fault, config: {}}
  - name: second
    wasm: builtin:router
    config: {routes: [{cluster: web}]}
    variants: {more: {routes: [{cluster: web, filters: {elsewhere: off}}, {cluster: variants-only}]}}
clusters:
  - {name: web, endpoints: [{address: '127.0.0.1:1'}]}
  - {name: variants-only, endpoints: [{address: '127.0.0.1:1'}]}
";
    fs::write(dir.path().join("odd.yaml"), config).expect("a file");
    let (status, told) = check(dir.path(), "odd.yaml");
    assert_eq!(status, Some(0), "{told:?}");
    assert!(told.iter().all(|one| one["severity"] == "warning"), "{told:?}");
    let told: Vec<_> = told.iter().map(|one| (one["line"].as_u64(), one["message"].as_str())).collect();
    let expected = [
        (3, "filter `guard` stands before filter `routes` here, so `guard: off` in `filters` of a route has no effect"),
        (
            4,
            "filter `elsewhere` stands before filter `second` here, so `elsewhere: off` in `filters` of a route has no effect",
        ),
        (10, "`routes: off` in `filters` of a route has no effect: filter `routes` selects the route itself"),
        (
            11,
            "`elsewhere: off` in `filters` of a route has no effect: filter `elsewhere` is in no chain with filter `routes`",
        ),
        (12, "no route selects the variant `lax` of filter `limits`"),
        (18, "no route selects the variant `more` of filter `second`"),
    ];
    assert_eq!(told, expected.map(|(line, message)| (Some(line), Some(message))));
}

#[test]
fn variables_in_filter_configurations_take_the_expected_type() {
    let json = r#"{
        "workers": "${NOT_SET_ANYWHERE:-2}",
        "listeners": [{"name": "main", "address": "127.0.0.1:8080", "chain": "limits", "cluster": "web"}],
        "filters": [{"name": "limits", "wasm": "builtin:ratelimit", "config": {
            "limits": [{"name": "${NOT_SET_ANYWHERE:-7}", "requests": "${NOT_SET_ANYWHERE:-7}", "per": "1s"}],
            "dry_run": "${NOT_SET_ANYWHERE:-true}"
        }}],
        "clusters": [{"name": "web", "endpoints": "127.0.0.1:9001"}]
    }"#;
    assert_eq!(check_text("typed.json", json), (Some(0), Vec::new()));
    let (_, wrong) = check_text("typed.json", &json.replace("-7}\", \"per", "-x}\", \"per"));
    let first = wrong[0]["message"].as_str();
    assert!(first.is_some_and(|m| m.starts_with("expected a whole number, found a string")), "{wrong:?}");
}

#[test]
fn check_reads_standard_input() {
    let dir = workplace();
    let mut child = Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(["check", "-"])
        .current_dir(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary can be run");
    let config = r#"{"listeners": [{"name": "a", "address": "127.0.0.1:80", "chain": "f"}], "filters": [{"name": "f", "wasm": "text.wasm"}]}"#;
    child.stdin.take().expect("a pipe").write_all(config.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1));
    // The module was found relative to the current directory, and is not valid.
    assert!(text(&output.stderr).contains("is not a WebAssembly module"), "{output:?}");
    assert!(text(&output.stderr).contains("--> <stdin>:1:"), "{output:?}");
    let run = tollgate(dir.path(), &["run", "-"]);
    assert!(text(&run.stderr).contains("`tollgate check -` reads standard input"), "{run:?}");
}

#[test]
fn missing_and_unknown_files_are_reported() {
    let dir = workplace();
    for (name, said) in [("none.yaml", "cannot read the file"), ("none.ini", "unknown file format")] {
        if name.ends_with("ini") {
            fs::write(dir.path().join(name), "listeners=").expect("a file");
        }
        for command in ["check", "run"] {
            let output = tollgate(dir.path(), &[command, name]);
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            assert!(text(&output.stderr).contains(said), "{output:?}");
        }
    }
    // Wrong usage of the command line has another exit code.
    assert_eq!(tollgate(dir.path(), &["check"]).status.code(), Some(2));
    assert_eq!(tollgate(dir.path(), &["chek", "none.yaml"]).status.code(), Some(2));
}

#[test]
fn the_schema_accepts_good_and_rejects_bad_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let output = tollgate(&root, &["schema"]);
    assert_eq!(output.status.code(), Some(0));
    let schema: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(jsonschema::meta::is_valid(&schema), "it is not a valid JSON Schema");
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let read = tollgate::config::read_tree(&root.join("examples/quickstart.yaml"));
    let good = read.unwrap_or_else(|wrong| panic!("{wrong}")).root().to_json();
    let errors: Vec<String> = validator.iter_errors(&good).map(|e| e.to_string()).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    let mut bad = good.clone();
    bad["listeners"][0]["adress"] = "127.0.0.1:1".into();
    assert!(!validator.is_valid(&bad));
    let mut bad = good;
    bad["clusters"][0]["balancer"] = "fastest".into();
    assert!(!validator.is_valid(&bad));
}

/// Editors see a file before variables are substituted and short forms are expanded.
#[test]
fn the_schema_accepts_short_forms_and_variables() {
    let schema = tollgate::config::schema();
    assert!(jsonschema::meta::is_valid(&schema), "it is not a valid JSON Schema");
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let good = serde_json::json!({
        "workers": "${W:-2}",
        "admin": false,
        "log": "debug",
        "drain_timeout": "${DRAIN:-5s}",
        "listeners": [{
            "name": "${NAME}", "address": "${HOST:-127.0.0.1}:80", "chain": "routes", "trusted_hops": "${HOPS}",
            "protocol": "${PROTOCOL:-http}", "http3": "${HTTP3}", "limits": {"header_bytes": "${BYTES}"},
            "access_log": "a.log", "tls": {"certificates": [], "client_ca": "ca.pem", "min_version": "${TLS}"},
        }],
        "filters": [{"name": "routes", "wasm": "builtin:router", "config": {"routes": []}}],
        "clusters": [
            {"name": "a", "endpoints": ["127.0.0.1:1", {"address": "127.0.0.1:2", "weight": "${WEIGHT:-1}"}]},
            {"name": "b", "endpoints": "127.0.0.1:1", "retry": {"on": "reset"}, "retry_budget": {"percent": "${P}"}},
        ],
    });
    let errors: Vec<String> = validator.iter_errors(&good).map(|e| format!("{e} at {}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    for (pointer, wrong) in [
        ("/workers", "two".into()),
        ("/admin", 5.into()),
        ("/drain_timeout", "5 years".into()),
        ("/listeners/0/trusted_hops", "many".into()),
        ("/listeners/0/protocol", "https".into()),
        ("/listeners/0/tls", Value::Null),
        ("/clusters/0/endpoints/1/weight", "$WEIGHT".into()),
        ("/clusters/1/retry/on", "rest".into()),
        ("/filters/0/config", Value::Null),
    ] {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).expect("a place") = wrong;
        assert!(!validator.is_valid(&bad), "{pointer}");
    }
}

/// serde's own messages mean nothing to people who write YAML.
#[test]
fn errors_in_filter_configurations_say_what_to_write() {
    for (wasm, config, message, help) in [
        (
            "authz",
            "{policies: [{name: p, action: deny, rules: [{to: [{operation: {paths: /x}}]}]}]}",
            "expected a list, found a string",
            "write `['/x']`",
        ),
        (
            "ratelimit",
            "{limits: [{name: l, requests: 1, per: 1s, key: [header]}]}",
            "`header` needs a value",
            "write it as a map: `{header: …}`",
        ),
    ] {
        let file = format!(
            "listeners: [{{name: a, address: '127.0.0.1:8080', chain: [f]}}]\n\
             filters: [{{name: f, wasm: 'builtin:{wasm}', config: {config}}}]\n"
        );
        let (_, told) = check_text("x.yaml", &file);
        assert_eq!((&told[0]["message"], &told[0]["help"]), (&message.into(), &help.into()), "{told:?}");
    }
}
