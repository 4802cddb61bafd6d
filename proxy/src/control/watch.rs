//! Notices changed files: the configuration, the modules, certificates and keys, and all that leads to them.
//!
//! What is watched is every step of the [`way`] to each file, with inotify(7): the folders for what has a name there, and the
//! files for what is written to them. inotify knows inodes, not paths, so after each change on a way the watches are asked for
//! again; the system gives the same one for the same inode. Whether anything *has* changed is for others to decide, by content.
//!
//! A file that somebody writes to in its place is left alone until it is closed: half of a configuration can be a valid
//! configuration. What is renamed into its place is taken at once.
//!
//! Where the system cannot tell (no more watches, a folder that must not be read, a network's file system), the ways are looked
//! at now and then.

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
use crate::observe::target;

/// Files are often changed in several steps; they are looked at when there has been no change for this long.
const QUIET: Duration = Duration::from_millis(100);

/// They are looked at after this long even if there is always another change.
const LATEST: Duration = Duration::from_secs(1);

/// A file that is being written to is taken as it is when nothing has been written to it for this long. Closing it says sooner
/// that it is whole.
const UNCLOSED: Duration = Duration::from_secs(10);

/// A file that is written to all the time is taken as it is after this long.
const UNENDING: Duration = Duration::from_secs(300);

/// How often the ways are looked at where the system does not tell of changes.
const LOOK: Duration = Duration::from_secs(1);

/// How often they are looked at where it does: nobody tells of what happens on another machine, or of what is mounted.
const SELDOM: Duration = Duration::from_secs(120);

/// What tells of a change of a folder's entries, or of where it is.
const FOLDER: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(ITSELF);

/// What tells of what is written to a file.
const FILE: WatchFlags = WatchFlags::MODIFY.union(WatchFlags::CLOSE_WRITE).union(ITSELF);

/// What happens to anything that is watched.
const ITSELF: WatchFlags = WatchFlags::ATTRIB
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    // One inode may be several steps: one watch for all of them.
    .union(WatchFlags::MASK_ADD)
    .union(WatchFlags::DONT_FOLLOW);

/// Watches files.
pub struct Watcher {
    /// None: the system gives none.
    inotify: Option<AsyncFd<OwnedFd>>,
    files: Vec<PathBuf>,
    ways: WatchedPaths,
    watched: HashMap<i32, Watched>,
    /// When something changed, until that was told.
    touched: Option<Since>,
    /// Files that somebody is writing to.
    unclosed: BTreeMap<PathBuf, Since>,
    next_look: Instant,
    /// Why not all is watched, for those who ask for the state.
    trouble: Arc<ArcSwapOption<String>>,
}

/// What a watch is for.
#[derive(Debug)]
enum Watched {
    /// The entries of a folder that have these names.
    Folder(PathBuf, BTreeSet<OsString>),
    /// What is written to a file.
    File(PathBuf),
}

/// Of something that happens several times.
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

    /// When it is over: it has not happened for this long, or has gone on for that long.
    fn over(&self, quiet: Duration, longest: Duration) -> Instant {
        (self.last + quiet).min(self.first + longest)
    }
}

impl Watcher {
    /// A watcher that keeps `trouble` up to date. It must be made on a runtime.
    pub fn new(trouble: Arc<ArcSwapOption<String>>) -> Watcher {
        let mut watcher = Watcher {
            inotify: None,
            files: Vec::new(),
            ways: WatchedPaths::default(),
            watched: HashMap::new(),
            touched: None,
            unclosed: BTreeMap::new(),
            next_look: Instant::now() + SELDOM,
            trouble,
        };
        // With an error, the first watch tries again and says so.
        let _ = watcher.open();
        watcher
    }

    #[expect(unsafe_code, reason = "tokio has no safe way for descriptors that it has no type for")]
    fn open(&mut self) -> io::Result<()> {
        if self.inotify.is_none() {
            let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
            // SAFETY: it is owned, so it is open for as long as the `AsyncFd` has it, which never gives it away; an `OwnedFd` is
            // the same descriptor all its life.
            self.inotify = Some(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?);
        }
        Ok(())
    }

    /// Watches the ways to these files, and no others. What has changed until now is told as a change.
    pub fn watch(&mut self, files: Vec<PathBuf>) {
        self.files = files;
        self.renew(self.inotify.is_some());
    }

    /// Returns when something may have changed and can be read: nobody is writing to it, and nothing has happened for a moment.
    /// It can be dropped and called again.
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
                // What the system has to tell comes first: it may be that a file is written to.
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

    /// Whether something has changed since the last time that this was asked.
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

    /// Whether somebody is writing to a file.
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

    /// When what has changed can be read.
    fn settled_at(&self) -> Option<Instant> {
        let quiet = self.touched.as_ref()?.over(QUIET, LATEST);
        let closed = self.unclosed.values().map(|since| since.over(UNCLOSED, UNENDING)).max();
        Some(closed.map_or(quiet, |closed| closed.max(quiet)))
    }

    /// Ends the waiting for what has changed.
    fn settle(&mut self) {
        self.touched = None;
        for path in std::mem::take(&mut self.unclosed).into_keys() {
            let path = path.display();
            tracing::warn!(
                target: target::CONFIG,
                "`{path}` was written to and not seen to be closed; it is taken as it is now. A file that is renamed into its \
                 place is taken at once, and never in part"
            );
        }
    }

    fn touch(&mut self) {
        let now = Since::now();
        self.touched.get_or_insert(now).last = now.last;
    }

    /// Looks at the ways without having been told.
    fn look(&mut self) {
        self.hear();
        if self.inotify.is_some() {
            self.renew(self.touched.is_some());
        }
        if self.touched.is_some() {
            // To see when it is over.
            self.next_look = Instant::now() + LOOK;
        }
    }

    /// Finds the ways anew, and watches them. `told`: the system has told of what is different, and tells when files are closed.
    /// Whether anything was.
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

    /// Watches all steps of the ways, and nothing else.
    fn place(&mut self) {
        let mut trouble = self.open().err().map(|error| format!("no file is watched: {error}"));
        // A way that was another one a moment later.
        let mut is_gone = false;
        if let Some(inotify) = &self.inotify {
            let mut watched = HashMap::new();
            let mut failed: BTreeMap<&Path, Errno> = BTreeMap::new();
            for (path, step) in self.ways.steps() {
                let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { continue };
                // What is written is told of the folder as well: a file that is made may be written to before it has a watch.
                let entries = if matches!(step, PathStep::Folder(_)) { FOLDER } else { FOLDER.union(FILE) };
                match inotify::add_watch(inotify, folder, entries.union(WatchFlags::ONLYDIR)) {
                    Ok(watch) => {
                        let there = watched.entry(watch);
                        let there = there.or_insert_with(|| Watched::Folder(folder.to_owned(), BTreeSet::new()));
                        if let Watched::Folder(_, names) = there {
                            names.insert(name.to_owned());
                        }
                    }
                    Err(Errno::NOENT | Errno::NOTDIR) => is_gone = true,
                    Err(error) => _ = failed.insert(folder, error),
                }
                if matches!(step, PathStep::File(..)) {
                    match inotify::add_watch(inotify, path, FILE) {
                        Ok(watch) => _ = watched.insert(watch, Watched::File(path.to_owned())),
                        // Of one that cannot be read, its folder tells when it can.
                        Err(Errno::ACCESS) => {}
                        Err(Errno::NOENT) => is_gone = true,
                        Err(error) => _ = failed.insert(path, error),
                    }
                }
            }
            for old in self.watched.keys().filter(|old| !watched.contains_key(old)) {
                // Of what is gone, the watch is gone already.
                let _ = inotify::remove_watch(inotify, *old);
            }
            // What has happened until now is seen by another look.
            let is_new = watched.keys().any(|watch| !self.watched.contains_key(watch));
            self.watched = watched;
            trouble = trouble.or_else(|| {
                let (path, error) = failed.first_key_value()?;
                Some(format!("`{}` is not watched: {}", path.display(), reason(*error)))
            });
            if is_new {
                self.touch();
            }
        }
        self.next_look = Instant::now() + if trouble.is_some() || is_gone { LOOK } else { SELDOM };
        self.note(trouble);
    }

    /// Says when something cannot be watched, and when it can again.
    fn note(&self, trouble: Option<String>) {
        let before = self.trouble.load_full();
        if before.as_deref() == trouble.as_ref() {
            return;
        }
        match &trouble {
            Some(trouble) => tracing::warn!(
                target: target::CONFIG,
                "{trouble}; files are looked at once a second instead"
            ),
            None => tracing::info!(target: target::CONFIG, "all files are watched again"),
        }
        self.trouble.store(trouble.map(Arc::new));
    }

    /// Takes all that the system has to tell. Whether any of it matters.
    fn events(&mut self) -> bool {
        let Some(inotify) = self.inotify.take() else { return false };
        let (mut matters, mut is_elsewhere) = (false, false);
        let mut buffer = [const { MaybeUninit::uninit() }; 4096];
        let mut events = Reader::new(&inotify, &mut buffer);
        // An error is that there are no more.
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

    /// One event: what it means, if it matters.
    fn event(&mut self, watch: i32, what: ReadFlags, name: Option<&OsStr>) -> Option<FileChange> {
        // Some were lost.
        if what.contains(ReadFlags::QUEUE_OVERFLOW) {
            return Some(FileChange::Elsewhere);
        }
        let path = match (self.watched.get(&watch)?, name) {
            (Watched::File(path), _) => path.clone(),
            (Watched::Folder(path, names), Some(name)) if names.contains(name) => path.join(name),
            (Watched::Folder(..), Some(_)) => return None,
            (Watched::Folder(..), None) => {
                // The system has ended the watch.
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
        // A file that was just made has nothing in it yet, unless it is another name of one.
        let is_new = |meta: fs::Metadata| meta.is_file() && meta.nlink() == 1;
        if what.contains(ReadFlags::CREATE) && fs::symlink_metadata(&path).is_ok_and(is_new) {
            self.is_written(&path);
        }
        Some(FileChange::Elsewhere)
    }

    /// Somebody is writing to a file.
    fn is_written(&mut self, path: &Path) {
        let now = Since::now();
        self.unclosed.entry(path.to_owned()).or_insert(now).last = now.last;
    }
}

/// What an event means.
enum FileChange {
    /// A file has other content, or is closed.
    Written,
    /// A way may lead elsewhere.
    Elsewhere,
}

/// The system's reason for not watching, in words: of a limit it says that there is no space left.
fn reason(error: Errno) -> String {
    match error {
        Errno::NOSPC => "there can be no more watches (`fs.inotify.max_user_watches`)".to_owned(),
        error => error.to_string(),
    }
}

#[cfg(test)]
#[path = "tests/watch.rs"]
mod tests;
