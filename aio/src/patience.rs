//! The pauses between the tries of a call that was refused for lack of a resource.
//!
//! They double from one to 50 milliseconds, so that a short shortage costs little and a long one no processor time. After
//! five seconds there are no more: a shortage of that length needs a person.

use std::time::Duration;

const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// The pauses of one wait, by the readings of any clock.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    since: Option<Duration>,
    pause: Duration,
}

impl Patience {
    /// How long to pause before the next try; `None` if there is to be none.
    pub(crate) fn pause(&mut self, now: Duration) -> Option<Duration> {
        let since = *self.since.get_or_insert(now);
        if now.saturating_sub(since) >= PATIENCE {
            return None;
        }
        self.pause = (self.pause * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        Some(self.pause)
    }
}
