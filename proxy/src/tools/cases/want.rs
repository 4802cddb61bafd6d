//! Expected texts: equal to a text, similar to it, or absent.

use std::fmt;

use regex::Regex;
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};

/// An expectation of a text.
#[derive(Debug, Clone)]
pub enum Want {
    /// Equal to this text.
    Equal(String),
    /// Contains this text.
    Contains(String),
    /// Contains a match of the expression.
    Matches(Regex),
    /// Present, with any value.
    Present,
    /// Absent.
    Absent,
}

impl Want {
    /// Whether the text meets the expectation. Invalid UTF-8 is compared after replacement.
    pub fn accepts(&self, actual: Option<&[u8]>) -> bool {
        let Some(actual) = actual else { return matches!(self, Want::Absent) };
        let text = String::from_utf8_lossy(actual);
        match self {
            Want::Equal(wanted) => text == wanted.as_str(),
            Want::Contains(part) => text.contains(part.as_str()),
            Want::Matches(expression) => expression.is_match(&text),
            Want::Present => true,
            Want::Absent => false,
        }
    }

    /// Like [`Want::accepts`] for log lines, of which a text only needs to be a part.
    pub fn is_in(&self, line: &str) -> bool {
        match self {
            Want::Equal(part) => line.contains(part.as_str()),
            other => other.accepts(Some(line.as_bytes())),
        }
    }
}

impl fmt::Display for Want {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Want::Equal(text) => f.write_str(text),
            Want::Contains(part) => write!(f, "a text that contains `{part}`"),
            Want::Matches(expression) => write!(f, "a text that matches `{expression}`"),
            Want::Present => f.write_str("anything"),
            Want::Absent => f.write_str("nothing"),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pattern {
    contains: Option<String>,
    matches: Option<String>,
    present: Option<bool>,
}

impl<'de> Deserialize<'de> for Want {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Want;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text, `null`, or one of `contains`, `matches` and `present`")
            }
            fn visit_unit<E: de::Error>(self) -> Result<Want, E> {
                Ok(Want::Absent)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Want, E> {
                Ok(Want::Equal(text.to_owned()))
            }
            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Want, E> {
                Ok(Want::Equal(n.to_string()))
            }
            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Want, E> {
                Ok(Want::Equal(n.to_string()))
            }
            fn visit_f64<E: de::Error>(self, n: f64) -> Result<Want, E> {
                Ok(Want::Equal(n.to_string()))
            }
            fn visit_bool<E: de::Error>(self, b: bool) -> Result<Want, E> {
                Ok(Want::Equal(b.to_string()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Want, A::Error> {
                match Pattern::deserialize(MapAccessDeserializer::new(map))? {
                    Pattern { contains: Some(part), matches: None, present: None } => Ok(Want::Contains(part)),
                    Pattern { contains: None, matches: Some(text), present: None } => {
                        Regex::new(&text).map(Want::Matches).map_err(|e| {
                            // The last line has the reason; the lines before it are a drawing.
                            let why = e.to_string();
                            let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ");
                            de::Error::custom(format!("`{text}` is not a regular expression: {why}"))
                        })
                    }
                    Pattern { contains: None, matches: None, present: Some(true) } => Ok(Want::Present),
                    Pattern { contains: None, matches: None, present: Some(false) } => Ok(Want::Absent),
                    _ => Err(de::Error::custom("exactly one of `contains`, `matches` and `present` is needed")),
                }
            }
        }
        d.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn wants_are_read_and_fit() {
        let fits = |want: serde_json::Value, text: Option<&str>| {
            serde_json::from_value::<Want>(want).unwrap().accepts(text.map(str::as_bytes))
        };
        assert!(fits(json!("a"), Some("a")) && !fits(json!("a"), Some("ab")) && !fits(json!("a"), None));
        assert!(fits(json!(7), Some("7")) && fits(json!(true), Some("true")));
        assert!(fits(json!(null), None) && !fits(json!(null), Some("")));
        assert!(fits(json!({"contains": "b"}), Some("abc")) && !fits(json!({"contains": "b"}), Some("ac")));
        assert!(fits(json!({"matches": "^a.c$"}), Some("abc")) && !fits(json!({"matches": "^b"}), Some("abc")));
        assert!(fits(json!({"present": true}), Some("")) && fits(json!({"present": false}), None));
        for wrong in [json!({}), json!({"matches": "("}), json!({"contains": "a", "present": true}), json!([])] {
            assert!(serde_json::from_value::<Want>(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
