//! The driver of a client's HTTP/2 connection: the h2 crate reads requests, and this module handles timeouts, the end
//! of the connection, and streams whose clients do not read. Each request is its own task; see [`request`].
//!
//! While a client grants no flow-control window, a response's body is not polled, so its deadline would go unnoticed.
//! The connection therefore checks its streams periodically and ends stalled ones.

pub(crate) mod flood;
mod request;
mod streams;

use std::{
    future::poll_fn,
    io,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::{Reason, server};
use tokio::time::sleep;
use tollgate_abi::fast::flag;

use self::{flood::CountedFrames, streams::Streams};
use super::{
    connection::{LENIENCE, ListenerHandle, log_refusal},
    flood::{FrameLimiter, ResetLimiter, SHARED},
    h1::SPEAKS_TLS,
};
use crate::{
    chain::stream::ConnectionInfo,
    config::model::Listener,
    exchange::{RejectReason, RejectedConnection},
    h2::{Io, KeepAlive, Malformed, ScreenedIo, Turns, Window},
    net::{Stream, is_tls, linger, poll_timer},
    observe::{Detail, detail, target},
};

/// Bytes of a response that are buffered per stream for the client.
const SEND_BUFFER: usize = 64 << 10;

/// Maximum number of streams per connection that violate HTTP/2: h2's default.
const STREAM_ERRORS: usize = 1024;

/// Maximum number of streams per connection that are reset before they are accepted: h2's default.
const UNSEEN_RESETS: usize = 20;

/// Maximum interval between checks of the streams.
const LOOK: Duration = Duration::from_secs(5);

/// Time for which a draining connection without streams is kept, for requests that were sent before the client could
/// know.
const GRACE: Duration = Duration::from_secs(2);

/// The protocol logged for a request that could not be read.
const PROTOCOL: &str = "HTTP/2";

/// State shared by the tasks of a connection's requests.
struct Connection {
    handle: Rc<ListenerHandle>,
    info: Rc<ConnectionInfo>,
    streams: Streams,
    resets: ResetLimiter,
    /// The connection-level receive window.
    window: Rc<Window>,
    /// Malformed heads, for which h2 itself would have ended the connection.
    malformed: Malformed,
}

/// The I/O stack that h2 reads from and writes to.
type Below = CountedFrames<ScreenedIo<Stream>>;

type Http = server::Connection<Io<Below>, Bytes>;

/// The reason why a connection ended early.
#[derive(Debug, thiserror::Error)]
enum ConnectionBroken {
    #[error(transparent)]
    Http(#[from] h2::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Serves a connection until it ends.
pub async fn serve(handle: Rc<ListenerHandle>, stream: Stream, info: Rc<ConnectionInfo>) {
    let flood = Rc::new(FrameLimiter::default());
    let window = Rc::new(Window::default());
    let malformed = Malformed::default();
    let screened = ScreenedIo::of_client(stream, longest_head(&handle.context().config) as usize, malformed.clone());
    let (io, turns) = Io::new(CountedFrames::new(screened, flood.clone(), window.clone()));
    let streams = Streams::default();
    let resets = ResetLimiter::new(handle.context().config.trusted_hops > 0);
    let connection = Rc::new(Connection { handle, info, streams, resets, window, malformed });
    let ended = connection.run(io, &turns).await;
    let is_over = matches!(ended, Ok(None) | Err(ConnectionBroken::Http(_))) && !flood.is_one();
    let refused = match ended {
        Ok(refusal) => refusal.map(RejectedConnection::from),
        Err(_) if flood.is_one() => Some(RejectReason::Flood.into()),
        Err(error) => {
            tracing::debug!(target: target::DOWNSTREAM, peer = %connection.info.peer, %error, "connection ended");
            let why = match connection.info.tls {
                None if is_tls(turns.first().as_slice()) => SPEAKS_TLS.to_owned(),
                _ => format!("HTTP/2: {error}"),
            };
            error.refusal().map(|refusal| RejectedConnection::new(refusal, why))
        }
    };
    if let Some(refused) = refused {
        connection.handle.context().reject(connection.info.peer, PROTOCOL, &refused);
    }
    // The client may not have read the last responses, or the reason for the rejection.
    if is_over && let Some(frames) = turns.into_stream() {
        linger(frames.into_inner().into_inner()).await;
    }
}

impl Connection {
    async fn run(
        self: &Rc<Self>,
        io: Io<Below>,
        turns: &Turns<Below>,
    ) -> Result<Option<RejectReason>, ConnectionBroken> {
        let config = self.handle.context().config.clone();
        let mut shaking = pin!(builder(&config).handshake(io));
        let shaken = poll_fn(|cx| match turns.turn(cx, |cx| shaking.as_mut().poll(cx)) {
            Ok(shaken) => shaken.map_err(ConnectionBroken::Http),
            Err(error) => Poll::Ready(Err(ConnectionBroken::Io(error))),
        });
        let drained = async {
            self.handle.drained().await;
            sleep(GRACE).await;
        };
        let patience = config.timeouts.keep_alive.bound().unwrap_or(Duration::MAX);
        tokio::select! {
            http = shaken => self.drive(&config, http?, turns).await,
            () = drained => Ok(None),
            () = sleep(patience) => Ok(None),
        }
    }

    /// Accepts requests until there are no more. Returns the reason if the client is to blame for the end.
    async fn drive(
        self: &Rc<Self>,
        config: &Listener,
        mut http: Http,
        turns: &Turns<Below>,
    ) -> Result<Option<RejectReason>, ConnectionBroken> {
        let (handle, info, timeouts) = (&self.handle, &self.info, &config.timeouts);
        let most = config.limits.requests_per_connection;
        let mut pings = KeepAlive::new(config.http2.ping_clients(), config.http2.ping_timeout.0, http.ping_pong());
        let mut drained = pin!(handle.drained());
        let mut registered = false;
        let bounds = [timeouts.keep_alive.bound(), timeouts.idle.bound(), timeouts.connection_age.bound()];
        let look = bounds.into_iter().flatten().fold(LOOK, Duration::min);
        let mut timer = pin!(sleep(look));
        let retires = timeouts.connection_age.bound().map(|age| Instant::now() + age);
        // When a draining connection without streams is closed, if it is draining.
        let mut ends: Option<Instant> = None;
        poll_fn(|cx| {
            if !registered {
                // Polled once to register the waker; the state is cheaper to read from the handle.
                registered = true;
                let _ = drained.as_mut().poll(cx);
            }
            let accepted = turns.turn(cx, |cx| self.poll_accept(&mut http, cx))?;
            // Malformed heads for which h2 has returned no request.
            while self.malformed.take() {
                self.log_malformed(detail::MALFORMED_REQUEST);
            }
            if let Poll::Ready(ended) = accepted {
                return Poll::Ready(ended.map(|()| None).map_err(ConnectionBroken::Http));
            }
            if self.resets.are_too_many() {
                return Poll::Ready(Ok(Some(RejectReason::Flood)));
            }
            if pings.as_mut().is_some_and(|pings| pings.poll(turns.received(), true, cx).is_ready()) {
                tracing::debug!(target: target::DOWNSTREAM, peer = %info.peer, "client does not answer pings");
                http.abrupt_shutdown(Reason::NO_ERROR);
                let _ = turns.turn(cx, |cx| http.poll_closed(cx))?;
                return Poll::Ready(Ok(None));
            }
            let mut closing = ends.is_some() || handle.is_draining() || (most != 0 && info.requests.get() >= most);
            while poll_timer(timer.as_mut(), cx).is_ready() {
                let now = Instant::now();
                self.streams.end_stalled(timeouts.idle.bound());
                if info.active.get() == 0 {
                    // The ends of responses may still wait for their clients' windows or for room in the socket.
                    let delivered = !http.has_streams() && turns.is_sent();
                    let late = timeouts.idle.bound().is_some_and(|idle| info.idle_since.get() + idle <= now);
                    if ends.is_some_and(|ends| ends <= now) && (delivered || late) {
                        return Poll::Ready(Ok(None));
                    }
                    closing |= timeouts.keep_alive.bound().is_some_and(|limit| info.idle_since.get() + limit <= now);
                }
                closing |= retires.is_some_and(|retires| retires <= now);
                timer.as_mut().reset((now + look).into());
            }
            if closing && ends.is_none() {
                let end = Instant::now() + GRACE;
                ends = Some(end);
                timer.as_mut().reset(end.into());
                // Send GOAWAY. Streams opened before the client can know of it are still served.
                http.graceful_shutdown();
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        })
        .await
    }

    /// Counts and logs a malformed request.
    fn log_malformed(&self, why: Detail) {
        log_refusal(&self.handle.context(), &self.info, PROTOCOL, 0, flag::DOWNSTREAM_PROTOCOL, why, "");
    }

    /// Starts serving the requests that have arrived. Ready when the connection has ended.
    fn poll_accept(self: &Rc<Self>, http: &mut Http, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        while let Some(accepted) = ready!(http.poll_accept(cx)) {
            let (request, respond) = accepted?;
            request::spawn(self, request, respond);
        }
        Poll::Ready(Ok(()))
    }
}

/// Returns the size in bytes up to which a head is still processed.
fn longest_head(config: &Listener) -> u32 {
    u32::try_from(config.limits.header_bytes.0.saturating_mul(LENIENCE)).unwrap_or(u32::MAX)
}

fn builder(config: &Listener) -> server::Builder {
    let http2 = &config.http2;
    let mut builder = server::Builder::new();
    builder
        .max_concurrent_streams(http2.max_concurrent_streams)
        .initial_window_size(http2.stream_window.window())
        .initial_connection_window_size(http2.connection_window.window())
        .max_header_list_size(longest_head(config))
        .max_send_buffer_size(SEND_BUFFER);
    if config.trusted_hops > 0 {
        // A proxy in front may forward the errors and the early resets of many clients. h2 counts errors over the
        // connection's whole life, and early resets whenever this worker is too busy to accept a request before its
        // reset.
        builder
            .max_local_error_reset_streams(Some(STREAM_ERRORS * SHARED as usize))
            .max_pending_accept_reset_streams(UNSEEN_RESETS * SHARED as usize);
    }
    if !config.upgrades.is_empty() {
        builder.enable_connect_protocol();
    }
    builder
}

impl ConnectionBroken {
    /// Returns the client's violation, unless the connection merely broke.
    fn refusal(&self) -> Option<RejectReason> {
        let ConnectionBroken::Http(error) = self else { return None };
        // Errors reported by the client or the network are not the client's fault.
        if !error.is_library() || error.is_io() {
            return None;
        }
        // h2 itself limits resets, empty frames and header bytes.
        Some(if error.reason() == Some(Reason::ENHANCE_YOUR_CALM) { RejectReason::Flood } else { RejectReason::Http2 })
    }
}
