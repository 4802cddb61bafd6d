//! The configuration as it is written: Istio's `AuthorizationPolicy`, in snake case.
//!
//! Lists are `Option`s because an empty list is a mistake rather than "anything": a generator that has found nothing to
//! put in must not open the door.

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
    /// Nothing is denied; what would be is counted and logged. Default: `false`.
    #[serde(default)]
    pub dry_run: bool,
    /// The request header in which a trusted proxy before this one says who the peer is, such as
    /// `spiffe://cluster.local/ns/shop/sa/cart`. Default: none, and then no policy may speak of principals.
    ///
    /// Only for when that proxy *replaces* whatever the client has sent under this name, and clients cannot go round it:
    /// else anybody can say that they are anybody. A value with a comma in it (several fields) counts as none.
    #[serde(default)]
    pub principal_header: Option<String>,
}

/// A policy.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Its name, in logs. Unique.
    pub name: String,
    /// What becomes of requests that match. Default: `allow`.
    #[serde(default)]
    pub action: Action,
    /// The policy matches if one of these does. Default: none, and then it never matches. An empty rule (`{}`) matches
    /// every request.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// The policy denies nothing: a `deny` policy lets its matches pass, and an `allow` policy does not make the others be
    /// denied. What the policies would do without this is counted and logged. Default: `false`.
    #[serde(default)]
    pub dry_run: bool,
}

/// What becomes of requests that match a policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// They are allowed, unless a `deny` policy matches too.
    #[default]
    Allow,
    /// They are denied.
    Deny,
}

/// A rule: all of what is given must hold.
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

/// Where a request comes from.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct From {
    /// The source.
    pub source: Source,
}

/// A source: all of what is given must hold; of each list one, and of each `not_` list none.
///
/// Blocks are `10.0.0.0/8`, `2001:db8::/32`, or a single address. Principals are `cluster.local/ns/shop/sa/cart` (a
/// `spiffe://` before it is left out of the comparison), `cluster.local/*`, `*/sa/cart`, or `*` for any. Without an identity
/// no list of principals matches, and so `not_principals` holds: it says who must not come in, not that somebody must be.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Source {
    /// The address of the connection's other end.
    pub ip_blocks: Option<Vec<String>>,
    /// See above.
    pub not_ip_blocks: Option<Vec<String>>,
    /// The client's address, as far as the listener's `trusted_hops` let `X-Forwarded-For` be believed.
    pub remote_ip_blocks: Option<Vec<String>>,
    /// See above.
    pub not_remote_ip_blocks: Option<Vec<String>>,
    /// The peer's identity. Needs `principal_header`.
    pub principals: Option<Vec<String>>,
    /// See above.
    pub not_principals: Option<Vec<String>>,
}

/// What a request is for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct To {
    /// The operation.
    pub operation: Operation,
}

/// An operation: all of what is given must hold; of each list one, and of each `not_` list none.
///
/// All lists know `text`, `text*` (the beginning), `*text` (the end) and `*` (anything but nothing).
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Operation {
    /// The host, in any case. Its port counts only if one is given here: `example.com`, `*.example.com:8080`,
    /// `example.com:*` (with some port).
    pub hosts: Option<Vec<String>>,
    /// See above.
    pub not_hosts: Option<Vec<String>>,
    /// The method, in capitals, as all requests have it.
    pub methods: Option<Vec<String>>,
    /// See above.
    pub not_methods: Option<Vec<String>>,
    /// The path without its query, in the one spelling that all requests have. `/admin*` is for `/administer` too, as in Istio.
    pub paths: Option<Vec<String>>,
    /// See above.
    pub not_paths: Option<Vec<String>>,
}

/// A condition on one attribute: one of `values` and none of `not_values`; at least one of the two is given.
///
/// Several header fields of one name are one value, joined by `, ` (cookies by `; `, where parts end, too). Where they could serve to get past a policy, each
/// of them counts alone too: a header matches the `values` of a `deny` policy and the `not_values` of an `allow` policy if
/// the whole or a part between commas does, and the other two lists only as a whole.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// `request.headers[NAME]` (not `:path`, `:method` and `host`, which operations are for), `source.ip` (like `ip_blocks`), `remote.ip` or `source.principal`.
    pub key: String,
    /// Default: any, or none at all.
    #[serde(default)]
    pub values: Option<Vec<String>>,
    /// Default: none.
    #[serde(default)]
    pub not_values: Option<Vec<String>>,
}
