//! Measures the cost of a line, as an ignored test: `cargo test --release observe::access_log::bench -- --ignored --nocapture`.
#![cfg(test)]

use std::{
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use super::{AccessLog, Entry, Format, LogWriter, Timings};
use crate::{
    config::model,
    observe::metrics::{Registry, Shard},
};

const TIMES: u32 = 2_000_000;

#[test]
#[ignore = "a measurement"]
fn costs() {
    let endpoint = SocketAddr::from(([10, 0, 0, 7], 8080)).into();
    let entry = Entry {
        method: "GET",
        path: b"/api/v1/orders/8271?expand=items",
        upstream_path: b"/api/v1/orders/8271?expand=items",
        authority: b"api.example.com",
        protocol: "HTTP/1.1",
        request_id: b"5f0c7a52-9a3e-4f57-8d35-0f7c2d0e9b11",
        status: 200,
        response_bytes: 5120,
        timings: Timings { total: 12_345, upstream_total: Some(11_000), ..Timings::default() },
        route: "orders",
        cluster: "api",
        endpoint: Some(&endpoint),
        attempts: 1,
        user_agent: b"Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
        ..Entry::new(SystemTime::now(), "main", SocketAddr::from(([192, 168, 1, 2], 40_000)))
    };
    let text =
        "%start% %client% \"%method% %path% %protocol%\" %status% %flags% %response_bytes% %duration_ms% %cluster%";
    for format in [text, "json"] {
        let compiled = Format::parse(format).unwrap();
        let mut out = Vec::new();
        let start = Instant::now();
        for _ in 0..TIMES {
            out.clear();
            compiled.write(&entry, &mut out);
        }
        println!("format {} bytes: {:.0} ns", out.len(), start.elapsed().as_nanos() as f64 / f64::from(TIMES));

        let registry = Registry::new(1);
        let writer = LogWriter::start(&registry).unwrap();
        let config = model::AccessLog { to: "/dev/null".into(), format: format.into() };
        let log = AccessLog::open(&config, &writer).unwrap();
        let start = Instant::now();
        for _ in 0..TIMES {
            log.log(Shard::worker(0), &entry);
        }
        let each = start.elapsed().as_nanos() as f64 / f64::from(TIMES);
        writer.close(Duration::from_secs(10));
        let dropped = registry.value("tollgate_access_log_dropped_total", &[("reason", "overflow")]).unwrap_or(0.0);
        println!("format and hand over: {each:.0} ns, {dropped} dropped");
    }
}
