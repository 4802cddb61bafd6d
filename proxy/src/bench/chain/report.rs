//! The results of a run: as JSON (also for use as a later run's baseline), and as a table.

use std::fmt::{self, Write};

use serde::{Deserialize, Serialize};

use super::{
    drive::Ending,
    timed::{Phase, Times},
};

/// Changes below this many percent are within the noise between two equal runs.
const NOISE: f64 = 5.0;

/// The results of a finished run. All times are in nanoseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Report {
    /// The version of Tollgate that measured.
    pub(super) tollgate: String,
    pub(super) listener: String,
    /// The number of different requests.
    pub(super) requests: usize,
    /// A hash of the requests and the response.
    pub(super) workload: String,
    /// The number of runs of a request, each repeated with every call timed.
    pub(super) iterations: u64,
    /// The cost of reading the clock, which is not included in the other times.
    pub(super) clock_ns: f64,
    pub(super) filters: Vec<FilterReport>,
    /// A whole request, without a clock between the calls.
    pub(super) total: PhaseFigures,
    /// The calls of a request, timed individually and summed up.
    pub(super) calls: Sums,
    pub(super) endings: Vec<EndingReport>,
    /// Reasons not to trust the numbers.
    pub(super) notes: Vec<String>,
    /// The results of another listener's chain in the same run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) beside: Option<Box<Report>>,
}

/// A filter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct FilterReport {
    pub(super) name: String,
    /// Its linear memory after the run, in bytes.
    pub(super) memory_bytes: u64,
    pub(super) phases: Vec<PhaseReport>,
}

/// A phase of a filter in which it was called.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct PhaseReport {
    pub(super) phase: Phase,
    pub(super) calls: u64,
    /// The times of one call.
    #[serde(flatten)]
    pub(super) figures: PhaseFigures,
    /// Calls to the host, per call.
    pub(super) hostcalls: f64,
    /// Bytes copied, per call.
    pub(super) copied_bytes: f64,
}

/// Times, and their difference from the baseline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct PhaseFigures {
    pub(super) median_ns: f64,
    pub(super) p99_ns: f64,
    pub(super) mean_ns: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) change: Option<Change>,
}

/// Sums over all phases of all filters, weighted by their average number of calls per request. The sum of medians is not a median,
/// but it is robust against disturbances of the machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Sums {
    pub(super) of_medians_ns: f64,
    pub(super) of_means_ns: f64,
}

impl Sums {
    pub(super) fn new(filters: &[FilterReport], requests: u64) -> Sums {
        let sum = |time: fn(&PhaseFigures) -> f64| {
            let phases = filters.iter().flat_map(|f| &f.phases);
            rounded(phases.map(|p| p.calls as f64 * time(&p.figures)).sum::<f64>() / requests as f64)
        };
        Sums { of_medians_ns: sum(|f| f.median_ns), of_means_ns: sum(|f| f.mean_ns) }
    }
}

/// The difference from the baseline, in percent of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Change {
    pub(super) median_percent: f64,
    pub(super) p99_percent: f64,
    pub(super) mean_percent: f64,
}

/// How requests ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ending", rename_all = "snake_case")]
pub(super) enum EndingReport {
    /// With the upstream's response.
    Response { status: u16, count: u64 },
    /// With a reply of a filter or of the proxy itself.
    Reply { status: u16, count: u64 },
    /// Without a response.
    Closed { count: u64 },
    /// Not at all: a filter held the message.
    Held { filter: String, count: u64 },
}

impl EndingReport {
    pub(super) fn new(ending: Ending, count: u64, name: impl FnOnce(usize) -> String) -> Self {
        match ending {
            Ending::Response(status) => EndingReport::Response { status, count },
            Ending::Reply(status) => EndingReport::Reply { status, count },
            Ending::Closed => EndingReport::Closed { count },
            Ending::Held(position) => EndingReport::Held { filter: name(position), count },
        }
    }

    pub(super) fn count(&self) -> u64 {
        match self {
            EndingReport::Response { count, .. }
            | EndingReport::Reply { count, .. }
            | EndingReport::Closed { count }
            | EndingReport::Held { count, .. } => *count,
        }
    }

    fn what(&self) -> String {
        match self {
            EndingReport::Response { status, .. } => format!("{status} from upstream"),
            EndingReport::Reply { status, .. } => format!("{status} from the proxy or a filter"),
            EndingReport::Closed { .. } => "closed by a filter".to_owned(),
            EndingReport::Held { filter, .. } => format!("held by `{filter}`"),
        }
    }
}

/// Rounds to a hundredth: more digits would be noise, and would not survive a round trip through JSON.
pub(super) fn rounded(x: f64) -> f64 {
    (x * 100.0).round() / 100.0
}

/// The change from `before` to `now`, in percent of `before`; 0 if `before` is 0.
fn percent(now: f64, before: f64) -> f64 {
    if before > 0.0 { rounded((now / before - 1.0) * 100.0) } else { 0.0 }
}

impl PhaseFigures {
    pub(super) fn new(times: &Times) -> PhaseFigures {
        PhaseFigures {
            median_ns: times.quantile(0.5),
            p99_ns: times.quantile(0.99),
            mean_ns: rounded(times.mean()),
            change: None,
        }
    }

    fn compare(&mut self, before: &PhaseFigures) {
        self.change = Some(Change {
            median_percent: percent(self.median_ns, before.median_ns),
            p99_percent: percent(self.p99_ns, before.p99_ns),
            mean_percent: percent(self.mean_ns, before.mean_ns),
        });
    }
}

impl Report {
    /// Adds the differences from an earlier run.
    pub(super) fn compare(&mut self, before: &Report) {
        if self.workload != before.workload {
            self.notes.push("the baseline was measured with other requests or responses".to_owned());
        }
        let kinds = |report: &Report| report.endings.iter().map(EndingReport::what).collect::<Vec<_>>();
        if kinds(self) != kinds(before) {
            self.notes.push(format!("in the baseline, requests ended differently: {}", kinds(before).join(", ")));
        }
        self.total.compare(&before.total);
        for filter in &mut self.filters {
            let Some(old) = before.filters.iter().find(|f| f.name == filter.name) else {
                self.notes.push(format!("filter `{}` is not in the baseline", filter.name));
                continue;
            };
            for phase in &mut filter.phases {
                if let Some(old) = old.phases.iter().find(|p| p.phase == phase.phase) {
                    phase.figures.compare(&old.figures);
                }
            }
        }
        if let (Some(beside), Some(before)) = (&mut self.beside, &before.beside) {
            beside.compare(before);
        }
        for old in &before.filters {
            if !self.filters.iter().any(|f| f.name == old.name) {
                self.notes.push(format!("filter `{}` is only in the baseline", old.name));
            }
        }
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
        let (filters, requests) =
            (plural(self.filters.len() as u64, "filter"), plural(self.requests as u64, "request"));
        let title = format!("listener `{}`", self.listener);
        writeln!(out, "{}: {filters}, {requests} in turn, {} runs", paint("1;36", &title), self.iterations)?;

        let compared = self.total.change.is_some();
        let width = self.filters.iter().map(|f| f.name.chars().count()).max().unwrap_or(0).max("filter".len());
        let change = |figures: &PhaseFigures| match (&figures.change, compared) {
            (Some(change), _) => {
                format!("{}{}", shift(change.median_percent, &paint), shift(change.p99_percent, &paint))
            }
            (None, true) => format!("{:>9}{:>9}", "-", "-"),
            (None, false) => String::new(),
        };
        let columns = if compared { format!("{:>9}{:>9}", "Δmedian", "Δp99") } else { String::new() };
        let header = format!(
            "{:<width$}  {:<17}{:>10}{:>11}{:>10}{columns}{:>11}{:>10}",
            "filter", "phase", "calls", "median ns", "p99 ns", "hostcalls", "copied B"
        );
        writeln!(out, "\n{}", paint("1", &header))?;
        for filter in &self.filters {
            let mut name = filter.name.as_str();
            for row in &filter.phases {
                let (f, phase) = (&row.figures, row.phase.name());
                writeln!(
                    out,
                    "{name:<width$}  {phase:<17}{:>10}{:>11}{:>10}{}{:>11.2}{:>10.1}",
                    row.calls,
                    f.median_ns,
                    f.p99_ns,
                    change(f),
                    row.hostcalls,
                    row.copied_bytes
                )?;
                name = "";
            }
            if filter.phases.is_empty() {
                writeln!(out, "{name:<width$}  never called")?;
            }
        }
        let total = &self.total;
        let label = format!("{:<1$}", "chain, whole request", width + 29);
        let figures = format!("{:>11}{:>10}", total.median_ns, total.p99_ns);
        writeln!(out, "{}{}{}", paint("1", &label), paint("1;32", &figures), change(total))?;

        let label = format!("{:<1$}", "its calls, summed up", width + 29);
        writeln!(out, "{label}{:>11.0}", self.calls.of_medians_ns)?;

        let title = |s: &str| paint("1", &format!("{s:<8}"));
        let (whole, calls) = (total.mean_ns, self.calls.of_means_ns);
        writeln!(out, "\n{} {whole:.0} ns, of its calls {calls:.0} ns", title("Mean"))?;
        writeln!(out, "{} {} ns to read it, subtracted from each time", title("Clock"), self.clock_ns)?;
        let memory = self.filters.iter().map(|f| format!("{} {} KiB", f.name, f.memory_bytes >> 10));
        writeln!(out, "{} {}", title("Memory"), memory.collect::<Vec<_>>().join(", "))?;
        let endings = self.endings.iter().map(|e| format!("{} × {}", e.count(), e.what()));
        writeln!(out, "{} {}", title("Ended"), endings.collect::<Vec<_>>().join(", "))?;
        for (i, note) in self.notes.iter().enumerate() {
            writeln!(out, "{}{} {note}", if i == 0 { "\n" } else { "" }, paint("1;33", "note:"))?;
        }
        if let Some(beside) = &self.beside {
            writeln!(out)?;
            beside.write_text(out, colour)?;
            let share = beside.total.median_ns / total.median_ns.max(1.0);
            writeln!(
                out,
                "\n{} costs {share:.2} × as much as `{}`",
                paint("1", &format!("`{}`", beside.listener)),
                self.listener
            )?;
        }
        Ok(())
    }
}

/// Formats a change in percent, nine columns wide; red or green if it is more than noise.
fn shift(percent: f64, paint: &impl Fn(&str, &str) -> String) -> String {
    let text = format!("{:>9}", format!("{percent:+.1}%"));
    match percent {
        p if p >= NOISE => paint("31", &text),
        p if p <= -NOISE => paint("32", &text),
        _ => text,
    }
}

pub(super) fn plural(n: u64, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}
