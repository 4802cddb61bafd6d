//! Places in a chain. A place holds one or more versions of a filter, of which a stream uses one, chosen by weight when it
//! begins, for all of its callbacks.
//!
//! Everything beyond this file works on a [`PinnedChain`] of single filters. A chain whose places have one version each, which
//! is the rule, is given out as it is.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use super::{
    Chain, Filter,
    network::{NetworkChain, NetworkFilter},
};

/// The filters that one stream passes.
pub trait PinnedChain {
    /// A filter.
    type Filter: ?Sized;
    /// Creates the chain of these filters, in request order.
    fn of(filters: Vec<Rc<Self::Filter>>) -> Self;
}

impl PinnedChain for Chain {
    type Filter = dyn Filter;

    fn of(filters: Vec<Rc<dyn Filter>>) -> Chain {
        Chain::new(filters)
    }
}

impl PinnedChain for NetworkChain {
    type Filter = dyn NetworkFilter;

    fn of(filters: Vec<Rc<dyn NetworkFilter>>) -> NetworkChain {
        NetworkChain::new(filters)
    }
}

/// A version of a filter.
pub struct Version<F: ?Sized> {
    /// The filter.
    pub filter: Rc<F>,
    /// Its share of the streams, relative to the other versions' weights.
    pub weight: u32,
}

/// A place in a chain: versions of a filter, at least one.
pub struct Slot<F: ?Sized>(Box<[Version<F>]>);

impl<F: ?Sized> Slot<F> {
    /// A place with a single version.
    pub fn of(filter: Rc<F>) -> Slot<F> {
        Slot(Box::new([Version { filter, weight: 1 }]))
    }

    /// A place with several versions; `None` if none of them has a weight.
    pub fn weighted(versions: Vec<Version<F>>) -> Option<Slot<F>> {
        let versions: Box<[Version<F>]> = versions.into_iter().filter(|version| version.weight > 0).collect();
        (!versions.is_empty()).then_some(Slot(versions))
    }

    /// Chooses a version: its index.
    fn choose(&self, key: u64) -> u8 {
        let total: u64 = self.0.iter().map(|version| u64::from(version.weight)).sum();
        let mut left = key % total;
        let at = self.0.iter().position(|version| match left.checked_sub(version.weight.into()) {
            Some(rest) => {
                left = rest;
                false
            }
            None => true,
        });
        at.unwrap_or_default() as u8
    }
}

/// The places of a listener's chain on one worker.
pub struct SlottedChain<C: PinnedChain> {
    /// The chain, if each place has a single version.
    single: Option<Rc<C>>,
    slots: Box<[Slot<C::Filter>]>,
    /// The chains of the combinations that streams have got so far.
    combinations: RefCell<HashMap<Box<[u8]>, Rc<C>>>,
}

impl<C: PinnedChain> SlottedChain<C> {
    /// Creates a chain of these places, in request order. A place has at most 255 versions.
    pub fn new(slots: Vec<Slot<C::Filter>>) -> SlottedChain<C> {
        let is_single = slots.iter().all(|slot| slot.0.len() == 1);
        let first = || slots.iter().map(|slot| slot.0[0].filter.clone()).collect();
        let single = is_single.then(|| Rc::new(C::of(first())));
        SlottedChain { single, slots: slots.into(), combinations: RefCell::default() }
    }

    /// A chain of single versions.
    pub fn single(filters: Vec<Rc<C::Filter>>) -> SlottedChain<C> {
        SlottedChain::new(filters.into_iter().map(Slot::of).collect())
    }

    /// The filters that a stream passes. `key` decides about the versions: equal keys get equal ones. It is asked for only
    /// if there is a choice.
    pub fn pin(&self, key: impl FnOnce() -> u64) -> Rc<C> {
        match &self.single {
            Some(chain) => chain.clone(),
            None => self.combine(key()),
        }
    }

    fn combine(&self, key: u64) -> Rc<C> {
        // Each place gets its own bits, so that the choices at two places are independent.
        let mut mixed = key;
        let chosen: Box<[u8]> = self
            .slots
            .iter()
            .map(|slot| {
                mixed = (mixed ^ (mixed >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                slot.choose(mixed >> 16)
            })
            .collect();
        let mut combinations = self.combinations.borrow_mut();
        let chain = combinations.entry(chosen).or_insert_with_key(|chosen| {
            let filters = self.slots.iter().zip(chosen).map(|(slot, at)| slot.0[usize::from(*at)].filter.clone());
            Rc::new(C::of(filters.collect()))
        });
        chain.clone()
    }
}

#[cfg(test)]
mod tests {
    use tollgate_abi::fast::phase;

    use super::*;
    use crate::chain::tests::{Log, Scripted, passing};

    fn filter(name: &'static str) -> Rc<dyn Filter> {
        Scripted::filter(name, phase::REQUEST_HEADERS, &Log::default(), passing())
    }

    fn names(chain: &Chain) -> Vec<&str> {
        chain.filters().iter().map(|filter| filter.name()).collect()
    }

    fn two(weights: [u32; 2]) -> Slot<dyn Filter> {
        let version = |(name, weight)| Version { filter: filter(name), weight };
        Slot::weighted([("old", weights[0]), ("new", weights[1])].map(version).into()).unwrap()
    }

    #[test]
    fn chain_of_single_versions_is_given_out_as_it_is() {
        let chain = SlottedChain::<Chain>::new(vec![Slot::of(filter("a")), Slot::of(filter("b"))]);
        let pinned = chain.pin(|| unreachable!("there is no choice"));
        assert_eq!(names(&pinned), ["a", "b"]);
        assert!(Rc::ptr_eq(&pinned, &chain.pin(|| 1)));
    }

    #[test]
    fn streams_get_versions_by_weight_and_equal_keys_get_equal_ones() {
        let chain = SlottedChain::<Chain>::new(vec![Slot::of(filter("a")), two([3, 1])]);
        let new = (0..4000u64).filter(|key| names(&chain.pin(|| *key)) == ["a", "new"]).count();
        assert!((850..1150).contains(&new), "{new} of 4000");
        for key in 0..100 {
            assert!(Rc::ptr_eq(&chain.pin(|| key), &chain.pin(|| key)));
        }
    }

    #[test]
    fn choices_at_two_places_are_independent() {
        let chain = SlottedChain::<Chain>::new(vec![two([1, 1]), two([1, 1])]);
        let mut seen = HashMap::new();
        for key in 0..4000u64 {
            let chain = chain.pin(|| key);
            *seen.entry(names(&chain).join(" ")).or_insert(0) += 1;
        }
        assert_eq!(seen.len(), 4);
        assert!(seen.values().all(|count| (850..1150).contains(count)), "{seen:?}");
    }

    #[test]
    fn version_without_a_weight_is_never_used() {
        let chain = SlottedChain::<Chain>::new(vec![two([0, 1])]);
        assert!((0..100).all(|key| names(&chain.pin(|| key)) == ["new"]));
        assert!(Slot::weighted(vec![Version { filter: filter("a"), weight: 0 }]).is_none());
    }
}
