//! Changes the bodies of responses: redacts fields of JSON, and replaces words in text.
//!
//! A body that cannot be changed must not be let through as it is: if it is too long, encoded, or no JSON though it says so,
//! the client gets 502 (or, if the head has been sent, a response that is cut off).

mod json;

use serde::Deserialize;
use tollgate_sdk::prelude::*;

/// What stands under `config:` in the proxy's file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Fields of JSON, wherever they are: their values become `"***"`. Default: none.
    #[serde(default)]
    redact: Vec<String>,
    /// Replaced in text (`text/*`). Default: nothing.
    #[serde(default)]
    replace: Vec<Replace>,
    /// Bytes of a body, at most. The proxy's `limits.buffered_body` must not be less. Default: 65536.
    #[serde(default = "max_bytes")]
    max_bytes: usize,
}

fn max_bytes() -> usize {
    65_536
}

/// A piece of text and what is put in its place.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replace {
    find: String,
    with: String,
}

/// The filter.
pub struct BodyTransform {
    config: Config,
    /// What of a request would have its response come in a form that cannot be changed.
    unwanted: [Name; 2],
    content: [Name; 2],
    /// What is no longer true of a changed body.
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
                mistakes.add(format!("replace[{i}].find"), "nothing is everywhere: say what is to be found");
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
        // Before the body is awaited: then the head goes on.
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

/// All places of `find`, from left to right, which is not empty.
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
