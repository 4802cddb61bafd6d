//! Errors and warnings about a configuration, and how they are shown: as plain lines, with the lines of the file they are
//! about, or as JSON.

use std::{borrow::Cow, fmt, sync::Arc};

use annotate_snippets::{AnnotationKind, Level, Origin, Renderer, Snippet};
use serde_json::json;

use super::{node::Span, source::Source};
use crate::escape;

/// More than this help nobody, and a hostile file must not make us write megabytes.
const MOST: usize = 100;
/// A line longer than this (a minified file) is not shown, only its number.
const LONGEST_LINE: usize = 2000;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can be used, but is probably not what was meant.
    Warning,
}

impl Severity {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
        }
    }
}

/// An error or a warning at a place of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, in one line.
    pub message: String,
    /// Where. `None` if it is about the file as a whole.
    pub span: Option<Span>,
    /// What to do about it.
    pub help: Option<String>,
    /// Other places that have to do with it.
    pub notes: Vec<(Span, String)>,
    /// It may be right in a moment: files that belong together are changed one after the other.
    pub passing: bool,
}

impl Diagnostic {
    /// An error.
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

    /// A warning.
    pub fn warning(span: impl Into<Option<Span>>, message: impl Into<String>) -> Self {
        Diagnostic { severity: Severity::Warning, ..Diagnostic::error(span, message) }
    }

    /// With advice.
    pub fn help(mut self, help: impl Into<Option<String>>) -> Self {
        self.help = help.into();
        self
    }

    /// With another place.
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
    /// In the order of the file. None of them tells what environment variables hold.
    pub fn new(source: Arc<Source>, mut list: Vec<Diagnostic>) -> Self {
        list.sort_by_key(|d| (d.span.map(|s| s.start), d.severity));
        let omitted = list.len().saturating_sub(MOST);
        if omitted > 0 {
            // Errors are what is wanted if not everything can be shown.
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

    /// Whether all that is wrong may be right in a moment.
    pub fn are_passing(&self) -> bool {
        self.list.iter().filter(|d| d.severity == Severity::Error).all(|d| d.passing)
    }

    /// Each of them.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.list.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether one of them is an error.
    pub fn has_errors(&self) -> bool {
        self.list.iter().any(|d| d.severity == Severity::Error)
    }

    /// The file they are about.
    pub fn source(&self) -> &Arc<Source> {
        &self.source
    }

    /// Each with the lines of the file that it is about, for a terminal.
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

    /// A list of objects with `file`, `severity`, `message`, and where there is one `line`, `column`, `help`, `notes`.
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

/// The part of the text from the beginning of the first line to the end of the last that one of `spans` is in, where it
/// starts, and whether it is fit to be shown.
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

/// The text with something as long in the place of what is harmful, so that places within it stay the same.
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
    // They may quote what a file, or a filter, has given.
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

    /// Whatever a file, its name or a filter has put there.
    #[test]
    fn what_is_quoted_is_not_obeyed_by_a_terminal() {
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
