//! A compaction keeps hot blocks in the cache and brings no other blocks into it. The tests run on the simulated machine,
//! whose counters are exact.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::random::Random;
use aio::sim::{EventKind, Fault, FaultPlan};
use aio::{Errno, SimBackend};
use esker::testing::{Background, BuilderExt, Sizes};
use esker::{Db, Keyspace};

const KEYS: usize = 8000;
const VALUE_BYTES: usize = 1000;
/// The hot keys. They take a fifth of the cache, and a twelfth of all data.
const HOT: Range<usize> = 3000..3700;
/// Every ninth key is written again before the compaction.
const WRITTEN_AGAIN: usize = 9;

fn key(number: usize) -> String {
    format!("key {number:06}")
}

fn open(sim: &SimBackend) -> (Db, Keyspace) {
    let sizes = Sizes { segment_bytes: Some(1 << 20), ..Sizes::default() };
    let builder = Db::builder().backend(Arc::new(sim.clone())).background(Background::Manual);
    let db = builder.memory_budget_bytes(24 << 20).sizes(sizes).open("/store").unwrap();
    let ks = db.keyspace("default").unwrap();
    (db, ks)
}

fn value(random: &mut Random) -> Vec<u8> {
    (0..VALUE_BYTES / 8).flat_map(|_| (random.below(usize::MAX) as u64).to_le_bytes()).collect()
}

/// One run of several segments, and above it a second with a ninth of the keys.
fn two_runs(sim: &SimBackend) -> (Db, Keyspace) {
    let mut random = Random::new(5);
    let (db, ks) = open(sim);
    for number in 0..KEYS {
        ks.put(key(number), value(&mut random)).unwrap();
    }
    db.compact().unwrap();
    for number in (0..KEYS).step_by(WRITTEN_AGAIN) {
        ks.put(key(number), value(&mut random)).unwrap();
    }
    db.flush().unwrap();
    db.close().unwrap();
    let (db, ks) = open(sim);
    let metrics = db.metrics();
    assert_eq!(metrics.keyspaces[0].runs, 2);
    assert!(metrics.keyspaces[0].segments > 8, "{} segments", metrics.keyspaces[0].segments);
    (db, ks)
}

/// The number of device reads for gets of these keys.
fn reads(db: &Db, ks: &Keyspace, mut keys: impl Iterator<Item = usize>) -> u64 {
    let before = db.metrics().io.read().count;
    assert!(keys.by_ref().map(key).all(|key| ks.get(key).unwrap().is_some()));
    db.metrics().io.read().count - before
}

/// Brings the hot keys into the cache and finds them there twice.
fn heat(db: &Db, ks: &Keyspace) {
    let first = reads(db, ks, HOT);
    assert!(first > 50, "{first} reads: the cache was cold");
    for _ in 0..2 {
        assert_eq!(reads(db, ks, HOT), 0);
    }
}

#[test]
fn a_compaction_keeps_the_hot_blocks_and_no_others_in_the_cache() {
    let sim = SimBackend::new(1);
    let (db, ks) = two_runs(&sim);
    heat(&db, &ks);
    // Each of these blocks is used once, so it is not hot.
    let once = (5000..6000).step_by(10);
    assert!(reads(&db, &ks, once.clone()) > 50);
    sim.advance(Duration::from_secs(1));
    let before = db.metrics();
    db.compact().unwrap();
    let after = db.metrics();
    assert_eq!(after.keyspaces[0].runs, 1);
    assert_eq!(after.background_depth, 8, "jobs do not give way to the reads of a compaction");
    let hot_bytes = (HOT.len() * VALUE_BYTES) as u64;
    eprintln!(
        "{} bytes in the cache, {} after the compaction, {hot_bytes} hot",
        before.cache_bytes, after.cache_bytes
    );
    assert!(after.cache_bytes < hot_bytes * 5 / 4, "{} bytes in the cache", after.cache_bytes);
    // The two blocks at the edges may have too few hot entries.
    let cold = reads(&db, &ks, HOT);
    assert!(cold <= 2, "{cold} reads for hot keys");
    assert!(reads(&db, &ks, once) > 50, "the compaction brought in blocks that were used once");
}

#[test]
fn jobs_give_way_to_every_kind_of_read_from_the_device() {
    let sim = SimBackend::new(1);
    let (db, ks) = two_runs(&sim);
    let depth = || db.metrics().background_depth;
    let reads: [&dyn Fn(); 4] = [
        &|| assert!(ks.get(key(1)).unwrap().is_some()),
        &|| assert!(ks.multi_get(&[key(3000), key(4000)]).unwrap().iter().all(Option::is_some)),
        &|| assert!(ks.iter().nth(1000).unwrap().is_ok()),
        &|| assert!(ks.get(key(KEYS - 1)).unwrap().is_some()),
    ];
    for (number, read) in reads.iter().enumerate() {
        sim.advance(Duration::from_secs(1));
        assert_eq!(depth(), 8);
        read();
        assert_eq!(depth(), 2, "read {number}");
    }
}

#[test]
fn a_compaction_of_data_that_are_not_read_fills_no_cache() {
    let sim = SimBackend::new(1);
    let (db, _ks) = two_runs(&sim);
    db.compact().unwrap();
    assert_eq!(db.metrics().cache_bytes, 0);
}

#[test]
fn a_compaction_ends_well_where_bringing_the_hot_blocks_fails() {
    let reads_of_a_compaction = |failing: Option<u64>| {
        let sim = SimBackend::new(1);
        let (db, ks) = two_runs(&sim);
        heat(&db, &ks);
        let before = db.metrics().io.read().count;
        if let Some(at) = failing {
            sim.fail(FaultPlan::new(Fault::Errno(Errno::IO)).on(&[EventKind::Read]).skip(at));
        }
        db.compact().unwrap();
        let reads = db.metrics().io.read().count - before;
        assert_eq!(sim.faults_struck(), u64::from(failing.is_some()));
        assert_eq!(db.metrics().keyspaces[0].runs, 1);
        assert!((0..KEYS).map(key).all(|key| ks.get(key).unwrap().is_some()));
        reads
    };
    // The hot blocks are read last.
    let all = reads_of_a_compaction(None);
    for last in [1, 2, 3] {
        assert!(reads_of_a_compaction(Some(all - last)) <= all);
    }
}
