//! A virtual clock that turns bytes into time: work of n bytes moves it by n / rate, and who finds it ahead of the real time
//! waits for it.

use std::time::Duration;

use crate::base::sync::Ordering;
use crate::base::sync::shared::AtomicU64;

/// One piece of work at a low rate must not stop all others for long.
const LONGEST_STEP: Duration = Duration::from_mins(1);

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Clock(
    /// Nanoseconds.
    AtomicU64,
);

impl Clock {
    pub(crate) fn new() -> Clock {
        Clock(AtomicU64::new(0))
    }

    /// Moves the clock by `len_bytes` at `rate` bytes per second, and returns how far it is ahead of `now`. It never stays
    /// behind by more than `most_credit`, so a pause earns no burst.
    pub(crate) fn charge(&self, now: Duration, len_bytes: u64, rate: u64, most_credit: Duration) -> Duration {
        let now_ns = nanos(now);
        let least_ns = now_ns.saturating_sub(nanos(most_credit));
        let step_ns = u128::from(len_bytes) * 1_000_000_000 / u128::from(rate.max(1));
        let step_ns = u64::try_from(step_ns).unwrap_or(u64::MAX).min(nanos(LONGEST_STEP));
        let mut before = self.0.load(Ordering::Relaxed);
        loop {
            let after = before.max(least_ns).saturating_add(step_ns);
            match self.0.compare_exchange_weak(before, after, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Duration::from_nanos(after.saturating_sub(now_ns)),
                Err(found) => before = found,
            }
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn work_runs_ahead_by_the_time_of_its_bytes_and_a_pause_earns_the_credit_only() {
        let clock = Clock::new();
        let now = Duration::from_secs(5);
        let charge = |now, len_bytes| clock.charge(now, len_bytes, 1_000_000, MS);
        assert_eq!(charge(now, 3000), 2 * MS);
        assert_eq!(charge(now, 1000), 3 * MS);
        assert_eq!(charge(now + 3 * MS, 1000), MS);
        assert_eq!(charge(now + 100 * MS, 1000), Duration::ZERO);
        assert_eq!(charge(now + 100 * MS, 500), MS / 2);
    }

    #[test]
    fn one_huge_write_does_not_stop_the_others_for_ever() {
        let ahead = Clock::new().charge(Duration::ZERO, u64::MAX, 1, MS);
        assert_eq!(ahead, LONGEST_STEP);
    }
}
