//! Join tokens: a workload presents one to get its first certificate, and at each renewal.
//!
//! A token states the permitted identities and its expiry, sealed with HMAC-SHA256 by a secret in the authority's
//! folder. So the authority keeps no record of tokens: a token can be used any number of times until it expires, and
//! replacing the secret revokes all tokens.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime},
};

use aws_lc_rs::hmac;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use serde::{Deserialize, Serialize};

use crate::{
    config::spiffe::{SpiffeError, SpiffeId},
    digest::hex,
    observe::access_log::timestamp,
};

/// The prefix of a token: its type and version. Scanners for leaked secrets recognize such prefixes.
const MARK: &str = "tollgate-join-1";

/// The length of a secret in bytes.
const SECRET: usize = 32;

/// Longer texts are rejected unread; a SPIFFE ID has at most 2048 bytes.
const MAX_TOKEN: usize = 4096;

/// The identities that may be requested: one, or all below a path (`spiffe://mesh.local/ns/default/*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// This identity.
    One(SpiffeId),
    /// Identities whose path continues this one's.
    Below(SpiffeId),
}

/// The content of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The permitted identities.
    pub scope: Scope,
    /// The expiry, to the second.
    pub expires: SystemTime,
    /// Identifies the token in logs; not secret.
    pub id: String,
}

/// Why a token was rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It was not sealed with this secret, or was altered.
    #[error("the join token was not issued by this certificate authority")]
    Forged,
    /// It has expired.
    #[error("the join token expired at {}", timestamp::text(*.0))]
    Expired(SystemTime),
}

/// The key that seals tokens.
pub struct Secret(hmac::Key);

/// The serialized content of a token.
#[derive(Serialize, Deserialize)]
struct Claims {
    #[serde(rename = "for")]
    scope: String,
    /// Seconds since 1970.
    exp: u64,
    id: String,
}

impl Scope {
    /// Returns whether the scope covers an identity.
    pub fn allows(&self, id: &SpiffeId) -> bool {
        match self {
            Scope::One(one) => one == id,
            Scope::Below(above) => id.as_str().strip_prefix(above.as_str()).is_some_and(|rest| rest.starts_with('/')),
        }
    }

    /// Returns the trust domain's name.
    pub fn trust_domain(&self) -> &str {
        let (Scope::One(id) | Scope::Below(id)) = self;
        id.trust_domain()
    }
}

impl FromStr for Scope {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        match text.strip_suffix("/*") {
            Some(above) => above.parse().map(Scope::Below),
            None => text.parse().map(Scope::One),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::One(id) => id.fmt(f),
            Scope::Below(id) => write!(f, "{id}/*"),
        }
    }
}

impl Token {
    /// Creates a token that expires after `ttl`.
    pub fn new(scope: Scope, ttl: Duration) -> Result<Token, getrandom::Error> {
        let mut id = [0; 4];
        getrandom::fill(&mut id)?;
        let expires = whole_seconds(SystemTime::now() + ttl);
        Ok(Token { scope, expires, id: hex(&id) })
    }
}

impl Secret {
    /// Generates a secret in its file format.
    pub fn generate() -> Result<String, getrandom::Error> {
        let mut secret = [0; SECRET];
        getrandom::fill(&mut secret)?;
        Ok(BASE64.encode(secret) + "\n")
    }

    /// Parses a secret file.
    pub fn read(text: &str) -> Option<Secret> {
        let secret = BASE64.decode(text.trim()).ok().filter(|secret| secret.len() == SECRET)?;
        Some(Secret(hmac::Key::new(hmac::HMAC_SHA256, &secret)))
    }

    /// Seals a token and returns its text.
    pub fn seal(&self, token: &Token) -> String {
        let exp = token.expires.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let claims = Claims { scope: token.scope.to_string(), exp, id: token.id.clone() };
        let sealed = format!("{MARK}.{}", BASE64.encode(serde_json::to_vec(&claims).unwrap_or_default()));
        let tag = hmac::sign(&self.0, sealed.as_bytes());
        format!("{sealed}.{}", BASE64.encode(tag))
    }

    /// Returns the content of a token that is genuine and has not expired. The seal is compared in constant time
    /// before anything else in the token is read.
    pub fn open(&self, text: &str, now: SystemTime) -> Result<Token, TokenError> {
        let whole = Some(text).filter(|text| text.len() <= MAX_TOKEN);
        let (sealed, tag) = whole.and_then(|text| text.rsplit_once('.')).ok_or(TokenError::Forged)?;
        let tag = BASE64.decode(tag).map_err(|_| TokenError::Forged)?;
        hmac::verify(&self.0, sealed.as_bytes(), &tag).map_err(|_| TokenError::Forged)?;
        let token = unsealed(sealed).ok_or(TokenError::Forged)?;
        match now < token.expires {
            true => Ok(token),
            false => Err(TokenError::Expired(token.expires)),
        }
    }
}

/// Returns a token's expiry. The seal is not verified: the holder of a token does not have the secret.
pub fn end_of(text: &str) -> Option<SystemTime> {
    unsealed(text.rsplit_once('.')?.0).map(|token| token.expires)
}

fn unsealed(sealed: &str) -> Option<Token> {
    let claims = sealed.strip_prefix(MARK)?.strip_prefix('.')?;
    let claims: Claims = serde_json::from_slice(&BASE64.decode(claims).ok()?).ok()?;
    let expires = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(claims.exp))?;
    Some(Token { scope: claims.scope.parse().ok()?, expires, id: claims.id })
}

fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret() -> Secret {
        Secret::read(&Secret::generate().unwrap()).unwrap()
    }

    fn token(scope: &str) -> Token {
        Token::new(scope.parse().unwrap(), Duration::from_secs(60)).unwrap()
    }

    #[test]
    fn a_token_is_valid_until_it_expires() {
        let (secret, token) = (secret(), token("spiffe://mesh.local/ns/a/*"));
        let text = secret.seal(&token);
        assert_eq!(secret.open(&text, SystemTime::now()), Ok(token.clone()));
        assert_eq!(end_of(&text), Some(token.expires));
        let last = token.expires - Duration::from_millis(1);
        assert!(secret.open(&text, last).is_ok());
        assert_eq!(secret.open(&text, token.expires), Err(TokenError::Expired(token.expires)));
    }

    #[test]
    fn a_token_of_another_secret_or_with_altered_content_is_rejected() {
        let (ours, now) = (secret(), SystemTime::now());
        let text = ours.seal(&token("spiffe://mesh.local/web"));
        assert_eq!(secret().open(&text, now), Err(TokenError::Forged));
        let parts: Vec<&str> = text.split('.').collect();
        let [mark, claims, tag] = parts[..] else { panic!("{text}") };
        let wider = String::from_utf8(BASE64.decode(claims).unwrap()).unwrap().replace("/web", "/*");
        let wider = BASE64.encode(wider);
        for forged in [
            format!("{mark}.{wider}.{tag}"),
            format!("{mark}.{claims}."),
            format!("{mark}.{claims}"),
            format!("{mark}.{claims}.{}", &tag[..tag.len() - 2]),
            format!("{mark}..{tag}"),
            format!("tollgate-join-2.{claims}.{tag}"),
            format!("{text}."),
            format!(" {text}"),
            "a".repeat(MAX_TOKEN + 1),
            "..".to_owned(),
            String::new(),
        ] {
            assert_eq!(ours.open(&forged, now), Err(TokenError::Forged), "{forged}");
        }
        // Changing any character breaks the seal.
        for at in 0..text.len() {
            let other = if &text[at..=at] == "A" { "B" } else { "A" };
            let mut changed = text.clone();
            changed.replace_range(at..=at, other);
            assert_eq!(ours.open(&changed, now), Err(TokenError::Forged), "{changed}");
        }
    }

    #[test]
    fn a_scope_is_one_identity_or_those_below_a_path() {
        let allows = |scope: &str, id: &str| scope.parse::<Scope>().unwrap().allows(&id.parse().unwrap());
        assert!(allows("spiffe://mesh.local/web", "spiffe://mesh.local/web"));
        assert!(allows("spiffe://mesh.local/*", "spiffe://mesh.local/ns/a/sa/web"));
        assert!(allows("spiffe://mesh.local/ns/a/*", "spiffe://mesh.local/ns/a/sa/web"));
        for (scope, id) in [
            ("spiffe://mesh.local/web", "spiffe://mesh.local/web2"),
            ("spiffe://mesh.local/web", "spiffe://mesh.local/web/a"),
            ("spiffe://mesh.local/ns/a/*", "spiffe://mesh.local/ns/ab/sa/web"),
            ("spiffe://mesh.local/ns/a/*", "spiffe://mesh.local/ns/a"),
            ("spiffe://mesh.local/*", "spiffe://mesh.local"),
            ("spiffe://mesh.local/*", "spiffe://mesh.local.evil/web"),
            ("spiffe://mesh.local/*", "spiffe://other/web"),
        ] {
            assert!(!allows(scope, id), "{scope} {id}");
        }
        for text in ["*", "spiffe://*", "spiffe://mesh.local/a*", "spiffe://mesh.local/*/a", "spiffe://mesh.local//*"] {
            assert!(text.parse::<Scope>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_secret_of_the_wrong_length_is_rejected() {
        assert!(Secret::read("").is_none() && Secret::read("c2hvcnQ").is_none() && Secret::read("!").is_none());
    }
}
