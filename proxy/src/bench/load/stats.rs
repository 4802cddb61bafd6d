//! Statistics of the requests: one `Stats` per thread and interval, summed up at the end.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use http::HeaderValue;

/// The longest latency in the histograms, in microseconds: under overload the queue alone can take minutes.
const LONGEST_US: u64 = 3_600_000_000;

/// The maximum number of distinct values of a tallied header: enough for versions, limited for a header such as `Date`.
const TALLY_MAX: usize = 32;

/// Why a request counts as failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// No connection could be opened for it.
    Connect,
    /// The connection ended after the request was sent and before the head of a response was complete.
    Reset,
    /// No complete response in the time allowed.
    Timeout,
    /// A complete response with a status that is not a success.
    Status,
    /// The server sent something other than an HTTP/1.1 response head.
    Protocol,
    /// The response body ended early or was malformed.
    Body,
}

impl Failure {
    pub(super) const ALL: [Failure; 6] =
        [Failure::Connect, Failure::Reset, Failure::Timeout, Failure::Status, Failure::Protocol, Failure::Body];

    pub(super) fn name(self) -> &'static str {
        match self {
            Failure::Connect => "connect",
            Failure::Reset => "reset",
            Failure::Timeout => "timeout",
            Failure::Status => "status",
            Failure::Protocol => "protocol",
            Failure::Body => "body",
        }
    }
}

/// The failures of one kind.
#[derive(Debug, Clone, Default)]
pub(super) struct Failures {
    pub(super) count: u64,
    /// The message of the first one.
    pub(super) first: Option<String>,
}

/// Counts of each value of a header.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    /// In order of appearance.
    pub(super) values: Vec<(HeaderValue, u64)>,
    /// Responses with a value beyond the first 32.
    pub(super) others: u64,
    /// Responses without the header.
    pub(super) absent: u64,
}

impl Tally {
    pub(super) fn add(&mut self, value: Option<HeaderValue>, count: u64) {
        let Some(value) = value else {
            self.absent += count;
            return;
        };
        if let Some((_, n)) = self.values.iter_mut().find(|(v, _)| *v == value) {
            *n += count;
        } else if self.values.len() < TALLY_MAX {
            self.values.push((value, count));
        } else {
            self.others += count;
        }
    }
}

/// The times of one request, counted from the start of the load.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Times {
    /// When it was due (without a rate: when it was sent).
    pub(super) due: Duration,
    /// When the connection that took it had become free.
    pub(super) free: Duration,
    /// When it was taken, which should be as soon as it is due and a connection is free.
    pub(super) taken: Duration,
    /// When it was passed to the connection.
    pub(super) sent: Duration,
    /// When the response was complete, or the request had failed.
    pub(super) done: Duration,
}

/// The outcome of one request.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) times: Times,
    /// The status, unless there was no response head.
    pub(super) status: Option<u16>,
    pub(super) failure: Option<(Failure, String)>,
    /// Bytes of the response body.
    pub(super) bytes: u64,
    /// Whether the connection had carried a request before.
    pub(super) reused: bool,
    /// The value of the tallied header, if one is tallied and there was a response.
    pub(super) tally: Option<Option<HeaderValue>>,
}

/// The counts of a thread, an interval or the whole run.
#[derive(Debug)]
pub(super) struct Stats {
    /// Time from due to complete, for all complete responses and for requests that timed out: without the latter, the
    /// slowest would be missing.
    pub(super) latency: Histogram<u64>,
    /// Time from sent to complete, for the same requests.
    pub(super) service: Histogram<u64>,
    /// The generator's own delay: from due, with a connection free, to taken.
    pub(super) lag: Histogram<u64>,
    /// Ended requests.
    pub(super) requests: u64,
    pub(super) failures: [Failures; Failure::ALL.len()],
    /// Resets on a connection that had carried a request before.
    pub(super) resets_reused: u64,
    pub(super) statuses: BTreeMap<u16, u64>,
    pub(super) bytes: u64,
    /// Requests that were due before a connection was free.
    pub(super) queued: u64,
    pub(super) queue_longest: Duration,
    pub(super) tally: Tally,
    /// Opened connections, including those before the start.
    pub(super) connections: u64,
    /// When the last request ended.
    pub(super) last: Duration,
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_US, 3).expect("the bounds are constants that the constructor accepts")
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(LONGEST_US)
}

impl Default for Stats {
    fn default() -> Self {
        Stats {
            latency: histogram(),
            service: histogram(),
            lag: histogram(),
            requests: 0,
            failures: Default::default(),
            resets_reused: 0,
            statuses: BTreeMap::new(),
            bytes: 0,
            queued: 0,
            queue_longest: Duration::ZERO,
            tally: Tally::default(),
            connections: 0,
            last: Duration::ZERO,
        }
    }
}

impl Stats {
    pub(super) fn record(&mut self, outcome: Outcome) {
        let t = outcome.times;
        self.requests += 1;
        self.bytes += outcome.bytes;
        self.last = self.last.max(t.done);
        self.lag.saturating_record(micros(t.taken.saturating_sub(t.due.max(t.free))));
        if t.free > t.due {
            self.queued += 1;
            self.queue_longest = self.queue_longest.max(t.free - t.due);
        }
        if let Some(status) = outcome.status {
            *self.statuses.entry(status).or_default() += 1;
        }
        if let Some(value) = outcome.tally {
            self.tally.add(value, 1);
        }
        let failure = outcome.failure.as_ref().map(|(f, _)| *f);
        if matches!(failure, None | Some(Failure::Status | Failure::Timeout)) {
            self.latency.saturating_record(micros(t.done.saturating_sub(t.due)));
            self.service.saturating_record(micros(t.done.saturating_sub(t.sent)));
        }
        if failure == Some(Failure::Reset) && outcome.reused {
            self.resets_reused += 1;
        }
        if let Some((failure, message)) = outcome.failure {
            let failures = &mut self.failures[failure as usize];
            failures.count += 1;
            failures.first.get_or_insert(message);
        }
    }

    /// Adds the counts of `other`.
    pub(super) fn merge(&mut self, other: &Stats) {
        for (sum, part) in
            [(&mut self.latency, &other.latency), (&mut self.service, &other.service), (&mut self.lag, &other.lag)]
        {
            sum.add(part).expect("all histograms have the same bounds");
        }
        self.requests += other.requests;
        for (sum, part) in self.failures.iter_mut().zip(&other.failures) {
            sum.count += part.count;
            sum.first = sum.first.take().or_else(|| part.first.clone());
        }
        self.resets_reused += other.resets_reused;
        for (status, n) in &other.statuses {
            *self.statuses.entry(*status).or_default() += n;
        }
        self.bytes += other.bytes;
        self.queued += other.queued;
        self.queue_longest = self.queue_longest.max(other.queue_longest);
        for (value, n) in &other.tally.values {
            self.tally.add(Some(value.clone()), *n);
        }
        self.tally.others += other.tally.others;
        self.tally.absent += other.tally.absent;
        self.connections += other.connections;
        self.last = self.last.max(other.last);
    }

    /// The number of failed requests.
    pub(super) fn failed(&self) -> u64 {
        self.failures.iter().map(|f| f.count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(due: u64, free: u64, taken: u64, done: u64) -> Times {
        let [due, free, taken, done] = [due, free, taken, done].map(Duration::from_millis);
        Times { due, free, taken, sent: taken, done }
    }

    fn outcome(times: Times, failure: Option<Failure>) -> Outcome {
        let failure = failure.map(|f| (f, f.name().to_owned()));
        Outcome { times, status: Some(200), failure, bytes: 5, reused: true, tally: Some(None) }
    }

    #[test]
    fn latency_counts_from_the_due_time_and_lag_only_while_a_connection_is_free() {
        let mut stats = Stats::default();
        stats.record(outcome(at(100, 0, 103, 110), None));
        stats.record(outcome(at(200, 900, 900, 910), None));
        assert!(stats.latency.equivalent(stats.latency.max(), 710_000));
        assert!(stats.service.equivalent(stats.service.max(), 10_000));
        assert!(stats.lag.equivalent(stats.lag.max(), 3_000), "waiting for a connection is not the generator's fault");
        assert_eq!((stats.queued, stats.queue_longest), (1, Duration::from_millis(700)));
    }

    #[test]
    fn fast_failures_do_not_flatter_the_latency_and_timeouts_count() {
        let mut stats = Stats::default();
        for failure in Failure::ALL {
            stats.record(outcome(at(0, 0, 0, 10), Some(failure)));
        }
        let mut sum = Stats::default();
        sum.merge(&stats);
        sum.merge(&stats);
        assert_eq!((sum.requests, sum.failed(), sum.latency.len(), sum.resets_reused), (12, 12, 4, 2));
        for failure in Failure::ALL {
            let f = &sum.failures[failure as usize];
            assert_eq!((f.count, f.first.as_deref()), (2, Some(failure.name())));
        }
    }

    #[test]
    fn a_tally_is_bounded() {
        let mut tally = Tally::default();
        for i in 0..40 {
            tally.add(Some(HeaderValue::from(i)), 1);
        }
        tally.add(Some(HeaderValue::from(3)), 1);
        tally.add(None, 2);
        assert_eq!((tally.values.len(), tally.others, tally.absent, tally.values[3].1), (32, 8, 2, 2));
    }
}
