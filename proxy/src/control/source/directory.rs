//! The directory source: reads the files of a directory, and again those that change.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{sync::mpsc, time::Instant};

use super::status::SourceStatus;
use crate::{
    config::{Dependencies, Format, SearchedFolder},
    control::watch::Watcher,
    digest::sha256,
    files,
};

/// The limit on a file's size in bytes, as for a configuration's files.
const MAX_BYTES: u64 = 16 << 20;

/// The files of a directory that have changed.
#[derive(Debug)]
pub struct Listing {
    /// The source's name.
    pub source: Arc<str>,
    /// By the file's path.
    pub files: Vec<(PathBuf, FileState)>,
    /// When the change was seen.
    pub arrived: Instant,
}

/// What has become of a file.
#[derive(Debug, PartialEq, Eq)]
pub enum FileState {
    /// It is new, or has changed.
    Text(String, Format),
    /// It is gone.
    Gone,
}

/// The reader of a source's directory. It runs as a task of a `LocalSet`.
pub struct DirectoryReader {
    dir: PathBuf,
    status: Arc<SourceStatus>,
    out: mpsc::Sender<Listing>,
    watcher: Watcher,
    seen: Seen,
}

/// The files that were read, with their SHA-256.
type Seen = HashMap<PathBuf, [u8; 32]>;

impl DirectoryReader {
    /// Creates the reader of a source. Must be called on a runtime.
    pub fn new(dir: PathBuf, status: Arc<SourceStatus>, out: mpsc::Sender<Listing>) -> DirectoryReader {
        DirectoryReader { dir, status, out, watcher: Watcher::new(Arc::default()), seen: Seen::new() }
    }

    /// Reads until the receiver of the listings is dropped.
    pub async fn run(mut self) {
        loop {
            // Before reading: what changes meanwhile is read again.
            self.watch();
            let (dir, seen) = (self.dir.clone(), std::mem::take(&mut self.seen));
            let Ok((result, seen)) = tokio::task::spawn_blocking(move || scan(&dir, seen)).await else { return };
            self.seen = seen;
            match result {
                Ok(Scan { changed: files, unreadable }) => {
                    let is_changed = !files.is_empty();
                    let listing = Listing { source: self.status.name().clone(), files, arrived: Instant::now() };
                    if is_changed && self.out.send(listing).await.is_err() {
                        return;
                    }
                    match unreadable {
                        Some(why) => self.status.failed(why),
                        None => self.status.succeeded(is_changed),
                    }
                }
                Err(e) => self.status.failed(format!("cannot read {}: {e}", self.dir.display())),
            }
            tokio::select! {
                () = self.watcher.changed() => {}
                () = self.out.closed() => return,
            }
        }
    }

    fn watch(&mut self) {
        let folder = SearchedFolder::new(self.dir.clone(), "*");
        let files = self.seen.keys().cloned().chain([self.dir.clone()]).collect();
        self.watcher.watch(Dependencies { files, folders: folder.into_iter().collect() });
    }
}

/// The result of reading a directory.
#[derive(Debug)]
struct Scan {
    /// What has changed.
    changed: Vec<(PathBuf, FileState)>,
    /// Why a file cannot be read. What was read of it before stays.
    unreadable: Option<String>,
}

/// Returns what has changed, and what was seen now. If the directory cannot be read, nothing has changed: what was read
/// before stays.
fn scan(dir: &Path, mut seen: Seen) -> (io::Result<Scan>, Seen) {
    let listed = match list(dir) {
        Ok(listed) => listed,
        Err(e) => return (Err(e), seen),
    };
    let (mut changed, mut unreadable) = (Vec::new(), None);
    for (path, format) in &listed {
        let text = match files::read(path, MAX_BYTES).map(String::from_utf8) {
            Ok(Ok(text)) => text,
            Ok(Err(_)) => {
                unreadable.get_or_insert_with(|| format!("{} is not UTF-8", path.display()));
                continue;
            }
            // It has just gone.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => {
                unreadable.get_or_insert_with(|| format!("cannot read {}: {e}", path.display()));
                continue;
            }
        };
        let hash = sha256(text.as_bytes());
        if seen.insert(path.clone(), hash) != Some(hash) {
            changed.push((path.clone(), FileState::Text(text, *format)));
        }
    }
    let gone: Vec<_> = seen.keys().filter(|path| !listed.iter().any(|(listed, _)| listed == *path)).cloned().collect();
    for path in gone {
        seen.remove(&path);
        changed.push((path, FileState::Gone));
    }
    (Ok(Scan { changed, unreadable }), seen)
}

/// Returns the files of a directory that are read, in the order of their names.
fn list(dir: &Path) -> io::Result<Vec<(PathBuf, Format)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if let Some(format) = Format::of(&path).filter(|_| !is_hidden && !path.is_dir()) {
            files.push((path, format));
        }
    }
    files.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(changed: &[(PathBuf, FileState)]) -> Vec<String> {
        let name = |(path, state): &(PathBuf, FileState)| {
            let name = path.file_name().unwrap().to_str().unwrap();
            if *state == FileState::Gone { format!("-{name}") } else { name.to_owned() }
        };
        changed.iter().map(name).collect()
    }

    #[test]
    fn files_are_read_when_they_come_change_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        put("b.yaml", "1");
        put("a.json", "2");
        put(".hidden.yaml", "3");
        put("readme.txt", "4");
        let (changed, seen) = scan(dir.path(), Seen::new());
        assert_eq!(names(&changed.unwrap().changed), ["a.json", "b.yaml"]);
        let (changed, seen) = scan(dir.path(), seen);
        assert_eq!(names(&changed.unwrap().changed), [""; 0]);
        put("b.yaml", "5");
        fs::remove_file(dir.path().join("a.json")).unwrap();
        let (changed, seen) = scan(dir.path(), seen);
        assert_eq!(names(&changed.unwrap().changed), ["b.yaml", "-a.json"]);
        assert_eq!(seen.len(), 1);
    }

    #[test]
    fn unreadable_directory_takes_nothing_away() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), "1").unwrap();
        let (_, seen) = scan(dir.path(), Seen::new());
        let (changed, seen) = scan(&dir.path().join("gone"), seen);
        assert!(changed.is_err() && seen.len() == 1);
    }

    #[test]
    fn unreadable_file_stays_as_it_was_and_does_not_affect_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &[u8]| fs::write(dir.path().join(name), text).unwrap();
        put("a.yaml", b"1");
        put("b.yaml", b"1");
        let (_, seen) = scan(dir.path(), Seen::new());
        put("a.yaml", b"2");
        put("b.yaml", b"\xff");
        put("c.yaml", b"2");
        let (result, seen) = scan(dir.path(), seen);
        let Scan { changed, unreadable } = result.unwrap();
        assert_eq!((names(&changed), seen.len()), (vec!["a.yaml".to_owned(), "c.yaml".to_owned()], 3));
        assert!(unreadable.is_some_and(|why| why.contains("b.yaml is not UTF-8")));
    }
}
