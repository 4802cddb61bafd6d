//! Per-route configuration of filters: the filters of a chain with their variants, and which of them a stream uses.
//!
//! A route names filters and variants ([`RouteFilters`]). A chain resolves these names once ([`FilterTable`]), so that
//! selecting a route costs a lookup by address. A stream keeps the result ([`Choices`]); as long as no route selects
//! variants, that is a null pointer, and the flows use the filters themselves.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    hash::{Hash, Hasher},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rustc_hash::FxHashMap;
use tollgate_abi::doc;

use super::stream::FilterState;
use crate::observe::target;

/// The configuration with which a filter processes a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Choice {
    /// The filter's own.
    #[default]
    Own,
    /// None: the filter is skipped.
    Off,
    /// The variant with this index in the chain's [`FilterTable`].
    Variant(u16),
}

/// The choices of a stream, by position. Nothing is stored until a route selects variants.
#[derive(Debug, Default)]
pub struct Choices(Option<Box<[Choice]>>);

impl Choices {
    /// The choice for the filter at this position.
    #[inline]
    pub fn of(&self, position: usize) -> Choice {
        self.0.as_ref().map_or(Choice::Own, |choices| choices[position])
    }

    /// Whether a route has selected variants.
    pub fn are_made(&self) -> bool {
        self.0.is_some()
    }
}

/// A route's `filters`: variants, or `off`, by filter. Equal ones are one object ([`Interner`](super::interner::Interner)),
/// so that its address identifies it.
#[derive(Debug)]
pub struct RouteFilters {
    by_name: BTreeMap<String, String>,
    /// A variant that a chain's filter does not have was logged.
    logged: AtomicBool,
}

impl PartialEq for RouteFilters {
    fn eq(&self, other: &Self) -> bool {
        self.by_name == other.by_name
    }
}

impl Eq for RouteFilters {}

impl Hash for RouteFilters {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.by_name.hash(state);
    }
}

impl RouteFilters {
    /// The `filters` of a route; `None` if it names none.
    pub fn new(by_name: BTreeMap<String, String>) -> Option<RouteFilters> {
        (!by_name.is_empty()).then(|| RouteFilters { by_name, logged: AtomicBool::new(false) })
    }

    /// The filters' names and the variants' names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.by_name.iter().map(|(filter, variant)| (filter.as_str(), variant.as_str()))
    }
}

/// The filters of a chain, with their variants.
pub struct FilterTable<F: ?Sized> {
    filters: Box<[Rc<F>]>,
    names: Box<[Box<str>]>,
    variants: Box<[Variant<F>]>,
    /// The choices by position, per route's `filters`.
    resolved: RefCell<FxHashMap<*const RouteFilters, Resolved>>,
}

/// The choices that a route's `filters` mean for a chain.
struct Resolved {
    choices: Rc<[Choice]>,
    /// Keeps the address from being reused.
    _filters: Arc<RouteFilters>,
}

/// A filter's variant in a chain.
struct Variant<F: ?Sized> {
    /// The filter's position.
    position: usize,
    name: String,
    filter: Rc<F>,
}

/// A filter's variants, by name.
pub type Variants<F> = Vec<(String, Rc<F>)>;

impl<F: ?Sized> FilterTable<F> {
    /// Creates a table of filters, in request order. `describe` returns a filter's name and its variants.
    pub fn new(filters: Vec<Rc<F>>, describe: impl Fn(&F) -> (&str, Variants<F>)) -> FilterTable<F> {
        let (mut names, mut variants) = (Vec::new(), Vec::new());
        for (position, filter) in filters.iter().enumerate() {
            let (name, own) = describe(filter);
            names.push(name.into());
            variants.extend(own.into_iter().map(|(name, filter)| Variant { position, name, filter }));
        }
        FilterTable {
            filters: filters.into(),
            names: names.into(),
            variants: variants.into(),
            resolved: RefCell::default(),
        }
    }

    /// The filters themselves, in request order.
    pub fn filters(&self) -> &[Rc<F>] {
        &self.filters
    }

    /// The filters and all of their variants.
    pub fn all(&self) -> impl Iterator<Item = &Rc<F>> {
        self.filters.iter().chain(self.variants.iter().map(|variant| &variant.filter))
    }

    /// The filter at this position, in the configuration that the stream uses.
    #[inline]
    pub fn get(&self, position: usize, choices: &Choices) -> &Rc<F> {
        match choices.of(position) {
            Choice::Variant(index) => &self.variants[usize::from(index)].filter,
            Choice::Own | Choice::Off => &self.filters[position],
        }
    }

    /// Applies a route's `filters` to the filters at these positions, `behind` the selecting one. Filters that have already
    /// run for the stream, or have failed, are unaffected.
    #[cold]
    pub(super) fn choose(
        &self,
        filters: Option<&Arc<RouteFilters>>,
        choices: &mut Choices,
        states: &mut [FilterState],
        behind: impl Fn(usize) -> bool,
    ) {
        let selected = filters.map(|filters| self.resolve(filters));
        let choices = choices.0.get_or_insert_with(|| states.iter().map(|_| Choice::Own).collect());
        for (position, (choice, state)) in choices.iter_mut().zip(states).enumerate() {
            if behind(position) && state.context == 0 && state.gone == (*choice == Choice::Off) {
                *choice = selected.as_ref().map_or(Choice::Own, |selected| selected[position]);
                // A filter that is off is out of the stream, like one that has failed and is bypassed.
                state.gone = *choice == Choice::Off;
            }
        }
    }

    fn resolve(&self, filters: &Arc<RouteFilters>) -> Rc<[Choice]> {
        let mut resolved = self.resolved.borrow_mut();
        let known = resolved.entry(Arc::as_ptr(filters)).or_insert_with(|| {
            let choices = self.names.iter().enumerate().map(|(position, name)| self.choice(filters, position, name));
            Resolved { choices: choices.collect(), _filters: filters.clone() }
        });
        known.choices.clone()
    }

    fn choice(&self, filters: &RouteFilters, position: usize, filter: &str) -> Choice {
        let Some(name) = filters.by_name.get(filter) else { return Choice::Own };
        if name == doc::OFF {
            return Choice::Off;
        }
        let found = self.variants.iter().position(|variant| variant.position == position && variant.name == *name);
        if found.is_none() && !filters.logged.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                target: target::FILTER,
                filter, "a route selects the variant `{name}`, which the filter does not have; it uses its own configuration"
            );
        }
        found.and_then(|index| u16::try_from(index).ok()).map_or(Choice::Own, Choice::Variant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::interner::Interner;

    fn named(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(filter, variant)| ((*filter).to_owned(), (*variant).to_owned())).collect()
    }

    /// Filters `a` to `d`; `b` has the variants `x` and `y`, `d` has `x`.
    fn table() -> FilterTable<str> {
        FilterTable::new(["a", "b", "c", "d"].map(Rc::from).into(), |name| {
            let variants: &[&str] = match name {
                "b" => &["x", "y"],
                "d" => &["x"],
                _ => &[],
            };
            (name, variants.iter().map(|variant| ((*variant).to_owned(), format!("{name}/{variant}").into())).collect())
        })
    }

    #[test]
    fn filters_behind_the_selecting_one_use_the_variants_of_the_route() {
        let (table, known) = (table(), Interner::default());
        let mut states: Vec<_> = (0..4).map(|_| FilterState::default()).collect();
        let mut choices = Choices::default();
        let shown = |states: &[FilterState], choices: &Choices| -> Vec<String> {
            let each = states.iter().enumerate();
            each.map(|(at, p)| if p.gone { "off".to_owned() } else { table.get(at, choices).to_string() }).collect()
        };
        let route = |pairs: &[(&str, &str)]| RouteFilters::new(named(pairs)).map(|filters| known.intern(filters));
        assert_eq!(shown(&states, &choices), ["a", "b", "c", "d"]);
        let first = route(&[("a", "off"), ("b", "y"), ("c", "off"), ("d", "x"), ("absent", "off")]);
        table.choose(first.as_ref(), &mut choices, &mut states, |at| at > 0);
        assert_eq!(shown(&states, &choices), ["a", "b/y", "off", "d/x"], "the selecting filter itself is unaffected");
        let other = route(&[("b", "off"), ("d", "off")]);
        table.choose(other.as_ref(), &mut choices, &mut states, |at| at > 2);
        assert_eq!(shown(&states, &choices), ["a", "b/y", "off", "off"]);
        table.choose(None, &mut choices, &mut states, |at| at > 2);
        assert_eq!(shown(&states, &choices), ["a", "b/y", "off", "d"]);
        // A filter that has run keeps its configuration.
        states[1].context = 7;
        table.choose(route(&[("b", "x"), ("d", "x")]).as_ref(), &mut choices, &mut states, |at| at > 0);
        assert_eq!(shown(&states, &choices), ["a", "b/y", "c", "d/x"]);
        // One that failed stays out of the stream.
        states[3].gone = true;
        table.choose(None, &mut choices, &mut states, |at| at > 0);
        assert_eq!(shown(&states, &choices), ["a", "b/y", "c", "off"]);
        states[3].gone = false;
        table.choose(route(&[("d", "z")]).as_ref(), &mut choices, &mut states, |at| at > 0);
        assert_eq!(shown(&states, &choices)[3], "d", "it has no such variant");
        assert_eq!(table.all().map(|filter| &**filter).collect::<Vec<_>>(), ["a", "b", "c", "d", "b/x", "b/y", "d/x"]);
    }
}
