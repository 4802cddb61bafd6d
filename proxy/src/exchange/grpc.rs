//! gRPC specifics of the exchange: deadlines, local replies and the final status of calls.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version, header};
use tollgate_abi::{doc::RetryOn, fast::flag};

use super::{deadline::Deadline, outcome::ResponseGuards, stream_guard};
use crate::{
    chain::{ResponseHead, Stream, stream::GrpcCall},
    h2,
    http::{
        body::BodyError,
        grpc::{self, Code},
    },
    upstream::{AttemptOutcome, Cluster},
};

/// Maximum length in bytes of a body that is used as a gRPC message; a longer one is a document for people.
const MAX_MESSAGE: usize = 1024;

/// Marks a stream as a gRPC call if it is one. Only `POST` requests are calls.
pub(super) fn begin(stream: &Stream) {
    let is_call = {
        let request = &stream.state.borrow().request;
        request.method == Method::POST && grpc::is_grpc(&request.fields)
    };
    if is_call {
        // Only set here, so it cannot fail.
        let _ = stream.grpc.set(GrpcCall::default());
        set_deadline(stream, None);
    }
}

/// Returns whether a stream is a gRPC call to a cluster that may use HTTP/2, which gRPC requires. Since any client can
/// claim to make a call, only such calls are exempt from limits on other requests.
pub(super) fn is_call_to(stream: &Stream, cluster: &Cluster) -> bool {
    stream.grpc.get().is_some() && cluster.transport.may_speak_h2()
}

/// Sets a call's deadline from its current head, because filters may have changed or removed the timeout; at most
/// `most`. Returns whether it has a deadline.
pub(super) fn set_deadline(stream: &Stream, most: Option<Duration>) -> bool {
    let Some(call) = stream.grpc.get() else { return false };
    let timeout = stream.state.borrow().request.fields.get(grpc::TIMEOUT).and_then(grpc::parse_timeout);
    let timeout = timeout.map(|timeout| most.map_or(timeout, |most| timeout.min(most)));
    call.deadline.set(timeout.and_then(|timeout| stream.start.checked_add(timeout)));
    call.deadline.get().is_some()
}

/// Returns the remaining time of a call, as the upstream's timeout.
pub(super) fn time_left(stream: &Stream, deadline: &Deadline) -> Option<HeaderValue> {
    stream.grpc.get()?.deadline.get()?;
    deadline.left().map(grpc::format_timeout)
}

/// Converts a local reply for a gRPC client: a head with a gRPC status and no body. If the body cannot serve as the
/// message, the HTTP reason phrase does; the details are only in the access log.
pub(super) fn local(status: StatusCode, given: Option<u32>, mut fields: HeaderMap, body: &Bytes) -> ResponseHead {
    if !fields.contains_key(grpc::STATUS) {
        let number = given.unwrap_or_else(|| Code::of_http(status).number());
        fields.insert(grpc::STATUS, number.into());
    }
    if !fields.contains_key(grpc::MESSAGE) {
        let text = str::from_utf8(body).ok().filter(|text| (1..=MAX_MESSAGE).contains(&text.len()));
        let text = text.or(status.canonical_reason()).unwrap_or_default();
        fields.insert(grpc::MESSAGE, grpc::encode_message(text.trim_ascii_end()));
    }
    fields.insert(header::CONTENT_TYPE, grpc::CONTENT_TYPE);
    fields.remove(header::CONTENT_LENGTH);
    ResponseHead { status: StatusCode::OK, fields }
}

/// Returns the trailers of a call whose deadline passed after its response began. `None`: it is not a call, or trailers
/// would be lost on the way to the client.
pub(super) fn exceeded(stream: &Stream) -> Option<HeaderMap> {
    stream.grpc.get().filter(|_| stream.version >= Version::HTTP_2)?;
    let mut trailers = HeaderMap::new();
    trailers.insert(grpc::STATUS, Code::DeadlineExceeded.number().into());
    trailers.insert(grpc::MESSAGE, HeaderValue::from_static("Deadline Exceeded"));
    Some(trailers)
}

/// Records a call's status if the head or trailers contain one.
pub(super) fn note(stream: &Stream, fields: &HeaderMap) {
    if let Some(call) = stream.grpc.get()
        && let Some(status) = grpc::status(fields)
    {
        call.status.set(Some(status));
    }
}

/// Records the status that a client derives from a truncated response, unless it has already received one: over HTTP/2
/// from the reset code, over HTTP/1.1 from the closed connection.
pub(super) fn note_cut(stream: &Stream, error: &BodyError) {
    if let Some(call) = stream.grpc.get()
        && call.status.get().is_none()
    {
        let code = match stream.version >= Version::HTTP_2 {
            true => Code::of_reset(h2::reset_reason(error)),
            false if matches!(error, BodyError::Timeout) => Code::DeadlineExceeded,
            false => Code::Unavailable,
        };
        call.status.set(Some(code.number()));
    }
}

/// Returns a call's status, or an equivalent if it ended without one. `None`: the stream is not a call.
pub(super) fn outcome(stream: &Stream, flags: u32, status: Option<StatusCode>) -> Option<u32> {
    let told = stream.grpc.get()?.status.get();
    Some(told.unwrap_or_else(|| {
        let code = match status {
            _ if flags & flag::DOWNSTREAM_TERMINATED != 0 => Code::Cancelled,
            // The connection was lost.
            _ if stream_guard::has_worker_ended() => Code::Unavailable,
            None if stream.version < Version::HTTP_2 => Code::Unavailable,
            // The stream was reset before a head was sent.
            None => Code::Internal,
            // The client did not read, so the stream was abandoned.
            Some(_) if flags & (flag::UPSTREAM_TIMEOUT | flag::IDLE_TIMEOUT | flag::UPSTREAM_OVERFLOW) != 0 => {
                Code::Cancelled
            }
            Some(status) => Code::of_http(status),
        };
        code.number()
    }))
}

/// Returns whether a response consists only of a head with a status that means that the server has failed or is overloaded.
pub(super) fn has_failed(stream: &Stream, fields: &HeaderMap) -> bool {
    stream.grpc.get().is_some() && grpc::has_failed(fields)
}

/// Returns what a response's head says about its endpoint; `None` for a call that is still to end, with a status in the
/// trailers.
pub(super) fn outcome_of_head<B>(stream: &Stream, response: &Response<B>) -> Option<AttemptOutcome> {
    match stream.grpc.get() {
        Some(_) if response.status() == StatusCode::OK => outcome_of_trailers(response.headers()),
        _ => Some(AttemptOutcome::Response(response.status().as_u16())),
    }
}

fn outcome_of_trailers(trailers: &HeaderMap) -> Option<AttemptOutcome> {
    Some(AttemptOutcome::Response(grpc::http_of(grpc::status(trailers)?)))
}

/// Counts how a call whose response has trailers has ended, for the outlier detection of its cluster and the balancer.
pub(super) fn ended(stream: &Stream, guards: &ResponseGuards, trailers: &HeaderMap) {
    if stream.grpc.get().is_some() {
        guards.report(|| outcome_of_trailers(trailers));
        if grpc::has_failed(trailers) {
            guards.cluster().note_failed_call(guards.endpoint.endpoint(), trailers);
        }
    }
}

/// Returns the retry condition that a response consisting only of a head with a status meets.
pub(super) fn retry_condition(stream: &Stream, fields: &HeaderMap) -> Option<RetryOn> {
    stream.grpc.get()?;
    Some(match grpc::status(fields)? {
        1 => RetryOn::GrpcCancelled,
        4 => RetryOn::GrpcDeadlineExceeded,
        8 => RetryOn::GrpcResourceExhausted,
        13 => RetryOn::GrpcInternal,
        14 => RetryOn::GrpcUnavailable,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16, given: Option<u32>, fields: &[(&'static str, &str)], body: &str) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (http::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        let fields = fields.iter().map(pair).collect();
        let head =
            local(StatusCode::from_u16(status).unwrap(), given, fields, &Bytes::copy_from_slice(body.as_bytes()));
        assert_eq!(head.status, 200);
        assert_eq!(head.fields["content-type"], "application/grpc");
        assert!(!head.fields.contains_key("content-length"));
        head.fields
    }

    #[test]
    fn local_reply_is_a_head_with_a_status() {
        for (status, given, body, code, message) in [
            (403, None, "access denied\n", "7", "access denied"),
            (404, None, "", "12", "Not Found"),
            (504, Some(4), "Gateway Timeout", "4", "Gateway Timeout"),
            (403, Some(0), "x", "0", "x"),
            (200, None, "50% größer", "2", "50%25 gr%C3%B6%C3%9Fer"),
            (599, Some(77), "", "77", ""),
        ] {
            let fields =
                reply(status, given, &[("content-type", "text/html"), ("content-length", "9"), ("x-a", "1")], body);
            assert_eq!(
                (&fields[grpc::STATUS], &fields[grpc::MESSAGE]),
                (&code.parse().unwrap(), &message.parse().unwrap())
            );
            assert_eq!(fields["x-a"], "1");
        }
        assert_eq!(reply(429, None, &[], &"long ".repeat(300))[grpc::MESSAGE], "Too Many Requests");
        assert_eq!(
            local(StatusCode::BAD_GATEWAY, None, HeaderMap::new(), &Bytes::from_static(b"\xff")).fields[grpc::MESSAGE],
            "Bad Gateway"
        );
    }

    #[test]
    fn status_set_by_a_filter_is_kept() {
        let fields = reply(403, Some(3), &[("grpc-status", "16"), ("grpc-message", "who are you")], "denied");
        assert_eq!(
            (&fields[grpc::STATUS], &fields[grpc::MESSAGE]),
            (&"16".parse().unwrap(), &"who are you".parse().unwrap())
        );
    }
}
