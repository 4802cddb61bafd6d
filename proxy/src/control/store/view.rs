//! Views of the store, for the admin API, for builders, and for a source that reconnects.

use std::{sync::Arc, time::Duration};

use super::{
    BatchId, Key, Refusal, Resource, SourceId, Store,
    entry::{Absence, Candidate, CandidateState, Claim, Entry},
    transaction::Stage,
};

/// The state of one key.
#[derive(Debug)]
pub struct View<'s, R> {
    /// The key.
    pub key: &'s Key,
    /// The resource in effect, with its source.
    pub accepted: Option<(SourceId, &'s Arc<Resource<R>>)>,
    /// What sources offered that is not accepted, or not yet: at most one per source.
    pub candidates: Vec<CandidateView<'s, R>>,
    /// The number of references to this key from accepted and pending resources.
    pub references: u32,
    /// The state in one word.
    pub status: Status<'s>,
    /// When the accepted content last changed or was removed, in the caller's time.
    pub changed: Duration,
}

/// A resource that is not accepted, or not yet.
#[derive(Debug)]
pub struct CandidateView<'s, R> {
    /// Its source.
    pub source: SourceId,
    /// The batch that contained it.
    pub batch: BatchId,
    /// The resource.
    pub resource: &'s Arc<Resource<R>>,
    /// Its state: [`Status::Warming`], [`Status::Building`] or [`Status::Refused`].
    pub status: Status<'s>,
}

/// The state of a key, or of a candidate. A key has the state of the candidate that was offered last, apart from those
/// that are refused because of a clash with what is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status<'s> {
    /// A resource is accepted.
    Accepted,
    /// A candidate waits for others.
    Warming,
    /// A candidate is queued for the builders, or being built.
    Building,
    /// A candidate was refused.
    Refused(&'s Refusal),
    /// It is referred to, but no source has supplied it.
    Requested,
    /// It is referred to. Its source has answered that it does not exist, or removed it.
    DoesNotExist,
    /// It is referred to. No source answered within the initial fetch timeout.
    TimedOut,
}

impl<R> Store<R> {
    /// The resource in effect.
    pub fn accepted(&self, key: &Key) -> Option<&Arc<Resource<R>>> {
        Some(&self.entries.get(key)?.accepted.as_ref()?.resource)
    }

    /// The state of a key. `None` if nothing is accepted, offered or referred to.
    pub fn view<'s>(&'s self, key: &'s Key) -> Option<View<'s, R>> {
        Some(self.view_of(key, self.entries.get(key)?))
    }

    /// The states of all keys, in no particular order.
    pub fn views(&self) -> impl Iterator<Item = View<'_, R>> {
        self.entries.iter().map(|(key, entry)| self.view_of(key, entry))
    }

    /// What a source supplies, with versions: what is accepted from it, or a newer candidate that is warming or being
    /// built. Refused resources are not included. A delta xDS client sends this when it reconnects
    /// (`initial_resource_versions`).
    pub fn held(&self, source: SourceId) -> impl Iterator<Item = (&Key, &Arc<str>)> {
        let claims = self.sources.get(source.0 as usize).into_iter().flat_map(|source| source.claims.iter().flatten());
        claims.filter_map(move |key| Some((key, self.held_version(key, source)?)))
    }

    /// The name that a source was registered with.
    pub fn source_name(&self, source: SourceId) -> Option<&Arc<str>> {
        Some(&self.sources.get(source.0 as usize)?.name)
    }

    pub(super) fn held_version(&self, key: &Key, source: SourceId) -> Option<&Arc<str>> {
        let entry = self.entries.get(key)?;
        let candidate = entry.claim(source)?.candidate.as_ref().filter(|candidate| candidate.pending().is_some());
        let accepted = || entry.accepted_from(source).map(|accepted| &accepted.resource);
        Some(&candidate.map(|candidate| &candidate.resource).or_else(accepted)?.version)
    }

    pub(super) fn claim(&self, key: &Key, source: SourceId) -> Option<&Claim<R>> {
        self.entries.get(key)?.claim(source)
    }

    pub(super) fn claim_mut(&mut self, key: &Key, source: SourceId) -> Option<&mut Claim<R>> {
        self.entries.get_mut(key)?.claim_mut(source)
    }

    pub(super) fn candidate(&self, key: &Key, source: SourceId) -> Option<&Candidate<R>> {
        self.claim(key, source)?.candidate.as_ref()
    }

    fn view_of<'s>(&'s self, key: &'s Key, entry: &'s Entry<R>) -> View<'s, R> {
        let candidates: Vec<_> = (entry.claims.iter())
            .filter_map(|claim| {
                let candidate = claim.candidate.as_ref()?;
                let (source, batch, resource) = (claim.source, candidate.batch, &candidate.resource);
                Some(CandidateView { source, batch, resource, status: self.candidate_status(candidate) })
            })
            .collect();
        let accepted = entry.accepted.as_ref().map(|accepted| (accepted.source, &accepted.resource));
        let clash = |status| accepted.is_some() && matches!(status, Status::Refused(Refusal::Clash { .. }));
        let newest = candidates.iter().filter(|candidate| !clash(candidate.status)).max_by_key(|c| c.batch);
        let status = newest.map(|candidate| candidate.status).unwrap_or(match (&accepted, entry.absence) {
            (Some(_), _) => Status::Accepted,
            (None, Absence::Unknown) => Status::Requested,
            (None, Absence::Answered) => Status::DoesNotExist,
            (None, Absence::TimedOut) => Status::TimedOut,
        });
        View { key, accepted, candidates, references: entry.references(), status, changed: entry.changed }
    }

    fn candidate_status<'s>(&'s self, candidate: &'s Candidate<R>) -> Status<'s> {
        match &candidate.state {
            CandidateState::Refused(refusal) | CandidateState::Shadowed(refusal) => Status::Refused(refusal),
            CandidateState::Pending(id) => match self.transactions.get(id).map(|pending| pending.stage) {
                Some(Stage::Warming(_)) => Status::Warming,
                _ => Status::Building,
            },
        }
    }
}
