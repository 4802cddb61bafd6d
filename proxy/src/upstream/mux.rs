//! One HTTP/2 connection of a worker to an endpoint, and the streams of requests on it.

use std::{
    cell::{Cell, OnceCell, RefCell},
    error::Error,
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::{Rc, Weak},
    sync::atomic::Ordering::Relaxed,
    task::{Context, Poll, Waker},
};

use aws_lc_rs::digest;
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use h2::{
    Reason, RecvStream, SendStream,
    client::{self, ResponseFuture, SendRequest},
    ext::Protocol,
};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{CONNECTION, CONTENT_LENGTH, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, TRAILER, UPGRADE},
    uri,
};
use http_body::{Body, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
    task::{AbortHandle, spawn_local},
    time::Instant,
};

use super::{
    body::{BodyGuard, PooledBody, WithGuard},
    endpoint_pool::{ClusterPool, ConnectionPermit, EndpointPool},
    failure::{MOST_INTERIM, ProtocolError, RequestError, RequestErrorKind, Retryable},
    head::Head,
    reason::{AlpnMismatch, lost},
};
use crate::{
    config::model,
    h1::encoder,
    h2::{
        BodySender, Ended, IncomingBody, Io, KeepAlive, ScreenedIo, SendError, StreamEnds, Tunnel, WatchedIo,
        content_length, measure, remove_of_connection,
    },
    net::{DetectedProtocol, FirstBytes, Transport},
    observe::target,
    tls,
};

/// Bytes of a request's body buffered per stream for the upstream.
const SEND_BUFFER: usize = 128 << 10;

/// Number of streams reset by the proxy after which a connection accepts no new ones. Servers close connections with
/// too many resets, together with all their streams: Envoy from 250 resets before a response, others from 500 or 1000
/// of any kind. Clients decide which streams are reset, so the limit must not be reached on a connection that many of
/// them share. With the default number of streams per connection, it gets at most twice as many resets.
const MOST_RESETS: u32 = 100;

/// Length of a frame's header in bytes (RFC 9113 section 4.1).
const FRAME_HEADER: u64 = 9;

/// A connection. It is owned by its streams and, as long as it accepts new ones, by the endpoint's pool.
pub(super) struct H2Connection<B> {
    pool: Weak<ClusterPool<B>>,
    slot: Rc<EndpointPool<B>>,
    /// Its share of the connection limit; `None` once that was passed to another connection.
    permit: Cell<Option<ConnectionPermit<B>>>,
    sender: RefCell<SendRequest<Bytes>>,
    under: H2Transport,
    /// Maximum size in bytes of a response's head, and of its trailers.
    max_head: usize,
    state: Rc<ConnectionState>,
    served: Cell<u32>,
    /// When a sweep first found it without streams.
    pub(super) seen_idle: Cell<Option<Instant>>,
}

/// Properties of the underlying transport.
#[derive(Debug, Clone, Copy)]
pub(super) struct H2Transport {
    /// Whether it is TLS.
    pub(super) secure: bool,
    /// Whether the endpoint chose no protocol by ALPN, so that HTTP/2 is only assumed.
    pub(super) assumed: bool,
    /// Its local address.
    pub(super) local: Option<SocketAddr>,
    /// Whether it is reserved for one request.
    pub(super) alone: bool,
}

/// Encoded size of a head beyond which an upstream may close the whole connection, unless it has announced that it
/// accepts more: nginx does so for a field of more than 8 KiB, and a head with such a field counts for more than this.
const LONG: usize = 8 << 10;

/// The properties of a request for which an upstream may close the connection.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RequestWeight {
    /// The size of its head as HTTP/2 counts it.
    head: usize,
    /// The maximum encoded size of its head.
    coded: usize,
    /// Whether it announces trailers.
    trailers: bool,
}

impl RequestWeight {
    pub(super) fn of(head: &encoder::RequestHead<'_>, bodiless: bool) -> RequestWeight {
        let size = head.list_size();
        // Huffman coding never makes a text four times as long.
        let coded = if size > LONG / 4 {
            head.size(|text| text.len().max(crate::h2::hpack::huffman::length(text)))
        } else {
            size
        };
        RequestWeight { head: size, coded, trailers: !bodiless && head.get(&TRAILER).is_some() }
    }

    /// Also records whether the body is known to have trailers.
    pub(super) fn with_trailers(self, known: bool) -> RequestWeight {
        RequestWeight { trailers: self.trailers || known, ..self }
    }

    /// Returns whether it must not share a connection. `max_head`: the endpoint's announced limit on heads.
    pub(super) fn is_alone(self, max_head: Option<u32>) -> bool {
        self.trailers || self.coded > max_head.map_or(LONG, |most| most as usize)
    }

    /// Returns the reason for not sending it to an endpoint with this limit.
    pub(super) fn refused(self, max_head: Option<u32>) -> Option<RequestErrorKind> {
        let limit = max_head.filter(|most| self.head > *most as usize)?;
        Some(RequestErrorKind::HeadTooLong { size: self.head, limit })
    }
}

/// State shared by a connection and its task.
struct ConnectionState {
    /// Active streams.
    active: Cell<u32>,
    /// Streams reset by the proxy.
    resets: Cell<u32>,
    /// Maximum concurrent streams, by the upstream's settings and the configuration.
    most: Cell<u32>,
    /// Bytes received.
    received: Cell<u64>,
    /// The stream that began last.
    begun: Cell<u32>,
    /// The endpoint's first bytes.
    first: Cell<FirstBytes>,
    /// Whether the endpoint's settings have arrived, or never will.
    settled: Cell<bool>,
    settling: Notify,
    /// The error that ended the connection, which is more specific than what its streams are told.
    end: OnceCell<io::Error>,
    /// Which of its responses have ended.
    ends: StreamEnds,
}

impl ConnectionState {
    fn settle(&self) {
        self.settled.set(true);
        self.settling.notify_waiters();
    }

    /// Waits for the endpoint's settings.
    async fn settled(&self) {
        while !self.settled.get() {
            self.settling.notified().await;
        }
    }

    /// Returns why a stream ended. If its connection ended, the connection's error is more specific (a GOAWAY's debug
    /// data, a TLS alert).
    fn better_reason(&self, error: h2::Error) -> io::Error {
        match self.end.get().filter(|_| error.is_io()) {
            None => io::Error::other(error),
            Some(end) => match tls::tls_error(end) {
                Some(error) => io::Error::new(end.kind(), error.clone()),
                None => io::Error::new(end.kind(), lost(end).1),
            },
        }
    }
}

/// The factor by which a head or trailers may exceed the limit and still end only their stream. If trailers exceed h2's
/// own limit, h2 silently drops the surplus fields; somewhat beyond that, it closes the connection with all its
/// streams.
const LENIENCE: usize = 16;

/// Concurrent streams assumed for an endpoint that has announced no limit: none should allow fewer (RFC 9113 section
/// 6.5.2).
const USUAL_STREAMS: u32 = 100;

/// Returns whether the endpoint's settings have been received, given the connection's first bytes and the number of
/// bytes received: they are the first frame (RFC 9113 section 3.4).
fn has_settings(first: &[u8], received: u64) -> bool {
    let &[a, b, c, ..] = first else { return false };
    received >= FRAME_HEADER + u64::from(u32::from_be_bytes([0, a, b, c]))
}

fn builder(config: &model::Http2, max_head: usize) -> client::Builder {
    let mut http = client::Builder::new();
    http.initial_window_size(config.stream_window.window())
        .initial_connection_window_size(config.connection_window.window())
        .max_header_list_size(u32::try_from(max_head.saturating_mul(LENIENCE)).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER)
        .enable_push(false);
    http
}

impl<B> H2Connection<B>
where
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    /// Uses a connected stream for HTTP/2, with response heads of at most `max_head` bytes. Requires a context for
    /// spawning local tasks.
    pub(super) async fn open(
        stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
        under: H2Transport,
        max_head: usize,
        pool: &Rc<ClusterPool<B>>,
        permit: ConnectionPermit<B>,
    ) -> io::Result<Rc<Self>> {
        let config = permit.slot.endpoint.transport.http2.clone();
        let slot = Rc::clone(&permit.slot);
        // Until its settings arrive, assume the limit of the previous connection.
        let most = config.max_concurrent_streams.min(slot.endpoint.streams().unwrap_or(USUAL_STREAMS));
        let state = Rc::new(ConnectionState {
            active: Cell::new(0),
            resets: Cell::new(0),
            most: Cell::new(most),
            received: Cell::new(0),
            begun: Cell::new(0),
            first: Cell::default(),
            settled: Cell::new(false),
            settling: Notify::new(),
            end: OnceCell::new(),
            ends: StreamEnds::default(),
        });
        let (io, turns) = Io::new(WatchedIo::new(
            ScreenedIo::of_server(stream, max_head.saturating_mul(LENIENCE), state.ends.clone()),
            state.ends.clone(),
        ));
        let (sender, mut connection) = {
            let handshake = builder(&config, max_head).initial_max_send_streams(most as usize).handshake(io);
            let mut handshake = pin!(handshake);
            let shaken = poll_fn(|cx| match turns.turn(cx, |cx| handshake.as_mut().poll(cx)) {
                Ok(shaken) => shaken.map_err(io::Error::other),
                Err(error) => Poll::Ready(Err(error)),
            });
            shaken.await?
        };
        if under.alone {
            // The endpoint's limits must be known before anything is sent.
            poll_fn(|cx| match turns.turn(cx, |cx| Pin::new(&mut connection).poll(cx)) {
                Err(error) => Poll::Ready(Err(error)),
                Ok(Poll::Ready(ended)) => Poll::Ready(ended.map_err(io::Error::other)),
                Ok(Poll::Pending) if state.ends.peer_settings().has_settings() => Poll::Ready(Ok(())),
                Ok(Poll::Pending) => Poll::Pending,
            })
            .await?;
        }
        slot.max_head.set(state.ends.peer_settings().max_head().or(slot.max_head.get()));
        Ok(Rc::new_cyclic(|mux: &Weak<H2Connection<B>>| {
            let (mux, slot_of_task, shared) = (Weak::clone(mux), Rc::clone(&slot), Rc::clone(&state));
            spawn_local(async move {
                let mut pings = KeepAlive::new(config.ping_upstreams(), config.ping_timeout.0, connection.ping_pong());
                let ended = poll_fn(|cx| {
                    let ended = turns.turn(cx, |cx| Pin::new(&mut connection).poll(cx));
                    if !shared.first.get().is_full() {
                        shared.first.set(turns.first());
                    }
                    let ended = ended?;
                    if !shared.settled.get() && has_settings(turns.first().as_slice(), turns.received()) {
                        shared.settle();
                    }
                    let theirs = u32::try_from(connection.max_concurrent_send_streams()).unwrap_or(u32::MAX);
                    shared.most.set(config.max_concurrent_streams.min(theirs));
                    if shared.ends.peer_settings().has_settings() {
                        slot_of_task.endpoint.allow_streams(theirs);
                        slot_of_task.max_head.set(shared.ends.peer_settings().max_head());
                    }
                    shared.received.set(turns.received());
                    if let Poll::Ready(ended) = ended {
                        return Poll::Ready(ended.map_err(io::Error::other));
                    }
                    let wanted = shared.active.get() > 0;
                    let silent = pings.as_mut().map_or(Poll::Pending, |pings| pings.poll(turns.received(), wanted, cx));
                    silent.map(|()| Err(io::ErrorKind::TimedOut.into()))
                });
                if let Err(error) = ended.await {
                    tracing::debug!(
                        target: target::UPSTREAM,
                        address = %slot_of_task.endpoint.address, %error, "upstream connection ended"
                    );
                    // Set before its streams' tasks notice the end.
                    let _ = shared.end.set(error);
                }
                shared.settle();
                slot_of_task.forget_mux(&mux);
            });
            H2Connection {
                pool: Rc::downgrade(pool),
                slot,
                permit: Cell::new(Some(permit)),
                sender: RefCell::new(sender),
                under,
                max_head,
                state,
                served: Cell::new(0),
                seen_idle: Cell::new(None),
            }
        }))
    }

    /// Sends a request in HTTP/1.1 form and waits for the head of its response. Dropping the future resets the stream.
    pub(super) async fn exchange(
        place: StreamSlot<B>,
        head: &impl Head,
        body: B,
        weight: RequestWeight,
    ) -> Result<Response<PooledBody>, RequestError<B>> {
        let mux = &place.0;
        if let Some(refused) = weight.refused(mux.state.ends.peer_settings().max_head()) {
            return Err(RequestError::unsent(refused, body));
        }
        let reused = mux.served.get() > 1;
        let begins_alone = mux.state.active.get() == 1;
        let received = mux.state.received.get();
        let number = Cell::new(0);
        // The upstream does not say which request made it close the connection. It is probably the last one that it
        // processed or, if it did not report that, the one that began last.
        let again =
            |error: &h2::Error| match mux.state.ends.peer_settings().last_stream().unwrap_or(mux.state.begun.get()) {
                _ if !(error.is_io() || error.is_go_away()) => Retryable::No,
                last if last != number.get() => Retryable::NewConnection,
                // The connection was idle, and may have been closed before this request reached it.
                _ if reused && begins_alone && mux.state.received.get() == received => Retryable::Alone,
                _ => Retryable::No,
            };
        let failure = |error: h2::Error| match reason(&error) {
            Some(StreamEnd::Protocol) => {
                let first = mux.state.first.get();
                let first = (first.look() != DetectedProtocol::Http2).then(|| Box::new(first));
                RequestErrorKind::Protocol { source: ProtocolError::Http2(error, first) }
            }
            stopped => RequestErrorKind::Reset {
                // An unprocessed request is treated like one sent on a connection that was already closed.
                reused: reused || stopped == Some(StreamEnd::Unprocessed),
                request_sent: stopped != Some(StreamEnd::Unprocessed),
                bytes_received: mux.state.received.get() > received,
                // Here a head is received completely or not at all.
                in_head: false,
                again: if stopped == Some(StreamEnd::Unprocessed) { Retryable::NewConnection } else { again(&error) },
                source: match mux.state.better_reason(error) {
                    source if mux.under.assumed && mux.state.first.get().look() != DetectedProtocol::Http2 => {
                        io::Error::new(source.kind(), AlpnMismatch(source))
                    }
                    source => source,
                },
            },
        };
        let bodiless = body.is_end_stream();
        if head.show(|head| head.get(&UPGRADE).is_some()) {
            // Requests that the settings do not allow must not be sent (RFC 8441 section 3).
            mux.state.settled().await;
            if !mux.sender.borrow().is_extended_connect_protocol_enabled() && !mux.is_closed() {
                let kind = RequestErrorKind::Protocol { source: ProtocolError::NoUpgrades };
                return Err(RequestError { kind, body: None });
            }
        }
        let sent = head.show(|head| {
            let Some((request, key)) = into_h2(head, &body.size_hint(), bodiless, mux.under.secure) else {
                return Err(RequestErrorKind::Target);
            };
            let switches = request.method() == Method::CONNECT;
            // Use a clone per request, so that they do not wait for each other.
            let mut sender = mux.sender.borrow().clone();
            let sent = sender.send_request(request, bodiless && !switches).map_err(failure)?;
            Ok((sent, switches, key))
        });
        let ((response, stream), switches, key) = match sent {
            Ok(sent) => sent,
            Err(kind) => return Err(RequestError::unsent(kind, body)),
        };
        number.set(stream.stream_id().as_u32());
        place.1.set(true);
        mux.state.begun.set(number.get());
        let ended = mux.state.ends.watch(number.get());
        let mut awaited = PendingResponse { response, interim: 0, max_head: mux.max_head };
        if switches {
            let response = poll_fn(|cx| awaited.poll(head, failure, cx)).await;
            let response = response.map_err(|kind| place.failed(kind))?;
            return Ok(switched(response, stream, key, ended, place));
        }
        let mut upload = (!bodiless).then(|| BodySender::new(body, stream).with_trailers(weight.trailers));
        let response = poll_fn(|cx| {
            if let Some(sending) = &mut upload
                && let Poll::Ready(sent) = sending.poll(cx)
            {
                upload = None;
                if let Err(SendError::Body(source)) = sent {
                    return Poll::Ready(Err(RequestErrorKind::RequestBody { source }));
                }
            }
            awaited.poll(head, failure, cx)
        });
        let response = response.await.map_err(|kind| place.failed(kind))?;
        let max_head = mux.max_head;
        // A client may read nothing of the response before it has sent everything.
        let upload = upload.map(BackgroundUpload::begin);
        Ok(with_body(response, ended, max_head, (upload, place)))
    }
}

/// An upload that continues alongside its response. Dropping it stops it immediately: nothing else may read from the
/// same source, and it no longer keeps the stream from being reset.
struct BackgroundUpload<B> {
    sending: Rc<RefCell<Option<BodySender<B>>>>,
    task: AbortHandle,
}

impl<B> BackgroundUpload<B>
where
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    fn begin(sending: BodySender<B>) -> Self {
        let sending = Rc::new(RefCell::new(Some(sending)));
        let shared = Rc::clone(&sending);
        let task = spawn_local(poll_fn(move |cx| {
            let sent = shared.borrow_mut().as_mut().map_or(Poll::Ready(Ok(())), |sending| sending.poll(cx));
            if sent.is_ready() {
                *shared.borrow_mut() = None;
            }
            sent.map(drop)
        }));
        BackgroundUpload { sending, task: task.abort_handle() }
    }
}

impl<B> BackgroundUpload<B> {
    fn goes_on(&self) -> bool {
        self.sending.try_borrow().is_ok_and(|sending| sending.is_some())
    }
}

impl<B> Drop for BackgroundUpload<B> {
    fn drop(&mut self) {
        self.task.abort();
        // If this is dropped from within its own poll, its task drops the sender.
        let sending = self.sending.try_borrow_mut().ok().and_then(|mut sending| sending.take());
        drop(sending);
    }
}

/// Returns the error in the fields of a head, if there is one.
fn wrong(fields: &HeaderMap, max_head: usize) -> Option<RequestErrorKind> {
    let source = match measure(fields).filter(|_| content_length(fields).is_ok()) {
        Some(size) if size <= max_head => return None,
        Some(_) => ProtocolError::TooLong(max_head),
        None => ProtocolError::Http2(Reason::PROTOCOL_ERROR.into(), None),
    };
    Some(RequestErrorKind::Protocol { source })
}

/// A response that has not arrived yet.
struct PendingResponse {
    response: ResponseFuture,
    /// Number of interim responses received.
    interim: u32,
    /// Maximum size of each head in bytes.
    max_head: usize,
}

impl PendingResponse {
    fn poll(
        &mut self,
        head: &impl Head,
        failure: impl Fn(h2::Error) -> RequestErrorKind,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<RecvStream>, RequestErrorKind>> {
        while let Poll::Ready(Some(Ok(interim))) = self.response.poll_informational(cx) {
            self.interim += 1;
            if self.interim > MOST_INTERIM {
                return Poll::Ready(Err(RequestErrorKind::Protocol { source: ProtocolError::Interim }));
            }
            if interim.status() == StatusCode::SWITCHING_PROTOCOLS {
                // HTTP/2 has no 101 (RFC 9113 section 8.6).
                return Poll::Ready(Err(RequestErrorKind::Protocol { source: ProtocolError::Switched }));
            }
            if let Some(kind) = wrong(interim.headers(), self.max_head) {
                return Poll::Ready(Err(kind));
            }
            head.interim(interim.into_parts().0);
        }
        Pin::new(&mut self.response).poll(cx).map(|response| {
            let response = response.map_err(failure)?;
            match wrong(response.headers(), self.max_head) {
                None => Ok(response),
                Some(kind) => Err(kind),
            }
        })
    }
}

/// Combines a response's head with its body.
fn with_body(
    response: Response<RecvStream>,
    ended: Ended,
    max_head: usize,
    keeps: impl BodyGuard,
) -> Response<PooledBody> {
    let (parts, stream) = response.into_parts();
    let body = PooledBody::of_stream(IncomingBody::new(stream, &parts.headers), ended, max_head, Box::new(keeps));
    Response::from_parts(parts, body)
}

/// Converts the response to a request that asked for a protocol switch.
fn switched<B: 'static>(
    response: Response<RecvStream>,
    send: SendStream<Bytes>,
    key: Option<HeaderValue>,
    ended: Ended,
    place: StreamSlot<B>,
) -> Response<PooledBody> {
    if !response.status().is_success() {
        let max_head = place.0.max_head;
        return with_body(response, ended, max_head, place);
    }
    let (mut parts, receive) = response.into_parts();
    parts.status = StatusCode::SWITCHING_PROTOCOLS;
    if let Some(key) = &key {
        parts.headers.insert(SEC_WEBSOCKET_ACCEPT, accept(key));
    }
    // The stream's slot is held as long as the stream.
    let upstream = Box::new(WithGuard::new(Tunnel::new(send, receive, Reason::CANCEL), place)) as Box<dyn Transport>;
    Response::from_parts(parts, PooledBody::switching(Box::pin(std::future::ready(Ok(upstream)))))
}

impl<B> H2Connection<B> {
    /// Returns whether it has had too many resets to accept new streams.
    pub(super) fn is_worn(&self) -> bool {
        self.state.resets.get() >= MOST_RESETS
    }

    pub(super) fn has_room(&self, requests: u32) -> bool {
        // An upstream that currently allows no streams gets one at a time, which then waits inside h2.
        self.state.active.get() < self.state.most.get().max(1) && (requests == 0 || self.served.get() < requests)
    }

    /// Returns how many more streams it accepts now.
    pub(super) fn room(&self) -> u32 {
        self.state.most.get().max(1).saturating_sub(self.state.active.get())
    }

    /// Returns whether it is known to be closed or going away.
    pub(super) fn is_closed(&self) -> bool {
        // This sender sends nothing, so there is nothing to be woken for.
        let ready = self.sender.borrow_mut().poll_ready(&mut Context::from_waker(Waker::noop()));
        matches!(ready, Poll::Ready(Err(_)))
    }

    /// Closes it when its streams have ended, and passes its permit to another connection.
    pub(super) fn close_for_permit(self: Rc<Self>) -> Option<ConnectionPermit<B>> {
        self.permit.take()
    }

    /// Returns whether it has no streams.
    pub(super) fn is_idle(&self) -> bool {
        self.state.active.get() == 0
    }

    /// Returns whether it will accept another stream, now or later, given a limit on requests per connection (0:
    /// unlimited). A worn one may, as long as it has streams: see [`EndpointPool::enter`].
    pub(super) fn is_useful(&self, requests: u32) -> bool {
        let ends = self.under.alone || self.is_closed() || (self.is_worn() && self.is_idle());
        !ends && (requests == 0 || self.served.get() < requests)
    }

    /// Acquires a stream, if there is room.
    pub(super) fn enter(self: &Rc<Self>, requests: u32) -> Option<StreamSlot<B>> {
        if !self.has_room(requests) {
            return None;
        }
        let active = &self.state.active;
        if active.replace(active.get() + 1) == 0 {
            self.slot.stats.idle.fetch_sub(1, Relaxed);
        }
        self.served.set(self.served.get().saturating_add(1));
        self.seen_idle.set(None);
        Some(StreamSlot(Rc::clone(self), Cell::new(false)))
    }

    /// Counts it as a connection without a request, which it is at first.
    pub(super) fn count_idle(&self) {
        self.slot.stats.idle.fetch_add(1, Relaxed);
    }
}

impl<B> Drop for H2Connection<B> {
    fn drop(&mut self) {
        if self.is_idle() {
            self.slot.stats.idle.fetch_sub(1, Relaxed);
        }
    }
}

/// A stream's slot on a connection, and whether dropping it counts as a reset of the stream.
pub(super) struct StreamSlot<B>(Rc<H2Connection<B>>, Cell<bool>);

impl<B> StreamSlot<B> {
    /// Returns the connection's local address.
    pub(super) fn local(&self) -> Option<SocketAddr> {
        self.0.under.local
    }

    /// Records that there is no response. Unless the request caused it, the upstream is responsible.
    fn failed(&self, kind: RequestErrorKind) -> RequestError<B> {
        self.1.set(matches!(kind, RequestErrorKind::RequestBody { .. }));
        RequestError { kind, body: None }
    }
}

impl<B: 'static> BodyGuard for StreamSlot<B> {
    fn ended(&self) {
        self.1.set(false);
    }

    fn broken(&self) {
        self.1.set(false);
    }
}

impl<B: 'static> BodyGuard for (Option<BackgroundUpload<B>>, StreamSlot<B>) {
    fn ended(&self) {
        // The rest of the request will not be sent: its stream is reset.
        self.1.1.set(self.0.as_ref().is_some_and(BackgroundUpload::goes_on));
    }

    fn broken(&self) {
        self.1.broken();
    }
}

impl<B> Drop for StreamSlot<B> {
    fn drop(&mut self) {
        let mux = &self.0;
        mux.state.active.set(mux.state.active.get() - 1);
        mux.state.resets.set(mux.state.resets.get().saturating_add(self.1.get().into()));
        if mux.is_idle() {
            mux.count_idle();
        }
        if let Some(pool) = mux.pool.upgrade() {
            pool.stream_ended(mux, &mux.slot);
        }
    }
}

/// The way in which an upstream ended a stream.
#[derive(Debug, PartialEq, Eq)]
enum StreamEnd {
    /// It reported that it did not process the request: any request may be sent again (RFC 9113 section 8.7).
    Unprocessed,
    /// It violated HTTP/2.
    Protocol,
}

fn reason(error: &h2::Error) -> Option<StreamEnd> {
    match error.reason() {
        // A GOAWAY ends the streams after the last one that was processed.
        _ if error.is_remote() && error.is_go_away() => Some(StreamEnd::Unprocessed),
        // h2 itself uses this for a head that is too long.
        Some(
            Reason::PROTOCOL_ERROR | Reason::COMPRESSION_ERROR | Reason::FRAME_SIZE_ERROR | Reason::REFUSED_STREAM,
        ) if error.is_library() => Some(StreamEnd::Protocol),
        Some(Reason::REFUSED_STREAM) => Some(StreamEnd::Unprocessed),
        _ => None,
    }
}

/// Converts a request to HTTP/2: an absolute target, no `Host`, and `CONNECT` with a `:protocol` for an upgrade (RFC
/// 9113 section 8.3.1, RFC 8441 section 4). Also returns the key of a WebSocket handshake, which HTTP/2 does not have.
///
/// `None` if the target cannot be expressed in HTTP/2 unchanged; it must not be replaced by another one.
fn into_h2(
    head: &encoder::RequestHead<'_>,
    body: &SizeHint,
    bodiless: bool,
    secure: bool,
) -> Option<(Request<()>, Option<HeaderValue>)> {
    let mut request = Request::new(());
    *request.version_mut() = Version::HTTP_2;
    *request.method_mut() = head.method.clone();
    *request.headers_mut() = head.to_fields();
    let host = request.headers_mut().remove(HOST);
    let mut uri = uri::Parts::default();
    uri.authority = host.as_ref().and_then(|host| uri::Authority::try_from(host.as_bytes()).ok());
    // Without a host there can be no scheme.
    let scheme = if secure { uri::Scheme::HTTPS } else { uri::Scheme::HTTP };
    uri.scheme = uri.authority.is_some().then_some(scheme);
    // `PathAndQuery` would drop a fragment.
    let target =
        uri::PathAndQuery::try_from(head.target).ok().filter(|target| target.as_str().as_bytes() == head.target)?;
    uri.path_and_query = Some(target);
    *request.uri_mut() = Uri::from_parts(uri).ok()?;
    let fields = request.headers_mut();
    let mut key = None;
    let mut protocol = None;
    if let Some(token) = fields.remove(UPGRADE)
        && fields.contains_key(CONNECTION)
    {
        protocol = token.to_str().ok().map(|token| Protocol::from(&*token.to_ascii_lowercase()));
    }
    // A filter may have added connection-specific fields.
    remove_of_connection(fields);
    if let Some(protocol) = protocol {
        key = fields.remove(SEC_WEBSOCKET_KEY);
        *request.method_mut() = Method::CONNECT;
        request.extensions_mut().insert(protocol);
    } else if bodiless && fields.contains_key(CONTENT_LENGTH) {
        // A body announced by a filter does not follow.
        fields.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    } else if let Some(length) = body.exact()
        && (length > 0 || matches!(*head.method, Method::POST | Method::PUT | Method::PATCH))
    {
        fields.entry(CONTENT_LENGTH).or_insert_with(|| length.into());
    }
    Some((request, key))
}

/// Computes the answer to a WebSocket key (RFC 6455 section 4.2.2).
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
    fn websocket_key_is_answered_as_specified() {
        // RFC 6455 section 1.3.
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn upgrade_becomes_an_extended_connect() {
        let request = Request::get("/a?b").header(HOST, "h:1").header("x", "y");
        let request = request.header(CONNECTION, "upgrade").header(UPGRADE, "WebSocket");
        let (parts, ()) = request.header(SEC_WEBSOCKET_KEY, "k").body(()).unwrap().into_parts();
        let (there, key) = into_h2(&encoder::RequestHead::of(&parts), &SizeHint::with_exact(0), true, true).unwrap();
        assert_eq!((there.method(), there.uri().to_string().as_str()), (&Method::CONNECT, "https://h:1/a?b"));
        assert_eq!(there.extensions().get::<Protocol>().unwrap().as_str(), "websocket");
        assert_eq!(there.headers().len(), 1);
        assert_eq!(key, Some(HeaderValue::from_static("k")));
    }
}
