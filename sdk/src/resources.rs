//! Resources that a filter defines during configuration and uses per request through small handles: routes, token
//! buckets, limits. Also time and randomness.

pub(crate) mod metrics;
pub mod shared;
pub mod stored;

use std::time::Duration;

use tollgate_abi::fast::Take;

use crate::sys;

/// Handle to a route, from [`Setup::route`](crate::Setup::route).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RouteId(pub(crate) u32);

/// Inputs for a route's choices for one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Selection {
    /// Hash that selects one of the route's clusters: the same hash selects the same cluster. Random if `None`.
    pub split: Option<u64>,
    /// Hash that selects one of the cluster's endpoints, if its balancer is `hash`.
    pub balance: Option<u64>,
}

/// Handle to a token bucket, or one bucket per key, from [`Setup::bucket`](crate::Setup::bucket).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket(pub(crate) u32);

/// Result of [`Bucket::take`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Whether there were enough tokens.
    pub allowed: bool,
    /// State of the bucket afterwards.
    pub state: Take,
}

impl Bucket {
    /// Takes tokens from the bucket of a key (empty for a bucket without keys). Exact even if all workers take
    /// concurrently. A negative number returns tokens.
    pub fn take(self, key: &[u8], tokens: i32) -> Taken {
        let (status, state) = sys::bucket_take(self.0, key, tokens);
        // Fails open: if the host cannot tell, the request is allowed.
        Taken { allowed: status != 0, state }
    }
}

/// Limit on the number of concurrent streams, shared by all workers; from [`Setup::limit`](crate::Setup::limit).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(pub(crate) u32);

impl Limit {
    /// Acquires a permit for the current stream, if one is available. It is released when the stream ends.
    pub fn acquire(self) -> bool {
        sys::limit_acquire(self.0) == 1
    }

    /// Releases the current stream's permit early.
    pub fn release(self) {
        sys::limit_release(self.0);
    }
}

/// Returns the time of a monotonic clock with an arbitrary start, in nanoseconds.
pub fn now() -> u64 {
    sys::now()
}

/// Returns 64 random bits; not suitable for secrets.
pub fn random() -> u64 {
    sys::random()
}

/// Fills `bytes` with random bytes suitable for secrets such as keys and nonces. Slower than [`random`].
pub fn random_bytes(bytes: &mut [u8]) {
    sys::random_bytes(bytes);
}

/// Returns the wall-clock time as the time since 1970 in UTC. It may jump; use [`now`] to measure durations.
pub fn unix_time() -> Duration {
    Duration::from_nanos(sys::wall_clock())
}
