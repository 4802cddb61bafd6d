//! Loads a file of cases, and reports all errors, each with its location.

use std::{path::Path, sync::Arc};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json, json};

use super::{
    UPSTREAM,
    model::{Case, File},
};
use crate::config::{
    Answer, Diagnostic, Diagnostics, Node, Reported, Source, all_mistakes,
    model::{Filter, Listener},
    read_tree,
};

/// A file of cases without errors.
pub struct Loaded {
    /// The source, for locating failures.
    pub source: Arc<Source>,
    /// The filter, without its configuration.
    pub filter: Filter,
    /// The listener.
    pub listener: Listener,
    /// The file, without its cases.
    pub file: File,
    /// The cases.
    pub cases: Vec<Case>,
}

/// Loads a file of cases for the filter of this name.
pub fn load(path: &Path, filter: &str) -> Result<Loaded, Diagnostics> {
    let source = Arc::new(read_tree(path)?);
    let mut wrong = Vec::new();
    let root = source.root().to_json();
    let file = read::<File>(&source, "", root, |root| root, &mut wrong).unwrap_or_else(|| {
        // The readable parts are still parsed, so that their errors are reported, too.
        let section = |name: &str| source.root().get(name).map(Node::to_json).unwrap_or_default();
        File {
            filter: section("filter").as_object().cloned().unwrap_or_default(),
            listener: section("listener").as_object().cloned().unwrap_or_default(),
            clusters: Default::default(),
            cases: section("cases").as_array().cloned().unwrap_or_default(),
        }
    });
    for (section, fields, why) in [
        ("filter", &["wasm"][..], "the module is set on the command line"),
        ("listener", &["chain", "access_log"], "a case has a chain of one filter, and no access log"),
    ] {
        let given = if section == "filter" { &file.filter } else { &file.listener };
        for field in fields.iter().filter(|field| given.contains_key(**field)) {
            let message = format!("`{field}` cannot be set here");
            wrong.push(source.diagnostic(&format!("/{section}/{field}"), message, Some(why.to_owned())));
        }
    }
    let sections = (
        section::<Filter>(&source, "/filter", &file.filter, json!({"name": filter, "wasm": ""}), &mut wrong),
        section::<Listener>(&source, "/listener", &file.listener, listener(), &mut wrong),
    );
    let cases = file.cases.iter().enumerate().filter_map(|(i, case)| {
        let pointer = format!("/cases/{i}");
        let case = read::<Case>(&source, &pointer, case.clone(), |case| case, &mut wrong)?;
        check(&source, &pointer, &case, &mut wrong);
        Some(case)
    });
    let cases: Vec<_> = cases.collect();
    match (sections, wrong.is_empty()) {
        ((Some(filter), Some(listener)), true) => Ok(Loaded { source, filter, listener, file, cases }),
        _ => Err(Diagnostics::new(&source, wrong)),
    }
}

/// Returns the required fields of a listener, which cases can omit.
fn listener() -> Json {
    json!({"name": "test", "address": "192.0.2.254:80", "cluster": UPSTREAM})
}

/// Parses a part of the file, which `whole` completes, and reports all its errors.
fn read<T: DeserializeOwned>(
    source: &Source,
    pointer: &str,
    part: Json,
    whole: impl Fn(Json) -> Json,
    wrong: &mut Vec<Diagnostic>,
) -> Option<T> {
    let attempt = |part: Json| -> Result<T, Reported> {
        serde_path_to_error::deserialize(whole(part)).map_err(|error| {
            let path = error.path().to_string();
            vec![(if path == "." { String::new() } else { path }, error.inner().to_string())]
        })
    };
    let said = match attempt(part) {
        Ok(value) => return Some(value),
        Err(said) => said,
    };
    let again = |part: &Json| attempt(part.clone()).map(|_| ()).map_err(Some);
    if let Answer::Mistakes(told) = all_mistakes(source, pointer, "", said, again) {
        let help = |help: Option<String>| help.unwrap_or_else(|| "see docs/tools.md for all fields".to_owned());
        wrong.extend(told.into_iter().map(|mistake| Diagnostic { help: Some(help(mistake.help)), ..mistake }));
    }
    None
}

/// Parses a section of a configuration with the given defaults.
fn section<T: DeserializeOwned>(
    source: &Source,
    pointer: &str,
    given: &Map<String, Json>,
    defaults: Json,
    wrong: &mut Vec<Diagnostic>,
) -> Option<T> {
    let whole = |part: Json| {
        let mut whole = defaults.clone();
        part.as_object().into_iter().flatten().for_each(|(name, value)| whole[name] = value.clone());
        whole
    };
    read(source, pointer, Json::Object(given.clone()), whole, wrong)
}

/// Checks what the types cannot express.
fn check(source: &Source, pointer: &str, case: &Case, wrong: &mut Vec<Diagnostic>) {
    let mut report = |pointer: String, message: &str| wrong.push(source.diagnostic(&pointer, message, None));
    match (&case.refused, case.steps.is_empty()) {
        (Some(_), false) => report(format!("{pointer}/steps"), "a case with `refused` cannot have `steps`"),
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
                    report(
                        format!("{pointer}/expect"),
                        "after a `wait`, only `calls`, `logs` and `metrics` can be expected",
                    );
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
    fn errors_are_located() {
        for (text, expected) in [
            (
                "cases: [{name: a, steps: [{request: GET /, expct: {}}]}]",
                "cases.yaml:1:44: error: unknown field `expct`",
            ),
            ("filter: {on_failure: maybe}\ncases: []", "cases.yaml:1:22: error: unknown variant `maybe`"),
            ("filter: {wasm: f.wasm}\ncases: []", "cases.yaml:1:16: error: `wasm` cannot be set here"),
            ("cases:\n- name: a\n  steps: [{wait: 5}]\n", "cases.yaml:3:18: error: expected a string, found a number"),
            ("cases:\n- {name: a, steps: [{request: /}]}\n", "cases.yaml:2:31: error: invalid value"),
            ("cases:\n- {name: a}\n- {name: b}\n", "cases.yaml:2:10: error: the case has neither"),
            ("cases:\n- {name: a}\n- {name: b}\n", "cases.yaml:3:10: error: the case has neither"),
            (
                "cases:\n- {name: a, steps: [{wait: 1s, expect: {details: x}}]}\n",
                "cases.yaml:2:32: error: after a `wait`, only",
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

    #[test]
    fn all_errors_are_reported_together() {
        let text = "filtre: {}\nlistener: {trusted_hops: many, via: 1}\ncases:\n\
                    - {nam: a, steps: [{request: GET /, expect: {statsu: 200, takes: soon}}]}\n\
                    - {name: b, steps: [{wait: 5}, {wait: 1s, expct: {}}]}\n";
        let told = mistakes(text);
        let places: Vec<_> = told.lines().filter_map(|line| line.split(": error").next()).collect();
        let places: Vec<_> = places.iter().map(|place| place.replace("cases.yaml:", "")).collect();
        assert_eq!(places, ["1:1", "2:26", "2:37", "4:4", "4:46", "4:66", "5:28", "5:43"], "{told}");
    }
}
