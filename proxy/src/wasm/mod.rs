//! Running filters: WebAssembly modules that speak Proxy-Wasm, and the fast lane beside it (see `abi/SPEC.md`).
//!
//! [`compiler`] compiles, [`module`] checks, [`engine`] runs, [`plugin`] is a filter with its configuration, [`machine`] makes instances of one
//! or of several, [`vm`] is what a worker has of those and [`supply`] what it gets in place of one that failed, and [`filter`] what a chain has. The host's functions are in [`hostcalls`], one file for each group. What filters share is in [`world`].

pub mod bucket;
mod callout;
pub mod charge;
mod clock;
pub mod compiler;
mod contexts;
mod current;
pub mod engine;
mod failures;
pub mod filter;
pub(crate) mod grpc;
mod host;
pub(crate) mod hostcalls;
mod instance;
mod joined;
pub mod limits;
pub mod machine;
pub mod module;
mod network;
pub mod plugin;
pub mod presence;
mod queue;
mod shared_data;
mod spelled;
mod subject;
mod supply;
mod suspects;
mod trial;
pub mod vm;
mod voice;
mod words;
pub mod world;

pub(crate) use self::hostcalls::has as is_offered;
pub use self::{
    clock::processor_time,
    compiler::Compiler,
    engine::Engine,
    filter::WasmFilter,
    instance::Instance,
    machine::{InstantiateError, Machine, NotMade},
    module::{Code, LoadError, content_hash},
    plugin::Plugin,
    supply::{Order, Supply},
    vm::{Site, Vm},
    world::{Shared, World},
};
