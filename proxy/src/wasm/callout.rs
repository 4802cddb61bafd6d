//! HTTP requests that filters send themselves, and their answers.

use std::{rc::Weak, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::Body as _;
use http_body_util::BodyExt;

use super::{
    Vm,
    host::{CallResponse, HttpCall},
};
use crate::{
    chain::{RequestHead, ResponseHead},
    http::body::Body,
    upstream::{Cluster, Pools},
};

/// Bytes of an answer's body; more is a failure.
const MAX_BODY: usize = 16 << 20;

/// What `proxy_get_status` says of a call that has failed: gRPC's numbers.
const DEADLINE_EXCEEDED: (u32, &str) = (4, "timeout");
const UNAVAILABLE: (u32, &str) = (14, "reset");
const TOO_LARGE: (u32, &str) = (8, "the response is too large");

/// Sends a call, and hands the answer to the filter that sent it, if that is still there.
pub(super) async fn run(vm: Weak<Vm>, upstream: Pools<Body>, call: HttpCall, incarnation: u32) {
    let HttpCall { id, root, cluster, head, body, trailers, size, timeout } = call;
    let exchange = exchange(&upstream, &cluster, &head, Body::full_with_trailers(body, trailers));
    let limit = timeout.unwrap_or(Duration::from_secs(365 * 86_400));
    let result = tokio::time::timeout(limit, exchange).await.unwrap_or(Err(DEADLINE_EXCEEDED));
    let response = match result {
        Ok((head, body, trailers)) => CallResponse { head: Some(head), body, trailers, failure: None },
        Err(failure) => CallResponse { failure: Some(failure), ..CallResponse::default() },
    };
    if let Some(vm) = vm.upgrade() {
        vm.on_call_response(root, (id, size), response, incarnation);
    }
}

type Answer = (ResponseHead, Bytes, HeaderMap);

async fn exchange(
    upstream: &Pools<Body>,
    cluster: &Arc<Cluster>,
    head: &RequestHead,
    body: Body,
) -> Result<Answer, (u32, &'static str)> {
    let _under_way = cluster.try_request().ok_or(UNAVAILABLE)?;
    let endpoint = cluster.pick(None, &[]).ok_or(UNAVAILABLE)?.start();
    let response = upstream.send(cluster, endpoint.endpoint(), None, head, body).await.map_err(|_| UNAVAILABLE)?;
    let (parts, mut body) = response.into_parts();
    let (mut bytes, mut trailers) = (BytesMut::new(), HeaderMap::new());
    while let Some(frame) = body.frame().await {
        match frame.map_err(|_| UNAVAILABLE)?.into_data() {
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
        }
        if bytes.len() > MAX_BODY {
            return Err(TOO_LARGE);
        }
        if body.is_end_stream() {
            break;
        }
    }
    Ok((ResponseHead { status: parts.status, fields: parts.headers }, bytes.freeze(), trailers))
}
