//! The project's targets, and whether the results meet them.

use crate::{results::Results, stats::Figure};

/// A target: an upper limit for a figure of one row, or for its ratio to another row's.
pub struct Target {
    pub what: &'static str,
    scenario: &'static str,
    row: &'static str,
    key: &'static str,
    to: Option<&'static str>,
    pub limit: f64,
    pub unit: &'static str,
}

/// Whether a target is met, judged over all rounds.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// Met in all rounds.
    Met,
    /// Missed in all rounds.
    Missed,
    /// Met in some rounds only, or measured in too few.
    Open,
    /// Some rounds failed: their number, and the number of all rounds.
    Lost(usize, usize),
    NotMeasured,
}

impl Target {
    pub fn measured(&self, results: &Results) -> Option<Figure> {
        let measured = results.scenarios.get(self.scenario)?;
        match self.to {
            Some(base) => measured.ratio(self.key, self.row, base),
            None => measured.row(self.row)?.figure(self.key),
        }
    }

    pub fn verdict(&self, results: &Results) -> Verdict {
        let (Some(measured), Some(figure)) = (results.scenarios.get(self.scenario), self.measured(results)) else {
            return Verdict::NotMeasured;
        };
        let rounds = measured.rounds();
        let lost = rounds - figure.rounds;
        // Fewer rounds prove nothing. Memory is the same each time, so two are enough.
        let enough = if self.scenario == "idle" { 2 } else { 3 };
        if lost > 0 {
            Verdict::Lost(lost, rounds)
        } else if figure.low > self.limit {
            Verdict::Missed
        } else if figure.high <= self.limit && rounds >= enough {
            Verdict::Met
        } else {
            Verdict::Open
        }
    }
}

const fn figure(
    what: &'static str,
    (scenario, row, key): (&'static str, &'static str, &'static str),
    limit: f64,
    unit: &'static str,
) -> Target {
    Target { what, scenario, row, key, to: None, limit, unit }
}

const fn ratio(
    what: &'static str,
    (scenario, row, key): (&'static str, &'static str, &'static str),
    to: &'static str,
    limit: f64,
) -> Target {
    Target { what, scenario, row, key, to: Some(to), limit, unit: "×" }
}

pub const ALL: &[Target] = &[
    ratio("No filters: CPU per request, to nginx", ("bare", "Tollgate", "cpu_us"), "nginx", 1.0),
    ratio("No filters: CPU per request, to Envoy", ("bare", "Tollgate", "cpu_us"), "Envoy", 0.4),
    ratio(
        "Four filters: CPU per request, to nginx without filters",
        ("filters", "Tollgate, 4 filters", "cpu_us"),
        "nginx, bare",
        1.1,
    ),
    ratio(
        "Four filters: CPU per request, to Envoy with native filters",
        ("filters", "Tollgate, 4 filters", "cpu_us"),
        "Envoy, 4 native filters",
        0.4,
    ),
    ratio(
        "Four filters: CPU per request, to Envoy with the same filters in V8",
        ("filters", "Tollgate, 4 filters", "cpu_us"),
        "Envoy, the same 4 in V8",
        0.25,
    ),
    figure("Four filters, in process", ("chain", "Tollgate, 4 filters", "chain_us"), 1.0, "µs"),
    figure("A third-party filter, in process", ("chain", "Tollgate, a third-party filter", "chain_us"), 0.6, "µs"),
    figure(
        "The same filter built with our SDK, in process",
        ("chain", "Tollgate, the same by our SDK", "chain_us"),
        0.25,
        "µs",
    ),
    ratio("TLS, HTTP/1.1: CPU per request, to nginx", ("tls", "Tollgate", "cpu_us"), "nginx", 1.0),
    ratio("TLS, HTTP/2: CPU per request, to HAProxy", ("tls-h2", "Tollgate", "cpu_us"), "HAProxy", 1.1),
    ratio(
        "TLS, HTTP/2, four filters: CPU per request, to nginx without filters",
        ("tls-h2", "Tollgate, 4 filters", "cpu_us"),
        "nginx",
        1.0,
    ),
    ratio(
        "At half of the saturated rate: p99 with four filters, to no filters",
        ("half", "Tollgate, 4 filters", "p99"),
        "Tollgate, bare",
        1.2,
    ),
    ratio(
        "10,000 routes: CPU per request, to 10 routes",
        ("routes", "Tollgate, 10000 routes", "cpu_us"),
        "Tollgate, 10 routes",
        1.2,
    ),
    figure("A swap every second: failed requests", ("swap", "a swap every second", "errors"), 0.0, ""),
    ratio("A swap every second: p99, to no swaps", ("swap", "a swap every second", "p99"), "no swaps", 1.5),
    figure(
        "Memory at the start: four filters, 2 workers",
        ("idle", "Tollgate, 4 filters, 2 workers", "start_mib"),
        40.0,
        "MiB",
    ),
    figure("Memory of an idle connection", ("idle", "Tollgate", "each_kib"), 12.0, "KiB"),
    ratio("Bodies of 1 MiB: CPU per MiB, to HAProxy", ("large", "Tollgate", "cpu_us"), "HAProxy", 1.2),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Measured, Round, Row, tests::row};

    /// The verdict of the first target (at most nginx's CPU) for these rounds of Tollgate; nginx needs 10 in each.
    fn verdict(rounds: &[Option<f64>]) -> Verdict {
        let rows = vec![row("nginx", 0, &vec![Some(10.0); rounds.len()]), row("Tollgate", 0, rounds)];
        let scenarios = [("bare".into(), Measured { rows, ..Default::default() })].into();
        ALL[0].verdict(&Results { scenarios, ..Results::default() })
    }

    #[test]
    fn a_target_is_met_or_missed_only_by_all_rounds() {
        assert_eq!(verdict(&[Some(9.0), Some(8.0), Some(10.0)]), Verdict::Met);
        assert_eq!(verdict(&[Some(11.0), Some(12.0), Some(10.1)]), Verdict::Missed);
        assert_eq!(verdict(&[Some(2.0), Some(3.0), Some(10.1)]), Verdict::Open, "whatever the median");
        assert_eq!(verdict(&[Some(9.0), Some(8.0)]), Verdict::Open, "two rounds are too few");
        assert_eq!(verdict(&[Some(9.0), None, Some(9.0), Some(9.0)]), Verdict::Lost(1, 4));
        assert_eq!(verdict(&[]), Verdict::NotMeasured);
    }

    /// A wrong label or key would look like a missing measurement.
    #[test]
    fn labels_and_keys_are_those_of_the_scenarios() {
        let mut results = Results::default();
        for scenario in crate::scenarios::all() {
            let rows = scenario.subjects.iter().map(|s| {
                let figures = scenario.columns.iter().chain(scenario.open).map(|c| (c.key.to_owned(), 1.0)).collect();
                Row { label: s.label.clone(), runs: vec![Round::Measured(figures)], ..Row::default() }
            });
            let measured = Measured { rows: rows.collect(), ..Default::default() };
            results.scenarios.insert(scenario.name.into(), measured);
        }
        let two = crate::machine::Places::most_workers() >= 2;
        for target in ALL.iter().filter(|t| two || !t.what.contains("2 workers")) {
            assert!(target.measured(&results).is_some(), "{}", target.what);
        }
    }
}
