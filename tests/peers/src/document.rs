//! Writes the results into README.md, docs/performance.md and docs/operating.md (see `figures`), and the plots.
//! The text around the figures is written by hand and left unchanged.

use std::{fmt::Write, fs, path::Path};

use anyhow::{Context, bail};

use crate::{
    figures::{self, in_table, in_text, number},
    machine::Made,
    plot::{Bar, chart},
    rate::Pace,
    results::{Measured, Results, Row},
    rounds::ATTEMPTS,
    scenario::{Column, Scenario, Work},
    summary,
    targets::{self, Verdict},
};

/// The documents with figures, relative to the folder of documents.
const DOCUMENTS: [&str; 3] = ["performance.md", "operating.md", "../README.md"];

/// Keys of the columns to which a filter's cost is shown, if they are measured.
const ADDED: [&str; 3] = ["cpu_us", "p50", "p99"];

/// Below this share of busy time, in percent, the proxy was not the bottleneck.
const SATURATED: f64 = 95.0;

/// Writes the plots, and the figures in the documents.
pub fn write(docs: &Path, scenarios: &[Scenario], results: &Results) -> anyhow::Result<()> {
    for name in DOCUMENTS {
        let file = docs.join(name);
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let text = filled(&text, scenarios, results).with_context(|| format!("in {}", file.display()))?;
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    for (scenario, measured) in both(scenarios, results) {
        let plot = docs.join("performance").join(format!("{}.svg", scenario.name));
        fs::write(&plot, picture(scenario, measured)).with_context(|| format!("cannot write {}", plot.display()))?;
    }
    Ok(())
}

fn both<'a>(scenarios: &'a [Scenario], results: &'a Results) -> impl Iterator<Item = (&'a Scenario, &'a Measured)> {
    scenarios.iter().filter_map(|scenario| Some((scenario, results.scenarios.get(scenario.name)?)))
}

fn filled(text: &str, scenarios: &[Scenario], results: &Results) -> anyhow::Result<String> {
    figures::fill(text, |key| figure(key, scenarios, results))
}

/// The text for a key: a section, a figure of a row (`SCENARIO / ROW / FIGURE`), its ratio to another row's (with `/ ROW`
/// appended), what the row's filter adds (`SCENARIO / ROW / added / FIGURE`), or the growth per copy of a filter
/// (`SCENARIO / slope / PROGRAM`).
fn figure(key: &str, scenarios: &[Scenario], results: &Results) -> anyhow::Result<String> {
    let parts: Vec<&str> = key.split(" / ").collect();
    let named =
        |name| scenarios.iter().find(|s| s.name == name).with_context(|| format!("there is no scenario {name}"));
    let text = match parts[..] {
        ["targets"] => targets(results),
        ["summary"] => summary::table(scenarios, results),
        ["counts"] => summary::counts(scenarios, results),
        ["losses"] => summary::losses(scenarios, results),
        ["conditions"] => conditions(scenarios, results),
        ["scenarios"] => both(scenarios, results).map(|(scenario, measured)| section(scenario, measured)).collect(),
        ["output", name] => {
            let output = results.outputs.get(name).context("there is no such output")?;
            let (by, text) = (&output.by, output.lines.join("\n"));
            format!("\n```console\n$ {by}\n{text}\n```\n\n*{}, commit {}.*\n", output.date, output.commit)
        }
        ["record", name] => {
            let record = results.outputs.get(name).context("there is no such record")?;
            format!("\n{}\n\n*{}, commit {}: {}.*\n", record.lines.join("\n"), record.date, record.commit, record.by)
        }
        [scenario, "slope", program] => {
            let main = &named(scenario)?.columns[0];
            let slope = results.scenarios.get(scenario).and_then(|measured| measured.slope(main.key, program));
            slope.map_or_else(not_measured, |slope| in_text(slope, main.unit, 2))
        }
        [name, row, "added", key] => {
            let scenario = named(name)?;
            let subject = scenario.subject(row).with_context(|| format!("there is no row {row}"))?;
            let base = subject.over.with_context(|| format!("{row} has no row without its filter"))?;
            let column = scenario.column(key).with_context(|| format!("there is no figure {key}"))?;
            let added = results.scenarios.get(name).and_then(|measured| measured.added(key, row, base));
            added.map_or_else(not_measured, |added| in_text(added, column.unit, column.decimals))
        }
        [name, row, key, ref base @ ..] if base.len() <= 1 => {
            let scenario = named(name)?;
            for label in [row].iter().chain(base) {
                scenario.subject(label).with_context(|| format!("there is no row {label}"))?;
            }
            let column = scenario.column(key).with_context(|| format!("there is no figure {key}"))?;
            let measured = results.scenarios.get(name);
            match base {
                [] => measured
                    .and_then(|m| m.row(row)?.figure(key))
                    .map_or_else(not_measured, |figure| in_text(figure, column.unit, column.decimals)),
                [base, ..] => measured.and_then(|m| m.ratio(key, row, base)).map_or_else(not_measured, figures::ratio),
            }
        }
        _ => bail!("unknown kind of figure"),
    };
    Ok(text)
}

fn not_measured() -> String {
    "(not measured)".into()
}

fn targets(results: &Results) -> String {
    let mut text = String::from("\n| | target | measured | |\n|---|---|---|---|\n");
    for target in targets::ALL {
        let (what, unit, limit) = (target.what, target.unit, target.limit);
        let figure = target.measured(results).map_or("–".into(), |figure| in_text(figure, unit, 2));
        let verdict = match target.verdict(results) {
            Verdict::Met => "met".to_owned(),
            Verdict::Missed => "**missed**".to_owned(),
            Verdict::Open => "open".to_owned(),
            Verdict::Lost(lost, rounds) => format!("open: {lost} of {rounds} rounds failed"),
            Verdict::NotMeasured => "not measured".to_owned(),
        };
        text += &format!("| {what} | ≤ {} | {figure} | {verdict} |\n", format!("{limit} {unit}").trim_end());
    }
    text
}

/// The conditions that all scenarios share; names the older scenarios whose conditions differ.
fn conditions(scenarios: &[Scenario], results: &Results) -> String {
    let Some(made) = newest(scenarios, results) else { return format!("\n{}\n", not_measured()) };
    let mut text = String::from("\n| | |\n|---|---|\n");
    let versions: Vec<_> = made.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let machine = format!("{} processors ({}), {}", made.processors, made.processor, made.kernel);
    for (name, value) in [("machine", &machine), ("versions", &versions.join(", "))] {
        let _ = writeln!(text, "| {name} | {value} |");
    }
    text.extend(made.conditions.iter().map(|(name, value)| format!("| {name} | {value} |\n")));
    let others: Vec<_> = both(scenarios, results)
        .filter(|(_, measured)| {
            let conditions = |made: &Made| {
                let machine = (made.processors, made.processor.clone(), made.kernel.clone());
                (made.conditions.clone(), made.versions.clone(), machine)
            };
            conditions(&measured.made) != conditions(made)
        })
        .map(|(scenario, _)| format!("`{}`", scenario.name))
        .collect();
    if !others.is_empty() {
        let _ = write!(text, "\nOther conditions, or none recorded, apply to {}.\n", others.join(", "));
    }
    text
}

/// The conditions of the scenario that was measured last.
fn newest<'a>(scenarios: &'a [Scenario], results: &'a Results) -> Option<&'a Made> {
    both(scenarios, results).map(|(_, measured)| &measured.made).max_by_key(|made| &made.date)
}

fn section(scenario: &Scenario, measured: &Measured) -> String {
    let (title, name, about) = (scenario.title, scenario.name, about(scenario, measured.pace.as_ref()));
    let mut text = format!("\n## {title}\n\n`{name}`: {about}\n\n![{title}](performance/{name}.svg)\n\n");
    if !scenario.open.is_empty() {
        text += "Closed loop, at saturation:\n\n";
    }
    text += &closed_table(scenario, measured);
    if !scenario.open.is_empty() {
        let rate =
            measured.pace.as_ref().map_or(String::new(), |pace| format!(", {} a second", number(pace.rate.into(), 0)));
        text += &format!("\nOpen loop{rate}:\n\n{}", open_table(scenario, measured));
    }
    text += &added_table(scenario, measured);
    if scenario.slope {
        text += &slopes(scenario, measured);
    }
    text + &failed(measured) + &format!("\n{}\n", made(scenario, measured))
}

/// A scenario's description with the rate at which it was measured, or, without a measurement, the planned rate.
pub fn about(scenario: &Scenario, pace: Option<&Pace>) -> String {
    let (rate, share) = match (pace, scenario.work.most()) {
        (Some(pace), _) => (number(pace.rate.into(), 0), pace.clause()),
        (None, Some(most)) => {
            (format!("up to {}", number(most.into(), 0)), ", half of what the slowest carries".to_owned())
        }
        (None, None) => Default::default(),
    };
    scenario.about.replace("{rate}", &rate).replace("{share}", &share)
}

/// One row per proxy: the main figure and its ratios with their spread, and medians of the other columns.
fn closed_table(scenario: &Scenario, measured: &Measured) -> String {
    let (main, others) = scenario.columns.split_first().expect("a scenario shows something");
    let mut head = format!("| | {} |", main.label);
    head.extend(scenario.against.iter().map(|base| format!(" to {base} |")));
    head.extend(others.iter().map(|column| format!(" {} |", column.label)));
    let rule = "---:|".repeat(scenario.against.len() + scenario.columns.len());
    let mut text = format!("{head}\n|---|{rule}\n");
    let mut unsaturated = false;
    for row in &measured.rows {
        let figure = row.figure(main.key);
        let of = figures::of_rounds(figure.map_or(0, |figure| figure.rounds), measured.rounds());
        let figure = figure.map_or("–".into(), |figure| in_table(figure, main));
        let _ = write!(text, "| {} | {figure}{of} |", row.label);
        for base in scenario.against {
            let ratio = || measured.ratio(main.key, &row.label, base).map_or("–".into(), figures::ratio);
            let _ = write!(text, " {} |", if row.label == *base { "1 ×".into() } else { ratio() });
        }
        for column in others {
            let median = row.figure(column.key).map(|figure| figure.middle);
            let idle = column.key == "busy" && median.is_some_and(|busy| busy.round() < SATURATED);
            unsaturated |= idle;
            let cell = median.map_or("–".into(), |median| number(median, column.decimals));
            let _ = write!(text, " {cell}{} |", if idle { " †" } else { "" });
        }
        text.push('\n');
    }
    if unsaturated {
        text += "\n† Not saturated: the load generator or the backend was the bottleneck, so this is not the proxy's maximum.\n";
    }
    text
}

/// The same for the open loop, with the spread of every column.
fn open_table(scenario: &Scenario, measured: &Measured) -> String {
    let mut text = String::from("| |");
    text.extend(scenario.open.iter().map(|column| format!(" {} |", column.label)));
    text += &format!("\n|---|{}\n", "---:|".repeat(scenario.open.len()));
    for row in &measured.rows {
        let cell = |column: &Column| row.figure(column.key).map_or("–".into(), |figure| in_table(figure, column));
        let _ = write!(text, "| {} |", row.label);
        text.extend(scenario.open.iter().map(|column| format!(" {} |", cell(column))));
        text.push('\n');
    }
    text
}

/// The cost of each filter, for rows that have a row without the filter.
fn added_table(scenario: &Scenario, measured: &Measured) -> String {
    let columns: Vec<_> = ADDED.iter().filter_map(|key| scenario.column(key)).collect();
    let mut lines = String::new();
    for subject in &scenario.subjects {
        let Some(base) = subject.over.filter(|_| measured.row(&subject.label).is_some()) else { continue };
        let _ = write!(lines, "| {} |", subject.label);
        for column in &columns {
            let added = measured.added(column.key, &subject.label, base);
            let _ = write!(lines, " {} |", added.map_or("–".into(), |added| in_table(added, column)));
        }
        lines.push('\n');
    }
    if lines.is_empty() {
        return lines;
    }
    let head: String = columns.iter().map(|column| format!(" {} |", column.label)).collect();
    format!(
        "\nCost of the filter, compared with the same proxy without it:\n\n| |{head}\n|---|{}\n{lines}",
        "---:|".repeat(columns.len())
    )
}

/// Lists lost rounds and repeated ones, with the reasons.
fn failed(measured: &Measured) -> String {
    let part = |heading: &str, lines: String| {
        if lines.is_empty() { lines } else { format!("\n{heading}:\n\n{lines}") }
    };
    let lost = measured.rows.iter().map(|row| reasons(&row.label, row.lost())).collect();
    let repeated = |row: &Row| reasons(&row.label, row.repeated.iter().map(|r| (r.round, r.why.as_str())));
    let repeated = measured.rows.iter().map(repeated).collect();
    part(&format!("Lost after {ATTEMPTS} attempts each, and not included in these numbers"), lost)
        + &part("Failed and repeated", repeated)
}

/// One line per reason, with its rounds.
fn reasons<'a>(label: &str, failures: impl Iterator<Item = (usize, &'a str)>) -> String {
    let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
    for (round, why) in failures {
        // Further lines contain the program's output and are only for results.json.
        let why = why.lines().next().unwrap_or_default();
        let round = if round == 0 { "calibration".into() } else { round.to_string() };
        match reasons.iter_mut().find(|(known, _)| *known == why) {
            Some((_, rounds)) => rounds.push(round),
            None => reasons.push((why, vec![round])),
        }
    }
    let line = |(why, rounds): &(&str, Vec<String>)| {
        let word = if rounds.len() == 1 { "round" } else { "rounds" };
        format!("* {label}, {word} {}: {why}\n", rounds.join(", "))
    };
    reasons.iter().map(line).collect()
}

/// The cost of each further copy.
fn slopes(scenario: &Scenario, measured: &Measured) -> String {
    let main = &scenario.columns[0];
    let line =
        |program: &str| Some(format!("{program} **{}**", in_text(measured.slope(main.key, program)?, main.unit, 2)));
    let lines: Vec<_> = ["Tollgate", "Envoy"].into_iter().filter_map(line).collect();
    if lines.is_empty() {
        String::new()
    } else {
        format!("\nCost of each further copy, as the slope over all numbers of copies: {}.\n", lines.join(", "))
    }
}

fn picture(scenario: &Scenario, measured: &Measured) -> String {
    let column = &scenario.columns[0];
    let bar = |row: &Row| {
        let figure = row.figure(column.key)?;
        let ours = row.label.starts_with("Tollgate") || row.label == "a swap every second";
        Some(Bar { label: row.label.clone(), value: figure.middle, spread: (figure.low, figure.high), ours })
    };
    let bars: Vec<_> = measured.rows.iter().filter_map(bar).collect();
    chart(scenario.title, column.label, column.decimals, &bars)
}

/// A line with the number and length of rounds, the load generators, the date and the commit.
fn made(scenario: &Scenario, measured: &Measured) -> String {
    let made = &measured.made;
    let most = |key: &str| {
        let figures = measured.rows.iter().filter_map(|row| row.figure(key));
        figures.map(|figure| figure.high).reduce(f64::max).map(|most| number(most, 0))
    };
    let open = most("paced_seconds").map_or(String::new(), |open| format!("{open} s"));
    let each = match scenario.work {
        Work::Requests { .. } | Work::Half if open.is_empty() => String::new(),
        Work::Requests { .. } | Work::Half => {
            format!(", each 1 s of warm-up, {} s in a closed loop, {open} in an open one", made.seconds)
        }
        Work::Idle => format!(", each with {} connections", most("connections").unwrap_or_default()),
        Work::Swap { .. } | Work::Contain { .. } if open.is_empty() => String::new(),
        Work::Swap { .. } | Work::Contain { .. } => format!(", each {open} in an open loop"),
        Work::Chain => ", each about 2 s".into(),
    };
    let by = if measured.generators.is_empty() { String::new() } else { format!("; {}", measured.generators) };
    let disturbed: f64 = measured.rows.iter().flat_map(|row| row.values("disturbed")).sum();
    let disturbed = match disturbed as u64 {
        0 => String::new(),
        n => {
            format!("; {n} runs discarded because other processes disturbed them more than the ones shown")
        }
    };
    format!("*{} rounds{each}{by}{disturbed}; {}, commit {}.*", measured.rounds(), made.date, made.commit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        results::{Repeated, tests::row},
        scenarios,
    };

    fn docs() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
    }

    /// `cargo run -p peers -- --write` updates the documents.
    #[test]
    fn figures_in_the_documents_are_those_of_the_committed_results() {
        let results = Results::read(&docs().join("performance/results.json")).unwrap();
        for name in DOCUMENTS {
            let text = fs::read_to_string(docs().join(name)).unwrap();
            let written = filled(&text, &scenarios::all(), &results).unwrap_or_else(|e| panic!("{name}: {e:#}"));
            for (line, expected) in text.lines().zip(written.lines()) {
                assert_eq!(line, expected, "{name}");
            }
            assert_eq!(text.len(), written.len(), "{name}");
            assert!(text.contains("<!-- figure: "), "{name} has no figure");
        }
    }

    /// Numbers with units that are settings, not measurements.
    const SETTINGS: [&str; 7] = [
        "of 1 MiB",
        "128 MiB more",
        "by default 64 MiB",
        "at most 5,500 requests/s",
        "tenth",
        "10,000 requests",
        "2 %",
    ];

    #[test]
    fn no_figure_in_the_documents_is_written_by_hand() {
        for name in ["performance.md", "../README.md"] {
            let text = fs::read_to_string(docs().join(name)).unwrap();
            let found = figures::tests::unmarked(&text, &SETTINGS);
            assert!(found.is_empty(), "{name}: mark these as figures, or remove them:\n{}", found.join("\n"));
        }
    }

    #[test]
    fn the_rate_on_the_page_is_the_measured_one() {
        let scenarios = scenarios::all();
        let named = |name| scenarios.iter().find(|s| s.name == name).unwrap();
        let pace = Pace { rate: 3900, carried: [("Envoy".into(), 7936.0), ("nginx".into(), 20_000.0)].into() };
        let text = about(named("bare"), Some(&pace));
        assert!(text.ends_with("Latencies at 3,900 requests/s, half of what the slowest (Envoy) carried."), "{text}");
        let fixed = about(named("grpc"), Some(&Pace { rate: 3000, carried: [].into() }));
        assert!(fixed.contains("Latencies at 3,000 calls/s, from when a call was sent"), "{fixed}");
        let before = about(named("large"), None);
        assert!(before.ends_with("Latencies at up to 200 requests/s, half of what the slowest carries."), "{before}");
    }

    #[test]
    fn failures_are_named_with_their_reasons() {
        let mut rows = vec![row("nginx", 0, &[Some(1.0); 3]), row("Envoy", 0, &[None, Some(1.0), None])];
        rows[0].repeated = [0, 2, 2].map(|round| Repeated { round, why: "slow\nlog".into() }).into();
        let text = failed(&Measured { rows, ..Default::default() });
        let expected = "\nLost after 3 attempts each, and not included in these numbers:\n\n* Envoy, rounds 1, 3: it fell behind\n\
            \nFailed and repeated:\n\n* nginx, rounds calibration, 2, 2: slow\n";
        assert_eq!(text, expected);
        assert_eq!(failed(&Measured { rows: vec![row("nginx", 0, &[Some(1.0)])], ..Default::default() }), "");
    }

    fn results(mut rows: Vec<Row>) -> Results {
        for (round, busy) in rows[0].runs.iter_mut().zip([60.0, 70.0, 96.0]) {
            if let crate::results::Round::Measured(run) = round {
                run.insert("busy".into(), busy);
            }
        }
        let scenarios = [("bare".into(), Measured { rows, ..Default::default() })].into();
        Results { scenarios, ..Default::default() }
    }

    #[test]
    fn the_document() {
        let results = results(vec![
            row("nginx", 0, &[Some(16.0), Some(15.0), Some(17.0)]),
            row("Tollgate", 0, &[Some(8.0), Some(30.0), None]),
            row("HAProxy", 0, &[None]),
        ]);
        let scenarios = scenarios::all();
        let text = figure("scenarios", &scenarios, &results).unwrap();
        assert!(text.contains("| nginx | 16.0 (15.0–17.0) | 1 × | – |"), "{text}");
        assert!(text.contains("| Tollgate | 19.0 (8.0–30.0), 2 of 3 rounds | 1.25 × (0.50–2.00) | – |"), "{text}");
        assert!(text.contains("| HAProxy | –, 0 of 3 rounds | – |"), "{text}");
        assert!(text.contains("| 70 † |") && text.contains("† Not saturated"), "{text}");
        assert!(text.contains("\n* Tollgate, round 3: it fell behind\n* HAProxy, round 1: "), "{text}");
        assert!(
            text.contains("](performance/bare.svg)") && !text.contains("wasm.svg"),
            "only measured scenarios: {text}"
        );
        let targets = figure("targets", &scenarios, &results).unwrap();
        assert!(targets.contains("| ≤ 1 × | 1.25 × (0.50–2.00) | open: 1 of 3 rounds failed |"), "{targets}");
        assert!(targets.contains("not measured"), "{targets}");
    }

    #[test]
    fn filter_costs_are_calculated_within_each_round() {
        let rows = vec![
            row("Envoy, no filter", 0, &[Some(40.0), Some(50.0), None]),
            row("Envoy, a native filter", 0, &[Some(42.0), Some(51.0), Some(90.0)]),
        ];
        let scenarios = [("kinds".into(), Measured { rows, ..Default::default() })].into();
        let (results, scenarios) = (Results { scenarios, ..Default::default() }, scenarios::all());
        let text = |key: &str| figure(key, &scenarios, &results).map_err(|e| e.to_string());
        assert_eq!(text("kinds / Envoy, a native filter / added / cpu_us"), Ok("1.5 µs (1.0–2.0)".into()));
        assert_eq!(text("kinds / Tollgate, the faster lane / added / p99"), Ok("(not measured)".into()));
        for unknown in ["kinds / Envoy, no filter / added / cpu_us", "kinds / Envoy, a native filter / added / x"] {
            assert!(text(unknown).is_err(), "{unknown}");
        }
        let page = text("scenarios").unwrap();
        assert!(page.contains("Cost of the filter"), "{page}");
        assert!(page.contains("| Envoy, a native filter | 1.5 (1.0–2.0) | – | – |"), "{page}");
    }

    #[test]
    fn figures_in_sentences() {
        let results = results(vec![row("nginx", 0, &[Some(16.0)]), row("Tollgate", 0, &[Some(8.0)])]);
        let scenarios = scenarios::all();
        let text = |key: &str| figure(key, &scenarios, &results).map_err(|e| e.to_string());
        assert_eq!(text("bare / Tollgate / cpu_us"), Ok("8.0 µs (8.0–8.0)".into()));
        assert_eq!(text("bare / Tollgate / cpu_us / nginx"), Ok("0.50 × (0.50–0.50)".into()));
        assert_eq!(text("bare / Envoy / cpu_us"), Ok("(not measured)".into()));
        assert_eq!(text("wasm / slope / Envoy"), Ok("(not measured)".into()));
        for unknown in ["x", "bare / x / cpu_us", "bare / Envoy / x", "bare / Envoy / cpu_us / x", "output / x"] {
            assert!(text(unknown).is_err(), "{unknown}");
        }
    }
}
