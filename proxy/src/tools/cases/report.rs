//! The results of a run, as text and as JSON.

use std::fmt::Write;

use serde_json::{Value as Json, json};
use similar::{ChangeTag, TextDiff};

use super::check::Failure;
use crate::{
    config::Source,
    escape,
    tools::{Paint, counted},
};

/// The result of a case.
#[derive(Debug)]
pub struct Outcome {
    pub name: String,
    /// One per step; if the configuration was rejected, that is the only one.
    pub steps: Vec<StepOutcome>,
}

/// The result of a step.
#[derive(Debug)]
pub struct StepOutcome {
    /// The action: `GET /`.
    pub title: String,
    pub failures: Vec<Failure>,
    /// What the filter logged during the step.
    pub logs: Vec<String>,
}

impl Outcome {
    /// Whether all expectations were met.
    pub fn passed(&self) -> bool {
        self.steps.iter().all(|step| step.failures.is_empty())
    }
}

/// Returns the results as text.
pub fn text(source: &Source, outcomes: &[Outcome], paint: Paint) -> String {
    let mut out = String::new();
    for outcome in outcomes {
        let verdict = if outcome.passed() { paint.green("ok  ") } else { paint.red("FAIL") };
        let _ = writeln!(out, "{verdict}  {}", escape::line(&outcome.name));
        for (step, n) in outcome.steps.iter().zip(1..).filter(|(step, _)| !step.failures.is_empty()) {
            for failure in &step.failures {
                let at = source.position(source.locate(&failure.pointer, &failure.inner).span.start);
                let place = paint.faint(&format!("{}:{}:{}", source.name(), at.line, at.column));
                let _ =
                    writeln!(out, "      {n}. {}: {}  {place}", escape::line(&step.title), paint.bold(&failure.what));
                out.push_str(&diff(failure, paint));
            }
            for line in &step.logs {
                let _ = writeln!(out, "        {} {}", paint.faint("log"), escape::lines(line));
            }
        }
    }
    let failed = outcomes.iter().filter(|o| !o.passed()).count();
    let passed = format!("{} passed", counted(outcomes.len() - failed, "case"));
    let failed = match failed {
        0 => paint.green("none failed"),
        n => paint.red(&format!("{n} failed")),
    };
    let _ = writeln!(out, "\n{passed}, {failed}");
    out
}

/// Returns expected and actual value: as two lines, or, if there are many, as a diff with some context.
fn diff(failure: &Failure, paint: Paint) -> String {
    let (expected, actual) = (&failure.expected, &failure.actual);
    let mut out = String::new();
    let lines = |text: &str| text.lines().count();
    if lines(expected) < 2 && lines(actual) < 2 {
        // Line breaks are part of the difference.
        let shown = |text: &str| text.escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'");
        let _ = writeln!(out, "        {}", paint.red(&format!("- expected: {}", shown(expected))));
        let _ = writeln!(out, "        {}", paint.green(&format!("+ actual:   {}", shown(actual))));
        return out;
    }
    let _ = writeln!(out, "        {} {}", paint.red("- expected"), paint.green("+ actual"));
    // A missing line end matters only if just one of the texts has it.
    let is_whole = expected.ends_with('\n') == actual.ends_with('\n');
    let diff = TextDiff::from_lines(expected.as_str(), actual.as_str());
    for group in diff.grouped_ops(2) {
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            let line = escape::line(change.value().trim_end_matches('\n'));
            let line = match change.tag() {
                ChangeTag::Delete => paint.red(&format!("- {line}")),
                ChangeTag::Insert => paint.green(&format!("+ {line}")),
                ChangeTag::Equal => format!("  {line}"),
            };
            let hint = if change.missing_newline() && !is_whole {
                paint.faint(" (no line break at the end)")
            } else {
                String::new()
            };
            let _ = writeln!(out, "        {line}{hint}");
        }
    }
    out
}

/// Returns the results as JSON.
pub fn json(source: &Source, outcomes: &[Outcome]) -> Json {
    let failure = |f: &Failure| {
        let at = source.position(source.locate(&f.pointer, &f.inner).span.start);
        json!({"what": f.what, "expected": f.expected, "actual": f.actual, "line": at.line, "column": at.column})
    };
    let step = |s: &StepOutcome| {
        let failures: Vec<_> = s.failures.iter().map(failure).collect();
        json!({"step": s.title, "ok": failures.is_empty(), "failures": failures, "logs": s.logs})
    };
    let case =
        |o: &Outcome| json!({"name": o.name, "ok": o.passed(), "steps": o.steps.iter().map(step).collect::<Vec<_>>()});
    let passed = outcomes.iter().filter(|o| o.passed()).count();
    json!({
        "file": source.name(),
        "ok": passed == outcomes.len(),
        "passed": passed,
        "failed": outcomes.len() - passed,
        "cases": outcomes.iter().map(case).collect::<Vec<_>>(),
    })
}
