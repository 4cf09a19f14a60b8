//! The simulated machine, with a place at each call where another task may go on, and a clock that each look moves.
//!
//! Invariant: no task is switched while the machine's own lock is held.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aio::{
    Backend, Completion, Counters, File, Lock, OpenMode, Operation, Queue, Result, SharedMap, SimBackend,
    Stat, Wake, WakeUp,
};
use shuttle::thread;
use wal::scheduled::turn;

/// How far a look moves the clock: a drain interval is over after a few.
const TICK: Duration = Duration::from_millis(2);

/// See the [module](self).
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) sim: SimBackend,
}

impl Machine {
    pub(crate) fn new(sim: SimBackend) -> Machine {
        Machine { sim }
    }

    /// Here another task may go on.
    fn turn(&self) -> &SimBackend {
        turn();
        &self.sim
    }
}

impl Backend for Machine {
    fn queue(&self, slots: usize) -> Result<Box<dyn Queue>> {
        let queue = self.turn().queue(slots)?;
        Ok(Box::new(TurningQueue { queue, machine: self.clone() }))
    }

    fn open(&self, path: &Path, mode: OpenMode) -> Result<File> {
        self.turn().open(path, mode)
    }

    fn size_bytes(&self, file: &File) -> Result<u64> {
        self.sim.size_bytes(file)
    }

    fn sync(&self, file: &File) -> Result<()> {
        self.turn().sync(file)?;
        // Between its end and what the caller makes of it.
        self.turn();
        Ok(())
    }

    fn allocate(&self, file: &File, len_bytes: u64) -> Result<()> {
        self.turn().allocate(file, len_bytes)
    }

    fn truncate(&self, file: &File, len_bytes: u64) -> Result<()> {
        self.turn().truncate(file, len_bytes)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.turn().rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> Result<()> {
        self.turn().link(from, to)
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.turn().remove(path)
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>> {
        self.sim.list(dir)
    }

    fn stat(&self, path: &Path) -> Result<Option<Stat>> {
        self.sim.stat(path)
    }

    fn make_dir(&self, path: &Path) -> Result<()> {
        self.turn().make_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        self.turn().sync_dir(path)
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn Lock>> {
        self.turn().lock(path)
    }

    fn map_shared(&self, file: &File, len_bytes: usize) -> Result<Arc<dyn SharedMap>> {
        let map = self.turn().map_shared(file, len_bytes)?;
        Ok(Arc::new(TurningMap { map, machine: self.clone() }))
    }

    fn now(&self) -> Duration {
        self.sim.advance(TICK);
        self.sim.now()
    }

    fn random(&self) -> u64 {
        self.sim.random()
    }

    fn park(&self, duration: Duration) {
        self.sim.advance(duration);
        thread::yield_now();
    }

    fn check_fork(&self) -> Result<()> {
        self.sim.check_fork()
    }

    fn counters(&self) -> Counters {
        self.sim.counters()
    }
}

#[derive(Debug)]
struct TurningQueue {
    queue: Box<dyn Queue>,
    machine: Machine,
}

impl Queue for TurningQueue {
    fn submit(&mut self, operations: &mut VecDeque<Operation>) -> Result<usize> {
        self.machine.turn();
        self.queue.submit(operations)
    }

    fn wait(
        &mut self,
        at_least: usize,
        deadline: Option<Duration>,
        completions: &mut Vec<Completion>,
    ) -> Result<Wake> {
        self.machine.turn();
        let wake = self.queue.wait(at_least, deadline, completions)?;
        self.machine.turn();
        Ok(wake)
    }

    fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }

    fn capacity(&self) -> usize {
        self.queue.capacity()
    }

    fn waker(&self) -> Arc<dyn WakeUp> {
        self.queue.waker()
    }
}

#[derive(Debug)]
struct TurningMap {
    map: Arc<dyn SharedMap>,
    machine: Machine,
}

impl SharedMap for TurningMap {
    fn len_bytes(&self) -> usize {
        self.map.len_bytes()
    }

    fn extend(&self) -> Result<()> {
        self.machine.turn();
        self.map.extend()
    }

    /// In two parts: what is copied is there bit by bit.
    fn write(&self, offset: usize, bytes: &[u8]) {
        let (first, second) = bytes.split_at(bytes.len() / 16 * 8);
        for (at, part) in [(offset, first), (offset + first.len(), second)] {
            if !part.is_empty() {
                self.machine.turn();
                self.map.write(at, part);
            }
        }
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        self.machine.turn();
        self.map.read(offset, into);
    }

    fn is_shared(&self) -> bool {
        self.map.is_shared()
    }
}
