//! Certificates that are wrong in one way each, and servers that present them.

use std::{
    io::{Read, Write},
    sync::Arc,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CertifiedKey, DistinguishedName, DnType, IsCa, KeyPair,
    SanType, date_time_ymd,
};
use rustls::{
    ServerConfig, ServerConnection, Stream, SupportedProtocolVersion,
    pki_types::PrivateKeyDer,
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};

use crate::harness::{Upstream, answer};

/// All supported TLS versions.
pub static VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];

pub type Pair = CertifiedKey<KeyPair>;
pub type Issuer = CertifiedIssuer<'static, KeyPair>;

fn params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
    params.subject_alt_names.push(spiffe());
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

/// A certificate authority.
pub fn issuer(common_name: &str) -> Issuer {
    let mut params = params(common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority")
}

/// A certificate for `localhost`, 127.0.0.1 and `spiffe://t/w`.
pub fn signed(issuer: &Issuer, common_name: &str) -> Pair {
    sign(issuer, params(common_name))
}

/// The same, expired.
pub fn expired(issuer: &Issuer, common_name: &str) -> Pair {
    let mut params = params(common_name);
    (params.not_before, params.not_after) = (date_time_ymd(2019, 1, 1), date_time_ymd(2020, 1, 1));
    sign(issuer, params)
}

/// The same without a subject and with only these names; expired if `old`.
pub fn without_subject(issuer: &Issuer, old: bool, names: &[SanType]) -> Pair {
    let mut params = params("");
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names.to_vec();
    if old {
        (params.not_before, params.not_after) = (date_time_ymd(2019, 1, 1), date_time_ymd(2020, 1, 1));
    }
    sign(issuer, params)
}

/// A workload identity.
pub fn spiffe() -> SanType {
    SanType::URI("spiffe://t/w".try_into().expect("a URI"))
}

fn sign(issuer: &Issuer, params: CertificateParams) -> Pair {
    let key = KeyPair::generate().expect("a key");
    CertifiedKey { cert: params.signed_by(&key, issuer).expect("a certificate"), signing_key: key }
}

/// The configuration of a TLS server.
pub struct Server<'a> {
    pub pair: &'a Pair,
    pub versions: &'a [&'static SupportedProtocolVersion],
    pub alpn: &'a [&'a str],
    /// The issuer of its clients' certificates, if it requires them.
    pub clients: Option<&'a Issuer>,
    /// Whether it closes the connection after a request's head instead of answering.
    pub hangs_up: bool,
}

impl<'a> Server<'a> {
    pub fn new(pair: &'a Pair) -> Server<'a> {
        Server { pair, versions: &VERSIONS, alpn: &[], clients: None, hangs_up: false }
    }

    /// Starts the server: it answers the first request of each connection, if there is one.
    pub fn start(self) -> Upstream {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_protocol_versions(self.versions).expect("versions");
        let builder = match self.clients {
            None => builder.with_no_client_auth(),
            Some(issuer) => {
                let mut roots = rustls::RootCertStore::empty();
                roots.add(issuer.der().clone()).expect("a root");
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
            }
        };
        let key = PrivateKeyDer::try_from(self.pair.signing_key.serialize_der()).expect("a key");
        let mut config = builder.with_single_cert(vec![self.pair.cert.der().clone()], key).expect("a pair");
        config.alpn_protocols = self.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let (config, hangs_up) = (Arc::new(config), self.hangs_up);
        Upstream::scripted(move |connection| {
            let mut socket = connection.wire.socket().try_clone().expect("a socket");
            let mut tls = ServerConnection::new(config.clone()).expect("a server");
            let mut stream = Stream::new(&mut tls, &mut socket);
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read(&mut byte) {
                    Ok(1) => head.extend(byte),
                    _ => return connection.wait_for_end(),
                }
            }
            if hangs_up {
                return;
            }
            let _ = stream.write_all(&answer(200, &[], "hello"));
            connection.wait_for_end();
        })
    }
}
