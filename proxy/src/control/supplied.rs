//! Builds the configuration in effect: the files, and the listeners and filters that sources supply.
//!
//! All that has changed is built together. If that fails, the resources to blame are left out, so that the others take
//! effect; a candidate is replaced by the resource that was accepted before it.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    changes::Changes,
    snapshot::{BuildMode, Built, Compiled, Input, SnapshotBuilder},
    store::{FieldError, Key, Kind, Sha256, SourceId},
};
use crate::{
    config::{Diagnostics, FileResources, Loaded, Severity, Supplied},
    snapshot::Snapshot,
    wasm::CompiledModule,
};

/// A listener or a filter of a source, as a part of a configuration.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) key: Key,
    /// The source, or one of its files.
    pub(crate) source: SourceId,
    pub(crate) sha256: Sha256,
    /// The resource.
    pub(crate) file: Arc<FileResources>,
    pub(crate) state: PartState,
}

/// Whether a part is accepted.
#[derive(Debug, Clone)]
pub(crate) enum PartState {
    Accepted,
    /// It is not, or not yet. With the part that was accepted before.
    Candidate(Option<Box<Part>>),
}

impl Part {
    pub(crate) fn is_candidate(&self) -> bool {
        matches!(self.state, PartState::Candidate(_))
    }

    /// The part itself if it is accepted, else the one that was accepted before.
    pub(crate) fn accepted(self) -> Option<Part> {
        match self.state {
            PartState::Accepted => Some(self),
            PartState::Candidate(before) => before.map(|before| *before),
        }
    }
}

/// A part with its errors.
pub(crate) type RefusedPart = (Part, Vec<FieldError>);

/// The next configuration.
pub(crate) struct Next {
    pub(crate) built: Built,
    /// The differences to the running one.
    pub(crate) changes: Changes,
    /// The parts in it.
    pub(crate) parts: Vec<Part>,
    /// The parts that are left out.
    pub(crate) refused: Vec<RefusedPart>,
    /// How long it took to read the files, if they were read for it.
    pub(crate) load_time: Option<Duration>,
    /// How long the build took.
    pub(crate) build_time: Duration,
}

/// What the next configuration is built from, apart from parts.
pub(crate) struct Base<'b> {
    pub(crate) builder: &'b SnapshotBuilder,
    pub(crate) files: Loaded,
    /// Modules of the files' filters that were compiled before.
    pub(crate) modules: Option<&'b [Arc<CompiledModule>]>,
    pub(crate) version: u64,
    pub(crate) previous: Option<&'b Snapshot>,
    pub(crate) mode: BuildMode,
}

impl Base<'_> {
    /// Whether the files are the running ones, and all modules, certificates and keys too. What sources have changed does
    /// not count.
    pub(crate) fn is_running(&self) -> bool {
        let same = |previous: &Snapshot| self.has_same_files(previous) && previous.is_made_of(&previous.effective);
        self.previous.is_some_and(same)
    }

    fn has_same_files(&self, previous: &Snapshot) -> bool {
        previous.loaded.hash() == self.files.hash()
    }

    /// Whether a build differs from what runs: in the files, or in its resources.
    pub(crate) fn is_changed_by(&self, next: &Next) -> bool {
        !next.changes.list.is_empty() || !self.previous.is_some_and(|previous| self.has_same_files(previous))
    }

    /// Builds the next configuration.
    ///
    /// # Errors The files have errors.
    pub(crate) fn next(&self, parts: Vec<Part>) -> Result<Next, Diagnostics> {
        let start = Instant::now();
        let (mut parts, mut refused) = (self.without_taken_names(parts), Vec::new());
        let compiled = RefCell::default();
        loop {
            // Always the same order, so that filters that share a VM keep their instances.
            parts.sort_by(|one, other| one.key.cmp(&other.key));
            let wrong = match self.build(&parts, self.mode, &compiled) {
                Ok(built) => {
                    let changes = self.previous.map_or_else(Changes::default, |old| Changes::of_built(old, &built));
                    let build_time = start.elapsed();
                    return Ok(Next { built, changes, parts, refused, load_time: None, build_time });
                }
                Err(wrong) => wrong,
            };
            let blamed = self.blame(&parts, &wrong, &compiled);
            if blamed.is_empty() {
                return Err(wrong);
            }
            for (index, errors) in blamed.into_iter().rev() {
                let part = parts.remove(index);
                parts.extend(part.clone().accepted().filter(|_| part.is_candidate()));
                refused.push((part, errors));
            }
        }
    }

    /// Drops parts whose names the files have: the files win.
    fn without_taken_names(&self, mut parts: Vec<Part>) -> Vec<Part> {
        let names = |kind: Kind| -> HashSet<&str> {
            let config = &self.files.config;
            match kind {
                Kind::Listener => config.listeners.iter().map(|listener| listener.name.as_str()).collect(),
                _ => config.filters.iter().map(|filter| filter.name.as_str()).collect(),
            }
        };
        let (listeners, filters) = (names(Kind::Listener), names(Kind::Filter));
        parts.retain(|part| {
            let taken = if part.key.kind == Kind::Listener { &listeners } else { &filters };
            !taken.contains(&*part.key.name)
        });
        parts
    }

    fn build(&self, parts: &[Part], mode: BuildMode, compiled: &Compiled) -> Result<Built, Diagnostics> {
        let effective = self.effective(parts)?;
        let (files, modules, version) = (self.files.clone(), self.modules, self.version);
        self.builder.build_from(Input { files, effective, modules, compiled, version }, self.previous, mode)
    }

    fn effective(&self, parts: &[Part]) -> Result<Loaded, Diagnostics> {
        let supplied = |part: &Part| Supplied { file: part.file.clone(), is_accepted: !part.is_candidate() };
        let supplied: Vec<_> = parts.iter().map(supplied).collect();
        self.files.with(&supplied, self.previous.map(|previous| &*previous.effective.source))
    }

    /// Returns the parts to leave out, by their index, with their errors. Candidates are blamed rather than what is
    /// accepted.
    fn blame(&self, parts: &[Part], wrong: &Diagnostics, compiled: &Compiled) -> BTreeMap<usize, Vec<FieldError>> {
        let located = self.located(parts.len(), wrong);
        if !parts.iter().any(Part::is_candidate) {
            return located;
        }
        let mut blamed: BTreeMap<usize, Vec<FieldError>> = BTreeMap::new();
        for (index, errors) in &located {
            if parts[*index].is_candidate() {
                blamed.entry(*index).or_default().extend(errors.iter().cloned());
                continue;
            }
            // An accepted listener has errors only because of another filter.
            let chain = parts[*index].file.listeners.iter().flat_map(|listener| &listener.value.chain);
            for name in chain {
                let is_used = |part: &Part| part.key.kind == Kind::Filter && *part.key.name == **name;
                let filter = parts.iter().position(|part| part.is_candidate() && is_used(part));
                filter.iter().for_each(|filter| {
                    blamed.entry(*filter).or_default().extend(errors.iter().cloned());
                });
            }
        }
        if !blamed.is_empty() {
            return blamed;
        }
        // The errors have other places, such as a filter that shares its VM.
        let (candidates, mut good): (Vec<usize>, Vec<usize>) =
            (0..parts.len()).partition(|index| parts[*index].is_candidate());
        let attempt = |indices: &[usize]| {
            let some: Vec<Part> = indices.iter().map(|index| parts[*index].clone()).collect();
            self.build(&some, BuildMode::Trial, compiled).map(drop)
        };
        if let Err(wrong) = attempt(&good) {
            let located = self.located(good.len(), &wrong);
            return located.into_iter().map(|(nth, errors)| (good[nth], errors)).collect();
        }
        let faulty = faulty(&candidates, &mut good, &attempt);
        blamed.extend(faulty.into_iter().map(|(index, wrong)| (index, all_errors(&wrong))));
        if blamed.is_empty() {
            // Only together with their sockets or with more instances.
            blamed.extend(candidates.into_iter().map(|index| (index, all_errors(wrong))));
        }
        blamed
    }

    /// Returns the parts in which there are errors.
    fn located(&self, parts: usize, wrong: &Diagnostics) -> BTreeMap<usize, Vec<FieldError>> {
        let files = self.files.source.files().len();
        let mut located: BTreeMap<usize, Vec<FieldError>> = BTreeMap::new();
        for (error, diagnostic) in errors(wrong) {
            if let Some(index) = diagnostic.checked_sub(files).filter(|index| *index < parts) {
                located.entry(index).or_default().push(error);
            }
        }
        located
    }
}

/// Finds the faulty ones of some candidates in few attempts, by halving them until each of those that fail is alone. `good`
/// works, and gets the others.
fn faulty<E>(
    candidates: &[usize],
    good: &mut Vec<usize>,
    attempt: &impl Fn(&[usize]) -> Result<(), E>,
) -> Vec<(usize, E)> {
    let mut all = [good, candidates].concat();
    all.sort_unstable();
    let error = match attempt(&all) {
        Ok(()) => {
            *good = all;
            return Vec::new();
        }
        Err(error) => error,
    };
    match candidates {
        [] => Vec::new(),
        [one] => vec![(*one, error)],
        several => {
            let (first, second) = several.split_at(several.len() / 2);
            let mut found = faulty(first, good, attempt);
            found.extend(faulty(second, good, attempt));
            found
        }
    }
}

fn all_errors(wrong: &Diagnostics) -> Vec<FieldError> {
    errors(wrong).map(|(error, _)| error).collect()
}

/// Iterates over the errors, with the indices of their files.
fn errors(wrong: &Diagnostics) -> impl Iterator<Item = (FieldError, usize)> {
    let errors = wrong.iter().filter(|diagnostic| diagnostic.severity == Severity::Error);
    errors.map(|diagnostic| {
        let help = diagnostic.help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
        (FieldError { field: String::new(), message: format!("{}{help}", diagnostic.message) }, diagnostic.file)
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn few_faulty_candidates_among_many_are_found_in_few_attempts() {
        let attempts = Cell::new(0);
        let attempt = |indices: &[usize]| {
            attempts.set(attempts.get() + 1);
            assert!(indices.is_sorted());
            // 7 works only without 900, which is tried later.
            let has = |index| indices.contains(&index);
            if has(13) || has(600) || has(7) && has(900) { Err(indices.len()) } else { Ok(()) }
        };
        let (candidates, mut good) = ((0..1000).collect::<Vec<_>>(), vec![2000]);
        let found: Vec<_> = faulty(&candidates, &mut good, &attempt).into_iter().map(|(index, _)| index).collect();
        assert_eq!((found, good.len()), (vec![13, 600, 900], 998));
        assert!(attempts.get() < 70, "{}", attempts.get());
    }
}
