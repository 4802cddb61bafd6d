//! The driver of a client's HTTP/1.1 connection: its timeouts, its end (including disconnects), and responses to
//! malformed heads. [`requests`] reads and answers requests on the [`ServerConnection`] codec.

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

/// Maximum interval between timer checks of a connection without timeouts.
const NO_BOUND: Duration = Duration::from_secs(3600);

/// Time for which idle connections are kept when a listener drains, for requests that were sent before their clients
/// could know.
pub const DRAIN_GRACE: Duration = Duration::from_millis(500);

/// Time limit for sending a rejection.
const REFUSING: Duration = Duration::from_secs(1);

/// The reason logged for a client that uses TLS on a plain listener.
pub const SPEAKS_TLS: &str = "the client speaks TLS, and the listener has no `tls` section";

/// The protocol logged for a request that could not be read.
const PROTOCOL: &str = "HTTP/1.1";

/// The reason why a connection's driver stops.
enum DriverEnd {
    /// There are no more requests.
    Requests(requests::RequestsEnd),
    /// A head took too long to arrive.
    SlowHead,
    /// The connection was idle for too long.
    Idle,
    /// The client does not read its response.
    Stalled,
}

/// Serves a connection until it ends.
pub async fn serve(handle: Rc<ListenerHandle>, stream: Stream, info: Rc<ConnectionInfo>) {
    // The rules at the start of the connection; each request uses those active when it begins.
    let config = handle.context().config.clone();
    let timeouts = &config.timeouts;
    let limits = Limits {
        head: usize::try_from(config.limits.header_bytes.0).unwrap_or(usize::MAX),
        fields: config.limits.headers as usize,
    };
    let progress = Rc::new(StreamProgress::default());
    let connection = Rc::new(ServerConnection::new(stream));
    let drained = handle.drained();
    let retires = timeouts.connection_age.bound().map(|age| Instant::now() + age);
    // A timeout may start right after each timer check, so the next check is due no later than the shortest timeout.
    let bounds = [timeouts.header_read.bound(), timeouts.keep_alive.bound(), timeouts.idle.bound()];
    let least = bounds.into_iter().flatten().min().unwrap_or(NO_BOUND);
    let first_look = least.min(timeouts.connection_age.bound().unwrap_or(NO_BOUND));
    let mut timer = pin!(sleep(first_look));
    let end = {
        let most = config.limits.requests_per_connection;
        let mut requests = pin!(requests::serve(&connection, &handle, &info, &progress, limits, most));
        let mut drain = pin!(drained);
        let (mut announced, mut registered) = (false, false);
        let mut grace_ends = None;
        poll_fn(|cx| {
            if !registered {
                // Polled once to register the waker; the state is cheaper to read from the handle.
                registered = true;
                let _ = drain.as_mut().poll(cx);
            }
            let old = retires.is_some_and(|at| at <= Instant::now());
            if !announced && (old || handle.is_draining()) {
                announced = true;
                // A request may be on its way on an idle connection. It is still answered, with an announcement that it
                // was the last.
                info.closing.set(true);
                let end = Instant::now() + DRAIN_GRACE;
                grace_ends = Some(end);
                timer.as_mut().reset(end.into());
            }
            if let Poll::Ready(end) = requests.as_mut().poll(cx) {
                return Poll::Ready(DriverEnd::Requests(end));
            }
            if connection.blocked_since.get().is_some()
                && let Some(due) = progress.due.get()
                && due < timer.deadline()
            {
                timer.as_mut().reset(due);
            }
            while poll_timer(timer.as_mut(), cx).is_ready() {
                let now = Instant::now();
                if grace_ends.is_some_and(|end| end <= now) {
                    grace_ends = None;
                    connection.closing.set(true);
                    cx.waker().wake_by_ref();
                }
                let after = |since: Instant, bound: Option<Duration>| bound.map(|bound| since + bound);
                let (header_read, idle) = (timeouts.header_read.bound(), timeouts.idle.bound());
                let blocked = connection.blocked_since.get();
                let (due, end) = match (info.active.get(), connection.head_since.get()) {
                    // The request is complete, but the end of its response has not been sent yet.
                    (0, _) if blocked.is_some() => (blocked.and_then(|since| after(since, idle)), DriverEnd::Stalled),
                    (0, Some(since)) => (after(since.max(info.idle_since.get()), header_read), DriverEnd::SlowHead),
                    (0, None) => (after(info.idle_since.get(), timeouts.keep_alive.bound()), DriverEnd::Idle),
                    // A request has its own deadline, but it is not polled while the client does not read.
                    _ => {
                        let idle = blocked.and_then(|since| after(since, idle));
                        let due = blocked.and(progress.due.get()).map(tokio::time::Instant::into_std);
                        (idle.into_iter().chain(due).min(), DriverEnd::Stalled)
                    }
                };
                if due.is_some_and(|due| due <= now) {
                    // An in-flight request ends with this future and must know the reason by then.
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
    close(&handle.context(), &info, &connection, end).await;
}

/// Finishes a connection that carries no more requests.
async fn close(listener: &ListenerContext, info: &ConnectionInfo, connection: &ServerConnection, end: DriverEnd) {
    let refusal = match &end {
        DriverEnd::Requests(requests::RequestsEnd::Refused(error)) => Some(refused(listener, info, *error)),
        DriverEnd::SlowHead => {
            log_refusal(listener, info, PROTOCOL, 408, flag::DOWNSTREAM_TIMEOUT, detail::HEADER_READ_TIMEOUT, "");
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
        connection.with(|io| {
            encoder::response(&head, &length, false, client, &mut io.write_buf);
            io.write_buf.push(text.into());
        });
        // Do not wait for a client that does not read.
        let _ = tokio::time::timeout(REFUSING, poll_fn(|cx| connection.poll_flush(cx))).await;
    }
    let Some((early, stream)) = connection.take() else { return };
    match end {
        DriverEnd::Requests(requests::RequestsEnd::Tunnel(tunnel)) => tunnel.run(Prefixed::new(early, stream)).await,
        // The client has closed the connection or does not read. Under TLS, the missing close_notify shows it that data
        // is missing.
        DriverEnd::Requests(requests::RequestsEnd::Gone | requests::RequestsEnd::Cut) | DriverEnd::Stalled => {}
        _ => linger(stream).await,
    }
}

/// Logs a malformed request and returns the status of its response.
fn refused(listener: &ListenerContext, info: &ConnectionInfo, error: HeadError) -> StatusCode {
    let (status, details) = match error {
        HeadError::Violation(violation) => (StatusCode::BAD_REQUEST, violation.detail()),
        HeadError::Tls => {
            let refused = RejectedConnection::new(RejectReason::Protocol, SPEAKS_TLS.to_owned());
            listener.metrics.connections.reject_log.warn(&listener.name, info.peer, &refused);
            (StatusCode::BAD_REQUEST, detail::TLS_ON_PLAIN_PORT)
        }
        HeadError::Malformed => (StatusCode::BAD_REQUEST, detail::MALFORMED_REQUEST),
        HeadError::TargetTooLong => (StatusCode::URI_TOO_LONG, detail::HEAD_TOO_LARGE),
        HeadError::TooLong => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, detail::HEAD_TOO_LARGE),
        HeadError::TooManyFields => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, detail::TOO_MANY_FIELDS),
    };
    let why = if error == HeadError::Tls { SPEAKS_TLS } else { "" };
    log_refusal(listener, info, PROTOCOL, status.as_u16(), flag::DOWNSTREAM_PROTOCOL, details, why);
    status
}
