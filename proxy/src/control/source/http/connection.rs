//! The connection to a server: opened when needed, kept open between requests, never used after a failure.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use hyper::{body::Incoming, client::conn::http1};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::AbortHandle,
    time::{Instant, timeout},
};

use super::answer::explain;
use crate::net::{TokioIo, pass_writes};

/// The limit on an answer's head, in bytes.
const MAX_HEAD: usize = 64 << 10;

/// The limit on all heads of an answer, in bytes, with informational ones (1xx).
const MAX_HEADS: usize = 256 << 10;

/// Opens connections to a server.
pub trait Dial {
    /// A connection.
    type Io: AsyncRead + AsyncWrite + Unpin + 'static;

    /// Opens a connection. The error says why that failed.
    fn dial(&self) -> impl Future<Output = Result<Self::Io, String>>;
}

/// The way to a server.
pub(super) struct Link<D> {
    dial: D,
    /// The time for an answer's head.
    patience: Duration,
    /// The connection, while it may be used.
    open: Option<Open>,
}

impl<D: Dial> Link<D> {
    pub fn new(dial: D, patience: Duration) -> Link<D> {
        Link { dial, patience, open: None }
    }

    /// Closes the connection.
    pub fn close(&mut self) {
        self.open = None;
    }

    /// Sends a request. Returns the answer, and how long its head took.
    pub async fn send(&mut self, request: Request<Empty<Bytes>>) -> Result<(Response<Incoming>, Duration), String> {
        let late = |_| format!("the server did not answer within {:?}", self.patience);
        if let Some(mut open) = self.open.take() {
            let asked = Instant::now();
            match timeout(self.patience, open.send(request.clone())).await.map_err(late)? {
                Ok(response) => {
                    self.open = Some(open);
                    return Ok((response, asked.elapsed()));
                }
                Err(error) if open.was_closed(&error) => {}
                Err(error) => return Err(broken(&error)),
            }
        }
        let mut open = Open::new(self.dial.dial().await?).await?;
        let asked = Instant::now();
        let sent = timeout(self.patience, open.send(request)).await.map_err(late)?;
        let response = sent.map_err(|error| broken(&error))?;
        self.open = Some(open);
        Ok((response, asked.elapsed()))
    }
}

fn broken(error: &hyper::Error) -> String {
    format!("the server's answer is invalid or incomplete: {}", explain(error))
}

/// An open connection. Dropping it closes it.
struct Open {
    sender: http1::SendRequest<Empty<Bytes>>,
    task: AbortHandle,
    /// The number of bytes that may arrive before the end of the head.
    budget: Rc<Cell<usize>>,
}

impl Open {
    async fn new(io: impl AsyncRead + AsyncWrite + Unpin + 'static) -> Result<Open, String> {
        let budget = Rc::new(Cell::new(usize::MAX));
        let io = TokioIo::new(Budgeted { io, budget: budget.clone() });
        let handshake = http1::Builder::new().max_header_size(MAX_HEAD).handshake(io).await;
        let (sender, connection) = handshake.map_err(|error| broken(&error))?;
        // The sender gets the connection's errors.
        let task = tokio::task::spawn_local(async { drop(connection.await) }).abort_handle();
        Ok(Open { sender, task, budget })
    }

    async fn send(&mut self, request: Request<Empty<Bytes>>) -> Result<Response<Incoming>, hyper::Error> {
        self.sender.ready().await?;
        self.budget.set(MAX_HEADS);
        let response = self.sender.send_request(request).await?;
        self.budget.set(usize::MAX);
        Ok(response)
    }

    /// Whether the server has closed the connection instead of answering. That can happen to any connection that was used
    /// before, and is not a failure: servers limit the life of connections.
    fn was_closed(&self, error: &hyper::Error) -> bool {
        !error.is_parse() && self.budget.get() > 0
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A stream of which only a number of bytes is read. hyper reads any number of informational heads.
struct Budgeted<T> {
    io: T,
    budget: Rc<Cell<usize>>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Budgeted<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.budget.get() == 0 {
            return Poll::Ready(Err(io::Error::other("the head is too large")));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let read = buf.filled().len() - before;
        // What is read beyond the budget is at most one buffer.
        self.budget.set(self.budget.get().saturating_sub(read));
        Poll::Ready(Ok(()))
    }
}

pass_writes!([T: AsyncWrite + Unpin] Budgeted<T>, io);
