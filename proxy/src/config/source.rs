//! A configuration file as it was read: its name, text and value tree. It is kept as long as errors may have to be
//! located in it.

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
    /// Values that contain environment variables: their JSON pointers, and the text as written.
    references: Vec<(String, String)>,
    /// Replaces the variables' values in messages.
    concealer: Redactor,
}

/// The location of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// The range of bytes to point at.
    pub span: Span,
    /// Whether the whole path exists, or only a part of it.
    pub exact: bool,
}

/// A position in a text for display. Both numbers start at 1.
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

    /// Replaces the values of environment variables in a message.
    pub(super) fn conceal(&self, message: &mut String) {
        self.concealer.conceal(message);
    }

    /// Replaces values that contain environment variables, which may be secrets, by the text as written. A value that
    /// is not found in the same place is assumed to be part of the enclosing value.
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

    /// Returns the name of the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the text, without a byte order mark.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the value tree, with environment variables expanded.
    pub fn root(&self) -> &Node {
        &self.root
    }

    /// Resolves a path from the configuration. Relative paths are relative to the file's directory.
    pub fn resolve(&self, path: impl AsRef<Path>) -> PathBuf {
        // Collecting the components drops `./`.
        self.dir.join(path).components().collect()
    }

    /// Returns the line and column of a byte offset.
    pub fn position(&self, offset: usize) -> Position {
        let before = self.before(offset);
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        let line = before.bytes().filter(|&b| b == b'\n').count() + 1;
        Position { line, column: before[line_start..].chars().count() + 1 }
    }

    /// Locates the value at `pointer` (a JSON pointer such as `/filters/1/config`) and, inside it, `inner` (a path such
    /// as `rules[2].match.path`; empty or `.` for the value itself). If it does not exist, the result is the deepest
    /// existing value on the path.
    pub fn locate(&self, pointer: &str, inner: &str) -> Location {
        let found = self.root.find(pointer).follow(inner);
        Location { span: self.first_line(found.span()), exact: found.whole }
    }

    /// Creates an error at the value at `pointer`.
    pub fn diagnostic(&self, pointer: &str, message: impl Into<String>, help: Option<String>) -> Diagnostic {
        self.diagnostic_in(pointer, "", message, help)
    }

    /// Creates an error inside the value at `pointer`; see [`Source::locate`].
    pub fn diagnostic_in(
        &self,
        pointer: &str,
        inner: &str,
        message: impl Into<String>,
        help: Option<String>,
    ) -> Diagnostic {
        Diagnostic::error(self.locate(pointer, inner).span, message).help(help)
    }

    /// Returns the text before a byte offset. Tolerates offsets beyond the end or inside a character.
    fn before(&self, offset: usize) -> &str {
        &self.text[..self.text.floor_char_boundary(offset)]
    }

    /// Truncates a span at the end of its first line: the rest is rarely of interest, and may be the whole file.
    pub(super) fn first_line(&self, span: Span) -> Span {
        let start = self.before(span.start).len();
        let end = self.before(span.end).len().max(start);
        let line = self.text[start..end].lines().next().unwrap_or("");
        Span::new(start, start + line.trim_end().len())
    }
}
