//! Gets as futures: they return the result of a plain get, run by the thousands from one thread, and may be dropped, or the
//! store closed, at any moment.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::random::Random;
use aio::sim::{EventKind, Fault, FaultPlan};
use aio::{Backend, BackendLayer, Completion, Errno, NativeBackend, Queue, QueueLayer, Reactor, SimBackend};
use esker::testing::{Background, BuilderExt, Sizes};
use esker::{Builder, Db, Error, Get};

/// Small files, a block for each of the larger values, and a cache of at most a megabyte.
fn builder(backend: Arc<dyn Backend>, background: Background) -> Builder {
    let sizes = Sizes {
        memtable_bytes: Some(64 << 10),
        segment_bytes: Some(256 << 10),
        block_bytes: Some(512),
        ..Sizes::default()
    };
    let builder = Db::builder().memory_budget_bytes(1 << 20).backend(backend).background(background);
    builder.durability(esker::Durability::Process).sizes(sizes)
}

fn native(dir: &Path) -> (Arc<NativeBackend>, Db) {
    let backend = Arc::new(NativeBackend::new());
    let db =
        builder(Arc::<NativeBackend>::clone(&backend), Background::Threads).open(dir.join("store")).unwrap();
    (backend, db)
}

fn simulated(sim: &SimBackend) -> Db {
    builder(Arc::new(sim.clone()), Background::Manual).open("/store").unwrap()
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Stops the reads of futures while it is shut.
#[derive(Debug, Default)]
struct Gate {
    is_shut: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn shut(&self) -> ShutGate<'_> {
        *self.is_shut.lock().unwrap() = true;
        ShutGate(self)
    }

    fn pass(&self) {
        drop(self.opened.wait_while(self.is_shut.lock().unwrap(), |is_shut| *is_shut).unwrap());
    }
}

/// Its drop opens the gate. Declared after the store, it does so before the store closes, even if an assertion has failed.
struct ShutGate<'a>(&'a Gate);

impl Drop for ShutGate<'_> {
    fn drop(&mut self) {
        *self.0.is_shut.lock().unwrap() = false;
        self.0.opened.notify_all();
    }
}

/// The device of this machine, with a gate before the completions of asynchronous reads. Without it the reactor may be
/// faster than the thread that starts the futures.
#[derive(Debug, Default)]
struct GatedDevice {
    native: NativeBackend,
    gate: Arc<Gate>,
}

impl BackendLayer for GatedDevice {
    fn below(&self) -> &dyn Backend {
        &self.native
    }

    fn reactor(&self, slots: usize) -> aio::Result<Reactor> {
        let gate = Arc::clone(&self.gate);
        Reactor::with_thread(Box::new(GatedQueue { native: Backend::queue(&self.native, slots)?, gate }))
    }
}

#[derive(Debug)]
struct GatedQueue {
    native: Box<dyn Queue>,
    gate: Arc<Gate>,
}

impl QueueLayer for GatedQueue {
    fn below(&self) -> &dyn Queue {
        &*self.native
    }

    fn below_mut(&mut self) -> &mut dyn Queue {
        &mut *self.native
    }

    fn wait(
        &mut self,
        at_least: usize,
        deadline: Option<Duration>,
        completions: &mut Vec<Completion>,
    ) -> aio::Result<aio::Wake> {
        self.gate.pass();
        self.native.wait(at_least, deadline, completions)
    }
}

/// Bytes that do not compress.
fn bytes(random: &mut Random, len: usize) -> Vec<u8> {
    (0..len).map(|_| u8::try_from(random.below(256)).unwrap()).collect()
}

fn key(number: usize) -> Vec<u8> {
    format!("key {number:05}").into_bytes()
}

/// Makes `count` keys with random values, each in a block of its own, in one run. Returns their values too.
fn fill(db: &Db, count: usize) -> Vec<Vec<u8>> {
    let mut random = Random::new(5);
    let ks = db.keyspace("default").unwrap();
    let values: Vec<_> = (0..count).map(|_| bytes(&mut random, 700)).collect();
    for (number, value) in values.iter().enumerate() {
        ks.put(key(number), value).unwrap();
    }
    db.compact().unwrap();
    values
}

/// A waker that sends the number of its task.
struct Numbered(usize, Mutex<Sender<usize>>);

impl Wake for Numbered {
    fn wake(self: Arc<Self>) {
        // The receiver is gone when the test has ended.
        let _ = self.1.lock().unwrap().send(self.0);
    }
}

/// Futures on one thread. Each is polled only after it was woken.
struct Tasks<F: Future> {
    futures: Vec<Option<Pin<Box<F>>>>,
    outputs: BTreeMap<usize, F::Output>,
    wakers: Vec<Waker>,
    woken: Receiver<usize>,
}

impl<F: Future> Tasks<F> {
    /// Polls each future once.
    fn start(futures: impl IntoIterator<Item = F>) -> Tasks<F> {
        let (sender, woken) = channel();
        let futures: Vec<_> = futures.into_iter().map(|future| Some(Box::pin(future))).collect();
        let numbered = |number| Waker::from(Arc::new(Numbered(number, Mutex::new(sender.clone()))));
        let wakers = (0..futures.len()).map(numbered).collect();
        let mut tasks = Tasks { futures, outputs: BTreeMap::new(), wakers, woken };
        (0..tasks.futures.len()).for_each(|number| tasks.poll(number));
        tasks
    }

    fn poll(&mut self, number: usize) {
        let Some(future) = &mut self.futures[number] else { return };
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&self.wakers[number])) {
            self.outputs.insert(number, output);
            self.futures[number] = None;
        }
    }

    fn pending(&self) -> usize {
        self.futures.iter().flatten().count()
    }

    fn finish(mut self) -> Vec<F::Output> {
        while self.pending() > 0 {
            let number = self.woken.recv().unwrap();
            self.poll(number);
        }
        self.outputs.into_values().collect()
    }
}

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// Compares gets as futures with a sorted map, while the store is written to: of current values and through snapshots.
fn compare_with_a_model(db: &Db, random: &mut Random) {
    let ks = db.keyspace("default").unwrap();
    let mut model: Model = ks.iter().map(|pair| pair.unwrap()).map(|(k, v)| (k.into(), v.into())).collect();
    let mut kept = Vec::new();
    for round in 0..40 {
        for _ in 0..60 {
            let key = key(random.below(300));
            if random.below(4) == 0 {
                ks.delete(&key).unwrap();
                model.remove(&key);
            } else {
                let len = random.below(900);
                let value = bytes(random, len);
                ks.put(&key, &value).unwrap();
                model.insert(key, value);
            }
        }
        match random.below(6) {
            0 => db.flush().unwrap(),
            1 if random.below(4) == 0 => db.compact().unwrap(),
            _ => {}
        }
        if round % 8 == 0 {
            kept.push((db.snapshot(), model.clone()));
        }
        let keys: Vec<_> = (0..100).map(|_| key(random.below(320))).collect();
        let expect = |model: &Model| keys.iter().map(|key| model.get(key).cloned()).collect::<Vec<_>>();
        let plain = |values: Vec<Option<bytes::Bytes>>| {
            values.into_iter().map(|value| value.map(Vec::from)).collect::<Vec<_>>()
        };
        let gets = Tasks::start(keys.iter().map(|key| ks.get_async(key)));
        let all = ks.multi_get_async(&keys);
        // Futures started before these writes return the values of that time.
        ks.put(&keys[0], "later").unwrap();
        let gets = gets.finish().into_iter().map(Result::unwrap).collect();
        assert_eq!(plain(gets), expect(&model), "round {round}");
        assert_eq!(plain(all.wait().unwrap()), expect(&model), "round {round}");
        model.insert(keys[0].clone(), b"later".to_vec());
        for (snapshot, model) in kept.iter().rev().take(3) {
            let all = snapshot.multi_get_async(&ks, &keys).wait().unwrap();
            assert_eq!(plain(all), expect(model), "snapshot in round {round}");
            let one = snapshot.get_async(&ks, &keys[1]).wait().unwrap();
            assert_eq!(one.map(Vec::from), expect(model)[1]);
        }
    }
}

#[test]
fn futures_return_the_results_of_gets_now_and_at_snapshots() {
    let mut random = Random::new(11);
    let dir = directory();
    let sim = SimBackend::new(3);
    for _incarnation in 0..3 {
        compare_with_a_model(&native(dir.path()).1, &mut random);
        compare_with_a_model(&simulated(&sim), &mut random);
    }
}

#[test]
fn thousands_are_in_flight_from_one_thread_over_a_store_larger_than_its_cache() {
    // Once with index and filter in memory and once without. Without, futures that need the same index or filter block at
    // the same time each read it.
    for (budget_bytes, is_paged, reads_each) in [(6 << 20, false, 1), (1 << 20, true, 3)] {
        thousands_in_flight(budget_bytes, is_paged, reads_each);
    }
}

fn thousands_in_flight(budget_bytes: u64, is_paged: bool, reads_each: u64) {
    const COUNT: usize = 5000;
    let dir = directory();
    let device = Arc::new(GatedDevice::default());
    let builder = builder(Arc::<GatedDevice>::clone(&device), Background::Threads);
    let db = builder.memory_budget_bytes(budget_bytes).open(dir.path().join("store")).unwrap();
    let values = fill(&db, COUNT);
    let ks = db.keyspace("default").unwrap();
    assert_eq!(db.metrics().paged_segments > 0, is_paged);
    let before = device.native.profile();
    let shut = device.gate.shut();
    let tasks = Tasks::start((0..COUNT).map(|number| ks.get_async(key(number))));
    assert_eq!(tasks.pending(), COUNT);
    drop(shut);
    for (value, expected) in tasks.finish().into_iter().zip(&values) {
        assert_eq!(value.unwrap().as_deref(), Some(&expected[..]));
    }
    let after = device.native.profile();
    let reads = after.read().count - before.read().count;
    assert!(reads > COUNT as u64 * 3 / 4, "{reads} reads");
    assert!(reads <= reads_each * COUNT as u64, "{reads} reads");
    assert_eq!(after.depths[8..], before.depths[8..], "no more in flight than there are slots");
    assert!(db.metrics().cache_bytes < 1 << 20);
    db.close().unwrap();
}

#[test]
fn a_value_in_memory_is_ready_at_the_first_poll() {
    let sim = SimBackend::new(1);
    let db = simulated(&sim);
    let ks = db.keyspace("default").unwrap();
    ks.put("flushed", "1").unwrap();
    db.flush().unwrap();
    assert!(ks.get("flushed").unwrap().is_some(), "now in the cache");
    ks.put("written", "2").unwrap();
    let reads = db.metrics().io.read().count;
    for (key, expected) in [("flushed", Some("1")), ("written", Some("2")), ("missing", None)] {
        let found = Tasks::start([ks.get_async(key)]).outputs.remove(&0).unwrap().unwrap();
        assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{key}");
    }
    let none: [&[u8]; 0] = [];
    assert!(ks.multi_get_async(&none).wait().unwrap().is_empty());
    assert_eq!(db.metrics().io.read().count, reads);
}

#[test]
fn futures_can_be_dropped_at_any_stage() {
    let dir = directory();
    let (_, db) = native(dir.path());
    let values = fill(&db, 1000);
    let ks = db.keyspace("default").unwrap();
    let mut random = Random::new(9);
    for round in 0..20 {
        let mut tasks = Tasks::start((0..400).map(|number| ks.get_async(key(number))));
        // Never polled.
        drop((400..500).map(|number| ks.get_async(key(number))).collect::<Vec<Get>>());
        drop(ks.multi_get_async(&(500..700).map(key).collect::<Vec<_>>()));
        for _ in 0..random.below(200) {
            if tasks.pending() > 0 {
                let number = tasks.woken.recv().unwrap();
                tasks.poll(number);
            }
        }
        for (number, value) in std::mem::take(&mut tasks.outputs) {
            assert_eq!(value.unwrap().as_deref(), Some(&values[number][..]), "round {round}");
        }
        drop(tasks);
        let number = 700 + random.below(300);
        assert_eq!(ks.get_async(key(number)).wait().unwrap().as_deref(), Some(&values[number][..]));
    }
    db.close().unwrap();
}

#[test]
fn a_close_ends_the_futures_under_way() {
    const COUNT: usize = 1000;
    let dir = directory();
    for polled_while_closing in [false, true] {
        let device = Arc::new(GatedDevice::default());
        let builder = builder(Arc::<GatedDevice>::clone(&device), Background::Threads);
        let db = builder.open(dir.path().join("store")).unwrap();
        fill(&db, COUNT);
        let ks = db.keyspace("default").unwrap();
        let ended = std::thread::scope(|scope| {
            let shut = device.gate.shut();
            let tasks = Tasks::start((0..COUNT).map(|number| ks.get_async(key(number))));
            assert_eq!(tasks.pending(), COUNT);
            let closing = scope.spawn(|| db.close());
            while !matches!(ks.get("k"), Err(Error::Closed)) {
                std::thread::yield_now();
            }
            drop(shut);
            if polled_while_closing {
                let ended = tasks.finish();
                closing.join().unwrap().unwrap();
                return ended;
            }
            closing.join().unwrap().unwrap();
            tasks.finish()
        });
        assert_eq!(ended.len(), COUNT);
        assert!(ended.iter().all(|value| matches!(value, Err(Error::Closed))));
        assert!(matches!(ks.get_async("k").wait(), Err(Error::Closed)));
    }
}

#[test]
fn a_future_keeps_the_store_open() {
    let dir = directory();
    let (_, db) = native(dir.path());
    let values = fill(&db, 100);
    drop(db);
    let get = native(dir.path()).1.keyspace("default").unwrap().get_async(key(7));
    assert!(matches!(Db::open(dir.path().join("store")), Err(Error::Locked { .. })));
    assert_eq!(get.wait().unwrap().as_deref(), Some(&values[7][..]));
    Db::open(dir.path().join("store")).unwrap();
}

#[test]
fn a_failing_read_is_the_error_of_its_future_and_of_no_other() {
    const KEYS: usize = 70;
    let sim = SimBackend::new(5);
    fill(&simulated(&sim), KEYS);
    for (fault, kind) in [
        (Fault::Errno(Errno::IO), EventKind::Read),
        (Fault::Short(512), EventKind::Read),
        (Fault::FlipBit(99), EventKind::Read),
        (Fault::Errno(Errno::IO), EventKind::Submit),
    ] {
        for skip in 0..10 {
            let sim = SimBackend::from_image(sim.snapshot(), skip);
            let db = simulated(&sim);
            let ks = db.keyspace("default").unwrap();
            sim.fail(FaultPlan::new(fault).on(&[kind]).path("segments").skip(skip));
            let failed: Vec<_> =
                (0..KEYS).filter_map(|number| ks.get_async(key(number)).wait().err()).collect();
            assert_eq!(sim.faults_struck(), 1, "{fault:?} in call {skip}");
            match (fault, &failed[..]) {
                (Fault::FlipBit(_), [Error::Corrupt { .. }]) | (_, [Error::Io { .. }]) => {}
                (_, other) => panic!("{fault:?} in {kind:?} {skip}: {other:?}"),
            }
            let keys: Vec<_> = (0..KEYS).map(key).collect();
            assert!(ks.multi_get_async(&keys).wait().unwrap().iter().all(Option::is_some));
        }
    }
}

#[test]
fn a_file_that_is_cut_short_is_an_error_of_the_futures_that_read_it() {
    let dir = directory();
    let (_, db) = native(dir.path());
    let values = fill(&db, 1000);
    let ks = db.keyspace("default").unwrap();
    let segments = std::fs::read_dir(dir.path().join("store/segments")).unwrap();
    let mut segments: Vec<_> = segments.map(|entry| entry.unwrap().path()).collect();
    segments.sort_unstable();
    assert!(segments.len() > 1);
    std::fs::OpenOptions::new().write(true).open(&segments[0]).unwrap().set_len(0).unwrap();
    let tasks = Tasks::start((0..1000).map(|number| ks.get_async(key(number))));
    let (mut right, mut failed) = (0, 0);
    for (value, expected) in tasks.finish().into_iter().zip(&values) {
        match value {
            Ok(found) => {
                assert_eq!(found.as_deref(), Some(&expected[..]));
                right += 1;
            }
            Err(Error::Io { .. }) => failed += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(right > 100 && failed > 100, "{right} right, {failed} failed");
    let keys: Vec<_> = (0..1000).map(key).collect();
    assert!(matches!(ks.multi_get_async(&keys).wait(), Err(Error::Io { .. })));
}

#[test]
fn wrong_keys_and_handles_are_errors_of_the_future() {
    let sim = SimBackend::new(1);
    let db = simulated(&sim);
    let ks = db.keyspace("a").unwrap();
    assert!(matches!(ks.get_async("").wait(), Err(Error::InvalidArgument { .. })));
    let long = vec![7; esker::MAX_KEY_BYTES + 1];
    assert!(matches!(ks.multi_get_async(&[b"k" as &[u8], &long]).wait(), Err(Error::TooLarge { .. })));
    let foreign = simulated(&SimBackend::new(2)).snapshot();
    assert!(matches!(foreign.get_async(&ks, "k").wait(), Err(Error::InvalidArgument { .. })));
    let snapshot = db.snapshot();
    db.drop_keyspace("a").unwrap();
    assert!(matches!(ks.get_async("k").wait(), Err(Error::Closed)));
    assert!(matches!(snapshot.multi_get_async(&ks, &["k"]).wait(), Err(Error::Closed)));
}

/// Threads of this process whose name is the reactor's.
fn reactor_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let name = |task: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(task.ok()?.path().join("comm")).ok()
    };
    tasks.filter_map(name).filter(|name| name.trim() == "aio-reactor").count()
}

/// Runs the test in a process of its own, where no other test has a reactor.
#[test]
fn the_first_asynchronous_read_starts_the_only_thread_and_a_close_ends_it() {
    const MARK: &str = "ESKER_TEST_COUNT_THREADS";
    if std::env::var_os(MARK).is_none() {
        let test = "get_async::the_first_asynchronous_read_starts_the_only_thread_and_a_close_ends_it";
        let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
        let output = alone.args(["--exact", test]).env(MARK, "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let dir = directory();
    let manual = builder(Arc::new(NativeBackend::new()), Background::Manual);
    for (builder, threads) in [(manual.clone(), 0), (manual.background(Background::Threads), 1)] {
        let path = dir.path().join(threads.to_string());
        fill(&builder.clone().open(&path).unwrap(), 100);
        let db = builder.open(&path).unwrap();
        let ks = db.keyspace("default").unwrap();
        ks.put("hot", "1").unwrap();
        assert!(ks.get_async("hot").wait().unwrap().is_some());
        assert!(ks.get(key(1)).unwrap().is_some());
        assert!(ks.multi_get(&[key(2), key(3)]).unwrap().iter().all(Option::is_some));
        assert_eq!(reactor_threads(), 0);
        let tasks = Tasks::start((4..100).map(|number| ks.get_async(key(number))));
        assert!(tasks.finish().into_iter().all(|value| value.unwrap().is_some()));
        assert_eq!(reactor_threads(), threads);
        db.close().unwrap();
        // The list of threads may lag behind.
        while reactor_threads() > 0 {
            std::thread::yield_now();
        }
    }
}
