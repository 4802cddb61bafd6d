//! The thread of the health checks and of outlier detection: they must neither wait for the control plane's work nor hold it
//! up. As it alone decides which endpoints are in use, the decisions never contradict each other.

use std::{io, sync::Arc, thread};

use tokio::task::LocalSet;

use crate::{
    upstream::{HealthChecks, OutlierDetectors},
    worker::mailbox::{ClusterUpdate, Mailbox, NextState},
};

/// Starts the thread. It follows the changes of clusters that are posted to the mailbox, until the process ends.
///
/// # Errors The thread cannot be started.
pub(crate) fn start() -> io::Result<Arc<Mailbox>> {
    let mailbox = Arc::<Mailbox>::default();
    let changes = mailbox.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("tollgate-health".into()).spawn(move || {
        LocalSet::new().block_on(&runtime, async {
            let (mut checks, mut outliers) = (HealthChecks::default(), OutlierDetectors::default());
            loop {
                let updates = tokio::select! {
                    updates = changes.take() => updates,
                    () = checks.advance() => continue,
                    () = outliers.advance() => continue,
                };
                for ClusterUpdate { handle, next, .. } in updates {
                    match next {
                        NextState::Is(cluster) => {
                            checks.set(&handle, &cluster);
                            outliers.set(&handle, &cluster);
                        }
                        NextState::Gone { .. } => {
                            checks.remove(&handle);
                            outliers.remove(&handle);
                        }
                    }
                }
            }
        });
    })?;
    Ok(mailbox)
}
