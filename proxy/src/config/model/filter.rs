//! The `filters` section.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    super::units::{ByteSize, Duration},
    JsonText,
};

/// A WebAssembly filter and its configuration.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// A unique name, used in chains, logs and metrics.
    #[schemars(length(min = 1))]
    pub name: String,
    #[doc = concat!("The module: ", env!("BUILTIN_FILTERS"), ", or a file, relative to this configuration file.")]
    pub wasm: String,
    /// Configuration that is passed to the filter: a string verbatim, anything else (map, list, number, boolean) as
    /// JSON.
    #[serde(default, skip_serializing_if = "JsonText::is_null")]
    #[schemars(extend("type" = super::ANY))]
    pub config: JsonText,
    /// Other configurations of the filter, by name, in the same form as `config`. A route selects one with `filters`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("additionalProperties" = serde_json::json!({"type": super::ANY})))]
    pub variants: BTreeMap<String, JsonText>,
    /// Configuration that is passed to the filter's VM when it starts, in the same form as `config`.
    #[serde(default, skip_serializing_if = "JsonText::is_null")]
    #[schemars(extend("type" = super::ANY))]
    pub vm_config: JsonText,
    /// The name under which a module that has several root contexts registers the one to use.
    #[serde(default)]
    pub root_id: String,
    /// Filters with the same `vm_id` share their shared data and queues. If `wasm`, `vm_config`, `env`, `limits.memory`
    /// and `limits.host_memory` are also equal, they run in one VM per worker and fail together. Default: the filter's
    /// name, so that it has its own VM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm_id: Option<String>,
    /// How requests are handled when the filter traps, exceeds its time or memory limit, or is unavailable.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// What a pause in the header phase means for this filter.
    #[serde(default)]
    pub headers_pause: HeadersPause,
    /// Resource limits of the filter.
    #[serde(default)]
    pub limits: FilterLimits,
    /// Environment variables that the module sees through WASI.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// How a request is handled when its filter has failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// The request is answered with 503 (flag `FF`).
    #[default]
    Deny,
    /// The request continues as if the filter were not in the chain.
    Bypass,
}

/// What a pause in the header phase means. Proxy-Wasm hosts and filters disagree about it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HeadersPause {
    /// Nothing is delivered to the filter until it resumes.
    #[default]
    StopAll,
    /// The headers are held, but the filter still receives the body (Coraza and Kuadrant's wasm-shim rely on this).
    HoldHeaders,
}

/// Resource limits of a filter.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FilterLimits {
    /// CPU time per call into the filter. Configuring it may take twenty times as long.
    pub call_time: Duration,
    /// Linear memory per instance.
    pub memory: ByteSize,
    /// Memory that the proxy may hold for one instance outside its linear memory: callouts and their responses,
    /// messages, timers, headers.
    pub host_memory: ByteSize,
}

impl Default for FilterLimits {
    fn default() -> Self {
        FilterLimits { call_time: Duration::millis(50), memory: ByteSize(64 << 20), host_memory: ByteSize(64 << 20) }
    }
}
