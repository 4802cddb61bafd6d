//! `tollgate check --against`: what a file would change in a running proxy.

use std::{fs, process::Command};

use serde_json::{Value, json};

use crate::harness::Proxy;

const CONFIG: &str = "\
listeners:
- {name: main, address: '@main@', cluster: web, chain: [limits, faults], via: '${VIA:-one}'}
clusters:
- {name: web, endpoints: ['127.0.0.1:9']}
- {name: other, endpoints: ['127.0.0.1:9']}
filters:
- {name: limits, wasm: 'builtin:ratelimit', config: {limits: [{name: a, requests: 100, per: 1s}]}}
- {name: faults, wasm: 'builtin:fault', limits: {call_time: 100ms}}
";

/// The exit code, standard output and standard error of `tollgate check new.yaml --against URL`.
fn check(proxy: &Proxy, url: &str, options: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.args(["check", "new.yaml", "--against", url]).args(options).current_dir(proxy.dir());
    command.env_clear().env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR")).envs(env.iter().copied());
    let output = command.output().expect("the binary can be run");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Writes `new.yaml`: the running configuration with these replacements. Returns its text.
fn edit(proxy: &Proxy, replacements: &[(&str, &str)]) -> String {
    let mut text = fs::read_to_string(proxy.dir().join("config.yaml")).expect("a configuration");
    for (old, new) in replacements {
        assert!(text.contains(old), "{old}: {text}");
        text = text.replace(old, new);
    }
    fs::write(proxy.dir().join("new.yaml"), &text).expect("a file can be written");
    text
}

fn url(proxy: &Proxy) -> String {
    format!("http://{}", proxy.address("admin"))
}

#[test]
fn equal_configuration_would_change_nothing() {
    let proxy = Proxy::start(CONFIG);
    edit(&proxy, &[]);
    let (code, said, errors) = check(&proxy, &url(&proxy), &[], &[]);
    assert_eq!(code, Some(0), "{said}{errors}");
    assert!(said.contains(&format!("nothing would change: {} runs this configuration (version 1, hash ", url(&proxy))));
    // An explicit default, and a comment.
    edit(&proxy, &[("{name: web,", "{name: web, connect_timeout: 5s,"), ("clusters:", "clusters: # all")]);
    assert_eq!(check(&proxy, &url(&proxy), &[], &[]).0, Some(0));
}

#[test]
fn differences_are_those_that_the_log_reports_afterwards() {
    let proxy = Proxy::start(CONFIG);
    let text = edit(
        &proxy,
        &[
            ("listeners:", "cache_dir: elsewhere\ndrain_timeout: 7s\nlisteners:"),
            ("'${VIA:-one}'", "two"),
            ("name: other", "name: more"),
            ("requests: 100,", "requests: 200,"),
            ("100ms", "50ms"),
        ],
    );
    let changes = [
        "changed `cache_dir`",
        "changed `drain_timeout`",
        "added cluster `more`",
        "removed cluster `other`",
        "changed listener `main` (via)",
        "changed filter `limits` (config)",
        "changed filter `faults` (limits)",
    ];
    let (code, said, errors) = check(&proxy, &url(&proxy), &[], &[]);
    assert_eq!(code, Some(1), "{said}{errors}");
    let expected = changes.into_iter().chain([
        "new instances: limits",
        "new settings for the same instances: faults",
        "`cache_dir` has changed; the change takes effect after a restart",
    ]);
    let listed: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    assert_eq!(listed, expected.collect::<Vec<_>>(), "{said}");

    let (code, said, _) = check(&proxy, &url(&proxy), &["--json"], &[]);
    let result: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!((code, &result["ok"]), (Some(1), &json!(true)));
    let against = &result["against"];
    assert_eq!((&against["version"], &against["new_instances"]), (&json!(1), &json!(["limits"])), "{result:#}");
    let changed = json!({"change": "changed", "kind": "listener", "name": "main", "fields": ["via"]});
    assert!(against["changes"].as_array().is_some_and(|all| all.contains(&changed)), "{result:#}");

    proxy.put("config.yaml", text);
    assert_eq!(proxy.reload().0, 200);
    proxy.wait_for_output(&format!(
        "changes=\"{}\" new_instances=\"limits\" new_settings=\"faults\"",
        changes.join("; ")
    ));
    assert_eq!(check(&proxy, &url(&proxy), &[], &[]).0, Some(0), "it runs now");
}

#[test]
fn value_of_an_environment_variable_is_compared_without_being_shown() {
    let proxy = Proxy::start_wrapped(CONFIG, &["env", "VIA=hunter2"]);
    edit(&proxy, &[]);
    assert_eq!(check(&proxy, &url(&proxy), &[], &[("VIA", "hunter2")]).0, Some(0));
    let (code, said, errors) = check(&proxy, &url(&proxy), &[], &[("VIA", "hunter3")]);
    assert_eq!(code, Some(1), "{said}{errors}");
    assert!(said.contains("  changed listener `main` (via)\n"), "{said}");
    assert!(!said.contains("hunter") && !errors.contains("hunter"), "{said}{errors}");
}

#[test]
fn trouble_has_its_own_exit_code() {
    let proxy = Proxy::start(CONFIG);
    edit(&proxy, &[("cluster: web", "cluster: web, no_such_option: 1")]);
    let (code, _, errors) = check(&proxy, &url(&proxy), &[], &[]);
    assert_eq!(code, Some(2));
    assert!(errors.contains("no_such_option"), "{errors}");
    edit(&proxy, &[]);
    for (url, reason) in [
        ("http://127.0.0.1:1", "cannot reach the admin listener at http://127.0.0.1:1: "),
        ("unix:none.sock", "cannot reach the admin listener at unix:none.sock: "),
        ("https://127.0.0.1:1", "is not the URL of an admin listener"),
        (&format!("http://{}", proxy.address("main")), " answers 503 "),
    ] {
        let (code, said, errors) = check(&proxy, url, &[], &[]);
        assert_eq!(code, Some(2), "{url}: {said}{errors}");
        assert!(errors.contains(reason), "{url}: {errors}");
        let (code, said, _) = check(&proxy, url, &["--json"], &[]);
        let result: Value = serde_json::from_str(&said).expect("JSON");
        assert_eq!((code, &result["ok"]), (Some(2), &json!(false)));
        assert!(result["error"].as_str().is_some_and(|error| error.contains(reason)), "{url}: {result:#}");
    }
}

#[test]
fn token_is_sent_over_a_unix_socket() {
    let config = format!("admin: {{address: 'unix:admin.sock', token_file: token}}\n{CONFIG}");
    let mut proxy = Proxy::begin(config, &[("token", b"0123456789abcdef"), ("wrong", b"fedcba9876543210")]);
    proxy.wait_for_ready_line();
    edit(&proxy, &[]);
    let url = "unix:admin.sock";
    let (code, said, errors) = check(&proxy, url, &["--token-file", "token"], &[]);
    assert_eq!(code, Some(0), "{said}{errors}");
    for (options, reason) in [
        (&[][..], "unix:admin.sock/ answers 401 Unauthorized: send the token"),
        (&["--token-file", "wrong"], "unix:admin.sock/ answers 401 Unauthorized: wrong token"),
        (&["--token-file", "none"], "no usable token in `none`"),
    ] {
        let (code, said, errors) = check(&proxy, url, options, &[]);
        assert_eq!(code, Some(2), "{said}{errors}");
        assert!(errors.contains(reason), "{errors}");
    }
    assert!(!proxy.has_ended());
}
