//! The value tree that YAML, JSON and TOML are parsed into. It records the location of every value and key.
//!
//! All error locations come from this tree: a path in it (a JSON pointer, or the dotted path that a filter reports for
//! its configuration) is resolved to a range of bytes here.

use serde_json::Number;

/// A range of bytes in the source text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// The first byte.
    pub start: usize,
    /// The byte after the last one.
    pub end: usize,
}

impl Span {
    /// From `start` up to, but excluding, `end`.
    pub fn new(start: usize, end: usize) -> Self {
        Span { start, end: end.max(start) }
    }

    /// Whether the range is empty, as for the missing value after `key:`.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }
}

/// A value and its location.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The location. For a TOML table, this is its header.
    pub span: Span,
    /// The value.
    pub value: Value,
}

/// The value of a node.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Number(Number),
    /// A string.
    String(Text),
    /// A list.
    Seq(Vec<Node>),
    /// A map, in the order of the file. Keys are unique.
    Map(Vec<(Key, Node)>),
    /// Unknown, because the value depends on an environment variable that is not set. That was already reported.
    Undefined,
}

/// A string, and how it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// The string.
    pub text: String,
    /// Whether it was written without quotes.
    pub plain: bool,
    /// Whether environment variables were expanded in it, so that its type is still open.
    pub variable: bool,
}

/// A key of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The key itself.
    pub name: String,
    /// The location.
    pub span: Span,
}

/// The result of following a path.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found<'n> {
    /// The deepest existing node on the path.
    pub(super) node: &'n Node,
    /// The node's key, unless it is the document or an item of a list.
    pub(super) key: Option<&'n Key>,
    /// Whether the node is the end of the path.
    pub(super) whole: bool,
}

impl Node {
    /// Creates a string that stays text whatever it looks like.
    pub(super) fn quoted(text: impl Into<String>, span: Span) -> Self {
        Node { span, value: Value::String(Text { text: text.into(), plain: false, variable: false }) }
    }

    /// Returns the value of a map's field.
    pub fn get(&self, name: &str) -> Option<&Node> {
        self.entry(name).map(|(_, node)| node)
    }

    /// Returns a map's field.
    pub fn entry(&self, name: &str) -> Option<&(Key, Node)> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(key, _)| key.name == name),
            _ => None,
        }
    }

    /// Returns the items of a list; empty for other values.
    pub fn items(&self) -> &[Node] {
        match &self.value {
            Value::Seq(items) => items,
            _ => &[],
        }
    }

    /// Returns the values of a map; empty for other values.
    pub fn values(&self) -> impl Iterator<Item = &Node> {
        let entries = match &self.value {
            Value::Map(entries) => &entries[..],
            _ => &[],
        };
        entries.iter().map(|(_, node)| node)
    }

    /// Returns the text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(&text.text),
            _ => None,
        }
    }

    /// Returns the kind of value in words, for messages.
    pub fn kind(&self) -> &'static str {
        match &self.value {
            Value::Null | Value::Undefined => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Seq(_) => "a list",
            Value::Map(_) => "a map",
        }
    }

    /// Converts the node to JSON, for the schema and for serde.
    pub fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null | Value::Undefined => serde_json::Value::Null,
            Value::Bool(b) => (*b).into(),
            Value::Number(n) => serde_json::Value::Number(n.clone()),
            Value::String(text) => text.text.clone().into(),
            Value::Seq(items) => items.iter().map(Node::to_json).collect(),
            Value::Map(entries) => entries.iter().map(|(key, node)| (key.name.clone(), node.to_json())).collect(),
        }
    }

    /// Returns the index of a map's field.
    pub(super) fn index_of(&self, name: &str) -> Option<usize> {
        match &self.value {
            Value::Map(entries) => entries.iter().position(|(key, _)| key.name == name),
            _ => None,
        }
    }

    /// Returns the value of a field or an item by index, and the field's key.
    fn child(&self, index: usize) -> Option<(Option<&Key>, &Node)> {
        match &self.value {
            Value::Map(entries) => entries.get(index).map(|(key, node)| (Some(key), node)),
            Value::Seq(items) => items.get(index).map(|node| (None, node)),
            _ => None,
        }
    }

    /// Returns the node at the end of a trail of indices.
    pub(super) fn at(&self, trail: &[usize]) -> Option<&Node> {
        trail.iter().try_fold(self, |node, index| Some(node.child(*index)?.1))
    }

    /// Returns the node at the end of a trail of indices, mutably.
    pub(super) fn at_mut(&mut self, trail: &[usize]) -> Option<&mut Node> {
        trail.iter().try_fold(self, |node, index| match &mut node.value {
            Value::Map(entries) => entries.get_mut(*index).map(|(_, node)| node),
            Value::Seq(items) => items.get_mut(*index),
            _ => None,
        })
    }

    /// Resolves a path such as `rules[2].match.path` (in the notation of `serde_path_to_error`) to a trail of field and
    /// item indices, as far as it exists. Also returns whether the end was reached.
    ///
    /// A key may itself contain dots and brackets, and the path does not mark where it ends. So in a map, the longest
    /// key that the rest of the path begins with is chosen.
    pub(super) fn trail(&self, path: &str) -> (Vec<usize>, bool) {
        let (mut node, mut trail) = (self, Vec::new());
        let mut rest = path.strip_prefix('.').unwrap_or(path);
        while !rest.is_empty() {
            let step = match &node.value {
                Value::Seq(_) => {
                    let index = rest.strip_prefix('[').and_then(|r| r.split_once(']'));
                    index.and_then(|(index, r)| Some((index.parse().ok()?, r)))
                }
                Value::Map(entries) => {
                    let ends = |r: &&str| r.is_empty() || r.starts_with(['.', '[']);
                    let fits = |(i, (key, _)): (usize, &(Key, Node))| {
                        Some((key.name.len(), i, rest.strip_prefix(key.name.as_str()).filter(ends)?))
                    };
                    entries.iter().enumerate().filter_map(fits).max_by_key(|(len, ..)| *len).map(|(_, i, r)| (i, r))
                }
                _ => None,
            };
            let Some((index, r)) = step else { return (trail, false) };
            let Some((_, child)) = node.child(index) else { return (trail, false) };
            node = child;
            trail.push(index);
            rest = r.strip_prefix('.').unwrap_or(r);
        }
        (trail, true)
    }

    /// Follows a JSON pointer (RFC 6901) as far as it exists.
    pub(super) fn find(&self, pointer: &str) -> Found<'_> {
        let mut found = Found { node: self, key: None, whole: true };
        for segment in pointer.split('/').skip(1) {
            let segment = segment.replace("~1", "/").replace("~0", "~");
            if !found.step(&segment) {
                found.whole = false;
                break;
            }
        }
        found
    }
}

impl<'n> Found<'n> {
    /// Moves to a field or an item, if it exists.
    fn step(&mut self, segment: &str) -> bool {
        match &self.node.value {
            Value::Map(entries) => match entries.iter().find(|(key, _)| key.name == segment) {
                Some((key, node)) => {
                    (self.node, self.key) = (node, Some(key));
                    true
                }
                None => false,
            },
            Value::Seq(items) => match segment.parse().ok().and_then(|i: usize| items.get(i)) {
                Some(node) => {
                    (self.node, self.key) = (node, None);
                    true
                }
                None => false,
            },
            _ => false,
        }
    }

    /// Follows a path such as `rules[2].match.path` as far as it exists; see [`Node::trail`].
    pub(super) fn follow(mut self, inner: &str) -> Self {
        if self.whole {
            let (trail, whole) = self.node.trail(inner);
            self.whole = whole;
            for index in trail {
                if let Some((key, node)) = self.node.child(index) {
                    (self.node, self.key) = (node, key);
                }
            }
        }
        self
    }

    /// Returns the location to point at: a scalar itself, but the key of a map or a list, which may be long.
    pub(super) fn span(&self) -> Span {
        match (&self.node.value, self.key) {
            (Value::Seq(_) | Value::Map(_), Some(key)) => key.span,
            (_, Some(key)) if self.node.span.is_empty() => key.span,
            _ => self.node.span,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(text: &str) -> Node {
        super::super::json::parse(text).unwrap_or_else(|e| panic!("{e:?}")).node
    }

    #[test]
    fn a_path_is_followed_as_far_as_it_goes() {
        let text = r#"{"rules": [1, {"match": {"path": "/x", "a.b": 7, "a": {"b": 8}}}], "a/b": 9}"#;
        let tree = tree(text);
        let at = |pointer: &str, inner: &str| {
            let found = tree.find(pointer).follow(inner);
            let span = found.span();
            (&text[span.start..span.end], found.whole)
        };
        assert_eq!(at("/rules", "[1].match.path"), (r#""/x""#, true));
        assert_eq!(at("", "rules[1].match.path"), (r#""/x""#, true));
        assert_eq!(at("", "rules[1].match.a.b"), ("7", true));
        assert_eq!(at("", "rules[1].match.nope.x"), (r#""match""#, false));
        assert_eq!(at("", "rules[5].match"), (r#""rules""#, false));
        assert_eq!(at("/a~1b", "."), ("9", true));
        assert_eq!(at("/rules/0", "deeper"), ("1", false));
        assert_eq!(at("/rules/x", "deeper"), (r#""rules""#, false));
        assert_eq!(at("/rules", "[not closed"), (r#""rules""#, false));
    }
}
