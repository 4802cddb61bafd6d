//! Outlier ejection (passive health checks): endpoints that fail requests get none for a while. Rules, names and
//! defaults are Envoy's (`envoy.config.cluster.v3.OutlierDetection`); docs/outliers.md lists the differences.
//!
//! Who does what: workers count the outcomes of attempts in the endpoints, with relaxed atomics and without locks
//! ([`record`]). The thread of the health checks decides, alone, so that the limits on ejections hold
//! ([`OutlierDetectors`]): immediately about an endpoint whose failures in a row a worker reports, and once per interval
//! about success rates, and about which endpoints return ([`decide`]). A decision changes which endpoints the balancers
//! know, so a pick costs the same whether endpoints are ejected or not. A cluster without outlier detection pays one
//! branch per attempt.

mod decide;
mod detectors;
mod state;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use http::{Response, StatusCode};
use tokio::sync::mpsc::UnboundedSender;

pub(super) use self::{decide::passed_check, state::OutlierState};
pub use self::{
    detectors::OutlierDetectors,
    state::{Ejection, OutlierStatus},
};
use super::{Cluster, ClusterId, Endpoint, RequestErrorKind};
use crate::config::model::OutlierDetection;

/// What an attempt at an endpoint came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// A response with this status; for a gRPC call, the corresponding HTTP status.
    Response(u16),
    /// A TCP connection, whose bytes are not interpreted.
    Connected,
    /// No response because of the endpoint: it could not be reached, broke the protocol, reset the connection, or did not
    /// respond in time. Envoy's local-origin failure.
    NoResponse,
}

impl AttemptOutcome {
    /// The outcome of an attempt that ended with this response or failure; `None` if the endpoint is not to blame for the
    /// failure.
    pub fn of<B>(result: Result<&Response<B>, &RequestErrorKind>) -> Option<AttemptOutcome> {
        match result {
            Ok(response) => Some(AttemptOutcome::Response(response.status().as_u16())),
            Err(kind) => kind.is_of_endpoint().then_some(AttemptOutcome::NoResponse),
        }
    }
}

/// A rule by which endpoints are ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are Envoy's")]
pub enum OutlierRule {
    Consecutive5xx,
    ConsecutiveGatewayFailure,
    ConsecutiveLocalOriginFailure,
    SuccessRate,
    SuccessRateLocalOrigin,
    FailurePercentage,
    FailurePercentageLocalOrigin,
}

impl OutlierRule {
    /// The names of all rules in logs, metrics and the admin API, in the order of the variants.
    pub const NAMES: [&str; 7] = [
        "consecutive_5xx",
        "consecutive_gateway_failure",
        "consecutive_local_origin_failure",
        "success_rate",
        "success_rate_local_origin",
        "failure_percentage",
        "failure_percentage_local_origin",
    ];

    /// The name.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// The chance, in percent, that the rule ejects.
    fn enforcing(self, config: &OutlierDetection) -> u32 {
        match self {
            OutlierRule::Consecutive5xx => config.enforcing_consecutive_5xx,
            OutlierRule::ConsecutiveGatewayFailure => config.enforcing_consecutive_gateway_failure,
            OutlierRule::ConsecutiveLocalOriginFailure => config.enforcing_consecutive_local_origin_failure,
            OutlierRule::SuccessRate => config.enforcing_success_rate,
            OutlierRule::SuccessRateLocalOrigin => config.enforcing_local_origin_success_rate,
            OutlierRule::FailurePercentage => config.enforcing_failure_percentage,
            OutlierRule::FailurePercentageLocalOrigin => config.enforcing_failure_percentage_local_origin,
        }
    }
}

/// What a cluster counts of its outliers, and how its workers report them.
#[derive(Debug)]
pub(super) struct OutlierStats {
    cluster: ClusterId,
    suspects: UnboundedSender<Suspect>,
    /// By rule: endpoints that it has found, ejected or not.
    detections: [AtomicU64; 7],
    /// By rule: ejections.
    ejections: [AtomicU64; 7],
    /// Endpoints that were not ejected because too many were already.
    overflows: AtomicU64,
}

/// An endpoint with too many failures in a row.
#[derive(Debug)]
struct Suspect {
    cluster: ClusterId,
    endpoint: Arc<Endpoint>,
    rule: OutlierRule,
}

/// What a cluster's outlier detection has done so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlierTotals {
    /// Endpoints that are ejected now.
    pub active: usize,
    /// Endpoints that the rules have found, by rule.
    pub detections: [u64; 7],
    /// Ejections, by rule.
    pub ejections: [u64; 7],
    /// Endpoints that were not ejected because too many were already.
    pub overflows: u64,
}

impl Cluster {
    /// Counts the outcome of an attempt for the outlier detection, if the cluster has one. `None`: the attempt says nothing
    /// about the endpoint.
    #[inline]
    pub fn report(&self, endpoint: &Arc<Endpoint>, outcome: impl FnOnce() -> Option<AttemptOutcome>) {
        if let Some(config) = &self.outlier_detection
            && let Some(outcome) = outcome()
        {
            record(self, config, endpoint, outcome);
        }
    }

    /// What its outlier detection has done; `None` without one.
    pub fn outliers(&self) -> Option<OutlierTotals> {
        self.outlier_detection.as_ref()?;
        let stats = self.stats().outliers.get();
        let read = |counts: &[AtomicU64; 7]| std::array::from_fn(|rule| counts[rule].load(Relaxed));
        Some(OutlierTotals {
            active: self.members().iter().filter(|member| member.endpoint.is_ejected()).count(),
            detections: stats.map_or([0; 7], |stats| read(&stats.detections)),
            ejections: stats.map_or([0; 7], |stats| read(&stats.ejections)),
            overflows: stats.map_or(0, |stats| stats.overflows.load(Relaxed)),
        })
    }
}

/// Counts an outcome in the endpoint, and reports the endpoint if it has failed too often in a row.
fn record(cluster: &Cluster, config: &OutlierDetection, endpoint: &Arc<Endpoint>, outcome: AttemptOutcome) {
    const UNAVAILABLE: u16 = StatusCode::SERVICE_UNAVAILABLE.as_u16();
    let state = endpoint.outlier();
    let is_split = config.split_external_local_origin_errors;
    let found = |rule| report(cluster, endpoint, rule);
    if is_split && state.local_origin(config, outcome == AttemptOutcome::NoResponse) {
        found(OutlierRule::ConsecutiveLocalOriginFailure);
    }
    let status = match outcome {
        AttemptOutcome::Response(status) => status,
        // How a connection ends says nothing about the endpoint; and what is counted apart, is not counted here.
        AttemptOutcome::Connected | AttemptOutcome::NoResponse if is_split => return,
        AttemptOutcome::Connected => StatusCode::OK.as_u16(),
        AttemptOutcome::NoResponse => UNAVAILABLE,
    };
    let [is_5xx, is_gateway_failure] = state.response(config, status);
    if is_gateway_failure {
        found(OutlierRule::ConsecutiveGatewayFailure);
    }
    if is_5xx {
        found(OutlierRule::Consecutive5xx);
    }
}

/// Reports an endpoint. At most one report per rule is on its way.
#[cold]
fn report(cluster: &Cluster, endpoint: &Arc<Endpoint>, rule: OutlierRule) {
    // Before the detection knows the cluster, the failures only add up.
    let Some(stats) = cluster.stats().outliers.get() else { return };
    if !endpoint.is_ejected() && endpoint.outlier().may_report(rule) {
        let suspect = Suspect { cluster: stats.cluster, endpoint: Arc::clone(endpoint), rule };
        // The receiver is gone only when the process ends.
        let _ = stats.suspects.send(suspect);
    }
}

#[cfg(test)]
#[path = "../tests/outlier.rs"]
mod tests;
