//! Collects the threads' counts during the run, per interval, for the plots over time and for the
//! progress line.

use std::{
    io::{IsTerminal, Write},
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{
    args::{Mode, Plan},
    report,
    stats::Stats,
};

/// How often the progress line is written to a terminal, and to anything else (a log).
const SHOW_ON_TERMINAL: Duration = Duration::from_secs(1);
const SHOW_IN_PIPE: Duration = Duration::from_secs(5);

/// One interval of the measurement.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    /// The interval's end, counted from the end of the warm-up.
    pub(super) at: Duration,
    pub(super) length: Duration,
    /// Requests that ended in the interval, and the number of failed ones.
    pub(super) requests: u64,
    pub(super) failed: u64,
    /// `None` without a response, as in a stall.
    pub(super) p50_us: Option<u64>,
    pub(super) p99_us: Option<u64>,
}

impl Sample {
    /// Requests that ended, per second.
    pub(super) fn rate(&self) -> f64 {
        self.requests as f64 / self.length.as_secs_f64()
    }

    /// Failed requests per second.
    pub(super) fn failure_rate(&self) -> f64 {
        self.failed as f64 / self.length.as_secs_f64()
    }
}

/// Sums up the statistics of all threads.
pub(super) struct Observer {
    plan: Arc<Plan>,
    t0: Instant,
    threads: Vec<Arc<Mutex<Stats>>>,
    interval: Duration,
    /// Counted from the end of the warm-up: begin and end of the interval that was closed last, and the end of the next.
    begin: Duration,
    last: Duration,
    next: Duration,
    /// The counts of the interval that was closed last, and of all earlier ones.
    current: Stats,
    total: Stats,
    series: Vec<Sample>,
    terminal: bool,
    shown: Duration,
}

impl Observer {
    pub(super) fn new(plan: Arc<Plan>, t0: Instant, threads: Vec<Arc<Mutex<Stats>>>) -> Observer {
        // Some twenty points for a short run, one per second for a longer one.
        let interval = (plan.duration / 20).clamp(Duration::from_millis(100), Duration::from_secs(1));
        let terminal = std::io::stderr().is_terminal();
        if terminal && !plan.warmup.is_zero() {
            let _ = write!(std::io::stderr(), "\rwarming up for {:?} …\x1b[K", plan.warmup);
        }
        let mut observer = Observer {
            plan,
            t0,
            threads,
            interval,
            begin: Duration::ZERO,
            last: Duration::ZERO,
            next: Duration::ZERO,
            current: Stats::default(),
            total: Stats::default(),
            series: Vec::new(),
            terminal,
            shown: Duration::ZERO,
        };
        observer.plan_next();
        observer
    }

    /// When `tick` should be called next.
    pub(super) fn next_tick(&self) -> Instant {
        self.t0 + self.plan.warmup + self.next
    }

    fn plan_next(&mut self) {
        // On a grid, so that late ticks do not accumulate.
        let ticks = self.last.as_nanos() / self.interval.as_nanos() + 1;
        self.next = self.interval * u32::try_from(ticks).unwrap_or(u32::MAX);
        // The last interval includes the last responses, which arrive just after its end.
        if self.next >= self.plan.duration && self.last < self.plan.duration {
            self.next = self.plan.duration + self.interval;
        }
    }

    /// Closes an interval.
    pub(super) fn tick(&mut self) {
        let counted = self.collect();
        self.total.merge(&self.current);
        self.current = counted;
        self.begin = self.last;
        self.last = self.elapsed();
        // It is empty only if the run ended in the warm-up.
        if self.last > self.begin {
            let sample = self.sample();
            self.series.push(sample);
            self.show(&sample);
        }
        self.plan_next();
    }

    fn elapsed(&self) -> Duration {
        self.t0.elapsed().saturating_sub(self.plan.warmup)
    }

    /// The counts since the last call.
    fn collect(&self) -> Stats {
        let mut sum = Stats::default();
        for thread in &self.threads {
            // Created before the lock is taken, because the thread needs the lock for its next request.
            let mut part = Stats::default();
            mem::swap(&mut part, &mut *thread.lock().unwrap_or_else(PoisonError::into_inner));
            sum.merge(&part);
        }
        sum
    }

    /// The sample of the interval that was closed last.
    fn sample(&self) -> Sample {
        let counts = &self.current;
        let latency = if self.plan.mode == Mode::Saturate { &counts.service } else { &counts.latency };
        let quantile = |q| (!latency.is_empty()).then(|| latency.value_at_quantile(q));
        Sample {
            at: self.last,
            length: self.last - self.begin,
            requests: counts.requests,
            failed: counts.failed(),
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
        }
    }

    fn show(&mut self, sample: &Sample) {
        let every = if self.terminal { SHOW_ON_TERMINAL } else { SHOW_IN_PIPE };
        // Half an interval of tolerance: ticks are never exactly on time.
        if sample.at + self.interval / 2 < self.shown + every {
            return;
        }
        self.shown = sample.at;
        let line = format!(
            "{:>6.1}s  {:>9.1} req/s  p50 {:>8}  p99 {:>8}  errors {}",
            sample.at.as_secs_f64(),
            sample.rate(),
            sample.p50_us.map_or("-".into(), report::micros),
            sample.p99_us.map_or("-".into(), report::micros),
            self.total.failed() + self.current.failed(),
        );
        // If the progress cannot be written, the run continues.
        let _ = if self.terminal {
            write!(std::io::stderr(), "\r{line}\x1b[K")
        } else {
            writeln!(std::io::stderr(), "{line}")
        };
    }

    /// The sum of everything.
    pub(super) fn finish(mut self) -> (Stats, Vec<Sample>) {
        if !self.series.is_empty() && self.elapsed() < self.last + self.interval / 2 {
            // Just after a tick: a separate interval would be too short for a meaningful rate.
            let counted = self.collect();
            self.current.merge(&counted);
            self.last = self.elapsed();
            self.series.pop();
            self.series.push(self.sample());
        } else {
            self.tick();
        }
        self.total.merge(&self.current);
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
        (self.total, self.series)
    }
}
