//! Taking the place of a running process: the new one listens beside the old one, and when it is ready it tells that to drain.
//! See "Upgrading" in docs/operating.md.

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::observe::target;

/// The process whose place this one takes.
#[derive(Debug)]
pub(crate) struct Predecessor(Pid);

impl Predecessor {
    /// The process with this id.
    ///
    /// # Errors
    /// There is none, it belongs to somebody else, or it is no Tollgate: a number in a file may be an old one.
    pub(crate) fn find(id: i32) -> anyhow::Result<Predecessor> {
        let pid = Pid::from_raw(id).filter(|_| id > 0).with_context(|| format!("{id} is not the id of a process"))?;
        test_kill_process(pid).with_context(|| format!("process {id} cannot be replaced"))?;
        // Where there is no such file, nobody can tell.
        if let Ok(name) = std::fs::read_to_string(format!("/proc/{id}/comm"))
            && !name.starts_with("tollgate")
        {
            bail!("process {id} is `{}`, not a tollgate", name.trim_end());
        }
        Ok(Predecessor(pid))
    }

    /// Tells it to drain and end.
    pub(crate) fn end(self) {
        let id = self.0.as_raw_nonzero();
        match kill_process(self.0, Signal::TERM) {
            Ok(()) => tracing::info!(target: target::PROCESS, "process {id} was told to drain: this one has its place"),
            Err(e) => tracing::warn!(target: target::PROCESS, "process {id} could not be told to drain: {e}"),
        }
    }
}
