//! The reads of scans: short scans read little, long scans make few large reads, both directions cost the same, and scans do
//! not evict the blocks that gets use. The tests run on the simulated machine, whose counters are exact.

use std::sync::Arc;

use crate::random::Random;
use crate::watched::Watched;
use aio::sim::{EventKind, Fault, FaultPlan};
use aio::{Backend, Errno, SimBackend};
use esker::testing::{Background, BuilderExt, Sizes};
use esker::{Builder, Db, Durability, Iter, Keyspace};

const KEYS: usize = 8000;
const VALUE_BYTES: usize = 1000;
/// A stored block, rounded up for direct I/O.
const BLOCK_BYTES: u64 = 9 << 10;
/// The largest size of one read.
const READ_BYTES: u64 = 256 << 10;
const SEGMENT_BYTES: u64 = 1 << 20;

fn builder(sim: &SimBackend) -> Builder {
    let sizes = Sizes { segment_bytes: Some(SEGMENT_BYTES), ..Sizes::default() };
    let builder = Db::builder().backend(Arc::new(sim.clone())).background(Background::Manual);
    builder.memory_budget_bytes(16 << 20).sizes(sizes)
}

fn key(number: usize) -> String {
    format!("key {number:06}")
}

/// One run of several segments with 8 MB of data that do not compress.
struct Data(SimBackend);

impl Data {
    fn new() -> Data {
        let sim = SimBackend::new(1);
        let mut random = Random::new(5);
        let db = builder(&sim).open("/store").unwrap();
        let ks = db.keyspace("default").unwrap();
        for number in 0..KEYS {
            let words = (0..VALUE_BYTES / 8).map(|_| random.below(usize::MAX) as u64);
            ks.put(key(number), words.flat_map(u64::to_le_bytes).collect::<Vec<u8>>()).unwrap();
        }
        db.compact().unwrap();
        db.close().unwrap();
        Data(sim)
    }

    /// The reopened store has no data in memory.
    fn cold(&self) -> (Db, Keyspace) {
        let db = builder(&self.0).open("/store").unwrap();
        let ks = db.keyspace("default").unwrap();
        (db, ks)
    }
}

/// The number of reads during `work`, and their bytes.
fn cost(db: &Db, work: impl FnOnce()) -> (u64, u64) {
    let before = db.metrics().io.read();
    work();
    let after = db.metrics().io.read();
    (after.count - before.count, after.bytes - before.bytes)
}

/// Steps from one end.
fn walk(iter: &mut Iter, steps: usize, is_forward: bool) {
    for step in 0..steps {
        let pair = if is_forward { iter.next_ref() } else { iter.next_back_ref() };
        let wanted = if is_forward { step } else { KEYS - 1 - step };
        assert_eq!(pair.unwrap().unwrap().0, key(wanted).as_bytes());
    }
}

#[test]
fn a_scan_reads_at_most_twice_the_bytes_it_needs_wherever_it_ends() {
    let data = Data::new();
    for is_forward in [true, false] {
        for steps in [1, 8, 9, 30, 100, 300, 1000, 3000] {
            let (db, ks) = data.cold();
            let (reads, bytes) = cost(&db, || walk(&mut ks.iter(), steps, is_forward));
            let needed = (steps * (VALUE_BYTES + 20)) as u64;
            eprintln!("{steps} steps, forward {is_forward}: {reads} reads, {bytes} bytes");
            assert!(bytes <= 2 * needed + 2 * BLOCK_BYTES, "{bytes} bytes for {needed}");
            assert!(steps > 7 || (reads == 1 && bytes <= BLOCK_BYTES), "{reads} reads, {bytes} bytes");
            assert!(reads <= 7 + bytes / (READ_BYTES / 2), "{reads} reads for {bytes} bytes");
        }
    }
}

#[test]
fn a_long_scan_takes_few_reads_in_either_direction_and_across_segments() {
    let data = Data::new();
    for is_forward in [true, false] {
        let (db, ks) = data.cold();
        let segments = db.metrics().keyspaces[0].segments as u64;
        assert!(segments >= 8, "{segments} segments");
        let (reads, bytes) = cost(&db, || walk(&mut ks.iter(), KEYS, is_forward));
        eprintln!("{segments} segments, forward {is_forward}: {reads} reads, {bytes} bytes");
        assert!(bytes <= (KEYS * VALUE_BYTES) as u64 * 11 / 10, "{bytes} bytes are more than there are");
        // The window grows once, not in each segment; each segment ends with a shorter read.
        assert!(reads <= 7 + segments * (1 + SEGMENT_BYTES.div_ceil(READ_BYTES)), "{reads} reads");
    }
}

#[test]
fn a_seek_and_a_turn_begin_with_one_block_again() {
    let data = Data::new();
    let (db, ks) = data.cold();
    let mut iter = ks.iter();
    walk(&mut iter, 2000, true);
    let (reads, bytes) = cost(&db, || {
        for number in (2500..KEYS).step_by(100) {
            iter.seek(key(number));
            assert_eq!(iter.next_ref().unwrap().unwrap().0, key(number).as_bytes());
        }
    });
    assert!(reads == 55 && bytes <= 55 * BLOCK_BYTES, "{reads} reads, {bytes} bytes for 55 seeks");
    drop((iter, ks, db));
    let (db, ks) = data.cold();
    let mut iter = ks.iter();
    walk(&mut iter, 2000, true);
    let (reads, bytes) = cost(&db, || walk(&mut iter, 1, false));
    assert!(reads == 1 && bytes <= BLOCK_BYTES, "{reads} reads, {bytes} bytes at the other end");
}

#[test]
fn many_iterators_at_once_return_the_same_as_one() {
    let data = Data::new();
    let (db, ks) = data.cold();
    let mut iters: Vec<Iter> = (0..100).map(|_| ks.iter()).collect();
    let (reads, _) = cost(&db, || {
        for number in 0..KEYS / 2 {
            for (i, iter) in iters.iter_mut().enumerate() {
                let (pair, wanted) = match i % 2 {
                    0 => (iter.next_ref(), number),
                    _ => (iter.next_back_ref(), KEYS - 1 - number),
                };
                assert_eq!(pair.unwrap().unwrap().0, key(wanted).as_bytes());
            }
        }
    });
    // Without read-ahead each block costs one read per direction: the iterators move in step and share the cached blocks.
    assert!(reads < 1000, "{reads} reads");
}

#[test]
fn a_scan_of_more_than_the_cache_does_not_evict_the_blocks_of_gets() {
    let (db, ks) = Data::new().cold();
    let hot: Vec<String> = (0..KEYS).step_by(100).map(key).collect();
    let gets = || assert!(hot.iter().all(|key| ks.get(key).unwrap().is_some()));
    for _ in 0..3 {
        gets();
    }
    assert_eq!(cost(&db, gets).0, 0, "the hot set is in the cache");
    for is_forward in [true, false] {
        walk(&mut ks.iter(), KEYS, is_forward);
        assert!(db.metrics().cache_bytes < (KEYS * VALUE_BYTES) as u64 / 2, "most of the data is not cached");
        let (reads, _) = cost(&db, gets);
        assert!(reads <= hot.len() as u64 / 10, "{reads} reads for {} keys after a scan", hot.len());
    }
}

/// Makes a store of `runs` runs over the same range of keys, each of several blocks, with no data in memory.
fn cold_runs(path: &std::path::Path, runs: usize) -> (Arc<Watched>, Db) {
    let watched = Arc::new(Watched::default());
    let open = || {
        let builder = Db::builder().backend(Arc::<Watched>::clone(&watched));
        builder.background(Background::Manual).open(path).unwrap()
    };
    let db = open();
    let ks = db.keyspace("default").unwrap().with_durability(Durability::Process);
    let mut random = Random::new(7);
    for run in 0..runs {
        for number in (run..400).step_by(runs) {
            let words = (0..100).map(|_| random.below(usize::MAX) as u64);
            ks.put(key(number), words.flat_map(u64::to_le_bytes).collect::<Vec<u8>>()).unwrap();
        }
        db.flush().unwrap();
    }
    db.close().unwrap();
    (Arc::clone(&watched), open())
}

#[test]
fn a_seek_reads_the_blocks_of_all_runs_at_once() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for runs in [2, 4] {
        for is_forward in [true, false] {
            let (watched, db) = cold_runs(&dir.path().join(format!("{runs} {is_forward}")), runs);
            let ks = db.keyspace("default").unwrap();
            assert_eq!(db.metrics().keyspaces[0].runs, runs);
            let mut iter = if is_forward { ks.range(key(100)..) } else { ks.range(..key(100)) };
            let before = watched.profile();
            watched.waits();
            let pair = if is_forward { iter.next_ref() } else { iter.next_back_ref() };
            let wanted = if is_forward { 100 } else { 99 };
            assert_eq!(pair.unwrap().unwrap().0, key(wanted).as_bytes());
            let reads = watched.profile().read().count - before.read().count;
            assert_eq!(reads, runs as u64, "one block of each run");
            assert_eq!(watched.waits().first(), Some(&runs));
        }
    }
}

#[test]
fn a_seek_goes_on_where_reading_ahead_for_all_runs_fails() {
    let sim = SimBackend::new(3);
    let db = builder(&sim).open("/store").unwrap();
    let ks = db.keyspace("default").unwrap();
    for run in 0..3 {
        for number in (run..300).step_by(3) {
            ks.put(key(number), [7; 900]).unwrap();
        }
        db.flush().unwrap();
    }
    db.close().unwrap();
    let db = builder(&sim).open("/store").unwrap();
    let ks = db.keyspace("default").unwrap();
    // The first read fails. The error is not reported, since the run reads the block again.
    sim.fail(FaultPlan::new(Fault::Errno(Errno::IO)).on(&[EventKind::Read]));
    assert_eq!(ks.range(key(10)..).next_ref().unwrap().unwrap().0, key(10).as_bytes());
    assert_eq!(sim.faults_struck(), 1);
}
