//! Log lines about configuration changes.

use std::{fs, thread, time::Duration};

use super::{marked, with_marker};
use crate::{
    guest,
    harness::{Config, Proxy, Signal, Upstream},
};

/// Waits until the log reports that a configuration was applied, with these changes.
fn wait_for_changes(proxy: &Proxy, changes: &str) {
    proxy.wait_for_output(&format!("changes=\"{changes}\""));
}

#[test]
fn changed_parts_are_logged() {
    let upstream = Upstream::saying("ok");
    let one = || with_marker(&upstream);
    let mut proxy = marked(&upstream, &guest::version("v1"));
    proxy.wait_for_ready_line();
    let ready = proxy.output();
    assert!(ready.contains(&format!("admin=\"http://{}\"", proxy.address("admin"))), "{ready}");

    proxy.change_config(one().listener("via: new").cluster("other", &[&upstream], ""));
    wait_for_changes(&proxy, "added cluster `other`; changed listener `main` (via)");
    proxy.put("marker.wasm", guest::version("v2"));
    proxy.reload();
    wait_for_changes(&proxy, "changed filter `marker` (module)");
    let moved = String::from(one()).replace("@main@", "@elsewhere@").replace("name: main", "name: moved");
    proxy.change_config(moved.clone());
    wait_for_changes(&proxy, "removed cluster `other`; added listener `moved`; removed listener `main`");
    let output = proxy.output();
    assert!(output.contains(&format!("listener `moved` on http://{}", proxy.address("elsewhere"))), "{output}");
    assert!(output.contains(&format!("listener `main` no longer on http://{}", proxy.address("main"))), "{output}");
    let secret = moved.replace("cluster: web", "cluster: web\n    via: hunter2");
    proxy.change_config(secret);
    wait_for_changes(&proxy, "changed listener `moved` (via)");
    assert!(!proxy.output().contains("hunter2"), "values may be secret");
}

#[test]
fn an_unchanged_configuration_is_logged_on_sighup() {
    let mut proxy = Proxy::start(Config::new());
    proxy.signal(Signal::HUP);
    proxy.wait_for_output("the configuration is unchanged cause=\"SIGHUP\"");
    proxy.put_config(Config::new().listener("no_such_option: 1"));
    proxy.wait_for_output("no_such_option");
    proxy.put_config(Config::new());
    proxy.wait_for_output("the files match the running configuration again cause=\"file\"");
    proxy.wait_for_metric("tollgate_config_last_reload_successful", &[], 1.0);
}

#[test]
fn all_fields_that_need_a_restart_are_logged() {
    let socket = |backlog: u32| Config::new().listener(&format!("socket: {{backlog: {backlog}}}"));
    let mut proxy = Proxy::start(socket(100));
    proxy.change_config(socket(101).top("log: {format: json}\ncache_dir: other"));
    for what in ["`log.format`", "`cache_dir`", "`socket` of listener `main`"] {
        proxy.wait_for_output(&format!("{what} has changed; the change takes effect after a restart"));
    }
}

/// Whether there are metrics for a listener named `more`.
fn has_metrics(proxy: &Proxy) -> bool {
    proxy.metrics().names().any(|(_, labels)| labels.get("listener").is_some_and(|name| name == "more"))
}

#[test]
fn a_listener_that_never_ran_leaves_no_metrics() {
    let upstream = Upstream::saying("ok");
    let mut proxy = Proxy::start(Config::to(&upstream));
    // This error is found last.
    proxy.put_config(Config::to(&upstream).beside("more", "address: '@admin@'\ncluster: web"));
    proxy.wait_for_output("is already the address of the admin listener");
    assert!(!has_metrics(&proxy));
    let wrong = guest::filter(r#"(func (export "proxy_on_configure") (param i32 i32) (result i32) (i32.const 0))"#);
    fs::write(proxy.dir().join("wrong.wasm"), wrong).expect("a file");
    let refused = Config::to(&upstream).filter("wrong", "wrong.wasm", "");
    let refused = refused.beside("more", "address: 127.0.0.1:0\ncluster: web");
    proxy.put_config(refused.clone());
    proxy.wait_for_output("filter `wrong` cannot be set up");
    assert!(!has_metrics(&proxy));
    // The same error again: it is not logged again, and leaves nothing. (If the proxy has not checked by then, the test
    // still passes.)
    proxy.put_config(refused.top("# once more"));
    thread::sleep(Duration::from_millis(600));
    assert!(!has_metrics(&proxy));
}
