//! Drives a store through a workload with threads, times every step, and checks every value.
//!
//! The time of a step begins at the end of the previous step, so that one reading of the clock is enough; it includes the
//! making of keys and values, for all stores alike. Threads draw numbers from their own seeded source and new keys from
//! their own residue class, so that they share nothing but the store.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::data::{KEY_BYTES, Key, Random, Zipf, is_for, key, make_value};
use crate::error::{Error, Result};
use crate::machine::{now, pause};
use crate::store::Store;
use crate::tasks::Tasks;
use crate::workload::{BATCH_RECORDS, Family, Mix, READS_IN_FLIGHT, SCAN_RECORDS, Step, Workload};

/// The length of a run, and its data.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The workload.
    pub workload: Workload,
    /// Records of the data set.
    pub records: u64,
    /// The first number of a missing key.
    pub first_new: u64,
    /// Continue for at least this long,
    pub at_least: Duration,
    /// and until this many bytes of keys and values are written,
    pub target_bytes: u64,
    /// but no longer than this.
    pub at_most: Duration,
    /// The start of the random choices.
    pub seed: u64,
}

/// The result of a run.
#[derive(Debug)]
pub struct Outcome {
    /// The operations of the workload.
    pub operations: u64,
    /// Keys and values written, in bytes.
    pub user_bytes: u64,
    /// New keys.
    pub new_records: u64,
    /// Every new key whose number is this far above the first is there.
    pub all_new_below: u64,
    /// From the first step to the end of the final sync.
    pub elapsed: Duration,
    /// The final sync alone; zero if nothing was written.
    pub final_sync: Duration,
    /// Nanoseconds of each step.
    pub latency: Histogram<u64>,
    /// The longest step that ended in each tenth of a second, in nanoseconds.
    pub pauses: Vec<u64>,
}

/// Length of a step in [`Outcome::pauses`].
const PAUSE_STEP: Duration = Duration::from_millis(100);

/// Runs a workload; a workload that writes ends with a sync inside the time.
///
/// # Errors
/// The store failed or answered wrong.
pub fn run(name: &str, store: &dyn Store, plan: &Plan) -> Result<Outcome> {
    let zipf = matches!(plan.workload.step, Step::Ycsb(_)).then(|| Zipf::new(plan.records));
    let stop = AtomicBool::new(false);
    let barrier = Barrier::new(usize::from(plan.workload.threads) + 1);
    let (begin, results) = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..plan.workload.threads)
            .map(|thread| {
                let mut worker = Worker::new((name, store), plan, zipf.as_ref(), thread);
                let (stop, barrier) = (&stop, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    let result = worker.run(stop);
                    if result.is_err() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    result.map(|()| worker)
                })
            })
            .collect();
        let over = AtomicBool::new(false);
        let syncer = store.sync_every().filter(|_| plan.workload.writes() && !plan.workload.is_durable());
        barrier.wait();
        let begin = now();
        let results = std::thread::scope(|inner| {
            let syncer = syncer.map(|every| {
                let over = &over;
                inner.spawn(move || sync_until(store, every, over))
            });
            let results: Vec<_> = threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
            over.store(true, Ordering::Relaxed);
            (results, syncer.map_or(Ok(Ok(())), std::thread::ScopedJoinHandle::join))
        });
        (begin, results)
    });
    let (workers, syncer) = results;
    syncer.map_err(|_| panicked(name))??;
    let mut done = Vec::new();
    for worker in workers {
        done.push(worker.map_err(|_| panicked(name))??);
    }
    finish(store, plan, begin, &done)
}

fn panicked(name: &str) -> Error {
    Error::Wrong { store: name.to_owned(), what: "a thread panicked".to_owned() }
}

/// Syncs at intervals, for stores that otherwise keep unsynced writes to themselves.
fn sync_until(store: &dyn Store, every: Duration, over: &AtomicBool) -> Result<()> {
    let mut next = now() + every;
    while !over.load(Ordering::Relaxed) {
        pause(Duration::from_millis(20));
        if now() >= next {
            store.sync()?;
            next = now() + every;
        }
    }
    Ok(())
}

fn finish(store: &dyn Store, plan: &Plan, begin: Instant, workers: &[Worker<'_>]) -> Result<Outcome> {
    let before_sync = now();
    if plan.workload.writes() {
        store.sync()?;
    }
    let end = now();
    let fewest = workers.iter().map(|worker| worker.new_records).min().unwrap_or(0);
    let mut latency = new_histogram();
    let mut pauses: Vec<u64> = Vec::new();
    for worker in workers {
        // All have the same bounds, so this cannot fail.
        latency.add(&worker.latency).map_err(|error| Error::Usage(error.to_string()))?;
        pauses.resize(pauses.len().max(worker.pauses.len()), 0);
        for (all, own) in pauses.iter_mut().zip(&worker.pauses) {
            *all = (*all).max(*own);
        }
    }
    Ok(Outcome {
        operations: workers.iter().map(|worker| worker.operations).sum(),
        user_bytes: workers.iter().map(|worker| worker.user_bytes).sum(),
        new_records: workers.iter().map(|worker| worker.new_records).sum(),
        all_new_below: fewest * workers.len() as u64,
        elapsed: end - begin,
        final_sync: if plan.workload.writes() { end - before_sync } else { Duration::ZERO },
        latency,
        pauses,
    })
}

/// Nanoseconds up to 1000 s, to a hundredth.
pub(crate) fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 1_000_000_000_000, 2).expect("these bounds are in range")
}

/// One thread of a run.
struct Worker<'a> {
    name: &'a str,
    store: &'a dyn Store,
    plan: &'a Plan,
    zipf: Option<&'a Zipf>,
    thread: u16,
    random: Random,
    value: Vec<u8>,
    batch: Vec<(Key, Vec<u8>)>,
    keys: Vec<Key>,
    /// Gets under way, each with its key.
    gets: Option<Tasks<'a, Key, Result<Option<Vec<u8>>>>>,
    operations: u64,
    user_bytes: u64,
    new_records: u64,
    latency: Histogram<u64>,
    pauses: Vec<u64>,
}

impl<'a> Worker<'a> {
    fn new(
        store: (&'a str, &'a dyn Store),
        plan: &'a Plan,
        zipf: Option<&'a Zipf>,
        thread: u16,
    ) -> Worker<'a> {
        Worker {
            name: store.0,
            store: store.1,
            plan,
            zipf,
            thread,
            random: Random::new(plan.seed ^ u64::from(thread) << 48),
            value: Vec::new(),
            batch: vec![([0; KEY_BYTES], Vec::new()); BATCH_RECORDS],
            keys: vec![[0; KEY_BYTES]; plan.workload.keys_in_call()],
            gets: None,
            operations: 0,
            user_bytes: 0,
            new_records: 0,
            latency: new_histogram(),
            pauses: Vec::new(),
        }
    }

    fn run(&mut self, stop: &AtomicBool) -> Result<()> {
        let begin = now();
        let own_target = self.plan.target_bytes / u64::from(self.plan.workload.threads);
        let mut last = begin;
        loop {
            self.operations += self.step()?;
            let end = now();
            self.note(begin, last, end);
            last = end;
            let elapsed = end - begin;
            let is_done = elapsed >= self.plan.at_least && self.user_bytes >= own_target;
            if is_done || elapsed >= self.plan.at_most || stop.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
    }

    fn note(&mut self, begin: Instant, last: Instant, end: Instant) {
        let nanos = u64::try_from((end - last).as_nanos()).unwrap_or(u64::MAX);
        self.latency.saturating_record(nanos);
        let at = usize::try_from((end - begin).as_millis() / PAUSE_STEP.as_millis()).unwrap_or(0);
        if self.pauses.len() <= at {
            self.pauses.resize(at + 1, 0);
        }
        if let Some(pause) = self.pauses.get_mut(at) {
            *pause = (*pause).max(nanos);
        }
    }

    /// One step; returns the number of its operations.
    fn step(&mut self) -> Result<u64> {
        match self.plan.workload.step {
            Step::Put => self.put_new(),
            Step::Load | Step::LoadSorted => self.load(),
            Step::Get => {
                let number = self.random.below(self.plan.records);
                self.get(number)
            }
            Step::GetMissing => self.get_missing(),
            Step::MultiGet => self.multi_get(),
            Step::GetAsync => self.get_async(),
            Step::ScanShort => {
                let number = self.random.below(self.plan.records);
                self.scan(number, SCAN_RECORDS)
            }
            Step::ScanAll => self.scan_all(),
            Step::Ycsb(mix) => self.ycsb(mix),
            Step::Overwrite => {
                let number = self.random.below(self.plan.records);
                self.put(number)
            }
        }
    }

    fn value_bytes(&self) -> usize {
        self.plan.workload.value_bytes
    }

    /// A number that no other step or thread of this run draws.
    fn new_number(&mut self) -> u64 {
        let number = self.plan.first_new
            + self.new_records * u64::from(self.plan.workload.threads)
            + u64::from(self.thread);
        self.new_records += 1;
        number
    }

    fn put(&mut self, number: u64) -> Result<u64> {
        let key = key(number);
        let version = self.random.number();
        make_value(&mut self.value, self.plan.workload.value_bytes, &key, version);
        self.store.put(&key, &self.value)?;
        self.user_bytes += (KEY_BYTES + self.value.len()) as u64;
        Ok(1)
    }

    fn put_new(&mut self) -> Result<u64> {
        let number = self.new_number();
        self.put(number)
    }

    fn load(&mut self) -> Result<u64> {
        let mut batch = std::mem::take(&mut self.batch);
        for (slot, value) in &mut batch {
            *slot = self.plan.workload.key(self.new_number());
            make_value(value, self.value_bytes(), slot, 0);
        }
        self.store.put_batch(&batch)?;
        self.batch = batch;
        self.user_bytes += (BATCH_RECORDS * (KEY_BYTES + self.value_bytes())) as u64;
        Ok(BATCH_RECORDS as u64)
    }

    fn get(&mut self, number: u64) -> Result<u64> {
        get_and_check((self.name, self.store), &key(number), self.value_bytes())?;
        Ok(1)
    }

    fn get_missing(&mut self) -> Result<u64> {
        // Loads and inserts stay below this number.
        let key = key(u64::MAX / 2 + self.random.below(1 << 40));
        if self.store.get(&key, &mut |_| ())? {
            return Err(self.wrong("found a key that was never written"));
        }
        Ok(1)
    }

    fn multi_get(&mut self) -> Result<u64> {
        for slot in &mut self.keys {
            *slot = key(self.random.below(self.plan.records));
        }
        let (keys, len_bytes) = (&self.keys, self.plan.workload.value_bytes);
        let mut right = 0;
        self.store.multi_get(keys, &mut |at, value| {
            let is_right = keys.get(at).zip(value).is_some_and(|(key, value)| is_for(key, value, len_bytes));
            right += usize::from(is_right);
        })?;
        if right == keys.len() { Ok(keys.len() as u64) } else { Err(self.wrong("multi_get")) }
    }

    /// Ends one get of those under way.
    fn get_async(&mut self) -> Result<u64> {
        let (store, records, random) = (self.store, self.plan.records, &mut self.random);
        // Made here, on the thread that runs.
        let gets = self.gets.get_or_insert_with(Tasks::new);
        let (key, found) = gets.next(READS_IN_FLIGHT, || {
            let key = key(random.below(records));
            (key, store.begin_get(&key))
        });
        let is_right = found?.is_some_and(|value| is_for(&key, &value, self.value_bytes()));
        if is_right { Ok(1) } else { Err(self.wrong("get_async")) }
    }

    fn scan(&mut self, number: u64, limit: usize) -> Result<u64> {
        let from = key(number);
        let shown = self.checked_scan(&from, limit)?;
        // The first record of a scan must be there, unless its insert has not happened yet.
        if shown == 0 { Err(self.wrong("a scan from a key found nothing")) } else { Ok(1) }
    }

    fn scan_all(&mut self) -> Result<u64> {
        let shown = self.checked_scan(&[0; KEY_BYTES], usize::MAX)?;
        if shown == self.plan.records {
            Ok(shown)
        } else {
            Err(self.wrong(&format!("a scan found {shown} records of {}", self.plan.records)))
        }
    }

    /// Scans; every value must be its key's, keys must rise.
    fn checked_scan(&self, from: &Key, limit: usize) -> Result<u64> {
        let len_bytes = self.value_bytes();
        let mut last: Option<Key> = None;
        let mut is_right = true;
        let shown = self.store.scan(from, limit, &mut |key, value| {
            let own: Option<Key> = key.try_into().ok();
            is_right &=
                own.is_some() && is_for(key, value, len_bytes) && last < own && key >= from.as_slice();
            last = own;
        })?;
        if is_right { Ok(shown) } else { Err(self.wrong("a scan showed a wrong value or order")) }
    }

    fn ycsb(&mut self, mix: Mix) -> Result<u64> {
        let zipf = self.zipf.ok_or_else(|| self.wrong("no distribution"))?;
        let number = zipf.number(&mut self.random);
        let mut choice = self.random.below(100);
        if choice < mix.reads {
            return self.get(number);
        }
        choice -= mix.reads;
        if choice < mix.updates {
            return self.put(number);
        }
        choice -= mix.updates;
        if choice < mix.read_modify_writes {
            self.get(number)?;
            return self.put(number);
        }
        choice -= mix.read_modify_writes;
        if choice < mix.scans {
            let limit = usize::try_from(1 + self.random.below(SCAN_RECORDS as u64)).unwrap_or(1);
            return self.scan(number, limit);
        }
        self.put_new()
    }

    fn wrong(&self, what: &str) -> Error {
        Error::Wrong { store: self.name.to_owned(), what: what.to_owned() }
    }
}

/// Gets a record that must be there and right.
///
/// # Errors
/// The store failed, or the record is missing or wrong.
pub fn get_and_check(store: (&str, &dyn Store), key: &Key, len_bytes: usize) -> Result<()> {
    let mut is_right = false;
    let found = store.1.get(key, &mut |value| is_right = is_for(key, value, len_bytes))?;
    if found && is_right {
        return Ok(());
    }
    let what = if found { "has a wrong value" } else { "is missing" };
    Err(Error::Wrong { store: store.0.to_owned(), what: format!("record {} {what}", key.escape_ascii()) })
}

/// Writes the records `0..records` of a data set in batches, then waits until the store has settled.
///
/// # Errors
/// The store failed.
pub fn load(store: &dyn Store, records: u64, value_bytes: usize) -> Result<()> {
    let mut batch: Vec<(Key, Vec<u8>)> = Vec::new();
    for number in 0..records {
        let key = key(number);
        let mut value = Vec::new();
        make_value(&mut value, value_bytes, &key, 0);
        batch.push((key, value));
        if batch.len() == BATCH_RECORDS || number + 1 == records {
            store.put_batch(&batch)?;
            batch.clear();
        }
    }
    store.sync()?;
    store.settle()
}

/// Checks, outside of the time, a sample of the records that a run wrote.
///
/// # Errors
/// The store failed, or a record is missing or wrong.
pub fn check_sample(store: (&str, &dyn Store), plan: &Plan, outcome: &Outcome) -> Result<()> {
    let mut random = Random::new(plan.seed ^ 0x5a);
    for _ in 0..1000 {
        let number = match plan.workload.family {
            Family::Fresh => plan.first_new + random.below(outcome.all_new_below),
            _ => random.below(plan.records),
        };
        get_and_check(store, &plan.workload.key(number), plan.workload.value_bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::store::{SeeRecord, SeeValue};
    use crate::workload;

    /// A map that damages one value in this many.
    struct Map {
        records: Mutex<BTreeMap<Key, Vec<u8>>>,
        damage_every: u64,
        gets: AtomicU64,
    }

    impl Store for Map {
        fn put(&self, key: &Key, value: &[u8]) -> Result<()> {
            self.records.lock().expect("not poisoned").insert(*key, value.to_vec());
            Ok(())
        }
        fn put_batch(&self, records: &[(Key, Vec<u8>)]) -> Result<()> {
            records.iter().try_for_each(|(key, value)| self.put(key, value))
        }
        fn get(&self, key: &Key, see: &mut SeeValue<'_>) -> Result<bool> {
            let Some(mut value) = self.records.lock().expect("not poisoned").get(key).cloned() else {
                return Ok(false);
            };
            let count = self.gets.fetch_add(1, Ordering::Relaxed) + 1;
            if self.damage_every > 0 && count.is_multiple_of(self.damage_every) {
                value[3] ^= 1;
            }
            see(&value);
            Ok(true)
        }
        fn scan(&self, from: &Key, limit: usize, see: &mut SeeRecord<'_>) -> Result<u64> {
            let records = self.records.lock().expect("not poisoned");
            let shown = records.range(*from..).take(limit).map(|(key, value)| see(key, value));
            Ok(shown.count() as u64)
        }
        fn sync(&self) -> Result<()> {
            Ok(())
        }
    }

    fn map(damage_every: u64) -> Map {
        let map = Map { records: Mutex::default(), damage_every, gets: AtomicU64::new(0) };
        load(&map, 2000, 100).expect("a map takes everything");
        map
    }

    fn plan(name: &str) -> Plan {
        let workload = Workload { value_bytes: 100, ..Workload::named(name).expect("known") };
        let time = Duration::from_millis(30);
        let first_new = 1 << 32;
        Plan { workload, records: 2000, first_new, at_least: time, target_bytes: 0, at_most: time, seed: 1 }
    }

    #[test]
    fn every_workload_is_content_with_a_right_store() {
        for workload in workload::ALL {
            let (map, plan) = (map(0), plan(workload.name));
            let outcome =
                run("map", &map, &plan).unwrap_or_else(|error| panic!("{}: {error}", workload.name));
            assert!(outcome.operations > 0, "{}", workload.name);
            assert!(!outcome.latency.is_empty());
            assert_eq!(outcome.user_bytes > 0, workload.writes(), "{}", workload.name);
            check_sample(("map", &map), &plan, &outcome).expect("all is there");
        }
    }

    #[test]
    fn one_damaged_value_fails_the_run() {
        for name in ["get_hot/1", "get_cold/8", "multi_get", "get_async_cold", "ycsb_a"] {
            let result = run("map", &map(100), &plan(name));
            assert!(matches!(result, Err(Error::Wrong { .. })), "{name}: {result:?}");
        }
    }

    #[test]
    fn a_scan_that_misses_a_record_fails_the_run() {
        let map = map(0);
        map.records.lock().expect("not poisoned").pop_first();
        assert!(matches!(run("map", &map, &plan("scan_all")), Err(Error::Wrong { .. })));
    }

    #[test]
    fn a_run_goes_on_until_its_bytes_are_written_or_its_time_is_up() {
        let (map, mut plan) = (map(0), plan("put/4"));
        plan.target_bytes = 1 << 20;
        plan.at_least = Duration::ZERO;
        plan.at_most = Duration::from_mins(1);
        let outcome = run("map", &map, &plan).expect("a map takes everything");
        assert!(outcome.user_bytes >= 1 << 20);
        assert!(outcome.elapsed < Duration::from_mins(1));
    }
}
