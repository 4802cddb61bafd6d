//! The JSON Schema of a configuration: derived from the model, then compiled once for validating files.

use std::sync::LazyLock;

use jsonschema::Validator;
use serde_json::{Value, json};

use super::{
    model::{CaUrl, Config},
    normalize::SHORT,
    spiffe::SpiffeId,
    units::{Address, ByteSize, Cidr, Duration, ServerName, StatusRange, is_host_name},
};

/// Custom `format` names in the schema, for checks beyond what a pattern can express.
pub(super) const TIME: &str = "tollgate-time";
pub(super) const SIZE: &str = "tollgate-size";
pub(super) const WORKERS: &str = "tollgate-workers";
pub(super) const ADDRESS: &str = "tollgate-address";
pub(super) const ENDPOINT_ADDRESS: &str = "tollgate-endpoint-address";
pub(super) const STATUSES: &str = "tollgate-statuses";
/// Marks a list for which its only item can be written instead.
pub(super) const ONE_OR_MANY: &str = "x-one-or-many";
pub(super) const HOST_NAME: &str = "tollgate-host-name";
pub(super) const SOCKET_ADDRESS: &str = "socket-address";
pub(super) const CIDR: &str = "tollgate-cidr";
pub(super) const SERVER_NAME: &str = "tollgate-server-name";
pub(super) const SPIFFE_ID: &str = "tollgate-spiffe-id";
pub(super) const CA_URL: &str = "tollgate-ca-url";

/// The schema's identifier. Nothing is fetched from there.
const ID: &str = "https://tollgate.dev/schema/config.json";

static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let mut schema = schemars::schema_for!(Config).to_value();
    bound_integers(&mut schema);
    refuse_blanks(&mut schema);
    schema["title"] = "Tollgate configuration".into();
    schema["$id"] = ID.into();
    schema
});

/// Validates everything but the entries of the sections that have their own validators, so that a large file needs no
/// second copy as JSON.
static BOOTSTRAP: LazyLock<Validator> = LazyLock::new(|| {
    let mut schema = SCHEMA.clone();
    for section in ["listeners", "filters", "clusters"] {
        schema["properties"][section].as_object_mut().into_iter().for_each(|section| _ = section.remove("items"));
    }
    build(&schema)
});

static LISTENER: LazyLock<Validator> = LazyLock::new(|| entry("Listener"));
static FILTER: LazyLock<Validator> = LazyLock::new(|| entry("Filter"));
static CLUSTER: LazyLock<Validator> = LazyLock::new(|| entry("Cluster"));

/// Returns the validator of a definition.
fn entry(name: &str) -> Validator {
    build(&json!({ "$schema": SCHEMA["$schema"], "$defs": SCHEMA["$defs"], "$ref": format!("#/$defs/{name}") }))
}

fn build(schema: &Value) -> Validator {
    jsonschema::draft202012::options()
        .should_validate_formats(true)
        .with_format(TIME, |s: &str| s.parse::<Duration>().is_ok())
        .with_format(SIZE, |s: &str| s.parse::<ByteSize>().is_ok())
        .with_format(WORKERS, |s: &str| s == "auto")
        .with_format(ADDRESS, |s: &str| s.parse::<Address>().is_ok())
        .with_format(ENDPOINT_ADDRESS, |s: &str| Address::of_endpoint(s).is_ok())
        .with_format(HOST_NAME, is_host_name)
        .with_format(SOCKET_ADDRESS, |s: &str| s.parse::<std::net::SocketAddr>().is_ok())
        .with_format(STATUSES, |s: &str| s.parse::<StatusRange>().is_ok())
        .with_format(CIDR, |s: &str| s.parse::<Cidr>().is_ok())
        .with_format(SERVER_NAME, |s: &str| s.parse::<ServerName>().is_ok())
        .with_format(SPIFFE_ID, |s: &str| s.parse::<SpiffeId>().is_ok())
        .with_format(CA_URL, |s: &str| s.parse::<CaUrl>().is_ok())
        .build(schema)
        .expect("the derived schema is a schema: there is a test for that")
}

/// Returns the JSON Schema (draft 2020-12) of a configuration file as written by users, with environment variables and
/// short forms.
pub fn schema() -> Value {
    let mut schema = shorten(&SCHEMA);
    allow_variables(&mut schema);
    schema
}

/// Returns the schema of a normalized tree.
pub(super) fn root() -> &'static Value {
    &SCHEMA
}

/// Follows references. Returns the schema and the section's name, empty for the root.
pub(super) fn resolve(mut schema: &Value) -> (&Value, &str) {
    let mut name = "";
    while let Some(section) = schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix("#/$defs/")) {
        (schema, name) = (&SCHEMA["$defs"][section], section);
    }
    (schema, name)
}

/// Returns the allowed types; empty if all are allowed.
pub(super) fn types(schema: &Value) -> Vec<&str> {
    match &schema["type"] {
        Value::String(one) => vec![one.as_str()],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => schema["oneOf"].as_array().into_iter().flatten().flat_map(types).collect(),
    }
}

/// Returns the schema of a map's field.
pub(super) fn property<'s>(schema: &'s Value, name: &str) -> Option<&'s Value> {
    let branches = schema["oneOf"].as_array().into_iter().flatten();
    let own = schema["properties"].get(name).or_else(|| branches.into_iter().find_map(|branch| property(branch, name)));
    own.or_else(|| schema.get("additionalProperties").filter(|values| values.is_object()))
}

/// Whether a value can be written as text.
pub(super) fn takes_text(schema: &Value) -> bool {
    let (schema, name) = resolve(schema);
    types(schema).contains(&"string") || SHORT.iter().any(|(section, kind, _)| *section == name && *kind == "string")
}

/// Removes `null` everywhere: it stands for a value that was left blank, which is not the same as an omitted one.
fn refuse_blanks(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|name| name != "null");
                if let [only] = &types[..] {
                    object["type"] = only.clone();
                }
            }
            if let Some(Value::Array(branches)) = object.get_mut("anyOf") {
                branches.retain(|branch| branch["type"] != "null");
                if let [Value::Object(only)] = &mut branches[..] {
                    let only = std::mem::take(only);
                    object.remove("anyOf");
                    only.into_iter().for_each(|(keyword, value)| _ = object.entry(keyword).or_insert(value));
                }
            }
            object.values_mut().for_each(refuse_blanks);
        }
        Value::Array(items) => items.iter_mut().for_each(refuse_blanks),
        _ => {}
    }
}

/// Adds the short forms as alternatives.
fn shorten(schema: &Value) -> Value {
    let either = |long: Value, short: Vec<Value>| {
        let mut both = json!({ "anyOf": [long] });
        if let Some(description) = both["anyOf"][0].as_object_mut().and_then(|long| long.remove("description")) {
            both["description"] = description;
        }
        both["anyOf"].as_array_mut().into_iter().for_each(|all| all.extend(short.clone()));
        both
    };
    match schema {
        Value::Object(object) => {
            let mut new: serde_json::Map<_, _> =
                object.iter().map(|(keyword, value)| (keyword.clone(), shorten(value))).collect();
            for (section, _, field) in SHORT {
                let short = schema.pointer(&format!("/$defs/{section}/properties/{field}")).cloned();
                if let (Some(short), Some(sections)) = (short, new.get_mut("$defs")) {
                    let long = sections[section].take();
                    sections[section] = match long.get("anyOf").is_some() {
                        // It already has another short form.
                        true => {
                            let mut long = long;
                            long["anyOf"].as_array_mut().into_iter().for_each(|all| all.push(short.clone()));
                            long
                        }
                        false => either(long, vec![short]),
                    };
                }
            }
            let one = schema[ONE_OR_MANY] == true || takes_text(&schema["items"]);
            match schema["type"] == "array" && one {
                true => either(Value::Object(new), vec![schema["items"].clone()]),
                false => Value::Object(new),
            }
        }
        Value::Array(items) => items.iter().map(shorten).collect(),
        other => other.clone(),
    }
}

/// Matches a value with an environment variable, used wherever the schema restricts a value further than to text.
const VARIABLE: &str = r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}";

/// Allows variables in place of numbers, booleans, and texts with a format.
fn allow_variables(schema: &mut Value) {
    let variable = || json!({ "type": "string", "pattern": VARIABLE });
    let is_word = |schema: &Value| schema.get("const").is_some() || schema.get("enum").is_some();
    let names: Vec<String> = types(schema).into_iter().map(str::to_owned).collect();
    let has = |name: &str| names.iter().any(|n| n == name);
    match schema {
        Value::Object(object) => {
            if let Some(Value::Array(words)) = object.get_mut("oneOf")
                && words.iter().all(is_word)
            {
                words.push(variable());
                return;
            }
            if object.get("enum").is_some_and(Value::is_array) {
                let words = json!({ "type": "string", "enum": object.remove("enum") });
                object.remove("type");
                object.insert("anyOf".to_owned(), json!([words, variable()]));
                return;
            }
            if ["integer", "number", "boolean"].into_iter().any(has) && !has("string") && !has("object") {
                let all: Vec<_> = names.iter().map(String::as_str).chain(["string"]).collect();
                object.insert("type".to_owned(), json!(all));
                object.insert("pattern".to_owned(), VARIABLE.into());
            } else if let Some(Value::String(pattern)) = object.get_mut("pattern") {
                *pattern = format!("(?:{pattern})|{VARIABLE}");
            }
            object.values_mut().for_each(allow_variables);
        }
        Value::Array(items) => items.iter_mut().for_each(allow_variables),
        _ => {}
    }
}

/// Returns the validator of a section's entries, or of everything else for an empty name.
pub(super) fn validator(section: &str) -> &'static Validator {
    match section {
        "listeners" => &LISTENER,
        "filters" => &FILTER,
        "clusters" => &CLUSTER,
        _ => &BOOTSTRAP,
    }
}

/// Returns the part of the schema that contains a keyword, given as a JSON pointer, and the section's name; see
/// [`resolve`].
pub(super) fn around(keyword: &str) -> (&'static Value, &str) {
    let parent = keyword.rsplit_once('/').map_or("", |(parent, _)| parent);
    (SCHEMA.pointer(parent).unwrap_or(&Value::Null), parent.strip_prefix("/$defs/").unwrap_or(parent))
}

/// Adds the maximum to integers: the derived schema only states `"format": "uint32"`.
fn bound_integers(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            let max = match object.get("format").and_then(Value::as_str) {
                Some("uint16") => Some(u64::from(u16::MAX)),
                Some("uint32") => Some(u64::from(u32::MAX)),
                _ => None,
            };
            if let Some(max) = max {
                object.entry("maximum").or_insert(json!(max));
            }
            object.values_mut().for_each(bound_integers);
        }
        Value::Array(items) => items.iter_mut().for_each(bound_integers),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_is_one_and_describes_itself() {
        let schema = schema();
        assert!(jsonschema::draft202012::meta::is_valid(&schema));
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        assert_eq!(schema["$id"], ID);
        assert_eq!(schema["$defs"]["Listener"]["properties"]["trusted_hops"]["maximum"], u32::MAX);
        let described = |object: &Value| {
            let fields = object["properties"].as_object().into_iter().flatten();
            for (name, field) in fields {
                assert!(field["description"].is_string(), "{name} has no description");
            }
        };
        described(&schema);
        schema["$defs"].as_object().into_iter().flatten().for_each(|(_, d)| described(d));
        let minimal = json!({"listeners": [{"name": "a", "address": "[::1]:80"}]});
        assert!(build(&SCHEMA).is_valid(&minimal));
    }

    #[test]
    fn the_defaults_in_the_schema_satisfy_it() {
        let mut config = json!({"listeners": [{"name": "a", "address": "[::1]:80"}]});
        for (name, field) in schema()["properties"].as_object().into_iter().flatten() {
            if let Some(default) = field.get("default") {
                config[name] = default.clone();
            }
        }
        let errors: Vec<String> = build(&SCHEMA).iter_errors(&config).map(|e| e.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?}");
    }
}
