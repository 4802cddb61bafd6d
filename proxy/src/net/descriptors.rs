//! File descriptors: their limit, and the shares reserved for upstreams and for the proxy itself. A process without
//! free descriptors can neither accept nor connect nor open a file, and clients can exhaust them just by connecting. So
//! clients cannot use the last part, which is reserved for upstreams, and neither can use the very last descriptors,
//! which serve the admin listener, health checks and configuration loading.
//!
//! There is no counter. The system assigns the lowest free descriptor, so a new descriptor is a lower bound of the
//! number in use.

use std::{
    os::fd::{AsRawFd, BorrowedFd},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limit; unlimited until it is known.
static LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);

/// Descriptors reserved for the proxy itself; an eighth of the limit if that is less.
const OWN: u64 = 128;

/// The purpose of a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DescriptorUse {
    /// A client's connection.
    Client,
    /// A connection to an upstream, or a pipe.
    Upstream,
}

impl DescriptorUse {
    /// Returns the first descriptor beyond the share of this use.
    fn end(self, limit: u64) -> u64 {
        match self {
            DescriptorUse::Upstream => limit - own(limit),
            DescriptorUse::Client => limit - own(limit) - limit / 4,
        }
    }

    /// Returns whether a descriptor just obtained for this use may be kept.
    pub fn may_keep(self, descriptor: BorrowedFd<'_>) -> bool {
        // A descriptor is never negative.
        u64::from(descriptor.as_raw_fd().cast_unsigned()) < self.end(LIMIT.load(Relaxed))
    }
}

fn own(limit: u64) -> u64 {
    OWN.min(limit / 8)
}

/// The limit on descriptors before and after [`raise`].
#[derive(Debug, Clone, Copy)]
pub struct DescriptorLimit {
    /// The soft limit at the start of the process.
    pub before: u64,
    /// The limit now.
    pub now: u64,
}

impl DescriptorLimit {
    /// Returns the descriptor number below which clients' connections are accepted.
    pub fn for_clients(self) -> u64 {
        DescriptorUse::Client.end(self.now)
    }
}

/// Raises the soft limit to the hard limit. Most systems start programs with 1024 for the sake of `select`, which the
/// proxy does not use. `u64::MAX` means unlimited.
///
/// # Errors
/// The system refused; the limit is then unchanged.
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

/// Returns the maximum number of concurrent connections of the admin listener, and of the probe listener.
pub fn for_admin() -> usize {
    (own(LIMIT.load(Relaxed)) / 4).clamp(4, 32) as usize
}

/// Returns whether `error` means that no descriptor was available.
pub fn are_used_up(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_descriptors_are_reserved() {
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
