//! Tests of the proxy as its users meet it: the binary as a process, real sockets on both sides, any bytes on them. Each
//! file is about one subject; [`harness`] is what they stand on.

mod harness;

mod fields;
mod forwarding;
mod paths;
mod smuggling;
mod streaming;
