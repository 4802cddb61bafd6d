//! Metrics that filters define at run time. Filters choose the names, so these metrics are restricted: a separate prefix,
//! characters that Prometheus accepts, and limits on their number and on their share of a scrape. A metric is removed with
//! the last filter that has defined it.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use super::{
    Buckets, Counter, Histogram, Kind, MetricError, PlainGauge, Registry, Shard,
    registry::{Families, Series, Shape},
};

/// The maximum number of metrics of one filter.
pub const MAX_OWNED: usize = 5_000;
/// The maximum number of metrics of all filters.
pub const MAX_DYNAMIC: usize = 20_000;
/// The maximum size of one filter's metrics in a scrape, in bytes.
const MAX_OWNED_TEXT: usize = 16 << 20;
/// The maximum size of all filters' metrics in a scrape, in bytes.
const MAX_TEXT: usize = 64 << 20;
/// The maximum length of a name, in bytes. Istio puts a metric's tags into its name, so names can be long.
pub const MAX_DYNAMIC_NAME: usize = 4096;

const PREFIX: &str = "wasmcustom_";

/// A filter's metric, with the operations of proxy-wasm as Envoy understands them.
#[derive(Debug, Clone)]
pub enum Handle {
    /// A counter.
    Counter(Counter),
    /// A gauge, which can be set and is therefore not sharded.
    Gauge(PlainGauge),
    /// A histogram with the buckets of [`Buckets::Numbers`].
    Histogram(Histogram),
}

impl Handle {
    /// `proxy_increment_metric`. A counter accepts no negative offset.
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

    /// `proxy_record_metric`: adds to a counter, sets a gauge, adds a value to a histogram.
    pub fn record(&self, shard: Shard, value: u64) {
        match self {
            Handle::Counter(counter) => counter.add(shard, value),
            Handle::Gauge(gauge) => gauge.set(value.cast_signed()),
            Handle::Histogram(histogram) => histogram.observe(shard, value),
        }
    }

    /// The address of the metric, equal for all of its handles.
    pub(super) fn address(&self) -> usize {
        match self {
            Handle::Counter(counter) => counter.address(),
            Handle::Gauge(gauge) => gauge.address(),
            Handle::Histogram(histogram) => histogram.address(),
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

/// A filter as an owner of metrics, which it owns for its lifetime.
#[derive(Debug, Default)]
pub struct Owner {
    count: AtomicUsize,
    text: AtomicUsize,
}

impl Families {
    /// Removes the metrics of filters that no longer exist.
    pub(super) fn forget_unowned(&mut self) {
        let (mut count, mut text) = (0, 0);
        self.by_name.retain(|_, family| {
            let Some(dynamic) = &mut family.dynamic else { return true };
            dynamic.owners.retain(|owner| owner.strong_count() > 0);
            let stays = !dynamic.owners.is_empty();
            (count, text) = (count + usize::from(stays), text + if stays { dynamic.text } else { 0 });
            stays
        });
        (self.dynamic, self.dynamic_text) = (count, text);
    }

    fn has_room(&self, text: usize) -> bool {
        self.dynamic < MAX_DYNAMIC && self.dynamic_text + text <= MAX_TEXT
    }
}

/// The approximate size of a metric in a scrape, in bytes: each line contains its name.
fn text_size(name: &str, help: &str, kind: Kind) -> usize {
    const LINE: usize = 40;
    let lines = if kind == Kind::Histogram { 32 } else { 3 };
    lines * (name.len() + LINE) + help.len()
}

impl Registry {
    /// Returns the metric that a filter calls `name`, exposed as `wasmcustom_NAME` with `_` for characters that Prometheus does
    /// not accept. All filters share the metric of a name, and each becomes an owner. If `owner` was not one before, also
    /// returns the exposed name.
    pub fn dynamic(&self, kind: Kind, name: &str, owner: &Arc<Owner>) -> Result<(Handle, Option<String>), MetricError> {
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
            Kind::Histogram => Shape::Histogram(Buckets::Numbers),
        };
        // The help text has the filter's original name.
        let help = format!("Defined by a filter as {name}");
        let (series, newly) = self.dynamic_series((&shown, &help), shape, text_size(&shown, &help, kind), owner)?;
        let handle = match series {
            Series::Counter(counter) => Handle::Counter(counter),
            Series::PlainGauge(gauge) => Handle::Gauge(gauge),
            Series::Histogram(histogram) => Handle::Histogram(histogram),
            Series::Gauge(_) | Series::SumGauge(_) => return Err(MetricError::Operation(kind)),
        };
        Ok((handle, newly.then_some(shown)))
    }

    fn dynamic_series(
        &self,
        (name, help): (&str, &str),
        shape: Shape,
        text: usize,
        owner: &Arc<Owner>,
    ) -> Result<(Series, bool), MetricError> {
        let mut families = self.families();
        let is_owner = |known: &Weak<Owner>| std::ptr::eq(known.as_ptr(), Arc::as_ptr(owner));
        let known = families.by_name.get(name).and_then(|family| family.dynamic.as_ref());
        let owned = known.is_some_and(|known| known.owners.iter().any(is_owner));
        if !owned {
            let has_too_many = owner.count.load(Relaxed) >= MAX_OWNED;
            if has_too_many || owner.text.load(Relaxed) + text > MAX_OWNED_TEXT {
                return Err(MetricError::TooMany);
            }
            if known.is_none() && !families.has_room(text) {
                families.forget_unowned();
                if !families.has_room(text) {
                    return Err(MetricError::TooMany);
                }
            }
        }
        let shards = self.shards();
        let series = families.series((name, help, Some(text)), Vec::new(), shape, shards)?;
        let dynamic = families.by_name.get_mut(name).and_then(|family| family.dynamic.as_mut());
        if let Some(dynamic) = dynamic.filter(|_| !owned) {
            dynamic.owners.retain(|owner| owner.strong_count() > 0);
            dynamic.owners.push(Arc::downgrade(owner));
            owner.count.fetch_add(1, Relaxed);
            owner.text.fetch_add(text, Relaxed);
        }
        Ok((series, !owned))
    }

    /// Removes this owner of a metric, given by its exposed name, and the metric itself if it has no owner left.
    pub fn disown(&self, owner: &Arc<Owner>, shown: &str) {
        let mut families = self.families();
        let Some(dynamic) = families.by_name.get_mut(shown).and_then(|family| family.dynamic.as_mut()) else { return };
        let there = dynamic.owners.len();
        dynamic.owners.retain(|known| !std::ptr::eq(known.as_ptr(), Arc::as_ptr(owner)));
        if dynamic.owners.len() < there {
            owner.count.fetch_sub(1, Relaxed);
            owner.text.fetch_sub(dynamic.text, Relaxed);
        }
        families.forget_unowned();
    }
}
