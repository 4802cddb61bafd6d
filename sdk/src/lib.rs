//! Write Tollgate filters in Rust.
//!
//! A filter is a type that implements [`Filter`], and a line that exports it:
//!
//! ```
//! use tollgate_sdk::prelude::*;
//!
//! #[derive(serde::Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Config {
//!     value: String,
//! }
//!
//! struct Greeter {
//!     header: Name,
//!     value: String,
//! }
//!
//! impl Filter for Greeter {
//!     type Config = Config;
//!     type Stream = ();
//!     const PHASES: Phases = Phases::REQUEST_HEADERS;
//!
//!     fn configure(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
//!         Ok(Greeter { header: setup.name("x-greeting"), value: config.value })
//!     }
//!
//!     fn on_request(&self, request: &Request, _: &mut ()) -> Flow {
//!         request.set_header(self.header, &self.value);
//!         Flow::Continue
//!     }
//! }
//!
//! tollgate_sdk::export!(Greeter);
//! # fn main() {
//! # let host = tollgate_sdk::testing::TestHost::<Greeter>::new(serde_json::json!({"value": "hello"})).unwrap();
//! # assert_eq!(host.request("GET", "/").send().request_header("x-greeting"), Some("hello"));
//! # }
//! ```
//!
//! A filter that asks other services, waits or reads bodies is an [`AsyncFilter`]: it has the same callbacks as `async fn`.
//!
//! A filter of TCP connections is a [`TcpFilter`].
//!
//! What the host offers is `tollgate_v1` of the ABI (see `abi/SPEC.md`). A call that fails for a reason that a filter cannot
//! do anything about (a name too many, say) is logged by the host and otherwise without effect; a filter never has to
//! handle it. `testing` runs a filter natively, without WebAssembly.
//!
//! Features: `portable` (off) makes modules for any host of Proxy-Wasm (see `docs/filters.md`). `log` and `tracing` (off) bring the macros of the crates of these names to the proxy's log. `talc` (on) is the
//! module's allocator.

mod asks;
mod async_filter;
mod body;
mod call;
mod config;
#[doc(hidden)]
pub mod dispatch;
mod executor;
mod export;
mod filter;
pub mod grpc;
mod incoming;
mod log;
#[cfg(feature = "log")]
mod log_crate;
pub mod matching;
mod message;
mod metrics;
mod reply;
mod resources;
mod setup;
pub mod shared;
mod sleep;
pub mod stored;
mod sys;
mod table;
#[doc(hidden)]
pub mod tcp;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
#[cfg(feature = "tracing")]
mod tracing_crate;
pub mod units;

pub use async_filter::AsyncFilter;
pub use body::Body;
pub use call::{Answer, Asked, Call, CallError, Sent};
pub use config::ConfigError;
pub use filter::{Filter, Flow, Phases};
pub use grpc::{GrpcCall, GrpcError, GrpcSent, GrpcStream};
pub use incoming::{Incoming, Late, TooLarge};
pub use log::{Level, log};
pub use message::{Buffer, Name, Request, Response, Source};
pub use metrics::{Counter, Gauge, Histogram};
pub use reply::Reply;
pub use resources::{Bucket, Limit, RouteId, Selection, Taken, now, random, random_bytes, unix_time};
pub use setup::{Mistakes, Setup};
pub use shared::Queue;
pub use sleep::{Sleep, sleep};
pub use stored::{Metadata, StoreError};
pub use tcp::{ClosedBy, Connection, Data, TcpFilter, TcpFlow, TcpPhases};
pub use tollgate_abi::{doc, fast::Take, fast::flag, value::Value};

#[cfg(all(target_arch = "wasm32", feature = "talc"))]
#[global_allocator]
static ALLOCATOR: talc::wasm::WasmDynamicTalc = talc::wasm::new_wasm_dynamic_allocator();

/// What most filters need.
pub mod prelude {
    pub use crate::{
        Answer, AsyncFilter, Body, Bucket, Buffer, Call, CallError, ClosedBy, ConfigError, Connection, Counter, Data,
        Filter, Flow, Gauge, GrpcCall, GrpcError, Histogram, Incoming, Late, Level, Limit, Mistakes, Name, Phases,
        Queue, Reply, Request, Response, RouteId, Selection, Setup, Source, TcpFilter, TcpFlow, TcpPhases, TooLarge,
        flag, shared, sleep, stored,
    };
}
