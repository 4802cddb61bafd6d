//! Rate-limited logging by filters and about filters: a filter that logs on each request, or misuses the API on each,
//! must not fill a disk or block its worker.

use std::{
    fmt::{self, Write},
    sync::{
        LazyLock,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use tracing::Level;

use crate::observe::target;

/// Lines per second and filter, over all workers. More are dropped and their number is logged.
const PER_SECOND: u32 = 1000;

/// Maximum bytes of a line; longer ones are truncated.
pub const LONGEST: usize = 16 << 10;

/// Maximum bytes of a guest's text quoted within a line.
const MAX_QUOTED: usize = 200;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A filter's log and its rate limit.
#[derive(Debug, Default)]
pub struct FilterLog {
    /// The second in which the last line was logged.
    second: AtomicU64,
    /// Number of lines in that second.
    lines: AtomicU32,
    /// Number of dropped lines that were not reported yet.
    dropped: AtomicU64,
}

impl FilterLog {
    /// Logs a line if its level is enabled. Nothing is formatted before that is known.
    pub fn say(&self, filter: &str, level: Level, line: fmt::Arguments<'_>) {
        macro_rules! at {
            ($($name:ident)*) => {
                match level {
                    $(Level::$name => {
                        if tracing::enabled!(target: target::FILTER, Level::$name) && self.may_log(filter) {
                            let line = LogLine::of(line);
                            tracing::event!(target: target::FILTER, Level::$name, filter, "{line}");
                        }
                    })*
                }
            };
        }
        at!(TRACE DEBUG INFO WARN ERROR);
    }

    fn may_log(&self, filter: &str) -> bool {
        let now = START.elapsed().as_secs();
        if self.second.swap(now, Relaxed) != now {
            self.lines.store(0, Relaxed);
            let dropped = self.dropped.swap(0, Relaxed);
            if dropped > 0 {
                tracing::warn!(
                    target: target::FILTER,
                    filter, "{dropped} lines were dropped: more than {PER_SECOND} in a second"
                );
            }
        }
        let allowed = self.lines.fetch_add(1, Relaxed) < PER_SECOND;
        if !allowed {
            self.dropped.fetch_add(1, Relaxed);
        }
        allowed
    }
}

/// A line of limited length. Formatting stops when it is full.
struct LogLine(String);

impl LogLine {
    fn of(line: fmt::Arguments<'_>) -> LogLine {
        let mut text = LogLine(String::new());
        // An error only means that the line is full.
        let _ = text.write_fmt(line);
        text
    }
}

impl Write for LogLine {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let fits = text.floor_char_boundary(LONGEST - self.0.len());
        self.0.push_str(&text[..fits]);
        if fits == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

impl fmt::Display for LogLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Bytes from a guest, escaped and truncated for quoting in a line.
pub struct Escaped<'a>(pub &'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = &self.0[..self.0.len().min(MAX_QUOTED)];
        write!(f, "{}{}", start.escape_ascii(), if start.len() < self.0.len() { "..." } else { "" })
    }
}

/// Bytes that should be UTF-8; invalid sequences are replaced.
pub struct LossyText<'a>(pub &'a [u8]);

impl fmt::Display for LossyText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            f.write_str(chunk.valid())?;
            if !chunk.invalid().is_empty() {
                f.write_char(char::REPLACEMENT_CHARACTER)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts how often it is formatted.
    struct Counted<'a>(&'a AtomicU32);

    impl fmt::Display for Counted<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.fetch_add(1, Relaxed);
            f.write_str("x")
        }
    }

    #[test]
    fn long_line_is_truncated_without_formatting_the_rest() {
        let formatted = AtomicU32::new(0);
        let long = "é".repeat(LONGEST);
        let line = LogLine::of(format_args!("a{long}{}", Counted(&formatted)));
        assert_eq!((line.0.len(), formatted.load(Relaxed)), (LONGEST - 1, 0));
        let bytes = vec![0xff; 1 << 20];
        assert!(format!("{}", Escaped(&bytes)).len() < 1000);
        assert_eq!(format!("{} {}", Escaped(b"a\n\x1b"), LossyText(b"a\xffb")), "a\\n\\x1b a\u{fffd}b");
    }

    #[test]
    fn disabled_level_is_not_formatted() {
        // This test sets up no subscriber.
        let (log, formatted) = (FilterLog::default(), AtomicU32::new(0));
        tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::default(), || {
            log.say("f", Level::WARN, format_args!("{}", Counted(&formatted)));
        });
        assert_eq!(formatted.load(Relaxed), 0);
    }

    #[test]
    fn lines_per_second_are_limited() {
        let log = FilterLog::default();
        let lines = (0..50_000).filter(|_| log.may_log("f")).count();
        // The clock may have reached another second or two meanwhile.
        assert!((PER_SECOND as usize..=3 * PER_SECOND as usize).contains(&lines), "{lines}");
    }
}
