//! Shared by the three parsers: size limits, and maps that detect duplicate keys.

use std::collections::HashMap;

use super::{
    diagnostic::Diagnostic,
    node::{Key, Node, Span},
};

/// The maximum nesting depth of values. It bounds every recursion over the tree.
pub(super) const MAX_DEPTH: usize = 128;
/// The maximum number of values, including those that YAML aliases repeat.
pub(super) const MAX_NODES: usize = 1_000_000;

/// A parsed tree, and errors that did not prevent parsing.
#[derive(Debug)]
pub(super) struct ParseResult {
    pub(super) node: Node,
    pub(super) problems: Vec<Diagnostic>,
}

/// Maps with more entries than this are searched with the help of hashes.
const SMALL: usize = 16;

/// The entries of a map during parsing.
#[derive(Debug, Default)]
pub(super) struct Entries {
    list: Vec<(Key, Node)>,
    /// The indices of the names, if there are many.
    index: HashMap<String, usize>,
}

impl Entries {
    /// Adds an entry; fails if the key exists.
    pub(super) fn insert(&mut self, key: Key, node: Node) -> Result<(), Diagnostic> {
        let first = match self.list.len() <= SMALL {
            true => self.list.iter().find(|(there, _)| there.name == key.name),
            false => self.index.get(&key.name).map(|first| &self.list[*first]),
        };
        if let Some((first, _)) = first {
            return Err(
                Diagnostic::error(key.span, format!("`{}` is defined twice", key.name)).note(first.span, "first here")
            );
        }
        self.list.push((key, node));
        if self.list.len() > SMALL {
            let (names, known) = (self.list.iter().enumerate(), self.index.len());
            self.index.extend(names.skip(known).map(|(nth, (key, _))| (key.name.clone(), nth)));
        }
        Ok(())
    }

    /// Returns the end of the last value.
    pub(super) fn end(&self) -> Option<usize> {
        self.list.last().map(|(key, node)| node.span.end.max(key.span.end))
    }

    pub(super) fn into_list(mut self) -> Vec<(Key, Node)> {
        // A large file has many small maps.
        self.list.shrink_to_fit();
        self.list
    }
}

/// Returns the error for values that are nested too deeply.
pub(super) fn too_deep(span: Span) -> Diagnostic {
    Diagnostic::error(span, format!("nested too deeply: at most {MAX_DEPTH} levels are allowed"))
}

/// Returns the error for too many values.
pub(super) fn too_many(span: Span) -> Diagnostic {
    Diagnostic::error(span, format!("too many values: at most {MAX_NODES} are allowed"))
}
