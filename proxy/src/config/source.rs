//! A file as it was read: its name, text and value tree. It is kept as long as errors may have to be located in it.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use super::{
    diagnostic::{Diagnostic, Texts},
    node::{Node, Span, Value},
    parse::{self, Format, Variables},
};

/// A file as it was read.
#[derive(Debug)]
pub struct Source {
    name: String,
    dir: PathBuf,
    text: String,
    root: OnceLock<Node>,
    /// How the tree is made when it is needed.
    reparse: Option<(Format, Variables)>,
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
        let dir = path.parent().unwrap_or(Path::new("")).to_path_buf();
        let mut text = text.into();
        // A byte order mark.
        if text.starts_with('\u{feff}') {
            text.remove(0);
        }
        Source { name: path.display().to_string(), dir, text, root: OnceLock::new(), reparse: None }
    }

    /// A configuration file without errors, which is parsed again when its tree is needed.
    pub(super) fn again(path: &Path, text: String, format: Format, variables: Variables) -> Self {
        Source { reparse: Some((format, variables)), ..Source::new(path, text) }
    }

    /// Makes relative paths relative to this directory, instead of the file's.
    pub(super) fn in_dir(self, dir: &Path) -> Self {
        Source { dir: dir.to_path_buf(), ..self }
    }

    pub(super) fn set_root(&mut self, root: Node) {
        self.root = root.into();
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
        self.root.get_or_init(|| {
            let expanded = self.reparse.as_ref().and_then(|(format, variables)| {
                let lookup = |name: &str| variables.get(name).cloned().flatten();
                parse::configuration(&self.text, *format, &lookup, &mut Vec::new())
            });
            expanded.map_or(Node { span: Span::default(), value: Value::Null }, |expanded| expanded.root)
        })
    }

    /// Resolves a path from the configuration. Relative paths are relative to the file's directory.
    pub fn resolve(&self, path: impl AsRef<Path>) -> PathBuf {
        resolve(&self.dir, path)
    }

    /// Returns the line and column of a byte offset.
    pub fn position(&self, offset: usize) -> Position {
        let before = self.before(offset);
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        let line = memchr::memchr_iter(b'\n', before.as_bytes()).count() + 1;
        Position { line, column: before[line_start..].chars().count() + 1 }
    }

    /// Returns the line and column of a byte offset, counted from those of an earlier one. Counting from the start for each
    /// of many places takes time in proportion to the square of the text's length.
    pub(super) fn position_from(&self, (from, at): (usize, Position), offset: usize) -> Position {
        let Some(between) = self.text().get(from..offset) else { return self.position(offset) };
        match between.rfind('\n') {
            None => Position { line: at.line, column: at.column + between.chars().count() },
            Some(last) => Position {
                line: at.line + memchr::memchr_iter(b'\n', between.as_bytes()).count(),
                column: between[last + 1..].chars().count() + 1,
            },
        }
    }

    /// Locates the value at `pointer` (a JSON pointer such as `/filters/1/config`) and, inside it, `inner` (a path such
    /// as `rules[2].match.path`; empty or `.` for the value itself). If it does not exist, the result is the deepest
    /// existing value on the path.
    pub fn locate(&self, pointer: &str, inner: &str) -> Location {
        let found = self.root().find(pointer).follow(inner);
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

/// A single file, such as a file of test cases. Its values contain no environment variables.
impl Texts for Arc<Source> {
    fn name_of(&self, _: usize) -> &str {
        &self.name
    }

    fn open(&self, _: usize) -> Option<Arc<Source>> {
        Some(self.clone())
    }

    fn conceal(&self, _: &mut String) {}
}

/// Resolves a path relative to a directory.
pub(super) fn resolve(dir: &Path, path: impl AsRef<Path>) -> PathBuf {
    // Collecting the components drops `./`.
    dir.join(path).components().collect()
}
