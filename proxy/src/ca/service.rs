//! The authority as a service on the admin listener: `POST /ca/sign` and `GET /ca/root`.
//!
//! The admin listener speaks plain HTTP and does not authenticate callers, so each request needs a join token.
//! Responses hold no secrets: the private key never leaves the workload.

use std::{
    cell::RefCell,
    fs::File,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::{
    Error,
    authority::{self, Authority, Issued, Names},
    request,
    token::{Scope, TokenError},
};
use crate::{
    config::{Diagnostic, Diagnostics, Loaded, spiffe::SpiffeId, units},
    observe::{Counter, MetricError, Registry, access_log::timestamp, shard, target},
};

/// The limit on a signing request's body, in bytes.
const MAX_REQUEST: usize = 16 << 10;

/// The timeout for reading the body.
const LONGEST: Duration = Duration::from_secs(10);

/// The minimum interval between log lines about rejected requests; those in between are counted.
const APART: Duration = Duration::from_secs(1);

/// Signs for workloads. It reads the folder for each request, so that it follows a rotation immediately and holds the
/// key in memory no longer than needed.
pub struct Service {
    dir: PathBuf,
    /// A lock that keeps others from creating another authority in this folder.
    _claim: File,
    /// The fingerprint of the signing root at the last read.
    signing: RefCell<String>,
    max_ttl: Duration,
    issued: Counter,
    rejected: Vec<(&'static str, Counter)>,
    logged: RefCell<Logged>,
}

/// The state of the log's rate limit.
#[derive(Default)]
struct Logged {
    last: Option<Instant>,
    suppressed: u64,
}

/// Why no certificate was signed.
#[derive(Debug, thiserror::Error)]
enum SigningError {
    #[error("a join token is required: `Authorization: Bearer TOKEN`")]
    NoToken,
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("the join token is for `{scope}`, not for `{asked}`")]
    Identity { scope: Scope, asked: SpiffeId },
    #[error("the signing request is invalid: {0}")]
    Request(String),
    #[error("the request is larger than {MAX_REQUEST} bytes, or was received too slowly")]
    Body,
    #[error("`ttl` must be a time of at least 1s, such as 24h")]
    Life,
    #[error(transparent)]
    Sign(#[from] Error),
}

impl SigningError {
    /// All values of the metric's `reason` label.
    const REASONS: [&'static str; 8] =
        ["no_token", "bad_token", "expired_token", "identity", "request", "body", "ttl", "failed"];

    fn reason(&self) -> &'static str {
        match self {
            SigningError::NoToken => "no_token",
            SigningError::Token(TokenError::Forged) => "bad_token",
            SigningError::Token(TokenError::Expired(_)) => "expired_token",
            SigningError::Identity { .. } | SigningError::Sign(Error::TrustDomain { .. } | Error::Name(_)) => {
                "identity"
            }
            SigningError::Request(_) => "request",
            SigningError::Body => "body",
            SigningError::Life => "ttl",
            SigningError::Sign(_) => "failed",
        }
    }

    fn status(&self) -> StatusCode {
        match self.reason() {
            "no_token" | "bad_token" | "expired_token" => StatusCode::UNAUTHORIZED,
            "identity" => StatusCode::FORBIDDEN,
            "body" => StatusCode::PAYLOAD_TOO_LARGE,
            "failed" => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// Opens the configured authority, if any.
///
/// # Errors
/// The folder holds no authority.
pub fn authority(loaded: &Loaded) -> Option<Result<Authority, Diagnostic>> {
    let dir = loaded.source.resolve(&loaded.config.admin.ca.as_ref()?.dir);
    Some(Authority::open(&dir).map_err(|e| {
        let help = format!("`tollgate ca init --dir {}` creates an authority", dir.display());
        let message = format!("cannot open the certificate authority: {e}");
        loaded.source.diagnostic("/admin/ca/dir", message, Some(help))
    }))
}

impl Service {
    /// Opens the configured service, if any.
    ///
    /// # Errors
    /// The folder holds no authority.
    pub fn open(loaded: &Loaded, registry: &Registry) -> anyhow::Result<Option<Service>> {
        let (Some(config), Some(authority)) = (&loaded.config.admin.ca, authority(loaded)) else { return Ok(None) };
        let authority = authority.map_err(|wrong| Diagnostics::new(loaded.source.clone(), vec![wrong]))?;
        tracing::info!(
            target: target::CA,
            trust_domain = %authority.trust_domain(),
            not_after = timestamp::text(authority.not_after()),
            "the admin listener is a certificate authority"
        );
        let dir = loaded.source.resolve(&config.dir);
        Ok(Some(Service::new(dir, &authority, config.max_ttl.0, registry)?))
    }

    fn new(dir: PathBuf, authority: &Authority, max_ttl: Duration, registry: &Registry) -> anyhow::Result<Service> {
        let claim = File::open(&dir)?;
        // A file system without locks offers no protection, but that is no reason to fail.
        if let Err(error) = claim.try_lock_shared() {
            tracing::debug!(target: target::CA, "cannot lock the authority's folder: {error}");
        }
        let rejected = |reason| {
            let help = "Rejected certificate requests of workloads, by reason.";
            Ok((reason, registry.counter("tollgate_ca_refused_total", help, &[("reason", reason)])?))
        };
        Ok(Service {
            dir,
            _claim: claim,
            signing: RefCell::new(authority.signing().fingerprint.clone()),
            max_ttl,
            issued: registry.counter("tollgate_ca_issued_total", "Certificates signed for workloads.", &[])?,
            rejected: SigningError::REASONS.into_iter().map(rejected).collect::<Result<_, MetricError>>()?,
            logged: RefCell::default(),
        })
    }

    /// Reads the trusted root certificates (PEM).
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn roots(&self) -> Result<String, Error> {
        authority::roots_of(&self.dir)
    }

    /// Reads the authority's present state.
    fn authority(&self) -> Result<Authority, Error> {
        let authority = Authority::open(&self.dir)?;
        let signing = authority.signing();
        if *self.signing.borrow() != signing.fingerprint {
            tracing::info!(
                target: target::CA,
                subject = signing.subject,
                not_after = timestamp::text(signing.not_after),
                "signing root changed"
            );
            self.signing.replace(signing.fingerprint.clone());
        }
        Ok(authority)
    }

    /// Handles `POST /ca/sign`: returns a status and a JSON object.
    pub async fn sign(&self, peer: SocketAddr, head: &http::request::Parts, body: Incoming) -> (StatusCode, Value) {
        let signed = match self.scope(&head.headers) {
            // Without a valid token, the body is not read.
            Err(refusal) => Err(refusal),
            Ok((scope, token)) => {
                match tokio::time::timeout(LONGEST, Limited::new(body, MAX_REQUEST).collect()).await {
                    Ok(Ok(body)) => {
                        self.decide(&scope, head.uri.query(), &body.to_bytes()).map(|issued| (issued, token))
                    }
                    _ => Err(SigningError::Body),
                }
            }
        };
        match signed {
            Ok(((issued, roots), token)) => {
                let facts = &issued.facts;
                let not_after = timestamp::text(facts.not_after);
                self.issued.inc(shard());
                tracing::info!(
                    target: target::CA,
                    spiffe = facts.uri(), serial = facts.serial, not_after, token, %peer, "certificate signed"
                );
                (StatusCode::OK, answer(&issued, &roots))
            }
            Err(refusal) => {
                self.note(&refusal, peer);
                (refusal.status(), json!({ "reason": refusal.reason(), "error": refusal.to_string() }))
            }
        }
    }

    /// Returns the scope and the id of the caller's token.
    fn scope(&self, headers: &HeaderMap) -> Result<(Scope, String), SigningError> {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        // RFC 9110, section 11.1: the scheme's case does not matter.
        let (scheme, token) = given.and_then(|given| given.split_once(' ')).ok_or(SigningError::NoToken)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(SigningError::NoToken);
        }
        let token = authority::secret_of(&self.dir)?.open(token.trim(), SystemTime::now())?;
        Ok((token.scope, token.id))
    }

    /// Signs a certificate if the scope allows it; returns it with the trusted roots.
    fn decide(&self, scope: &Scope, query: Option<&str>, pem: &[u8]) -> Result<(Issued, String), SigningError> {
        let life = query.into_iter().flat_map(|query| query.split('&')).find_map(|part| part.strip_prefix("ttl="));
        let life = match life {
            None => self.max_ttl,
            Some(text) => text.parse::<units::Duration>().map_err(|_| SigningError::Life)?.0.min(self.max_ttl),
        };
        if life < Duration::from_secs(1) {
            return Err(SigningError::Life);
        }
        let asked = request::read(pem).map_err(SigningError::Request)?;
        if !scope.allows(&asked.spiffe) {
            return Err(SigningError::Identity { scope: scope.clone(), asked: asked.spiffe });
        }
        let names = Names { spiffe: asked.spiffe, dns: Vec::new(), ip: Vec::new() };
        let authority = self.authority()?;
        Ok((authority.sign(&asked.key, &names, life)?, authority.roots().to_owned()))
    }

    /// Counts a rejected request and logs it, rate-limited so that callers cannot flood the log.
    fn note(&self, refusal: &SigningError, peer: SocketAddr) {
        if let Some((_, counter)) = self.rejected.iter().find(|(reason, _)| *reason == refusal.reason()) {
            counter.inc(shard());
        }
        let mut logged = self.logged.borrow_mut();
        if logged.last.is_some_and(|last| last.elapsed() < APART) {
            logged.suppressed += 1;
            return;
        }
        tracing::warn!(
            target: target::CA,
            reason = refusal.reason(), %peer, not_logged_before = logged.suppressed, "certificate refused: {refusal}"
        );
        *logged = Logged { last: Some(Instant::now()), suppressed: 0 };
    }
}

fn answer(issued: &Issued, roots: &str) -> Value {
    json!({
        "spiffe": issued.facts.uri(),
        "serial": issued.facts.serial,
        "not_before": timestamp::text(issued.facts.not_before),
        "not_after": timestamp::text(issued.facts.not_after),
        "certificate": issued.chain,
        "root": roots,
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use rcgen::{CertificateParams, KeyPair, SanType};
    use tempfile::TempDir;

    use super::*;
    use crate::ca::token::Token;

    const HOUR: Duration = Duration::from_secs(3600);

    fn service(dir: &TempDir) -> Service {
        let authority = Authority::create(dir.path(), &"mesh.local".parse().unwrap(), 24 * HOUR, false).unwrap();
        Service::new(dir.path().to_owned(), &authority, HOUR, &Registry::new(1)).unwrap()
    }

    fn csr(id: &str) -> String {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
    }

    fn bearing(authorization: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_str(authorization).unwrap())])
    }

    #[test]
    fn only_a_token_of_this_authority_is_accepted() {
        let (dir, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let (service, other) = (service(&dir), service(&other));
        let token = |ttl| Token::new("spiffe://mesh.local/*".parse().unwrap(), ttl).unwrap();
        let ours = service.authority().unwrap().secret().unwrap().seal(&token(HOUR));
        for good in [format!("Bearer {ours}"), format!("bearer {ours}")] {
            assert_eq!(service.scope(&bearing(&good)).unwrap().0.to_string(), "spiffe://mesh.local/*");
        }
        let forged = other.authority().unwrap().secret().unwrap().seal(&token(HOUR));
        let ended = service.authority().unwrap().secret().unwrap().seal(&token(Duration::ZERO));
        for (authorization, reason) in [
            (format!("Bearer {forged}"), "bad_token"),
            (format!("Bearer {ended}"), "expired_token"),
            ("Bearer x".to_owned(), "bad_token"),
            (format!("Basic {ours}"), "no_token"),
            (ours.clone(), "no_token"),
            (String::new(), "no_token"),
        ] {
            let refusal = service.scope(&bearing(&authorization)).unwrap_err();
            assert_eq!((refusal.reason(), refusal.status().as_u16()), (reason, 401), "{authorization}");
        }
        assert_eq!(service.scope(&HeaderMap::new()).unwrap_err().reason(), "no_token");
        service.authority().unwrap().renew_secret().unwrap();
        assert_eq!(service.scope(&bearing(&format!("Bearer {ours}"))).unwrap_err().reason(), "bad_token");
    }

    #[test]
    fn only_what_the_token_allows_is_signed() {
        let dir = TempDir::new().unwrap();
        let service = service(&dir);
        let decide = |scope: &str, query, id| {
            service.decide(&scope.parse().unwrap(), query, csr(id).as_bytes()).map_err(|refusal| refusal.reason())
        };
        let life = |(issued, _): (Issued, String)| issued.facts.not_after.duration_since(SystemTime::now()).unwrap();
        let (all, web) = ("spiffe://mesh.local/*", "spiffe://mesh.local/web");
        assert!(life(decide(all, Some("ttl=1m"), web).unwrap()) <= HOUR / 60);
        for query in [None, Some("ttl=300h"), Some("a=b")] {
            let life = life(decide(web, query, web).unwrap());
            assert!(life <= HOUR && life > HOUR / 2, "{life:?}");
        }
        for query in ["ttl=", "ttl=0s", "ttl=999ms", "ttl=long", "ttl=-1s"] {
            assert_eq!(decide(all, Some(query), web).err(), Some("ttl"), "{query}");
        }
        assert_eq!(decide(web, None, "spiffe://mesh.local/db").err(), Some("identity"));
        // A token that the authority itself would not create.
        assert_eq!(decide("spiffe://other/*", None, "spiffe://other/web").err(), Some("identity"));
        let scope = web.parse().unwrap();
        assert_eq!(service.decide(&scope, None, b"nonsense").unwrap_err().reason(), "request");
    }

    #[test]
    fn each_reason_is_counted() {
        let dir = TempDir::new().unwrap();
        let service = service(&dir);
        for refusal in [SigningError::NoToken, SigningError::Body, SigningError::Sign(Error::Ended), SigningError::Life]
        {
            service.note(&refusal, ([127, 0, 0, 1], 1).into());
            let counter = service.rejected.iter().find(|(reason, _)| *reason == refusal.reason());
            assert_eq!(counter.unwrap().1.value(), 1, "{refusal}");
        }
        assert_eq!(service.logged.borrow().suppressed, 3, "they arrived within a second");
    }
}
