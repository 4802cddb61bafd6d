//! From a file to cases: all mistakes at once, each at its place.

use std::{path::Path, sync::Arc};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json, json};

use super::{
    UPSTREAM,
    model::{Case, File},
};
use crate::config::{
    Diagnostic, Diagnostics, Source,
    model::{Filter, Listener},
    of_filter, read_tree,
};

/// A file of cases without mistakes.
pub struct Loaded {
    /// What it was read from, for the places of what fails.
    pub source: Arc<Source>,
    /// The filter, but for its configuration.
    pub filter: Filter,
    /// The listener.
    pub listener: Listener,
    /// The file, without its cases.
    pub file: File,
    /// The cases.
    pub cases: Vec<Case>,
}

/// Reads a file of cases for the filter of this name.
pub fn load(path: &Path, filter: &str) -> Result<Loaded, Diagnostics> {
    let source = Arc::new(read_tree(path)?);
    let mut wrong = Vec::new();
    let root = source.root().to_json();
    let Some(file) = read::<File>(&source, "", root, &mut wrong) else {
        return Err(Diagnostics::new(source, wrong));
    };
    for (section, fields, why) in [
        ("filter", &["wasm"][..], "the module is named on the command line"),
        ("listener", &["chain", "access_log"], "a case has a chain of one filter, and no access log"),
    ] {
        let given = if section == "filter" { &file.filter } else { &file.listener };
        for field in fields.iter().filter(|field| given.contains_key(**field)) {
            let message = format!("`{field}` has no meaning here");
            wrong.push(source.diagnostic(&format!("/{section}/{field}"), message, Some(why.to_owned())));
        }
    }
    let sections = (
        section::<Filter>(&source, "/filter", &file.filter, json!({"name": filter, "wasm": ""}), &mut wrong),
        section::<Listener>(&source, "/listener", &file.listener, listener(), &mut wrong),
    );
    let cases = file.cases.iter().enumerate().filter_map(|(i, case)| {
        let pointer = format!("/cases/{i}");
        let case = read::<Case>(&source, &pointer, case.clone(), &mut wrong)?;
        check(&source, &pointer, &case, &mut wrong);
        Some(case)
    });
    let cases: Vec<_> = cases.collect();
    match (sections, wrong.is_empty()) {
        ((Some(filter), Some(listener)), true) => Ok(Loaded { source, filter, listener, file, cases }),
        _ => Err(Diagnostics::new(source, wrong)),
    }
}

/// What a listener needs, and cases need not say.
fn listener() -> Json {
    json!({"name": "test", "address": "192.0.2.254:80", "cluster": UPSTREAM})
}

fn read<T: DeserializeOwned>(source: &Source, pointer: &str, json: Json, wrong: &mut Vec<Diagnostic>) -> Option<T> {
    match serde_path_to_error::deserialize(json) {
        Ok(value) => Some(value),
        Err(error) => {
            let inner = error.path().to_string();
            let help = "docs/tools.md has every field".to_owned();
            wrong.push(of_filter(source, pointer, &inner, &error.inner().to_string(), help));
            None
        }
    }
}

/// A section of a configuration that need not say everything.
fn section<T: DeserializeOwned>(
    source: &Source,
    pointer: &str,
    given: &Map<String, Json>,
    mut defaults: Json,
    wrong: &mut Vec<Diagnostic>,
) -> Option<T> {
    for (name, value) in given {
        defaults[name] = value.clone();
    }
    read(source, pointer, defaults, wrong)
}

/// What the types cannot say.
fn check(source: &Source, pointer: &str, case: &Case, wrong: &mut Vec<Diagnostic>) {
    let mut report = |pointer: String, message: &str| wrong.push(source.diagnostic(&pointer, message, None));
    match (&case.refused, case.steps.is_empty()) {
        (Some(_), false) => {
            report(format!("{pointer}/steps"), "a filter that refuses its configuration takes no steps")
        }
        (None, true) => report(format!("{pointer}/name"), "the case has neither `steps` nor `refused`"),
        _ => {}
    }
    for (i, step) in case.steps.iter().enumerate() {
        let pointer = format!("{pointer}/steps/{i}");
        let expect = &step.expect;
        match (&step.request, &step.wait) {
            (Some(_), None) => {}
            (None, None) | (Some(_), Some(_)) => report(pointer, "a step is either a `request` or a `wait`"),
            (None, Some(_)) => {
                let of_requests = expect.response.is_some()
                    || expect.upstream.is_some()
                    || expect.route.is_some()
                    || expect.cluster.is_some()
                    || expect.flags.is_some()
                    || expect.details.is_some()
                    || expect.takes.is_some()
                    || !expect.log_fields.is_empty();
                if of_requests {
                    report(format!("{pointer}/expect"), "after a `wait` there are only `calls`, `logs` and `metrics`");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(text: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cases.yaml");
        std::fs::write(&path, text).unwrap();
        let Err(wrong) = load(&path, "f") else { panic!("it was taken") };
        wrong.to_string().replace(&format!("{}/", dir.path().display()), "")
    }

    #[test]
    fn mistakes_are_told_at_their_place() {
        for (text, expected) in [
            (
                "cases: [{name: a, steps: [{request: GET /, expct: {}}]}]",
                "cases.yaml:1:44: error: unknown field `expct`",
            ),
            ("filter: {on_failure: maybe}\ncases: []", "cases.yaml:1:22: error: unknown variant `maybe`"),
            ("filter: {wasm: f.wasm}\ncases: []", "cases.yaml:1:16: error: `wasm` has no meaning here"),
            ("cases:\n- name: a\n  steps: [{wait: 5}]\n", "cases.yaml:3:18: error: invalid type"),
            ("cases:\n- {name: a, steps: [{request: /}]}\n", "cases.yaml:2:31: error: invalid value"),
            ("cases:\n- {name: a}\n- {name: b}\n", "cases.yaml:2:10: error: the case has neither"),
            ("cases:\n- {name: a}\n- {name: b}\n", "cases.yaml:3:10: error: the case has neither"),
            (
                "cases:\n- {name: a, steps: [{wait: 1s, expect: {details: x}}]}\n",
                "cases.yaml:2:32: error: after a `wait` there are only",
            ),
            (
                "cases:\n- name: a\n  steps:\n  - request: GET /\n    expect: {details: {matches: '('}}\n",
                "cases.yaml:5:14: error: `(` is not a regular expression: unclosed group",
            ),
        ] {
            let told = mistakes(text);
            assert!(told.contains(expected), "{text}\n{told}");
        }
    }
}
