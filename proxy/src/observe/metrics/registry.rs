//! The registry: which figures exist, by name and labels. It is asked when something is configured and when it is
//! scraped, never on the data path; the same name and labels give the same handle, so figures survive a reload.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use super::{Buckets, Counter, Gauge, Histogram, Kind, MetricError, PlainGauge, dynamic::Owner};

/// A series' labels, sorted by name.
pub type Labels = Vec<(String, String)>;

/// All figures. Cheap to clone; clones are the same registry.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

struct Shared {
    shards: usize,
    families: Mutex<Families>,
}

pub(super) type Collect = Arc<dyn Fn() -> Vec<(Labels, f64)> + Send + Sync>;

#[derive(Default)]
pub(super) struct Families {
    pub(super) by_name: BTreeMap<String, Family>,
    /// How many families are [`Family::dynamic`].
    pub(super) dynamic: usize,
    /// Bytes of text that they take in a scrape.
    pub(super) dynamic_text: usize,
}

pub(super) struct Family {
    pub(super) help: String,
    pub(super) source: Source,
    /// Defined by filters: whose it is, and bytes of text that it takes in a scrape.
    pub(super) dynamic: Option<Dynamic>,
}

/// What there is of a filters' family more.
pub(super) struct Dynamic {
    pub(super) owners: Vec<Weak<Owner>>,
    pub(super) text: usize,
}

pub(super) enum Source {
    Series { shape: Shape, series: BTreeMap<Labels, Series> },
    Collected { kind: Kind, collect: Collect },
}

/// What all series of a family have in common.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Counter,
    Gauge,
    PlainGauge,
    Histogram(Buckets),
}

#[derive(Clone)]
pub(super) enum Series {
    Counter(Counter),
    Gauge(Gauge),
    PlainGauge(PlainGauge),
    Histogram(Histogram),
}

impl Shape {
    fn kind(self) -> Kind {
        match self {
            Shape::Counter => Kind::Counter,
            Shape::Gauge | Shape::PlainGauge => Kind::Gauge,
            Shape::Histogram(_) => Kind::Histogram,
        }
    }

    fn make(self, shards: usize) -> Series {
        match self {
            Shape::Counter => Series::Counter(Counter::new(shards)),
            Shape::Gauge => Series::Gauge(Gauge::new(shards)),
            Shape::PlainGauge => Series::PlainGauge(PlainGauge::default()),
            Shape::Histogram(ladder) => Series::Histogram(Histogram::new(ladder, shards)),
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
    /// A histogram `x` is shown as `x_bucket`, `x_sum` and `x_count`: no other family may have those names.
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

    /// The series of this name and labels, made if it is not there.
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
    /// A registry with room for this many workers, beside the control thread.
    pub fn new(workers: usize) -> Self {
        Registry { shared: Arc::new(Shared { shards: workers + 1, families: Mutex::default() }) }
    }

    /// How many shards a figure has: one for each worker, and one for the control thread.
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

    /// The gauge of this name and labels that workers add to and take from.
    pub fn gauge(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Result<Gauge, MetricError> {
        match self.series(name, help, labels, Shape::Gauge)? {
            Series::Gauge(gauge) => Ok(gauge),
            _ => Err(MetricError::Operation(Kind::Gauge)),
        }
    }

    /// The gauge of this name and labels that is set as a whole.
    pub fn plain_gauge(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Result<PlainGauge, MetricError> {
        match self.series(name, help, labels, Shape::PlainGauge)? {
            Series::PlainGauge(gauge) => Ok(gauge),
            _ => Err(MetricError::Operation(Kind::Gauge)),
        }
    }

    /// The histogram of this name and labels.
    pub fn histogram(
        &self,
        name: &str,
        help: &str,
        labels: &[(&str, &str)],
        ladder: Buckets,
    ) -> Result<Histogram, MetricError> {
        match self.series(name, help, labels, Shape::Histogram(ladder))? {
            Series::Histogram(histogram) => Ok(histogram),
            _ => Err(MetricError::Operation(Kind::Histogram)),
        }
    }

    /// Figures kept elsewhere, asked for at each scrape. A later call with the same name replaces the function, so that
    /// a reload can put its own in; the function may use the registry, but must not wait for workers.
    pub fn collect_fn(
        &self,
        name: &str,
        help: &str,
        kind: Kind,
        collect: impl Fn() -> Vec<(Labels, f64)> + Send + Sync + 'static,
    ) -> Result<(), MetricError> {
        check_name(name)?;
        if kind == Kind::Histogram {
            return Err(MetricError::Operation(kind));
        }
        let mut families = self.families();
        let there = match families.by_name.get(name) {
            Some(Family { source: Source::Collected { kind: there, .. }, .. }) if *there == kind => None,
            Some(family) => Some(family.source.kind()),
            None => families.shadowed(name, kind),
        };
        if let Some(there) = there {
            return Err(MetricError::Conflict { name: name.to_owned(), there, asked: kind });
        }
        let source = Source::Collected { kind, collect: Arc::new(collect) };
        families.by_name.insert(name.to_owned(), Family { help: help.to_owned(), source, dynamic: None });
        Ok(())
    }

    /// Drops the series that `keep` refuses: those of clusters and filters that a reload has removed. Whoever still
    /// holds a dropped series' handle can go on counting; it is shown no more, and the next call for it makes a new
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

    /// What a figure is now; of a histogram, the count.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = sorted(labels);
        let collect = match &self.families().by_name.get(name)?.source {
            Source::Series { series, .. } => return series.get(&labels).map(Series::value),
            Source::Collected { collect, .. } => Arc::clone(collect),
        };
        collect().into_iter().find_map(|(mut found, value)| {
            found.sort();
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
        // Nothing leaves the map half changed, so what another thread's panic left is as good as before.
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
    // `le` is a histogram's own, and names with two underscores in front are Prometheus's.
    let wrong = |name: &&String| !is_name(name, false) || *name == "le" || name.starts_with("__");
    match twice.or_else(|| labels.iter().map(|(name, _)| name).find(wrong)) {
        Some(name) => Err(MetricError::Label(name.clone())),
        None => Ok(()),
    }
}
