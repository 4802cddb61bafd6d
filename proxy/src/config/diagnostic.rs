//! Errors and warnings about a configuration, and their output: as plain lines, with excerpts of the files, or as JSON.

use std::{fmt, ops::Deref, sync::Arc};

use annotate_snippets::Renderer;
use serde_json::json;

use super::{excerpt::Located, node::Span, source::Source};
use crate::escape;

/// The maximum number of diagnostics: more would not help, and a hostile file must not cause megabytes of output.
const MOST: usize = 100;

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
    /// The index of the file among the configuration's files.
    pub file: usize,
    /// The location. `None` if the problem concerns the whole file.
    pub span: Option<Span>,
    /// Advice on how to fix it.
    pub help: Option<String>,
    /// Related locations.
    pub notes: Vec<Note>,
    /// Whether the problem may resolve itself soon, since files that belong together are replaced one after the other.
    pub passing: bool,
}

/// A location that is related to a problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The index of the file among the configuration's files.
    pub file: usize,
    /// The location.
    pub span: Span,
    /// Its meaning.
    pub text: String,
}

impl Diagnostic {
    /// Creates an error.
    pub fn error(span: impl Into<Option<Span>>, message: impl Into<String>) -> Self {
        Diagnostic {
            severity: Severity::Error,
            message: message.into(),
            file: 0,
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

    /// Adds a related location in the same file.
    pub fn note(self, span: Span, text: impl Into<String>) -> Self {
        let file = self.file;
        self.note_in(file, span, text)
    }

    /// Adds a related location.
    pub(super) fn note_in(mut self, file: usize, span: Span, text: impl Into<String>) -> Self {
        self.notes.push(Note { file, span, text: text.into() });
        self
    }

    /// Moves the diagnostic, with its notes, to another file.
    pub(super) fn in_file(mut self, file: usize) -> Self {
        self.file = file;
        self.notes.iter_mut().for_each(|note| note.file = file);
        self
    }
}

/// The files that diagnostics point into.
pub trait Texts {
    /// Returns the name of a file.
    fn name_of(&self, file: usize) -> &str;

    /// Returns a file as it was when the configuration was loaded; `None` if it has changed since.
    fn open(&self, file: usize) -> Option<Arc<Source>>;

    /// Frees the texts that were opened.
    fn close(&self) {}

    /// Replaces the values of environment variables in a message.
    fn conceal(&self, message: &mut String);
}

/// The errors and warnings about a configuration. They contain the affected lines, so the files can be dropped.
#[derive(Debug, Clone)]
pub struct Diagnostics {
    list: Vec<Located>,
    omitted: usize,
}

impl std::error::Error for Diagnostics {}

impl Diagnostics {
    /// Sorts the diagnostics by location, replaces the values of environment variables in them, and excerpts the files.
    pub fn new(texts: impl Deref<Target = impl Texts>, mut list: Vec<Diagnostic>) -> Self {
        list.sort_by_key(|d| (d.file, d.span.map(|s| s.start), d.severity));
        let omitted = list.len().saturating_sub(MOST);
        if omitted > 0 {
            // If the limit is exceeded, errors take precedence.
            list.sort_by_key(|d| d.severity);
            list.truncate(MOST);
        }
        for diagnostic in &mut list {
            let Diagnostic { message, help, notes, .. } = diagnostic;
            let all = [message].into_iter().chain(help).chain(notes.iter_mut().map(|note| &mut note.text));
            all.for_each(|text| texts.conceal(text));
        }
        let list = list.into_iter().map(|diagnostic| Located::new(diagnostic, &*texts)).collect();
        texts.close();
        Diagnostics { list, omitted }
    }

    /// Whether every error may resolve itself soon (see [`Diagnostic::passing`]).
    pub fn are_passing(&self) -> bool {
        self.iter().filter(|d| d.severity == Severity::Error).all(|d| d.passing)
    }

    /// Iterates over the diagnostics.
    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.list.iter().map(|located| &located.diagnostic)
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
        self.iter().any(|d| d.severity == Severity::Error)
    }

    /// Renders each diagnostic with the affected lines of its file, for a terminal.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let mut out = String::new();
        for located in &self.list {
            out.push_str(&located.render(&renderer));
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
        let one = |located: &Located| {
            let d = &located.diagnostic;
            let mut object = json!({
                "file": &*located.file,
                "severity": d.severity.as_str(),
                "message": d.message,
            });
            if let Some(at) = located.at {
                object["line"] = at.line.into();
                object["column"] = at.column.into();
            }
            if let Some(help) = &d.help {
                object["help"] = help.as_str().into();
            }
            let notes = located
                .notes()
                .map(|(file, at, text)| json!({"file": file, "line": at.line, "column": at.column, "message": text}));
            let notes: Vec<_> = notes.collect();
            if !notes.is_empty() {
                object["notes"] = notes.into();
            }
            object
        };
        self.list.iter().map(one).collect()
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, located) in self.list.iter().enumerate() {
            let d = &located.diagnostic;
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{}", escape::line(&located.file))?;
            if let Some(at) = located.at {
                write!(f, ":{}:{}", at.line, at.column)?;
            }
            write!(f, ": {}: {}", d.severity.as_str(), escape::line(&d.message))?;
            if let Some(help) = &d.help {
                write!(f, " ({})", escape::line(help))?;
            }
            // In one file, the message is enough to find the related place.
            for (file, at, text) in located.notes().filter(|(file, ..)| *file != &*located.file) {
                write!(f, " ({}: {}:{}:{})", escape::line(text), escape::line(file), at.line, at.column)?;
            }
        }
        match self.omitted {
            0 => Ok(()),
            n => write!(f, "\n... and {n} more"),
        }
    }
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
        let all = Diagnostics::new(&source, all.into());
        let harmful = |text: &str| text.contains(|c| escape::is_harmful(c) && c != '\n');
        assert!(!harmful(&all.render(false)), "{:?}", all.render(false));
        assert!(!harmful(&all.to_string()), "{:?}", all.to_string());
        let coloured = all.render(true);
        assert!(!coloured.contains("\u{1b}[2J") && !coloured.contains(['\u{9b}', '\r', '\u{202e}']), "{coloured:?}");
    }
}
