//! The process that is killed: writers, readers and a thread of jobs, all at once on a real store.
//!
//! Invariant: a write is noted on the board only after its commit has returned, and a writer has one in flight. A reader
//! sees only whole values of the key that it reads, and the same ones in both keyspaces of a snapshot.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use aio::{Backend, NativeBackend};
use esker::testing::BuilderExt;
use esker::{Db, Durability, Error, Keyspace};
use parking_lot::Mutex;

use super::board::{Board, Count, Latencies, usage};
use super::faulty::FaultyBackend;
use super::plan::{BUDGET_BYTES, KEYSPACES, SLOTS, WRITERS, key, number_of, slot_of, value};
use crate::report::{Check, Failure};

/// Writes in a row that must be refused after a store has halted.
const REFUSED: usize = 20;
/// Pairs of one scan.
const SCANNED: usize = 200;
const TICK: Duration = Duration::from_millis(50);

/// The data that the threads share.
struct Shared {
    db: Db,
    keyspaces: [Keyspace; 2],
    board: Board,
    clock: NativeBackend,
    /// Whether a write or a sync may fail.
    faulty: bool,
    stop: AtomicBool,
    halted: AtomicU64,
    wrong: Mutex<Option<Failure>>,
    counts: [AtomicU64; 5],
    latencies: Mutex<[Latencies; 2]>,
}

/// Positions in `Shared::counts`.
const COUNTED: [Count; 5] = [Count::Writes, Count::Reads, Count::Scans, Count::Snapshots, Count::Jobs];

fn io(error: &std::io::Error) -> Failure {
    Failure::new(format!("the board: {error}"))
}

/// Works until it is killed, or until a fault has halted the store. With `faults` one write or sync in that many fails.
pub(crate) fn work(dir: &Path, board: &Path, seed: u64, faults: Option<u64>) -> Check {
    let board = Board::open(board).map_err(|error| io(&error))?;
    let mut builder = Db::builder().memory_budget_bytes(BUDGET_BYTES);
    let backend = faults.map(|one_in| Arc::new(FaultyBackend::new(seed, one_in)));
    if let Some(backend) = &backend {
        builder = builder.backend(Arc::clone(backend) as Arc<dyn Backend>);
    }
    let opened = builder.open(dir).map(|db| (KEYSPACES.map(|name| db.keyspace(name)), db));
    let (keyspaces, db) = match opened {
        Ok(([Ok(left), Ok(right)], db)) => ([left, right], db),
        Ok(([Err(error), _] | [_, Err(error)], _)) | Err(error) => {
            return halted_at_open(&board, backend.as_deref(), error);
        }
    };
    board.put(Count::Opened, 1).map_err(|error| io(&error))?;
    let next = board.acknowledged().map_err(|error| io(&error))?;
    let shared = Shared {
        db,
        keyspaces,
        board,
        clock: NativeBackend::new(),
        faulty: faults.is_some(),
        stop: AtomicBool::new(false),
        halted: AtomicU64::new(0),
        wrong: Mutex::new(None),
        counts: Default::default(),
        latencies: Mutex::new([Latencies::new(), Latencies::new()]),
    };
    std::thread::scope(|scope| {
        for (writer, acknowledged) in next.into_iter().enumerate() {
            let shared = &shared;
            scope.spawn(move || shared.note(shared.write(writer, acknowledged)));
        }
        for reader in 0..2 {
            let shared = &shared;
            scope.spawn(move || shared.note(shared.read(seed ^ reader)));
        }
        scope.spawn(|| shared.note(shared.jobs(seed)));
        shared.note(shared.watch(backend.as_deref()));
        shared.stop.store(true, Ordering::Relaxed);
    });
    match shared.wrong.into_inner() {
        Some(failure) => Err(failure),
        None => shared.board.put(Count::Halted, 1).map_err(|error| io(&error)),
    }
}

/// A fault may also strike an open.
fn halted_at_open(board: &Board, backend: Option<&FaultyBackend>, error: Error) -> Check {
    let struck = backend.map_or(0, FaultyBackend::struck);
    if struck == 0 {
        return Err(Failure::from(error).at("open"));
    }
    board.put(Count::Faults, struck).map_err(|error| io(&error))?;
    board.put(Count::Opened, 1).map_err(|error| io(&error))?;
    board.put(Count::Halted, 1).map_err(|error| io(&error))
}

impl Shared {
    /// Keeps the first failure, and ends the work.
    fn note(&self, result: Check) {
        if let Err(failure) = result {
            self.wrong.lock().get_or_insert(failure);
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn add(&self, count: Count) {
        if let Some(at) = COUNTED.iter().position(|counted| *counted == count) {
            self.counts[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn commit(&self, writer: usize, number: u64, level: Durability) -> esker::Result<()> {
        let (slot, deletes) = slot_of(writer, number);
        let key = key(writer, slot);
        let mut batch = self.db.batch();
        batch.durability(level);
        for keyspace in &self.keyspaces {
            if deletes {
                batch.delete(keyspace, &key);
            } else {
                batch.put(keyspace, &key, value(writer, number));
            }
        }
        batch.commit().map(drop)
    }

    /// Even writers wait for stable media.
    fn write(&self, writer: usize, acknowledged: u64) -> Check {
        let level = if writer.is_multiple_of(2) { Durability::Power } else { Durability::Process };
        let mut number = acknowledged;
        while self.goes_on() {
            number += 1;
            let began = self.clock.now();
            match self.commit(writer, number, level) {
                Ok(()) => self.board.acknowledge(writer, number).map_err(|error| io(&error))?,
                Err(error @ Error::Io { .. }) if self.faulty => {
                    self.must_not_have_happened(writer, number, &error)?;
                    number -= 1;
                    continue;
                }
                Err(error) => return self.must_stay_halted(writer, number, level, error),
            }
            self.add(Count::Writes);
            if level == Durability::Power {
                self.latencies.lock()[0].add(self.clock.now().saturating_sub(began));
            } else {
                // A steady stream below the limit of the device. Otherwise the other threads make no progress.
                self.clock.park(Duration::from_micros(200));
            }
        }
        Ok(())
    }

    /// A new log file could not be made: the write was refused before it had a place in the log, and the store goes on.
    fn must_not_have_happened(&self, writer: usize, number: u64, error: &Error) -> Check {
        let key = key(writer, slot_of(writer, number).0);
        for keyspace in &self.keyspaces {
            let found = keyspace.get(&key)?;
            if found.is_some_and(|found| number_of(&key, &found) == Ok(number)) {
                return Err(Failure::new(format!(
                    "write {number} of writer {writer} happened after {error}"
                )));
            }
        }
        Ok(())
    }

    /// After a halt every write is refused. The same write is tried each time, because it is unknown whether it happened:
    /// only that one may be in the store.
    fn must_stay_halted(&self, writer: usize, number: u64, level: Durability, error: Error) -> Check {
        if !self.faulty {
            return Err(Failure::from(error).at(format!("write {number} of writer {writer}")));
        }
        for again in 0..REFUSED {
            match self.commit(writer, number, level) {
                Err(Error::Halted { .. }) => {}
                other => {
                    let what = format!(
                        "{other:?} at attempt {again} after {error}: an error of the log is for good"
                    );
                    return Err(Failure::new(what));
                }
            }
        }
        self.halted.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Reads continue, also on a halted store.
    fn read(&self, seed: u64) -> Check {
        let mut rng = fastrand::Rng::with_seed(seed);
        // The newest write that was seen of each key.
        let mut newest: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        while self.goes_on() {
            let (writer, slot) = (rng.usize(..WRITERS), rng.u64(..SLOTS));
            match rng.u8(..32) {
                0 => self.scan(&mut rng)?,
                1 => self.twins(&mut rng)?,
                2 => self.many(&mut rng)?,
                _ => {
                    let key = key(writer, slot);
                    let began = self.clock.now();
                    let found = self.keyspaces[rng.usize(..2)].get(&key)?;
                    self.latencies.lock()[1].add(self.clock.now().saturating_sub(began));
                    self.add(Count::Reads);
                    let Some(found) = found else { continue };
                    let number = number_of(&key, &found).map_err(Failure::new)?;
                    let before = newest.insert(key, number).unwrap_or(0);
                    if number < before {
                        let what = format!("write {number} of writer {writer} is back after write {before}");
                        return Err(Failure::new(what));
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads a part of a snapshot in either direction: in order, and every value belongs to its key.
    fn scan(&self, rng: &mut fastrand::Rng) -> Check {
        let snapshot = self.db.snapshot();
        let from = key(rng.usize(..WRITERS), rng.u64(..SLOTS));
        let forwards = rng.bool();
        let mut iter = if forwards {
            snapshot.range(&self.keyspaces[0], from..)
        } else {
            snapshot.range(&self.keyspaces[0], ..from)
        };
        let mut last: Option<Vec<u8>> = None;
        for _ in 0..SCANNED {
            let pair = if forwards { iter.next_ref()? } else { iter.next_back_ref()? };
            let Some((key, value)) = pair else { break };
            number_of(key, value).map_err(|what| Failure::new(format!("a scan: {what}")))?;
            let is_ordered =
                last.as_deref().is_none_or(|last| if forwards { last < key } else { last > key });
            if !is_ordered {
                return Err(Failure::new(format!(
                    "a scan is out of order at {}",
                    String::from_utf8_lossy(key)
                )));
            }
            last = Some(key.to_vec());
        }
        self.add(Count::Scans);
        Ok(())
    }

    /// A batch is in both keyspaces or in none, and a snapshot shows the same every time.
    fn twins(&self, rng: &mut fastrand::Rng) -> Check {
        let snapshot = self.db.snapshot();
        let keys: Vec<_> = (0..16).map(|_| key(rng.usize(..WRITERS), rng.u64(..SLOTS))).collect();
        let left = snapshot.multi_get(&self.keyspaces[0], &keys)?;
        let right = snapshot.multi_get(&self.keyspaces[1], &keys)?;
        if left != right {
            return Err(Failure::new("half a batch: a snapshot shows the keyspaces different"));
        }
        for (key, value) in keys.iter().zip(left) {
            if snapshot.get(&self.keyspaces[0], key)? != value {
                return Err(Failure::new("a snapshot shows two values of one key"));
            }
        }
        self.add(Count::Snapshots);
        Ok(())
    }

    fn many(&self, rng: &mut fastrand::Rng) -> Check {
        let keys: Vec<_> = (0..32).map(|_| key(rng.usize(..WRITERS), rng.u64(..SLOTS))).collect();
        for (key, value) in keys.iter().zip(self.keyspaces[1].multi_get(&keys)?) {
            if let Some(value) = value {
                number_of(key, &value).map_err(|what| Failure::new(format!("multi_get: {what}")))?;
            }
        }
        self.add(Count::Reads);
        Ok(())
    }

    fn jobs(&self, seed: u64) -> Check {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x10b5);
        while self.goes_on() {
            let done = if rng.u8(..4) == 0 { self.db.compact() } else { self.db.flush() };
            match done {
                Ok(()) => self.add(Count::Jobs),
                // The store tries the job again later, or it has halted.
                Err(_) if self.faulty => {}
                Err(error) => return Err(Failure::from(error).at("a job")),
            }
            self.clock.park(Duration::from_millis(rng.u64(20..400)));
        }
        Ok(())
    }

    /// Notes the used resources until every writer has seen the store halt.
    fn watch(&self, backend: Option<&FaultyBackend>) -> Check {
        while self.goes_on() && self.halted.load(Ordering::Relaxed) < WRITERS as u64 {
            self.post(backend).map_err(|error| io(&error))?;
            self.clock.park(TICK);
        }
        self.post(backend).map_err(|error| io(&error))
    }

    fn post(&self, backend: Option<&FaultyBackend>) -> std::io::Result<()> {
        for (count, number) in COUNTED.iter().zip(&self.counts) {
            self.board.put(*count, number.load(Ordering::Relaxed))?;
        }
        self.board.put(Count::Faults, backend.map_or(0, FaultyBackend::struck))?;
        let [rss_kib, handles, threads] = usage()?;
        self.board.put(Count::RssKib, rss_kib)?;
        self.board.put(Count::Handles, handles)?;
        self.board.put(Count::Threads, threads)?;
        let both = self.latencies.lock().clone();
        self.board.put_latencies([&both[0], &both[1]])
    }
}
