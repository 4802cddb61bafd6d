//! TLS for clients of a listener: its certificates, the verification of client certificates, and resumable sessions.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::SystemTime};

use rustls::{
    HandshakeKind, ServerConfig, ServerConnection,
    pki_types::CertificateDer,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio_rustls::TlsAcceptor;

use super::{
    connection::{ConnectionTls, PeerError},
    error::{FieldError, MaterialError, plain},
    explain::RecordingVerifier,
    identity::{Identity, not_after},
    material::{Dated, Loader, unix},
    provider,
    resolver::Resolver,
    sessions::{Sessions, TransportKind},
    trust::TrustDomainVerifier,
    versions,
};
use crate::{
    config::model::{ClientCertificates, ListenerTls},
    digest::sha256,
};

/// A listener's TLS configuration. Shared by all workers.
#[derive(Debug)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    resolver: Arc<Resolver>,
    sessions: Sessions,
    lists: Vec<Dated>,
}

impl ServerTls {
    /// Builds it from a section of the configuration and its files. `alpn` lists the protocols in order of
    /// preference. Sessions from `previous` stay resumable if the requirements for clients are unchanged.
    pub fn load(
        section: &ListenerTls,
        alpn: &[&[u8]],
        loader: &mut Loader<'_>,
        previous: Option<&ServerTls>,
    ) -> Result<ServerTls, Vec<FieldError>> {
        let (mut certificates, mut wrong) = (Vec::new(), Vec::new());
        for (index, files) in section.certificates.iter().enumerate() {
            match loader.pair(files, &format!("certificates/{index}")) {
                Ok(certificate) => certificates.push(certificate),
                Err(problem) => wrong.push(problem),
            }
        }
        let clients = match ClientAuth::load(section, loader) {
            Ok(clients) => clients,
            Err(problems) => {
                wrong.extend(problems);
                return Err(wrong);
            }
        };
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let whole = |error| vec![FieldError { field: String::new(), error }];
        let refused = |e: rustls::Error| whole(MaterialError::Refused(plain(&e)));
        let ClientAuth { verifier, rules, lists } = clients;
        let sessions = Sessions::new(rules, verifier.is_some(), previous.map(|p| &p.sessions)).map_err(whole)?;
        let resolver = Arc::new(Resolver::new(certificates));
        let builder = ServerConfig::builder_with_provider(provider());
        let builder = builder.with_protocol_versions(versions(section.min_version)).map_err(refused)?;
        let builder = match verifier {
            Some(verifier) => {
                let trusted = match (section.client_ca.is_empty(), section.trust_domains.is_empty()) {
                    (_, true) => "`tls.client_ca`",
                    (true, false) => "the authorities of its trust domain in `tls.trust_domains`",
                    (false, false) => {
                        "the authorities of its trust domain in `tls.trust_domains` (`tls.client_ca` if it has none)"
                    }
                };
                builder.with_client_cert_verifier(Arc::new(RecordingVerifier { verifier, trusted }))
            }
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(resolver.clone());
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        sessions.put_into(&mut config, TransportKind::Tcp);
        Ok(ServerTls { config: Arc::new(config), resolver, sessions, lists })
    }

    /// Returns the acceptor for handshakes on streams.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.clone())
    }

    /// Returns the TLS library's configuration.
    pub fn config(&self) -> &Arc<ServerConfig> {
        &self.config
    }

    /// Returns the configuration for TLS in QUIC (RFC 9001), with separate sessions.
    pub fn quic_config(&self, alpn: &[&[u8]]) -> ServerConfig {
        let mut config = ServerConfig::clone(&self.config);
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        self.sessions.put_into(&mut config, TransportKind::Quic);
        config
    }

    /// Returns the certificate that is presented to clients requesting this name.
    pub fn local(&self, server_name: Option<&str>) -> Option<Arc<Identity>> {
        self.resolver.identity(server_name).cloned()
    }

    /// Returns the facts about a connection after its handshake. On an error the connection must be closed.
    pub fn connection(&self, connection: &ServerConnection) -> Result<ConnectionTls, PeerError> {
        self.connection_at(connection, unix(SystemTime::now()))
    }

    /// Like [`Self::connection`], at a given time.
    pub(super) fn connection_at(&self, connection: &ServerConnection, now: i64) -> Result<ConnectionTls, PeerError> {
        if connection.handshake_kind() == Some(HandshakeKind::Resumed) {
            self.is_still_good(connection.peer_certificates().unwrap_or_default(), now)?;
        }
        ConnectionTls::of_server(connection, self.local(connection.server_name()))
    }

    /// Checks that a session with this client chain could still begin. Resumption does not verify the chain again, so
    /// the certificates and lists that verified it must not have expired. The chain's first certificate is checked
    /// for every session elsewhere.
    pub(super) fn is_still_good(&self, chain: &[CertificateDer<'_>], now: i64) -> Result<(), PeerError> {
        let [_, others @ ..] = chain else { return Ok(()) };
        if !others.iter().all(|certificate| not_after(certificate).is_some_and(|end| end >= now)) {
            return Err(PeerError::Chain);
        }
        match self.lists.iter().find(|list| list.until < now) {
            Some(list) => Err(PeerError::List(list.until)),
            None => Ok(()),
        }
    }

    /// Returns the files that expire.
    pub fn dated(&self) -> impl Iterator<Item = Dated> {
        self.resolver.certificates().iter().map(|c| c.dated()).chain(self.lists.iter().cloned())
    }

    /// Returns warnings, each with its place (see [`FieldError`]).
    pub fn warnings(&self, now: SystemTime) -> Vec<(String, String)> {
        let certificates = self.resolver.certificates();
        let mut all: Vec<_> = certificates.iter().filter_map(|c| c.warning()).collect();
        all.extend(self.dated().filter_map(|dated| Some((dated.place.clone(), dated.warning(now)?))));
        for nameless in certificates.iter().skip(1).filter(|c| c.identity.dns_sans.is_empty()) {
            let path = nameless.path.display();
            let text = format!("the certificate in `{path}` is never used: it has no DNS names");
            all.push((nameless.place.clone(), text));
        }
        all
    }
}

/// The requirements for client certificates.
pub(super) struct ClientAuth {
    pub(super) verifier: Option<Arc<dyn ClientCertVerifier>>,
    /// A digest of the requirements, for comparison.
    rules: [u8; 32],
    lists: Vec<Dated>,
}

impl ClientAuth {
    pub(super) fn load(section: &ListenerTls, loader: &mut Loader<'_>) -> Result<ClientAuth, Vec<FieldError>> {
        let ListenerTls { client_certificates: asked, client_ca, crl, trust_domains, .. } = section;
        if *asked == ClientCertificates::None {
            return Ok(ClientAuth { verifier: None, rules: [0; 32], lists: Vec::new() });
        }
        // Each set of authorities, with its trust domain.
        let mut sets: Vec<(Option<&str>, &[PathBuf], String)> = Vec::new();
        if !client_ca.is_empty() {
            sets.push((None, client_ca, "client_ca".to_owned()));
        }
        let domains = trust_domains.iter();
        sets.extend(domains.map(|(name, files)| (Some(name.as_str()), &files[..], format!("trust_domains/{name}"))));
        let (mut roots, mut wrong) = (Vec::new(), Vec::new());
        for (_, files, place) in &sets {
            match loader.roots(files, place) {
                Ok(set) => roots.push(set),
                Err(problems) => wrong.extend(problems),
            }
        }
        let lists = match loader.revocation_lists(crl) {
            Ok(lists) if wrong.is_empty() => lists,
            lists => return Err(wrong.into_iter().chain(lists.err().into_iter().flatten()).collect()),
        };
        let mut rules = vec![*asked as u8];
        for (domain, files) in sets.iter().map(|(domain, files, _)| (*domain, *files)).chain([(None, &crl[..])]) {
            rules.push(0xff);
            rules.extend_from_slice(domain.unwrap_or_default().as_bytes());
            rules.push(0xff);
            rules.extend(files.iter().filter_map(|path| loader.digest(path)).flatten());
        }
        let (mut by_domain, mut others) = (BTreeMap::new(), None);
        for ((domain, _, place), roots) in sets.into_iter().zip(roots) {
            let ders = lists.iter().map(|list| list.der.clone());
            let mut builder = WebPkiClientVerifier::builder_with_provider(roots, provider());
            builder = builder.with_crls(ders).enforce_revocation_expiration();
            if *asked == ClientCertificates::Request {
                builder = builder.allow_unauthenticated();
            }
            let refused = |e: rustls::server::VerifierBuilderError| {
                vec![FieldError { field: place, error: MaterialError::Refused(e.to_string()) }]
            };
            let verifier = builder.build().map_err(refused)?;
            match domain {
                Some(domain) => _ = by_domain.insert(domain.to_owned(), verifier),
                None => others = Some(verifier),
            }
        }
        let verifier: Arc<dyn ClientCertVerifier> = match others {
            Some(verifier) if by_domain.is_empty() => verifier,
            others => {
                let (mandatory, algorithms) =
                    (*asked == ClientCertificates::Require, provider().signature_verification_algorithms);
                Arc::new(TrustDomainVerifier::new(by_domain, others, mandatory, algorithms))
            }
        };
        Ok(ClientAuth {
            verifier: Some(verifier),
            rules: sha256(&rules),
            lists: lists.into_iter().filter_map(|list| list.dated).collect(),
        })
    }
}
