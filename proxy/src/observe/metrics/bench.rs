//! Measures the cost of metrics, as an ignored test: `cargo test --release observe::metrics::bench -- --ignored --nocapture`.
#![cfg(test)]

use std::{hint::black_box, time::Instant};

use super::{Buckets, Kind, Registry, Shard, set_shard, shard};

fn measure(what: &str, times: u64, mut f: impl FnMut(u64)) {
    (0..times / 10).for_each(&mut f);
    let start = Instant::now();
    (0..times).for_each(&mut f);
    println!("{what}: {:.2} ns", start.elapsed().as_nanos() as f64 / times as f64);
}

#[test]
#[ignore = "a measurement"]
fn costs() {
    let registry = Registry::new(2);
    set_shard(Shard::worker(0));
    let counter = registry.counter("c", "", &[]).unwrap();
    let histogram = registry.histogram("h", "", &[], Buckets::Latency).unwrap();
    let here = shard();
    const TIMES: u64 = 20_000_000;
    measure("counter add", TIMES, |i| counter.add(black_box(here), i));
    measure("counter add by shard()", TIMES, |i| counter.add(shard(), i));
    measure("histogram observe", TIMES, |i| histogram.observe(black_box(here), i.wrapping_mul(0x9E37_79B9) & 0xF_FFFF));
    let owner = std::sync::Arc::default();
    for i in 0..1000 {
        registry.dynamic(Kind::Counter, &format!("m{i}"), &owner).unwrap();
        registry.histogram("many", "", &[("i", &i.to_string())], Buckets::Latency).unwrap();
    }
    let start = Instant::now();
    let bytes = registry.render().len();
    println!("scrape of 1000 counters and 1000 histograms: {:?}, {bytes} bytes", start.elapsed());
}
