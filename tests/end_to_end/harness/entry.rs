//! A line of the access log, and assertions about it.

use std::{fmt, ops::Deref};

use serde_json::Value;

#[derive(Debug, Clone)]
pub struct Entry(pub Value);

impl Entry {
    /// Asserts the status (`()` for none) and the flags (`""` for none).
    #[track_caller]
    pub fn expect(self, status: impl Into<Value>, flags: &str) -> Entry {
        let flags = if flags.is_empty() { Value::Null } else { flags.into() };
        assert_eq!((&self["status"], &self["flags"]), (&status.into(), &flags), "{:#}", self.0);
        self
    }

    /// Asserts only the flags.
    #[track_caller]
    pub fn flagged(self, flags: &str) -> Entry {
        assert_eq!(self["flags"], flags, "{:#}", self.0);
        self
    }

    /// Asserts the details as well.
    #[track_caller]
    pub fn because(self, details: &str) -> Entry {
        assert_eq!(self["details"], details, "{:#}", self.0);
        self
    }
}

impl Deref for Entry {
    type Target = Value;

    fn deref(&self) -> &Value {
        &self.0
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
