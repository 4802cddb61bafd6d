//! Looks up the virtual host of a request, in a time that does not depend on the number of virtual hosts.
//!
//! Domains without `*` are in one map. Domains with `*` are in another, keyed by the rest (empty for `*` itself), and a
//! host is looked up there label by label, the longest part first. A domain's port is part of its key, so ports need no
//! extra maps.

use rustc_hash::FxHashMap;
use tollgate_sdk::matching::host_mistake;

use crate::place::Place;

/// Hosts longer than names can be (RFC 1035: 255 bytes, then a port) are looked up without conversion to lower case.
const LONGEST: usize = 272;

/// Virtual hosts by domain.
#[derive(Default)]
pub(crate) struct Hosts {
    exact: FxHashMap<Box<[u8]>, u32>,
    wildcards: FxHashMap<Box<[u8]>, u32>,
    /// The virtual host for `*`, which is among the wildcards too.
    all: Option<u32>,
    /// The longest wildcard key: longer parts of a host need no lookup.
    longest_wildcard: usize,
    /// Whether any domain has a port.
    ports: bool,
}

impl Hosts {
    /// Adds a domain of a virtual host. Reports an invalid or duplicate domain as an error.
    pub(crate) fn add(&mut self, domain: &str, host: u32, place: &Place) {
        let lower = domain.to_ascii_lowercase();
        let (wildcard, rest) = match lower.strip_prefix('*') {
            Some(rest) => (true, rest),
            None => (false, lower.as_str()),
        };
        let (name, port) = split_port(rest.as_bytes());
        let name_is_right = match (wildcard, name) {
            (true, b"") => true,
            (true, name) => name.starts_with(b".") && name.len() > 1,
            (false, name) => !name.is_empty() && !name.starts_with(b"."),
        };
        let port_is_right = port.is_empty() || std::str::from_utf8(&port[1..]).is_ok_and(|p| p.parse::<u16>().is_ok());
        if !name_is_right || !port_is_right || name.iter().any(|b| b"*/?#@ ".contains(b) || !b.is_ascii_graphic()) {
            place.wrong(format!("`{domain}` is not a domain; write `example.com`, `*.example.com` or `*`"));
            return;
        }
        // `*:80` consists only of a port after the star.
        let spelled = if name.is_empty() { format!("x{rest}") } else { rest.to_owned() };
        if let Some(message) = host_mistake(&spelled) {
            place.wrong(if name.is_empty() {
                format!("`{domain}`: write the port without leading zeros")
            } else {
                message
            });
            return;
        }
        self.ports |= !port.is_empty();
        let map = if wildcard {
            self.longest_wildcard = self.longest_wildcard.max(rest.len());
            if rest.is_empty() {
                self.all = Some(host);
            }
            &mut self.wildcards
        } else {
            &mut self.exact
        };
        if map.insert(rest.as_bytes().into(), host).is_some() {
            place.wrong(format!("the domain `{domain}` is listed twice"));
        }
    }

    /// The virtual host for a request with this authority. Without a port it has its scheme's `usual` port: both forms
    /// are the same authority (RFC 3986 section 6.2.3), and servers treat them alike.
    pub(crate) fn find(&self, authority: &[u8], usual: impl Fn() -> &'static str) -> Option<u32> {
        // With no domain but `*`, nothing depends on the host.
        if self.exact.is_empty() && self.longest_wildcard == 0 {
            return self.all;
        }
        if self.ports && !authority.is_empty() && split_port(authority).1.is_empty() {
            return self.find_spelled(&[authority, b":", usual().as_bytes()].concat());
        }
        self.find_spelled(authority)
    }

    fn find_spelled(&self, authority: &[u8]) -> Option<u32> {
        if authority.iter().any(u8::is_ascii_uppercase) && authority.len() <= LONGEST {
            let mut lower = [0; LONGEST];
            let lower = &mut lower[..authority.len()];
            lower.copy_from_slice(authority);
            lower.make_ascii_lowercase();
            return self.find_in_lower_case(lower);
        }
        self.find_in_lower_case(authority)
    }

    fn find_in_lower_case(&self, authority: &[u8]) -> Option<u32> {
        let (name, port) = split_port(authority);
        let with_port = self.ports && !port.is_empty();
        let get = |map: &FxHashMap<Box<[u8]>, u32>, from: usize| {
            let whole = if with_port { map.get(&authority[from..]) } else { None };
            whole.or_else(|| map.get(&name[from..])).copied()
        };
        if !self.exact.is_empty()
            && let Some(host) = get(&self.exact, 0)
        {
            return Some(host);
        }
        // From 1: the `*` must match at least one character.
        for from in 1..name.len() {
            // With a port, the key may be longer; without one, never shorter.
            if name[from] == b'.'
                && name.len() - from <= self.longest_wildcard
                && let Some(host) = get(&self.wildcards, from)
            {
                return Some(host);
            }
        }
        get(&self.wildcards, name.len())
    }
}

/// Splits off the port, with its colon (or an empty port). An IPv6 address is in brackets.
pub(crate) fn split_port(authority: &[u8]) -> (&[u8], &[u8]) {
    let colon = authority.iter().rposition(|b| *b == b':');
    match colon {
        Some(at) if !authority[at..].contains(&b']') => authority.split_at(at),
        _ => (authority, b""),
    }
}

#[cfg(test)]
mod tests {
    use tollgate_sdk::Mistakes;

    use super::*;

    #[test]
    fn the_most_specific_domain_wins() {
        let domains = [
            "*",
            "*.example.com",
            "*.a.example.com",
            "example.com",
            "b.a.example.com",
            "example.com:8080",
            "*.example.com:8080",
            "*:9",
            "[::1]",
            "[::2]:80",
            "usual.example:80",
            "*.usual.example:80",
        ];
        let (mistakes, mut hosts) = (Mistakes::default(), Hosts::default());
        domains.iter().enumerate().for_each(|(i, d)| hosts.add(d, i as u32, &Place::root(&mistakes)));
        mistakes.finish().unwrap();
        for (authority, domain) in [
            ("example.com", "example.com"),
            ("EXAMPLE.com:80", "example.com"),
            ("example.com:8080", "example.com:8080"),
            ("x.example.com", "*.example.com"),
            ("x.example.com:8080", "*.example.com:8080"),
            ("x.a.example.com:8080", "*.a.example.com"),
            ("a.example.com", "*.example.com"),
            ("y.x.a.example.com", "*.a.example.com"),
            ("b.a.example.com:1", "b.a.example.com"),
            ("badexample.com", "*"),
            (".example.com", "*"),
            ("other:9", "*:9"),
            ("", "*"),
            ("[::1]:443", "[::1]"),
            ("[::2]:80", "[::2]:80"),
            ("[::2]", "[::2]:80"),
            ("[::2]:81", "*"),
            ("usual.example", "usual.example:80"),
            ("Usual.Example:80", "usual.example:80"),
            ("usual.example:443", "*"),
            ("a.usual.example", "*.usual.example:80"),
            ("a.usual.example:8080", "*"),
        ] {
            let found = hosts.find(authority.as_bytes(), || "80").map(|i| domains[i as usize]);
            assert_eq!(found, Some(domain), "{authority}");
        }
        assert_eq!(Hosts::default().find(b"example.com", || "80"), None);
        let (mistakes, mut all) = (Mistakes::default(), Hosts::default());
        all.add("*", 3, &Place::root(&mistakes));
        assert_eq!(["", "A.example:80", "[::1]"].map(|host| all.find(host.as_bytes(), || "80")), [Some(3); 3]);
        assert_eq!([[b'.'; 4000], [b'A'; 4000]].map(|long| hosts.find(&long, || "80")), [Some(0); 2]);
        let mut short = Hosts::default();
        short.add("*.b.c", 1, &Place::root(&mistakes));
        assert_eq!(["a.b.c", "b.c", "a.b.cd"].map(|host| short.find(host.as_bytes(), || "80")), [Some(1), None, None]);
    }
}
