//! The actions of routes: forward, redirect, or respond directly.

use std::collections::BTreeMap;

use tollgate_sdk::{Flow, Name, Reply, RouteId, Selection, Setup, doc};

use crate::{
    config::{self, Rule},
    hash::{self, Issued, Keys},
    head::{Head, HeaderNames},
    headers,
    hosts::split_port,
    place::{Place, quoted},
    redirect::{self, Redirect},
    retry::{hedging, retry},
    rewrite::{Matched, PatternRewrite, PrefixRewrite},
};

/// A route's action.
pub(crate) enum Action {
    Forward(Box<Forward>),
    Redirect(Box<Redirect>),
    Respond(Box<Reply>),
}

impl Action {
    /// Compiles the action of the rule at `place` and reports errors in it.
    pub(crate) fn compile(
        rule: &Rule,
        name: String,
        matched: Matched,
        place: &Place,
        names: &mut HeaderNames,
        setup: &mut Setup,
    ) -> Option<Action> {
        let ops = rule.response_headers.as_ref();
        let ops = ops.map(|o| headers::ops(o, &place.field("response_headers"))).unwrap_or_default();
        let actions = [
            ("cluster", rule.cluster.is_some()),
            ("split", rule.split.is_some()),
            ("redirect", rule.redirect.is_some()),
            ("respond", rule.respond.is_some()),
        ];
        let (action, ()) = place.one_of(actions.map(|(name, given)| (name, given.then_some(()))))?;
        let place_of_action = place.field(action);
        if let Some(config) = &rule.redirect {
            refuse_options(rule, action, place);
            let mut headers = Vec::new();
            headers::apply(&ops, &mut headers);
            let changed = |n: &String| n == "location";
            if ops.remove.iter().any(changed) || headers.iter().any(|(n, _)| changed(n)) {
                place.field("response_headers").wrong("must not change `location`, which the redirect sets");
            }
            let redirect = Redirect::compile(config, matched, headers, &place_of_action, names, setup)?;
            return Some(Action::Redirect(Box::new(redirect)));
        }
        if let Some(config) = &rule.respond {
            refuse_options(rule, action, place);
            return respond(config, &ops, &place_of_action).map(|reply| Action::Respond(Box::new(reply)));
        }
        Forward::compile(rule, name, ops, matched, place, names, setup).map(|f| Action::Forward(Box::new(f)))
    }

    /// Runs the action.
    pub(crate) fn run(&self, head: &mut Head, path: Name) -> Flow {
        match self {
            Action::Forward(forward) => forward.run(head, path),
            Action::Redirect(redirect) => redirect.run(head),
            Action::Respond(reply) => Flow::Respond(reply.clone()),
        }
    }
}

/// Reports options that only apply to forwarded requests.
fn refuse_options(rule: &Rule, action: &str, place: &Place) {
    let given = [
        ("prefix_rewrite", rule.prefix_rewrite.is_some()),
        ("regex_rewrite", rule.regex_rewrite.is_some()),
        ("host_rewrite", rule.host_rewrite.is_some()),
        ("request_headers", rule.request_headers.is_some()),
        ("timeout", rule.timeout.is_some()),
        ("idle_timeout", rule.idle_timeout.is_some()),
        ("retry", rule.retry.is_some()),
        ("hedging", rule.hedging.is_some()),
        ("mirror", rule.mirror.is_some()),
        ("hash_key", !rule.hash_key.keys.is_empty()),
        ("filters", !rule.filters.is_empty()),
        ("metadata_match", !rule.metadata_match.is_empty()),
    ];
    for (name, _) in given.iter().filter(|(_, given)| *given) {
        place.field(name).wrong(format!("has no effect with `{action}`, only with {}", quoted(&["cluster", "split"])));
    }
}

fn respond(config: &config::Respond, ops: &doc::HeaderOps, place: &Place) -> Option<Reply> {
    if !(200..=599).contains(&config.status) {
        place.field("status").wrong(format!("a status is 200 to 599, not {}", config.status));
    }
    let mut list = headers::pairs(&config.headers, &place.field("headers"));
    if !config.body.is_empty() && !list.iter().any(|(name, _)| name == "content-type") {
        // Without it, browsers guess the type.
        list.push(("content-type".into(), "text/plain; charset=utf-8".into()));
    }
    headers::apply(ops, &mut list);
    let reply = Reply::new(config.status).body(config.body.as_str()).details("direct_response");
    Some(list.into_iter().fold(reply, |reply, (name, value)| reply.header(name, value)))
}

/// Forwards requests to a cluster.
pub(crate) struct Forward {
    route: RouteId,
    rewrite: Option<PatternRewrite>,
    /// The host replaces the beginning of the path, by the length of the match.
    strips: bool,
    split: Keys,
    balance: Keys,
}

impl Forward {
    fn compile(
        rule: &Rule,
        name: String,
        response_headers: doc::HeaderOps,
        matched: Matched,
        place: &Place,
        names: &mut HeaderNames,
        setup: &mut Setup,
    ) -> Option<Forward> {
        if rule.prefix_rewrite.is_some() && rule.regex_rewrite.is_some() {
            place.wrong("give only one of `prefix_rewrite`, `regex_rewrite`");
        }
        // The host rejects a route with an invalid one, which would only repeat this error.
        let host = rule.host_rewrite.clone().filter(|host| {
            let right = redirect::is_host(std::str::from_utf8(split_port(host.as_bytes()).0).unwrap_or_default());
            if !right {
                place.field("host_rewrite").wrong(format!("`{host}` is not a host"));
            }
            right
        });
        let prefix = rule.prefix_rewrite.as_ref();
        let prefix = prefix.and_then(|with| PrefixRewrite::compile(with, matched, &place.field("prefix_rewrite")));
        let rewrite = rule.regex_rewrite.as_ref();
        let rewrite = rewrite.and_then(|r| PatternRewrite::compile(r, &place.field("regex_rewrite")));
        let split = rule.split.as_ref().map(|split| &split.sticky);
        let split = split.map(|sticky| Keys::compile(sticky, &place.field("split").field("sticky"), names, setup));
        let balance = Keys::compile(&rule.hash_key, &place.field("hash_key"), names, setup);

        let request_headers = rule.request_headers.as_ref();
        let request_headers = request_headers.map(|o| headers::ops(o, &place.field("request_headers")));
        let millis = |field: &str, text: &Option<String>| text.as_ref().and_then(|t| place.field(field).millis(t));
        let clusters = clusters(rule, place, setup);
        let filters = filters(&rule.filters, &place.field("filters"), setup);
        let mut route = doc::Route {
            name,
            clusters: Vec::new(),
            timeout_ms: millis("timeout", &rule.timeout),
            idle_timeout_ms: millis("idle_timeout", &rule.idle_timeout),
            retry: rule.retry.as_ref().map(|r| retry(r, &place.field("retry"))),
            hedging: rule.hedging.as_ref().map(|h| hedging(h, &place.field("hedging"))),
            mirror: rule.mirror.as_ref().and_then(|m| mirror(m, &place.field("mirror"), setup)),
            host,
            prefix: None,
            request_headers: request_headers.unwrap_or_default(),
            response_headers,
            filters,
        };
        // Only now, so that errors in the other options are reported too.
        route.clusters = clusters?;
        // The host puts exactly one slash between the replacement and the rest.
        route.prefix = prefix.map(|PrefixRewrite { strip, with }| doc::PrefixRewrite {
            strip: strip as u32,
            with: if with.is_empty() { "/".into() } else { with },
        });
        let strips = route.prefix.is_some();
        let route = place.take_placed(setup.route(place.path(), &route))?;
        Some(Forward { route, rewrite, strips, split: split.unwrap_or_default(), balance })
    }

    fn run(&self, head: &mut Head, path: Name) -> Flow {
        let mut issued = Issued::default();
        let selection = Selection {
            split: self.split.hash(head, hash::SPLIT, &mut issued),
            balance: self.balance.hash(head, hash::BALANCE, &mut issued),
        };
        let rewritten = match &self.rewrite {
            // `OPTIONS *` addresses the server and has no path.
            Some(_) if head.path == b"*" => None,
            Some(rewrite) => match rewrite.rewrite(head.path) {
                Ok(rewritten) => rewritten,
                Err(_) => return Reply::new(400).body("Bad Request").details("bad_rewritten_path").into(),
            },
            // The path as sent differs in length from the path that was matched.
            None if self.strips && head.path.len() != head.written.len() => Some(head.path.to_vec()),
            None => None,
        };
        if let Some(mut rewritten) = rewritten {
            rewritten.extend_from_slice(&head.target[head.written.len()..]);
            head.request.set_header(path, rewritten);
        }
        head.request.route(self.route, selection);
        Flow::Continue
    }
}

fn cluster(name: &str, place: &Place, setup: &mut Setup) -> Option<String> {
    if setup.has_cluster(name) {
        return Some(name.into());
    }
    place.wrong(format!("there is no cluster `{name}`"));
    None
}

fn clusters(rule: &Rule, place: &Place, setup: &mut Setup) -> Option<Vec<doc::WeightedCluster>> {
    let Some(split) = &rule.split else {
        let cluster = cluster(rule.cluster.as_ref()?, &place.field("cluster"), setup)?;
        let metadata_match = rule.metadata_match.clone();
        return Some(vec![doc::WeightedCluster { cluster, weight: 1, metadata_match }]);
    };
    let place = place.field("split").field("clusters");
    if split.clusters.is_empty() {
        place.wrong("is empty");
    } else if split.clusters.iter().all(|c| c.weight == 0) {
        place.wrong("all weights are 0");
    }
    let clusters = split.clusters.iter().enumerate();
    // All of them are checked, even after an unknown one.
    let clusters: Vec<_> = clusters
        .map(|(i, c)| {
            let cluster = cluster(&c.cluster, &place.item(i).field("cluster"), setup)?;
            // A property of the cluster's own replaces that of the route.
            let mut metadata_match = rule.metadata_match.clone();
            metadata_match.extend(c.metadata_match.clone());
            Some(doc::WeightedCluster { cluster, weight: c.weight, metadata_match })
        })
        .collect();
    clusters.into_iter().collect::<Option<Vec<_>>>().filter(|c| c.iter().any(|c| c.weight > 0))
}

/// The filters that exist, with their variants. The others are reported here: the host would report only the first.
fn filters(config: &BTreeMap<String, String>, place: &Place, setup: &mut Setup) -> BTreeMap<String, String> {
    let known = |(filter, variant): &(&String, &String)| {
        place.take_placed(setup.variant(place.field(filter).path(), filter, variant)).is_some()
    };
    config.iter().filter(known).map(|(filter, variant)| (filter.clone(), variant.clone())).collect()
}

fn mirror(config: &config::Mirror, place: &Place, setup: &mut Setup) -> Option<doc::Mirror> {
    let percent = place.field("percent").take(tollgate_sdk::units::Percent::new(config.percent));
    let cluster = cluster(&config.cluster, &place.field("cluster"), setup);
    Some(doc::Mirror { cluster: cluster?, per_million: percent?.per_million() })
}
