//! What is wrong with a filter's configuration, and where.

use std::fmt;

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
        std::iter::once(self).chain(self.more.iter().flat_map(|e| Box::new(e.iter()) as Box<dyn Iterator<Item = _>>))
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

/// Reads a configuration from the JSON that the host gives; nothing at all reads like an empty object.
pub(crate) fn read<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, ConfigError> {
    let bytes = if bytes.is_empty() { b"{}" } else { bytes };
    let mut json = serde_json::Deserializer::from_slice(bytes);
    serde_path_to_error::deserialize(&mut json).map_err(|e| {
        let path = e.path().to_string();
        let message = e.inner().to_string();
        // The position within the JSON means nothing to someone who wrote YAML.
        let message = message.split(" at line ").next().unwrap_or_default();
        ConfigError::new(if path == "." { "" } else { &path }, message)
    })
}
