//! The JSON Schema of a configuration: derived from the model, given an identity, and compiled once for checking files.

use std::sync::LazyLock;

use jsonschema::Validator;
use serde_json::{Value, json};

use super::{
    model::{CaUrl, Config},
    units::{Address, ByteSize, Cidr, Duration, ServerName},
};
use crate::ca::spiffe::SpiffeId;

/// The formats of ours that `format` names in the schema, beyond what a pattern can say.
pub(super) const TIME: &str = "tollgate-time";
pub(super) const SIZE: &str = "tollgate-size";
pub(super) const WORKERS: &str = "tollgate-workers";
pub(super) const ADDRESS: &str = "tollgate-address";
pub(super) const CIDR: &str = "tollgate-cidr";
pub(super) const SERVER_NAME: &str = "tollgate-server-name";
pub(super) const SPIFFE_ID: &str = "tollgate-spiffe-id";
pub(super) const CA_URL: &str = "tollgate-ca-url";

/// Where the schema is said to be. Nothing is fetched from there.
const ID: &str = "https://tollgate.dev/schema/config.json";

static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let mut schema = schemars::schema_for!(Config).to_value();
    bound_integers(&mut schema);
    schema["title"] = "Tollgate configuration".into();
    schema["$id"] = ID.into();
    schema
});

static VALIDATOR: LazyLock<Validator> = LazyLock::new(|| {
    jsonschema::draft202012::options()
        .should_validate_formats(true)
        .with_format(TIME, |s: &str| s.parse::<Duration>().is_ok())
        .with_format(SIZE, |s: &str| s.parse::<ByteSize>().is_ok())
        .with_format(WORKERS, |s: &str| s == "auto")
        .with_format(ADDRESS, |s: &str| s.parse::<Address>().is_ok())
        .with_format(CIDR, |s: &str| s.parse::<Cidr>().is_ok())
        .with_format(SERVER_NAME, |s: &str| s.parse::<ServerName>().is_ok())
        .with_format(SPIFFE_ID, |s: &str| s.parse::<SpiffeId>().is_ok())
        .with_format(CA_URL, |s: &str| s.parse::<CaUrl>().is_ok())
        .build(&SCHEMA)
        .expect("the derived schema is a schema: there is a test for that")
});

/// The JSON Schema (draft 2020-12) of a configuration file.
pub fn schema() -> Value {
    SCHEMA.clone()
}

/// What files are checked with.
pub(super) fn validator() -> &'static Validator {
    &VALIDATOR
}

/// The part of the schema that a keyword, named by a JSON pointer, is in.
pub(super) fn around(keyword: &str) -> &'static Value {
    let parent = keyword.rsplit_once('/').map_or("", |(parent, _)| parent);
    SCHEMA.pointer(parent).unwrap_or(&Value::Null)
}

/// The derived schema says `"format": "uint32"` and leaves the greatest value to the reader's knowledge.
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
        assert!(validator().is_valid(&minimal));
    }

    #[test]
    fn the_defaults_in_the_schema_satisfy_it() {
        let mut config = json!({"listeners": [{"name": "a", "address": "[::1]:80"}]});
        for (name, field) in schema()["properties"].as_object().into_iter().flatten() {
            if let Some(default) = field.get("default") {
                config[name] = default.clone();
            }
        }
        let errors: Vec<String> = validator().iter_errors(&config).map(|e| e.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?}");
    }
}
