//! Requests to the certificate authority, each on its own connection, and the checks on its response before the
//! certificate is used.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData, SanType};
use serde::Deserialize;

use super::store::StoredCertificate;
use crate::{
    ca::{authority, certificate},
    config::model,
    outbound::{Client, Server},
};

/// The timeout for a request, with connecting.
const LONGEST: Duration = Duration::from_secs(20);

/// The limit on a response's body, in bytes.
const MAX_ANSWER: u64 = 256 << 10;

/// Why no certificate was obtained.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The join token cannot be read.
    #[error("the join token is not available: {0}")]
    Token(super::super::Error),
    /// The authority is unreachable or failing.
    #[error("the certificate authority is unavailable: {0}")]
    Unreachable(String),
    /// The authority rejected the request.
    #[error("the certificate authority rejected the request: {0}")]
    Refused(String),
    /// The authority's response is invalid.
    #[error("the certificate authority's response is invalid: {0}")]
    Answer(String),
    /// Creating a key or a signing request failed.
    #[error(transparent)]
    Make(#[from] super::super::Error),
    /// The certificate was obtained but cannot be stored.
    #[error("cannot store the certificate: {0}")]
    Store(super::super::Error),
}

impl RequestError {
    /// Returns whether a retry would presumably fail the same way.
    pub fn is_final(&self) -> bool {
        !matches!(self, RequestError::Unreachable(_))
    }
}

#[derive(Deserialize)]
struct Answer {
    certificate: String,
    root: String,
}

#[derive(Deserialize)]
struct ErrorResponse {
    error: String,
}

/// Generates a key and requests a certificate for it.
pub async fn ask(config: &model::Workload, token: &str) -> Result<StoredCertificate, RequestError> {
    let key = authority::new_key()?;
    let request = request(config, token, &key)?;
    let (status, body) = exchange(config, request).await?;
    match status {
        StatusCode::OK => {
            let answer: Answer = serde_json::from_slice(&body).map_err(|e| RequestError::Answer(e.to_string()))?;
            let held = StoredCertificate::new(answer.certificate, key.serialize_pem(), answer.root)
                .map_err(RequestError::Answer)?;
            check(&held, config, &key).map_err(RequestError::Answer)?;
            Ok(held)
        }
        status => {
            let said = serde_json::from_slice(&body).map(|refusal: ErrorResponse| refusal.error);
            let said = said.unwrap_or_else(|_| String::from_utf8_lossy(&body).trim().chars().take(200).collect());
            let said = format!("{said:?} ({status})");
            match status.is_client_error() {
                true => Err(RequestError::Refused(said)),
                false => Err(RequestError::Unreachable(said)),
            }
        }
    }
}

/// Requests the trusted roots (PEM).
pub async fn roots(config: &model::Workload) -> Result<String, RequestError> {
    let request = Request::get("/ca/root").body(Bytes::new());
    let (status, body) = exchange(config, request.map_err(|e| RequestError::Unreachable(e.to_string()))?).await?;
    match status {
        StatusCode::OK => String::from_utf8(body.into()).map_err(|e| RequestError::Answer(e.to_string())),
        status => Err(RequestError::Unreachable(status.to_string())),
    }
}

/// Builds the HTTP request with the signing request in its body.
fn request(config: &model::Workload, token: &str, key: &KeyPair) -> Result<Request<Bytes>, RequestError> {
    let csr = || -> Result<String, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(config.spiffe.as_str().try_into()?)];
        params.serialize_request(key)?.pem()
    };
    let body = csr().map_err(super::super::Error::from)?;
    let mut bearer = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| RequestError::Refused("the join token's file holds no token".to_owned()))?;
    bearer.set_sensitive(true);
    Request::post(format!("/ca/sign?ttl={}", config.ttl))
        .header(header::CONTENT_TYPE, "application/x-pem-file")
        .header(header::AUTHORIZATION, bearer)
        .body(Bytes::from(body))
        .map_err(|e| RequestError::Unreachable(e.to_string()))
}

async fn exchange(config: &model::Workload, request: Request<Bytes>) -> Result<(StatusCode, Bytes), RequestError> {
    let mut client = Client::new(Server::new(config.ca.url().clone(), None, Path::new("")));
    match client.fetch(request, LONGEST, MAX_ANSWER).await {
        Ok(response) => Ok((response.status(), response.into_body())),
        Err(error) => Err(RequestError::Unreachable(format!("{}: {error}", config.ca))),
    }
}

/// Rejects a certificate that is not for this workload or not valid now, before listeners can use it.
fn check(held: &StoredCertificate, config: &model::Workload, key: &KeyPair) -> Result<(), String> {
    let facts = &held.facts;
    if facts.uri() != Some(config.spiffe.as_str()) {
        return Err(format!("the certificate is for {:?}", facts.names));
    }
    if facts.public_key != key.subject_public_key_info() {
        return Err("the certificate is for another key".to_owned());
    }
    if !certificate::is_signed_by(&held.chain, &held.root) {
        return Err("the certificate was not signed by a root received with it".to_owned());
    }
    match facts.is_valid_at(SystemTime::now()) {
        true => Ok(()),
        false => Err("the certificate is not valid now: the clocks differ".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::ca::authority::{Authority, Names};

    #[test]
    fn only_a_certificate_for_this_workload_is_accepted() {
        let dir = TempDir::new().unwrap();
        let hour = Duration::from_secs(3600);
        let domain = "mesh.local".parse().unwrap();
        let authority = Authority::create(dir.path(), &domain, hour, false).unwrap();
        let key = authority::new_key().unwrap();
        let config: model::Workload = serde_json::from_value(serde_json::json!({
            "spiffe": "spiffe://mesh.local/web", "ca": "http://127.0.0.1:1", "token": "token",
        }))
        .unwrap();
        let checked = |id: &str, asked: &KeyPair, root: &str| {
            let names = Names { spiffe: id.parse().unwrap(), dns: Vec::new(), ip: Vec::new() };
            let issued = authority.sign(asked, &names, hour).unwrap();
            let held = StoredCertificate::new(issued.chain, key.serialize_pem(), root.to_owned()).unwrap();
            check(&held, &config, &key)
        };
        assert_eq!(checked("spiffe://mesh.local/web", &key, authority.roots()), Ok(()));
        let error = checked("spiffe://mesh.local/db", &key, authority.roots()).unwrap_err();
        assert!(error.contains("spiffe://mesh.local/db"), "{error}");
        let other_key = authority::new_key().unwrap();
        let error = checked("spiffe://mesh.local/web", &other_key, authority.roots()).unwrap_err();
        assert!(error.contains("another key"), "{error}");
        let other = TempDir::new().unwrap();
        let other = Authority::create(other.path(), &domain, hour, false).unwrap();
        let error = checked("spiffe://mesh.local/web", &key, other.roots()).unwrap_err();
        assert!(error.contains("not signed by a root"), "{error}");
    }
}
