//! A [`Queue`] without native AIO: a few threads do its operations by system calls.
//!
//! ```text
//!   submit -> tasks of the team -> one of its threads: a system call -> mailbox of the queue -> wait
//! ```
//!
//! For machines that refuse `io_setup`: sandboxes, and kernels that were built without AIO. The threads are shared by all
//! queues of a backend. The first operations start them, and they end after the last queue. The number of threads is small
//! and fixed: this is a fall-back, and one that is easy to trust.
//!
//! It differs from a context of native AIO in three points. It has no polls. A signal handler neither ends a wait nor may
//! wake a queue. A flag that the kernel does not know is refused in the completion, not at submit.
//!
//! Invariants: an operation belongs to the tasks, then to one thread, then to the mailbox, so its buffers live as long as
//! the call that uses them; a queue that is dropped waits for its operations.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::fs::OFlags;

use crate::calls::execute;
use crate::clock::{self, Clock};
use crate::error::{Errno, Error, Result};
use crate::fall_back::FallBacks;
use crate::identity::Identity;
use crate::kind::IoClass;
use crate::operation::{Completion, Operation};
use crate::queue::{Cancel, Queue, Wake, WakeUp};
use crate::signal::block_all_signals;
use crate::sys::Process;
use crate::trace::{Ended, Submitted, Trace};

/// As many calls are under way at once. Four reads at a time reach half the rate of most devices.
const MOST_THREADS: usize = 4;

/// The threads of a backend, as long as it has queues.
#[derive(Debug, Default)]
pub(crate) struct Team(Mutex<Weak<Crew>>);

/// A set of threads. The last queue that uses them waits for their end.
#[derive(Debug)]
struct Crew {
    work: Arc<Work>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    process: Process,
}

/// The operations that wait for a thread.
#[derive(Debug, Default)]
struct Work {
    state: Mutex<WorkState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct WorkState {
    tasks: VecDeque<Task>,
    /// Threads that wait for work.
    idle: usize,
    is_over: bool,
}

#[derive(Debug)]
struct Task {
    operation: Operation,
    begin_nanos: u64,
    owner: Arc<Mailbox>,
}

/// The finished operations of one queue.
#[derive(Debug)]
struct Mailbox {
    state: Mutex<MailboxState>,
    arrived: Condvar,
    trace: Arc<Trace>,
    fall_backs: FallBacks,
}

#[derive(Debug, Default)]
struct MailboxState {
    done: Vec<Completion>,
    woken: bool,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct ThreadQueue {
    crew: Arc<Crew>,
    mailbox: Arc<Mailbox>,
    slots: usize,
    in_flight: usize,
    clock: Clock,
    process: Process,
}

impl ThreadQueue {
    /// # Panics
    /// If there are no slots.
    pub(crate) fn new(
        team: &Team,
        slots: usize,
        clock: Clock,
        (trace, fall_backs): (Arc<Trace>, FallBacks),
    ) -> ThreadQueue {
        assert!(slots > 0, "a queue without slots");
        let mailbox = Mailbox { state: Mutex::default(), arrived: Condvar::new(), trace, fall_backs };
        ThreadQueue {
            crew: team.crew(),
            mailbox: Arc::new(mailbox),
            slots,
            in_flight: 0,
            clock,
            process: Process::current(),
        }
    }

    fn check_fork(&self) -> Result<()> {
        if self.process.is_current() { Ok(()) } else { Err(Error::Forked) }
    }
}

impl Queue for ThreadQueue {
    fn submit(&mut self, operations: &mut VecDeque<Operation>) -> Result<usize> {
        self.check_fork()?;
        let mut taken = 0;
        while self.in_flight < self.slots
            && let Some(operation) = operations.pop_front()
        {
            let begin_nanos = clock::nanos();
            if let Err(errno) = check(&operation) {
                let refused = operation.refused(errno);
                operations.push_front(operation);
                if taken == 0 {
                    return Err(refused);
                }
                break;
            }
            self.crew.take(Task { operation, begin_nanos, owner: Arc::clone(&self.mailbox) });
            self.in_flight += 1;
            taken += 1;
        }
        self.mailbox.trace.submitted(Submitted { operations: taken, depth: self.in_flight });
        Ok(taken)
    }

    fn wait(
        &mut self,
        at_least: usize,
        deadline: Option<Duration>,
        completions: &mut Vec<Completion>,
    ) -> Result<Wake> {
        self.check_fork()?;
        let wanted = completions.len() + at_least;
        let mut state = self.mailbox.state.lock();
        loop {
            self.in_flight -= state.done.len();
            completions.append(&mut state.done);
            if completions.len() >= wanted {
                return Ok(Wake::Completed);
            }
            if std::mem::take(&mut state.woken) {
                return Ok(Wake::Woken);
            }
            match deadline.map(|deadline| deadline.saturating_sub(self.clock.now())) {
                Some(Duration::ZERO) => return Ok(Wake::TimedOut),
                Some(rest) => drop(self.mailbox.arrived.wait_for(&mut state, rest)),
                None => self.mailbox.arrived.wait(&mut state),
            }
        }
    }

    fn cancel(&mut self, _token: u64) -> Result<Cancel> {
        self.check_fork()?;
        Ok(if self.in_flight == 0 { Cancel::NotInFlight } else { Cancel::NotCancelable })
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn capacity(&self) -> usize {
        self.slots
    }

    fn waker(&self) -> Arc<dyn WakeUp> {
        Arc::new(MailboxWaker { mailbox: Arc::clone(&self.mailbox), process: self.process })
    }
}

impl Drop for ThreadQueue {
    fn drop(&mut self) {
        // In a forked child there are no threads, and the locks may have been held at the fork.
        if !self.process.is_current() {
            return;
        }
        let mut mailbox = self.mailbox.state.lock();
        while mailbox.done.len() < self.in_flight {
            self.mailbox.arrived.wait(&mut mailbox);
        }
    }
}

/// What the kernel checks at submit: whether the file was opened for that, and whether there is such an operation.
fn check(operation: &Operation) -> std::result::Result<(), Errno> {
    let mode = rustix::fs::fcntl_getfl(operation.descriptor())? & OFlags::RWMODE;
    match operation.class() {
        IoClass::Poll => Err(Errno::NOT_IMPLEMENTED),
        IoClass::Read if mode == OFlags::WRONLY => Err(Errno::NOT_OPEN),
        IoClass::Write | IoClass::WriteDurable if mode == OFlags::RDONLY => Err(Errno::NOT_OPEN),
        _ => Ok(()),
    }
}

#[derive(Debug)]
struct MailboxWaker {
    mailbox: Arc<Mailbox>,
    process: Process,
}

impl WakeUp for MailboxWaker {
    fn wake(&self) {
        if self.process.is_current() {
            self.mailbox.state.lock().woken = true;
            self.mailbox.arrived.notify_one();
        }
    }
}

impl Mailbox {
    fn deliver(&self, completion: Completion) {
        self.state.lock().done.push(completion);
        self.arrived.notify_one();
    }
}

impl Team {
    fn crew(&self) -> Arc<Crew> {
        let mut known = self.0.lock();
        known.upgrade().unwrap_or_else(|| {
            let crew = Arc::new(Crew::new());
            *known = Arc::downgrade(&crew);
            crew
        })
    }
}

impl Crew {
    fn new() -> Crew {
        Crew { work: Arc::default(), threads: Mutex::default(), process: Process::current() }
    }

    /// Hands a task to a thread. Does it here where no thread can be started.
    fn take(&self, task: Task) {
        let is_short = {
            let mut state = self.work.state.lock();
            state.tasks.push_back(task);
            state.tasks.len() > state.idle
        };
        let mut threads = self.threads.lock();
        if is_short && threads.len() < MOST_THREADS {
            threads.extend(self.start_thread());
        }
        if !threads.is_empty() {
            self.work.changed.notify_one();
            return;
        }
        drop(threads);
        let task = self.work.state.lock().tasks.pop_front();
        if let Some(task) = task {
            task.run();
        }
    }

    fn start_thread(&self) -> Option<JoinHandle<()>> {
        let work = Arc::clone(&self.work);
        let run = move || {
            block_all_signals();
            work.serve();
        };
        std::thread::Builder::new().name("aio-calls".to_owned()).spawn(run).ok()
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        // In a forked child there are no threads, and the lock may have been held at the fork.
        if !self.process.is_current() {
            return;
        }
        self.work.state.lock().is_over = true;
        self.work.changed.notify_all();
        for thread in self.threads.get_mut().drain(..) {
            // A panic of the thread is a bug of this crate; its message is printed already.
            let _ = thread.join();
        }
    }
}

impl Work {
    /// The loop of a thread.
    fn serve(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(task) = state.tasks.pop_front() {
                MutexGuard::unlocked(&mut state, || task.run());
            } else if state.is_over {
                return;
            } else {
                state.idle += 1;
                self.changed.wait(&mut state);
                state.idle -= 1;
            }
        }
    }
}

impl Task {
    fn run(self) {
        let Task { mut operation, begin_nanos, owner } = self;
        let result = execute(&mut operation, &owner.fall_backs);
        let nanos = clock::nanos().saturating_sub(begin_nanos);
        // Asked each time: beside a system call for each operation that is little.
        let other = operation.unknown_file().and_then(|file| Identity::of_descriptor(file.as_fd()));
        let other = other.map(Arc::new);
        let arguments = operation.arguments(other.as_ref());
        owner.trace.ended([Ended { arguments, moved_bytes: result.ok(), nanos, submitted: None }]);
        operation.notify();
        owner.deliver(Completion { operation, result });
    }
}
