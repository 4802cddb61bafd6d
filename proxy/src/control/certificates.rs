//! The TLS part of a snapshot: loading the files, locating their errors in the configuration, and reporting their
//! expiry.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use arc_swap::ArcSwapOption;

use crate::{
    config::{
        ConfigSource, Diagnostic,
        model::{self, ClusterProtocol, Protocol, TlsMode},
        url::HttpUrl,
    },
    observe::{Kind, MetricError, Registry},
    snapshot::Snapshot,
    tls::{ClientTls, Dated, DatedKind, Digests, FieldError, Loader, MaterialError, ServerTls},
    upstream::Cluster,
};

const H2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// Returns the ALPN protocols to offer to clients (RFC 7301), in order of preference.
fn offered(protocol: Protocol) -> &'static [&'static [u8]] {
    match protocol {
        Protocol::Http | Protocol::Auto => &[H2, HTTP1],
        Protocol::Http1 => &[HTTP1],
        Protocol::Http2 => &[H2],
        Protocol::Tcp => &[],
    }
}

/// Returns the ALPN protocols to offer to endpoints. Without ALPN, HTTP/1.1 is implied, and TCP is not mistaken for it.
pub(super) fn wanted(protocol: ClusterProtocol) -> &'static [&'static [u8]] {
    match protocol {
        ClusterProtocol::H1 => &[],
        ClusterProtocol::H2 => &[H2],
        ClusterProtocol::Auto => &[H2, HTTP1],
    }
}

/// Loads the `tls` sections of one configuration.
pub(super) struct Certificates<'l> {
    source: &'l ConfigSource,
    loader: Loader<'l>,
    warnings: Vec<Diagnostic>,
}

impl<'l> Certificates<'l> {
    pub(crate) fn new(source: &'l ConfigSource, resolve: &'l dyn Fn(&Path) -> PathBuf) -> Certificates<'l> {
        Certificates { source, loader: Loader::new(resolve), warnings: Vec::new() }
    }

    /// Returns a listener's TLS settings; `None` if it has none, or if they have errors.
    pub(super) fn of_listener(
        &mut self,
        index: usize,
        listener: &model::Listener,
        before: Option<&ServerTls>,
        wrong: &mut Vec<Diagnostic>,
    ) -> Option<Arc<ServerTls>> {
        let section = listener.tls.as_ref().filter(|tls| tls.mode != TlsMode::Disable)?;
        let pointer = format!("/listeners/{index}/tls");
        match ServerTls::load(section, offered(listener.protocol), &mut self.loader, before) {
            Ok(tls) => {
                self.warn(&pointer, tls.warnings(SystemTime::now()));
                Some(Arc::new(tls))
            }
            Err(problems) => {
                wrong.extend(problems.iter().map(|problem| refused(self.source, &pointer, problem)));
                None
            }
        }
    }

    /// Returns a cluster's TLS settings; `None` if it has none, or if they have errors.
    pub(super) fn of_cluster(
        &mut self,
        index: usize,
        cluster: &model::Cluster,
        before: Option<&Arc<Cluster>>,
        wrong: &mut Vec<Diagnostic>,
    ) -> Option<Arc<ClientTls>> {
        let section = cluster.tls.as_ref()?;
        let pointer = format!("/clusters/{index}/tls");
        let before = before.and_then(|cluster| cluster.transport.tls.as_ref());
        match ClientTls::load(section, &cluster.name, wanted(cluster.protocol), &mut self.loader, before) {
            Ok(tls) => {
                self.warn(&pointer, tls.warnings(SystemTime::now()));
                Some(tls)
            }
            Err(problems) => {
                wrong.extend(problems.iter().map(|problem| refused(self.source, &pointer, problem)));
                None
            }
        }
    }

    /// Checks a source's TLS settings. They are loaded again when the source connects.
    pub(super) fn of_source(&mut self, index: usize, source: &model::Source, wrong: &mut Vec<Diagnostic>) {
        let Some(http) = &source.http else { return };
        let (Ok(url), Some(section)) = (http.url.parse::<HttpUrl>(), &http.tls) else { return };
        if !url.is_tls {
            return;
        }
        let pointer = format!("/sources/{index}/http/tls");
        match ClientTls::load(section, &url.host, &[], &mut self.loader, None) {
            Ok(tls) => self.warn(&pointer, tls.warnings(SystemTime::now())),
            Err(problems) => {
                wrong.extend(problems.iter().map(|problem| refused(self.source, &pointer, problem)));
            }
        }
    }

    /// Returns the digests of the files that were read, and the warnings about them.
    pub(crate) fn end(self) -> (Digests, Vec<Diagnostic>) {
        (self.loader.digests().clone(), self.warnings)
    }

    fn warn(&mut self, pointer: &str, warnings: Vec<(String, String)>) {
        for (place, message) in warnings {
            self.warnings.push(self.source.warning(&format!("{pointer}/{place}"), message));
        }
    }
}

fn refused(source: &ConfigSource, pointer: &str, problem: &FieldError) -> Diagnostic {
    let pointer = match problem.field.is_empty() {
        true => pointer.to_owned(),
        false => format!("{pointer}/{}", problem.field),
    };
    let passing = matches!(problem.error, MaterialError::KeyMismatch { .. });
    Diagnostic { passing, ..source.diagnostic(&pointer, problem.error.to_string(), problem.error.help()) }
}

/// Iterates over all files of a snapshot that have an expiry date.
fn dated(snapshot: &Snapshot) -> impl Iterator<Item = Dated> {
    let of_listeners = snapshot.listeners.iter().flat_map(|listener| listener.tls()).flat_map(|tls| tls.dated());
    let of_clusters =
        snapshot.clusters.iter().filter_map(|cluster| cluster.handle.current()).filter_map(|c| c.transport.tls.clone());
    let of_clusters = of_clusters.flat_map(|tls| tls.dated().collect::<Vec<_>>());
    of_listeners.chain(of_clusters)
}

/// Returns warnings about files of the running snapshot that expire soon or have expired.
pub(crate) fn expiring(snapshot: &Snapshot, now: SystemTime) -> Vec<String> {
    let mut all: Vec<String> = dated(snapshot).filter_map(|dated| dated.warning(now)).collect();
    all.sort();
    all.dedup();
    all
}

/// Registers metrics for the expiry of certificates and revocation lists.
pub(crate) fn show(registry: &Registry, current: Arc<ArcSwapOption<Snapshot>>) -> Result<(), MetricError> {
    let shown = [
        (
            DatedKind::Certificate,
            "tollgate_tls_certificate_not_after_timestamp_seconds",
            "When a certificate expires, in seconds since 1970.",
            "certificate",
        ),
        (
            DatedKind::RevocationList,
            "tollgate_tls_crl_next_update_timestamp_seconds",
            "When a revocation list expires, in seconds since 1970; the earliest if a file has several.",
            "crl",
        ),
    ];
    for (kind, name, help, label) in shown {
        let current = current.clone();
        registry.collect_fn(name, help, Kind::Gauge, move || {
            let Some(snapshot) = current.load_full() else { return Vec::new() };
            let mut first: BTreeMap<String, i64> = BTreeMap::new();
            for dated in dated(&snapshot).filter(|dated| dated.kind == kind) {
                let until = first.entry(dated.path.display().to_string()).or_insert(dated.until);
                *until = dated.until.min(*until);
            }
            first.into_iter().map(|(path, until)| (vec![(label.to_owned(), path)], until as f64)).collect()
        })?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "tests/certificates.rs"]
mod tests;
