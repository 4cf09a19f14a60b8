//! A full disk: a round without space for its file is refused, and the log goes on when there is space again.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use super::support::{Manifest, RING_FIRST_BYTES, record};
use aio::sim::{EventKind, Fault, FaultPlan, SimBackend};
use aio::{Backend, BackendLayer, Errno, File, SharedMap};
use wal::{Background, Error, Host, Log, LogOptions, Seq};

const FILE_BYTES: u64 = 32 << 10;
const RING_BYTES: usize = 16 << 10;

fn open(sim: &SimBackend, background: Background, host: Arc<dyn Host>) -> Log {
    sim.make_dir(Path::new("/wal")).unwrap();
    sim.sync_dir(Path::new("/")).unwrap();
    let options = LogOptions {
        ring_bytes: RING_BYTES,
        ring_file_bytes: RING_BYTES,
        file_bytes: FILE_BYTES,
        background,
        ..LogOptions::new("/wal", 1, 1, Seq::ZERO)
    };
    Log::open(Arc::new(sim.clone()), options, host).unwrap()
}

fn is_no_space(error: &Error) -> bool {
    matches!(error, Error::Io(error) if error.errno() == Some(Errno::NO_SPACE))
}

/// Appends and waits until the disk is full. Returns the end of the durable records and of the refused one.
fn fill(log: &Log) -> (Seq, Seq) {
    let mut durable = log.durable();
    for _ in 0..100 {
        let end = log.append(&mut record(&[7; 2000])).unwrap().end;
        match log.wait_durable(end) {
            Ok(()) => durable = end,
            Err(error) => {
                assert!(is_no_space(&error), "{error}");
                return (durable, end);
            }
        }
    }
    panic!("the disk did not become full");
}

#[test]
fn a_full_disk_is_no_halt_and_refused_records_are_written_when_there_is_space() {
    for background in [Background::Manual, Background::Threads] {
        let sim = SimBackend::new(1);
        let log = open(&sim, background, Arc::new(Manifest::default()));
        sim.set_capacity_bytes(sim.used_bytes() + 2 * FILE_BYTES);
        let (durable, end) = fill(&log);
        assert_eq!(log.health(), Ok(()));
        assert!((durable..end).contains(&log.durable()), "at most a part of the refused record");
        assert_eq!(sim.used_bytes(), RING_BYTES as u64 + 2 * FILE_BYTES, "a half-made file stayed behind");

        // The ring accepts records while it has room. Then appends are refused before their reservation.
        let mut refused = None;
        for _ in 0..10 {
            let before = log.published();
            if let Err(error) = log.append(&mut record(&[7; 2000])) {
                assert_eq!(log.published(), before);
                refused = Some(error);
            }
        }
        assert!(refused.is_some_and(|error| is_no_space(&error)));
        assert!(is_no_space(&log.sync().unwrap_err()), "a new wait tries another round");

        sim.set_capacity_bytes(u64::MAX);
        log.wait_durable(end).unwrap();
        log.sync().unwrap();
        assert_eq!(log.durable(), log.published());
        log.append(&mut record(&[7; 2000])).unwrap();
        log.close().unwrap();
    }
}

#[test]
fn the_commit_thread_writes_refused_records_without_a_waiter() {
    let sim = SimBackend::new(1);
    let log = open(&sim, Background::Threads, Arc::new(Manifest::default()));
    sim.set_capacity_bytes(sim.used_bytes() + FILE_BYTES);
    let (_, end) = fill(&log);
    let step = Duration::from_millis(1);
    let attempts = sim.calls();
    // Simulated time passes only by calls. Each refused round makes some, so this also shows the retries.
    while sim.calls() < attempts + 20 {
        sim.advance(step);
        thread::yield_now();
    }
    sim.set_capacity_bytes(u64::MAX);
    while log.durable() < end {
        sim.advance(step);
        thread::yield_now();
    }
}

#[test]
fn a_refused_commit_thread_does_not_spin() {
    let sim = SimBackend::new(1);
    let log = open(&sim, Background::Manual, Arc::new(Manifest::default()));
    sim.set_capacity_bytes(sim.used_bytes() + FILE_BYTES);
    let (_, end) = fill(&log);
    log.request_durable(end);
    assert_eq!(log.run_due(), Ok(false), "the interval begins");
    let calls = sim.calls();
    for _ in 0..100 {
        assert_eq!(log.run_due(), Ok(false), "not before the interval is over");
    }
    assert_eq!(sim.calls(), calls);
    sim.advance(Duration::from_millis(10));
    assert_eq!(log.run_due(), Ok(true));
    assert!(log.durable() < end);
    sim.set_capacity_bytes(u64::MAX);
    sim.advance(Duration::from_millis(20));
    while log.durable() < end {
        log.run_due().unwrap();
        sim.advance(Duration::from_millis(10));
    }
}

#[test]
fn every_waiter_gets_the_error_of_the_full_disk() {
    let sim = SimBackend::new(1);
    let log = Arc::new(open(&sim, Background::Threads, Arc::new(Manifest::default())));
    sim.set_capacity_bytes(sim.used_bytes() + FILE_BYTES);
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let log = Arc::clone(&log);
            thread::Builder::new()
                .spawn(move || {
                    loop {
                        let result =
                            log.append(&mut record(&[1; 100])).and_then(|at| log.wait_durable(at.end));
                        if let Err(error) = result {
                            return error;
                        }
                    }
                })
                .unwrap()
        })
        .collect();
    for thread in threads {
        assert!(is_no_space(&thread.join().unwrap()));
    }
    sim.set_capacity_bytes(u64::MAX);
    log.sync().unwrap();
    log.close().unwrap();
}

#[test]
fn an_append_after_make_room_is_never_refused() {
    let sim = SimBackend::new(1);
    let log = open(&sim, Background::Manual, Arc::new(Manifest::default()));
    sim.set_capacity_bytes(sim.used_bytes() + 3 * FILE_BYTES);
    let mut queue = sim.queue(1).unwrap();
    let mut acknowledged = 0;
    let refused = loop {
        if let Err(error) = log.make_room(2000, &mut *queue) {
            break error;
        }
        assert!(log.has_room(2000));
        let end = log.append(&mut record(&[7; 1900])).unwrap().end;
        log.wait_durable(end).unwrap();
        // The claim group of an idle log takes room as well.
        sim.advance(Duration::from_millis(20));
        log.run_due().unwrap();
        sim.advance(Duration::from_millis(20));
        log.run_due().unwrap();
        acknowledged += 1;
    };
    assert!(is_no_space(&refused), "{refused}");
    assert!(acknowledged >= 8, "{acknowledged} records use too little of the space");
    assert_eq!(log.durable(), log.published());
    assert_eq!(log.metrics().recycled, 3, "every file was a spare first");
    sim.set_capacity_bytes(u64::MAX);
    log.make_room(2000, &mut *queue).unwrap();
}

#[test]
fn too_few_handles_are_no_halt_either() {
    let sim = SimBackend::new(1);
    let log = open(&sim, Background::Manual, Arc::new(Manifest::default()));
    sim.fail(
        FaultPlan::new(Fault::Errno(Errno::TOO_MANY_FILES))
            .on(&[EventKind::Create, EventKind::Open])
            .forever(),
    );
    let end = log.append(&mut record(b"x")).unwrap().end;
    assert!(log.wait_durable(end).unwrap_err().is_shortage());
    sim.clear_faults();
    log.wait_durable(end).unwrap();
    // A spare that could not be opened stays a spare.
    log.prepare_spare(&mut *sim.queue(1).unwrap()).unwrap();
    sim.fail(FaultPlan::new(Fault::Errno(Errno::TOO_MANY_FILES)).on(&[EventKind::Open]).forever());
    let mut refusals = 0;
    for _ in 0..20 {
        let end = log.append(&mut record(&[7; 2000])).unwrap().end;
        if log.wait_durable(end).is_err() {
            refusals += 1;
            sim.clear_faults();
        }
    }
    assert_eq!(refusals, 1);
    log.close().unwrap();
    assert!(log.metrics().recycled > 0);
}

/// Fails where a real process would be killed: the simulated map panics at a store that has no space.
#[test]
fn a_ring_that_has_lost_its_blocks_refuses_records_while_the_disk_is_full() {
    let sim = SimBackend::new(1);
    let log = open(&sim, Background::Manual, Arc::new(Manifest::default()));
    let ring = LogOptions::new("/wal", 1, 1, Seq::ZERO).ring_path;
    log.wait_durable(log.append(&mut record(b"first")).unwrap().end).unwrap();
    for _ in 0..3 {
        // A copy of the open store takes its blocks away, more than a second after they were asked for.
        sim.lose_blocks(&ring);
        sim.park(Duration::from_secs(2));
        log.wait_durable(log.append(&mut record(b"trusted too long")).unwrap().end).unwrap();
        sim.set_capacity_bytes(sim.used_bytes());
        sim.lose_blocks(&ring);
        let before = (log.published(), log.durable());
        for _ in 0..2 {
            let refused = log.append(&mut record(&[7; 1000])).unwrap_err();
            assert!(is_no_space(&refused), "{refused}");
            assert_eq!(((log.published(), log.durable()), log.health()), (before, Ok(())));
        }
        sim.set_capacity_bytes(u64::MAX);
        // All around the ring.
        for _ in 0..20 {
            log.wait_durable(log.append(&mut record(&[7; 1000])).unwrap().end).unwrap();
        }
    }
    log.close().unwrap();
}

/// A host that can report a full disk when a file is activated.
#[derive(Debug, Default)]
struct FullManifest(Manifest, std::sync::atomic::AtomicBool);

impl Host for FullManifest {
    fn new_file_id(&self) -> u64 {
        self.0.new_file_id()
    }

    fn activate(&self, file_id: u64, start: Seq) -> wal::Result<u32> {
        if self.1.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(aio::Error::call("fallocate", Path::new("/manifest"), Errno::NO_SPACE).into());
        }
        self.0.activate(file_id, start)
    }

    fn ring_grown(&self, file_bytes: u64) -> wal::Result<()> {
        self.0.ring_grown(file_bytes)
    }
}

#[test]
fn a_file_that_could_not_be_activated_is_kept_for_the_next_round() {
    let sim = SimBackend::new(1);
    let host = Arc::new(FullManifest::default());
    let log = open(&sim, Background::Manual, Arc::clone(&host) as Arc<dyn Host>);
    host.1.store(true, std::sync::atomic::Ordering::SeqCst);
    let end = log.append(&mut record(b"x")).unwrap().end;
    for _ in 0..5 {
        assert!(is_no_space(&log.wait_durable(end).unwrap_err()));
        assert_eq!(sim.list(Path::new("/wal")).unwrap(), ["000001.log", "ring-000001"]);
    }
    host.1.store(false, std::sync::atomic::Ordering::SeqCst);
    log.wait_durable(end).unwrap();
    assert_eq!(log.active_files().iter().map(|file| file.id).collect::<Vec<_>>(), [1]);
    log.close().unwrap();
}

/// Opens a log whose ring starts at a quarter of its size.
fn growing(sim: &SimBackend, host: Arc<dyn Host>) -> Log {
    sim.make_dir(Path::new("/wal")).unwrap();
    sim.sync_dir(Path::new("/")).unwrap();
    let options = LogOptions {
        ring_bytes: RING_BYTES,
        ring_file_bytes: RING_FIRST_BYTES,
        file_bytes: FILE_BYTES,
        background: Background::Manual,
        ..LogOptions::new("/wal", 1, 1, Seq::ZERO)
    };
    Log::open(Arc::new(sim.clone()), options, host).unwrap()
}

#[test]
fn a_ring_grows_in_its_first_lap_and_never_again() {
    let sim = SimBackend::new(1);
    let host = Arc::new(Manifest::default());
    let log = growing(&sim, Arc::clone(&host) as Arc<dyn Host>);
    let mut sizes = Vec::new();
    for _ in 0..30 {
        let end = log.append(&mut record(&[7; 2000])).unwrap().end;
        log.wait_durable(end).unwrap();
        let size = sim.stat(Path::new("/wal/ring-000001")).unwrap().unwrap().size_bytes;
        assert_eq!(size, host.ring_file_bytes() as u64, "the host was told of the growth");
        sizes.push(size);
    }
    assert!(sizes.is_sorted());
    sizes.dedup();
    assert_eq!(sizes, [4096, 8192, 16384]);
    log.close().unwrap();
}

#[test]
fn a_ring_that_finds_no_space_to_grow_refuses_the_append_and_grows_later() {
    let sim = SimBackend::new(1);
    let host = Arc::new(Manifest::default());
    let log = growing(&sim, Arc::clone(&host) as Arc<dyn Host>);
    let first = log.append(&mut record(&[7; 3000])).unwrap().end;
    log.wait_durable(first).unwrap();
    for kind in [EventKind::Allocate, EventKind::Write] {
        sim.fail(FaultPlan::new(Fault::Errno(Errno::NO_SPACE)).on(&[kind]).path("ring-"));
        assert!(is_no_space(&log.append(&mut record(&[8; 3000])).unwrap_err()));
        assert_eq!(
            (log.published(), host.ring_file_bytes()),
            (first, RING_FIRST_BYTES),
            "a refused append changed the log"
        );
        sim.clear_faults();
    }
    let end = log.append(&mut record(&[8; 3000])).unwrap().end;
    log.wait_durable(end).unwrap();
    log.close().unwrap();
}

#[test]
fn a_ring_that_could_not_be_synced_while_it_grew_stops_the_log() {
    let sim = SimBackend::new(1);
    let log = growing(&sim, Arc::new(Manifest::default()));
    let first = log.append(&mut record(&[7; 3000])).unwrap().end;
    log.wait_durable(first).unwrap();
    sim.fail(FaultPlan::new(Fault::Errno(Errno::IO)).on(&[EventKind::Sync]));
    assert!(matches!(log.append(&mut record(&[8; 3000])).unwrap_err(), Error::Halted { .. }));
    // Neither call retries the sync.
    let (events, mut queue) = (sim.events(), sim.queue(1).unwrap());
    assert!(matches!(log.append(&mut record(&[8; 3000])).unwrap_err(), Error::Halted { .. }));
    assert!(matches!(log.make_room(3000, &mut *queue).unwrap_err(), Error::Halted { .. }));
    assert_eq!((log.published(), sim.events()), (first, events));
}

#[test]
fn records_that_are_reserved_together_find_room_within_the_limit() {
    let (sim, host, log) = limited(4, 4);
    let files = || log_files(&sim);
    let mut queue = sim.queue(1).unwrap();
    for _ in 0..10 {
        // None of them is written before all have a place.
        let mut taken = 0;
        while !log.is_at_limit(1900) {
            log.append(&mut record(&[7; 1800])).unwrap();
            taken += 1;
        }
        assert!(taken >= 30, "{taken} records use too little of the limit");
        assert_eq!(log.append(&mut record(&[7; 1900])).unwrap_err(), Error::AtLimit);
        assert_eq!(log.make_room(1900, &mut *queue), Ok(false));
        log.sync().unwrap();
        assert!(log.is_nearly_full());
        assert_eq!(files(), 4);
        let end = log.older_half_end().unwrap();
        let older = log.retirable(end);
        assert_eq!(older.len(), 2);
        for retired in [older, log.retirable(log.durable())] {
            let retired: Vec<u64> =
                retired.into_iter().filter(|id| host.files().iter().any(|file| file.id == *id)).collect();
            host.forget(&retired);
            log.retire(&retired).unwrap();
        }
        assert_eq!((files(), log.active_files().len(), log.older_half_end()), (4, 1, None));
    }
    log.close().unwrap();
}

/// A log of small files on a machine of its own, whose files `keep` at most are kept.
fn limited(max_files: usize, keep_files: usize) -> (SimBackend, Arc<Manifest>, Log) {
    let sim = SimBackend::new(1);
    sim.make_dir(Path::new("/wal")).unwrap();
    sim.sync_dir(Path::new("/")).unwrap();
    let host = Arc::new(Manifest::default());
    let options = LogOptions {
        ring_bytes: 1 << 20,
        ring_file_bytes: 1 << 20,
        file_bytes: FILE_BYTES,
        max_files,
        keep_files,
        background: Background::Manual,
        ..LogOptions::new("/wal", 1, 1, Seq::ZERO)
    };
    let log = Log::open(Arc::new(sim.clone()), options, Arc::<Manifest>::clone(&host)).unwrap();
    (sim, host, log)
}

fn log_files(sim: &SimBackend) -> usize {
    sim.list(Path::new("/wal")).unwrap().iter().filter(|name| name.contains(".log")).count()
}

fn put_durably(log: &Log) {
    log.append(&mut record(&[7; 100])).unwrap();
    log.sync().unwrap();
}

#[test]
fn a_file_that_cannot_be_removed_counts() {
    const MAX_FILES: usize = 12;
    let (sim, host, log) = limited(MAX_FILES, 2);
    while !log.is_at_limit(100) {
        put_durably(&log);
    }
    sim.fail(FaultPlan::new(Fault::Errno(Errno::IO)).on(&[EventKind::Remove]).path(".log").times(3));
    let oldest = log.retirable(log.active_files()[5].start);
    assert_eq!(oldest.len(), 5);
    host.forget(&oldest);
    log.retire(&oldest).unwrap_err();
    assert_eq!(sim.faults_struck(), 3, "two of the five are kept");
    while !log.is_at_limit(100) {
        put_durably(&log);
        assert!(log_files(&sim) <= MAX_FILES + 1, "{}", log_files(&sim));
    }
    assert!(log.active_files().len() >= 7, "the rest of the limit is used");
    log.close().unwrap();
}

/// Each record is published when the one before is in a group of its own, or when a round waits for it.
#[test]
fn many_writers_that_reserve_together_keep_to_the_limit() {
    const WRITERS: usize = 60;
    let (sim, _host, log) = limited(4, 4);
    let mut records: Vec<_> = (0..WRITERS).map(|_| record(&[7; 40])).collect();
    while !log.is_at_limit(WRITERS * 100) {
        put_durably(&log);
    }
    let reservations: Vec<_> = records.iter_mut().map(|record| log.reserve(record).unwrap()).collect();
    thread::scope(|scope| {
        for reservation in reservations {
            let end = reservation.publish().end;
            let log = &log;
            scope.spawn(move || log.wait_durable(end).unwrap());
            for _ in 0..3000 {
                if log.durable() >= end {
                    break;
                }
                thread::yield_now();
            }
        }
    });
    assert!(log_files(&sim) <= 5, "{}", log_files(&sim));
    log.close().unwrap();
}

#[test]
fn a_group_counts_once_between_its_write_and_its_sync() {
    let (sim, _host, log) = limited(8, 8);
    let log = Arc::new(log);
    let (weak, seen) = (Arc::downgrade(&log), Arc::new(Mutex::new(Vec::new())));
    let note = Arc::clone(&seen);
    sim.on_event(move |event, _| {
        if event.kind == EventKind::Sync && event.path.extension().is_some_and(|name| name == "log") {
            // There is room for so much more. A group of a whole file that counts twice would take it.
            note.lock().unwrap().extend(weak.upgrade().map(|log| log.is_at_limit(4000)));
        }
    });
    while !log.is_at_limit(12_000) {
        log.append(&mut record(&[7; 4000])).unwrap();
    }
    log.sync().unwrap();
    sim.stop_observing();
    let seen = seen.lock().unwrap();
    assert!(seen.len() >= 5 && seen.iter().all(|is_at_limit| !is_at_limit), "{seen:?}");
    drop(seen);
    log.close().unwrap();
}

/// A machine on which the ring gets room as late as a test wants.
#[derive(Debug)]
struct SlowRoom {
    sim: SimBackend,
    gate: Arc<Gate>,
}

#[derive(Debug, Default)]
struct Gate {
    /// The next call is held, and whether one is.
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        if state.0 {
            *state = (false, true);
            self.changed.notify_all();
            drop(self.changed.wait_while(state, |state| state.1).unwrap());
        }
    }

    fn set(&self, state: (bool, bool)) {
        *self.state.lock().unwrap() = state;
        self.changed.notify_all();
    }
}

impl BackendLayer for SlowRoom {
    fn below(&self) -> &dyn Backend {
        &self.sim
    }

    fn map_shared(&self, file: &File, len_bytes: usize) -> aio::Result<Arc<dyn SharedMap>> {
        let map = Backend::map_shared(&self.sim, file, len_bytes)?;
        Ok(Arc::new(SlowMap { map, gate: Arc::clone(&self.gate) }))
    }
}

#[derive(Debug)]
struct SlowMap {
    map: Arc<dyn SharedMap>,
    gate: Arc<Gate>,
}

impl SharedMap for SlowMap {
    fn len_bytes(&self) -> usize {
        self.map.len_bytes()
    }

    fn extend(&self) -> aio::Result<()> {
        self.map.extend()
    }

    fn make_room(&self, offset: usize, len_bytes: usize) -> aio::Result<()> {
        self.gate.pass();
        self.map.make_room(offset, len_bytes)
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        self.map.write(offset, bytes);
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        self.map.read(offset, into);
    }

    fn is_shared(&self) -> bool {
        self.map.is_shared()
    }
}

#[test]
fn writers_go_on_while_another_one_makes_room_in_the_ring() {
    let sim = SimBackend::new(1);
    sim.make_dir(Path::new("/wal")).unwrap();
    let gate = Arc::new(Gate::default());
    let options = LogOptions {
        ring_bytes: 1 << 20,
        ring_file_bytes: 1 << 20,
        file_bytes: 1 << 20,
        background: Background::Manual,
        ..LogOptions::new("/wal", 1, 1, Seq::ZERO)
    };
    let backend = Arc::new(SlowRoom { sim, gate: Arc::clone(&gate) });
    let log = Log::open(backend, options, Arc::new(Manifest::default())).unwrap();
    let append = || log.append(&mut record(&[7; 1000])).map(|_| ());
    append().unwrap();
    gate.set((true, false));
    thread::scope(|scope| {
        // One of them is held.
        let maker = scope.spawn(|| (0..400).try_for_each(|_| append()));
        drop(gate.changed.wait_while(gate.state.lock().unwrap(), |state| !state.1).unwrap());
        let (tell, told) = mpsc::channel();
        scope.spawn(move || tell.send((0..20).try_for_each(|_| append())).unwrap());
        let went_on = told.recv_timeout(Duration::from_mins(1));
        gate.set((false, false));
        maker.join().unwrap().unwrap();
        went_on.expect("a writer waited for the room of others").unwrap();
    });
}
