//! Rate limiting with token buckets shared by all workers, for all requests or per address, user or path.
//!
//! The buckets themselves belong to the host. This filter decides which of them a request takes from, under which key,
//! and what the client is told. An allowed request costs no allocation.

mod compile;
pub mod config;
mod fields;
mod key;

use std::{cell::RefCell, ops::Range};

use tollgate_sdk::{
    Take,
    matching::{Matcher, compared_path},
    prelude::*,
};

use crate::{
    config::{Config, Headers},
    fields::{Members, number, separate},
    key::{Key, Subject},
};

/// The filter.
pub struct Ratelimit {
    limits: Vec<Limited>,
    status: u16,
    tells: bool,
    /// `:method` and `:path`.
    line: [Name; 2],
    needs_line: bool,
    cookie: Name,
    policy_field: Name,
    state_field: Name,
    allowed: Counter,
    limited: Counter,
    dry_run_limited: Counter,
    scratch: RefCell<Scratch>,
}

/// A compiled limit.
struct Limited {
    matcher: Matcher,
    key: Key,
    bucket: Bucket,
    /// Whether it limits requests, or is a dry run.
    enforced: bool,
    members: Members,
    /// The details for the access log.
    details: String,
}

/// Memory that is reused for each request.
#[derive(Default)]
struct Scratch {
    /// The keys of all limits that were checked, concatenated.
    keys: Vec<u8>,
    asked: Vec<Asked>,
    policies: Vec<u8>,
    states: Vec<u8>,
    /// The details of dry-run limits that had no token.
    tried: String,
}

/// A limit that was checked.
struct Asked {
    limit: usize,
    /// The key's range within `Scratch::keys`.
    key: Range<usize>,
    state: Take,
}

impl Filter for Ratelimit {
    type Config = Config;
    type Stream = ();
    const PHASES: Phases = Phases::REQUEST_HEADERS;

    fn configure(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let (status, tells) = (config.status, config.headers == Headers::Draft);
        let limits = compile::limits(config, setup)?;
        Ok(Ratelimit {
            needs_line: limits.iter().any(|limit| limit.matcher.needs_line() || limit.key.needs_path()),
            limits,
            status,
            tells,
            line: [setup.name(":method"), setup.name(":path")],
            cookie: setup.name("cookie"),
            policy_field: setup.name("ratelimit-policy"),
            state_field: setup.name("ratelimit"),
            allowed: setup.counter("ratelimit.allowed_total"),
            limited: setup.counter("ratelimit.limited_total"),
            dry_run_limited: setup.counter("ratelimit.dry_run_limited_total"),
            scratch: RefCell::default(),
        })
    }

    fn on_request(&self, request: &Request, _: &mut ()) -> Flow {
        let scratch = &mut *self.scratch.borrow_mut();
        scratch.clear();
        let refused = self.ask(request, scratch);
        if !scratch.tried.is_empty() {
            self.dry_run_limited.add(1);
            request.log_field("ratelimit_dry_run", &scratch.tried);
        }
        let retry = refused.map(|(_, take)| take.retry_ms.div_ceil(1000).max(1));
        if self.tells {
            self.tell(request, retry, scratch);
        }
        match (refused, retry) {
            (Some((limit, _)), Some(retry)) => {
                self.limited.add(1);
                request.flag(flag::RATE_LIMITED);
                let mut seconds = Vec::new();
                number(retry.into(), &mut seconds);
                let reply = Reply::new(self.status).header("retry-after", seconds).header("content-type", "text/plain");
                reply.body("too many requests").details(limit.details.as_str()).into()
            }
            _ => {
                // Requests that match no limit are not counted.
                if !scratch.asked.is_empty() {
                    self.allowed.add(1);
                }
                Flow::Continue
            }
        }
    }
}

impl Ratelimit {
    /// Takes a token from each limit that applies to the request. If one has none, returns the tokens of the others,
    /// and returns that limit and its state.
    fn ask(&self, request: &Request, scratch: &mut Scratch) -> Option<(&Limited, Take)> {
        let (mut buffer, mut values) = (Buffer::new(), Buffer::new());
        let [method, path] = match self.needs_line {
            true => request.headers(self.line, &mut buffer).map(Option::unwrap_or_default),
            false => [&[][..]; 2],
        };
        let path = &*compared_path(path);
        let subject = Subject { request, path, cookie: self.cookie };
        for (index, limit) in self.limits.iter().enumerate() {
            let start = scratch.keys.len();
            if !limit.matcher.matches(method, path, request, &mut values)
                || !limit.key.append(&subject, &mut values, &mut scratch.keys)
            {
                scratch.keys.truncate(start);
                continue;
            }
            let taken = limit.bucket.take(&scratch.keys[start..], 1);
            if !taken.allowed && !limit.enforced {
                if !scratch.tried.is_empty() {
                    scratch.tried.push(' ');
                }
                scratch.tried.push_str(&limit.details);
                continue;
            }
            if !taken.allowed {
                self.give_back(scratch);
            }
            scratch.asked.push(Asked { limit: index, key: start..scratch.keys.len(), state: taken.state });
            if !taken.allowed {
                return Some((limit, taken.state));
            }
        }
        None
    }

    /// Returns the tokens that were taken for a denied request.
    fn give_back(&self, scratch: &mut Scratch) {
        for asked in &mut scratch.asked {
            asked.state = self.limits[asked.limit].bucket.take(&scratch.keys[asked.key.clone()], -1).state;
        }
    }

    /// Reports the checked limits to the client. If one denied the request, it was the last, and `retry` is
    /// `Retry-After`.
    fn tell(&self, request: &Request, retry: Option<u32>, scratch: &mut Scratch) {
        let Scratch { asked, policies, states, .. } = scratch;
        for (i, one) in asked.iter().enumerate() {
            let limit = &self.limits[one.limit];
            if limit.enforced {
                separate(policies);
                policies.extend_from_slice(&limit.members.policy);
                separate(states);
                limit.members.state(&one.state, retry.filter(|_| i + 1 == asked.len()), states);
            }
        }
        if !policies.is_empty() {
            request.add_response_header(self.policy_field, policies);
            request.add_response_header(self.state_field, states);
        }
    }
}

impl Scratch {
    fn clear(&mut self) {
        self.keys.clear();
        self.asked.clear();
        self.policies.clear();
        self.states.clear();
        self.tried.clear();
    }
}

tollgate_sdk::export!(Ratelimit);
