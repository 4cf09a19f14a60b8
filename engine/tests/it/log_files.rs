//! The files of the log: within the limit at every moment, and used again by later lives of the store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use aio::sim::{DiskImage, EventKind, Fault, FaultPlan};
use aio::{Errno, SimBackend};
use esker::testing::{Background, BuilderExt, DbExt, Sizes};
use esker::{Builder, Db, Durability, Error};

use super::random::Random;

/// A disk on which a small durable write takes this many bytes of the log.
fn disk(block_bytes: usize) -> SimBackend {
    let sim = SimBackend::new(1);
    sim.set_physical_block_bytes(block_bytes);
    sim
}

const KIB: u64 = 1 << 10;
const FILE_BYTES: u64 = 16 * KIB;

fn builder(sim: &SimBackend, file_bytes: u64) -> Builder {
    let sizes = Sizes {
        ring_bytes: Some(16 * KIB),
        log_file_bytes: Some(file_bytes),
        memtable_bytes: Some(64 * KIB),
        segment_bytes: Some(64 * KIB),
        manifest_bytes: Some(256 * KIB),
        block_bytes: Some(1 << 10),
    };
    Db::builder()
        .memory_budget_bytes(1 << 20)
        .backend(Arc::new(sim.clone()))
        .background(Background::Manual)
        .sizes(sizes)
}

fn open(sim: &SimBackend) -> Db {
    builder(sim, FILE_BYTES).open("/store").unwrap()
}

/// Each takes a group of its own.
fn put(db: &Db, keys: std::ops::Range<u32>) {
    let keyspace = db.keyspace("default").unwrap();
    for key in keys {
        keyspace.put(key.to_be_bytes(), [7; 100]).unwrap();
    }
}

fn check(db: &Db, keys: u32) {
    let found: Vec<_> = db.keyspace("default").unwrap().iter().map(|pair| pair.unwrap().0).collect();
    assert!(found.iter().map(|key| &key[..]).eq((0..keys).map(u32::to_be_bytes)), "{}", found.len());
    db.verify().unwrap();
}

/// Names and sizes of the log files.
fn logs(image: &DiskImage) -> Vec<(PathBuf, u64)> {
    let mut files = image.files();
    files.retain(|(path, _)| path.extension().is_some_and(|extension| extension == "log"));
    files
}

/// The disk after a power cut that keeps nothing unsynced, without the ring.
fn cut_off(sim: &SimBackend) -> DiskImage {
    let mut image = sim.snapshot().power_cut_none();
    for (path, _) in image.files() {
        if path.to_string_lossy().contains("/ring-") {
            image.damage(&path, |ring| ring.fill(0));
        }
    }
    image
}

/// A store that was cut off with log files in use, and the number of its keys.
fn first_life() -> (DiskImage, u32) {
    let sim = disk(4096);
    let db = open(&sim);
    put(&db, 0..10);
    (cut_off(&sim), 10)
}

/// Counts the log files that are made from now on.
fn count_made(sim: &SimBackend) -> Arc<AtomicU64> {
    let made = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&made);
    sim.on_event(move |event, _| {
        let is_log = event.path.extension().is_some_and(|extension| extension == "log");
        count.fetch_add(u64::from(is_log && event.kind == EventKind::Create), Ordering::Relaxed);
    });
    made
}

#[test]
fn a_crashed_store_writes_to_the_log_files_of_its_earlier_life() {
    let (image, keys) = first_life();
    let before = logs(&image);
    assert!(before.len() >= 3, "{before:?}");
    let sim = SimBackend::from_image(image, 1);
    let made = count_made(&sim);
    let db = open(&sim);
    assert_eq!(logs(&sim.snapshot()), before);
    // As many groups as in the first life.
    put(&db, keys..2 * keys);
    assert_eq!(made.load(Ordering::Relaxed), 0);
    assert!(db.metrics().log_files >= 2, "several are in use");
    // And once more, so that each is in its third use.
    let sim = SimBackend::from_image(cut_off(&sim), 1);
    let made = count_made(&sim);
    let db = open(&sim);
    check(&db, 2 * keys);
    put(&db, 2 * keys..3 * keys);
    assert_eq!(made.load(Ordering::Relaxed), 0);
    check(&open(&SimBackend::from_image(cut_off(&sim), 1)), 3 * keys);
}

#[test]
fn a_closed_store_keeps_two_log_files_for_its_next_life() {
    let (image, keys) = first_life();
    let sim = SimBackend::from_image(image, 1);
    for life in 1..4 {
        let made = count_made(&sim);
        let db = open(&sim);
        put(&db, keys * life..keys * (life + 1));
        db.close().unwrap();
        assert_eq!(logs(&sim.snapshot()).len(), 2, "life {life}");
        assert_eq!(made.load(Ordering::Relaxed) == 0, life == 1);
    }
    check(&open(&sim), 4 * keys);
}

#[test]
fn log_files_of_another_size_and_those_of_a_damaged_log_are_removed() {
    let (image, keys) = first_life();
    let sim = SimBackend::from_image(image.clone(), 1);
    let db = builder(&sim, 2 * FILE_BYTES).open("/store").unwrap();
    assert_eq!(logs(&sim.snapshot()), []);
    check(&db, keys);
    drop(db);
    let mut image = image;
    image.flip_bit(&logs(&image)[1].0.clone(), 3000);
    let sim = SimBackend::from_image(image, 1);
    assert!(builder(&sim, FILE_BYTES).repair("/store").unwrap().log.is_some());
    assert_eq!(logs(&sim.snapshot()), []);
}

/// A manifest that has lost the edit of the newest use of a file looks like one from before it.
#[test]
fn a_lost_edit_of_a_file_of_an_earlier_life_is_noticed() {
    let (image, keys) = first_life();
    let sim = SimBackend::from_image(image, 1);
    let db = open(&sim);
    let manifest =
        sim.snapshot().files().into_iter().find(|(path, _)| path.to_string_lossy().contains("manifest-"));
    let manifest = manifest.unwrap().0;
    let before = sim.snapshot().read_file(&manifest).unwrap();
    put(&db, keys..keys + 1);
    let mut image = cut_off(&sim);
    check(&open(&SimBackend::from_image(image.clone(), 1)), keys + 1);
    assert_ne!(image.read_file(&manifest).unwrap(), before);
    image.write_file(&manifest, &before);
    let refused = builder(&SimBackend::from_image(image, 1), FILE_BYTES).open(Path::new("/store"));
    assert!(matches!(&refused, Err(Error::Corrupt { file, .. }) if *file == manifest), "{:?}", refused.err());
}

/// A store whose log takes more of the limit than its memtables take of theirs.
fn limited(sim: &SimBackend, background: Background) -> Db {
    let db = builder(sim, FILE_BYTES).background(background).open("/store").unwrap();
    assert_eq!(db.log_limit_bytes() / FILE_BYTES, MOST_FILES as u64);
    db
}

const MOST_FILES: usize = 13;

/// The most log files that the disk had at the same time.
#[derive(Clone, Default)]
struct Highest(Arc<AtomicUsize>);

impl Highest {
    fn watch(&self, sim: &SimBackend) {
        let highest = self.clone();
        sim.on_event(move |_, image| highest.note(image));
    }

    fn note(&self, image: &DiskImage) {
        self.0.fetch_max(logs(image).len(), Ordering::Relaxed);
    }

    #[track_caller]
    fn check(&self, sim: &SimBackend) {
        self.note(&sim.snapshot());
        let highest = self.0.load(Ordering::Relaxed);
        assert!(highest <= MOST_FILES + 1, "{highest} log files");
    }
}

#[test]
fn a_small_keyspace_without_writes_does_not_hold_the_log() {
    for background in [Background::Manual, Background::Threads] {
        let (sim, highest) = (disk(4096), Highest::default());
        highest.watch(&sim);
        let db = limited(&sim, background);
        db.keyspace("idle").unwrap().put("key", "value").unwrap();
        // A step of the log for each.
        put(&db, 0..300);
        highest.check(&sim);
        assert!(db.metrics().flushes >= 4, "{}", db.metrics().flushes);
        assert_eq!(db.keyspace("idle").unwrap().get("key").unwrap().as_deref(), Some(&b"value"[..]));
        check(&db, 300);
    }
}

/// Each put takes a step of the log, a quarter of a file.
#[test]
fn only_keyspaces_with_records_in_the_older_half_of_the_log_are_flushed() {
    let (sim, highest) = (disk(4096), Highest::default());
    highest.watch(&sim);
    let db = limited(&sim, Background::Manual);
    let runs = |nth: u32| {
        let name = format!("keyspace {nth}");
        db.metrics().keyspaces.iter().find(|found| found.name == name).unwrap().runs
    };
    let mut puts = 0_u32;
    while db.metrics().flushes == 0 {
        let keyspace = db.keyspace(&format!("keyspace {}", puts / 4)).unwrap();
        keyspace.put(puts.to_be_bytes(), "value").unwrap();
        puts += 1;
    }
    let (made, most_puts) = (puts.div_ceil(4), 4 * u32::try_from(MOST_FILES).unwrap());
    assert!(puts > most_puts * 3 / 4 && puts < most_puts, "{puts} puts");
    let flushed = (0..made).filter(|&nth| runs(nth) > 0).count();
    assert_eq!(flushed as u64, db.metrics().flushes);
    assert!((4..=6).contains(&flushed), "{flushed} of {made}");
    assert!((0..4).all(|nth| runs(nth) > 0), "the oldest");
    put(&db, 0..200);
    highest.check(&sim);
    check(&db, 200);
}

#[test]
fn a_lone_writer_of_small_durable_records_is_flushed_when_three_quarters_of_the_log_are_full() {
    let sim = disk(4096);
    let db = limited(&sim, Background::Manual);
    put(&db, 0..1000);
    // Four groups for each file; the one that is written to stays.
    let flushes = db.metrics().flushes;
    let files = MOST_FILES as u64 * 3 / 4 - 1;
    assert!(flushes <= 1000 / (4 * files) + 1, "{flushes} flushes");
}

#[test]
fn a_flush_with_nothing_to_do_writes_no_log_and_releases_files() {
    let sim = disk(4096);
    let db = limited(&sim, Background::Manual);
    let dropped = db.keyspace("dropped").unwrap();
    for key in 0..20_u32 {
        dropped.put(key.to_be_bytes(), [7; 100]).unwrap();
    }
    db.drop_keyspace("dropped").unwrap();
    assert!(db.metrics().log_files >= 4, "{}", db.metrics().log_files);
    db.flush().unwrap();
    assert_eq!(db.metrics().log_files, 1);
    // Records that no keyspace needs are not durable, and cannot be.
    let dropped = db.keyspace("dropped").unwrap().with_durability(Durability::Process);
    dropped.put("key", [7; 200]).unwrap();
    db.drop_keyspace("dropped").unwrap();
    sim.fail(FaultPlan::new(Fault::Errno(Errno::NO_SPACE)).on(&[EventKind::Submit]).path(".log").forever());
    db.flush().unwrap();
    assert_eq!(sim.faults_struck(), 0);
}

/// Each group takes a whole file, so each file was the current one when the log was released the last time.
#[test]
fn the_smallest_log_goes_on() {
    let (sim, highest) = (disk(4096), Highest::default());
    highest.watch(&sim);
    let sizes = Sizes {
        ring_bytes: Some(8 * KIB),
        log_file_bytes: Some(4 * KIB),
        memtable_bytes: Some(4 * KIB),
        ..Sizes::default()
    };
    let db = builder(&sim, 0).sizes(sizes).open("/store").unwrap();
    assert_eq!(db.log_limit_bytes(), 16 * KIB);
    let other = db.keyspace("other").unwrap();
    for nth in 0..40 {
        put(&db, nth..nth + 1);
        other.put(nth.to_be_bytes(), [7; 900]).unwrap();
    }
    assert!(highest.0.load(Ordering::Relaxed) <= 5, "{}", highest.0.load(Ordering::Relaxed));
    check(&db, 40);
}

#[test]
fn a_dropped_keyspace_does_not_hold_the_log() {
    let (sim, highest) = (disk(4096), Highest::default());
    highest.watch(&sim);
    let db = limited(&sim, Background::Manual);
    db.hold_jobs(true);
    let dropped = db.keyspace("dropped").unwrap();
    for key in 0..45_u32 {
        dropped.put(key.to_be_bytes(), [7; 100]).unwrap();
    }
    // The last ones are not durable.
    let process = dropped.with_durability(Durability::Process);
    for key in 0..20_u32 {
        process.put(key.to_be_bytes(), [7; 200]).unwrap();
    }
    assert_eq!(db.metrics().flushes, 0, "nothing was flushed so far");
    db.drop_keyspace("dropped").unwrap();
    put(&db, 0..100);
    highest.check(&sim);
    check(&db, 100);
}

#[test]
fn at_its_limit_the_log_gives_the_error_of_a_flush_that_fails_and_goes_on_later() {
    for background in [Background::Manual, Background::Threads] {
        let (sim, highest) = (disk(4096), Highest::default());
        highest.watch(&sim);
        let db = limited(&sim, background);
        sim.fail(
            FaultPlan::new(Fault::Errno(Errno::NO_SPACE)).on(&[EventKind::Allocate]).path(".seg").forever(),
        );
        let keyspace = db.keyspace("default").unwrap();
        let mut keys = 0_u32;
        let refused = loop {
            match keyspace.put(keys.to_be_bytes(), [7; 100]) {
                Ok(()) => keys += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, Error::NoSpace { .. }), "{refused}");
        for _ in 0..10 {
            assert!(keyspace.put("refused", "").is_err());
        }
        highest.check(&sim);
        sim.clear_faults();
        put(&db, keys..keys + 100);
        highest.check(&sim);
        check(&db, keys + 100);
    }
}

#[test]
fn many_writers_of_large_batches_and_small_puts_keep_to_the_limit() {
    for durability in [Durability::Power, Durability::Process] {
        let (sim, highest) = (disk(4096), Highest::default());
        highest.watch(&sim);
        let db = limited(&sim, Background::Threads);
        std::thread::scope(|scope| {
            for thread in 0..8_u8 {
                let db = db.clone();
                std::thread::Builder::new()
                    .spawn_scoped(scope, move || {
                        let keyspace = db.keyspace(["a", "b", "c"][usize::from(thread % 3)]).unwrap();
                        for nth in 0..60_u8 {
                            let mut batch = db.batch();
                            batch.durability(durability);
                            let len_bytes = if nth % 4 == 0 { 3500 } else { 50 };
                            batch.put(&keyspace, [thread, nth], vec![7; len_bytes]).commit().unwrap();
                        }
                    })
                    .unwrap();
            }
        });
        highest.check(&sim);
        let found = |name| db.keyspace(name).unwrap().iter().count();
        assert_eq!(["a", "b", "c"].map(found), [180, 180, 120]);
        db.verify().unwrap();
    }
}

/// Puts, deletes and batches to many keyspaces, with flushes that are held back or fail, and with crashes and closes.
#[test]
fn any_mix_of_writes_keeps_to_the_limit() {
    for case in 0..6 {
        let mut random = Random::new(case);
        let (mut sim, highest) = (disk([512, 4096][usize::try_from(case % 2).unwrap()]), Highest::default());
        let mut model = BTreeMap::new();
        for _life in 0..5 {
            highest.watch(&sim);
            let db = limited(&sim, Background::Manual);
            let handles: Vec<_> =
                (0..12).map(|nth| db.keyspace(&format!("keyspace {nth}")).unwrap()).collect();
            for _ in 0..80 {
                // Some keyspaces are written to seldom.
                let nth = random.below(12) * random.below(12) / 12;
                let durability = if random.below(3) == 0 { Durability::Process } else { Durability::Power };
                let keyspace = handles[nth].with_durability(durability);
                let key = u16::try_from(random.below(500)).unwrap().to_be_bytes();
                let len_bytes = if random.below(10) == 0 { random.below(3000) } else { random.below(200) };
                let value = vec![key[1]; len_bytes];
                match keyspace.put(key, &value) {
                    Ok(()) => drop(model.insert((nth, key), value)),
                    Err(error) => assert!(matches!(error, Error::NoSpace { .. }), "{error}"),
                }
                if random.below(30) == 0 {
                    db.hold_jobs(random.below(2) == 0);
                }
                if random.below(40) == 0 {
                    let no_space = FaultPlan::new(Fault::Errno(Errno::NO_SPACE)).on(&[EventKind::Allocate]);
                    sim.fail(no_space.path(".seg").times(random.below(4) as u64));
                }
            }
            sim.clear_faults();
            for (nth, keyspace) in handles.iter().enumerate() {
                let found = keyspace
                    .iter()
                    .map(|pair| pair.unwrap())
                    .map(|(key, value)| (key.to_vec(), value.to_vec()));
                let expected = model.range((nth, [0; 2])..=(nth, [255; 2]));
                let expected = expected.map(|((_, key), value)| (key.to_vec(), Vec::clone(value)));
                assert!(found.eq(expected), "keyspace {nth}");
            }
            highest.check(&sim);
            if random.below(2) == 0 {
                let image = sim.snapshot().process_crash(case);
                sim = SimBackend::from_image(image, case);
            } else {
                drop(handles);
                db.close().unwrap();
            }
        }
    }
}
