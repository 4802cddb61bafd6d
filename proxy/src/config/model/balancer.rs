//! The section `balancer` of a cluster.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{super::units::Duration, Locality};

/// How an endpoint is chosen for each request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Balancer {
    /// The load-balancing algorithm.
    #[serde(default)]
    pub policy: BalancerPolicy,
    /// `least_request`: the number of endpoints that are compared. Default: 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 64))]
    pub choice_count: Option<u32>,
    /// `least_request`: chooses among the compared endpoints at random, each with a chance in proportion to
    /// `1 / (active requests + 1)^active_request_bias`. Default: the one with the fewest is chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 100.0))]
    pub active_request_bias: Option<f64>,
    /// `peak_ewma`: the time in which the difference between the average latency and lower latencies falls to 37 %.
    /// Default: 10 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay: Option<Duration>,
    /// `peak_ewma`: the latency of an endpoint before anything was measured. Default: 30 ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_rtt: Option<Duration>,
    /// `peak_ewma`: a failed attempt counts as one that took this time, or longer if it did. `0s`: as long as it took.
    /// Default: 5 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_penalty: Option<Duration>,
    /// `peak_ewma`: the longest time for which an endpoint whose failed response says when to return (`retry-after`,
    /// `grpc-retry-pushback-ms`) keeps its penalty. At most a week. `0s`: it does not. Default: 300 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_retry_after: Option<Duration>,
    /// `ring_hash`: the number of points on the ring, if that is more than 512 per endpoint. Default: 1024.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 8_388_608))]
    pub minimum_ring_size: Option<u32>,
    /// `ring_hash`: the limit for the number of points. Default: 8388608.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 8_388_608))]
    pub maximum_ring_size: Option<u32>,
    /// `maglev`: the number of places in the table, a prime number. It should be at least a hundred times the number of
    /// endpoints. Default: 65537.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 3, max = 5_000_011))]
    pub table_size: Option<u32>,
    /// `hash`, `ring_hash`, `maglev`: the most that an endpoint may have of the requests in flight, in percent of its fair
    /// share. Further keys go to other endpoints. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 101, max = 1_000_000))]
    pub hash_balance_factor: Option<u32>,
    /// `round_robin`, `least_request`, `random`, `peak_ewma`: sends fewer requests to endpoints that have just joined.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<SlowStart>,
    /// Endpoints near the proxy first, or a share of the requests for each locality. Default: localities do not matter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<LocalityBalancing>,
    /// A priority or locality gets all of its requests while its healthy endpoints, times this percentage, are 100 % of its
    /// endpoints. Default: 140.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 100, max = 1_000_000))]
    pub overprovisioning_factor: Option<u32>,
    /// If fewer than this percentage of the endpoints of a priority are healthy and not ejected, and those of all
    /// priorities are too few, all of them are used: the checks are then more likely to be at fault, and the remaining
    /// endpoints would be overloaded. Default: 50.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub panic_threshold: Option<u32>,
}

impl Balancer {
    /// Returns the number of endpoints that `least_request` compares.
    pub fn choice_count(&self) -> u32 {
        self.choice_count.unwrap_or(2)
    }

    /// Returns the decay time of `peak_ewma`.
    pub fn decay(&self) -> std::time::Duration {
        self.decay.unwrap_or(Duration::secs(10)).0
    }

    /// Returns the latency that `peak_ewma` assumes.
    pub fn default_rtt(&self) -> std::time::Duration {
        self.default_rtt.unwrap_or(Duration::millis(30)).0
    }

    /// Returns the least latency of a failed attempt for `peak_ewma`.
    pub fn failure_penalty(&self) -> std::time::Duration {
        self.failure_penalty.unwrap_or(Duration::secs(5)).0
    }

    /// Returns the longest time for which `peak_ewma` avoids an endpoint at its request.
    pub fn max_retry_after(&self) -> std::time::Duration {
        self.max_retry_after.unwrap_or(Duration::secs(300)).0
    }

    /// Returns the least and the most points of `ring_hash`.
    pub fn ring_size(&self) -> (u64, u64) {
        (self.minimum_ring_size.unwrap_or(1024).into(), self.maximum_ring_size.unwrap_or(8_388_608).into())
    }

    /// Returns how localities matter.
    pub fn locality_policy(&self) -> Option<LocalityPolicy> {
        self.locality.as_ref().map(|locality| locality.policy)
    }

    /// Returns the overprovisioning factor in percent.
    pub fn overprovisioning_factor(&self) -> u32 {
        self.overprovisioning_factor.unwrap_or(140)
    }

    /// Returns the panic threshold in percent.
    pub fn panic_threshold(&self) -> u32 {
        self.panic_threshold.unwrap_or(50)
    }

    /// Returns the number of places of `maglev`.
    pub fn table_size(&self) -> u64 {
        self.table_size.unwrap_or(65_537).into()
    }
}

/// A load-balancing algorithm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BalancerPolicy {
    /// Weighted round robin, smoothly interleaved.
    #[default]
    RoundRobin,
    /// Two random choices: of two endpoints drawn by weight, the one with fewer in-flight requests relative to its
    /// weight.
    LeastRequest,
    /// Two random choices: of two endpoints drawn by weight, the one with the lower product of latency and in-flight
    /// requests relative to its weight. The latency is a moving average that follows peaks.
    PeakEwma,
    /// Weighted random.
    Random,
    /// By the route's hash key: a key stays with one endpoint while that endpoint is available (weighted rendezvous
    /// hashing). Random for requests without a key.
    Hash,
    /// By the route's hash key, on a ring (Ketama): fast with many endpoints.
    RingHash,
    /// By the route's hash key, in a table (Maglev): fast and even with many endpoints, but a few more keys move when
    /// endpoints change.
    Maglev,
}

/// Slow start of endpoints that have just joined their cluster, or have just become healthy: their weights grow.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SlowStart {
    /// The time until an endpoint has its whole weight.
    pub window: Duration,
    /// The shape: the weight grows with the time to the power of `1 / aggression`. 1: linear; more: faster at first.
    #[serde(default = "default_aggression")]
    #[schemars(range(min = 0.01, max = 100.0))]
    pub aggression: f64,
    /// The share of its weight that an endpoint has at least, in percent.
    #[serde(default = "default_min_weight_percent")]
    #[schemars(range(max = 100))]
    pub min_weight_percent: u32,
}

fn default_aggression() -> f64 {
    1.0
}

fn default_min_weight_percent() -> u32 {
    10
}

/// How the localities of endpoints matter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LocalityBalancing {
    /// The way.
    pub policy: LocalityPolicy,
    /// `weighted`: the localities and their weights. The first entry that matches counts; without any, an endpoint gets no
    /// requests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<LocalityWeight>,
    /// `zone_aware`: the requests that the proxies of each zone send, relative to each other. The first entry that matches counts;
    /// zones without one send none. Default: each zone sends the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub callers: Vec<LocalityWeight>,
    /// `zone_aware`: with fewer endpoints in use, zones do not matter. Default: 6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_cluster_size: Option<u32>,
}

impl LocalityBalancing {
    /// Returns the number of endpoints from which `zone_aware` considers zones.
    pub fn minimum_cluster_size(&self) -> u32 {
        self.minimum_cluster_size.unwrap_or(6)
    }
}

/// How the localities of endpoints matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LocalityPolicy {
    /// Among endpoints of the same priority, those near the proxy are used first: in its sub-zone, in its zone, in its region,
    /// then all others.
    Failover,
    /// Each locality gets requests in proportion to its weight.
    Weighted,
    /// Requests stay in the proxy's zone as far as its endpoints can bear them.
    ZoneAware,
}

/// The weight of some localities.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LocalityWeight {
    /// The region. Default: any.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub region: String,
    /// The zone. Default: any.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub zone: String,
    /// The sub-zone. Default: any.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sub_zone: String,
    /// The share of the requests, relative to the other weights. 0: no requests.
    #[schemars(range(max = 1_000_000))]
    pub weight: u32,
}

fn is(wanted: &str, actual: &str) -> bool {
    wanted.is_empty() || wanted == actual
}

impl LocalityWeight {
    /// Returns whether the weight is for this locality.
    pub fn matches(&self, locality: &Locality) -> bool {
        self.matches_zone(&locality.region, &locality.zone) && is(&self.sub_zone, &locality.sub_zone)
    }

    /// Returns whether the weight is for this zone, apart from its sub-zones.
    pub fn matches_zone(&self, region: &str, zone: &str) -> bool {
        is(&self.region, region) && is(&self.zone, zone)
    }
}
