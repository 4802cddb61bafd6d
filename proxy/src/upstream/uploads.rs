//! How much of a cluster unfinished uploads and tunnels may hold: a part of it all together, a smaller part for each client.
//!
//! A request whose body has not all come, or that becomes a tunnel, holds a connection for as long as its client likes. As such
//! requests never hold all connections, one that is there as a whole always finds some that come free by themselves. What counts
//! is who waits for a connection as well as who has one, over all workers. Only tunnels, and uploads that have not ended when they
//! are sent on, come here, so the lock is nobody else's concern.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
};

use super::{Cluster, Stats, cluster::Limits};
use crate::net::Client;

/// What clients hold of a cluster.
#[derive(Debug, Default)]
pub(super) struct Shares(Mutex<HashMap<Client, u64>>);

/// Why an upload or a tunnel may not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crowded {
    /// Unfinished uploads and tunnels hold as much of the cluster as they may.
    All,
    /// Those of this client do.
    Client,
}

/// A place among those that clients hold, until this is dropped.
#[derive(Debug)]
#[must_use = "the place is given back when this is dropped"]
pub struct ClientPlace {
    stats: Arc<Stats>,
    client: Client,
}

impl Shares {
    fn lock(&self) -> MutexGuard<'_, HashMap<Client, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cluster {
    /// A place for a client's unfinished upload or tunnel.
    ///
    /// # Errors
    /// There is none left, which is counted.
    pub fn try_hold(&self, client: IpAddr) -> Result<ClientPlace, Crowded> {
        let (stats, client) = (self.stats(), Client::of(client));
        let Limits { uploads, uploads_per_client, .. } = self.limits;
        let mut shares = stats.shares.lock();
        let count = shares.get(&client).copied().unwrap_or(0);
        let crowded = if count >= uploads_per_client {
            Some(Crowded::Client)
        } else {
            // Written under the lock only.
            (stats.uploads.load(Relaxed) >= uploads).then_some(Crowded::All)
        };
        if let Some(crowded) = crowded {
            stats.upload_overflows.fetch_add(1, Relaxed);
            return Err(crowded);
        }
        shares.insert(client, count + 1);
        stats.uploads.fetch_add(1, Relaxed);
        drop(shares);
        Ok(ClientPlace { stats: Arc::clone(stats), client })
    }
}

impl Drop for ClientPlace {
    fn drop(&mut self) {
        let mut shares = self.stats.shares.lock();
        self.stats.uploads.fetch_sub(1, Relaxed);
        if let Entry::Occupied(mut count) = shares.entry(self.client) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model;

    fn cluster(limits: serde_json::Value) -> Arc<Cluster> {
        let config: model::Cluster =
            serde_json::from_value(serde_json::json!({"name": "c", "limits": limits})).unwrap();
        Cluster::new(&config, None)
    }

    fn hold(cluster: &Cluster, client: &str) -> Result<ClientPlace, Crowded> {
        cluster.try_hold(client.parse().unwrap())
    }

    #[test]
    fn there_is_a_part_for_all_and_a_part_for_each() {
        let cluster = cluster(serde_json::json!({"connections": 8}));
        let held: Vec<_> = (0..6).map(|n| hold(&cluster, &format!("192.0.2.{}", n / 2)).unwrap()).collect();
        assert_eq!(hold(&cluster, "192.0.2.0").unwrap_err(), Crowded::Client);
        assert_eq!(hold(&cluster, "192.0.2.9").unwrap_err(), Crowded::All);
        assert_eq!(cluster.stats().uploads.load(Relaxed), 6);
        assert_eq!(cluster.stats().upload_overflows.load(Relaxed), 2);
        drop(held);
        assert_eq!(cluster.stats().uploads.load(Relaxed), 0);
        assert!(cluster.stats().shares.lock().is_empty(), "nothing is kept of clients that hold nothing");
    }

    #[test]
    fn one_client_may_have_many_addresses() {
        let cluster = cluster(serde_json::json!({"connections": 4}));
        let _one = hold(&cluster, "2001:db8::1").unwrap();
        assert_eq!(hold(&cluster, "2001:db8::ffff:1").unwrap_err(), Crowded::Client);
        let _another = hold(&cluster, "2001:db8:0:1::1").unwrap();
        let _by_4 = hold(&cluster, "192.0.2.1").unwrap();
        assert_eq!(hold(&cluster, "::ffff:192.0.2.1").unwrap_err(), Crowded::Client);
    }

    #[test]
    fn the_smallest_cluster_takes_an_upload() {
        for (connections, all, each) in [(1, 1, 1), (2, 2, 1), (3, 3, 1), (4, 3, 1), (5, 4, 2), (1024, 768, 256)] {
            let limits = cluster(serde_json::json!({"connections": connections})).limits;
            assert_eq!((limits.uploads, limits.uploads_per_client), (all, each), "{connections}");
        }
        let limits = cluster(serde_json::json!({"pending": 2, "uploads": 100, "uploads_per_client": 1})).limits;
        assert_eq!((limits.uploads, limits.uploads_per_client, limits.pending_uploads), (1024, 11, 2));
    }
}
