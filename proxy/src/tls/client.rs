//! TLS to a cluster's endpoints: whom to trust, by which name, and what to show.

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
    material::{Dated, Loader, OwnCertificate, RevocationList, sha256},
    provider,
    verify::{AcceptAny, NameVerifier, San},
    versions,
};
use crate::config::model::ClusterTls;

/// What a cluster needs for handshakes. Shared by all workers.
#[derive(Debug)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    server_name: Option<ServerName<'static>>,
    certificate: Option<OwnCertificate>,
    lists: Vec<Dated>,
    /// Of all that it was made from.
    made_of: [u8; 32],
}

impl ClientTls {
    /// From a section of the configuration and its files. `alpn` is what may be spoken, the best first; with none, nothing is
    /// said about it. If it would be no other than `previous`, it is that one, with the sessions that can be resumed.
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
        let made_of = made_of(section, cluster, alpn, loader, &roots);
        if let Some(same) = previous.filter(|previous| previous.made_of == made_of) {
            return Ok(same.clone());
        }
        let whole = |error| vec![FieldError { place: String::new(), error }];
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
        config.enable_sni = server_name.is_some();
        Ok(Arc::new(ClientTls { config: Arc::new(config), server_name, certificate, lists: dated, made_of }))
    }

    /// What does handshakes on streams.
    pub fn connector(&self) -> TlsConnector {
        TlsConnector::from(self.config.clone())
    }

    /// The TLS library's view of it.
    pub fn config(&self) -> &Arc<ClientConfig> {
        &self.config
    }

    /// The name to go by, with an endpoint at this address (none: a unix socket). Without a name for the whole cluster no name
    /// is asked for, and the certificate must be for the address (unless `sans` says for whom).
    pub fn server_name(&self, endpoint: Option<IpAddr>) -> ServerName<'static> {
        let by_address = || endpoint.unwrap_or(IpAddr::from([127, 0, 0, 1])).to_canonical().into();
        self.server_name.clone().unwrap_or_else(by_address)
    }

    /// Its files that are good until some time.
    pub fn dated(&self) -> impl Iterator<Item = Dated> {
        self.certificate.iter().map(OwnCertificate::dated).chain(self.lists.iter().cloned())
    }

    /// What is probably not meant, each with its place (see [`Problem`]).
    pub fn warnings(&self, now: SystemTime) -> Vec<(String, String)> {
        let mut all: Vec<_> = self.certificate.iter().filter_map(OwnCertificate::warning).collect();
        all.extend(self.dated().filter_map(|dated| Some((dated.place.clone(), dated.warning(now)?))));
        all
    }
}

/// The name that is asked for, and that certificates are for unless `sans` says otherwise.
fn server_name(section: &ClusterTls, cluster: &str) -> Option<ServerName<'static>> {
    let name = section.sni.as_deref().unwrap_or(cluster);
    ServerName::try_from(name).ok().map(|name| name.to_owned())
}

/// Whom to trust.
pub(super) fn verifying(
    section: &ClusterTls,
    loader: &mut Loader<'_>,
) -> Result<(Arc<RootCertStore>, Vec<RevocationList>), Vec<FieldError>> {
    let roots = match section.ca.is_empty() {
        true => loader.system_roots().map_err(|error| vec![FieldError { place: String::new(), error }]),
        false => loader.roots(&section.ca, "ca"),
    };
    match (roots, loader.revocation_lists(&section.crl)) {
        (Ok(roots), Ok(lists)) => Ok((roots, lists)),
        (roots, lists) => Err(roots.err().into_iter().chain(lists.err()).flatten().collect()),
    }
}

/// What decides about the certificates of endpoints.
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

/// A hash of everything that a handshake depends on.
fn made_of(
    section: &ClusterTls,
    cluster: &str,
    alpn: &[&[u8]],
    loader: &Loader<'_>,
    roots: &RootCertStore,
) -> [u8; 32] {
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
