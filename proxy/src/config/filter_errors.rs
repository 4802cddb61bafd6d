//! Finds all errors in a part of a file whose parser stops at the first one: a filter's configuration, a case of
//! `tollgate test`.
//!
//! Each reported value is removed from a copy of the tree, and the parser runs again until it reports nothing. Errors
//! that are only a consequence of the removal are dropped.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use serde_json::Value as Json;

use super::{
    diagnostic::Diagnostic,
    explain::{did_you_mean, in_tree},
    node::{Found, Node, Span, Value},
    source::Source,
    yaml,
};

/// The maximum number of times that a parser runs.
const ROUNDS: usize = 20;
/// A slow parser does not run again after this time.
const PATIENCE: Duration = Duration::from_secs(3);

/// The beginnings of serde's messages, and of the SDK's about blank values. A parser that reports one has not checked
/// the rest.
const OF_FORM: [&str; 9] = [
    "unknown field ",
    "missing field ",
    "unknown variant ",
    "invalid type: ",
    "invalid value: ",
    "invalid length ",
    "duplicate field ",
    "expected ",
    "this was left blank",
];

/// What a parser reports: for each error, a path in its input and a message.
pub type Reported = Vec<(String, String)>;

/// The result of [`all_mistakes`].
#[derive(Debug)]
pub enum Answer {
    /// The errors.
    Mistakes(Vec<Diagnostic>),
    /// There are no errors after converting environment variables to the types that the parser expects.
    Typed(Json),
}

/// Collects all errors of the value at `pointer`, given the first ones that its parser reported. `ask` runs the parser
/// on another version of the value; `Err(None)` means that it failed without a reason. `who` names the parser in
/// messages.
pub fn all_mistakes(
    source: &Source,
    pointer: &str,
    who: &str,
    mut said: Reported,
    mut ask: impl FnMut(&Json) -> Result<(), Option<Reported>>,
) -> Answer {
    let original = source.root().find(pointer);
    let as_told = |said: &Reported| -> Vec<Diagnostic> {
        said.iter().map(|(path, message)| in_tree(source, original, path, message, who)).collect()
    };
    // Nothing can be removed from a configuration that was omitted.
    if !original.whole {
        return Answer::Mistakes(as_told(&said));
    }
    let (start, first) = (Instant::now(), as_told(&said));
    let mut rest = TrimmedTree {
        tree: original.node.clone(),
        holes: HashSet::new(),
        unknown: Vec::new(),
        told: Vec::new(),
        doubtful: Vec::new(),
    };
    let mut typed = false;
    for _ in 0..ROUNDS {
        match rest.round(source, &original, who, &said) {
            Round::Over => break,
            Round::Typed => typed = true,
            Round::Cut => {}
        }
        if start.elapsed() > PATIENCE {
            break;
        }
        match ask(&rest.tree.to_json()) {
            Ok(()) if typed && rest.told.is_empty() => return Answer::Typed(rest.tree.to_json()),
            Ok(()) | Err(None) => break,
            Err(Some(more)) => said = more,
        }
    }
    Answer::Mistakes(if rest.told.is_empty() { first } else { rest.told })
}

enum Round {
    /// A value was removed.
    Cut,
    /// A variable was converted to another type.
    Typed,
    /// Nothing is left to try.
    Over,
}

/// A copy of the tree without the values that were reported.
struct TrimmedTree {
    tree: Node,
    /// The maps and lists that a value was removed from.
    holes: HashSet<Span>,
    /// Unknown fields, and the maps that they were removed from. Their absence matters only if they are misspellings of
    /// other fields.
    unknown: Vec<(Span, String)>,
    told: Vec<Diagnostic>,
    /// Errors that may or may not be a consequence of a removal.
    doubtful: Vec<Diagnostic>,
}

impl TrimmedTree {
    fn round(&mut self, source: &Source, original: &Found<'_>, who: &str, said: &Reported) -> Round {
        if let [(path, message)] = &said[..]
            && message.starts_with("invalid type: string")
            && let (trail, true) = self.tree.trail(path)
            && self.give_type(&trail)
        {
            return Round::Typed;
        }
        let of_form = said.iter().all(|(_, message)| OF_FORM.iter().any(|start| message.starts_with(start)));
        let (in_doubt, before) = (std::mem::take(&mut self.doubtful), self.told.len());
        let mut cuts = Vec::new();
        for (path, message) in said {
            let found = Found { node: &self.tree, ..*original }.follow(path);
            let (mut trail, whole) = self.tree.trail(path);
            let shown = if whole { self.path(original.node, &trail) } else { path.clone() };
            let mistake = in_tree(source, found, &shown, message, who);
            match self.follows(message, &trail, found.node) {
                false => self.told.push(mistake),
                true if !of_form && !self.lacks_something(found.node) => self.doubtful.push(mistake),
                true => {}
            }
            let unknown = message.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
            // The path may end at the field itself, or at the map that contains it.
            if let Some(field) = unknown.filter(|field| found.key.is_none_or(|key| key.name != **field)) {
                trail.extend(found.node.index_of(field));
            }
            if whole && !trail.is_empty() {
                cuts.push((trail, unknown.map(str::to_owned)));
            }
        }
        // A parser that still reports malformed values does not check for missing ones yet, so the value itself was
        // wrong.
        match of_form && self.told.len() > before {
            true => self.told.extend(in_doubt),
            false => self.doubtful.extend(in_doubt),
        }
        // Errors that are reported together and do not concern the form are complete.
        if cuts.is_empty() || !of_form && said.len() > 1 {
            return Round::Over;
        }
        cuts.sort();
        cuts.dedup();
        // From the end, so that the other indices stay valid; a nested value is removed with its parent.
        cuts.into_iter().rev().for_each(|(trail, unknown)| self.cut(&trail, unknown));
        Round::Cut
    }

    /// Whether an error may be a consequence of a removal.
    fn follows(&self, message: &str, trail: &[usize], node: &Node) -> bool {
        if message.starts_with("unknown field ") {
            return false;
        }
        // The missing field exists under a misspelled name.
        let words: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
        let is_slip = |(place, name): &(Span, String)| *place == node.span && did_you_mean(name, &words).is_some();
        if self.holes.contains(&node.span) || self.unknown.iter().any(is_slip) {
            return true;
        }
        if OF_FORM.iter().any(|start| message.starts_with(start)) {
            return false;
        }
        let around = &trail[..trail.len().saturating_sub(1)];
        self.lacks_something(node) || self.tree.at(around).is_some_and(|node| self.has_hole(node))
    }

    /// Whether anything was removed from a node or its descendants. Advice about such a node ("empty: remove it")
    /// refers to a configuration that the user never wrote, and may be dangerous to follow.
    fn lacks_something(&self, node: &Node) -> bool {
        self.holds(node, &|span| self.holes.contains(&span) || self.unknown.iter().any(|(place, _)| *place == span))
    }

    /// Returns the path in the original file: the indices of list items shift when earlier ones are removed.
    fn path(&self, mut original: &Node, trail: &[usize]) -> String {
        let (mut copy, mut path) = (&self.tree, String::new());
        for index in trail {
            let (step, nodes) = match (&copy.value, &original.value) {
                (Value::Map(entries), Value::Map(originals)) => {
                    let Some((key, node)) = entries.get(*index) else { break };
                    let dot = if path.is_empty() { "" } else { "." };
                    let same = originals.iter().find(|(original, _)| original.name == key.name).map(|(_, node)| node);
                    (format!("{dot}{}", key.name), same.map(|same| (node, same)))
                }
                (Value::Seq(items), Value::Seq(originals)) => {
                    let Some(node) = items.get(*index) else { break };
                    let same = originals.iter().enumerate().find(|(_, original)| original.span == node.span);
                    (format!("[{}]", same.map_or(*index, |(i, _)| i)), same.map(|(_, same)| (node, same)))
                }
                _ => break,
            };
            path.push_str(&step);
            match nodes {
                Some((next, same)) => (copy, original) = (next, same),
                None => break,
            }
        }
        path
    }

    fn has_hole(&self, node: &Node) -> bool {
        self.holds(node, &|span| self.holes.contains(&span))
    }

    /// Whether the predicate holds for a map or list, or for one of its descendants.
    fn holds(&self, node: &Node, is: &impl Fn(Span) -> bool) -> bool {
        let inside = match &node.value {
            Value::Seq(items) => items.iter().any(|item| self.holds(item, is)),
            Value::Map(entries) => entries.iter().any(|(_, value)| self.holds(value, is)),
            _ => return false,
        };
        inside || is(node.span)
    }

    fn cut(&mut self, trail: &[usize], unknown: Option<String>) {
        let Some((last, around)) = trail.split_last() else { return };
        let Some(node) = self.tree.at_mut(around) else { return };
        match &mut node.value {
            Value::Seq(items) if *last < items.len() => _ = items.remove(*last),
            Value::Map(entries) if *last < entries.len() => _ = entries.remove(*last),
            _ => return,
        }
        match unknown {
            Some(field) => self.unknown.push((node.span, field)),
            None => _ = self.holes.insert(node.span),
        }
    }

    /// Parses a text from an environment variable where the parser expects another type.
    fn give_type(&mut self, trail: &[usize]) -> bool {
        let Some(node) = self.tree.at_mut(trail) else { return false };
        let Value::String(text) = &node.value else { return false };
        match yaml::plain(&text.text) {
            looks @ (Value::Number(_) | Value::Bool(_)) if text.variable => {
                node.value = looks;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::Path};

    use serde::Deserialize;

    use super::*;
    use crate::config::{ConfigSource, Diagnostics, Format, Loader};

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Limits {
        limits: Vec<Limit>,
        #[serde(default)]
        status: u16,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Limit {
        name: String,
        requests: u32,
        #[serde(default)]
        pause: Option<crate::config::units::Duration>,
        #[serde(default)]
        dry_run: bool,
        #[serde(default)]
        tags: BTreeMap<String, String>,
    }

    fn read(json: &Json) -> Result<(), Option<Reported>> {
        let wrong = |e: serde_path_to_error::Error<serde_json::Error>| {
            let path = e.path().to_string();
            vec![(if path == "." { String::new() } else { path }, e.inner().to_string())]
        };
        let limits: Limits = serde_path_to_error::deserialize(json.clone()).map_err(|e| Some(wrong(e)))?;
        // Checks that run only after everything was parsed; reported together.
        let zero = limits.limits.iter().enumerate().filter(|(_, limit)| limit.requests == 0);
        let unpaused =
            limits.limits.iter().enumerate().filter(|(_, limit)| limit.requests == 1 && limit.pause.is_none());
        let unpaused: Reported = unpaused.map(|(i, _)| (format!("limits[{i}]"), "give a `pause`".to_owned())).collect();
        let mut said: Reported =
            zero.map(|(i, _)| (format!("limits[{i}].requests"), "0 is too few".to_owned())).collect();
        said.extend(unpaused);
        if limits.limits.is_empty() {
            said.push(("limits".to_owned(), "there is none".to_owned()));
        }
        if said.is_empty() { Ok(()) } else { Err(Some(said)) }
    }

    fn asked(config: &str) -> (Answer, std::sync::Arc<ConfigSource>) {
        let env = |name: &str| (name == "N").then(|| "7".to_owned());
        let text = format!(
            "listeners: [{{name: a, address: '127.0.0.1:80'}}]\nfilters:\n- name: f\n  wasm: builtin:router\n  config:\n{config}"
        );
        let loaded = Loader::default().env(env).parse("x.yaml", &text, Format::Yaml).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(Path::new(loaded.source.name()), Path::new("x.yaml"));
        let said = read(&loaded.config.filters[0].config.value()).unwrap_err().unwrap();
        (loaded.source.all_mistakes("/filters/0/config", "filter `f`", said, read), loaded.source)
    }

    fn told(config: &str) -> String {
        match asked(config) {
            (Answer::Mistakes(all), source) => Diagnostics::new(source, all).to_string().replace("x.yaml:", ""),
            (Answer::Typed(json), _) => panic!("{json}"),
        }
    }

    #[test]
    fn all_malformed_values_are_reported_without_consequential_errors() {
        let all = told(
            "    limits:\n    - {nmae: a, requests: 1}\n    - {name: b, requests: many, dry_run: 3}\n    \
                        - {name: [c], requests: 0}\n    - {name: d, requests: 0, tags: {x: 1}}\n    status: high\n    more: 1\n",
        );
        assert_eq!(
            all,
            "7:8: error: unknown field `nmae` (did you mean `name`?)\n\
             8:27: error: expected a whole number, found a string (reported by filter `f` at `limits[1].requests`)\n\
             8:42: error: expected `true` or `false`, found a number (reported by filter `f` at `limits[1].dry_run`)\n\
             9:8: error: expected a string, found a list (reported by filter `f` at `limits[2].name`)\n\
             10:40: error: expected a string, found a number (reported by filter `f` at `limits[3].tags.x`)\n\
             11:13: error: expected a whole number, found a string (reported by filter `f` at `status`)\n\
             12:5: error: unknown field `more` (the fields here are `limits` and `status`)"
        );
    }

    #[test]
    fn an_invalid_value_next_to_a_removed_one_is_reported() {
        // `soon` is reported after `x` was removed from the same map, and before the last one, so it is not a consequence of
        // the removal.
        let all = told("    limits: [{name: a, requests: x, pause: soon, dry_run: 5}]\n");
        let places: Vec<_> = all.lines().filter_map(|line| line.split(": error").next()).collect();
        assert_eq!(places, ["6:34", "6:44", "6:59"], "{all}");
        // A misspelled field is not also reported as missing.
        let all = told("    limits: [{name: a, requests: 1, paus: 1s}]\n");
        assert_eq!(all, "6:37: error: unknown field `paus` (did you mean `pause`?)");
    }

    #[test]
    fn removing_an_unknown_field_does_not_make_a_map_empty() {
        // A map is not reported as empty because of the unknown field that was removed from it.
        let all = told("    limits: [{name: a, requests: 1, deadline: 1s}, {name: b, requests: 1}]\n");
        assert_eq!(
            all,
            "6:37: error: unknown field `deadline` (the fields here are `name`, `requests`, `pause`, `dry_run` and `tags`)\n\
             6:52: error: give a `pause` (reported by filter `f` at `limits[1]`)"
        );
        // The singular of a list's name is not also reported as missing.
        let all = told("    limit: [{name: a, requests: 1}]\n");
        assert_eq!(all, "6:5: error: unknown field `limit` (did you mean `limits`?)");
    }

    #[test]
    fn errors_reported_together_need_no_second_run() {
        let all = told("    limits: [{name: a, requests: 0}, {name: b, requests: 0}]\n");
        assert_eq!(all.lines().count(), 2, "{all}");
        // A list whose only item was removed is not reported as empty.
        let all = told("    limits: [{name: a, requests: x}]\n");
        assert_eq!(
            all,
            "6:34: error: expected a whole number, found a string (reported by filter `f` at `limits[0].requests`)"
        );
    }

    #[test]
    fn a_variable_in_quotes_becomes_what_the_reader_wants() {
        let (answer, _) = asked("    limits: [{name: '${N}', requests: '${N}'}]\n    status: \"${N}\"\n");
        let Answer::Typed(json) = answer else { panic!("{answer:?}") };
        assert_eq!(json, serde_json::json!({"limits": [{"name": "7", "requests": 7}], "status": 7}));
        let all = told("    limits: [{name: '${N}', requests: '${N:-}x'}]\n");
        assert!(all.starts_with("6:39: error: expected a whole number, found a string"), "{all}");
    }
}
