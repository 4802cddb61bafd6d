//! File descriptors: the bound on them, and who may take the last ones. When they are used up, nothing can be accepted,
//! connected to or read from a file; and clients alone can use them up, by connecting. So clients get none of the last part,
//! which upstreams need, and neither gets any of the very last: with those the admin listener answers, endpoints' health is
//! checked, and configurations are loaded.
//!
//! Nobody counts. The system gives the lowest descriptor that is free, so a new one says how many there are at least.

use std::{
    os::fd::{AsRawFd, BorrowedFd},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The bound; until it is known, there is none.
static LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);

/// What is left to the proxy's own needs: so many, or an eighth where the bound is low.
const OWN: u64 = 128;

/// Whom a descriptor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DescriptorUse {
    /// A client's connection.
    Client,
    /// A connection to an upstream, or a pipe.
    Upstream,
}

impl DescriptorUse {
    /// The first descriptor that is none of theirs.
    fn end(self, limit: u64) -> u64 {
        match self {
            DescriptorUse::Upstream => limit - own(limit),
            DescriptorUse::Client => limit - own(limit) - limit / 4,
        }
    }

    /// Whether they may keep a descriptor that they have just got.
    pub fn may_keep(self, descriptor: BorrowedFd<'_>) -> bool {
        // A descriptor is never negative.
        u64::from(descriptor.as_raw_fd().cast_unsigned()) < self.end(LIMIT.load(Relaxed))
    }
}

fn own(limit: u64) -> u64 {
    OWN.min(limit / 8)
}

/// What the bound is, and what comes of it.
#[derive(Debug, Clone, Copy)]
pub struct DescriptorLimit {
    /// The soft limit that the process was started with.
    pub before: u64,
    /// The bound now.
    pub now: u64,
}

impl DescriptorLimit {
    /// Descriptors below which clients' connections are accepted.
    pub fn for_clients(self) -> u64 {
        DescriptorUse::Client.end(self.now)
    }
}

/// Raises the soft limit to the hard one: most systems start programs with 1024 for the sake of `select`, which nobody here
/// uses. `u64::MAX` is no limit.
///
/// # Errors
/// The system refuses; then the bound is as it was.
pub fn raise() -> (DescriptorLimit, rustix::io::Result<()>) {
    let limit = getrlimit(Resource::Nofile);
    let number = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    let (before, hard) = (number(limit.current), number(limit.maximum));
    let raised = match before < hard {
        true => setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }),
        false => Ok(()),
    };
    let now = if raised.is_ok() { hard } else { before };
    LIMIT.store(now, Relaxed);
    (DescriptorLimit { before, now }, raised)
}

/// Connections that the admin listener, or that for probes, may have at one time.
pub fn for_admin() -> usize {
    (own(LIMIT.load(Relaxed)) / 4).clamp(4, 32) as usize
}

/// Whether there was no descriptor to be had.
pub fn are_used_up(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_descriptors_are_nobodys() {
        for (limit, clients, upstreams) in [
            (256, 160, 224),
            (1024, 640, 896),
            (20_000, 14_872, 19_872),
            (1 << 20, 786_304, 1_048_448),
            (8, 5, 7),
            (0, 0, 0),
        ] {
            assert_eq!(
                (DescriptorUse::Client.end(limit), DescriptorUse::Upstream.end(limit)),
                (clients, upstreams),
                "{limit}"
            );
        }
        assert!(DescriptorUse::Client.end(u64::MAX) > u64::from(u32::MAX));
    }
}
