//! Compiles the configuration to policies that are ready for requests, and reports all errors together.

use std::collections::HashSet;

use tollgate_sdk::{
    matching::{Extent, header_name_mistake, method_mistake, spelled_path},
    prelude::*,
};

use crate::{
    cidr::Blocks,
    config::{self, Action, Config},
    pattern::{Cut, Hosts, Patterns},
    rule::{From, Lists, Policy, Rule, To, When},
};

/// Maximum length of a policy's name: `details` with it fits into an access log field.
const NAME_MAX: usize = 128;

pub(crate) struct Compiler<'s> {
    setup: &'s mut Setup,
    mistakes: Mistakes,
    /// Whether the configuration specifies the header with the peer's identity.
    has_principal: bool,
    /// Whether any rule needs the method, the path or the host.
    pub(crate) needs_line: bool,
    /// Whether any rule needs the identity.
    pub(crate) needs_principal: bool,
}

impl<'s> Compiler<'s> {
    pub(crate) fn new(setup: &'s mut Setup) -> Self {
        Compiler {
            setup,
            mistakes: Mistakes::default(),
            has_principal: false,
            needs_line: false,
            needs_principal: false,
        }
    }

    pub(crate) fn finish(self) -> Result<(), ConfigError> {
        self.mistakes.finish()
    }

    /// The header with the peer's identity, and all policies.
    pub(crate) fn compile(&mut self, config: Config) -> (Option<Name>, Vec<Policy>) {
        self.has_principal = config.principal_header.is_some();
        let header = config.principal_header.map(|name| self.header("principal_header", &name));
        let mut names = HashSet::new();
        let mut policies = Vec::with_capacity(config.policies.len());
        for (i, policy) in config.policies.into_iter().enumerate() {
            let at = format!("policies[{i}]");
            if policy.name.is_empty() || policy.name.len() > NAME_MAX || policy.name.contains(char::is_control) {
                let message = format!("a name has 1 to {NAME_MAX} bytes and no control characters");
                self.mistakes.add(format!("{at}.name"), message);
            } else if !names.insert(policy.name.clone()) {
                self.mistakes.add(format!("{at}.name"), format!("another policy is called `{}` too", policy.name));
            }
            policies.push(Policy {
                rules: each(policy.rules, &format!("{at}.rules"), |rule, at| self.rule(rule, at)),
                denies: policy.action == Action::Deny,
                enforced: !config.dry_run && !policy.dry_run,
                details: format!("rbac_access_denied_matched_policy[{}]", policy.name),
            });
        }
        (header, policies)
    }

    fn rule(&mut self, rule: config::Rule, at: &str) -> Rule {
        let from = self.items(rule.from, format!("{at}.from"));
        let to = self.items(rule.to, format!("{at}.to"));
        let when = self.items(rule.when, format!("{at}.when"));
        Rule {
            from: each(from, &format!("{at}.from"), |from, at| self.from(from.source, &format!("{at}.source"))),
            to: each(to, &format!("{at}.to"), |to, at| self.to(to.operation, &format!("{at}.operation"))),
            when: each(when, &format!("{at}.when"), |when, at| self.when(when, at)),
        }
    }

    fn from(&mut self, source: config::Source, at: &str) -> From {
        let from = From {
            peer: Lists {
                some: self.blocks(source.ip_blocks, format!("{at}.ip_blocks")),
                none: self.blocks(source.not_ip_blocks, format!("{at}.not_ip_blocks")),
            },
            remote: Lists {
                some: self.blocks(source.remote_ip_blocks, format!("{at}.remote_ip_blocks")),
                none: self.blocks(source.not_remote_ip_blocks, format!("{at}.not_remote_ip_blocks")),
            },
            principal: Lists {
                some: self.principals(source.principals, format!("{at}.principals")),
                none: self.principals(source.not_principals, format!("{at}.not_principals")),
            },
        };
        let empty = [&from.peer, &from.remote].iter().all(|l| l.some.is_none() && l.none.is_none());
        if empty && from.principal.some.is_none() && from.principal.none.is_none() {
            self.mistakes.add(at, "is empty: leave `from` out for any source");
        }
        from
    }

    fn to(&mut self, operation: config::Operation, at: &str) -> To {
        self.needs_line = true;
        let to = To {
            hosts: Lists {
                some: self.hosts(operation.hosts, format!("{at}.hosts")),
                none: self.hosts(operation.not_hosts, format!("{at}.not_hosts")),
            },
            methods: Lists {
                some: self.patterns(operation.methods, format!("{at}.methods"), method),
                none: self.patterns(operation.not_methods, format!("{at}.not_methods"), method),
            },
            paths: Lists {
                some: self.patterns(operation.paths, format!("{at}.paths"), path),
                none: self.patterns(operation.not_paths, format!("{at}.not_paths"), path),
            },
        };
        let texts = [&to.methods, &to.paths].iter().all(|l| l.some.is_none() && l.none.is_none());
        if texts && to.hosts.some.is_none() && to.hosts.none.is_none() {
            self.mistakes.add(at, "is empty: leave `to` out for any operation");
        }
        to
    }

    fn when(&mut self, condition: config::Condition, at: &str) -> When {
        let config::Condition { key, values, not_values } = condition;
        if values.is_none() && not_values.is_none() {
            self.mistakes.add(at, "is empty: give `values` or `not_values`");
        }
        let (some_at, none_at) = (format!("{at}.values"), format!("{at}.not_values"));
        let name = key.strip_prefix("request.headers[").and_then(|rest| rest.strip_suffix(']'));
        match (key.as_str(), name) {
            (_, Some(name)) => {
                // Header conditions compare verbatim, but these have equivalent spellings that could bypass a rule.
                let list = match name.to_ascii_lowercase().as_str() {
                    ":path" => Some("paths"),
                    ":method" => Some("methods"),
                    ":authority" | "host" => Some("hosts"),
                    _ => None,
                };
                if let Some(list) = list {
                    let message = format!("`{name}` is not supported here: use `{list}` in `to: [{{operation: …}}]`");
                    self.mistakes.add(format!("{at}.key"), message);
                }
                let cut = if name.eq_ignore_ascii_case("cookie") { Cut::Cookies } else { Cut::Commas };
                let name = self.header(&format!("{at}.key"), name);
                let some = self.values(values, some_at, cut);
                When::Header(name, cut, Lists { some, none: self.values(not_values, none_at, cut) })
            }
            ("source.principal", _) => {
                let some = self.principals(values, some_at);
                When::Principal(Lists { some, none: self.principals(not_values, none_at) })
            }
            (key @ ("source.ip" | "remote.ip"), _) => {
                let some = self.blocks(values, some_at);
                let lists = Lists { some, none: self.blocks(not_values, none_at) };
                if key == "source.ip" { When::Peer(lists) } else { When::Remote(lists) }
            }
            _ => {
                let known = "`request.headers[NAME]`, `source.ip`, `remote.ip` or `source.principal`";
                self.mistakes.add(format!("{at}.key"), format!("`{key}` is not supported here; write {known}"));
                When::Peer(Lists { some: None, none: None })
            }
        }
    }

    fn header(&mut self, at: &str, name: &str) -> Name {
        if let Some(message) = header_name_mistake(name) {
            self.mistakes.add(at, message);
        }
        self.setup.name(name)
    }

    /// The items of a list, which must not be empty.
    fn items<T>(&self, list: Option<Vec<T>>, at: String) -> Vec<T> {
        if list.as_ref().is_some_and(Vec::is_empty) {
            self.mistakes.add(at, "an empty list matches nothing: leave it out to match anything");
        }
        list.unwrap_or_default()
    }

    fn list<T>(
        &self,
        list: Option<Vec<String>>,
        at: String,
        mut set: T,
        mut add: impl FnMut(&mut T, &str) -> Result<(), String>,
    ) -> Option<T> {
        list.as_ref()?;
        for (i, text) in self.items(list, at.clone()).iter().enumerate() {
            if let Err(message) = add(&mut set, text) {
                self.mistakes.add(format!("{at}[{i}]"), message);
            }
        }
        Some(set)
    }

    fn blocks(&self, list: Option<Vec<String>>, at: String) -> Option<Blocks> {
        let mut blocks = self.list(list, at, Blocks::default(), Blocks::add)?;
        blocks.finish();
        Some(blocks)
    }

    fn hosts(&self, list: Option<Vec<String>>, at: String) -> Option<Hosts> {
        let mut hosts = self.list(list, at, Hosts::new(), Hosts::add)?;
        hosts.finish();
        Some(hosts)
    }

    /// The values of a header.
    fn values(&self, list: Option<Vec<String>>, at: String, cut: Cut) -> Option<Patterns> {
        let add = if cut == Cut::Cookies { Patterns::add_cookie } else { Patterns::add };
        let mut patterns = self.list(list, at, Patterns::default(), add)?;
        patterns.finish();
        Some(patterns)
    }

    fn patterns(
        &self,
        list: Option<Vec<String>>,
        at: String,
        mistake: impl Fn(&str) -> Option<String>,
    ) -> Option<Patterns> {
        let mut patterns = self.list(list, at, Patterns::default(), |patterns, text| {
            patterns.add(text)?;
            mistake(text).map_or(Ok(()), Err)
        })?;
        patterns.finish();
        Some(patterns)
    }

    fn principals(&mut self, list: Option<Vec<String>>, at: String) -> Option<Patterns> {
        list.as_ref()?;
        self.needs_principal = true;
        if !self.has_principal {
            self.mistakes.add(at.clone(), NO_PRINCIPAL);
        }
        let bare = |list: Vec<String>| list.into_iter().map(|p| p.strip_prefix(SCHEME).map_or(p.clone(), String::from));
        self.patterns(list.map(|l| bare(l).collect()), at, |_| None)
    }
}

/// Why a policy cannot use principals, and the alternatives.
pub(crate) const NO_PRINCIPAL: &str = "without `principal_header`, the peer's identity is unknown. Where a proxy in front \
     writes a header that clients cannot, set `principal_header` to its name. For the certificates that this listener's own \
     clients show, give the listener `forwarded_client_cert: set` and the rule \
     `when: [{key: \"request.headers[x-forwarded-client-cert]\", values: [\"*;URI=spiffe://...\"]}]`";

/// The prefix that Istio omits from identities.
pub(crate) const SCHEME: &str = "spiffe://";

fn each<T, U>(items: Vec<T>, at: &str, mut f: impl FnMut(T, &str) -> U) -> Vec<U> {
    items.into_iter().enumerate().map(|(i, item)| f(item, &format!("{at}[{i}]"))).collect()
}

/// The error in a method pattern, if any.
fn method(pattern: &str) -> Option<String> {
    let word = pattern.trim_matches('*');
    if word.is_empty() { None } else { method_mistake(word) }
}

/// The error in a path pattern, if any.
fn path(pattern: &str) -> Option<String> {
    if pattern.contains(['{', '}']) {
        return Some(format!("`{pattern}`: templates are not supported; write `/text*` or `*text`"));
    }
    let (text, extent, stars) = match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(text), _) => (text, Extent::End, ("*", "")),
        (None, Some(text)) => (text, Extent::Beginning, ("", "*")),
        (None, None) => (pattern, Extent::Whole, ("", "")),
    };
    match spelled_path(text, extent) {
        Ok(spelled) if spelled == text => None,
        Ok(spelled) => {
            let (before, after) = stars;
            Some(format!("`{pattern}` matches no path: write `{before}{spelled}{after}`"))
        }
        Err(message) => Some(message),
    }
}
