//! The filter's configuration.

use std::fmt;

use serde::{Deserialize, Deserializer, de};
use tollgate_sdk::{matching::RequestMatch, units::Duration};

/// The filter's configuration: a request needs a token from every limit that it matches.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The limits, checked in this order until one has no token left. Tokens taken from the earlier ones are then
    /// returned.
    pub limits: Vec<LimitConfig>,
    /// Limits no requests; only counts and logs those that would be limited. Default: `false`.
    #[serde(default)]
    pub dry_run: bool,
    /// The status of the response to a limited request: 400 to 599. Default: 429.
    #[serde(default = "too_many_requests")]
    pub status: u16,
    /// Whether responses report the limits. Default: `draft`.
    #[serde(default)]
    pub headers: Headers,
}

fn too_many_requests() -> u16 {
    429
}

/// Whether responses report the limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Headers {
    /// In `RateLimit-Policy` and `RateLimit`, as in draft-ietf-httpapi-ratelimit-headers-11, each with a member for
    /// every limit that was checked (and is not in `dry_run`): `"NAME";q=100;w=60` and `"NAME";r=99;t=60`.
    ///
    /// `q` and `w` are `requests` and `per`, scaled to whole seconds. `r` is the number of tokens left. `t` is the time
    /// in seconds until there are `burst` again or, if longer, the time in which `r` tokens are added: a client that
    /// spreads its requests over `t` stays within the limit.
    #[default]
    Draft,
    /// Not reported. A limited request's response still has `Retry-After`.
    Off,
}

/// A limit: a token bucket, one per key. It holds up to `burst` tokens, starts full, and gains `requests` tokens per
/// `per`, spread evenly. A request takes one.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitConfig {
    /// Its name, shown to clients and in the access log: 1 to 64 visible ASCII characters. Unique. After a reload, a
    /// limit with the same name and parameters keeps its tokens.
    pub name: String,
    /// The requests that it applies to. Default: all.
    #[serde(default)]
    pub r#match: RequestMatch,
    /// The parts of the key: requests for which all of them are the same share a bucket. Default: one bucket for all
    /// requests.
    #[serde(default)]
    pub key: Vec<KeyPart>,
    /// Number of requests allowed per `per` in the long run. 1 to 2^31-1.
    pub requests: u32,
    /// The interval: 1ms to a year, in whole milliseconds.
    pub per: Duration,
    /// Maximum number of requests allowed in a burst. 1 to 2^31-1. Default: `requests`.
    #[serde(default)]
    pub burst: Option<u32>,
    /// Maximum number of keys tracked at a time; beyond it, the key nearest to a full bucket is evicted, and its next
    /// requests are allowed. At least 1. Default: 1000000.
    #[serde(default)]
    pub max_keys: Option<u32>,
    /// How requests that lack one of the key's headers or cookies are handled. Default: `skip`.
    #[serde(default)]
    pub on_missing_key: OnMissingKey,
    /// The number of leading bits of IPv6 addresses that identify a source: a host has a whole /64, and would otherwise
    /// have 2^64 keys. 1 to 128. Default: 64.
    #[serde(default)]
    pub ipv6_prefix: Option<u8>,
    /// Limits no requests; only counts and logs those that would be limited. Default: `false`.
    #[serde(default)]
    pub dry_run: bool,
}

/// A part of a key.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyPart {
    /// An address: `true` or `peer` for the connection's peer, `client` for the client, as far as the listener's
    /// `trusted_hops` allow trusting `X-Forwarded-For`.
    Source(Whose),
    /// The value of this header. Requests with several fields of this name share a bucket, so that a second field gains
    /// nothing.
    Header(String),
    /// The value of this cookie. Requests with several of this name share a bucket.
    Cookie(String),
    /// `true`: the path without its query.
    Path(bool),
    /// A constant text, which keeps these requests apart from those of another limit.
    Constant(String),
}

/// The address to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// `true` or `peer`.
    Peer,
    /// `client`.
    Client,
}

/// How requests that lack one of the key's headers or cookies are handled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnMissingKey {
    /// The limit does not apply to them, as in Envoy.
    #[default]
    Skip,
    /// They share a bucket with other requests that lack the same part.
    Shared,
}

impl<'de> Deserialize<'de> for Whose {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Either;
        impl de::Visitor<'_> for Either {
            type Value = Whose;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`true`, `peer` or `client`")
            }
            fn visit_bool<E: de::Error>(self, peer: bool) -> Result<Whose, E> {
                if peer { Ok(Whose::Peer) } else { Err(E::invalid_value(de::Unexpected::Bool(peer), &self)) }
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Whose, E> {
                match text {
                    "peer" => Ok(Whose::Peer),
                    "client" => Ok(Whose::Client),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }
        d.deserialize_any(Either)
    }
}
