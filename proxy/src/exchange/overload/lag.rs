//! How late a worker runs. A timer of the worker measures it: by how much the worker is later than the timer, it is later
//! for everything that has become ready in the meantime.
//!
//! The timer exists only while somebody asks, which is for each request or connection; an idle worker has none.

use std::{cell::Cell, time::Duration};

use tokio::{
    task::spawn_local,
    time::{Instant, sleep_until},
};

use crate::observe::{self, Histogram};

/// The time between two measurements.
const INTERVAL: Duration = Duration::from_millis(10);

/// How late a timer may be on an idle worker: the precision of tokio's timers.
const PRECISION: Duration = Duration::from_millis(1);

/// The part of the average that one measurement makes up.
const WEIGHT: u32 = 4;

thread_local! {
    static METER: LagMeter = const { LagMeter::new() };
}

/// Returns how late this worker runs, on average over the last measurements. Zero if nobody has asked for a while.
/// Measurements are counted in `histogram`. Must be called on a worker.
pub(super) fn of_worker(histogram: &Histogram) -> Duration {
    METER.with(|meter| {
        meter.is_asked.set(true);
        if !meter.is_running.replace(true) {
            spawn_local(measure(histogram.clone()));
        }
        meter.average.get()
    })
}

/// Measures until nobody asks any more.
async fn measure(histogram: Histogram) {
    let mut is_asked = true;
    while is_asked {
        let due = Instant::now() + INTERVAL;
        sleep_until(due).await;
        let late = due.elapsed().saturating_sub(PRECISION);
        histogram.observe(observe::shard(), late.as_micros() as u64);
        is_asked = METER.with(|meter| meter.add(late));
    }
}

struct LagMeter {
    is_running: Cell<bool>,
    is_asked: Cell<bool>,
    last: Cell<Duration>,
    average: Cell<Duration>,
}

impl LagMeter {
    const fn new() -> LagMeter {
        LagMeter {
            is_running: Cell::new(false),
            is_asked: Cell::new(false),
            last: Cell::new(Duration::ZERO),
            average: Cell::new(Duration::ZERO),
        }
    }

    /// Adds a measurement. Returns whether anybody has asked since the last one; if not, this was the last.
    ///
    /// Of two measurements in a row, the smaller one counts, so that a single long step, such as a filter's, is no overload.
    fn add(&self, late: Duration) -> bool {
        let counted = self.last.replace(late).min(late);
        let average = self.average.get();
        self.average.set(average - average / WEIGHT + counted / WEIGHT);
        let is_asked = self.is_asked.replace(false);
        if !is_asked {
            self.is_running.set(false);
            self.last.set(Duration::ZERO);
            self.average.set(Duration::ZERO);
        }
        is_asked
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::{LocalSet, yield_now};

    use super::*;
    use crate::observe::{Buckets, Registry};

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn one_long_step_is_no_lag_and_several_are() {
        let meter = LagMeter::new();
        let after = |late: u32| {
            meter.is_asked.set(true);
            assert!(meter.add(MS * late));
            meter.average.get()
        };
        assert_eq!(after(200), Duration::ZERO);
        assert_eq!(after(0), Duration::ZERO);
        after(200);
        assert_eq!(after(100), MS * 25);
        (0..30).for_each(|_| _ = after(100));
        assert!(after(100) > MS * 99);
        // It falls as it grew.
        assert!(after(0) < MS * 75 && after(0) < MS * 57);
    }

    #[test]
    fn nothing_is_measured_while_nobody_asks() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let registry = Registry::new(1);
            let histogram = registry.histogram("lag", "", &[], Buckets::Latency).unwrap();
            let is_running = || METER.with(|meter| meter.is_running.get());
            assert_eq!(of_worker(&histogram), Duration::ZERO);
            assert!(is_running());
            // The first one after the question, and one in which nobody has asked.
            for _ in 0..2 {
                yield_now().await;
                tokio::time::advance(INTERVAL + PRECISION).await;
                yield_now().await;
            }
            assert!(!is_running());
            of_worker(&histogram);
            assert!(is_running());
        });
    }
}
