//! The history of the configuration: rolling back, pinning, resuming.

use std::fs;

use serde_json::{Value, json};

use super::{Load, marked, no_failures, telling, version};
use crate::{
    guest,
    harness::{
        Config, Proxy, Signal, Upstream,
        pki::{SelfSigned, TLS},
        wait_for, wait_until,
    },
};

fn post(proxy: &Proxy, path: &str) -> (u16, Value) {
    let response = proxy.admin("POST", path, "");
    (response.status(), serde_json::from_slice(&response.body).unwrap_or_default())
}

fn history(proxy: &Proxy) -> Value {
    serde_json::from_slice(&proxy.admin("GET", "/config/history", "").body).expect("JSON")
}

/// A field of all versions in the history, newest first.
fn all(history: &Value, field: &str) -> Vec<Value> {
    history["history"].as_array().expect("a list").iter().map(|version| version[field].clone()).collect()
}

/// Waits until `GET /config` shows a pending change, and returns its field.
fn pending(proxy: &Proxy, field: &str) -> Value {
    wait_for("a pending change", || Some(proxy.config()["pending"][field].clone()).filter(|value| !value.is_null()))
}

fn is_pinned(proxy: &Proxy) -> f64 {
    proxy.metrics().sum("tollgate_config_pinned", &[])
}

#[test]
fn rollback_under_load_brings_the_old_module_back() {
    let upstream = telling();
    let proxy = marked(&upstream, &guest::version("v1"));
    let before = proxy.filter("marker")["hash"].clone();
    let load = Load::start(&proxy, version);
    load.meet("v1");
    proxy.put("marker.wasm", guest::version("v2"));
    load.meet("v2");
    // The old module exists nowhere but in the proxy.
    let (status, said) = post(&proxy, "/config/rollback/1");
    assert_eq!((status, &said["result"], &said["version"]), (200, &json!("applied"), &json!(3)), "{said:#}");
    load.meet("v1");
    assert_eq!(proxy.filter("marker")["hash"], before);
    assert_eq!(pending(&proxy, "changes"), "changed filter `marker` (module)");
    assert_eq!(pending(&proxy, "new_instances"), json!(["marker"]));
    assert_eq!((is_pinned(&proxy), &proxy.config()["pinned"]), (1.0, &json!(1)));
    let shown = history(&proxy);
    assert_eq!(all(&shown, "version"), [3, 2, 1]);
    assert_eq!(all(&shown, "cause"), ["rollback", "file", "start"]);
    assert_eq!(all(&shown, "rollback_to"), [json!(1), Value::Null, Value::Null]);
    assert_eq!(all(&shown, "pinned"), [false, false, true]);
    let changes = json!("changed filter `marker` (module)");
    assert_eq!(all(&shown, "changes"), [changes.clone(), changes, Value::Null]);
    let hashes = all(&shown, "hash");
    assert!(hashes[0] == hashes[2] && hashes[0] != hashes[1], "{hashes:?}");

    let (status, said) = post(&proxy, "/config/resume");
    assert_eq!((status, &said["version"]), (200, &json!(4)), "{said:#}");
    load.meet("v2");
    assert_eq!(load.end(), ["v1", "v2"]);
    no_failures(&proxy);
    let config = proxy.config();
    assert_eq!((is_pinned(&proxy), &config["pinned"], &config["pending"]), (0.0, &Value::Null, &Value::Null));
}

#[test]
fn changed_files_are_reported_and_not_applied_while_pinned() {
    let upstream = Upstream::saying("ok");
    let mut proxy = Proxy::start(Config::to(&upstream));
    proxy.change_config(Config::to(&upstream).listener("via: two"));
    // The running version is only pinned.
    let (status, said) = post(&proxy, "/config/rollback/2");
    assert_eq!((status, &said["result"], proxy.version()), (200, &json!("unchanged"), 2), "{said:#}");
    assert_eq!(proxy.config()["pending"], Value::Null);
    let help = "pinned to version 2; POST /config/resume applies the files";
    proxy.wait_for_output(help);

    proxy.put_config(Config::to(&upstream).listener("via: three").beside("more", "cluster: web"));
    assert_eq!(pending(&proxy, "changes"), "changed listener `main` (via); added listener `more`");
    proxy.wait_for_output("cause=\"file\" changes=\"changed listener `main` (via); added listener `more`\"");
    let (status, said) = proxy.reload();
    assert_eq!((status, &said["result"], &said["help"]), (409, &json!("pinned"), &json!(help)), "{said:#}");
    proxy.signal(Signal::HUP);
    proxy.wait_for_output(&format!("{help} cause=\"SIGHUP\""));

    proxy.put_config(Config::to(&upstream).listener("no_such_option: 1"));
    assert!(pending(&proxy, "errors")[0]["message"].as_str().is_some_and(|text| text.contains("no_such_option")));
    assert_eq!(proxy.metrics().sum("tollgate_config_last_reload_successful", &[]), 0.0);
    let (status, said) = post(&proxy, "/config/resume");
    assert_eq!((status, proxy.config()["pinned"].clone()), (422, json!(2)), "{said:#}");

    assert!(proxy.config()["pending"]["errors"].is_array());

    // The files are those of the pinned version again.
    proxy.put_config(Config::to(&upstream).listener("via: two"));
    wait_until("nothing to be pending", || proxy.config()["pending"].is_null());
    assert_eq!(proxy.version(), 2);

    // The pin moves.
    let (status, said) = post(&proxy, "/config/rollback/1");
    assert_eq!((status, &said["version"], &proxy.config()["pinned"]), (200, &json!(3), &json!(1)), "{said:#}");
    assert_eq!(pending(&proxy, "changes"), "changed listener `main` (via)");
    assert_eq!(post(&proxy, "/config/resume").0, 200);
    assert_eq!(proxy.version(), 4);
    proxy.change_config(Config::to(&upstream).listener("via: five"));
    assert_eq!(proxy.version(), 5, "files are applied again");
    assert_eq!(post(&proxy, "/config/resume").1["result"], "unchanged", "nothing is pinned");
}

#[test]
fn failed_rollback_changes_and_pins_nothing() {
    let upstream = Upstream::saying("ok");
    let pair = SelfSigned::new();
    let mut proxy = Proxy::start_with(Config::to(&upstream).listener(TLS), &pair.files());
    proxy.change_config(Config::to(&upstream));
    fs::remove_file(proxy.dir().join("server.key")).expect("a file");
    let (status, said) = post(&proxy, "/config/rollback/1");
    assert_eq!((status, &said["result"]), (422, &json!("refused")), "{said:#}");
    assert!(said["errors"][0]["message"].as_str().is_some_and(|text| text.contains("server.key")), "{said:#}");
    let config = proxy.config();
    assert_eq!((&config["version"], &config["pinned"]), (&json!(2), &Value::Null));
    assert_eq!((is_pinned(&proxy), proxy.get("/").status()), (0.0, 200));
    // Keys are read again.
    proxy.put("server.key", &pair.key);
    assert_eq!(post(&proxy, "/config/rollback/1").0, 200);
    for unknown in ["4", "0", "x", ""] {
        let response = proxy.admin("POST", &format!("/config/rollback/{unknown}"), "");
        assert_eq!(response.status(), 404, "{unknown}");
    }
    let response = proxy.admin("GET", "/config/rollback/1", "");
    assert_eq!((response.status(), response.field("allow")), (405, Some("POST")));
}

#[test]
fn history_is_bounded() {
    let upstream = Upstream::saying("ok");
    let config = |history: &str, via: usize| {
        let admin = format!("admin: {{address: '@admin@', history: {history}}}");
        Config::to(&upstream).top(&admin).listener(&format!("via: v{via}"))
    };
    let mut proxy = Proxy::start(config("3", 1));
    for via in 2..=5 {
        proxy.change_config(config("3", via));
    }
    assert_eq!(all(&history(&proxy), "version"), [5, 4, 3]);
    assert_eq!(proxy.admin("POST", "/config/rollback/2", "").status(), 404);
    proxy.change_config(config("1", 6));
    assert_eq!(all(&history(&proxy), "version"), [6]);
    proxy.change_config(config("0", 6));
    assert_eq!(history(&proxy)["history"], json!([]));
    assert_eq!(proxy.admin("POST", "/config/rollback/7", "").status(), 404);
}

#[test]
fn history_shows_no_secrets() {
    let upstream = Upstream::saying("ok");
    let pair = SelfSigned::new();
    let config =
        |options: &str| String::from(Config::to(&upstream).listener(TLS).filter("limits", "builtin:fault", options));
    let mut proxy = Proxy::start_wrapped("listeners: [{name: main, address: '@main@'}]", &["env", "SECRET=hunter2"]);
    pair.files().iter().for_each(|(name, content)| proxy.put(name, content));
    proxy.change_config(config("env: {TOKEN: '${SECRET}'}"));
    proxy.change_config(config("env: {TOKEN: 'x-${SECRET}'}"));
    assert_eq!(post(&proxy, "/config/rollback/2").0, 200);
    let shown = [proxy.admin("GET", "/config/history", ""), proxy.admin("GET", "/config", "")];
    let key = pair.key.lines().nth(1).expect("a line of the key");
    for shown in &shown {
        assert!(shown.text().contains("\"version\": 4"), "{}", shown.text());
        assert!(!shown.text().contains("hunter2") && !shown.text().contains(key), "{}", shown.text());
    }
    assert!(!proxy.output().contains("hunter2"));
}

#[test]
fn nothing_is_pinned_after_a_restart() {
    let upstream = telling();
    let mut proxy = marked(&upstream, &guest::version("v1"));
    assert_eq!(post(&proxy, "/config/rollback/1").0, 200);
    assert_eq!(proxy.config()["pinned"], 1);
    proxy.signal(Signal::TERM);
    proxy.wait_exit();
    let next = proxy.beside(&[]);
    next.wait_for_ready_line();
    assert_eq!((&next.config()["pinned"], all(&history(&next), "version")), (&Value::Null, vec![json!(1)]));
}
