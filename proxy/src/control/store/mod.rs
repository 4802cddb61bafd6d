//! The store of resources: decides which of the resources that sources offer are accepted.
//!
//! It does no I/O, has no clock (the caller passes the time since any fixed moment) and no runtime types. It is generic
//! in the payload `R`, which it never reads: a payload that cannot be decoded is offered too, and refused when it is
//! built.
//!
//! # Use
//!
//! ```text
//! source ──offer──▶ candidates ──next_ready──▶ builder ──commit──▶ accepted
//!                                 next_event ──▶ verdicts and wants for sources, changes for the data path
//! ```
//!
//! A source [offers](Store::offer) a [`Batch`] of changes. What has changed becomes a **candidate**, in a transaction:
//! one for an all-or-nothing batch, otherwise one per resource. A transaction **warms** while hard references of its
//! resources are unanswered. Then [`Store::next_ready`] returns it to be built, and [`Store::commit`] enters the result.
//! After every call, drain [`Store::next_ready`] and [`Store::next_event`]; their queues grow until then. At
//! [`Store::next_deadline`], call [`Store::tick`].
//!
//! # Rules
//!
//! They are those of an xDS client (the xDS protocol's description in Envoy's documentation, and Envoy's behaviour where
//! that leaves it open), so that delta and SotW xDS need no others.
//!
//! * **Only a successful build or a removal changes what is accepted.** A candidate that warms, is being built or was
//!   refused displaces nothing.
//! * **A newer offer replaces an older candidate**, also one that is being built: the commit of the older one has no
//!   effect on that key. The content decides whether an offer is new. Unchanged content is accepted immediately: it
//!   takes over version and origin, also in a batch that is refused otherwise. Callers whose builds take longer than the
//!   time between offers should delay offers, or no build would ever be current.
//! * **A newer offer takes its resource out of an all-or-nothing transaction**, and the rest of that stays.
//! * **Absence** from a full state removes, for the kinds that the batch names ([`Batch::full`]).
//! * **Clashes**: see [`SourceOptions::rank`]. The resource that does not take precedence is refused, with both origins,
//!   and kept. When the other one goes, it is built, and the old one stays until then. A second verdict is not given.
//! * **References** from accepted resources and pending candidates are counted. See [`Kind::on_demand`] and
//!   [`Event::Wants`].
//! * **A removal does not affect referrers**, even by hard references: they stay accepted. The data path has to cope with
//!   a missing resource, as it does after an initial fetch timeout. Resources offered later go on without it if it is of
//!   an on-demand kind and still wanted, because the source has answered; otherwise they wait for it.
//! * **Transactions and candidates are independent of each other** apart from hard references: nothing waits for another
//!   resource of the same batch.
//!
//! # Cost
//!
//! An operation accesses the entries that its batch names, what these refer to, and what waits for them: never all
//! entries. A full state accesses, in addition, what its source supplies of the named kinds.
//!
//! # Files
//!
//! [`key`], [`resource`], [`batch`] and [`event`] hold the types; `entry` and `timers` the state; `offer`,
//! `transaction`, `commit` and `settle` the operations; [`view`] what the admin API shows.

pub mod batch;
pub mod commit;
mod entry;
pub mod event;
pub mod key;
mod offer;
pub mod resource;
mod settle;
mod timers;
pub mod transaction;
pub mod view;

#[cfg(test)]
mod tests;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use rustc_hash::{FxHashMap, FxHashSet};

use entry::Entries;
use timers::{Timer, Timers};
use transaction::Pending;

pub use self::{
    batch::{Batch, BatchError, BatchId, Change, Policy, SourceOptions},
    commit::Committed,
    event::{Event, Outcome, Want},
    key::{Key, Kind, Kinds},
    resource::{FieldError, Origin, Reference, Refusal, Resource, Sha256, SourceId, Strength},
    transaction::{Transaction, TransactionId},
    view::{CandidateView, Status, View},
};

/// The resources of all sources, with payloads of type `R`.
#[derive(Debug)]
pub struct Store<R> {
    entries: Entries<R>,
    sources: Vec<Source>,
    transactions: FxHashMap<TransactionId, Pending>,
    /// Transactions for the builders. Some may have ended.
    ready: VecDeque<TransactionId>,
    events: VecDeque<Event>,
    timers: Timers,
    /// The entries to settle at the end of the operation.
    touched: VecDeque<Key>,
    initial_fetch_timeout: Duration,
    /// The time of the operation.
    now: Duration,
    last_batch: BatchId,
    last_transaction: TransactionId,
}

/// A registered source.
#[derive(Debug)]
struct Source {
    name: Arc<str>,
    options: SourceOptions,
    /// The keys that it supplies, by kind.
    claims: [FxHashSet<Key>; Kind::ALL.len()],
}

impl<R> Store<R> {
    /// An empty store. A transaction waits for its references at most for `initial_fetch_timeout`; zero: for ever.
    pub fn new(initial_fetch_timeout: Duration) -> Self {
        Store {
            entries: Entries::default(),
            sources: Vec::new(),
            transactions: FxHashMap::default(),
            ready: VecDeque::new(),
            events: VecDeque::new(),
            timers: Timers::default(),
            touched: VecDeque::new(),
            initial_fetch_timeout,
            now: Duration::ZERO,
            last_batch: BatchId(0),
            last_transaction: TransactionId(0),
        }
    }

    /// Registers a source. Its name is for display.
    pub fn add_source(&mut self, name: impl Into<Arc<str>>, options: SourceOptions) -> SourceId {
        let id = SourceId(self.sources.len() as u32);
        self.sources.push(Source { name: name.into(), options, claims: Default::default() });
        id
    }

    /// Returns the next event.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Returns the time at which [`tick`](Self::tick) has to be called, if any. Other calls may change it.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.timers.next_deadline()
    }

    /// Ends the initial fetch timeouts and TTLs that have expired.
    pub fn tick(&mut self, now: Duration) {
        self.now = now;
        while let Some(timer) = self.timers.pop(now) {
            match timer {
                Timer::InitialFetch(id) => self.initial_fetch_timed_out(id),
                Timer::Ttl(key, source) => self.remove(&key, source, self.last_batch),
            }
        }
        self.settle();
    }

    /// A source's options. Ids come from `add_source`, and offers with unknown ones are refused.
    fn options(&self, source: SourceId) -> &SourceOptions {
        &self.sources[source.0 as usize].options
    }

    fn verdict(&mut self, source: SourceId, batch: BatchId, resource: &Resource<R>, outcome: Outcome) {
        let (key, version) = (resource.key.clone(), resource.version.clone());
        self.events.push_back(Event::Verdict { source, batch, key, version, outcome });
    }
}
