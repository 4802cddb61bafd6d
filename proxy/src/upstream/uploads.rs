//! Circuit breaking per client: limits on the part of a cluster that clients may occupy for as long as they like, in
//! total and per client.
//!
//! A request whose body is incomplete, or that becomes a tunnel, holds a connection for as long as its client likes.
//! Since such requests never hold all connections, a complete request always finds some that become free by themselves.
//! Requests waiting for a connection count as well as those that have one, over all workers. Only tunnels, and uploads
//! that are still incomplete when they are forwarded, hold permits here. Other requests take the lock only when they
//! find no connection and the cluster is short of them.
//!
//! Over HTTP/2 each of them takes a stream, of which a connection has as many as the endpoints allow. One that shares
//! its connection with no other request takes all of them.
//!
//! Responses that wait for their clients count within the same shares, but are only checked when capacity runs out
//! (`downloads`).

use std::{
    cell::RefCell,
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
};

use super::{Cluster, ClusterStats, settings::ClientShare};
use crate::net::Client;

/// What the clients of a cluster hold.
#[derive(Debug, Default)]
pub(super) struct ClientShares(Mutex<Table>);

/// The usage of all clients, on all workers.
#[derive(Debug, Default)]
pub(super) struct Table {
    clients: HashMap<Client, ClientUsage>,
    /// Unfinished uploads and tunnels with their own connection.
    alone: u64,
    /// By worker: requests waiting for capacity there for which no response of that worker can be evicted.
    pub(super) lacking: HashMap<u64, usize>,
}

/// What one client holds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClientUsage {
    /// Unfinished uploads and tunnels.
    uploads: u64,
    /// Of these, those with their own connection.
    alone: u64,
    /// Responses that wait for the client, as last published by the workers.
    downloads: u64,
    /// Requests that wait for capacity.
    waiting: u64,
    /// Of these, those that wait behind others because the client was over its share.
    behind: u64,
}

impl ClientUsage {
    pub(super) fn sum(self) -> u64 {
        self.uploads + self.downloads
    }

    /// Returns whether requests of a client with this usage wait behind others. That remains so until none of its
    /// requests does; otherwise later requests would overtake earlier ones.
    pub(super) fn is_over(self, share: u64) -> bool {
        self.behind > 0 || self.waiting > share || (self.downloads > 0 && self.sum() > share)
    }

    fn fits(self, share: ClientShare) -> bool {
        let streams = self.uploads - self.alone + self.alone * share.streams;
        self.uploads <= share.requests && streams <= share.connections * share.streams
    }
}

/// The limit at which an upload or a tunnel was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientLimit {
    /// The total of unfinished uploads and tunnels.
    All,
    /// This client's share.
    Client,
}

/// A permit for an unfinished upload or tunnel, released on drop.
#[derive(Debug)]
#[must_use = "dropping this releases the permit"]
pub struct ClientPermit {
    stats: Arc<ClusterStats>,
    client: Client,
    alone: bool,
}

/// A holder for the permit of one request, for as long as it needs one.
#[derive(Debug, Default)]
pub struct UsageGuard(RefCell<Option<ClientPermit>>);

impl UsageGuard {
    /// Holds this permit.
    pub fn begin(&self, place: ClientPermit) {
        *self.0.borrow_mut() = Some(place);
    }

    /// Releases the permit.
    pub fn end(&self) {
        self.0.borrow_mut().take();
    }

    /// Checks that the permit is still within the shares now that the request takes another connection, `alone` or not.
    /// That was not known when the permit was acquired, nor possibly how many streams the endpoints allow.
    ///
    /// # Errors
    /// It is not; this is counted, and the permit is released.
    pub(super) fn confirm(&self, cluster: &Cluster, alone: bool) -> Result<(), ClientLimit> {
        let mut place = self.0.borrow_mut();
        let Some(held) = place.as_mut() else { return Ok(()) };
        let confirmed = cluster.change_held(held.client, |total| {
            total.alone = total.alone + u64::from(alone) - u64::from(held.alone);
        });
        match confirmed {
            Ok(()) => held.alone = alone,
            Err(_) => *place = None,
        }
        confirmed
    }
}

/// A client's request in the queue, counted until this is dropped.
#[must_use = "dropping this leaves the queue"]
pub(super) struct QueueGuard<'s> {
    stats: &'s ClusterStats,
    client: Option<Client>,
    /// Whether its client is over its share.
    over: bool,
}

impl<'s> QueueGuard<'s> {
    pub(super) fn enter(stats: &'s ClusterStats, client: Option<IpAddr>, over: bool) -> Self {
        let client = client.map(Client::of);
        if let Some(client) = client {
            stats.shares.lock().change(client, |held| {
                held.waiting += 1;
                held.behind += u64::from(over);
            });
        }
        stats.pending_over.fetch_add(over.into(), Relaxed);
        QueueGuard { stats, client, over }
    }
}

impl Drop for QueueGuard<'_> {
    fn drop(&mut self) {
        self.stats.pending_over.fetch_sub(self.over.into(), Relaxed);
        if let Some(client) = self.client {
            self.stats.shares.lock().change(client, |held| {
                held.waiting -= 1;
                held.behind -= u64::from(self.over);
            });
        }
    }
}

impl ClientShares {
    pub(super) fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    pub(super) fn of(&self, client: Client) -> ClientUsage {
        self.clients.get(&client).copied().unwrap_or_default()
    }

    /// Changes a client's usage; clients without any are removed.
    fn change(&mut self, client: Client, change: impl FnOnce(&mut ClientUsage)) {
        match self.clients.entry(client) {
            Entry::Occupied(mut held) => {
                change(held.get_mut());
                if *held.get() == ClientUsage::default() {
                    held.remove();
                }
            }
            Entry::Vacant(place) => {
                let mut held = ClientUsage::default();
                change(&mut held);
                if held != ClientUsage::default() {
                    place.insert(held);
                }
            }
        }
    }

    /// Returns whether any client holds more than this.
    pub(super) fn is_any_over(&self, share: u64) -> bool {
        self.clients.values().any(|held| held.sum() > share)
    }

    /// Adds responses that wait for a client.
    pub(super) fn wait(&mut self, client: Client, count: u64) {
        self.change(client, |held| held.downloads += count);
    }

    /// Subtracts responses that wait for a client.
    pub(super) fn stop_waiting(&mut self, client: Client, count: u64) {
        self.change(client, |held| held.downloads = held.downloads.saturating_sub(count));
    }
}

impl Cluster {
    /// Acquires a permit for a client's unfinished upload or tunnel.
    ///
    /// # Errors
    /// A limit is reached, which is counted.
    pub fn try_hold(&self, client: IpAddr) -> Result<ClientPermit, ClientLimit> {
        let client = Client::of(client);
        self.change_held(client, |held| held.uploads += 1)?;
        Ok(ClientPermit { stats: Arc::clone(self.stats()), client, alone: false })
    }

    /// Changes the usage of a client and the total, if both remain within their shares.
    fn change_held(&self, client: Client, change: impl Fn(&mut ClientUsage)) -> Result<(), ClientLimit> {
        let (all, each) = self.upload_shares();
        let stats = self.stats();
        let mut shares = stats.shares.lock();
        // Written only under the lock.
        let mut total =
            ClientUsage { uploads: stats.uploads.load(Relaxed), alone: shares.alone, ..ClientUsage::default() };
        let mut held = shares.of(client);
        change(&mut total);
        change(&mut held);
        let crowded = match (held.fits(each), total.fits(all)) {
            (false, _) => ClientLimit::Client,
            (_, false) => ClientLimit::All,
            _ => {
                shares.change(client, change);
                shares.alone = total.alone;
                stats.uploads.store(total.uploads, Relaxed);
                return Ok(());
            }
        };
        stats.upload_overflows.fetch_add(1, Relaxed);
        Err(crowded)
    }
}

impl Drop for ClientPermit {
    fn drop(&mut self) {
        let mut shares = self.stats.shares.lock();
        self.stats.uploads.fetch_sub(1, Relaxed);
        shares.alone -= u64::from(self.alone);
        shares.change(self.client, |held| {
            held.uploads -= 1;
            held.alone -= u64::from(self.alone);
        });
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

    fn hold(cluster: &Cluster, client: &str) -> Result<ClientPermit, ClientLimit> {
        cluster.try_hold(client.parse().unwrap())
    }

    #[test]
    fn shares_are_limited_in_total_and_per_client() {
        let cluster = cluster(serde_json::json!({"connections": 8}));
        let held: Vec<_> = (0..6).map(|n| hold(&cluster, &format!("192.0.2.{}", n / 2)).unwrap()).collect();
        assert_eq!(hold(&cluster, "192.0.2.0").unwrap_err(), ClientLimit::Client);
        assert_eq!(hold(&cluster, "192.0.2.9").unwrap_err(), ClientLimit::All);
        assert_eq!(cluster.stats().uploads.load(Relaxed), 6);
        assert_eq!(cluster.stats().upload_overflows.load(Relaxed), 2);
        drop(held);
        assert_eq!(cluster.stats().uploads.load(Relaxed), 0);
        assert!(cluster.stats().shares.lock().clients.is_empty(), "nothing is kept of clients that hold nothing");
    }

    #[test]
    fn addresses_of_one_network_are_one_client() {
        let cluster = cluster(serde_json::json!({"connections": 4}));
        let _one = hold(&cluster, "2001:db8::1").unwrap();
        assert_eq!(hold(&cluster, "2001:db8::ffff:1").unwrap_err(), ClientLimit::Client);
        let _another = hold(&cluster, "2001:db8:0:1::1").unwrap();
        let _by_4 = hold(&cluster, "192.0.2.1").unwrap();
        assert_eq!(hold(&cluster, "::ffff:192.0.2.1").unwrap_err(), ClientLimit::Client);
    }

    #[test]
    fn smallest_cluster_accepts_an_upload() {
        for (connections, all, each) in [(1, 1, 1), (2, 2, 1), (3, 3, 1), (4, 3, 1), (5, 4, 2), (1024, 768, 256)] {
            let cluster = cluster(serde_json::json!({"connections": connections}));
            assert_eq!(requests(&cluster), (all, each), "{connections}");
        }
        let cluster = cluster(serde_json::json!({"pending": 2, "uploads": 100, "uploads_per_client": 1}));
        assert_eq!((requests(&cluster), cluster.limits.pending_uploads), ((1024, 11), 2));
    }

    fn requests(cluster: &Cluster) -> (u64, u64) {
        let (all, each) = cluster.upload_shares();
        (all.requests, each.requests)
    }

    /// Creates an HTTP/2 cluster with two endpoints and 8 connections with 10 streams.
    fn h2() -> Arc<Cluster> {
        let config = serde_json::json!({
            "name": "c", "endpoints": [{"address": "127.0.0.1:1"}, {"address": "127.0.0.1:2"}], "protocol": "h2",
            "http2": {"max_concurrent_streams": 10}, "limits": {"connections": 8},
        });
        Cluster::new(&serde_json::from_value(config).unwrap(), None)
    }

    fn held(cluster: &Cluster, client: &str) -> UsageGuard {
        let holding = UsageGuard::default();
        holding.begin(hold(cluster, client).unwrap());
        holding
    }

    #[test]
    fn request_with_its_own_connection_counts_as_all_its_streams() {
        let cluster = h2();
        let mut alone: Vec<_> = (0..6).map(|n| held(&cluster, &format!("192.0.2.{}", n / 2))).collect();
        for holding in &alone {
            assert_eq!(holding.confirm(&cluster, true), Ok(()));
            assert_eq!(holding.confirm(&cluster, true), Ok(()), "it counts once");
        }
        assert_eq!(hold(&cluster, "192.0.2.0").unwrap_err(), ClientLimit::Client);
        assert_eq!(hold(&cluster, "192.0.2.9").unwrap_err(), ClientLimit::All);
        alone.pop();
        let (stream, other) = (held(&cluster, "192.0.2.8"), held(&cluster, "192.0.2.9"));
        assert_eq!(other.confirm(&cluster, true), Err(ClientLimit::All), "the last connection already has a stream");
        drop(stream);
        alone.push(held(&cluster, "192.0.2.9"));
        assert_eq!(alone[5].confirm(&cluster, true), Ok(()));
        drop(alone);
        assert!(cluster.stats().shares.lock().clients.is_empty());
        assert_eq!((cluster.stats().uploads.load(Relaxed), cluster.stats().shares.lock().alone), (0, 0));
    }

    #[test]
    fn shares_depend_on_what_endpoints_allow() {
        let cluster = h2();
        assert_eq!(requests(&cluster), (60, 20));
        let held: Vec<_> = (0..9).map(|_| held(&cluster, "192.0.2.1")).collect();
        cluster.members()[0].endpoint.allow_streams(100);
        assert_eq!(requests(&cluster), (60, 20));
        cluster.members()[1].endpoint.allow_streams(4);
        assert_eq!(requests(&cluster), (24, 8));
        // A request that needs a connection now gets none.
        assert_eq!(held[0].confirm(&cluster, false), Err(ClientLimit::Client));
        assert_eq!(held[1].confirm(&cluster, false), Ok(()), "another has left");
        cluster.members()[1].endpoint.allow_streams(0);
        assert_eq!(requests(&cluster), (6, 2), "it will allow some again");
    }
}
