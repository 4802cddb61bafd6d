//! A path in the configuration, and the errors found there. Everything that reads the configuration receives a
//! [`Place`], so that each error is reported with its path, and all errors together.

use std::fmt::Display;

use tollgate_sdk::{ConfigError, Mistakes, units};

/// A place in the configuration.
pub(crate) struct Place<'m> {
    mistakes: &'m Mistakes,
    path: String,
}

impl<'m> Place<'m> {
    /// The whole configuration.
    pub(crate) fn root(mistakes: &'m Mistakes) -> Self {
        Place { mistakes, path: String::new() }
    }

    /// A field of this place.
    pub(crate) fn field(&self, name: &str) -> Place<'m> {
        let path = if self.path.is_empty() { name.into() } else { format!("{}.{name}", self.path) };
        Place { mistakes: self.mistakes, path }
    }

    /// An item of the list at this place.
    pub(crate) fn item(&self, index: usize) -> Place<'m> {
        Place { mistakes: self.mistakes, path: format!("{}[{index}]", self.path) }
    }

    /// The path, such as `virtual_hosts[0].routes[3].match`.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Reports an error at this place.
    pub(crate) fn wrong(&self, message: impl Into<String>) {
        self.mistakes.add(&self.path, message);
    }

    /// The value, or reports the error here.
    pub(crate) fn take<T>(&self, result: Result<T, impl Display>) -> Option<T> {
        result.map_err(|message| self.wrong(message.to_string())).ok()
    }

    /// The value, or reports an error that has its own path.
    pub(crate) fn take_placed<T>(&self, result: Result<T, ConfigError>) -> Option<T> {
        self.mistakes.take(result)
    }

    /// Parses a duration such as `250ms` to milliseconds.
    pub(crate) fn millis(&self, text: &str) -> Option<u64> {
        self.take(text.parse::<units::Duration>()).map(units::Duration::millis)
    }

    /// Exactly one of these values, with its field's name. Anything else is an error.
    pub(crate) fn one_of<T, const N: usize>(
        &self,
        fields: [(&'static str, Option<T>); N],
    ) -> Option<(&'static str, T)> {
        let names = fields.each_ref().map(|(name, _)| *name);
        let given = self.at_most_one_of(fields)?;
        if given.is_none() {
            self.wrong(format!("give one of {}", quoted(&names)));
        }
        given
    }

    /// At most one of these values, with its field's name. The outer `None`: more than one, which is an error.
    pub(crate) fn at_most_one_of<T, const N: usize>(
        &self,
        fields: [(&'static str, Option<T>); N],
    ) -> Option<Option<(&'static str, T)>> {
        let mut given = fields.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let first = given.next();
        let others: Vec<_> = given.map(|(name, _)| name).collect();
        match &first {
            Some((name, _)) if !others.is_empty() => {
                self.wrong(format!("give only one of `{name}`, {}", quoted(&others)));
                None
            }
            _ => Some(first),
        }
    }
}

/// Formats names in backquotes, separated by commas.
pub(crate) fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
