//! Versions of the history that are applied again and pinned, and what becomes of the files meanwhile.

use super::{BY_FILE, Reloader};
use crate::{
    config::Diagnostics,
    control::{
        change::{self, ReloadAttempt, ReloadOutcome},
        history::AppliedVersion,
        pin::Pending,
        resources::Occasion,
        snapshot::{BuildMode, SnapshotBuilder},
        supplied::{Base, Next, Part},
        threads::{self, Urgency},
    },
    listener::socket::AddressClaim,
    observe::target,
    snapshot::Snapshot,
};

impl Reloader {
    /// Applies a version of the history again, and pins it.
    pub(super) async fn roll_back(&mut self, version: u64, cause: &'static str) -> ReloadAttempt {
        let Some(applied) = self.status.applied(version) else {
            let message = format!("version {version} is not in the history");
            return self.status.note(cause, ReloadOutcome::Refused(message.clone(), message.into()));
        };
        let (builder, previous, again) = (self.builder.clone(), self.status.current.load_full(), applied.clone());
        let parts = self.rollout.resources.plan(Occasion::Files).await.unwrap_or_default();
        let work = move || build_again(&builder, &again, parts, previous.as_deref());
        let built = tokio::task::spawn_blocking(move || threads::at_work(Urgency::Reload, work)).await;
        let result = match built.map_err(|e| e.to_string()).and_then(|done| done.map_err(|e| e.to_string())) {
            Ok(Ok(Some(next))) => self.replace(next, cause, Some(version)).await,
            Ok(Ok(None)) => ReloadOutcome::Unchanged,
            Ok(Err(wrong)) => {
                self.forget_trial();
                let text = wrong.render(false);
                tracing::error!(
                    target: target::CONFIG,
                    "version {version} cannot be applied again; the running configuration is unchanged:\n{}", text.trim_end()
                );
                ReloadOutcome::Refused(wrong.to_string(), wrong.to_json())
            }
            Err(e) => {
                self.forget_trial();
                tracing::error!(target: target::CONFIG, cause, "cannot apply version {version} again: {e}");
                ReloadOutcome::Refused(e.clone(), serde_json::Value::String(e))
            }
        };
        if !matches!(result, ReloadOutcome::Refused(..)) {
            self.status.pin(Some(version));
            tracing::info!(target: target::CONFIG, "{}", change::pinned(version));
        }
        self.status.note(cause, result)
    }

    /// Applies the files, and pins nothing. If they have errors, the pinned version stays pinned.
    pub(super) async fn resume(&mut self, cause: &'static str) -> Option<ReloadAttempt> {
        let pinned = self.status.pinned();
        self.status.pin(None);
        let attempt = self.change(cause).await;
        if let Some(ReloadAttempt { result: ReloadOutcome::Refused(_, errors), .. }) = &attempt {
            self.status.pin(pinned);
            self.status.set_pending(Some(Pending::errors(errors.clone())));
        }
        attempt
    }

    /// Notes what the files would change in the pinned version. Returns `None` if there is nothing to report.
    pub(super) fn hold(&mut self, pinned: u64, pending: Option<Next>, cause: &'static str) -> Option<ReloadOutcome> {
        let summary = pending.as_ref().map(|next| Pending::change(next.built.snapshot.hash.clone(), &next.changes));
        let is_new = self.status.set_pending(summary);
        if is_new || cause != BY_FILE {
            let changes = pending.as_ref().map(|next| next.changes.line());
            let new_instances = pending.as_ref().and_then(|next| next.changes.new_instances());
            tracing::info!(target: target::CONFIG, cause, changes, new_instances, "{}", change::pinned(pinned));
        }
        drop(pending);
        self.forget_trial();
        (is_new || cause != BY_FILE).then_some(ReloadOutcome::Pinned(pinned))
    }
}

/// Builds a snapshot of a version of the history, if it differs from the running configuration.
fn build_again(
    builder: &SnapshotBuilder,
    applied: &AppliedVersion,
    parts: Vec<Part>,
    previous: Option<&Snapshot>,
) -> Result<Option<Next>, Diagnostics> {
    if previous.is_some_and(|previous| applied.is_running_as(previous)) {
        return Ok(None);
    }
    let mode = BuildMode::Full(AddressClaim::Sole);
    let (files, modules) = (applied.loaded.clone(), Some(&applied.modules[..]));
    let version = previous.map_or(1, |previous| previous.version + 1);
    Base { builder, files, modules, version, previous, mode }.next(parts).map(Some)
}
