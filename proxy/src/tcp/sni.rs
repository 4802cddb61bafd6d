//! By server name, what is meant: for TLS that is passed on unread.

use rustc_hash::FxHashMap;

use crate::config::units::ServerName;

/// Finds what belongs to a name.
///
/// An exact name counts before a wildcard, and of the wildcards the longest: of `*.example.com` and `*.b.example.com` the
/// second is for `a.b.example.com`. A wildcard stands for one label or more, never for none (Envoy's rule; in a certificate it
/// would be exactly one).
#[derive(Debug, Clone)]
pub struct SniMatcher<T> {
    exact: FxHashMap<Box<str>, T>,
    /// By what follows `*.`.
    below: FxHashMap<Box<str>, T>,
}

impl<T> SniMatcher<T> {
    /// From names and what belongs to them. Of a name that is there twice the first counts.
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

    /// Whether there are no names, so that none need be asked for.
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.below.is_empty()
    }

    /// What belongs to a name, which must be in small letters and without a dot at its end, as
    /// [`client_hello`](crate::listener::client_hello::client_hello) gives it. Takes one look-up for each label.
    pub fn find(&self, name: &str) -> Option<&T> {
        let parents = name.match_indices('.').map(|(dot, _)| &name[dot + 1..]);
        self.exact.get(name).or_else(|| parents.filter_map(|parent| self.below.get(parent)).next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_that_says_most_counts() {
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
