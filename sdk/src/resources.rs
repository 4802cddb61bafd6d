//! What a filter defines when it is configured, and uses by a small handle for each request: routes, buckets, limits. And
//! time and chance.

pub(crate) mod metrics;
pub mod shared;
pub mod stored;

use std::time::Duration;

use tollgate_abi::fast::Take;

use crate::sys;

/// A route, made by [`Setup::route`](crate::Setup::route).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RouteId(pub(crate) u32);

/// How a route's choices are made for one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Selection {
    /// Chooses among the route's clusters: the same hash, the same cluster. Chance, if there is none.
    pub split: Option<u64>,
    /// Chooses among the cluster's endpoints, if its balancer is `hash`.
    pub balance: Option<u64>,
}

/// A token bucket, or a bucket for each key, made by [`Setup::bucket`](crate::Setup::bucket).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket(pub(crate) u32);

/// The answer of [`Bucket::take`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Whether the tokens were there.
    pub allowed: bool,
    /// The state of the bucket, after the taking.
    pub state: Take,
}

impl Bucket {
    /// Takes tokens in the name of a key (empty for a bucket without keys). Exact, even with all workers taking at once. A
    /// negative number gives tokens back.
    pub fn take(self, key: &[u8], tokens: i32) -> Taken {
        let (status, state) = sys::bucket_take(self.0, key, tokens);
        // A host that cannot tell must not stop the traffic.
        Taken { allowed: status != 0, state }
    }
}

/// A bound on how many streams do something at once, over all workers; made by [`Setup::limit`](crate::Setup::limit).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(pub(crate) u32);

impl Limit {
    /// Takes a place for the current stream, if there is one. It is given back when the stream ends.
    pub fn acquire(self) -> bool {
        sys::limit_acquire(self.0) == 1
    }

    /// Gives the current stream's place back early.
    pub fn release(self) {
        sys::limit_release(self.0);
    }
}

/// A monotonic clock in nanoseconds, from an arbitrary start.
pub fn now() -> u64 {
    sys::now()
}

/// 64 random bits, not for secrets.
pub fn random() -> u64 {
    sys::random()
}

/// Random bytes that are fit for secrets: keys, nonces. Slower than [`random`].
pub fn random_bytes(bytes: &mut [u8]) {
    sys::random_bytes(bytes);
}

/// The clock on the wall: the time since 1970 in UTC, which may jump. For lengths of time, [`now`] is better.
pub fn unix_time() -> Duration {
    Duration::from_nanos(sys::wall_clock())
}
