//! Futures that a filter can await (calls to other services, bodies, time), and the executor that polls them.

pub(crate) mod call;
pub(crate) mod executor;
pub mod grpc;
pub(crate) mod incoming;
pub(crate) mod sleep;
