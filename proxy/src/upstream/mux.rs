//! One HTTP/2 connection of a worker to an endpoint, and a request's stream on it.

use std::{
    cell::{Cell, RefCell},
    error::Error,
    future::poll_fn,
    io,
    pin::Pin,
    rc::{Rc, Weak},
    sync::atomic::Ordering::Relaxed,
};

use aws_lc_rs::digest;
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{CONNECTION, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE},
    uri,
};
use http_body::Body;
use hyper::client::conn::http2::{Builder, SendRequest};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::spawn_local,
    time::Instant,
};

use super::{
    body::{Duplex, Held, PooledBody},
    failure::{Failure, FailureKind, ProtocolError},
    pool::Head,
    slots::{ClusterPool, Permit, Slot},
};
use crate::{
    config::model,
    h1::encoder,
    net::{LocalExec, Metered, TokioIo, TokioTimer, Traffic},
};

/// Bytes of a request's body that wait in a stream for the upstream to take them.
const SEND_BUFFER: usize = 128 << 10;

/// A connection. Its streams own it, and so does the slot as long as it takes new ones.
pub(super) struct Mux<B> {
    pool: Weak<ClusterPool<B>>,
    slot: Rc<Slot<B>>,
    /// Its place among the connections; gone once the place has been given to another one.
    permit: Cell<Option<Permit<B>>>,
    sender: RefCell<SendRequest<B>>,
    traffic: Rc<Traffic>,
    secure: bool,
    /// Streams now.
    active: Cell<u32>,
    /// Streams at one time, as the upstream has it and the configuration wants it.
    most: Rc<Cell<u32>>,
    served: Cell<u32>,
    /// When the sweep first saw it without a stream.
    pub(super) seen_idle: Cell<Option<Instant>>,
}

/// A builder for a cluster's connections.
pub(super) fn builder(config: &model::Http2, max_head: usize) -> Builder<LocalExec> {
    let mut http = Builder::new(LocalExec);
    http.timer(TokioTimer)
        .initial_stream_window_size(config.stream_window.window())
        .initial_connection_window_size(config.connection_window.window())
        .max_header_list_size(u32::try_from(max_head).unwrap_or(u32::MAX))
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(config.ping_interval.bound())
        .keep_alive_timeout(config.ping_timeout.0);
    http
}

impl<B> Mux<B>
where
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    /// Speaks HTTP/2 on a connected stream. Needs a place to spawn local tasks.
    pub(super) async fn open(
        stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
        secure: bool,
        mut http: Builder<LocalExec>,
        pool: &Rc<ClusterPool<B>>,
        permit: Permit<B>,
    ) -> hyper::Result<Rc<Self>> {
        let traffic = Rc::new(Traffic::default());
        let io = TokioIo::new(Metered::new(stream, Rc::clone(&traffic)));
        let wanted = pool.cluster().http2.max_concurrent_streams;
        let slot = Rc::clone(&permit.slot);
        // Until its settings have come, it is taken to allow as much as the connection before.
        let most = Rc::new(Cell::new(wanted.min(slot.streams.get())));
        http.initial_max_send_streams(most.get() as usize);
        let (sender, mut connection) = http.handshake(io).await?;
        Ok(Rc::new_cyclic(|mux: &Weak<Mux<B>>| {
            let (mux, slot_of_task, most_of_task) = (Weak::clone(mux), Rc::clone(&slot), Rc::clone(&most));
            spawn_local(async move {
                let ended = poll_fn(|cx| {
                    let ended = Pin::new(&mut connection).poll(cx);
                    let theirs = u32::try_from(connection.current_max_send_streams()).unwrap_or(u32::MAX);
                    most_of_task.set(wanted.min(theirs));
                    slot_of_task.streams.set(theirs);
                    ended
                });
                if let Err(error) = ended.await {
                    tracing::debug!(address = %slot_of_task.endpoint.address, %error, "upstream connection ended");
                }
                slot_of_task.forget_mux(&mux);
            });
            Mux {
                pool: Rc::downgrade(pool),
                slot,
                permit: Cell::new(Some(permit)),
                sender: RefCell::new(sender),
                traffic,
                secure,
                active: Cell::new(0),
                most,
                served: Cell::new(0),
                seen_idle: Cell::new(None),
            }
        }))
    }

    /// Sends a request, in the form of HTTP/1.1, and waits for the head of its response. Dropping the future resets the
    /// stream.
    pub(super) async fn exchange(
        place: Place<B>,
        head: &impl Head,
        body: B,
    ) -> Result<Response<PooledBody>, Failure<B>> {
        let mux = &place.0;
        let reused = mux.served.get() > 1;
        let received = mux.traffic.received();
        let (request, key) = head.show(|head| into_h2(head, body, mux.secure));
        let switches = request.method() == Method::CONNECT;
        let bodiless = request.body().is_end_stream();
        let response = mux.sender.borrow_mut().try_send_request(request);
        let mut error = match response.await {
            Ok(mut response) if switches && response.status().is_success() => {
                let upgraded = hyper::upgrade::on(&mut response);
                let upstream = async move {
                    let io = upgraded.await.map_err(io::Error::other)?;
                    // The stream's place is held as long as the stream.
                    Ok(Box::new(Held::new(TokioIo::new(io), place)) as Box<dyn Duplex>)
                };
                let (mut parts, _) = response.into_parts();
                parts.status = StatusCode::SWITCHING_PROTOCOLS;
                if let Some(key) = &key {
                    parts.headers.insert(SEC_WEBSOCKET_ACCEPT, accept(key));
                }
                return Ok(Response::from_parts(parts, PooledBody::switching(Box::pin(upstream))));
            }
            Ok(response) => {
                return Ok(response.map(|incoming| PooledBody::of_stream(incoming, bodiless, Box::new(place))));
            }
            Err(error) => error,
        };
        let body = error.take_message().map(|request| Box::new(request.into_body()));
        let source = error.into_error();
        let kind = match reason(&source) {
            Some(Stopped::Protocol) => FailureKind::Protocol { source: ProtocolError::Http2(source) },
            _ if source.is_user() => FailureKind::RequestBody { source: Box::new(source) },
            stopped => FailureKind::Reset {
                // What was not processed is as good as sent on a connection that was closed already.
                reused: reused || stopped == Some(Stopped::Unprocessed),
                request_sent: stopped != Some(Stopped::Unprocessed),
                bytes_received: mux.traffic.received() > received,
                source: io::Error::other(source),
            },
        };
        Err(Failure { kind, body })
    }
}

impl<B> Mux<B> {
    fn has_room(&self, requests: u32) -> bool {
        // An upstream that allows none for a while is asked one at a time: the request waits in the connection then.
        self.active.get() < self.most.get().max(1) && (requests == 0 || self.served.get() < requests)
    }

    /// Whether hyper knows it to be closed, or going away.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.borrow().is_closed()
    }

    /// Closes it when its streams have ended, and leaves its place among the connections to another one.
    pub(super) fn close_for_permit(self: Rc<Self>) -> Option<Permit<B>> {
        self.permit.take()
    }

    /// Whether no stream is on it.
    pub(super) fn is_idle(&self) -> bool {
        self.active.get() == 0
    }

    /// Whether it will take another stream, now or later, under a bound on requests per connection (0: none).
    pub(super) fn is_useful(&self, requests: u32) -> bool {
        !self.is_closed() && (requests == 0 || self.served.get() < requests)
    }

    /// A stream's place, if there is one.
    pub(super) fn enter(self: &Rc<Self>, requests: u32) -> Option<Place<B>> {
        if !self.has_room(requests) {
            return None;
        }
        if self.active.replace(self.active.get() + 1) == 0 {
            self.slot.stats.idle.fetch_sub(1, Relaxed);
        }
        self.served.set(self.served.get().saturating_add(1));
        self.seen_idle.set(None);
        Some(Place(Rc::clone(self)))
    }

    /// Counts it as a connection without a request, which it is at first.
    pub(super) fn count_idle(&self) {
        self.slot.stats.idle.fetch_add(1, Relaxed);
    }
}

impl<B> Drop for Mux<B> {
    fn drop(&mut self) {
        if self.is_idle() {
            self.slot.stats.idle.fetch_sub(1, Relaxed);
        }
    }
}

/// A stream's place on a connection.
pub(super) struct Place<B>(Rc<Mux<B>>);

impl<B> Drop for Place<B> {
    fn drop(&mut self) {
        let mux = &self.0;
        mux.active.set(mux.active.get() - 1);
        if mux.is_idle() {
            mux.count_idle();
        }
        if let Some(pool) = mux.pool.upgrade() {
            pool.stream_ended(mux, &mux.slot);
        }
    }
}

/// How an upstream has ended a stream.
#[derive(Debug, PartialEq, Eq)]
enum Stopped {
    /// It has done nothing of the request, and says so: any request may be sent again (RFC 9113 section 8.7).
    Unprocessed,
    /// It does not speak HTTP/2 as it should.
    Protocol,
}

fn reason(error: &hyper::Error) -> Option<Stopped> {
    let error = error.source()?.downcast_ref::<h2::Error>()?;
    match error.reason() {
        // Streams that a GOAWAY ends are those after the last one that was processed.
        _ if error.is_remote() && error.is_go_away() => Some(Stopped::Unprocessed),
        Some(h2::Reason::REFUSED_STREAM) => Some(Stopped::Unprocessed),
        Some(h2::Reason::PROTOCOL_ERROR | h2::Reason::COMPRESSION_ERROR | h2::Reason::FRAME_SIZE_ERROR)
            if error.is_library() =>
        {
            Some(Stopped::Protocol)
        }
        _ => None,
    }
}

/// Brings a request into the form of HTTP/2: an absolute target, no `Host`, and `CONNECT` with a `:protocol` for an upgrade
/// (RFC 9113 section 8.3.1, RFC 8441 section 4). With it, the key of a WebSocket's handshake, which HTTP/2 does not have.
fn into_h2<B>(head: &encoder::RequestHead<'_>, body: B, secure: bool) -> (Request<B>, Option<HeaderValue>) {
    let mut request = Request::new(body);
    *request.version_mut() = Version::HTTP_2;
    *request.method_mut() = head.method.clone();
    *request.headers_mut() = head.to_fields();
    let host = request.headers_mut().remove(HOST);
    let mut uri = uri::Parts::default();
    uri.authority = host.as_ref().and_then(|host| uri::Authority::try_from(host.as_bytes()).ok());
    // Without a host there can be no scheme.
    let scheme = if secure { uri::Scheme::HTTPS } else { uri::Scheme::HTTP };
    uri.scheme = uri.authority.is_some().then_some(scheme);
    let target = uri::PathAndQuery::try_from(head.target);
    uri.path_and_query = Some(target.unwrap_or(uri::PathAndQuery::from_static("/")));
    *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
    if request.headers_mut().remove(CONNECTION).is_none() {
        request.headers_mut().remove(UPGRADE);
        return (request, None);
    }
    let token = request.headers_mut().remove(UPGRADE);
    if let Some(token) = token.as_ref().and_then(|token| token.to_str().ok()) {
        *request.method_mut() = Method::CONNECT;
        request.extensions_mut().insert(hyper::ext::Protocol::from(&*token.to_ascii_lowercase()));
    }
    let key = request.headers_mut().remove(SEC_WEBSOCKET_KEY);
    (request, key)
}

/// The answer to a WebSocket's key (RFC 6455 section 4.2.2).
fn accept(key: &HeaderValue) -> HeaderValue {
    let mut sha1 = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    sha1.update(key.as_bytes());
    sha1.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    HeaderValue::from_str(&BASE64_STANDARD.encode(sha1.finish())).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_answered_as_the_standard_says() {
        // RFC 6455 section 1.3.
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn an_upgrade_becomes_an_extended_connect() {
        let request = Request::get("/a?b").header(HOST, "h:1").header("x", "y");
        let request = request.header(CONNECTION, "upgrade").header(UPGRADE, "WebSocket");
        let (parts, ()) = request.header(SEC_WEBSOCKET_KEY, "k").body(()).unwrap().into_parts();
        let (there, key) = into_h2(&encoder::RequestHead::of(&parts), (), true);
        assert_eq!((there.method(), there.uri().to_string().as_str()), (&Method::CONNECT, "https://h:1/a?b"));
        assert_eq!(there.extensions().get::<hyper::ext::Protocol>().unwrap().as_str(), "websocket");
        assert_eq!(there.headers().len(), 1);
        assert_eq!(key, Some(HeaderValue::from_static("k")));
    }
}
