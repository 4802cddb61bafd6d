//! A listener's filter chains on a worker, and which of them serves a connection.
//!
//! A connection gets its chain before its TLS handshake and keeps it. Requests that begin after a reload see the chain's
//! new rules.

use std::{cell::RefCell, fmt, rc::Rc};

use crate::{
    config::units::ServerName, downstream::connection::ListenerHandle, exchange::ListenerContext,
    tcp::TcpListenerContext,
};

/// The connections that a chain serves. The default matches every connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChainMatch {
    /// Whether the client speaks TLS; `None`: either.
    pub tls: Option<bool>,
    /// The server names that the client may request (SNI). Empty: any, or none.
    pub server_names: Vec<ServerName>,
}

/// The properties of a connection that chains match on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectionFacts {
    /// Whether the client speaks TLS.
    pub is_tls: bool,
    /// The server name that it requests.
    pub server_name: Option<Box<str>>,
}

impl fmt::Display for ConnectionFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.is_tls, &self.server_name) {
            (false, _) => f.write_str("without TLS"),
            (true, None) => f.write_str("TLS without a server name"),
            (true, Some(name)) => write!(f, "TLS with the server name `{}`", name.escape_debug()),
        }
    }
}

impl ChainMatch {
    /// Whether every connection matches.
    pub fn is_any(&self) -> bool {
        *self == ChainMatch::default()
    }

    fn matches(&self, facts: &ConnectionFacts) -> bool {
        let is_named = |name: &ServerName| facts.server_name.as_deref().is_some_and(|wanted| covers(name, wanted));
        self.tls.is_none_or(|tls| tls == facts.is_tls)
            && (self.server_names.is_empty() || self.server_names.iter().any(is_named))
    }
}

/// Whether a server name, or a wildcard, covers a requested name.
fn covers(name: &ServerName, wanted: &str) -> bool {
    match name {
        ServerName::Exact(name) => wanted.eq_ignore_ascii_case(name),
        ServerName::Below(suffix) => {
            wanted.len().checked_sub(suffix.len()).and_then(|at| wanted.split_at_checked(at)).is_some_and(
                |(before, end)| before.len() > 1 && before.ends_with('.') && end.eq_ignore_ascii_case(suffix),
            )
        }
    }
}

/// The rules of one configuration for a chain.
#[derive(Clone)]
pub struct ChainRules {
    /// The connections that it serves.
    pub matches: ChainMatch,
    /// The rules for requests.
    pub context: Rc<ListenerContext>,
    /// The rules for TCP connections; `None` if the listener accepts none.
    pub tcp: Option<Rc<TcpListenerContext>>,
}

/// A chain, with the rules that are active.
pub struct ActiveChain {
    /// The connections that it serves.
    pub matches: ChainMatch,
    /// The rules for requests.
    pub handle: Rc<ListenerHandle>,
    /// The rules for TCP connections; `None` if the listener accepts none.
    pub tcp: RefCell<Option<Rc<TcpListenerContext>>>,
}

impl ActiveChain {
    fn new(rules: ChainRules) -> Rc<ActiveChain> {
        let ChainRules { matches, context, tcp } = rules;
        Rc::new(ActiveChain { matches, handle: Rc::new(ListenerHandle::new(context)), tcp: RefCell::new(tcp) })
    }
}

/// The chains of a listener, in order; at least one.
pub struct ActiveChains(RefCell<Vec<Rc<ActiveChain>>>);

impl ActiveChains {
    /// Creates the chains of a new listener.
    pub fn new(rules: Vec<ChainRules>) -> ActiveChains {
        ActiveChains(RefCell::new(rules.into_iter().map(ActiveChain::new).collect()))
    }

    /// Applies new rules. Chains with the same match keep their connections; those of chains that no longer exist are
    /// drained.
    pub fn update(&self, rules: Vec<ChainRules>) {
        let mut before = self.0.take();
        let next = rules.into_iter().map(|rules| {
            let Some(at) = before.iter().position(|chain| chain.matches == rules.matches) else {
                return ActiveChain::new(rules);
            };
            let chain = before.remove(at);
            chain.handle.set_context(rules.context);
            chain.tcp.replace(rules.tcp);
            chain
        });
        let next = next.collect();
        before.iter().for_each(|chain| chain.handle.drain());
        self.0.replace(next);
    }

    /// Returns the first chain, whose settings apply to connections that do not have a chain yet: the listener's settings are
    /// the same in all of them.
    pub fn first(&self) -> Rc<ActiveChain> {
        self.0.borrow()[0].clone()
    }

    /// Returns the first chain that matches a connection.
    pub fn choose(&self, facts: &ConnectionFacts) -> Option<Rc<ActiveChain>> {
        self.0.borrow().iter().find(|chain| chain.matches.matches(facts)).cloned()
    }

    /// Drains the connections of all chains.
    pub fn drain(&self) {
        self.0.borrow().iter().for_each(|chain| chain.handle.drain());
    }
}

#[cfg(test)]
mod tests;
