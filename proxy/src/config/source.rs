//! A configuration file as it was read: its name, its text and its value tree, kept for as long as something may still
//! have to say where in it an error is.

use std::path::{Path, PathBuf};

use super::{
    diagnostic::Diagnostic,
    node::{Node, Span, Value},
    redact::Redactor,
};

/// A configuration file as it was read.
#[derive(Debug)]
pub struct Source {
    name: String,
    dir: PathBuf,
    text: String,
    root: Node,
    /// Values that have environment variables in them: their JSON pointers, and how they are written.
    references: Vec<(String, String)>,
    /// What those variables hold.
    concealer: Redactor,
}

/// The place of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// Where to point.
    pub span: Span,
    /// Whether the whole path is there, or only a part of it.
    pub exact: bool,
}

/// A place in a text, for people: both numbers begin with 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

impl Source {
    pub(super) fn new(path: &Path, text: impl Into<String>) -> Self {
        let root = Node { span: Span::default(), value: Value::Null };
        let dir = path.parent().unwrap_or(Path::new("")).to_path_buf();
        Source {
            name: path.display().to_string(),
            dir,
            text: text.into(),
            root,
            references: Vec::new(),
            concealer: Redactor::default(),
        }
    }

    pub(super) fn set_root(&mut self, root: Node) {
        self.root = root;
    }

    pub(super) fn set_references(&mut self, references: Vec<(String, String)>) {
        self.references = references;
    }

    pub(super) fn set_variables(&mut self, variables: impl IntoIterator<Item = (String, String)>) {
        self.concealer = Redactor::new(variables);
    }

    /// Takes out of a message what environment variables hold.
    pub(super) fn conceal(&self, message: &mut String) {
        self.concealer.conceal(message);
    }

    /// Puts back how values were written that have environment variables in them, which may be secrets. What is not found in the
    /// same place is taken for a part of the next value around it.
    pub fn mask(&self, config: &mut serde_json::Value) {
        for (pointer, written) in &self.references {
            let mut place = pointer.as_str();
            while !place.is_empty() && config.pointer(place).is_none() {
                place = place.rsplit_once('/').map_or("", |(around, _)| around);
            }
            if let Some(value) = config.pointer_mut(place) {
                *value = written.as_str().into();
            }
        }
    }

    /// The name of the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text, without a byte order mark.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The value tree, with environment variables put in.
    pub fn root(&self) -> &Node {
        &self.root
    }

    /// A path in the configuration: relative ones are relative to the file's directory.
    pub fn resolve(&self, path: impl AsRef<Path>) -> PathBuf {
        // Collected, the parts are without `./`.
        self.dir.join(path).components().collect()
    }

    /// The line and column of a byte.
    pub fn position(&self, offset: usize) -> Position {
        let before = self.before(offset);
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        let line = before.bytes().filter(|&b| b == b'\n').count() + 1;
        Position { line, column: before[line_start..].chars().count() + 1 }
    }

    /// Where to point for the value at `pointer` (a JSON pointer such as `/filters/1/config`) and, inside of it, `inner`
    /// (a path such as `rules[2].match.path`; empty or `.` for the value itself). If it is not there, the deepest value
    /// on the way to it is meant.
    pub fn locate(&self, pointer: &str, inner: &str) -> Location {
        let found = self.root.find(pointer).follow(inner);
        Location { span: self.first_line(found.span()), exact: found.whole }
    }

    /// An error at the value at `pointer`.
    pub fn diagnostic(&self, pointer: &str, message: impl Into<String>, help: Option<String>) -> Diagnostic {
        self.diagnostic_in(pointer, "", message, help)
    }

    /// An error inside of the value at `pointer`; see [`Source::locate`].
    pub fn diagnostic_in(
        &self,
        pointer: &str,
        inner: &str,
        message: impl Into<String>,
        help: Option<String>,
    ) -> Diagnostic {
        Diagnostic::error(self.locate(pointer, inner).span, message).help(help)
    }

    /// The text before a byte. Tolerates offsets that are no character boundary or beyond the end.
    fn before(&self, offset: usize) -> &str {
        &self.text[..self.text.floor_char_boundary(offset)]
    }

    /// A span cut off at the end of its first line: what follows is seldom of interest, and may be the whole file.
    pub(super) fn first_line(&self, span: Span) -> Span {
        let start = self.before(span.start).len();
        let end = self.before(span.end).len().max(start);
        let line = self.text[start..end].lines().next().unwrap_or("");
        Span::new(start, start + line.trim_end().len())
    }
}
