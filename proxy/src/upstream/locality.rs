//! Localities: endpoints near the proxy first (`failover`), a share of the requests for each locality (`weighted`), or as many
//! requests in the proxy's zone as leave the zones evenly loaded (`zone_aware`).

use rustc_hash::FxHashMap;

use super::{membership::Member, priority::LevelHealth};
use crate::config::model::{Locality, LocalityBalancing, LocalityPolicy, LocalityWeight};

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

/// Replaces the weights of the members `used` as the policy asks for. `all` are the members of the same priority, and `node` is where
/// the proxy is.
pub(super) fn weigh(
    used: &mut [Member],
    all: &[&Member],
    balancing: &LocalityBalancing,
    node: &Locality,
    overprovisioning_factor: u32,
) {
    let weights = match balancing.policy {
        LocalityPolicy::Failover => None,
        LocalityPolicy::Weighted => weights_by_locality(used, all, &balancing.weights, overprovisioning_factor),
        LocalityPolicy::ZoneAware => weights_by_zone(used, balancing, node),
    };
    for (member, weight) in used.iter_mut().zip(weights.into_iter().flatten()) {
        member.weight = weight;
    }
}

/// The weight of a member that has this part of its locality's weight, if the locality gets this share of all requests.
fn part(weight: u32, of: f64, share: f64) -> u32 {
    let weight = f64::from(weight) / of.max(1.0) * share * SCALE;
    if weight > 0.0 { weight.round().max(1.0) as u32 } else { 0 }
}

/// `weighted`: each locality has its share of the requests. A locality with fewer healthy endpoints gets less, as in Envoy: its
/// weight counts times the percentage that it can bear. Localities without a weight get no requests. `None` if none has one.
fn weights_by_locality(
    used: &[Member],
    all: &[&Member],
    weights: &[LocalityWeight],
    overprovisioning_factor: u32,
) -> Option<Vec<u32>> {
    let mut health: FxHashMap<Option<&Locality>, LevelHealth> = FxHashMap::default();
    for member in all.iter().filter(|member| member.weight > 0) {
        let health = health.entry(member.locality.as_deref()).or_insert(LevelHealth { healthy: 0, all: 0 });
        health.all += 1;
        health.healthy += usize::from(member.endpoint.is_available());
    }
    let uses_unhealthy = is_panicking(used);
    let unknown = Locality::default();
    let mut shares: FxHashMap<Option<&Locality>, (f64, f64)> = FxHashMap::default();
    for member in used {
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
    let weigh = |member: &Member| {
        let (share, endpoints) = shares[&member.locality.as_deref()];
        part(member.weight, endpoints, share / total)
    };
    (total > 0.0).then(|| used.iter().map(weigh).collect())
}

/// In panic, unhealthy endpoints are used as well, and localities count as if they were healthy.
fn is_panicking(used: &[Member]) -> bool {
    used.iter().any(|member| !member.endpoint.is_available())
}

/// A zone of a region.
type Zone<'l> = (&'l str, &'l str);

fn zone(locality: Option<&Locality>) -> Zone<'_> {
    locality.map_or(("", ""), |locality| (&locality.region, &locality.zone))
}

/// `zone_aware`: requests stay in the proxy's zone as far as its endpoints can bear what the zone's proxies send, and the rest goes
/// to the zones whose endpoints have room, as in Envoy. With the shares of the endpoints' weights `u` and of the requests `c` of each
/// zone: the share `min(1, u / c)` of the proxy's zone stays there, and the others get the rest in proportion to `u - c`, where
/// that is positive. If all proxies do the same, each zone gets its `u` of all requests.
///
/// `None`, so that localities do not matter: fewer endpoints than `minimum_cluster_size`, panic, or the proxy's zone is unknown.
fn weights_by_zone(used: &[Member], balancing: &LocalityBalancing, node: &Locality) -> Option<Vec<u32>> {
    let weighted = used.iter().filter(|member| member.weight > 0).count();
    if node.zone.is_empty() || weighted < balancing.minimum_cluster_size() as usize || is_panicking(used) {
        return None;
    }
    let local = zone(Some(node));
    let mut endpoints: FxHashMap<Zone<'_>, f64> = FxHashMap::default();
    for member in used.iter().filter(|member| member.weight > 0) {
        *endpoints.entry(zone(member.locality.as_deref())).or_default() += f64::from(member.weight);
    }
    let sent = |zone: &Zone<'_>| match &balancing.callers[..] {
        [] => 1.0,
        callers => {
            let matches = |caller: &&LocalityWeight| caller.matches_zone(zone.0, zone.1);
            callers.iter().find(matches).map_or(0.0, |caller| f64::from(caller.weight))
        }
    };
    // The proxy's zone sends requests even if it has no endpoints.
    let is_alone = !endpoints.contains_key(&local);
    let all_sent: f64 = endpoints.keys().chain(is_alone.then_some(&local)).map(sent).sum();
    let all: f64 = endpoints.values().sum();
    let bears = |zone: &Zone<'_>| endpoints.get(zone).map_or(0.0, |weight| weight / all);
    let sends = |zone: &Zone<'_>| if all_sent > 0.0 { sent(zone) / all_sent } else { 0.0 };
    let stays = match (bears(&local), sends(&local)) {
        (bears, sends) if bears >= sends => f64::from(u8::from(bears > 0.0)),
        (bears, sends) => bears / sends,
    };
    let room = |zone: &Zone<'_>| if *zone == local { 0.0 } else { (bears(zone) - sends(zone)).max(0.0) };
    let all_room: f64 = endpoints.keys().map(room).sum();
    let share = |zone: &Zone<'_>| match *zone == local {
        true => stays,
        false if all_room > 0.0 => (1.0 - stays) * room(zone) / all_room,
        false => 0.0,
    };
    let weigh = |member: &Member| {
        let zone = zone(member.locality.as_deref());
        if member.weight == 0 { 0 } else { part(member.weight, endpoints[&zone], share(&zone)) }
    };
    (stays > 0.0 || all_room > 0.0).then(|| used.iter().map(weigh).collect())
}

#[cfg(test)]
#[path = "tests/locality.rs"]
mod tests;
