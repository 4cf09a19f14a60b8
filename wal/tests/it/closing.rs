//! The next life of a store may write to the log files of this one. So nothing is written after a close, by no thread.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use super::support::{Manifest, record};
use aio::sim::SimBackend;
use aio::{Backend, BackendLayer, File};
use wal::{Background, Error, Log, LogOptions, Seq};

/// A close that does not wait returns in this time: also on a busy machine, where planted bugs have to be found.
const TIME_TO_RETURN: Duration = Duration::from_millis(if cfg!(planted) { 2000 } else { 100 });

/// A machine on which a sync takes as long as a test wants.
#[derive(Debug)]
struct Slow {
    sim: SimBackend,
    pace: Mutex<Pace>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    Fast,
    /// The next sync is held.
    Hold,
    Held,
}

impl Slow {
    fn set(&self, pace: Pace) {
        *self.pace.lock().unwrap() = pace;
        self.changed.notify_all();
    }

    fn wait_for(&self, pace: Pace) {
        drop(self.changed.wait_while(self.pace.lock().unwrap(), |found| *found != pace).unwrap());
    }

    fn sync_slowly(&self) {
        let mut pace = self.pace.lock().unwrap();
        if *pace == Pace::Hold {
            *pace = Pace::Held;
            self.changed.notify_all();
            drop(self.changed.wait_while(pace, |pace| *pace == Pace::Held).unwrap());
        }
    }
}

impl BackendLayer for Slow {
    fn below(&self) -> &dyn Backend {
        &self.sim
    }

    fn sync(&self, file: &File) -> aio::Result<()> {
        self.sync_slowly();
        Backend::sync(&self.sim, file)
    }

    fn sync_dir(&self, path: &Path) -> aio::Result<()> {
        self.sync_slowly();
        Backend::sync_dir(&self.sim, path)
    }
}

fn open(ring_file_bytes: usize) -> (Arc<Slow>, Log) {
    let sim = SimBackend::new(1);
    sim.make_dir(Path::new("/wal")).unwrap();
    sim.sync_dir(Path::new("/")).unwrap();
    let slow = Arc::new(Slow { sim, pace: Mutex::new(Pace::Fast), changed: Condvar::new() });
    let backend: Arc<dyn Backend> = Arc::<Slow>::clone(&slow);
    let options = LogOptions {
        ring_bytes: 16 << 10,
        ring_file_bytes,
        file_bytes: 16 << 10,
        background: Background::Manual,
        ..LogOptions::new("/wal", 1, 1, Seq::ZERO)
    };
    let log = Log::open(backend, options, Arc::new(Manifest::default())).unwrap();
    (slow, log)
}

/// Closes the log while `call` is held in a sync of another thread. Returns the result of the call.
#[track_caller]
fn close_beside<T: Send>(slow: &Slow, log: &Log, halts: bool, call: impl FnOnce() -> T + Send) -> T {
    let has_ended = AtomicBool::new(false);
    slow.set(Pace::Hold);
    thread::scope(|scope| {
        let called = scope.spawn(|| {
            let result = call();
            has_ended.store(true, Ordering::SeqCst);
            result
        });
        slow.wait_for(Pace::Held);
        if halts {
            log.halt(&Error::Host { message: "of the test".to_owned() });
        }
        let (tell, told) = mpsc::channel();
        let closed = scope.spawn(move || {
            assert_eq!(log.close().is_err(), halts);
            let events = slow.sim.events();
            let waited = *slow.pace.lock().unwrap() != Pace::Held;
            tell.send(()).unwrap();
            (waited, events)
        });
        let _ = told.recv_timeout(TIME_TO_RETURN);
        slow.set(Pace::Fast);
        let (waited, events) = closed.join().unwrap();
        let result = called.join().unwrap();
        assert!(waited, "the close left a call behind");
        assert!(has_ended.load(Ordering::SeqCst));
        assert_eq!(slow.sim.events(), events, "something was written after the close");
        result
    })
}

#[test]
fn a_close_waits_for_the_round_of_a_waiter_in_a_halted_log_too() {
    for halts in [false, true] {
        let (slow, log) = open(16 << 10);
        // The round that is held makes no file: a close waits for those by itself.
        log.wait_durable(log.append(&mut record(b"first")).unwrap().end).unwrap();
        let end = log.append(&mut record(b"late")).unwrap().end;
        let result = close_beside(&slow, &log, halts, || log.wait_durable(end));
        // The round had begun before the halt, and it has succeeded.
        assert_eq!(result, Ok(()));
        assert_eq!(log.close().is_err(), halts);
    }
}

#[test]
fn no_round_begins_after_a_close() {
    let (slow, log) = open(16 << 10);
    slow.sim.set_capacity_bytes(slow.sim.used_bytes());
    let end = log.append(&mut record(b"refused")).unwrap().end;
    assert!(log.close().unwrap_err().is_shortage());
    slow.sim.set_capacity_bytes(u64::MAX);
    let events = slow.sim.events();
    assert!(log.wait_durable(end).unwrap_err().is_shortage());
    assert!(log.sync().unwrap_err().is_shortage());
    assert_eq!(log.run_due(), Ok(false));
    assert_eq!(log.close(), Ok(()));
    drop(log);
    assert_eq!(slow.sim.events(), events);
}

#[test]
fn a_close_waits_for_a_log_file_that_is_made_and_none_is_made_after_it() {
    let (slow, log) = open(16 << 10);
    let mut queue = slow.sim.queue(4).unwrap();
    let made = close_beside(&slow, &log, false, || log.prepare_spare(&mut *queue));
    assert_eq!(made, Ok(true));
    log.leave_files(0).unwrap();
    assert_eq!(slow.sim.list(Path::new("/wal")).unwrap(), ["ring-000001"]);
    let (slow, log) = open(16 << 10);
    log.close().unwrap();
    assert_eq!(log.prepare_spare(&mut *queue), Err(Error::Closed));
    assert_eq!(slow.sim.list(Path::new("/wal")).unwrap(), ["ring-000001"]);
}

#[test]
fn a_close_waits_for_a_ring_that_grows_and_it_grows_no_more() {
    let (slow, log) = open(4 << 10);
    let mut queue = slow.sim.queue(4).unwrap();
    let grown = close_beside(&slow, &log, false, || log.make_room(6000, &mut *queue));
    // The ring has grown. Then there was a file to make.
    assert_eq!(grown, Err(Error::Closed));
    let events = slow.sim.events();
    assert_eq!(log.make_room(9000, &mut *queue), Err(Error::Closed));
    assert_eq!(slow.sim.events(), events);
    assert_eq!(log.health(), Ok(()));
}
