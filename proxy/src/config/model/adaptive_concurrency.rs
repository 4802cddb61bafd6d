//! The section `adaptive_concurrency` of a cluster. Names and defaults are those of Envoy's gradient controller
//! (`envoy.extensions.filters.http.adaptive_concurrency.v3.GradientControllerConfig`); docs/overload.md lists the
//! differences.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::units::Duration;

/// Adaptive concurrency: a limit on concurrent requests that follows the latency of the endpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdaptiveConcurrency {
    /// The percentile of the latencies that stands for all of them.
    #[schemars(range(min = 1, max = 100))]
    pub sample_aggregate_percentile: u32,
    /// How the limit changes.
    pub concurrency_limit_params: ConcurrencyLimitParams,
    /// How the latency without load (minRTT) is measured.
    pub min_rtt_calc_params: MinRttCalcParams,
}

/// How the limit on concurrent requests changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConcurrencyLimitParams {
    /// The highest limit.
    #[schemars(range(min = 1))]
    pub max_concurrency_limit: u32,
    /// Time between two changes of the limit, each by the latencies since the last one.
    pub concurrency_update_interval: Duration,
}

/// How the latency without load (minRTT) is measured: for a while, only a few requests are admitted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MinRttCalcParams {
    /// Time between two measurements.
    pub interval: Duration,
    /// The latency, if it is known: it is then never measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fixed_value: Option<Duration>,
    /// The number of responses that end a measurement.
    #[schemars(range(min = 1))]
    pub request_count: u32,
    /// The longest random time that is added to `interval`, in percent of it, so that proxies do not all measure at the
    /// same moment.
    #[schemars(range(max = 100))]
    pub jitter: u32,
    /// The limit during a measurement, and the lowest one otherwise.
    #[schemars(range(min = 1))]
    pub min_concurrency: u32,
    /// By how much latency may exceed the measured one without lowering the limit, in percent.
    #[schemars(range(max = 1000))]
    pub buffer: u32,
}

impl Default for AdaptiveConcurrency {
    fn default() -> Self {
        AdaptiveConcurrency {
            sample_aggregate_percentile: 50,
            concurrency_limit_params: ConcurrencyLimitParams::default(),
            min_rtt_calc_params: MinRttCalcParams::default(),
        }
    }
}

impl Default for ConcurrencyLimitParams {
    fn default() -> Self {
        ConcurrencyLimitParams {
            max_concurrency_limit: 1000,
            concurrency_update_interval: Duration(std::time::Duration::from_millis(100)),
        }
    }
}

impl Default for MinRttCalcParams {
    fn default() -> Self {
        MinRttCalcParams {
            interval: Duration::secs(60),
            fixed_value: None,
            request_count: 50,
            jitter: 15,
            min_concurrency: 3,
            buffer: 25,
        }
    }
}
