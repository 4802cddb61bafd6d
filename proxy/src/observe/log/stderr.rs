//! Writes to standard error without blocking. Its reader may be stuck (a hanging log collector, a paused terminal), so no
//! thread with other work writes there itself. Lines go into a bounded buffer, and a dedicated thread writes them. Lines that do
//! not fit are dropped and counted, and the log reports them when writing works again.
//!
//! `tracing-appender` has such a writer, but it limits the number of lines, whatever their length, and does not report
//! dropped ones. Short-lived commands never start the thread, and write directly.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    cell::Cell,
    fs::File,
    io,
    os::fd::AsFd,
    panic,
    sync::{
        Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use crate::observe::{Kind, MetricError, Registry, access_log::write_all, target};

/// The size of the buffer, in bytes.
const ROOM: usize = 1 << 20;

/// The maximum size of one write, unless a line is longer: larger writes to a pipe can be interleaved with those of other
/// processes (POSIX, PIPE_BUF).
const AT_ONCE: usize = 4096;

/// How long the process waits at its end for the remaining lines to be written.
const AT_END: Duration = Duration::from_secs(2);

static QUEUE: OnceLock<Queue> = OnceLock::new();

thread_local! {
    /// Whether this is the writer thread, whose own line about lost lines is always accepted.
    static WRITES: Cell<bool> = const { Cell::new(false) };
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    emptied: Condvar,
    overflowed: AtomicU64,
    failed: AtomicU64,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// Whether the thread is writing lines that it has taken.
    writing: bool,
}

/// Starts the thread, once per process. Panics are reported through it too.
///
/// # Errors
/// No thread or no descriptor is available.
pub fn start() -> io::Result<()> {
    let file = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    if QUEUE.set(Queue::default()).is_ok()
        && let Some(queue) = QUEUE.get()
    {
        thread::Builder::new().name("log".into()).spawn(move || queue.run(&file))?;
        panic::set_hook(Box::new(|panic| {
            let thread = thread::current();
            let trace = Backtrace::capture();
            let trace = if trace.status() == BacktraceStatus::Captured { format!("{trace}") } else { String::new() };
            say(&format!("thread '{}' {panic}\n{trace}", thread.name().unwrap_or("?")));
        }));
    }
    Ok(())
}

/// Writes whole lines; does not block if the thread runs.
pub fn say(lines: &str) {
    match QUEUE.get() {
        Some(queue) => queue.push(lines.as_bytes()),
        None => eprint!("{lines}"),
    }
}

/// Registers the metric of lost lines.
///
/// # Errors
/// Another metric has that name.
pub fn show(registry: &Registry) -> Result<(), MetricError> {
    let help = "Lines of the proxy's own log that were lost because the reader was too slow or writing failed";
    registry.collect_fn("tollgate_log_dropped_total", help, Kind::Counter, || {
        let lost =
            |queue: &Queue| [("overflow", queue.overflowed.load(Relaxed)), ("error", queue.failed.load(Relaxed))];
        let lost = QUEUE.get().map(lost).into_iter().flatten();
        lost.map(|(reason, lines)| (vec![("reason".to_owned(), reason.to_owned())], lines as f64)).collect()
    })
}

/// On drop, waits until everything is written, for at most `AT_END`.
#[derive(Debug)]
pub struct FlushAtEnd;

impl Drop for FlushAtEnd {
    fn drop(&mut self) {
        if let Some(queue) = QUEUE.get() {
            queue.flush(AT_END);
        }
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic leaves no partial change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, lines: &[u8]) {
        let mut state = self.state();
        if state.waiting.len() + lines.len() > ROOM && !WRITES.get() {
            self.overflowed.fetch_add(count(lines), Relaxed);
            return;
        }
        state.waiting.extend_from_slice(lines);
        drop(state);
        self.filled.notify_one();
    }

    fn flush(&self, wait: Duration) {
        let busy = |state: &mut State| state.writing || !state.waiting.is_empty();
        drop(self.emptied.wait_timeout_while(self.state(), wait, busy));
    }

    fn run(&self, file: &File) {
        WRITES.set(true);
        let mut reported = 0;
        loop {
            let lines = self.take();
            let failed: u64 = pieces(&lines).map(|piece| count(write_all(file, piece).0)).sum();
            self.failed.fetch_add(failed, Relaxed);
            let lost = self.overflowed.load(Relaxed) + self.failed.load(Relaxed);
            if failed == 0 && lost > reported {
                tracing::warn!(
                    target: target::LOG,
                    lines = lost - reported,
                    "lines of this log were lost: the reader was too slow, or writing failed"
                );
                reported = lost;
            }
        }
    }

    /// Waits for lines and takes them.
    fn take(&self) -> Vec<u8> {
        let mut state = self.state();
        state.writing = false;
        if state.waiting.is_empty() {
            self.emptied.notify_all();
        }
        let mut state =
            self.filled.wait_while(state, |state| state.waiting.is_empty()).unwrap_or_else(PoisonError::into_inner);
        state.writing = true;
        std::mem::take(&mut state.waiting)
    }
}

fn count(lines: &[u8]) -> u64 {
    lines.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// Splits text into pieces of whole lines, of at most `AT_ONCE` bytes if lines allow it.
fn pieces(mut lines: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let end = match lines.get(..AT_ONCE) {
            None => lines.len(),
            Some(first) => {
                let within = first.iter().rposition(|byte| *byte == b'\n');
                let end = within.or_else(|| lines.iter().position(|byte| *byte == b'\n'));
                end.map_or(lines.len(), |end| end + 1)
            }
        };
        let (piece, rest) = lines.split_at(end);
        lines = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn pieces_end_with_lines() {
        let long = [vec![b'x'; 3 * AT_ONCE], vec![b'\n']].concat();
        let text = [b"a\n".repeat(AT_ONCE).as_slice(), &long, b"b\n"].concat();
        let all: Vec<_> = pieces(&text).collect();
        assert_eq!(all.concat(), text);
        assert!(all.iter().all(|piece| piece.ends_with(b"\n") && (piece.len() <= AT_ONCE || piece.contains(&b'x'))));
        assert_eq!(pieces(b"").count(), 0);
    }

    #[test]
    fn a_stuck_reader_blocks_no_writer_and_lost_lines_are_counted() {
        let (mut reader, writer) = io::pipe().unwrap();
        let queue: &Queue = Box::leak(Box::default());
        thread::spawn(move || queue.run(&File::from(std::os::fd::OwnedFd::from(writer))));
        let line = [&[b'x'; 999][..], b"\n"].concat();
        // Twice what fits into the queue and the pipe.
        let pushed = 2 * (ROOM + (64 << 10)) / line.len();
        (0..pushed).for_each(|_| queue.push(&line));
        let lost = queue.overflowed.load(Relaxed) as usize;
        assert!(lost > 0 && lost < pushed, "{lost}");
        assert!(queue.state().waiting.len() <= ROOM);
        queue.flush(Duration::ZERO);
        let mut text = vec![0; (pushed - lost) * line.len()];
        reader.read_exact(&mut text).unwrap();
        assert_eq!(count(&text) as usize, pushed - lost);
        queue.flush(Duration::from_secs(60));
        let state = queue.state();
        assert!(state.waiting.is_empty() && !state.writing);
    }
}
