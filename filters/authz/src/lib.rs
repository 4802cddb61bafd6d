//! Access control (authorization): Istio's `AuthorizationPolicy` for any proxy.
//!
//! `config` defines the configuration; `rule` evaluates it. A denied client learns only that it was denied: the
//! policy's name is in the access log's details.

mod cidr;
mod compile;
pub mod config;
mod pattern;
mod rule;

use std::cell::Cell;

use tollgate_sdk::{
    log,
    matching::{compared_path, without_query},
    prelude::*,
};

use crate::{
    compile::{Compiler, SCHEME},
    config::Config,
    rule::{Policy, Subject},
};

/// The details if there are `allow` policies and none of them matches.
const NONE_MATCHED: &str = "rbac_access_denied_matched_policy[none]";

/// The filter.
pub struct Authz {
    deny: Vec<Policy>,
    allow: Vec<Policy>,
    /// Whether any `allow` policy is enforced.
    allow_enforced: bool,
    /// `:method`, `:path` and `:authority`.
    line: [Name; 3],
    scheme: Name,
    needs_line: bool,
    /// The header with the peer's identity, if a rule needs it.
    principal: Option<Name>,
    allowed: Counter,
    denied: Counter,
    dry_run_denied: Counter,
}

impl Filter for Authz {
    type Config = Config;
    type Stream = ();
    const PHASES: Phases = Phases::REQUEST_HEADERS;

    fn configure(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let mut compiler = Compiler::new(setup);
        let (principal, policies) = compiler.compile(config);
        let (needs_line, needs_principal) = (compiler.needs_line, compiler.needs_principal);
        compiler.finish()?;
        let (deny, allow): (Vec<_>, Vec<_>) = policies.into_iter().partition(|p| p.denies);
        Ok(Authz {
            allow_enforced: allow.iter().any(|p| p.enforced),
            deny,
            allow,
            line: [setup.name(":method"), setup.name(":path"), setup.name(":authority")],
            scheme: setup.name(":scheme"),
            needs_line,
            principal: principal.filter(|_| needs_principal),
            allowed: setup.counter("authz.allowed_total"),
            denied: setup.counter("authz.denied_total"),
            dry_run_denied: setup.counter("authz.dry_run_denied_total"),
        })
    }

    fn on_request(&self, request: &Request, _: &mut ()) -> Flow {
        let mut buffer = Buffer::new();
        let [m, p, a] = self.line;
        let [method, path, authority, principal] = match (self.needs_line, self.principal) {
            (_, Some(name)) => request.headers([m, p, a, name], &mut buffer),
            (true, None) => {
                let [method, path, authority] = request.headers(self.line, &mut buffer);
                [method, path, authority, None]
            }
            (false, None) => [None; 4],
        };
        let path = path.map(compared_path);
        let subject = Subject {
            request,
            method,
            path: path.as_deref(),
            authority,
            principal: principal.and_then(identity),
            scheme: self.scheme,
            peer: Cell::new(None),
            remote: Cell::new(None),
        };
        match self.decide(&subject) {
            Verdict::Allowed => {
                self.allowed.add(1);
                Flow::Continue
            }
            Verdict::OnlyTried(details) => {
                self.report(request, details);
                self.allowed.add(1);
                Flow::Continue
            }
            Verdict::Denied(details) => {
                self.denied.add(1);
                request.flag(flag::UNAUTHORIZED);
                let reply = Reply::new(403).header("content-type", "text/plain").body("access denied");
                reply.details(details).into()
            }
        }
    }
}

/// The decision on a request, with the details for the access log.
enum Verdict<'a> {
    Allowed,
    /// Allowed, but would be denied without `dry_run`.
    OnlyTried(&'a str),
    Denied(&'a str),
}

impl Authz {
    fn decide(&self, subject: &Subject) -> Verdict<'_> {
        let mut tried = None;
        for policy in &self.deny {
            // Without an enforced denial, the first matching dry-run policy is reported.
            if (policy.enforced || tried.is_none()) && policy.matches(subject) {
                if policy.enforced {
                    return Verdict::Denied(&policy.details);
                }
                tried = Some(policy.details.as_str());
            }
        }
        let some_allow = |enforced| self.allow.iter().any(|p| p.enforced == enforced && p.matches(subject));
        if self.allow_enforced {
            if !some_allow(true) {
                return Verdict::Denied(NONE_MATCHED);
            }
        } else if tried.is_none() && !self.allow.is_empty() && !some_allow(false) {
            tried = Some(NONE_MATCHED);
        }
        tried.map_or(Verdict::Allowed, Verdict::OnlyTried)
    }

    /// Reports a request that would be denied.
    fn report(&self, request: &Request, details: &str) {
        self.dry_run_denied.add(1);
        request.log_field("authz_dry_run", details);
        let mut buffer = Buffer::new();
        let [method, path, _] = request.headers(self.line, &mut buffer).map(Option::unwrap_or_default);
        let (method, path) = (method.escape_ascii(), without_query(path).escape_ascii());
        log(Level::Info, &format!("authz would deny {method} {path}: {details}"));
    }
}

/// The peer's identity without its scheme. Multiple identities count as none, because it is unknown which one the
/// trusted proxy means.
fn identity(value: &[u8]) -> Option<&[u8]> {
    let value = value.strip_prefix(SCHEME.as_bytes()).unwrap_or(value);
    (!value.is_empty() && !value.contains(&b',')).then_some(value)
}

tollgate_sdk::export!(Authz);
