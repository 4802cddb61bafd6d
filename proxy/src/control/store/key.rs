//! The keys of resources: a kind and a name.

use std::{fmt, sync::Arc};

/// The kind of a resource.
///
/// The order matters: a hard reference leads from a kind to a later one, so that hard references form no cycle. Within
/// a batch, the store enters kinds in this order, so that a reference is counted before what it refers to is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A listener (xDS: LDS).
    Listener,
    /// A table of routes (RDS).
    Routes,
    /// A filter (ECDS).
    Filter,
    /// A cluster without its endpoints (CDS).
    Cluster,
    /// The code of filters.
    Module,
    /// The endpoints of a cluster, by service name (EDS).
    Endpoints,
    /// A certificate with its key, or a set of trusted certificates (SDS).
    Secret,
}

impl Kind {
    /// All kinds, in order.
    pub const ALL: [Kind; 7] =
        [Kind::Listener, Kind::Routes, Kind::Filter, Kind::Cluster, Kind::Module, Kind::Endpoints, Kind::Secret];

    /// Whether resources of this kind are fetched because another resource refers to them. A source that
    /// [subscribes](super::SourceOptions::subscribes) is notified of the names, and its resource is dropped with the
    /// last reference. Resources of other kinds stay until their source removes them.
    pub fn on_demand(self) -> bool {
        matches!(self, Kind::Routes | Kind::Module | Kind::Endpoints | Kind::Secret)
    }

    /// The kind in words.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Listener => "listener",
            Kind::Routes => "routes",
            Kind::Filter => "filter",
            Kind::Cluster => "cluster",
            Kind::Module => "module",
            Kind::Endpoints => "endpoints",
            Kind::Secret => "secret",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A set of kinds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kinds(u8);

impl Kinds {
    /// No kind.
    pub const NONE: Kinds = Kinds(0);
    /// Every kind.
    pub const ALL: Kinds = Kinds((1 << Kind::ALL.len()) - 1);

    /// Returns the set with one more kind.
    pub const fn with(self, kind: Kind) -> Kinds {
        Kinds(self.0 | 1 << kind as u8)
    }

    /// Whether a kind is in the set.
    pub const fn contains(self, kind: Kind) -> bool {
        self.0 & 1 << kind as u8 != 0
    }

    /// The kinds in the set, in order.
    pub fn iter(self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(move |kind| self.contains(*kind))
    }
}

/// A resource's identity: unique over all sources.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The kind.
    pub kind: Kind,
    /// The name, unique within the kind.
    pub name: Arc<str>,
}

impl Key {
    /// A key.
    pub fn new(kind: Kind, name: impl Into<Arc<str>>) -> Self {
        Key { kind, name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}`", self.kind, self.name)
    }
}
