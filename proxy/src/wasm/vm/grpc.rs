//! gRPC calls by filters: unary calls and streams.

use std::{
    cell::OnceCell,
    collections::HashMap,
    pin::Pin,
    rc::Weak,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::AbortHandle,
    time::Instant,
};

use super::callout::{CONCURRENCY, FULL, NO_ENDPOINT, note_broken, note_late};
use crate::{
    chain::charge::CALL,
    http::{
        body::{Body, BodyError},
        grpc::{self, CallStatus, Code, take_message},
    },
    upstream::{AttemptOutcome, Cluster, Endpoint, Pools, ProtocolChoice, UpstreamBodyError},
    wasm::{
        Vm,
        host::grpc::{CallCommand, CallEvent, GrpcCall},
    },
};

/// Maximum bytes of a received message; a larger one ends the call.
pub(crate) const MAX_MESSAGE: usize = 16 << 20;

/// A call in progress, on its filter's worker.
pub(in crate::wasm) struct CallHandle {
    messages: Option<UnboundedSender<Bytes>>,
    task: AbortHandle,
}

impl Drop for CallHandle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The calls of an instance.
pub(super) type Calls = HashMap<u32, CallHandle>;

/// Executes a guest's command.
pub(super) fn execute(calls: &mut Calls, wish: CallCommand, vm: &Weak<Vm>, upstream: &Pools<Body>, incarnation: u32) {
    match wish {
        CallCommand::Open(call) => {
            let (id, stream) = (call.id, call.message.is_none());
            let (sender, messages) = unbounded_channel();
            let task = run(vm.clone(), upstream.clone(), *call, messages, incarnation);
            let task = tokio::task::spawn_local(task).abort_handle();
            calls.insert(id, CallHandle { messages: stream.then_some(sender), task });
        }
        CallCommand::Send(id, message, last) => {
            let Some(handle) = calls.get_mut(&id) else { return };
            if let Some(messages) = &handle.messages {
                let _ = messages.send(message);
            }
            if last {
                handle.messages = None;
            }
        }
        CallCommand::Close(id) => {
            if let Some(handle) = calls.get_mut(&id) {
                handle.messages = None;
            }
        }
        CallCommand::Cancel(id) => _ = calls.remove(&id),
    }
}

/// The messages of a stream, as a request body.
struct Messages(UnboundedReceiver<Bytes>);

impl http_body::Body for Messages {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(ready!(self.0.poll_recv(cx)).map(|message| Ok(Frame::data(message))))
    }
}

async fn run(
    vm: Weak<Vm>,
    upstream: Pools<Body>,
    call: GrpcCall,
    messages: UnboundedReceiver<Bytes>,
    incarnation: u32,
) {
    let (id, caller, stream, limit) = (call.id, call.caller, call.message.is_none(), call.timeout);
    let tell = |event| match vm.upgrade() {
        Some(vm) => vm.on_grpc_event(caller, id, event, incarnation),
        None => false,
    };
    let asked = OnceCell::new();
    let end = match upstream.cluster(&call.cluster, Instant::now()) {
        // It has gone since the filter made the call.
        None => Err((Code::Unavailable.number(), "the cluster does not exist".to_owned())),
        Some(cluster) => {
            let exchange = exchange(&upstream, &cluster, call, messages, &asked, &tell);
            match limit {
                None => exchange.await,
                Some(limit) => tokio::time::timeout(limit, exchange).await.unwrap_or_else(|_| {
                    note_late(&cluster, asked.get(), limit);
                    Err((Code::DeadlineExceeded.number(), "the call timed out".to_owned()))
                }),
            }
        }
    };
    let (status, message) = match end {
        // The instance is gone.
        Ok(None) => return,
        Ok(Some((status, message))) | Err((status, message)) => (status, message),
    };
    if let Some(vm) = vm.upgrade() {
        // For a unary call, the message alone is the whole response.
        if stream || status != 0 {
            vm.on_grpc_event(caller, id, CallEvent::Closed(status, message), incarnation);
        }
        vm.grpc_ended(id, incarnation);
    }
}

/// Sends the call and reports what it receives. `None`: the instance is gone.
async fn exchange(
    upstream: &Pools<Body>,
    cluster: &Arc<Cluster>,
    call: GrpcCall,
    messages: UnboundedReceiver<Bytes>,
    asked: &OnceCell<Arc<Endpoint>>,
    tell: &impl Fn(CallEvent) -> bool,
) -> Result<Option<CallStatus>, CallStatus> {
    let unavailable = |why: &str| (Code::Unavailable.number(), why.to_owned());
    let GrpcCall { mut head, message, timeout, mut charge, .. } = call;
    head.fields.insert(header::CONTENT_TYPE, grpc::CONTENT_TYPE);
    head.fields.insert(header::TE, HeaderValue::from_static("trailers"));
    if let Some(timeout) = timeout {
        head.fields.insert(grpc::TIMEOUT, grpc::format_timeout(timeout));
    }
    let stream = message.is_none();
    let body = match message {
        Some(message) => Body::full(message),
        None => Body::stream(Messages(messages)),
    };
    let unsent = |why, said| {
        cluster.note_unsent(why);
        unavailable(said)
    };
    let mut request_guard = cluster.try_request().ok_or_else(|| unsent(FULL, "too many requests are active"))?;
    // The filter decides how long it sends a stream.
    if !stream && !request_guard.await_response() {
        return Err(unsent(CONCURRENCY, "too many requests wait for a response"));
    }
    let active = cluster.pick(None, &[]).ok_or_else(|| unsent(NO_ENDPOINT, "the cluster has no endpoint"))?.start();
    let endpoint = asked.get_or_init(|| active.endpoint().clone());
    let start = Instant::now();
    let timer = cluster.time_attempt(endpoint, start);
    // The filter decides when it sends the messages of a stream.
    let timer = if stream { timer.without_latency() } else { timer };
    let response = upstream.send(cluster, endpoint, ProtocolChoice::default(), &head, body).await;
    let outcome = response.as_ref().map_err(|failure| &failure.kind);
    match outcome {
        Ok(response) if grpc::has_failed(response.headers()) => timer.refused(Instant::now(), response.headers()),
        outcome => timer.end(outcome),
    }
    // With a status of 200, the call's own status counts, which is in the head or in the trailers.
    cluster.report(endpoint, || match outcome {
        Ok(response) if response.status() == StatusCode::OK => outcome_of(grpc::status(response.headers())?),
        outcome => AttemptOutcome::of(outcome),
    });
    let response = response.map_err(|failure| {
        failure.kind.note(cluster, endpoint, start.elapsed());
        unavailable(&failure.to_string())
    })?;
    request_guard.answered();
    let (parts, mut body) = response.into_parts();
    if !parts.status.is_success() {
        return Err((
            Code::of_http(parts.status).number(),
            format!("the response's HTTP status is {}", parts.status.as_u16()),
        ));
    }
    // A trailers-only response carries its status in the head.
    if let Some(status) = grpc::status(&parts.headers) {
        if stream && !tell(CallEvent::Trailing(parts.headers.clone())) {
            return Ok(None);
        }
        return Ok(Some((status, grpc::message(&parts.headers))));
    }
    if stream && !tell(CallEvent::Initial(parts.headers)) {
        return Ok(None);
    }
    let (mut pending, mut only, mut trailers) = (BytesMut::new(), None::<Bytes>, None::<HeaderMap>);
    while let Some(frame) = body.frame().await {
        let broken = |error: UpstreamBodyError| {
            note_broken(cluster, endpoint, &error, pending.len());
            unavailable(&error.to_string())
        };
        match frame.map_err(broken)?.into_data() {
            Ok(data) => {
                let there = only.as_ref().map_or(0, Bytes::len) + pending.len();
                charge
                    .set(CALL + there + data.len())
                    .map_err(|_| exhausted("the response exceeds `limits.host_memory`"))?;
                pending.extend_from_slice(&data);
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
        while let Some(message) = take_message(&mut pending, MAX_MESSAGE)? {
            if !stream {
                only = Some(message);
            } else if !tell(CallEvent::Message(message)) {
                return Ok(None);
            }
        }
        if body.is_end_stream() {
            break;
        }
    }
    let trailers = trailers.unwrap_or_default();
    let status = grpc::status(&trailers).unwrap_or(Code::Unknown.number());
    cluster.report(endpoint, || outcome_of(status));
    if grpc::is_server_failure(status) {
        cluster.note_failed_call(endpoint, &trailers);
    }
    let said = grpc::message(&trailers);
    if stream && !tell(CallEvent::Trailing(trailers)) {
        return Ok(None);
    }
    if !stream && status == 0 {
        let Some(message) = only else {
            return Err((Code::Internal.number(), "the response has no message".to_owned()));
        };
        if !tell(CallEvent::Message(message)) {
            return Ok(None);
        }
    }
    Ok(Some((status, said)))
}

/// What a call's status says about its endpoint.
fn outcome_of(status: u32) -> Option<AttemptOutcome> {
    Some(AttemptOutcome::Response(grpc::http_of(status)))
}

fn exhausted(why: &str) -> CallStatus {
    (Code::ResourceExhausted.number(), why.to_owned())
}

#[cfg(test)]
mod tests {
    use crate::wasm::host::grpc::EndedCalls;

    #[test]
    fn ended_calls_are_kept_up_to_a_limit_and_taken_once() {
        let mut over = EndedCalls::default();
        (0..=EndedCalls::MOST as u32).for_each(|id| over.add(id));
        assert!(!over.take(0) && over.take(1) && !over.take(1) && over.take(EndedCalls::MOST as u32));
    }
}
