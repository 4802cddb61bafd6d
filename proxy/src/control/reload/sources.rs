//! Listeners and filters of sources: builds what has changed and brings it into effect, together with the running files.

use rustc_hash::FxHashSet;
use tokio::time::Instant;

use super::{Reloader, milliseconds};
use crate::{
    control::{
        resources::Occasion,
        snapshot::BuildMode,
        store::Key,
        supplied::{Base, Next, Part},
        threads::{self, Urgency},
    },
    observe::target,
};

impl Reloader {
    /// Builds what sources have changed, until nothing is left to build.
    pub(super) async fn apply_sources(&mut self) {
        // Candidates that a source replaced during their build. The next build is without them, so that a source that
        // changes a resource all the time holds up no other resource.
        let mut left_out = FxHashSet::default();
        loop {
            let Some(parts) = self.rollout.resources.plan(Occasion::Sources(left_out.clone())).await else {
                if left_out.is_empty() {
                    return;
                }
                left_out.clear();
                continue;
            };
            match self.build_sources(parts).await {
                Ok(next) => left_out = self.replace_supplied(next).await,
                Err(why) => {
                    self.forget_trial();
                    tracing::error!(target: target::CONFIG, "cannot apply what sources supply: {why}");
                    return;
                }
            }
        }
    }

    /// Builds the running files with other resources of sources.
    ///
    /// # Errors The files can no longer be built, or the build was aborted.
    async fn build_sources(&self, parts: Vec<Part>) -> Result<Next, String> {
        let Some(previous) = self.status.current.load_full() else { return Err("nothing runs yet".to_owned()) };
        let (builder, mode) = (self.builder.clone(), BuildMode::Full(self.claim));
        let work = move || {
            let (files, version) = (previous.loaded.clone(), previous.version);
            // Modules whose files have changed since are the business of a reload.
            let of_files = previous.plugins.iter().take(files.config.filters.len());
            let modules: Vec<_> = of_files.map(|plugin| plugin.code.clone()).collect();
            let base =
                Base { builder: &builder, files, modules: Some(&modules), version, previous: Some(&previous), mode };
            base.next(parts)
        };
        let built = tokio::task::spawn_blocking(move || threads::at_work(Urgency::Reload, work)).await;
        match built.map_err(|e| e.to_string())?.map_err(|e| e.to_string())? {
            Ok(next) => Ok(next),
            Err(wrong) => Err(wrong.to_string()),
        }
    }

    /// Brings a build into effect, unless candidates in it are no longer the newest ones. Returns those.
    async fn replace_supplied(&mut self, next: Next) -> FxHashSet<Key> {
        let Next { built, changes, parts, refused, build_time, .. } = next;
        let superseded = self.rollout.resources.commit(parts, refused, true).await;
        if !superseded.is_empty() || changes.list.is_empty() {
            drop(built);
            self.forget_trial();
            return superseded;
        }
        let start = Instant::now();
        let new = self.take_over(built).await;
        tracing::info!(
            target: target::CONFIG,
            hash = new.hash, changes = changes.line(), new_instances = changes.new_instances(),
            new_settings = changes.new_settings(), build_ms = milliseconds(build_time),
            apply_ms = milliseconds(start.elapsed()), "resources of sources applied"
        );
        superseded
    }
}
