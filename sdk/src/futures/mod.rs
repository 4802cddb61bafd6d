//! What a filter can wait for: calls to other services, bodies, time; and the executor that polls its futures.

pub(crate) mod call;
pub(crate) mod executor;
pub mod grpc;
pub(crate) mod incoming;
pub(crate) mod sleep;
