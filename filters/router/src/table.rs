//! The routes of a virtual host, indexed so that the first match is found without checking each of them.
//!
//! Routes for an exact path are in a map, those for a prefix in a trie of path segments, those for a regular expression
//! in another trie by its literal leading segments, and only the others (no path, or an expression without a literal
//! beginning) are in a list. Each lookup yields routes in order; the lowest number whose other conditions are met wins,
//! and no list is followed beyond the best number so far. Nothing is allocated.

use std::ops::ControlFlow;

use rustc_hash::FxHashMap;
use tollgate_sdk::{
    Setup,
    matching::{Extent, path_mistake},
};

use crate::{
    action::Action,
    config::{PathMatch, VirtualHost},
    head::{Head, HeaderNames},
    literal,
    matcher::Conditions,
    place::Place,
    rewrite::Matched,
};

/// The routes of a virtual host.
#[derive(Default)]
pub(crate) struct Table {
    rules: Vec<Rule>,
    exact: FxHashMap<Box<[u8]>, Bucket>,
    prefixes: Trie,
    others: Bucket,
    /// Separate from the prefixes, because expressions are expensive and tried last.
    expressions: Trie,
}

struct Rule {
    conditions: Conditions,
    action: Action,
}

/// Numbers of rules in ascending order.
type Bucket = Vec<u32>;

impl Table {
    /// Compiles the routes of the virtual host at `place` and reports errors in them.
    pub(crate) fn compile(mut host: VirtualHost, place: &Place, names: &mut HeaderNames, setup: &mut Setup) -> Self {
        let routes = std::mem::take(&mut host.routes);
        let mut table = Table { rules: Vec::with_capacity(routes.len()), ..Table::default() };
        // Each route is dropped once it is compiled, so that the next ones reuse its memory.
        for (i, rule) in routes.into_iter().enumerate() {
            let (place, number) = (place.field("routes").item(i), i as u32);
            let matches = place.field("match");
            let name = match &rule.name {
                Some(name) => format!("{}/{name}", host.name()),
                None => format!("{}/{i}", host.name()),
            };
            let matched = match &rule.matches.path {
                Some(path) => table.add_path(path, number, &matches.field("path")),
                None => {
                    table.others.push(number);
                    Matched::Other
                }
            };
            let conditions = Conditions::compile(&rule.matches, &matches, names, setup);
            // A rule with an error is left out, which shifts later numbers: the table will not be used.
            if let Some(action) = Action::compile(&rule, name, matched, &place, names, setup) {
                table.rules.push(Rule { conditions, action });
            }
        }
        table
    }

    fn add_path(&mut self, path: &PathMatch, number: u32, place: &Place) -> Matched {
        let fields = [("exact", &path.exact), ("prefix", &path.prefix), ("regex", &path.regex)];
        let Some((field, text)) = place.one_of(fields.map(|(name, text)| (name, text.as_deref()))) else {
            return Matched::Other;
        };
        let place = place.field(field);
        let mistake = match field {
            "regex" if !text.is_ascii() => {
                Some("paths are ASCII: percent-encode other characters, as in `%C3%A9`".into())
            }
            "regex" => None,
            // `OPTIONS *` is the only request whose path does not begin with a slash.
            "exact" if text == "*" => None,
            "prefix" if text.ends_with('*') => {
                let right = text.trim_end_matches('*');
                Some(format!("a prefix has no wildcard: write `{}`", if right.is_empty() { "/" } else { right }))
            }
            _ => path_mistake(text, Extent::Whole),
        };
        if let Some(message) = mistake {
            place.wrong(message);
        }
        match field {
            "exact" => {
                self.exact.entry(text.as_bytes().into()).or_default().push(number);
                Matched::Exact(text.len())
            }
            "prefix" => {
                let prefix = text.trim_end_matches('/');
                self.prefixes.add(prefix.as_bytes(), number);
                Matched::Prefix(prefix.len())
            }
            _ => {
                match literal::segments(text) {
                    Some(beginning) => self.expressions.add(&beginning, number),
                    None => self.others.push(number),
                }
                Matched::Other
            }
        }
    }

    /// The action of the first rule that matches a request.
    pub(crate) fn find(&self, head: &mut Head) -> Option<&Action> {
        let mut best = u32::MAX;
        if let Some(bucket) = self.exact.get(head.path) {
            self.first_in(bucket, head, &mut best);
        }
        let path = head.path;
        self.prefixes.visit(path, |bucket| self.first_in(bucket, head, &mut best));
        self.first_in(&self.others, head, &mut best);
        self.expressions.visit(path, |bucket| self.first_in(bucket, head, &mut best));
        self.rules.get(best as usize).map(|rule| &rule.action)
    }

    /// Lowers `best` to the first rule in the bucket below it that matches, if any.
    fn first_in(&self, bucket: &Bucket, head: &mut Head, best: &mut u32) {
        for number in bucket.iter().take_while(|number| **number < *best) {
            #[cfg(test)]
            work::count();
            if self.rules.get(*number as usize).is_some_and(|rule| rule.conditions.met_by(head)) {
                *best = *number;
                return;
            }
        }
    }
}

/// Rules by prefixes of whole segments. The root is the prefix `/`.
struct Trie {
    nodes: Vec<Node>,
}

#[derive(Default)]
struct Node {
    rules: Bucket,
    children: FxHashMap<Box<[u8]>, u32>,
}

impl Default for Trie {
    fn default() -> Self {
        Trie { nodes: vec![Node::default()] }
    }
}

impl Trie {
    /// Adds a rule for a prefix, such as `/api/users`, without a trailing slash.
    fn add(&mut self, prefix: &[u8], number: u32) {
        let mut at = 0;
        for segment in prefix.split(|b| *b == b'/').skip(1) {
            let next = self.nodes.len() as u32;
            let child = *self.nodes[at].children.entry(segment.into()).or_insert(next);
            if child == next {
                self.nodes.push(Node::default());
            }
            at = child as usize;
        }
        self.nodes[at].rules.push(number);
    }

    /// Visits the rules of each prefix of a path, shortest first.
    fn visit(&self, path: &[u8], mut bucket: impl FnMut(&Bucket)) {
        let Some(rest) = path.strip_prefix(b"/") else { return };
        bucket(&self.nodes[0].rules);
        // Usually there are no expressions.
        if self.nodes.len() == 1 {
            return;
        }
        // The walk ends at the first segment that no prefix has, so a request cannot make it longer than the longest
        // prefix.
        let _ = rest.split(|b| *b == b'/').try_fold(&self.nodes[0], |node, segment| {
            if node.children.is_empty() {
                return ControlFlow::Break(());
            }
            #[cfg(test)]
            work::count();
            let Some(child) = node.children.get(segment) else { return ControlFlow::Break(()) };
            let node = &self.nodes[*child as usize];
            bucket(&node.rules);
            ControlFlow::Continue(node)
        });
    }
}

/// Counts the steps of lookups, to check what they grow with.
#[cfg(test)]
pub(crate) mod work {
    use std::cell::Cell;

    thread_local! {
        static STEPS: Cell<u32> = const { Cell::new(0) };
    }

    pub(crate) fn count() {
        STEPS.set(STEPS.get() + 1);
    }

    /// Steps since the last call.
    pub(crate) fn take() -> u32 {
        STEPS.take()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tollgate_sdk::testing::TestHost;

    use super::work;
    use crate::Router;

    /// Steps for one request with this many routes.
    fn steps(routes: usize, route: impl Fn(usize) -> Value, path: &str) -> u32 {
        let routes: Vec<Value> = (0..routes).map(route).collect();
        let config = json!({"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": routes}]});
        let host = TestHost::<Router>::new(config).unwrap();
        work::take();
        assert_eq!(host.request("GET", path).send().route(), Some("v/7"));
        work::take()
    }

    #[test]
    fn lookup_does_not_grow_with_the_number_of_routes() {
        let exact = |i| json!({"match": {"path": {"exact": format!("/a/{i}/b")}}, "cluster": "c"});
        let prefix = |i| json!({"match": {"path": {"prefix": format!("/a/{i}/b")}}, "cluster": "c"});
        let regex = |i| json!({"match": {"path": {"regex": format!("/a/{i}/(b|c)+")}}, "cluster": "c"});
        let mixed = |i| if i % 2 == 0 { exact(i) } else { prefix(i) };
        for (few, many, most) in [
            (steps(10, exact, "/a/7/b"), steps(10_000, exact, "/a/7/b"), 2),
            (steps(10, prefix, "/a/7/b/c"), steps(10_000, prefix, "/a/7/b/c"), 5),
            (steps(10, regex, "/a/7/bc"), steps(10_000, regex, "/a/7/bc"), 6),
            (steps(10, mixed, "/a/7/b/c"), steps(10_000, mixed, "/a/7/b/c"), 5),
        ] {
            assert_eq!(few, many);
            assert!(few <= most, "{few} steps");
        }
    }

    #[test]
    fn regular_expressions_after_the_best_rule_are_not_tried() {
        let route = |i| match i {
            7 => json!({"match": {"path": {"prefix": "/a"}}, "cluster": "c"}),
            _ => json!({"match": {"path": {"regex": format!("/b{i}")}}, "cluster": "c"}),
        };
        // A segment in each trie, the rule itself, and seven expressions.
        assert!(steps(1000, route, "/a") <= 10);
    }
}
