//! Measures the cost of a poison request every 100 ms for 1000 other requests per second. It takes minutes, so it is
//! run by hand:
//!
//! ```sh
//! cargo build --release -p tollgate
//! TOLLGATE=target/release/tollgate cargo test -p tollgate --test end_to_end -- --ignored --nocapture --exact \
//!     containment::beside::a_poison_request_each_100_ms
//! ```
//!
//! `SECONDS` is the duration per case, 60 by default. The poison requests come from another address than the others.

use std::{
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::poison::{FILL, costly, poisoned_by};
use crate::harness::{Config, Proxy, Upstream, answer, tollgate, wait_until};

/// The interval between poison requests.
const EACH: Duration = Duration::from_millis(100);

/// Sends this rate of requests to a listener for this duration.
fn load(proxy: &Proxy, listener: &str, rate: u32, seconds: u64) -> Child {
    let url = format!("http://{}/", proxy.address(listener));
    Command::new(tollgate())
        .args(["bench", "load", "--json", "--warmup", "1ms", "--connections", "32", "--expect-status", "200"])
        .args(["--rate", &rate.to_string(), "--duration", &format!("{seconds}s"), &url])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the load generator runs")
}

/// The result of a load.
fn seen(load: Child) -> Value {
    let output = load.wait_with_output().expect("it ends");
    serde_json::from_slice(&output.stdout).expect("it gives JSON")
}

fn micros(report: &Value) -> String {
    let of = |q| report["latency_us"][q].as_f64().unwrap_or_default() / 1000.0;
    format!("{:.2} / {:.2} / {:.2}", of("p50"), of("p99"), of("max"))
}

fn seconds() -> u64 {
    std::env::var("SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(60)
}

/// Sends a poison request every 100 ms for this duration and returns their number.
fn poison(proxy: &Proxy, seconds: u64) -> u32 {
    let (start, mut sent) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(seconds) {
        proxy.request("GET", "/poison", &[("x-boom", "1"), ("x-forwarded-for", "192.0.2.1")], b"");
        sent += 1;
        thread::sleep((start + EACH * sent).saturating_duration_since(Instant::now()));
    }
    sent
}

/// Measures one case and returns its row of the table.
fn measure(name: &str, module: &[u8], limits: &str, strict: bool) -> String {
    let seconds = seconds();
    let upstream = Upstream::saying("hello");
    let config = Config::to(&upstream).listener("trusted_hops: 1").beside("plain", "cluster: web");
    let config = config.module("boom", module, &format!("limits: {{{limits}}}"));
    let proxy = Proxy::start(config);
    let before = seen(load(&proxy, "main", 1000, seconds / 3));
    let (main, plain) = (load(&proxy, "main", 1000, seconds), load(&proxy, "plain", 100, seconds));
    let sent = poison(&proxy, seconds);
    let (main, plain) = (seen(main), seen(plain));
    wait_until("the filter to be available again", || proxy.filter("boom")["instances"] == 2);
    let info = proxy.filter("boom");
    let number = |name: &str| info[name].as_u64().expect("a number");
    let failed = main["errors"]["total"].as_u64().expect("a number");
    let over = proxy.metrics().sum("tollgate_filter_rebuild_budget_exhausted_total", &[]);
    // Each poison request is one of the failed streams, whether it found an instance or not.
    let inside = number("failed_streams").saturating_sub(sent.into());
    if strict {
        assert_eq!((number("traps"), number("rebuilds")), (sent.into(), sent.into()), "{name}: {info}");
        // Some of the affected streams had been answered already, or were outside of the measurement.
        assert!(failed <= inside, "{name}: {failed} failed, {inside} of them inside an instance that failed: {info}");
    }
    assert_eq!(plain["errors"]["total"], 0, "{name}: {plain}");
    println!("{}", proxy.output().lines().find(|l| l.contains("the filter failed")).unwrap_or_default());
    println!("{info:#}\n{}", proxy.admin("GET", "/ready", "").text());
    let line = format!(
        "| {name} | {sent} | {} | {over} | {} | {failed} | {} | {} |",
        number("traps"),
        main["requests"],
        micros(&before),
        micros(&main)
    );
    println!("{line}");
    line
}

#[test]
#[ignore = "takes minutes: see above"]
fn a_poison_request_each_100_ms() {
    let eat = "(loop $more (br_if $more (i32.ne (memory.grow (i32.const 8)) (i32.const -1)))) unreachable";
    let copy = r#"(drop (call $set_shared %"k" (i32.const 0) (i32.const 1048576) (i32.const 0)))"#;
    let lines = [
        measure("trap", &poisoned_by("unreachable"), "", true),
        measure("endless loop", &poisoned_by("(loop $on (br $on))"), "", true),
        measure("endless loop, call_time: 5ms", &poisoned_by("(loop $on (br $on))"), "call_time: 5ms", true),
        measure("memory", &poisoned_by(eat), "", true),
        measure("long host calls", &poisoned_by(&copy.repeat(6000)), "", true),
        measure("one long operation", &poisoned_by(&FILL.repeat(40)), "", true),
        measure("trap, 100 ms to configure", &costly(), "", false),
    ];
    println!(
        "| kind | poison | failures | without an instance | others | of them failed | before: p50 / p99 / max, ms | during |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    lines.iter().for_each(|line| println!("{line}"));
}

/// Ten traps per second next to ten requests per second that stay in the instance for 300 ms each.
#[test]
#[ignore = "takes a minute: see above"]
fn long_requests_next_to_poison_requests() {
    let upstream = Upstream::replying(|request| {
        if request.target() == "/slow" {
            thread::sleep(3 * EACH);
        }
        answer(200, &[], "hello")
    });
    let config = Config::to(&upstream).listener("trusted_hops: 1").module("boom", &poisoned_by("unreachable"), "");
    let proxy = Proxy::start(config);
    let start = Instant::now();
    let (sent, failed) = thread::scope(|scope| {
        let others = (0..seconds() as u32 * 10).map(|nth| {
            let proxy = &proxy;
            scope.spawn(move || {
                thread::sleep((start + EACH * nth).saturating_duration_since(Instant::now()));
                proxy.get("/slow").status() != 200
            })
        });
        let others: Vec<_> = others.collect();
        let sent = poison(&proxy, seconds());
        (sent, others.into_iter().map(|other| other.join().expect("it ends")).filter(|failed| *failed).count())
    });
    println!("{sent} poison requests; of {} others {failed} failed\n{:#}", seconds() * 10, proxy.filter("boom"));
}
