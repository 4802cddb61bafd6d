//! A client's HTTP/2 connection: hyper reads requests from it; this sees to its time, its end, and to streams whose clients do
//! not read.
//!
//! Each stream is a task of its own, made by hyper when its head has come. While its client gives no window, nothing of hyper's
//! polls the response, so nobody would notice that its time is over: the connection looks at its streams from time to time,
//! and ends those that do not move.

mod flood;
mod streams;

use std::{
    future::poll_fn,
    pin::pin,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use http::Request;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use tokio::time::sleep;

use self::{
    flood::{Flood, Frames},
    streams::{Streams, Tasks},
};
use super::{
    body::Body,
    connection::{Handle, Resets},
};
use crate::{
    chain::stream::{ConnectionInfo, Progress},
    config::model::Listener,
    exchange::{self, Closed, Refusal},
    net::{Stream, TokioIo, TokioTimer},
};

/// Bytes of a response that wait in a stream for its client to take them.
const SEND_BUFFER: usize = 64 << 10;

/// How often streams are looked at, at least.
const LOOK: Duration = Duration::from_secs(5);

/// How long a connection that is to end and has no streams is kept, for requests that were sent before the client can have
/// known.
const GRACE: Duration = Duration::from_secs(2);

/// Serves a connection until it ends.
pub async fn serve(handle: Rc<Handle>, stream: Stream, info: Rc<ConnectionInfo>) {
    let config = handle.site().config.clone();
    let (limits, timeouts) = (&config.limits, &config.timeouts);
    let streams = Rc::new(Streams::default());
    let resets = Resets::default();
    let most = limits.requests_per_connection;
    let service = {
        let (handle, info, streams, resets) = (handle.clone(), info.clone(), streams.clone(), resets.clone());
        service_fn(move |mut request: Request<Incoming>| {
            let (site, info) = (handle.site(), info.clone());
            info.requests.set(info.requests.get() + 1);
            let progress = Rc::new(Progress::default());
            streams.announce(progress.clone());
            let cut = resets.opened();
            async move {
                let upgrade = (request.method() == http::Method::CONNECT).then(|| hyper::upgrade::on(&mut request));
                let answer = exchange::serve(site, info, progress, request.map(Body::Incoming)).await;
                cut.end();
                let answer = answer?;
                if let (Some(tunnel), Some(upgrade)) = (answer.tunnel, upgrade) {
                    tokio::task::spawn_local(async move {
                        if let Ok(io) = upgrade.await {
                            tunnel.run(TokioIo::new(io)).await;
                        }
                    });
                }
                Ok::<_, Closed>(answer.response)
            }
        })
    };
    let flood = Rc::new(Flood::default());
    let io = TokioIo::new(Frames::new(stream, flood.clone()));
    let mut connection = pin!(builder(&config, &streams).serve_connection(io, service));
    let mut drain = pin!(handle.drained());
    let bounds = [timeouts.keep_alive.bound(), timeouts.idle.bound(), timeouts.connection_age.bound()];
    let look = bounds.into_iter().flatten().fold(LOOK, Duration::min);
    let mut timer = pin!(sleep(look));
    let retires = timeouts.connection_age.bound().map(|age| Instant::now() + age);
    // Since when it is to end, and when it is ended in any case unless it has streams.
    let mut ends: Option<Instant> = None;
    let refusal = poll_fn(|cx| {
        if let Poll::Ready(result) = connection.as_mut().poll(cx) {
            return Poll::Ready(match result {
                Ok(()) => None,
                Err(_) if flood.is_one() => Some(Refusal::Flood),
                Err(error) => {
                    tracing::debug!(peer = %info.peer, %error, "connection ended");
                    refusal(&error)
                }
            });
        }
        if resets.are_too_many(&info) {
            return Poll::Ready(Some(Refusal::Flood));
        }
        let mut told = ends.is_some();
        if !told && (drain.as_mut().poll(cx).is_ready() || (most != 0 && info.requests.get() >= most)) {
            told = true;
        }
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            streams.end_stalled(timeouts.idle.bound());
            if info.active.get() == 0 {
                if ends.is_some_and(|ends| ends <= now) {
                    return Poll::Ready(None);
                }
                told |= timeouts.keep_alive.bound().is_some_and(|limit| info.idle_since.get() + limit <= now);
            }
            told |= retires.is_some_and(|retires| retires <= now);
            timer.as_mut().reset((now + look).into());
        }
        if told && ends.is_none() {
            let end = Instant::now() + GRACE;
            ends = Some(end);
            timer.as_mut().reset(end.into());
            // GOAWAY; streams that were opened before the client can know of it are still served.
            connection.as_mut().graceful_shutdown();
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await;
    if let Some(refusal) = refusal {
        handle.site().refuse(refusal);
    }
}

fn builder(config: &Listener, streams: &Rc<Streams>) -> http2::Builder<Tasks> {
    let http2 = &config.http2;
    let mut builder = http2::Builder::new(Tasks(streams.clone()));
    builder
        .timer(TokioTimer)
        .max_concurrent_streams(http2.max_concurrent_streams)
        .initial_stream_window_size(http2.stream_window.window())
        .initial_connection_window_size(http2.connection_window.window())
        .max_header_list_size(u32::try_from(config.limits.header_bytes.0).unwrap_or(u32::MAX))
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(http2.ping_interval.bound())
        .keep_alive_timeout(http2.ping_timeout.0);
    if !config.upgrades.is_empty() {
        builder.enable_connect_protocol();
    }
    builder
}

/// What the client did, if it was not just that the connection broke.
fn refusal(error: &hyper::Error) -> Option<Refusal> {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    // What the client says of us, or the network, is not the client's fault.
    let error = source.filter(|error| error.is_library() && !error.is_io())?;
    // h2 counts resets, empty frames and bytes of heads itself.
    Some(if error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM) { Refusal::Flood } else { Refusal::Http2 })
}
