//! Changes the bodies of responses: redacts JSON fields and replaces words in text.
//!
//! A body that cannot be changed must not pass unchanged: if it is too long, encoded, or declared as JSON but invalid,
//! the client gets 502 (or a truncated response if the headers were already sent).

mod json;

use serde::Deserialize;
use tollgate_sdk::prelude::*;

/// The `config:` block of the filter.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Names of JSON fields, at any depth, whose values become `"***"`. Default: none.
    #[serde(default)]
    redact: Vec<String>,
    /// Replacements in text (`text/*`). Default: none.
    #[serde(default)]
    replace: Vec<Replace>,
    /// Maximum length of a body, in bytes. The proxy's `limits.buffered_body` must be at least as large. Default:
    /// 65536.
    #[serde(default = "max_bytes")]
    max_bytes: usize,
}

fn max_bytes() -> usize {
    65_536
}

/// A text and its replacement.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replace {
    find: String,
    with: String,
}

/// The filter.
pub struct BodyTransform {
    config: Config,
    /// Request headers that would produce a response that cannot be changed.
    unwanted: [Name; 2],
    content: [Name; 2],
    /// Response headers that are wrong for a changed body.
    stale: [Name; 4],
}

enum Kind {
    Json,
    Text,
    Other,
}

impl AsyncFilter for BodyTransform {
    type Config = Config;
    type Stream = ();
    const PHASES: Phases = Phases::REQUEST_HEADERS.and(Phases::RESPONSE_BODY);

    fn configure(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let mistakes = Mistakes::default();
        for (i, replace) in config.replace.iter().enumerate() {
            if replace.find.is_empty() {
                mistakes.add(format!("replace[{i}].find"), "must not be empty: it would match everywhere");
            }
        }
        mistakes.finish()?;
        Ok(BodyTransform {
            config,
            unwanted: ["accept-encoding", "range"].map(|name| setup.name(name)),
            content: ["content-type", "content-encoding"].map(|name| setup.name(name)),
            stale: ["etag", "digest", "content-md5", "accept-ranges"].map(|name| setup.name(name)),
        })
    }

    async fn on_request(&self, request: &mut Incoming<Request>, _: &()) -> Result<(), Reply> {
        self.unwanted.iter().for_each(|name| request.remove_header(*name));
        Ok(())
    }

    async fn on_response(&self, response: &mut Incoming<Response>, _: &()) -> Result<(), Reply> {
        let kind = self.kind(response)?;
        if matches!(kind, Kind::Other) || response.has_no_body() {
            return Ok(());
        }
        // Before the body is awaited, because then the headers continue.
        self.stale.iter().for_each(|name| response.remove_header(*name));
        let body = response.body(self.config.max_bytes).await.map_err(|_| refused("body_too_large"))?;
        let changed = match kind {
            Kind::Json => json::redact(&body, &self.config.redact).ok_or_else(|| refused("invalid_json"))?,
            _ => self.config.replace.iter().fold(body, |text, r| replace(&text, r.find.as_bytes(), r.with.as_bytes())),
        };
        response.replace_body(&changed)?;
        Ok(())
    }
}

impl BodyTransform {
    fn kind(&self, response: &Response) -> Result<Kind, Reply> {
        let mut buffer = Buffer::new();
        let [media_type, encoding] = response.headers(self.content, &mut buffer);
        let media_type = media_type.unwrap_or_default().to_ascii_lowercase();
        let media_type = media_type.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
        let kind = match media_type {
            t if t == b"application/json" || t.ends_with(b"+json") => Kind::Json,
            t if t.starts_with(b"text/") => Kind::Text,
            _ => Kind::Other,
        };
        let wanted = match kind {
            Kind::Json => !self.config.redact.is_empty(),
            Kind::Text => !self.config.replace.is_empty(),
            Kind::Other => false,
        };
        match encoding {
            _ if !wanted => Ok(Kind::Other),
            None | Some(b"" | b"identity") => Ok(kind),
            Some(_) => Err(refused("encoded_body")),
        }
    }
}

fn refused(details: &str) -> Reply {
    Reply::new(502).details(details)
}

/// Replaces all occurrences of `find`, which is not empty, from left to right.
fn replace(text: &[u8], find: &[u8], with: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        if let Some(after) = rest.strip_prefix(find) {
            out.extend(with);
            rest = after;
        } else {
            out.push(*first);
            rest = after;
        }
    }
    out
}

tollgate_sdk::export!(BodyTransform);
