//! Access logs: one line per request. The worker that served it formats the line into its own buffer; a thread
//! writes the buffers, and workers never wait for it.

mod bench;
mod encode;
mod entry;
mod fields;
mod format;
mod sink;
#[cfg(test)]
mod tests;
pub mod timestamp;
mod writer;

use std::{
    io, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

pub(super) use self::sink::write_all;
pub use self::{
    entry::{Entry, Stored, Timings},
    fields::{FIELDS, Field},
    format::{Format, FormatError},
    writer::{LogWriter, StartError},
};
use self::{
    sink::Sink,
    writer::{Lines, Shared},
};
use super::metrics::{PerShard, Shard};
use crate::config::model;

/// A buffer of this size is passed to the writer immediately, in bytes.
const FULL: usize = 16 << 10;

/// The reason why a log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its format is invalid.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Its file could not be opened.
    #[error("cannot open the access log `{to}`: {error}")]
    Open {
        /// The file.
        to: String,
        /// The reason.
        #[source]
        error: io::Error,
    },
}

/// An open access log. Clones share the same log; when the last is dropped, its buffered lines are still written.
#[derive(Debug, Clone)]
pub struct AccessLog(Arc<Log>);

#[derive(Debug)]
struct Log {
    format: Format,
    sink: Arc<Sink>,
    /// Behind locks, so that the writer can collect lines from a worker without traffic. Only the writer and the worker use a
    /// worker's lock, so taking it costs about as much as counting a request.
    buffers: PerShard<Mutex<Buffer>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    lines: u64,
}

impl AccessLog {
    /// Opens a log.
    pub fn open(config: &model::AccessLog, writer: &LogWriter) -> Result<Self, OpenError> {
        let format = Format::parse(&config.format)?;
        let sink = Sink::open(&config.to).map_err(|error| OpenError::Open { to: config.to.clone(), error })?;
        let shared = Arc::clone(&writer.shared);
        let log = Arc::new(Log { format, sink: Arc::new(sink), buffers: PerShard::new(shared.shards), shared });
        writer.shared.add(&log);
        Ok(AccessLog(log))
    }

    /// Logs a request.
    pub fn log(&self, shard: Shard, entry: &Entry<'_>) {
        let mut buffer = lock(self.0.buffers.at(shard));
        self.0.format.write(entry, &mut buffer.bytes);
        buffer.lines += 1;
        let first = buffer.lines == 1;
        if buffer.bytes.len() >= FULL && !self.0.hand_over(&mut buffer) {
            self.0.drop_lines(&mut buffer, shard);
        }
        drop(buffer);
        if first {
            self.0.shared.lines_wait();
        }
    }

    /// The format of its lines, which determines the headers that they need.
    pub fn format(&self) -> &Format {
        &self.0.format
    }

    /// Reopens its file by name after rotation. On failure, lines continue to go to the old file.
    pub fn reopen(&self) -> Result<(), OpenError> {
        self.0.reopen()?;
        self.0.shared.wake();
        Ok(())
    }
}

impl Log {
    fn reopen(&self) -> Result<(), OpenError> {
        self.sink.reopen().map_err(|error| OpenError::Open { to: self.sink.name().to_owned(), error })
    }

    fn buffers(&self) -> impl Iterator<Item = &Mutex<Buffer>> {
        self.buffers.iter()
    }

    /// Queues a buffer's lines; if the queue is full, they stay in the buffer until the next time. Returns whether there
    /// were any.
    fn collect(&self, buffer: &Mutex<Buffer>) -> bool {
        let mut buffer = lock(buffer);
        let any = buffer.lines > 0;
        self.hand_over(&mut buffer);
        any
    }

    /// Queues a buffer's lines; returns whether the buffer is empty now.
    fn hand_over(&self, buffer: &mut Buffer) -> bool {
        if buffer.lines == 0 {
            return true;
        }
        let bytes = mem::take(&mut buffer.bytes);
        match self.shared.queue(Lines { sink: Arc::clone(&self.sink), bytes, count: buffer.lines }) {
            Ok(()) => {
                *buffer = Buffer { bytes: self.shared.spare(), lines: 0 };
                true
            }
            Err(lines) => {
                buffer.bytes = lines.bytes;
                false
            }
        }
    }

    fn drop_lines(&self, buffer: &mut Buffer, shard: Shard) {
        self.shared.overflowed(shard, mem::take(&mut buffer.lines));
        buffer.bytes.clear();
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        for buffer in self.buffers.iter() {
            let mut buffer = lock(buffer);
            if !self.hand_over(&mut buffer) {
                self.drop_lines(&mut buffer, super::shard());
            }
        }
    }
}

/// Locks a mutex even if it is poisoned: a panic leaves no partial change, except for a line that was being formatted.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
