//! Which clusters and variants a filter may name while it is configured, and what it was told about them.
//!
//! Filters refer to clusters, and routes to variants of filters, by name. A name that cannot exist is an error of the
//! filter's configuration. The answers that a filter got are recorded, for two reasons: every later instance of the same
//! VM gets the same ones, and a filter whose answers still hold in another configuration need not be configured again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustc_hash::FxHashSet;
use tollgate_abi::{doc, fast::variant};

use crate::digest::sha256;

/// The filters of a configuration and the names of their variants.
pub type FilterNames = HashMap<String, BTreeSet<String>>;

/// What the filters of a configuration may name.
#[derive(Debug, Clone, Default)]
pub struct KnownNames {
    /// The clusters that the configuration defines.
    pub clusters: Arc<FxHashSet<Arc<str>>>,
    /// Whether a source may supply other clusters at any time. Then any name is accepted: requests for a cluster that is
    /// not there get 503.
    pub more_may_come: bool,
    /// The filters with their variants.
    pub filters: Arc<FilterNames>,
}

impl KnownNames {
    /// Whether a filter may refer to a cluster of this name.
    pub fn has_cluster(&self, name: &str) -> bool {
        self.more_may_come || self.clusters.contains(name)
    }

    /// The result of `variant_exists`: whether a route may name this variant of a filter.
    pub fn variant_exists(&self, filter: &str, name: &str) -> i32 {
        match self.filters.get(filter) {
            None => variant::NO_FILTER,
            Some(variants) if name != doc::OFF && !variants.contains(name) => variant::NO_VARIANT,
            Some(_) => variant::EXISTS,
        }
    }
}

/// The names that a VM's filters asked for while they were configured, with the answers.
#[derive(Debug, Default)]
pub struct NameAnswers(Mutex<Given>);

#[derive(Debug, Default)]
struct Given {
    clusters: BTreeMap<Box<str>, bool>,
    /// By filter and variant.
    variants: BTreeMap<(Box<str>, Box<str>), i32>,
}

impl NameAnswers {
    /// Whether a filter that is being configured may refer to a cluster: as it was told before, or else as `know` says.
    pub fn cluster(&self, name: &str, know: impl FnOnce(&str) -> bool) -> bool {
        let mut given = self.given();
        if let Some(answer) = given.clusters.get(name) {
            return *answer;
        }
        *given.clusters.entry(name.into()).or_insert(know(name))
    }

    /// The same for a variant of a filter.
    pub fn variant(&self, filter: &str, name: &str, know: impl FnOnce(&str, &str) -> i32) -> i32 {
        *self.given().variants.entry((filter.into(), name.into())).or_insert_with(|| know(filter, name))
    }

    /// Whether all answers are the same in another configuration.
    pub fn hold_in(&self, known: &KnownNames) -> bool {
        let Given { clusters, variants } = &*self.given();
        clusters.iter().all(|(name, answer)| known.has_cluster(name) == *answer)
            && variants.iter().all(|((filter, name), answer)| known.variant_exists(filter, name) == *answer)
    }

    /// A hash of all names and answers.
    pub fn sha256(&self) -> [u8; 32] {
        let Given { clusters, variants } = &*self.given();
        let mut all = String::new();
        for (name, answer) in clusters {
            let _ = write!(all, "{name:?} {answer} ");
        }
        for ((filter, name), answer) in variants {
            let _ = write!(all, "{filter:?} {name:?} {answer} ");
        }
        sha256(all.as_bytes())
    }

    /// A panic during a change leaves the record intact.
    fn given(&self) -> MutexGuard<'_, Given> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(names: &[&str], more_may_come: bool) -> KnownNames {
        let clusters = Arc::new(names.iter().map(|name| (*name).into()).collect());
        KnownNames { clusters, more_may_come, filters: Arc::default() }
    }

    fn ask(answers: &NameAnswers, name: &str, known: &KnownNames) -> bool {
        answers.cluster(name, |name| known.has_cluster(name))
    }

    #[test]
    fn answers_are_given_once_and_hold_while_they_are_the_same() {
        let (answers, first) = (NameAnswers::default(), known(&["a", "b"], false));
        assert!(ask(&answers, "a", &first) && !ask(&answers, "c", &first));
        assert!(answers.hold_in(&known(&["a", "d"], false)), "`b` and `d` were not asked for");
        assert!(!answers.hold_in(&known(&["b"], false)), "`a` is gone");
        assert!(!answers.hold_in(&known(&["a", "c"], false)), "`c` has come");
        let later = known(&[], false);
        assert!(ask(&answers, "a", &later), "a later instance is told the same, although there is no such cluster");
        assert!(!ask(&answers, "b", &later), "nobody was told of it before");
    }

    #[test]
    fn any_name_is_accepted_if_clusters_may_come_later() {
        let (answers, first) = (NameAnswers::default(), known(&["a"], true));
        assert!(ask(&answers, "a", &first) && ask(&answers, "z", &first));
        assert!(answers.hold_in(&known(&[], true)), "clusters come and go without an effect");
        assert!(!answers.hold_in(&known(&["a"], false)));
    }

    #[test]
    fn answers_about_variants_are_compared_too() {
        let with = |variants: &[&str]| {
            let filters = HashMap::from([("f".to_owned(), variants.iter().map(|name| (*name).to_owned()).collect())]);
            KnownNames { filters: Arc::new(filters), ..KnownNames::default() }
        };
        let (answers, first) = (NameAnswers::default(), with(&["strict"]));
        let ask =
            |filter: &str, name: &str| answers.variant(filter, name, |filter, name| first.variant_exists(filter, name));
        assert_eq!(
            [ask("f", "strict"), ask("f", "off"), ask("f", "lax")],
            [variant::EXISTS, variant::EXISTS, variant::NO_VARIANT]
        );
        assert_eq!(ask("g", "off"), variant::NO_FILTER);
        assert!(answers.hold_in(&with(&["strict", "other"])));
        assert!(!answers.hold_in(&with(&["strict", "lax"])) && !answers.hold_in(&with(&[])));
    }
}
