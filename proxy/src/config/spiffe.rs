//! SPIFFE IDs: `spiffe://TRUST-DOMAIN/PATH`, exactly as the standard defines them (SPIFFE-ID, sections 2.1 to 2.3).
//! Identities are compared as text, so each must have only one spelling.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The maximum length of an ID, in bytes (SPIFFE-ID, section 2.3).
const MAX_ID: usize = 2048;

/// The maximum length of a trust domain's name, in bytes (SPIFFE-ID, section 2.3).
const MAX_TRUST_DOMAIN: usize = 255;

const SCHEME: &str = "spiffe://";

/// An error in the syntax of a SPIFFE ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// A missing or different scheme.
    #[error("it must begin with `spiffe://`")]
    Scheme,
    /// The ID is too long.
    #[error("it has more than {MAX_ID} bytes")]
    Length,
    /// No name between `spiffe://` and the path.
    #[error("the name of the trust domain is missing")]
    NoTrustDomain,
    /// The trust domain's name is too long.
    #[error("the name of the trust domain has more than {MAX_TRUST_DOMAIN} bytes")]
    TrustDomainLength,
    /// A character that is not allowed in a trust domain, including those of ports and user information.
    #[error("{0:?} cannot be in the name of a trust domain: it has small letters, digits, `.`, `-` and `_`")]
    TrustDomainCharacter(char),
    /// A character that is not allowed in a path, including those of queries, fragments and percent-encoding.
    #[error("{0:?} cannot be in a path: it has letters, digits, `.`, `-` and `_` between slashes")]
    PathCharacter(char),
    /// An empty segment: `//`.
    #[error("a segment of its path is empty")]
    EmptySegment,
    /// A trailing slash.
    #[error("its path ends with `/`")]
    TrailingSlash,
    /// A segment `.` or `..`.
    #[error("a segment of its path is `.` or `..`")]
    DotSegment,
}

/// The name of a trust domain: the identities whose certificates one root signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustDomain(String);

/// A workload's identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpiffeId {
    text: String,
    /// The end of the trust domain's name.
    path: usize,
}

impl TrustDomain {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the identity of the trust domain itself, which its root certificate has (X509-SVID, section 4).
    pub fn id(&self) -> SpiffeId {
        SpiffeId { text: format!("{SCHEME}{self}"), path: SCHEME.len() + self.0.len() }
    }
}

impl SpiffeId {
    /// Returns the whole ID.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the trust domain's name.
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..self.path]
    }

    /// Returns the path with its leading slash; empty for the trust domain itself.
    pub fn path(&self) -> &str {
        &self.text[self.path..]
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeError;

    fn from_str(name: &str) -> Result<Self, SpiffeError> {
        if name.is_empty() {
            return Err(SpiffeError::NoTrustDomain);
        }
        if name.len() > MAX_TRUST_DOMAIN {
            return Err(SpiffeError::TrustDomainLength);
        }
        let strange = |c: &char| !matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_');
        match name.chars().find(strange) {
            Some(c) => Err(SpiffeError::TrustDomainCharacter(c)),
            None => Ok(TrustDomain(name.to_owned())),
        }
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        if text.len() > MAX_ID {
            return Err(SpiffeError::Length);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeError::Scheme)?;
        let (domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        domain.parse::<TrustDomain>()?;
        if path.ends_with('/') {
            return Err(SpiffeError::TrailingSlash);
        }
        for segment in path.split('/').skip(1) {
            match segment {
                "" => return Err(SpiffeError::EmptySegment),
                "." | ".." => return Err(SpiffeError::DotSegment),
                _ => {}
            }
            if let Some(c) = segment.chars().find(|c| !matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_'))
            {
                return Err(SpiffeError::PathCharacter(c));
            }
        }
        Ok(SpiffeId { text: text.to_owned(), path: SCHEME.len() + domain.len() })
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for SpiffeId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Cow::<'_, str>::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for SpiffeId {
    fn schema_name() -> Cow<'static, str> {
        "SpiffeId".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "tollgate-spiffe-id",
            "description": "A SPIFFE ID: spiffe://mesh.local/ns/default/sa/web.",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_a_trust_domain_and_a_path() {
        for (text, domain, path) in [
            ("spiffe://mesh.local/ns/default/sa/web", "mesh.local", "/ns/default/sa/web"),
            ("spiffe://mesh.local", "mesh.local", ""),
            ("spiffe://a_b-c.9/A.b_C-9", "a_b-c.9", "/A.b_C-9"),
            ("spiffe://x/...", "x", "/..."),
        ] {
            let id: SpiffeId = text.parse().unwrap();
            assert_eq!((id.trust_domain(), id.path(), id.as_str()), (domain, path, text));
        }
        let domain: TrustDomain = "mesh.local".parse().unwrap();
        assert_eq!(domain.id(), "spiffe://mesh.local".parse().unwrap());
    }

    #[test]
    fn invalid_ids_are_rejected() {
        use SpiffeError::*;
        for (text, error) in [
            ("", Scheme),
            ("mesh.local/web", Scheme),
            ("https://mesh.local/web", Scheme),
            ("SPIFFE://mesh.local/web", Scheme),
            ("spiffe:/mesh.local/web", Scheme),
            ("spiffe://", NoTrustDomain),
            ("spiffe:///web", NoTrustDomain),
            ("spiffe://Mesh.local/web", TrustDomainCharacter('M')),
            ("spiffe://mesh.local:80/web", TrustDomainCharacter(':')),
            ("spiffe://user@mesh.local/web", TrustDomainCharacter('@')),
            ("spiffe://mesh%2elocal/web", TrustDomainCharacter('%')),
            ("spiffe://mesh.local?a=b", TrustDomainCharacter('?')),
            ("spiffe://mesh.local#a", TrustDomainCharacter('#')),
            ("spiffe://mésh/web", TrustDomainCharacter('é')),
            ("spiffe://mesh.local/", TrailingSlash),
            ("spiffe://mesh.local/web/", TrailingSlash),
            ("spiffe://mesh.local//web", EmptySegment),
            ("spiffe://mesh.local/a//web", EmptySegment),
            ("spiffe://mesh.local/./web", DotSegment),
            ("spiffe://mesh.local/a/../web", DotSegment),
            ("spiffe://mesh.local/..", DotSegment),
            ("spiffe://mesh.local/web?x", PathCharacter('?')),
            ("spiffe://mesh.local/web#x", PathCharacter('#')),
            ("spiffe://mesh.local/%41", PathCharacter('%')),
            ("spiffe://mesh.local/a b", PathCharacter(' ')),
            ("spiffe://mesh.local/*", PathCharacter('*')),
            ("spiffe://mesh.local/\u{e9}", PathCharacter('\u{e9}')),
            ("spiffe://mesh.local/a\n", PathCharacter('\n')),
        ] {
            assert_eq!(text.parse::<SpiffeId>(), Err(error), "{text:?}");
        }
    }

    #[test]
    fn lengths_are_bounded() {
        let id = |n: usize| format!("spiffe://x/{}", "a".repeat(n - "spiffe://x/".len()));
        assert!(id(2048).parse::<SpiffeId>().is_ok());
        assert_eq!(id(2049).parse::<SpiffeId>(), Err(SpiffeError::Length));
        assert!("a".repeat(255).parse::<TrustDomain>().is_ok());
        assert_eq!("a".repeat(256).parse::<TrustDomain>(), Err(SpiffeError::TrustDomainLength));
    }
}
