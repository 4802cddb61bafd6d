//! Long work on a worker in turns: after a millisecond, the requests come first again.

use std::time::{Duration, Instant};

/// How long a turn may last.
const TURN: Duration = Duration::from_millis(1);

/// A piece of long work.
pub(super) struct Turn(Instant);

impl Turn {
    /// Begins a turn.
    pub(super) fn begin() -> Turn {
        Turn(Instant::now())
    }

    /// Called between two steps: lets other tasks run if the turn has lasted long enough, and then begins another one.
    pub(super) async fn end(&mut self) {
        if self.0.elapsed() >= TURN {
            tokio::task::yield_now().await;
            *self = Turn::begin();
        }
    }
}
