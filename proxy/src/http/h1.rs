//! A client's HTTP/1.1 connection: hyper reads requests from it, behind the guard; this sees to its time, its end, and the
//! requests that never became any.

use std::{
    cell::RefCell,
    future::poll_fn,
    pin::pin,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use http::{HeaderValue, Request, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::sleep,
};
use tollgate_abi::fast::flag;

use super::{
    body::Body,
    connection::{Handle, log_refusal},
    guard::{Guarded, Watch},
};
use crate::{
    chain::stream::{ConnectionInfo, Progress},
    exchange::{self, Site, Tunnel},
    net::{Prefixed, Stream, TokioIo},
};

/// How often a connection without anything to wait for looks at the clock.
const NO_BOUND: Duration = Duration::from_secs(3600);

/// When a listener ends, its idle connections are kept for this long, for requests that were sent before their clients can
/// have known.
pub const DRAIN_GRACE: Duration = Duration::from_millis(500);

/// How long a connection is kept for the client to read the last response.
const LINGER: Duration = Duration::from_secs(1);

/// What a request that could not be read is said to be.
const PROTOCOL: &str = "HTTP/1.1";

/// hyper's least buffer.
const LEAST_BUFFER: usize = 8 << 10;

/// Why a connection's driver stops driving.
enum End {
    /// hyper is through with it.
    Done(Result<(), hyper::Error>),
    /// A head took too long.
    SlowHead,
    /// It was idle for too long.
    Idle,
    /// The client does not read its response.
    Stalled,
}

/// Serves a connection until it ends.
pub async fn serve(handle: Rc<Handle>, stream: Stream, info: Rc<ConnectionInfo>) {
    // The rules at the connection's beginning; each request has those of its own time.
    let config = handle.site().config.clone();
    let (limits, timeouts) = (&config.limits, &config.timeouts);
    let max_head = usize::try_from(limits.header_bytes.0).unwrap_or(usize::MAX);
    let watch = Rc::new(Watch::default());
    let progress = Rc::new(Progress::default());
    let tunnel: Rc<RefCell<Option<Tunnel>>> = Rc::default();
    let most = limits.requests_per_connection;
    let service = {
        let (handle, info, progress) = (handle.clone(), info.clone(), progress.clone());
        let (watch, tunnel) = (watch.clone(), tunnel.clone());
        service_fn(move |request: Request<Incoming>| {
            let (site, info, progress) = (handle.site(), info.clone(), progress.clone());
            let (watch, tunnel) = (watch.clone(), tunnel.clone());
            info.requests.set(info.requests.get() + 1);
            let last = most != 0 && info.requests.get() >= most;
            async move {
                let answer = exchange::serve(site, info.clone(), progress, request.map(Body::Incoming)).await?;
                let mut response = answer.response;
                watch.decide(answer.tunnel.is_some());
                if answer.tunnel.is_some() {
                    *tunnel.borrow_mut() = answer.tunnel;
                } else if last || info.closing.get() {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, exchange::Closed>(response)
            }
        })
    };
    let io = TokioIo::new(Guarded::new(stream, max_head, watch.clone()));
    let mut connection = http1::Builder::new()
        .max_buf_size(max_head.max(LEAST_BUFFER))
        .max_header_size(max_head)
        .max_headers(limits.headers as usize)
        .serve_connection(io, service);
    let drained = handle.drained();
    let retires = timeouts.connection_age.bound().map(|age| Instant::now() + age);
    // Something may begin right after each look at the clock, so the next one is no later than the least of these.
    let bounds = [timeouts.header_read.bound(), timeouts.keep_alive.bound(), timeouts.idle.bound()];
    let least = bounds.into_iter().flatten().min().unwrap_or(NO_BOUND);
    let first_look = least.min(timeouts.connection_age.bound().unwrap_or(NO_BOUND));
    let mut timer = pin!(sleep(first_look));
    let end = {
        let mut drain = pin!(drained);
        let mut told = false;
        let mut grace_ends = None;
        poll_fn(|cx| {
            let old = retires.is_some_and(|at| at <= Instant::now());
            if !told && (old || drain.as_mut().poll(cx).is_ready()) {
                told = true;
                // A request may be on its way on an idle connection: it is still answered, and told that it was the last.
                info.closing.set(true);
                let end = Instant::now() + DRAIN_GRACE;
                grace_ends = Some(end);
                timer.as_mut().reset(end.into());
            }
            if let Poll::Ready(result) = std::pin::Pin::new(&mut connection).poll(cx) {
                return Poll::Ready(End::Done(result));
            }
            if watch.blocked_since.get().is_some()
                && let Some(due) = progress.due.get()
                && due < timer.deadline()
            {
                timer.as_mut().reset(due);
            }
            while timer.as_mut().poll(cx).is_ready() {
                let now = Instant::now();
                if grace_ends.is_some_and(|end| end <= now) {
                    grace_ends = None;
                    std::pin::Pin::new(&mut connection).graceful_shutdown();
                    cx.waker().wake_by_ref();
                }
                let after = |since: Instant, bound: Option<Duration>| bound.map(|bound| since + bound);
                let (header_read, idle) = (timeouts.header_read.bound(), timeouts.idle.bound());
                let (due, end) = match (info.active.get(), watch.head_since.get()) {
                    (0, Some(since)) => (after(since.max(info.idle_since.get()), header_read), End::SlowHead),
                    (0, None) => (after(info.idle_since.get(), timeouts.keep_alive.bound()), End::Idle),
                    // A request has a clock of its own, but nobody looks at it while the client does not read.
                    _ => {
                        let blocked = watch.blocked_since.get();
                        let idle = blocked.and_then(|since| after(since, idle));
                        let due = blocked.and(progress.due.get()).map(tokio::time::Instant::into_std);
                        (idle.into_iter().chain(due).min(), End::Stalled)
                    }
                };
                if due.is_some_and(|due| due <= now) {
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
    let site = handle.site();
    let stalled = matches!(end, End::Stalled);
    progress.stalled.set(stalled);
    let guarded = connection.into_parts().io.into_inner();
    let unread = guarded.in_message() && !stalled;
    let (early, mut stream) = guarded.into_parts();
    let tunnel = tunnel.take();
    if let (End::Done(Ok(())), Some(tunnel)) = (&end, tunnel) {
        return tunnel.run(Prefixed::new(early, stream)).await;
    }
    match end {
        End::Done(Ok(())) | End::Idle | End::Stalled => {}
        End::Done(Err(error)) => refused(&site, &info, &watch, &error),
        End::SlowHead => {
            log_refusal(&site, &info, PROTOCOL, 408, flag::DOWNSTREAM_TIMEOUT, "header_read_timeout");
            let answer = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
            // A client that does not read either is not waited for.
            let _ = tokio::time::timeout(LINGER, stream.write_all(answer)).await;
        }
    }
    if unread {
        linger(stream).await;
    }
}

/// Closes a connection whose client may still be sending. Closed with bytes unread, it would be reset, and the client's
/// system would throw away the response that it has not read yet (RFC 9112 section 9.6).
async fn linger(mut stream: Stream) {
    let read = async {
        stream.shutdown().await?;
        // Not an array: it would be part of every connection's task.
        let mut sink = vec![0; 16 << 10];
        while stream.read(&mut sink).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    let _ = tokio::time::timeout(LINGER, read).await;
}

/// A connection that hyper has ended for an error. It has answered already, if there was a request to answer.
fn refused(site: &Site, info: &ConnectionInfo, watch: &Watch, error: &hyper::Error) {
    if let Some(violation) = watch.violation.get() {
        return log_refusal(site, info, PROTOCOL, 400, flag::DOWNSTREAM_PROTOCOL, violation.name());
    }
    if error.is_parse_too_large() {
        return log_refusal(site, info, PROTOCOL, 431, flag::DOWNSTREAM_PROTOCOL, "head_too_large");
    }
    if error.is_parse() {
        return log_refusal(site, info, PROTOCOL, 400, flag::DOWNSTREAM_PROTOCOL, "malformed_request");
    }
    tracing::trace!(peer = %info.peer, %error, "connection ended");
}
