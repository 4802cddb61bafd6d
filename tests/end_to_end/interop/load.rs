//! h2load: no request fails under load, not even during reloads.

use super::{four_filters, needs};
use crate::harness::{Config, Proxy, Upstream, answer, peer::run, pki::Authority, wait_until};

/// The line with this prefix.
fn line<'s>(said: &'s str, begin: &str) -> &'s str {
    said.lines().find(|line| line.starts_with(begin)).unwrap_or_else(|| panic!("{said}"))
}

/// Runs h2load and asserts that all requests succeeded.
fn h2load(tool: &std::path::Path, proxy: &Proxy, requests: usize, args: &[&str]) {
    let url = format!("https://{}/", proxy.address("main"));
    let requests = requests.to_string();
    let output = run(tool, &[&["-n", &requests], args, &[&url]].concat()).well();
    let done = format!("{requests} succeeded, 0 failed, 0 errored, 0 timeout");
    assert!(line(&output, "requests:").contains(&done), "{output}");
    assert!(line(&output, "status codes:").contains(&format!("{requests} 2xx")), "{output}");
}

fn config(upstream: &Upstream, authority: &Authority, more: &str) -> Config {
    let listener = authority.tls(&["web.test"], "");
    let config = Config::new().top("workers: 2").listener(&listener).listener(more);
    four_filters(config.cluster("web", &[upstream], ""))
}

#[test]
fn four_filters_and_tls_under_load() {
    let h2load = needs!("h2load");
    let (upstream, authority) = (Upstream::replying(|_| answer(200, &[], "hello")), Authority::with(&["web.test"]));
    let proxy = Proxy::start(config(&upstream, &authority, ""));
    self::h2load(&h2load, &proxy, 5000, &["-c", "8", "-m", "32"]);
    self::h2load(&h2load, &proxy, 1000, &["-c", "4", "-m", "1", "--h1"]);
    assert_eq!(upstream.requests().len(), 6000);
}

/// The configuration, the filters' instances and the certificates change while requests are in flight.
#[test]
fn requests_survive_changes_of_filters_and_certificates() {
    let h2load = needs!("h2load");
    let (upstream, authority) = (Upstream::replying(|_| answer(200, &[], "hello")), Authority::with(&["web.test"]));
    let mut proxy = Proxy::start(config(&upstream, &authority, ""));
    let url = format!("https://{}/", proxy.address("main"));
    let before = proxy.version();
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            // Long-lived connections, and connections opened while a certificate changes.
            let long = run(&h2load, &["-D", "6", "-c", "4", "-m", "8", &url]).well();
            assert!(line(&long, "requests:").contains(" 0 failed, 0 errored, 0 timeout"), "{long}");
            assert!(line(&long, "status codes:").contains("0 3xx, 0 4xx, 0 5xx"), "{long}");
        });
        let short = scope.spawn(|| {
            for _ in 0..30 {
                let output = run(&h2load, &["-n", "20", "-c", "4", "-m", "2", &url]).well();
                assert!(output.contains("20 succeeded, 0 failed"), "{output}");
            }
        });
        for n in 2..8_u64 {
            authority.sign("web.test", n);
            let changed = config(&upstream, &authority, &format!("via: number-{n}"));
            proxy.put_config(changed);
            wait_until("a change to be applied", || {
                let (status, _) = proxy.reload();
                status == 200 && proxy.config().to_string().contains(&format!("number-{n}"))
            });
        }
        load.join().expect("the load");
        short.join().expect("the load");
    });
    assert!(proxy.version() >= before + 6);
    // At the end of its duration, h2load abandons in-flight requests, which then have no status.
    let failed = ["4xx", "5xx"].map(|class| proxy.metrics().sum("tollgate_requests_total", &[("class", class)]));
    assert_eq!(failed, [0.0; 2]);
}
