//! A resource as a source offers it, and why one is refused.

use std::{fmt, path::Path, sync::Arc, time::Duration};

use super::Key;
use crate::config::Span;

/// The SHA-256 of a resource's content.
pub type Sha256 = [u8; 32];

/// The number of a source in its [`Store`](super::Store).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub(super) u32);

/// A named piece of configuration with a payload of type `R`.
#[derive(Debug)]
pub struct Resource<R> {
    /// The identity.
    pub key: Key,
    /// The version as its source names it. It may be empty, and two contents may have the same version: the store
    /// compares [`sha256`](Self::sha256), and verdicts name the batch.
    pub version: Arc<str>,
    /// The hash of everything that the payload and the references depend on. Equal hashes mean equal resources.
    pub sha256: Sha256,
    /// Where the resource is written.
    pub origin: Origin,
    /// The content.
    pub payload: Arc<R>,
    /// The resources that this one refers to.
    pub references: Box<[Reference]>,
    /// The time from the offer until the resource counts as removed, unless it is offered or renewed before.
    pub ttl: Option<Duration>,
}

impl<R> Resource<R> {
    /// The references for which the resource waits.
    pub(super) fn hard(&self) -> impl Iterator<Item = &Reference> {
        self.references.iter().filter(|reference| reference.strength == Strength::Hard)
    }
}

/// A reference to another resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The resource that is referred to.
    pub key: Key,
    /// Whether the resource waits for it.
    pub strength: Strength,
    /// The source that shall supply it; `None` if any may.
    pub source: Option<SourceId>,
}

/// Whether a resource waits for one that it refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strength {
    /// The resource warms until the other one is accepted, refused or known not to exist, at most for the initial
    /// fetch timeout. It may only refer to a later [`Kind`](super::Kind). Examples: cluster → endpoints, listener →
    /// secret.
    Hard,
    /// The resource does not wait. Example: route → cluster.
    Soft,
}

/// Where a resource is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A range of bytes in a file. The text is not kept: to show it, read the file again.
    File {
        /// The file.
        file: Arc<Path>,
        /// The bytes.
        span: Span,
    },
    /// A message of a source.
    Source {
        /// The source's name.
        source: Arc<str>,
        /// The type that the source gives it, for example a type URL.
        type_name: Arc<str>,
        /// The resource's name at the source.
        name: Arc<str>,
        /// The path of a field in the resource; empty for the whole resource.
        field: Arc<str>,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { file, .. } => write!(f, "{}", file.display()),
            Origin::Source { source, type_name, name, field } => {
                write!(f, "source `{source}`, {type_name} `{name}`")?;
                if field.is_empty() { Ok(()) } else { write!(f, ", field `{field}`") }
            }
        }
    }
}

/// An error in a field of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// The field's path in the resource; empty for the whole resource.
    pub field: String,
    /// The offending value, the reason, and what is supported.
    pub message: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() { f.write_str(&self.message) } else { write!(f, "{}: {}", self.field, self.message) }
    }
}

/// Why a resource was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It has errors.
    Invalid(Vec<FieldError>),
    /// It is valid, or was not checked, but another resource of its all-or-nothing batch was refused.
    Batch,
    /// Another source supplies a resource with this key.
    Clash {
        /// The origin of the resource that is accepted.
        accepted: Origin,
        /// The origin of the refused one.
        refused: Origin,
    },
}

impl Refusal {
    /// A clash between what is accepted and another source's resource.
    pub(super) fn clash<R>(accepted: &Resource<R>, refused: &Resource<R>) -> Self {
        Refusal::Clash { accepted: accepted.origin.clone(), refused: refused.origin.clone() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Invalid(errors) => {
                for (n, error) in errors.iter().enumerate() {
                    write!(f, "{}{error}", if n == 0 { "" } else { "\n" })?;
                }
                Ok(())
            }
            Refusal::Batch => f.write_str("another resource of the same batch was refused"),
            Refusal::Clash { accepted, refused } => {
                write!(f, "the name is taken by {accepted}; refused: {refused}")
            }
        }
    }
}
