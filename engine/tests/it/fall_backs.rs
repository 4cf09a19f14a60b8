//! A machine that refuses something: the store works around it, and tells it once.

use std::sync::{Arc, Mutex};

use aio::sim::SimBackend;
use esker::testing::{Background, BuilderExt, Sizes};
use esker::{Builder, Db, Durability, Event, FallBack, Listener};

const KIB: u64 = 1 << 10;
const ENTRIES: u64 = 1000;

/// The fall-backs that a listener has heard of.
type Told = Arc<Mutex<Vec<FallBack>>>;

#[derive(Debug)]
struct Hears(Told);

impl Listener for Hears {
    fn event(&self, event: &Event) {
        if let Event::FellBack { fall_back, .. } = event {
            self.0.lock().unwrap().push(fall_back.clone());
        }
    }
}

fn builder(sim: &SimBackend, background: Background) -> (Builder, Told) {
    let sizes = Sizes {
        ring_bytes: Some(64 * KIB),
        log_file_bytes: Some(64 * KIB),
        memtable_bytes: Some(64 * KIB),
        segment_bytes: Some(64 * KIB),
        manifest_bytes: Some(32 * KIB),
        block_bytes: Some(1 << 10),
    };
    let told = Told::default();
    let builder = Db::builder().memory_budget_bytes(1 << 20).sizes(sizes).background(background);
    (builder.backend(Arc::new(sim.clone())).listener(Hears(Arc::clone(&told))), told)
}

fn open(sim: &SimBackend) -> (Db, Told) {
    let (builder, told) = builder(sim, Background::Manual);
    (builder.open("/store").unwrap(), told)
}

fn heard(told: &Told) -> Vec<FallBack> {
    told.lock().unwrap().clone()
}

/// The one fall-back is the page cache, for a file of the store.
fn is_page_cache(told: &[FallBack]) -> bool {
    matches!(told, [FallBack::PageCache { path, .. }] if path.starts_with("/store"))
}

fn fill(db: &Db, durability: Durability) {
    let ks = db.keyspace("default").unwrap().with_durability(durability);
    for i in 0..ENTRIES {
        ks.put(i.to_le_bytes(), [7; 300]).unwrap();
    }
    assert!(db.metrics().flushes > 0);
}

#[test]
fn without_direct_io_everything_works_and_the_listener_is_told_once() {
    for durability in [Durability::Process, Durability::Power] {
        let sim = SimBackend::new(1);
        sim.set_buffered(true);
        let (db, told) = open(&sim);
        assert!(is_page_cache(&heard(&told)), "{told:?}");
        assert!(!db.metrics().direct_io);
        assert_eq!(db.metrics().fall_backs, heard(&told));
        fill(&db, durability);
        // Acknowledged writes survive the process, although the ring does not.
        let killed = SimBackend::from_image(sim.snapshot().process_crash(1), 1);
        killed.set_buffered(true);
        let (again, told_again) = open(&killed);
        assert_eq!(again.keyspace("default").unwrap().iter().count(), usize::try_from(ENTRIES).unwrap());
        again.verify().unwrap();
        again.close().unwrap();
        assert!(is_page_cache(&heard(&told_again)), "each open store tells it: {told_again:?}");
        killed.set_buffered(false);
        assert!(open(&killed).0.metrics().direct_io);
        db.compact().unwrap();
        db.close().unwrap();
        assert_eq!(heard(&told).len(), 1);
    }
}

#[test]
fn a_sound_machine_has_nothing_to_tell() {
    let (db, told) = open(&SimBackend::new(1));
    fill(&db, Durability::Power);
    db.compact().unwrap();
    let metrics = db.metrics();
    db.close().unwrap();
    assert_eq!((metrics.direct_io, metrics.fall_backs), (true, vec![]));
    assert_eq!(heard(&told), []);
}

#[test]
fn a_fall_back_that_comes_later_is_told_after_a_flush_and_once() {
    for background in [Background::Manual, Background::Threads] {
        let sim = SimBackend::new(1);
        let (builder, told) = builder(&sim, background);
        let db = builder.open("/store").unwrap();
        assert_eq!(heard(&told), []);
        // Files from now on: those that exist stay direct.
        sim.set_buffered(true);
        db.keyspace("default").unwrap().put("key", "value").unwrap();
        assert!(is_page_cache(&db.metrics().fall_backs), "a new log file");
        db.flush().unwrap();
        assert!(is_page_cache(&heard(&told)), "{told:?}");
        assert_eq!(db.metrics().fall_backs, heard(&told));
        fill(&db, Durability::Process);
        db.close().unwrap();
        assert_eq!(heard(&told).len(), 1, "{background:?}: {told:?}");
    }
}

#[test]
fn a_fall_back_that_no_job_has_told_is_told_by_the_close() {
    let last_drop: fn(Db) = drop;
    for end in [|db: Db| db.close().unwrap(), last_drop] {
        let sim = SimBackend::new(1);
        let (db, told) = open(&sim);
        db.keyspace("default").unwrap().put("key", "value").unwrap();
        sim.set_buffered(true);
        end(db);
        // The close has flushed.
        assert!(is_page_cache(&heard(&told)), "{told:?}");
    }
}

#[test]
fn a_fall_back_is_told_in_a_sentence_with_its_file() {
    let sim = SimBackend::new(1);
    sim.set_buffered(true);
    let (_db, told) = open(&sim);
    let told = heard(&told)[0].to_string();
    assert!(told.contains("/store") && told.contains("page cache") && !told.contains('\n'), "{told}");
}
