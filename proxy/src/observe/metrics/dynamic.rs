//! Metrics that filters define at run time. A filter chooses their names, so they are confined: a prefix of their own,
//! characters that Prometheus takes, and a bound on how many there may be.

use super::{
    Counter, Histogram, Kind, Ladder, MetricError, PlainGauge, Registry, Shard,
    registry::{Series, Shape},
};

/// How many metrics all filters together may define.
pub const MAX_DYNAMIC: usize = 10_000;
/// Bytes of a name. Istio puts a metric's tags into its name, so they can be long.
pub const MAX_DYNAMIC_NAME: usize = 4096;

const PREFIX: &str = "wasmcustom_";

/// A filter's metric, with the operations of proxy-wasm as Envoy understands them.
#[derive(Debug, Clone)]
pub enum Handle {
    /// It only grows.
    Counter(Counter),
    /// It can be set, so it is not sharded.
    Gauge(PlainGauge),
    /// With the buckets of [`Ladder::Numbers`].
    Histogram(Histogram),
}

impl Handle {
    /// `proxy_increment_metric`. A counter takes no negative offset.
    pub fn increment(&self, shard: Shard, offset: i64) -> Result<(), MetricError> {
        match self {
            Handle::Counter(counter) => {
                let offset = u64::try_from(offset).map_err(|_| MetricError::Operation(Kind::Counter))?;
                counter.add(shard, offset);
            }
            Handle::Gauge(gauge) => gauge.add(offset),
            Handle::Histogram(_) => return Err(MetricError::Operation(Kind::Histogram)),
        }
        Ok(())
    }

    /// `proxy_record_metric`: adds to a counter, sets a gauge, counts a value of a histogram.
    pub fn record(&self, shard: Shard, value: u64) {
        match self {
            Handle::Counter(counter) => counter.add(shard, value),
            Handle::Gauge(gauge) => gauge.set(value.cast_signed()),
            Handle::Histogram(histogram) => histogram.observe(shard, value),
        }
    }

    /// `proxy_get_metric`: a histogram has no single value.
    pub fn get(&self) -> Result<u64, MetricError> {
        match self {
            Handle::Counter(counter) => Ok(counter.value()),
            Handle::Gauge(gauge) => Ok(gauge.value().cast_unsigned()),
            Handle::Histogram(_) => Err(MetricError::Operation(Kind::Histogram)),
        }
    }
}

impl Registry {
    /// The metric that a filter calls `name`, shown as `wasmcustom_NAME` with `_` for what Prometheus does not take.
    /// The same name gives the same metric, whichever filter asks.
    pub fn dynamic(&self, kind: Kind, name: &str) -> Result<Handle, MetricError> {
        self.dynamic_within(kind, name, MAX_DYNAMIC)
    }

    pub(super) fn dynamic_within(&self, kind: Kind, name: &str, max: usize) -> Result<Handle, MetricError> {
        if name.is_empty() {
            return Err(MetricError::Name(String::new()));
        }
        if name.len() > MAX_DYNAMIC_NAME {
            return Err(MetricError::NameLength(name.len()));
        }
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        let shown: String = PREFIX.chars().chain(name.chars().map(|c| if fits(c) { c } else { '_' })).collect();
        let shape = match kind {
            Kind::Counter => Shape::Counter,
            Kind::Gauge => Shape::PlainGauge,
            Kind::Histogram => Shape::Histogram(Ladder::Numbers),
        };
        // The help text keeps the name as the filter knows it.
        match self.dynamic_series(&shown, &format!("Defined by a filter as {name}"), shape, max)? {
            Series::Counter(counter) => Ok(Handle::Counter(counter)),
            Series::PlainGauge(gauge) => Ok(Handle::Gauge(gauge)),
            Series::Histogram(histogram) => Ok(Handle::Histogram(histogram)),
            Series::Gauge(_) => Err(MetricError::Operation(kind)),
        }
    }
}
