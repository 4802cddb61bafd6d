//! The decisions: which endpoints are ejected, and which return. All are made on one thread.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use super::{Ejection, OutlierRule, OutlierState, state::Interval};
use crate::{
    config::model::OutlierDetection,
    observe::target,
    upstream::{Cluster, Endpoint, clock},
};

/// A change of an endpoint that is to be logged.
enum Change {
    Ejected { endpoint: Arc<Endpoint>, rule: OutlierRule, time: Duration, why: String },
    Returned { endpoint: Arc<Endpoint>, after: Duration, why: &'static str },
}

/// Decides about an endpoint that has failed too often in a row.
pub(super) fn on_failures_in_row(cluster: &Cluster, endpoint: &Arc<Endpoint>, rule: OutlierRule) {
    let Some(config) = &cluster.outlier_detection else { return };
    // It may have left the cluster meanwhile. With another transport, it is another endpoint with the same state.
    let member = cluster.members().iter().find(|member| Arc::ptr_eq(&member.endpoint.state, &endpoint.state));
    let Some(endpoint) = member.map(|member| &member.endpoint) else { return };
    let (count, what) = match rule {
        OutlierRule::Consecutive5xx => (config.consecutive_5xx, "server errors"),
        OutlierRule::ConsecutiveGatewayFailure => (config.consecutive_gateway_failure, "gateway failures"),
        _ => (config.consecutive_local_origin_failure, "attempts without a response"),
    };
    let change = eject(cluster, config, endpoint, rule, || format!("{count} {what} in a row"));
    // Also if it was not ejected: then after as many further failures.
    endpoint.outlier().restart(rule);
    announce(cluster, change);
}

/// Evaluates an interval: which endpoints return, and which are outliers.
pub(super) fn on_interval(cluster: &Cluster, config: &OutlierDetection) {
    let now = Instant::now();
    let mut changes = Vec::new();
    for endpoint in cluster.members().iter().map(|member| &member.endpoint) {
        let Some(state) = endpoint.state.outlier.get() else { continue };
        match &*state.ejection.load() {
            Some(ejection) if now.saturating_duration_since(ejection.since) < ejection.time => {}
            Some(_) => changes.extend(end_ejection(endpoint, "its time is over")),
            None => {
                let multiplier = state.multiplier.load(Relaxed);
                state.multiplier.store(multiplier.saturating_sub(1), Relaxed);
            }
        }
    }
    let external = (OutlierRule::SuccessRate, OutlierRule::FailurePercentage);
    changes.extend(compare(cluster, config, |state| &state.external, external));
    if config.split_external_local_origin_errors {
        let local = (OutlierRule::SuccessRateLocalOrigin, OutlierRule::FailurePercentageLocalOrigin);
        changes.extend(compare(cluster, config, |state| &state.local_origin, local));
    }
    announce(cluster, changes);
}

/// Ends an ejection because of a successful health check, unless the endpoint is unhealthy or the cluster does not want it.
pub(in crate::upstream) fn passed_check(cluster: &Cluster, endpoint: &Arc<Endpoint>) {
    let config = cluster.outlier_detection.as_ref();
    if endpoint.is_healthy() && config.is_some_and(|config| config.successful_active_health_check_uneject_host) {
        announce(cluster, end_ejection(endpoint, "it passed a health check"));
    }
}

/// Ends all ejections, because the cluster no longer has outlier detection.
pub(super) fn end_all(cluster: &Cluster) {
    let endpoints = cluster.members().iter().map(|member| &member.endpoint);
    let ended =
        endpoints.filter_map(|endpoint| end_ejection(endpoint, "the cluster has no outlier detection any more"));
    let ended: Vec<_> = ended.collect();
    announce(cluster, ended);
}

/// Applies the rules on rates to what was counted in the interval that ends now.
fn compare(
    cluster: &Cluster,
    config: &OutlierDetection,
    counts: impl Fn(&OutlierState) -> &Interval,
    (by_rate, by_percentage): (OutlierRule, OutlierRule),
) -> Vec<Change> {
    let (volume, percentage_volume) = (config.success_rate_request_volume, config.failure_percentage_request_volume);
    let mut rates: Vec<(&Arc<Endpoint>, u64, f64)> = Vec::new();
    for endpoint in cluster.members().iter().map(|member| &member.endpoint) {
        let Some(state) = endpoint.state.outlier.get() else { continue };
        let (total, rate) = counts(state).take();
        let is_enough = total > 0 && total >= u64::from(volume.min(percentage_volume)) && !endpoint.is_ejected();
        counts(state).show(is_enough.then_some(rate));
        if is_enough {
            rates.push((endpoint, total, rate));
        }
    }
    let with = |volume: u32| {
        let enough = rates.iter().filter(move |(_, total, _)| *total >= u64::from(volume));
        enough.map(|(endpoint, _, rate)| (*endpoint, *rate)).collect::<Vec<_>>()
    };
    let mut changes = Vec::new();
    let compared = with(volume);
    if !compared.is_empty() && compared.len() >= config.success_rate_minimum_hosts as usize {
        let (mean, least) = threshold(compared.iter().map(|(_, rate)| *rate), config.success_rate_stdev_factor);
        for (endpoint, rate) in compared.into_iter().filter(|(_, rate)| *rate < least) {
            let why = || format!("its success rate of {rate:.1} % is below {least:.1} %; the mean is {mean:.1} %");
            changes.extend(eject(cluster, config, endpoint, by_rate, why));
        }
    }
    let compared = with(percentage_volume);
    if !compared.is_empty() && compared.len() >= config.failure_percentage_minimum_hosts as usize {
        let most = f64::from(config.failure_percentage_threshold);
        for (endpoint, rate) in compared.into_iter().filter(|(_, rate)| 100.0 - rate >= most) {
            let why = || format!("{:.1} % of its requests failed, at least {most} %", 100.0 - rate);
            changes.extend(eject(cluster, config, endpoint, by_percentage, why));
        }
    }
    changes
}

/// The mean of success rates, and the rate below which an endpoint is an outlier: the mean less this many thousandths of
/// the standard deviation.
fn threshold(rates: impl ExactSizeIterator<Item = f64> + Clone, stdev_factor: u32) -> (f64, f64) {
    let count = rates.len() as f64;
    let mean = rates.clone().sum::<f64>() / count;
    let variance = rates.map(|rate| (rate - mean).powi(2)).sum::<f64>() / count;
    (mean, mean - f64::from(stdev_factor) / 1000.0 * variance.sqrt())
}

/// Ejects an endpoint that a rule has found, if the limits allow it and the rule is enforced.
fn eject(
    cluster: &Cluster,
    config: &OutlierDetection,
    endpoint: &Arc<Endpoint>,
    rule: OutlierRule,
    why: impl FnOnce() -> String,
) -> Option<Change> {
    let stats = cluster.stats().outliers.get()?;
    if endpoint.is_ejected() {
        return None;
    }
    stats.detections[rule as usize].fetch_add(1, Relaxed);
    if !may_eject_another(cluster, config, endpoint) {
        stats.overflows.fetch_add(1, Relaxed);
        return None;
    }
    if fastrand::u32(..100) >= rule.enforcing(config) {
        return None;
    }
    stats.ejections[rule as usize].fetch_add(1, Relaxed);
    let state = endpoint.outlier();
    state.ejections.fetch_add(1, Relaxed);
    let (base, most) = (config.base_ejection_time.0, config.max_ejection_time());
    let mut multiplier = state.multiplier.load(Relaxed);
    // Once it has reached the maximum, it takes no longer to decrease again.
    if base.saturating_mul(multiplier) < most.saturating_add(base) {
        multiplier += 1;
        state.multiplier.store(multiplier, Relaxed);
    }
    let jitter = config.max_ejection_time_jitter.0.mul_f64(fastrand::f64());
    let time = base.saturating_mul(multiplier).min(most).saturating_add(jitter);
    let ejection = Ejection { rule, at: SystemTime::now(), time, since: Instant::now() };
    state.ejection.store(Some(Arc::new(ejection)));
    Some(Change::Ejected { endpoint: Arc::clone(endpoint), rule, time, why: why() })
}

/// Whether the limits allow that this endpoint is ejected, too. Endpoints without a weight do not count.
fn may_eject_another(cluster: &Cluster, config: &OutlierDetection, endpoint: &Arc<Endpoint>) -> bool {
    let members = || cluster.members().iter().filter(|member| member.weight > 0).map(|member| &member.endpoint);
    let (all, ejected) = (members().count(), members().filter(|member| member.is_ejected()).count());
    let is_within = (ejected + 1) * 100 <= all * config.max_ejection_percent as usize;
    let is_another_left = || members().any(|other| !Arc::ptr_eq(other, endpoint) && other.is_available());
    (is_within || (config.always_eject_one_host && ejected == 0)) && is_another_left()
}

/// Ends an endpoint's ejection, if it is ejected.
fn end_ejection(endpoint: &Arc<Endpoint>, why: &'static str) -> Option<Change> {
    let state = endpoint.state.outlier.get()?;
    let ejection = state.ejection.swap(None)?;
    // Failures from before, and of requests that were in flight, do not count again.
    state.restart_all();
    endpoint.joined().restart(clock::now());
    let after = Instant::now().saturating_duration_since(ejection.since);
    Some(Change::Returned { endpoint: Arc::clone(endpoint), after, why })
}

/// Applies changes to the choice of endpoints, and logs each.
fn announce(cluster: &Cluster, changes: impl IntoIterator<Item = Change>) {
    let mut changes = changes.into_iter().peekable();
    if changes.peek().is_none() {
        return;
    }
    let selection = cluster.apply_health();
    let (available, all) = cluster.health();
    let name = &*cluster.name;
    for change in changes {
        match change {
            Change::Ejected { endpoint, rule, time, why } => tracing::warn!(
                target: target::UPSTREAM,
                cluster = name, endpoint = %endpoint.address, rule = rule.name(), ?time,
                "ejected: {why}; {available} of {all} are available"
            ),
            Change::Returned { endpoint, after, why } => tracing::info!(
                target: target::UPSTREAM,
                cluster = name, endpoint = %endpoint.address, ?after,
                "no longer ejected: {why}; {available} of {all} are available"
            ),
        }
    }
    cluster.warn_of_panic(selection);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of Envoy's documentation: rates of 100, 100, 100, 100 and 50 % with a factor of 1.9.
    #[test]
    fn success_rate_is_compared_with_mean_and_deviation() {
        let rates = [100.0, 100.0, 100.0, 100.0, 50.0];
        let (mean, least) = threshold(rates.into_iter(), 1900);
        assert!((mean - 90.0).abs() < 1e-9 && (least - 52.0).abs() < 1e-9, "{mean} {least}");
        assert_eq!(threshold([80.0; 3].into_iter(), 1900), (80.0, 80.0));
    }
}
