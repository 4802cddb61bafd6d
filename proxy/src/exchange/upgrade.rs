//! Requests to switch protocols: `Upgrade` (RFC 9110 section 7.8), extended `CONNECT` (RFC 8441, RFC 9220), and plain
//! `CONNECT`.
//!
//! Filters and the rest of the exchange see all upgrades in HTTP/1.1 form: a `GET` with an `Upgrade` field, answered
//! with 101. They are translated from and to the client's and the upstream's version only at the edges.

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version, header, request::Parts};

use super::{ListenerContext, reply::LocalFailure};
use crate::http::fields::Present;

/// The protocol switch that a request asks for.
#[derive(Debug, Clone)]
pub(super) enum Upgrade {
    /// Another protocol, spoken with the upstream.
    Upgrade {
        /// The protocol's name.
        token: HeaderValue,
    },
    /// A tunnel to an endpoint of the cluster.
    Connect,
}

const WEBSOCKET: &[u8] = b"websocket";

impl Upgrade {
    /// Returns the switch that the request asks for, if enabled. An upgrade over HTTP/1.1 that is not enabled is
    /// ignored, as that version allows. An extended `CONNECT` is rewritten to a `GET`.
    pub(super) fn wanted(
        listener: &ListenerContext,
        parts: &mut Parts,
        present: Present,
        bodiless: bool,
    ) -> Result<Option<Upgrade>, LocalFailure> {
        let offered = |token: &[u8]| listener.config.upgrades.iter().any(|u| u.as_bytes().eq_ignore_ascii_case(token));
        if parts.method == Method::CONNECT {
            let protocol = parts.extensions.get::<h2::ext::Protocol>().map(|p| p.as_str().to_owned());
            return match protocol {
                Some(token) if offered(token.as_bytes()) => {
                    parts.method = Method::GET;
                    if token.as_bytes().eq_ignore_ascii_case(WEBSOCKET) {
                        // RFC 8441 section 5 omits the key, but HTTP/1.1 upstreams require it.
                        let key = BASE64_STANDARD.encode(fastrand::u128(..).to_ne_bytes());
                        let key = HeaderValue::from_str(&key).unwrap_or(HeaderValue::from_static(""));
                        parts.headers.insert(header::SEC_WEBSOCKET_KEY, key);
                    }
                    let token = HeaderValue::from_str(&token).map_err(|_| LocalFailure::Upgrade)?;
                    Ok(Some(Upgrade::Upgrade { token }))
                }
                Some(_) => Err(LocalFailure::Upgrade),
                None if listener.config.connect => Ok(Some(Upgrade::Connect)),
                None => Err(LocalFailure::Connect),
            };
        }
        if parts.version != Version::HTTP_11 || !bodiless || !present.upgrade {
            return Ok(None);
        }
        let connection = parts.headers.get_all(header::CONNECTION).into_iter().filter_map(|v| v.to_str().ok());
        let asked = connection.flat_map(|v| v.split(',')).any(|t| t.trim().eq_ignore_ascii_case("upgrade"));
        let token = parts.headers.get(header::UPGRADE).filter(|token| asked && offered(token.as_bytes()));
        Ok(token.map(|token| Upgrade::Upgrade { token: token.clone() }))
    }

    /// Restores the `Upgrade` field, which was removed as hop-by-hop, for filters to see.
    pub(super) fn restore(&self, fields: &mut HeaderMap) {
        if let Upgrade::Upgrade { token } = self {
            fields.insert(header::UPGRADE, token.clone());
        }
    }

    /// Returns the value of `Upgrade` for the upstream, in HTTP/1.1 form.
    pub(super) fn token(&self) -> Option<&HeaderValue> {
        match self {
            Upgrade::Upgrade { token } => Some(token),
            Upgrade::Connect => None,
        }
    }

    /// Returns whether the upstream has switched to this protocol (RFC 9110 section 7.8). In HTTP/2 the status alone
    /// says so.
    pub(super) fn is_agreed(&self, version: Version, fields: &HeaderMap) -> bool {
        match self {
            Upgrade::Upgrade { token } if version < Version::HTTP_2 => {
                let said =
                    fields.get_all(header::UPGRADE).iter().flat_map(|said| said.as_bytes().split(|b| *b == b','));
                let mut said = said.map(<[u8]>::trim_ascii);
                // Some old servers omit the field.
                !fields.contains_key(header::UPGRADE) || said.any(|said| said.eq_ignore_ascii_case(token.as_bytes()))
            }
            Upgrade::Upgrade { .. } | Upgrade::Connect => true,
        }
    }

    /// Translates a switching response into the form of the client's version.
    pub(super) fn finish(&self, version: Version, response: &mut Response<crate::http::body::Body>) {
        let fields = response.headers_mut();
        match self {
            Upgrade::Upgrade { token } if version == Version::HTTP_11 => {
                fields.insert(header::UPGRADE, token.clone());
                fields.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            }
            Upgrade::Upgrade { .. } => {
                fields.remove(header::SEC_WEBSOCKET_ACCEPT);
                *response.status_mut() = StatusCode::OK;
            }
            Upgrade::Connect => *response.status_mut() = StatusCode::OK,
        }
    }
}
