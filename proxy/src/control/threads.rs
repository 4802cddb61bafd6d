//! The thread that loads a configuration. It lives for one load only, so that the memory for loading returns to the
//! system. Compiling happens elsewhere, see [`crate::wasm::engine::compiler`].

use std::{io, panic, thread};

use crate::alloc;

/// The priority of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Nothing is served before the load is done.
    Start,
    /// Traffic continues meanwhile, on the same processors.
    Reload,
}

/// The increase of the nice value of a reload's thread, which the compiler process inherits. They get a quarter of a
/// processor where a worker uses all of it. With 15, a thirtieth, a module that takes 1.4 s of processor time replaced
/// the old one only after 5 to 30 s under saturation, with 5 after 4 to 7 s. With 0 it is 2 to 3 s, but at half of that
/// load the 99th percentile of latencies rises from 64 ms to 480 ms meanwhile.
const NICE: i32 = 5;

/// Runs `work` on a separate thread, and returns when that thread has ended.
///
/// # Errors The thread cannot be created.
pub fn at_work<R: Send>(urgency: Urgency, work: impl FnOnce() -> R + Send) -> io::Result<R> {
    let loading = || {
        if urgency == Urgency::Reload {
            // On Linux this affects only this thread. Elsewhere, or if it is forbidden, loading disturbs traffic more.
            let _ = rustix::process::nice(NICE);
        }
        let result = work();
        alloc::give_back();
        result
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
