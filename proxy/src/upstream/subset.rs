//! Subsets of a cluster's endpoints by their metadata, such as the endpoints of one version: `subsets` of a cluster, and
//! `metadata_match` of a route. As in Envoy, a route's properties select a subset if a selector has exactly their names; if
//! there is no such subset, or it has no endpoints, the fallback applies.
//!
//! The endpoints are divided when they change. A request that wants a subset pays one lookup, by a hash that was computed
//! when its route was configured; a request of a cluster without subsets pays one branch.

use std::{
    collections::BTreeMap,
    hash::{Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use rustc_hash::{FxHashMap, FxHasher};
use serde_json::Value;
use tollgate_abi::doc;

use super::{
    Cluster,
    membership::{Member, View},
    settings::ClusterSettings,
};
use crate::config::model::{self, MetadataValue, SubsetFallbackPolicy};

/// The properties that endpoints of a subset have, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetadataMatch {
    /// Of the properties, computed once.
    hash: u64,
    /// Ordered by name, each once.
    properties: Box<[(Box<str>, PropertyValue)]>,
}

/// A value of metadata. 1 and 1.0 are the same number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PropertyValue {
    /// A text.
    Text(Box<str>),
    /// The bits of a number, which is not -0.
    Number(u64),
    /// A boolean.
    Boolean(bool),
}

impl Hash for MetadataMatch {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl From<&MetadataValue> for PropertyValue {
    fn from(value: &MetadataValue) -> PropertyValue {
        match value {
            MetadataValue::Text(text) => PropertyValue::Text(text.as_str().into()),
            MetadataValue::Number(number) => PropertyValue::number(number.as_f64().unwrap_or_default()),
            MetadataValue::Boolean(value) => PropertyValue::Boolean(*value),
        }
    }
}

impl From<&doc::MetadataValue> for PropertyValue {
    fn from(value: &doc::MetadataValue) -> PropertyValue {
        match value {
            doc::MetadataValue::Text(text) => PropertyValue::Text(text.as_str().into()),
            doc::MetadataValue::Number(number) => PropertyValue::number(*number),
            doc::MetadataValue::Boolean(value) => PropertyValue::Boolean(*value),
        }
    }
}

impl PropertyValue {
    fn number(number: f64) -> PropertyValue {
        // Of the two zeros, this leaves 0.
        PropertyValue::Number((number + 0.0).to_bits())
    }

    fn json(&self) -> Value {
        match self {
            PropertyValue::Text(text) => (**text).into(),
            PropertyValue::Number(bits) => match f64::from_bits(*bits) {
                whole if whole.fract() == 0.0 && whole.abs() < 1e15 => (whole as i64).into(),
                number => number.into(),
            },
            PropertyValue::Boolean(value) => (*value).into(),
        }
    }
}

impl MetadataMatch {
    /// Creates it from the properties of an endpoint or a route.
    pub fn new<V>(metadata: &BTreeMap<String, V>) -> MetadataMatch
    where
        for<'v> &'v V: Into<PropertyValue>,
    {
        MetadataMatch::of(metadata.iter().map(|(name, value)| (name.as_str().into(), value.into())).collect())
    }

    fn of(properties: Box<[(Box<str>, PropertyValue)]>) -> MetadataMatch {
        let mut hasher = FxHasher::default();
        properties.hash(&mut hasher);
        MetadataMatch { hash: hasher.finish(), properties }
    }

    /// The properties with these names, which are in order; `None` if the endpoint lacks one.
    fn selected(metadata: &model::Metadata, names: &[String]) -> Option<MetadataMatch> {
        let property = |name: &String| Some((name.as_str().into(), metadata.get(name)?.into()));
        Some(MetadataMatch::of(names.iter().map(property).collect::<Option<_>>()?))
    }

    /// Whether it has exactly these names, which are in order.
    fn has_names(&self, names: &[String]) -> bool {
        self.properties.iter().map(|(name, _)| &**name).eq(names.iter().map(String::as_str))
    }

    /// Whether an endpoint with this metadata has all of the properties.
    fn matches(&self, metadata: Option<&model::Metadata>) -> bool {
        let has = |(name, value): &(Box<str>, PropertyValue)| {
            metadata
                .and_then(|metadata| metadata.get(&**name))
                .is_some_and(|other| PropertyValue::from(other) == *value)
        };
        self.properties.iter().all(has)
    }

    fn json(&self) -> Value {
        self.properties.iter().map(|(name, value)| (name.to_string(), value.json())).collect()
    }
}

/// A cluster's `subsets`, prepared.
#[derive(Debug)]
pub(super) struct SubsetSettings {
    config: model::Subsets,
    selectors: Box<[Selector]>,
    default: Option<MetadataMatch>,
    picks: Arc<Picks>,
}

/// Endpoints that were picked for requests, by how their subset was found, over all states of the cluster.
#[derive(Debug, Default)]
struct Picks {
    selected: AtomicU64,
    fallback: AtomicU64,
    none: AtomicU64,
}

#[derive(Debug)]
struct Selector {
    /// In order.
    names: Box<[String]>,
    fallback: SubsetFallbackPolicy,
}

impl SubsetSettings {
    /// Prepares a section. What was counted under the `previous` settings of the cluster still counts.
    pub(super) fn new(config: &model::Subsets, previous: Option<&SubsetSettings>) -> SubsetSettings {
        let selector = |selector: &model::SubsetSelector| {
            let mut names = selector.keys.clone();
            names.sort();
            names.dedup();
            Selector { names: names.into(), fallback: selector.fallback_policy.unwrap_or(config.fallback_policy) }
        };
        SubsetSettings {
            config: config.clone(),
            selectors: config.selectors.iter().map(selector).collect(),
            default: config.default_subset.as_ref().map(MetadataMatch::new),
            picks: previous.map(|previous| Arc::clone(&previous.picks)).unwrap_or_default(),
        }
    }
}

/// The subsets of a cluster's endpoints at one moment. Only those that have endpoints.
#[derive(Debug)]
pub(super) struct Subsets {
    settings: Arc<SubsetSettings>,
    by_properties: FxHashMap<MetadataMatch, Subset>,
    default: Option<Subset>,
}

#[derive(Debug)]
struct Subset {
    view: View,
    /// The position of round robin. One for all subsets would let each skip endpoints.
    cursor: AtomicU64,
}

impl Subset {
    /// The balancers of the one `before` serve until the tables of new ones are built.
    fn new(members: Vec<Member>, settings: &ClusterSettings, before: Option<&Subset>) -> Subset {
        Subset {
            view: View::new(members.into(), settings, before.map(|before| &before.view)),
            cursor: AtomicU64::new(before.map_or(0, |before| before.cursor.load(Relaxed))),
        }
    }
}

impl Subsets {
    /// Divides the members that have a weight.
    pub(super) fn new(
        settings: &ClusterSettings,
        subsets: &Arc<SubsetSettings>,
        members: &[Member],
        previous: Option<&Subsets>,
    ) -> Subsets {
        let members = || members.iter().filter(|member| member.weight > 0);
        let mut groups: FxHashMap<MetadataMatch, Vec<Member>> = FxHashMap::default();
        for member in members() {
            let Some(metadata) = member.metadata.as_deref() else { continue };
            for selector in &subsets.selectors {
                if let Some(properties) = MetadataMatch::selected(metadata, &selector.names) {
                    groups.entry(properties).or_default().push(member.clone());
                }
            }
        }
        let subset = |(properties, members)| {
            let before = previous.and_then(|previous| previous.by_properties.get(&properties));
            let subset = Subset::new(members, settings, before);
            (properties, subset)
        };
        let of_default = |wanted: &MetadataMatch| {
            let members = members().filter(|member| wanted.matches(member.metadata.as_deref()));
            Subset::new(members.cloned().collect(), settings, previous.and_then(|previous| previous.default.as_ref()))
        };
        Subsets {
            settings: Arc::clone(subsets),
            by_properties: groups.into_iter().map(subset).collect(),
            default: subsets.default.as_ref().map(of_default),
        }
    }

    /// Whether the endpoints are divided as these settings say.
    pub(super) fn is_by(&self, settings: &SubsetSettings) -> bool {
        self.settings.config == settings.config
    }

    /// All subsets.
    pub(super) fn views(&self) -> impl Iterator<Item = &View> {
        self.by_properties.values().chain(&self.default).map(|subset| &subset.view)
    }

    /// The endpoints for a request whose route wants these properties, if any: with their position of round robin, or the
    /// `whole` cluster.
    pub(super) fn choose<'a>(
        &'a self,
        wanted: Option<&MetadataMatch>,
        whole: (&'a View, &'a AtomicU64),
    ) -> Option<(&'a View, &'a AtomicU64)> {
        let SubsetSettings { config, selectors, picks, .. } = &*self.settings;
        if let Some(subset) = wanted.and_then(|wanted| self.by_properties.get(wanted)) {
            picks.selected.fetch_add(1, Relaxed);
            return Some((&subset.view, &subset.cursor));
        }
        let is_of = |selector: &&Selector| wanted.is_some_and(|wanted| wanted.has_names(&selector.names));
        let fallback = selectors.iter().find(is_of).map_or(config.fallback_policy, |selector| selector.fallback);
        let chosen = match fallback {
            SubsetFallbackPolicy::AnyEndpoint => Some(whole),
            SubsetFallbackPolicy::DefaultSubset => self
                .default
                .as_ref()
                .filter(|subset| subset.view.has_endpoints())
                .map(|subset| (&subset.view, &subset.cursor)),
            SubsetFallbackPolicy::NoFallback => None,
        };
        (if chosen.is_some() { &picks.fallback } else { &picks.none }).fetch_add(1, Relaxed);
        chosen
    }

    fn statuses(&self) -> Vec<SubsetStatus> {
        let status = |properties: Value, subset: &Subset| {
            let (available, endpoints) = subset.view.health();
            SubsetStatus { properties, is_default: false, available, endpoints }
        };
        let mut all: Vec<_> =
            self.by_properties.iter().map(|(properties, subset)| status(properties.json(), subset)).collect();
        all.sort_by_cached_key(|status| status.properties.to_string());
        let default = self.default.iter().zip(&self.settings.default);
        let default =
            default.map(|(subset, wanted)| SubsetStatus { is_default: true, ..status(wanted.json(), subset) });
        all.extend(default);
        all
    }
}

/// A subset, for people.
#[derive(Debug, Clone, PartialEq)]
pub struct SubsetStatus {
    /// The metadata of its endpoints.
    pub properties: Value,
    /// Whether it is the subset for requests that select none.
    pub is_default: bool,
    /// The endpoints with a weight that are healthy and not ejected.
    pub available: usize,
    /// All of its endpoints with a weight.
    pub endpoints: usize,
}

impl Cluster {
    /// Its subsets that have endpoints, by their metadata, and at last the default one; `None` if it is not divided.
    pub fn subsets(&self) -> Option<Vec<SubsetStatus>> {
        Some(self.membership().subsets.as_ref()?.statuses())
    }

    /// How many choices of an endpoint were made from the subset that the route's properties select, from the fallback, and
    /// from nothing, because there is none; `None` if it is not divided.
    pub fn subset_picks(&self) -> Option<[(&'static str, u64); 3]> {
        let Picks { selected, fallback, none } = &*self.subsets.as_ref()?.picks;
        Some([("subset", selected), ("fallback", fallback), ("nothing", none)].map(|(name, n)| (name, n.load(Relaxed))))
    }
}

#[cfg(test)]
#[path = "tests/subset.rs"]
mod tests;
