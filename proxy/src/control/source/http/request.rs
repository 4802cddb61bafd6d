//! The requests of an HTTP source. Headers that are the same in every request are encoded once.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, header};

use super::{Version, answer::RESOURCES};
use crate::{config::url::HttpUrl, control::source::encoded, outbound::TokenFile};

/// RFC 7240.
const PREFER: HeaderName = HeaderName::from_static("prefer");

/// RFC 3229, section 10.5.3.
const A_IM: HeaderName = HeaderName::from_static("a-im");

/// Names the resources that were refused at the version in `If-None-Match`.
const REFUSED: HeaderName = HeaderName::from_static("tollgate-refused");

/// The limit on the list of refused resources, in bytes.
const MAX_REFUSED: usize = 4 << 10;

/// Builds the requests.
pub(super) struct Requests {
    path: Uri,
    /// What every request carries.
    always: HeaderMap,
    /// What requests that name a version carry in addition.
    prefer: Option<HeaderValue>,
    token: Option<TokenFile>,
}

impl Requests {
    pub fn new(url: &HttpUrl, wait: Duration, token: Option<TokenFile>) -> Requests {
        let mut always = HeaderMap::new();
        always.insert(header::ACCEPT, HeaderValue::from_static("application/json, application/yaml"));
        let seconds = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0));
        let prefer = (!wait.is_zero()).then(|| HeaderValue::try_from(format!("wait={seconds}")).ok()).flatten();
        Requests { path: url.path.clone().into(), always, prefer, token }
    }

    /// Removes the token from a message.
    pub fn conceal(&self, message: String) -> String {
        match &self.token {
            Some(token) => token.conceal(message),
            None => message,
        }
    }

    /// Builds a request for the full state, or for what has changed since `version`.
    ///
    /// # Errors The token is not available.
    pub fn next(&mut self, version: Option<&Version>) -> Result<Request<Bytes>, String> {
        let mut headers = self.always.clone();
        if let Some(token) = &mut self.token {
            headers.insert(header::AUTHORIZATION, token.value()?);
        }
        if let Some(Version::Tagged { etag, refused }) = version {
            headers.insert(header::IF_NONE_MATCH, etag.clone());
            headers.insert(A_IM, HeaderValue::from_static(RESOURCES));
            headers.extend(self.prefer.clone().map(|prefer| (PREFER, prefer)));
            headers.extend(refused.clone().map(|refused| (REFUSED, refused)));
        }
        let mut request = Request::new(Bytes::new());
        *request.uri_mut() = self.path.clone();
        *request.headers_mut() = headers;
        Ok(request)
    }
}

/// Returns the header that lists refused resources (`KIND/NAME`), `None` if there are none. Names that would exceed the
/// limit are left out.
pub(super) fn refused_header(refused: &[String]) -> Option<HeaderValue> {
    let mut list = String::new();
    for resource in refused {
        let (kind, name) = resource.split_once('/').unwrap_or(("", resource));
        let (separator, name) = (if list.is_empty() { "" } else { ", " }, encoded(name));
        if list.len() + separator.len() + kind.len() + 1 + name.len() <= MAX_REFUSED {
            list.extend([separator, kind, "/", &name]);
        }
    }
    if list.is_empty() { None } else { HeaderValue::try_from(list).ok() }
}
