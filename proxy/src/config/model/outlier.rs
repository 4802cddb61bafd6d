//! The section `outlier_detection` of a cluster. Names and rules are Envoy's
//! (`envoy.config.cluster.v3.OutlierDetection`); docs/outliers.md lists the differences.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::units::Duration;

/// Outlier ejection: endpoints that fail requests get none for a while.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OutlierDetection {
    /// Time between two evaluations: of success rates and failure percentages, and of whether ejected endpoints return.
    pub interval: Duration,
    /// How long the first ejection lasts. The second in a row lasts twice as long, and so on.
    pub base_ejection_time: Duration,
    /// The longest ejection. Default: 300 s, or `base_ejection_time` if that is longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ejection_time: Option<Duration>,
    /// The longest random time that is added to an ejection, so that endpoints do not all return at the same moment.
    pub max_ejection_time_jitter: Duration,
    /// The most endpoints that are ejected, in percent of the cluster's.
    #[schemars(range(max = 100))]
    pub max_ejection_percent: u32,
    /// Whether one endpoint may be ejected even if that is more than `max_ejection_percent`.
    pub always_eject_one_host: bool,
    /// Whether a successful health check ends an ejection.
    pub successful_active_health_check_uneject_host: bool,
    /// The number of server errors in a row that eject an endpoint.
    #[schemars(range(min = 1))]
    pub consecutive_5xx: u32,
    /// The chance, in percent, that `consecutive_5xx` ejects. 0: it is only counted.
    #[schemars(range(max = 100))]
    pub enforcing_consecutive_5xx: u32,
    /// The number of gateway failures (502, 503, 504) in a row that eject an endpoint.
    #[schemars(range(min = 1))]
    pub consecutive_gateway_failure: u32,
    /// The chance, in percent, that `consecutive_gateway_failure` ejects.
    #[schemars(range(max = 100))]
    pub enforcing_consecutive_gateway_failure: u32,
    /// Whether attempts without a response (refused, reset, timed out) are counted apart from responses, instead of as
    /// gateway failures.
    pub split_external_local_origin_errors: bool,
    /// The number of attempts in a row without a response that eject an endpoint.
    #[schemars(range(min = 1))]
    pub consecutive_local_origin_failure: u32,
    /// The chance, in percent, that `consecutive_local_origin_failure` ejects.
    #[schemars(range(max = 100))]
    pub enforcing_consecutive_local_origin_failure: u32,
    /// Success rates are compared if at least this many endpoints had enough requests in an interval.
    pub success_rate_minimum_hosts: u32,
    /// Success rates are compared among endpoints that had at least this many requests in an interval.
    pub success_rate_request_volume: u32,
    /// An endpoint is ejected if its success rate is below the mean by this many thousandths of a standard deviation.
    pub success_rate_stdev_factor: u32,
    /// The chance, in percent, that a low success rate ejects.
    #[schemars(range(max = 100))]
    pub enforcing_success_rate: u32,
    /// The same for the success rate of attempts that got a response at all.
    #[schemars(range(max = 100))]
    pub enforcing_local_origin_success_rate: u32,
    /// An endpoint is ejected if at least this percentage of its requests failed in an interval.
    #[schemars(range(max = 100))]
    pub failure_percentage_threshold: u32,
    /// Failure percentages count if at least this many endpoints had enough requests in an interval.
    pub failure_percentage_minimum_hosts: u32,
    /// Failure percentages count for endpoints that had at least this many requests in an interval.
    pub failure_percentage_request_volume: u32,
    /// The chance, in percent, that a high failure percentage ejects.
    #[schemars(range(max = 100))]
    pub enforcing_failure_percentage: u32,
    /// The same for the percentage of attempts without a response.
    #[schemars(range(max = 100))]
    pub enforcing_failure_percentage_local_origin: u32,
}

impl Default for OutlierDetection {
    fn default() -> Self {
        OutlierDetection {
            interval: Duration::secs(10),
            base_ejection_time: Duration::secs(30),
            max_ejection_time: None,
            max_ejection_time_jitter: Duration::secs(0),
            max_ejection_percent: 10,
            always_eject_one_host: true,
            successful_active_health_check_uneject_host: true,
            consecutive_5xx: 5,
            enforcing_consecutive_5xx: 100,
            consecutive_gateway_failure: 5,
            enforcing_consecutive_gateway_failure: 0,
            split_external_local_origin_errors: false,
            consecutive_local_origin_failure: 5,
            enforcing_consecutive_local_origin_failure: 100,
            success_rate_minimum_hosts: 5,
            success_rate_request_volume: 100,
            success_rate_stdev_factor: 1900,
            enforcing_success_rate: 100,
            enforcing_local_origin_success_rate: 100,
            failure_percentage_threshold: 85,
            failure_percentage_minimum_hosts: 5,
            failure_percentage_request_volume: 50,
            enforcing_failure_percentage: 0,
            enforcing_failure_percentage_local_origin: 0,
        }
    }
}

impl OutlierDetection {
    /// Returns the longest ejection, without the jitter.
    pub fn max_ejection_time(&self) -> std::time::Duration {
        let default = Duration::secs(300).0.max(self.base_ejection_time.0);
        self.max_ejection_time.map_or(default, |time| time.0)
    }
}
