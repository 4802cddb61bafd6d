//! The configuration as it is written.

use std::fmt;

use serde::{Deserialize, Deserializer, de};
use tollgate_sdk::{matching::RequestMatch, units::Duration};

/// The filter's configuration: a request needs a token of every limit that is for it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The limits, asked in this order until one has no token left. What the others have given is then given back.
    pub limits: Vec<LimitConfig>,
    /// Nothing is limited; what would be is counted and logged. Default: `false`.
    #[serde(default)]
    pub dry_run: bool,
    /// The status of the response to a request that is limited: 400 to 599. Default: 429.
    #[serde(default = "too_many_requests")]
    pub status: u16,
    /// Whether responses tell of the limits. Default: `draft`.
    #[serde(default)]
    pub headers: Headers,
}

fn too_many_requests() -> u16 {
    429
}

/// Whether responses tell of the limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Headers {
    /// By `RateLimit-Policy` and `RateLimit`, as in draft-ietf-httpapi-ratelimit-headers-11, each with a member for every
    /// limit that was asked (and is not in `dry_run`): `"NAME";q=100;w=60` and `"NAME";r=99;t=60`.
    ///
    /// `q` and `w` are `requests` and `per`, brought to whole seconds. `r` is how many tokens are left. `t` is the time in
    /// seconds until there are `burst` again, or that in which `r` tokens are gained if that is longer: a client that spreads
    /// its requests over `t` stays within the limit.
    #[default]
    Draft,
    /// They do not. A limited request's response has `Retry-After` all the same.
    Off,
}

/// A limit: a bucket of tokens, one for each key. It holds `burst` tokens, starts full, and gains `requests` tokens in each
/// `per`, evenly spread. A request takes one.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitConfig {
    /// Its name, told to clients and the access log: 1 to 64 visible ASCII characters. Unique. After a change of the
    /// configuration, a limit with the same name and figures keeps its tokens.
    pub name: String,
    /// Which requests it is for. Default: all.
    #[serde(default)]
    pub r#match: RequestMatch,
    /// Whose requests are counted together: those for which all these parts are the same. Default: all requests.
    #[serde(default)]
    pub key: Vec<KeyPart>,
    /// How many requests are let through in each `per`, in the long run. 1 to 2^31-1.
    pub requests: u32,
    /// The interval: 1ms to a year, in whole milliseconds.
    pub per: Duration,
    /// How many requests are let through at once after a quiet time. 1 to 2^31-1. Default: `requests`.
    #[serde(default)]
    pub burst: Option<u32>,
    /// How many keys are remembered at one time; beyond that, the key that needs it least is forgotten, and so let through.
    /// At least 1. Default: 1000000.
    #[serde(default)]
    pub max_keys: Option<u32>,
    /// What becomes of requests without one of the key's headers or cookies. Default: `skip`.
    #[serde(default)]
    pub on_missing_key: OnMissingKey,
    /// Requests from IPv6 addresses with the same first so many bits count as from one source: a host has a /64 for itself,
    /// and would otherwise have 2^64 keys. 1 to 128. Default: 64.
    #[serde(default)]
    pub ipv6_prefix: Option<u8>,
    /// The limit stops nothing; what it would is counted and logged. Default: `false`.
    #[serde(default)]
    pub dry_run: bool,
}

/// A part of a key.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyPart {
    /// An address: `true` or `peer` for that of the connection's other end, `client` for the client's, as far as the
    /// listener's `trusted_hops` let `X-Forwarded-For` be believed.
    Source(Whose),
    /// The value of this header. Requests with several fields of this name share a bucket, so that a second one buys nothing.
    Header(String),
    /// The value of this cookie. Requests with several of this name share a bucket.
    Cookie(String),
    /// `true`: the path without its query.
    Path(bool),
    /// This text, to count requests apart from those of another limit's kind.
    Constant(String),
}

/// Whose address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// `true` or `peer`.
    Peer,
    /// `client`.
    Client,
}

/// What becomes of requests without one of the key's headers or cookies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnMissingKey {
    /// The limit is not for them, as in Envoy.
    #[default]
    Skip,
    /// They share a bucket with the others that lack the same.
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
