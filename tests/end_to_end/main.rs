//! Tests of the proxy as its users meet it: the binary as a process, real sockets on both sides, any bytes on them. Each
//! file is about one subject; [`harness`] is what they stand on.

mod harness;
mod hot_swap;
mod guest;

mod fields;
mod forwarding;
mod limits;
mod paths;
mod smuggling;
mod streaming;
mod upstream_failures;
