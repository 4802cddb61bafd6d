//! The `admin.ca` and `workload` sections: the service that signs workload certificates, and the proxy's own
//! certificate.

use std::{borrow::Cow, fmt, path::PathBuf, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Duration;
use crate::config::{spiffe::SpiffeId, url::HttpUrl};

/// A certificate authority on the admin listener. It signs certificates for workloads that present a join token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateAuthority {
    /// The directory that `tollgate ca init` created.
    pub dir: PathBuf,
    /// The maximum lifetime of a certificate, and the lifetime if the request does not specify one. At least `1s`.
    #[serde(default = "default_life")]
    pub max_ttl: Duration,
}

/// The proxy's own certificate, which it obtains from a certificate authority and renews. A change needs a restart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// The SPIFFE ID to request.
    pub spiffe: SpiffeId,
    /// The signing service: the admin listener of a Tollgate with `admin.ca`.
    pub ca: CaUrl,
    /// A file with the join token. It is read whenever the token is needed, so the token can be replaced at any time.
    pub token: PathBuf,
    /// The directory for `workload.pem`, `workload.key` and `ca.pem`. Default: `workload/TRUST-DOMAIN/PATH` in the
    /// cache directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// The requested lifetime of the certificate; the service may issue a shorter one. At least `1s`. The certificate
    /// is renewed after two thirds of its lifetime.
    #[serde(default = "default_life")]
    pub ttl: Duration,
}

fn default_life() -> Duration {
    Duration::secs(24 * 3600)
}

/// The URL of a certificate authority: `http://HOST` or `http://HOST:PORT`, without a path. The default port is 80.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaUrl(HttpUrl);

impl FromStr for CaUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let url = text.parse().ok().filter(|url: &HttpUrl| !url.is_tls && url.path == "/");
        url.map(CaUrl).ok_or_else(|| format!("`{text}` is not the URL of a service; write http://HOST:PORT"))
    }
}

impl fmt::Display for CaUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.0.authority)
    }
}

impl CaUrl {
    /// Returns the URL.
    pub fn url(&self) -> &HttpUrl {
        &self.0
    }
}

impl Serialize for CaUrl {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CaUrl {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Cow::<'_, str>::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for CaUrl {
    fn schema_name() -> Cow<'static, str> {
        "CaUrl".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "tollgate-ca-url",
            "description": "The URL of a certificate authority: http://HOST:PORT.",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_a_host_and_a_port() {
        for (text, host, port) in [
            ("http://127.0.0.1:9901", "127.0.0.1", 9901),
            ("http://ca.mesh.local", "ca.mesh.local", 80),
            ("http://[::1]:9901/", "::1", 9901),
        ] {
            let url: CaUrl = text.parse().unwrap();
            assert_eq!((url.0.host.as_str(), url.0.port), (host, port));
            assert_eq!(url.to_string(), text.trim_end_matches('/'));
        }
        for text in [
            "",
            "127.0.0.1:9901",
            "https://127.0.0.1:9901",
            "http://",
            "http://:80",
            "http://a:",
            "http://a:65536",
            "http://a:x",
            "http://a:+80",
            "http://[::1]x",
            "http://user@a",
            "http://a/ca",
            "http://a?b",
            "/ca",
        ] {
            assert!(text.parse::<CaUrl>().is_err(), "{text}");
        }
    }
}
