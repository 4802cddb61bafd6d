//! Checks that each filter of a listener can be called by what the listener accepts.

use std::{collections::HashMap, sync::Arc};

use tollgate_abi::fast::phase;

use crate::{
    config::{Diagnostic, Loaded, model::Protocol},
    snapshot::ListenerParts,
};

/// Rejects filters that would never be called, since traffic would bypass them.
pub(super) fn check(
    loaded: &Loaded,
    listeners: &[Arc<ListenerParts>],
    phases: &HashMap<&str, u32>,
    wrong: &mut Vec<Diagnostic>,
) {
    for (index, listener) in listeners.iter().enumerate() {
        let config = &listener.config;
        let sees = |name: &str| phases.get(name).copied().unwrap_or_default();
        let any_sees = |kind| config.chain.iter().any(|name| sees(name) & kind != 0);
        let to_cluster = config.cluster.as_deref();
        for (nth, name) in config.chain.iter().enumerate() {
            let (http, tcp) = (sees(name) & phase::HTTP != 0, sees(name) & phase::TCP != 0);
            let (message, help) = match (config.protocol, http, tcp) {
                (Protocol::Tcp, true, false) => no_part(name, "TCP connections", &config.name),
                (Protocol::Http | Protocol::Http1 | Protocol::Http2, false, true) => {
                    no_part(name, "requests", &config.name)
                }
                // A client whose bytes do not look like HTTP here, but do to the upstream, would bypass the filter.
                (Protocol::Auto, true, false) if config.tcp.clusters.is_empty() && to_cluster.is_some() => (
                    format!(
                        "filter `{name}` sees requests only; with `protocol: auto`, TCP connections bypass it and go \
                         to cluster `{}`",
                        to_cluster.unwrap_or_default()
                    ),
                    "write `protocol: http`, or name clusters for TCP connections under `tcp.clusters`".to_owned(),
                ),
                (Protocol::Auto, false, true) if to_cluster.is_some() && !any_sees(phase::HTTP) => (
                    format!(
                        "filter `{name}` sees TCP connections only; with `protocol: auto`, requests bypass it and go to \
                         cluster `{}`",
                        to_cluster.unwrap_or_default()
                    ),
                    "write `protocol: tcp`, or add a filter for requests, such as `builtin:router`".to_owned(),
                ),
                _ => continue,
            };
            wrong.push(loaded.source.diagnostic(&format!("/listeners/{index}/chain/{nth}"), message, Some(help)));
        }
    }
}

/// Returns the error and help for a filter that its listener never calls.
fn no_part(filter: &str, what: &str, listener: &str) -> (String, String) {
    let help = format!("`protocol` of listener `{listener}` decides what its filters see");
    (format!("filter `{filter}` does not handle {what}"), help)
}
