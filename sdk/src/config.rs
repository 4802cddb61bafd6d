//! What is wrong with a filter's configuration, and where.

use std::{any::Any, fmt};

/// A mistake in a filter's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Where in the configuration, such as `rules[2].match.path`; empty for the whole.
    pub path: String,
    /// What is wrong and what would be right.
    pub message: String,
    /// Further mistakes, so that all of them can be told at once.
    pub more: Vec<ConfigError>,
}

impl ConfigError {
    /// A mistake at `path` (such as `rules[2].match.path`; empty for the whole configuration).
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> ConfigError {
        ConfigError { path: path.into(), message: message.into(), more: Vec::new() }
    }

    /// All of these mistakes, or `None` if there are none.
    pub fn all(errors: Vec<ConfigError>) -> Option<ConfigError> {
        let mut errors = errors.into_iter();
        let mut first = errors.next()?;
        first.more.extend(errors);
        Some(first)
    }

    /// This mistake and the further ones.
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

/// The one value of `()`, if that is what `T` is. The compiler knows the answer, and leaves out what follows from the other.
fn unit<T: 'static>() -> Option<T> {
    let mut value: Option<T> = None;
    if let Some(unit) = (&mut value as &mut dyn Any).downcast_mut::<Option<()>>() {
        *unit = Some(());
    }
    value
}

/// Reads a configuration from the JSON that the host gives; nothing at all reads like an empty object.
pub(crate) fn read<T: serde::de::DeserializeOwned + 'static>(bytes: &[u8]) -> Result<T, ConfigError> {
    if let Some(nothing) = unit() {
        return match bytes.trim_ascii() {
            b"" | b"{}" | b"null" => Ok(nothing),
            _ => Err(ConfigError::new("", "this filter has no configuration: leave it out")),
        };
    }
    let bytes = if bytes.is_empty() { b"{}" } else { bytes };
    let mut json = serde_json::Deserializer::from_slice(bytes);
    serde_path_to_error::deserialize(&mut json).map_err(|e| {
        let path = e.path().to_string();
        let message = e.inner().to_string();
        // The position within the JSON means nothing to someone who wrote YAML.
        let message = message.split(" at line ").next().unwrap_or_default();
        let message = match matches!(bytes.trim_ascii_start().first(), Some(b'{' | b'[' | b'"' | b'0'..=b'9')) {
            true => without_types(message),
            // What the file has as text comes as it stands.
            false => "this filter wants a map, not text".into(),
        };
        ConfigError::new(if path == "." { "" } else { &path }, message)
    })
}

/// serde says which Rust type it expected; the user knows maps.
fn without_types(message: &str) -> String {
    let Some((before, name)) = message.split_once("expected struct ") else { return message.into() };
    if name.starts_with("Duration") {
        // The filter's author has taken std's type.
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
    fn mistakes_are_told_in_the_users_words() {
        let wrong = |text: &str| read::<Outer>(text.as_bytes()).unwrap_err().to_string();
        assert_eq!(wrong("allow everything"), "this filter wants a map, not text");
        assert_eq!(wrong(r#"{"inner": "x"}"#), "inner: invalid type: string \"x\", expected a map");
        assert_eq!(wrong(""), "missing field `inner`");
        // A filter's author may take the wrong one of two types of the same name.
        let time = read::<std::collections::HashMap<String, std::time::Duration>>(br#"{"wait": "500ms"}"#);
        assert_eq!(
            time.unwrap_err().to_string(),
            "wait: invalid type: string \"500ms\", expected a map {secs: …, nanos: …}; for the filter's author: the type for \
             times such as 250ms is `tollgate_sdk::units::Duration`"
        );
    }

    #[test]
    fn a_filter_without_a_configuration_refuses_one() {
        assert_eq!(read::<()>(b""), Ok(()));
        assert_eq!(read::<()>(b"{}"), Ok(()));
        assert!(read::<()>(b"{\"a\": 1}").unwrap_err().message.contains("leave it out"));
    }
}
