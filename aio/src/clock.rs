//! The clock of the backend, and a cheaper clock for the latency of operations.
//!
//! Invariants of [`nanos`]: its value does not jump when the source changes, since the time stamp counter continues
//! from the kernel's clock. It is used for statistics only, so a wrong counter (after a virtual machine moved to
//! another processor) makes a wrong figure and has no other effect.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::sys;

/// A monotonic clock; copies show the same time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "the backend's clock itself")]
    pub(crate) fn start() -> Clock {
        Clock(Instant::now())
    }

    /// The reading of the clock at this moment; 0 before its start.
    pub(crate) fn reading(self, moment: Instant) -> Duration {
        moment.saturating_duration_since(self.0)
    }

    /// Time since the start.
    pub(crate) fn now(self) -> Duration {
        self.0.elapsed()
    }

    fn nanos(self) -> u64 {
        whole_nanos(self.now())
    }
}

/// In nanoseconds; at most 584 years.
pub(crate) fn whole_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// How long the counter is compared with the clock before it is used. Each of the two readings is off by at most some
/// tens of nanoseconds, so the rate is right to a hundred thousandth.
const COMPARED_NANOS: u64 = 10_000_000;

/// The number of pairs of readings that are taken to find one without an interruption.
const PAIRS: usize = 8;

/// Nanoseconds since the first call in this process, for measuring only.
///
/// Read from the processor's time stamp counter where the kernel's own clock uses it, from 10 ms after the first call
/// on. Read from the kernel's clock before that, and on other machines. (12 ns instead of 31 to 37 for the kernel's
/// clock, on a virtual machine.)
pub(crate) fn nanos() -> u64 {
    static WATCH: OnceLock<Watch> = OnceLock::new();
    WATCH.get_or_init(|| Watch::start(is_counter_trusted())).nanos()
}

/// Whether the kernel has found the counter to be constant in rate and synchronous on all processors.
fn is_counter_trusted() -> bool {
    let source = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    std::fs::read_to_string(source).is_ok_and(|name| name.trim_end() == "tsc")
}

/// A clock, and the counter that replaces it once its rate is known.
#[derive(Debug)]
struct Watch {
    clock: Clock,
    is_trusted: bool,
    started: Pair,
    /// Nanoseconds for each tick in units of 2^-32; 0 while it is not known.
    rate: AtomicU64,
}

/// Readings of counter and clock at the same moment.
#[derive(Clone, Copy, Debug)]
struct Pair {
    ticks: u64,
    nanos: u64,
}

impl Watch {
    fn start(is_trusted: bool) -> Watch {
        let clock = Clock::start();
        Watch { clock, is_trusted, started: Pair::read(clock), rate: AtomicU64::new(0) }
    }

    fn nanos(&self) -> u64 {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 {
            return self.learn();
        }
        self.started.nanos + scaled(sys::ticks().saturating_sub(self.started.ticks), rate)
    }

    /// Reads the clock; computes the rate of the counter once enough time has passed.
    #[cold]
    fn learn(&self) -> u64 {
        let now = self.clock.nanos();
        if self.is_trusted && now - self.started.nanos >= COMPARED_NANOS {
            let now = Pair::read(self.clock);
            let ticks = now.ticks.saturating_sub(self.started.ticks);
            let nanos = u128::from(now.nanos - self.started.nanos);
            let rate = (nanos << 32).checked_div(u128::from(ticks)).unwrap_or(0);
            // If several threads compute a rate, the first one is used.
            let rate = u64::try_from(rate).unwrap_or(0);
            let _ = self.rate.compare_exchange(0, rate, Ordering::Relaxed, Ordering::Relaxed);
        }
        now
    }
}

impl Pair {
    /// Of several readings the one that took the shortest time.
    fn read(clock: Clock) -> Pair {
        let readings = (0..PAIRS).map(|_| {
            let before = sys::ticks();
            let nanos = clock.nanos();
            let after = sys::ticks();
            let width = after.saturating_sub(before);
            (width, Pair { ticks: before + width / 2, nanos })
        });
        readings.min_by_key(|(width, _)| *width).map_or(Pair { ticks: 0, nanos: 0 }, |(_, pair)| pair)
    }
}

/// `ticks * rate / 2^32`; the product has more than 64 bits after some seconds.
fn scaled(ticks: u64, rate: u64) -> u64 {
    u64::try_from((u128::from(ticks) * u128::from(rate)) >> 32).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_goes_with_the_clock() {
        let watch = Watch::start(is_counter_trusted());
        let mut before = watch.nanos();
        while watch.clock.nanos() < 5 * COMPARED_NANOS {
            let early = watch.clock.nanos();
            let measured = watch.nanos();
            let late = watch.clock.nanos();
            // The rate may be off by a thousandth here: other tests interrupt this one.
            assert!(
                (early - early / 1000..=late + late / 1000).contains(&measured),
                "{early} {measured} {late}"
            );
            assert!(measured >= before, "{before} {measured}");
            before = measured;
        }
        assert_eq!(watch.rate.load(Ordering::Relaxed) > 0, watch.is_trusted && sys::HAS_TICKS);
    }

    #[test]
    fn an_untrusted_counter_is_not_used() {
        let watch = Watch::start(false);
        while watch.nanos() < 2 * COMPARED_NANOS {}
        assert_eq!(watch.rate.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn days_of_ticks_do_not_overflow() {
        let rate = (1 << 32) / 3;
        let week_nanos = 7 * 24 * 3600 * 1_000_000_000_u64;
        let measured = scaled(week_nanos * 3, rate);
        assert!(week_nanos - measured < week_nanos / 1_000_000_000 + 1, "{measured}");
    }
}
