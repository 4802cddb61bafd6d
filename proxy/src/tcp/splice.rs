//! Bytes that the kernel moves from one socket to another through a pipe, without this process ever having them
//! (splice(2)).
//!
//! A pipe belongs to a direction only while there are bytes in it, so connections that are idle have none, and a worker has
//! as many as it has moved bytes at one time.

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

/// How much is moved at a time, at most: what a pipe holds, if the system has not been told otherwise.
const MOST: usize = 64 << 10;

/// Empty pipes that a worker keeps.
const POOLED: usize = 32;

thread_local! {
    static POOL: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// A pipe, and how many bytes are in it.
#[derive(Debug)]
pub(super) struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    len: usize,
}

/// How many pipes wait to be used again.
#[cfg(test)]
pub(super) fn pooled() -> usize {
    POOL.with_borrow(Vec::len)
}

impl Pipe {
    /// An empty pipe, one that was used before if there is one.
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

    /// Keeps an empty pipe for others. One with bytes in it is closed.
    pub(super) fn give_back(self) {
        if self.len == 0 {
            POOL.with_borrow_mut(|pool| {
                if pool.len() < POOLED {
                    pool.push(self);
                }
            });
        }
    }

    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Moves bytes from a socket into the pipe, which must be empty: only then "would block" speaks of the socket. 0: the
    /// socket's end.
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
