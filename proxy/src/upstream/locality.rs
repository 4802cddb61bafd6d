//! Localities: endpoints near the proxy first (`failover`), or a share of the requests for each locality (`weighted`).

use rustc_hash::FxHashMap;

use super::{membership::Member, priority::LevelHealth};
use crate::config::model::{Locality, LocalityWeight};

/// How far an endpoint is from the proxy: 0 in the same sub-zone, 1 in the same zone, 2 in the same region, 3 elsewhere, as
/// in Istio. Unknown parts are equal only to unknown parts, and a region that is unknown is never near.
pub(super) fn distance(endpoint: Option<&Locality>, node: &Locality) -> u32 {
    let Some(endpoint) = endpoint.filter(|endpoint| !node.region.is_empty() && endpoint.region == node.region) else {
        return 3;
    };
    match (endpoint.zone == node.zone, endpoint.sub_zone == node.sub_zone) {
        (false, _) => 2,
        (true, false) => 1,
        (true, true) => 0,
    }
}

/// The sum of the weights after [`weigh`], about: large enough for small shares.
const SCALE: f64 = (1 << 24) as f64;

/// Replaces the weights of the members `used`, so that each locality has its share of the requests. A locality with fewer healthy
/// endpoints gets less, as in Envoy: its weight counts times the percentage that it can bear. `all` are the members of the same
/// priority. Localities without a weight get no requests; if none has one, the weights stay.
pub(super) fn weigh(used: &mut [Member], all: &[&Member], weights: &[LocalityWeight], overprovisioning_factor: u32) {
    let mut health: FxHashMap<Option<&Locality>, LevelHealth> = FxHashMap::default();
    for member in all.iter().filter(|member| member.weight > 0) {
        let health = health.entry(member.locality.as_deref()).or_insert(LevelHealth { healthy: 0, all: 0 });
        health.all += 1;
        health.healthy += usize::from(member.endpoint.is_available());
    }
    // In panic, unhealthy endpoints are used: then the weight counts as it is.
    let uses_unhealthy = used.iter().any(|member| !member.endpoint.is_available());
    let unknown = Locality::default();
    let mut shares: FxHashMap<Option<&Locality>, (f64, f64)> = FxHashMap::default();
    for member in &*used {
        let share = shares.entry(member.locality.as_deref()).or_insert_with(|| {
            let locality = member.locality.as_deref().unwrap_or(&unknown);
            let weight = weights.iter().find(|weight| weight.matches(locality)).map_or(0, |weight| weight.weight);
            let availability = match health.get(&member.locality.as_deref()) {
                Some(health) if !uses_unhealthy => health.availability(overprovisioning_factor),
                _ => 100,
            };
            (f64::from(weight) * f64::from(availability), 0.0)
        });
        share.1 += f64::from(member.weight);
    }
    let total: f64 = shares.values().filter(|(_, endpoints)| *endpoints > 0.0).map(|(share, _)| share).sum();
    if total <= 0.0 {
        return;
    }
    let weigh = |member: &Member| {
        let (share, endpoints) = shares[&member.locality.as_deref()];
        let weight = f64::from(member.weight) / endpoints.max(1.0) * share / total * SCALE;
        if weight > 0.0 { weight.round().max(1.0) as u32 } else { 0 }
    };
    let weights: Vec<u32> = used.iter().map(weigh).collect();
    used.iter_mut().zip(weights).for_each(|(member, weight)| member.weight = weight);
}

#[cfg(test)]
#[path = "tests/locality.rs"]
mod tests;
