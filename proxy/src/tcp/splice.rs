//! Splicing: the kernel moves bytes from one socket to another through a pipe, without copying them into this process
//! (splice(2)).
//!
//! A direction owns a pipe only while bytes are in it. So idle connections have none, and a worker needs only as many
//! pipes as directions moved bytes at the same time.

use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd, OwnedFd},
    task::{Context, Poll, ready},
};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, pipe_with, splice},
};
use tokio::{io::Interest, net::TcpStream};

use crate::net::descriptors::DescriptorUse;

/// Maximum number of bytes moved at a time: the default capacity of a pipe.
const MOST: usize = 64 << 10;

/// Empty pipes that a worker keeps for reuse.
const POOLED: usize = 32;

thread_local! {
    static POOL: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// A pipe, and the number of bytes in it.
#[derive(Debug)]
pub(super) struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    len: usize,
}

/// Returns the number of pipes kept for reuse.
#[cfg(test)]
pub(super) fn pooled() -> usize {
    POOL.with_borrow(Vec::len)
}

impl Pipe {
    /// Returns an empty pipe, a pooled one if available.
    pub(super) fn take() -> io::Result<Pipe> {
        if let Some(pipe) = POOL.with_borrow_mut(Vec::pop) {
            return Ok(pipe);
        }
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        if !DescriptorUse::Upstream.may_keep(reader.as_fd()) {
            return Err(Errno::MFILE.into());
        }
        Ok(Pipe { reader, writer, len: 0 })
    }

    /// Returns an empty pipe to the pool. A pipe with bytes in it is closed.
    pub(super) fn give_back(self) {
        if self.len == 0 {
            POOL.with_borrow_mut(|pool| {
                if pool.len() < POOLED {
                    pool.push(self);
                }
            });
        }
    }

    /// Returns whether the pipe is empty.
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Moves bytes from a socket into the pipe, which must be empty: only then does "would block" refer to the socket.
    /// 0 means the socket's end.
    pub(super) fn poll_fill(&mut self, from: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        debug_assert!(self.is_empty(), "a pipe is filled only when it is empty");
        loop {
            ready!(from.poll_read_ready(cx))?;
            match from.try_io(Interest::READABLE, || Ok(splice(from, None, &self.writer, None, MOST, FLAGS)?)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
                Ok(n) => {
                    self.len = n;
                    return Poll::Ready(Ok(n));
                }
            }
        }
    }

    /// Moves bytes from the pipe, which must not be empty, into a socket.
    pub(super) fn poll_drain(&mut self, to: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            ready!(to.poll_write_ready(cx))?;
            match to.try_io(Interest::WRITABLE, || Ok(splice(&self.reader, None, to, None, self.len, FLAGS)?)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(n) => {
                    self.len -= n;
                    return Poll::Ready(Ok(n));
                }
            }
        }
    }
}

const FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);
