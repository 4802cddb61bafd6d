//! What the first instance of a VM says about its filters. It applies to all of the VM's instances.

use std::collections::BTreeSet;

use super::{Instance, template::TemplateRoot};
use crate::observe::Kind;

/// What an instance says about one of its filters.
#[derive(Debug, Clone, Default)]
pub struct FilterFacts {
    /// The callbacks that it, or a variant of it, exports and subscribes to, as bits of
    /// [`phase`](tollgate_abi::fast::phase).
    pub phases: u32,
    /// Whether it, or a variant of it, has a timer tick.
    pub ticks: bool,
    /// The variants that its routes select, by filter and variant.
    pub selections: BTreeSet<(String, String)>,
}

/// What the first instance of a VM says.
pub(super) struct Facts {
    /// About each filter; about the first one if they share the root context.
    pub filters: Vec<FilterFacts>,
    /// The metrics that it has defined, if filters share its root context.
    pub metrics: Vec<(Kind, String)>,
    /// Whether it did something that concerns only one filter.
    pub has_named_effect: bool,
}

impl Facts {
    /// Asks an instance with these root contexts.
    pub fn of<'p>(roots: impl Iterator<Item = TemplateRoot<'p>>, instance: &Instance) -> Facts {
        let mut filters = Vec::<FilterFacts>::new();
        for (index, root) in roots.enumerate() {
            if root.filter >= filters.len() {
                filters.resize_with(root.filter + 1, FilterFacts::default);
            }
            let facts = &mut filters[root.filter];
            facts.phases |= instance.phases(index);
            facts.ticks |= instance.ticks(index);
            facts.selections.extend(instance.selections(index));
        }
        let shared = instance.store.data().shared_definitions.as_ref();
        let metrics = shared.map(|shared| shared.metrics.clone()).unwrap_or_default();
        Facts { filters, metrics, has_named_effect: instance.has_named_effect() }
    }
}
