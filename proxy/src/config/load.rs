//! Loads a configuration from its files or from a text: the steps, in order.

use std::{
    io::Read,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;

use super::{
    diagnostic::{Diagnostic, Diagnostics},
    env::Lookup,
    explain,
    model::Config,
    node::{Node, Span, Value},
    outline::{self, Outline},
    parse::{self, Expanded, Format, tree},
    paths::dependencies,
    resources::{ConfigSource, FileResources, Origin, Resource},
    semantics, sockets,
    source::Source,
    tree::ParseResult,
};
use crate::{
    digest::{hex, sha256},
    files,
};

/// The maximum file size. No real configuration is larger, and every value takes memory.
const MAX_BYTES: usize = 16 << 20;

/// The sections whose entries are resources.
const SECTIONS: [&str; 3] = ["listeners", "filters", "clusters"];

/// A configuration without errors.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// The files that it was read from, for locating later errors.
    pub source: Arc<ConfigSource>,
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
        hex(&self.source.hash())
    }
}

/// Loads configurations.
pub struct Loader<'f> {
    pub(super) env: Box<Lookup<'f>>,
    pub(super) foreign: ExternalChecks,
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

    /// Loads a file and the files that it includes. The extension determines the format.
    pub fn load(&self, path: &Path) -> Result<Loaded, Diagnostics> {
        self.reload(path, None).1
    }

    /// Loads a file again. Files that have not changed since `previous` are read, but not parsed and checked. Also
    /// returns the files that the result depends on, even if the configuration has errors.
    pub fn reload(&self, path: &Path, previous: Option<&ConfigSource>) -> (Vec<PathBuf>, Result<Loaded, Diagnostics>) {
        let mut loading = Loading { previous, ..Loading::new(self, path) };
        loading.add(path, read(path), true);
        loading.finish()
    }

    /// Reads standard input as YAML, which is nearly a superset of JSON.
    pub fn stdin(&self) -> Result<Loaded, Diagnostics> {
        let path = Path::new("<stdin>");
        self.text(path, text_of(std::io::stdin()).map(|text| (text, Format::Yaml)))
    }

    /// Parses a text. Relative paths in it are relative to the directory of `source_name`.
    pub fn parse(&self, source_name: &str, text: &str, format: Format) -> Result<Loaded, Diagnostics> {
        self.text(Path::new(source_name), text_of(text.as_bytes()).map(|text| (text, format)))
    }

    fn text(&self, path: &Path, read: Result<(String, Format), Unreadable>) -> Result<Loaded, Diagnostics> {
        let mut loading = Loading::new(self, path);
        loading.add(path, read, false);
        loading.finish().1
    }

    /// Parses and checks one file by itself.
    fn file(&self, mut file: FileResources, text: String, problems: &mut Vec<Diagnostic>) -> FileResources {
        let mut source = Source::new(&file.origin.path, text);
        let expanded = parse::configuration(source.text(), file.origin.format, &self.env, problems);
        if let Some(Expanded { root, references, variables }) = expanded {
            source.set_root(root);
            (file.references, file.variables) = (references, variables);
            file.outline = Outline::of(&source, true);
            file.dependencies = dependencies(&source);
            semantics::check(&source, &self.foreign, problems);
            self.resources(&source, &mut file, problems);
        }
        file.open = Mutex::new(Some(Arc::new(source)));
        file
    }

    /// Checks the values against the schema, and turns them into the model.
    fn resources(&self, source: &Source, file: &mut FileResources, problems: &mut Vec<Diagnostic>) {
        let bootstrap = read_value::<Config>(source, "", "", &rest(source.root()), problems, |config, problems| {
            sockets::resolve(source, &mut config.admin.address, "/admin/address", problems);
        });
        let listeners = section(source, "listeners", problems, sockets::resolve_listener);
        let filters = section(source, "filters", problems, |_, _, _, _| {});
        let clusters = section(source, "clusters", problems, sockets::resolve_cluster);
        let Some((mut config, hash)) = bootstrap.filter(|_| problems.is_empty()) else { return };
        config.listeners = listeners.iter().map(|listener| listener.value.clone()).collect();
        config.clusters = clusters.iter().map(|cluster| cluster.value.clone()).collect();
        semantics::warn(source, &config, &mut file.warnings);
        (config.listeners, config.clusters) = (Vec::new(), Vec::new());
        (file.listeners, file.filters, file.clusters) = (listeners, filters, clusters);
        file.bootstrap = Some((config, hash));
    }
}

/// Returns a map as JSON, without the entries of the sections.
fn rest(root: &Node) -> serde_json::Value {
    let Value::Map(entries) = &root.value else { return root.to_json() };
    let is_section = |key: &str, node: &Node| SECTIONS.contains(&key) && matches!(node.value, Value::Seq(_));
    let rest = entries.iter().filter(|(key, node)| !is_section(&key.name, node));
    rest.map(|(key, node)| (key.name.clone(), node.to_json())).collect()
}

/// Returns the resources of a section, as far as they have no errors. `finish` completes each of them; it gets its
/// pointer.
fn section<T: DeserializeOwned>(
    source: &Source,
    name: &str,
    problems: &mut Vec<Diagnostic>,
    finish: impl Fn(&Source, &mut T, &str, &mut Vec<Diagnostic>),
) -> Vec<Resource<T>> {
    let entries = source.root().get(name).map_or(&[][..], Node::items);
    let mut lines = Lines { text: source.text().as_bytes(), at: 0, line: 1 };
    let mut all = Vec::with_capacity(entries.len());
    for (index, node) in entries.iter().enumerate() {
        let pointer = format!("/{name}/{index}");
        let value = read_value(source, name, &pointer, &node.to_json(), problems, |value, problems| {
            finish(source, value, &pointer, problems);
        });
        if let Some((value, sha256)) = value {
            all.push(Resource { value: Arc::new(value), sha256, span: node.span, line: lines.of(node.span.start) });
        }
    }
    all
}

/// Counts lines up to ascending offsets.
struct Lines<'t> {
    text: &'t [u8],
    at: usize,
    line: usize,
}

impl Lines<'_> {
    fn of(&mut self, offset: usize) -> usize {
        // An alias may repeat a value that is further up.
        if offset < self.at {
            (self.at, self.line) = (0, 1);
        }
        self.line += self.text.get(self.at..offset).map_or(0, |passed| memchr::memchr_iter(b'\n', passed).count());
        self.at = offset;
        self.line
    }
}

/// Checks a value against the schema, and turns it into the model. Returns it with its hash.
pub(super) fn read_value<T: DeserializeOwned>(
    source: &Source,
    section: &str,
    pointer: &str,
    json: &serde_json::Value,
    problems: &mut Vec<Diagnostic>,
    finish: impl FnOnce(&mut T, &mut Vec<Diagnostic>),
) -> Option<(T, [u8; 32])> {
    if !explain::check(source, section, pointer, json, problems) {
        return None;
    }
    match T::deserialize(json) {
        Ok(mut value) => {
            finish(&mut value, problems);
            Some((value, sha256(json.to_string().as_bytes())))
        }
        Err(_) => {
            problems.extend(
                serde_path_to_error::deserialize::<_, T>(json).err().map(|error| refused(source, pointer, &error)),
            );
            None
        }
    }
}

/// The state of a load.
struct Loading<'l, 'f> {
    loader: &'l Loader<'f>,
    previous: Option<&'l ConfigSource>,
    main: &'l Path,
    files: Vec<Arc<FileResources>>,
    problems: Vec<Diagnostic>,
}

impl<'l, 'f> Loading<'l, 'f> {
    fn new(loader: &'l Loader<'f>, main: &'l Path) -> Loading<'l, 'f> {
        Loading { loader, previous: None, main, files: Vec::new(), problems: Vec::new() }
    }

    /// Adds a file. `is_file`: its text can be read again.
    fn add(&mut self, path: &Path, read: Result<(String, Format), Unreadable>, is_file: bool) {
        let mut problems = Vec::new();
        let file = match read {
            Ok((text, format)) => {
                let sha256 = sha256(text.as_bytes());
                if let Some(same) = self.unchanged(path, sha256) {
                    return self.files.push(same);
                }
                let text_kept = (!is_file).then(|| text.clone());
                let origin =
                    Origin { path: path.to_owned(), name: path.display().to_string(), format, text: text_kept };
                self.loader.file(FileResources::new(origin, sha256), text, &mut problems)
            }
            Err(Unreadable { text, error }) => {
                problems.push(*error);
                FileResources::unreadable(path, text)
            }
        };
        remove_repeated(&mut problems);
        let index = self.files.len();
        self.problems.extend(problems.into_iter().map(|problem| problem.in_file(index)));
        self.files.push(Arc::new(file));
    }

    /// Returns the previous version of a file, if it is the same and would have the same errors.
    fn unchanged(&self, path: &Path, sha256: [u8; 32]) -> Option<Arc<FileResources>> {
        let same = |file: &&Arc<FileResources>| file.origin.path == path && file.sha256 == sha256;
        let file = self.previous?.files().iter().find(same)?;
        let is_set = |(name, value): (&String, &Option<_>)| (self.loader.env)(name) == *value;
        (file.variables.iter().all(is_set) && file.has_modules(self.main)).then(|| file.clone())
    }

    fn finish(mut self) -> (Vec<PathBuf>, Result<Loaded, Diagnostics>) {
        let outlines: Vec<&Outline> = self.files.iter().map(|file| &file.outline).collect();
        outline::check(&outlines, &mut self.problems);
        let source = Arc::new(ConfigSource::new(self.main, self.files));
        let files = source.dependencies();
        let result = match source.config().filter(|_| self.problems.is_empty()) {
            Some(config) => {
                let warnings = Diagnostics::new(&*source, source.warnings());
                Ok(Loaded { config, source, warnings })
            }
            None => Err(Diagnostics::new(&*source, self.problems)),
        };
        (files, result)
    }
}

/// An error from reading a file, with the text to show it in.
#[derive(Debug)]
pub(super) struct Unreadable {
    text: String,
    error: Box<Diagnostic>,
}

impl From<Diagnostic> for Unreadable {
    fn from(error: Diagnostic) -> Unreadable {
        Unreadable { text: String::new(), error: Box::new(error) }
    }
}

/// Reads a file's text and determines its format.
fn read(path: &Path) -> Result<(String, Format), Unreadable> {
    let unnamed = || match path == Path::new("-") {
        true => Diagnostic::error(None, "standard input cannot be used here").help(
            "name a file, which is watched and reloaded; only `tollgate check -` reads standard input".to_owned(),
        ),
        false => Diagnostic::error(None, "unknown file format")
            .help("use the extension .yaml, .yml, .json or .toml".to_owned()),
    };
    let format = Format::of(path).ok_or_else(unnamed)?;
    Ok((text_of(files::open(path).map_err(unreadable)?)?, format))
}

fn unreadable(error: std::io::Error) -> Unreadable {
    Diagnostic::error(None, format!("cannot read the file: {error}")).into()
}

pub(super) fn text_of(reader: impl Read) -> Result<String, Unreadable> {
    let mut bytes = Vec::new();
    reader.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > MAX_BYTES {
        return Err(Diagnostic::error(None, format!("the file is larger than {} MiB", MAX_BYTES >> 20)).into());
    }
    let error = match String::from_utf8(bytes) {
        Ok(text) => return Ok(text),
        Err(error) => error,
    };
    // The text before the error is the same in the lossy conversion, so the location is correct.
    let at = error.utf8_error().valid_up_to();
    let span = Span::new(at, at + char::REPLACEMENT_CHARACTER.len_utf8());
    let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
    Err(Unreadable { text, error: Box::new(Diagnostic::error(span, "this is not UTF-8")) })
}

/// Reads a file other than a configuration, such as test cases, into a tree with locations. Only the syntax is checked;
/// environment variables are not expanded.
pub fn read_tree(path: &Path) -> Result<Source, Diagnostics> {
    let fail = |source: Source, problems| Diagnostics::new(&Arc::new(source), problems);
    let (text, format) = match read(path) {
        Ok(read) => read,
        Err(Unreadable { text, error }) => return Err(fail(Source::new(path, text), vec![*error])),
    };
    let mut source = Source::new(path, text);
    match tree(source.text(), format) {
        Ok(ParseResult { node, problems }) if problems.is_empty() => {
            source.set_root(node);
            Ok(source)
        }
        Ok(ParseResult { problems, .. }) | Err(problems) => Err(fail(source, problems)),
    }
}

/// Removes duplicates: two schema keywords may report the same error (`pattern` and `format`).
fn remove_repeated(problems: &mut Vec<Diagnostic>) {
    let mut seen = std::collections::HashSet::new();
    problems.retain(|d| seen.insert((d.span, d.message.clone())));
}

/// Reports a value that the schema accepts but the model does not. There are few cases, such as `2.0` for a whole
/// number.
fn refused(source: &Source, pointer: &str, error: &serde_path_to_error::Error<serde_json::Error>) -> Diagnostic {
    let mut pointer = pointer.to_owned();
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
