//! The threads on which configurations are loaded and filters compiled. They are there for one load only: the memory that
//! compiling takes goes back to the system with them.

use rayon::{ThreadPoolBuildError, ThreadPoolBuilder};

use crate::alloc;

/// How urgent a load is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Nothing is served before it is done.
    Start,
    /// Traffic goes on meanwhile, on the same processors.
    Reload,
}

/// What a reload adds to its threads' nice value. They get a thirtieth of a processor where a worker uses all of it, and a worker that
/// has something to do waits a thirtieth of the time that it would wait for equals. The lowest priority, half as much, would spare
/// it little more, and a proxy that is overloaded must still be able to change its configuration.
const NICE: i32 = 15;

/// Does the work on one of as many threads as there are processors; the compiler uses the others too. Returns when all of them
/// have ended.
///
/// # Errors
/// There can be no more threads.
pub fn at_work<R: Send>(urgency: Urgency, work: impl FnOnce() -> R + Send) -> Result<R, ThreadPoolBuildError> {
    ThreadPoolBuilder::new().thread_name(|n| format!("tollgate-load-{n}")).build_scoped(
        |thread| {
            if urgency == Urgency::Reload {
                // Only for this thread, on Linux. Elsewhere, or if it is forbidden, loading disturbs more.
                let _ = rustix::process::nice(NICE);
            }
            thread.run();
            alloc::give_back();
        },
        |crew| crew.install(work),
    )
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
