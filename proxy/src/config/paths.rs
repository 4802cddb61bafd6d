//! The paths in a file: other files that a configuration depends on.

use std::path::PathBuf;

use super::{node::Node, source::Source};
use crate::builtins;

/// Returns the modules and TLS files that a file refers to, whether it is valid or not.
pub(super) fn dependencies(source: &Source) -> Vec<PathBuf> {
    let section = |name: &str| source.root().get(name).map_or(&[][..], Node::items).iter();
    let modules = section("filters").filter_map(|filter| filter.get("wasm"));
    let modules = modules.filter(|wasm| wasm.as_str().is_some_and(|wasm| builtins::name(wasm).is_none()));
    let used = |tls: &&Node| tls.get("mode").and_then(Node::as_str) != Some("disable");
    let mut found: Vec<&Node> = modules.collect();
    for tls in section("listeners").chain(section("clusters")).filter_map(|entry| entry.get("tls")).filter(used) {
        let pairs = tls.get("certificates").map_or(&[][..], Node::items).iter().chain(tls.get("certificate"));
        found.extend(pairs.flat_map(|pair| [pair.get("certificate"), pair.get("key")]).flatten());
        found.extend(["client_ca", "ca", "crl"].iter().filter_map(|name| tls.get(name)).flat_map(Node::items));
        found.extend(tls.get("trust_domains").into_iter().flat_map(Node::values).flat_map(Node::items));
    }
    // Many clusters may have the same authority.
    let mut seen = std::collections::HashSet::new();
    let paths = found.into_iter().filter_map(Node::as_str).filter(|path| seen.insert(*path));
    paths.map(|path| source.resolve(path)).collect()
}
