//! An open connection: opened when needed, kept open between requests, never used after a failure.

use std::{
    cell::Cell,
    error::Error as _,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, Uri, header, uri};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::{AbortHandle, spawn_local},
};

use super::{
    error::{Error, explain, reset},
    server::Version,
};
use crate::{
    config::url::HttpUrl,
    net::{DetectedProtocol, FirstBytes, LocalExecutor, Recording, TokioIo, pass_writes},
};

/// The limit on an answer's head, in bytes.
const MAX_HEAD: u32 = 64 << 10;

/// The limit on all heads of an HTTP/1.1 answer, in bytes, with informational ones (1xx).
const MAX_HEADS: usize = 256 << 10;

/// The flow control window of an HTTP/2 stream, and of a connection, in bytes.
const WINDOW: u32 = 1 << 20;

/// The `User-Agent` of requests that do not set one.
const AGENT: HeaderValue = HeaderValue::from_static(concat!("tollgate/", env!("CARGO_PKG_VERSION")));

/// What requests on a connection say about their destination.
pub(super) struct Destination {
    scheme: uri::Scheme,
    authority: uri::Authority,
    host: HeaderValue,
}

impl Destination {
    pub(super) fn new(url: &HttpUrl) -> Destination {
        // A URL's authority is valid in both places.
        let authority = url.authority.parse().unwrap_or_else(|_| uri::Authority::from_static("localhost"));
        let host = HeaderValue::from_str(&url.authority).unwrap_or(HeaderValue::from_static("localhost"));
        let scheme = if url.is_tls { uri::Scheme::HTTPS } else { uri::Scheme::HTTP };
        Destination { scheme, authority, host }
    }
}

/// An open connection.
pub(super) struct Connection {
    sender: Sender,
    driver: Rc<Driver>,
    /// The number of bytes that may arrive before the end of an HTTP/1.1 head.
    budget: Rc<Cell<usize>>,
    first: Rc<Cell<FirstBytes>>,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// hyper's task for a connection. Dropping it closes the connection.
#[derive(Debug)]
pub(super) struct Driver(AbortHandle);

impl Driver {
    fn of(connection: impl Future<Output = hyper::Result<()>> + 'static) -> Rc<Driver> {
        // The sender gets the connection's errors.
        Rc::new(Driver(spawn_local(async { drop(connection.await) }).abort_handle()))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Connection {
    pub(super) async fn open(
        io: impl AsyncRead + AsyncWrite + Unpin + 'static,
        version: Version,
    ) -> Result<Connection, Error> {
        let budget = Rc::new(Cell::new(usize::MAX));
        let (io, first) = Recording::new(io);
        let io = TokioIo::new(Budgeted { io, budget: budget.clone() });
        let failed = |error: hyper::Error| Error::Invalid(explain(&error));
        let (sender, driver) = match version {
            Version::Http1 => {
                let builder = http1::Builder::new().max_header_size(MAX_HEAD as usize).handshake(io);
                let (sender, connection) = builder.await.map_err(failed)?;
                (Sender::Http1(sender), Driver::of(connection))
            }
            Version::Http2 => {
                let mut builder = http2::Builder::new(LocalExecutor);
                builder.max_header_list_size(MAX_HEAD);
                builder.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
                let (sender, connection) = builder.handshake(io).await.map_err(failed)?;
                (Sender::Http2(sender), Driver::of(connection))
            }
        };
        Ok(Connection { sender, driver, budget, first })
    }

    pub(super) fn driver(&self) -> Rc<Driver> {
        self.driver.clone()
    }

    /// Sends a request whose target is a path. Returns the answer once its head has arrived.
    pub(super) async fn send(
        &mut self,
        mut request: Request<Full<Bytes>>,
        to: &Destination,
    ) -> Result<Response<Incoming>, hyper::Error> {
        request.headers_mut().entry(header::USER_AGENT).or_insert(AGENT);
        match &mut self.sender {
            Sender::Http1(sender) => {
                request.headers_mut().insert(header::HOST, to.host.clone());
                sender.ready().await?;
                self.budget.set(MAX_HEADS);
                let response = sender.send_request(request).await?;
                self.budget.set(usize::MAX);
                Ok(response)
            }
            Sender::Http2(sender) => {
                let path = request.uri().path_and_query().cloned();
                let uri = Uri::builder().scheme(to.scheme.clone()).authority(to.authority.clone());
                // A path with a scheme and an authority is a valid URI.
                let uri = uri.path_and_query(path.unwrap_or(uri::PathAndQuery::from_static("/"))).build();
                *request.uri_mut() = uri.unwrap_or_default();
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    /// Whether a request that failed may be sent again on another connection. That a connection is closed can happen to
    /// any that was used before, and is not a failure: servers limit the life of connections. A request that may have
    /// been processed is repeated only if that is harmless.
    pub(super) fn may_repeat(&self, error: &hyper::Error, method: &Method) -> bool {
        // It was never sent.
        if error.is_canceled() || error.is_closed() {
            return true;
        }
        match &self.sender {
            Sender::Http1(_) => method.is_idempotent() && !error.is_parse() && self.budget.get() > 0,
            Sender::Http2(_) => {
                let Some(error) = error.source().and_then(|error| error.downcast_ref::<h2::Error>()) else {
                    return false;
                };
                let unprocessed = error.is_remote()
                    && match error.reason() {
                        Some(h2::Reason::REFUSED_STREAM) => true,
                        Some(h2::Reason::NO_ERROR) => error.is_go_away(),
                        _ => false,
                    };
                unprocessed || (method.is_idempotent() && error.is_io())
            }
        }
    }

    /// Describes an error, with what the server speaks instead of the expected protocol.
    pub(super) fn failure(&self, error: &hyper::Error) -> Error {
        if let Some(reason) = reset(error) {
            return Error::Reset { reason, why: explain(error) };
        }
        let hint = match (&self.sender, self.first.get().look()) {
            (_, DetectedProtocol::Tls) => ": the server speaks TLS; write https:// in the URL",
            (Sender::Http1(_), DetectedProtocol::Http2) => ": the server speaks HTTP/2, not HTTP/1.1",
            (Sender::Http2(_), DetectedProtocol::Http1) => ": the server speaks HTTP/1.1, not HTTP/2",
            _ => "",
        };
        Error::Invalid(explain(error) + hint)
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
