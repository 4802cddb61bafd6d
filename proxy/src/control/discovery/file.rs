//! Endpoints from files, which are read again when they change. One watcher is for all of them: each needs an instance of
//! inotify(7), of which a user has few.

use std::{cell::RefCell, collections::BTreeMap, path::PathBuf, rc::Rc, sync::Arc};

use tokio::{
    sync::{Notify, watch},
    task::{spawn_blocking, spawn_local},
};

use super::watches::Reporter;
use crate::{
    config::{Dependencies, Format, model::Endpoint},
    control::{load::loader, watch::Watcher},
    digest::sha256,
    files,
};

/// The limit on a file's size in bytes, as for a configuration's files.
const MAX_BYTES: u64 = 16 << 20;

/// Tells when files may have changed.
#[derive(Clone)]
pub(super) struct Files {
    paths: Rc<Paths>,
    changes: watch::Receiver<()>,
}

/// The files to watch, with the number of their users.
#[derive(Default)]
struct Paths {
    all: RefCell<BTreeMap<PathBuf, usize>>,
    changed: Notify,
}

/// A use of a file.
struct Use {
    path: PathBuf,
    paths: Rc<Paths>,
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut all = self.paths.all.borrow_mut();
        if let Some(users) = all.get_mut(&self.path) {
            *users -= 1;
            if *users == 0 {
                all.remove(&self.path);
                self.paths.changed.notify_one();
            }
        }
    }
}

impl Files {
    /// Starts the watcher. Must be called on a `LocalSet`.
    pub(super) fn start() -> Files {
        let (paths, (tell, changes)) = (Rc::<Paths>::default(), watch::channel(()));
        let watched = paths.clone();
        spawn_local(async move {
            let mut watcher = Watcher::new(Arc::default());
            loop {
                let files = watched.all.borrow().keys().cloned().collect();
                // Before the files are read: what changes meanwhile is read again.
                watcher.watch(Dependencies { files, folders: Vec::new() });
                tell.send_replace(());
                tokio::select! {
                    () = watched.changed.notified() => {}
                    () = watcher.changed() => {}
                }
            }
        });
        Files { paths, changes }
    }

    /// Reports the endpoints of a file whenever its content changes.
    pub(super) fn watch(&self, path: PathBuf, reporter: Reporter) -> impl Future<Output = ()> + use<> {
        let Files { paths, mut changes } = self.clone();
        async move {
            *paths.all.borrow_mut().entry(path.clone()).or_default() += 1;
            paths.changed.notify_one();
            let used = Use { path: path.clone(), paths };
            let mut seen = None;
            while changes.changed().await.is_ok() {
                let file = path.clone();
                let Ok((read, state)) = spawn_blocking(move || read(file, seen)).await else { break };
                seen = state;
                match read {
                    Some(Ok(endpoints)) => reporter.answered(endpoints),
                    Some(Err(error)) => reporter.failed(error),
                    None => {}
                }
            }
            drop(used);
        }
    }
}

/// What was seen of a file: the SHA-256 of its content; `None`: it could not be read.
type Seen = Option<[u8; 32]>;

/// Reads the endpoints in a file, or returns why they cannot be used, with the place in the file. `None`: nothing has
/// changed.
fn read(path: PathBuf, seen: Option<Seen>) -> (Option<Result<Vec<Endpoint>, String>>, Option<Seen>) {
    let failed = |why: String| Some(Err(format!("{}: {why}", path.display())));
    let content = match files::read(&path, MAX_BYTES) {
        Ok(content) => content,
        // It is told once.
        Err(_) if seen == Some(None) => return (None, seen),
        Err(e) => return (failed(e.to_string()), Some(None)),
    };
    let state = Some(sha256(&content));
    if seen == Some(state) {
        return (None, seen);
    }
    let Ok(text) = String::from_utf8(content) else { return (failed("it is not UTF-8".to_owned()), Some(state)) };
    // A file that Kubernetes mounts may have any name.
    let format = Format::of(&path).unwrap_or(Format::Yaml);
    (Some(loader().endpoints(&path, text, format)), Some(state))
}
