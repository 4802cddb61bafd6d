//! The scrape: all metrics in Prometheus' text format. The `prometheus` crate writes the format; this file converts
//! our metrics for it.

use std::{
    io::{self, Write},
    sync::Arc,
};

use prometheus::{
    TextEncoder,
    proto::{self, LabelPair, Metric, MetricFamily, MetricType},
};

use super::{
    Distribution, Kind, Registry,
    registry::{Collected, Family, Labels, Series, Source},
};
use crate::observe::target;

/// The content type of [`Registry::write`]'s output.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

impl Registry {
    /// What [`Registry::write`] writes.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        // Writing to memory does not fail, and the encoder writes UTF-8.
        let _ = self.write(&mut text);
        String::from_utf8(text).unwrap_or_default()
    }

    /// Writes all metrics in Prometheus' text format 0.0.4, sorted by name. Only one of them is in memory at a time: with
    /// ten thousand clusters, all would take a hundred MiB.
    ///
    /// # Errors What `out` returns.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let names: Vec<String> = {
            let mut families = self.families();
            families.forget_unowned();
            families.by_name.keys().cloned().collect()
        };
        let mut text = String::new();
        for name in names {
            // The encoder rejects a family without series.
            let Some(family) = self.family(&name).filter(|family| !family.get_metric().is_empty()) else { continue };
            text.clear();
            match TextEncoder::new().encode_utf8(&[family], &mut text) {
                Ok(()) => out.write_all(text.as_bytes())?,
                Err(error) => {
                    tracing::warn!(target: target::ADMIN, metric = name, %error, "metric skipped in the scrape");
                }
            }
        }
        Ok(())
    }

    /// A metric with its series; `None` if it is gone.
    fn family(&self, name: &str) -> Option<MetricFamily> {
        let (help, kind, collect) = {
            let families = self.families();
            let Family { help, source, .. } = families.by_name.get(name)?;
            match source {
                Source::Series { series, .. } => {
                    let metrics = series.iter().map(|(labels, series)| of_series(labels, series)).collect();
                    return Some(of_family(name, help, source.kind(), metrics));
                }
                Source::Collected { kind, collect } => (help.clone(), *kind, Arc::clone(collect)),
            }
        };
        // Without the lock, because the function may use the registry.
        let of = |(labels, value): &(Labels, Collected)| match value {
            Collected::Value(value) => of_value(labels, kind, *value),
            Collected::Distribution(distribution) => of_distribution(labels, distribution),
        };
        Some(of_family(name, &help, kind, collect().iter().map(of).collect()))
    }
}

fn of_family(name: &str, help: &str, kind: Kind, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(match kind {
        Kind::Counter => MetricType::COUNTER,
        Kind::Gauge => MetricType::GAUGE,
        Kind::Histogram => MetricType::HISTOGRAM,
    });
    family.set_metric(metrics);
    family
}

fn with_labels(labels: &Labels) -> Metric {
    let pair = |(name, value): &(String, String)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.clone());
        pair.set_value(value.clone());
        pair
    };
    Metric::from_label(labels.iter().map(pair).collect())
}

fn of_value(labels: &Labels, kind: Kind, value: f64) -> Metric {
    let mut metric = with_labels(labels);
    if kind == Kind::Counter {
        let mut counter = proto::Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = proto::Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    }
    metric
}

fn of_series(labels: &Labels, series: &Series) -> Metric {
    let histogram = match series {
        Series::Counter(counter) => return of_value(labels, Kind::Counter, counter.value() as f64),
        Series::Gauge(gauge) => return of_value(labels, Kind::Gauge, gauge.value() as f64),
        Series::PlainGauge(gauge) => return of_value(labels, Kind::Gauge, gauge.value() as f64),
        Series::SumGauge(gauge) => return of_value(labels, Kind::Gauge, gauge.value() as f64),
        Series::Histogram(histogram) => histogram.read(),
    };
    of_distribution(labels, &histogram)
}

fn of_distribution(labels: &Labels, histogram: &Distribution) -> Metric {
    let bucket = |&(bound, count): &(f64, u64)| {
        let mut bucket = proto::Bucket::default();
        bucket.set_upper_bound(bound);
        bucket.set_cumulative_count(count);
        bucket
    };
    let mut shown = proto::Histogram::default();
    shown.set_bucket(histogram.cumulative.iter().map(bucket).collect());
    shown.set_sample_count(histogram.count);
    shown.set_sample_sum(histogram.sum);
    let mut metric = with_labels(labels);
    metric.set_histogram(shown);
    metric
}
