//! The cost of one operation: submit and reap at several batch sizes, wake-ups, random reads at several depths, and each
//! way of making bytes durable.
//!
//! Run with `cargo bench -p esker-benches --bench aio`. The files stand below `target` and measure its disk.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aio::{Backend, Buf, Context, File, NativeBackend, OpenMode, Operation, Queue, Wake, Waking};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use esker_benches::data::Random;
use hdrhistogram::Histogram;
use parking_lot::{Condvar, Mutex};
use rustix::process::Signal;
use rustix::thread::CpuSet;
use tempfile::TempDir;

const PAGE_BYTES: usize = 4096;
const FILE_BYTES: u64 = 64 << 20;

struct Bed {
    backend: Arc<dyn Backend>,
    file: File,
    _dir: TempDir,
}

/// A written file on the disk below `target`.
fn bed() -> Bed {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let backend: Arc<dyn Backend> = Arc::new(NativeBackend::new());
    let file = written_file(&*backend, &dir.path().join("file"));
    Bed { backend, file, _dir: dir }
}

fn written_file(backend: &dyn Backend, path: &Path) -> File {
    let file = backend.open(path, OpenMode::Create).expect("a new file");
    backend.allocate(&file, FILE_BYTES).expect("space");
    let mut queue = backend.queue(1).expect("a context");
    let mut random = Random::new(1);
    let mut buf = Buf::zeroed(1 << 20);
    for offset in (0..FILE_BYTES).step_by(1 << 20) {
        for word in buf.chunks_exact_mut(8) {
            word.copy_from_slice(&random.number().to_le_bytes());
        }
        buf = aio::file::write_all(&mut *queue, &file, offset, buf).expect("a write");
    }
    backend.sync(&file).expect("a sync");
    file
}

fn read(file: &File, random: &mut Random, buf: Buf) -> Operation {
    let offset = random.below(FILE_BYTES / PAGE_BYTES as u64) * PAGE_BYTES as u64;
    Operation::read(file, offset, buf)
}

/// The time of `count` operations with this many always in flight.
#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
fn reads(bed: &Bed, queue: &mut dyn Queue, depth: usize, count: u64) -> Duration {
    let mut random = Random::new(2);
    let mut waiting: VecDeque<_> =
        (0..depth).map(|_| read(&bed.file, &mut random, Buf::zeroed(PAGE_BYTES))).collect();
    let mut done = Vec::new();
    let mut left = count;
    let begin = Instant::now();
    while left > 0 {
        queue.submit(&mut waiting).expect("a submit");
        queue.wait(1, None, &mut done).expect("a wait");
        for completion in done.drain(..) {
            left = left.saturating_sub(1);
            let buf = completion.whole().expect("a read").into_buf();
            waiting.push_back(read(&bed.file, &mut random, buf));
        }
    }
    let took = begin.elapsed();
    queue.wait(queue.in_flight(), None, &mut done).expect("a wait");
    took
}

/// Random reads at a depth: one thread keeps this many in flight.
fn random_reads(criterion: &mut Criterion) {
    let bed = bed();
    let mut group = criterion.benchmark_group("aio/random_read_4k");
    group.throughput(Throughput::Elements(1)).sample_size(10);
    for depth in [1, 8, 32, 128] {
        let mut queue = bed.backend.queue(depth).expect("a context");
        group.bench_function(BenchmarkId::new("depth", depth), |bencher| {
            bencher.iter_custom(|count| reads(&bed, &mut *queue, depth, count));
        });
    }
    group.finish();
}

/// Submit and reap of a batch beyond the end of the file, which the device never sees: the cost of the calls alone.
fn submit_and_reap(criterion: &mut Criterion) {
    let bed = bed();
    let mut group = criterion.benchmark_group("aio/submit_and_reap");
    for batch in [1, 8, 32, 128] {
        let mut queue = bed.backend.queue(batch).expect("a context");
        let mut bufs: Vec<Buf> = (0..batch).map(|_| Buf::zeroed(PAGE_BYTES)).collect();
        let mut waiting = VecDeque::new();
        let mut done = Vec::new();
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_function(BenchmarkId::new("batch", batch), |bencher| {
            bencher.iter(|| {
                for buf in bufs.drain(..) {
                    waiting.push_back(Operation::read(&bed.file, FILE_BYTES, buf));
                }
                assert_eq!(queue.submit(&mut waiting).expect("a submit"), batch);
                queue.wait(batch, None, &mut done).expect("a wait");
                for completion in done.drain(..) {
                    assert_eq!(completion.result, Ok(0));
                    bufs.push(completion.operation.into_buf());
                }
            });
        });
    }
    group.finish();
}

/// Something that sleeps until it is woken, and its waker.
type Sleeper = (Box<dyn FnMut() + Send>, Box<dyn Fn() + Send>);

/// A wait of a context with this waker.
fn context_sleeper(waking: Waking) -> Sleeper {
    let mut context = Context::builder().slots(1).waking(waking).build().expect("a context");
    let waker = context.waker();
    let mut none = Vec::new();
    let wait = move || assert_eq!(context.wait(1, None, &mut none), Ok(Wake::Woken));
    (Box::new(wait), Box::new(move || waker.wake()))
}

/// The cost of threads without any I/O: the ceiling.
fn condition_sleeper() -> Sleeper {
    let shared = Arc::new((Mutex::new(false), Condvar::new()));
    let waker = Arc::clone(&shared);
    let wait = move || {
        let mut is_woken = shared.0.lock();
        while !std::mem::take(&mut *is_woken) {
            shared.1.wait(&mut is_woken);
        }
    };
    let wake = move || {
        *waker.0.lock() = true;
        waker.1.notify_one();
    };
    (Box::new(wait), Box::new(wake))
}

fn run_on_core(core: usize) {
    let mut cores = CpuSet::new();
    cores.set(core);
    // Refused if the process may not use that core; then the scheduler chooses.
    let _ = rustix::thread::sched_setaffinity(None, &cores);
}

/// The times from `wake` to the return of the wait, in nanoseconds: `count` of them, each after a `pause` in which the
/// waiter fell asleep.
#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
fn wake_ups((mut wait, wake): Sleeper, is_other_core: bool, pause: Duration, count: u64) -> Histogram<u64> {
    let start = Instant::now();
    let nanos = || u64::try_from(start.elapsed().as_nanos()).expect("a bench of less than centuries");
    let (woken_at, rounds) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            run_on_core(usize::from(is_other_core));
            let mut times = Histogram::new(3).expect("three digits");
            for _ in 0..count {
                wait();
                times.record(nanos() - woken_at.load(Ordering::Acquire)).expect("an unbounded histogram");
                rounds.fetch_add(1, Ordering::Release);
            }
            times
        });
        run_on_core(0);
        for round in 0..count {
            let mut asleep_since = None;
            while asleep_since.is_none_or(|since: Instant| since.elapsed() < pause) {
                if rounds.load(Ordering::Acquire) == round {
                    asleep_since.get_or_insert_with(Instant::now);
                }
                if is_other_core {
                    std::hint::spin_loop();
                } else {
                    // Lets the waiter run and fall asleep.
                    std::thread::yield_now();
                }
            }
            woken_at.store(nanos(), Ordering::Release);
            wake();
            if !is_other_core {
                // The waiter runs on this core.
                std::thread::yield_now();
            }
        }
        waiter.join().expect("the waiter")
    })
}

/// From one thread's `wake` to another's return from `wait`, with each kind of waker and beside a condition variable:
/// with both on one core, on another core that was just left, and on one that has slept for long.
#[expect(clippy::print_stdout, reason = "percentiles, which Criterion does not show")]
fn wake_up(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("aio/wake_up");
    group.sample_size(10);
    let mut lines = Vec::new();
    let pauses = [("one core", false, 20), ("other core", true, 50), ("other core, long asleep", true, 2000)];
    for (place, is_other_core, pause_micros) in pauses {
        for way in ["poll", "signal", "condition variable"] {
            let mut times = Histogram::<u64>::new(3).expect("three digits");
            group.bench_function(BenchmarkId::new(way, place), |bencher| {
                bencher.iter_custom(|count| {
                    let sleeper = match way {
                        "poll" => context_sleeper(Waking::Poll),
                        "signal" => context_sleeper(Waking::Signal(Signal::USR1.as_raw())),
                        _ => condition_sleeper(),
                    };
                    let pause = Duration::from_micros(pause_micros);
                    // A thread of its own, so that the bench does not stay on the chosen core.
                    let run = std::thread::scope(|scope| {
                        let run = scope.spawn(|| wake_ups(sleeper, is_other_core, pause, count));
                        run.join().expect("a run")
                    });
                    times.add(&run).expect("an unbounded histogram");
                    Duration::from_secs_f64(run.mean() * 1e-9) * u32::try_from(count).expect("a small count")
                });
            });
            let [p50, p99] = [0.5, 0.99].map(|quantile| times.value_at_quantile(quantile) / 100);
            let (p50, p99) = (format!("{}.{}", p50 / 10, p50 % 10), format!("{}.{}", p99 / 10, p99 % 10));
            lines.push(format!("{way}, {place}: p50 {p50} us, p99 {p99} us, {} wake-ups", times.len()));
        }
    }
    group.finish();
    for line in lines {
        println!("{line}");
    }
}

/// A way of making a page durable.
fn make_durable(bed: &Bed, queue: &mut dyn Queue, way: &str, (offset, buf): (u64, Buf)) -> Buf {
    let write = if way == "write_dsync" { Operation::write_durable } else { Operation::write };
    let mut done = aio::file::run(queue, [write(&bed.file, offset, buf)]).expect("a submit");
    let buf = done.pop().expect("one completion").whole().expect("a write").into_buf();
    match way {
        "write_then_fdatasync" => bed.backend.sync(&bed.file).expect("a sync"),
        "write_then_aio_fdsync" => {
            let sync = Operation::data_sync(&bed.file);
            let done = aio::file::run(queue, [sync]).expect("a submit").pop().expect("one completion");
            done.whole().expect("a sync");
        }
        _ => {}
    }
    buf
}

/// One write of some pages that is on stable media afterwards.
fn durable_writes(criterion: &mut Criterion) {
    let bed = bed();
    let mut queue = bed.backend.queue(1).expect("a context");
    let mut group = criterion.benchmark_group("aio/durable_write");
    group.sample_size(10);
    for len_bytes in [4096_usize, 65_536] {
        for way in ["write_dsync", "write_then_fdatasync", "write_then_aio_fdsync"] {
            let mut buf = Some(Buf::zeroed(len_bytes));
            let mut offset = 0;
            group.throughput(Throughput::Bytes(len_bytes as u64));
            group.bench_function(BenchmarkId::new(way, len_bytes), |bencher| {
                bencher.iter(|| {
                    let page = (offset, buf.take().expect("it came back"));
                    buf = Some(make_durable(&bed, &mut *queue, way, page));
                    offset = (offset + len_bytes as u64) % FILE_BYTES;
                });
            });
        }
    }
    group.finish();
}

/// The cost of counting and timing an operation, which is always on.
fn counting(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("aio/counting");
    // Repeated reads of 512 KiB; and reads that are all different, of which the profile keeps a few.
    for (name, distance) in [("repeated", 0), ("different", 1 << 20)] {
        let counting = aio::Counting::new();
        let mut offset = 0;
        for batch in [1, 8] {
            group.throughput(Throughput::Elements(batch as u64));
            group.bench_function(BenchmarkId::new(name, batch), |bencher| {
                bencher.iter(|| {
                    offset = if distance == 0 { (offset + (1 << 15)) % (1 << 19) } else { offset + distance };
                    counting.operations(offset, batch);
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, counting, submit_and_reap, wake_up, random_reads, durable_writes);
criterion_main!(benches);
