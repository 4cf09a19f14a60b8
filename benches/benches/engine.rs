//! The store as its users drive it: durable puts by 1, 8 and 64 threads, a load in batches, gets in cache, scans.
//!
//! Run with `cargo bench -p esker-benches`. The stores stand below `target`, on whatever disk that is; a durable put
//! measures that disk's flush rate as much as the store. Every read checks its value.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use esker::{Db, Durability, Keyspace};
use esker_benches::{KEY_BYTES, Random, VALUE_BYTES, is_for, key, value};
use tempfile::TempDir;

/// Records of the store that is read from: about 12 MB, far below the budget, so that all reads are in cache.
const READ_RECORDS: u64 = 100_000;

/// Records in a batch of the load.
const BATCH_RECORDS: u64 = 1000;

/// Records that one step of a scan goes over.
const SCAN_RECORDS: usize = 100;

const BUDGET_BYTES: u64 = 256 << 20;

/// A store of its own, on the disk below `target`. The directory goes last.
struct Store {
    keyspace: Keyspace,
    db: Db,
    _dir: TempDir,
}

fn store() -> Store {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let db = Db::builder().memory_budget_bytes(BUDGET_BYTES).open(dir.path()).expect("a store");
    let keyspace = db.keyspace("bench").expect("a keyspace");
    Store { keyspace, db, _dir: dir }
}

/// Writes records `from..upto` in batches that survive the death of the process.
fn load(store: &Store, from: u64, upto: u64) {
    let mut batch = store.db.batch();
    batch.durability(Durability::Process);
    for start in (from..upto).step_by(usize::try_from(BATCH_RECORDS).expect("small")) {
        for number in start..upto.min(start + BATCH_RECORDS) {
            let key = key(number);
            batch.put(&store.keyspace, key, value(&key, 0));
        }
        batch.commit().expect("a batch");
    }
}

/// The time that `count` puts take when so many threads share them.
#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
fn put_by(threads: u64, count: u64, keyspace: &Keyspace, next: &AtomicU64) -> Duration {
    let upto = next.load(Ordering::Relaxed) + count;
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= upto {
                        break;
                    }
                    let key = key(number);
                    keyspace.put(key, value(&key, 1)).expect("a put");
                }
            });
        }
    });
    let took = begin.elapsed();
    next.store(upto, Ordering::Relaxed);
    took
}

fn durable_put(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("durable_put");
    group.throughput(Throughput::Elements(1)).sample_size(20).measurement_time(Duration::from_secs(5));
    for threads in [1_u64, 8, 64] {
        let store = store();
        let next = AtomicU64::new(0);
        group.bench_function(BenchmarkId::new("threads", threads), |bencher| {
            bencher.iter_custom(|count| put_by(threads, count, &store.keyspace, &next));
        });
    }
    group.finish();
}

/// With the final `sync` inside the time, so that nothing is left undone.
fn batch_load(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("load");
    let bytes = (KEY_BYTES + VALUE_BYTES) as u64 * READ_RECORDS;
    group.throughput(Throughput::Bytes(bytes)).sample_size(10).measurement_time(Duration::from_secs(10));
    let store = store();
    let mut from = 0;
    group.bench_function("batches_of_1000", |bencher| {
        bencher.iter(|| {
            load(&store, from, from + READ_RECORDS);
            store.db.sync().expect("a sync");
            from += READ_RECORDS;
        });
    });
    group.finish();
}

fn reads(criterion: &mut Criterion) {
    let store = store();
    load(&store, 0, READ_RECORDS);
    store.db.flush().expect("a flush");
    store.db.compact().expect("a compaction");
    let mut random = Random::new(1);

    let mut group = criterion.benchmark_group("get");
    group.throughput(Throughput::Elements(1));
    group.bench_function("in_cache", |bencher| {
        bencher.iter(|| {
            let key = key(random.below(READ_RECORDS));
            let found = store.keyspace.get(key).expect("a get").expect("it is there");
            assert!(is_for(&key, &found));
        });
    });
    group.bench_function("missing", |bencher| {
        bencher.iter(|| {
            let found = store.keyspace.get(key(READ_RECORDS + random.below(1 << 40))).expect("a get");
            assert!(black_box(found).is_none());
        });
    });
    group.finish();

    let mut group = criterion.benchmark_group("scan");
    group.throughput(Throughput::Elements(SCAN_RECORDS as u64));
    group.bench_function("100_from_anywhere", |bencher| {
        bencher.iter(|| {
            let from = key(random.below(READ_RECORDS));
            for record in store.keyspace.range(from..).take(SCAN_RECORDS) {
                let (key, value) = record.expect("a record");
                assert!(is_for(&key, &value));
            }
        });
    });
    group.throughput(Throughput::Elements(READ_RECORDS)).sample_size(10);
    group.bench_function("all", |bencher| {
        bencher.iter(|| {
            let found = store.keyspace.iter().flatten().count();
            assert_eq!(found as u64, READ_RECORDS);
        });
    });
    group.finish();
}

criterion_group!(benches, durable_put, batch_load, reads);
criterion_main!(benches);
