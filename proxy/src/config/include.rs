//! `include`: patterns that name further files of a configuration, and what must be watched for them.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use glob::{MatchOptions, Pattern, PatternError};

use super::source::resolve;

/// As in a shell: a wildcard does not match the dot of a hidden file.
const OPTIONS: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// What a configuration depends on.
#[derive(Debug, Default, Clone)]
pub struct Dependencies {
    /// The files of the configuration, whether they exist or not, its modules and TLS files.
    pub files: Vec<PathBuf>,
    /// The directories that the patterns of `include` search. Entries that come and go there change the configuration.
    pub folders: Vec<SearchedFolder>,
}

impl Dependencies {
    /// Adds other dependencies.
    pub fn extend(&mut self, other: &Dependencies) {
        self.files.extend_from_slice(&other.files);
        self.folders.extend_from_slice(&other.folders);
    }
}

/// A directory that a pattern searches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchedFolder {
    /// The directory.
    pub path: PathBuf,
    names: Pattern,
}

impl SearchedFolder {
    /// The entries of a directory whose names match a pattern.
    ///
    /// # Errors The pattern is invalid.
    pub fn new(path: PathBuf, names: &str) -> Result<SearchedFolder, PatternError> {
        Ok(SearchedFolder { path, names: Pattern::new(names)? })
    }

    /// Returns the same entries of another directory.
    pub fn at(&self, path: PathBuf) -> SearchedFolder {
        SearchedFolder { path, names: self.names.clone() }
    }

    /// Whether the pattern matches the name of an entry.
    pub fn matches(&self, name: &OsStr) -> bool {
        name.to_str().is_some_and(|name| self.names.matches_with(name, OPTIONS))
    }

    /// Returns the names of the entries that the pattern matches, in order.
    ///
    /// # Errors The directory cannot be read. A missing one has no entries.
    pub fn entries(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.path) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(Vec::new());
            }
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            names.push(PathBuf::from(entry?.file_name()));
        }
        names.retain(|name| self.matches(name.as_os_str()));
        names.sort();
        Ok(names)
    }
}

/// The result of expanding a pattern.
#[derive(Debug, Default)]
pub(super) struct Expansion {
    /// Whether the pattern contains a wildcard.
    pub(super) has_wildcard: bool,
    /// The paths, relative to the main file's directory. Without a wildcard, it is not known whether the file exists.
    pub(super) files: Vec<PathBuf>,
    pub(super) folders: Vec<SearchedFolder>,
}

/// Finds the files that a pattern names, in order. `dir` is the main file's directory. An error is a message with help.
pub(super) fn expand(dir: &Path, pattern: &str) -> Result<Expansion, (String, Option<String>)> {
    if pattern.is_empty() {
        return Err(("this must not be empty".to_owned(), None));
    }
    let mut found = Expansion::default();
    // Paths from the main file's directory that match the first components.
    let mut paths = vec![PathBuf::from(if pattern.starts_with('/') { "/" } else { "" })];
    let mut components = pattern.split('/').filter(|component| !matches!(*component, "" | ".")).peekable();
    while let Some(component) = components.next() {
        if component == "**" {
            let help = "name each level of directories, such as `*/*.yaml`".to_owned();
            return Err(("`**` is not supported".to_owned(), Some(help)));
        }
        if !component.contains(['*', '?', '[']) {
            paths.iter_mut().for_each(|path| path.push(component));
            continue;
        }
        let wrong = |error: PatternError| (format!("`{component}` is not a pattern: {}", error.msg), None);
        let searched = SearchedFolder::new(PathBuf::new(), component).map_err(wrong)?;
        found.has_wildcard = true;
        let mut next = Vec::new();
        for path in paths {
            let folder = searched.at(resolve(dir, &path));
            let unreadable = |error| (format!("cannot read the directory `{}`: {error}", folder.path.display()), None);
            next.extend(folder.entries().map_err(unreadable)?.iter().map(|name| path.join(name)));
            found.folders.push(folder);
        }
        if components.peek().is_some() {
            next.retain(|path| resolve(dir, path).is_dir());
        }
        paths = next;
    }
    if found.has_wildcard {
        paths.retain(|path| resolve(dir, path).is_file());
    }
    found.files = paths;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(dir: &Path, pattern: &str) -> Vec<String> {
        let found = expand(dir, pattern).unwrap_or_else(|(wrong, _)| panic!("{wrong}"));
        found.files.iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn patterns_match_files_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["b.yaml", "a.yaml", "c.json", ".d.yaml", "x/2.yaml", "x/1.yaml", "y/3.yaml", "y/e.yaml/in"] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let absolute = format!("{}/x/*", dir.path().display());
        let of = |pattern: &str| expanded(dir.path(), pattern);
        assert_eq!(of("*.yaml"), ["a.yaml", "b.yaml"]);
        assert_eq!(of("./*.yaml"), ["a.yaml", "b.yaml"]);
        assert_eq!(of("[ab].yaml"), ["a.yaml", "b.yaml"]);
        assert_eq!(of("?.json"), ["c.json"]);
        assert_eq!(of(".*.yaml"), [".d.yaml"]);
        assert_eq!(of("*/*.yaml"), ["x/1.yaml", "x/2.yaml", "y/3.yaml"]);
        assert_eq!(of("*/1.yaml"), ["x/1.yaml"]);
        assert_eq!(of("x/../a*"), ["x/../a.yaml"]);
        assert_eq!(of(&absolute).len(), 2);
        assert_eq!(of("none/*.yaml"), [""; 0]);
        assert_eq!(of("none.yaml"), ["none.yaml"]);
        let found = expand(dir.path(), "*/*.yaml").unwrap_or_else(|(wrong, _)| panic!("{wrong}"));
        let folders: Vec<_> = found.folders.iter().map(|folder| folder.path.clone()).collect();
        assert_eq!(folders, [dir.path().to_owned(), dir.path().join("x"), dir.path().join("y")]);
        assert!(found.folders[0].matches(OsStr::new("new")) && !found.folders[1].matches(OsStr::new("new")));
    }

    #[test]
    fn wrong_patterns_are_explained() {
        for (pattern, said) in
            [("", "this must not be empty"), ("a/**", "`**` is not supported"), ("[", "`[` is not a pattern")]
        {
            let (wrong, _) = expand(Path::new(""), pattern).unwrap_err();
            assert!(wrong.starts_with(said), "{wrong}");
        }
    }
}

#[cfg(test)]
#[path = "tests/includes.rs"]
mod files_tests;
