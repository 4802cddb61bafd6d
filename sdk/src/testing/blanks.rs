//! Test helper for configurations with blank values, which must not be treated as omitted fields.

use serde_json::Value;

use super::TestHost;
use crate::Filter;

/// Blanks each value of a valid configuration in turn, and checks that the filter rejects the result and names the
/// value's location or an enclosing one.
///
/// `values:` with nothing after it is YAML for null, and serde reads null as an absent optional field: a rule meant for
/// some requests would apply to all.
///
/// # Panics
/// If the filter rejects the whole configuration, accepts one with a blank, or names another location.
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

/// Collects the locations of all values within a value, as JSON pointers.
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

    /// Accepts arbitrary JSON.
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
    fn filter_that_accepts_a_blank_is_detected() {
        refuses_blanks::<Lenient>(&json!({"a": 1}));
    }

    #[test]
    fn all_locations_are_tried() {
        let mut all = Vec::new();
        places(&json!({"a": [{"b": 1}, 2]}), "", &mut all);
        assert_eq!(all, ["/a/0/b", "/a/0", "/a/1", "/a"]);
    }
}
