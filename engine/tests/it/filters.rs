//! The rate of false positives of the filters in a store with several runs, and the memory that they take.

use std::sync::Arc;

use aio::SimBackend;
use esker::testing::{Background, BuilderExt};
use esker::{Db, Durability, Keyspace};

const BOTTOM: u32 = 60_000;
const YOUNG: u32 = 4000;
const ASKED: u32 = 100_000;

fn put_all(ks: &Keyspace, numbers: std::ops::Range<u32>) {
    for number in numbers {
        ks.put(key(number), [7; 20]).unwrap();
    }
}

/// Spreads the numbers, so that every run spans all keys.
fn key(number: u32) -> [u8; 4] {
    number.wrapping_mul(0x9E37_79B1).to_le_bytes()
}

/// The number of block lookups in the cache by gets of these keys.
fn looks(db: &Db, numbers: std::ops::Range<u32>, ks: &Keyspace, is_there: bool) -> u64 {
    let count = || db.metrics().cache_hits + db.metrics().cache_misses;
    let before = count();
    for number in numbers {
        assert_eq!(ks.get(key(number)).unwrap().is_some(), is_there);
    }
    count() - before
}

#[test]
fn young_runs_have_better_filters_within_the_same_memory() {
    let sim = SimBackend::new(1);
    let builder = Db::builder().backend(Arc::new(sim)).background(Background::Manual);
    // Durable ones would fill the log with padding, and be flushed for that.
    let builder = builder.durability(Durability::Process);
    let db = builder.memory_budget_bytes(64 << 20).open("/store").unwrap();
    let ks = db.keyspace("default").unwrap();
    put_all(&ks, 0..BOTTOM);
    db.compact().unwrap();
    for run in 0..3 {
        put_all(&ks, BOTTOM + run * YOUNG..BOTTOM + (run + 1) * YOUNG);
        db.flush().unwrap();
    }
    let metrics = db.metrics();
    assert_eq!(metrics.keyspaces[0].runs, 4);

    let in_vain = looks(&db, 1 << 20..(1 << 20) + ASKED, &ks, false);
    let for_hits = looks(&db, 0..BOTTOM, &ks, true) - u64::from(BOTTOM);
    eprintln!("{in_vain} blocks for {ASKED} missing keys; {for_hits} too many for {BOTTOM} that are there");
    eprintln!("{} bytes pinned for {} keys", metrics.pinned_bytes, metrics.keyspaces[0].entries);
    // 0.29 % at the bottom and 0.08 % in each young run; with 14 bits for each key it would be 0.8 % and 0.6 %.
    assert!(in_vain * 1000 <= u64::from(ASKED) * 7, "{in_vain} blocks");
    assert!(for_hits * 1000 <= u64::from(BOTTOM) * 4, "{for_hits} blocks");
    assert!(in_vain > 0, "no filter is that good");
    // 14 bits of filter for each key, and the memory of the index and of the block positions.
    let entries = metrics.keyspaces[0].entries;
    assert!(metrics.pinned_bytes <= entries * 14 / 8 + entries, "{} bytes", metrics.pinned_bytes);
}
