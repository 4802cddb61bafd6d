//! Running filters: WebAssembly modules that speak Proxy-Wasm, and the fast lane beside it (see `abi/SPEC.md`).
//!
//! [`compiler`] compiles, [`module`] checks, [`engine`] runs, [`plugin`] is a filter with its configuration, [`machine`] makes instances of one
//! or of several, [`vm`] is what a worker has of those and [`supply`] what it gets in place of one that failed, and [`filter`] what a chain has. The host's functions are in [`hostcalls`], one file for each group. What filters share is in [`world`].

pub mod engine;
mod host;
pub(crate) mod hostcalls;
mod instance;
mod scope;
pub mod stores;
pub mod vm;

pub(crate) use self::hostcalls::has as is_offered;
pub use self::{
    engine::{Engine, clock::processor_time, compiler::Compiler},
    instance::{
        Instance,
        compiled::{CompiledModule, LoadError, content_hash},
        plugin::Plugin,
        template::{InstantiateError, SetupError, VmTemplate},
    },
    stores::env::{FilterEnv, SharedStore},
    vm::{
        Vm, VmBinding,
        filter::WasmFilter,
        supply::{InstanceOrder, InstanceSupply},
    },
};
