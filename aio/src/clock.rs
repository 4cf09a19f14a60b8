//! The one clock: time since the backend was made.

use std::time::{Duration, Instant};

/// A monotonic clock; copies show the same time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "the backend's clock itself")]
    pub(crate) fn start() -> Clock {
        Clock(Instant::now())
    }

    /// What the clock showed, or will show, at this moment; 0 before its start.
    pub(crate) fn reading(self, moment: Instant) -> Duration {
        moment.saturating_duration_since(self.0)
    }

    /// Time since the start.
    pub(crate) fn now(self) -> Duration {
        self.0.elapsed()
    }
}
