//! Tests of the registry and the scrape.

use std::{
    collections::BTreeMap,
    sync::{Arc, Barrier},
    thread,
};

use super::*;

/// Parses the scrape into values by name with labels, independently of the encoder.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut kinds = BTreeMap::new();
    let mut samples = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(kinds.insert(name.to_owned(), kind).is_none(), "a family appears once: {line}");
        } else if !line.starts_with("# HELP ") {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s)).unwrap_or(name);
            assert!(kinds.contains_key(name) || kinds.contains_key(family), "no type for {line}");
            assert!(samples.insert(series.to_owned(), value.parse().unwrap()).is_none(), "shown twice: {line}");
        }
    }
    samples
}

#[test]
fn the_same_name_and_labels_are_the_same_metric() {
    let registry = Registry::new(2);
    let labels = [("listener", "main"), ("class", "2xx")];
    let a = registry.counter("tollgate_requests_total", "Requests", &labels).unwrap();
    let b = registry.counter("tollgate_requests_total", "Requests", &[labels[1], labels[0]]).unwrap();
    a.add(Shard::worker(0), 2);
    b.inc(Shard::worker(1));
    a.inc(Shard::worker(99));
    assert_eq!(b.value(), 4);
    assert_eq!(registry.value("tollgate_requests_total", &labels), Some(4.0));
    assert_eq!(registry.value("tollgate_requests_total", &[]), None);
    assert_eq!(registry.value("nothing", &[]), None);

    let gauge = registry.gauge("tollgate_active", "Active", &[]).unwrap();
    gauge.add(Shard::worker(0), 3);
    registry.gauge("tollgate_active", "Active", &[]).unwrap().sub(Shard::worker(1), 2);
    let held = gauge.hold(Shard::CONTROL);
    assert_eq!(registry.value("tollgate_active", &[]), Some(2.0));
    drop(held);
    assert_eq!(gauge.value(), 1);

    let histogram = registry.histogram("tollgate_seconds", "Time", &[], Buckets::Latency).unwrap();
    histogram.observe(Shard::CONTROL, 1);
    registry.histogram("tollgate_seconds", "Time", &[], Buckets::Latency).unwrap().observe(Shard::CONTROL, 1);
    assert_eq!(registry.value("tollgate_seconds", &[]), Some(2.0));
}

#[test]
fn a_sum_has_the_values_of_its_parts() {
    let registry = Registry::new(2);
    let sums = ["a", "b"].map(|name| registry.sum_gauge("instances", "Instances", &[("filter", name)]).unwrap());
    let (one, other) = (Gauge::new(2), Gauge::new(2));
    one.add(Shard::worker(0), 2);
    other.add(Shard::worker(1), 3);
    let shown = || {
        let samples = samples(&registry.render());
        ["a", "b"].map(|name| samples[&format!("instances{{filter=\"{name}\"}}")])
    };
    sums[0].include(&one);
    sums[0].include(&other);
    sums[0].include(&one);
    sums[1].include(&one.clone());
    assert_eq!(shown(), [5.0, 2.0], "a part counts once");
    one.sub(Shard::worker(1), 1);
    assert_eq!(shown(), [4.0, 1.0]);
    sums[0].exclude(&one);
    assert_eq!(shown(), [3.0, 1.0]);
    drop(one);
    assert_eq!((shown(), registry.sum_gauge("instances", "", &[("filter", "a")]).unwrap().value()), ([3.0, 0.0], 3));
}

#[test]
fn a_family_has_one_kind() {
    let registry = Registry::new(1);
    registry.counter("a", "", &[]).unwrap();
    let conflict = |asked, there| MetricError::Conflict { name: "a".into(), there, asked };
    assert_eq!(registry.gauge("a", "", &[("x", "y")]).unwrap_err(), conflict(Kind::Gauge, Kind::Counter));
    assert_eq!(
        registry.collect_fn("a", "", Kind::Counter, Vec::new).unwrap_err(),
        conflict(Kind::Counter, Kind::Counter)
    );
    registry.plain_gauge("g", "", &[]).unwrap().set(-7);
    assert!(registry.gauge("g", "", &[]).is_err(), "it has another storage");
    registry.histogram("h", "", &[], Buckets::Latency).unwrap();
    assert!(registry.histogram("h", "", &[], Buckets::Bytes).is_err());
    assert!(registry.counter("h_count", "", &[]).is_err(), "the name is part of the histogram");
    registry.counter("k_sum", "", &[]).unwrap();
    assert!(registry.histogram("k", "", &[], Buckets::Bytes).is_err());
    assert!(registry.collect_fn("z", "", Kind::Histogram, Vec::new).is_err());
    assert_eq!(registry.value("g", &[]), Some(-7.0));
}

#[test]
fn names_are_checked() {
    let registry = Registry::new(1);
    for name in ["", "1a", "a-b", "ä", "a b"] {
        assert_eq!(registry.counter(name, "", &[]).unwrap_err(), MetricError::Name(name.into()));
    }
    for label in ["", "1a", "a:b", "le", "__name__"] {
        assert_eq!(registry.counter("c", "", &[(label, "")]).unwrap_err(), MetricError::Label(label.into()));
    }
    let twice = registry.counter("c", "", &[("a", "1"), ("a", "2")]);
    assert_eq!(twice.unwrap_err(), MetricError::Label("a".into()));
}

#[test]
fn the_scrape_reads_back() {
    let registry = Registry::new(2);
    registry.counter("b_total", "One\nhelp \\ text", &[("k", "a\"b\\c\nd")]).unwrap().add(Shard::worker(0), 5);
    registry.plain_gauge("a", "First", &[]).unwrap().set(-2);
    registry.collect_fn("c", "Pools", Kind::Gauge, || vec![(vec![("p".into(), "x".into())], 1.5)]).unwrap();
    registry.collect_fn("none", "Nothing to see", Kind::Gauge, Vec::new).unwrap();
    let histogram = registry.histogram("h_seconds", "Times", &[("l", "m")], Buckets::Latency).unwrap();
    for value in [99, 100, 101, 700_000, 1 << 40] {
        histogram.observe(Shard::worker(1), value);
    }
    let text = registry.render();
    assert!(!text.contains("none"), "{text}");
    assert!(text.contains("# HELP b_total One\\nhelp \\\\ text\n"), "{text}");
    let read = samples(&text);
    assert_eq!(read[r#"b_total{k="a\"b\\c\nd"}"#], 5.0);
    assert_eq!(read["a"], -2.0);
    assert_eq!(read[r#"c{p="x"}"#], 1.5);
    assert_eq!(read[r#"h_seconds_bucket{l="m",le="0.0001"}"#], 2.0);
    assert_eq!(read[r#"h_seconds_bucket{l="m",le="0.00025"}"#], 3.0);
    assert_eq!(read[r#"h_seconds_bucket{l="m",le="1"}"#], 4.0);
    assert_eq!(read[r#"h_seconds_bucket{l="m",le="60"}"#], 4.0);
    assert_eq!(read[r#"h_seconds_bucket{l="m",le="+Inf"}"#], 5.0);
    assert_eq!(read[r#"h_seconds_count{l="m"}"#], 5.0);
    let sum = (300.0 + 700_000.0 + (1u64 << 40) as f64) / 1e6;
    assert!((read[r#"h_seconds_sum{l="m"}"#] - sum).abs() < 1e-6 * sum);
    assert!(read.keys().filter(|key| key.contains("_bucket")).count() <= 20);
    let names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    assert!(names.is_sorted());
}

#[test]
fn a_collect_function_may_use_the_registry_and_be_replaced() {
    let registry = Registry::new(1);
    let inner = registry.clone();
    let ask = move || vec![(Labels::new(), inner.value("c", &[]).unwrap_or(-1.0))];
    registry.collect_fn("echo", "", Kind::Gauge, ask).unwrap();
    assert_eq!(samples(&registry.render())["echo"], -1.0);
    registry.counter("c", "", &[]).unwrap().add(shard(), 3);
    assert_eq!(registry.value("echo", &[]), Some(3.0));
    registry.collect_fn("echo", "", Kind::Gauge, || vec![(Labels::new(), 9.0)]).unwrap();
    assert_eq!(samples(&registry.render())["echo"], 9.0);
}

#[test]
fn series_of_removed_objects_can_be_dropped() {
    let registry = Registry::new(1);
    let old = registry.counter("c", "", &[("cluster", "old")]).unwrap();
    registry.counter("c", "", &[("cluster", "new")]).unwrap().inc(shard());
    registry.gauge("only_old", "", &[("cluster", "old")]).unwrap();
    let owner = Arc::default();
    registry.dynamic(Kind::Counter, "mine", &owner).unwrap();
    registry
        .retain(|name, labels| !name.starts_with("wasm") && !labels.iter().any(|(k, v)| k == "cluster" && v == "old"));
    old.inc(shard());
    let text = registry.render();
    assert_eq!(samples(&text).len(), 1, "{text}");
    assert_eq!(registry.families().dynamic, 0);
    assert_eq!(registry.counter("c", "", &[("cluster", "old")]).unwrap().value(), 0);
    registry.counter("only_old", "now another kind", &[]).unwrap();
}

#[test]
fn filters_define_metrics_within_bounds() {
    let registry = Registry::new(1);
    let (here, owner) = (Shard::worker(0), Arc::default());
    let define = |kind, name: &str| registry.dynamic(kind, name, &owner).map(|(handle, _)| handle);
    let counter = define(Kind::Counter, "envoy.wasm-stats/é.count").unwrap();
    counter.increment(here, 3).unwrap();
    define(Kind::Counter, "envoy.wasm-stats/é.count").unwrap().record(here, 2);
    assert_eq!(counter.get(), Ok(5));
    assert_eq!(counter.increment(here, -1), Err(MetricError::Operation(Kind::Counter)));
    assert_eq!(samples(&registry.render())["wasmcustom_envoy_wasm_stats___count"], 5.0);
    assert!(define(Kind::Gauge, "envoy.wasm.stats/é.count").is_err());

    let gauge = define(Kind::Gauge, "1st").unwrap();
    gauge.record(here, 10);
    gauge.increment(here, -3).unwrap();
    assert_eq!(gauge.get(), Ok(7));
    let histogram = define(Kind::Histogram, "h").unwrap();
    histogram.record(here, 30);
    assert_eq!(histogram.increment(here, 1), Err(MetricError::Operation(Kind::Histogram)));
    assert!(histogram.get().is_err());
    assert_eq!(samples(&registry.render())[r#"wasmcustom_h_bucket{le="50"}"#], 1.0);

    assert!(define(Kind::Gauge, "").is_err());
    assert_eq!(define(Kind::Gauge, &"x".repeat(5000)).unwrap_err(), MetricError::NameLength(5000));
}

#[test]
fn one_filter_leaves_room_for_the_metrics_of_others() {
    let registry = Registry::new(1);
    let (greedy, modest): (Arc<Owner>, Arc<Owner>) = (Arc::default(), Arc::default());
    let define = |owner, name: &str| registry.dynamic(Kind::Counter, name, owner).map(|(_, new)| new.is_some());
    let defined = (0..20_000).take_while(|i| define(&greedy, &format!("m{i}")).is_ok()).count();
    assert_eq!(defined, MAX_OWNED);
    assert_eq!(define(&greedy, "one_more"), Err(MetricError::TooMany));
    assert_eq!(define(&greedy, "m1"), Ok(false), "it already owns that one");
    assert_eq!((define(&modest, "mine"), define(&modest, "m1")), (Ok(true), Ok(true)));
    drop(greedy);
    let shown = samples(&registry.render());
    assert_eq!(shown.keys().map(String::as_str).collect::<Vec<_>>(), ["wasmcustom_m1", "wasmcustom_mine"]);
    registry.disown(&modest, "wasmcustom_mine");
    assert_eq!(samples(&registry.render()).len(), 1);
}

#[test]
fn filters_have_a_limited_share_of_a_scrape() {
    let registry = Registry::new(1);
    let owners: Vec<Arc<Owner>> = (0..8).map(|_| Arc::default()).collect();
    for (nth, owner) in owners.iter().enumerate() {
        let name = |i: usize| format!("{nth}_{i}_{}", "x".repeat(4000));
        let defined = (0..5000).take_while(|i| registry.dynamic(Kind::Histogram, &name(*i), owner).is_ok()).count();
        assert!(defined < 200, "{defined}");
    }
    let bytes = registry.render().len();
    assert!((32 << 20..=64 << 20).contains(&bytes), "{bytes}");
}

#[test]
fn no_count_is_lost_between_threads() {
    let registry = Registry::new(4);
    let together = Barrier::new(8);
    thread::scope(|scope| {
        for worker in 0..8 {
            // More threads than shards, so that they share some.
            let (registry, together) = (&registry, &together);
            scope.spawn(move || {
                set_shard(Shard::worker(worker % 2));
                let counter = registry.counter("n_total", "", &[]).unwrap();
                let gauge = registry.gauge("g", "", &[]).unwrap();
                let histogram = registry.histogram("h", "", &[], Buckets::Numbers).unwrap();
                together.wait();
                for i in 0..50_000 {
                    counter.inc(shard());
                    gauge.add(shard(), 2);
                    gauge.sub(Shard::worker(i % 4), 1);
                    histogram.observe(shard(), i as u64 % 7);
                }
            });
        }
    });
    let read = samples(&registry.render());
    assert_eq!(read["n_total"], 400_000.0);
    assert_eq!(read["g"], 400_000.0);
    assert_eq!(read["h_count"], 400_000.0);
    let sum: u64 = (0..50_000u64).map(|i| i % 7).sum::<u64>() * 8;
    assert_eq!(read["h_sum"], sum as f64);
}

#[test]
fn process_metrics_are_in_the_scrape() {
    let registry = Registry::new(1);
    register_process(&registry, "1.2.3").unwrap();
    register_process(&registry, "1.2.3").unwrap();
    let read = samples(&registry.render());
    assert_eq!(read[r#"tollgate_build_info{version="1.2.3"}"#], 1.0);
    assert!(read["process_start_time_seconds"] > 1.6e9);
    assert!(read["process_resident_memory_bytes"] > 100_000.0);
    assert!(read["process_open_fds"] >= 3.0);
    assert!(read["process_max_fds"] >= read["process_open_fds"]);
    assert!(read["process_threads"] >= 1.0);
    assert!(read.contains_key("process_cpu_seconds_total"));
}
