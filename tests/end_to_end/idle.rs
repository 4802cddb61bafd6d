//! A proxy without traffic: the threads that work in intervals sleep, and the next request wakes them.

use std::{fs, thread, time::Duration};

use crate::{
    guest,
    harness::{Config, Proxy, Upstream, wait_until},
};

/// Returns how often the threads with these names have gone to sleep.
fn sleeps(proxy: &Proxy, names: &[&str]) -> Vec<u64> {
    let threads = fs::read_dir(format!("/proc/{}/task", proxy.pid())).expect("its threads").flatten();
    let statuses = threads.filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok());
    let field =
        |status: &str, name: &str| status.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()));
    let named = statuses.filter(|status| field(status, "Name:").is_some_and(|name| names.contains(&name.as_str())));
    let count = |status: String| field(&status, "voluntary_ctxt_switches:")?.parse().ok();
    named.filter_map(count).collect()
}

#[test]
fn threads_without_work_sleep_until_the_next_request() {
    const THREADS: [&str; 3] = ["tollgate-epoch", "access-log", "log"];
    let module = guest::filter(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (if (call $has (i32.const 0) %"x-boom") (then (loop $forever (br $forever))))
            (i32.const 0))"#,
    );
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::start(Config::to(&upstream).module("boom", &module, ""));
    for nth in 1..4 {
        wait_until("the threads to sleep", || {
            let before = sleeps(&proxy, &THREADS);
            // Many times the interval of each of them.
            thread::sleep(Duration::from_millis(500));
            before.len() == THREADS.len() && before == sleeps(&proxy, &THREADS)
        });
        let status = proxy.request("GET", &format!("/{nth}"), &[("x-boom", "1")], b"").status();
        assert_eq!(status, 503, "the call is ended although the ticker was asleep");
        let path = format!("/{nth}");
        proxy.entry(|entry| entry["path"] == path.as_str());
    }
}
