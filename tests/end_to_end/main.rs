//! End-to-end tests: the binary as a process, real sockets on both sides, any bytes on them. Each file covers one
//! subject; [`harness`] is the basis.

mod harness;

use harness::guest;

mod access_log;
mod admin;
mod against;
mod assemblyscript;
mod bad_config;
mod balancing;
mod bodies;
mod bounds;
mod ca;
mod call_times;
mod charges;
mod checks;
mod compiling;
mod containment;
mod cut_off;
mod cves;
mod deadlines;
mod descriptors;
#[cfg(feature = "http3")]
mod differential;
mod dns;
mod downloads;
mod draining;
mod early_data;
mod failure_reasons;
mod fields;
mod filters;
mod forwarding;
mod golden;
mod grpc;
mod grpc_calls;
mod grpc_web;
mod health_checks;
mod hosts;
mod hot_swap;
mod http2;
#[cfg(feature = "http3")]
mod http3;
mod idle;
mod interim;
mod interop;
mod last_words;
mod limits;
mod mirror;
mod mutations;
mod overload;
mod own_log;
mod paths;
mod portable;
mod proxy_protocol;
mod queues;
mod response_heads;
mod retries;
mod reuse;
mod shared_vms;
mod slow_peers;
mod smuggling;
mod sources;
mod stored;
mod streaming;
mod tcp;
mod third_party;
mod tls;
mod toolchains;
mod tunnels;
mod unix_sockets;
mod upgrading;
mod uploads;
mod upstream_failures;
mod variants;
mod whole;
