//! Errors and warnings about a configuration, and their output: as plain lines, with excerpts of the file, or as JSON.

use std::{borrow::Cow, fmt, sync::Arc};

use annotate_snippets::{AnnotationKind, Level, Origin, Renderer, Snippet};
use serde_json::json;

use super::{node::Span, source::Source};
use crate::escape;

/// The maximum number of diagnostics: more would not help, and a hostile file must not cause megabytes of output.
const MOST: usize = 100;
/// Longer lines (of a minified file) are not shown, only their number.
const LONGEST_LINE: usize = 2000;

/// The severity of a diagnostic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// The configuration can be used, but is probably not what was intended.
    Warning,
}

impl Severity {
    /// Returns the severity's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
        }
    }
}

/// An error or a warning about a place in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The severity.
    pub severity: Severity,
    /// The problem, in one line.
    pub message: String,
    /// The location. `None` if the problem concerns the whole file.
    pub span: Option<Span>,
    /// Advice on how to fix it.
    pub help: Option<String>,
    /// Related locations, each with a text.
    pub notes: Vec<(Span, String)>,
    /// Whether the problem may resolve itself soon, since files that belong together are replaced one after the other.
    pub passing: bool,
}

impl Diagnostic {
    /// Creates an error.
    pub fn error(span: impl Into<Option<Span>>, message: impl Into<String>) -> Self {
        Diagnostic {
            severity: Severity::Error,
            message: message.into(),
            span: span.into(),
            help: None,
            notes: Vec::new(),
            passing: false,
        }
    }

    /// Creates a warning.
    pub fn warning(span: impl Into<Option<Span>>, message: impl Into<String>) -> Self {
        Diagnostic { severity: Severity::Warning, ..Diagnostic::error(span, message) }
    }

    /// Sets the advice.
    pub fn help(mut self, help: impl Into<Option<String>>) -> Self {
        self.help = help.into();
        self
    }

    /// Adds a related location.
    pub fn note(mut self, span: Span, text: impl Into<String>) -> Self {
        self.notes.push((span, text.into()));
        self
    }
}

/// The errors and warnings about a file.
#[derive(Debug, Clone)]
pub struct Diagnostics {
    list: Vec<Diagnostic>,
    omitted: usize,
    source: Arc<Source>,
}

impl std::error::Error for Diagnostics {}

impl Diagnostics {
    /// Sorts the diagnostics by location and replaces the values of environment variables in them.
    pub fn new(source: Arc<Source>, mut list: Vec<Diagnostic>) -> Self {
        list.sort_by_key(|d| (d.span.map(|s| s.start), d.severity));
        let omitted = list.len().saturating_sub(MOST);
        if omitted > 0 {
            // If the limit is exceeded, errors take precedence.
            list.sort_by_key(|d| d.severity);
            list.truncate(MOST);
        }
        for diagnostic in &mut list {
            let Diagnostic { message, help, notes, .. } = diagnostic;
            let texts = [message].into_iter().chain(help).chain(notes.iter_mut().map(|(_, text)| text));
            texts.for_each(|text| source.conceal(text));
        }
        Diagnostics { list, omitted, source }
    }

    /// Whether every error may resolve itself soon (see [`Diagnostic::passing`]).
    pub fn are_passing(&self) -> bool {
        self.list.iter().filter(|d| d.severity == Severity::Error).all(|d| d.passing)
    }

    /// Iterates over the diagnostics.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.list.iter()
    }

    /// The number of diagnostics.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are no diagnostics.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether any of them is an error.
    pub fn has_errors(&self) -> bool {
        self.list.iter().any(|d| d.severity == Severity::Error)
    }

    /// The file that the diagnostics are about.
    pub fn source(&self) -> &Arc<Source> {
        &self.source
    }

    /// Renders each diagnostic with the affected lines of the file, for a terminal.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let mut out = String::new();
        for d in &self.list {
            out.push_str(&render_one(&renderer, &self.source, d));
            out.push_str("\n\n");
        }
        match self.omitted {
            0 => out.truncate(out.trim_end().len()),
            n => out.push_str(&format!("... and {n} more")),
        }
        if !out.is_empty() {
            out.push('\n');
        }
        out
    }

    /// Returns a list of objects with `file`, `severity` and `message`, and where available `line`, `column`, `help`
    /// and `notes`.
    pub fn to_json(&self) -> serde_json::Value {
        let one = |d: &Diagnostic| {
            let mut object = json!({
                "file": self.source.name(),
                "severity": d.severity.as_str(),
                "message": d.message,
            });
            if let Some(span) = d.span {
                let at = self.source.position(span.start);
                object["line"] = at.line.into();
                object["column"] = at.column.into();
            }
            if let Some(help) = &d.help {
                object["help"] = help.as_str().into();
            }
            if !d.notes.is_empty() {
                let note = |(span, text): &(Span, String)| {
                    let at = self.source.position(span.start);
                    json!({"line": at.line, "column": at.column, "message": text})
                };
                object["notes"] = d.notes.iter().map(note).collect();
            }
            object
        };
        self.list.iter().map(one).collect()
    }
}

impl<'d> IntoIterator for &'d Diagnostics {
    type Item = &'d Diagnostic;
    type IntoIter = std::slice::Iter<'d, Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, d) in self.list.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{}", escape::line(self.source.name()))?;
            if let Some(span) = d.span {
                let at = self.source.position(span.start);
                write!(f, ":{}:{}", at.line, at.column)?;
            }
            write!(f, ": {}: {}", d.severity.as_str(), escape::line(&d.message))?;
            if let Some(help) = &d.help {
                write!(f, " ({})", escape::line(help))?;
            }
        }
        match self.omitted {
            0 => Ok(()),
            n => write!(f, "\n... and {n} more"),
        }
    }
}

/// Returns the lines that contain `spans`, their offset in the text, and whether they are suitable for display.
fn window<'t>(text: &'t str, spans: &[Span]) -> (usize, &'t str, bool) {
    let first = spans.iter().map(|s| s.start).min().unwrap_or(0);
    let last = spans.iter().map(|s| s.end).max().unwrap_or(0);
    let first = text.floor_char_boundary(first);
    let last = text.floor_char_boundary(last).max(first);
    let start = text[..first].rfind('\n').map_or(0, |i| i + 1);
    let end = text[last..].find('\n').map_or(text.len(), |i| last + i);
    let shown = text[start..end].trim_end_matches('\r');
    (start, shown, !shown.is_empty() && shown.lines().all(|l| l.len() <= LONGEST_LINE))
}

/// Replaces harmful characters by others of the same length, so that offsets stay valid.
fn same_length(text: &str) -> Cow<'_, str> {
    escape::replaced(
        text,
        |c| escape::is_harmful(c) && c != '\n' && c != '\t',
        |out, c| {
            out.push_str(match c.len_utf8() {
                1 => "?",
                2 => "\u{b7}",
                _ => "\u{fffd}",
            });
        },
    )
}

fn render_one(renderer: &Renderer, source: &Source, d: &Diagnostic) -> String {
    let level = match d.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    // They may quote a file or a filter.
    let (message, name) = (escape::lines(&d.message), escape::line(source.name()));
    let help = d.help.as_deref().map(escape::lines);
    let title = level.primary_title(&*message);
    let help = help.as_deref().map(|help| Level::HELP.message(help));
    let Some(span) = d.span else {
        return renderer.render(&[title.element(Origin::path(&*name)).elements(help)]);
    };
    let mut spans: Vec<Span> = d.notes.iter().map(|(span, _)| *span).chain([span]).collect();
    let (mut start, mut shown, mut fit) = window(source.text(), &spans);
    if !fit {
        spans = vec![span];
        (start, shown, fit) = window(source.text(), &spans);
    }
    if !fit {
        let at = source.position(span.start);
        let origin = Origin::path(&*name).line(at.line).char_column(at.column);
        return renderer.render(&[title.element(origin).elements(help)]);
    }
    let within = |s: Span| {
        let clip = |at: usize| shown.floor_char_boundary(at.saturating_sub(start));
        clip(s.start)..clip(s.end)
    };
    let harmless = same_length(shown);
    let mut snippet = Snippet::source(&*harmless)
        .path(&*name)
        .line_start(source.position(start).line)
        .annotation(AnnotationKind::Primary.span(within(span)));
    if spans.len() > 1 {
        for (span, text) in &d.notes {
            snippet = snippet.annotation(AnnotationKind::Context.span(within(*span)).label(escape::line(text)));
        }
    }
    renderer.render(&[title.element(snippet).elements(help)])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Escape sequences from a file, its name or a filter are never written to a terminal.
    #[test]
    fn terminal_escapes_in_quoted_text_are_neutralized() {
        let nasty = "a\u{1b}[2J\u{9b}2J\r\u{202e}b";
        let source = Arc::new(Source::new(nasty.as_ref(), format!("key: {nasty}\nother: {nasty}\n")));
        let at = |start: usize| Span::new(start, start + 3);
        let wrong = Diagnostic::error(at(0), nasty).help(nasty.to_owned()).note(at(6), nasty);
        let all = [wrong, Diagnostic::error(None, nasty).help(nasty.to_owned())];
        let all = Diagnostics::new(source, all.into());
        let harmful = |text: &str| text.contains(|c| escape::is_harmful(c) && c != '\n');
        assert!(!harmful(&all.render(false)), "{:?}", all.render(false));
        assert!(!harmful(&all.to_string()), "{:?}", all.to_string());
        let coloured = all.render(true);
        assert!(!coloured.contains("\u{1b}[2J") && !coloured.contains(['\u{9b}', '\r', '\u{202e}']), "{coloured:?}");
    }
}
