//! What is shown of the results: the part of docs/performance.md between two marker comments, and the plots. The text around it is
//! written by people and stays.

use std::{fmt::Write, fs, path::Path};

use anyhow::Context;

use crate::{
    machine::Made,
    plot::{Bar, chart},
    rate::Pace,
    results::{Measured, Results, Row},
    rounds::ATTEMPTS,
    scenario::{Column, Scenario},
    stats::{median, spread},
    targets,
};

const BEGIN: &str = "<!-- peers: begin -->";
const END: &str = "<!-- peers: end -->";

/// Writes the plots, and the part between the markers.
pub fn write(docs: &Path, scenarios: &[Scenario], results: &Results) -> anyhow::Result<()> {
    let file = docs.join("performance.md");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let text = replace(&text, &body(scenarios, results)).with_context(|| format!("in {}", file.display()))?;
    for (scenario, measured) in both(scenarios, results) {
        let plot = docs.join("performance").join(format!("{}.svg", scenario.name));
        fs::write(&plot, picture(scenario, measured)).with_context(|| format!("cannot write {}", plot.display()))?;
    }
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn both<'a>(scenarios: &'a [Scenario], results: &'a Results) -> impl Iterator<Item = (&'a Scenario, &'a Measured)> {
    scenarios.iter().filter_map(|scenario| Some((scenario, results.scenarios.get(scenario.name)?)))
}

/// The text with something else between the markers.
fn replace(text: &str, body: &str) -> anyhow::Result<String> {
    let (before, rest) = text.split_once(BEGIN).with_context(|| format!("there is no {BEGIN}"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("there is no {END} after {BEGIN}"))?;
    Ok(format!("{before}{BEGIN}\n{body}\n{END}{after}"))
}

fn body(scenarios: &[Scenario], results: &Results) -> String {
    let mut text = String::from("\n## Targets\n\n| | target | measured | |\n|---|---|---|---|\n");
    for target in targets::ALL {
        let (what, unit, limit) = (target.what, target.unit, target.limit);
        let (figure, verdict) = match target.measured(results) {
            Some(figure) => (format!("{figure:.2} {unit}"), if figure <= limit { "met" } else { "**missed**" }),
            None => ("–".into(), "not measured"),
        };
        text += &format!("| {what} | ≤ {limit} {unit} | {} | {verdict} |\n", figure.trim_end());
    }
    for (scenario, measured) in both(scenarios, results) {
        let (title, name, about) = (scenario.title, scenario.name, about(scenario, measured.pace.as_ref()));
        text += &format!("\n## {title}\n\n`{name}`: {about}\n\n![{title}](performance/{name}.svg)\n\n");
        text += &table(scenario, measured);
        if scenario.slope {
            text += &slopes(scenario, measured);
        }
        text += &lost(measured);
        text += &format!("\n{}\n", made(&measured.made));
    }
    text
}

/// What a scenario is about, with the rate that it was measured at. Without one, what the rate is going to be.
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

/// A row for each proxy: medians over the rounds, for the first column with the least and the greatest.
fn table(scenario: &Scenario, measured: &Measured) -> String {
    let (main, others) = scenario.columns.split_first().expect("a scenario shows something");
    let mut head = format!("| | {} |", main.label);
    head.extend(scenario.against.iter().map(|base| format!(" to {base} |")));
    head.extend(others.iter().map(|column| format!(" {} |", column.label)));
    let rule = "---:|".repeat(scenario.against.len() + scenario.columns.len());
    let mut text = format!("{head}\n|---|{rule}\n");
    for row in &measured.rows {
        let cell = |column: &Column| row.median(column.key).map_or("–".into(), |m| number(m, column.decimals));
        let range = spread(&row.values(main.key))
            .map(|(low, high)| format!(" ({}–{})", number(low, main.decimals), number(high, main.decimals)));
        let _ = write!(text, "| {} | {}{} |", row.label, cell(main), range.unwrap_or_default());
        for base in scenario.against {
            let ratio =
                measured.ratio(main.key, &row.label, base).map_or("–".into(), |ratio| format!("{ratio:.2} ×"));
            let _ = write!(text, " {ratio} |");
        }
        text.extend(others.iter().map(|column| format!(" {} |", cell(column))));
        text.push('\n');
    }
    text
}

/// Which rounds the medians are without, and why.
fn lost(measured: &Measured) -> String {
    let mut lines: Vec<String> = Vec::new();
    for row in &measured.rows {
        let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
        for (number, reason) in row.lost() {
            // What a program has written follows in further lines, for results.json only.
            let reason = reason.lines().next().unwrap_or_default();
            match reasons.iter_mut().find(|(known, _)| *known == reason) {
                Some((_, numbers)) => numbers.push(number.to_string()),
                None => reasons.push((reason, vec![number.to_string()])),
            }
        }
        lines.extend(reasons.iter().map(|(reason, numbers)| {
            let rounds = if numbers.len() == 1 { "round" } else { "rounds" };
            format!("* {}, {rounds} {}: {reason}\n", row.label, numbers.join(", "))
        }));
    }
    if lines.is_empty() {
        return String::new();
    }
    format!("\nLost after {ATTEMPTS} attempts each, and in none of these figures:\n\n{}", lines.concat())
}

/// What one more costs.
fn slopes(scenario: &Scenario, measured: &Measured) -> String {
    let key = scenario.columns[0].key;
    let line = |program: &str| {
        let (slope, (low, high)) = (measured.slope(key, program)?, spread(&measured.slopes(key, program))?);
        Some(format!("{program} **{slope:.2} µs** ({low:.2}–{high:.2})"))
    };
    let lines: Vec<_> = ["Tollgate", "Envoy"].into_iter().filter_map(line).collect();
    if lines.is_empty() {
        String::new()
    } else {
        format!("\nEach filter (the slope from 1 to 8): {}.\n", lines.join(", "))
    }
}

fn picture(scenario: &Scenario, measured: &Measured) -> String {
    let column = &scenario.columns[0];
    let bar = |row: &Row| {
        let values = row.values(column.key);
        let ours = row.label.starts_with("Tollgate") || row.label == "a swap every second";
        Some(Bar { label: row.label.clone(), value: median(&values)?, spread: spread(&values)?, ours })
    };
    let bars: Vec<_> = measured.rows.iter().filter_map(bar).collect();
    chart(scenario.title, column.label, column.decimals, &bars)
}

fn made(made: &Made) -> String {
    let versions: Vec<_> = made.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    format!(
        "*{} rounds of {} s, {}, commit {}; {} processors ({}), {}; {}.*",
        made.rounds,
        made.seconds,
        made.date,
        made.commit,
        made.processors,
        made.processor,
        made.kernel,
        versions.join(", ")
    )
}

/// With a comma for each thousand.
fn number(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    let (whole, fraction) = text.split_once('.').map_or((&*text, String::new()), |(w, f)| (w, format!(".{f}")));
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
    let mut grouped = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{sign}{grouped}{fraction}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{results::tests::row, scenarios};

    /// The page is what the committed results make; `tests/peers/run.sh --write` makes it.
    #[test]
    fn the_committed_page_is_that_of_the_committed_results() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
        let results = Results::read(&docs.join("performance/results.json")).unwrap();
        let page = fs::read_to_string(docs.join("performance.md")).unwrap();
        let written = replace(&page, &body(&scenarios::all(), &results)).unwrap();
        for (line, expected) in page.lines().zip(written.lines()) {
            assert_eq!(line, expected);
        }
        assert_eq!(page.len(), written.len());
    }

    #[test]
    fn the_rate_on_the_page_is_the_measured_one() {
        let scenarios = scenarios::all();
        let named = |name| scenarios.iter().find(|s| s.name == name).unwrap();
        let pace = Pace { rate: 3900, carried: [("Envoy".into(), 7936.0), ("nginx".into(), 20_000.0)].into() };
        let text = about(named("bare"), Some(&pace));
        assert!(text.ends_with("Latencies at 3,900 requests/s, half of what the slowest (Envoy) carried."), "{text}");
        let fixed = about(named("grpc"), Some(&Pace { rate: 3000, carried: [].into() }));
        assert!(fixed.ends_with("Latencies at 3,000 calls/s, from when a call is sent."), "{fixed}");
        let before = about(named("large"), None);
        assert!(before.ends_with("Latencies at up to 200 requests/s, half of what the slowest carries."), "{before}");
    }

    #[test]
    fn lost_rounds_are_named_with_their_reasons() {
        let rows = vec![row("nginx", 0, &[Some(1.0); 3]), row("Envoy", 0, &[None, Some(1.0), None])];
        let text = lost(&Measured { rows, ..Default::default() });
        let expected =
            "\nLost after 3 attempts each, and in none of these figures:\n\n* Envoy, rounds 1, 3: it fell behind\n";
        assert_eq!(text, expected);
        assert_eq!(lost(&Measured { rows: vec![row("nginx", 0, &[Some(1.0)])], ..Default::default() }), "");
    }

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let text = format!("# Title\n\n{BEGIN}\nold\n{END}\n\nmore\n");
        let new = replace(&text, "new").unwrap();
        assert_eq!(new, format!("# Title\n\n{BEGIN}\nnew\n{END}\n\nmore\n"));
        assert_eq!(replace(&new, "new").unwrap(), new);
        assert!(replace("no markers", "x").unwrap_err().to_string().contains(BEGIN));
        assert!(replace(&format!("{END}{BEGIN}"), "x").is_err());
    }

    #[test]
    fn numbers() {
        assert_eq!(number(999.4, 0), "999");
        assert_eq!(number(1234567.0, 0), "1,234,567");
        assert_eq!(number(-1234.56, 1), "-1,234.6");
    }

    #[test]
    fn the_document() {
        let rows = vec![
            row("nginx", 0, &[Some(16.0), Some(15.0), Some(17.0)]),
            row("Tollgate", 0, &[Some(8.0), Some(30.0), None]),
            row("HAProxy", 0, &[None]),
        ];
        let results = Results { scenarios: [("bare".into(), Measured { rows, ..Default::default() })].into() };
        let text = body(&scenarios::all(), &results);
        assert!(text.contains("| nginx | 16.0 (15.0–17.0) | 1.00 × | – |"), "{text}");
        assert!(text.contains("| Tollgate | 19.0 (8.0–30.0) | 1.25 × | – |"), "{text}");
        assert!(text.contains("| HAProxy | – | – |"), "{text}");
        assert!(text.contains("\n* Tollgate, round 3: it fell behind\n* HAProxy, round 1: "), "{text}");
        assert!(text.contains("| ≤ 1 × | 1.25 × | **missed** |"), "{text}");
        assert!(text.contains("not measured") && text.contains("](performance/bare.svg)"), "{text}");
        assert!(!text.contains("wasm.svg"), "only what there is: {text}");
    }
}
