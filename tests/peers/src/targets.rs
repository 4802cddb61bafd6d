//! The project's targets, and whether the results meet them.

use crate::{results::Results, stats::Figure};

/// One of them: a figure of one row, or its ratio to that of another, must not be above a limit.
pub struct Target {
    pub what: &'static str,
    scenario: &'static str,
    row: &'static str,
    key: &'static str,
    to: Option<&'static str>,
    pub limit: f64,
    pub unit: &'static str,
}

/// What the rounds say of a target. One alone decides nothing.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// In all rounds.
    Met,
    /// In none.
    Missed,
    /// In some.
    Open,
    /// Some rounds have failed: so many of so many.
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
        // Fewer say nothing about the next one. Memory is the same each time, so it is taken twice.
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
    ratio("No filters: CPU for each request, to nginx", ("bare", "Tollgate", "cpu_us"), "nginx", 1.0),
    ratio("No filters: CPU for each request, to Envoy", ("bare", "Tollgate", "cpu_us"), "Envoy", 0.4),
    ratio(
        "Four filters: CPU for each request, to nginx without any",
        ("filters", "Tollgate, 4 filters", "cpu_us"),
        "nginx, bare",
        1.1,
    ),
    ratio(
        "Four filters: CPU for each request, to Envoy with native ones",
        ("filters", "Tollgate, 4 filters", "cpu_us"),
        "Envoy, 4 native filters",
        0.4,
    ),
    ratio(
        "Four filters: CPU for each request, to Envoy with the same ones in V8",
        ("filters", "Tollgate, 4 filters", "cpu_us"),
        "Envoy, the same 4 in V8",
        0.25,
    ),
    figure("Four filters, in process", ("chain", "Tollgate, 4 filters", "chain_us"), 1.0, "µs"),
    figure("A third-party filter, in process", ("chain", "Tollgate, a third-party filter", "chain_us"), 0.6, "µs"),
    figure(
        "The same filter by our SDK, in process",
        ("chain", "Tollgate, the same by our SDK", "chain_us"),
        0.25,
        "µs",
    ),
    ratio("TLS, HTTP/1.1: CPU for each request, to nginx", ("tls", "Tollgate", "cpu_us"), "nginx", 1.0),
    ratio("TLS, HTTP/2: CPU for each request, to HAProxy", ("tls-h2", "Tollgate", "cpu_us"), "HAProxy", 1.1),
    ratio(
        "TLS, HTTP/2, four filters: CPU for each request, to nginx without any",
        ("tls-h2", "Tollgate, 4 filters", "cpu_us"),
        "nginx",
        1.0,
    ),
    ratio(
        "Half of what it carried: p99 with four filters, to none",
        ("half", "Tollgate, 4 filters", "p99"),
        "Tollgate, bare",
        1.2,
    ),
    ratio(
        "10,000 routes: CPU for each request, to 10 routes",
        ("routes", "Tollgate, 10000 routes", "cpu_us"),
        "Tollgate, 10 routes",
        1.2,
    ),
    figure("A swap every second: requests that fail", ("swap", "a swap every second", "errors"), 0.0, ""),
    ratio("A swap every second: p99, to none", ("swap", "a swap every second", "p99"), "no swaps", 1.5),
    figure(
        "Memory at the start: four filters, 2 workers",
        ("idle", "Tollgate, 4 filters, 2 workers", "start_mib"),
        40.0,
        "MiB",
    ),
    figure("Memory of an idle connection", ("idle", "Tollgate", "each_kib"), 12.0, "KiB"),
    ratio("Bodies of 1 MiB: CPU for each MiB, to HAProxy", ("large", "Tollgate", "cpu_us"), "HAProxy", 1.2),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Measured, Round, Row, tests::row};

    /// What the first target, at most nginx's CPU, says of these rounds of Tollgate's; nginx needs 10 in each.
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

    /// A slip in a label or a key would look like something that was not measured.
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
