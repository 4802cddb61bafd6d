//! Normalizes a tree to the schema where the intent is unambiguous: a value with an environment variable gets the type
//! that the schema expects, and short forms are expanded.
//!
//! This happens on the tree and not in the model's types, so that expanded values keep their location, and an error in
//! one is reported for the intended field instead of as "no variant matched".

use serde_json::Value as Json;

use super::{
    node::{Key, Node, Text, Value},
    schema::{self, takes_text},
    yaml,
};

/// Short forms: the section that a scalar may replace, the scalar's type, and the field it sets. In addition, wherever
/// the schema expects a list of items that can be written as text, a single text may replace a list of one.
pub(super) const SHORT: [(&str, &str, &str); 8] = [
    ("Admin", "boolean", "enabled"),
    ("Admin", "string", "address"),
    ("Probes", "string", "address"),
    ("Log", "string", "level"),
    ("AccessLog", "string", "to"),
    ("Endpoint", "string", "address"),
    ("Balancer", "string", "policy"),
    ("LocalityBalancing", "string", "policy"),
];

/// Normalizes a whole configuration.
pub(super) fn fit(root: &mut Node) {
    fit_to(root, schema::root());
}

fn fit_to(node: &mut Node, schema: &Json) {
    let (schema, name) = schema::resolve(schema);
    if let Value::String(text) = &node.value
        && text.variable
    {
        let wanted = schema::types(schema);
        // A variable in place of a section can have any of the section's short forms.
        let short: Vec<&str> =
            SHORT.iter().filter(|(section, ..)| *section == name).map(|(_, kind, _)| *kind).collect();
        node.value = typed(text, if short.is_empty() { &wanted } else { &short });
    }
    write_out(node, schema, name);
    match &mut node.value {
        Value::Map(entries) => {
            for (key, value) in entries {
                match schema::property(schema, &key.name) {
                    Some(schema) => fit_to(value, schema),
                    None => untyped(value),
                }
            }
        }
        Value::Seq(items) => {
            for item in items {
                match schema.get("items") {
                    Some(schema) => fit_to(item, schema),
                    None => untyped(item),
                }
            }
        }
        _ => {}
    }
}

/// Where the schema does not specify a type, an unquoted value is parsed, and a quoted one is text.
fn untyped(node: &mut Node) {
    match &mut node.value {
        Value::String(text) if text.variable => node.value = typed(text, &[]),
        Value::Map(entries) => entries.iter_mut().for_each(|(_, value)| untyped(value)),
        Value::Seq(items) => items.iter_mut().for_each(untyped),
        _ => {}
    }
}

/// Returns the value of a text with a variable, given the expected types. No types: any.
fn typed(text: &Text, wanted: &[&str]) -> Value {
    let wants = |name: &str| wanted.contains(&name);
    let anything = wanted.is_empty() || wants("object");
    match yaml::plain(&text.text) {
        looks if anything && text.plain => looks,
        looks @ Value::Number(_) if !anything && (wants("number") || wants("integer")) => looks,
        looks @ Value::Bool(_) if !anything && wants("boolean") => looks,
        _ => Value::String(text.clone()),
    }
}

fn write_out(node: &mut Node, schema: &Json, name: &str) {
    let kind = match &node.value {
        Value::Bool(_) => "boolean",
        Value::String(_) => "string",
        Value::Map(_) if schema[schema::ONE_OR_MANY] == true => "object",
        _ => return,
    };
    let inner = Node { span: node.span, value: std::mem::replace(&mut node.value, Value::Null) };
    node.value = match SHORT.iter().find(|(section, short, _)| *section == name && *short == kind) {
        Some((_, _, field)) => Value::Map(vec![(Key { name: (*field).to_owned(), span: node.span }, inner)]),
        None if kind == "object" => Value::Seq(vec![inner]),
        None if kind == "string" && schema["type"] == "array" && takes_text(&schema["items"]) => {
            Value::Seq(vec![inner])
        }
        None => inner.value,
    };
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::parse::{self, Format};

    fn tree(text: &str, format: Format) -> serde_json::Value {
        let env = |name: &str| match name {
            "N" => Some("7".to_owned()),
            "YES" => Some("true".to_owned()),
            "HOST" => Some("127.0.0.1:9001".to_owned()),
            _ => None,
        };
        let (lookup, mut problems) = (|name: &str| env(name).map(Into::into), Vec::new());
        let expanded = parse::configuration(text, format, &lookup, &mut problems).expect("a tree");
        assert!(problems.is_empty(), "{text}\n{problems:?}");
        expanded.root.to_json()
    }

    #[test]
    fn short_forms_are_expanded() {
        for (section, short, field) in SHORT {
            let defs = schema::root()["$defs"].as_object().unwrap();
            let (written, _) = schema::resolve(&defs[section]["properties"][field]);
            assert!(schema::types(written).contains(&short), "{section}.{field} is no {short}");
        }
        let short = "log: debug\nadmin: false\nlisteners:\n- {name: a, address: '127.0.0.1:80', chain: f, access_log: a.log}\n\
                     filters: [{name: f, wasm: builtin:router}]\n\
                     clusters:\n- {name: c, endpoints: ['127.0.0.1:1', {address: '127.0.0.1:2', weight: 2}]}\n\
                     - {name: d, endpoints: '127.0.0.1:1', retry: {on: reset}}\n";
        let json = tree(short, Format::Yaml);
        assert_eq!(json["log"], json!({"level": "debug"}));
        assert_eq!(json["admin"], json!({"enabled": false}));
        assert_eq!(json["listeners"][0]["chain"], json!(["f"]));
        assert_eq!(json["listeners"][0]["access_log"], json!({"to": "a.log"}));
        assert_eq!(json["clusters"][0]["endpoints"][0], json!({"address": "127.0.0.1:1"}));
        assert_eq!(json["clusters"][0]["endpoints"][1], json!({"address": "127.0.0.1:2", "weight": 2}));
        assert_eq!(json["clusters"][1]["endpoints"], json!([{"address": "127.0.0.1:1"}]));
        assert_eq!(json["clusters"][1]["retry"]["on"], json!(["reset"]));
        let admin = tree("admin: 127.0.0.1:9902\nlisteners: [{name: a, address: '127.0.0.1:80'}]\n", Format::Yaml);
        assert_eq!(admin["admin"], json!({"address": "127.0.0.1:9902"}));
        let text = "admin: {probes: '0.0.0.0:9902'}\nlisteners: [{name: a, address: '127.0.0.1:80'}]\n";
        assert_eq!(tree(text, Format::Yaml)["admin"], json!({"probes": {"address": "0.0.0.0:9902"}}));
    }

    #[test]
    fn a_variable_takes_the_type_that_its_place_wants() {
        let yaml = |n: &str, yes: &str| {
            format!(
                "workers: {n}\nadmin: {{enabled: {yes}}}\n\
                 listeners: [{{name: {n}, address: '127.0.0.1:80', trusted_hops: {n}, http2: {{stream_window: {n}}}}}]\n\
                 clusters: [{{name: c, endpoints: ['${{HOST}}'], retry_budget: {{percent: {n}}}}}]\n"
            )
        };
        let expected = json!({
            "workers": 7,
            "admin": {"enabled": true},
            "listeners": [{"name": "7", "address": "127.0.0.1:80", "trusted_hops": 7, "http2": {"stream_window": 7}}],
            "clusters": [{"name": "c", "endpoints": [{"address": "127.0.0.1:9001"}], "retry_budget": {"percent": 7}}],
        });
        assert_eq!(tree(&yaml("'${N}'", "\"${YES}\""), Format::Yaml), expected);
        assert_eq!(tree(&yaml("'${UNSET:-7}'", "'${UNSET:-true}'"), Format::Yaml), expected);
        let json =
            expected.to_string().replace("\"7\"", "\"${N}\"").replace(":7", ":\"${N}\"").replace("true", "\"${YES}\"");
        assert_eq!(tree(&json, Format::Json), expected);
        let toml = "workers = \"${N}\"\nadmin.enabled = \"${YES}\"\n[[listeners]]\nname = \"${N}\"\n\
                    address = \"127.0.0.1:80\"\ntrusted_hops = \"${N}\"\nhttp2 = {stream_window = \"${N}\"}\n\
                    [[clusters]]\nname = \"c\"\nendpoints = [\"${HOST}\"]\nretry_budget.percent = \"${N}\"\n";
        assert_eq!(tree(toml, Format::Toml), expected);
    }

    #[test]
    fn a_variable_can_replace_a_short_form() {
        let listener = "listeners: [{name: a, address: '127.0.0.1:80'}]\n";
        for (written, expected) in [
            ("${UNSET:-false}", json!({"enabled": false})),
            ("${YES}", json!({"enabled": true})),
            ("${HOST}", json!({"address": "127.0.0.1:9001"})),
        ] {
            for quote in ["", "'", "\""] {
                let text = format!("admin: {quote}{written}{quote}\n{listener}");
                assert_eq!(tree(&text, Format::Yaml)["admin"], expected, "{text}");
            }
            let toml = format!("admin = \"{written}\"\n[[listeners]]\nname = \"a\"\naddress = \"127.0.0.1:80\"\n");
            assert_eq!(tree(&toml, Format::Toml)["admin"], expected, "{toml}");
        }
        let log = tree(&format!("log: \"${{UNSET:-debug}}\"\n{listener}"), Format::Yaml);
        assert_eq!(log["log"], json!({"level": "debug"}));
    }

    #[test]
    fn where_a_filter_decides_quotes_make_a_variable_text() {
        let text = "listeners: [{name: a, address: '127.0.0.1:80', chain: f}]\n\
                    filters:\n- name: f\n  wasm: builtin:router\n  config:\n    a: ${N}\n    b: '${N}'\n    c: [${YES}, x${N}]\n";
        // A flow sequence cannot contain `${...}` without quotes.
        let text = text.replace("[${YES}, x${N}]", "\n    - ${YES}\n    - x${N}");
        let json = tree(&text, Format::Yaml);
        assert_eq!(json["filters"][0]["config"], json!({"a": 7, "b": "7", "c": [true, "x7"]}));
    }
}
