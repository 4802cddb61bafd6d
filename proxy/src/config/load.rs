//! Loads a configuration from a file or a text: the steps, in order.

use std::{cell::RefCell, collections::BTreeMap, io::Read, path::Path, sync::Arc};

use serde_path_to_error::Segment;

use super::{
    diagnostic::{Diagnostic, Diagnostics},
    env::{self, Lookup},
    explain, json,
    model::Config,
    node::{Node, Span, Value},
    normalize, semantics, sockets,
    source::Source,
    toml,
    tree::ParseResult,
    yaml,
};
use crate::{digest::sha256_hex, files};

/// The maximum file size. No real configuration is larger, and every value takes memory.
const MAX_BYTES: usize = 16 << 20;

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

/// A configuration without errors.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// The file that it was read from, for locating later errors.
    pub source: Arc<Source>,
    /// Warnings about settings that are probably unintended.
    pub warnings: Diagnostics,
}

impl Loaded {
    /// Returns the configuration with all defaults, for display: variables are shown as references, not as their
    /// values.
    pub fn shown(&self) -> serde_json::Value {
        let mut shown = serde_json::to_value(&self.config).unwrap_or_default();
        self.source.mask(&mut shown);
        shown
    }

    /// Returns the SHA-256 of all values, in hex, with environment variables expanded. It is the same in every run and on every
    /// machine. Comments, layout, and the contents of WebAssembly files do not affect it.
    pub fn hash(&self) -> String {
        sha256_hex(self.source.root().to_json().to_string().as_bytes())
    }
}

/// Loads configurations.
pub struct Loader<'f> {
    env: Box<Lookup<'f>>,
    foreign: ExternalChecks,
}

/// Checks of values that other parts of the proxy interpret. Their errors are reported at the value.
#[derive(Clone, Copy)]
pub struct ExternalChecks {
    /// Checks the `format` of access logs.
    pub access_log: Check,
    /// Checks `log.level`.
    pub log_level: Check,
}

/// Checks a text. An error consists of a message and optional help.
pub type Check = fn(&str) -> Result<(), (String, Option<String>)>;

impl Default for Loader<'_> {
    fn default() -> Self {
        let foreign = ExternalChecks { access_log: |_| Ok(()), log_level: |_| Ok(()) };
        Loader { env: Box::new(|name| std::env::var_os(name)), foreign }
    }
}

/// Loads a file. The extension determines the format.
pub fn load(path: &Path) -> Result<Loaded, Diagnostics> {
    Loader::default().load(path)
}

/// Parses a text. Relative paths in it are relative to the directory of `source_name`.
pub fn parse(source_name: &str, text: &str, format: Format) -> Result<Loaded, Diagnostics> {
    Loader::default().parse(source_name, text, format)
}

impl<'f> Loader<'f> {
    /// Sets the lookup for environment variables.
    pub fn env(mut self, env: impl Fn(&str) -> Option<String> + 'f) -> Self {
        self.env = Box::new(move |name| env(name).map(Into::into));
        self
    }

    /// Sets the checks that belong to other parts of the proxy.
    pub fn foreign(mut self, foreign: ExternalChecks) -> Self {
        self.foreign = foreign;
        self
    }

    /// Loads a file. The extension determines the format.
    pub fn load(&self, path: &Path) -> Result<Loaded, Diagnostics> {
        let (text, format) = read(path)?;
        self.parse_text(path, &text, format)
    }

    /// Reads standard input as YAML, which is nearly a superset of JSON.
    pub fn stdin(&self) -> Result<Loaded, Diagnostics> {
        let path = Path::new("<stdin>");
        let text = text_of(path, std::io::stdin())?;
        self.parse_text(path, &text, Format::Yaml)
    }

    /// Parses a text. Relative paths in it are relative to the directory of `source_name`.
    pub fn parse(&self, source_name: &str, text: &str, format: Format) -> Result<Loaded, Diagnostics> {
        self.parse_text(Path::new(source_name), text, format)
    }

    fn parse_text(&self, path: &Path, text: &str, format: Format) -> Result<Loaded, Diagnostics> {
        if text.len() > MAX_BYTES {
            return Err(too_large(path));
        }
        let mut source = Source::new(path, text.strip_prefix('\u{feff}').unwrap_or(text));
        let mut problems = Vec::new();
        let config = self.read(&mut source, format, &mut problems);
        let diagnostics = Diagnostics::new(Arc::new(source), problems);
        match config {
            Some(config) if !diagnostics.has_errors() => {
                Ok(Loaded { config, source: diagnostics.source().clone(), warnings: diagnostics })
            }
            _ => Err(diagnostics),
        }
    }

    /// Runs every check that is possible; returns `None` only if there are problems.
    fn read(&self, source: &mut Source, format: Format, problems: &mut Vec<Diagnostic>) -> Option<Config> {
        let ParseResult { mut node, problems: mut found } = match tree(source.text(), format) {
            Ok(parsed) => parsed,
            Err(errors) => {
                problems.extend(errors);
                return None;
            }
        };
        let empty = match &node.value {
            Value::Null => node.span.is_empty(),
            Value::Map(entries) => format == Format::Toml && entries.is_empty() && found.is_empty(),
            _ => false,
        };
        if empty {
            let help = "a configuration needs at least a listener with a name and an address";
            problems.push(Diagnostic::error(None, "the file is empty").help(help.to_owned()));
            return None;
        }
        problems.append(&mut found);
        source.set_references(env::references(&node));
        let variables = RefCell::new(BTreeMap::new());
        let lookup = |name: &str| {
            let value = (self.env)(name)?;
            variables.borrow_mut().insert(name.to_owned(), value.to_string_lossy().into_owned());
            Some(value)
        };
        env::substitute(&mut node, source.text(), &lookup, problems);
        source.set_variables(variables.into_inner());
        normalize::fit(&mut node);
        source.set_root(node);
        let json = source.root().to_json();
        explain::check(source, &json, problems);
        semantics::check(source, &self.foreign, problems);
        remove_repeated(problems);
        if !problems.is_empty() {
            return None;
        }
        match serde_path_to_error::deserialize(json) {
            Ok(mut config) => {
                sockets::resolve(source, &mut config, problems);
                semantics::warn(source, &config, problems);
                Some(config)
            }
            Err(error) => {
                problems.push(refused(source, &error));
                None
            }
        }
    }
}

fn too_large(path: &Path) -> Diagnostics {
    let large = Diagnostic::error(None, format!("the file is larger than {} MiB", MAX_BYTES >> 20));
    Diagnostics::new(Arc::new(Source::new(path, "")), vec![large])
}

/// Reads a file's text and determines its format.
fn read(path: &Path) -> Result<(String, Format), Diagnostics> {
    let fail = |d: Diagnostic| Diagnostics::new(Arc::new(Source::new(path, "")), vec![d]);
    let unnamed = || match path == Path::new("-") {
        true => fail(Diagnostic::error(None, "standard input cannot be used here").help(
            "name a file, which is watched and reloaded; only `tollgate check -` reads standard input".to_owned(),
        )),
        false => fail(
            Diagnostic::error(None, "unknown file format")
                .help("use the extension .yaml, .yml, .json or .toml".to_owned()),
        ),
    };
    let format = Format::of(path).ok_or_else(unnamed)?;
    let file = files::open(path).map_err(|error| unreadable(path, &error))?;
    Ok((text_of(path, file)?, format))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Diagnostics {
    let error = Diagnostic::error(None, format!("cannot read the file: {error}"));
    Diagnostics::new(Arc::new(Source::new(path, "")), vec![error])
}

fn text_of(path: &Path, reader: impl Read) -> Result<String, Diagnostics> {
    let mut bytes = Vec::new();
    reader.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(|error| unreadable(path, &error))?;
    if bytes.len() > MAX_BYTES {
        return Err(too_large(path));
    }
    let error = match String::from_utf8(bytes) {
        Ok(text) => return Ok(text),
        Err(error) => error,
    };
    // The text before the error is the same in the lossy conversion, so the location is correct.
    let at = error.utf8_error().valid_up_to();
    let source = Source::new(path, String::from_utf8_lossy(error.as_bytes()));
    let wrong = Diagnostic::error(Span::new(at, at + char::REPLACEMENT_CHARACTER.len_utf8()), "this is not UTF-8");
    Err(Diagnostics::new(Arc::new(source), vec![wrong]))
}

fn tree(text: &str, format: Format) -> Result<ParseResult, Vec<Diagnostic>> {
    match format {
        Format::Yaml => yaml::parse(text),
        Format::Json if text.trim().is_empty() => Ok(nothing()),
        Format::Json => json::parse(text),
        Format::Toml => toml::parse(text),
    }
}

/// Reads a file other than a configuration, such as test cases, into a tree with locations. Only the syntax is checked;
/// environment variables are not expanded.
pub fn read_tree(path: &Path) -> Result<Source, Diagnostics> {
    let (text, format) = read(path)?;
    let mut source = Source::new(path, text.strip_prefix('\u{feff}').unwrap_or(&text));
    match tree(source.text(), format) {
        Ok(ParseResult { node, problems }) if problems.is_empty() => {
            source.set_root(node);
            Ok(source)
        }
        Ok(ParseResult { problems, .. }) | Err(problems) => Err(Diagnostics::new(Arc::new(source), problems)),
    }
}

fn nothing() -> ParseResult {
    ParseResult { node: Node { span: Span::default(), value: Value::Null }, problems: Vec::new() }
}

/// Removes duplicates: two schema keywords may report the same error (`pattern` and `format`).
fn remove_repeated(problems: &mut Vec<Diagnostic>) {
    let mut seen = std::collections::HashSet::new();
    problems.retain(|d| seen.insert((d.span, d.message.clone())));
}

/// Reports a value that the schema accepts but the model does not. There are few cases, such as `2.0` for a whole
/// number.
fn refused(source: &Source, error: &serde_path_to_error::Error<serde_json::Error>) -> Diagnostic {
    let mut pointer = String::new();
    for segment in error.path() {
        let segment = match segment {
            Segment::Seq { index } => index.to_string(),
            Segment::Map { key } => key.replace('~', "~0").replace('/', "~1"),
            Segment::Enum { .. } | Segment::Unknown => break,
        };
        pointer.push('/');
        pointer.push_str(&segment);
    }
    match &source.root().find(&pointer).node.value {
        Value::Number(n) if n.is_f64() => {
            source.diagnostic(&pointer, format!("expected a whole number, found `{n}`"), None)
        }
        _ => source.diagnostic(&pointer, error.inner().to_string(), None),
    }
}

impl std::fmt::Debug for Loader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader").finish_non_exhaustive()
    }
}
