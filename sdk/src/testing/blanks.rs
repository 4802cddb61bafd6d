//! Configurations with values left blank, which mean nothing and must not be taken for values that were left out.

use serde_json::Value;

use super::TestHost;
use crate::Filter;

/// Blanks each value of a configuration that the filter takes, one after the other, and makes sure that the filter refuses that
/// and names the value's place, or that of something around it.
///
/// `values:` with nothing behind it is YAML for null, and serde takes null for an optional field that is not there: a rule that
/// was to be for some requests would be for all of them.
///
/// # Panics
/// If the filter refuses the whole configuration, takes one with a blank, or names another place.
pub fn refuses_blanks<F: Filter>(config: &Value) {
    if let Err(refused) = TestHost::<F>::new(config.clone()) {
        panic!("without any blank: {refused}");
    }
    let mut all = Vec::new();
    places(config, "", &mut all);
    for pointer in all {
        let mut blanked = config.clone();
        if let Some(value) = blanked.pointer_mut(&pointer) {
            *value = Value::Null;
        }
        let Err(refused) = TestHost::<F>::new(blanked) else { panic!("`{pointer}` was left blank and taken") };
        let place = refused.path.replace('[', ".").replace(']', "").replace('.', "/");
        assert!(format!("{pointer}/").starts_with(&format!("/{place}/")), "{pointer}: {refused}");
    }
}

/// The places of all values within a value, as JSON pointers.
fn places(value: &Value, at: &str, all: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(map) => map.iter().map(|(key, child)| (key.clone(), child)).collect(),
        Value::Array(items) => items.iter().enumerate().map(|(i, child)| (i.to_string(), child)).collect(),
        _ => Vec::new(),
    };
    for (name, child) in children {
        let at = format!("{at}/{name}");
        places(child, &at, all);
        all.push(at);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{ConfigError, Phases, Setup};

    /// Takes any JSON at all.
    struct Lenient;

    impl Filter for Lenient {
        type Config = Value;
        type Stream = ();
        const PHASES: Phases = Phases::END;

        fn configure(_: Value, _: &mut Setup) -> Result<Self, ConfigError> {
            Ok(Lenient)
        }
    }

    #[test]
    #[should_panic = "`/a` was left blank and taken"]
    fn a_filter_that_takes_a_blank_is_found() {
        refuses_blanks::<Lenient>(&json!({"a": 1}));
    }

    #[test]
    fn all_places_are_tried() {
        let mut all = Vec::new();
        places(&json!({"a": [{"b": 1}, 2]}), "", &mut all);
        assert_eq!(all, ["/a/0/b", "/a/0", "/a/1", "/a"]);
    }
}
