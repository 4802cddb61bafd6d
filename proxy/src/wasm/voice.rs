//! What a filter says in the log, and what is said of it there. Bounded: a filter that logs for each request, or is wrong about
//! each, must not fill a disk or hold up its worker.

use std::{
    fmt,
    sync::{
        LazyLock,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use tracing::Level;

/// Lines of one filter in one second, over all workers; more are dropped, and how many is said.
const PER_SECOND: u32 = 1000;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A filter's voice.
#[derive(Debug, Default)]
pub struct Voice {
    /// The second of the last line.
    second: AtomicU64,
    /// Lines in it.
    said: AtomicU32,
    /// Lines that were dropped and not told yet.
    dropped: AtomicU64,
}

impl Voice {
    /// Logs a line, if it is of a level that is shown.
    pub fn say(&self, filter: &str, level: Level, line: fmt::Arguments<'_>) {
        macro_rules! at {
            ($($name:ident)*) => {
                match level {
                    $(Level::$name => {
                        if tracing::enabled!(target: "tollgate::filter", Level::$name) && self.may_speak(filter) {
                            tracing::event!(target: "tollgate::filter", Level::$name, filter, "{line}");
                        }
                    })*
                }
            };
        }
        at!(TRACE DEBUG INFO WARN ERROR);
    }

    fn may_speak(&self, filter: &str) -> bool {
        let now = START.elapsed().as_secs();
        if self.second.swap(now, Relaxed) != now {
            self.said.store(0, Relaxed);
            let dropped = self.dropped.swap(0, Relaxed);
            if dropped > 0 {
                tracing::warn!(target: "tollgate::filter", filter, "{dropped} lines were dropped: more than {PER_SECOND} in a second");
            }
        }
        let speaks = self.said.fetch_add(1, Relaxed) < PER_SECOND;
        if !speaks {
            self.dropped.fetch_add(1, Relaxed);
        }
        speaks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_talks_without_end() {
        let voice = Voice::default();
        let said = (0..50_000).filter(|_| voice.may_speak("f")).count();
        // The clock may have moved on to another second or two meanwhile.
        assert!((PER_SECOND as usize..=3 * PER_SECOND as usize).contains(&said), "{said}");
    }
}
