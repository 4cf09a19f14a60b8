//! A virtual clock that turns bytes into time: work of n bytes moves it by n / rate, and who finds it ahead of the real time
//! waits for it.

use std::time::Duration;

use aio::Backend;

use crate::base::sync::Ordering;
use crate::base::sync::shared::AtomicU64;

/// One piece of work at a low rate must not stop all others for long.
const LONGEST_STEP: Duration = Duration::from_mins(1);

/// The longest part of a sleep: then the sleeper looks whether its sleep is over.
const SLICE: Duration = Duration::from_millis(10);

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Clock {
    at_ns: AtomicU64,
    most_credit: Duration,
    most_debt: Duration,
}

impl Clock {
    /// The clock never stays behind by more than `most_credit`, so a pause earns no burst. Work finds it ahead by at most
    /// `most_debt`: time that was not slept for is forgiven beyond that.
    pub(crate) fn new(most_credit: Duration, most_debt: Duration) -> Clock {
        Clock { at_ns: AtomicU64::new(0), most_credit, most_debt }
    }

    /// Moves the clock by `len_bytes` at `rate` bytes per second, and returns how far it is ahead of `now`.
    pub(crate) fn charge(&self, now: Duration, len_bytes: u64, rate: u64) -> Duration {
        let now_ns = nanos(now);
        let least_ns = now_ns.saturating_sub(nanos(self.most_credit));
        let most_ns = now_ns.saturating_add(nanos(self.most_debt));
        let step_ns = nanos(time_of(len_bytes, rate));
        let mut before = self.at_ns.load(Ordering::Relaxed);
        loop {
            let after = before.clamp(least_ns, most_ns).saturating_add(step_ns);
            match self.at_ns.compare_exchange_weak(before, after, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Duration::from_nanos(after.saturating_sub(now_ns)),
                Err(found) => before = found,
            }
        }
    }
}

/// The time of `len_bytes` at `rate` bytes per second.
pub(crate) fn time_of(len_bytes: u64, rate: u64) -> Duration {
    let ns = u128::from(len_bytes) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX)).min(LONGEST_STEP)
}

/// Sleeps for `time`, or until `is_over`.
pub(crate) fn sleep(backend: &dyn Backend, time: Duration, is_over: &dyn Fn() -> bool) {
    let until = backend.now() + time;
    loop {
        let left = until.saturating_sub(backend.now());
        if left.is_zero() || is_over() {
            return;
        }
        backend.park(left.min(SLICE));
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use aio::SimBackend;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn work_runs_ahead_by_the_time_of_its_bytes_and_a_pause_earns_the_credit_only() {
        let clock = Clock::new(MS, 10 * MS);
        let now = Duration::from_secs(5);
        let charge = |now, len_bytes| clock.charge(now, len_bytes, 1_000_000);
        assert_eq!(charge(now, 3000), 2 * MS);
        assert_eq!(charge(now, 1000), 3 * MS);
        assert_eq!(charge(now + 3 * MS, 1000), MS);
        assert_eq!(charge(now + 100 * MS, 1000), Duration::ZERO);
        assert_eq!(charge(now + 100 * MS, 500), MS / 2);
    }

    #[test]
    fn work_pays_for_its_own_bytes_and_for_a_bounded_debt_of_others() {
        let clock = Clock::new(MS, 10 * MS);
        let charge = |len_bytes| clock.charge(Duration::from_secs(5), len_bytes, 1_000_000);
        assert_eq!(charge(500_000), 499 * MS);
        assert_eq!(charge(1000), 11 * MS);
        assert_eq!(charge(500_000), 510 * MS);
    }

    #[test]
    fn one_huge_write_does_not_stop_the_others_for_ever() {
        let ahead = Clock::new(Duration::ZERO, MS).charge(Duration::ZERO, u64::MAX, 1);
        assert_eq!(ahead, LONGEST_STEP);
    }

    #[test]
    fn a_sleep_ends_at_its_time_or_when_it_is_over() {
        let sim = SimBackend::new(1);
        let slept = |time, is_over: &dyn Fn() -> bool| {
            let before = sim.now();
            sleep(&sim, time, is_over);
            sim.now().saturating_sub(before)
        };
        assert_eq!(slept(35 * MS, &|| false), 35 * MS);
        let end = sim.now() + 15 * MS;
        assert_eq!(slept(1000 * MS, &|| sim.now() >= end), 20 * MS);
    }
}
