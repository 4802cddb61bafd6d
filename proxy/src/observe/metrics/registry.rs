//! The registry of all metrics, by name and labels. It is used at configuration and at scrapes, never on the data path.
//! The same name and labels give the same handle, so metrics survive a reload.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use super::{
    Buckets, Counter, Distribution, Gauge, Histogram, Kind, MetricError, PlainGauge, SumGauge, dynamic::Owner,
};

/// A series' labels, sorted by name.
pub type Labels = Vec<(String, String)>;

/// All metrics. Cheap to clone; clones share the same registry.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

struct Shared {
    shards: usize,
    families: Mutex<Families>,
}

pub(super) type Collect = Arc<dyn Fn() -> Vec<(Labels, Collected)> + Send + Sync>;

/// What a function returns for a series at a scrape.
#[derive(Debug, Clone, PartialEq)]
pub enum Collected {
    /// The value of a counter or a gauge.
    Value(f64),
    /// The contents of a histogram.
    Distribution(Distribution),
}

#[derive(Default)]
pub(super) struct Families {
    pub(super) by_name: BTreeMap<String, Family>,
    /// The number of families that are [`Family::dynamic`].
    pub(super) dynamic: usize,
    /// Their size in a scrape, in bytes.
    pub(super) dynamic_text: usize,
}

pub(super) struct Family {
    pub(super) help: String,
    pub(super) source: Source,
    /// Set if filters define the family.
    pub(super) dynamic: Option<Dynamic>,
}

/// Additional data of a family that filters define: its owners, and its size in a scrape in bytes.
pub(super) struct Dynamic {
    pub(super) owners: Vec<Weak<Owner>>,
    pub(super) text: usize,
}

pub(super) enum Source {
    Series { shape: Shape, series: BTreeMap<Labels, Series> },
    Collected { kind: Kind, collect: Collect },
}

/// The type and storage that all series of a family share.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Counter,
    Gauge,
    PlainGauge,
    SumGauge,
    Histogram(Buckets),
}

#[derive(Clone)]
pub(super) enum Series {
    Counter(Counter),
    Gauge(Gauge),
    PlainGauge(PlainGauge),
    SumGauge(SumGauge),
    Histogram(Histogram),
}

impl Shape {
    fn kind(self) -> Kind {
        match self {
            Shape::Counter => Kind::Counter,
            Shape::Gauge | Shape::PlainGauge | Shape::SumGauge => Kind::Gauge,
            Shape::Histogram(_) => Kind::Histogram,
        }
    }

    fn make(self, shards: usize) -> Series {
        match self {
            Shape::Counter => Series::Counter(Counter::new(shards)),
            Shape::Gauge => Series::Gauge(Gauge::new(shards)),
            Shape::PlainGauge => Series::PlainGauge(PlainGauge::default()),
            Shape::SumGauge => Series::SumGauge(SumGauge::default()),
            Shape::Histogram(buckets) => Series::Histogram(Histogram::new(buckets, shards)),
        }
    }
}

impl Source {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Source::Series { shape, .. } => shape.kind(),
            Source::Collected { kind, .. } => *kind,
        }
    }
}

impl Families {
    /// Returns the type of a family whose names in the scrape would collide: a histogram `x` is exposed as `x_bucket`, `x_sum`
    /// and `x_count`, so no other family may have those names.
    fn shadowed(&self, name: &str, kind: Kind) -> Option<Kind> {
        const SUFFIXES: [&str; 3] = ["_bucket", "_sum", "_count"];
        let base_is_histogram = SUFFIXES
            .iter()
            .filter_map(|suffix| name.strip_suffix(suffix))
            .any(|base| self.by_name.get(base).is_some_and(|family| family.source.kind() == Kind::Histogram));
        if base_is_histogram {
            return Some(Kind::Histogram);
        }
        let part = |suffix: &&str| self.by_name.get(&format!("{name}{suffix}")).map(|family| family.source.kind());
        (kind == Kind::Histogram).then(|| SUFFIXES.iter().find_map(part)).flatten()
    }

    /// Returns the series of this name and labels, and creates it if it does not exist.
    pub(super) fn series(
        &mut self,
        (name, help, dynamic_text): (&str, &str, Option<usize>),
        labels: Labels,
        shape: Shape,
        shards: usize,
    ) -> Result<Series, MetricError> {
        let conflict = |there| MetricError::Conflict { name: name.to_owned(), there, asked: shape.kind() };
        if !self.by_name.contains_key(name) {
            if let Some(there) = self.shadowed(name, shape.kind()) {
                return Err(conflict(there));
            }
            let source = Source::Series { shape, series: BTreeMap::new() };
            let dynamic = dynamic_text.map(|text| Dynamic { owners: Vec::new(), text });
            self.by_name.insert(name.to_owned(), Family { help: help.to_owned(), source, dynamic });
            if let Some(dynamic) = dynamic_text {
                (self.dynamic, self.dynamic_text) = (self.dynamic + 1, self.dynamic_text + dynamic);
            }
        }
        match self.by_name.get_mut(name) {
            Some(Family { source: Source::Series { shape: there, series }, .. }) if *there == shape => {
                Ok(series.entry(labels).or_insert_with(|| shape.make(shards)).clone())
            }
            Some(family) => Err(conflict(family.source.kind())),
            None => Err(MetricError::Name(name.to_owned())),
        }
    }
}

impl Registry {
    /// Creates a registry for this many workers and the control thread.
    pub fn new(workers: usize) -> Self {
        Registry { shared: Arc::new(Shared { shards: workers + 1, families: Mutex::default() }) }
    }

    /// The number of shards of a metric: one per worker, and one for the control thread.
    pub fn shards(&self) -> usize {
        self.shared.shards
    }

    /// The counter of this name and labels.
    pub fn counter(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Result<Counter, MetricError> {
        match self.series(name, help, labels, Shape::Counter)? {
            Series::Counter(counter) => Ok(counter),
            _ => Err(MetricError::Operation(Kind::Counter)),
        }
    }

    /// The gauge of this name and labels that workers increase and decrease.
    pub fn gauge(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Result<Gauge, MetricError> {
        match self.series(name, help, labels, Shape::Gauge)? {
            Series::Gauge(gauge) => Ok(gauge),
            _ => Err(MetricError::Operation(Kind::Gauge)),
        }
    }

    /// The gauge of this name and labels that is set to a value.
    pub fn plain_gauge(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Result<PlainGauge, MetricError> {
        match self.series(name, help, labels, Shape::PlainGauge)? {
            Series::PlainGauge(gauge) => Ok(gauge),
            _ => Err(MetricError::Operation(Kind::Gauge)),
        }
    }

    /// The gauge of this name and labels that is the sum of others.
    pub fn sum_gauge(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Result<SumGauge, MetricError> {
        match self.series(name, help, labels, Shape::SumGauge)? {
            Series::SumGauge(gauge) => Ok(gauge),
            _ => Err(MetricError::Operation(Kind::Gauge)),
        }
    }

    /// The histogram of this name and labels.
    pub fn histogram(
        &self,
        name: &str,
        help: &str,
        labels: &[(&str, &str)],
        buckets: Buckets,
    ) -> Result<Histogram, MetricError> {
        match self.series(name, help, labels, Shape::Histogram(buckets))? {
            Series::Histogram(histogram) => Ok(histogram),
            _ => Err(MetricError::Operation(Kind::Histogram)),
        }
    }

    /// Registers a function that returns a counter's or gauge's values at each scrape. A later call with the same name
    /// replaces the function. The function may use the registry, but must not wait for workers.
    pub fn collect_fn(
        &self,
        name: &str,
        help: &str,
        kind: Kind,
        collect: impl Fn() -> Vec<(Labels, f64)> + Send + Sync + 'static,
    ) -> Result<(), MetricError> {
        if kind == Kind::Histogram {
            return Err(MetricError::Operation(kind));
        }
        let collect = move || collect().into_iter().map(|(labels, value)| (labels, Collected::Value(value))).collect();
        self.collect(name, help, kind, Arc::new(collect))
    }

    /// Does the same for a histogram.
    pub fn collect_distributions(
        &self,
        name: &str,
        help: &str,
        collect: impl Fn() -> Vec<(Labels, Distribution)> + Send + Sync + 'static,
    ) -> Result<(), MetricError> {
        let collect = move || {
            let all = collect().into_iter();
            all.map(|(labels, distribution)| (labels, Collected::Distribution(distribution))).collect()
        };
        self.collect(name, help, Kind::Histogram, Arc::new(collect))
    }

    fn collect(&self, name: &str, help: &str, kind: Kind, collect: Collect) -> Result<(), MetricError> {
        check_name(name)?;
        let mut families = self.families();
        let there = match families.by_name.get(name) {
            Some(Family { source: Source::Collected { kind: there, .. }, .. }) if *there == kind => None,
            Some(family) => Some(family.source.kind()),
            None => families.shadowed(name, kind),
        };
        if let Some(there) = there {
            return Err(MetricError::Conflict { name: name.to_owned(), there, asked: kind });
        }
        let source = Source::Collected { kind, collect };
        families.by_name.insert(name.to_owned(), Family { help: help.to_owned(), source, dynamic: None });
        Ok(())
    }

    /// Drops the series for which `keep` returns false: those of clusters and filters that a reload has removed. Handles of a
    /// dropped series keep working, but the series is no longer exposed, and the next request for it creates a new
    /// one.
    pub fn retain(&self, keep: impl Fn(&str, &[(String, String)]) -> bool) {
        let mut families = self.families();
        families.by_name.retain(|name, family| match &mut family.source {
            Source::Series { series, .. } => {
                series.retain(|labels, _| keep(name, labels));
                !series.is_empty()
            }
            Source::Collected { .. } => true,
        });
        families.forget_unowned();
    }

    /// A metric's current value; for a histogram, its count.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = sorted(labels);
        let collect = match &self.families().by_name.get(name)?.source {
            Source::Series { series, .. } => return series.get(&labels).map(Series::value),
            Source::Collected { collect, .. } => Arc::clone(collect),
        };
        collect().into_iter().find_map(|(mut found, value)| {
            found.sort();
            let value = match value {
                Collected::Value(value) => value,
                Collected::Distribution(distribution) => distribution.count as f64,
            };
            (found == labels).then_some(value)
        })
    }

    fn series(&self, name: &str, help: &str, labels: &[(&str, &str)], shape: Shape) -> Result<Series, MetricError> {
        check_name(name)?;
        let labels = sorted(labels);
        check_labels(&labels)?;
        self.families().series((name, help, None), labels, shape, self.shared.shards)
    }

    pub(super) fn families(&self) -> MutexGuard<'_, Families> {
        // No operation leaves the map half changed, so it is valid even after another thread's panic.
        self.shared.families.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("shards", &self.shared.shards).finish_non_exhaustive()
    }
}

impl Series {
    fn value(&self) -> f64 {
        match self {
            Series::Counter(counter) => counter.value() as f64,
            Series::Gauge(gauge) => gauge.value() as f64,
            Series::PlainGauge(gauge) => gauge.value() as f64,
            Series::SumGauge(gauge) => gauge.value() as f64,
            Series::Histogram(histogram) => histogram.read().count as f64,
        }
    }
}

fn sorted(labels: &[(&str, &str)]) -> Labels {
    let mut labels: Labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    labels.sort();
    labels
}

fn is_name(name: &str, colon: bool) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || (colon && b == b':');
    name.bytes().next().is_some_and(|b| !b.is_ascii_digit()) && name.bytes().all(fits)
}

fn check_name(name: &str) -> Result<(), MetricError> {
    if is_name(name, true) { Ok(()) } else { Err(MetricError::Name(name.to_owned())) }
}

fn check_labels(labels: &Labels) -> Result<(), MetricError> {
    let twice = labels.windows(2).find(|pair| pair[0].0 == pair[1].0).map(|pair| &pair[0].0);
    // `le` is reserved for histograms, and names that begin with two underscores for Prometheus.
    let wrong = |name: &&String| !is_name(name, false) || *name == "le" || name.starts_with("__");
    match twice.or_else(|| labels.iter().map(|(name, _)| name).find(wrong)) {
        Some(name) => Err(MetricError::Label(name.clone())),
        None => Ok(()),
    }
}
