//! Warnings about unused parts of the configuration: filters in no chain, listeners without a destination, clusters
//! that nothing refers to. A filter in no chain is the most serious case: requests that it should deny are allowed.

use serde_json::Value as Json;

use crate::{
    builtins,
    config::{
        Diagnostic, Loaded,
        model::{Filter, Listener, Protocol},
    },
    wasm::CompiledModule,
};

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
    for (i, cluster) in config.clusters.iter().enumerate() {
        let name = cluster.name.as_str();
        let of_listeners = config.listeners.iter().any(|listener| leads_to(listener, name));
        if !of_listeners && !config.filters.iter().any(|filter| may_name(loaded, filter, name)) {
            let message = format!("cluster `{name}` is not used by any listener or filter");
            warn(format!("/clusters/{i}/name"), message, "");
        }
    }
    warnings
}

fn is_builtin(filter: &Filter) -> bool {
    builtins::name(&filter.wasm).is_some()
}

fn leads_to(listener: &Listener, cluster: &str) -> bool {
    let tcp = &listener.tcp;
    listener.cluster.as_deref() == Some(cluster)
        || tcp.clusters.iter().any(|share| share.cluster == cluster)
        || tcp.sni.iter().any(|route| route.cluster == cluster)
}

/// Whether a filter may refer to a cluster. Built-in filters do so in their configuration; others in any text that they
/// are given, or in their code.
fn may_name(loaded: &Loaded, filter: &Filter, cluster: &str) -> bool {
    let in_configs =
        |is: &dyn Fn(&str) -> bool| filter.variants.values().chain([&filter.config]).any(|config| has_text(config, is));
    if is_builtin(filter) {
        return in_configs(&|text| text == cluster);
    }
    let within = |text: &str| text.contains(cluster);
    in_configs(&within)
        || has_text(&filter.vm_config, &within)
        || filter.env.values().any(|value| within(value))
        || CompiledModule::read(&loaded.source.resolve(&filter.wasm), &loaded.config.compile)
            .is_ok_and(|module| memchr::memmem::find(&module, cluster.as_bytes()).is_some())
}

fn has_text(value: &Json, is: &dyn Fn(&str) -> bool) -> bool {
    match value {
        Json::String(text) => is(text),
        Json::Array(items) => items.iter().any(|item| has_text(item, is)),
        Json::Object(fields) => fields.iter().any(|(name, value)| is(name) || has_text(value, is)),
        _ => false,
    }
}
