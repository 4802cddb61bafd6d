//! SDK for writing Tollgate filters in Rust.
//!
//! A filter is a type that implements [`Filter`], plus one line that exports it:
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
//! A filter that calls other services, waits or reads bodies implements [`AsyncFilter`], which has the same callbacks
//! as `async fn`.
//!
//! A filter of TCP connections implements [`TcpFilter`].
//!
//! The host functions are those of `tollgate_v1` in the ABI (see `abi/SPEC.md`). If a call fails for a reason that a
//! filter cannot handle (such as too many names), the host logs the failure and the call has no other effect. `testing`
//! runs a filter natively, without WebAssembly.
//!
//! Features: `portable` (off) builds modules for any Proxy-Wasm host (see `docs/filters.md`). `log` and `tracing` (off)
//! send the macros of the crates of these names to the proxy's log. `talc` (on) is the module's allocator.

mod config;
mod filter;
mod futures;
mod log;
mod message;
mod resources;
mod sys;
mod table;
#[doc(hidden)]
pub mod tcp;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
pub mod units;

pub use self::{
    config::{
        ConfigError, matching,
        setup::{Mistakes, Setup},
    },
    filter::{Filter, async_filter::AsyncFilter},
    futures::{
        call::{Answer, Call, Sent},
        grpc::{self, GrpcCall, GrpcSent, GrpcStream},
        incoming::Incoming,
        sleep::{Sleep, sleep},
    },
    log::{Level, log},
    message::{
        Buffer, Request, Response, Source,
        body::{Body, Late, TooLarge},
        flow::{Asked, Flow},
        reply::Reply,
    },
    resources::{
        Bucket, Limit, RouteId, Selection, Taken,
        metrics::{Counter, Gauge, Histogram},
        now, random, random_bytes,
        shared::{self, Queue},
        stored::{self, Metadata, StoreError},
        unix_time,
    },
    sys::types::{CallError, GrpcError, Name, Phases},
    tcp::{ClosedBy, Connection, Data, TcpFilter, TcpFlow, TcpPhases},
};
#[doc(hidden)]
pub use filter::dispatch;
pub use tollgate_abi::{doc, fast::Take, fast::flag, value::Value};

#[cfg(all(target_arch = "wasm32", feature = "talc"))]
#[global_allocator]
static ALLOCATOR: talc::wasm::WasmDynamicTalc = talc::wasm::new_wasm_dynamic_allocator();

/// Imports that most filters need.
pub mod prelude {
    pub use crate::{
        Answer, AsyncFilter, Body, Bucket, Buffer, Call, CallError, ClosedBy, ConfigError, Connection, Counter, Data,
        Filter, Flow, Gauge, GrpcCall, GrpcError, Histogram, Incoming, Late, Level, Limit, Mistakes, Name, Phases,
        Queue, Reply, Request, Response, RouteId, Selection, Setup, Source, TcpFilter, TcpFlow, TcpPhases, TooLarge,
        flag, shared, sleep, stored,
    };
}
