//! Tables that say which endpoint a key belongs to. One is built when it is first used, so that changes of endpoints that no
//! request meets cost nothing. A small table is built by the worker that needs it; a large one by the thread
//! `tollgate-tables`. Until then keys stay with their endpoints of before, as far as those remain.

use std::sync::{
    Arc, LazyLock, OnceLock, Weak,
    atomic::{AtomicBool, Ordering::Relaxed},
    mpsc,
};

use arc_swap::ArcSwapOption;

use super::{
    Balancer,
    candidates::{Candidates, mix},
    maglev::Maglev,
    ring_hash::Ring,
};

/// The largest table that a worker builds itself. Building one of this size takes about a tenth of a millisecond.
const SMALL: u64 = 4096;

/// A table.
#[derive(Debug)]
pub(super) enum Table {
    Ring(Ring),
    Maglev(Maglev),
}

/// The kind of a table and its size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum TableKind {
    Ring { least: u64, most: u64 },
    Maglev { size: u64 },
}

/// A table that is built when it is first used.
#[derive(Debug)]
pub(super) struct LazyTable {
    kind: TableKind,
    /// Shared by memberships that place keys alike.
    built: Arc<OnceLock<Table>>,
    is_requested: AtomicBool,
    /// The last balancer with a table, until this one is built.
    previous: ArcSwapOption<Balancer>,
}

impl Table {
    fn build(kind: TableKind, candidates: &Candidates) -> Table {
        match kind {
            TableKind::Ring { least, most } => Table::Ring(Ring::new(candidates, least, most)),
            TableKind::Maglev { size } => Table::Maglev(Maglev::new(candidates, size)),
        }
    }

    /// The candidate to which a hash belongs.
    pub(super) fn owner(&self, hash: u64) -> usize {
        match self {
            Table::Ring(ring) => ring.owner(hash),
            Table::Maglev(maglev) => maglev.owner(hash),
        }
    }
}

impl LazyTable {
    pub(super) fn new(kind: TableKind, candidates: &Candidates, previous: Option<&Arc<Balancer>>) -> LazyTable {
        let before = previous.and_then(|before| Some((before, before.hash_policy()?.table()?)));
        if let Some((before, table)) = before
            && table.kind == kind
            && before.candidates.place_like(candidates)
        {
            let (built, previous) = (Arc::clone(&table.built), ArcSwapOption::new(table.previous.load_full()));
            return LazyTable { kind, built, is_requested: AtomicBool::default(), previous };
        }
        let last = before.and_then(|(before, table)| match table.built.get() {
            Some(_) => Some(Arc::clone(before)),
            None => table.previous.load_full(),
        });
        LazyTable {
            kind,
            built: Arc::default(),
            is_requested: AtomicBool::default(),
            previous: ArcSwapOption::new(last),
        }
    }

    /// The table, if it is built. Otherwise it will be soon.
    pub(super) fn get(&self, balancer: &Arc<Balancer>) -> Option<&Table> {
        self.built.get().or_else(|| self.request(balancer))
    }

    #[cold]
    fn request(&self, balancer: &Arc<Balancer>) -> Option<&Table> {
        if self.size(&balancer.candidates) <= SMALL {
            self.build(&balancer.candidates);
        } else if !self.is_requested.swap(true, Relaxed)
            && let Some(builder) = &*BUILDER
        {
            let _ = builder.send(Arc::downgrade(balancer));
        }
        self.built.get()
    }

    fn size(&self, candidates: &Candidates) -> u64 {
        match self.kind {
            TableKind::Ring { least, most } => Ring::size(candidates, least, most),
            TableKind::Maglev { size } => size,
        }
    }

    /// Builds the table. Two workers may do so at the same time: that is cheaper than if one waited for the other.
    fn build(&self, candidates: &Candidates) {
        if self.built.get().is_none() {
            let _ = self.built.set(Table::build(self.kind, candidates));
        }
        self.previous.store(None);
    }

    /// The candidate to which a key belonged before the endpoints changed.
    pub(super) fn previous_owner(&self, key: u64, candidates: &Candidates) -> Option<usize> {
        let previous = self.previous.load();
        let previous = previous.as_ref()?;
        let table = previous.hash_policy()?.table()?.built.get()?;
        candidates.index_of(previous.candidates.endpoint(table.owner(mix(key))))
    }
}

/// The queue of the thread that builds large tables, which is started when the first one is needed.
static BUILDER: LazyLock<Option<mpsc::Sender<Weak<Balancer>>>> = LazyLock::new(|| {
    let (sender, queue) = mpsc::channel::<Weak<Balancer>>();
    let build = move || {
        for balancer in queue {
            // It may have been replaced before its turn.
            if let Some(balancer) = balancer.upgrade()
                && let Some(table) = balancer.hash_policy().and_then(|policy| policy.table())
            {
                table.build(&balancer.candidates);
            }
        }
    };
    let thread = std::thread::Builder::new().name("tollgate-tables".into()).spawn(build);
    // Without the thread, keys are placed as by `hash`.
    thread.ok().map(|_| sender)
});
