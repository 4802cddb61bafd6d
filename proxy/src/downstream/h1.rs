//! A client's HTTP/1.1 connection: its time, its end, and the requests that never became any. [`requests`] reads and answers
//! those that did, on the connection that [`line`] is.

mod requests;

use std::{
    future::poll_fn,
    pin::pin,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use http::{HeaderValue, Response, StatusCode, Version, header};
use http_body::SizeHint;
use tokio::time::sleep;
use tollgate_abi::fast::flag;

use super::connection::{ListenerHandle, log_refusal};
use crate::{
    chain::stream::{ConnectionInfo, StreamProgress},
    exchange::{ListenerContext, RejectReason, RejectedConnection},
    h1::{HeadError, Limits, encoder, server::ServerConnection},
    net::{Prefixed, Stream, linger, poll_timer},
    observe::detail,
};

/// How often a connection without anything to wait for looks at the clock.
const NO_BOUND: Duration = Duration::from_secs(3600);

/// When a listener ends, its idle connections are kept for this long, for requests that were sent before their clients can
/// have known.
pub const DRAIN_GRACE: Duration = Duration::from_millis(500);

/// How long a refusal may take to be sent.
const REFUSING: Duration = Duration::from_secs(1);

/// What is said of a client that should not speak TLS.
pub const SPEAKS_TLS: &str = "the client speaks TLS, and the listener has no `tls` section";

/// What a request that could not be read is said to be.
const PROTOCOL: &str = "HTTP/1.1";

/// Why a connection's driver stops driving.
enum DriverEnd {
    /// There are no more requests.
    Requests(requests::RequestsEnd),
    /// A head took too long.
    SlowHead,
    /// It was idle for too long.
    Idle,
    /// The client does not read its response.
    Stalled,
}

/// Serves a connection until it ends.
pub async fn serve(handle: Rc<ListenerHandle>, stream: Stream, info: Rc<ConnectionInfo>) {
    // The rules at the connection's beginning; each request has those of its own time.
    let config = handle.site().config.clone();
    let timeouts = &config.timeouts;
    let limits = Limits {
        head: usize::try_from(config.limits.header_bytes.0).unwrap_or(usize::MAX),
        fields: config.limits.headers as usize,
    };
    let progress = Rc::new(StreamProgress::default());
    let line = Rc::new(ServerConnection::new(stream));
    let drained = handle.drained();
    let retires = timeouts.connection_age.bound().map(|age| Instant::now() + age);
    // Something may begin right after each look at the clock, so the next one is no later than the least of these.
    let bounds = [timeouts.header_read.bound(), timeouts.keep_alive.bound(), timeouts.idle.bound()];
    let least = bounds.into_iter().flatten().min().unwrap_or(NO_BOUND);
    let first_look = least.min(timeouts.connection_age.bound().unwrap_or(NO_BOUND));
    let mut timer = pin!(sleep(first_look));
    let end = {
        let most = config.limits.requests_per_connection;
        let mut requests = pin!(requests::serve(&line, &handle, &info, &progress, limits, most));
        let mut drain = pin!(drained);
        let (mut told, mut listens) = (false, false);
        let mut grace_ends = None;
        poll_fn(|cx| {
            if !listens {
                // Once, to be woken: what it would say each time is to be had for less.
                listens = true;
                let _ = drain.as_mut().poll(cx);
            }
            let old = retires.is_some_and(|at| at <= Instant::now());
            if !told && (old || handle.is_draining()) {
                told = true;
                // A request may be on its way on an idle connection: it is still answered, and told that it was the last.
                info.closing.set(true);
                let end = Instant::now() + DRAIN_GRACE;
                grace_ends = Some(end);
                timer.as_mut().reset(end.into());
            }
            if let Poll::Ready(end) = requests.as_mut().poll(cx) {
                return Poll::Ready(DriverEnd::Requests(end));
            }
            if line.blocked_since.get().is_some()
                && let Some(due) = progress.due.get()
                && due < timer.deadline()
            {
                timer.as_mut().reset(due);
            }
            while poll_timer(timer.as_mut(), cx).is_ready() {
                let now = Instant::now();
                if grace_ends.is_some_and(|end| end <= now) {
                    grace_ends = None;
                    line.ending.set(true);
                    cx.waker().wake_by_ref();
                }
                let after = |since: Instant, bound: Option<Duration>| bound.map(|bound| since + bound);
                let (header_read, idle) = (timeouts.header_read.bound(), timeouts.idle.bound());
                let blocked = line.blocked_since.get();
                let (due, end) = match (info.active.get(), line.head_since.get()) {
                    // The request is over, and the end of its response not yet sent.
                    (0, _) if blocked.is_some() => (blocked.and_then(|since| after(since, idle)), DriverEnd::Stalled),
                    (0, Some(since)) => (after(since.max(info.idle_since.get()), header_read), DriverEnd::SlowHead),
                    (0, None) => (after(info.idle_since.get(), timeouts.keep_alive.bound()), DriverEnd::Idle),
                    // A request has a clock of its own, but nobody looks at it while the client does not read.
                    _ => {
                        let idle = blocked.and_then(|since| after(since, idle));
                        let due = blocked.and(progress.due.get()).map(tokio::time::Instant::into_std);
                        (idle.into_iter().chain(due).min(), DriverEnd::Stalled)
                    }
                };
                if due.is_some_and(|due| due <= now) {
                    // A request under way ends with this future, and must know by then why.
                    progress.stalled.set(matches!(end, DriverEnd::Stalled));
                    return Poll::Ready(end);
                }
                let response_due = progress.due.get().map(tokio::time::Instant::into_std).filter(|due| *due > now);
                let retires = retires.filter(|at| *at > now);
                let next = [due, response_due, retires].into_iter().flatten().fold(now + least, Instant::min);
                timer.as_mut().reset(next.into());
            }
            Poll::Pending
        })
        .await
    };
    close(&handle.site(), &info, &line, end).await;
}

/// Does what is left to do on a connection that carries no more requests.
async fn close(site: &ListenerContext, info: &ConnectionInfo, line: &ServerConnection, end: DriverEnd) {
    let refusal = match &end {
        DriverEnd::Requests(requests::RequestsEnd::Refused(error)) => Some(refused(site, info, *error)),
        DriverEnd::SlowHead => {
            log_refusal(site, info, PROTOCOL, 408, flag::DOWNSTREAM_TIMEOUT, detail::HEADER_READ_TIMEOUT, "");
            Some(StatusCode::REQUEST_TIMEOUT)
        }
        _ => None,
    };
    if let Some(status) = refusal {
        let (mut head, ()) = Response::builder().status(status).body(()).unwrap_or_default().into_parts();
        head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        let text = status.canonical_reason().unwrap_or_default();
        let client = encoder::ClientTraits {
            version: Version::HTTP_11,
            head_only: false,
            trailers: false,
            persists: false,
            switches: false,
        };
        let length = SizeHint::with_exact(text.len() as u64);
        line.with(|wire| {
            encoder::response(&head, &length, false, client, &mut wire.outbox);
            wire.outbox.push(text.into());
        });
        // A client that does not read either is not waited for.
        let _ = tokio::time::timeout(REFUSING, poll_fn(|cx| line.poll_flush(cx))).await;
    }
    let Some((early, stream)) = line.take() else { return };
    match end {
        DriverEnd::Requests(requests::RequestsEnd::Tunnel(tunnel)) => tunnel.run(Prefixed::new(early, stream)).await,
        // It has closed the connection, or does not read. Without close_notify it sees, under TLS, that something is missing.
        DriverEnd::Requests(requests::RequestsEnd::Gone | requests::RequestsEnd::Cut) | DriverEnd::Stalled => {}
        _ => linger(stream).await,
    }
}

/// Logs what was no request, and says what it is answered with.
fn refused(site: &ListenerContext, info: &ConnectionInfo, error: HeadError) -> StatusCode {
    let (status, details) = match error {
        HeadError::Violation(violation) => (StatusCode::BAD_REQUEST, violation.detail()),
        HeadError::Tls => {
            let refused = RejectedConnection::new(RejectReason::Protocol, SPEAKS_TLS.to_owned());
            site.metrics.connections.warned.warn(&site.name, info.peer, &refused);
            (StatusCode::BAD_REQUEST, detail::TLS_ON_PLAIN_PORT)
        }
        HeadError::Malformed => (StatusCode::BAD_REQUEST, detail::MALFORMED_REQUEST),
        HeadError::TargetTooLong => (StatusCode::URI_TOO_LONG, detail::HEAD_TOO_LARGE),
        HeadError::TooLong => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, detail::HEAD_TOO_LARGE),
        HeadError::TooManyFields => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, detail::TOO_MANY_FIELDS),
    };
    let why = if error == HeadError::Tls { SPEAKS_TLS } else { "" };
    log_refusal(site, info, PROTOCOL, status.as_u16(), flag::DOWNSTREAM_PROTOCOL, details, why);
    status
}
