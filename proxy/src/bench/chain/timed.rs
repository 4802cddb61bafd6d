//! A filter that wraps and measures another one: it forwards each call unchanged, and records per phase the time, the guest's
//! calls to the host and the bytes copied for them.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::{
    chain::{Action, Direction, Filter, HeadersPause, Stream, Variants},
    wasm::{Vm, WasmFilter},
};

/// Longer times are recorded as this one.
const LONGEST: Duration = Duration::from_secs(10);

/// The phases in which a filter is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    RequestHeaders,
    RequestBody,
    RequestTrailers,
    ResponseHeaders,
    ResponseBody,
    ResponseTrailers,
    End,
}

impl Phase {
    pub(super) const ALL: [Phase; 7] = [
        Phase::RequestHeaders,
        Phase::RequestBody,
        Phase::RequestTrailers,
        Phase::ResponseHeaders,
        Phase::ResponseBody,
        Phase::ResponseTrailers,
        Phase::End,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Phase::RequestHeaders => "request headers",
            Phase::RequestBody => "request body",
            Phase::RequestTrailers => "request trailers",
            Phase::ResponseHeaders => "response headers",
            Phase::ResponseBody => "response body",
            Phase::ResponseTrailers => "response trailers",
            Phase::End => "end",
        }
    }
}

/// Times in nanoseconds, without the cost of reading the clock.
#[derive(Debug, Clone)]
pub(super) struct Times {
    histogram: Histogram<u64>,
    clock: Duration,
}

impl Times {
    /// `clock`: the cost of reading the clock that each time includes, see [`clock`].
    pub(super) fn new(clock: Duration) -> Times {
        // The bounds are valid constants; up to 2 µs the resolution is one nanosecond.
        let histogram = Histogram::new_with_max(LONGEST.as_nanos() as u64, 3).expect("valid bounds");
        Times { histogram, clock }
    }

    pub(super) fn record(&mut self, took: Duration) {
        self.histogram.saturating_record(took.saturating_sub(self.clock).as_nanos() as u64);
    }

    pub(super) fn len(&self) -> u64 {
        self.histogram.len()
    }

    pub(super) fn quantile(&self, quantile: f64) -> f64 {
        self.histogram.value_at_quantile(quantile) as f64
    }

    pub(super) fn mean(&self) -> f64 {
        self.histogram.mean()
    }
}

/// The cost of reading the clock: the median of measuring nothing. It is tens of nanoseconds, as much as
/// a short call into a filter, so it is subtracted from each time.
pub(super) fn clock() -> Duration {
    let mut nothing: Vec<Duration> = (0..10_001).map(|_| Instant::now().elapsed()).collect();
    nothing.sort_unstable();
    nothing[nothing.len() / 2]
}

/// The calls of one phase.
#[derive(Debug, Clone)]
pub(super) struct Tally {
    pub(super) times: Times,
    /// The guest's calls to the host.
    pub(super) hostcalls: u64,
    /// Bytes copied into and out of the guest's memory.
    pub(super) copied: u64,
}

/// A measured filter.
pub(super) struct Timed {
    filter: Rc<WasmFilter>,
    clock: Duration,
    /// Shared with its variants.
    tallies: Rc<RefCell<Vec<Tally>>>,
}

impl Timed {
    pub(super) fn new(filter: Rc<WasmFilter>, clock: Duration) -> Timed {
        let timed = Timed { filter, clock, tallies: Rc::default() };
        timed.reset();
        timed
    }

    pub(super) fn vm(&self) -> &Vm {
        self.filter.vm()
    }

    /// Discards the measurements.
    pub(super) fn reset(&self) {
        let tally = Tally { times: Times::new(self.clock), hostcalls: 0, copied: 0 };
        *self.tallies.borrow_mut() = vec![tally; Phase::ALL.len()];
    }

    /// The measurements by phase, without phases that had no calls.
    pub(super) fn tallies(&self) -> Vec<(Phase, Tally)> {
        let tallies = self.tallies.borrow();
        let all = Phase::ALL.into_iter().zip(tallies.iter().cloned());
        all.filter(|(_, tally)| tally.times.len() > 0).collect()
    }

    fn measure<T>(&self, phase: Phase, call: impl FnOnce(&WasmFilter) -> T) -> T {
        let (hostcalls, copied) = self.vm().traffic();
        let start = Instant::now();
        let result = call(&self.filter);
        let took = start.elapsed();
        let after = self.vm().traffic();
        let tally = &mut self.tallies.borrow_mut()[phase as usize];
        tally.times.record(took);
        // A failed instance is dropped together with its counts.
        tally.hostcalls += after.0.saturating_sub(hostcalls);
        tally.copied += after.1.saturating_sub(copied);
        result
    }
}

impl Filter for Timed {
    fn name(&self) -> &str {
        self.filter.name()
    }

    fn variants(&self) -> Variants<dyn Filter> {
        let timed = |filter| Timed { filter, clock: self.clock, tallies: self.tallies.clone() };
        let all = self.filter.own_variants();
        all.map(|(name, filter)| (name, Rc::new(timed(filter)) as Rc<dyn Filter>)).collect()
    }

    fn phases(&self) -> u32 {
        self.filter.phases()
    }

    fn headers_pause(&self) -> HeadersPause {
        self.filter.headers_pause()
    }

    fn changes_body(&self, direction: Direction) -> bool {
        self.filter.changes_body(direction)
    }

    fn on_headers(&self, direction: Direction, stream: &Rc<Stream>, position: usize, end: bool) -> Action {
        let phase = [Phase::RequestHeaders, Phase::ResponseHeaders][direction as usize];
        self.measure(phase, |filter| filter.on_headers(direction, stream, position, end))
    }

    fn on_body(&self, direction: Direction, stream: &Rc<Stream>, position: usize, len: usize, end: bool) -> Action {
        let phase = [Phase::RequestBody, Phase::ResponseBody][direction as usize];
        self.measure(phase, |filter| filter.on_body(direction, stream, position, len, end))
    }

    fn on_trailers(&self, direction: Direction, stream: &Rc<Stream>, position: usize) -> Action {
        let phase = [Phase::RequestTrailers, Phase::ResponseTrailers][direction as usize];
        self.measure(phase, |filter| filter.on_trailers(direction, stream, position))
    }

    fn on_end(&self, stream: &Rc<Stream>, position: usize) {
        self.measure(Phase::End, |filter| filter.on_end(stream, position));
    }
}
