//! Where a log's lines end up: standard output, standard error, or a file that can be opened again under its name, so
//! that it can be rotated.

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

/// Only its owner and group may read a log: addresses and paths are personal data.
const MODE: u32 = 0o640;

#[derive(Debug)]
pub(super) struct Sink {
    name: String,
    path: Option<PathBuf>,
    /// Used by the writer thread alone.
    output: Mutex<Output>,
    /// What [`Sink::reopen`] opened. Apart from `output`, so that whoever asks for it never waits for a slow disk.
    next: Mutex<Option<File>>,
}

#[derive(Debug)]
struct Output {
    file: File,
    /// The last write ended amid a line.
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
            // A descriptor of its own: the standard library's would look for line ends and flush at each.
            "stdout" => (None, File::from(io::stdout().as_fd().try_clone_to_owned()?)),
            "stderr" => (None, File::from(io::stderr().as_fd().try_clone_to_owned()?)),
            path => (Some(PathBuf::from(path)), append(path.as_ref())?),
        };
        Ok(Sink { name: to.to_owned(), path, output: Mutex::new(Output::new(file)), next: Mutex::new(None) })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Opens the file of this name anew; the writer goes over to it before its next write.
    pub(super) fn reopen(&self) -> io::Result<()> {
        if let Some(path) = &self.path {
            *lock(&self.next) = Some(append(path)?);
        }
        Ok(())
    }

    /// Goes over to what [`Sink::reopen`] opened, so that a deleted file's space is free even if nothing is logged.
    pub(super) fn turn_over(&self) {
        if let Some(file) = lock(&self.next).take() {
            *lock(&self.output) = Output::new(file);
        }
    }

    /// Writes whole lines. Gives the number of those that could not be written.
    pub(super) fn write(&self, lines: &[u8]) -> u64 {
        self.turn_over();
        let mut output = lock(&self.output);
        let (rest, result) = output.write(lines);
        match result {
            Ok(()) if output.failing => {
                output.failing = false;
                tracing::info!(target: target::ACCESS_LOG, to = self.name, "the access log can be written again");
            }
            // Once, not for each buffer.
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
    /// What was not written, and why.
    fn write<'a>(&mut self, lines: &'a [u8]) -> (&'a [u8], io::Result<()>) {
        // A line that a full disk cut off must not run into the next one.
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

/// What was not written, and why. Waits for as long as whoever reads makes it wait.
pub(in crate::observe) fn write_all<'b>(mut file: &File, bytes: &'b [u8]) -> (&'b [u8], io::Result<()>) {
    let mut rest = bytes;
    while !rest.is_empty() {
        match file.write(rest) {
            Ok(0) => return (rest, Err(ErrorKind::WriteZero.into())),
            Ok(n) => rest = &rest[n..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Another process at the same pipe has made it non-blocking.
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(1)),
            Err(error) => return (rest, Err(error)),
        }
    }
    (rest, Ok(()))
}

/// Never waits: a FIFO without a reader would hold up whoever opens it, for as long as there is none.
fn append(path: &Path) -> io::Result<File> {
    let at_once = OFlags::NONBLOCK.bits().cast_signed();
    let opened = OpenOptions::new().append(true).create(true).mode(MODE).custom_flags(at_once).open(path);
    let file = opened.map_err(|e| match Errno::from_io_error(&e) {
        Some(Errno::NXIO) => io::Error::new(e.kind(), format!("nobody reads from this FIFO: {e}")),
        _ => e,
    })?;
    // Writing may wait: that is what the writer thread is for.
    let flags = fcntl_getfl(&file)?;
    fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
    Ok(file)
}

#[cfg(test)]
impl Sink {
    /// As if the last write had ended amid a line.
    pub(super) fn tear(&self) {
        lock(&self.output).torn = true;
    }
}
