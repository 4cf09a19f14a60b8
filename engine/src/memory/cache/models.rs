//! Every schedule of small cases, for loom (`just loom`): threads that miss, evict, drop and look at once.
//!
//! Checked invariants: a look-up finds the block that was asked for; a thread that misses while another one reads the same
//! block does not read it, and notices when that read fails; at the end each slot with a value is queued once, and the
//! charges are those of the values in the cache, within the part of the budget that is not reserved.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64 as Count, Ordering};

use loom::thread;

use super::*;

type Blocks = Slots<Arc<usize>>;

/// Room for one value.
const ONE: u64 = 100 + OVERHEAD_BYTES;

struct Model {
    cache: Cache<Arc<usize>>,
    slots: Arc<Blocks>,
    reads: Count,
    failures: Count,
}

impl Model {
    fn new(budget_bytes: u64) -> Arc<Model> {
        let (reads, failures) = (Count::new(0), Count::new(0));
        let slots = Arc::new(Slots::new(2, 0));
        Arc::new(Model { cache: Cache::new(budget_bytes), slots, reads, failures })
    }

    /// Gets a block as a point read does. The read fails a given number of times.
    fn load(&self, block: usize) -> Result<Arc<usize>, ()> {
        if let Some(value) = self.cache.get(&self.slots, block).as_ref() {
            assert_eq!(**value, block, "of another block");
            return Ok(Arc::clone(value));
        }
        let value = self.cache.load(&self.slots, block, || {
            self.reads.fetch_add(1, Ordering::Relaxed);
            // Other threads may run here.
            thread::yield_now();
            let failures = self.failures.load(Ordering::Relaxed);
            if failures > 0 {
                self.failures.store(failures - 1, Ordering::Relaxed);
                return Err(());
            }
            Ok((Arc::new(block), 100))
        })?;
        assert_eq!(*value, block, "of another block");
        Ok(value)
    }

    fn insert(&self, block: usize, by: Use) {
        self.cache.insert(&self.slots, block, (&Arc::new(block), 100), by);
    }

    fn check(&self) {
        let held = (0..2).filter(|&block| self.slots.peek(block).is_some()).count() as u64;
        let stats = self.cache.stats();
        assert_eq!(stats.values, held, "the queued values are those in slots");
        assert_eq!(stats.bytes, held * ONE);
        assert!(stats.bytes + stats.reserved_bytes <= stats.budget_bytes);
    }
}

/// Runs the model under every schedule of these threads, one of them the model's own.
fn explore(name: &str, budget_bytes: u64, threads: [fn(&Model); 3], check: fn(&Model)) {
    let schedules = Arc::new(Count::new(0));
    let count = Arc::clone(&schedules);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        let model = Model::new(budget_bytes);
        let others = [threads[1], threads[2]].map(|work| {
            let model = Arc::clone(&model);
            thread::spawn(move || {
                work(&model);
                hazard_slots::end_thread();
            })
        });
        threads[0](&model);
        for other in others {
            other.join().unwrap();
        }
        check(&model);
        model.check();
        hazard_slots::end_thread();
    });
    println!("{name}: {} schedules", schedules.load(Ordering::Relaxed));
}

fn idle(_: &Model) {}

#[test]
fn a_block_that_several_miss_is_read_once() {
    let miss = |model: &Model| assert!(model.load(0).is_ok());
    explore("one read", 10 * ONE, [miss, miss, miss], |model| {
        assert_eq!(model.reads.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn a_thread_that_waits_for_a_read_that_fails_reads_itself() {
    let fails = |model: &Model| {
        model.failures.store(1, Ordering::Relaxed);
        let _ = model.load(0);
    };
    let miss = |model: &Model| {
        let _ = model.load(0);
    };
    explore("a read fails", 10 * ONE, [fails, miss, idle], |model| {
        // No thread is left waiting, and the next get reads the block.
        assert!(model.load(0).is_ok());
    });
}

#[test]
fn two_that_want_the_only_place_leave_one_there() {
    explore(
        "one place",
        ONE,
        [
            |model| assert!(model.load(0).is_ok()),
            |model| assert!(model.load(1).is_ok()),
            |model| model.insert(0, Use::Scan),
        ],
        |model| assert_eq!(model.cache.stats().values, 1),
    );
}

#[test]
fn a_block_that_a_get_and_scans_bring_is_queued_once() {
    explore(
        "brought twice",
        10 * ONE,
        [
            |model| assert!(model.load(0).is_ok()),
            |model| model.insert(0, Use::Scan),
            |model| model.insert(0, Use::Scan),
        ],
        |model| assert_eq!(model.cache.stats().values, 1),
    );
}

#[test]
fn a_segment_may_be_dropped_while_its_blocks_are_read() {
    explore(
        "dropped",
        10 * ONE,
        [
            |model| assert!(model.load(0).is_ok()),
            |model| model.insert(1, Use::Point),
            |model| model.cache.forget(&model.slots),
        ],
        |_| {},
    );
}

/// Reserves the whole budget, so that the cache must evict all values.
fn take_all(model: &Model) {
    assert!(model.cache.reserve(|_| Some(model.cache.budget_bytes())));
}

#[test]
fn the_cache_evicts_when_its_budget_is_reserved() {
    explore(
        "reserved",
        10 * ONE,
        [|model| assert!(model.load(0).is_ok()), |model| model.insert(1, Use::Point), take_all],
        |model| {
            // The insert or the reservation may have come last.
            assert_eq!(
                model.cache.stats().values,
                0,
                "the cache holds a value beyond its part of the budget"
            );
            assert!(model.cache.reserve(|reserved| Some(reserved - ONE)));
            model.insert(1, Use::Point);
            assert_eq!(model.cache.stats().values, 1);
        },
    );
}
