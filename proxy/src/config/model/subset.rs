//! The section `subsets` of a cluster. Names and rules are Envoy's (`envoy.config.cluster.v3.Cluster.LbSubsetConfig`).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Metadata;

/// Subsets of the endpoints by their metadata, from which routes select by `metadata_match`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Subsets {
    /// Which properties divide the endpoints.
    #[schemars(length(min = 1))]
    pub selectors: Vec<SubsetSelector>,
    /// Where requests go whose route selects no subset, or one without endpoints.
    #[serde(default)]
    pub fallback_policy: SubsetFallbackPolicy,
    /// The properties of the endpoints for `fallback_policy: default_subset`. Empty: all endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_subset: Option<Metadata>,
}

/// Properties by which endpoints are divided: those with the same values of all of them are a subset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SubsetSelector {
    /// The names of the properties.
    #[schemars(length(min = 1))]
    pub keys: Vec<String>,
    /// Where requests go whose route gives values of these properties that no endpoint has. Default: as for the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback_policy: Option<SubsetFallbackPolicy>,
}

/// The endpoints for requests without a subset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SubsetFallbackPolicy {
    /// None: the requests get 503.
    #[default]
    NoFallback,
    /// Any endpoint of the cluster.
    AnyEndpoint,
    /// Those with the properties of `default_subset`.
    DefaultSubset,
}
