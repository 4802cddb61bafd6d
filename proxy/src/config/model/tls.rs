//! The `tls` sections of listeners and clusters.

use std::{collections::BTreeMap, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// TLS for clients of a listener.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerTls {
    /// Whether clients must use TLS.
    #[serde(default)]
    pub mode: TlsMode,
    /// Certificates. The server name that the client sends (SNI) selects one by the names in the certificates; exact
    /// names take precedence over wildcards. The first certificate is the default, for clients that send no name or an
    /// unknown one.
    #[serde(default)]
    pub certificates: Vec<CertificateFiles>,
    /// The minimum TLS version.
    #[serde(default)]
    pub min_version: TlsVersion,
    /// Whether clients are asked for a certificate.
    #[serde(default)]
    pub client_certificates: ClientCertificates,
    /// Files (PEM) with the certificate authorities that may sign client certificates.
    #[serde(default)]
    pub client_ca: Vec<PathBuf>,
    /// Files (PEM) with the certificate authorities of each SPIFFE trust domain, keyed by the domain's name. If set, a
    /// certificate with a SPIFFE ID must be signed by an authority of that ID's trust domain, and `client_ca` applies
    /// to certificates without one.
    #[serde(default)]
    pub trust_domains: BTreeMap<String, Vec<PathBuf>>,
    /// Files (PEM) with revocation lists (CRLs) for client certificates.
    #[serde(default)]
    pub crl: Vec<PathBuf>,
}

/// Whether clients of a listener must use TLS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TlsMode {
    /// Connections that do not start with TLS are closed.
    #[default]
    Strict,
    /// Connections that do not start with TLS are plaintext.
    Permissive,
    /// All connections are plaintext, as without this section. It keeps the other settings for later.
    Disable,
}

/// A certificate with its private key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    /// A file (PEM) with the certificate, followed by the chain up to the root. It is reloaded when it changes.
    pub certificate: PathBuf,
    /// A file (PEM) with the private key (PKCS #8, PKCS #1, or SEC 1).
    pub key: PathBuf,
}

/// A TLS version.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    #[default]
    #[serde(rename = "1.2")]
    V1_2,
    /// TLS 1.3 (RFC 8446).
    #[serde(rename = "1.3")]
    V1_3,
}

/// Whether clients are asked for a certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientCertificates {
    /// Clients are not asked.
    #[default]
    None,
    /// Clients are asked but may decline. A certificate that is presented must be valid.
    Request,
    /// Clients must present a valid certificate.
    Require,
}

/// TLS to a cluster's endpoints.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterTls {
    /// The server name to send (SNI), for which the certificate must be valid unless `sans` is set. Default: the
    /// endpoint's host name, or the cluster's name if it is a valid host name, otherwise none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
    /// Files (PEM) with the certificate authorities to trust. Default: the system's.
    #[serde(default)]
    pub ca: Vec<PathBuf>,
    /// Accepted names: the certificate must have one of these DNS names or URIs, such as `spiffe://mesh/ns/a/sa/b`.
    /// Default: `sni`.
    #[serde(default)]
    pub sans: Vec<String>,
    /// The client certificate to present to endpoints that ask for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateFiles>,
    /// The minimum TLS version.
    #[serde(default)]
    pub min_version: TlsVersion,
    /// Files (PEM) with revocation lists (CRLs).
    #[serde(default)]
    pub crl: Vec<PathBuf>,
    /// Accepts any certificate without verification. For testing only.
    #[serde(default)]
    pub insecure: bool,
}
