//! Backpressure by slow clients: responses that wait for their clients, and the choice of which to evict when a cluster
//! has no capacity left for other requests.
//!
//! A response holds a connection or a stream for as long as its client takes to read it. That harms no one while there
//! is capacity. When a request finds none, the response that has waited longest is evicted, among those of clients that
//! hold more than their shares. The shares are those that also limit unfinished uploads and tunnels (`uploads`).
//!
//! A worker knows its own responses, and checks them only while requests wait for capacity, here or on other workers.
//! It publishes the result to the others under the shares' lock, so that a client is treated the same on all of them.

use std::{
    cell::{Cell, RefCell},
    net::IpAddr,
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use rustc_hash::FxHashMap;
use slab::Slab;
use tokio::time::Instant;

use super::{
    cluster::{Cluster, next_id},
    stats::ClusterStats,
    uploads::Table,
};
use crate::net::Client;

/// Time without progress after which a response counts as waiting for its client; most clients that read are faster.
const NOTICED: Duration = Duration::from_millis(100);

/// Time without progress after which a response may be evicted for another client's request.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// The same if all waiting requests are from clients over their shares, which mostly do not read. So their responses
/// have usually waited long enough to be evicted immediately when another client's request arrives.
pub(super) const LONG_PATIENCE: Duration = Duration::from_secs(5);

/// Minimum interval between checks, so that many waiting requests do not cause many checks.
const PAUSE: Duration = Duration::from_millis(10);

/// The task that sends a response to its client.
pub trait DownloadSink {
    /// Returns since when the client has taken nothing although there is more for it.
    fn waits_since(&self) -> Option<Instant>;
    /// Returns whether the request's body is unfinished; the upload is then counted separately in the client's share.
    fn is_uploading(&self) -> bool;
    /// Aborts the exchange.
    fn evict(&self);
}

/// A worker's responses from a cluster that have not been received completely.
pub(super) struct Downloads {
    worker: u64,
    under_way: RefCell<Slab<Entry>>,
    /// The counts most recently published to the other workers.
    published: RefCell<FxHashMap<Client, u64>>,
    looked: Cell<Option<Instant>>,
}

struct Entry {
    client: Client,
    receiver: Rc<dyn DownloadSink>,
    /// Whether it was told to end.
    leaves: bool,
}

/// A response in progress, tracked until this is dropped.
#[must_use = "dropping this stops tracking the response"]
pub struct Download {
    downloads: Rc<Downloads>,
    key: usize,
}

impl Downloads {
    pub(super) fn new() -> Rc<Downloads> {
        Rc::new(Downloads {
            worker: next_id(),
            under_way: RefCell::default(),
            published: RefCell::default(),
            looked: Cell::new(None),
        })
    }

    /// Starts tracking a response for `client`, which `receiver` sends.
    pub(super) fn begin(self: &Rc<Self>, client: IpAddr, receiver: Rc<dyn DownloadSink>) -> Download {
        let entry = Entry { client: Client::of(client), receiver, leaves: false };
        let key = self.under_way.borrow_mut().insert(entry);
        Download { downloads: Rc::clone(self), key }
    }

    /// Checks which responses wait for their clients, publishes that to the other workers, and evicts as many as
    /// waiting requests need: `wanted` here, plus those for which other workers can evict none. Only responses without
    /// progress for `patience`, or for one second if other workers need capacity, are evicted. Returns how many
    /// responses here are about to end; `None` if the last check was just now.
    pub(super) fn look(&self, cluster: &Cluster, wanted: usize, patience: Duration) -> Option<usize> {
        let now = Instant::now();
        if self.looked.get().is_some_and(|looked| now - looked < PAUSE) {
            return None;
        }
        self.looked.set(Some(now));
        let mut waiting = Vec::new();
        let mut leaving = 0;
        for (key, entry) in self.under_way.borrow().iter() {
            if entry.leaves {
                leaving += 1;
            } else if let Some(since) = entry.receiver.waits_since()
                && since + NOTICED <= now
            {
                waiting.push(Waiting { since, key, client: entry.client, uploads: entry.receiver.is_uploading() });
            }
        }
        let stats = cluster.stats();
        let ended = {
            let mut table = stats.shares.lock();
            self.publish(stats, &mut table, &waiting);
            table.lacking.remove(&self.worker);
            let elsewhere = table.lacking.values().sum::<usize>();
            let patience = if elsewhere > 0 { PATIENCE } else { patience };
            let ended = match (wanted + elsewhere).saturating_sub(leaving) {
                0 => Vec::new(),
                missing => {
                    waiting.retain(|waiting| waiting.since + patience <= now);
                    self.choose(cluster, &mut table, waiting, missing)
                }
            };
            leaving += ended.len();
            let mut spare = leaving.saturating_sub(wanted);
            table.lacking.retain(|_, lacking| {
                let given = spare.min(*lacking);
                (spare, *lacking) = (spare - given, *lacking - given);
                *lacking > 0
            });
            if wanted > leaving && patience == PATIENCE {
                table.lacking.insert(self.worker, wanted - leaving);
            }
            ended
        };
        stats.downloads_evicted.fetch_add(ended.len() as u64, Relaxed);
        for key in ended {
            let receiver = self.under_way.borrow_mut().get_mut(key).map(|entry| {
                entry.leaves = true;
                Rc::clone(&entry.receiver)
            });
            receiver.inspect(|receiver| receiver.evict());
        }
        Some(leaving)
    }

    /// Returns whether published counts of this worker may be outdated.
    pub(super) fn has_published(&self) -> bool {
        !self.published.borrow().is_empty()
    }

    /// Chooses up to `missing` responses to evict, longest wait first: those of clients over their shares or, without
    /// such clients, of any client if the total is too high.
    fn choose(&self, cluster: &Cluster, table: &mut Table, mut waiting: Vec<Waiting>, missing: usize) -> Vec<usize> {
        waiting.sort_unstable_by_key(|waiting| waiting.since);
        let (all, each) = cluster.shares_now();
        let stats = cluster.stats();
        let mut published = self.published.borrow_mut();
        let mut ended = Vec::new();
        for of_one in [true, false] {
            // While some clients are over their shares, only those make room: their responses will soon have waited
            // long enough.
            if !of_one && table.is_any_over(each) {
                break;
            }
            waiting.retain(|&Waiting { key, client, uploads, .. }| {
                let over = match of_one {
                    true => table.of(client).sum() > each,
                    false => stats.uploads.load(Relaxed) + stats.downloads.load(Relaxed) > all,
                };
                if ended.len() == missing || !over {
                    return true;
                }
                ended.push(key);
                if !uploads {
                    table.stop_waiting(client, 1);
                    stats.downloads.fetch_sub(1, Relaxed);
                    if let Some(count) = published.get_mut(&client) {
                        *count -= 1;
                    }
                }
                false
            });
        }
        published.retain(|_, count| *count > 0);
        ended
    }

    /// Publishes to the other workers which responses wait here now.
    fn publish(&self, stats: &ClusterStats, table: &mut Table, waiting: &[Waiting]) {
        let mut published = self.published.borrow_mut();
        for (client, count) in published.drain() {
            table.stop_waiting(client, count);
            stats.downloads.fetch_sub(count, Relaxed);
        }
        for waiting in waiting.iter().filter(|waiting| !waiting.uploads) {
            *published.entry(waiting.client).or_default() += 1;
        }
        for (client, count) in published.iter() {
            table.wait(*client, *count);
            stats.downloads.fetch_add(*count, Relaxed);
        }
    }

    /// Withdraws what was published to the other workers.
    pub(super) fn end(&self, stats: &ClusterStats) {
        let mut table = stats.shares.lock();
        self.publish(stats, &mut table, &[]);
        table.lacking.remove(&self.worker);
    }
}

/// A response that waits for its client.
struct Waiting {
    since: Instant,
    key: usize,
    client: Client,
    uploads: bool,
}

impl Drop for Download {
    fn drop(&mut self) {
        let entry = self.downloads.under_way.borrow_mut().try_remove(self.key);
        drop(entry);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::model;

    struct Fake {
        since: Cell<Option<Instant>>,
        uploads: bool,
        evicted: Cell<bool>,
    }

    impl DownloadSink for Fake {
        fn waits_since(&self) -> Option<Instant> {
            self.since.get()
        }

        fn is_uploading(&self) -> bool {
            self.uploads
        }

        fn evict(&self) {
            self.evicted.set(true);
        }
    }

    /// Creates a cluster at its limit.
    fn full(connections: u32) -> (Arc<Cluster>, Vec<super::super::RequestGuard>) {
        let config: model::Cluster =
            serde_json::from_value(serde_json::json!({"name": "c", "limits": {"connections": connections}})).unwrap();
        let cluster = Cluster::new(&config, None);
        let guards = (0..connections).map(|_| cluster.try_request().unwrap()).collect();
        (cluster, guards)
    }

    fn begin(downloads: &Rc<Downloads>, client: &str, since: Option<Instant>) -> (Rc<Fake>, Download) {
        let fake = Rc::new(Fake { since: Cell::new(since), uploads: false, evicted: Cell::new(false) });
        let receiver: Rc<dyn DownloadSink> = fake.clone();
        (fake, downloads.begin(client.parse().unwrap(), receiver))
    }

    fn evicted(under_way: &[(Rc<Fake>, Download)]) -> Vec<usize> {
        (0..under_way.len()).filter(|nth| under_way[*nth].0.evicted.get()).collect()
    }

    async fn look(downloads: &Downloads, cluster: &Cluster, wanted: usize) -> usize {
        tokio::time::advance(PAUSE).await;
        downloads.look(cluster, wanted, PATIENCE).expect("the last look was long ago")
    }

    #[tokio::test(start_paused = true)]
    async fn clients_over_their_share_are_evicted_first_then_the_longest_wait() {
        let (cluster, _held) = full(8);
        let downloads = Downloads::new();
        let now = Instant::now();
        // The first has waited longest, but holds no more than a quarter.
        let from = ["192.0.2.1", "192.0.2.2", "192.0.2.2", "192.0.2.2", "192.0.2.2", "192.0.2.3", "192.0.2.3"];
        let under_way: Vec<_> =
            (0..7).map(|n| begin(&downloads, from[n], Some(now + Duration::from_millis(n as u64)))).collect();
        assert_eq!(look(&downloads, &cluster, 1).await, 0, "none has waited for a second");
        tokio::time::advance(2 * PATIENCE).await;
        assert_eq!(
            (look(&downloads, &cluster, 0).await, evicted(&under_way).len()),
            (0, 0),
            "no request needs capacity"
        );
        assert_eq!(cluster.stats().downloads.load(Relaxed), 7);
        assert!(cluster.is_over_share(Some("192.0.2.2".parse().unwrap())));
        assert!(!cluster.is_over_share(Some("192.0.2.3".parse().unwrap())));
        assert_eq!(look(&downloads, &cluster, 1).await, 1);
        assert_eq!(evicted(&under_way), [1]);
        assert_eq!(look(&downloads, &cluster, 1).await, 1, "one is about to end");
        assert_eq!(evicted(&under_way), [1]);
        assert_eq!(look(&downloads, &cluster, 8).await, 2, "six may wait, two of each client");
        assert_eq!(evicted(&under_way), [1, 2]);
        drop(under_way);
        downloads.end(cluster.stats());
        assert_eq!((cluster.stats().downloads.load(Relaxed), cluster.stats().downloads_evicted.load(Relaxed)), (0, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn clients_within_their_shares_leave_a_part_to_others() {
        let (cluster, _held) = full(8);
        let downloads = Downloads::new();
        let since = Some(Instant::now());
        let under_way: Vec<_> = (0..8).map(|n| begin(&downloads, &format!("192.0.2.{n}"), since)).collect();
        tokio::time::advance(2 * PATIENCE).await;
        assert_eq!(look(&downloads, &cluster, 8).await, 2);
        assert_eq!(evicted(&under_way).len(), 2, "three quarters may wait");
    }

    #[tokio::test(start_paused = true)]
    async fn worker_without_such_responses_is_helped_by_another() {
        let (cluster, _held) = full(4);
        let (here, there) = (Downloads::new(), Downloads::new());
        let since = Some(Instant::now());
        let under_way: Vec<_> = (0..4).map(|_| begin(&there, "192.0.2.1", since)).collect();
        tokio::time::advance(2 * PATIENCE).await;
        assert_eq!(look(&here, &cluster, 2).await, 0);
        assert_eq!(look(&there, &cluster, 0).await, 2);
        assert_eq!(evicted(&under_way).len(), 2);
        assert_eq!(look(&there, &cluster, 0).await, 2, "no worker lacks capacity any more");
        // A client that reads again no longer counts as waiting.
        under_way[2].0.since.set(None);
        under_way[3].0.since.set(None);
        look(&there, &cluster, 1).await;
        assert!(!there.has_published() && evicted(&under_way).len() == 2);
    }
}
