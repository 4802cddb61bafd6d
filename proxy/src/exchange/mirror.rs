//! Mirroring: sends a copy of a request to another cluster and discards its response. It must never affect the request
//! itself: a mirror that cannot keep up loses its copy.

use std::{
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;
use tokio::{sync::mpsc, time::Instant};

use super::{ListenerContext, upload::Upload};
use crate::{
    chain::{RequestHead, Stream},
    http::body::{Body, BodyError},
    net::proxy_protocol::Addresses,
    observe::target,
    upstream::{AttemptOutcome, Cluster, Pools, ProtocolChoice, RequestError, UsageGuard},
};

/// Parts of a body by which a slow mirror may lag behind.
const LAG: usize = 64;

/// The upload's side of a mirrored body.
pub(super) struct MirrorTee(Option<mpsc::Sender<Result<Bytes, BodyError>>>);

impl MirrorTee {
    /// Copies a part, or abandons the mirror if it lags too far behind.
    pub(super) fn send(&mut self, data: Bytes) {
        if let Some(sender) = &self.0
            && sender.try_send(Ok(data)).is_err()
        {
            let _ = sender.try_send(Err(BodyError::Closed));
            self.0 = None;
        }
    }

    /// Ends the body.
    pub(super) fn end(&mut self) {
        if let Some(sender) = self.0.take() {
            // An empty part marks the end; a closed channel would look like an abandoned body.
            let _ = sender.try_send(Ok(Bytes::new()));
        }
    }
}

/// The mirror's side of a mirrored body.
struct MirrorBody {
    parts: mpsc::Receiver<Result<Bytes, BodyError>>,
    whole: bool,
}

impl http_body::Body for MirrorBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.whole {
            return Poll::Ready(None);
        }
        Poll::Ready(match std::task::ready!(self.parts.poll_recv(cx)) {
            Some(Ok(data)) if data.is_empty() => {
                self.whole = true;
                None
            }
            Some(part) => Some(part.map(Frame::data)),
            None => Some(Err(BodyError::Closed)),
        })
    }
}

/// Starts sending a copy of a stream's request.
pub(super) fn start(
    listener: &Rc<ListenerContext>,
    stream: &Stream,
    cluster: &Arc<Cluster>,
    head: RequestHead,
    upload: &Upload,
) {
    let place = UsageGuard::default();
    if upload.is_unfinished() {
        match cluster.try_hold(stream.client.ip()) {
            Ok(held) => place.begin(held),
            Err(crowded) => {
                return tracing::debug!(
                    target: target::UPSTREAM,
                    cluster = &*cluster.name, ?crowded, "upload not mirrored"
                );
            }
        }
    }
    let body = match upload.is_empty() {
        true => Body::Empty,
        false => {
            let (sender, parts) = mpsc::channel(LAG);
            upload.set_tee(MirrorTee(Some(sender)));
            Body::stream(MirrorBody { parts, whole: false })
        }
    };
    let (pools, cluster) = (listener.pools.clone(), cluster.clone());
    let client = Addresses::new(stream.connection.peer, stream.connection.local);
    tokio::task::spawn_local(async move {
        let limit = cluster.request_timeout.unwrap_or(Duration::from_secs(60));
        let sent = tokio::time::timeout(limit, send(&pools, &cluster, client, &place, &head, body)).await;
        if !matches!(sent, Ok(Some(()))) {
            tracing::debug!(target: target::UPSTREAM, cluster = &*cluster.name, "mirrored request got no response");
        }
    });
}

async fn send(
    pools: &Pools<Body>,
    cluster: &Arc<Cluster>,
    client: Addresses,
    place: &UsageGuard,
    head: &RequestHead,
    body: Body,
) -> Option<()> {
    let mut request_guard = cluster.try_request()?;
    // A copy that takes as long as the client's upload would occupy the limit for as long.
    if matches!(body, Body::Empty) && !request_guard.await_response() {
        return None;
    }
    let endpoint = cluster.pick(None, &[])?.start();
    let endpoint = endpoint.endpoint();
    let start = Instant::now();
    let choice = ProtocolChoice { client: Some(client), usage: Some(place), ..ProtocolChoice::default() };
    let timer = cluster.time_attempt(endpoint, start);
    // The copy takes as long as the client's upload.
    let timer = if matches!(body, Body::Empty) { timer } else { timer.without_latency() };
    let result = pools.send(cluster, endpoint, choice, head, body).await;
    let outcome = result.as_ref().map_err(|failure| &failure.kind);
    timer.end(outcome);
    cluster.report(endpoint, || AttemptOutcome::of(outcome));
    let failed = |failure: RequestError<Body>| failure.kind.note(cluster, endpoint, start.elapsed());
    let mut body = result.map_err(failed).ok()?.into_body();
    request_guard.answered();
    // Read the body to its end, so that the connection can be reused.
    while !body.is_end_stream() {
        match body.frame().await {
            Some(Ok(_)) => {}
            Some(Err(_)) => return None,
            None => break,
        }
    }
    Some(())
}
