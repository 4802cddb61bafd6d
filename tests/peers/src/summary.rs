//! Compares all scenarios that have peers by one rule: each of Tollgate's rows with each peer's equivalent row, in all
//! measures that both have. No comparison is selected by its result.

use std::fmt::Write;

use crate::{figures, results::Results, scenario::Scenario, stats::Figure};

/// The measures: a title, and the keys of its columns, of which a scenario has at most one.
const MEASURES: [(&str, &[&str]); 5] = [
    ("CPU", &["cpu_us"]),
    ("p50", &["p50"]),
    ("p99", &["p99"]),
    ("memory", &["rss_mib", "start_mib"]),
    ("memory of an idle connection", &["each_kib"]),
];

/// One measure of Tollgate's relative to a peer's.
struct Comparison {
    ratio: Figure,
    rounds: usize,
}

/// The result over all rounds.
#[derive(PartialEq, Clone, Copy)]
enum Outcome {
    Less,
    More,
    Either,
}

impl Comparison {
    fn outcome(&self) -> Outcome {
        match self.ratio {
            Figure { high, .. } if high < 1.0 => Outcome::Less,
            Figure { low, .. } if low > 1.0 => Outcome::More,
            _ => Outcome::Either,
        }
    }

    fn text(&self) -> String {
        figures::ratio(self.ratio) + &figures::of_rounds(self.ratio.rounds, self.rounds)
    }
}

/// The comparisons of each pair, in the scenarios' order: the scenario, the pair's label, and the comparison per measure, if there is one.
fn all<'a>(
    scenarios: &'a [Scenario],
    results: &Results,
) -> Vec<(&'a Scenario, String, [Option<Comparison>; MEASURES.len()])> {
    let mut all = Vec::new();
    for scenario in scenarios {
        let Some(measured) = results.scenarios.get(scenario.name) else { continue };
        for (ours, peer) in scenario.pairs() {
            if measured.row(&ours.label).is_none() || measured.row(&peer.label).is_none() {
                continue;
            }
            let compare = |(_, keys): (&'static str, &[&str])| {
                let has = |key: &&&str| scenario.column(key).is_some();
                let ratio = measured.ratio(keys.iter().find(has)?, &ours.label, &peer.label)?;
                Some(Comparison { ratio, rounds: measured.rounds() })
            };
            let comparisons = MEASURES.map(compare);
            if comparisons.iter().all(Option::is_none) {
                continue;
            }
            let ours = if ours.label == "Tollgate" { String::new() } else { format!("{} to ", ours.label) };
            all.push((scenario, format!("{ours}{}", peer.label), comparisons));
        }
    }
    all
}

/// The table of all comparisons.
pub fn table(scenarios: &[Scenario], results: &Results) -> String {
    let mut text = String::from("\n| | Tollgate to |");
    text.extend(MEASURES.iter().map(|(title, _)| format!(" {title} |")));
    text += "\n|---|---|";
    text += &"---:|".repeat(MEASURES.len());
    text.push('\n');
    let mut last = "";
    for (scenario, pair, comparisons) in all(scenarios, results) {
        let title = if last == scenario.name { "" } else { scenario.title };
        last = scenario.name;
        let _ = write!(text, "| {title} | {pair} |");
        for comparison in comparisons {
            let cell = comparison.map_or_else(String::new, |comparison| match comparison.outcome() {
                Outcome::Less => comparison.text(),
                Outcome::More => format!("**{}**", comparison.text()),
                Outcome::Either => format!("*{}*", comparison.text()),
            });
            let _ = write!(text, " {cell} |");
        }
        text.push('\n');
    }
    text
}

/// A scenario, Tollgate's row and the peer's in words, and how one measure compares.
type Compared<'a> = (&'a Scenario, String, Comparison);

/// The comparisons by measure.
fn by_measure<'a>(scenarios: &'a [Scenario], results: &Results) -> [(&'static str, Vec<Compared<'a>>); MEASURES.len()] {
    let mut found = MEASURES.map(|(title, _)| (title, Vec::new()));
    for (scenario, pair, comparisons) in all(scenarios, results) {
        for ((_, of_this), comparison) in found.iter_mut().zip(comparisons) {
            of_this.extend(comparison.map(|comparison| (scenario, pair.clone(), comparison)));
        }
    }
    found
}

/// Counts the comparisons by outcome.
pub fn counts(scenarios: &[Scenario], results: &Results) -> String {
    let mut text = String::from(
        "\n| Tollgate takes | less in all rounds | more in all rounds | less in some, more in others |\n|---|---:|---:|---:|\n",
    );
    for (title, comparisons) in by_measure(scenarios, results) {
        let count = |outcome| comparisons.iter().filter(|(.., comparison)| comparison.outcome() == outcome).count();
        let [less, more, either] = [Outcome::Less, Outcome::More, Outcome::Either].map(count);
        let _ = writeln!(text, "| {title} | {less} | {more} | {either} |");
    }
    text
}

/// Lists the comparisons in which Tollgate takes more in all rounds, one line per measure.
pub fn losses(scenarios: &[Scenario], results: &Results) -> String {
    let mut text = String::new();
    for (title, comparisons) in by_measure(scenarios, results) {
        let mut last = "";
        for (scenario, pair, comparison) in comparisons.iter().filter(|(.., c)| c.outcome() == Outcome::More) {
            let before = match last {
                "" => format!("\n* More {title}: *{}* ", scenario.title),
                name if name == scenario.name => ", ".into(),
                _ => format!("; *{}* ", scenario.title),
            };
            last = scenario.name;
            let _ = write!(text, "{before}{pair} {}", comparison.text());
        }
        if !last.is_empty() {
            text.push('.');
        }
    }
    format!("{text}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        results::{Measured, tests::row},
        scenarios,
    };

    #[test]
    fn losses_are_shown_like_wins() {
        let rows = vec![
            row("nginx", 0, &[Some(10.0), Some(10.0), Some(10.0)]),
            row("HAProxy", 0, &[Some(10.0), Some(10.0), None]),
            row("Envoy", 0, &[Some(20.0), Some(22.0), Some(21.0)]),
            row("Tollgate", 0, &[Some(11.0), Some(12.0), Some(11.0)]),
            row("nginx, with the same fields", 1, &[Some(11.5), Some(11.5), Some(11.5)]),
        ];
        let scenarios = scenarios::all();
        let measured = Measured { rows, ..Default::default() };
        let results = Results { scenarios: [("bare".into(), measured)].into(), ..Default::default() };
        let table = table(&scenarios, &results);
        assert!(table.contains("| nginx | **1.10 × (1.10–1.20)** |"), "{table}");
        assert!(table.contains("| HAProxy | **1.15 × (1.10–1.20), 2 of 3 rounds** |"), "{table}");
        assert!(table.contains("| Envoy | 0.55 × (0.52–0.55) |"), "{table}");
        assert!(table.contains("| nginx, with the same fields | *0.96 × (0.96–1.04)* |"), "{table}");
        let counts = counts(&scenarios, &results);
        assert!(counts.contains("| CPU | 1 | 2 | 1 |\n| p50 | 0 | 0 | 0 |"), "{counts}");
        let losses = losses(&scenarios, &results);
        assert!(
            losses.contains("* More CPU: *A request, no filters* nginx 1.10 × (1.10–1.20), HAProxy 1.15 ×"),
            "{losses}"
        );
    }

    /// A peer without an equivalent row of Tollgate's would be in no comparison.
    #[test]
    fn all_peers_are_compared() {
        for scenario in scenarios::all() {
            let peers = scenario.subjects.iter().filter(|s| s.program != crate::scenario::Program::Tollgate).count();
            assert_eq!(scenario.pairs().len(), peers, "{}", scenario.name);
        }
    }
}
