//! Watches files for hot reload: the configuration, the modules, certificates and keys, everything on the paths to them,
//! and the directories that `include` searches.
//!
//! Every step of the [path](paths) to each file is watched with inotify(7): directories for changes of their entries,
//! files for writes. inotify watches inodes, not paths, so after each change on a path the watches are requested again;
//! the kernel returns the existing watch for the same inode. Whether anything *has* changed is decided elsewhere, by
//! content.
//!
//! A file that is written in place is left alone until it is closed: half of a configuration can be a valid
//! configuration. A file that is renamed into place is read immediately.
//!
//! Where inotify does not work (no more watches, an unreadable directory, a network file system), the paths are polled.

mod paths;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::{OsStr, OsString},
    fs, io,
    mem::MaybeUninit,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwapOption;
use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags},
    io::Errno,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, sleep_until},
};

use self::paths::{PathStep, WatchedPaths};
use crate::{
    config::{Dependencies, SearchedFolder},
    observe::target,
};

/// Files often change in several steps; they are read when there was no change for this long.
const QUIET: Duration = Duration::from_millis(100);

/// Files are read after this long even if changes continue.
const LATEST: Duration = Duration::from_secs(1);

/// A file that is open for writing is read after this long without a write. Closing it makes it readable sooner.
const UNCLOSED: Duration = Duration::from_secs(10);

/// A file that is written continuously is read after this long.
const UNENDING: Duration = Duration::from_secs(300);

/// The polling interval where inotify does not work.
const LOOK: Duration = Duration::from_secs(1);

/// The polling interval where inotify works: it does not report changes made on another machine, or mounts.
const RARE_LOOK: Duration = Duration::from_secs(120);

/// Events about the entries of a directory, or about the directory itself.
const FOLDER: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(ITSELF);

/// Events about the contents of a file.
const FILE: WatchFlags = WatchFlags::MODIFY.union(WatchFlags::CLOSE_WRITE).union(ITSELF);

/// Events about the watched inode itself.
const ITSELF: WatchFlags = WatchFlags::ATTRIB
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    // One inode may be several steps, which share one watch.
    .union(WatchFlags::MASK_ADD)
    .union(WatchFlags::DONT_FOLLOW);

/// Watches files for changes.
pub struct Watcher {
    /// `None` if the system provides no inotify.
    inotify: Option<AsyncFd<OwnedFd>>,
    files: Dependencies,
    ways: WatchedPaths,
    watched: HashMap<i32, Watched>,
    /// Set when something changed, until it is reported.
    touched: Option<Since>,
    /// Files that are open for writing.
    unclosed: BTreeMap<PathBuf, Since>,
    next_look: Instant,
    /// The reason why some files are not watched, for the admin listener.
    trouble: Arc<ArcSwapOption<String>>,
}

/// The purpose of a watch.
#[derive(Debug)]
enum Watched {
    /// Entries of a directory: those that have these names, and those that the configuration would include.
    Folder(PathBuf, BTreeSet<OsString>, Vec<SearchedFolder>),
    /// Writes to a file.
    File(PathBuf),
}

/// The first and the last time of a recurring event.
#[derive(Debug, Clone, Copy)]
struct Since {
    first: Instant,
    last: Instant,
}

impl Since {
    fn now() -> Since {
        let now = Instant::now();
        Since { first: now, last: now }
    }

    /// Returns when the event counts as ended: after it did not occur for `quiet`, or `longest` after it began.
    fn over(&self, quiet: Duration, longest: Duration) -> Instant {
        (self.last + quiet).min(self.first + longest)
    }
}

impl Watched {
    fn folder(path: &Path) -> Watched {
        Watched::Folder(path.to_owned(), BTreeSet::new(), Vec::new())
    }
}

impl Watcher {
    /// Creates a watcher that keeps `trouble` up to date. Must be called on a runtime.
    pub fn new(trouble: Arc<ArcSwapOption<String>>) -> Watcher {
        let mut watcher = Watcher {
            inotify: None,
            files: Dependencies::default(),
            ways: WatchedPaths::default(),
            watched: HashMap::new(),
            touched: None,
            unclosed: BTreeMap::new(),
            next_look: Instant::now() + RARE_LOOK,
            trouble,
        };
        // After an error, the first watch tries again and reports it.
        let _ = watcher.open();
        watcher
    }

    #[expect(unsafe_code, reason = "tokio has no safe way for descriptors that it has no type for")]
    fn open(&mut self) -> io::Result<()> {
        if self.inotify.is_none() {
            let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
            // SAFETY: the descriptor is owned, so it stays open for as long as the `AsyncFd` holds it, and the
            // `AsyncFd` never gives it away; an `OwnedFd` refers to the same descriptor for its whole life.
            self.inotify = Some(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?);
        }
        Ok(())
    }

    /// Watches the paths to these files and the entries of these directories, and no others. Earlier changes are
    /// reported as a change.
    pub fn watch(&mut self, files: Dependencies) {
        self.files = files;
        self.renew(self.inotify.is_some());
    }

    /// Returns when something may have changed and can be read: no file is being written, and nothing has happened for
    /// a moment. Cancel safe.
    pub async fn changed(&mut self) {
        loop {
            let readable = async {
                match &self.inotify {
                    Some(inotify) => _ = inotify.readable().await.map(|mut ready| ready.clear_ready()),
                    None => std::future::pending().await,
                }
            };
            let due = self.settled_at();
            tokio::select! {
                // Events come first: a file may have been opened for writing.
                biased;
                () = readable => {
                    self.hear();
                }
                () = sleep_until(due.map_or(self.next_look, |due| due.min(self.next_look))) => {
                    if Instant::now() >= self.next_look {
                        self.look();
                    } else if self.is_settled() {
                        return self.settle();
                    }
                }
            }
        }
    }

    /// Whether something has changed since the last call.
    pub fn hear(&mut self) -> bool {
        let happened = match self.inotify {
            Some(_) => self.events(),
            None => self.renew(false),
        };
        if happened {
            self.touch();
        }
        happened
    }

    /// Whether a file is being written.
    pub fn is_written_to(&self) -> bool {
        !self.unclosed.is_empty()
    }

    /// Whether something has changed and can be read.
    fn is_settled(&mut self) -> bool {
        if self.inotify.is_none() {
            self.hear();
        }
        self.settled_at().is_some_and(|at| at <= Instant::now())
    }

    /// Returns when the changes can be read.
    fn settled_at(&self) -> Option<Instant> {
        let quiet = self.touched.as_ref()?.over(QUIET, LATEST);
        let closed = self.unclosed.values().map(|since| since.over(UNCLOSED, UNENDING)).max();
        Some(closed.map_or(quiet, |closed| closed.max(quiet)))
    }

    /// Clears the recorded changes.
    fn settle(&mut self) {
        self.touched = None;
        for path in std::mem::take(&mut self.unclosed).into_keys() {
            let path = path.display();
            tracing::warn!(
                target: target::CONFIG,
                "`{path}` was written to but not closed; reading it as it is now. Replace files by renaming: a renamed \
                 file is read immediately, and never incompletely"
            );
        }
    }

    fn touch(&mut self) {
        let now = Since::now();
        self.touched.get_or_insert(now).last = now.last;
    }

    /// Checks the paths without an event.
    fn look(&mut self) {
        self.hear();
        if self.inotify.is_some() {
            self.renew(self.touched.is_some());
        }
        if self.touched.is_some() {
            // To notice when the change has ended.
            self.next_look = Instant::now() + LOOK;
        }
    }

    /// Resolves the paths again and watches them. `told`: inotify reported the change, and will report when files are
    /// closed. Returns whether any path changed.
    fn renew(&mut self, told: bool) -> bool {
        let before = std::mem::replace(&mut self.ways, WatchedPaths::to(&self.files));
        let is_other = self.ways != before;
        if is_other {
            self.touch();
        }
        if !told {
            let written: Vec<_> = self.ways.written_since(&before).map(Path::to_owned).collect();
            written.iter().for_each(|path| self.is_written(path));
        }
        self.place();
        is_other
    }

    /// Watches all steps of the paths, and nothing else.
    fn place(&mut self) {
        let mut trouble = self.open().err().map(|error| format!("cannot watch files: {error}"));
        // A path that changed a moment later.
        let mut is_gone = false;
        if let Some(inotify) = &self.inotify {
            let mut watched = HashMap::new();
            let mut failed: BTreeMap<&Path, Errno> = BTreeMap::new();
            for (path, step) in self.ways.steps() {
                let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { continue };
                // Writes are watched on the directory as well: a new file may be written before it has its own watch.
                let entries = if matches!(step, PathStep::Folder(_)) { FOLDER } else { FOLDER.union(FILE) };
                match inotify::add_watch(inotify, folder, entries.union(WatchFlags::ONLYDIR)) {
                    Ok(watch) => {
                        let there = watched.entry(watch);
                        let there = there.or_insert_with(|| Watched::folder(folder));
                        if let Watched::Folder(_, names, _) = there {
                            names.insert(name.to_owned());
                        }
                    }
                    Err(Errno::NOENT | Errno::NOTDIR) => is_gone = true,
                    Err(error) => _ = failed.insert(folder, error),
                }
                if matches!(step, PathStep::File(..)) {
                    match inotify::add_watch(inotify, path, FILE) {
                        Ok(watch) => _ = watched.insert(watch, Watched::File(path.to_owned())),
                        // The directory reports when an unreadable file becomes readable.
                        Err(Errno::ACCESS) => {}
                        Err(Errno::NOENT) => is_gone = true,
                        Err(error) => _ = failed.insert(path, error),
                    }
                }
            }
            for folder in self.ways.folders() {
                let entries = FOLDER.union(FILE).union(WatchFlags::ONLYDIR);
                match inotify::add_watch(inotify, &folder.path, entries) {
                    Ok(watch) => {
                        let there = watched.entry(watch).or_insert_with(|| Watched::folder(&folder.path));
                        if let Watched::Folder(_, _, searched) = there {
                            searched.push(folder.clone());
                        }
                    }
                    Err(Errno::NOENT | Errno::NOTDIR) => is_gone = true,
                    Err(error) => _ = failed.insert(&folder.path, error),
                }
            }
            for old in self.watched.keys().filter(|old| !watched.contains_key(old)) {
                // The watches of deleted files no longer exist.
                let _ = inotify::remove_watch(inotify, *old);
            }
            // Changes before the new watches are found by another check.
            let is_new = watched.keys().any(|watch| !self.watched.contains_key(watch));
            self.watched = watched;
            trouble = trouble.or_else(|| {
                let (path, error) = failed.first_key_value()?;
                Some(format!("cannot watch `{}`: {}", path.display(), reason(*error)))
            });
            if is_new {
                self.touch();
            }
        }
        self.next_look = Instant::now() + if trouble.is_some() || is_gone { LOOK } else { RARE_LOOK };
        self.note(trouble);
    }

    /// Logs when something cannot be watched, and when it can again.
    fn note(&self, trouble: Option<String>) {
        let before = self.trouble.load_full();
        if before.as_deref() == trouble.as_ref() {
            return;
        }
        match &trouble {
            Some(trouble) => tracing::warn!(
                target: target::CONFIG,
                "{trouble}; polling the files every second instead"
            ),
            None => tracing::info!(target: target::CONFIG, "all files are watched again"),
        }
        self.trouble.store(trouble.map(Arc::new));
    }

    /// Reads all pending events. Returns whether any of them matters.
    fn events(&mut self) -> bool {
        let Some(inotify) = self.inotify.take() else { return false };
        let (mut matters, mut is_elsewhere) = (false, false);
        let mut buffer = [const { MaybeUninit::uninit() }; 4096];
        let mut events = Reader::new(&inotify, &mut buffer);
        // An error means that there are no more.
        while let Ok(event) = events.next() {
            let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
            match self.event(event.wd(), event.events(), name) {
                Some(FileChange::Written) => matters = true,
                Some(FileChange::Elsewhere) => (matters, is_elsewhere) = (true, true),
                None => {}
            }
        }
        self.inotify = Some(inotify);
        if is_elsewhere {
            self.renew(true);
        }
        matters
    }

    /// Handles one event. Returns its meaning, if it matters.
    fn event(&mut self, watch: i32, what: ReadFlags, name: Option<&OsStr>) -> Option<FileChange> {
        // Some events were lost.
        if what.contains(ReadFlags::QUEUE_OVERFLOW) {
            return Some(FileChange::Elsewhere);
        }
        let path = match (self.watched.get(&watch)?, name) {
            (Watched::File(path), _) => path.clone(),
            (Watched::Folder(path, names, searched), Some(name))
                if names.contains(name) || searched.iter().any(|folder| folder.matches(name)) =>
            {
                path.join(name)
            }
            (Watched::Folder(..), Some(_)) => return None,
            (Watched::Folder(..), None) => {
                // The kernel has removed the watch.
                if what.contains(ReadFlags::IGNORED) {
                    self.watched.remove(&watch);
                }
                return Some(FileChange::Elsewhere);
            }
        };
        if what.contains(ReadFlags::IGNORED) {
            self.watched.remove(&watch);
            return Some(FileChange::Elsewhere);
        }
        if what.contains(ReadFlags::CLOSE_WRITE) {
            self.unclosed.remove(&path);
            return Some(FileChange::Written);
        }
        if what.contains(ReadFlags::MODIFY) {
            self.is_written(&path);
            return Some(FileChange::Written);
        }
        let replaced = ReadFlags::MOVED_TO | ReadFlags::MOVED_FROM | ReadFlags::DELETE;
        if what.intersects(replaced | ReadFlags::MOVE_SELF | ReadFlags::DELETE_SELF) {
            self.unclosed.remove(&path);
        }
        // A newly created file is empty, unless it is another name of an existing one.
        let is_new = |meta: fs::Metadata| meta.is_file() && meta.nlink() == 1;
        if what.contains(ReadFlags::CREATE) && fs::symlink_metadata(&path).is_ok_and(is_new) {
            self.is_written(&path);
        }
        Some(FileChange::Elsewhere)
    }

    /// Records a write to a file.
    fn is_written(&mut self, path: &Path) {
        let now = Since::now();
        self.unclosed.entry(path.to_owned()).or_insert(now).last = now.last;
    }
}

/// The meaning of an event.
enum FileChange {
    /// A file has other contents, or was closed.
    Written,
    /// A path may lead to another file.
    Elsewhere,
}

/// Returns the reason for a failed watch. The kernel reports an exceeded limit as "no space left".
fn reason(error: Errno) -> String {
    match error {
        Errno::NOSPC => "the limit of inotify watches is reached (`fs.inotify.max_user_watches`)".to_owned(),
        error => error.to_string(),
    }
}

#[cfg(test)]
#[path = "tests/watch.rs"]
mod tests;
