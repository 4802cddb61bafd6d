//! One client's connection: hyper reads requests from it, behind the guard; this sees to its time, its end, and the requests
//! that never became any.

use std::{
    cell::RefCell,
    future::poll_fn,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{HeaderValue, Request, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
    time::sleep,
};
use tollgate_abi::fast::flag;

use crate::{
    chain::stream::ConnectionInfo,
    exchange::{self, Site},
    http::{
        body::Body,
        guard::{Guarded, Watch},
    },
    net::{Socket, TokioIo},
    observe::{self, Entry},
    tcp::{self, TcpSite},
};

/// What the connections of a listener on a worker look at.
pub struct Handle {
    /// The rules in force. Each request takes those of its time.
    pub site: RefCell<Rc<Site>>,
    /// The same, for TCP connections; none if the listener takes none.
    pub tcp: RefCell<Option<Rc<TcpSite>>>,
    /// Whether connections shall end as soon as they have nothing under way.
    pub draining: watch::Sender<bool>,
}

/// How often a connection without anything to wait for looks at the clock.
const NO_BOUND: Duration = Duration::from_secs(3600);

/// When a listener ends, its idle connections are kept for this long, for requests that were sent before their clients can
/// have known.
const DRAIN_GRACE: Duration = Duration::from_millis(500);

/// How long a connection is kept for the client to read the last response.
const LINGER: Duration = Duration::from_secs(1);

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
pub async fn serve(handle: Rc<Handle>, stream: Socket, peer: SocketAddr, local: SocketAddr) {
    let tcp = handle.tcp.borrow().clone();
    if let Some(tcp) = tcp {
        let info = Rc::new(ConnectionInfo::new(tcp.name.clone(), peer, local));
        return tcp::serve(tcp, stream, info, Bytes::new(), None).await;
    }
    let site = handle.site.borrow().clone();
    let (limits, timeouts) = (site.limits.clone(), site.timeouts.clone());
    let max_head = usize::try_from(limits.header_bytes.0).unwrap_or(usize::MAX);
    let watch = Rc::new(Watch::default());
    let info = Rc::new(ConnectionInfo::new(site.name.clone(), peer, local));
    drop(site);
    let (service_handle, service_info) = (handle.clone(), info.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let (site, info) = (service_handle.site.borrow().clone(), service_info.clone());
        info.requests.set(info.requests.get() + 1);
        let last = limits.requests_per_connection != 0 && info.requests.get() >= limits.requests_per_connection;
        async move {
            let mut response = exchange::serve(site, info.clone(), request.map(Body::Incoming)).await?;
            if last || info.closing.get() {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, exchange::Closed>(response)
        }
    });
    let io = TokioIo::new(Guarded::new(stream, max_head, watch.clone()));
    let mut connection = http1::Builder::new()
        .max_buf_size(max_head.max(LEAST_BUFFER))
        .max_header_size(max_head)
        .max_headers(limits.headers as usize)
        .serve_connection(io, service);
    let mut draining = handle.draining.subscribe();
    // Something may begin right after each look at the clock, so the next one is no later than the least of these.
    let bounds = [timeouts.header_read.bound(), timeouts.keep_alive.bound(), timeouts.idle.bound()];
    let least = bounds.into_iter().flatten().min().unwrap_or(NO_BOUND);
    let mut timer = pin!(sleep(least));
    let end = {
        let mut drain = pin!(async move {
            // An error means that the listener is gone, which drains as well.
            let _ = draining.wait_for(|draining| *draining).await;
        });
        let mut told = false;
        let mut grace_ends = None;
        poll_fn(|cx| {
            if !told && drain.as_mut().poll(cx).is_ready() {
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
                && let Some(due) = info.due.get()
                && tokio::time::Instant::from(due) < timer.deadline()
            {
                timer.as_mut().reset(due.into());
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
                        (idle.into_iter().chain(blocked.and(info.due.get())).min(), End::Stalled)
                    }
                };
                if due.is_some_and(|due| due <= now) {
                    return Poll::Ready(end);
                }
                let response_due = info.due.get().filter(|due| *due > now);
                let next = [due, response_due].into_iter().flatten().fold(now + least, Instant::min);
                timer.as_mut().reset(next.into());
            }
            Poll::Pending
        })
        .await
    };
    let site = handle.site.borrow().clone();
    let stalled = matches!(end, End::Stalled);
    info.stalled.set(stalled);
    let guarded = connection.into_parts().io.into_inner();
    let unread = guarded.in_message() && !stalled;
    let mut stream = guarded.into_inner();
    match end {
        End::Done(Ok(())) | End::Idle | End::Stalled => {}
        End::Done(Err(error)) => refused(&site, &info, &watch, &error),
        End::SlowHead => {
            log_refusal(&site, &info, 408, flag::DOWNSTREAM_TIMEOUT, "header_read_timeout");
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
async fn linger(mut stream: Socket) {
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
fn refused(site: &Rc<Site>, info: &Rc<ConnectionInfo>, watch: &Watch, error: &hyper::Error) {
    if let Some(violation) = watch.violation.get() {
        return log_refusal(site, info, 400, flag::DOWNSTREAM_PROTOCOL, violation.name());
    }
    if error.is_parse_too_large() {
        return log_refusal(site, info, 431, flag::DOWNSTREAM_PROTOCOL, "head_too_large");
    }
    if error.is_parse() {
        return log_refusal(site, info, 400, flag::DOWNSTREAM_PROTOCOL, "malformed_request");
    }
    tracing::trace!(peer = %info.peer, %error, "connection ended");
}

/// Counts and logs a request of which nothing was read but that it is wrong.
fn log_refusal(site: &Rc<Site>, info: &Rc<ConnectionInfo>, status: u16, flags: u32, details: &str) {
    let shard = observe::shard();
    site.figures.requests[usize::from(status / 100)].inc(shard);
    site.figures.flags.iter().filter(|(bit, _)| flags & bit != 0).for_each(|(_, counter)| counter.inc(shard));
    if let Some(log) = &site.access_log {
        let entry = Entry {
            status,
            flags,
            details,
            protocol: "HTTP/1.1",
            ..Entry::new(SystemTime::now(), &site.name, info.peer)
        };
        log.log(shard, &entry);
    }
}
