//! Running filters: WebAssembly modules that speak Proxy-Wasm, and the fast lane beside it (see `abi/SPEC.md`).
//!
//! [`engine`] compiles, [`module`] checks, [`plugin`] makes instances, [`vm`] is what a worker has of a filter. The host's
//! functions are in [`hostcalls`], one file for each group. What filters share is in [`world`].

pub mod bucket;
mod callout;
mod clock;
mod current;
pub mod engine;
mod grpc;
mod host;
mod hostcalls;
mod instance;
pub mod limits;
pub mod module;
mod network;
pub mod plugin;
mod queue;
mod subject;
pub mod vm;
mod voice;
mod words;
pub mod world;

pub(crate) use self::hostcalls::has as is_offered;
pub use self::{
    engine::Engine,
    instance::Instance,
    module::{Code, LoadError, content_hash},
    plugin::{InstantiateError, Plugin},
    vm::{Site, Vm},
    world::{Shared, World},
};
