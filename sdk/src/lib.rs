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
//! What the host offers is `tollgate_v1` of the ABI (see `abi/SPEC.md`). A call that fails for a reason that a filter cannot
//! do anything about (a name too many, say) is logged by the host and otherwise without effect; a filter never has to
//! handle it. [`testing`] runs a filter natively, without WebAssembly.

mod body;
mod config;
#[doc(hidden)]
pub mod dispatch;
mod filter;
mod log;
pub mod matching;
mod message;
mod resources;
mod setup;
mod sys;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
pub mod units;

pub use body::Body;
pub use config::ConfigError;
pub use filter::{Filter, Flow, Phases, Reply};
pub use log::{Level, log};
pub use message::{Buffer, Name, Request, Response, Source};
pub use resources::{Bucket, Counter, Limit, RouteId, Selection, Taken, now, random};
pub use setup::{Mistakes, Setup};
pub use tollgate_abi::{doc, fast::Take, fast::flag};

/// What most filters need.
pub mod prelude {
    pub use crate::{
        Body, Bucket, Buffer, ConfigError, Counter, Filter, Flow, Level, Limit, Mistakes, Name, Phases, Reply, Request,
        Response, RouteId, Selection, Setup, Source, flag,
    };
}

/// Exports a [`Filter`] from the module: the callbacks of Proxy-Wasm 0.2.1, the marker of its version, and the allocator.
///
/// It expands to one `extern "C"` function for each callback, which calls the function of the same name in
/// `tollgate_sdk::dispatch`; outside of WebAssembly it expands to nothing.
#[macro_export]
macro_rules! export {
    ($filter:ty) => {
        #[cfg(target_arch = "wasm32")]
        #[allow(unsafe_code)]
        mod __tollgate_exports {
            use super::*;
            use $crate::dispatch::{self, Dispatcher};

            thread_local! {
                static DISPATCHER: Dispatcher<$filter> = const { Dispatcher::new() };
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_abi_version_0_2_1() {}

            #[unsafe(no_mangle)]
            extern "C" fn malloc(size: usize) -> *mut u8 {
                dispatch::allocate(size)
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_context_create(context: u32, parent: u32) {
                DISPATCHER.with(|d| d.context_create(context, parent))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_vm_start(_root: u32, _size: usize) -> u32 {
                dispatch::start();
                1
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_configure(root: u32, size: usize) -> u32 {
                DISPATCHER.with(|d| d.configure(root, size)).into()
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_tick(root: u32) {
                DISPATCHER.with(|d| d.tick(root))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_request_headers(context: u32, _count: usize, end: u32) -> i32 {
                DISPATCHER.with(|d| d.request_headers(context, end != 0))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_request_body(context: u32, size: usize, end: u32) -> i32 {
                DISPATCHER.with(|d| d.request_body(context, size, end != 0))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_response_headers(context: u32, _count: usize, end: u32) -> i32 {
                DISPATCHER.with(|d| d.response_headers(context, end != 0))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_response_body(context: u32, size: usize, end: u32) -> i32 {
                DISPATCHER.with(|d| d.response_body(context, size, end != 0))
            }

            #[unsafe(no_mangle)]
            extern "C" fn tollgate_on_timer(context: u32, token: i64) {
                DISPATCHER.with(|d| d.timer(context, token))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_done(_context: u32) -> u32 {
                1
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_log(context: u32) {
                DISPATCHER.with(|d| d.log(context))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_delete(context: u32) {
                DISPATCHER.with(|d| d.delete(context))
            }
        }
    };
}
