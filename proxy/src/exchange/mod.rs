//! One request's life: the only place that knows the whole story.
//!
//! [`serve`] takes a request from a connection and gives back its response. In between: [`request`] makes a stream of it,
//! the chain's request filters see it, [`dispatch`] sends it to an upstream (perhaps several times), the response filters
//! see what came back, and [`response`] sends that on. Whatever goes wrong ends in [`reply`], with one status and one flag.
//! [`ending`] settles the accounts, whichever way the stream ended.

mod deadline;
mod dispatch;
mod grpc;
mod grpc_methods;
mod listener_context;
mod min_rate;
mod mirror;
mod outcome;
mod read_ahead;
mod rejection;
mod reply;
pub(crate) mod request;
mod response;
mod serve;
mod stream_guard;
mod tunnel;
mod upgrade;
mod upload;

pub use self::{
    grpc_methods::GrpcMethodMetrics,
    listener_context::{ClusterMetrics, ConnectionMetrics, ListenerContext, ListenerMetrics, Via},
    outcome::{ServedResponse, StreamClosed},
    rejection::{RejectLogLimiter, RejectReason, RejectedConnection},
    request::HeadTooLarge,
    serve::serve,
    stream_guard::worker_ends,
    tunnel::Tunnel,
};
