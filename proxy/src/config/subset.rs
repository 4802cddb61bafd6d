//! Checks of a cluster's `subsets` that a JSON Schema cannot express: what is given twice, and what has no effect.

use std::collections::{BTreeSet, HashSet};

use super::{diagnostic::Diagnostic, node::Node};

/// Checks the section of one cluster.
pub(super) fn check(section: &Node, problems: &mut Vec<Diagnostic>) {
    let selectors = || section.get("selectors").into_iter().flat_map(Node::items);
    let mut known = HashSet::new();
    for keys in selectors().filter_map(|selector| selector.get("keys")) {
        let mut names = BTreeSet::new();
        for key in keys.items() {
            if let Some(name) = key.as_str()
                && !names.insert(name)
            {
                let message = format!("`{name}` is given twice");
                problems.push(Diagnostic::error(key.span, message).help("remove one of them".to_owned()));
            }
        }
        if !names.is_empty() && !known.insert(names) {
            let help = "remove one of them; the order of the keys does not matter".to_owned();
            problems.push(Diagnostic::error(keys.span, "another selector has the same keys".to_owned()).help(help));
        }
    }
    let policies = selectors().chain([section]).filter_map(|section| section.get("fallback_policy"));
    let to_default = policies.into_iter().find(|policy| policy.as_str() == Some("default_subset"));
    match (to_default, section.entry("default_subset")) {
        (Some(policy), None) => {
            let help = "add `default_subset: {NAME: VALUE}` to `subsets`".to_owned();
            problems.push(Diagnostic::error(policy.span, "there is no `default_subset`".to_owned()).help(help));
        }
        (None, Some((key, _))) => {
            let message = "`default_subset` has no effect without `fallback_policy: default_subset`".to_owned();
            problems.push(Diagnostic::error(key.span, message).help("remove it, or set that policy".to_owned()));
        }
        _ => {}
    }
}
