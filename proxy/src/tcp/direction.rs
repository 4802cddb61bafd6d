//! One direction of a connection: from one socket, through the filters, to the other socket.
//!
//! Bytes are read only when everything read before has been sent (or is held by a filter that may hold more), so a slow
//! receiver slows its sender down (backpressure). A connection without traffic needs no buffer, because the worker's
//! connections share one for reading.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::{io::ReadBuf, net::TcpStream};

use super::{TcpFailure, guard::TcpGuard, splice::Pipe};
use crate::{
    chain::network::{ConnectionFlow, Side},
    net::Transport,
    observe::{self, Counter},
    tls::{self, Peer},
    upstream::{ClusterStats, TcpBytes, reason},
};

/// Maximum number of bytes per read.
const MOST: usize = 64 << 10;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; MOST].into());
}

/// Whether a poll moved any bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BytesMoved {
    Some,
    Nothing,
}

/// The state of one direction.
pub(super) struct RelayDirection<'e> {
    guard: &'e TcpGuard,
    /// The side that the bytes come from.
    side: Side,
    /// Bytes past the filters, waiting to be written.
    pending: Bytes,
    /// The pipe with bytes that are being spliced.
    pipe: Option<Pipe>,
    /// Whether the kernel may splice the bytes.
    splices: bool,
    /// Whether written bytes may still await a flush.
    unflushed: bool,
    /// Whether the side has ended.
    ended: bool,
    /// Whether that end was forwarded.
    shut: bool,
    moved: BytesMoved,
    /// The listener's counter of bytes from the client, or to it.
    counter: &'e Counter,
    /// The cluster that the connection goes to, once it is connected.
    cluster: Option<Arc<ClusterStats>>,
}

impl<'e> RelayDirection<'e> {
    pub(super) fn new(guard: &'e TcpGuard, side: Side) -> Self {
        let bytes = &guard.listener().metrics.bytes;
        RelayDirection {
            guard,
            side,
            pending: Bytes::new(),
            pipe: None,
            splices: false,
            unflushed: false,
            ended: false,
            shut: false,
            moved: BytesMoved::Nothing,
            counter: &bytes[side as usize],
            cluster: None,
        }
    }

    /// Called once both sides are connected. `plain`: both are sockets between which the kernel can splice.
    pub(super) fn connected(&mut self, plain: bool, cluster: &Arc<ClusterStats>) {
        self.splices = plain && !self.guard.stream().chain.wants_data(self.side);
        self.cluster = Some(Arc::clone(cluster));
    }

    /// Returns whether the side has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Returns whether the side's end was forwarded, so that nothing is left to do.
    pub(super) fn is_shut(&self) -> bool {
        self.shut
    }

    /// Passes bytes that were read before the relay began to the filters.
    pub(super) fn take_first(&mut self, flow: &mut ConnectionFlow, first: Bytes) -> Result<(), TcpFailure> {
        self.count_received(first.len());
        Ok(flow.data(self.guard.stream(), self.side, first, false)?)
    }

    /// Moves as many bytes as possible now. Either socket may not be connected yet.
    pub(super) fn poll<R: Transport, W: Transport>(
        &mut self,
        flow: &mut ConnectionFlow,
        mut reader: Option<&mut R>,
        mut writer: Option<&mut W>,
        cx: &mut Context<'_>,
    ) -> Result<BytesMoved, TcpFailure> {
        self.moved = BytesMoved::Nothing;
        while let Poll::Ready(sent) = self.poll_send(flow, writer.as_deref_mut(), cx) {
            sent?;
            let Some(reader) = reader.as_deref_mut() else { break };
            if self.ended || flow.is_full(self.guard.stream(), self.side) {
                break;
            }
            match self.poll_receive(flow, reader, writer.as_deref_mut(), cx) {
                Poll::Ready(received) => received?,
                Poll::Pending => break,
            }
        }
        Ok(self.moved)
    }

    /// Sends the bytes that have passed the filters, and the end if it has passed too. Ready when nothing is left to
    /// send.
    pub(super) fn poll_send<W: Transport>(
        &mut self,
        flow: &mut ConnectionFlow,
        writer: Option<&mut W>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), TcpFailure>> {
        match writer {
            Some(writer) => self.poll_write(flow, writer, cx).map_err(|error| self.reset_by_receiver(&error)),
            // Do not read more until this can be sent.
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
        // Drain the pipe first: it is filled only when nothing else is pending.
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
                // The receiver is already gone: it has ended before, or reading from it will report that.
                Err(e) if e.kind() != io::ErrorKind::NotConnected && !self.guard.has_ended_before(self.side) => {
                    return Poll::Ready(Err(e));
                }
                _ => self.shut = true,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Receives some bytes or the end. Called only when everything received before is sent or held.
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
        let stream = self.guard.stream();
        if n == 0 {
            self.ended = true;
            self.guard.ended(self.side);
            return Poll::Ready(Ok(flow.data(stream, self.side, Bytes::new(), true)?));
        }
        self.count_received(n);
        if let Some(bytes) = shown {
            flow.data(stream, self.side, bytes, false)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Lets the kernel receive bytes into a pipe; returns their number, 0 at the end. `None`: splicing is not possible
    /// here, so the bytes must be copied.
    fn poll_fill(&mut self, from: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<Option<usize>>> {
        // Pipes need free file descriptors.
        let Ok(mut pipe) = self.pipe.take().map_or_else(Pipe::take, Ok) else { return Poll::Ready(Ok(None)) };
        match pipe.poll_fill(from, cx) {
            Poll::Ready(Ok(n)) if n > 0 => {
                self.pipe = Some(pipe);
                Poll::Ready(Ok(Some(n)))
            }
            nothing => {
                pipe.give_back();
                match nothing {
                    // Not every kind of socket supports splicing.
                    Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::InvalidInput => Poll::Ready(Ok(None)),
                    nothing => nothing.map_ok(Some),
                }
            }
        }
    }

    /// Reads bytes; returns their number, 0 at the end. If filters may need to see the bytes, they are returned in
    /// `shown`; otherwise as many as possible are written immediately.
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
                // Many peers close their connections without a TLS close_notify. The protocol inside marks its own end.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                Err(error) => return Poll::Ready(Err(self.reset_by_sender(&error))),
            }
            let bytes = buffer.filled();
            let stream = self.guard.stream();
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
        let stream = self.guard.stream();
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
        self.moved = BytesMoved::Some;
        self.guard.stream().state.borrow_mut().received[self.side as usize] += n as u64;
        match self.side {
            Side::Downstream => self.counter.add(observe::shard(), n as u64),
            Side::Upstream => {
                self.count_at_cluster(TcpBytes::Received, n);
                self.guard.answered();
            }
        }
    }

    fn count_sent(&mut self, n: usize) {
        self.moved = BytesMoved::Some;
        self.guard.stream().state.borrow_mut().sent[self.side as usize] += n as u64;
        match self.side {
            Side::Downstream => self.count_at_cluster(TcpBytes::Sent, n),
            Side::Upstream => self.counter.add(observe::shard(), n as u64),
        }
    }

    fn count_at_cluster(&self, direction: TcpBytes, n: usize) {
        if let Some(cluster) = &self.cluster {
            cluster.tcp_bytes(observe::shard(), direction, n as u64);
        }
    }
}
