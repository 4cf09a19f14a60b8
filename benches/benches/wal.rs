//! The log alone: appends to the ring by 1, 2 and 4 threads, durable commits by 1, 8 and 64 with each way of syncing.
//!
//! Run with `cargo bench -p esker-benches --bench wal`. A durable commit measures the disk below `target` as much as
//! the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aio::{Backend, NativeBackend};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tempfile::TempDir;
use wal::{Host, Log, LogOptions, RecordBuf, ReplayInput, Seq, SyncMethod, replay};

const RECORD_BYTES: usize = 116;

/// Log files are released as soon as another one is begun: nothing here is ever replayed.
#[derive(Debug, Default)]
struct NoManifest {
    file: AtomicU64,
    epoch: AtomicU32,
}

impl Host for NoManifest {
    fn new_file_id(&self) -> u64 {
        self.file.fetch_add(1, Ordering::Relaxed)
    }

    fn activate(&self, _file_id: u64, _start: Seq) -> wal::Result<u32> {
        Ok(self.epoch.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn ring_grown(&self, _file_bytes: u64) -> wal::Result<()> {
        Ok(())
    }
}

struct Bed {
    log: Log,
    _dir: TempDir,
}

fn bed(sync_method: SyncMethod) -> Bed {
    bed_with(|options| options.sync_method = sync_method)
}

fn bed_with(change: impl FnOnce(&mut LogOptions)) -> Bed {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let backend: Arc<dyn Backend> = Arc::new(NativeBackend::new());
    let mut options = LogOptions::new(dir.path(), 7, 1, Seq::ZERO);
    change(&mut options);
    let log = Log::open(backend, options, Arc::new(NoManifest::default())).expect("a log");
    Bed { log, _dir: dir }
}

/// The time of `count` records shared by this many threads.
#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
fn append_by(threads: u64, count: u64, log: &Log, is_durable: bool) -> Duration {
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let mut record = RecordBuf::new();
                record.push(&[7; RECORD_BYTES]);
                for _ in (thread..count).step_by(usize::try_from(threads).unwrap_or(1)) {
                    let appended = log.append(&mut record).expect("an append");
                    if is_durable {
                        log.wait_durable(appended.end).expect("a commit");
                    }
                }
            });
        }
    });
    let took = begin.elapsed();
    retire(log);
    took
}

/// Files that are full and durable make room for others, as a flush would.
fn retire(log: &Log) {
    let files = log.retirable(log.durable());
    log.retire(&files).expect("files to give back");
}

fn bench(criterion: &mut Criterion, name: &str, threads: &[u64], durably_by: Option<SyncMethod>) {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(1)).sample_size(10).measurement_time(Duration::from_secs(3));
    for threads in threads.iter().copied() {
        let bed = bed(durably_by.unwrap_or_default());
        group.bench_function(BenchmarkId::new("threads", threads), |bencher| {
            bencher.iter_custom(|count| append_by(threads, count, &bed.log, durably_by.is_some()));
        });
        bed.log.close().expect("a close");
    }
    group.finish();
}

/// Into the ring, with the background drain to the log files going on.
fn append(criterion: &mut Criterion) {
    bench(criterion, "wal/append", &[1, 2, 4], None);
}

/// Into a ring with enough room, without writes to the device: the cost of an append alone.
fn append_in_ring(criterion: &mut Criterion) {
    const BURST: u64 = 200_000;
    let mut group = criterion.benchmark_group("wal/append_in_ring");
    group.throughput(Throughput::Elements(1)).sample_size(10).measurement_time(Duration::from_secs(2));
    for threads in [1, 2] {
        let bed = bed_with(|options| {
            (options.ring_bytes, options.ring_file_bytes) = (64 << 20, 64 << 20);
            (options.drain_bytes, options.drain_interval) = (1 << 30, Duration::from_hours(1));
        });
        group.bench_function(BenchmarkId::new("threads", threads), |bencher| {
            bencher.iter_custom(|count| {
                let mut took = Duration::ZERO;
                for begin in (0..count).step_by(200_000) {
                    took += append_by(threads, BURST.min(count - begin), &bed.log, false);
                    bed.log.sync().expect("a sync");
                }
                took
            });
        });
        bed.log.close().expect("a close");
    }
    group.finish();
}

/// Reads back 64 MiB of records, from the device and not from memory.
#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
fn replay_log(criterion: &mut Criterion) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let backend: Arc<dyn Backend> = Arc::new(NativeBackend::new());
    let options = LogOptions::new(dir.path(), 7, 1, Seq::ZERO);
    let log =
        Log::open(Arc::clone(&backend), options.clone(), Arc::new(NoManifest::default())).expect("a log");
    let mut record = RecordBuf::new();
    record.push(&[7; RECORD_BYTES]);
    let records = (64 << 20) / record.len_bytes() as u64;
    for _ in 0..records {
        log.append(&mut record).expect("an append");
    }
    log.close().expect("a close");
    let input = ReplayInput {
        directory: options.directory,
        store_id: options.store_id,
        incarnation: options.incarnation,
        incarnation_start: options.start,
        from: options.start,
        files: log.active_files(),
        file_bytes: options.file_bytes,
        ring_path: options.ring_path,
        ring_bytes: options.ring_bytes,
        ring_file_bytes: options.ring_bytes,
    };
    let mut queue = backend.queue(4).expect("a queue");
    let mut group = criterion.benchmark_group("wal");
    group.throughput(Throughput::Bytes(64 << 20)).sample_size(10).measurement_time(Duration::from_secs(3));
    group.bench_function("replay", |bencher| {
        bencher.iter_custom(|count| {
            let begin = Instant::now();
            for _ in 0..count {
                let mut bytes = 0;
                let mut visit = |_: Seq, payload: &[u8]| {
                    bytes += payload.len();
                    Ok(())
                };
                let replayed = replay(&*backend, &mut *queue, &input, &mut visit).expect("a whole log");
                assert_eq!(replayed.records, records);
            }
            begin.elapsed()
        });
    });
    group.finish();
}

fn durable_commit(criterion: &mut Criterion) {
    let ways = [("fdatasync", SyncMethod::Fdatasync), ("durable_write", SyncMethod::DurableWrite)];
    for (name, way) in ways {
        bench(criterion, &format!("wal/durable_commit/{name}"), &[1, 8, 64], Some(way));
    }
}

criterion_group!(benches, append, append_in_ring, replay_log, durable_commit);
criterion_main!(benches);
