//! What a filter can do while it is configured.

use std::{cell::RefCell, time::Duration};

use tollgate_abi::{
    doc,
    proxy_wasm::{Status, metric},
};

use crate::{
    ConfigError,
    resources::{
        Bucket, Limit, RouteId,
        metrics::{Counter, Gauge, Histogram},
        shared::Queue,
    },
    sys::{
        self,
        types::{Name, millis},
    },
};

/// The host, while a filter is configured.
#[derive(Debug)]
pub struct Setup(pub(crate) ());

fn id(path: &str, what: &str, result: i32) -> Result<u32, ConfigError> {
    u32::try_from(result).map_err(|_| {
        let why = match -result {
            n if n == Status::NotFound as i32 => "names a cluster that does not exist",
            n if n == Status::InternalFailure as i32 => "is one too many, or too large beside the others",
            n if n == Status::ParseFailure as i32 => "cannot be read by this host",
            _ => "has a value that is out of range",
        };
        ConfigError::new(path, format!("{what} {why}"))
    })
}

impl Setup {
    /// A header's name, for use in requests and responses. In any case; not longer than 64 KiB.
    pub fn name(&mut self, name: &str) -> Name {
        let id = sys::header_intern(&name.to_ascii_lowercase());
        // A name that the host refuses is never in a message, which is what its largest number means too.
        Name(u32::try_from(id).unwrap_or(u32::MAX))
    }

    /// Defines a route, which [`Request::route`](crate::Request::route) selects by the [`RouteId`]. `path` is where it stands
    /// in the configuration, for the error if a cluster does not exist.
    pub fn route(&mut self, path: &str, route: &doc::Route) -> Result<RouteId, ConfigError> {
        if let Some(field) = sys::not_for_routes(route) {
            let message = format!("a portable filter cannot route with `{field}`: that needs Tollgate's own functions");
            return Err(ConfigError::new(path, message));
        }
        let result = sys::route_define(route);
        if -result == Status::NotFound as i32 {
            let names: Vec<_> = route.clusters.iter().map(|c| c.cluster.as_str()).collect();
            let mirror = route.mirror.iter().map(|m| m.cluster.as_str());
            let names: Vec<_> = names.into_iter().chain(mirror).collect();
            let unknown: Vec<_> = names.iter().filter(|n| !sys::cluster_exists(n)).map(|n| format!("`{n}`")).collect();
            return Err(ConfigError::new(path, format!("there is no cluster {}", unknown.join(", "))));
        }
        id(path, "the route", result).map(RouteId)
    }

    /// Whether a cluster of this name exists, for errors that point to where it is named. A portable filter cannot know: it
    /// always does.
    pub fn has_cluster(&self, name: &str) -> bool {
        sys::cluster_exists(name)
    }

    /// Defines a token bucket. `path` is where it stands in the configuration.
    pub fn bucket(&mut self, path: &str, bucket: &doc::Bucket) -> Result<Bucket, ConfigError> {
        id(path, "the bucket", sys::bucket_define(bucket)).map(Bucket)
    }

    /// Defines a bound on how many streams do something at once, over all workers.
    pub fn limit(&mut self, path: &str, name: &str, max: u32) -> Result<Limit, ConfigError> {
        id(path, "the limit", sys::limit_define(name, max.min(i32::MAX as u32))).map(Limit)
    }

    /// A counter in the proxy's metrics.
    pub fn counter(&mut self, name: &str) -> Counter {
        Counter(sys::metric_define(metric::COUNTER, name))
    }

    /// A gauge in the proxy's metrics.
    pub fn gauge(&mut self, name: &str) -> Gauge {
        Gauge(sys::metric_define(metric::GAUGE, name))
    }

    /// A histogram in the proxy's metrics.
    pub fn histogram(&mut self, name: &str) -> Histogram {
        Histogram(sys::metric_define(metric::HISTOGRAM, name))
    }

    /// The queue of this name, of the filter's `vm_id`; made if it is not there, and what is in it stays. From now on its
    /// messages come to [`Filter::on_queue`](crate::Filter::on_queue), each to the worker that has registered last. `path`
    /// is where it stands in the configuration, for the error if it is one too many (1024).
    pub fn queue(&mut self, path: &str, name: &str) -> Result<Queue, ConfigError> {
        id(path, "the queue", sys::queue_register(name)).map(Queue)
    }

    /// Calls [`Filter::on_tick`](crate::Filter::on_tick) in this interval, rounded up to whole milliseconds, on each worker.
    pub fn tick(&mut self, period: Duration) {
        sys::set_tick_period(milliseconds(period));
    }
}

/// A period as the host wants it, to which 0 means never.
fn milliseconds(period: Duration) -> u32 {
    if period.is_zero() { 0 } else { millis(period) }
}

/// Collects mistakes, so that a filter can tell all of them at once.
#[derive(Debug, Default)]
pub struct Mistakes(RefCell<Vec<ConfigError>>);

impl Mistakes {
    /// The value, or a mistake more.
    pub fn take<T>(&self, result: Result<T, ConfigError>) -> Option<T> {
        result.map_err(|e| self.0.borrow_mut().push(e)).ok()
    }

    /// A mistake more.
    pub fn add(&self, path: impl Into<String>, message: impl Into<String>) {
        self.0.borrow_mut().push(ConfigError::new(path, message));
    }

    /// All of them, if there are any.
    pub fn finish(self) -> Result<(), ConfigError> {
        ConfigError::all(self.0.into_inner()).map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_below_a_millisecond_is_not_never() {
        let periods = [Duration::ZERO, Duration::from_nanos(1), Duration::from_micros(1500), Duration::from_secs(2)];
        assert_eq!(periods.map(milliseconds), [0, 1, 2, 2000]);
        assert!(milliseconds(Duration::MAX) > 1 << 30);
    }
}
