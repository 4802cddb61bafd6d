//! What the store reports to sources and to the data path.

use std::sync::Arc;

use super::{BatchId, Key, Refusal, SourceId};

/// An event. Events are in the order in which they happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// For a source: what happened to a resource that it offered.
    Verdict {
        /// The source.
        source: SourceId,
        /// The batch that contained the resource.
        batch: BatchId,
        /// The resource.
        key: Key,
        /// The offered version.
        version: Arc<str>,
        /// What happened.
        outcome: Outcome,
    },
    /// For a source: references to a resource of an [on-demand](super::Kind::on_demand) kind appeared or disappeared.
    Wants {
        /// The source named by the references; `None`: any source that subscribes.
        source: Option<SourceId>,
        /// The resource.
        key: Key,
        /// What to do.
        want: Want,
    },
    /// For a source: a wanted resource does not exist, by its answer or because it did not answer within the initial
    /// fetch timeout. What referred to it goes on without it.
    DoesNotExist {
        /// The source named by the references; `None`: any source that subscribes.
        source: Option<SourceId>,
        /// The resource.
        key: Key,
    },
    /// For the data path: another content was accepted.
    Changed(Key),
    /// For the data path: nothing is accepted under this key any more.
    Removed(Key),
}

/// What happened to an offered resource. Every resource of a batch that was not refused as a whole gets exactly one
/// final outcome; all but [`Outcome::Warming`] are final.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Not final: the resource waits for others. An xDS source acknowledges here, since a server may withhold the next
    /// response of this type until then, while warming may take for ever. At most once per offer.
    Warming,
    /// The resource is accepted.
    Accepted,
    /// The resource is refused. What was accepted before stays.
    Refused(Arc<Refusal>),
    /// The resource was replaced by a newer offer, or withdrawn, before its final outcome: by a removal, the end of its
    /// TTL, or the end of the last reference to it.
    Superseded,
    /// The resource is of an on-demand kind, and nothing refers to it. It was ignored, which is no error.
    NotWanted,
}

/// What a source has to do about a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Subscribe.
    More,
    /// Subscribe again, so that the server answers although it has answered before.
    Again,
    /// Unsubscribe. The store no longer holds the resource: if `More` follows, the server must learn of the
    /// unsubscription first, or it would not send the resource again.
    NoMore,
}
