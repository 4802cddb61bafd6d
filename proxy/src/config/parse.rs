//! From a file's text to its value tree: parses the format, expands environment variables, and normalizes short forms.

use std::{cell::RefCell, collections::BTreeMap, ffi::OsString, path::Path};

use super::{
    diagnostic::Diagnostic,
    env::{self, Lookup},
    json,
    node::{Node, Span, Value},
    normalize, toml,
    tree::ParseResult,
    yaml,
};

/// The format of a configuration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// YAML 1.2.
    Yaml,
    /// JSON.
    Json,
    /// TOML 1.
    Toml,
}

impl Format {
    /// Returns the format by the file's extension.
    pub fn of(path: &Path) -> Option<Format> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "yaml" | "yml" => Some(Format::Yaml),
            "json" => Some(Format::Json),
            "toml" => Some(Format::Toml),
            _ => None,
        }
    }
}

/// The environment variables that a file refers to. The value is `None` for a variable that is not set.
pub(super) type Variables = BTreeMap<String, Option<OsString>>;

/// The value tree of a configuration file, with what masking needs.
pub(super) struct Expanded {
    pub(super) root: Node,
    /// Values that contain environment variables: their JSON pointers, and the text as written.
    pub(super) references: Vec<(String, String)>,
    pub(super) variables: Variables,
}

impl Expanded {
    /// Whether the file is empty, except for comments.
    pub(super) fn is_empty(&self, format: Format) -> bool {
        match &self.root.value {
            Value::Null => self.root.span.is_empty(),
            Value::Map(entries) => format == Format::Toml && entries.is_empty(),
            _ => false,
        }
    }
}

/// Parses a text. The tree may have errors that did not prevent parsing.
pub(super) fn tree(text: &str, format: Format) -> Result<ParseResult, Vec<Diagnostic>> {
    match format {
        Format::Yaml => yaml::parse(text),
        Format::Json if text.trim().is_empty() => Ok(nothing()),
        Format::Json => json::parse(text),
        Format::Toml => toml::parse(text),
    }
}

/// Parses a configuration file. Returns `None` if there is no tree, because of syntax errors.
pub(super) fn configuration(
    text: &str,
    format: Format,
    lookup: &Lookup<'_>,
    problems: &mut Vec<Diagnostic>,
) -> Option<Expanded> {
    let ParseResult { mut node, problems: mut found } = match tree(text, format) {
        Ok(parsed) => parsed,
        Err(errors) => {
            problems.extend(errors);
            return None;
        }
    };
    problems.append(&mut found);
    let (mut references, variables) = (Vec::new(), RefCell::new(Variables::new()));
    // A `$` may be written as an escape.
    if text.contains(['$', '\\']) {
        references = env::references(&node);
        let recorded = |name: &str| {
            let value = lookup(name);
            variables.borrow_mut().insert(name.to_owned(), value.clone());
            value
        };
        env::substitute(&mut node, text, &recorded, problems);
    }
    normalize::fit(&mut node);
    Some(Expanded { root: node, references, variables: variables.into_inner() })
}

fn nothing() -> ParseResult {
    ParseResult { node: Node { span: Span::default(), value: Value::Null }, problems: Vec::new() }
}
