//! Notices changed files: the configuration, the modules, and what they are symbolic links to.
//!
//! Directories are watched, not files: editors and deployment tools put a new file in the old one's place, and Kubernetes
//! swaps a link two levels up. Whatever happens there leads to one look at the contents, a moment later; whether anything
//! has changed is decided by hash.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _, event::ModifyKind};
use tokio::sync::mpsc;

/// Files are often written in several steps; they are looked at when they have been quiet for this long.
pub const QUIET: Duration = Duration::from_millis(100);

/// They are looked at after this long even if they are never quiet.
pub const LATEST: Duration = Duration::from_secs(1);

/// Watches files.
pub struct Watcher {
    watcher: RecommendedWatcher,
    watched: BTreeSet<PathBuf>,
    names: Arc<Mutex<Names>>,
    notes: mpsc::Sender<()>,
}

/// The last parts of the paths that lead to the files.
type Names = BTreeSet<OsString>;

impl Watcher {
    /// A watcher that says whenever something may have changed.
    pub fn new() -> notify::Result<(Watcher, mpsc::Receiver<()>)> {
        // One note is enough: whoever takes it looks at everything.
        let (notes, inbox) = mpsc::channel(1);
        let names = Arc::new(Mutex::new(Names::new()));
        let (of_interest, noted) = (names.clone(), notes.clone());
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|e| matters(&e, &of_interest.lock().unwrap_or_else(PoisonError::into_inner))) {
                let _ = noted.try_send(());
            }
        })?;
        Ok((Watcher { watcher, watched: BTreeSet::new(), names, notes }, inbox))
    }

    /// Watches the directories of these files, and no others.
    pub fn watch(&mut self, files: &[PathBuf]) {
        let (mut wanted, mut names) = (BTreeSet::new(), Names::new());
        for file in files {
            let way = way(file);
            wanted.extend(way.directories);
            names.extend(way.names);
        }
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) = names;
        for gone in self.watched.difference(&wanted) {
            let _ = self.watcher.unwatch(gone);
        }
        for new in wanted.difference(&self.watched) {
            match self.watcher.watch(new, RecursiveMode::NonRecursive) {
                // What has happened there until now is seen by another look.
                Ok(()) => _ = self.notes.try_send(()),
                Err(e) => tracing::warn!("changes in {} will not be noticed: {e}", new.display()),
            }
        }
        self.watched = wanted;
    }
}

/// Whether an event can have changed what the files say. Logs that are written beside them, and that the files are read
/// (which follows from each event), cannot; that a directory has other entries than before always can.
fn matters(event: &notify::Event, names: &Names) -> bool {
    match event.kind {
        EventKind::Access(_) => false,
        EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Metadata(_)) => {
            event.paths.iter().any(|path| path.file_name().is_some_and(|name| names.contains(name)))
        }
        _ => true,
    }
}

/// What can change where a path leads to.
#[derive(Debug, Default)]
struct Way {
    /// The path's own directory (or what there is of it), and that of each link on the way.
    directories: Vec<PathBuf>,
    /// The names of the file and of the links.
    names: Vec<OsString>,
}

fn way(file: &Path) -> Way {
    let mut found = Way::default();
    let mut path = file.to_owned();
    // More links than this are a circle.
    for _ in 0..16 {
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
        // A directory may be a link itself, as in `..data/config.yaml`.
        let mut above = Some(parent.as_path());
        while let Some(dir) = above {
            if let Ok(target) = std::fs::read_link(dir) {
                let base = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
                found.directories.push(base.to_owned());
                found.directories.push(base.join(target));
            }
            above = dir.parent();
        }
        // One that is not there yet appears in one that is.
        let there = parent.ancestors().find(|dir| dir.is_dir());
        found.directories.extend(there.map(ToOwned::to_owned));
        found.names.extend(path.file_name().map(ToOwned::to_owned));
        match std::fs::read_link(&path) {
            Ok(target) => path = parent.join(target),
            Err(_) => break,
        }
    }
    found.directories.retain(|dir| dir.is_dir());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_link_on_the_way_counts() {
        let root = std::env::temp_dir().join(format!("tollgate-watch-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        std::fs::create_dir_all(root.join("v1")).unwrap();
        std::fs::write(root.join("v1/config.yaml"), "").unwrap();
        // As Kubernetes lays a ConfigMap out.
        std::os::unix::fs::symlink("v1", root.join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/config.yaml", root.join("config.yaml")).unwrap();
        let found = way(&root.join("config.yaml")).directories;
        assert!(found.contains(&root), "{found:?}");
        assert!(found.contains(&root.join("v1")) || found.contains(&root.join("..data")), "{found:?}");
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_log_beside_the_files_is_no_change() {
        use notify::event::{AccessKind, CreateKind, DataChange, RenameMode};
        let names = Names::from(["config.yaml".into()]);
        let matters = |kind, path: &str| matters(&notify::Event::new(kind).add_path(path.into()), &names);
        let written = EventKind::Modify(ModifyKind::Data(DataChange::Any));
        assert!(matters(written, "/etc/tollgate/config.yaml"));
        assert!(!matters(written, "/etc/tollgate/access.log"));
        assert!(!matters(EventKind::Access(AccessKind::Read), "/etc/tollgate/config.yaml"));
        assert!(matters(EventKind::Create(CreateKind::Any), "/etc/tollgate/..data"));
        assert!(matters(EventKind::Modify(ModifyKind::Name(RenameMode::To)), "/etc/tollgate/..data"));
    }
}
