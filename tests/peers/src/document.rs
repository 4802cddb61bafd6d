//! What is shown of the results: the part of docs/performance.md between two marker comments, and the plots. The text around it is
//! written by people and stays.

use std::{fmt::Write, fs, path::Path};

use anyhow::Context;

use crate::{
    machine::Made,
    plot::{Bar, chart},
    results::{Measured, Results},
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
        let (title, name) = (scenario.title, scenario.name);
        text += &format!("\n## {title}\n\n`{name}`: {}\n\n![{title}](performance/{name}.svg)\n\n", scenario.about);
        text += &table(scenario, measured);
        if scenario.slope {
            text += &slopes(scenario, measured);
        }
        text += &format!("\n{}\n", made(&measured.made));
    }
    text
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
    let bar = |row: &crate::results::Row| {
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
        let results = Results { scenarios: [("bare".into(), Measured { rows, made: Made::default() })].into() };
        let text = body(&scenarios::all(), &results);
        assert!(text.contains("| nginx | 16.0 (15.0–17.0) | 1.00 × | – |"), "{text}");
        assert!(text.contains("| Tollgate | 19.0 (8.0–30.0) | 1.25 × | – |"), "{text}");
        assert!(text.contains("| HAProxy | – | – |"), "{text}");
        assert!(text.contains("| ≤ 1 × | 1.25 × | **missed** |"), "{text}");
        assert!(text.contains("not measured") && text.contains("](performance/bare.svg)"), "{text}");
        assert!(!text.contains("wasm.svg"), "only what there is: {text}");
    }
}
