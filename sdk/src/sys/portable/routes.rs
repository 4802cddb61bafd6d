//! Routes for hosts in which a filter cannot select one: the route's changes are applied immediately, and headers carry
//! the rest.
//!
//! `x-tollgate-cluster` names the cluster, for an Envoy route with `cluster_header`; `x-tollgate-hash` is for its
//! `hash_policy`. Timeouts and retries are passed to Envoy's router in its own headers, which it removes.

use std::{cell::RefCell, mem::ManuallyDrop, rc::Rc};

use tollgate_abi::{fast::hash, proxy_wasm::map};

use super::{headers, imports, rewrite, streams};
use crate::{
    doc::{HeaderOps, Retry, RetryOn, Route, WeightedCluster},
    sys,
    table::borrow,
};

const REQUEST: i32 = map::HTTP_REQUEST_HEADERS;
const CLUSTER: &str = "x-tollgate-cluster";
const HASH: &str = "x-tollgate-hash";

thread_local! {
    static ROUTES: ManuallyDrop<RefCell<Vec<Rc<Prepared>>>> = const { ManuallyDrop::new(RefCell::new(Vec::new())) };
}

/// A route and its headers for Envoy's router.
struct Prepared {
    route: Route,
    says: Vec<(&'static str, String)>,
}

/// Names a field of the route that is not supported.
pub(crate) fn not_for_routes(route: &Route) -> Option<&'static str> {
    let in_retry = |is: fn(&Retry) -> bool| route.retry.as_ref().is_some_and(is);
    let fields = [
        ("retry.per_try_idle_timeout", in_retry(|retry| retry.per_try_idle_timeout_ms.is_some())),
        ("retry.max_backoff", in_retry(|retry| retry.max_backoff_ms.is_some())),
        ("retry.rate_limited_backoff", in_retry(|retry| retry.rate_limited_backoff.is_some())),
        ("retry.retriable_headers", in_retry(|retry| !retry.retriable_headers.is_empty())),
        ("retry.retriable_request_headers", in_retry(|retry| !retry.retriable_request_headers.is_empty())),
        ("mirror", route.mirror.is_some()),
        ("hedging", route.hedging.is_some()),
        ("idle_timeout", route.idle_timeout_ms.is_some()),
        ("filters", !route.filters.is_empty()),
        ("metadata_match", route.clusters.iter().any(|cluster| !cluster.metadata_match.is_empty())),
    ];
    fields.into_iter().find(|(_, given)| *given).map(|(name, _)| name)
}

pub(crate) fn route_define(route: &Route) -> i32 {
    let mut says = Vec::new();
    if let Some(ms) = route.timeout_ms {
        says.push(("x-envoy-upstream-rq-timeout-ms", ms.to_string()));
    }
    if let Some(retry) = &route.retry {
        say_retry(retry, &mut says);
    }
    ROUTES.with(|routes| {
        let mut routes = borrow(routes);
        routes.push(Rc::new(Prepared { route: route.clone(), says }));
        routes.len() as i32 - 1
    })
}

fn say_retry(retry: &Retry, says: &mut Vec<(&'static str, String)>) {
    let http = |on: &RetryOn| match on {
        RetryOn::ConnectFailure => Some("connect-failure"),
        RetryOn::Reset => Some("reset"),
        RetryOn::ServerError => Some("5xx"),
        RetryOn::GatewayError => Some("gateway-error"),
        RetryOn::Retriable4xx => Some("retriable-4xx"),
        _ => None,
    };
    let grpc = |on: &RetryOn| match on {
        RetryOn::GrpcCancelled => Some("cancelled"),
        RetryOn::GrpcDeadlineExceeded => Some("deadline-exceeded"),
        RetryOn::GrpcInternal => Some("internal"),
        RetryOn::GrpcResourceExhausted => Some("resource-exhausted"),
        RetryOn::GrpcUnavailable => Some("unavailable"),
        _ => None,
    };
    let mut say = |name, words: Vec<&str>| {
        if !words.is_empty() {
            says.push((name, words.join(",")));
        }
    };
    let mut statuses: Vec<String> = retry.retriable_status_codes.iter().map(u16::to_string).collect();
    if retry.on.contains(&RetryOn::RateLimited) {
        statuses.push("429".into());
    }
    let by_status = (!statuses.is_empty()).then_some("retriable-status-codes");
    say("x-envoy-retry-on", retry.on.iter().filter_map(http).chain(by_status).collect());
    say("x-envoy-retry-grpc-on", retry.on.iter().filter_map(grpc).collect());
    say("x-envoy-retriable-status-codes", statuses.iter().map(String::as_str).collect());
    says.push(("x-envoy-max-retries", retry.attempts.to_string()));
    if let Some(ms) = retry.per_try_timeout_ms {
        says.push(("x-envoy-upstream-rq-per-try-timeout-ms", ms.to_string()));
    }
}

pub(crate) fn route_select(route: u32, given: u32, split: u64, balance: u64) {
    let found = ROUTES.with(|routes| borrow(routes).get(route as usize).cloned());
    let Some(found) = found else { return };
    let Prepared { route: way, says } = &*found;
    if let Some(host) = &way.host {
        headers::set(REQUEST, ":authority", host.as_bytes());
    }
    if let Some(prefix) = &way.prefix {
        let target = headers::first(REQUEST, ":path");
        headers::set(REQUEST, ":path", &rewrite::prefix(&target, prefix));
    }
    change(REQUEST, &way.request_headers);
    let split = if given & hash::SPLIT == 0 { sys::random() } else { split };
    if let Some(cluster) = choose(&way.clusters, split) {
        headers::set(REQUEST, CLUSTER, cluster.as_bytes());
    }
    if given & hash::BALANCE != 0 {
        headers::set(REQUEST, HASH, balance.to_string().as_bytes());
    }
    says.iter().for_each(|(name, value)| headers::set(REQUEST, name, value.as_bytes()));
    streams::select(route);
    // The host matched a route before the filters ran, without the header.
    imports::call("clear_route_cache");
}

/// Removes the headers that name the destination. The route's changes to the request remain.
pub(crate) fn route_clear() {
    let Some(route) = streams::deselect() else { return };
    let found = ROUTES.with(|routes| borrow(routes).get(route as usize).cloned());
    let says = found.iter().flat_map(|route| &route.says).map(|(name, _)| *name);
    [CLUSTER, HASH].into_iter().chain(says).for_each(|name| headers::remove(REQUEST, name));
    imports::call("clear_route_cache");
}

/// Selects the cluster for a number; the same number selects the same cluster.
fn choose(clusters: &[WeightedCluster], number: u64) -> Option<&str> {
    let total: u64 = clusters.iter().map(|c| u64::from(c.weight)).sum();
    let mut at = number.checked_rem(total)?;
    let chosen = clusters.iter().find(|c| {
        let weight = u64::from(c.weight);
        let found = at < weight;
        at = at.wrapping_sub(weight);
        found
    });
    chosen.map(|c| &*c.cluster)
}

/// Applies the route's changes to a response.
pub(super) fn change_response(route: u32) {
    let found = ROUTES.with(|routes| borrow(routes).get(route as usize).cloned());
    if let Some(found) = found {
        change(map::HTTP_RESPONSE_HEADERS, &found.route.response_headers);
    }
}

fn change(map: i32, ops: &HeaderOps) {
    ops.remove.iter().for_each(|name| headers::remove(map, name));
    ops.set.iter().for_each(|(name, value)| headers::set(map, name, value.as_bytes()));
    ops.add.iter().for_each(|(name, value)| headers::add(map, name, value.as_bytes()));
}
