//! A histogram of latencies with two significant digits, as HDR histograms: rows of powers of two, each of 64 steps.
//!
//! ```text
//!   row 0: 0 1 2 ... 63   row 1: 64 65 ... 127   row 2: 128 130 ... 254   row 3: 256 260 ... 508   ...
//! ```
//!
//! Below 128 ns it is exact. Above, the middle of a step is off by at most 1/128 of a value. A row is made when it is first
//! needed: the latencies of one class lie in a few rows.

use crate::profile::{LatencyBucket, LatencyHistogram};

/// Steps of a row.
const STEPS: usize = 64;
const STEP_BITS: u32 = STEPS.ilog2();

/// The last row ends at 2^40 ns, 18 minutes. Its last step also counts everything above.
const ROWS: usize = 35;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Histogram([Option<Box<[u64; STEPS]>>; ROWS]);

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram([const { None }; ROWS])
    }
}

impl Histogram {
    pub(crate) fn count(&mut self, nanos: u64) {
        let (row, step) = place(nanos);
        let steps = self.0[row].get_or_insert_with(|| Box::new([0; STEPS]));
        steps[step] += 1;
    }

    pub(crate) fn snapshot(&self) -> LatencyHistogram {
        let mut buckets = Vec::new();
        for (row, steps) in self.0.iter().enumerate() {
            for (step, &count) in steps.iter().flat_map(|steps| steps.iter().enumerate()) {
                if count > 0 {
                    let (from_nanos, width) = bounds(row, step);
                    buckets.push(LatencyBucket { from_nanos, to_nanos: from_nanos + width, count });
                }
            }
        }
        LatencyHistogram { buckets }
    }
}

/// The row and step of a value.
fn place(nanos: u64) -> (usize, usize) {
    // Row 0 holds the values with at most as many bits as a step number.
    let row = nanos.checked_ilog2().map_or(0, |log2| log2.saturating_sub(STEP_BITS - 1));
    let step = nanos >> row.saturating_sub(1);
    match (usize::try_from(row), usize::try_from(step)) {
        (Ok(row), Ok(step)) if row < ROWS => (row, step % STEPS),
        _ => (ROWS - 1, STEPS - 1),
    }
}

/// The first value of a step, and how many values it has.
fn bounds(row: usize, step: usize) -> (u64, u64) {
    let width = 1 << row.saturating_sub(1);
    let first = if row == 0 { step } else { STEPS + step };
    (first as u64 * width, width)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_value_is_in_the_step_that_says_so() {
        let near =
            |power: u32| (0..200).flat_map(move |by| [1_u64 << power, (1 << power) + by, (1 << power) - 1]);
        for nanos in (0..5000).chain((8..40).flat_map(near)).filter(|nanos| *nanos < 1 << 40) {
            let (row, step) = place(nanos);
            let (from, width) = bounds(row, step);
            assert!((from..from + width).contains(&nanos), "{nanos} ns in {from} and {width}");
            // The middle of the step.
            assert!((from + width / 2).abs_diff(nanos) * 128 <= nanos, "{nanos} ns in {from} and {width}");
        }
        assert_eq!(place(u64::MAX), (ROWS - 1, STEPS - 1));
        assert_eq!(bounds(ROWS - 1, STEPS - 1).0 + bounds(ROWS - 1, STEPS - 1).1, 1 << 40);
    }

    #[test]
    fn percentiles_are_within_one_percent() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.snapshot().percentile(500), Duration::ZERO);
        let value = |nth: u64| nth * nth * 37 + nth;
        (1..=1000).for_each(|nth| histogram.count(value(nth)));
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.count(), 1000);
        for per_mille in [1, 10, 500, 900, 990, 999, 1000] {
            let (found, exact) =
                (snapshot.percentile(per_mille), Duration::from_nanos(value(per_mille.into())));
            assert!(found.abs_diff(exact) * 100 <= exact, "{per_mille} per mille: {found:?} for {exact:?}");
        }
        assert!(snapshot.buckets.is_sorted_by(|a, b| a.to_nanos <= b.from_nanos));
    }
}
