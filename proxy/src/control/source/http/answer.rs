//! Judges the answers of a server. What is not explicitly valid is an error, after which the last accepted resources stay.

use std::{
    borrow::Cow,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, response::Parts};

use crate::{
    config::Format,
    outbound::{Body, BodyError, retry_after},
};

/// The limit on a full state, in bytes.
const MAX_FULL: u64 = 256 << 20;

/// The limit on a delta, in bytes.
const MAX_DELTA: u64 = 16 << 20;

/// RFC 3229, section 10.5.2.
const IM: HeaderName = HeaderName::from_static("im");

/// RFC 3229, section 10.5.1.
const DELTA_BASE: HeaderName = HeaderName::from_static("delta-base");

/// The only instance manipulation: a document with the changed resources and the names of the removed ones.
pub(super) const RESOURCES: &str = "resources";

/// A valid head of an answer.
#[derive(Debug)]
pub(super) enum Answer {
    Unchanged,
    Document(Announced),
}

/// What the head says about the document in the body.
#[derive(Debug)]
pub(super) struct Announced {
    pub format: Format,
    pub etag: Option<HeaderValue>,
    pub is_delta: bool,
}

/// Why a request failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub text: String,
    /// The wait that the server requests.
    pub retry_after: Option<Duration>,
    /// Whether the next request is for the full state.
    pub ask_for_all: bool,
}

impl Failure {
    pub fn new(text: impl Into<String>) -> Failure {
        Failure { text: text.into(), retry_after: None, ask_for_all: false }
    }
}

impl Answer {
    /// Judges a head. `asked` is the ETag that the request named.
    pub fn of(head: &Parts, asked: Option<&HeaderValue>) -> Result<Answer, Failure> {
        match head.status {
            StatusCode::NOT_MODIFIED if asked.is_some() => Ok(Answer::Unchanged),
            StatusCode::NOT_MODIFIED => Err(Failure::new("the server answered 304 to a request without If-None-Match")),
            StatusCode::OK => Announced::of(head, false).map(Answer::Document).map_err(Failure::new),
            StatusCode::IM_USED => delta(head, asked)
                .map(Answer::Document)
                .map_err(|text| Failure { ask_for_all: true, ..Failure::new(text) }),
            status => {
                let mut text = format!("the server answered {status}");
                if status.is_redirection()
                    && let Some(location) = head.headers.get(header::LOCATION)
                {
                    text.push_str(&format!(" to `{}`; redirects are not followed", shown(location)));
                }
                Err(Failure { retry_after: retry_after(&head.headers, SystemTime::now()), ..Failure::new(text) })
            }
        }
    }
}

/// Judges the head of a delta.
fn delta(head: &Parts, asked: Option<&HeaderValue>) -> Result<Announced, String> {
    let asked = asked.ok_or("the server answered 226 to a request without A-IM")?;
    let used = text(&head.headers, IM);
    if !used.as_deref().is_some_and(|used| used.eq_ignore_ascii_case(RESOURCES)) {
        return Err(format!("the server answered 226 with `IM: {}`, not `IM: {RESOURCES}`", used.unwrap_or_default()));
    }
    if let Some(base) = head.headers.get(DELTA_BASE).filter(|base| *base != asked) {
        let (base, asked) = (shown(base), shown(asked));
        return Err(format!("the server's changes are based on version {base}, but the proxy has {asked}"));
    }
    let announced = Announced::of(head, true)?;
    match announced.etag {
        Some(_) => Ok(announced),
        None => Err("the server answered 226 without an ETag".to_owned()),
    }
}

impl Announced {
    fn of(head: &Parts, is_delta: bool) -> Result<Announced, String> {
        let format = format(&head.headers)?;
        let etag = head.headers.get(header::ETAG).cloned();
        if let Some(wrong) = etag.as_ref().filter(|etag| !is_etag(etag.as_bytes())) {
            return Err(format!("the server's ETag `{}` is invalid; an ETag is text in double quotes", shown(wrong)));
        }
        if let Some(encoding) = text(&head.headers, header::CONTENT_ENCODING).filter(|encoding| encoding != "identity")
        {
            return Err(format!("the server's document is encoded (`Content-Encoding: {encoding}`)"));
        }
        Ok(Announced { format, etag, is_delta })
    }

    /// The limit on the document, in bytes.
    fn limit(&self) -> u64 {
        if self.is_delta { MAX_DELTA } else { MAX_FULL }
    }

    fn too_large(&self) -> String {
        let kind = if self.is_delta { "delta" } else { "full state" };
        format!("the server's document is too large: at most {} MiB are allowed for a {kind}", self.limit() >> 20)
    }

    /// Reads the document within this time.
    pub async fn read(&self, body: Body, time: Duration) -> Result<Bytes, Failure> {
        let failed = |text| Failure { ask_for_all: self.is_delta, ..Failure::new(text) };
        match body.read(self.limit(), time).await {
            Ok(document) if document.is_empty() => Err(failed("the server's document is empty".to_owned())),
            Ok(document) => Ok(document),
            Err(BodyError::TooLarge(_)) => Err(failed(self.too_large())),
            Err(error @ BodyError::NoLength) => Err(failed(error.to_string())),
            // The connection failed, not the delta.
            Err(error) => Err(Failure::new(error.to_string())),
        }
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    headers.get(name).map(|value| shown(value).trim().to_owned())
}

fn shown(value: &HeaderValue) -> Cow<'_, str> {
    String::from_utf8_lossy(value.as_bytes())
}

/// `"abc"` or `W/"abc"` (RFC 9110, section 8.8.3).
fn is_etag(text: &[u8]) -> bool {
    let quoted = text.strip_prefix(b"W/").unwrap_or(text);
    let inside = quoted.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
    inside.is_some_and(|inside| !inside.contains(&b'"') && !inside.contains(&b' '))
}

fn format(headers: &HeaderMap) -> Result<Format, String> {
    let Some(given) = text(headers, header::CONTENT_TYPE) else {
        return Err("the server's answer has no Content-Type".to_owned());
    };
    let essence = given.split(';').next().unwrap_or_default().trim();
    let is = |names: &[&str]| names.iter().any(|name| essence.eq_ignore_ascii_case(name));
    if is(&["application/json"]) {
        Ok(Format::Json)
    } else if is(&["application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml"]) {
        // RFC 9512, with its deprecated aliases.
        Ok(Format::Yaml)
    } else {
        Err(format!("the server's answer is `{given}`, neither application/json nor application/yaml"))
    }
}
