//! The filter's configuration: Istio's `AuthorizationPolicy`, in snake case.
//!
//! Lists are `Option`s because an empty list is an error rather than "anything": a generator that found no entries must
//! not grant access to everyone.

use serde::Deserialize;

/// The filter's configuration.
///
/// 1. If any `deny` policy matches, the request is denied.
/// 2. If there are no `allow` policies, it is allowed.
/// 3. If any `allow` policy matches, it is allowed; else it is denied.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The policies. Their order does not matter. With none, everything is allowed.
    pub policies: Vec<Policy>,
    /// Denies no requests; only counts and logs those that would be denied. Default: `false`.
    #[serde(default)]
    pub dry_run: bool,
    /// The request header in which a trusted proxy in front of this one passes the peer's identity, such as
    /// `spiffe://cluster.local/ns/shop/sa/cart`. Default: none; then no policy may use principals.
    ///
    /// Safe only if that proxy *replaces* whatever the client has sent under this name, and clients cannot bypass it:
    /// otherwise any client can claim any identity. A value with a comma in it (several fields) counts as none.
    #[serde(default)]
    pub principal_header: Option<String>,
}

/// A policy.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Its name, in logs. Unique.
    pub name: String,
    /// How matching requests are handled. Default: `allow`.
    #[serde(default)]
    pub action: Action,
    /// The policy matches if one of these rules does. Default: none; then it never matches. An empty rule (`{}`)
    /// matches every request.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// A dry run: a `deny` policy denies no request, and an `allow` policy does not cause the others to be denied. What
    /// the policies would do otherwise is counted and logged. Default: `false`.
    #[serde(default)]
    pub dry_run: bool,
}

/// How requests that match a policy are handled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Allowed, unless a `deny` policy matches too.
    #[default]
    Allow,
    /// Denied.
    Deny,
}

/// A rule: all given parts must match.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// One of these sources. Default: any.
    #[serde(default)]
    pub from: Option<Vec<From>>,
    /// One of these operations. Default: any.
    #[serde(default)]
    pub to: Option<Vec<To>>,
    /// All of these conditions. Default: none.
    #[serde(default)]
    pub when: Option<Vec<Condition>>,
}

/// The source of a request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct From {
    /// The source.
    pub source: Source,
}

/// A source: all given lists must match; at least one entry of each list, and no entry of each `not_` list.
///
/// Blocks are `10.0.0.0/8`, `2001:db8::/32`, or a single address. Principals are `cluster.local/ns/shop/sa/cart` (a
/// leading `spiffe://` is ignored), `cluster.local/*`, `*/sa/cart`, or `*` for any. Without an identity no list of
/// principals matches, and so `not_principals` holds: it excludes identities, but does not require one.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Source {
    /// The address of the connection's peer.
    pub ip_blocks: Option<Vec<String>>,
    /// See above.
    pub not_ip_blocks: Option<Vec<String>>,
    /// The client's address, as far as the listener's `trusted_hops` let `X-Forwarded-For` be believed.
    pub remote_ip_blocks: Option<Vec<String>>,
    /// See above.
    pub not_remote_ip_blocks: Option<Vec<String>>,
    /// The peer's identity. Needs `principal_header`.
    pub principals: Option<Vec<String>>,
    /// Excludes these.
    pub not_principals: Option<Vec<String>>,
}

/// The operation of a request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct To {
    /// The operation.
    pub operation: Operation,
}

/// An operation: all given lists must match; at least one entry of each list, and no entry of each `not_` list.
///
/// All lists support `text`, `text*` (prefix), `*text` (suffix) and `*` (any non-empty value).
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Operation {
    /// The host, case-insensitive. Its port matters only if one is given here: `example.com`, `*.example.com:8080`,
    /// `example.com:*` (any port).
    pub hosts: Option<Vec<String>>,
    /// Excludes these.
    pub not_hosts: Option<Vec<String>>,
    /// The method, in upper case, as in all requests.
    pub methods: Option<Vec<String>>,
    /// Excludes these.
    pub not_methods: Option<Vec<String>>,
    /// The path without its query, in the normal form that all requests have. `/admin*` also matches `/administer`, as
    /// in Istio.
    pub paths: Option<Vec<String>>,
    /// Excludes these.
    pub not_paths: Option<Vec<String>>,
}

/// A condition on one attribute: it has one of `values` and none of `not_values`; at least one of the two is given.
///
/// Several header fields of one name are one value, joined by `, ` (cookies by `; `, which also separates parts). Where
/// it could serve to bypass a policy, each part is also compared alone: a header matches the `values` of a `deny`
/// policy and the `not_values` of an `allow` policy if the whole or a part between commas does, and the other two lists
/// only as a whole.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// `request.headers[NAME]` (not `:path`, `:method` and `host`; use operations for those), `source.ip` (like
    /// `ip_blocks`), `remote.ip` or `source.principal`.
    pub key: String,
    /// Default: any value, or none at all.
    #[serde(default)]
    pub values: Option<Vec<String>>,
    /// Default: none.
    #[serde(default)]
    pub not_values: Option<Vec<String>>,
}
