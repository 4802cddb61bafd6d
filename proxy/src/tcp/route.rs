//! Which cluster a connection goes to: by the server name that the client asks for, by weight, or the listener's own.

use std::sync::Arc;

use super::sni::SniMatcher;
use crate::{chain::route::Clusters, config::model, upstream::Cluster};

/// A listener's rules, resolved.
#[derive(Debug)]
pub struct Routes {
    all: Clusters,
    by_name: SniMatcher<Arc<Cluster>>,
    /// Each with the sum of the weights up to and with its own.
    weighted: Box<[(u64, Arc<Cluster>)]>,
    default: Option<Arc<Cluster>>,
}

impl Routes {
    /// The rules of a listener. What names no cluster that there is (which no configuration in force does) is left out.
    pub fn new(listener: &model::Listener, clusters: &Clusters) -> Routes {
        let find = |name: &str| clusters.get(name).cloned();
        let tcp = &listener.tcp;
        let by_name = tcp.sni.iter().filter_map(|route| Some((route, find(&route.cluster)?)));
        let by_name =
            by_name.flat_map(|(route, cluster)| route.names.iter().map(move |name| (name.clone(), cluster.clone())));
        let mut sum = 0;
        let weighted = tcp.clusters.iter().filter(|c| c.weight > 0).filter_map(|c| {
            sum += u64::from(c.weight);
            Some((sum, find(&c.cluster)?))
        });
        Routes {
            all: clusters.clone(),
            by_name: SniMatcher::new(by_name),
            weighted: weighted.collect(),
            default: listener.cluster.as_deref().and_then(find),
        }
    }

    /// The cluster of this name, whatever the rules say.
    pub fn named(&self, name: &[u8]) -> Option<&Arc<Cluster>> {
        self.all.get(str::from_utf8(name).ok()?)
    }

    /// The cluster of a connection. Without its server name, or if that matches nothing, by weight. The name is in small
    /// letters.
    pub fn choose(&self, server_name: Option<&str>) -> Option<&Arc<Cluster>> {
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
        let clusters = ["a", "b", "c"].map(|name| {
            let cluster: model::Cluster = serde_json::from_value(json!({"name": name})).unwrap();
            (name.to_owned(), Cluster::new(&cluster, None))
        });
        Routes::new(&listener, &clusters.into())
    }

    fn chosen<'r>(routes: &'r Routes, name: Option<&str>) -> Option<&'r str> {
        routes.choose(name).map(|cluster| &*cluster.name)
    }

    #[test]
    fn a_name_goes_before_weights() {
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
    fn clusters_share_by_weight() {
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
    fn without_any_rule_there_is_the_listeners_cluster_or_none() {
        assert_eq!(chosen(&routes(json!({}), Some("a")), Some("x")), Some("a"));
        assert_eq!(chosen(&routes(json!({}), None), Some("x")), None);
    }
}
