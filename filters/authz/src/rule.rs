//! Compiled policies. Each check runs only if the earlier ones have not decided.

use std::{cell::Cell, net::IpAddr};

use tollgate_sdk::prelude::*;

use crate::{
    cidr::Blocks,
    pattern::{Cut, Hosts, Patterns},
};

/// The request that policies evaluate. Addresses and most headers are read only when a rule needs them.
pub(crate) struct Subject<'a> {
    pub(crate) request: &'a Request,
    pub(crate) method: Option<&'a [u8]>,
    /// Without the query.
    pub(crate) path: Option<&'a [u8]>,
    pub(crate) authority: Option<&'a [u8]>,
    pub(crate) principal: Option<&'a [u8]>,
    /// `:scheme`.
    pub(crate) scheme: Name,
    pub(crate) peer: Cell<Option<IpAddr>>,
    pub(crate) remote: Cell<Option<IpAddr>>,
}

impl Subject<'_> {
    /// The default port of an authority without a port.
    fn usual_port(&self) -> u16 {
        let mut buffer = Buffer::new();
        if self.request.header(self.scheme, &mut buffer) == Some(b"https") { 443 } else { 80 }
    }

    fn address(&self, whose: Source) -> IpAddr {
        let known = match whose {
            Source::Peer => &self.peer,
            Source::Client => &self.remote,
        };
        known.get().unwrap_or_else(|| {
            let ip = self.request.source(whose).ip();
            known.set(Some(ip));
            ip
        })
    }
}

/// A list of which an entry must match, and one of which none may.
#[derive(Debug)]
pub(crate) struct Lists<T> {
    pub(crate) some: Option<T>,
    pub(crate) none: Option<T>,
}

impl<T> Lists<T> {
    fn hold(&self, test: impl Fn(&T) -> bool) -> bool {
        self.some.as_ref().is_none_or(&test) && !self.none.as_ref().is_some_and(&test)
    }
}

/// Whether there is a value that passes the test.
fn given(value: Option<&[u8]>, test: impl Fn(&[u8]) -> bool) -> bool {
    value.is_some_and(test)
}

#[derive(Debug)]
pub(crate) struct From {
    pub(crate) peer: Lists<Blocks>,
    pub(crate) remote: Lists<Blocks>,
    pub(crate) principal: Lists<Patterns>,
}

impl From {
    fn matches(&self, subject: &Subject) -> bool {
        self.peer.hold(|b| b.contains(subject.address(Source::Peer)))
            && self.remote.hold(|b| b.contains(subject.address(Source::Client)))
            && self.principal.hold(|p| given(subject.principal, |v| p.matches(v)))
    }
}

#[derive(Debug)]
pub(crate) struct To {
    pub(crate) hosts: Lists<Hosts>,
    pub(crate) methods: Lists<Patterns>,
    pub(crate) paths: Lists<Patterns>,
}

impl To {
    fn matches(&self, subject: &Subject) -> bool {
        self.methods.hold(|p| given(subject.method, |v| p.matches(v)))
            && self.paths.hold(|p| given(subject.path, |v| p.matches(v)))
            && self.hosts.hold(|h| given(subject.authority, |v| h.matches(v, || subject.usual_port())))
    }
}

#[derive(Debug)]
pub(crate) enum When {
    Peer(Lists<Blocks>),
    Remote(Lists<Blocks>),
    Principal(Lists<Patterns>),
    Header(Name, Cut, Lists<Patterns>),
}

impl When {
    fn matches(&self, subject: &Subject, denies: bool) -> bool {
        match self {
            When::Peer(lists) => lists.hold(|b| b.contains(subject.address(Source::Peer))),
            When::Remote(lists) => lists.hold(|b| b.contains(subject.address(Source::Client))),
            When::Principal(lists) => lists.hold(|p| given(subject.principal, |v| p.matches(v))),
            When::Header(name, cut, lists) => {
                let mut buffer = Buffer::new();
                let value = subject.request.header(*name, &mut buffer);
                // A client may send a header twice. Lists whose match leads to a denial check each part, so that a
                // second field hides nothing; lists whose match leads to admission compare the whole, so that a second
                // field adds nothing.
                let matches =
                    |p: &Patterns, v: &[u8], parts| if parts { p.matches_part(v, *cut) } else { p.matches(v) };
                lists.some.as_ref().is_none_or(|p| given(value, |v| matches(p, v, denies)))
                    && !lists.none.as_ref().is_some_and(|p| given(value, |v| matches(p, v, !denies)))
            }
        }
    }
}

/// A rule. Empty lists match every request.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) from: Vec<From>,
    pub(crate) to: Vec<To>,
    pub(crate) when: Vec<When>,
}

/// A policy.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) rules: Vec<Rule>,
    /// Whether it denies its matches.
    pub(crate) denies: bool,
    /// Whether it is enforced, or is a dry run.
    pub(crate) enforced: bool,
    /// The access log details of a denied request.
    pub(crate) details: String,
}

impl Policy {
    pub(crate) fn matches(&self, subject: &Subject) -> bool {
        self.rules.iter().any(|rule| {
            (rule.to.is_empty() || rule.to.iter().any(|to| to.matches(subject)))
                && (rule.from.is_empty() || rule.from.iter().any(|from| from.matches(subject)))
                && rule.when.iter().all(|when| when.matches(subject, self.denies))
        })
    }
}
