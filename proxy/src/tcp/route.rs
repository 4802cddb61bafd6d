//! Selection of a connection's cluster: by TLS SNI, by weight, or the listener's own cluster.

use std::sync::Arc;

use super::sni::SniMatcher;
use crate::{
    config::model,
    upstream::{ClusterHandle, Clusters},
};

/// A listener's rules, with cluster names resolved.
#[derive(Debug)]
pub struct Routes {
    all: Arc<Clusters>,
    by_name: SniMatcher<ClusterHandle>,
    /// Each cluster with the sum of the weights up to and including its own.
    weighted: Box<[(u64, ClusterHandle)]>,
    default: Option<ClusterHandle>,
}

impl Routes {
    /// Resolves a listener's rules.
    pub fn new(listener: &model::Listener, clusters: &Arc<Clusters>) -> Routes {
        let tcp = &listener.tcp;
        let by_name = tcp.sni.iter().map(|route| (route, clusters.handle(&route.cluster)));
        let by_name =
            by_name.flat_map(|(route, cluster)| route.names.iter().map(move |name| (name.clone(), cluster.clone())));
        let mut sum = 0;
        let weighted = tcp.clusters.iter().filter(|c| c.weight > 0).map(|c| {
            sum += u64::from(c.weight);
            (sum, clusters.handle(&c.cluster))
        });
        Routes {
            all: clusters.clone(),
            by_name: SniMatcher::new(by_name),
            weighted: weighted.collect(),
            default: listener.cluster.as_deref().map(|name| clusters.handle(name)),
        }
    }

    /// Returns the cluster of this name, regardless of the rules.
    pub fn named(&self, name: &[u8]) -> Option<ClusterHandle> {
        self.all.find(str::from_utf8(name).ok()?)
    }

    /// Selects the cluster of a connection: by its server name (in lower case), or by weight if it has none or the name
    /// matches nothing.
    pub fn choose(&self, server_name: Option<&str>) -> Option<&ClusterHandle> {
        if let Some(cluster) = server_name.and_then(|name| self.by_name.find(name)) {
            return Some(cluster);
        }
        match self.weighted.last() {
            None => self.default.as_ref(),
            Some((total, _)) => {
                let point = fastrand::u64(..*total);
                let at = self.weighted.partition_point(|(sum, _)| *sum <= point);
                self.weighted.get(at).map(|(_, cluster)| cluster)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn routes(tcp: serde_json::Value, cluster: Option<&str>) -> Routes {
        let listener = json!({"name": "l", "address": "127.0.0.1:1", "tcp": tcp, "cluster": cluster});
        let listener: model::Listener = serde_json::from_value(listener).unwrap();
        Routes::new(&listener, &Arc::default())
    }

    fn chosen<'r>(routes: &'r Routes, name: Option<&str>) -> Option<&'r str> {
        routes.choose(name).map(|cluster| &**cluster.name())
    }

    #[test]
    fn server_name_takes_precedence_over_weights() {
        let sni = json!({
            "sni": [{"names": ["one.example", "*.deep.example"], "cluster": "a"}, {"names": ["*.example"], "cluster": "b"}],
            "clusters": [{"cluster": "c"}],
        });
        let routes = routes(sni, None);
        for (name, cluster) in [("one.example", "a"), ("x.deep.example", "a"), ("two.example", "b"), ("example", "c")] {
            assert_eq!(chosen(&routes, Some(name)), Some(cluster), "{name}");
        }
        assert_eq!(chosen(&routes, None), Some("c"));
    }

    #[test]
    fn clusters_share_connections_by_weight() {
        let tcp = json!({"clusters": [
            {"cluster": "a", "weight": 3}, {"cluster": "b", "weight": 1}, {"cluster": "c", "weight": 0},
        ]});
        let routes = routes(tcp, Some("c"));
        let mut counts = std::collections::HashMap::new();
        for _ in 0..4000 {
            *counts.entry(chosen(&routes, None).unwrap()).or_insert(0) += 1;
        }
        assert!(!counts.contains_key("c"));
        assert!((2700..=3300).contains(&counts["a"]), "{counts:?}");
    }

    #[test]
    fn listeners_cluster_is_used_without_rules() {
        assert_eq!(chosen(&routes(json!({}), Some("a")), Some("x")), Some("a"));
        assert_eq!(chosen(&routes(json!({}), None), Some("x")), None);
    }
}
