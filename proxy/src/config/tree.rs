//! What the three readers have in common: bounds, and maps that notice a key that is there twice.

use std::collections::HashMap;

use super::{
    diagnostic::Diagnostic,
    node::{Key, Node, Span},
};

/// How deeply values may be nested. Bounds every recursion over the tree.
pub(super) const MAX_DEPTH: usize = 128;
/// How many values there may be, those that YAML aliases repeat included.
pub(super) const MAX_NODES: usize = 1_000_000;

/// What a reader has made of a text: a tree, and what is wrong with it but did not keep it from being read.
#[derive(Debug)]
pub(super) struct ParseResult {
    pub(super) node: Node,
    pub(super) problems: Vec<Diagnostic>,
}

/// The entries of a map that is being read.
#[derive(Debug, Default)]
pub(super) struct Entries {
    list: Vec<(Key, Node)>,
    seen: HashMap<String, Span>,
}

impl Entries {
    /// Adds an entry, unless its key is there already.
    pub(super) fn insert(&mut self, key: Key, node: Node) -> Result<(), Diagnostic> {
        if let Some(first) = self.seen.get(&key.name) {
            return Err(
                Diagnostic::error(key.span, format!("`{}` is there twice", key.name)).note(*first, "first here")
            );
        }
        self.seen.insert(key.name.clone(), key.span);
        self.list.push((key, node));
        Ok(())
    }

    /// Where the last value ends.
    pub(super) fn end(&self) -> Option<usize> {
        self.list.last().map(|(key, node)| node.span.end.max(key.span.end))
    }

    pub(super) fn into_list(self) -> Vec<(Key, Node)> {
        self.list
    }
}

/// The error for what is nested too deeply.
pub(super) fn too_deep(span: Span) -> Diagnostic {
    Diagnostic::error(span, format!("nested too deeply: at most {MAX_DEPTH} levels are allowed"))
}

/// The error for too many values.
pub(super) fn too_many(span: Span) -> Diagnostic {
    Diagnostic::error(span, format!("too many values: at most {MAX_NODES} are allowed"))
}
