//! The thread that writes all access logs. Workers pass full buffers through a bounded queue and never wait: if it
//! is full, the lines are dropped and counted. The thread itself collects buffers that do not fill up. It sleeps while
//! all buffers are empty; the first line in an empty buffer wakes it up.

use std::{
    io,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError},
    },
    thread,
    time::{Duration, Instant},
};

use super::{Log, OpenError, lock, sink::Sink};
use crate::observe::metrics::{Counter, MetricError, Registry, Shard, shard};

/// The maximum number of queued buffers: 4 MiB of lines.
const QUEUE: usize = 256;
/// The maximum time that lines wait for their buffer to fill up.
const TICK: Duration = Duration::from_millis(100);
/// The maximum number of buffers kept for reuse, and their maximum size (very long lines make them grow).
const SPARE: usize = 64;
const SPARE_BYTES: usize = 64 << 10;
/// The size of a new buffer, in bytes: enough for the line that fills it up, so that it need not grow.
const FRESH_BYTES: usize = super::FULL + (4 << 10);

/// The reason why the writer could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its metrics were rejected.
    #[error(transparent)]
    Metric(#[from] MetricError),
    /// The thread could not be started.
    #[error("cannot start the access log's thread: {0}")]
    Thread(#[from] io::Error),
}

/// The writer thread, shared by all logs. It ends when this handle is dropped or closed.
#[derive(Debug)]
pub struct LogWriter {
    pub(super) shared: Arc<Shared>,
    /// Disconnected when the thread has ended.
    ended: Mutex<Receiver<()>>,
}

/// State shared by the logs and the writer thread.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) shards: usize,
    queue: SyncSender<Message>,
    logs: Mutex<Vec<Weak<Log>>>,
    spare: Mutex<Vec<Vec<u8>>>,
    closing: AtomicBool,
    /// Whether the thread waits for a message without a timeout.
    asleep: AtomicBool,
    /// The number of queued lines, neither written nor lost yet.
    queued: AtomicU64,
    overflowed: Counter,
    failed: Counter,
}

#[derive(Debug)]
enum Message {
    Lines(Lines),
    /// Wakes the thread, because a file was reopened, a buffer has lines, or the writer is closing.
    Wake,
}

/// Some lines for a sink.
#[derive(Debug)]
pub(super) struct Lines {
    pub(super) sink: Arc<Sink>,
    pub(super) bytes: Vec<u8>,
    /// The number of lines.
    pub(super) count: u64,
}

impl LogWriter {
    /// Starts the writer thread.
    pub fn start(registry: &Registry) -> Result<Self, StartError> {
        let dropped = |reason| {
            let help = "Access log lines that were lost because the writer could not keep up or writing failed";
            registry.counter("tollgate_access_log_dropped_total", help, &[("reason", reason)])
        };
        let (queue, messages) = mpsc::sync_channel(QUEUE);
        let (end, ended) = mpsc::channel();
        let shared = Arc::new(Shared {
            shards: registry.shards(),
            queue,
            logs: Mutex::default(),
            spare: Mutex::default(),
            closing: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            queued: AtomicU64::new(0),
            overflowed: dropped("overflow")?,
            failed: dropped("error")?,
        });
        let thread = Thread { shared: Arc::clone(&shared), messages };
        thread::Builder::new().name("access-log".into()).spawn(move || {
            let _end = end;
            thread.run();
        })?;
        Ok(LogWriter { shared, ended: Mutex::new(ended) })
    }

    /// Reopens all files by name after rotation. Returns the errors of files that cannot be opened; their lines
    /// continue to go to the old files.
    pub fn reopen(&self) -> Vec<OpenError> {
        let failed = self.shared.logs().iter().filter_map(|log| log.reopen().err()).collect();
        self.shared.wake();
        failed
    }

    /// Writes everything that was logged before this call, and ends. Waits at most `wait`, because a pipe without a reader
    /// must not keep the process from ending. Returns the number of lines not written by then; lines logged later are dropped
    /// and counted.
    pub fn close(&self, wait: Duration) -> u64 {
        self.shared.close();
        match lock(&self.ended).recv_timeout(wait) {
            Err(RecvTimeoutError::Disconnected) => 0,
            _ => self.shared.unwritten(),
        }
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Shared {
    pub(super) fn add(&self, log: &Arc<Log>) {
        let mut logs = lock(&self.logs);
        logs.retain(|log| log.strong_count() > 0);
        logs.push(Arc::downgrade(log));
    }

    fn logs(&self) -> Vec<Arc<Log>> {
        lock(&self.logs).iter().filter_map(Weak::upgrade).collect()
    }

    /// Queues lines; returns them if the queue is full.
    pub(super) fn queue(&self, lines: Lines) -> Result<(), Lines> {
        let count = lines.count;
        self.queued.fetch_add(count, Ordering::Relaxed);
        match self.queue.try_send(Message::Lines(lines)) {
            Err(TrySendError::Full(Message::Lines(lines)) | TrySendError::Disconnected(Message::Lines(lines))) => {
                self.queued.fetch_sub(count, Ordering::Relaxed);
                Err(lines)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn overflowed(&self, shard: Shard, lines: u64) {
        self.overflowed.add(shard, lines);
    }

    /// Returns an empty buffer, reused if possible.
    pub(super) fn spare(&self) -> Vec<u8> {
        lock(&self.spare).pop().unwrap_or_else(|| Vec::with_capacity(FRESH_BYTES))
    }

    pub(super) fn recycle(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let mut spare = lock(&self.spare);
        if spare.len() < SPARE && (1..=SPARE_BYTES).contains(&buffer.capacity()) {
            spare.push(buffer);
        }
    }

    /// Sets whether the thread waits without a timeout; it does not if a line was added meanwhile.
    fn set_asleep(&self, asleep: bool) {
        self.asleep.store(asleep, Ordering::Relaxed);
        if asleep && self.buffered() > 0 {
            self.asleep.store(false, Ordering::Relaxed);
        }
    }

    #[cfg(test)]
    pub(super) fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::Relaxed)
    }

    /// Makes sure that the thread collects lines from a buffer that was empty before. The caller no longer locks the buffer.
    pub(super) fn lines_wait(&self) {
        // Relaxed is enough because of the buffer's lock: `set_asleep` sets the flag before it checks the buffer. Either it
        // has found the caller's line, or the caller has locked the buffer afterwards and sees the flag.
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            self.wake();
        }
    }

    pub(super) fn wake(&self) {
        // If the queue is full, the thread is awake.
        drop(self.queue.try_send(Message::Wake));
    }

    /// The number of lines not written or not collected by the thread.
    fn unwritten(&self) -> u64 {
        self.queued.load(Ordering::Relaxed) + self.buffered()
    }

    /// The number of lines in the workers' buffers.
    fn buffered(&self) -> u64 {
        self.logs().iter().flat_map(|log| log.buffers()).map(|buffer| lock(buffer).lines).sum()
    }

    fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.wake();
    }
}

struct Thread {
    shared: Arc<Shared>,
    messages: Receiver<Message>,
}

impl Thread {
    fn run(&self) {
        let mut collected = Instant::now();
        loop {
            let message = match self.shared.asleep.load(Ordering::Relaxed) {
                true => self.messages.recv().map_err(RecvTimeoutError::from),
                false => self.messages.recv_timeout(TICK.saturating_sub(collected.elapsed())),
            };
            match message {
                Ok(Message::Lines(lines)) => self.write(lines),
                Ok(Message::Wake) => self.shared.logs().iter().for_each(|log| log.sink.turn_over()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let closing = self.shared.closing.load(Ordering::Acquire);
            if closing || collected.elapsed() >= TICK {
                let any = self.collect();
                collected = Instant::now();
                self.shared.set_asleep(!any);
            }
            if closing {
                // At most the queue's size: workers that keep logging must not keep it open.
                return self.drain(QUEUE);
            }
        }
    }

    /// Collects the workers' buffers through the queue, so that lines which a worker queued earlier are written first.
    /// Between two buffers the queue is drained, because workers need room in it. Returns whether there were any lines.
    fn collect(&self) -> bool {
        let mut any = false;
        for log in self.shared.logs() {
            for buffer in log.buffers() {
                self.drain(QUEUE);
                any |= log.collect(buffer);
            }
        }
        any
    }

    fn drain(&self, max: usize) {
        for message in self.messages.try_iter().take(max) {
            if let Message::Lines(lines) = message {
                self.write(lines);
            }
        }
    }

    fn write(&self, lines: Lines) {
        let lost = lines.sink.write(&lines.bytes);
        self.shared.queued.fetch_sub(lines.count, Ordering::Relaxed);
        if lost > 0 {
            self.shared.failed.add(shard(), lost);
        }
        self.shared.recycle(lines.bytes);
    }
}
