//! Entry points for fuzz targets to parsers that are otherwise private. Nothing else uses them.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Uri, Version};
use tokio::io::AsyncRead;

#[cfg(feature = "kubernetes")]
use crate::control::discovery::kubernetes::{self, Replayed};
use crate::{
    downstream::{flood::FrameLimiter, h2::flood::CountedFrames},
    exchange::request,
    http::grpc,
    tls::{Identity, xfcc},
    upstream::health::grpc as health,
    wasm::{
        hostcalls::{foreign, wasi},
        vm::grpc::MAX_MESSAGE,
    },
};

/// Wraps a client's HTTP/2 connection so that its frames are counted.
pub fn counted(stream: impl AsyncRead + Unpin, flood: &Rc<FrameLimiter>) -> impl AsyncRead + Unpin {
    CountedFrames::new(stream, flood.clone(), Rc::default())
}

/// Returns the messages in the body of a gRPC response that arrives in these pieces, and the number of bytes left. An
/// error is a gRPC status.
pub fn grpc_messages(pieces: &[&[u8]]) -> Result<(Vec<Bytes>, usize), u32> {
    let (mut pending, mut messages) = (BytesMut::new(), Vec::new());
    for piece in pieces {
        pending.extend_from_slice(piece);
        while let Some(message) = grpc::take_message(&mut pending, MAX_MESSAGE).map_err(|(status, _)| status)? {
            messages.push(message);
        }
    }
    Ok((messages, pending.len()))
}

/// Applies a watch of Kubernetes EndpointSlices, which arrives in these pieces, to an empty namespace.
#[cfg(feature = "kubernetes")]
pub fn endpoint_slices(pieces: &[&[u8]]) -> Replayed {
    kubernetes::replay(pieces)
}

/// Returns a health check request for a service.
pub fn health_request(service: &str) -> Vec<u8> {
    health::request(service)
}

/// Returns the status in a health check response.
pub fn health_status(answer: &[u8]) -> Option<u64> {
    health::status(answer).ok()
}

/// Returns the host of a request.
pub fn authority(method: &Method, uri: &Uri, version: Version, fields: &mut HeaderMap) -> Option<Bytes> {
    request::authority(method, uri, version, fields).ok()
}

/// Returns the key and the value in the arguments of `set_envoy_filter_state`.
pub fn filter_state(arguments: &[u8]) -> Option<(&[u8], &[u8])> {
    foreign::key_and_value(arguments)
}

/// Returns the bytes that WASI's `fd_write` logs for a list of pieces in the memory, and their total length.
pub fn gathered(memory: &[u8], iovs: i32, len: i32) -> Option<(Vec<u8>, usize)> {
    wasi::gathered(memory, iovs, len).ok()
}

/// Returns the `X-Forwarded-Client-Cert` element for a client.
pub fn forwarded_client_cert(client: &Identity) -> HeaderValue {
    xfcc::element(client, None)
}
