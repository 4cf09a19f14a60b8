//! The profile against the truth: calls with the same arguments, over files that are closed and opened again, several
//! handles, contexts and backends; and latencies against the clock.

use std::collections::{HashMap, VecDeque};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aio::{
    Backend, Buf, Context, File, Flags, IoClass, IoProfile, NativeBackend, OpenMode, Operation,
    OperationKind, Queue, SimBackend,
};

use crate::support::{NativeFixture, at, block, read};

/// Runs operations through a queue, as many together as it has slots.
fn run(queue: &mut dyn Queue, operations: impl IntoIterator<Item = Operation>) {
    let mut operations = operations.into_iter();
    let mut waiting = VecDeque::new();
    let mut done = Vec::new();
    loop {
        waiting.extend(operations.by_ref().take(queue.capacity() - waiting.len()));
        if waiting.is_empty() && queue.in_flight() == 0 {
            return;
        }
        queue.submit(&mut waiting).unwrap();
        queue.wait(1, None, &mut done).unwrap();
        for completion in done.drain(..) {
            completion.result.unwrap();
        }
    }
}

/// The calls of each offset of a file.
type Truth = HashMap<u64, u64>;

/// Reads of 512 bytes, which `call` chooses by number, are told by the profile as they were made.
fn reads_are_told(backend: &dyn Backend, file: &File, calls: u64, call: impl Fn(u64) -> u64) -> IoProfile {
    let mut truth = Truth::new();
    let mut queue = backend.queue(64).unwrap();
    let before = backend.profile();
    run(
        &mut *queue,
        (0..calls).map(|number| {
            let offset = call(number) * 512;
            *truth.entry(offset).or_default() += 1;
            Operation::read(file, offset, Buf::zeroed(512))
        }),
    );
    let profile = backend.profile();
    let repeated = profile.read().repeated - before.read().repeated;
    let expected = calls - truth.len() as u64;
    assert_eq!(profile.read().count - before.read().count, calls);
    assert!(repeated.abs_diff(expected) * 50 <= expected, "{repeated} repeats of {expected}");
    let named: Vec<_> = profile
        .places
        .iter()
        .filter(|place| place.kind == OperationKind::Read && place.file == file.path())
        .collect();
    for place in &named {
        assert_eq!((place.flags, place.len_bytes), (Flags::NONE, 512));
        let called = truth[&place.offset];
        assert!(place.calls.abs_diff(called) * 1000 <= calls, "{place:?}: {called} of {calls}");
    }
    let most = truth.values().max().unwrap();
    assert!(named[0].calls.abs_diff(*most) * 1000 <= calls, "{:?}: {most}", named[0]);
    profile
}

#[test]
fn repeated_reads_of_a_disk_are_told_by_place() {
    for backend in [NativeBackend::new(), NativeBackend::without_aio()] {
        let fixture = NativeFixture { backend, ..NativeFixture::new() };
        let mut queue = fixture.backend.queue(1).unwrap();
        let path = fixture.path("file");
        let file = aio::file::create_zeroed(&fixture.backend, &mut *queue, (&path, "data"), 1 << 20).unwrap();
        for (places, calls) in [(64, 5), (256, 6), (2000, 7)] {
            // Each time by another name, so that the places are new.
            let alias = fixture.path(&places.to_string());
            fixture.backend.link(&path, &alias).unwrap();
            let other = fixture.backend.open(&alias, OpenMode::Read).unwrap();
            let profile = reads_are_told(&fixture.backend, &other, places * calls, |number| number % places);
            assert!(
                profile.places.iter().all(|place| place.missed_calls_at_most == 0 && place.calls == calls)
            );
        }
        let stat = std::fs::metadata(file.path()).unwrap();
        let profile = fixture.backend.profile();
        assert_eq!(profile.read().repeated, 4 * 64 + 5 * 256 + 6 * 2000);
        assert!(profile.places.iter().all(|place| (place.device, place.inode) == (stat.dev(), stat.ino())));
        let writes = profile.operations.iter().find(|part| part.class == IoClass::Write).unwrap();
        assert_eq!((&*writes.file_kind, writes.count, writes.bytes), ("data", 1, 1 << 20));
    }
}

#[test]
fn repeated_reads_of_a_million_places_are_told_by_place() {
    let sim = SimBackend::new(1);
    sim.stop_tracing();
    let file = sim.open(Path::new("/file"), OpenMode::Create).unwrap();
    // Beyond the end of the file, so that the disk holds no bytes for it. Each place twice, far apart, and every fiftieth
    // call at one of twenty places more.
    let places = 1_000_000;
    let call =
        |number: u64| if number.is_multiple_of(50) { number / 50 % 20 } else { number * 7_919 % places };
    let profile = reads_are_told(&sim, &file, 2 * places, call);
    assert_eq!(profile.places.len(), 20);
    assert!(profile.places.iter().all(|place| place.offset < 20 * 512), "{:?}", profile.places);
}

#[test]
fn a_descriptor_that_is_used_again_is_another_file() {
    let fixture = NativeFixture::new();
    drop((fixture.file("a", 2), fixture.file("b", 2)));
    let mut queue = fixture.backend.queue(1).unwrap();
    for (round, name) in ["a", "b", "a", "b", "a"].into_iter().enumerate() {
        let file = fixture.backend.open(&fixture.path(name), OpenMode::Read).unwrap();
        run(&mut *queue, [read(&file, 1)]);
        // The file is closed here, and the next one gets its number unless another test takes it.
        let expected = (round as u64 + 1).saturating_sub(2);
        assert_eq!(fixture.backend.profile().read().repeated, expected, "after {name}, round {round}");
    }
    let calls: Vec<_> =
        fixture.backend.profile().places.iter().map(|place| (place.file.clone(), place.calls)).collect();
    assert_eq!(calls, [(fixture.path("a"), 3), (fixture.path("b"), 2)]);
}

#[test]
fn two_handles_and_two_contexts_are_one_file() {
    let fixture = NativeFixture::new();
    drop(fixture.file("a", 2));
    let open = |mode| fixture.backend.open(&fixture.path("a"), mode).unwrap();
    let files = [open(OpenMode::Read), open(OpenMode::Write), open(OpenMode::Read)];
    let mut queues = [fixture.backend.queue(1).unwrap(), fixture.backend.queue(4).unwrap()];
    for file in &files {
        for queue in &mut queues {
            run(&mut **queue, [read(file, 0), read(file, 1)]);
        }
    }
    let profile = fixture.backend.profile();
    assert_eq!((profile.read().count, profile.read().repeated), (12, 10));
    assert_eq!(profile.places.iter().map(|place| place.calls).collect::<Vec<_>>(), [6, 6]);
}

#[test]
fn syncs_and_vectored_operations_are_calls_as_well() {
    let fixture = NativeFixture::new();
    let file = fixture.file("a", 8);
    let mut queue = fixture.backend.queue(8).unwrap();
    let blocks = || vec![Buf::zeroed(4096), Buf::zeroed(8192)];
    for _ in 0..3 {
        run(&mut *queue, [Operation::sync(&file), Operation::data_sync(&file)]);
        fixture.backend.sync(&file).unwrap();
        run(&mut *queue, [Operation::read_vectored(&file, at(1), blocks())]);
        run(&mut *queue, [Operation::write_vectored(&file, at(1), blocks()).with_flags(Flags::DATA_SYNC)]);
        run(
            &mut *queue,
            [Operation::write_durable(&file, 0, block(0)), Operation::write(&file, 0, block(0))],
        );
    }
    let profile = fixture.backend.profile();
    let count = |class| (profile.class(class).count, profile.class(class).repeated);
    assert_eq!(IoClass::ALL.map(count), [(3, 2), (3, 2), (6, 4), (9, 7), (0, 0)]);
    let mut places: Vec<_> = profile
        .places
        .iter()
        .map(|place| (place.calls, place.kind.name(), place.flags, place.offset, place.len_bytes))
        .collect();
    places.sort_unstable_by_key(|place| (place.1, place.2 == Flags::NONE));
    let (none, durable) = (Flags::NONE, Flags::DATA_SYNC);
    assert_eq!(
        places,
        [
            (6, "data_sync", none, 0, 0),
            (3, "read_vectored", none, 4096, 12288),
            (3, "sync", none, 0, 0),
            (3, "write", durable, 0, 4096),
            (3, "write", none, 0, 4096),
            (3, "write_vectored", durable, 4096, 12288),
        ]
    );
}

#[test]
fn files_that_no_backend_has_opened_are_known_by_their_descriptor() {
    let fixture = NativeFixture::new();
    drop((fixture.file("a", 2), fixture.file("b", 2)));
    let open =
        |name: &str| Arc::new(std::fs::OpenOptions::new().read(true).open(fixture.path(name)).unwrap());
    let mut context = Context::builder().slots(4).build().unwrap();
    for name in ["a", "b", "a", "b"] {
        let file = open(name);
        for _ in 0..3 {
            context.run([Operation::read(Arc::clone(&file), 0, Buf::zeroed(4096))]).unwrap();
        }
    }
    // Both from an owner that is made for one operation.
    for _ in 0..2 {
        let file = Arc::into_inner(open("a")).unwrap();
        context.run([Operation::read(file, 0, Buf::zeroed(4096))]).unwrap();
    }
    let profile = context.profile();
    assert_eq!((profile.read().count, profile.read().repeated), (14, 12));
    let calls: Vec<_> = profile.places.iter().map(|place| (place.file.clone(), place.calls)).collect();
    assert_eq!(
        calls,
        [("a", 8), ("b", 6)].map(|(name, calls)| (fixture.path(name).canonicalize().unwrap(), calls))
    );
}

#[test]
fn latencies_add_up_to_the_time_that_the_machine_took() {
    let sim = SimBackend::new(7);
    let file = sim.open(Path::new("/file"), OpenMode::Create).unwrap();
    let mut queue = sim.queue(8).unwrap();
    let mut took = Duration::ZERO;
    let mut done = Vec::new();
    for nth in 0..1000_u64 {
        let begin = sim.now();
        let write = Operation::write(&file, nth * 4096, Buf::zeroed(4096));
        assert_eq!(queue.submit(&mut VecDeque::from([write])), Ok(1));
        queue.wait(1, None, &mut done).unwrap();
        took += sim.now().saturating_sub(begin);
    }
    let writes = sim.profile().write();
    assert_eq!(writes.time, took, "to the nanosecond: a call takes time, and nothing else does");
    let middle = writes
        .latency
        .buckets
        .iter()
        .map(|bucket| bucket.from_nanos.midpoint(bucket.to_nanos) * bucket.count);
    let histogram = Duration::from_nanos(middle.sum());
    assert!(histogram.abs_diff(took) * 100 <= took, "{histogram:?} in the histogram, {took:?}");
}

/// Bytes of a write that takes so long that the calls around it do not matter, under a sanitizer either.
const LONG_WRITE_BYTES: u64 = 16 << 20;

/// Through the page cache the kernel does all of the work inside the submit.
#[test]
#[expect(clippy::disallowed_methods, reason = "the truth that the profile is compared with")]
fn latencies_of_buffered_writes_add_up_to_the_time_of_their_calls() {
    let fixture = NativeFixture::new();
    let path = fixture.path("file");
    let file = std::fs::OpenOptions::new().create_new(true).read(true).write(true).open(path).unwrap();
    let file = Arc::new(file);
    let mut context = Context::builder().slots(8).build().unwrap();
    let mut batches = |batch: u64| {
        let before = context.profile().write().time;
        let bytes = || Buf::zeroed(usize::try_from(LONG_WRITE_BYTES).unwrap());
        let write = |nth| Operation::write(Arc::clone(&file), nth * LONG_WRITE_BYTES, bytes());
        let mut took = Duration::ZERO;
        for _ in 0..8 / batch {
            let mut waiting: VecDeque<_> = (0..batch).map(write).collect();
            let begin = std::time::Instant::now();
            assert_eq!(context.submit(&mut waiting), Ok(usize::try_from(batch).unwrap()));
            // Kept until the time is taken: it takes long to free the buffers.
            let mut done = Vec::with_capacity(8);
            context.wait(usize::try_from(batch).unwrap(), None, &mut done).unwrap();
            took += begin.elapsed();
        }
        (context.profile().write().time.saturating_sub(before), took)
    };
    for batch in [1, 2, 8] {
        let mut tries = Vec::new();
        // A machine that is busy with something else between two readings of the clock disturbs a try, not all of them.
        let adds_up = (0..50).any(|_| {
            let (latencies, took) = batches(batch);
            tries.push((latencies, took));
            assert!(latencies <= took + took / 1000, "{tries:?}");
            latencies >= took * 95 / 100
        });
        assert!(adds_up, "{tries:?}");
    }
}
