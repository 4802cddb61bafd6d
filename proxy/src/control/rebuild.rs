//! Makes instances in place of those that failed, beside everything else that the control thread does.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::sync::mpsc::WeakUnboundedSender;

use crate::{
    listener::worker::{Command, Rebuild},
    wasm::vm::Wanted,
};

/// Makes another instance of a machine, not before its time, and sends it to the worker that asked. Ends without one if the
/// worker has ended, or if no configuration has the machine any more.
pub async fn rebuild(rebuild: Rebuild, commands: WeakUnboundedSender<Command>) {
    let Rebuild { machine, wanted, .. } = rebuild;
    let machine = {
        let weak = Arc::downgrade(&machine);
        drop(machine);
        weak
    };
    let mut wait = if let Wanted::Instance(wait) = wanted { wait } else { Duration::ZERO };
    loop {
        tokio::time::sleep(wait).await;
        let Some(machine) = machine.upgrade() else { return };
        let making = machine.clone();
        match tokio::task::spawn_blocking(move || making.instantiate()).await {
            Ok(Ok(instance)) if wanted == Wanted::Spare => {
                *machine.spare.lock().unwrap_or_else(PoisonError::into_inner) = Some(instance);
                return;
            }
            Ok(Ok(instance)) => {
                // Held no longer than this: a worker ends when nobody can send it commands any more.
                if let Some(commands) = commands.upgrade() {
                    let _ = commands.send(Command::Adopt(machine, Box::new(instance)));
                }
                return;
            }
            Ok(Err(e)) => {
                let message = format!("it could not be set up again: {e}");
                let plugin = &machine.plugins()[e.filter];
                tracing::error!(target: "tollgate::filter", filter = plugin.identity.name, "{message}");
                plugin.last_error.store(Some(Arc::new(message)));
            }
            Err(e) => tracing::error!("setting up a filter failed: {e}"),
        }
        wait = (wait * 2).clamp(Duration::from_millis(100), Duration::from_secs(60));
    }
}
