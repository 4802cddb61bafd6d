//! The time as balancers and limits read it.

use std::{sync::LazyLock, time::Duration};

use tokio::time::Instant;

// Not tokio's clock, which tests set forward: times before the start would all be alike.
static START: LazyLock<Instant> = LazyLock::new(|| Instant::from_std(std::time::Instant::now()));

/// The milliseconds since the clock was first read.
pub(super) fn now() -> u64 {
    at(Instant::now())
}

/// The same for another time.
pub(super) fn at(time: Instant) -> u64 {
    // 0 is left for "never".
    1 + time.checked_duration_since(*START).unwrap_or(Duration::ZERO).as_millis() as u64
}

/// The microseconds since the clock was first read.
pub(super) fn micros_at(time: Instant) -> u64 {
    1 + time.checked_duration_since(*START).unwrap_or(Duration::ZERO).as_micros() as u64
}
