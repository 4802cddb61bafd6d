//! One direction of a connection: from a socket, past the filters, to the other socket.
//!
//! Bytes are read only when all that was read before has been sent (or is held by a filter that may hold more), so a slow
//! receiver slows its sender down, and a connection without traffic needs no buffer: reading goes to one that the worker's
//! connections share.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::{io::ReadBuf, net::TcpStream};

use super::{TcpClusterMetrics, TcpFailure, guard::TcpGuard, splice::Pipe};
use crate::{
    chain::network::{ConnectionFlow, Side},
    net::Transport,
    observe::{self, Counter},
    tls::{self, Peer},
    upstream::reason,
};

/// How much is read at a time, at most.
const MOST: usize = 64 << 10;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; MOST].into());
}

/// Whether any byte has moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BytesMoved {
    Some,
    Nothing,
}

/// A direction.
pub(super) struct RelayDirection<'e> {
    ending: &'e TcpGuard,
    /// Where its bytes come from.
    side: Side,
    /// On their way out.
    pending: Bytes,
    /// Bytes that are with the kernel.
    pipe: Option<Pipe>,
    /// The kernel may move the bytes.
    splices: bool,
    /// Some of what was written may not have been sent.
    unflushed: bool,
    /// The side has ended.
    ended: bool,
    /// That was passed on.
    shut: bool,
    carried: BytesMoved,
    received: Option<&'e Counter>,
    sent: Option<&'e Counter>,
}

impl<'e> RelayDirection<'e> {
    pub(super) fn new(ending: &'e TcpGuard, side: Side) -> Self {
        let bytes = &ending.site().figures.bytes;
        let (received, sent) = match side {
            Side::Downstream => (Some(&bytes[0]), None),
            Side::Upstream => (None, Some(&bytes[1])),
        };
        RelayDirection {
            ending,
            side,
            pending: Bytes::new(),
            pipe: None,
            splices: false,
            unflushed: false,
            ended: false,
            shut: false,
            carried: BytesMoved::Nothing,
            received,
            sent,
        }
    }

    /// Both sides are there. `plain`: as sockets that the kernel can move bytes between.
    pub(super) fn connected(&mut self, plain: bool, cluster: Option<&'e TcpClusterMetrics>) {
        self.splices = plain && !self.ending.stream().chain.wants_data(self.side);
        match self.side {
            Side::Downstream => self.sent = cluster.map(|c| &c.bytes[0]),
            Side::Upstream => self.received = cluster.map(|c| &c.bytes[1]),
        }
    }

    /// Whether the side has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether its end was passed on, so that nothing is left to do.
    pub(super) fn is_shut(&self) -> bool {
        self.shut
    }

    /// Bytes that were read before there was this.
    pub(super) fn take_first(&mut self, flow: &mut ConnectionFlow, first: Bytes) -> Result<(), TcpFailure> {
        self.count_received(first.len());
        Ok(flow.data(self.ending.stream(), self.side, first, false)?)
    }

    /// Moves as many bytes as can be moved now. Either socket may be missing yet.
    pub(super) fn poll<R: Transport, W: Transport>(
        &mut self,
        flow: &mut ConnectionFlow,
        mut reader: Option<&mut R>,
        mut writer: Option<&mut W>,
        cx: &mut Context<'_>,
    ) -> Result<BytesMoved, TcpFailure> {
        self.carried = BytesMoved::Nothing;
        while let Poll::Ready(sent) = self.poll_send(flow, writer.as_deref_mut(), cx) {
            sent?;
            let Some(reader) = reader.as_deref_mut() else { break };
            if self.ended || flow.is_full(self.ending.stream(), self.side) {
                break;
            }
            match self.poll_receive(flow, reader, writer.as_deref_mut(), cx) {
                Poll::Ready(received) => received?,
                Poll::Pending => break,
            }
        }
        Ok(self.carried)
    }

    /// Sends what is through, and the end if that is; ready when there is nothing left of it.
    pub(super) fn poll_send<W: Transport>(
        &mut self,
        flow: &mut ConnectionFlow,
        writer: Option<&mut W>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), TcpFailure>> {
        match writer {
            Some(writer) => self.poll_write(flow, writer, cx).map_err(|error| self.reset_by_receiver(&error)),
            // Nothing more is read before this could be sent.
            None if self.pending.is_empty() && flow.is_clear(self.side) => Poll::Ready(Ok(())),
            None => Poll::Pending,
        }
    }

    fn poll_write<W: Transport>(
        &mut self,
        flow: &mut ConnectionFlow,
        writer: &mut W,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        // The pipe comes first: it is filled only when there is nothing else.
        while let Some(pipe) = self.pipe.as_mut().filter(|pipe| !pipe.is_empty()) {
            let Some(socket) = writer.plain() else { return Poll::Ready(Err(io::ErrorKind::Unsupported.into())) };
            let n = ready!(pipe.poll_drain(socket, cx))?;
            self.count_sent(n);
        }
        loop {
            if self.pending.is_empty() {
                match flow.pop(self.side) {
                    Some(bytes) => self.pending = bytes,
                    None => break,
                }
            }
            let n = ready!(Pin::new(&mut *writer).poll_write(cx, &self.pending))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.pending.advance(n);
            self.unflushed = true;
            self.count_sent(n);
        }
        if self.unflushed {
            ready!(Pin::new(&mut *writer).poll_flush(cx))?;
            self.unflushed = false;
        }
        if flow.is_over(self.side) && !self.shut {
            match ready!(Pin::new(writer).poll_shutdown(cx)) {
                // It is gone already: it has said so before, or whoever reads from it will notice.
                Err(e) if e.kind() != io::ErrorKind::NotConnected && !self.ending.has_ended_before(self.side) => {
                    return Poll::Ready(Err(e));
                }
                _ => self.shut = true,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes in some bytes, or the end. Called only when all that was taken in before is sent or held.
    fn poll_receive<R: Transport, W: Transport>(
        &mut self,
        flow: &mut ConnectionFlow,
        reader: &mut R,
        writer: Option<&mut W>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), TcpFailure>> {
        let mut shown = None;
        let mut received = None;
        if self.splices
            && let Some(socket) = reader.plain()
        {
            received = ready!(self.poll_fill(socket, cx)).map_err(|error| self.reset_by_sender(&error))?;
            self.splices = received.is_some();
        }
        let n = match received {
            Some(n) => n,
            None => ready!(self.poll_read(flow, reader, writer, &mut shown, cx))?,
        };
        let stream = self.ending.stream();
        if n == 0 {
            self.ended = true;
            self.ending.ended(self.side);
            return Poll::Ready(Ok(flow.data(stream, self.side, Bytes::new(), true)?));
        }
        self.count_received(n);
        if let Some(bytes) = shown {
            flow.data(stream, self.side, bytes, false)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Lets the kernel take bytes: how many, 0 for the end. None: it cannot do that, and copying must do.
    fn poll_fill(&mut self, from: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<Option<usize>>> {
        // Without file descriptors there are no pipes.
        let Ok(mut pipe) = self.pipe.take().map_or_else(Pipe::take, Ok) else { return Poll::Ready(Ok(None)) };
        match pipe.poll_fill(from, cx) {
            Poll::Ready(Ok(n)) if n > 0 => {
                self.pipe = Some(pipe);
                Poll::Ready(Ok(Some(n)))
            }
            nothing => {
                pipe.give_back();
                match nothing {
                    // Not every kind of socket can.
                    Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::InvalidInput => Poll::Ready(Ok(None)),
                    nothing => nothing.map_ok(Some),
                }
            }
        }
    }

    /// Reads bytes: how many, 0 for the end. If filters may want to see them, they come out as `shown`, else they are
    /// written at once, as far as that goes.
    fn poll_read<R: Transport, W: Transport>(
        &mut self,
        flow: &ConnectionFlow,
        reader: &mut R,
        writer: Option<&mut W>,
        shown: &mut Option<Bytes>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<usize, TcpFailure>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            match ready!(Pin::new(reader).poll_read(cx, &mut buffer)) {
                Ok(()) => {}
                // Many peers close their connections without the close_notify of TLS. Whatever is carried knows its own end.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                Err(error) => return Poll::Ready(Err(self.reset_by_sender(&error))),
            }
            let bytes = buffer.filled();
            let stream = self.ending.stream();
            let unseen = flow.is_open(stream) && !stream.chain.wants_data(self.side);
            match writer.filter(|_| unseen && !bytes.is_empty()) {
                None => *shown = Some(Bytes::copy_from_slice(bytes)),
                Some(writer) => {
                    let written = match Pin::new(writer).poll_write(cx, bytes) {
                        Poll::Pending => 0,
                        Poll::Ready(written) => written.map_err(|error| self.reset_by_receiver(&error))?,
                    };
                    self.unflushed = true;
                    self.count_sent(written);
                    self.pending = Bytes::copy_from_slice(&bytes[written..]);
                }
            }
            Poll::Ready(Ok(bytes.len()))
        })
    }

    fn reset_by_sender(&self, error: &io::Error) -> TcpFailure {
        self.reset_by(self.side, error)
    }

    fn reset_by_receiver(&self, error: &io::Error) -> TcpFailure {
        let receiver = match self.side {
            Side::Downstream => Side::Upstream,
            Side::Upstream => Side::Downstream,
        };
        self.reset_by(receiver, error)
    }

    #[cold]
    fn reset_by(&self, side: Side, error: &io::Error) -> TcpFailure {
        let stream = self.ending.stream();
        match side {
            Side::Downstream => {
                let (_, why) = tls::explain(error, Peer::Client);
                stream.failed(side, why);
                TcpFailure::ClientReset
            }
            Side::Upstream => {
                let (_, why) = reason::lost(error);
                stream.failed(side, why);
                TcpFailure::UpstreamReset
            }
        }
    }

    fn count_received(&mut self, n: usize) {
        self.carried = BytesMoved::Some;
        self.ending.stream().state.borrow_mut().received[self.side as usize] += n as u64;
        if let Some(counter) = self.received {
            counter.add(observe::shard(), n as u64);
        }
        if self.side == Side::Upstream {
            self.ending.answered();
        }
    }

    fn count_sent(&mut self, n: usize) {
        self.carried = BytesMoved::Some;
        self.ending.stream().state.borrow_mut().sent[self.side as usize] += n as u64;
        if let Some(counter) = self.sent {
            counter.add(observe::shard(), n as u64);
        }
    }
}
