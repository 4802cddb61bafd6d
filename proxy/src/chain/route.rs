//! A route: what the proxy does with a request after a filter has selected it. Routes are defined when the filter is
//! configured, so selecting one for a request takes only an integer.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tollgate_abi::{doc, fast, proxy_wasm::Status};

use super::{
    head::{BadHeader, HeaderOps, RequestHead, is_host},
    variants::RouteFilters,
};
use crate::upstream::{BadMethod, BadRetryPolicy, ClusterHandle, HedgingPolicy, MetadataMatch, PickKey, RetryPolicy};

/// A route, validated and resolved.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// Its name.
    pub name: Arc<str>,
    /// The clusters with a weight.
    clusters: Box<[Destination]>,
    /// Total timeout. `Some(None)`: no timeout; `None`: the cluster's.
    pub timeout: Option<Option<Duration>>,
    /// Idle timeout, encoded likewise; `None`: the listener's.
    pub idle_timeout: Option<Option<Duration>>,
    /// The retry policy; `None`: the cluster's.
    pub retry: Option<RetryPolicy>,
    /// When a second attempt is made; `None`: the cluster's.
    pub hedging: Option<HedgingPolicy>,
    /// The destination of mirrored requests, and their number per million.
    pub mirror: Option<(ClusterHandle, u32)>,
    host: Option<Bytes>,
    prefix: Option<(usize, Bytes)>,
    request_headers: HeaderOps,
    /// Changes to the response's headers.
    pub response_headers: HeaderOps,
    /// Variants of the filters behind the one that selects the route.
    pub filters: Option<Arc<RouteFilters>>,
}

/// One of a route's clusters.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Destination {
    /// The sum of the weights up to and including its own.
    end: u64,
    cluster: ClusterHandle,
    /// The properties of the endpoints, if the route wants any.
    subset: Option<Box<MetadataMatch>>,
}

fn bound(ms: u64) -> Option<Duration> {
    (ms > 0).then(|| Duration::from_millis(ms))
}

/// Whether the text is a path without a query.
fn is_path(text: &str) -> bool {
    let whole = |p: &http::uri::PathAndQuery| p.as_str() == text && p.query().is_none();
    text.starts_with('/') && http::uri::PathAndQuery::try_from(text).is_ok_and(|p| whole(&p))
}

impl Route {
    /// Validates a document; its `filters` are added by the caller. `find` resolves the name of a cluster. `NotFound`: a
    /// cluster does not exist; `BadArgument`: a value is out of range.
    pub fn new(doc: doc::Route, find: impl Fn(&str) -> Option<ClusterHandle>) -> Result<Route, Status> {
        let find = |name: &String| find(name).ok_or(Status::NotFound);
        let bad = |_: BadHeader| Status::BadArgument;
        let mut sum = 0;
        let mut weighted = Vec::with_capacity(doc.clusters.len());
        for c in &doc.clusters {
            let cluster = find(&c.cluster)?;
            sum += u64::from(c.weight);
            if c.weight > 0 {
                let subset = (!c.metadata_match.is_empty()).then(|| Box::new(MetadataMatch::new(&c.metadata_match)));
                weighted.push(Destination { end: sum, cluster, subset });
            }
        }
        if sum == 0 {
            return Err(Status::BadArgument);
        }
        if doc.host.as_ref().is_some_and(|host| !is_host(host))
            || doc.prefix.as_ref().is_some_and(|prefix| !is_path(&prefix.with))
        {
            return Err(Status::BadArgument);
        }
        Ok(Route {
            name: doc.name.into(),
            clusters: weighted.into(),
            timeout: doc.timeout_ms.map(bound),
            idle_timeout: doc.idle_timeout_ms.map(bound),
            retry: doc.retry.map(RetryPolicy::of_route).transpose().map_err(|BadRetryPolicy| Status::BadArgument)?,
            hedging: doc.hedging.map(HedgingPolicy::of_route).transpose().map_err(|BadMethod| Status::BadArgument)?,
            mirror: doc.mirror.map(|m| Ok((find(&m.cluster)?, m.per_million))).transpose()?,
            host: doc.host.map(Bytes::from),
            prefix: doc.prefix.map(|p| (p.strip as usize, p.with.into())),
            request_headers: HeaderOps::new(&doc.request_headers).map_err(bad)?,
            response_headers: HeaderOps::new(&doc.response_headers).map_err(bad)?,
            filters: None,
        })
    }

    /// A route to one cluster, with defaults for everything else.
    pub fn to_cluster(cluster: ClusterHandle) -> Route {
        Route {
            name: "".into(),
            clusters: Box::new([Destination { end: 1, cluster, subset: None }]),
            timeout: None,
            idle_timeout: None,
            retry: None,
            hedging: None,
            mirror: None,
            host: None,
            prefix: None,
            request_headers: HeaderOps::default(),
            response_headers: HeaderOps::default(),
            filters: None,
        }
    }

    /// Rewrites the request's head as the route specifies. Called once, after all filters have seen the original head.
    pub fn rewrite(&self, head: &mut RequestHead) {
        if let Some(host) = &self.host {
            head.authority = host.clone();
        }
        if let Some((strip, with)) = &self.prefix {
            let path_len = head.path.iter().position(|b| *b == b'?').unwrap_or(head.path.len());
            let rest = &head.path[(*strip).min(path_len)..];
            // Exactly one slash belongs between: `/api/` → `/` leaves `x` of `/api/x`, and `/api` → `/` leaves `/x`.
            let rest = if with.ends_with(b"/") { rest.strip_prefix(b"/").unwrap_or(rest) } else { rest };
            let slash: &[u8] = match rest.first() {
                None | Some(b'/' | b'?') => b"",
                Some(_) if with.ends_with(b"/") => b"",
                Some(_) => b"/",
            };
            head.path = [with.as_ref(), slash, rest].concat().into();
        }
        self.request_headers.apply(&mut head.fields);
    }

    /// Chooses one of the clusters, and returns its index.
    fn choose(&self, split: Option<u64>) -> usize {
        let clusters = &self.clusters;
        let total = clusters.last().map_or(1, |last| last.end);
        let point = match split {
            _ if clusters.len() == 1 => 0,
            Some(hash) => hash % total,
            None => fastrand::u64(..total),
        };
        clusters.partition_point(|destination| destination.end <= point).min(clusters.len() - 1)
    }
}

/// The route of a request, with the cluster chosen.
#[derive(Debug, Clone)]
pub struct SelectedRoute {
    /// The route.
    pub route: Arc<Route>,
    /// The index of the cluster chosen from the route's.
    chosen: usize,
    /// The hash that selects the endpoint.
    pub balance: Option<u64>,
}

impl SelectedRoute {
    /// Selects a route for a request. `given`: which of the two hashes are set.
    pub fn new(route: &Arc<Route>, given: u32, split: u64, balance: u64) -> SelectedRoute {
        let chosen = route.choose((given & fast::hash::SPLIT != 0).then_some(split));
        SelectedRoute { route: route.clone(), chosen, balance: (given & fast::hash::BALANCE != 0).then_some(balance) }
    }

    /// The cluster chosen from the route's.
    pub fn cluster(&self) -> &ClusterHandle {
        &self.route.clusters[self.chosen].cluster
    }

    /// What decides about the endpoint.
    pub fn key(&self) -> PickKey<'_> {
        PickKey { hash: self.balance, subset: self.route.clusters[self.chosen].subset.as_deref() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::Clusters;

    /// A document with these weights for the clusters `0`, `1` and so on, and the resulting route.
    fn route(weights: &[u32], change: impl FnOnce(&mut doc::Route)) -> Arc<Route> {
        let names = || (0..weights.len()).map(|n| n.to_string());
        let clusters = Clusters::default();
        let weighted = names().zip(weights).map(|(cluster, weight)| doc::WeightedCluster::new(cluster, *weight));
        let mut doc = doc::Route { clusters: weighted.collect(), ..doc::Route::default() };
        change(&mut doc);
        Arc::new(Route::new(doc, |name| Some(clusters.handle(name))).unwrap())
    }

    #[test]
    fn replaced_prefix_is_followed_by_one_slash() {
        for (strip, with, path, expected) in [
            (4, "/v2", "/api", "/v2"),
            (4, "/v2", "/api/x?q", "/v2/x?q"),
            (4, "/v2", "/api?q", "/v2?q"),
            (5, "/v2", "/api/x", "/v2/x"),
            (5, "/v2/", "/api/x", "/v2/x"),
            (4, "/", "/api/x?/q", "/x?/q"),
            (4, "/", "/api?q", "/?q"),
            (1, "/", "/x", "/x"),
            (9, "/v2", "/api?query", "/v2?query"),
        ] {
            let route = route(&[1], |doc| doc.prefix = Some(doc::PrefixRewrite { strip, with: with.into() }));
            let (authority, fields) = (Bytes::from_static(b"a"), http::HeaderMap::new());
            let mut head =
                RequestHead { method: http::Method::GET, path: path.into(), authority, scheme: "http", fields };
            route.rewrite(&mut head);
            assert_eq!(head.path, expected, "{strip} {with} {path}");
        }
    }

    #[test]
    fn hash_selects_a_cluster_by_weight() {
        let route_of = |weights: &[u32]| route(weights, |_| {});
        for (weights, chosen) in [(&[1, 0, 3][..], [0, 2, 2, 2, 0, 2, 2, 2]), (&[2, 2], [0, 0, 1, 1, 0, 0, 1, 1])] {
            let route = route_of(weights);
            for (hash, name) in (0..).zip(chosen) {
                let selected = SelectedRoute::new(&route, fast::hash::SPLIT, hash, 7);
                assert_eq!(
                    (&**selected.cluster().name(), selected.balance),
                    (&*name.to_string(), None),
                    "{weights:?} {hash}"
                );
            }
        }
        let route = route_of(&[1, 1]);
        assert_eq!(SelectedRoute::new(&route, fast::hash::BALANCE, 0, 7).balance, Some(7));
        let by_chance = || (0..100).map(|_| SelectedRoute::new(&route, 0, 0, 7).cluster().name().clone());
        assert!(by_chance().any(|name| &*name == "1"));
    }

    #[test]
    fn timeout_of_zero_means_no_timeout() {
        for (ms, expected) in [(None, None), (Some(0), Some(None)), (Some(5), Some(Some(Duration::from_millis(5))))] {
            let route = route(&[1], |doc| (doc.timeout_ms, doc.idle_timeout_ms) = (ms, ms));
            assert_eq!((route.timeout, route.idle_timeout), (expected, expected));
        }
    }

    #[test]
    fn invalid_rewrites_are_rejected() {
        for good in ["a", "a.example:8080", "[::1]:80", "10.0.0.1"] {
            assert!(is_host(good), "{good}");
        }
        for bad in ["", "user@a", "a:99999", "a/b", "a b"] {
            assert!(!is_host(bad), "{bad}");
        }
        for good in ["/", "/a/b", "/a%20b"] {
            assert!(is_path(good), "{good}");
        }
        for bad in ["", "a", "*", "?x", "/a?x", "/a#b", "/a b"] {
            assert!(!is_path(bad), "{bad}");
        }
    }
}
