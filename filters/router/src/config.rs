//! The configuration as people write it. Types here only say what may be written; what it means is decided once, when the
//! filter is configured, by `table`, `matcher` and `action`.
//!
//! Times are strings with a unit (`us`, `ms`, `s`, `m`, `h`), such as `250ms`. They are read late, so that a wrong one is
//! reported together with all other mistakes.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use tollgate_sdk::doc::RetryOn;

/// The configuration of the filter.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Sets of routes, each for some hosts. At least one. A request of a host that none of them is for gets 404.
    pub virtual_hosts: Option<Vec<VirtualHost>>,
    /// Routes for all hosts, in place of `virtual_hosts`: the same as one virtual host for `*`.
    pub routes: Option<Vec<Rule>>,
}

/// The routes of some hosts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VirtualHost {
    /// Its name, the first half of its routes' names in logs and metrics. Unique. Default: its first domain.
    pub name: Option<String>,
    /// Which hosts it is for: `example.com`, `*.example.com` (any host that ends with `.example.com`, not `example.com`
    /// itself) or `*` (any). The most specific wins: an exact one, then the longest with `*.`, then `*`. Case does not
    /// matter. A port counts only if it is written: `example.com:8080` is preferred over `example.com` for requests with
    /// that port. At least one; each only once in the whole configuration.
    pub domains: Vec<String>,
    /// The routes: the first one that matches is taken. A request that none matches gets 404. Default: none.
    #[serde(default)]
    pub routes: Vec<Rule>,
}

impl VirtualHost {
    /// Its name, or what stands for it.
    pub(crate) fn name(&self) -> &str {
        self.name.as_deref().or(self.domains.first().map(String::as_str)).unwrap_or_default()
    }
}

/// A route: what it matches, one action (`cluster`, `split`, `redirect` or `respond`) and options for it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Its name, which comes after the virtual host's and a `/` in logs and metrics. Default: its number, from 0.
    pub name: Option<String>,
    /// Which requests it is for. Default: all.
    #[serde(default, rename = "match")]
    pub matches: Match,

    /// Action: send the request to this cluster.
    pub cluster: Option<String>,
    /// Action: send the request to one of several clusters.
    pub split: Option<Split>,
    /// Action: send the client elsewhere.
    pub redirect: Option<Redirect>,
    /// Action: answer.
    pub respond: Option<Respond>,

    /// Replaces the prefix (or the whole path, with `match.path.exact`) that has matched. The query stays. With
    /// `match.path.prefix`, a `/` at the end of either does not matter: `/api` replaced by `/` turns `/api/users` into
    /// `/users`. Only with `cluster` and `split`.
    pub prefix_rewrite: Option<String>,
    /// Replaces parts of the path. The query stays. Only with `cluster` and `split`.
    pub regex_rewrite: Option<RegexRewrite>,
    /// Replaces the request's host. Only with `cluster` and `split`.
    pub host_rewrite: Option<String>,
    /// Changes to the request's headers. Only with `cluster` and `split`.
    pub request_headers: Option<HeaderOps>,
    /// Changes to the response's headers: the upstream's, a redirect's or a direct response's. Not those of responses that
    /// the proxy makes because the upstream fails.
    pub response_headers: Option<HeaderOps>,
    /// Time for the whole exchange, from the request's last byte to the response's last, in place of the cluster's
    /// `request_timeout` and `response_head_timeout`; `0s`: unlimited. Default: the cluster's. Only with `cluster` and `split`.
    pub timeout: Option<String>,
    /// Ends the exchange when no byte has passed for this time; `0s`: unlimited. Default: the listener's. Only with
    /// `cluster` and `split`.
    pub idle_timeout: Option<String>,
    /// When a request is tried again. Default: the cluster's. Only with `cluster` and `split`.
    pub retry: Option<Retry>,
    /// Sends a copy of requests to another cluster and throws its responses away. Only with `cluster` and `split`.
    pub mirror: Option<Mirror>,
    /// What chooses among the cluster's endpoints if its balancer is `hash`; chance, if the request does not have it.
    /// Default: chance. Only with `cluster` and `split`.
    pub hash_key: Option<HashKey>,
}

/// Which requests a route is for: those that meet all of these conditions.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Match {
    /// The path, without the query. Default: any.
    pub path: Option<PathMatch>,
    /// One method or a list of them, such as `[GET, HEAD]`. Default: any.
    #[serde(default, alias = "method", deserialize_with = "one_or_many")]
    pub methods: Option<Vec<String>>,
    /// Conditions on headers. Default: none.
    #[serde(default)]
    pub headers: Vec<HeaderMatch>,
    /// Conditions on parameters of the query. Default: none.
    #[serde(default)]
    pub query: Vec<QueryMatch>,
}

/// A condition on the path: one of these. Case matters, and the path is taken as it stands, without percent-decoding.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathMatch {
    /// The whole path, such as `/login`.
    pub exact: Option<String>,
    /// Whole segments at its beginning: `/api` and `/api/` both match `/api`, `/api/` and `/api/users`, but not `/apis`.
    pub prefix: Option<String>,
    /// A regular expression (the syntax of Rust's `regex` crate, on bytes: `\d`, `\w` and `(?i)` mean ASCII) that matches
    /// the whole path.
    pub regex: Option<String>,
}

/// A condition on a header: its name and at most one of `exact`, `prefix`, `suffix`, `regex` and `present`; the name alone
/// is `present: true`. Several fields of one name are one value, joined by `, `. Case matters in values.
///
/// A header that is missing meets only `present: false` and any condition that `invert` turns round (which is where this
/// differs from Envoy: there a missing header never meets an inverted condition on its value).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderMatch {
    /// The header's name, in any case. `:method`, `:path` (with the query), `:authority` and `:scheme` are headers too.
    pub name: String,
    /// The whole value.
    pub exact: Option<String>,
    /// The beginning of the value.
    pub prefix: Option<String>,
    /// The end of the value.
    pub suffix: Option<String>,
    /// A regular expression that matches the whole value.
    pub regex: Option<String>,
    /// Whether the header must be there (`true`), with any value, or must not (`false`).
    pub present: Option<bool>,
    /// Whether the condition must not be met. Default: false.
    #[serde(default)]
    pub invert: bool,
}

/// A condition on the first parameter of this name in the query: at most one of `exact`, `prefix`, `regex` and `present`;
/// the name alone is `present: true`. Names and values are taken as they stand, without percent-decoding; a parameter without `=` has an empty value.
/// What is said of missing headers goes for missing parameters too.
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
    /// Whether the parameter must be there (`true`), with any value, or must not (`false`).
    pub present: Option<bool>,
    /// Whether the condition must not be met. Default: false.
    #[serde(default)]
    pub invert: bool,
}

/// Several clusters that share a route's requests.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// The clusters. At least one with a weight above 0.
    pub clusters: Vec<WeightedCluster>,
    /// Requests with the same value go to the same cluster, for as long as clusters and weights stay the same; those
    /// without the value go by chance. Default: chance for all.
    pub sticky: Option<HashKey>,
}

/// One of the clusters of a split.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightedCluster {
    /// Its name.
    pub cluster: String,
    /// Its share, against the others' weights. 0: no requests. Default: 1.
    #[serde(default = "one")]
    pub weight: u32,
}

/// A part of the request: one of these. An empty value counts as missing.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HashKey {
    /// The value of this header.
    pub header: Option<String>,
    /// The value of this cookie.
    pub cookie: Option<String>,
    /// `true`: the client's address, without the port.
    pub source: Option<bool>,
    /// `true`: the path, without the query.
    pub path: Option<bool>,
}

/// Where the client is sent. What is not given stays as it is in the request. The `location` is always absolute.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redirect {
    /// `http` or `https`. If it is given, a port has to be given too, unless it is the scheme's usual one.
    pub scheme: Option<String>,
    /// The host, without a port. If it is given, the request's port is dropped.
    pub host: Option<String>,
    /// The port. 1 to 65535.
    pub port: Option<u16>,
    /// The whole path. If it has a query, that replaces the request's. Not with `prefix_rewrite`.
    pub path: Option<String>,
    /// Replaces the prefix, or the whole path, that has matched, as the route's `prefix_rewrite` does.
    pub prefix_rewrite: Option<String>,
    /// 301, 302, 303, 307 or 308. Default: 301.
    #[serde(default = "moved_permanently")]
    pub status: u16,
    /// Drops the query. Default: false.
    #[serde(default)]
    pub strip_query: bool,
}

/// A response made by the proxy itself.
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
    /// A regular expression. Everything in the path that it matches is replaced.
    pub pattern: String,
    /// By what: `\1` to `\9` stand for the expression's groups, `\0` for the whole match, `\\` for a backslash.
    pub substitution: String,
}

/// Changes to headers: some are removed, then some set, then some added.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderOps {
    /// Headers that get exactly this value. Default: none.
    #[serde(default)]
    pub set: BTreeMap<String, String>,
    /// Header fields that are added to those there are. Default: none.
    #[serde(default)]
    pub add: BTreeMap<String, String>,
    /// Headers that are removed. Default: none.
    #[serde(default)]
    pub remove: Vec<String>,
}

/// When and how often a failed request is tried again.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// What is tried again: `connect_failure`, `reset`, `5xx`, `gateway_error`, `retriable_4xx`, `rate_limited`. Default:
    /// `[connect_failure, reset]`.
    #[serde(default = "retry_on")]
    pub on: Vec<RetryOn>,
    /// How often, at most, beside the first try. 1 to 10. Default: 1.
    #[serde(default = "one")]
    pub attempts: u32,
    /// Time for each try, the first included; `0s`: unlimited. Default: only the route's.
    pub per_try_timeout: Option<String>,
    /// Longest wait before the first retry; it doubles for each further one. Default: `25ms`.
    pub backoff: Option<String>,
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

/// A list, or a single string in its place.
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
