//! The project's targets, and whether the results meet them.

use crate::results::{Measured, Results};

/// One of them.
pub struct Target {
    pub what: &'static str,
    scenario: &'static str,
    /// The measured figure must not be above it.
    pub limit: f64,
    pub unit: &'static str,
    measure: fn(&Measured) -> Option<f64>,
}

impl Target {
    pub fn measured(&self, results: &Results) -> Option<f64> {
        (self.measure)(results.scenarios.get(self.scenario)?)
    }
}

const fn target(
    what: &'static str,
    scenario: &'static str,
    limit: f64,
    unit: &'static str,
    measure: fn(&Measured) -> Option<f64>,
) -> Target {
    Target { what, scenario, limit, unit, measure }
}

pub const ALL: &[Target] = &[
    target("No filters: CPU for each request, to nginx", "bare", 1.0, "×", |m| m.ratio("cpu_us", "Tollgate", "nginx")),
    target("No filters: CPU for each request, to Envoy", "bare", 0.4, "×", |m| m.ratio("cpu_us", "Tollgate", "Envoy")),
    target("Four filters: CPU for each request, to nginx without any", "filters", 1.1, "×", |m| {
        m.ratio("cpu_us", "Tollgate, 4 filters", "nginx, bare")
    }),
    target("Four filters: CPU for each request, to Envoy with native ones", "filters", 0.4, "×", |m| {
        m.ratio("cpu_us", "Tollgate, 4 filters", "Envoy, 4 native filters")
    }),
    target("Four filters: CPU for each request, to Envoy with the same ones in V8", "filters", 0.25, "×", |m| {
        m.ratio("cpu_us", "Tollgate, 4 filters", "Envoy, the same 4 in V8")
    }),
    target("Four filters, in process", "chain", 1.0, "µs", |m| m.row("Tollgate, 4 filters")?.median("chain_us")),
    target("A third-party filter, in process", "chain", 0.6, "µs", |m| {
        m.row("Tollgate, a third-party filter")?.median("chain_us")
    }),
    target("The same filter by our SDK, in process", "chain", 0.25, "µs", |m| {
        m.row("Tollgate, the same by our SDK")?.median("chain_us")
    }),
    target("TLS, HTTP/1.1: CPU for each request, to nginx", "tls", 1.0, "×", |m| {
        m.ratio("cpu_us", "Tollgate", "nginx")
    }),
    target("TLS, HTTP/2: CPU for each request, to HAProxy", "tls-h2", 1.1, "×", |m| {
        m.ratio("cpu_us", "Tollgate", "HAProxy")
    }),
    target("TLS, HTTP/2, four filters: CPU for each request, to nginx without any", "tls-h2", 1.0, "×", |m| {
        m.ratio("cpu_us", "Tollgate, 4 filters", "nginx")
    }),
    target("Half of what it can carry: p99 with four filters, to none", "half", 1.2, "×", |m| {
        m.ratio("p99", "Tollgate, 4 filters", "Tollgate, bare")
    }),
    target("10,000 routes: CPU for each request, to 10 routes", "routes", 1.2, "×", |m| {
        m.ratio("cpu_us", "Tollgate, 10000 routes", "Tollgate, 10 routes")
    }),
    target("A swap every second: requests that fail", "swap", 0.0, "", |m| {
        m.row("a swap every second")?.values("errors").into_iter().reduce(f64::max)
    }),
    target("A swap every second: p99, to none", "swap", 1.5, "×", |m| {
        m.ratio("p99", "a swap every second", "no swaps")
    }),
    target("Memory at the start: four filters, 2 workers", "idle", 40.0, "MiB", |m| {
        m.row("Tollgate, 4 filters, 2 workers")?.median("start_mib")
    }),
    target("Memory of an idle connection", "idle", 12.0, "KiB", |m| m.row("Tollgate")?.median("each_kib")),
    target("Bodies of 1 MiB: CPU for each MiB, to HAProxy", "large", 1.2, "×", |m| {
        m.ratio("cpu_us", "Tollgate", "HAProxy")
    }),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Round, Row, tests::row};

    #[test]
    fn what_is_measured_is_found() {
        let mut results = Results::default();
        assert!(ALL.iter().all(|target| target.measured(&results).is_none()));
        let rows = vec![row("nginx", 0, &[Some(10.0)]), row("Tollgate", 0, &[Some(11.0)])];
        results.scenarios.insert("bare".into(), Measured { rows, ..Default::default() });
        assert_eq!(ALL[0].measured(&results), Some(1.1));
        assert_eq!(ALL[1].measured(&results), None, "Envoy was not there");
    }

    /// A slip in a label would look like something that was not measured.
    #[test]
    fn labels_are_those_of_the_scenarios() {
        let mut results = Results::default();
        for scenario in crate::scenarios::all() {
            let rows = scenario.subjects.iter().map(|s| {
                let figures = scenario.columns.iter().map(|c| (c.key.to_owned(), 1.0)).collect();
                Row { label: s.label.clone(), number: s.repeat, runs: vec![Round::Measured(figures)] }
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
