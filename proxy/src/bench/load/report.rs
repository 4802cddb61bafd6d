//! The results of a run, as text and as JSON.

use std::{
    fmt::{self, Write},
    sync::Arc,
    time::{Duration, SystemTime},
};

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use super::{
    args::{Mode, Plan},
    generator::Usage,
    progress::Sample,
    stats::{Failure, Stats},
};

/// The quantiles of the report, with their names.
const QUANTILES: [(&str, f64); 6] =
    [("p50", 0.5), ("p75", 0.75), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];

/// If the generator was later than this for one request in a hundred, although a connection was free, it did not keep up.
const LAG_LIMIT_US: u64 = 1000;
/// A thread that is busy for a larger share of the time measures itself as much as the server.
const BUSY_LIMIT: f64 = 0.9;
/// The same applies to a thread that waits for a processor for this share of the time: the server probably took it.
const STARVED_LIMIT: f64 = 0.2;

/// The results of a finished run.
pub(super) struct Report {
    pub(super) plan: Arc<Plan>,
    /// When it began.
    pub(super) started: SystemTime,
    pub(super) stats: Stats,
    pub(super) series: Vec<Sample>,
    /// Time from the end of the warm-up to the last response, or to the planned end if that was later.
    pub(super) elapsed: Duration,
    pub(super) interrupted: bool,
    /// Requests that came due during the measurement; 0 in a closed loop.
    pub(super) due: u64,
    /// Due requests that were never sent, because no connection was free until the end.
    pub(super) unsent: u64,
    /// In-flight requests that an interrupted run did not wait for.
    pub(super) abandoned: u64,
    /// The processor usage of each thread, if the system provides it.
    pub(super) usage: Vec<Usage>,
}

impl Report {
    /// Requests that failed or could not be sent.
    pub(super) fn failed(&self) -> u64 {
        self.stats.failed() + self.unsent
    }

    /// Requests that ended or could not be sent.
    pub(super) fn attempted(&self) -> u64 {
        self.stats.requests + self.unsent
    }

    /// Complete responses, whatever their status.
    fn responses(&self) -> u64 {
        self.stats.requests - self.stats.failed() + self.stats.failures[Failure::Status as usize].count
    }

    /// Complete responses per second.
    pub(super) fn achieved(&self) -> f64 {
        self.responses() as f64 / self.elapsed.as_secs_f64()
    }

    pub(super) fn offered(&self) -> Option<f64> {
        match self.plan.mode {
            Mode::Rate(rate) => Some(rate),
            Mode::Saturate => None,
        }
    }

    /// Bytes of response bodies, each second and in total.
    pub(super) fn throughput(&self) -> String {
        let (rate, sum) = (self.stats.bytes as f64 / self.elapsed.as_secs_f64(), self.stats.bytes as f64);
        format!("{}/s, {} in total (response bodies)", bytes(rate), bytes(sum))
    }

    /// The failures by kind, with the first message of each.
    pub(super) fn failures(&self) -> impl Iterator<Item = (&'static str, u64, Option<&str>)> {
        let unsent = (self.unsent > 0).then_some("no connection was free before the run ended");
        let kinds = Failure::ALL.into_iter().map(|kind| {
            let f = &self.stats.failures[kind as usize];
            (kind.name(), f.count, f.first.as_deref())
        });
        kinds.chain([("unsent", self.unsent, unsent)])
    }

    /// Responses by the class of their status.
    pub(super) fn classes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let mut classes = [0; 5];
        for (status, n) in &self.stats.statuses {
            if let Some(class) = classes.get_mut(usize::from(status / 100).wrapping_sub(1)) {
                *class += n;
            }
        }
        ["1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().zip(classes)
    }

    /// The busiest thread.
    fn busiest(&self) -> Option<Usage> {
        self.usage.iter().copied().max_by(|a, b| (a.busy + a.starved).total_cmp(&(b.busy + b.starved)))
    }

    /// Reasons not to trust the numbers.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let s = &self.stats;
        let lag = s.lag.value_at_quantile(0.99);
        if self.offered().is_some() && lag > LAG_LIMIT_US {
            // A mostly idle thread was late because another program had the processor.
            let idle = self.busiest().is_some_and(|usage| usage.busy < 0.5);
            let advice = if idle { "give it its own processor" } else { "use more --threads or a lower --rate" };
            warnings.push(format!(
                "the load generator could not keep up: it sent 1% of the requests at least {} late, although a connection \
                 was free; the latencies include this delay; {advice}",
                micros(lag)
            ));
        }
        if let Some(usage) = self.busiest() {
            if usage.busy > BUSY_LIMIT {
                warnings.push(format!(
                    "a generator thread was busy for {:.0}% of the time: the generator may be the limit, not the server; use \
                     more --threads",
                    usage.busy * 100.0
                ));
            }
            if usage.starved > STARVED_LIMIT {
                warnings.push(format!(
                    "a generator thread waited for a processor for {:.0}% of the time: the machine is too small for \
                     generator and server together",
                    usage.starved * 100.0
                ));
            }
        }
        if s.queued > 0 && self.offered().is_some() && s.queued * 100 >= s.requests {
            warnings.push(format!(
                "{:.1}% of the requests waited for a free connection, the longest {}: the server was too slow for the \
                 rate over {} connections",
                s.queued as f64 * 100.0 / s.requests as f64,
                micros(s.queue_longest.as_micros() as u64),
                self.plan.connections
            ));
        }
        if self.unsent > 0 {
            warnings.push(format!(
                "{} requests came due but were never sent; with them, the latencies would be higher still",
                self.unsent
            ));
        }
        if self.interrupted {
            warnings.push(format!("interrupted: {} in-flight requests were abandoned", self.abandoned));
        }
        warnings
    }

    /// The report as text.
    pub(super) fn text(&self, colour: bool) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write_text(&mut out, colour);
        out
    }

    fn write_text(&self, out: &mut String, colour: bool) -> fmt::Result {
        let paint = |code: &str, s: &str| if colour { format!("\x1b[{code}m{s}\x1b[0m") } else { s.to_owned() };
        let title = |s: &str| paint("1", &format!("{s:<14}"));
        let (plan, s) = (&*self.plan, &self.stats);
        writeln!(out, "{} {}", paint("1;36", plan.request.method().as_str()), paint("1;36", &plan.url))?;
        let loop_kind = if self.offered().is_some() { "open loop" } else { "closed loop" };
        let (c, t) = (plural(plan.connections as u64, "connection"), plural(plan.threads as u64, "thread"));
        let warmup = if plan.warmup.is_zero() { String::new() } else { format!(" after {:?} of warm-up", plan.warmup) };
        writeln!(out, "{loop_kind}, {c}, {t}, {:.2}s{warmup}\n", self.elapsed.as_secs_f64())?;

        let opened = plural(s.connections, "connection");
        writeln!(out, "{} {} ended, {opened} opened", title("Requests"), s.requests)?;
        let achieved = format!("{:.1} responses/s", self.achieved());
        match self.offered() {
            Some(offered) => writeln!(
                out,
                "{} {achieved} of {offered} requests/s offered ({:.1}%)",
                title("Rate"),
                self.achieved() * 100.0 / offered
            )?,
            None => writeln!(out, "{} {achieved}", title("Rate"))?,
        }
        writeln!(out, "{} {}", title("Throughput"), self.throughput())?;
        let classes = self.classes().filter(|(_, n)| *n > 0).map(|(class, n)| {
            let code = if class == "5xx" { "31" } else { "32" };
            format!("{} {n}", paint(code, class))
        });
        let classes: Vec<_> = classes.collect();
        writeln!(out, "{} {}", title("Status"), if classes.is_empty() { "none".into() } else { classes.join("  ") })?;
        let failed = self.failed();
        writeln!(out, "{} {}", title("Errors"), paint(if failed > 0 { "1;31" } else { "32" }, &failed.to_string()))?;
        for (kind, n, first) in self.failures().filter(|(_, n, _)| *n > 0) {
            let reused = match s.resets_reused {
                r if r > 0 && kind == Failure::Reset.name() => format!("{r} of them on a reused connection; "),
                _ => String::new(),
            };
            writeln!(out, "  {:<8} {n}  ({reused}{})", kind, first.unwrap_or_default())?;
        }

        writeln!(out)?;
        let header: String = QUANTILES.iter().map(|(name, _)| format!("{name:>10}")).collect();
        writeln!(out, "{}{}", title("Latency"), paint("1", &header))?;
        if self.offered().is_some() {
            writeln!(out, "{:<14}{}  from the scheduled time", "corrected", row(&s.latency))?;
        }
        writeln!(out, "{:<14}{}  from sending the request", "service time", row(&s.service))?;
        if let Some(name) = &plan.tally {
            writeln!(out, "\n{} {name}", title("Header"))?;
            for (value, n) in self.tally() {
                writeln!(out, "  {n:>10}  {value}")?;
            }
        }
        for (i, warning) in self.warnings().iter().enumerate() {
            writeln!(out, "{}{} {warning}", if i == 0 { "\n" } else { "" }, paint("1;33", "warning:"))?;
        }
        Ok(())
    }

    /// The values of the tallied header, the most frequent first.
    pub(super) fn tally(&self) -> Vec<(String, u64)> {
        let tally = &self.stats.tally;
        let mut values: Vec<_> = tally
            .values
            .iter()
            .map(|(v, n)| (String::from_utf8_lossy(v.as_bytes()).escape_debug().to_string(), *n))
            .collect();
        values.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        for (name, n) in [("(other values)", tally.others), ("(no such header)", tally.absent)] {
            if n > 0 {
                values.push((name.to_owned(), n));
            }
        }
        values
    }

    /// The report as JSON. Times are in microseconds unless their name says otherwise.
    pub(super) fn json(&self) -> Value {
        let (plan, s) = (&*self.plan, &self.stats);
        let first: Map<_, _> =
            self.failures().filter_map(|(kind, _, first)| Some((kind.to_owned(), first?.into()))).collect();
        let failures: Map<_, _> = self.failures().map(|(kind, n, _)| (kind.to_owned(), n.into())).collect();
        let classes: Map<_, _> = self.classes().map(|(class, n)| (class.to_owned(), n.into())).collect();
        let statuses: Map<_, _> = s.statuses.iter().map(|(status, n)| (status.to_string(), (*n).into())).collect();
        let usage = self.busiest();
        json!({
            "url": plan.url,
            "method": plan.request.method().as_str(),
            "mode": if self.offered().is_some() { "rate" } else { "saturate" },
            "connections": plan.connections,
            "threads": plan.threads,
            "warmup_seconds": plan.warmup.as_secs_f64(),
            "duration_seconds": plan.duration.as_secs_f64(),
            "elapsed_seconds": self.elapsed.as_secs_f64(),
            "interrupted": self.interrupted,
            "requests": s.requests,
            "responses": self.responses(),
            "offered_rate": self.offered(),
            "achieved_rate": self.achieved(),
            "due": self.offered().map(|_| self.due),
            "errors": { "total": self.failed(), "by_kind": failures, "first_message": first,
                        "resets_on_reused_connection": s.resets_reused },
            "abandoned": self.abandoned,
            "status_classes": classes,
            "statuses": statuses,
            "latency_us": self.offered().map(|_| summary(&s.latency)),
            "service_time_us": summary(&s.service),
            "body_bytes": s.bytes,
            "body_bytes_per_second": s.bytes as f64 / self.elapsed.as_secs_f64(),
            "connections_opened": s.connections,
            "waited_for_connection": { "requests": s.queued, "longest_us": s.queue_longest.as_micros() as u64 },
            "generator": { "lag_us": summary(&s.lag), "busy": usage.map(|u| u.busy), "starved": usage.map(|u| u.starved) },
            "tally": plan.tally.as_ref().map(|name| json!({
                "header": name.as_str(),
                "values": self.tally().into_iter().map(|(v, n)| json!({ "value": v, "count": n })).collect::<Vec<_>>(),
            })),
            "series": self.series.iter().map(|x| json!({
                "at_seconds": x.at.as_secs_f64(), "rate": x.rate(), "error_rate": x.failure_rate(),
                "p50_us": x.p50_us, "p99_us": x.p99_us,
            })).collect::<Vec<_>>(),
            "warnings": self.warnings(),
        })
    }
}

fn summary(h: &Histogram<u64>) -> Value {
    let mut map = Map::new();
    map.insert("count".into(), h.len().into());
    map.insert("mean".into(), h.mean().into());
    for (name, q) in QUANTILES {
        map.insert(name.into(), h.value_at_quantile(q).into());
    }
    map.into()
}

fn row(h: &Histogram<u64>) -> String {
    let cell = |q| if h.is_empty() { "-".to_owned() } else { micros(h.value_at_quantile(q)) };
    QUANTILES.iter().map(|(_, q)| format!("{:>10}", cell(*q))).collect()
}

fn plural(n: u64, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// Formats a time with a suitable unit.
pub(super) fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us}µs"),
        1_000..1_000_000 => format!("{:.2}ms", us as f64 / 1e3),
        _ => format!("{:.2}s", us as f64 / 1e6),
    }
}

/// Formats a size with a suitable unit.
fn bytes(n: f64) -> String {
    let units = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    let unit = units.into_iter().find(|(size, _)| n >= *size);
    unit.map_or_else(|| format!("{n:.0} B"), |(size, name)| format!("{:.2} {name}", n / size))
}
