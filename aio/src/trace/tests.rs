//! Counts of operations: by class, kind of file, size and depth; from many threads; in little memory.

use super::*;

fn file(kind: &'static str) -> Arc<Identity> {
    let file = Identity::new(1, 2, Path::new(kind));
    file.set_kind(kind);
    Arc::new(file)
}

fn read(file: &Arc<Identity>, offset: u64) -> Arguments<'_> {
    let (kind, flags) = (OperationKind::Read, Flags::NONE);
    Arguments { file: Some(file), kind, flags, offset, len_bytes: 4096 }
}

fn ended(arguments: Arguments<'_>, moved_bytes: Option<usize>, nanos: u64) -> Ended<'_> {
    Ended { arguments, moved_bytes, nanos, submitted: None }
}

#[test]
fn operations_are_counted_by_class_and_kind_of_file() {
    let trace = Trace::default();
    let (log, segment) = (file("log"), file("segment"));
    trace.ended([
        ended(read(&log, 0), Some(512), 100),
        ended(read(&segment, 0), Some(512), 100_000),
        ended(Arguments::of_sync(&log), None, 7),
        ended(Arguments { file: None, ..read(&log, 0) }, Some(4096), 50),
    ]);
    let profile = trace.profile();
    let found: Vec<_> =
        profile.operations.iter().map(|part| (part.class, &*part.file_kind, part.count)).collect();
    let (one, two) = (IoClass::Read, IoClass::Sync);
    assert_eq!(found, [(one, "other", 1), (one, "log", 1), (one, "segment", 1), (two, "log", 1)]);
    let reads = profile.read();
    assert_eq!((reads.count, reads.bytes, reads.errors, &*reads.file_kind), (3, 5120, 0, "all"));
    assert_eq!((reads.time, reads.latency.count()), (Duration::from_nanos(100_150), 3));
    let syncs = profile.sync();
    assert_eq!((syncs.count, syncs.bytes, syncs.errors), (1, 0, 1));
    assert_eq!((profile.count(), profile.write().count), (4, 0));
}

#[test]
fn more_kinds_of_files_than_are_told_apart_count_as_other() {
    let trace = Trace::default();
    let kinds = ["a", "b", "c", "d", "e", "f", "g", "h", "i"].map(file);
    trace.ended(kinds.iter().map(|file| ended(read(file, 0), Some(1), 1)));
    let found = trace.profile().operations;
    assert_eq!(found.len(), FILE_KINDS);
    assert_eq!((&*found[0].file_kind, found[0].count), (OTHER, 2));
}

#[test]
fn sizes_depths_and_batches_are_counted() {
    for (bytes, class) in [(0, 0), (4096, 0), (4097, 1), (1 << 20, 4), (1 << 21, 5)] {
        assert_eq!(size_class(bytes), class, "{bytes} bytes");
    }
    let trace = Trace::default();
    let file = file("file");
    let call = |operations, depth| Some(Submitted { operations, depth });
    let write = |offset, submitted| Ended {
        arguments: Arguments { kind: OperationKind::Write, ..read(&file, offset) },
        moved_bytes: Some(1 << 16),
        nanos: 3000,
        submitted,
    };
    trace.ended([write(0, call(1, 1)), write(1, None), write(2, call(2, 7)), write(3, call(1, 0))]);
    trace.submitted(Submitted { operations: 0, depth: 3 });
    let profile = trace.profile();
    assert_eq!((profile.submit_calls, profile.submitted), (3, 4));
    assert_eq!(profile.depths[..4], [2, 0, 1, 0]);
    assert_eq!(profile.write().sizes, [0, 0, 4, 0, 0, 0]);
    assert_eq!(profile.write().time, Duration::from_micros(12));
}

#[test]
fn repeats_and_their_time_are_counted_by_class_and_kind_of_file() {
    let trace = Trace::default();
    let (log, segment) = (file("log"), file("segment"));
    for (round, nanos) in [(0, 1000), (1, 10), (2, 20)] {
        trace.ended((0..8).map(|place| ended(read(&log, place << 12), Some(4096), nanos)));
        trace.ended([ended(read(&segment, round), Some(4096), nanos)]);
        trace.ended([ended(Arguments::of_sync(&log), Some(0), nanos)]);
        let poll = Arguments { kind: OperationKind::Poll, ..read(&log, 0) };
        trace.ended([ended(poll, Some(0), nanos)]);
    }
    let profile = trace.profile();
    let found: Vec<_> =
        profile.operations.iter().map(|part| (part.repeated, part.repeated_time.as_nanos())).collect();
    assert_eq!(found, [(16, 8 * 30), (0, 0), (2, 30), (0, 0)]);
    assert_eq!((profile.repeated(), profile.repeated_time()), (18, Duration::from_nanos(9 * 30)));
    assert_eq!(profile.places.len(), 9, "eight reads of the log and its sync");
    assert!(profile.places.iter().all(|place| place.calls == 3 && place.file_kind == "log"));
    assert!(profile.places.iter().all(|place| place.mean() == Duration::from_nanos(343)));
}

#[test]
fn many_threads_lose_no_count() {
    const THREADS: u64 = 4;
    const CALLS: u64 = 50_000;
    let trace = Trace::default();
    let file = file("file");
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (trace, file) = (&trace, &file);
            scope.spawn(move || {
                for call in 0..CALLS {
                    // Half of the places are those of all threads.
                    let place =
                        if call.is_multiple_of(2) { call % 512 } else { 1000 + thread * 1000 + call % 256 };
                    trace.ended([ended(read(file, place << 12), Some(1), 5)]);
                    if call % 10_000 == 0 {
                        trace.profile();
                    }
                }
            });
        }
    });
    let profile = trace.profile();
    let reads = profile.read();
    assert_eq!(
        (reads.count, reads.bytes, reads.latency.count()),
        (THREADS * CALLS, THREADS * CALLS, THREADS * CALLS)
    );
    assert_eq!(reads.time, Duration::from_nanos(5 * THREADS * CALLS));
    let places = 256 + THREADS * 128;
    assert_eq!(reads.repeated, THREADS * CALLS - places);
    let calls = profile.places[0].calls;
    assert!(
        (calls - THREADS * CALLS / 512).abs_diff(0) <= THREADS,
        "{calls} calls of the most frequent place"
    );
}

#[test]
fn a_flood_of_places_fits_into_its_memory() {
    let trace = Trace::default();
    let file = file("file");
    (0..200_000).for_each(|place| trace.ended([ended(read(&file, place), Some(1), place)]));
    let state = trace.lock().unwrap();
    // The buckets, the filter and some rows of one histogram: see the documentation of the module.
    assert!(state.places.memory_bytes() <= 1_700_000, "{} bytes", state.places.memory_bytes());
}
