//! HTTP calls by filters (callouts) and their responses.

use std::{cell::OnceCell, rc::Weak, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::Body as _;
use http_body_util::BodyExt;

use crate::{
    chain::{
        RequestHead, ResponseHead,
        charge::{BudgetExceeded, MemoryCharge},
        head,
    },
    http::body::Body,
    upstream::{
        AttemptOutcome, Cluster, Endpoint, FailureCategory, Pools, ProtocolChoice, RequestError, UpstreamBodyError,
    },
    wasm::{
        Vm,
        host::{CallResponse, HttpCall},
    },
};

/// Maximum bytes of a response's body; a larger one fails the call.
const MAX_BODY: usize = 16 << 20;

/// What `proxy_get_status` returns for a failed call: gRPC status codes.
const DEADLINE_EXCEEDED: (u32, &str) = (4, "timeout");
const UNAVAILABLE: (u32, &str) = (14, "reset");
const TOO_LARGE: (u32, &str) = (8, "the response is too large");

/// Sends a call and passes the response to the filter, if that still exists.
pub(in crate::wasm) async fn run(vm: Weak<Vm>, upstream: Pools<Body>, call: HttpCall, incarnation: u32) {
    let HttpCall { id, caller, cluster, head, body, trailers, mut charge, timeout } = call;
    let asked = OnceCell::new();
    let body = Body::full_with_trailers(body, trailers);
    let limit = timeout.unwrap_or(Duration::from_secs(365 * 86_400));
    let result = match upstream.cluster(&cluster, tokio::time::Instant::now()) {
        // It has gone since the filter made the call.
        None => Err(UNAVAILABLE),
        Some(cluster) => {
            let exchange = exchange(&upstream, &cluster, &head, body, &asked, &mut charge);
            tokio::time::timeout(limit, exchange).await.unwrap_or_else(|_| {
                note_late(&cluster, asked.get(), limit);
                Err(DEADLINE_EXCEEDED)
            })
        }
    };
    let response = match result {
        Ok((head, body, trailers)) => CallResponse { head: Some(head), body, trailers, failure: None },
        Err(failure) => CallResponse { failure: Some(failure), ..CallResponse::default() },
    };
    if let Some(vm) = vm.upgrade() {
        vm.on_call_response(caller, id, response, incarnation);
    }
}

/// Why a call could not be sent.
pub(super) const FULL: &str = "too many requests are active (`limits.requests`)";
pub(super) const CONCURRENCY: &str = "too many requests wait for a response (`adaptive_concurrency`)";
pub(in crate::wasm) const NO_ENDPOINT: &str = "the cluster has no endpoint, or none that is healthy";

/// Records that a call was not answered within the filter's timeout.
#[cold]
pub(super) fn note_late(cluster: &Cluster, endpoint: Option<&Arc<Endpoint>>, limit: Duration) {
    if let Some(endpoint) = endpoint {
        let why = format!("no response to a filter's call within {limit:?}, the timeout set by the filter");
        endpoint.note_failure(&cluster.name, FailureCategory::Timeout, &why);
        cluster.report(endpoint, || Some(AttemptOutcome::NoResponse));
    }
}

/// Records that the response to a call ended early.
#[cold]
pub(super) fn note_broken(cluster: &Cluster, endpoint: &Arc<Endpoint>, error: &UpstreamBodyError, bytes: usize) {
    let (trouble, why) = error.reason(bytes as u64);
    endpoint.note_failure(&cluster.name, trouble, &why);
    cluster.report(endpoint, || Some(AttemptOutcome::NoResponse));
}

type CalloutResult = (ResponseHead, Bytes, HeaderMap);

async fn exchange(
    upstream: &Pools<Body>,
    cluster: &Arc<Cluster>,
    head: &RequestHead,
    body: Body,
    asked: &OnceCell<Arc<Endpoint>>,
    charge: &mut MemoryCharge,
) -> Result<CalloutResult, (u32, &'static str)> {
    let unsent = |why| {
        cluster.note_unsent(why);
        UNAVAILABLE
    };
    let mut request_guard = cluster.try_request().ok_or_else(|| unsent(FULL))?;
    if !request_guard.await_response() {
        return Err(unsent(CONCURRENCY));
    }
    let active = cluster.pick(None, &[]).ok_or_else(|| unsent(NO_ENDPOINT))?.start();
    let endpoint = asked.get_or_init(|| active.endpoint().clone());
    let start = tokio::time::Instant::now();
    let failed = |failure: RequestError<Body>| {
        failure.kind.note(cluster, endpoint, start.elapsed());
        UNAVAILABLE
    };
    let timer = cluster.time_attempt(endpoint, start);
    let result = upstream.send(cluster, endpoint, ProtocolChoice::default(), head, body).await;
    let outcome = result.as_ref().map_err(|failure| &failure.kind);
    timer.end(outcome);
    cluster.report(endpoint, || AttemptOutcome::of(outcome));
    let response = result.map_err(failed)?;
    request_guard.answered();
    let (parts, mut body) = response.into_parts();
    let full = |_: BudgetExceeded| TOO_LARGE;
    charge.grow(head::size(&parts.headers)).map_err(full)?;
    let (mut bytes, mut trailers) = (BytesMut::new(), HeaderMap::new());
    while let Some(frame) = body.frame().await {
        let broken = |error| {
            note_broken(cluster, endpoint, &error, bytes.len());
            UNAVAILABLE
        };
        match frame.map_err(broken)?.into_data() {
            Ok(data) => {
                charge.grow(data.len()).map_err(full)?;
                if bytes.len() + data.len() > MAX_BODY {
                    return Err(TOO_LARGE);
                }
                bytes.extend_from_slice(&data);
            }
            Err(frame) => {
                trailers = frame.into_trailers().unwrap_or_default();
                charge.grow(head::size(&trailers)).map_err(full)?;
            }
        }
        if body.is_end_stream() {
            break;
        }
    }
    Ok((ResponseHead { status: parts.status, fields: parts.headers }, bytes.freeze(), trailers))
}
