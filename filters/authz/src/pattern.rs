//! Istio's text patterns: `text`, `text*`, `*text` and `*`, and patterns of hosts with and without ports.

use std::cmp::Ordering;

use tollgate_sdk::matching::{Cookie, cookies, host_mistake, undisguised};

/// A set of patterns.
#[derive(Debug, Default)]
pub(crate) struct Patterns {
    /// Sorted for bisection.
    exact: Vec<Box<[u8]>>,
    prefixes: Vec<Box<[u8]>>,
    suffixes: Vec<Box<[u8]>>,
    /// Any non-empty value.
    present: bool,
    /// Case-insensitive: the patterns are in lower case.
    any_case: bool,
}

impl Patterns {
    /// A case-insensitive set.
    pub(crate) fn any_case() -> Patterns {
        Patterns { any_case: true, ..Patterns::default() }
    }

    /// Adds a pattern. Call `finish` after the last one.
    pub(crate) fn add(&mut self, pattern: &str) -> Result<(), String> {
        let (head, tail) = (pattern.strip_prefix('*'), pattern.strip_suffix('*'));
        let text = match (head, tail) {
            (Some(suffix), _) => suffix,
            (None, Some(prefix)) => prefix,
            (None, None) => pattern,
        };
        if pattern.is_empty() {
            return Err("an empty text never matches: leave it out".into());
        }
        if text.contains('*') {
            return Err(format!("in `{pattern}` a `*` is only allowed as the first or last character"));
        }
        let text = if self.any_case { text.to_ascii_lowercase() } else { text.into() };
        let text = text.into_bytes().into_boxed_slice();
        match (head, tail) {
            _ if pattern == "*" => self.present = true,
            (Some(_), _) => self.suffixes.push(text),
            (None, Some(_)) => self.prefixes.push(text),
            (None, None) => self.exact.push(text),
        }
        Ok(())
    }

    /// Adds a cookie pattern. A pattern of a whole cookie matches every spelling of it, whichever is given; a pattern
    /// of a part of a cookie matches every encoding.
    pub(crate) fn add_cookie(&mut self, pattern: &str) -> Result<(), String> {
        self.add(pattern)?;
        if !pattern.contains(['*', ';', ',']) {
            let spellings = cookies(pattern.as_bytes()).flat_map(|cookie| [spelled(cookie.clone()), plain(cookie)]);
            self.exact.extend(spellings.map(Vec::into_boxed_slice));
        }
        let parts = match (pattern.starts_with('*'), pattern.ends_with('*')) {
            (true, false) => &mut self.suffixes,
            (false, true) => &mut self.prefixes,
            _ => return Ok(()),
        };
        let encoded = parts.last().map(|text| undisguised(text[..].into()).into_owned().into_boxed_slice());
        parts.extend(encoded);
        Ok(())
    }

    /// Prepares the set for lookups.
    pub(crate) fn finish(&mut self) {
        self.exact.sort_unstable();
        self.exact.dedup();
    }

    /// Whether any of the patterns matches.
    pub(crate) fn matches(&self, value: &[u8]) -> bool {
        let same = |pattern: &[u8], part: Option<&[u8]>| {
            part.is_some_and(|part| if self.any_case { part.eq_ignore_ascii_case(pattern) } else { part == pattern })
        };
        let end = |pattern: &[u8]| value.len().checked_sub(pattern.len()).and_then(|at| value.get(at..));
        (self.present && !value.is_empty())
            || self.exact.binary_search_by(|pattern| self.compare(pattern, value)).is_ok()
            || self.prefixes.iter().any(|pattern| same(pattern, value.get(..pattern.len())))
            || self.suffixes.iter().any(|pattern| same(pattern, end(pattern)))
    }

    /// Whether any of the patterns matches the value or a part of it.
    pub(crate) fn matches_part(&self, value: &[u8], cut: Cut) -> bool {
        let ends = |b: &u8| *b == b',' || (*b == b';' && cut == Cut::Cookies);
        self.matches(value)
            || value.split(ends).any(|part| self.matches(part.trim_ascii()))
            || (cut == Cut::Cookies
                && cookies(value).any(|cookie| self.matches(&spelled(cookie.clone())) || self.matches(&plain(cookie))))
    }

    fn compare(&self, pattern: &[u8], value: &[u8]) -> Ordering {
        if self.any_case {
            pattern.iter().copied().cmp(value.iter().map(u8::to_ascii_lowercase))
        } else {
            pattern.cmp(value)
        }
    }
}

/// A cookie in the form that patterns are compared with, regardless of the spelling sent.
fn spelled((name, value): Cookie) -> Vec<u8> {
    [name, b"=", &value].concat()
}

/// The same with the cookie's value decoded.
fn plain((name, value): Cookie) -> Vec<u8> {
    spelled((name, undisguised(value)))
}

/// The separators of a header's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Commas (RFC 9110 section 5.6.1).
    Commas,
    /// Also semicolons (RFC 6265 section 4.2.1), which join several `Cookie` fields. Each cookie is also compared as
    /// [`cookies`] parses it, and with its value decoded.
    Cookies,
}

/// A set of hosts, some with ports.
#[derive(Debug)]
pub(crate) struct Hosts {
    /// Hosts with any port or none.
    plain: Patterns,
    /// Hosts with a given port, or with any port.
    with_port: Vec<(Patterns, Option<u16>)>,
}

impl Hosts {
    pub(crate) fn new() -> Hosts {
        Hosts { plain: Patterns::any_case(), with_port: Vec::new() }
    }

    /// Adds a host. Call `finish` after the last one.
    pub(crate) fn add(&mut self, pattern: &str) -> Result<(), String> {
        if pattern.contains('/') {
            return Err(format!(
                "`{pattern}` is not a host; write it as in `example.com`, `*.example.com` or `example.com:80`"
            ));
        }
        let (host, port) = split_port(pattern.as_bytes());
        let host = &pattern[..host.len()];
        let any = port == Some(b"*");
        if !any && port.is_some_and(|port| number(port).is_none()) {
            return Err(format!("`{pattern}` has no valid port after its colon; write a number, or `*` for any port"));
        }
        let written = if any { host } else { pattern };
        let (name, star) = written.strip_prefix('*').map_or((written, ""), |name| (name, "*"));
        // The part matched by a star needs no check.
        if !host.ends_with('*') && !name.is_empty() && host_mistake(name).is_some() {
            return Err(host_mistake(name)
                .map(|m| m.replace(&format!("`{name}`"), &format!("`{star}{name}`")))
                .unwrap_or_default());
        }
        let Some(port) = port else { return self.plain.add(host) };
        let mut single = Patterns::any_case();
        single.add(host)?;
        self.with_port.push((single, number(port)));
        Ok(())
    }

    /// Prepares the set for lookups.
    pub(crate) fn finish(&mut self) {
        self.plain.finish();
    }

    /// Whether an authority (a host with an optional port) is in the set. Without a port it has its scheme's `usual`
    /// port: both forms are the same authority (RFC 3986 section 6.2.3), and servers treat them alike.
    pub(crate) fn matches(&self, authority: &[u8], usual: impl Fn() -> u16) -> bool {
        let (host, port) = split_port(authority);
        // `example.com.` is the same host, and must not bypass a policy.
        let host = host.strip_suffix(b".").unwrap_or(host);
        self.plain.matches(host)
            || self.with_port.iter().any(|(pattern, wanted)| {
                let is = |wanted| port.map_or_else(|| Some(usual()), number) == Some(wanted);
                pattern.matches(host) && wanted.is_none_or(is)
            })
    }
}

/// Parses a port, with or without leading zeros.
fn number(port: &[u8]) -> Option<u16> {
    let digits = !port.is_empty() && port.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(port).ok().filter(|_| digits)?.parse().ok()
}

/// Splits off the port, if there is a colon after the host (and after an IPv6 address's bracket).
fn split_port(authority: &[u8]) -> (&[u8], Option<&[u8]>) {
    let from = authority.iter().rposition(|b| *b == b']').unwrap_or(0);
    match authority[from..].iter().position(|b| *b == b':') {
        Some(at) => (&authority[..from + at], Some(&authority[from + at + 1..])),
        None => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(any_case: bool, list: &[&str]) -> Patterns {
        let mut patterns = if any_case { Patterns::any_case() } else { Patterns::default() };
        list.iter().for_each(|p| patterns.add(p).unwrap());
        patterns.finish();
        patterns
    }

    #[test]
    fn patterns_match() {
        let table = [
            (&["a", "c", "b"][..], "b", true),
            (&["a", "c", "b"], "d", false),
            (&["ab"], "a", false),
            (&["A"], "a", false),
            (&["ab*"], "ab", true),
            (&["ab*"], "abc", true),
            (&["ab*"], "a", false),
            (&["*bc"], "abc", true),
            (&["*bc"], "bc", true),
            (&["*bc"], "c", false),
            (&["*"], "x", true),
            (&["*"], "", false),
        ];
        for (list, value, expected) in table {
            assert_eq!(patterns(false, list).matches(value.as_bytes()), expected, "{list:?} {value}");
        }
        assert!(patterns(true, &["B", "a"]).matches(b"b"));
        assert!(patterns(true, &["ABC*", "*xYz"]).matches(b"aBcD"));
        assert!(patterns(true, &["ABC*", "*xYz"]).matches(b"123XyZ"));
        assert!(patterns(false, &["b"]).matches_part(b"a, b", Cut::Commas));
        assert!(!patterns(false, &["b"]).matches_part(b"a, bc", Cut::Commas));
        assert!(!patterns(false, &["b"]).matches_part(b"a; b", Cut::Commas));
        assert!(patterns(false, &["b"]).matches_part(b"a; b", Cut::Cookies));
        assert!(patterns(false, &["role=\"b\""]).matches_part(b"a; role=\"b\"", Cut::Cookies));
    }

    #[test]
    fn hosts_match_with_and_without_ports() {
        let table = [
            ("example.com", "EXAMPLE.com:8080", true),
            ("Example.com", "example.com.", true),
            ("example.com", "example.com.:80", true),
            ("example.com", "www.example.com", false),
            ("*.example.com", "a.EXAMPLE.com:1", true),
            ("*.example.com", "example.com", false),
            ("example.*", "example.org:1", true),
            ("example.com:80", "example.com:80", true),
            ("example.com:80", "example.com", true),
            ("example.com:80", "EXAMPLE.com.", true),
            ("example.com:443", "example.com", false),
            ("example.com:80", "example.com:8080", false),
            ("*:80", "example.com", true),
            ("*:443", "example.com", false),
            ("example.com:8443", "example.com:08443", true),
            ("example.com:*", "example.com:1", true),
            ("example.com:*", "example.com", true),
            ("*.example.com:80", "a.example.com:80", true),
            ("*:80", "anything:80", true),
            ("[2001:db8::1]", "[2001:DB8::1]:443", true),
            ("[2001:db8::1]:443", "[2001:db8::1]:443", true),
            ("*", "", false),
        ];
        for (pattern, authority, expected) in table {
            let mut hosts = Hosts::new();
            hosts.add(pattern).unwrap();
            hosts.finish();
            assert_eq!(hosts.matches(authority.as_bytes(), || 80), expected, "{pattern} {authority}");
        }
        let mut hosts = Hosts::new();
        ["b.test", "c.test", "a.test"].iter().for_each(|host| hosts.add(host).unwrap());
        hosts.finish();
        assert!(["a.test", "b.test", "c.test"].iter().all(|host| hosts.matches(host.as_bytes(), || 80)));
    }

    #[test]
    fn errors_suggest_a_correction() {
        assert_eq!(Patterns::default().add(""), Err("an empty text never matches: leave it out".into()));
        for wrong in ["a*b", "*a*", "**", "a**"] {
            let message = format!("in `{wrong}` a `*` is only allowed as the first or last character");
            assert_eq!(Patterns::default().add(wrong), Err(message));
        }
        assert!(Hosts::new().add("http://example.com").unwrap_err().contains("is not a host"));
        for (wrong, right) in [
            ("example.com.", "example.com"),
            ("*.example.com.", "*.example.com"),
            ("example.com:08443", "example.com:8443"),
            ("[2001:db8::0:1]:443", "[2001:db8::1]:443"),
        ] {
            let message = format!("`{wrong}` matches no host: write `{right}`");
            let error = Hosts::new().add(wrong).unwrap_err();
            assert_eq!(error.replace("`.example.com`", "`*.example.com`"), message);
        }
        for wrong in ["a:", "a:b", "a:+8", "a:8*", "a:123456"] {
            assert!(Hosts::new().add(wrong).unwrap_err().contains("has no valid port after its colon"), "{wrong}");
        }
    }
}
