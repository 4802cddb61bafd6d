//! The paths in a file: other files that a configuration depends on, and how the paths of an included file become
//! relative to the main file.

use std::path::{Path, PathBuf};

use super::{
    model::{CertificateFiles, Cluster, Filter, Listener},
    node::Node,
    source::Source,
};
use crate::builtins;

/// Returns the modules and TLS files that a file refers to, whether it is valid or not.
pub(super) fn dependencies(source: &Source) -> Vec<PathBuf> {
    let section = |name: &str| source.root().get(name).map_or(&[][..], Node::items).iter();
    let modules = section("filters").filter_map(|filter| filter.get("wasm"));
    let modules = modules.filter(|wasm| wasm.as_str().is_some_and(|wasm| builtins::name(wasm).is_none()));
    let used = |tls: &&Node| tls.get("mode").and_then(Node::as_str) != Some("disable");
    let mut found: Vec<&Node> = modules.collect();
    let servers = section("sources").filter_map(|source| source.get("http"));
    let servers = servers.chain(["consul", "kubernetes"].into_iter().filter_map(|name| source.root().get(name)));
    let with_tls = section("listeners").chain(section("clusters")).chain(servers);
    for tls in with_tls.filter_map(|entry| entry.get("tls")).filter(used) {
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

/// Returns the file of a filter's module; `None` for a built-in filter.
pub(super) fn module(filter: &Filter) -> Option<&Path> {
    builtins::name(&filter.wasm).is_none().then(|| Path::new(&filter.wasm))
}

/// Makes the paths of a resource relative to the main file. They are relative to `dir`, the directory of an included
/// file, as seen from the main file.
pub(super) trait Rebase {
    /// Changes the paths in place.
    fn rebase(&mut self, dir: &Path);
}

impl Rebase for Listener {
    fn rebase(&mut self, dir: &Path) {
        if let Some(log) = self.access_log.as_mut().filter(|log| !matches!(&*log.to, "stdout" | "stderr")) {
            log.to = dir.join(&log.to).display().to_string();
        }
        let Some(tls) = &mut self.tls else { return };
        tls.certificates.iter_mut().for_each(|pair| pair.rebase(dir));
        let lists = tls.trust_domains.values_mut().chain([&mut tls.client_ca, &mut tls.crl]);
        lists.flatten().for_each(|path| *path = dir.join(&path));
    }
}

impl Rebase for Cluster {
    fn rebase(&mut self, dir: &Path) {
        let Some(tls) = &mut self.tls else { return };
        tls.certificate.iter_mut().for_each(|pair| pair.rebase(dir));
        [&mut tls.ca, &mut tls.crl].into_iter().flatten().for_each(|path| *path = dir.join(&path));
    }
}

impl Rebase for Filter {
    fn rebase(&mut self, dir: &Path) {
        if builtins::name(&self.wasm).is_none() {
            self.wasm = dir.join(&self.wasm).display().to_string();
        }
    }
}

impl Rebase for CertificateFiles {
    fn rebase(&mut self, dir: &Path) {
        [&mut self.certificate, &mut self.key].into_iter().for_each(|path| *path = dir.join(&path));
    }
}
