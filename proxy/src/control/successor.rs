//! Hot restart: a new process listens alongside the old one, and tells the old one to drain once it is ready. See
//! "Upgrading" in docs/operating.md.

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::observe::target;

/// The process that this one replaces.
#[derive(Debug)]
pub(crate) struct Predecessor(Pid);

impl Predecessor {
    /// Finds the process with this id.
    ///
    /// # Errors There is no such process, it belongs to another user, or it is not a Tollgate: a number from a pid file
    /// may be stale.
    pub(crate) fn find(id: i32) -> anyhow::Result<Predecessor> {
        let pid = Pid::from_raw(id).filter(|_| id > 0).with_context(|| format!("{id} is not the id of a process"))?;
        test_kill_process(pid).with_context(|| format!("process {id} cannot be replaced"))?;
        // Without this file, there is no way to tell.
        if let Ok(name) = std::fs::read_to_string(format!("/proc/{id}/comm"))
            && !name.starts_with("tollgate")
        {
            bail!("process {id} is `{}`, not a tollgate", name.trim_end());
        }
        Ok(Predecessor(pid))
    }

    /// Tells the process to drain and exit.
    pub(crate) fn end(self) {
        let id = self.0.as_raw_nonzero();
        match kill_process(self.0, Signal::TERM) {
            Ok(()) => tracing::info!(target: target::PROCESS, "process {id} told to drain: this process replaces it"),
            Err(e) => tracing::warn!(target: target::PROCESS, "cannot tell process {id} to drain: {e}"),
        }
    }
}
