//! Hot reload: collects reload requests, loads the configuration, delivers it to the workers, and reports the outcome.
//!
//! Reloading is a separate task on the control thread, so signals, failed filters and the admin listener never wait for
//! it. When the process stops, the task is dropped and a load in progress is abandoned.

mod pinned;
mod sources;

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    rc::Rc,
    sync::{Arc, atomic},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{
    change::{Order, ReloadAttempt, ReloadOutcome, ReloadRequest},
    diff,
    history::AppliedVersion,
    load::reload,
    pin::Pending,
    resources::Occasion,
    rollout::Rollout,
    snapshot::{BuildMode, Built, SnapshotBuilder},
    status::Status,
    supplied::{Base, Next, Part},
    threads::{self, Urgency},
    watch::Watcher,
};
use crate::{
    config::{Dependencies, Diagnostics, model},
    listener::socket::{self, AddressClaim},
    observe::target,
    snapshot::Snapshot,
};

/// The cause of reloads that the file watcher triggers.
const BY_FILE: &str = "file";

/// Keeps the running configuration equal to the files.
pub(crate) struct Reloader {
    pub(crate) path: PathBuf,
    /// The configuration that the process was started with.
    pub(crate) running: model::Config,
    pub(crate) builder: Arc<SnapshotBuilder>,
    /// How sources' listeners open sockets during the start.
    pub(crate) claim: AddressClaim,
    pub(crate) rollout: Rollout,
    pub(crate) status: Rc<Status>,
    pub(crate) watcher: Watcher,
    pub(crate) changes: mpsc::Receiver<ReloadRequest>,
    /// The errors in the files, if they were rejected.
    pub(crate) refusal: Option<String>,
    /// The time until which the other half of a change is waited for.
    pub(crate) patience: Option<Instant>,
    /// The number of consecutive loads that were abandoned.
    pub(crate) given_up: u32,
}

/// How long a certificate may be without its key, or a key without its certificate, before that is an error.
const PATIENCE: Duration = Duration::from_secs(10);

/// The maximum number of consecutive loads that are abandoned because files changed meanwhile.
const MOST_GIVEN_UP: u32 = 3;

/// The result of loading.
struct Load {
    /// What to watch, whether it is valid or not.
    files: Dependencies,
    /// The next configuration, or `None` if the files match the running one.
    built: Result<Option<Next>, Diagnostics>,
}

impl Reloader {
    /// Applies the configuration that the process was started with, and what sources supplied to an earlier process.
    pub(crate) async fn start(&mut self, built: Built) -> Arc<Snapshot> {
        let snapshot = self.rollout.apply(built).await;
        self.watcher.watch(snapshot.files.clone());
        self.status.record(AppliedVersion::new(&snapshot, "start", None, None));
        self.status.note("start", ReloadOutcome::Applied(snapshot.version));
        // Before a predecessor ends, so that no connection to these listeners is refused.
        self.apply_sources().await;
        self.status.started.store(true, atomic::Ordering::Relaxed);
        self.claim = AddressClaim::Sole;
        self.status.current.load_full().unwrap_or(snapshot)
    }

    /// Reloads until all requesters are gone.
    pub(crate) async fn run(mut self) {
        loop {
            // While a file is being written, the watcher reports when that has ended.
            let patience = self.patience.filter(|_| !self.watcher.is_written_to());
            let first = tokio::select! {
                () = self.watcher.changed() => None,
                // The other half did not arrive.
                () = sleep_until(patience.unwrap_or_else(Instant::now)), if patience.is_some() => None,
                () = self.rollout.resources.need_a_build() => {
                    self.apply_sources().await;
                    continue;
                }
                change = self.changes.recv() => match change {
                    Some(change) => Some(change),
                    None => return,
                },
            };
            let Some(first) = first else {
                self.change(BY_FILE).await;
                self.apply_sources().await;
                continue;
            };
            let mut waiting = VecDeque::from([first]);
            while let Ok(change) = self.changes.try_recv() {
                waiting.push_back(change);
            }
            while let Some(first) = waiting.pop_front() {
                self.obey(first, &mut waiting).await;
            }
            self.apply_sources().await;
        }
    }

    /// Carries out a request, and those behind it that ask for the same.
    ///
    /// One load serves all of them: it sees the files as they are now, so the newest change wins. A requester that arrives
    /// during a load gets another one, since that load may have read the files too early.
    async fn obey(&mut self, first: ReloadRequest, waiting: &mut VecDeque<ReloadRequest>) {
        let (order, mut cause) = (first.order, first.cause);
        let mut requesters = vec![first.done];
        while let Some(same) = waiting.pop_front_if(|next| next.order == order) {
            cause = same.cause;
            requesters.push(same.done);
        }
        let attempt = match order {
            Order::Reload => self.change(cause).await,
            Order::Rollback(version) => Some(self.roll_back(version, cause).await),
            Order::Resume => self.resume(cause).await,
        };
        if let Some(attempt) = attempt {
            requesters.into_iter().flatten().for_each(|done| _ = done.send(attempt.clone()));
        }
        if matches!(order, Order::Rollback(_)) {
            // Finds out what the files would change, and watches them.
            self.change(BY_FILE).await;
        }
    }

    /// Tries to apply the files. Returns `None` if there is nothing to report.
    async fn change(&mut self, cause: &'static str) -> Option<ReloadAttempt> {
        let load = self.load(cause).await?;
        let before = self.refusal.take();
        let patience = self.patience.take();
        let result = match (self.status.pinned(), load) {
            (Some(pinned), Ok(Load { built: Ok(pending), .. })) => self.hold(pinned, pending, cause)?,
            (None, Ok(Load { built: Ok(Some(next)), .. })) => self.replace(next, cause, None).await,
            (None, Ok(Load { built: Ok(None), .. })) => {
                if before.is_some() {
                    tracing::info!(
                        target: target::CONFIG,
                        cause, "the files match the running configuration again"
                    );
                } else if cause == BY_FILE {
                    return None;
                } else {
                    tracing::info!(target: target::CONFIG, cause, "the configuration is unchanged");
                }
                ReloadOutcome::Unchanged
            }
            (_, Ok(Load { built: Err(wrong), .. })) => {
                self.forget_trial();
                self.status.set_pending(Some(Pending::errors(wrong.to_json())));
                let text = wrong.render(false);
                let is_known = before.as_ref() == Some(&text);
                if cause == BY_FILE && !is_known && wrong.are_passing() {
                    let end = patience.unwrap_or_else(|| Instant::now() + PATIENCE);
                    if Instant::now() < end {
                        let said = wrong.iter().map(|wrong| wrong.message.as_str()).collect::<Vec<_>>().join("; ");
                        tracing::info!(target: target::CONFIG, "waiting for the other half of a change: {said}");
                        (self.patience, self.refusal) = (Some(end), before);
                        return None;
                    }
                }
                if !(is_known && cause == BY_FILE) {
                    tracing::error!(
                        target: target::CONFIG,
                        "configuration rejected (source: {cause}); the running configuration is unchanged:\n{}", text.trim_end()
                    );
                }
                self.refusal = Some(text);
                // Files are checked for many reasons; the same errors are logged once.
                if is_known && cause == BY_FILE {
                    return None;
                }
                ReloadOutcome::Refused(wrong.to_string(), wrong.to_json())
            }
            (_, Err(e)) => {
                self.forget_trial();
                tracing::error!(target: target::CONFIG, cause, "cannot load the configuration: {e}");
                self.refusal = Some(e.clone());
                ReloadOutcome::Refused(e.clone(), serde_json::Value::String(e))
            }
        };
        Some(self.status.note(cause, result))
    }

    /// Loads the files and watches the paths to them. Returns `None` if they changed on disk meanwhile: they may have
    /// been read during a write, and will be read again afterwards.
    async fn load(&mut self, cause: &'static str) -> Option<Result<Load, String>> {
        self.watcher.hear();
        // A write began after the watcher's report; the watcher will report its end as well.
        if cause == BY_FILE && self.watcher.is_written_to() && self.given_up < MOST_GIVEN_UP {
            self.given_up += 1;
            return None;
        }
        let (builder, path, previous) = (self.builder.clone(), self.path.clone(), self.status.current.load_full());
        let before = previous.clone();
        // Opens no sockets for files that are not applied.
        let mode = match self.status.pinned() {
            Some(_) => BuildMode::Trial,
            None => BuildMode::Full(AddressClaim::Sole),
        };
        let mut parts = self.rollout.resources.plan(Occasion::Files).await.unwrap_or_default();
        if mode == BuildMode::Trial {
            parts = parts.into_iter().filter_map(Part::accepted).collect();
        }
        let work = move || load_change(&builder, &path, parts, before.as_deref(), mode);
        let load = match tokio::task::spawn_blocking(move || threads::at_work(Urgency::Reload, work)).await {
            Ok(Ok(load)) => Ok(load),
            Ok(Err(e)) => Err(e.to_string()),
            Err(e) => Err(e.to_string()),
        };
        let has_changed = self.watcher.hear();
        // Whatever the result is: the paths to the files may have changed, and a rejected configuration may become
        // valid as soon as one of its modules exists.
        let mut wanted = load.as_ref().map_or_else(|_| Dependencies::default(), |load| load.files.clone());
        previous.iter().for_each(|previous| wanted.extend(&previous.files));
        self.watcher.watch(wanted);
        if has_changed && cause == BY_FILE && self.given_up < MOST_GIVEN_UP {
            self.given_up += 1;
            drop(load);
            self.forget_trial();
            return None;
        }
        self.given_up = 0;
        Some(load)
    }

    /// Removes the metrics of a configuration that was not applied.
    fn forget_trial(&self) {
        if let Some(current) = self.status.current.load_full() {
            self.builder.forget_unused(&current);
        }
    }

    /// Applies other files, and logs the consequences. `rollback_to`: the version that is applied again.
    async fn replace(&mut self, next: Next, cause: &'static str, rollback_to: Option<u64>) -> ReloadOutcome {
        let Next { built, changes, parts, refused, load_time, build_time } = next;
        // What sources have changed meanwhile is built next.
        self.rollout.resources.commit(parts, refused, false).await;
        let Snapshot { loaded, warnings, .. } = &*built.snapshot;
        loaded
            .warnings
            .iter()
            .chain(warnings.iter())
            .for_each(|w| tracing::warn!(target: target::CONFIG, "{}", w.message));
        let start = Instant::now();
        let new = self.take_over(built).await;
        tracing::info!(
            target: target::CONFIG,
            cause, version = new.version, hash = new.hash, changes = changes.line(),
            new_instances = changes.new_instances(), new_settings = changes.new_settings(),
            load_ms = load_time.map(milliseconds), build_ms = milliseconds(build_time), apply_ms = milliseconds(start.elapsed()),
            "configuration applied"
        );
        self.status.record(AppliedVersion::new(&new, cause, Some(&changes), rollback_to));
        ReloadOutcome::Applied(new.version)
    }

    /// Replaces the running snapshot, and logs what becomes of the sockets.
    async fn take_over(&mut self, built: Built) -> Arc<Snapshot> {
        let old = self.status.current.load_full();
        if let Some(old) = &old {
            let said = diff::restarts(&self.running, &old.effective.config, &built.snapshot.effective.config);
            said.iter().for_each(|warning| tracing::warn!(target: target::CONFIG, "{warning}"));
        }
        let new = self.rollout.apply(built).await;
        self.watcher.watch(new.files.clone());
        if let Some(old) = &old {
            for (name, path, mode) in diff::permissions(&old.effective.config, &new.effective.config) {
                match socket::set_mode(path, mode) {
                    Ok(()) => tracing::info!(
                        target: target::LISTENER,
                        "listener `{name}`: permissions of {} set to {mode}", path.display()
                    ),
                    Err(e) => tracing::warn!(
                        target: target::LISTENER,
                        "listener `{name}`: cannot set the permissions of {}: {e}", path.display()
                    ),
                }
            }
        }
        if let Some(old) = &old {
            let (before, now) = (diff::places(&old.effective.config), diff::places(&new.effective.config));
            for (name, address, text) in &now {
                if !before.iter().any(|(n, a, _)| n == name && a == address) {
                    tracing::info!(target: target::LISTENER, "listener `{name}` on {text}");
                }
            }
            for (name, address, text) in &before {
                if !now.iter().any(|(n, a, _)| n == name && a == address) {
                    tracing::info!(
                        target: target::LISTENER,
                        "listener `{name}` no longer on {text}: draining its connections"
                    );
                }
            }
        }
        new
    }
}

/// A duration for the log, with one decimal place.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

/// Loads the files and builds a snapshot with what sources supply, if it differs from the running one.
fn load_change(
    builder: &SnapshotBuilder,
    path: &Path,
    parts: Vec<Part>,
    previous: Option<&Snapshot>,
    mode: BuildMode,
) -> Load {
    let start = Instant::now();
    let (files, loaded) = reload(path, previous.map(|previous| &*previous.loaded.source));
    let load_time = Some(start.elapsed());
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(wrong) => return Load { files, built: Err(wrong) },
    };
    let version = previous.map_or(1, |previous| previous.version + 1);
    let base = Base { builder, files: loaded, modules: None, version, previous, mode };
    if base.is_running() {
        return Load { files, built: Ok(None) };
    }
    let next = base.next(parts).map(|next| {
        let next = Next { load_time, ..next };
        Some(next).filter(|next| base.is_changed_by(next))
    });
    Load { files, built: next }
}
