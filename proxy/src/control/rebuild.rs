//! Replaces failed filter instances, in the background of the control thread.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc::WeakUnboundedSender;

use crate::{
    observe::target,
    wasm::{InstanceOrder, processor_time},
    worker::{Command, RebuildRequest},
};

/// Failed attempts take at most one part in this many of the time.
const SHARE: u32 = 10;

/// Creates another instance of a VM template, not before its scheduled time, and sends it to the worker that requested
/// it. Returns without one if the worker has ended, or if no configuration uses the template any more.
pub async fn rebuild(rebuild: RebuildRequest, commands: WeakUnboundedSender<Command>) {
    let InstanceOrder { template, mut wait } = rebuild.order;
    let template = {
        let weak = Arc::downgrade(&template);
        drop(template);
        weak
    };
    let mut pause = Duration::ZERO;
    loop {
        tokio::time::sleep(wait).await;
        let Some(template) = template.upgrade() else { return };
        let making = template.clone();
        let make = move || {
            let before = processor_time();
            (making.instantiate(), processor_time().saturating_sub(before))
        };
        // An instance is charged to the worker when it gets it; a failed attempt only delays the next one.
        let mut used = Duration::ZERO;
        match tokio::task::spawn_blocking(make).await {
            Ok((Ok(instance), _)) => {
                // Upgraded only for this moment: a worker ends when all senders of its commands are dropped.
                if let Some(commands) = commands.upgrade() {
                    let _ = commands.send(Command::Adopt(template, Box::new(instance)));
                }
                return;
            }
            Ok((Err(e), took)) => {
                used = took;
                let message = format!("it could not be set up again: {e}");
                // Filters may have left meanwhile.
                if let Some(plugin) = template.plugins().get(e.filter) {
                    tracing::error!(target: target::FILTER, filter = plugin.info.name, "{message}");
                    plugin.last_error.store(Some(Arc::new(message)));
                }
            }
            Err(e) => tracing::error!(target: target::FILTER, "cannot set up a filter: {e}"),
        }
        pause = (pause * 2).clamp(Duration::from_millis(100), Duration::from_secs(60));
        wait = pause.max(used * SHARE);
    }
}
