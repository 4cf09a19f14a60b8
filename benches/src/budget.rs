//! The length of each run, so that the whole comparison ends in time.
//!
//! Before each workload the remaining time is divided among all runs to come, each counted at its longest. A run gets the
//! requested length, or its share if that is less. So an unforeseen delay (a slow load, a long close) shortens later
//! workloads, and unused time goes back to them.
//!
//! Invariants: all rounds of all stores in a workload get the same length; nothing starts, and nothing continues, after the
//! end.

use std::time::{Duration, Instant};

use crate::device;
use crate::options::Options;
use crate::workload::{Family, Workload};

/// Seconds of a run apart from its length: start of the process, eviction, open, a scan of data that fit into memory, the
/// check of a sample, close.
const RUN_SECONDS: f64 = 1.5;

/// Records that a store loads in a second, all stores together, and the shortest load.
const LOAD_RATE: f64 = 150_000.0;
const LOAD_SECONDS: f64 = 2.0;

/// The part of the time that is divided; the rest is for the report and for unforeseen delays.
const SHARED: f64 = 0.93;

/// A run is not made shorter than this part of its requested length: its figure would mean nothing.
const SHORTEST: f64 = 0.2;

/// The time of a comparison.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    begin: Instant,
    whole: Duration,
}

impl Budget {
    /// A comparison that begins now and takes at most this long.
    pub fn new(begin: Instant, whole: Duration) -> Budget {
        Budget { begin, whole }
    }

    /// The time that is left at a moment, until everything must have ended.
    pub fn left(&self, at: Instant) -> Duration {
        self.whole.saturating_sub(at.saturating_duration_since(self.begin))
    }

    /// The length of each run of the first of `to_come`, in seconds, if that workload begins at this time. The data of the
    /// family `loaded` are there.
    pub fn seconds(&self, at: Instant, options: &Options, to_come: &[Workload], loaded: Family) -> f64 {
        let cost = Estimate::of(options, to_come, loaded);
        let reserve = self.whole.mul_f64(1.0 - SHARED);
        let left = self.left(at).saturating_sub(reserve).as_secs_f64();
        let share = (left - cost.fixed) / cost.lengths.max(1.0);
        share.clamp(options.seconds * SHORTEST, options.seconds)
    }
}

/// The longest expected time of everything, without shortened runs.
pub fn estimate(options: &Options) -> Duration {
    let cost = Estimate::of(options, &options.workloads, Family::Fresh);
    Duration::from_secs_f64(cost.fixed + cost.lengths * options.seconds)
}

/// The cost of workloads in seconds: `fixed + lengths * (length of a run)`.
struct Estimate {
    fixed: f64,
    lengths: f64,
}

impl Estimate {
    fn of(options: &Options, to_come: &[Workload], loaded: Family) -> Estimate {
        let mut cost = Estimate { fixed: 0.0, lengths: 0.0 };
        let mut family = loaded;
        for workload in to_come {
            let runs = count(options.stores.len()) * f64::from(options.rounds);
            cost.fixed += runs * RUN_SECONDS;
            let lengths = workload.lengths();
            cost.lengths += runs * (lengths.warm_up + lengths.at_most);
            if device::has_loop_for(workload) {
                cost.fixed += f64::from(options.rounds) * RUN_SECONDS;
                cost.lengths += f64::from(options.rounds);
            }
            if workload.family != family {
                family = workload.family;
                let records = u32::try_from(options.size.scale(family).records).unwrap_or(u32::MAX);
                cost.fixed += count(options.stores.len()) * (LOAD_SECONDS + f64::from(records) / LOAD_RATE);
            }
        }
        cost
    }
}

fn count(few: usize) -> f64 {
    u32::try_from(few).map_or(f64::MAX, f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::now;
    use crate::store::Kind;
    use crate::stores;
    use crate::workload::{ALL, Size};

    fn options(stores: usize, rounds: u32, seconds: f64, size: Size) -> Options {
        let esker = stores::named("esker").expect("it is always there");
        Options {
            stores: (0..stores).map(|_| Kind { ..esker }).collect(),
            workloads: ALL.to_vec(),
            out: "out".into(),
            dir: "dir".into(),
            rounds,
            seconds,
            minutes: 60.0,
            size,
        }
    }

    /// Goes through all workloads at their longest, with `slowness` times the foreseen time apart from the runs' own lengths.
    /// Returns the end in seconds and all lengths.
    fn walk(options: &Options, whole_seconds: u64, slowness: f64) -> (f64, Vec<f64>) {
        let begin = now();
        let budget = Budget::new(begin, Duration::from_secs(whole_seconds));
        let (mut took, mut family, mut lengths) = (0.0, Family::Fresh, Vec::new());
        for (at, workload) in options.workloads.iter().enumerate() {
            let time = begin + Duration::from_secs_f64(took);
            let seconds = budget.seconds(time, options, &options.workloads[at..], family);
            let cost = Estimate::of(options, std::slice::from_ref(workload), family);
            family = workload.family;
            took += cost.fixed * slowness + cost.lengths * seconds;
            lengths.push(seconds);
        }
        (took, lengths)
    }

    #[test]
    fn seven_stores_end_in_an_hour_even_if_all_is_twice_as_slow_beside_the_runs() {
        let options = options(7, 3, 2.5, Size::Full);
        let (took, lengths) = walk(&options, 57 * 60, 1.0);
        assert!(took <= 57.0 * 60.0 * SHARED + 1.0, "{took}");
        assert!(lengths.iter().all(|seconds| *seconds > 2.0), "{lengths:?}");
        let (took, lengths) = walk(&options, 57 * 60, 2.0);
        assert!(took < 57.0 * 60.0, "{took}");
        assert!(lengths.iter().all(|seconds| *seconds >= 0.5), "{lengths:?}");
    }

    #[test]
    fn a_quick_run_of_three_stores_ends_in_six_minutes() {
        let options = options(3, 1, 1.0, Size::Quick);
        assert!(estimate(&options) < Duration::from_secs(390), "{:?}", estimate(&options));
        let (took, _) = walk(&options, 360, 1.5);
        assert!(took < 360.0, "{took}");
    }

    #[test]
    fn runs_are_as_long_as_asked_where_there_is_time() {
        let options = options(1, 1, 1.5, Size::Smoke);
        let (_, lengths) = walk(&options, 3600, 1.0);
        assert!(lengths.iter().all(|seconds| (*seconds - 1.5).abs() < 1e-9), "{lengths:?}");
    }

    #[test]
    fn nothing_is_left_after_the_end() {
        let begin = now();
        let budget = Budget::new(begin, Duration::from_secs(10));
        assert_eq!(budget.left(begin + Duration::from_secs(4)), Duration::from_secs(6));
        assert_eq!(budget.left(begin + Duration::from_secs(11)), Duration::ZERO);
    }
}
