//! The machine with a device that fails now and then: a seeded share of writes and syncs is executed and then reported as
//! EIO. An error does not say how much was done, so an executed write is as good as any.
//!
//! Invariant: reads, names and everything else are those of the machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aio::{
    Backend, BackendLayer, Completion, Errno, Error, File, NativeBackend, OperationKind, Queue, QueueLayer,
    Result, Wake,
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

impl QueueLayer for FaultyQueue {
    fn below(&self) -> &dyn Queue {
        &*self.machine
    }

    fn below_mut(&mut self) -> &mut dyn Queue {
        &mut *self.machine
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
            if completion.operation.kind() != OperationKind::Read && self.faults.strikes() {
                completion.result = Err(Errno::IO);
            }
        }
        Ok(woken)
    }
}

impl BackendLayer for FaultyBackend {
    fn below(&self) -> &dyn Backend {
        &self.machine
    }

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
}
