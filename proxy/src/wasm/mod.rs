//! The Proxy-Wasm host: compiles WebAssembly filters, runs their instances on the workers and implements the host
//! functions (hostcalls), including the fast lane, Tollgate's own extension of the ABI (see `abi/SPEC.md`).
//!
//! `engine` compiles modules and bounds calls, `instance` holds a compiled module, its configuration and its instances,
//! `vm` is an instance on a worker with everything that keeps it running (supply, recovery, quarantine), `hostcalls`
//! has one file per group of host functions, `scope` tracks what the current call works on, and `stores` holds what
//! filters share.
//!
//! From configuration to request, a filter is successively:
//!
//! | name | meaning |
//! |---|---|
//! | [`config::model::Filter`](crate::config::model::Filter) | an entry of `filters:` |
//! | [`Plugin`] (with its `PluginInfo`) | a filter of a snapshot: compiled module and configuration; `PluginInfo` is what it can ask about itself |
//! | [`VmTemplate`] → [`Instance`] | what instances are created from (one plugin, or several that share a VM); one instance that is ready |
//! | `RootContext` in a [`Vm`] | the plugin in a worker's VM (Proxy-Wasm's root context, which equal plugins share) |
//! | [`WasmFilter`] (`dyn chain::Filter`) | the plugin as a chain of this worker sees it |
//!
//! `CallContext` (`vm.rs`) and `StreamContext` (`scope/contexts.rs`) belong to streams, not to filters.

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
        compiled::{CompiledModule, LoadError},
        facts::FilterFacts,
        groups::{Sharing, VmGroup, VmKey, groups},
        plugin::{FilterSettings, Plugin},
        template::{InstantiateError, SetupError, TemplateRoot, VmTemplate},
    },
    stores::{
        env::{FilterEnv, SharedStore},
        known_names::KnownNames,
    },
    vm::{
        Vm, VmBinding,
        filter::WasmFilter,
        supply::{InstanceOrder, InstanceSupply},
    },
};
