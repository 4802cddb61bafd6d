//! Metrics of gRPC calls by method. Series are created when methods are first seen, because they are not configured.
//! Their number is limited, and requests other than calls are not counted here.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use arc_swap::ArcSwap;
use rustc_hash::FxHashMap;

use crate::{
    http::grpc::{self, Code},
    observe::{Buckets, Counter, Histogram, Registry, Shard},
};

/// Maximum number of methods per listener with their own series.
const MAX_METHODS: usize = 500;

/// The label of methods without their own series, and of statuses that gRPC does not define.
const OTHER: &str = "other";

/// A listener's methods. Lookups take no lock; the first call of a method replaces the map with a larger copy.
pub struct GrpcMethodMetrics {
    registry: Registry,
    listener: Box<str>,
    /// Methods by path.
    known: ArcSwap<FxHashMap<Box<[u8]>, Arc<GrpcMethod>>>,
    other: OnceLock<Arc<GrpcMethod>>,
    full: AtomicBool,
}

struct GrpcMethod {
    service: Box<str>,
    name: Box<str>,
    /// Counters by status, created when first seen; the last one is for unknown statuses.
    calls: [OnceLock<Counter>; grpc::NAMES.len() + 1],
    duration: Histogram,
}

impl GrpcMethodMetrics {
    /// Creates an empty table.
    pub fn new(registry: Registry, listener: &str) -> GrpcMethodMetrics {
        GrpcMethodMetrics {
            registry,
            listener: listener.into(),
            known: ArcSwap::default(),
            other: OnceLock::new(),
            full: AtomicBool::new(false),
        }
    }

    /// Counts a completed call. `path` is the client's path; `tried`: the call went to an upstream. A method gets its
    /// own series only once an upstream has implemented it, so that clients cannot exhaust the series with invented
    /// names.
    pub(super) fn count(&self, path: &[u8], status: u32, tried: bool, shard: Shard, micros: u64) {
        let path = path.split(|b| *b == b'?').next().unwrap_or_default();
        let known = self.known.load();
        let found = known.get(path);
        let method = match found {
            Some(method) => method,
            None if tried && status != Code::Unimplemented.number() => &self.learn(path),
            None => self.other(),
        };
        let index = (status as usize).min(grpc::NAMES.len());
        method.calls[index].get_or_init(|| self.calls(method, index)).inc(shard);
        method.duration.observe(shard, micros);
    }

    /// Adds the method of an unknown path.
    fn learn(&self, path: &[u8]) -> Arc<GrpcMethod> {
        let named = str::from_utf8(path).ok().and_then(grpc::split_path);
        let Some((service, name)) = named.filter(|_| !self.full.load(Relaxed)) else { return self.other().clone() };
        let method = Arc::new(self.method(service, name));
        self.known.rcu(|known| {
            let mut known = FxHashMap::clone(known);
            // Another worker may have been faster; both count into the same series.
            if known.len() < MAX_METHODS {
                known.entry(path.into()).or_insert_with(|| method.clone());
            }
            known
        });
        let known = self.known.load();
        self.full.store(known.len() >= MAX_METHODS, Relaxed);
        known.get(path).unwrap_or_else(|| self.other()).clone()
    }

    fn other(&self) -> &Arc<GrpcMethod> {
        self.other.get_or_init(|| Arc::new(self.method(OTHER, OTHER)))
    }

    fn labels<'a>(&'a self, service: &'a str, method: &'a str) -> [(&'static str, &'a str); 3] {
        [("listener", &self.listener), ("service", service), ("method", method)]
    }

    fn method(&self, service: &str, name: &str) -> GrpcMethod {
        let duration = self.registry.histogram(
            "tollgate_grpc_request_duration_seconds",
            "From a gRPC request's head to the end of its response.",
            &self.labels(service, name),
            Buckets::Latency,
        );
        GrpcMethod {
            service: service.into(),
            name: name.into(),
            calls: Default::default(),
            // The names are valid, so this does not fail; if it did, only these metrics would be missing.
            duration: duration.unwrap_or_else(|_| Histogram::new(Buckets::Latency, 1)),
        }
    }

    fn calls(&self, method: &GrpcMethod, index: usize) -> Counter {
        let status = grpc::NAMES.get(index).copied().unwrap_or(OTHER);
        let labels = [&self.labels(&method.service, &method.name)[..], &[("status", status)]].concat();
        let counter = self.registry.counter("tollgate_grpc_requests_total", "gRPC requests by status.", &labels);
        counter.unwrap_or_else(|_| Counter::new(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOTAL: &str = "tollgate_grpc_requests_total";

    fn value(registry: &Registry, service: &str, method: &str, status: &str) -> Option<f64> {
        registry.value(TOTAL, &[("listener", "l"), ("service", service), ("method", method), ("status", status)])
    }

    #[test]
    fn calls_are_counted_by_method_and_status() {
        let registry = Registry::new(1);
        let methods = GrpcMethodMetrics::new(registry.clone(), "l");
        for (path, status, tried) in [
            (&b"/a.B/C"[..], 0, true),
            (b"/a.B/C?x=1", 0, true),
            (b"/a.B/C", 14, false),
            (b"/a.B/C", 99, true),
            (b"/a.B/None", 12, true),
            (b"/a.B/Denied", 7, false),
            (b"/a b/C", 0, true),
            (b"/a/b/c", 0, true),
            (b"\xff", 0, true),
        ] {
            methods.count(path, status, tried, Shard::CONTROL, 10);
        }
        assert_eq!(value(&registry, "a.B", "C", "OK"), Some(2.0));
        assert_eq!(value(&registry, "a.B", "C", "UNAVAILABLE"), Some(1.0), "the method is known by now");
        assert_eq!(value(&registry, "a.B", "C", "other"), Some(1.0));
        assert_eq!(value(&registry, "other", "other", "UNIMPLEMENTED"), Some(1.0));
        assert_eq!(value(&registry, "other", "other", "PERMISSION_DENIED"), Some(1.0));
        assert_eq!(value(&registry, "other", "other", "OK"), Some(3.0));
        assert_eq!(value(&registry, "a.B", "None", "UNIMPLEMENTED"), None);
        let labels = [("listener", "l"), ("service", "a.B"), ("method", "C")];
        assert_eq!(registry.value("tollgate_grpc_request_duration_seconds", &labels), Some(4.0));
    }

    #[test]
    fn number_of_methods_is_limited() {
        let registry = Registry::new(1);
        let methods = GrpcMethodMetrics::new(registry.clone(), "l");
        for _ in 0..2 {
            for n in 0..MAX_METHODS + 10 {
                methods.count(format!("/s/m{n}").as_bytes(), 0, true, Shard::CONTROL, 10);
            }
        }
        assert_eq!(value(&registry, "s", &format!("m{}", MAX_METHODS - 1), "OK"), Some(2.0));
        assert_eq!(value(&registry, "s", &format!("m{MAX_METHODS}"), "OK"), None);
        assert_eq!(value(&registry, "other", "other", "OK"), Some(20.0));
    }
}
