//! The simulated machine. At each call another task may run, and each reading of the clock moves it.
//!
//! Invariant: no task is switched while the machine's own lock is held.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aio::{
    Backend, BackendLayer, Completion, DriverThread, File, IoProfile, Operation, Queue, QueueLayer, Reactor,
    Result, SharedMap, SimBackend, Wake, WakeUp,
};
use shuttle::thread;
use wal::scheduled::{Condvar, Mutex, turn};

/// How far each reading moves the clock. A drain interval ends after a few readings.
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

    /// Lets another task run.
    fn turn(&self) -> &SimBackend {
        turn();
        &self.sim
    }
}

impl BackendLayer for Machine {
    fn below(&self) -> &dyn Backend {
        self.turn()
    }

    fn queue(&self, slots: usize) -> Result<Box<dyn Queue>> {
        let queue = self.turn().queue(slots)?;
        let waker =
            Arc::new(TurningWaker { sim: queue.waker(), raised: Mutex::new(false), changed: Condvar::new() });
        Ok(Box::new(TurningQueue { queue, machine: self.clone(), waker }))
    }

    /// The driver is a task like the others.
    fn reactor(&self, slots: usize) -> Result<Reactor> {
        let queue = BackendLayer::queue(self, slots)?;
        Reactor::with_thread_by(queue, |work| Ok(Box::new(DriverTask(thread::spawn(work)))))
    }

    fn sync(&self, file: &File) -> Result<()> {
        self.turn().sync(file)?;
        // Another task may run between the end of the call and the caller's use of its result.
        self.turn();
        Ok(())
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

    fn profile(&self) -> IoProfile {
        self.sim.profile()
    }
}

/// The task that runs a reactor's driver.
struct DriverTask(thread::JoinHandle<()>);

impl fmt::Debug for DriverTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DriverTask")
    }
}

impl DriverThread for DriverTask {
    fn is_current(&self) -> bool {
        self.0.thread().id() == thread::current().id()
    }

    fn join(self: Box<Self>) {
        self.0.join().expect("a panic ends the run");
    }
}

/// A queue whose waits let other tasks run. A wait with no operation in flight sleeps until it is woken.
#[derive(Debug)]
struct TurningQueue {
    queue: Box<dyn Queue>,
    machine: Machine,
    waker: Arc<TurningWaker>,
}

impl QueueLayer for TurningQueue {
    fn below(&self) -> &dyn Queue {
        &*self.queue
    }

    fn below_mut(&mut self) -> &mut dyn Queue {
        &mut *self.queue
    }

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
        let wake = {
            let mut raised = self.waker.raised.lock();
            while !*raised && at_least > 0 && deadline.is_none() && self.queue.in_flight() == 0 {
                self.waker.changed.wait(&mut raised);
            }
            let wake = self.queue.wait(at_least, deadline, completions)?;
            *raised &= wake != Wake::Woken;
            wake
        };
        self.machine.turn();
        Ok(wake)
    }

    fn waker(&self) -> Arc<dyn WakeUp> {
        Arc::<TurningWaker>::clone(&self.waker)
    }
}

/// Wakes the simulated queue, and the task that waits for it.
///
/// Invariant: `raised` is whether the simulated queue has a wake-up that it has not reported.
#[derive(Debug)]
struct TurningWaker {
    sim: Arc<dyn WakeUp>,
    raised: Mutex<bool>,
    changed: Condvar,
}

impl WakeUp for TurningWaker {
    fn wake(&self) {
        let mut raised = self.raised.lock();
        self.sim.wake();
        *raised = true;
        self.changed.notify_one();
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

    fn make_room(&self, offset: usize, len_bytes: usize) -> Result<()> {
        self.machine.turn();
        self.map.make_room(offset, len_bytes)
    }

    /// Copies in two parts, so that another task can see a half-copied record.
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
