//! The section `overload` of a listener: load shedding. The thresholds are those of Envoy's overload manager
//! (`envoy.config.overload.v3.ScaledTrigger`), as percentages of the bounds.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::units::{ByteSize, Duration};

/// Load shedding: requests are refused with 503 (flag `OL`) while the proxy itself is overloaded. At least one bound is needed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Overload {
    /// How late a worker may run: the time between the moment when it should have continued and the moment when it did. At
    /// this lag, it sheds all requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_lag: Option<Duration>,
    /// The resident memory of the process at which all requests are shed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_memory: Option<ByteSize>,
    /// The same in percent of the memory that the process may use: the limit of its cgroup, or else the machine's memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub max_memory_percent: Option<u32>,
    /// Where shedding begins, in percent of a bound. From there to the bound, the share of requests that are shed grows from
    /// none to all.
    #[serde(default = "default_scaling_threshold")]
    #[schemars(range(max = 99))]
    pub scaling_threshold: u32,
    /// Paths, without query, whose requests are never shed, such as those of health checks.
    #[serde(default)]
    pub exempt_paths: Vec<String>,
}

fn default_scaling_threshold() -> u32 {
    80
}
