//! Golden texts: compares an interface with its recorded form. Also used by the end-to-end tests.

use std::{collections::BTreeSet, env, fs, path::Path};

use serde_json::Value;
use similar::TextDiff;

/// Compares a text with the golden one of this name, or replaces that with `UPDATE_GOLDEN` set.
#[track_caller]
pub fn compare(name: &str, now: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, now).expect("a golden text can be written");
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    if golden != now {
        let diff = TextDiff::from_lines(golden.as_str(), now);
        panic!(
            "an interface that users rely on has changed:\n{}\nIf this is intended, run the test again with UPDATE_GOLDEN=1 \
             and document the change.",
            diff.unified_diff().header(&format!("proxy/tests/golden/{name}"), "now")
        );
    }
}

/// Paths whose presence varies, with the load of the machine for example.
const BY_CHANCE: [&str; 4] = [".generator.busy", ".generator.starved", ".notes", ".warnings"];

/// Returns the shape of a JSON document: each path in it, with the type of its value. Elements of a list share a path.
pub fn shape(document: &Value) -> String {
    let mut paths = BTreeSet::new();
    walk(document, "", &mut paths);
    paths.into_iter().map(|line| line + "\n").collect()
}

fn walk(value: &Value, path: &str, paths: &mut BTreeSet<String>) {
    let kind = match value {
        _ if BY_CHANCE.contains(&path) => "anything",
        Value::Object(members) if !members.is_empty() => {
            for (key, value) in members {
                walk(value, &format!("{path}.{key}"), paths);
            }
            return;
        }
        Value::Array(elements) if !elements.is_empty() => {
            return elements.iter().for_each(|element| walk(element, &format!("{path}[]"), paths));
        }
        Value::Object(_) => "object",
        Value::Array(_) => "list",
        Value::String(_) => "text",
        Value::Number(_) => "number",
        Value::Bool(_) => "bool",
        Value::Null => "null",
    };
    paths.insert(format!("{path}: {kind}"));
}
