//! Matching by server name (SNI), for TLS that is forwarded without decryption.

use rustc_hash::FxHashMap;

use crate::config::units::ServerName;

/// A map from server names to values.
///
/// An exact name takes precedence over a wildcard, and a longer wildcard over a shorter one: with `*.example.com` and
/// `*.b.example.com`, the second matches `a.b.example.com`. A wildcard matches one or more labels, never zero (Envoy's
/// rule; in a certificate it would match exactly one).
#[derive(Debug, Clone)]
pub struct SniMatcher<T> {
    exact: FxHashMap<Box<str>, T>,
    /// Wildcards, by the part after `*.`.
    below: FxHashMap<Box<str>, T>,
}

impl<T> SniMatcher<T> {
    /// Builds a matcher from names and their values. The first value of a duplicate name counts.
    pub fn new(names: impl IntoIterator<Item = (ServerName, T)>) -> SniMatcher<T> {
        let mut matcher = SniMatcher { exact: FxHashMap::default(), below: FxHashMap::default() };
        for (name, value) in names {
            match name {
                ServerName::Exact(name) => matcher.exact.entry(name).or_insert(value),
                ServerName::Below(name) => matcher.below.entry(name).or_insert(value),
            };
        }
        matcher
    }

    /// Returns whether there are no names, so that the SNI need not be read.
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.below.is_empty()
    }

    /// Finds the value for a name, which must be in lower case and without a trailing dot, as
    /// [`client_hello`](crate::listener::client_hello::client_hello) returns it. Costs one lookup per label.
    pub fn find(&self, name: &str) -> Option<&T> {
        let parents = name.match_indices('.').map(|(dot, _)| &name[dot + 1..]);
        self.exact.get(name).or_else(|| parents.filter_map(|parent| self.below.get(parent)).next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_specific_name_wins() {
        let names = ["*.example.com", "a.example.com", "*.B.example.com", "example.org", "*.com", "a.example.com"];
        let matcher = SniMatcher::new(names.iter().enumerate().map(|(i, name)| (name.parse().unwrap(), i)));
        for (name, expected) in [
            ("a.example.com", Some(1)),
            ("b.example.com", Some(0)),
            ("x.a.example.com", Some(0)),
            ("x.y.z.example.com", Some(0)),
            ("a.b.example.com", Some(2)),
            ("c.a.b.example.com", Some(2)),
            ("example.com", Some(4)),
            ("com", None),
            ("example.org", Some(3)),
            ("a.example.org", None),
            ("", None),
        ] {
            assert_eq!(matcher.find(name).copied(), expected, "{name}");
        }
    }
}
