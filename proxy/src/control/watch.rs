//! Notices changed files: the configuration, the modules, and what they are symbolic links to.
//!
//! Directories are watched, not files: editors and deployment tools put a new file in the old one's place, and Kubernetes
//! swaps a link two levels up. Whatever happens there leads to one look at the contents, a moment later; whether anything
//! has changed is decided by hash.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

/// Files are often written in several steps; they are looked at when they have been quiet for this long.
pub const QUIET: Duration = Duration::from_millis(100);

/// Watches files.
pub struct Watcher {
    watcher: RecommendedWatcher,
    watched: BTreeSet<PathBuf>,
}

impl Watcher {
    /// A watcher that says whenever something may have changed.
    pub fn new() -> notify::Result<(Watcher, mpsc::Receiver<()>)> {
        // One note is enough: whoever takes it looks at everything.
        let (notes, inbox) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading a file is an event too, and reading is what follows from an event.
            if event.is_ok_and(|e| !e.kind.is_access()) {
                let _ = notes.try_send(());
            }
        })?;
        Ok((Watcher { watcher, watched: BTreeSet::new() }, inbox))
    }

    /// Watches the directories of these files, and no others.
    pub fn watch(&mut self, files: &[PathBuf]) {
        let wanted: BTreeSet<PathBuf> = files.iter().flat_map(|file| directories(file)).collect();
        for gone in self.watched.difference(&wanted) {
            let _ = self.watcher.unwatch(gone);
        }
        for new in wanted.difference(&self.watched) {
            if let Err(e) = self.watcher.watch(new, RecursiveMode::NonRecursive) {
                tracing::warn!("changes in {} will not be noticed: {e}", new.display());
            }
        }
        self.watched = wanted;
    }
}

/// The directories in which a change can change what a path leads to: its own, and that of each link on the way.
fn directories(file: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut path = file.to_owned();
    // More links than this are a circle.
    for _ in 0..16 {
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
        // A directory may be a link itself, as in `..data/config.yaml`.
        let mut above = Some(parent.as_path());
        while let Some(dir) = above {
            if let Ok(target) = std::fs::read_link(dir) {
                let base = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
                found.push(base.to_owned());
                found.push(base.join(target));
            }
            above = dir.parent();
        }
        found.push(parent.clone());
        match std::fs::read_link(&path) {
            Ok(target) => path = parent.join(target),
            Err(_) => break,
        }
    }
    found.retain(|dir| dir.is_dir());
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
        let found = directories(&root.join("config.yaml"));
        assert!(found.contains(&root), "{found:?}");
        assert!(found.contains(&root.join("v1")) || found.contains(&root.join("..data")), "{found:?}");
        std::fs::remove_dir_all(&root).unwrap();
    }
}
