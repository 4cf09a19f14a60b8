//! Failed writes and syncs stop the log: the first cause sticks, all callers get it, nothing is retried.

use std::panic::resume_unwind;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};

use super::support::{Manifest, record};
use aio::sim::{EventKind, Fault, FaultPlan, SimBackend};
use aio::{Backend, BackendLayer, Errno};
use wal::{Background, Error, Host, Log, LogOptions, Result, Seq, SyncMethod};

fn open(sim: &SimBackend, background: Background) -> Log {
    open_by(sim, background, SyncMethod::Fdatasync, Arc::new(Manifest::default()))
}

fn open_by(sim: &SimBackend, background: Background, sync_method: SyncMethod, host: Arc<dyn Host>) -> Log {
    open_on(Arc::new(sim.clone()), sim, (background, sync_method), host)
}

fn open_on(
    backend: Arc<dyn Backend>,
    sim: &SimBackend,
    (background, sync_method): (Background, SyncMethod),
    host: Arc<dyn Host>,
) -> Log {
    sim.make_dir(Path::new("/wal")).unwrap();
    sim.sync_dir(Path::new("/")).unwrap();
    let options = LogOptions {
        ring_bytes: 16 << 10,
        ring_file_bytes: 16 << 10,
        file_bytes: 16 << 10,
        background,
        sync_method,
        ..LogOptions::new("/wal", 1, 1, Seq::ZERO)
    };
    Log::open(backend, options, host).unwrap()
}

/// A machine on which the sync of a folder gives this error.
#[derive(Debug)]
struct ClosedFolders {
    sim: SimBackend,
    error: Mutex<Option<aio::Error>>,
}

impl BackendLayer for ClosedFolders {
    fn below(&self) -> &dyn Backend {
        &self.sim
    }

    fn sync_dir(&self, path: &Path) -> aio::Result<()> {
        match &*self.error.lock().unwrap() {
            Some(error) => Err(error.clone()),
            None => Backend::sync_dir(&self.sim, path),
        }
    }
}

#[test]
fn a_folder_that_cannot_be_opened_for_its_sync_has_lost_nothing() {
    let folder = Path::new("/wal");
    let (call, errno) = ("fsync", Errno::NOT_PERMITTED);
    let missing = aio::Error::Unsupported { call, path: folder.to_owned(), needs: String::new(), errno };
    for (error, halts) in [(aio::Error::call("open", folder, Errno::ACCESS), false), (missing, true)] {
        let sim = SimBackend::new(1);
        let machine = Arc::new(ClosedFolders { sim: sim.clone(), error: Mutex::new(None) });
        let backend: Arc<dyn Backend> = Arc::<ClosedFolders>::clone(&machine);
        let log = open_on(
            backend,
            &sim,
            (Background::Manual, SyncMethod::Fdatasync),
            Arc::new(Manifest::default()),
        );
        *machine.error.lock().unwrap() = Some(error);
        let mut queue = sim.queue(8).unwrap();
        let refused = log.prepare_spare(&mut *queue).unwrap_err();
        assert_eq!(
            (matches!(refused, Error::Halted { .. }), log.health().is_err()),
            (halts, halts),
            "{refused}"
        );
    }
}

/// Counts the writes and syncs of log files from now on.
fn count_io(sim: &SimBackend) -> Arc<AtomicU64> {
    let counter = Arc::new(AtomicU64::new(0));
    let tally = Arc::clone(&counter);
    sim.on_event(move |event, _| {
        let io = matches!(event.kind, EventKind::Write | EventKind::WriteDurable | EventKind::Sync);
        if io && event.path.extension().is_some_and(|extension| extension == "log") {
            tally.fetch_add(1, Ordering::SeqCst);
        }
    });
    counter
}

fn cause(error: &Error) -> String {
    match error {
        Error::Halted { cause } => cause.to_string(),
        other => panic!("not halted: {other}"),
    }
}

#[test]
fn a_failed_write_or_sync_halts_for_good_and_is_never_retried() {
    let (io, short) = (Fault::Errno(Errno::IO), Fault::Short(512));
    for (sync_method, kind, fault) in [
        (SyncMethod::Fdatasync, EventKind::Write, io),
        (SyncMethod::Fdatasync, EventKind::Write, short),
        (SyncMethod::Fdatasync, EventKind::Sync, io),
        (SyncMethod::DurableWrite, EventKind::WriteDurable, io),
        (SyncMethod::DurableWrite, EventKind::WriteDurable, short),
    ] {
        let sim = SimBackend::new(1);
        let log = open_by(&sim, Background::Manual, sync_method, Arc::new(Manifest::default()));
        let first = log.append(&mut record(b"durable")).unwrap();
        log.wait_durable(first.end).unwrap();
        sim.fail(FaultPlan::new(fault).on(&[kind]).path(".log"));
        let second = log.append(&mut record(&[7; 700])).unwrap();
        let counter = count_io(&sim);
        let error = log.wait_durable(second.end).unwrap_err();
        let seen = counter.load(Ordering::SeqCst);
        assert_eq!(seen, if kind == EventKind::Sync { 2 } else { 1 }, "a failed write is not synced");
        sim.clear_faults();
        assert_eq!(cause(&log.health().unwrap_err()), cause(&error));
        assert_eq!(log.append(&mut record(b"more")).unwrap_err(), error);
        assert_eq!(log.sync().unwrap_err(), error);
        assert_eq!(log.wait_durable(second.end).unwrap_err(), error);
        assert_eq!(log.run_due(), Ok(false), "nothing is due in a halted log");
        assert_eq!(log.close().unwrap_err(), error);
        log.wait_durable(first.end).unwrap();
        drop(log);
        assert_eq!(counter.load(Ordering::SeqCst), seen, "no write and no sync after the failure");
        assert_eq!(sim.faults_struck(), 1);
    }
}

#[test]
fn a_failed_sync_of_the_folder_halts_and_is_not_tried_again() {
    let (io, no_space) = (Errno::IO, Errno::NO_SPACE);
    // A failure that concerns the new file alone does not halt: nothing was promised there.
    for (kind, errno, halts) in [
        (EventKind::SyncDir, io, true),
        (EventKind::SyncDir, no_space, true),
        (EventKind::SyncDir, Errno::QUOTA, true),
        (EventKind::SyncDir, Errno::AGAIN, true),
        (EventKind::SyncDir, Errno::INTERRUPTED, true),
        (EventKind::Sync, no_space, false),
        (EventKind::Sync, io, false),
        (EventKind::Write, io, false),
    ] {
        let sim = SimBackend::new(1);
        let log = open(&sim, Background::Manual);
        let end = log.append(&mut record(&[7; 2000])).unwrap().end;
        log.wait_durable(end).unwrap();
        let mut queue = sim.queue(8).unwrap();
        sim.fail(FaultPlan::new(Fault::Errno(errno)).on(&[kind]).path("/wal"));
        let refused = log.prepare_spare(&mut *queue).unwrap_err();
        assert_eq!(sim.faults_struck(), 1, "{kind:?}");
        assert_eq!(matches!(refused, Error::Halted { .. }), halts, "{kind:?} {errno:?}: {refused}");
        assert_eq!(log.health().is_err(), halts, "{kind:?} {errno:?}");
        let events = sim.events();
        if halts {
            assert_eq!(log.prepare_spare(&mut *queue).unwrap_err(), refused);
            assert_eq!(log.make_room(4000, &mut *queue).unwrap_err(), refused);
            assert_eq!(log.append(&mut record(b"more")).unwrap_err(), refused);
            assert_eq!(sim.events(), events, "nothing was tried");
        } else {
            assert_eq!(log.prepare_spare(&mut *queue), Ok(true), "{kind:?} {errno:?}");
        }
        log.wait_durable(end).unwrap();
    }
}

#[test]
fn a_round_halts_where_its_new_file_has_no_durable_name() {
    for errno in [Errno::IO, Errno::NO_SPACE, Errno::INTERRUPTED] {
        let sim = SimBackend::new(1);
        let log = open(&sim, Background::Manual);
        sim.fail(FaultPlan::new(Fault::Errno(errno)).on(&[EventKind::SyncDir]).path("/wal"));
        // The first record needs the first file.
        let end = log.append(&mut record(b"lost?")).unwrap().end;
        let error = log.wait_durable(end).unwrap_err();
        assert_eq!(sim.faults_struck(), 1, "not tried again");
        assert_eq!(log.health().unwrap_err(), error);
        assert_eq!(log.prepare_spare(&mut *sim.queue(8).unwrap()).unwrap_err(), error);
    }
}

#[test]
fn every_failing_call_halts_or_is_reported_by_open() {
    let clean = SimBackend::new(1);
    let log = open(&clean, Background::Manual);
    for _ in 0..12 {
        let end = log.append(&mut record(&[7; 2000])).unwrap().end;
        log.wait_durable(end).unwrap();
    }
    drop(log);
    let calls = clean.calls();
    for skip in 3..calls {
        let sim = SimBackend::new(1);
        sim.make_dir(Path::new("/wal")).unwrap();
        sim.sync_dir(Path::new("/")).unwrap();
        sim.fail(FaultPlan::new(Fault::Errno(Errno::IO)).skip(skip - 2));
        let options = LogOptions {
            ring_bytes: 16 << 10,
            ring_file_bytes: 16 << 10,
            file_bytes: 16 << 10,
            background: Background::Manual,
            ..LogOptions::new("/wal", 1, 1, Seq::ZERO)
        };
        let Ok(log) = Log::open(Arc::new(sim.clone()), options, Arc::new(Manifest::default())) else {
            continue;
        };
        let mut refused = false;
        let failed = (0..12).any(|_| match log.append(&mut record(&[7; 2000])) {
            Ok(appended) => log.wait_durable(appended.end).is_err(),
            // The ring had no room: nothing was reserved, and the log goes on.
            Err(_) if log.health().is_ok() => {
                refused = true;
                false
            }
            Err(_) => true,
        });
        let told = failed || refused || log.close().is_err();
        assert_eq!(told, sim.faults_struck() > 0, "call {skip}");
        assert_eq!(failed, failed && log.health().is_err());
    }
}

#[test]
fn every_waiter_is_woken_with_the_cause() {
    let sim = SimBackend::new(1);
    let log = Arc::new(open(&sim, Background::Threads));
    let end = log.append(&mut record(b"durable")).unwrap().end;
    log.wait_durable(end).unwrap();
    sim.fail(FaultPlan::new(Fault::Errno(Errno::IO)).on(&[EventKind::Sync]).path(".log").skip(20).forever());
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let log = Arc::clone(&log);
            std::thread::Builder::new()
                .spawn(move || {
                    loop {
                        let result = log.append(&mut record(b"x")).and_then(|at| log.wait_durable(at.end));
                        if let Err(error) = result {
                            return error;
                        }
                    }
                })
                .unwrap()
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), log.health().unwrap_err());
    }
    assert_eq!(sim.faults_struck(), 1, "the sync is not tried again");
}

#[test]
fn a_host_can_halt_the_log_and_close_refuses_later_appends() {
    let sim = SimBackend::new(1);
    let log = open(&sim, Background::Threads);
    let end = log.append(&mut record(b"one")).unwrap().end;
    log.close().unwrap();
    assert_eq!(log.durable(), end);
    assert_eq!(log.append(&mut record(b"two")).unwrap_err(), Error::Closed);
    log.halt(&Error::Io(aio::Error::Forked));
    log.halt(&Error::Closed);
    assert_eq!(cause(&log.health().unwrap_err()), aio::Error::Forked.to_string());
}

#[test]
fn records_above_a_quarter_of_the_ring_are_refused() {
    let sim = SimBackend::new(1);
    let log = open(&sim, Background::Manual);
    let most = log.max_record_bytes();
    assert_eq!(most, 4096);
    let mut largest = record(&vec![1; most - 8]);
    log.append(&mut largest).unwrap();
    largest.push(b"x");
    let refused = log.append(&mut largest);
    assert_eq!(refused, Err(Error::TooLarge { len_bytes: most + 32, max_bytes: most }));
    for _ in 0..20 {
        log.append(&mut record(&vec![1; most - 8])).unwrap();
    }
    assert!(log.metrics().space_waits > 0, "a full ring makes the writer run a round");
}

/// A host that panics in a round, without a message. It meets the test before that, twice.
#[derive(Debug)]
struct PanickingHost {
    manifest: Manifest,
    meeting: Barrier,
}

impl Host for PanickingHost {
    fn new_file_id(&self) -> u64 {
        self.manifest.new_file_id()
    }

    fn activate(&self, _file_id: u64, _start: Seq) -> Result<u32> {
        self.meeting.wait();
        self.meeting.wait();
        resume_unwind(Box::new("the host"));
    }

    fn ring_grown(&self, file_bytes: u64) -> Result<()> {
        self.manifest.ring_grown(file_bytes)
    }
}

/// Without a commit thread the round runs in a waiter.
#[test]
fn a_round_that_panics_halts_the_log_and_wakes_every_waiter() {
    for background in [Background::Manual, Background::Threads] {
        let host = Arc::new(PanickingHost { manifest: Manifest::default(), meeting: Barrier::new(2) });
        let log_host: Arc<PanickingHost> = Arc::clone(&host);
        let log = open_by(&SimBackend::new(1), background, SyncMethod::Fdatasync, log_host);
        let end = log.append(&mut record(b"lost?")).unwrap().end;
        let wait = || log.wait_durable(end);
        std::thread::scope(|scope| {
            let runs_the_round = match background {
                Background::Manual => Some(scope.spawn(wait)),
                Background::Threads => {
                    log.request_durable(end);
                    None
                }
            };
            host.meeting.wait();
            let before = log.metrics().waits;
            let waiters = [scope.spawn(wait), scope.spawn(wait)];
            while log.metrics().waits < before + 2 {
                std::thread::yield_now();
            }
            host.meeting.wait();
            for waiter in waiters {
                let error = waiter.join().unwrap().unwrap_err();
                assert_eq!(cause(&error), "a flush round of the log panicked");
            }
            assert!(runs_the_round.is_none_or(|waiter| waiter.join().is_err()));
        });
        let error = log.health().unwrap_err();
        assert_eq!(log.append(&mut record(b"more")).unwrap_err(), error);
        assert_eq!(log.close().unwrap_err(), error);
        assert!(log.active_files().is_empty());
    }
}
