//! The host functions available to a filter while it is configured.

use std::{cell::RefCell, time::Duration};

use tollgate_abi::{
    doc, fast,
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

/// Handle to the host during configuration.
#[derive(Debug)]
pub struct Setup(pub(crate) ());

fn id(path: &str, what: &str, result: i32) -> Result<u32, ConfigError> {
    u32::try_from(result).map_err(|_| {
        let why = match -result {
            n if n == Status::NotFound as i32 => "names a cluster or a variant that does not exist",
            n if n == Status::InternalFailure as i32 => "exceeds the limit on their number or total size",
            n if n == Status::ParseFailure as i32 => "cannot be read by this host",
            _ => "has a value that is out of range",
        };
        ConfigError::new(path, format!("{what} {why}"))
    })
}

impl Setup {
    /// Registers a header name for use with requests and responses. Case-insensitive, at most 64 KiB.
    pub fn name(&mut self, name: &str) -> Name {
        let id = sys::header_intern(&name.to_ascii_lowercase());
        // A name that the host rejects never occurs in a message; the largest id has the same meaning.
        Name(u32::try_from(id).unwrap_or(u32::MAX))
    }

    /// Defines a route that [`Request::route`](crate::Request::route) selects by its [`RouteId`]. `path` is its
    /// location in the configuration, for the error that reports an unknown cluster.
    pub fn route(&mut self, path: &str, route: &doc::Route) -> Result<RouteId, ConfigError> {
        if let Some(field) = sys::not_for_routes(route) {
            let message = format!("a portable filter cannot route with `{field}`: that needs Tollgate's own functions");
            return Err(ConfigError::new(path, message));
        }
        let result = sys::route_define(route);
        if -result == Status::NotFound as i32 {
            for (filter, variant) in &route.filters {
                self.variant(path, filter, variant)?;
            }
            let names: Vec<_> = route.clusters.iter().map(|c| c.cluster.as_str()).collect();
            let mirror = route.mirror.iter().map(|m| m.cluster.as_str());
            let names: Vec<_> = names.into_iter().chain(mirror).collect();
            let unknown: Vec<_> = names.iter().filter(|n| !sys::cluster_exists(n)).map(|n| format!("`{n}`")).collect();
            return Err(ConfigError::new(path, format!("there is no cluster {}", unknown.join(", "))));
        }
        id(path, "the route", result).map(RouteId)
    }

    /// Reports whether a cluster of this name exists, so that errors can point to where it is named. A portable filter
    /// cannot find out and always gets `true`.
    pub fn has_cluster(&self, name: &str) -> bool {
        sys::cluster_exists(name)
    }

    /// Checks a name and a value of [`doc::Route::filters`]: that the configuration has the filter, and the filter the
    /// variant. `path` is their location in the configuration. A portable filter cannot find out.
    pub fn variant(&self, path: &str, filter: &str, variant: &str) -> Result<(), ConfigError> {
        let message = match sys::variant_exists(filter, variant) {
            fast::variant::EXISTS => return Ok(()),
            fast::variant::NO_VARIANT => format!("filter `{filter}` has no variant `{variant}`"),
            _ => format!("there is no filter `{filter}`"),
        };
        Err(ConfigError::new(path, message))
    }

    /// Defines a token bucket. `path` is its location in the configuration.
    pub fn bucket(&mut self, path: &str, bucket: &doc::Bucket) -> Result<Bucket, ConfigError> {
        id(path, "the bucket", sys::bucket_define(bucket)).map(Bucket)
    }

    /// Defines a limit on the number of concurrent streams, shared by all workers.
    pub fn limit(&mut self, path: &str, name: &str, max: u32) -> Result<Limit, ConfigError> {
        id(path, "the limit", sys::limit_define(name, max.min(i32::MAX as u32))).map(Limit)
    }

    /// Defines a counter in the proxy's metrics.
    pub fn counter(&mut self, name: &str) -> Counter {
        Counter(sys::metric_define(metric::COUNTER, name))
    }

    /// Defines a gauge in the proxy's metrics.
    pub fn gauge(&mut self, name: &str) -> Gauge {
        Gauge(sys::metric_define(metric::GAUGE, name))
    }

    /// Defines a histogram in the proxy's metrics.
    pub fn histogram(&mut self, name: &str) -> Histogram {
        Histogram(sys::metric_define(metric::HISTOGRAM, name))
    }

    /// Opens the queue of this name in the filter's `vm_id`, creating it if necessary; an existing queue keeps its
    /// messages. From then on its messages are delivered to [`Filter::on_queue`](crate::Filter::on_queue), each to the
    /// worker that registered last. `path` is its location in the configuration, for the error if there are too many
    /// queues (more than 1024).
    pub fn queue(&mut self, path: &str, name: &str) -> Result<Queue, ConfigError> {
        id(path, "the queue", sys::queue_register(name)).map(Queue)
    }

    /// Calls [`Filter::on_tick`](crate::Filter::on_tick) at this interval on each worker, rounded up to whole
    /// milliseconds.
    pub fn tick(&mut self, period: Duration) {
        sys::set_tick_period(milliseconds(period));
    }
}

/// Converts a period to the host's milliseconds; the host treats 0 as "never".
fn milliseconds(period: Duration) -> u32 {
    if period.is_zero() { 0 } else { millis(period) }
}

/// Collects errors, so that a filter can report all of them together.
#[derive(Debug, Default)]
pub struct Mistakes(RefCell<Vec<ConfigError>>);

impl Mistakes {
    /// Returns the value, or records the error.
    pub fn take<T>(&self, result: Result<T, ConfigError>) -> Option<T> {
        result.map_err(|e| self.0.borrow_mut().push(e)).ok()
    }

    /// Records an error.
    pub fn add(&self, path: impl Into<String>, message: impl Into<String>) {
        self.0.borrow_mut().push(ConfigError::new(path, message));
    }

    /// Returns all recorded errors, if any.
    pub fn finish(self) -> Result<(), ConfigError> {
        ConfigError::all(self.0.into_inner()).map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn period_below_a_millisecond_is_rounded_up() {
        let periods = [Duration::ZERO, Duration::from_nanos(1), Duration::from_micros(1500), Duration::from_secs(2)];
        assert_eq!(periods.map(milliseconds), [0, 1, 2, 2000]);
        assert!(milliseconds(Duration::MAX) > 1 << 30);
    }
}
