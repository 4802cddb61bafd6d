//! The configuration in effect: the files, and the listeners and filters that sources supply.
//!
//! A listener or filter of a source is represented as a file with one resource. So it is checked together with the others
//! and built like them, and the file of a later error names it.

use std::{collections::HashSet, path::Path, sync::Arc};

use serde_json::{Value, json};

use super::{
    diagnostic::Diagnostics,
    load::Loaded,
    node::Span,
    outline::{self, Outline},
    paths,
    resources::{ConfigSource, FileResources, Origin, Resource},
};

impl FileResources {
    /// A resource of a source, which is not known yet.
    pub(super) fn of_source(sha256: [u8; 32]) -> FileResources {
        let origin = Origin::new(Path::new(""), None);
        FileResources::new(Origin { is_supplied: true, ..origin }, sha256)
    }

    /// Names the source that supplies the resource.
    pub fn supplied_by(mut self, source: &str) -> FileResources {
        self.origin.name = format!("source `{source}`");
        self
    }

    /// A filter that its file or source no longer has, although a listener of a source uses it. `nth`: its index in `of`.
    fn lingering(nth: usize, of: &FileResources, source: &ConfigSource) -> FileResources {
        let Resource { value, sha256, span: _, line } = &of.filters[nth];
        let mut lingering = FileResources::of_source(*sha256);
        lingering.origin.name.clone_from(&of.origin.name);
        lingering.outline = Outline::of_filter(&value.name);
        lingering.dependencies = paths::module(value).map(|path| source.resolve(path)).into_iter().collect();
        lingering.written = of.written.clone();
        lingering.variables = of.variables.clone();
        let place = format!("/filters/{nth}/");
        let own = |(pointer, text): &(String, String)| {
            Some((format!("/filters/0/{}", pointer.strip_prefix(&place)?), text.clone()))
        };
        lingering.references = of.references.iter().filter_map(own).collect();
        let (value, span) = (value.clone(), Span::default());
        lingering.filters.push(Resource { value, sha256: *sha256, span, line: *line });
        lingering
    }
}

/// A listener or a filter of a source.
pub struct Supplied {
    /// The resource.
    pub file: Arc<FileResources>,
    /// Whether it is accepted. If it clashes with one that is not, the other one has the error.
    pub is_accepted: bool,
}

impl Loaded {
    /// Adds resources of sources, in this order. Filters that are missing although an accepted listener uses them are taken
    /// from `previous`, the configuration in effect: a filter goes with its last listener.
    ///
    /// # Errors Two resources have the same name or address, or a listener names a filter that does not exist. The index of
    /// the file is that of the resource, after the files.
    pub fn with(&self, supplied: &[Supplied], previous: Option<&ConfigSource>) -> Result<Loaded, Diagnostics> {
        if supplied.is_empty() {
            return Ok(self.clone());
        }
        let of_files = self.source.files.len();
        let supplied_files = supplied.iter().map(|supplied| &supplied.file);
        let mut files: Vec<_> = self.source.files.iter().chain(supplied_files).cloned().collect();
        let filters = files.iter().flat_map(|file| &file.filters).map(|filter| filter.value.name.clone());
        let mut known: HashSet<String> = filters.collect();
        let accepted = supplied.iter().filter(|supplied| supplied.is_accepted);
        let listeners = accepted.flat_map(|supplied| &supplied.file.listeners);
        for name in listeners.flat_map(|listener| &listener.value.chain) {
            let find = |source: &ConfigSource| {
                source.files.iter().find_map(|file| {
                    let nth = file.filters.iter().position(|filter| filter.value.name == *name)?;
                    Some(FileResources::lingering(nth, file, source))
                })
            };
            if !known.contains(name)
                && let Some(lingering) = previous.and_then(find)
            {
                known.insert(name.clone());
                files.push(Arc::new(lingering));
            }
        }
        let mut outlines: Vec<_> = files.iter().map(|file| &file.outline).enumerate().collect();
        let is_candidate = |index: usize| {
            index.checked_sub(of_files).and_then(|nth| supplied.get(nth)).is_some_and(|supplied| !supplied.is_accepted)
        };
        outlines.sort_by_key(|(index, _)| is_candidate(*index));
        let mut problems = Vec::new();
        outline::check(&outlines, &mut problems);
        let source = Arc::new(self.source.with(files));
        match source.config().filter(|_| problems.is_empty()) {
            Some(config) => Ok(Loaded { config, source, warnings: self.warnings.clone() }),
            None => Err(Diagnostics::new(&*source, problems)),
        }
    }

    /// Returns the files' configuration for display (see [`shown`](Self::shown)), and the listeners and filters that were
    /// added to it.
    pub fn shown_apart(&self, files: &Loaded) -> (Value, Value) {
        let mut shown = self.shown();
        let mut apart = |section: &str, of_files: usize| match shown.get_mut(section) {
            Some(Value::Array(all)) => all.split_off(of_files.min(all.len())),
            _ => Vec::new(),
        };
        let listeners = apart("listeners", files.config.listeners.len());
        let filters = apart("filters", files.config.filters.len());
        (shown, json!({ "listeners": listeners, "filters": filters }))
    }
}
