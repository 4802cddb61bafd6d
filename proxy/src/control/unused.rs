//! Warnings about unused parts of the configuration: filters in no chain, listeners without a destination, clusters
//! that nothing refers to. A filter in no chain is the most serious case: requests that it should deny are allowed.

use std::sync::Arc;

use aho_corasick::AhoCorasick;
use rustc_hash::FxHashSet;

use crate::{
    builtins,
    config::{
        Diagnostic, Loaded,
        model::{Filter, JsonText, Protocol},
    },
    wasm::CompiledModule,
};

/// The number of unused clusters that have a warning each; one warning covers the others.
const MAX_NAMED: usize = 20;

/// Returns all warnings. `ticking` are the filters that use timers, and so may intentionally be in no chain.
pub(crate) fn warnings(loaded: &Loaded, ticking: &[&str]) -> Vec<Diagnostic> {
    let config = &loaded.config;
    let mut warnings = Vec::new();
    let mut warn = |pointer: String, message: String, help: &str| {
        let help = (!help.is_empty()).then(|| help.to_owned());
        warnings.push(loaded.source.warning(&pointer, message).help(help));
    };
    for (i, listener) in config.listeners.iter().enumerate() {
        // TCP listeners without a destination are reported elsewhere.
        if listener.protocol != Protocol::Tcp && listener.chain.is_empty() && listener.cluster.is_none() {
            let message =
                format!("listener `{}` has neither `chain` nor `cluster`: all requests get 404", listener.name);
            warn(format!("/listeners/{i}/name"), message, "");
        }
    }
    for (i, filter) in config.filters.iter().enumerate() {
        let in_chain = config.listeners.iter().any(|listener| listener.chain.contains(&filter.name));
        // Filters with a `vm_id` may serve others, by shared data or a queue.
        let serves = !is_builtin(filter) && (filter.vm_id.is_some() || ticking.contains(&filter.name.as_str()));
        if !in_chain && !serves {
            let message = format!("filter `{}` is in no chain: it handles no traffic", filter.name);
            warn(format!("/filters/{i}/name"), message, "add it to the `chain` of a listener");
        }
    }
    let unused = unused_clusters(loaded);
    let each = config.clusters.iter().enumerate().filter(|(_, cluster)| unused.contains(&*cluster.name));
    for (named, (i, cluster)) in each.enumerate() {
        let pointer = format!("/clusters/{i}/name");
        if named == MAX_NAMED {
            let message = format!("{} more clusters are not used by any listener or filter", unused.len() - named);
            warn(pointer, message, "");
            break;
        }
        warn(pointer, format!("cluster `{}` is not used by any listener or filter", cluster.name), "");
    }
    warnings
}

/// Returns the clusters that no listener leads to and no filter may refer to. Built-in filters refer to clusters in
/// their configuration; others in any text that they are given, or in their code.
fn unused_clusters(loaded: &Loaded) -> FxHashSet<&str> {
    let config = &loaded.config;
    let mut unused: FxHashSet<&str> = config.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
    for listener in &config.listeners {
        let tcp = &listener.tcp;
        let shares = tcp.clusters.iter().map(|share| &share.cluster);
        let all = shares.chain(tcp.sni.iter().map(|route| &route.cluster)).chain(&listener.cluster);
        all.for_each(|cluster| _ = unused.remove(cluster.as_str()));
    }
    let (builtin, others): (Vec<_>, Vec<_>) = config.filters.iter().partition(|filter| is_builtin(filter));
    for config in builtin.into_iter().flat_map(configs) {
        config.each_text(&mut |text| _ = unused.remove(text));
    }
    if unused.is_empty() || others.is_empty() {
        return unused;
    }
    // One pass over each text finds all names, however many there are.
    let names: Vec<&str> = unused.iter().copied().collect();
    let Ok(search) = AhoCorasick::new(&names) else { return FxHashSet::default() };
    let mut look = |text: &[u8]| {
        search.find_overlapping_iter(text).for_each(|found| _ = unused.remove(names[found.pattern()]));
    };
    for filter in others {
        configs(filter)
            .chain([&filter.vm_config])
            .for_each(|config| config.each_text(&mut |text| look(text.as_bytes())));
        filter.env.values().for_each(|value| look(value.as_bytes()));
        if let Ok(module) = CompiledModule::read(&loaded.source.resolve(&filter.wasm), &config.compile) {
            look(&module);
        }
    }
    unused
}

/// Returns a filter's configuration and those of its variants.
fn configs(filter: &Arc<Filter>) -> impl Iterator<Item = &JsonText> {
    filter.variants.values().chain([&filter.config])
}

fn is_builtin(filter: &Filter) -> bool {
    builtins::name(&filter.wasm).is_some()
}
