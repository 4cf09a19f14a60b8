//! The machine with a device that fails now and then: a seeded share of writes and syncs is executed and then reported as
//! EIO. An error does not say how much was done, so an executed write is as good as any.
//!
//! Invariant: reads, names and everything else are those of the machine.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aio::{
    Backend, Completion, Counters, Errno, Error, File, Lock, NativeBackend, OpenMode, Operation,
    OperationKind, Queue, Result, SharedMap, Stat, Wake, WakeUp,
};
use parking_lot::Mutex;

/// Decides which call fails.
#[derive(Debug)]
struct Faults {
    rng: Mutex<fastrand::Rng>,
    /// One in this many fails.
    one_in: u64,
    struck: AtomicU64,
}

impl Faults {
    fn strikes(&self) -> bool {
        let strikes = self.rng.lock().u64(..self.one_in) == 0;
        self.struck.fetch_add(u64::from(strikes), Ordering::Relaxed);
        strikes
    }
}

/// The machine, with faults.
#[derive(Debug)]
pub(crate) struct FaultyBackend {
    machine: NativeBackend,
    faults: Arc<Faults>,
}

impl FaultyBackend {
    /// One in `one_in` writes and syncs fails.
    pub(crate) fn new(seed: u64, one_in: u64) -> FaultyBackend {
        let faults =
            Faults { rng: Mutex::new(fastrand::Rng::with_seed(seed)), one_in, struck: AtomicU64::new(0) };
        FaultyBackend { machine: NativeBackend::new(), faults: Arc::new(faults) }
    }

    /// How many have failed.
    pub(crate) fn struck(&self) -> u64 {
        self.faults.struck.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct FaultyQueue {
    machine: Box<dyn Queue>,
    faults: Arc<Faults>,
}

impl Queue for FaultyQueue {
    fn submit(&mut self, operations: &mut VecDeque<Operation>) -> Result<usize> {
        self.machine.submit(operations)
    }

    fn wait(
        &mut self,
        at_least: usize,
        deadline: Option<Duration>,
        completions: &mut Vec<Completion>,
    ) -> Result<Wake> {
        let before = completions.len();
        let woken = self.machine.wait(at_least, deadline, completions)?;
        for completion in completions.iter_mut().skip(before) {
            if !matches!(completion.operation.kind(), OperationKind::Read) && self.faults.strikes() {
                completion.result = Err(Errno::IO);
            }
        }
        Ok(woken)
    }

    fn in_flight(&self) -> usize {
        self.machine.in_flight()
    }

    fn capacity(&self) -> usize {
        self.machine.capacity()
    }

    fn waker(&self) -> Arc<dyn WakeUp> {
        self.machine.waker()
    }
}

impl Backend for FaultyBackend {
    fn queue(&self, slots: usize) -> Result<Box<dyn Queue>> {
        let machine = self.machine.queue(slots)?;
        Ok(Box::new(FaultyQueue { machine, faults: Arc::clone(&self.faults) }))
    }

    fn sync(&self, file: &File) -> Result<()> {
        self.machine.sync(file)?;
        if self.faults.strikes() {
            let path = file.path().to_owned();
            return Err(Error::Os { call: "fdatasync", path, offset: 0, len_bytes: 0, errno: Errno::IO });
        }
        Ok(())
    }

    fn open(&self, path: &Path, mode: OpenMode) -> Result<File> {
        self.machine.open(path, mode)
    }

    fn size_bytes(&self, file: &File) -> Result<u64> {
        self.machine.size_bytes(file)
    }

    fn allocate(&self, file: &File, len_bytes: u64) -> Result<()> {
        self.machine.allocate(file, len_bytes)
    }

    fn truncate(&self, file: &File, len_bytes: u64) -> Result<()> {
        self.machine.truncate(file, len_bytes)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.machine.rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> Result<()> {
        self.machine.link(from, to)
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.machine.remove(path)
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>> {
        self.machine.list(dir)
    }

    fn stat(&self, path: &Path) -> Result<Option<Stat>> {
        self.machine.stat(path)
    }

    fn make_dir(&self, path: &Path) -> Result<()> {
        self.machine.make_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        self.machine.sync_dir(path)
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn Lock>> {
        self.machine.lock(path)
    }

    fn map_shared(&self, file: &File, len_bytes: usize) -> Result<Arc<dyn SharedMap>> {
        self.machine.map_shared(file, len_bytes)
    }

    fn now(&self) -> Duration {
        self.machine.now()
    }

    fn random(&self) -> u64 {
        self.machine.random()
    }

    fn park(&self, duration: Duration) {
        self.machine.park(duration);
    }

    fn check_fork(&self) -> Result<()> {
        self.machine.check_fork()
    }

    fn counters(&self) -> Counters {
        self.machine.counters()
    }
}
