//! The exchange: the lifecycle of one request, from its arrival to the end of its response.
//!
//! [`serve`] takes a request from a connection and returns its response. In between, [`request`] creates a stream from
//! it, the chain's request filters process it, [`dispatch`] sends it to an upstream (possibly several times), the
//! response filters process the upstream's response, and [`response`] forwards that. Every failure becomes a [`reply`],
//! with one status and one response flag. [`stream_guard`] updates metrics and the access log, however the stream ends.

mod attempt;
mod deadline;
mod deadline_header;
mod dispatch;
mod grpc;
mod grpc_methods;
mod hedging;
mod listener_context;
mod min_rate;
mod mirror;
mod outcome;
mod overload;
mod read_ahead;
mod rejection;
mod reply;
pub(crate) mod request;
mod response;
mod retry_state;
mod serve;
mod stream_guard;
#[cfg(test)]
mod tests;
mod tunnel;
mod upgrade;
mod upload;

pub use self::{
    grpc_methods::GrpcMethodMetrics,
    listener_context::{ConnectionMetrics, ListenerContext, ListenerMetrics, Via},
    outcome::{ServedResponse, StreamClosed},
    overload::{Overload, Resource, Shedding},
    rejection::{RejectLogLimiter, RejectReason, RejectedConnection},
    request::HeadTooLarge,
    serve::serve,
    stream_guard::worker_ends,
    tunnel::Tunnel,
};
