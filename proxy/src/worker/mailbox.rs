//! A worker's mailbox for clusters: their states change often, some a thousand times a second, and only the latest one of
//! each matters. A newer one replaces an older one that the worker has not taken yet, so the mailbox never holds more than
//! one per cluster, however slow the worker is.
//!
//! The first change after a while is taken at once. What follows is collected for [`PAUSE`], so that many small changes wake
//! the worker a few hundred times a second and not a thousand times: being woken costs more than a change.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustc_hash::FxHashMap;
use tokio::{sync::Notify, time::sleep_until};

use crate::upstream::{Cluster, ClusterHandle, ClusterId};

/// A change of a cluster.
#[derive(Debug, Clone)]
pub struct ClusterUpdate {
    /// The cluster.
    pub handle: ClusterHandle,
    /// Its next state.
    pub next: NextState,
    /// When the change reached the proxy.
    pub since: Instant,
}

/// What becomes of a cluster.
#[derive(Debug, Clone)]
pub enum NextState {
    /// It is new, or has changed.
    Is(Arc<Cluster>),
    /// It is gone; this was its last state. Requests that began before can use it for the time of `grace`.
    Gone {
        /// The last state.
        last: Arc<Cluster>,
        /// The time.
        grace: Duration,
    },
}

/// How long updates are collected before the next ones are taken.
const PAUSE: Duration = Duration::from_millis(3);

/// A worker's mailbox.
#[derive(Debug, Default)]
pub struct Mailbox {
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    updates: FxHashMap<ClusterId, ClusterUpdate>,
    /// When updates were last taken.
    taken: Option<Instant>,
}

impl Mailbox {
    /// Adds updates. The worker takes them soon.
    pub fn post(&self, updates: &[ClusterUpdate]) {
        if updates.is_empty() {
            return;
        }
        {
            let updates_waiting = &mut self.waiting().updates;
            for update in updates {
                // Of two updates, the earlier one says since when the worker is behind.
                let older = updates_waiting.get(&update.handle.id());
                let since = older.map_or(update.since, |older| older.since.min(update.since));
                updates_waiting.insert(update.handle.id(), ClusterUpdate { since, ..update.clone() });
            }
        }
        self.arrived.notify_one();
    }

    /// Waits until there are updates and the pause since the last ones is over, and takes them all.
    pub async fn take(&self) -> Vec<ClusterUpdate> {
        loop {
            match self.next_time() {
                None => self.arrived.notified().await,
                Some(at) if at > Instant::now() => sleep_until(at.into()).await,
                Some(_) => return self.try_take(),
            }
        }
    }

    /// Takes all updates that are there.
    pub fn try_take(&self) -> Vec<ClusterUpdate> {
        let mut waiting = self.waiting();
        waiting.taken = Some(Instant::now());
        std::mem::take(&mut waiting.updates).into_values().collect()
    }

    /// When the updates that are there can be taken; `None` without any.
    fn next_time(&self) -> Option<Instant> {
        let waiting = self.waiting();
        (!waiting.updates.is_empty()).then(|| waiting.taken.map_or_else(Instant::now, |taken| taken + PAUSE))
    }

    /// A panic during a change leaves the map intact.
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::upstream::Clusters;

    fn update(clusters: &Clusters, name: &str, endpoints: usize, since: Instant) -> ClusterUpdate {
        let endpoints: Vec<_> = (0..endpoints).map(|n| json!({"address": format!("192.0.2.{n}:1")})).collect();
        let config = serde_json::from_value(json!({"name": name, "endpoints": endpoints})).unwrap();
        ClusterUpdate { handle: clusters.handle(name), next: NextState::Is(Cluster::new(&config, None)), since }
    }

    #[tokio::test]
    async fn newer_state_replaces_an_older_one_that_was_not_taken() {
        let (clusters, mailbox, start) = (Clusters::default(), Mailbox::default(), Instant::now());
        let later = start + Duration::from_millis(5);
        mailbox.post(&[update(&clusters, "a", 1, start), update(&clusters, "b", 1, start)]);
        mailbox.post(&[update(&clusters, "a", 2, later)]);
        let mut taken = mailbox.take().await;
        taken.sort_by_key(|update| update.handle.id());
        let shown: Vec<_> = taken
            .iter()
            .map(|update| match &update.next {
                NextState::Is(cluster) => (&**update.handle.name(), cluster.members().len(), update.since),
                NextState::Gone { .. } => unreachable!(),
            })
            .collect();
        assert_eq!(shown, [("a", 2, start), ("b", 1, start)], "the worker has been behind since the first one");
        let last = update(&clusters, "a", 3, later);
        let NextState::Is(cluster) = last.next.clone() else { unreachable!() };
        let gone = ClusterUpdate { next: NextState::Gone { last: cluster, grace: Duration::ZERO }, ..last.clone() };
        mailbox.post(&[last, gone]);
        assert!(matches!(mailbox.take().await[..], [ClusterUpdate { next: NextState::Gone { .. }, .. }]));
    }

    #[tokio::test]
    async fn updates_soon_after_others_are_collected() {
        let (clusters, mailbox, start) = (Clusters::default(), Mailbox::default(), Instant::now());
        let first = Instant::now();
        mailbox.post(&[update(&clusters, "a", 1, start)]);
        assert_eq!(mailbox.take().await.len(), 1);
        mailbox.post(&[update(&clusters, "a", 2, start)]);
        let posts = async {
            tokio::task::yield_now().await;
            mailbox.post(&[update(&clusters, "b", 1, start)]);
        };
        let (taken, ()) = tokio::join!(mailbox.take(), posts);
        assert_eq!(taken.len(), 2, "the second one was not taken before the third");
        assert!(first.elapsed() >= PAUSE);
    }

    #[tokio::test]
    async fn worker_waits_until_something_arrives() {
        let (clusters, mailbox) = (Arc::new(Clusters::default()), Arc::new(Mailbox::default()));
        let (posted, named) = (mailbox.clone(), clusters.clone());
        let post = async move {
            tokio::task::yield_now().await;
            posted.post(&[update(&named, "a", 1, Instant::now())]);
        };
        let (taken, ()) = tokio::join!(mailbox.take(), post);
        assert_eq!(taken.len(), 1);
    }
}
