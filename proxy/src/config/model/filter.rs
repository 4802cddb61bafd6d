//! The `filters` section.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::units::{ByteSize, Duration};

/// A WebAssembly filter with its configuration.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Its name: what chains, logs and metrics call it.
    #[schemars(length(min = 1))]
    pub name: String,
    #[doc = concat!("The module: ", env!("BUILTIN_FILTERS"), ", or a file, relative to this one.")]
    pub wasm: String,
    /// Handed to the filter: as JSON if it is a map, a list, a number or a boolean, as it stands if it is a string.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    #[schemars(extend("type" = super::ANY))]
    pub config: serde_json::Value,
    /// Handed to the filter's VM when it starts, in the same way.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    #[schemars(extend("type" = super::ANY))]
    pub vm_config: serde_json::Value,
    /// The name of the root context that a module with several of them registers it under.
    #[serde(default)]
    pub root_id: String,
    /// Filters with the same `vm_id` share their shared data and queues; if `wasm`, `vm_config`, `env`, `limits.memory`
    /// and `limits.host_memory` are the same as well, they run in one VM on each worker. Then a failure of one is a failure of all of them. Default:
    /// the filter's name, so it runs alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm_id: Option<String>,
    /// What becomes of a request when the filter traps, runs out of time or memory, or is not there.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// What a filter means by pausing in the header phase.
    #[serde(default)]
    pub headers_pause: HeadersPause,
    /// Bounds on what it may use.
    #[serde(default)]
    pub limits: FilterLimits,
    /// Environment variables that the module sees through WASI.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// What becomes of a request whose filter has failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// It is answered with 503 (flag `FF`).
    #[default]
    Deny,
    /// It goes on as if the filter were not in the chain.
    Bypass,
}

/// What a filter means by pausing in the header phase; the field knows two meanings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HeadersPause {
    /// Nothing is delivered until it resumes.
    #[default]
    StopAll,
    /// The headers are held, and the body is still delivered to it (Coraza and Kuadrant's wasm-shim rely on this).
    HoldHeaders,
}

/// Bounds on what a filter may use.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FilterLimits {
    /// Processor time for one call into it. Configuring may take twenty times as long.
    pub call_time: Duration,
    /// Linear memory of one instance.
    pub memory: ByteSize,
    /// What the proxy may keep for one instance outside of its memory: calls and their answers, messages, timers, headers.
    pub host_memory: ByteSize,
}

impl Default for FilterLimits {
    fn default() -> Self {
        FilterLimits { call_time: Duration::millis(50), memory: ByteSize(64 << 20), host_memory: ByteSize(64 << 20) }
    }
}
