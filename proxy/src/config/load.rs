//! From a file, or a text, to a configuration: the steps in their order, and what each must leave for the next.

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
use crate::files;

/// Larger files are refused: nobody writes such a configuration, and memory is taken for every value of it.
const MAX_BYTES: usize = 16 << 20;

/// How a configuration is written.
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
    /// By a file's name.
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
    /// What it says.
    pub config: Config,
    /// What it was read from, for later errors.
    pub source: Arc<Source>,
    /// What is probably not meant.
    pub warnings: Diagnostics,
}

impl Loaded {
    /// The configuration with all defaults, to be shown: with references in place of what environment variables hold.
    pub fn shown(&self) -> serde_json::Value {
        let mut shown = serde_json::to_value(&self.config).unwrap_or_default();
        self.source.mask(&mut shown);
        shown
    }

    /// A hash of all values, environment variables put in: the same in every run and on every machine. Comments and
    /// layout do not count. Neither does what is in WebAssembly files, only their names.
    pub fn hash(&self) -> String {
        // FNV-1a: nobody gains by a collision here, and the standard library promises no stable hash.
        let text = self.source.root().to_json().to_string();
        let hash =
            text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        format!("{hash:016x}")
    }
}

/// How configurations are loaded.
pub struct Loader<'f> {
    env: Box<Lookup<'f>>,
    foreign: ExternalChecks,
}

/// Checks of values whose meaning other parts of the proxy know. What they return becomes an error at the value, with its
/// help.
#[derive(Clone, Copy)]
pub struct ExternalChecks {
    /// Of the `format` of access logs.
    pub access_log: Check,
    /// Of `log.level`.
    pub log_level: Check,
}

/// Says what is wrong with a text, and what would be right.
pub type Check = fn(&str) -> Result<(), (String, Option<String>)>;

impl Default for Loader<'_> {
    fn default() -> Self {
        let foreign = ExternalChecks { access_log: |_| Ok(()), log_level: |_| Ok(()) };
        Loader { env: Box::new(|name| std::env::var_os(name)), foreign }
    }
}

/// Reads a file. Its name says the format.
pub fn load(path: &Path) -> Result<Loaded, Diagnostics> {
    Loader::default().load(path)
}

/// Reads a text. Relative paths in it are relative to the directory of `source_name`.
pub fn parse(source_name: &str, text: &str, format: Format) -> Result<Loaded, Diagnostics> {
    Loader::default().parse(source_name, text, format)
}

impl<'f> Loader<'f> {
    /// With variables from elsewhere than the environment.
    pub fn env(mut self, env: impl Fn(&str) -> Option<String> + 'f) -> Self {
        self.env = Box::new(move |name| env(name).map(Into::into));
        self
    }

    /// With checks of what other parts of the proxy know.
    pub fn foreign(mut self, foreign: ExternalChecks) -> Self {
        self.foreign = foreign;
        self
    }

    /// Reads a file. Its name says the format.
    pub fn load(&self, path: &Path) -> Result<Loaded, Diagnostics> {
        let (text, format) = read(path)?;
        self.parse_text(path, &text, format)
    }

    /// Reads standard input as YAML, of which JSON is nearly a part.
    pub fn stdin(&self) -> Result<Loaded, Diagnostics> {
        let path = Path::new("<stdin>");
        let text = text_of(path, std::io::stdin())?;
        self.parse_text(path, &text, Format::Yaml)
    }

    /// Reads a text. Relative paths in it are relative to the directory of `source_name`.
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

    /// Does everything that can be done; there is no configuration only if there are problems.
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
            let help = "the least that it needs is a listener with a name and an address";
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

/// A file's text, and how it is written.
fn read(path: &Path) -> Result<(String, Format), Diagnostics> {
    let fail = |d: Diagnostic| Diagnostics::new(Arc::new(Source::new(path, "")), vec![d]);
    let unnamed = || match path == Path::new("-") {
        true => fail(
            Diagnostic::error(None, "a file is needed here, not standard input")
                .help("it is watched, and read again; `tollgate check -` reads standard input".to_owned()),
        ),
        false => fail(
            Diagnostic::error(None, "the name of the file does not say how it is written")
                .help("name it .yaml, .yml, .json or .toml".to_owned()),
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
    // What precedes the error is the same in the lossy text, so the place is right.
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

/// Reads a file of another kind than a configuration, such as test cases, into a tree that knows its places. Only its syntax
/// is checked; environment variables are not put in.
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

/// Two keywords of the schema may say the same about a value (`pattern` and `format`).
fn remove_repeated(problems: &mut Vec<Diagnostic>) {
    let mut seen = std::collections::HashSet::new();
    problems.retain(|d| seen.insert((d.span, d.message.clone())));
}

/// The schema let something through that the model does not take. There is little of that: `2.0` for a whole number.
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
