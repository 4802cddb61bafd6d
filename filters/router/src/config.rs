//! The configuration as written. The types here only define its form; `table`, `matcher` and `action` interpret it
//! once, when the filter is configured.
//!
//! Durations are strings with a unit (`us`, `ms`, `s`, `m`, `h`), such as `250ms`. They are parsed late, so that an
//! invalid one is reported together with all other errors.
//!
//! Lists that can be long are boxed slices: a `Vec` has room for four items at least. The parts of a [`Rule`] that few
//! routes have are boxed, because there can be thousands of routes at once before they are compiled.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Deserializer, de};
use tollgate_sdk::doc::{MetadataValue, ResetFormat, ResetHeader, RetryOn};

/// The filter's configuration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Sets of routes, each for some hosts. At least one. A request for a host that none of them covers gets 404.
    pub virtual_hosts: Option<Box<[VirtualHost]>>,
    /// Routes for all hosts, instead of `virtual_hosts`: the same as one virtual host for `*`.
    pub routes: Option<Box<[Rule]>>,
}

/// The routes of some hosts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VirtualHost {
    /// Its name, the first half of its routes' names in logs and metrics. Unique. Default: its first domain.
    pub name: Option<String>,
    /// The hosts that it covers: `example.com`, `*.example.com` (any host that ends with `.example.com`, not
    /// `example.com` itself) or `*` (any). The most specific wins: an exact one, then the longest with `*.`, then `*`.
    /// Case-insensitive. A port matters only if it is given: `example.com:8080` is preferred over `example.com` for
    /// requests with that port. At least one; each only once in the whole configuration.
    pub domains: Box<[String]>,
    /// The routes: the first match is used. A request that matches none gets 404. Default: none.
    #[serde(default)]
    pub routes: Box<[Rule]>,
}

impl VirtualHost {
    /// Its name, or the default.
    pub(crate) fn name(&self) -> &str {
        self.name.as_deref().or(self.domains.first().map(String::as_str)).unwrap_or_default()
    }
}

/// A route: its match conditions, one action (`cluster`, `split`, `redirect` or `respond`) and options for it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Its name, which follows the virtual host's and a `/` in logs and metrics. Default: its number, from 0.
    pub name: Option<String>,
    /// The requests that it applies to. Default: all.
    #[serde(default, rename = "match")]
    pub matches: Match,

    /// Action: forward the request to this cluster.
    pub cluster: Option<String>,
    /// Action: forward the request to one of several clusters.
    pub split: Option<Box<Split>>,
    /// Action: redirect the client.
    pub redirect: Option<Box<Redirect>>,
    /// Action: respond directly.
    pub respond: Option<Box<Respond>>,

    /// Replaces the matched prefix (or the whole path, with `match.path.exact`). The query is kept. With
    /// `match.path.prefix`, a trailing `/` of either does not matter: `/api` replaced by `/` turns `/api/users` into
    /// `/users`. Only with `cluster` and `split`.
    pub prefix_rewrite: Option<String>,
    /// Replaces parts of the path. The query is kept. Only with `cluster` and `split`.
    pub regex_rewrite: Option<Box<RegexRewrite>>,
    /// Replaces the request's host. Only with `cluster` and `split`.
    pub host_rewrite: Option<String>,
    /// Changes to the request's headers. Only with `cluster` and `split`.
    pub request_headers: Option<Box<HeaderOps>>,
    /// Changes to the response's headers: the upstream's, a redirect's or a direct response's. Not applied to responses
    /// that the proxy generates because the upstream failed.
    pub response_headers: Option<Box<HeaderOps>>,
    /// Timeout for the whole exchange, from the request's last byte to the response's last, instead of the cluster's
    /// `request_timeout` and `response_head_timeout`; `0s`: unlimited. Default: the cluster's. Only with `cluster` and
    /// `split`.
    pub timeout: Option<String>,
    /// Ends the exchange after this time without a byte in either direction; `0s`: unlimited. Default: the listener's.
    /// Only with `cluster` and `split`.
    pub idle_timeout: Option<String>,
    /// When a request is retried. Default: the cluster's. Only with `cluster` and `split`.
    pub retry: Option<Box<Retry>>,
    /// A second attempt at another endpoint for requests whose response is late. Default: the cluster's. Only with `cluster`
    /// and `split`.
    pub hedging: Option<Box<Hedging>>,
    /// Sends a copy of requests to another cluster and discards its responses. Only with `cluster` and `split`.
    pub mirror: Option<Box<Mirror>>,
    /// The part of a request that selects the cluster's endpoint if its balancer places keys, or several: the first that
    /// the request has. Random if it has none. Default: random. Only with `cluster` and `split`.
    #[serde(default)]
    pub hash_key: HashKeys,
    /// The metadata of the endpoints that the requests may go to, if the cluster has `subsets` by these names. Default: any.
    /// Only with `cluster` and `split`.
    #[serde(default)]
    pub metadata_match: BTreeMap<String, MetadataValue>,
    /// Filters that process the requests with another configuration, by name: one of the filter's `variants`, or `off`
    /// to skip the filter. Applies to filters behind this one in the chain. Default: none. Only with `cluster` and
    /// `split`.
    #[serde(default)]
    pub filters: BTreeMap<String, String>,
}

/// The requests that a route applies to: those that meet all of these conditions.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Match {
    /// The path, without the query. Default: any.
    pub path: Option<PathMatch>,
    /// One method or a list of methods, such as `[GET, HEAD]`. Default: any.
    #[serde(default, alias = "method", deserialize_with = "one_or_many")]
    pub methods: Option<Vec<String>>,
    /// Conditions on headers. Default: none.
    #[serde(default)]
    pub headers: Vec<HeaderMatch>,
    /// Conditions on query parameters. Default: none.
    #[serde(default)]
    pub query: Vec<QueryMatch>,
}

/// A condition on the path: one of these. Case-sensitive; the path is compared without percent-decoding.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathMatch {
    /// The whole path, such as `/login`.
    pub exact: Option<String>,
    /// Whole segments at its beginning: `/api` and `/api/` both match `/api`, `/api/` and `/api/users`, but not
    /// `/apis`.
    pub prefix: Option<String>,
    /// A regular expression (the syntax of Rust's `regex` crate, on bytes: `\d`, `\w` and `(?i)` mean ASCII) that matches
    /// the whole path.
    pub regex: Option<String>,
}

/// A condition on a header: its name and at most one of `exact`, `prefix`, `suffix`, `regex` and `present`; the name
/// alone means `present: true`. Several fields of one name are one value, joined by `, `. Values are case-sensitive.
///
/// A missing header meets only `present: false` and any condition negated by `invert` (unlike in Envoy, where a missing
/// header never meets an inverted condition on its value).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderMatch {
    /// The header's name, in any case. `:method`, `:path` (with the query), `:authority` and `:scheme` are also
    /// supported.
    pub name: String,
    /// The whole value.
    pub exact: Option<String>,
    /// The beginning of the value.
    pub prefix: Option<String>,
    /// The end of the value.
    pub suffix: Option<String>,
    /// A regular expression that matches the whole value.
    pub regex: Option<String>,
    /// Whether the header must be present (`true`), with any value, or absent (`false`).
    pub present: Option<bool>,
    /// Negates the condition. Default: false.
    #[serde(default)]
    pub invert: bool,
}

/// A condition on the first query parameter of this name: at most one of `exact`, `prefix`, `regex` and `present`; the
/// name alone means `present: true`. Names and values are compared without percent-decoding; a parameter without `=`
/// has an empty value. Missing parameters are treated like missing headers.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueryMatch {
    /// The parameter's name.
    pub name: String,
    /// The whole value.
    pub exact: Option<String>,
    /// The beginning of the value.
    pub prefix: Option<String>,
    /// A regular expression that matches the whole value.
    pub regex: Option<String>,
    /// Whether the parameter must be present (`true`), with any value, or absent (`false`).
    pub present: Option<bool>,
    /// Negates the condition. Default: false.
    #[serde(default)]
    pub invert: bool,
}

/// Several clusters that share a route's requests.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// The clusters. At least one with a weight above 0.
    pub clusters: Vec<WeightedCluster>,
    /// Requests with the same value go to the same cluster as long as clusters and weights stay the same; for requests
    /// without the value the choice is random. Default: random for all.
    #[serde(default)]
    pub sticky: HashKeys,
}

/// One of the clusters of a split.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightedCluster {
    /// Its name.
    pub cluster: String,
    /// Its share, relative to the other weights. 0: no requests. Default: 1.
    #[serde(default = "one")]
    pub weight: u32,
    /// The metadata of the endpoints that the requests may go to, in addition to the route's. Default: any.
    #[serde(default)]
    pub metadata_match: BTreeMap<String, MetadataValue>,
}

/// Parts of the request, of which the first that the request has counts: a [`HashKey`] or a list.
#[derive(Debug, Default)]
pub struct HashKeys {
    /// The parts.
    pub keys: Box<[HashKey]>,
    /// Whether they are written as a list.
    pub is_list: bool,
}

/// A part of the request: one of these. An empty value counts as missing.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HashKey {
    /// The value of this header.
    pub header: Option<String>,
    /// The value of this cookie.
    pub cookie: Option<Cookie>,
    /// The value of this parameter of the query, as written.
    pub query: Option<String>,
    /// `true`: the client's address, without the port.
    pub source: Option<bool>,
    /// `true`: the path, without the query.
    pub path: Option<bool>,
}

/// A cookie: a name, or a section.
#[derive(Debug)]
pub struct Cookie {
    /// Its name.
    pub name: String,
    /// How the response sets the cookie if the request lacks it. Default: it does not.
    pub issue: Option<IssuedCookie>,
}

/// A cookie that is set.
#[derive(Debug)]
pub struct IssuedCookie {
    /// The time after which the client drops it (`Max-Age`). `0s`: at the end of its session.
    pub ttl: String,
    /// The paths for which the client sends it. Default: `/`.
    pub path: Option<String>,
    /// `strict`, `lax` or `none` (the attribute `SameSite`). Default: not given, which most clients read as `lax`.
    pub same_site: Option<String>,
    /// Whether clients send it over TLS only. Default: false.
    pub secure: bool,
}

/// The redirect target. Parts that are not given are taken from the request. The `location` is always absolute.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redirect {
    /// `http` or `https`. If given, the request's port is dropped; set `port` unless it is the scheme's default.
    pub scheme: Option<String>,
    /// The host, without a port. If given, the request's port is dropped.
    pub host: Option<String>,
    /// The port. 1 to 65535.
    pub port: Option<u16>,
    /// The whole path. If it has a query, that replaces the request's. Not with `prefix_rewrite`.
    pub path: Option<String>,
    /// Replaces the matched prefix or whole path, like the route's `prefix_rewrite`.
    pub prefix_rewrite: Option<String>,
    /// 301, 302, 303, 307 or 308. Default: 301.
    #[serde(default = "moved_permanently")]
    pub status: u16,
    /// Drops the query. Default: false.
    #[serde(default)]
    pub strip_query: bool,
}

/// A response generated by the proxy.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Respond {
    /// The status. 200 to 599.
    pub status: u16,
    /// The body. Default: none. Without a `content-type` in `headers` it is `text/plain; charset=utf-8`.
    #[serde(default)]
    pub body: String,
    /// Headers. Default: none.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}

/// Replaces parts of a path.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegexRewrite {
    /// A regular expression. All of its matches in the path are replaced.
    pub pattern: String,
    /// The replacement: `\1` to `\9` for the expression's groups, `\0` for the whole match, `\\` for a backslash.
    pub substitution: String,
}

/// Changes to headers: removed first, then set, then added.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderOps {
    /// Headers to set to exactly this value. Default: none.
    #[serde(default)]
    pub set: BTreeMap<String, String>,
    /// Header fields to add to the existing ones. Default: none.
    #[serde(default)]
    pub add: BTreeMap<String, String>,
    /// Headers to remove. Default: none.
    #[serde(default)]
    pub remove: Vec<String>,
}

/// When and how often a failed request is retried.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// The conditions for a retry: `connect_failure`, `reset`, `5xx`, `gateway_error`, `retriable_4xx`, `rate_limited`,
    /// and those of gRPC. Default: `[connect_failure, reset]`.
    #[serde(default = "retry_on")]
    pub on: Vec<RetryOn>,
    /// Statuses that are retried in addition to those of `on`. 200 to 599. Default: none.
    #[serde(default)]
    pub retriable_status_codes: Vec<u16>,
    /// Conditions on the response's headers: a response that meets one of them is retried. Default: none.
    #[serde(default)]
    pub retriable_headers: Vec<HeaderMatch>,
    /// Conditions on the request's headers: only requests that meet one of them are retried. Default: all.
    #[serde(default)]
    pub retriable_request_headers: Vec<HeaderMatch>,
    /// Maximum number of retries, not counting the first attempt. 1 to 10. Default: 1.
    #[serde(default = "one")]
    pub attempts: u32,
    /// Timeout of each attempt, including the first; `0s`: unlimited. Default: only the route's.
    pub per_try_timeout: Option<String>,
    /// Time without a byte in either direction after which an attempt that has no response yet ends; `0s`: unlimited.
    /// Default: only the stream's idle timeout.
    pub per_try_idle_timeout: Option<String>,
    /// Maximum delay before the first retry; it doubles with each retry. Default: `25ms`.
    pub backoff: Option<String>,
    /// Maximum delay before any retry. Default: ten times `backoff`.
    pub max_backoff: Option<String>,
    /// Delays before retries that the upstream's responses request, instead of `backoff`.
    pub rate_limited_backoff: Option<RateLimitedBackoff>,
}

/// Delays before retries that the upstream's responses request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimitedBackoff {
    /// The response headers that hold the delay, in order of precedence. Default: `[{name: retry-after}]`.
    #[serde(default = "retry_after")]
    pub reset_headers: Vec<ResetHeader>,
    /// The longest delay; longer ones are ignored. Default: `300s`.
    pub max: Option<String>,
}

/// When a request whose response is late is also sent to another endpoint.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hedging {
    /// How long a request that was sent waits for its response before the second attempt. Default: the time within which
    /// 95 % of the cluster's responses of the last minute began.
    pub delay: Option<String>,
    /// The methods of requests that may be sent twice. Default: idempotent ones. An empty list disables hedging.
    pub methods: Option<Vec<String>>,
}

/// Where a copy of some requests is sent.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// The cluster's name.
    pub cluster: String,
    /// The share of requests in percent: 0 to 100, in steps of 0.0001. Default: 100.
    #[serde(default = "hundred")]
    pub percent: f64,
}

fn one() -> u32 {
    1
}

fn hundred() -> f64 {
    100.0
}

fn moved_permanently() -> u16 {
    301
}

fn retry_on() -> Vec<RetryOn> {
    vec![RetryOn::ConnectFailure, RetryOn::Reset]
}

fn retry_after() -> Vec<ResetHeader> {
    vec![ResetHeader { name: "retry-after".into(), format: ResetFormat::Seconds }]
}

/// A list, or a single string instead of one.
fn one_or_many<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a method or a list of methods")]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(Some(match OneOrMany::deserialize(d)? {
        OneOrMany::One(one) => vec![one],
        OneOrMany::Many(many) => many,
    }))
}

// Untagged enums would lose the place and the reason of an error inside.
impl<'de> Deserialize<'de> for HashKeys {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> de::Visitor<'de> for OneOrMany {
            type Value = HashKeys;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a part of the request, such as `{header: NAME}`, or a list of them")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<HashKeys, A::Error> {
                let key = HashKey::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(HashKeys { keys: Box::new([key]), is_list: false })
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, list: A) -> Result<HashKeys, A::Error> {
                let keys = Deserialize::deserialize(de::value::SeqAccessDeserializer::new(list))?;
                Ok(HashKeys { keys, is_list: true })
            }
        }
        d.deserialize_any(OneOrMany)
    }
}

impl<'de> Deserialize<'de> for Cookie {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Section {
            name: String,
            ttl: String,
            path: Option<String>,
            same_site: Option<String>,
            #[serde(default)]
            secure: bool,
        }

        struct Either;
        impl<'de> de::Visitor<'de> for Either {
            type Value = Cookie;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a cookie's name, or `{name: NAME, ttl: TIME}`")
            }
            fn visit_str<E>(self, name: &str) -> Result<Cookie, E> {
                Ok(Cookie { name: name.into(), issue: None })
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Cookie, A::Error> {
                let section = Section::deserialize(de::value::MapAccessDeserializer::new(map))?;
                let Section { name, ttl, path, same_site, secure } = section;
                Ok(Cookie { name, issue: Some(IssuedCookie { ttl, path, same_site, secure }) })
            }
        }
        d.deserialize_any(Either)
    }
}
