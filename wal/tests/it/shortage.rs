//! A refusal before anything was done never stops the log: nothing was written, and the next round tries again.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::support::{Manifest, record};
use aio::sim::{EventKind, Fault, FaultPlan, SimBackend};
use aio::{Backend, BackendLayer, Errno, Error, Operation, Queue, QueueLayer};
use wal::{Background, Log, LogOptions, Seq};

/// A machine that refuses submits, opens and new contexts as long as `refusals` says.
#[derive(Clone, Debug)]
struct ShortMachine {
    sim: SimBackend,
    /// Calls that are still refused.
    refusals: Arc<AtomicUsize>,
}

impl ShortMachine {
    fn new() -> ShortMachine {
        let sim = SimBackend::new(1);
        sim.make_dir(Path::new("/wal")).unwrap();
        sim.sync_dir(Path::new("/")).unwrap();
        ShortMachine { sim, refusals: Arc::default() }
    }

    fn refuse(&self, calls: usize) {
        self.refusals.store(calls, Ordering::SeqCst);
    }

    fn check(&self, call: &'static str) -> aio::Result<()> {
        let taken =
            self.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        let refused = |_| Err(Error::call(call, Path::new("(test)"), Errno::AGAIN));
        taken.map_or(Ok(()), refused)
    }

    fn log(&self, background: Background) -> Log {
        let options = LogOptions {
            ring_bytes: 16 << 10,
            ring_file_bytes: 4096,
            file_bytes: 16 << 10,
            background,
            ..LogOptions::new("/wal", 1, 1, Seq::ZERO)
        };
        Log::open(Arc::new(self.clone()), options, Arc::new(Manifest::default())).unwrap()
    }
}

impl BackendLayer for ShortMachine {
    fn below(&self) -> &dyn Backend {
        &self.sim
    }

    fn queue(&self, slots: usize) -> aio::Result<Box<dyn Queue>> {
        self.check("io_setup")?;
        Ok(Box::new(ShortQueue { below: Backend::queue(&self.sim, slots)?, machine: self.clone() }))
    }

    fn open(&self, path: &Path, mode: aio::OpenMode) -> aio::Result<aio::File> {
        self.check("open")?;
        Backend::open(&self.sim, path, mode)
    }
}

#[derive(Debug)]
struct ShortQueue {
    below: Box<dyn Queue>,
    machine: ShortMachine,
}

impl QueueLayer for ShortQueue {
    fn below(&self) -> &dyn Queue {
        &*self.below
    }

    fn below_mut(&mut self) -> &mut dyn Queue {
        &mut *self.below
    }

    fn submit(&mut self, operations: &mut VecDeque<Operation>) -> aio::Result<usize> {
        self.machine.check("io_submit")?;
        self.below.submit(operations)
    }
}

#[test]
fn a_refused_write_leaves_the_log_as_it_was() {
    let machine = ShortMachine::new();
    let log = machine.log(Background::Manual);
    let first = log.append(&mut record(b"first")).unwrap();
    log.wait_durable(first.end).unwrap();
    let second = log.append(&mut record(b"second")).unwrap();
    machine.refuse(usize::MAX);
    for _ in 0..3 {
        let error = log.wait_durable(second.end).unwrap_err();
        assert!(error.is_refusal() && error.is_shortage(), "{error}");
        assert_eq!((log.durable(), log.health()), (first.end, Ok(())));
    }
    machine.refuse(0);
    log.wait_durable(second.end).unwrap();
    let third = log.append(&mut record(b"third")).unwrap();
    log.wait_durable(third.end).unwrap();
    log.close().unwrap();
}

#[test]
fn a_shortage_at_open_growth_or_rotation_is_only_a_delay() {
    let machine = ShortMachine::new();
    machine.refuse(3);
    let log = machine.log(Background::Manual);
    let mut end = Seq::ZERO;
    // Several laps of the ring, and several files.
    for number in 0..200 {
        machine.refuse(if number % 7 == 0 { 2 } else { 0 });
        end = log.append(&mut record(&[7; 600])).unwrap().end;
        machine.refuse(0);
        if number % 3 == 0 {
            log.wait_durable(end).unwrap();
        }
    }
    log.wait_durable(end).unwrap();
    assert!(log.metrics().activations > 5);
    log.close().unwrap();
}

#[test]
fn no_waiter_sleeps_through_the_end_of_a_refused_round() {
    let machine = ShortMachine::new();
    let log = machine.log(Background::Threads);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                for number in 0..100 {
                    let end = log.append(&mut record(&[number; 100])).unwrap().end;
                    machine.refuse(usize::from(number % 3 == 0));
                    while let Err(error) = log.wait_durable(end) {
                        assert!(error.is_refusal(), "{error}");
                    }
                }
            });
        }
    });
    log.close().unwrap();
}

#[test]
fn an_interrupted_sync_is_no_failure_and_the_group_is_written_again() {
    let machine = ShortMachine::new();
    let log = machine.log(Background::Manual);
    let first = log.append(&mut record(b"first")).unwrap();
    log.wait_durable(first.end).unwrap();
    let writes = machine.sim.profile().write().count;
    machine.sim.fail(FaultPlan::new(Fault::Errno(Errno::INTERRUPTED)).on(&[EventKind::Sync]).path(".log"));
    let second = log.append(&mut record(b"second")).unwrap();
    log.wait_durable(second.end).unwrap();
    assert_eq!(machine.sim.profile().write().count - writes, 2, "the same group twice");
    assert!(machine.sim.now() < Duration::from_mins(1));
    log.close().unwrap();
}

/// The write may be done, so this is no shortage, even if its code says so.
#[test]
fn a_wait_that_fails_while_the_write_is_in_flight_halts_the_log() {
    for errno in [Errno::AGAIN, Errno::TOO_MANY_FILES] {
        let machine = ShortMachine::new();
        let log = machine.log(Background::Manual);
        let first = log.append(&mut record(b"first")).unwrap();
        log.wait_durable(first.end).unwrap();
        let second = log.append(&mut record(b"second")).unwrap();
        machine.sim.fail(FaultPlan::new(Fault::Errno(errno)).on(&[EventKind::Wait]));
        let error = log.wait_durable(second.end).unwrap_err();
        assert!(matches!(error, wal::Error::Halted { .. }), "{error}");
        assert_eq!(log.health(), Err(error));
    }
}
