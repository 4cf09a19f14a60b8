//! The first failed write or sync of log or manifest halts the store: reads still work, every later write gets the first cause,
//! no thread waits for ever, nothing is retried, and a reopen has every acknowledged write.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use aio::Errno;
use aio::sim::{EventKind, Fault, FaultPlan, SimBackend};
use esker::testing::{Background, BuilderExt, Sizes};
use esker::{Builder, Db, Error, Event, Listener};

const KIB: u64 = 1 << 10;

fn builder(backend: &SimBackend, background: Background) -> Builder {
    let sizes = Sizes {
        ring_bytes: Some(64 * KIB),
        // Of groups of a step.
        log_file_bytes: Some(16 * backend.snapshot().physical_block_bytes() as u64),
        memtable_bytes: Some(32 * KIB),
        segment_bytes: Some(64 * KIB),
        manifest_bytes: Some(32 * KIB),
        block_bytes: Some(1 << 10),
    };
    Db::builder()
        .memory_budget_bytes(1 << 20)
        .backend(Arc::new(backend.clone()))
        .background(background)
        .sizes(sizes)
}

fn cause(error: &Error) -> Option<String> {
    match error {
        Error::Halted { cause, .. } => Some(cause.to_string()),
        _ => None,
    }
}

#[derive(Debug, Default)]
struct Halts(Arc<Mutex<Vec<String>>>);

impl Listener for Halts {
    fn event(&self, event: &Event) {
        if let Event::Halted { cause, .. } = event {
            self.0.lock().unwrap().push(cause.to_string());
        }
    }
}

/// The values that each key may have. There is more than one only if a write of the key failed.
type Model = BTreeMap<Vec<u8>, Vec<Option<Vec<u8>>>>;

/// Does all kinds of operations. Returns the first error of each kind: (halted, other).
fn incarnation(db: &Db, model: &mut Model) -> (Option<Error>, Option<Error>) {
    let (mut halted, mut other) = (None, None);
    let mut note = |result: esker::Result<()>| {
        if let Err(error) = &result {
            let place = if cause(error).is_some() { &mut halted } else { &mut other };
            place.get_or_insert_with(|| error.clone());
        }
        result.is_ok()
    };
    let Ok(ks) = db.keyspace("default") else { unreachable!("it exists") };
    for i in 0..100u64 {
        let key = (i % 40).to_be_bytes().to_vec();
        let value = (i % 7 != 3).then(|| i.to_be_bytes().repeat(80));
        let done = match &value {
            Some(value) => note(ks.put(&key, value)),
            None => note(ks.delete(&key)),
        };
        let allowed = model.entry(key).or_insert_with(|| vec![None]);
        if done {
            allowed.clear();
        }
        allowed.push(value);
        match i % 50 {
            20 => drop(note(db.keyspace(&format!("{i}")).map(drop))),
            30 => drop(note(db.flush())),
            40 => drop(note(db.drop_keyspace("20"))),
            45 => drop(note(db.sync())),
            _ => {}
        }
    }
    note(db.compact());
    (halted, other)
}

fn check(db: &Db, model: &Model, context: &str) {
    let ks = db.keyspace("default").unwrap();
    for (key, allowed) in model {
        let found = ks.get(key).unwrap().map(|value| value.to_vec());
        assert!(allowed.contains(&found), "{context}: key {key:?}");
    }
}

/// Counts writes and syncs of log and manifest from now on.
fn count_io(sim: &SimBackend) -> Arc<AtomicU64> {
    let counter = Arc::new(AtomicU64::new(0));
    let tally = Arc::clone(&counter);
    sim.on_event(move |event, _| {
        let path = event.path.to_string_lossy();
        let is_log = path.ends_with(".log") || path.contains("manifest-");
        if is_log && matches!(event.kind, EventKind::Write | EventKind::Sync) {
            tally.fetch_add(1, Ordering::SeqCst);
        }
    });
    counter
}

/// After a halt: the same cause everywhere, reads, no more I/O on log and manifest, and a reopen with everything.
fn stays_halted(
    sim: &SimBackend,
    db: Db,
    (first, told): (&Error, &Mutex<Vec<String>>),
    model: &Model,
    context: &str,
) {
    let io = count_io(sim);
    let expected = cause(first);
    let ks = db.keyspace("default").unwrap();
    let failures: [Error; 6] = [
        ks.put("key", "value").unwrap_err(),
        ks.delete("key").unwrap_err(),
        db.batch().put(&ks, "a", "b").commit().unwrap_err(),
        db.sync().unwrap_err(),
        db.flush().unwrap_err(),
        db.create_or_err("another"),
    ];
    for error in failures {
        assert_eq!(cause(&error), expected, "{context}: {error}");
        assert!(!error.to_string().contains('\n'));
    }
    assert!(db.metrics().halted.is_some());
    let told = told.lock().unwrap().clone();
    assert_eq!(told.len(), 1, "{context}: the listener is told once");
    assert_eq!(told.first(), expected.as_ref());
    check(&db, model, context);
    assert!(ks.iter().all(|pair| pair.is_ok()));
    drop(ks);
    assert_eq!(db.close().as_ref().err().and_then(cause), expected, "{context}");
    assert_eq!(io.load(Ordering::SeqCst), 0, "{context}: nothing is written or synced after the failure");
    sim.stop_observing();
}

trait CreateOrErr {
    fn create_or_err(&self, name: &str) -> Error;
}

impl CreateOrErr for Db {
    fn create_or_err(&self, name: &str) -> Error {
        match self.keyspace(name) {
            Err(error) => error,
            Ok(_) => panic!("a halted store has made a keyspace"),
        }
    }
}

/// The physical blocks of the disks.
const BLOCKS: [usize; 2] = [512, 4096];

/// Fails the k-th call of these kinds on paths with this part, for all k, on each disk; returns how many runs halted, at least.
fn fail_each(kinds: &[EventKind], part: &str, fault: Fault) -> usize {
    BLOCKS.map(|block_bytes| fail_each_on(block_bytes, kinds, part, fault)).into_iter().min().unwrap()
}

fn fail_each_on(block_bytes: usize, kinds: &[EventKind], part: &str, fault: Fault) -> usize {
    let mut halts = 0;
    for skip in 0.. {
        let sim = SimBackend::new(skip);
        sim.set_physical_block_bytes(block_bytes);
        let told = Arc::new(Mutex::new(Vec::new()));
        let db = builder(&sim, Background::Manual).listener(Halts(Arc::clone(&told))).open("/store").unwrap();
        let mut model = Model::new();
        sim.fail(FaultPlan::new(fault).on(kinds).path(part).skip(skip));
        let (halted, other) = incarnation(&db, &mut model);
        let struck = sim.faults_struck() > 0;
        sim.clear_faults();
        let context = format!("{fault:?} of {kinds:?} {skip} on {part:?}, blocks of {block_bytes}");
        if let Some(first) = &halted {
            halts += 1;
            assert!(struck);
            stays_halted(&sim, db, (first, &told), &model, &context);
        } else {
            let reported = other.is_some() || db.metrics().failed_jobs > 0;
            let is_harmless = kinds.contains(&EventKind::Remove) || kinds.contains(&EventKind::Stat);
            assert!(!struck || reported || is_harmless, "{context}: the fault was not reported");
            check(&db, &model, &context);
            // A failure before anything was written to the log: the same writes succeed now.
            assert_eq!(incarnation(&db, &mut model).0.map(|error| error.to_string()), None, "{context}");
            db.close().unwrap();
        }
        let db = builder(&sim, Background::Manual).open("/store").unwrap();
        check(&db, &model, &context);
        db.verify().unwrap();
        let ks = db.keyspace("default").unwrap();
        ks.put("key", "value").unwrap();
        if !struck {
            break;
        }
    }
    halts
}

#[test]
fn each_failing_write_of_the_log_halts() {
    assert!(fail_each(&[EventKind::Write], ".log", Fault::Errno(Errno::IO)) > 90);
}

#[test]
fn each_failing_sync_of_the_log_halts_and_is_not_tried_again() {
    assert!(fail_each(&[EventKind::Sync], ".log", Fault::Errno(Errno::IO)) > 90);
}

#[test]
fn each_short_write_of_the_log_halts() {
    for block_bytes in BLOCKS {
        // All sectors but the last one, of the smallest group.
        let short = Fault::Short(block_bytes - 512);
        assert!(fail_each_on(block_bytes, &[EventKind::Write], ".log", short) > 90, "{block_bytes}");
    }
}

#[test]
fn each_failing_write_of_the_manifest_halts() {
    assert!(fail_each(&[EventKind::Write], "manifest-", Fault::Errno(Errno::IO)) > 10);
}

#[test]
fn each_failing_sync_of_the_manifest_halts_and_is_not_tried_again() {
    assert!(fail_each(&[EventKind::Sync], "manifest-", Fault::Errno(Errno::IO)) > 10);
}

#[test]
fn each_failing_sync_of_a_folder_halts_and_is_not_tried_again() {
    for errno in [Errno::IO, Errno::NO_SPACE, Errno::INTERRUPTED] {
        for folder in ["/segments", "/wal"] {
            assert!(fail_each(&[EventKind::SyncDir], folder, Fault::Errno(errno)) > 3, "{folder}");
        }
    }
}

#[test]
fn segments_that_fail_are_no_halt() {
    let kinds = [EventKind::Write, EventKind::Sync, EventKind::Create, EventKind::Allocate];
    assert_eq!(fail_each(&kinds, "segments", Fault::Errno(Errno::IO)), 0);
}

#[test]
fn names_that_cannot_be_removed_stay_behind_and_harm_nothing() {
    assert_eq!(fail_each(&[EventKind::Remove], "", Fault::Errno(Errno::IO)), 0);
}

#[test]
fn every_thread_that_writes_is_woken_with_the_cause() {
    for (kind, part) in
        [(EventKind::Sync, ".log"), (EventKind::Write, ".log"), (EventKind::Sync, "manifest-")]
    {
        let sim = SimBackend::new(1);
        let db = builder(&sim, Background::Threads).open("/store").unwrap();
        let ks = db.keyspace("default").unwrap();
        sim.fail(FaultPlan::new(Fault::Errno(Errno::IO)).on(&[kind]).path(part).skip(2));
        let threads: Vec<_> = (0..8u64)
            .map(|thread| {
                let ks = ks.clone();
                std::thread::Builder::new()
                    .spawn(move || {
                        for i in 0.. {
                            if let Err(error) = ks.put((thread << 32 | i).to_be_bytes(), [7; 500]) {
                                return error;
                            }
                        }
                        unreachable!()
                    })
                    .unwrap()
            })
            .collect();
        for thread in threads {
            let error = thread.join().unwrap();
            assert_eq!(cause(&error), cause(&db.sync().unwrap_err()), "{error}");
        }
        drop(ks);
        assert!(db.close().is_err());
    }
}

type Chooses = fn(&Event) -> bool;

/// Panics inside a job, as a failed assertion does.
#[derive(Debug)]
struct Panics(Chooses);

impl Listener for Panics {
    fn event(&self, event: &Event) {
        assert!(!(self.0)(event), "this panic is part of the test");
    }
}

#[test]
fn a_job_that_panics_leaves_no_thread_waiting() {
    let jobs: [(Chooses, &str); 2] = [
        (|event| matches!(event, Event::Flushed { .. }), "esker-flush"),
        (|event| matches!(event, Event::Compacted { .. }), "esker-compact"),
    ];
    for (panics, name) in jobs {
        let sim = SimBackend::new(1);
        let db = builder(&sim, Background::Threads).listener(Panics(panics)).open("/store").unwrap();
        let ks = db.keyspace("default").unwrap();
        let threads: Vec<_> = (0..4u64)
            .map(|thread| {
                let ks = ks.clone();
                let write = move || {
                    for i in 0.. {
                        match ks.put((thread << 32 | i).to_be_bytes(), [7; 500]) {
                            Ok(()) => {}
                            Err(error) => return (i, error),
                        }
                    }
                    unreachable!()
                };
                std::thread::Builder::new().spawn(write).unwrap()
            })
            .collect();
        let ends: Vec<(u64, Error)> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        for (_, error) in &ends {
            let cause = cause(error).unwrap();
            assert!(cause.contains(name) && cause.contains("panicked"), "{cause}");
        }
        drop((ks, db));
        let db = builder(&sim, Background::Threads).open("/store").unwrap();
        let ks = db.keyspace("default").unwrap();
        for (thread, (acknowledged, _)) in (0u64..).zip(&ends) {
            for i in 0..*acknowledged {
                assert!(ks.contains_key((thread << 32 | i).to_be_bytes()).unwrap());
            }
        }
    }
}
