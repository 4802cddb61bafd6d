//! The destination of a log's lines: standard output, standard error, or a file that can be reopened by name for
//! rotation.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Write},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
    time::Duration,
};

use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
};

use super::lock;
use crate::observe::target;

/// Permissions of a log file: readable by owner and group only, because addresses and paths are personal data.
const MODE: u32 = 0o640;

#[derive(Debug)]
pub(super) struct Sink {
    name: String,
    path: Option<PathBuf>,
    /// Used only by the writer thread.
    output: Mutex<Output>,
    /// The file opened by [`Sink::reopen`]. Separate from `output`, so that the caller never waits for a slow disk.
    next: Mutex<Option<File>>,
}

#[derive(Debug)]
struct Output {
    file: File,
    /// Whether the last write ended within a line.
    torn: bool,
    failing: bool,
}

impl Output {
    fn new(file: File) -> Self {
        Output { file, torn: false, failing: false }
    }
}

impl Sink {
    pub(super) fn open(to: &str) -> io::Result<Self> {
        let (path, file) = match to {
            // A separate descriptor: the standard library's handles search for line ends and flush at each.
            "stdout" => (None, File::from(io::stdout().as_fd().try_clone_to_owned()?)),
            "stderr" => (None, File::from(io::stderr().as_fd().try_clone_to_owned()?)),
            path => (Some(PathBuf::from(path)), append(path.as_ref())?),
        };
        Ok(Sink { name: to.to_owned(), path, output: Mutex::new(Output::new(file)), next: Mutex::new(None) })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Reopens the file by name; the writer switches to it before its next write.
    pub(super) fn reopen(&self) -> io::Result<()> {
        if let Some(path) = &self.path {
            *lock(&self.next) = Some(append(path)?);
        }
        Ok(())
    }

    /// Switches to the file opened by [`Sink::reopen`], so that a deleted file's space is freed even if nothing is logged.
    pub(super) fn turn_over(&self) {
        if let Some(file) = lock(&self.next).take() {
            *lock(&self.output) = Output::new(file);
        }
    }

    /// Writes whole lines; returns the number of lines that could not be written.
    pub(super) fn write(&self, lines: &[u8]) -> u64 {
        self.turn_over();
        let mut output = lock(&self.output);
        let (rest, result) = output.write(lines);
        match result {
            Ok(()) if output.failing => {
                output.failing = false;
                tracing::info!(target: target::ACCESS_LOG, to = self.name, "the access log can be written again");
            }
            // Logged once, not for each buffer.
            Err(error) if !output.failing => {
                output.failing = true;
                tracing::error!(target: target::ACCESS_LOG, to = self.name, %error, "the access log cannot be written");
            }
            _ => {}
        }
        rest.iter().filter(|byte| **byte == b'\n').count() as u64
    }
}

impl Output {
    /// Writes lines; returns the unwritten rest and the reason.
    fn write<'a>(&mut self, lines: &'a [u8]) -> (&'a [u8], io::Result<()>) {
        // A line truncated by a full disk must not run into the next one.
        if self.torn {
            match write_all(&self.file, b"\n") {
                (_, Ok(())) => self.torn = false,
                (_, Err(error)) => return (lines, Err(error)),
            }
        }
        let (rest, result) = write_all(&self.file, lines);
        self.torn = rest.len() < lines.len() && !lines[..lines.len() - rest.len()].ends_with(b"\n");
        (rest, result)
    }
}

/// Writes all bytes, and waits for a slow reader as long as necessary; returns the unwritten rest and the reason.
pub(in crate::observe) fn write_all<'b>(mut file: &File, bytes: &'b [u8]) -> (&'b [u8], io::Result<()>) {
    let mut rest = bytes;
    while !rest.is_empty() {
        match file.write(rest) {
            Ok(0) => return (rest, Err(ErrorKind::WriteZero.into())),
            Ok(n) => rest = &rest[n..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Another process with the same pipe has made it non-blocking.
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(1)),
            Err(error) => return (rest, Err(error)),
        }
    }
    (rest, Ok(()))
}

/// Opens a file for appending. Never blocks: opening a FIFO would otherwise wait for a reader.
fn append(path: &Path) -> io::Result<File> {
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let opened = OpenOptions::new().append(true).create(true).mode(MODE).custom_flags(nonblocking).open(path);
    let file = opened.map_err(|e| match Errno::from_io_error(&e) {
        Some(Errno::NXIO) => io::Error::new(e.kind(), format!("no process reads from this FIFO: {e}")),
        _ => e,
    })?;
    // Writing may block: the writer thread exists for that.
    let flags = fcntl_getfl(&file)?;
    fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
    Ok(file)
}

#[cfg(test)]
impl Sink {
    /// Simulates a write that ended within a line.
    pub(super) fn tear(&self) {
        lock(&self.output).torn = true;
    }
}
