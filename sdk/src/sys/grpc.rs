//! Proxy-Wasm's functions for gRPC calls, as imports. See `standard`.
#![allow(unsafe_code)]

use tollgate_abi::proxy_wasm::Status;

use super::types::GrpcError;
use crate::sys::code;

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_grpc_call(
        cluster: *const u8,
        cluster_len: usize,
        service: *const u8,
        service_len: usize,
        method: *const u8,
        method_len: usize,
        metadata: *const u8,
        metadata_len: usize,
        message: *const u8,
        message_len: usize,
        timeout: u32,
        id: *mut u32,
    ) -> i32;
    fn proxy_grpc_stream(
        cluster: *const u8,
        cluster_len: usize,
        service: *const u8,
        service_len: usize,
        method: *const u8,
        method_len: usize,
        metadata: *const u8,
        metadata_len: usize,
        id: *mut u32,
    ) -> i32;
    fn proxy_grpc_send(id: u32, message: *const u8, len: usize, end: u32) -> i32;
    fn proxy_grpc_close(id: u32) -> i32;
    fn proxy_grpc_cancel(id: u32) -> i32;
}

pub(crate) fn grpc_call(
    cluster: &str,
    service: &str,
    method: &str,
    metadata: &[u8],
    message: &[u8],
    millis: u32,
) -> Result<u32, GrpcError> {
    let mut id = 0;
    // SAFETY: all ranges are live for the call; the host writes the id's four bytes.
    let status = unsafe {
        proxy_grpc_call(
            cluster.as_ptr(),
            cluster.len(),
            service.as_ptr(),
            service.len(),
            method.as_ptr(),
            method.len(),
            metadata.as_ptr(),
            metadata.len(),
            message.as_ptr(),
            message.len(),
            millis,
            &mut id,
        )
    };
    begun(status, id)
}

pub(crate) fn grpc_stream(cluster: &str, service: &str, method: &str, metadata: &[u8]) -> Result<u32, GrpcError> {
    let mut id = 0;
    // SAFETY: all ranges are live for the call; the host writes the id's four bytes.
    let status = unsafe {
        proxy_grpc_stream(
            cluster.as_ptr(),
            cluster.len(),
            service.as_ptr(),
            service.len(),
            method.as_ptr(),
            method.len(),
            metadata.as_ptr(),
            metadata.len(),
            &mut id,
        )
    };
    begun(status, id)
}

fn begun(status: i32, id: u32) -> Result<u32, GrpcError> {
    match status {
        0 => Ok(id),
        s if s == Status::InternalFailure as i32 => Err(GrpcError::new(code::RESOURCE_EXHAUSTED, "too many calls")),
        _ => Err(GrpcError::new(code::UNAVAILABLE, "the cluster does not exist, or the call is invalid")),
    }
}

/// Returns whether the message is sent.
pub(crate) fn grpc_send(call: u32, message: &[u8], end: bool) -> bool {
    // SAFETY: the range is live for the call.
    unsafe { proxy_grpc_send(call, message.as_ptr(), message.len(), end.into()) == 0 }
}

pub(crate) fn grpc_close(call: u32) {
    // SAFETY: no addresses.
    unsafe { proxy_grpc_close(call) };
}

pub(crate) fn grpc_cancel(call: u32) {
    // SAFETY: no addresses.
    unsafe { proxy_grpc_cancel(call) };
}
