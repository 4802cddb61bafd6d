//! TLS to a cluster's endpoints: trusted authorities, server name, and the client certificate.

use std::{net::IpAddr, sync::Arc, time::SystemTime};

use rustls::{
    ClientConfig, RootCertStore,
    client::{ResolvesClientCert, WebPkiServerVerifier, danger::ServerCertVerifier},
    pki_types::ServerName,
    sign::SingleCertAndKey,
};
use tokio_rustls::TlsConnector;

use super::{
    error::{FieldError, MaterialError, plain},
    explain::RecordingVerifier,
    material::{Dated, Loader, OwnCertificate, RevocationList},
    provider,
    verify::{AcceptAny, NameVerifier, San},
    versions,
};
use crate::{config::model::ClusterTls, digest::sha256};

/// A cluster's TLS client configuration. Shared by all workers.
#[derive(Debug)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    server_name: Option<ServerName<'static>>,
    /// Whether the server name is configured; otherwise it is the cluster's name.
    has_sni: bool,
    certificate: Option<OwnCertificate>,
    lists: Vec<Dated>,
    /// A hash of everything it was built from.
    digest: [u8; 32],
}

impl ClientTls {
    /// Builds it from a section of the configuration and its files. `alpn` lists the protocols in order of
    /// preference; if empty, ALPN is not sent. Returns `previous` if the result would be equal, which keeps its
    /// resumable sessions.
    pub fn load(
        section: &ClusterTls,
        cluster: &str,
        alpn: &[&[u8]],
        loader: &mut Loader<'_>,
        previous: Option<&Arc<ClientTls>>,
    ) -> Result<Arc<ClientTls>, Vec<FieldError>> {
        let mut wrong = Vec::new();
        let certificate = section
            .certificate
            .as_ref()
            .and_then(|files| loader.pair(files, "certificate").map_err(|problem| wrong.push(problem)).ok());
        let verifying = match section.insecure {
            true => Ok((Arc::new(RootCertStore::empty()), Vec::new())),
            false => verifying(section, loader),
        };
        let (roots, lists) = match verifying {
            Ok(verifying) if wrong.is_empty() => verifying,
            Ok(_) => return Err(wrong),
            Err(problems) => return Err(wrong.into_iter().chain(problems).collect()),
        };
        let digest = digest(section, cluster, alpn, loader, &roots);
        if let Some(same) = previous.filter(|previous| previous.digest == digest) {
            return Ok(same.clone());
        }
        let whole = |error| vec![FieldError { field: String::new(), error }];
        let server_name = server_name(section, cluster);
        let dated = lists.iter().filter_map(|list| list.dated.clone()).collect();
        let trusted = match section.ca.is_empty() {
            true => "the system's authorities; name its authority in `tls.ca`",
            false => "`tls.ca`",
        };
        let verifier =
            Arc::new(RecordingVerifier { verifier: verifier(section, roots, lists).map_err(whole)?, trusted });
        let builder = ClientConfig::builder_with_provider(provider());
        let builder = builder
            .with_protocol_versions(versions(section.min_version))
            .map_err(|e| whole(MaterialError::Refused(plain(&e))))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match &certificate {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let always: Arc<dyn ResolvesClientCert> = Arc::new(SingleCertAndKey::from(own.key.clone()));
                builder.with_client_cert_resolver(always)
            }
        };
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let (config, has_sni) = (Arc::new(config), section.sni.is_some());
        Ok(Arc::new(ClientTls { config, server_name, has_sni, certificate, lists: dated, digest }))
    }

    /// Returns the connector for handshakes on streams.
    pub fn connector(&self) -> TlsConnector {
        TlsConnector::from(self.config.clone())
    }

    /// Returns the TLS library's configuration.
    pub fn config(&self) -> &Arc<ClientConfig> {
        &self.config
    }

    /// Returns the server name for an endpoint: the configured one, the endpoint's host name, or the cluster's name. If
    /// none is a name, SNI is not sent and the certificate must be for the `address` (`None`: a Unix socket), unless
    /// `sans` lists its names.
    pub fn server_name(&self, hostname: Option<&str>, address: Option<IpAddr>) -> ServerName<'static> {
        let hostname = hostname.filter(|_| !self.has_sni).and_then(|name| ServerName::try_from(name).ok());
        let by_address = || address.unwrap_or(IpAddr::from([127, 0, 0, 1])).to_canonical().into();
        let name = hostname.map(|name| name.to_owned()).or_else(|| self.server_name.clone());
        name.unwrap_or_else(by_address)
    }

    /// Returns the files that expire.
    pub fn dated(&self) -> impl Iterator<Item = Dated> {
        self.certificate.iter().map(OwnCertificate::dated).chain(self.lists.iter().cloned())
    }

    /// Returns warnings, each with its place (see [`FieldError`]).
    pub fn warnings(&self, now: SystemTime) -> Vec<(String, String)> {
        let mut all: Vec<_> = self.certificate.iter().filter_map(OwnCertificate::warning).collect();
        all.extend(self.dated().filter_map(|dated| Some((dated.place.clone(), dated.warning(now)?))));
        all
    }
}

/// Returns the name that is sent as SNI, and that certificates must be for unless `sans` is set.
fn server_name(section: &ClusterTls, cluster: &str) -> Option<ServerName<'static>> {
    let name = section.sni.as_deref().unwrap_or(cluster);
    ServerName::try_from(name).ok().map(|name| name.to_owned())
}

/// Loads the trusted roots and the revocation lists.
pub(super) fn verifying(
    section: &ClusterTls,
    loader: &mut Loader<'_>,
) -> Result<(Arc<RootCertStore>, Vec<RevocationList>), Vec<FieldError>> {
    let roots = match section.ca.is_empty() {
        true => loader.system_roots().map_err(|error| vec![FieldError { field: String::new(), error }]),
        false => loader.roots(&section.ca, "ca"),
    };
    match (roots, loader.revocation_lists(&section.crl)) {
        (Ok(roots), Ok(lists)) => Ok((roots, lists)),
        (roots, lists) => Err(roots.err().into_iter().chain(lists.err()).flatten().collect()),
    }
}

/// Returns the verifier for endpoints' certificates.
pub(super) fn verifier(
    section: &ClusterTls,
    roots: Arc<RootCertStore>,
    lists: Vec<RevocationList>,
) -> Result<Arc<dyn ServerCertVerifier>, MaterialError> {
    let algorithms = provider().signature_verification_algorithms;
    if section.insecure {
        return Ok(Arc::new(AcceptAny(algorithms)));
    }
    let refused = |e: &dyn std::fmt::Display| MaterialError::Refused(e.to_string());
    if section.sans.is_empty() {
        let builder = WebPkiServerVerifier::builder_with_provider(roots, provider());
        let builder = builder.with_crls(lists.into_iter().map(|list| list.der)).enforce_revocation_expiration();
        return Ok(builder.build().map_err(|e| refused(&e))?);
    }
    let lists = lists.iter().map(|list| Ok(webpki::OwnedCertRevocationList::from_der(&list.der)?.into()));
    let lists: Result<_, webpki::Error> = lists.collect();
    let sans = section.sans.iter().map(|san| San::new(san)).collect();
    Ok(Arc::new(NameVerifier { roots, lists: lists.map_err(|e| refused(&e))?, sans, algorithms }))
}

/// Returns a hash of everything that a handshake depends on.
fn digest(section: &ClusterTls, cluster: &str, alpn: &[&[u8]], loader: &Loader<'_>, roots: &RootCertStore) -> [u8; 32] {
    let mut all = serde_json::to_vec(section).unwrap_or_default();
    for part in alpn.iter().copied().chain([cluster.as_bytes()]) {
        all.push(0);
        all.extend_from_slice(part);
    }
    let pair = section.certificate.iter().flat_map(|files| [&files.certificate, &files.key]);
    all.extend(pair.chain(&section.crl).filter_map(|path| loader.digest(path)).flatten());
    for root in &roots.roots {
        all.extend_from_slice(&root.subject);
        all.extend_from_slice(&root.subject_public_key_info);
        all.extend_from_slice(root.name_constraints.as_deref().unwrap_or_default());
    }
    sha256(&all)
}
