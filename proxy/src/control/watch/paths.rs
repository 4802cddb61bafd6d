//! The paths to watched files: every step that the kernel takes from `/` to a file, through each symbolic link. A file
//! may have changed when one of its steps has.

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::OsString,
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use crate::config::{Dependencies, SearchedFolder};

/// The maximum number of links that Linux follows in one path (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// The object at one step of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PathStep {
    /// Nothing that is visible.
    Nothing,
    /// A symbolic link and its target.
    Link(PathBuf),
    /// A directory.
    Folder(Inode),
    /// A file, or any other object at the end of a path.
    File(Inode, Content),
}

/// Distinguishes a file from another one with the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Inode {
    device: u64,
    number: u64,
}

/// Distinguishes the contents of a file before and after a write, by its size and the times of its last changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Content {
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// All steps of the paths to some files.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct WatchedPaths {
    /// The steps, keyed by path without links.
    steps: BTreeMap<PathBuf, PathStep>,
    /// Directories that are searched for files, by paths without links.
    folders: Vec<SearchedFolder>,
}

impl WatchedPaths {
    /// Resolves the paths to these files.
    pub(super) fn to(wanted: &Dependencies) -> WatchedPaths {
        let mut ways = WatchedPaths::default();
        wanted.files.iter().for_each(|file| _ = ways.follow(file));
        for folder in &wanted.folders {
            let Some(path) = ways.follow(&folder.path) else { continue };
            let folder = folder.at(path);
            if ways.folders.contains(&folder) {
                continue;
            }
            // An unreadable directory is reported when the configuration is loaded.
            let entries = folder.entries().unwrap_or_default();
            entries.iter().for_each(|name| _ = ways.follow(&folder.path.join(name)));
            ways.folders.push(folder);
        }
        ways
    }

    /// Adds the steps to one file. Returns the path without links if it is a directory.
    fn follow(&mut self, path: &Path) -> Option<PathBuf> {
        // Without a working directory, relative paths cannot be resolved.
        let path = &std::path::absolute(path).ok()?;
        let mut is_folder = true;
        let mut left: VecDeque<OsString> = parts(path).collect();
        let (mut here, mut links) = (PathBuf::from("/"), 0);
        while let Some(name) = left.pop_front() {
            if name == ".." {
                here.pop();
                continue;
            }
            let place = here.join(&name);
            let step = self.steps.get(&place).cloned().unwrap_or_else(|| PathStep::at(&place));
            match &step {
                PathStep::Link(target) if links < MOST_LINKS => {
                    links += 1;
                    if target.is_absolute() {
                        here = PathBuf::from("/");
                    }
                    parts(target).rev().for_each(|part| left.push_front(part));
                }
                PathStep::Folder(_) => here.clone_from(&place),
                PathStep::Link(_) | PathStep::Nothing | PathStep::File(..) => left.clear(),
            }
            is_folder = matches!(step, PathStep::Folder(_) | PathStep::Link(_));
            self.steps.insert(place, step);
        }
        is_folder.then_some(here)
    }

    /// Iterates over the directories that are searched for files.
    pub(super) fn folders(&self) -> impl Iterator<Item = &SearchedFolder> {
        self.folders.iter()
    }

    /// Iterates over the steps.
    pub(super) fn steps(&self) -> impl Iterator<Item = (&Path, &PathStep)> {
        self.steps.iter().map(|(path, step)| (path.as_path(), step))
    }

    /// Returns the files that were written in place: the same inode as before, with other contents.
    pub(super) fn written_since<'w>(&'w self, before: &'w WatchedPaths) -> impl Iterator<Item = &'w Path> {
        let is_written = |path: &Path, inode: &Inode, content: &Content| match before.steps.get(path) {
            Some(PathStep::File(same, old)) => same == inode && old != content,
            _ => false,
        };
        self.steps().filter_map(move |(path, step)| match step {
            PathStep::File(inode, content) if is_written(path, inode, content) => Some(path),
            _ => None,
        })
    }
}

impl PathStep {
    fn at(path: &Path) -> PathStep {
        let Ok(meta) = fs::symlink_metadata(path) else { return PathStep::Nothing };
        let inode = Inode { device: meta.dev(), number: meta.ino() };
        match meta.file_type() {
            kind if kind.is_symlink() => fs::read_link(path).map_or(PathStep::Nothing, PathStep::Link),
            kind if kind.is_dir() => PathStep::Folder(inode),
            _ => PathStep::File(inode, Content::of(&meta)),
        }
    }
}

impl Content {
    fn of(meta: &Metadata) -> Content {
        Content {
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// Returns the names in a path, including `..`: behind a link, it refers to another directory than the text suggests.
fn parts(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn to(files: [PathBuf; 1]) -> WatchedPaths {
        WatchedPaths::to(&Dependencies { files: files.into(), folders: Vec::new() })
    }

    /// Returns the steps below a directory, relative to it.
    fn steps(root: &Path, file: &str) -> Vec<(String, PathStep)> {
        let ways = to([root.join(file)]);
        let below = ways.steps().filter_map(|(path, step)| {
            Some((path.strip_prefix(root).ok()?.to_str()?.to_owned(), step.clone()))
                .filter(|(path, _)| !path.is_empty())
        });
        below.collect()
    }

    fn names(root: &Path, file: &str) -> Vec<String> {
        steps(root, file).into_iter().map(|(name, _)| name).collect()
    }

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        (dir, root)
    }

    #[test]
    fn every_link_of_a_config_map_is_a_step() {
        let (_dir, root) = folder();
        fs::create_dir(root.join("..1")).unwrap();
        fs::write(root.join("..1/config.yaml"), "").unwrap();
        symlink("..1", root.join("..data")).unwrap();
        symlink("..data/config.yaml", root.join("config.yaml")).unwrap();
        assert_eq!(names(&root, "config.yaml"), ["..1", "..1/config.yaml", "..data", "config.yaml"]);
    }

    #[test]
    fn links_within_the_target_of_a_link_are_steps_too() {
        let (_dir, root) = folder();
        fs::create_dir_all(root.join("releases/7")).unwrap();
        fs::write(root.join("releases/7/x"), "").unwrap();
        symlink(root.join("releases/7"), root.join("current")).unwrap();
        symlink("current", root.join("live")).unwrap();
        fs::create_dir(root.join("etc")).unwrap();
        symlink("../live/x", root.join("etc/x")).unwrap();
        let all = ["current", "etc", "etc/x", "live", "releases", "releases/7", "releases/7/x"];
        assert_eq!(names(&root, "etc/x"), all);
    }

    #[test]
    fn up_from_a_link_is_up_from_where_it_leads() {
        let (_dir, root) = folder();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/x"), "").unwrap();
        symlink("a/b", root.join("link")).unwrap();
        assert_eq!(names(&root, "link/../x"), ["a", "a/b", "a/x", "link"]);
    }

    #[test]
    fn a_way_ends_where_there_is_nothing_and_a_circle_ends() {
        let (_dir, root) = folder();
        assert_eq!(steps(&root, "not/yet/there"), [("not".to_owned(), PathStep::Nothing)]);
        symlink("b", root.join("a")).unwrap();
        symlink("a", root.join("b")).unwrap();
        assert_eq!(names(&root, "a"), ["a", "b"]);
    }

    #[test]
    fn a_file_that_was_written_to_is_told_from_one_that_was_replaced() {
        let (_dir, root) = folder();
        let file = root.join("x");
        fs::write(&file, "1").unwrap();
        let ways = || to([file.clone()]);
        let before = ways();
        assert_eq!(before, ways());
        fs::write(&file, "22").unwrap();
        let written = ways();
        assert_eq!(written.written_since(&before).collect::<Vec<_>>(), [file.as_path()]);
        fs::write(root.join("y"), "333").unwrap();
        fs::rename(root.join("y"), &file).unwrap();
        let replaced = ways();
        assert_ne!(replaced, written);
        assert_eq!(replaced.written_since(&written).count(), 0);
    }
}
