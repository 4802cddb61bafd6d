//! The thread on which a configuration is loaded. It is there for one load only: the memory that loading takes goes back to the
//! system with it. Compiling is done elsewhere, see [`crate::wasm::engine::compiler`].

use std::{io, panic, thread};

use crate::alloc;

/// How urgent a load is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Nothing is served before it is done.
    Start,
    /// Traffic goes on meanwhile, on the same processors.
    Reload,
}

/// What a reload adds to its thread's nice value, which the compiler's process inherits. They get a thirtieth of a processor where
/// a worker uses all of it, and a worker that has something to do waits a thirtieth of the time that it would wait for equals. The
/// lowest priority, half as much, would spare it little more, and a proxy that is overloaded must still be able to change its
/// configuration.
const NICE: i32 = 15;

/// Does the work on a thread of its own. Returns when that has ended.
///
/// # Errors
/// There can be no more threads.
pub fn at_work<R: Send>(urgency: Urgency, work: impl FnOnce() -> R + Send) -> io::Result<R> {
    let loading = || {
        if urgency == Urgency::Reload {
            // Only for this thread, on Linux. Elsewhere, or if it is forbidden, loading disturbs more.
            let _ = rustix::process::nice(NICE);
        }
        let made = work();
        alloc::give_back();
        made
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("tollgate-load".into()).spawn_scoped(scope, loading)?;
        Ok(thread.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nice() -> i32 {
        rustix::process::nice(0).unwrap()
    }

    #[test]
    fn a_reload_gives_way_and_leaves_the_thread_that_wants_it_as_it_was() {
        let before = nice();
        assert_eq!(at_work(Urgency::Start, nice).unwrap(), before);
        assert_eq!(at_work(Urgency::Reload, nice).unwrap(), (before + NICE).min(19));
        assert_eq!(nice(), before);
    }
}
