//! Runs one scenario under many schedules, crashes the machine inside most of them, and checks the remaining store.
//!
//! `SCHEDULES` sets their number (2,000 by default), `SEED` the seed of the first; otherwise that is drawn. Both are printed,
//! and so is the seed of a failure.
//!
//! Invariant: every random choice is drawn from the schedule's seed.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use aio::sim::DiskImage;
use aio::{Backend as _, NativeBackend, SimBackend};
use esker::testing::{Background, BuilderExt, Sizes};
use esker::{Batch, Builder, Db, Durability, Error, Keyspace, Snapshot};
use shuttle::rand::{RngCore, thread_rng};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner, thread};

use crate::history::{self, Bounds, History, KEYS, KEYSPACES, KeyId, Seen, Shape};
use crate::machine::Machine;
use crate::scheduler::{Random, RunKind, Seeded};

const DIRECTORY: &str = "/store";

/// A keyspace that a scenario makes and drops.
pub(crate) const TEMPORARY: &str = "temporary";

/// The default number of schedules of each scenario.
const SCHEDULES: u64 = 2_000;

/// A run of more steps counts as one that never ends.
const MOST_STEPS: usize = 500_000;

const STACK_BYTES: usize = 256 << 10;

/// A store, its writers, and the tasks that run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) writers: &'static [Shape],
    pub(crate) sizes: Sizes,
    /// Bytes of each value.
    pub(crate) value_bytes: usize,
    /// Starts tasks and joins them.
    pub(crate) body: fn(&Bed),
}

/// Small sizes, so that a short run flushes, merges and changes log files.
pub(crate) const SMALL: Sizes = Sizes {
    ring_bytes: Some(16 << 10),
    log_file_bytes: Some(16 << 10),
    memtable_bytes: Some(64 << 10),
    segment_bytes: Some(8 << 10),
    manifest_bytes: Some(8 << 10),
    block_bytes: Some(512),
};

/// True once in `one_in` draws from the schedule's seed.
pub(crate) fn chance(one_in: u64) -> bool {
    below(one_in) == 0
}

/// A number below `limit`, drawn from the schedule's seed.
pub(crate) fn below(limit: u64) -> u64 {
    thread_rng().next_u64() % limit
}

/// An open store inside a schedule. Its tasks share it.
#[derive(Clone, Debug)]
pub(crate) struct Bed {
    pub(crate) db: Db,
    pub(crate) machine: Machine,
    pub(crate) keyspaces: [Keyspace; KEYSPACES.len()],
    history: Arc<Mutex<History>>,
    pub(crate) value_bytes: usize,
}

impl Bed {
    pub(crate) fn history<R>(&self, look: impl FnOnce(&mut History) -> R) -> R {
        look(&mut self.history.lock().unwrap())
    }

    /// The value that a call returned. `None` after the machine has crashed, when results have no meaning, and after a
    /// fault has halted the store.
    pub(crate) fn alive<T>(&self, result: esker::Result<T>) -> Option<T> {
        let sim = &self.machine.sim;
        match result {
            _ if sim.has_crashed() => None,
            Err(Error::Halted { .. }) if sim.faults_struck() > 0 => {
                self.history(|history| history.has_halted = true);
                None
            }
            // A log file could not be made. The caller that needed it gets the error, and the store stays usable.
            Err(Error::Io { .. }) if sim.faults_struck() > 0 => None,
            Err(error) => panic!("nothing fails before the crash: {error:?}"),
            Ok(value) => Some(value),
        }
    }

    /// Starts a task that shares this store.
    pub(crate) fn spawn(&self, task: impl FnOnce(Bed) + Send + 'static) -> thread::JoinHandle<()> {
        let bed = self.clone();
        thread::spawn(move || task(bed))
    }

    /// One more operation of a writer.
    pub(crate) fn write(&self, writer: usize, level: Durability) -> esker::Result<()> {
        let (shape, operation) = self.history(|history| (history.shape(writer), history.send(writer)));
        let had_halted = self.history(|history| history.has_halted);
        let effects = shape.effects(operation);
        let value = value(operation, self.value_bytes);
        let result = if let [((keyspace, number), is_put)] = effects[..] {
            let keyspace = self.keyspaces[keyspace].with_durability(level);
            let key = key(writer, number);
            if is_put { keyspace.put(key, value) } else { keyspace.delete(key) }
        } else {
            let mut batch: Batch = self.db.batch();
            batch.durability(level);
            for ((keyspace, number), is_put) in effects {
                let (keyspace, key) = (&self.keyspaces[keyspace], key(writer, number));
                if is_put {
                    batch.put(keyspace, key, &value)
                } else {
                    batch.delete(keyspace, key)
                };
            }
            batch.commit().map(|_| ())
        };
        // No other task runs between the check of the machine and the update of the history.
        if !self.machine.sim.has_crashed() {
            assert!(!had_halted || result.is_err(), "a write after the store said that it has halted");
            match &result {
                Ok(()) => self.history(|history| history.end(writer, level == Durability::Power)),
                Err(Error::Closed | Error::Io { .. }) => self.history(|history| history.refuse(writer)),
                Err(_) => {}
            }
        }
        result
    }

    /// Does so many operations of a writer. About one in `powerful` must survive a power cut, the others the process's death.
    pub(crate) fn write_all(&self, writer: usize, operations: u64, powerful: u64) {
        for _ in 0..operations {
            let level = if chance(powerful) { Durability::Power } else { Durability::Process };
            let written = self.write(writer, level);
            if self.alive(written).is_none() {
                return;
            }
        }
    }

    /// Runs a call that makes every earlier operation durable.
    pub(crate) fn sync_by(&self, call: impl FnOnce(&Db) -> esker::Result<()>) {
        let ended = self.history(|history| history.ended());
        let result = call(&self.db);
        let is_alive = self.alive(result).is_some();
        // A second close succeeds, also after a first one that failed.
        if is_alive && !self.history(|history| history.has_halted) {
            self.history(|history| history.synced(&ended));
        }
    }

    /// Checks all keys as `read` returns them. They must be the contents at one moment during the call.
    pub(crate) fn look(&self, read: impl FnOnce() -> esker::Result<Vec<Seen>>) {
        let least = self.history(|history| history.ended());
        let seen = read();
        let most = self.history(|history| history.sent());
        self.judge(seen, &least, &most);
    }

    /// Takes a snapshot and checks the keys that `read` finds in it later.
    pub(crate) fn look_at(&self, read: impl FnOnce(&Snapshot) -> esker::Result<Vec<Seen>>) {
        let least = self.history(|history| history.ended());
        let snapshot = self.db.snapshot();
        let most = self.history(|history| history.sent());
        let seen = read(&snapshot);
        self.judge(seen, &least, &most);
    }

    /// Checks reads that `begin` starts and `finish` completes. They must show one moment during `begin`, or, with `alone`,
    /// each key its own moment. There is no check if `finish` gave the reads up (`None`), or the store was closed.
    pub(crate) fn look_later<T>(
        &self,
        alone: bool,
        begin: impl FnOnce() -> T,
        finish: impl FnOnce(T) -> Option<esker::Result<Vec<Seen>>>,
    ) {
        let least = self.history(|history| history.ended());
        let begun = begin();
        let most = self.history(|history| history.sent());
        match finish(begun) {
            None | Some(Err(Error::Closed)) => {}
            Some(seen) if alone => self.judge_each(seen, &least, &most),
            Some(seen) => self.judge(seen, &least, &most),
        }
    }

    fn judge(&self, seen: esker::Result<Vec<Seen>>, least: &Bounds, most: &Bounds) {
        if let Some(seen) = self.alive(seen)
            && let Err(why) = self.history(|history| history.judge(&seen, least, most))
        {
            panic!("a read was wrong: {why}");
        }
    }

    /// Checks each key of the first keyspace by itself.
    fn judge_each(&self, seen: esker::Result<Vec<Seen>>, least: &Bounds, most: &Bounds) {
        let Some(seen) = self.alive(seen) else { return };
        for (writer, seen) in seen.iter().enumerate() {
            for place in (0..KEYS).map(|number| (0, number)) {
                let (found, counts) = (seen.get(&place).copied(), least[writer]..=most[writer]);
                let judged = self.history(|history| history.judge_place((writer, place), found, counts));
                judged.expect("a future sees all writes acknowledged before it was made, and no later one");
            }
        }
    }

    /// Reads one key and checks it.
    pub(crate) fn look_up(&self, writer: usize, place: KeyId) {
        let least = self.history(|history| history.ended())[writer];
        let found = self.keyspaces[place.0].get(key(writer, place.1));
        let most = self.history(|history| history.sent())[writer];
        if let Some(found) = self.alive(found) {
            let found = found.map(|value| number(&value, self.value_bytes));
            let judged = self.history(|history| history.judge_place((writer, place), found, least..=most));
            judged.expect("a get sees all writes acknowledged before it, and no later one");
        }
    }

    /// Adds the pairs of a keyspace to `seen`, by writer.
    pub(crate) fn gather(
        &self,
        seen: &mut [Seen],
        keyspace: usize,
        pairs: impl Iterator<Item = esker::Result<(impl AsRef<[u8]>, impl AsRef<[u8]>)>>,
    ) -> esker::Result<()> {
        gather(seen, (keyspace, self.value_bytes), pairs)
    }

    /// An empty [`Seen`] for each writer.
    pub(crate) fn nothing_seen(&self) -> Vec<Seen> {
        vec![Seen::new(); self.history(|history| history.writers())]
    }
}

pub(crate) fn key(writer: usize, number: u64) -> String {
    format!("writer-{writer}/key-{number}")
}

fn place_of(key: &[u8]) -> Option<(usize, u64)> {
    let key = std::str::from_utf8(key).ok()?.strip_prefix("writer-")?;
    let (writer, number) = key.split_once("/key-")?;
    Some((writer.parse().ok()?, number.parse().ok()?))
}

pub(crate) fn value(operation: u64, bytes: usize) -> Vec<u8> {
    let mut value = operation.to_le_bytes().to_vec();
    // Does not compress.
    let mut random = Random::new(operation);
    value.extend((value.len()..bytes).map(|_| random.next().to_le_bytes()[0]));
    value
}

/// The operation that wrote this value.
pub(crate) fn number(found: &[u8], bytes: usize) -> u64 {
    let operation = u64::from_le_bytes(found[..8].try_into().unwrap());
    assert_eq!(found, value(operation, bytes), "the value was written by no operation");
    operation
}

fn gather(
    seen: &mut [Seen],
    (keyspace, value_bytes): (usize, usize),
    pairs: impl Iterator<Item = esker::Result<(impl AsRef<[u8]>, impl AsRef<[u8]>)>>,
) -> esker::Result<()> {
    for pair in pairs {
        let (key, value) = pair?;
        let (writer, key) = place_of(key.as_ref()).expect("the key belongs to a writer");
        let before = seen[writer].insert((keyspace, key), number(value.as_ref(), value_bytes));
        assert_eq!(before, None, "a key is shown once");
    }
    Ok(())
}

fn builder(scenario: &Scenario) -> Builder {
    Db::builder().sizes(scenario.sizes).memory_budget_bytes(1 << 20).drain_interval(Duration::from_millis(10))
}

/// The disk that all schedules of a scenario begin with: everything written once, in one segment.
fn setup(scenario: &Scenario) -> DiskImage {
    let sim = SimBackend::new(1);
    let builder = builder(scenario).background(Background::Manual).backend(Arc::new(sim.clone()));
    let db = builder.open(DIRECTORY).expect("nothing fails");
    let keyspaces = KEYSPACES.map(|name| db.keyspace(name).expect("nothing fails"));
    for writer in 0..scenario.writers.len() {
        for ((keyspace, number), operation) in history::first() {
            let value = value(operation, scenario.value_bytes);
            keyspaces[keyspace].put(key(writer, number), value).expect("nothing fails");
        }
    }
    db.compact().expect("nothing fails");
    drop(keyspaces);
    db.close().expect("nothing fails");
    sim.snapshot().power_cut_all()
}

/// The crash at the end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CrashKind {
    Process,
    Power,
}

/// Counts of one run, or their sums over several runs.
#[derive(Debug, Default)]
struct Tally {
    events: u64,
    crashes: u64,
    sent: u64,
    ended: u64,
    futures: u64,
    pending: u64,
}

impl Tally {
    fn add(&mut self, run: &Tally) {
        self.events += run.events;
        self.crashes += run.crashes;
        self.sent += run.sent;
        self.ended += run.ended;
        self.futures += run.futures;
        self.pending += run.pending;
    }
}

/// Runs one schedule and crashes the machine before an event below `crash_below`.
fn run(scenario: &Scenario, image: &DiskImage, crash_below: Option<u64>) -> Tally {
    let sim = SimBackend::from_image(image.clone(), below(u64::MAX));
    sim.stop_tracing();
    wal::scheduled::set_timers(chance(2));
    let end = if chance(2) { CrashKind::Process } else { CrashKind::Power };
    // One run in eight ends without a crash inside.
    if let Some(events) = crash_below
        && !chance(8)
    {
        sim.crash_at(below(events));
    }
    let history = Arc::new(Mutex::new(History::new(scenario.writers)));
    let machine = Machine::new(sim.clone());
    let opened = builder(scenario).backend(Arc::new(machine.clone())).open(DIRECTORY);
    let found = opened.and_then(|db| {
        let [first, second] = KEYSPACES.map(|name| db.keyspace(name));
        Ok((db, [first?, second?]))
    });
    match found {
        Ok((db, keyspaces)) => {
            let history = Arc::clone(&history);
            let bed = Bed { db, machine, keyspaces, history, value_bytes: scenario.value_bytes };
            (scenario.body)(&bed);
            if chance(2) {
                bed.sync_by(|db| db.clone().close());
            }
        }
        Err(error) => assert!(sim.has_crashed(), "an open failed: {error}"),
    }
    sim.clear_faults();
    let image = match end {
        CrashKind::Process => sim.snapshot().process_crash(below(u64::MAX)),
        CrashKind::Power => match below(4) {
            0 => sim.snapshot().power_cut_none(),
            1 => sim.snapshot().power_cut_all(),
            _ => sim.snapshot().power_cut_random(below(u64::MAX)),
        },
    };
    let history = history.lock().unwrap();
    let least = match end {
        CrashKind::Process => history.ended(),
        CrashKind::Power => history.durable(),
    };
    if let Err(why) = reopened(scenario, image, (history.temporary, history.temporary_keys))
        .and_then(|seen| history.judge(&seen, &least, &history.sent()))
    {
        panic!("after {end:?}: {why}\n{history:?}");
    }
    let sum = |bounds: Bounds| bounds.iter().sum();
    let crashes = u64::from(sim.has_crashed());
    let (sent, ended) = (sum(history.sent()), sum(history.ended()));
    let (futures, pending) = (history.futures, history.pending);
    Tally { events: sim.events(), crashes, sent, ended, futures, pending }
}

/// Opens the disk with the production recovery and reads all contents.
fn reopened(
    scenario: &Scenario,
    image: DiskImage,
    (temporary, temporary_keys): (Option<bool>, usize),
) -> Result<Vec<Seen>, String> {
    let backend = Arc::new(SimBackend::from_image(image, 1));
    backend.stop_tracing();
    let builder = builder(scenario).background(Background::Manual).create(false).backend(backend);
    let db = builder.open(DIRECTORY).map_err(|error| format!("does not open: {error}"))?;
    let is_there = db.keyspaces().iter().any(|name| name == TEMPORARY);
    if temporary.is_some_and(|expected| expected != is_there) {
        return Err(format!("the keyspace {TEMPORARY} is there: {is_there}"));
    }
    if is_there && db.keyspace(TEMPORARY).map_or(0, |keyspace| keyspace.iter().count()) < temporary_keys {
        return Err(format!("the keyspace {TEMPORARY} has lost keys"));
    }
    let mut seen = vec![Seen::new(); scenario.writers.len()];
    let mut all = || {
        for (at, name) in KEYSPACES.into_iter().enumerate() {
            gather(&mut seen, (at, scenario.value_bytes), db.keyspace(name)?.iter())?;
        }
        if chance(8) {
            db.verify()?;
        }
        Ok::<_, Error>(())
    };
    all().map_err(|error| format!("cannot be read: {error}"))?;
    Ok(seen)
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().filter(|text| !text.is_empty()).map(|text| text.parse().expect("a number"))
}

/// The seed of the first schedule: the number in `SEED`, or one that is drawn once per process.
pub(crate) fn first_seed() -> u64 {
    static DRAWN: OnceLock<u64> = OnceLock::new();
    *DRAWN.get_or_init(|| {
        let seed = setting("SEED").unwrap_or_else(|| NativeBackend::new().random() >> 32);
        println!("SEED={seed}");
        seed
    })
}

/// Fewer schedules than this need not show everything.
const ENOUGH_TO_JUDGE: u64 = 100;

/// Runs the scenario under its schedules.
pub(crate) fn explore(scenario: Scenario) {
    let (first, count) = (first_seed(), setting("SCHEDULES").unwrap_or(SCHEDULES));
    let (scheduler, board) = Seeded::new(first..first + count);
    let mut config = Config::new();
    config.stack_size = STACK_BYTES;
    config.failure_persistence = FailurePersistence::None;
    config.max_steps = MaxSteps::FailAfter(MOST_STEPS);
    config.silence_warnings = true;
    let told = Arc::clone(&board);
    let (image, events) = (OnceLock::new(), OnceLock::new());
    let tally = Arc::new(Mutex::new(Tally::default()));
    let sum = Arc::clone(&tally);
    let ran = catch_unwind(AssertUnwindSafe(|| {
        Runner::new(scheduler, config).run(move || {
            let kind = told.lock().unwrap().kind;
            if kind == RunKind::Setup {
                image.set(setup(&scenario)).expect("once");
                return;
            }
            let image = image.get().expect("the first run made it");
            let run = run(&scenario, image, events.get().copied());
            if kind == RunKind::Probe {
                events.set(run.events).expect("once");
            } else {
                sum.lock().unwrap().add(&run);
            }
        })
    }));
    let name = scenario.name;
    match ran {
        Ok(runs) => {
            let (all, sum) = (runs as u64 - 2, tally.lock().unwrap());
            println!(
                "{name}: {all} schedules, {} with a crash, {} events; {} operations sent, {} acknowledged",
                sum.crashes, sum.events, sum.sent, sum.ended
            );
            if sum.futures > 0 {
                println!("{name}: {} futures, {} seen while they waited", sum.futures, sum.pending);
                assert!(
                    all < ENOUGH_TO_JUDGE || sum.pending > all / 8,
                    "futures that never wait show nothing"
                );
            }
            let means = "a series without a crash or an acknowledgement shows nothing";
            assert!(all < ENOUGH_TO_JUDGE || (sum.crashes > all / 4 && sum.ended > all / 2), "{means}");
        }
        Err(panic) => {
            let kind = board.lock().unwrap_or_else(PoisonError::into_inner).kind;
            match kind {
                RunKind::Seed(seed) => eprintln!("{name} failed; again: SEED={seed} just schedules {name} 1"),
                kind => eprintln!("{name} failed in its {kind:?}; again: just schedules {name} 1"),
            }
            resume_unwind(panic);
        }
    }
}
