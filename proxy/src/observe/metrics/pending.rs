//! Updates that filters make to metrics while their configuration is tried. They are held back until it is applied: a counter
//! that was exposed and then decreased would look like a reset.

use std::collections::HashMap;

use super::{Buckets, Counter, Handle, Histogram, Kind, MetricError, PlainGauge, Shard};

/// Held-back updates, by metric.
#[derive(Debug, Default)]
pub struct PendingUpdates(HashMap<usize, Change>);

#[derive(Debug)]
enum Change {
    Counter(Counter, u64),
    /// The value that it was set to, if any, and the sum added since.
    Gauge(PlainGauge, Option<i64>, i64),
    Histogram(Histogram, Histogram),
}

impl PendingUpdates {
    /// Like [`Handle::increment`].
    pub fn increment(&mut self, metric: &Handle, offset: i64) -> Result<(), MetricError> {
        match self.change(metric) {
            Change::Counter(_, more) => {
                let offset = u64::try_from(offset).map_err(|_| MetricError::Operation(Kind::Counter))?;
                *more = more.wrapping_add(offset);
            }
            Change::Gauge(.., more) => *more = more.wrapping_add(offset),
            Change::Histogram(..) => return Err(MetricError::Operation(Kind::Histogram)),
        }
        Ok(())
    }

    /// Like [`Handle::record`].
    pub fn record(&mut self, metric: &Handle, value: u64) {
        match self.change(metric) {
            Change::Counter(_, more) => *more = more.wrapping_add(value),
            Change::Gauge(_, set, more) => (*set, *more) = (Some(value.cast_signed()), 0),
            Change::Histogram(_, more) => more.observe(Shard::CONTROL, value),
        }
    }

    /// Like [`Handle::get`], including held-back updates.
    pub fn get(&mut self, metric: &Handle) -> Result<u64, MetricError> {
        match self.change(metric) {
            Change::Counter(counter, more) => Ok(counter.value().wrapping_add(*more)),
            Change::Gauge(gauge, set, more) => {
                Ok(set.unwrap_or_else(|| gauge.value()).wrapping_add(*more).cast_unsigned())
            }
            Change::Histogram(..) => Err(MetricError::Operation(Kind::Histogram)),
        }
    }

    /// Applies the updates.
    pub fn count(self, shard: Shard) {
        for change in self.0.into_values() {
            match change {
                Change::Counter(counter, more) => counter.add(shard, more),
                Change::Gauge(gauge, set, more) => {
                    set.into_iter().for_each(|value| gauge.set(value));
                    gauge.add(more);
                }
                Change::Histogram(histogram, more) => histogram.add(shard, &more),
            }
        }
    }

    fn change(&mut self, metric: &Handle) -> &mut Change {
        self.0.entry(metric.address()).or_insert_with(|| match metric {
            Handle::Counter(counter) => Change::Counter(counter.clone(), 0),
            Handle::Gauge(gauge) => Change::Gauge(gauge.clone(), None, 0),
            Handle::Histogram(histogram) => Change::Histogram(histogram.clone(), Histogram::new(Buckets::Numbers, 1)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pending_updates_can_be_read_and_are_applied_later() {
        let counter = Handle::Counter(Counter::new(2));
        let gauges = [Handle::Gauge(PlainGauge::default()), Handle::Gauge(PlainGauge::default())];
        let histogram = Handle::Histogram(Histogram::new(Buckets::Numbers, 2));
        let all = || [&counter, &gauges[0], &gauges[1]].map(|metric| metric.get().unwrap());
        [&counter, &gauges[0], &gauges[1], &histogram].into_iter().for_each(|metric| metric.record(Shard::CONTROL, 10));

        let mut held = PendingUpdates::default();
        held.increment(&counter, 1).unwrap();
        held.record(&counter, 2);
        held.increment(&gauges[0], -3).unwrap();
        held.increment(&gauges[1], 100).unwrap();
        held.record(&gauges[1], 5);
        held.increment(&gauges[1], 1).unwrap();
        held.record(&histogram, 20);
        assert!(held.increment(&counter, -1).is_err() && held.increment(&histogram, 1).is_err());
        assert_eq!([&counter, &gauges[0], &gauges[1]].map(|metric| held.get(metric).unwrap()), [13, 7, 6]);
        assert_eq!(all(), [10, 10, 10], "nothing is applied yet");

        held.count(Shard::worker(0));
        assert_eq!(all(), [13, 7, 6]);
        let Handle::Histogram(histogram) = histogram else { unreachable!() };
        let read = histogram.read();
        assert_eq!((read.count, read.sum), (2, 30.0));
    }
}
