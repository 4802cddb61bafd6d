//! Loads a configuration from its files or from a text: the steps, in order.

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    check,
    diagnostic::{Diagnostic, Diagnostics},
    env::Lookup,
    include::{self, Dependencies, SearchedFolder},
    model::Config,
    node::Span,
    outline,
    parse::{Format, tree},
    resources::{ConfigSource, FileResources, Origin},
    source::{Source, resolve},
    tree::ParseResult,
};
use crate::{
    digest::{hex, sha256},
    files,
};

/// The maximum file size. No real configuration is larger, and every value takes memory.
const MAX_BYTES: usize = 16 << 20;

/// A configuration without errors.
#[derive(Clone, Debug)]
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
    /// returns what the result depends on, even if the configuration has errors.
    pub fn reload(&self, path: &Path, previous: Option<&ConfigSource>) -> (Dependencies, Result<Loaded, Diagnostics>) {
        let previous = previous.map_or(&[][..], ConfigSource::files);
        let previous = previous.iter().map(|file| (&*file.origin.path, file)).collect();
        let mut loading = Loading { previous, ..Loading::new(self, path) };
        loading.main(read(path), true);
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
        loading.main(read, false);
        loading.finish().1
    }
}

/// The state of a load.
struct Loading<'l, 'f> {
    loader: &'l Loader<'f>,
    /// The files of the previous load.
    previous: HashMap<&'l Path, &'l Arc<FileResources>>,
    main: &'l Path,
    files: Vec<Arc<FileResources>>,
    folders: Vec<SearchedFolder>,
    included: HashSet<PathBuf>,
    /// Included files that do not exist.
    missing: Vec<PathBuf>,
    problems: Vec<Diagnostic>,
}

impl<'l, 'f> Loading<'l, 'f> {
    fn new(loader: &'l Loader<'f>, main: &'l Path) -> Loading<'l, 'f> {
        Loading {
            loader,
            previous: HashMap::new(),
            main,
            files: Vec::new(),
            folders: Vec::new(),
            included: HashSet::new(),
            missing: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// Adds the main file.
    fn main(&mut self, read: Result<(String, Format), Unreadable>, is_file: bool) {
        let text = read.as_ref().ok().filter(|_| !is_file).map(|(text, _)| text.clone());
        self.add(Origin { text, ..Origin::new(self.main, None) }, read);
    }

    /// Adds a file.
    fn add(&mut self, origin: Origin, read: Result<(String, Format), Unreadable>) {
        let mut problems = Vec::new();
        let file = match read {
            Ok((text, format)) => {
                let sha256 = sha256(text.as_bytes());
                if let Some(same) = self.unchanged(&origin, sha256) {
                    return self.files.push(same);
                }
                let previous = self.version_before(&origin);
                let file = FileResources::new(Origin { format, ..origin }, sha256);
                let mut file = check::check(file, text, &self.loader.env, &self.loader.foreign, &mut problems);
                if let Some(previous) = previous {
                    file.share(previous);
                }
                file
            }
            Err(Unreadable { text, error }) => {
                problems.push(*error);
                FileResources::new(Origin { text: Some(text), ..origin }, [0; 32])
            }
        };
        if problems.is_empty() && file.warnings.is_empty() {
            // Errors across files are rare; they are located by reading the text again.
            file.close();
        }
        remove_repeated(&mut problems);
        let index = self.files.len();
        self.problems.extend(problems.into_iter().map(|problem| problem.in_file(index)));
        self.files.push(Arc::new(file));
    }

    /// Returns the previous version of a file.
    fn version_before(&self, origin: &Origin) -> Option<&'l Arc<FileResources>> {
        let file = self.previous.get(&*origin.path).copied();
        file.filter(|file| file.origin.included_from == origin.included_from)
    }

    /// Returns the previous version of a file, if it is the same and would have the same errors.
    fn unchanged(&self, origin: &Origin, sha256: [u8; 32]) -> Option<Arc<FileResources>> {
        let file = self.version_before(origin).filter(|file| file.sha256 == sha256)?;
        let is_set = |(name, value): (&String, &Option<_>)| (self.loader.env)(name) == *value;
        (file.variables.iter().all(is_set) && file.has_modules(self.main)).then(|| file.clone())
    }

    /// Adds the files that the main file includes.
    fn includes(&mut self) {
        let Some(main) = self.files.first().cloned() else { return };
        let dir = self.main.parent().unwrap_or(Path::new(""));
        for (pattern, span) in &main.includes {
            let refuse = |problems: &mut Vec<Diagnostic>, message: String, help: Option<String>| {
                problems.push(Diagnostic::error(*span, message).help(help));
            };
            match include::expand(dir, pattern) {
                Ok(found) => {
                    self.folders.extend(found.folders);
                    for file in found.files {
                        if let Err(message) = self.include(dir, &file, found.has_wildcard) {
                            refuse(&mut self.problems, message, None);
                        }
                    }
                }
                Err((message, help)) => refuse(&mut self.problems, message, help),
            }
        }
    }

    /// Adds a file that a pattern names. An error is a message about the pattern.
    fn include(&mut self, dir: &Path, file: &Path, by_wildcard: bool) -> Result<(), String> {
        let path = resolve(dir, file);
        if is_same(&path, self.main) {
            // `*.yaml` may stand in the directory of the main file.
            return if by_wildcard { Ok(()) } else { Err("a file cannot include itself".to_owned()) };
        }
        if !by_wildcard && !path.exists() {
            let message = format!("there is no file `{}`", path.display());
            // It may appear.
            self.missing.push(path);
            return Err(message);
        }
        // Several patterns may match one file.
        if self.included.insert(path.clone()) {
            let from = file.parent().unwrap_or(Path::new("")).to_path_buf();
            self.add(Origin::new(&path, Some(from)), read(&path));
        }
        Ok(())
    }

    fn finish(mut self) -> (Dependencies, Result<Loaded, Diagnostics>) {
        self.includes();
        let outlines: Vec<_> = self.files.iter().map(|file| &file.outline).enumerate().collect();
        outline::check(&outlines, &mut self.problems);
        let source = Arc::new(ConfigSource::new(self.main, self.files, self.folders));
        let mut dependencies = source.dependencies();
        dependencies.files.extend(self.missing);
        let result = match source.config().filter(|_| self.problems.is_empty()) {
            Some(config) => {
                let warnings = Diagnostics::new(&*source, source.warnings());
                Ok(Loaded { config, source, warnings })
            }
            None => Err(Diagnostics::new(&*source, self.problems)),
        };
        (dependencies, result)
    }
}

/// Whether two paths lead to one file. Only paths with the same name are resolved.
fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    one.file_name() == other.file_name() && identity(one).is_some_and(|one| Some(one) == identity(other))
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
    let mut seen = HashSet::new();
    problems.retain(|d| seen.insert((d.span, d.message.clone())));
}

impl std::fmt::Debug for Loader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader").finish_non_exhaustive()
    }
}
