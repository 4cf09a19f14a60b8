//! A close ends merges at once. It is no failure, leaves nothing behind, and the merge is done after the next open.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::random::Random;
use aio::{Backend, BackendLayer, Operation, Queue, QueueLayer, SimBackend};
use esker::testing::{Background, BuilderExt, Sizes};
use esker::{Builder, Db, Durability, Error, Event, Listener};

const KEYS: usize = 4000;

/// The thread of the store that merges.
const MERGES: &str = "esker-compact";

/// Operations that a merge has submitted when it is stopped in its middle.
const BEFORE_THE_CLOSE: usize = 20;

/// The operations of merges: reads of their inputs, writes and syncs of their outputs.
#[derive(Debug, Default)]
struct Merging {
    submitted: AtomicUsize,
    /// Waits once, at this operation, until the store has closed.
    stops_at: Option<usize>,
    in_the_middle: Mutex<Option<Sender<()>>>,
    is_closed: AtomicBool,
}

impl Merging {
    fn submit(&self, operations: usize) {
        let before = self.submitted.fetch_add(operations, Ordering::Relaxed);
        let at = self.stops_at.filter(|at| (before..before + operations).contains(at));
        if at.is_some() {
            self.in_the_middle.lock().unwrap().take().unwrap().send(()).unwrap();
            while !self.is_closed.load(Ordering::Acquire) {
                thread::yield_now();
            }
        }
    }
}

/// The simulated disk; counts what the threads of merges do.
#[derive(Debug)]
struct Machine {
    sim: SimBackend,
    merging: Arc<Merging>,
}

impl BackendLayer for Machine {
    fn below(&self) -> &dyn Backend {
        &self.sim
    }

    fn queue(&self, slots: usize) -> aio::Result<Box<dyn Queue>> {
        let (sim, merging) = (Backend::queue(&self.sim, slots)?, Arc::clone(&self.merging));
        Ok(Box::new(MergingQueue { sim, merging }))
    }
}

#[derive(Debug)]
struct MergingQueue {
    sim: Box<dyn Queue>,
    merging: Arc<Merging>,
}

impl QueueLayer for MergingQueue {
    fn below(&self) -> &dyn Queue {
        &*self.sim
    }

    fn below_mut(&mut self) -> &mut dyn Queue {
        &mut *self.sim
    }

    fn submit(&mut self, operations: &mut VecDeque<Operation>) -> aio::Result<usize> {
        if thread::current().name() == Some(MERGES) {
            self.merging.submit(operations.len());
        }
        self.sim.submit(operations)
    }
}

/// Keeps the events but those of flushes.
#[derive(Clone, Debug, Default)]
struct Events(Arc<Mutex<Vec<Event>>>);

impl Listener for Events {
    fn event(&self, event: &Event) {
        if !matches!(event, Event::Opened { .. } | Event::Flushed { .. } | Event::Compacting { .. }) {
            self.0.lock().unwrap().push(event.clone());
        }
    }
}

/// Records that an open has replayed.
#[derive(Clone, Debug, Default)]
struct Replayed(Arc<AtomicUsize>);

impl Listener for Replayed {
    fn event(&self, event: &Event) {
        if let Event::Opened { replayed_records, .. } = event {
            self.0.store(usize::try_from(*replayed_records).unwrap(), Ordering::Relaxed);
        }
    }
}

fn builder(backend: impl Backend, background: Background) -> Builder {
    let sizes = Sizes {
        memtable_bytes: Some(16 << 20),
        segment_bytes: Some(64 << 10),
        block_bytes: Some(512),
        ..Sizes::default()
    };
    let builder = Db::builder().memory_budget_bytes(32 << 20).backend(Arc::new(backend));
    builder.background(background).durability(Durability::Process).sizes(sizes)
}

fn key(number: usize) -> String {
    format!("key {number:06}")
}

fn segments(sim: &SimBackend) -> Vec<String> {
    sim.list(Path::new("/store/segments")).unwrap()
}

/// A store with so many runs of all keys, each of two megabytes that do not compress.
fn runs(sim: &SimBackend, runs: usize) {
    let db = builder(sim.clone(), Background::Manual).open("/store").unwrap();
    let ks = db.keyspace("default").unwrap();
    let mut random = Random::new(5);
    for _ in 0..runs {
        for number in 0..KEYS {
            let value: Vec<u8> =
                (0..64).flat_map(|_| (random.below(usize::MAX) as u64).to_le_bytes()).collect();
            ks.put(key(number), value).unwrap();
        }
        db.flush().unwrap();
    }
    assert_eq!(db.metrics().keyspaces[0].runs, runs);
    db.close().unwrap();
}

/// A machine that stops a merge in its middle, and tells so.
fn stopping(sim: &SimBackend) -> (Machine, Receiver<()>) {
    let (tell, in_the_middle) = channel();
    let merging = Merging {
        stops_at: Some(BEFORE_THE_CLOSE),
        in_the_middle: Mutex::new(Some(tell)),
        ..Merging::default()
    };
    (Machine { sim: sim.clone(), merging: Arc::new(merging) }, in_the_middle)
}

/// Closes the store while `start` merges on a thread with the name of merges, and checks all that is promised.
fn close_in_the_middle(runs_before: usize, start: fn(&Db) -> Option<thread::JoinHandle<()>>) {
    let sim = SimBackend::new(1);
    runs(&sim, runs_before);
    let before = segments(&sim);
    let (machine, in_the_middle) = stopping(&sim);
    let merging = Arc::clone(&machine.merging);
    let events = Events::default();
    let builder_with_threads = builder(machine, Background::Threads).listener(events.clone());
    let db = builder_with_threads.open("/store").unwrap();
    let started = start(&db);
    in_the_middle.recv().unwrap();

    let closing = thread::spawn({
        let db = db.clone();
        move || db.close()
    });
    while !matches!(db.keyspace("default"), Err(Error::Closed)) {
        thread::yield_now();
    }
    let stopped_at = merging.submitted.load(Ordering::Relaxed);
    merging.is_closed.store(true, Ordering::Release);
    closing.join().unwrap().unwrap();
    if let Some(caller) = started {
        caller.join().unwrap();
    }
    let after = merging.submitted.load(Ordering::Relaxed) - stopped_at;
    assert!(after <= 4, "{after} operations of the merge after the close had begun");
    assert_eq!(db.metrics().failed_jobs, 0);
    assert!(events.0.lock().unwrap().is_empty(), "a merge that was stopped is no event: {events:?}");
    let left = segments(&sim);
    assert!(before.iter().all(|name| left.contains(name)), "{before:?} became {left:?}");
    let live: usize = db.metrics().keyspaces.iter().map(|keyspace| keyspace.segments).sum();
    assert_eq!(left.len(), live, "the output is left: {before:?} became {left:?}");

    // The next open has all data, and does the merge.
    let merging = Arc::new(Merging::default());
    let machine = Machine { sim: sim.clone(), merging: Arc::clone(&merging) };
    let db = builder(machine, Background::Threads).open("/store").unwrap();
    assert_eq!(db.keyspace("default").unwrap().iter().count(), KEYS);
    let merger = thread::Builder::new().name(MERGES.to_owned()).spawn({
        let db = db.clone();
        move || db.compact().unwrap()
    });
    merger.unwrap().join().unwrap();
    assert_eq!(db.metrics().keyspaces[0].runs, 1);
    assert_eq!(db.keyspace("default").unwrap().iter().count(), KEYS);
    let all = merging.submitted.load(Ordering::Relaxed);
    assert!(all > stopped_at + 20, "it was not stopped in its middle: {stopped_at} of {all} operations");
    db.close().unwrap();
}

#[test]
fn a_close_ends_a_merge_of_the_background() {
    close_in_the_middle(6, |db| {
        // Another flush makes the merge due.
        db.keyspace("default").unwrap().put(key(0), "again").unwrap();
        db.flush().unwrap();
        None
    });
}

#[test]
fn a_close_ends_a_compaction_of_another_thread() {
    close_in_the_middle(2, |db| {
        let db = db.clone();
        let merger = thread::Builder::new().name(MERGES.to_owned());
        let compacted = move || assert!(matches!(db.compact(), Err(Error::Closed)));
        Some(merger.spawn(compacted).unwrap())
    });
}

#[test]
fn a_close_on_a_full_disk_flushes_into_the_space_of_the_merge_that_it_ends() {
    let sim = SimBackend::new(1);
    runs(&sim, 6);
    let (machine, in_the_middle) = stopping(&sim);
    let merging = Arc::clone(&machine.merging);
    let db = builder(machine, Background::Threads).open("/store").unwrap();
    let ks = db.keyspace("default").unwrap();
    ks.put(key(0), "again").unwrap();
    db.flush().unwrap();
    in_the_middle.recv().unwrap();
    for number in 0..50 {
        ks.put(key(number), [1; 300]).unwrap();
    }
    sim.set_capacity_bytes(sim.snapshot().files().iter().map(|(_, size_bytes)| size_bytes).sum());
    let closing = thread::spawn(move || db.close());
    while !matches!(ks.get(key(0)), Err(Error::Closed)) {
        thread::yield_now();
    }
    merging.is_closed.store(true, Ordering::Release);
    closing.join().unwrap().unwrap();

    sim.set_capacity_bytes(u64::MAX);
    let replayed = Replayed::default();
    let db = builder(sim, Background::Manual).listener(replayed.clone()).open("/store").unwrap();
    assert_eq!(db.keyspace("default").unwrap().iter().count(), KEYS);
    assert_eq!(replayed.0.load(Ordering::Relaxed), 0, "records that the close has not flushed");
}
