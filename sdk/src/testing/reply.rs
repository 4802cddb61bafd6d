//! Turns a filter's own response into the message that its response callbacks see, as the proxy does.

use super::host::Headers;
use crate::{Reply, sys::code};

/// Longest body, in bytes, that becomes a gRPC message.
const MAX_MESSAGE: usize = 1024;

/// Fields that the proxy always sets itself.
const FRAMING: [&str; 3] = ["content-length", "transfer-encoding", "connection"];

/// Reports whether a media type is gRPC's.
pub(super) fn is_grpc(media_type: &[u8]) -> bool {
    let rest = media_type.to_ascii_lowercase();
    let rest = rest.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// Returns the response's headers, including its length.
pub(super) fn headers(reply: &Reply) -> Headers {
    let mut headers = head(reply, reply.status);
    if !matches!(reply.status, 204 | 304) {
        headers.push(("content-length".into(), reply.body.len().to_string().into_bytes()));
    }
    headers
}

/// Returns the headers-only response, with a status, that a gRPC client receives.
pub(super) fn grpc_headers(reply: &Reply) -> Headers {
    let mut headers = head(reply, 200);
    headers.retain(|(name, _)| name != "content-type");
    headers.push(("content-type".into(), b"application/grpc".to_vec()));
    let status = reply.grpc_status.map_or_else(|| code_of(reply.status), u32::from);
    let message = str::from_utf8(&reply.body).ok().filter(|text| text.len() <= MAX_MESSAGE).unwrap_or_default();
    for (name, value) in [("grpc-status", status.to_string()), ("grpc-message", message.trim_ascii_end().to_owned())] {
        if !headers.iter().any(|(there, _)| there == name) {
            headers.push((name.into(), value.into_bytes()));
        }
    }
    headers
}

fn head(reply: &Reply, status: u16) -> Headers {
    let fields = reply.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone()));
    let own = fields.filter(|(name, _)| !FRAMING.contains(&name.as_str()));
    std::iter::once((":status".into(), status.to_string().into_bytes())).chain(own).collect()
}

/// Maps an HTTP status to a gRPC status (grpc/doc/http-grpc-status-mapping.md).
fn code_of(status: u16) -> u32 {
    match status {
        400 => code::INTERNAL,
        401 => code::UNAUTHENTICATED,
        403 => code::PERMISSION_DENIED,
        404 => code::UNIMPLEMENTED,
        429 | 502..=504 => code::UNAVAILABLE,
        _ => code::UNKNOWN,
    }
}
