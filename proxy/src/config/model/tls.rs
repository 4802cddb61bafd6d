//! TLS, on listeners and to clusters.

use std::{collections::BTreeMap, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// TLS on a listener.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerTls {
    /// Whether clients may do without it.
    #[serde(default)]
    pub mode: TlsMode,
    /// Certificates. Which one a client is shown is decided by the name that it asks for (SNI) and the names in the
    /// certificates, exact ones before wildcards; the first is for those that ask for no name, or for none of these.
    #[serde(default)]
    pub certificates: Vec<CertificateFiles>,
    /// The least version.
    #[serde(default)]
    pub min_version: TlsVersion,
    /// Whether clients are asked for a certificate.
    #[serde(default)]
    pub client_certificates: ClientCertificates,
    /// Files (PEM) with the certificates of those who sign clients' certificates.
    #[serde(default)]
    pub client_ca: Vec<PathBuf>,
    /// Files (PEM) with the certificates of those who sign for a SPIFFE trust domain, by its name. With it, a certificate with a
    /// SPIFFE ID must be signed for the ID's trust domain, and `client_ca` is for certificates without one.
    #[serde(default)]
    pub trust_domains: BTreeMap<String, Vec<PathBuf>>,
    /// Files (PEM) with lists of clients' certificates that were revoked.
    #[serde(default)]
    pub crl: Vec<PathBuf>,
}

/// Whether a listener's clients may do without TLS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TlsMode {
    /// Connections that do not begin with TLS are closed.
    #[default]
    Strict,
    /// A connection that does not begin with TLS is plain.
    Permissive,
    /// Everything is plain: as without the section, which stays there for later.
    Disable,
}

/// A certificate with its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    /// A file (PEM) with the certificate, and those that lead from it to the root, in this order. It is read again when it
    /// changes.
    pub certificate: PathBuf,
    /// A file (PEM) with its private key (PKCS #8, PKCS #1, or SEC 1).
    pub key: PathBuf,
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TlsVersion {
    /// RFC 5246.
    #[default]
    #[serde(rename = "1.2")]
    V1_2,
    /// RFC 8446.
    #[serde(rename = "1.3")]
    V1_3,
}

/// Whether clients are asked for a certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientCertificates {
    /// They are not.
    #[default]
    None,
    /// They are, and may refuse. One that is shown must be right.
    Request,
    /// They must show one.
    Require,
}

/// TLS to a cluster's endpoints.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterTls {
    /// The name that is asked for (SNI), and that the certificate must be for unless `sans` says otherwise. Default: the
    /// cluster's name if it can be one, else none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
    /// Files (PEM) with the certificates of those who may sign. Default: those that the system trusts.
    #[serde(default)]
    pub ca: Vec<PathBuf>,
    /// Names of which the certificate must have one: DNS names, or URIs such as `spiffe://mesh/ns/a/sa/b`. Default: `sni`.
    #[serde(default)]
    pub sans: Vec<String>,
    /// What is shown to endpoints that ask for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateFiles>,
    /// The least version.
    #[serde(default)]
    pub min_version: TlsVersion,
    /// Files (PEM) with lists of certificates that were revoked.
    #[serde(default)]
    pub crl: Vec<PathBuf>,
    /// Takes any certificate, from anybody. For trying things out.
    #[serde(default)]
    pub insecure: bool,
}
