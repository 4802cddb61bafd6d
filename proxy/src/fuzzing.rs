//! What fuzz targets reach of parsers that are nobody else's business. Nothing else uses it.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Uri, Version};
use tokio::io::AsyncRead;

use crate::{
    downstream::{flood::FrameLimiter, h2::flood::CountedFrames},
    exchange::request,
    tls::{Identity, xfcc},
    upstream::health::grpc as health,
    wasm::{
        hostcalls::{foreign, wasi},
        vm::grpc,
    },
};

/// A client's connection over HTTP/2 whose frames are counted.
pub fn counted(stream: impl AsyncRead + Unpin, flood: &Rc<FrameLimiter>) -> impl AsyncRead + Unpin {
    CountedFrames::new(stream, flood.clone(), Rc::default())
}

/// The messages in the body of a gRPC answer that comes in these pieces, and what is left. An error is gRPC's.
pub fn grpc_messages(pieces: &[&[u8]]) -> Result<(Vec<Bytes>, usize), u32> {
    let (mut pending, mut messages) = (BytesMut::new(), Vec::new());
    for piece in pieces {
        pending.extend_from_slice(piece);
        while let Some(message) = grpc::take_message(&mut pending).map_err(|(status, _)| status)? {
            messages.push(message);
        }
    }
    Ok((messages, pending.len()))
}

/// What asks for a service's health.
pub fn health_request(service: &str) -> Vec<u8> {
    health::request(service)
}

/// What an endpoint says of a service's health.
pub fn health_status(answer: &[u8]) -> Option<u64> {
    health::status(answer).ok()
}

/// The host that a request is for.
pub fn authority(method: &Method, uri: &Uri, version: Version, fields: &mut HeaderMap) -> Option<Bytes> {
    request::authority(method, uri, version, fields).ok()
}

/// The key and the value in the arguments of `set_envoy_filter_state`.
pub fn filter_state(arguments: &[u8]) -> Option<(&[u8], &[u8])> {
    foreign::key_and_value(arguments)
}

/// What `fd_write` of WASI logs of the pieces that a list in the memory names, and how long all of them are.
pub fn gathered(memory: &[u8], iovs: i32, len: i32) -> Option<(Vec<u8>, usize)> {
    wasi::gathered(memory, iovs, len).ok()
}

/// What upstreams are told of a client.
pub fn forwarded_client_cert(client: &Identity) -> HeaderValue {
    xfcc::element(client, None)
}
