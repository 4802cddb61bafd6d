//! Configuration errors: which field is wrong, and why.

pub mod matching;
pub(crate) mod setup;

use std::{
    any::{Any, TypeId},
    fmt,
};

/// An error in a filter's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Location in the configuration, such as `rules[2].match.path`; empty for the whole configuration.
    pub path: String,
    /// Description of the error and of a correct value.
    pub message: String,
    /// Further errors, so that a filter can report all of them together.
    pub more: Vec<ConfigError>,
}

impl ConfigError {
    /// Creates an error at `path` (such as `rules[2].match.path`; empty for the whole configuration).
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> ConfigError {
        ConfigError { path: path.into(), message: message.into(), more: Vec::new() }
    }

    /// Combines several errors into one; `None` if the list is empty.
    pub fn all(errors: Vec<ConfigError>) -> Option<ConfigError> {
        let mut errors = errors.into_iter();
        let mut first = errors.next()?;
        first.more.extend(errors);
        Some(first)
    }

    /// Iterates over this error and the further ones.
    pub fn iter(&self) -> impl Iterator<Item = &ConfigError> {
        fn collect<'e>(error: &'e ConfigError, all: &mut Vec<&'e ConfigError>) {
            all.push(error);
            error.more.iter().for_each(|error| collect(error, all));
        }
        let mut all = Vec::new();
        collect(self, &mut all);
        all.into_iter()
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, e) in self.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            let path = if e.path.is_empty() { String::new() } else { format!("{}: ", e.path) };
            write!(f, "{separator}{path}{}", e.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// Returns `Some(())` if `T` is `()`. The compiler evaluates this statically and removes the branch not taken.
fn unit<T: 'static>() -> Option<T> {
    let mut value: Option<T> = None;
    if let Some(unit) = (&mut value as &mut dyn Any).downcast_mut::<Option<()>>() {
        *unit = Some(());
    }
    value
}

/// Returns the paths of all blank (`null`) values in a JSON text, which must be well-formed.
///
/// An `Option` treats a blank value as an omitted field, so a `from:` with nothing after it would open a rule to every
/// client. serde cannot reject blanks without a wrapper around each type, hence this second pass over the text.
fn blanks(json: &[u8]) -> Vec<String> {
    enum Level<'j> {
        Map(&'j [u8]),
        List(usize),
    }
    let (mut levels, mut found, mut at) = (Vec::new(), Vec::new(), 0);
    while let Some(byte) = json.get(at) {
        at += 1;
        match byte {
            b'{' => levels.push(Level::Map(b"")),
            b'[' => levels.push(Level::List(0)),
            b'}' | b']' => _ = levels.pop(),
            b',' => {
                if let Some(Level::List(index)) = levels.last_mut() {
                    *index += 1;
                }
            }
            b'"' => {
                let start = at;
                while let Some(byte) = json.get(at).filter(|byte| **byte != b'"') {
                    at += if *byte == b'\\' { 2 } else { 1 };
                }
                let text = json.get(start..at).unwrap_or_default();
                at += 1;
                let after = json.get(at..).unwrap_or_default().trim_ascii_start();
                if let (Some(Level::Map(key)), Some(b':')) = (levels.last_mut(), after.first()) {
                    *key = text;
                }
            }
            // Outside of strings, only `null` begins with this letter.
            b'n' => {
                let mut path = String::new();
                for level in &levels {
                    match level {
                        Level::Map(key) => {
                            path.push_str(if path.is_empty() { "" } else { "." });
                            path.push_str(std::str::from_utf8(key).unwrap_or_default());
                        }
                        Level::List(index) => {
                            path.push('[');
                            path.push_str(&index.to_string());
                            path.push(']');
                        }
                    }
                }
                found.push(path);
            }
            _ => {}
        }
    }
    found
}

/// Rejects blank values anywhere in the configuration, unless `T` accepts arbitrary JSON.
fn refuse_blanks<T: 'static>(json: &[u8]) -> Result<(), ConfigError> {
    if TypeId::of::<T>() == TypeId::of::<serde_json::Value>() {
        return Ok(());
    }
    let blank = |path| ConfigError::new(path, "this was left blank: give it a value, or leave the field out");
    ConfigError::all(blanks(json).into_iter().map(blank).collect()).map_or(Ok(()), Err)
}

/// Deserializes a configuration from the JSON provided by the host; empty input is treated as an empty object. A `null`
/// value is an error unless `T` is [`serde_json::Value`].
pub(crate) fn read<T: serde::de::DeserializeOwned + 'static>(bytes: &[u8]) -> Result<T, ConfigError> {
    if let Some(nothing) = unit() {
        return match bytes.trim_ascii() {
            b"" | b"{}" | b"null" => Ok(nothing),
            _ => Err(ConfigError::new("", "this filter takes no configuration: remove it")),
        };
    }
    let bytes = if bytes.is_empty() { b"{}" } else { bytes };
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let config = serde_path_to_error::deserialize(&mut json).map_err(|e| {
        let path = e.path().to_string();
        let message = e.inner().to_string();
        // The position within the JSON is meaningless to someone who wrote YAML.
        let message = message.split(" at line ").next().unwrap_or_default();
        let message = match matches!(bytes.trim_ascii_start().first(), Some(b'{' | b'[' | b'"' | b'0'..=b'9')) {
            true => without_types(message),
            // A string in the configuration file is passed verbatim, not as JSON.
            false => "expected a map, found a string".into(),
        };
        ConfigError::new(if path == "." { "" } else { &path }, message)
    })?;
    refuse_blanks::<T>(bytes).map(|()| config)
}

/// Removes Rust type names from a serde message: users know maps, not structs.
fn without_types(message: &str) -> String {
    let Some((before, name)) = message.split_once("expected struct ") else { return message.into() };
    if name.starts_with("Duration") {
        // The filter's author used the type from std.
        return format!(
            "{before}expected a map {{secs: …, nanos: …}}; for the filter's author: the type for times such as 250ms is \
             `tollgate_sdk::units::Duration`"
        );
    }
    let rest = name.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_');
    format!("{before}expected a map{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        #[allow(dead_code)]
        inner: Inner,
    }

    #[derive(Debug, serde::Deserialize)]
    struct Inner {}

    #[test]
    fn errors_use_the_terms_of_the_configuration() {
        let wrong = |text: &str| read::<Outer>(text.as_bytes()).unwrap_err().to_string();
        assert_eq!(wrong("allow everything"), "expected a map, found a string");
        assert_eq!(wrong(r#"{"inner": "x"}"#), "inner: invalid type: string \"x\", expected a map");
        assert_eq!(wrong(""), "missing field `inner`");
        // A filter's author may use the wrong one of two types with the same name.
        let time = read::<std::collections::HashMap<String, std::time::Duration>>(br#"{"wait": "500ms"}"#);
        assert_eq!(
            time.unwrap_err().to_string(),
            "wait: invalid type: string \"500ms\", expected a map {secs: …, nanos: …}; for the filter's author: the type for \
             times such as 250ms is `tollgate_sdk::units::Duration`"
        );
    }

    #[derive(Debug, serde::Deserialize)]
    struct Optional {
        #[allow(dead_code)]
        from: Option<Vec<String>>,
        #[allow(dead_code)]
        #[serde(default)]
        rest: serde_json::Value,
    }

    #[test]
    fn blank_value_is_rejected() {
        let read = |text: &str| read::<Optional>(text.as_bytes()).map(|_| ()).map_err(|e| e.to_string());
        let blank = |path: &str| format!("{path}: this was left blank: give it a value, or leave the field out");
        for text in ["", "{}", r#"{"from": ["null", "a\"null"]}"#, r#"{"rest": {"null": [true, "n"]}}"#] {
            assert_eq!(read(text), Ok(()), "{text}");
        }
        assert_eq!(read(r#"{"from":null}"#), Err(blank("from")));
        let text = r#"{"rest": {"a": [1, {"b\"": "}]", "c" : null}], "d": [[], null]}, "from" : null}"#;
        let expected = ["rest.a[1].c", "rest.d[1]", "from"].map(blank).join("; ");
        assert_eq!(read(text), Err(expected));
    }

    #[test]
    fn blank_value_is_allowed_in_arbitrary_json() {
        let text = br#"{"a": null}"#;
        assert_eq!(super::read::<serde_json::Value>(text), Ok(serde_json::json!({"a": null})));
    }

    #[test]
    fn filter_without_configuration_rejects_one() {
        assert_eq!(read::<()>(b""), Ok(()));
        assert_eq!(read::<()>(b"{}"), Ok(()));
        assert!(read::<()>(b"{\"a\": 1}").unwrap_err().message.contains("remove it"));
    }
}
