//! The requests of an HTTP source. Headers that are the same in every request are encoded once.

use std::{io, path::PathBuf, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, header};
use http_body_util::Empty;

use super::{Version, answer::RESOURCES};
use crate::{config::url::HttpUrl, control::source::encoded, files};

/// RFC 7240.
const PREFER: HeaderName = HeaderName::from_static("prefer");

/// RFC 3229, section 10.5.3.
const A_IM: HeaderName = HeaderName::from_static("a-im");

/// Names the resources that were refused at the version in `If-None-Match`.
const REFUSED: HeaderName = HeaderName::from_static("tollgate-refused");

/// The limit on the list of refused resources, in bytes.
const MAX_REFUSED: usize = 4 << 10;

/// The limit on a token's file, in bytes.
const MAX_TOKEN: u64 = 64 << 10;

/// Builds the requests.
pub(super) struct Requests {
    path: Uri,
    /// What every request carries.
    always: HeaderMap,
    /// What requests that name a version carry in addition.
    prefer: Option<HeaderValue>,
    token: Option<Token>,
}

/// The token's file, and what it contained last.
struct Token {
    file: PathBuf,
    content: Vec<u8>,
    bearer: HeaderValue,
}

impl Requests {
    pub fn new(url: &HttpUrl, wait: Duration, token_file: Option<PathBuf>) -> Requests {
        let mut always = HeaderMap::new();
        // A URL's authority contains only characters that are valid in a header.
        if let Ok(host) = HeaderValue::from_str(&url.authority) {
            always.insert(header::HOST, host);
        }
        let agent = concat!("tollgate/", env!("CARGO_PKG_VERSION"));
        always.insert(header::USER_AGENT, HeaderValue::from_static(agent));
        always.insert(header::ACCEPT, HeaderValue::from_static("application/json, application/yaml"));
        let seconds = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0));
        let prefer = (!wait.is_zero()).then(|| HeaderValue::try_from(format!("wait={seconds}")).ok()).flatten();
        let empty = HeaderValue::from_static("");
        let token = token_file.map(|file| Token { file, content: Vec::new(), bearer: empty });
        Requests { path: url.path.clone().into(), always, prefer, token }
    }

    /// Builds a request for the full state, or for what has changed since `version`.
    ///
    /// # Errors The token is not available.
    pub fn next(&mut self, version: Option<&Version>) -> Result<Request<Empty<Bytes>>, String> {
        let mut headers = self.always.clone();
        if let Some(token) = &mut self.token {
            headers.insert(header::AUTHORIZATION, token.bearer()?);
        }
        if let Some(Version::Tagged { etag, refused }) = version {
            headers.insert(header::IF_NONE_MATCH, etag.clone());
            headers.insert(A_IM, HeaderValue::from_static(RESOURCES));
            headers.extend(self.prefer.clone().map(|prefer| (PREFER, prefer)));
            headers.extend(refused.clone().map(|refused| (REFUSED, refused)));
        }
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = self.path.clone();
        *request.headers_mut() = headers;
        Ok(request)
    }
}

impl Token {
    /// Returns the header's value for the current content of the file.
    fn bearer(&mut self) -> Result<HeaderValue, String> {
        let wrong =
            |error: &dyn std::fmt::Display| format!("the token is not available: {}: {error}", self.file.display());
        let content = files::read(&self.file, MAX_TOKEN).map_err(|error: io::Error| wrong(&error))?;
        if content != self.content || content.is_empty() {
            let token = content.trim_ascii();
            let is_token = !token.is_empty() && token.iter().all(u8::is_ascii_graphic);
            let bearer = is_token.then(|| HeaderValue::try_from([b"Bearer ", token].concat()).ok()).flatten();
            self.bearer = bearer.ok_or_else(|| wrong(&"it does not contain a token"))?;
            self.bearer.set_sensitive(true);
            self.content = content;
        }
        Ok(self.bearer.clone())
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
