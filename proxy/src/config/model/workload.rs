//! Certificates for workloads: the service that signs them, and the proxy's own.

use std::{borrow::Cow, fmt, path::PathBuf, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Duration;
use crate::config::spiffe::SpiffeId;

/// A certificate authority on the admin listener: it signs certificates for workloads that show a join token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateAuthority {
    /// The folder that `tollgate ca init` has made.
    pub dir: PathBuf,
    /// The longest life of a certificate, and that of those for which none is asked for. At least `1s`.
    #[serde(default = "default_life")]
    pub max_ttl: Duration,
}

/// The proxy's own certificate, which it gets from a certificate authority and renews. Changing it needs a restart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// The identity that is asked for.
    pub spiffe: SpiffeId,
    /// The service that signs: the admin listener of a Tollgate with `admin.ca`.
    pub ca: CaUrl,
    /// A file with the join token. It is read each time that the token is needed, so a new one can be put in its place.
    pub token: PathBuf,
    /// The folder where `workload.pem`, `workload.key` and `ca.pem` are kept. Default: `workload/TRUST-DOMAIN/PATH` in the
    /// cache's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// The certificate's life; the service may give it a shorter one. At least `1s`. It is renewed when two thirds of its
    /// life are over.
    #[serde(default = "default_life")]
    pub ttl: Duration,
}

fn default_life() -> Duration {
    Duration::secs(24 * 3600)
}

/// Where a certificate authority is: `http://HOST` or `http://HOST:PORT`, without a path. The port is 80 if there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaUrl {
    text: String,
    /// A name or an address; one of IPv6 without its brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl FromStr for CaUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not the URL of a service; write http://HOST:PORT");
        let uri: http::Uri = text.parse().map_err(|_| wrong())?;
        let bare = matches!(uri.path(), "" | "/") && uri.query().is_none();
        let authority = uri.authority().filter(|a| bare && !a.as_str().contains('@') && !a.host().is_empty());
        let authority = authority.filter(|_| uri.scheme_str() == Some("http")).ok_or_else(wrong)?;
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => 80,
            port => {
                let port = port.and_then(|port| port.strip_prefix(':')).filter(|port| !port.starts_with('+'));
                port.and_then(|port| port.parse().ok()).ok_or_else(wrong)?
            }
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(CaUrl { text: format!("http://{authority}"), host, port })
    }
}

impl fmt::Display for CaUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl CaUrl {
    /// `HOST:PORT`, as it stands in the URL.
    pub fn authority(&self) -> &str {
        self.text.trim_start_matches("http://")
    }
}

impl Serialize for CaUrl {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.text)
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
            "description": "The URL of a certificate authority's service: http://HOST:PORT.",
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
            assert_eq!((url.host.as_str(), url.port), (host, port));
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
