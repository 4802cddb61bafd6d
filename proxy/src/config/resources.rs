//! What a loaded configuration keeps of its files: the resources, with hashes and places. The texts and value trees are
//! dropped; to locate a later error, the text is read again.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    diagnostic::{Diagnostic, Texts},
    filter_errors::{self, Answer, Reported},
    include::{Dependencies, SearchedFolder},
    load::text_of,
    model::{Cluster, Config, Filter, Listener},
    node::Span,
    outline::Outline,
    parse::{Format, Variables},
    redact::Redactor,
    source::{self, Location, Source},
};
use crate::{builtins, digest::sha256, files};

/// A listener, a filter or a cluster of a file.
#[derive(Debug)]
pub struct Resource<T> {
    /// The resource.
    pub value: Arc<T>,
    /// A hash of the expanded value. Comments and layout do not affect it; the values of environment variables do.
    pub sha256: [u8; 32],
    /// The location in the file.
    pub span: Span,
    /// The line in the file, starting at 1.
    pub line: usize,
}

/// A file of a configuration, and its resources.
#[derive(Debug)]
pub struct FileResources {
    /// The SHA-256 of the file's bytes.
    pub sha256: [u8; 32],
    /// The listeners, in the order of the file. A file with errors has no resources.
    pub listeners: Vec<Resource<Listener>>,
    /// The filters, in the order of the file.
    pub filters: Vec<Resource<Filter>>,
    /// The clusters, in the order of the file.
    pub clusters: Vec<Resource<Cluster>>,
    /// Everything else that the main file sets, with a hash; `None` for an included file.
    pub(super) bootstrap: Option<Box<(Config, [u8; 32])>>,
    pub(super) origin: Origin,
    /// The patterns of `include` in the main file.
    pub(super) includes: Vec<(String, Span)>,
    /// The environment variables that the file refers to.
    pub(super) variables: Variables,
    /// Values that contain environment variables: their JSON pointers, and the text as written.
    pub(super) references: Vec<(String, String)>,
    /// The names that the file defines and refers to.
    pub(super) outline: Outline,
    /// The modules and TLS files that the file refers to.
    pub(super) dependencies: Vec<PathBuf>,
    pub(super) warnings: Vec<Diagnostic>,
    /// The value of a source's resource as it was written, with short forms expanded.
    pub(super) written: Option<serde_json::Value>,
    /// The text, while errors are located in it.
    pub(super) open: Mutex<Option<Arc<Source>>>,
}

/// Where a file's text is from.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) path: PathBuf,
    /// The path for display.
    pub(super) name: String,
    /// The directory of an included file, as seen from the main file's; `None` for the main file.
    pub(super) included_from: Option<PathBuf>,
    pub(super) format: Format,
    /// The text, if it cannot be read again.
    pub(super) text: Option<String>,
    /// Whether it is not a file, but a resource of a source. Its text is not kept.
    pub(super) is_supplied: bool,
}

/// The files of a configuration: the main file, and those that it includes.
#[derive(Debug, Default)]
pub struct ConfigSource {
    pub(super) files: Vec<Arc<FileResources>>,
    /// The directories that the patterns of `include` search.
    pub(super) folders: Vec<SearchedFolder>,
    pub(super) dir: PathBuf,
    /// Replaces the values of environment variables in messages.
    redactor: Redactor,
}

impl Origin {
    pub(super) fn new(path: &Path, included_from: Option<PathBuf>) -> Origin {
        let (path, name) = (path.to_owned(), path.display().to_string());
        Origin { path, name, included_from, format: Format::Yaml, text: None, is_supplied: false }
    }
}

impl FileResources {
    /// A file whose resources are not known yet.
    pub(super) fn new(origin: Origin, sha256: [u8; 32]) -> FileResources {
        FileResources {
            sha256,
            listeners: Vec::new(),
            filters: Vec::new(),
            clusters: Vec::new(),
            bootstrap: None,
            origin,
            includes: Vec::new(),
            variables: Variables::new(),
            references: Vec::new(),
            outline: Outline::unknown(),
            dependencies: Vec::new(),
            warnings: Vec::new(),
            written: None,
            open: Mutex::default(),
        }
    }

    /// Takes the values of resources that have not changed from a previous version, so that several versions in memory
    /// share them.
    pub(super) fn share(&mut self, previous: &FileResources) {
        share(&mut self.listeners, &previous.listeners);
        share(&mut self.filters, &previous.filters);
        share(&mut self.clusters, &previous.clusters);
    }

    /// Replaces the values of environment variables in a message.
    pub fn conceal(&self, message: &mut String) {
        Redactor::of(&self.variables).conceal(message);
    }

    /// Whether the modules exist.
    pub(super) fn has_modules(&self, main: &Path) -> bool {
        let dir = main.parent().unwrap_or(Path::new(""));
        let mut modules = self.filters.iter().map(|filter| &filter.value.wasm);
        modules.all(|wasm| builtins::name(wasm).is_some() || source::resolve(dir, wasm).is_file())
    }

    /// Returns the name of the file.
    pub fn name(&self) -> &str {
        &self.origin.name
    }

    /// Returns the name of a source's resource, and its value as it was written; `None` for a file.
    pub fn supplied(&self) -> Option<(&str, &serde_json::Value)> {
        Some((self.name(), self.written.as_ref()?))
    }

    /// Returns the text as it was when the file was loaded; `None` if it has changed since.
    fn open(&self) -> Option<Arc<Source>> {
        if self.origin.is_supplied {
            return None;
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.is_none() {
            let text = match &self.origin.text {
                Some(text) => text.clone(),
                None => text_of(files::open(&self.origin.path).ok()?)
                    .ok()
                    .filter(|text| sha256(text.as_bytes()) == self.sha256)?,
            };
            let (format, variables) = (self.origin.format, self.variables.clone());
            *open = Some(Arc::new(Source::again(&self.origin.path, text, format, variables)));
        }
        open.clone()
    }

    pub(super) fn close(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Returns the number of entries of a section.
    fn count(&self, section: &str) -> usize {
        match section {
            "listeners" => self.listeners.len(),
            "filters" => self.filters.len(),
            "clusters" => self.clusters.len(),
            _ => 0,
        }
    }

    /// Returns an entry of a section in words.
    fn entry(&self, section: &str, index: usize) -> Option<String> {
        match section {
            "listeners" => Some(format!("listener `{}`", self.listeners.get(index)?.value.name)),
            "filters" => Some(format!("filter `{}`", self.filters.get(index)?.value.name)),
            "clusters" => Some(format!("cluster `{}`", self.clusters.get(index)?.value.name)),
            _ => None,
        }
    }
}

/// What is written alike in the same file has the same value.
fn share<T>(resources: &mut [Resource<T>], previous: &[Resource<T>]) {
    let previous: HashMap<_, _> = previous.iter().map(|resource| (resource.sha256, &resource.value)).collect();
    for resource in resources {
        if let Some(same) = previous.get(&resource.sha256) {
            resource.value = Arc::clone(same);
        }
    }
}

/// A JSON pointer to an entry of a section or into it, such as `/filters/1/config`.
struct EntryPointer<'p> {
    section: &'p str,
    index: usize,
    /// The rest, with its slash.
    rest: &'p str,
}

impl<'p> EntryPointer<'p> {
    fn parse(pointer: &'p str) -> Option<EntryPointer<'p>> {
        let (section, after) = pointer.strip_prefix('/')?.split_once('/')?;
        let (index, rest) = after.split_at(after.find('/').unwrap_or(after.len()));
        Some(EntryPointer { section, index: index.parse().ok()?, rest })
    }

    fn with(&self, index: usize) -> String {
        format!("/{}/{index}{}", self.section, self.rest)
    }
}

impl ConfigSource {
    pub(super) fn new(main: &Path, files: Vec<Arc<FileResources>>, folders: Vec<SearchedFolder>) -> ConfigSource {
        let redactor = Redactor::of(files.iter().flat_map(|file| &file.variables));
        let dir = main.parent().unwrap_or(Path::new("")).to_path_buf();
        ConfigSource { redactor, dir, files, folders }
    }

    /// The same configuration with other files, of which the main file is the first one.
    pub(super) fn with(&self, files: Vec<Arc<FileResources>>) -> ConfigSource {
        let source = ConfigSource::new(Path::new(""), files, self.folders.clone());
        ConfigSource { dir: self.dir.clone(), ..source }
    }

    /// Returns the name of the main file.
    pub fn name(&self) -> &str {
        self.name_of(0)
    }

    /// Returns the main file's directory, to which paths are relative.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the files. The first one is the main file.
    pub fn files(&self) -> &[Arc<FileResources>] {
        &self.files
    }

    /// Returns the hashes of the clusters, in the order of the configuration.
    pub fn cluster_hashes(&self) -> impl Iterator<Item = [u8; 32]> {
        self.files.iter().flat_map(|file| &file.clusters).map(|cluster| cluster.sha256)
    }

    /// Returns the hashes of the listeners, in the order of the configuration.
    pub fn listener_hashes(&self) -> impl Iterator<Item = [u8; 32]> {
        self.files.iter().flat_map(|file| &file.listeners).map(|listener| listener.sha256)
    }

    /// Returns a hash of the settings outside the lists of resources.
    pub fn settings_hash(&self) -> [u8; 32] {
        self.files.first().and_then(|file| file.bootstrap.as_ref()).map_or([0; 32], |bootstrap| bootstrap.1)
    }

    /// Returns the configuration; `None` if the main file has errors.
    pub(super) fn config(&self) -> Option<Config> {
        let mut config = self.files.first()?.bootstrap.as_ref()?.0.clone();
        for file in &self.files {
            config.listeners.extend(file.listeners.iter().map(|listener| listener.value.clone()));
            config.filters.extend(file.filters.iter().map(|filter| filter.value.clone()));
            config.clusters.extend(file.clusters.iter().map(|cluster| cluster.value.clone()));
        }
        Some(config)
    }

    /// Returns the warnings about each file.
    pub(super) fn warnings(&self) -> Vec<Diagnostic> {
        let all = self.files.iter().enumerate();
        all.flat_map(|(nth, file)| file.warnings.iter().map(move |warning| warning.clone().in_file(nth))).collect()
    }

    /// Returns a hash of all values. It does not depend on the file that contains a resource.
    pub(super) fn hash(&self) -> [u8; 32] {
        let bootstrap = self.files.iter().filter_map(|file| Some(file.bootstrap.as_ref()?.1));
        let mut all: Vec<u8> = bootstrap.flatten().collect();
        let mut section = |hashes: &mut dyn Iterator<Item = [u8; 32]>| {
            all.extend(hashes.flatten());
            // Marks the end.
            all.push(0);
        };
        section(&mut self.files.iter().flat_map(|file| file.listeners.iter().map(|listener| listener.sha256)));
        section(&mut self.files.iter().flat_map(|file| file.filters.iter().map(|filter| filter.sha256)));
        section(&mut self.files.iter().flat_map(|file| file.clusters.iter().map(|cluster| cluster.sha256)));
        sha256(&all)
    }

    /// Returns what the configuration depends on.
    pub fn dependencies(&self) -> Dependencies {
        let own = |file: &FileResources| (!file.origin.is_supplied).then(|| file.origin.path.clone());
        let of = |file: &Arc<FileResources>| own(file).into_iter().chain(file.dependencies.clone());
        Dependencies { files: self.files.iter().flat_map(of).collect(), folders: self.folders.clone() }
    }

    /// Resolves a path of the configuration. Relative paths are relative to the main file's directory; those that an
    /// included file contains were made so when it was loaded.
    pub fn resolve(&self, path: impl AsRef<Path>) -> PathBuf {
        source::resolve(&self.dir, path)
    }

    /// Replaces values that contain environment variables, which may be secrets, by the text as written. A value that
    /// is not found in the same place is assumed to be part of the enclosing value.
    pub fn mask(&self, config: &mut serde_json::Value) {
        for (index, file) in self.files.iter().enumerate() {
            for (pointer, written) in &file.references {
                let pointer = self.global(index, pointer);
                let mut place = pointer.as_str();
                while !place.is_empty() && config.pointer(place).is_none() {
                    place = place.rsplit_once('/').map_or("", |(around, _)| around);
                }
                if let Some(value) = config.pointer_mut(place) {
                    *value = written.as_str().into();
                }
            }
        }
    }

    /// Locates the value at `pointer` (a JSON pointer in the whole configuration, such as `/filters/1/config`) and,
    /// inside it, `inner` (a path such as `rules[2].match.path`; empty or `.` for the value itself). If it does not
    /// exist, the result is the deepest existing value on the path. `None`: the file has changed since it was loaded.
    pub fn locate(&self, pointer: &str, inner: &str) -> Option<Location> {
        let (file, pointer) = self.local(pointer);
        Some(self.open(file)?.locate(&pointer, inner))
    }

    /// Creates an error at the value at `pointer`; see [`ConfigSource::locate`].
    pub fn diagnostic(&self, pointer: &str, message: impl Into<String>, help: Option<String>) -> Diagnostic {
        self.diagnostic_in(pointer, "", message, help)
    }

    /// Creates an error inside the value at `pointer`; see [`ConfigSource::locate`]. If the file has changed since it
    /// was loaded, the message names the resource and the path in it instead.
    pub fn diagnostic_in(
        &self,
        pointer: &str,
        inner: &str,
        message: impl Into<String>,
        help: Option<String>,
    ) -> Diagnostic {
        let (file, local) = self.local(pointer);
        let diagnostic = match self.open(file) {
            Some(source) => source.diagnostic_in(&local, inner, message, help),
            None => Diagnostic::error(None, self.described(file, &local, inner) + &message.into()).help(help),
        };
        diagnostic.in_file(file)
    }

    /// Creates a warning at the value at `pointer`; see [`ConfigSource::locate`].
    pub fn warning(&self, pointer: &str, message: impl Into<String>) -> Diagnostic {
        Diagnostic { severity: super::Severity::Warning, ..self.diagnostic(pointer, message, None) }
    }

    /// Collects all errors of the value at `pointer`; see [`filter_errors::all_mistakes`].
    pub fn all_mistakes(
        &self,
        pointer: &str,
        who: &str,
        said: Reported,
        ask: impl FnMut(&serde_json::Value) -> Result<(), Option<Reported>>,
    ) -> Answer {
        let (file, local) = self.local(pointer);
        let Some(source) = self.open(file) else {
            let mistake = |(inner, message): (String, String)| self.diagnostic_in(pointer, &inner, message, None);
            return Answer::Mistakes(said.into_iter().map(mistake).collect());
        };
        match filter_errors::all_mistakes(&source, &local, who, said, ask) {
            Answer::Mistakes(all) => Answer::Mistakes(all.into_iter().map(|mistake| mistake.in_file(file)).collect()),
            typed => typed,
        }
    }

    /// Returns the file and the pointer in it for a pointer in the whole configuration.
    fn local(&self, pointer: &str) -> (usize, String) {
        if let Some(entry) = EntryPointer::parse(pointer) {
            let mut index = entry.index;
            for (nth, file) in self.files.iter().enumerate() {
                let count = file.count(entry.section);
                if index < count {
                    return (nth, entry.with(index));
                }
                index -= count;
            }
        }
        (0, pointer.to_owned())
    }

    /// Returns the pointer in the whole configuration for a pointer in a file.
    fn global(&self, file: usize, pointer: &str) -> String {
        let Some(entry) = EntryPointer::parse(pointer) else { return pointer.to_owned() };
        let before: usize = self.files[..file].iter().map(|file| file.count(entry.section)).sum();
        entry.with(before + entry.index)
    }

    /// Names a place in a file without its text, for the start of a message.
    fn described(&self, file: usize, pointer: &str, inner: &str) -> String {
        let entry = EntryPointer::parse(pointer);
        let named = entry.and_then(|entry| Some((self.files[file].entry(entry.section, entry.index)?, entry.rest)));
        let (mut words, path) = match named {
            Some((entry, rest)) => (format!("{entry}: "), rest),
            None => (String::new(), pointer),
        };
        let path = path.trim_start_matches('/').replace('/', ".");
        let dot = if path.is_empty() || inner.is_empty() || inner.starts_with('[') { "" } else { "." };
        if !(path.is_empty() && inner.is_empty()) {
            words.push_str(&format!("`{path}{dot}{inner}`: "));
        }
        words
    }
}

impl Texts for ConfigSource {
    fn name_of(&self, file: usize) -> &str {
        self.files.get(file).map_or("", |file| file.name())
    }

    fn open(&self, file: usize) -> Option<Arc<Source>> {
        self.files.get(file)?.open()
    }

    fn close(&self) {
        self.files.iter().for_each(|file| file.close());
    }

    fn conceal(&self, message: &mut String) {
        self.redactor.conceal(message);
    }
}

#[cfg(test)]
#[path = "tests/resources.rs"]
mod tests;
