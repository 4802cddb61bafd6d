//! Warnings about per-route configuration that has no effect: a route selects a variant of a filter that does not stand
//! behind the selecting one, or no route selects a variant.

use std::collections::BTreeSet;

use serde_json::Value as Json;

use crate::config::{Diagnostic, Loaded, model::Filter};

/// Returns all warnings. `selections` are the filters' names, and the filters and variants that their routes select.
pub(super) fn warnings(loaded: &Loaded, selections: &[(&str, &BTreeSet<(String, String)>)]) -> Vec<Diagnostic> {
    let config = &loaded.config;
    let mut warnings = Vec::new();
    let mut warn = |pointer: String, message: String, help: String| {
        warnings.push(loaded.source.warning(&pointer, message).help(Some(help)));
    };
    for (by, selected) in selections.iter().copied() {
        let Some(index) = config.filters.iter().position(|filter| filter.name == *by) else { continue };
        let chains = || config.listeners.iter().enumerate().filter(|(_, l)| l.chain.iter().any(|name| name == by));
        for (filter, variant) in selected {
            let what = format!("`{filter}: {variant}` in `filters` of a route");
            let in_route = || place(&config.filters[index], index, filter, variant);
            if filter == by {
                let help = "only filters behind the selecting one can be named".to_owned();
                warn(in_route(), format!("{what} has no effect: filter `{by}` selects the route itself"), help);
                continue;
            }
            if chains().next().is_some() && !chains().any(|(_, listener)| listener.chain.contains(filter)) {
                let help = format!("add `{filter}` to the `chain`, behind `{by}`");
                let message = format!("{what} has no effect: filter `{filter}` is in no chain with filter `{by}`");
                warn(in_route(), message, help);
            }
            for (nth, listener) in chains() {
                let selecting = listener.chain.iter().position(|name| name == by);
                let last = listener.chain.iter().rposition(|name| name == filter);
                if let Some(position) = last.filter(|last| selecting > Some(*last)) {
                    let message =
                        format!("filter `{filter}` stands before filter `{by}` here, so {what} has no effect");
                    let help = format!("move `{filter}` behind `{by}`");
                    warn(format!("/listeners/{nth}/chain/{position}"), message, help);
                }
            }
        }
    }
    for (index, filter) in config.filters.iter().enumerate() {
        for variant in filter.variants.keys() {
            let pair = (filter.name.clone(), variant.clone());
            if !selections.iter().any(|(_, selected)| selected.contains(&pair)) {
                let pointer = format!("/filters/{index}/variants/{}", escaped(variant));
                let message = format!("no route selects the variant `{variant}` of filter `{}`", filter.name);
                let help = format!("write `filters: {{{}: {variant}}}` in a route of the router", filter.name);
                warn(pointer, message, help);
            }
        }
    }
    warnings
}

/// The first place in the selecting filter's configuration that names this filter and variant, as a JSON pointer; or the
/// filter's name.
fn place(selecting: &Filter, index: usize, filter: &str, variant: &str) -> String {
    let configs = selecting.variants.iter().map(|(name, config)| (format!("variants/{}", escaped(name)), config));
    let mut configs = [("config".to_owned(), &selecting.config)].into_iter().chain(configs);
    let found = configs
        .find_map(|(field, config)| find(&config.value(), &format!("/filters/{index}/{field}"), filter, variant));
    found.unwrap_or_else(|| format!("/filters/{index}/name"))
}

fn find(value: &Json, pointer: &str, filter: &str, variant: &str) -> Option<String> {
    match value {
        Json::Object(fields) => {
            let here = fields.get("filters").and_then(|filters| filters.get(filter)) == Some(&Json::from(variant));
            if here {
                return Some(format!("{pointer}/filters/{}", escaped(filter)));
            }
            fields
                .iter()
                .find_map(|(name, value)| find(value, &format!("{pointer}/{}", escaped(name)), filter, variant))
        }
        Json::Array(items) => {
            items.iter().enumerate().find_map(|(i, item)| find(item, &format!("{pointer}/{i}"), filter, variant))
        }
        _ => None,
    }
}

/// A segment of a JSON pointer (RFC 6901).
pub(super) fn escaped(segment: &str) -> String {
    segment.replace('~', "~0").replace('/', "~1")
}
