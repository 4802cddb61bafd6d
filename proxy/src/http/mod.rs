//! HTTP vocabulary shared by all versions: bodies, dates, header fields that a proxy removes or adds, gRPC and
//! gRPC-Web.

pub mod body;
mod date;
pub mod fields;
pub mod grpc;
pub mod grpc_web;
