//! Futures over a queue: one driver starts operations, waits for them, and wakes the tasks of any executor.
//!
//! ```text
//!   task -> list of waiting operations -> driver -> queue -> driver -> reply of the operation -> wakes the task
//! ```
//!
//! The driver is a thread of its own where the machine has threads, so there is one thread for a reactor and none for
//! an operation. On a machine without threads (the simulated disk) a reactor has no thread: the tasks that wait for it
//! run the driver themselves, one at a time ([`Reactor::turn`]).
//!
//! The list has no bound: a task that waits for room in a bounded list would hold its operation, with the buffers,
//! anyway. Rejected: a bounded list whose waiters are woken when there is room. A task that is woken and does not poll
//! blocks the tasks behind it, and deadlocks if it waits for one of them. For thousands of waiting reads,
//! [`Reactor::read`] makes each buffer only when its operation is started.
//!
//! Invariants
//! - The driver owns the queue. An operation belongs first to the list, then to the queue, then to its reply, and last
//!   to the task. A future that is dropped early leaves the operation in place, so cancelling a task at any point frees
//!   no buffer that the kernel uses. An operation of a dropped future that is still on the list is never started.
//! - The slots of the queue bound the operations in flight; the others wait on the list, first come, first served.
//! - Locks are leaves: no waker of a task is called, and nothing is submitted, while one is held. The exception is the lock
//!   around the driver of a reactor without a thread: under it operations are submitted and waited for, and no waker is called.

mod driver;
mod hub;

use std::future::Future;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context as TaskContext, Poll, Waker};
use std::thread::JoinHandle;

use parking_lot::Mutex;

use self::driver::Driver;
pub use self::hub::Refused;
use self::hub::{Hub, Outcome, Reply, Request};
use crate::context::ContextBuilder;
use crate::error::{Errno, Error, Result};
use crate::operation::{AnyFile, Completion, Operation};
use crate::queue::Queue;
use crate::signal::block_all_signals;

/// Does asynchronous I/O for futures. Clones share it.
///
/// When the last clone and the last future are dropped, its thread finishes the operations handed to it (polls are
/// cancelled) and ends; [`Reactor::shutdown`] waits for that.
///
/// # Examples
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use aio::{Buf, Context, Operation, Reactor};
///
/// let reactor = Reactor::new(Context::builder().slots(32))?;
/// let file = std::sync::Arc::new(std::fs::OpenOptions::new().read(true).open("Cargo.toml")?);
/// let read = reactor.submit(Operation::read(file, 0, Buf::zeroed(9)));
/// // In a task: `read.await`. Without an executor:
/// let done = read.wait()?;
/// assert_eq!(&done.operation.into_buf()[..], b"[package]");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Reactor(Arc<Owner>);

/// The last reference to a reactor. Its drop closes the reactor.
#[derive(Debug)]
struct Owner {
    hub: Arc<Hub>,
    driver: DrivenBy,
}

#[derive(Debug)]
enum DrivenBy {
    /// `None` once a call of [`Reactor::shutdown`] joins the thread.
    Thread(Mutex<Option<Box<dyn DriverThread>>>),
    Waiters(Box<Mutex<Driver>>),
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.hub.close();
    }
}

/// A thread that runs a reactor's driver.
pub trait DriverThread: Send + std::fmt::Debug {
    /// Whether it is the calling thread.
    fn is_current(&self) -> bool;

    /// Waits until the thread has ended.
    fn join(self: Box<Self>);
}

impl DriverThread for JoinHandle<()> {
    fn is_current(&self) -> bool {
        self.thread().id() == std::thread::current().id()
    }

    fn join(self: Box<Self>) {
        // A panic of the thread is a bug of this crate; its message is printed already.
        let _ = JoinHandle::join(*self);
    }
}

impl Reactor {
    /// Starts a thread with a context of its own. The thread blocks all signals, so handlers of the application never run
    /// on it.
    ///
    /// # Errors
    /// Those of [`ContextBuilder::build`], or no thread can be started.
    pub fn new(builder: ContextBuilder) -> Result<Reactor> {
        Reactor::with_thread(Box::new(builder.build()?))
    }

    /// A reactor over this queue, with a thread like that of [`Reactor::new`].
    ///
    /// # Errors
    /// No thread can be started.
    pub fn with_thread(queue: Box<dyn Queue>) -> Result<Reactor> {
        Reactor::with_thread_by(queue, |work| {
            let run = || {
                block_all_signals();
                work();
            };
            let thread = std::thread::Builder::new().name("aio-reactor".to_owned()).spawn(run);
            let failed = |error| Error::call("start thread", Path::new("(reactor)"), Errno::from(&error));
            thread.map(|thread| Box::new(thread) as Box<dyn DriverThread>).map_err(failed)
        })
    }

    /// A reactor over this queue, with a thread that `spawn` starts to run the given closure.
    ///
    /// # Errors
    /// Those of `spawn`.
    pub fn with_thread_by(
        queue: Box<dyn Queue>,
        spawn: impl FnOnce(Box<dyn FnOnce() + Send>) -> Result<Box<dyn DriverThread>>,
    ) -> Result<Reactor> {
        let hub = Arc::new(Hub::new(Some(queue.waker())));
        let driver = Driver::new(queue, Arc::clone(&hub));
        let thread = spawn(Box::new(move || driver.run()))?;
        Ok(Reactor(Arc::new(Owner { hub, driver: DrivenBy::Thread(Mutex::new(Some(thread))) })))
    }

    /// A reactor over this queue that makes progress only in [`Reactor::turn`].
    pub fn without_thread(queue: Box<dyn Queue>) -> Reactor {
        let hub = Arc::new(Hub::new(None));
        let driver = Driver::new(queue, Arc::clone(&hub));
        Reactor(Arc::new(Owner { hub, driver: DrivenBy::Waiters(Box::new(Mutex::new(driver))) }))
    }

    /// Does one step of a reactor without a thread: starts operations, waits until one has completed, and wakes its task.
    /// Returns false, and does nothing, if the reactor has a thread.
    ///
    /// A task that waits for such a reactor calls this before it returns [`Poll::Pending`]. If none of its own
    /// operations has ended by then ([`Submission::has_ended`]) it wakes itself, since there may be no other task to
    /// drive the reactor.
    pub fn turn(&self) -> bool {
        let DrivenBy::Waiters(driver) = &self.0.driver else { return false };
        // In a forked child the lock may be held by a thread of the parent.
        if self.0.hub.process.is_current() {
            let mut outcomes = Vec::new();
            driver.lock().turn(&mut outcomes);
            outcomes.into_iter().for_each(Outcome::tell);
        }
        true
    }

    /// Hands an operation to the driver at once. The operation is started when a slot of the queue is free.
    ///
    /// The future may be dropped at any time. An operation that was started is still done (a poll is cancelled), and
    /// its buffers are freed at its completion. An operation that was not started never is.
    pub fn submit(&self, operation: Operation) -> Submission {
        self.hand_over(Request::Operation(operation))
    }

    /// [Submits](Reactor::submit) a [read](Operation::read) into a new buffer of `len_bytes`. The buffer is made when
    /// the read is started, so waiting reads take no memory for buffers. One that is refused before has no operation.
    pub fn read(&self, file: impl Into<AnyFile>, offset: u64, len_bytes: usize) -> Submission {
        self.hand_over(Request::Read { file: file.into(), offset, len_bytes })
    }

    fn hand_over(&self, request: Request) -> Submission {
        let is_poll = request.is_poll();
        let state = match self.0.hub.submit(request) {
            Ok(reply) => SubmissionState::Started(reply),
            Err(refused) => SubmissionState::Refused(refused),
        };
        Submission { reactor: self.clone(), is_poll, state }
    }

    /// Whether the whole queue has failed. It takes no more operations then.
    pub fn has_failed(&self) -> bool {
        self.0.hub.has_failed()
    }

    /// Refuses new operations, cancels polls, and waits until all other operations are done and the thread has ended.
    ///
    /// In a forked child it does nothing. On the reactor's own thread, which may drop a reactor when it wakes a task,
    /// it does not wait.
    pub fn shutdown(&self) {
        self.0.hub.close();
        if !self.0.hub.process.is_current() {
            return;
        }
        match &self.0.driver {
            DrivenBy::Thread(thread) => {
                let thread = thread.lock().take();
                if let Some(thread) = thread.filter(|thread| !thread.is_current()) {
                    thread.join();
                }
            }
            DrivenBy::Waiters(driver) => {
                let mut outcomes = Vec::new();
                while !driver.lock().turn(&mut outcomes) {
                    outcomes.drain(..).for_each(Outcome::tell);
                }
                outcomes.into_iter().for_each(Outcome::tell);
            }
        }
    }
}

/// The future of one operation; see [`Reactor::submit`].
///
/// Its output is the completion, or the reason why there is none, with the operation if it is there ([`Refused`]).
#[derive(Debug)]
#[must_use = "the operation is done, but its result is not seen"]
pub struct Submission {
    reactor: Reactor,
    is_poll: bool,
    state: SubmissionState,
}

#[derive(Debug)]
enum SubmissionState {
    Started(Arc<Reply>),
    Refused(Box<Refused>),
    /// The output was returned.
    Over,
}

impl Submission {
    /// Waits for the operation on this thread, without an executor.
    ///
    /// # Errors
    /// There is no completion.
    pub fn wait(self) -> std::result::Result<Completion, Box<Refused>> {
        if let DrivenBy::Thread(_) = &self.reactor.0.driver {
            return block_on(self);
        }
        let mut future = pin!(self);
        let mut task = TaskContext::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut task) {
                return output;
            }
            future.reactor.turn();
        }
    }

    /// Whether the next poll returns the output.
    pub fn has_ended(&self) -> bool {
        match &self.state {
            SubmissionState::Started(reply) => reply.has_arrived(),
            SubmissionState::Refused(_) | SubmissionState::Over => true,
        }
    }
}

/// Waits for a future on this thread, without an executor.
pub fn block_on<F: Future>(future: F) -> F::Output {
    /// Remembers the wake-up beside the thread's own token, which a pause inside the poll may have taken.
    struct Unpark {
        thread: std::thread::Thread,
        is_woken: AtomicBool,
    }
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.is_woken.store(true, Ordering::Release);
            self.thread.unpark();
        }
    }
    let unpark = Arc::new(Unpark { thread: std::thread::current(), is_woken: AtomicBool::new(false) });
    let task = Waker::from(Arc::clone(&unpark));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut TaskContext::from_waker(&task)) {
            return output;
        }
        while !unpark.is_woken.swap(false, Ordering::Acquire) {
            std::thread::park();
        }
    }
}

impl Future for Submission {
    type Output = std::result::Result<Completion, Box<Refused>>;

    fn poll(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let reply = match std::mem::replace(&mut self.state, SubmissionState::Over) {
            SubmissionState::Started(reply) => reply,
            SubmissionState::Refused(refused) => return Poll::Ready(Err(refused)),
            SubmissionState::Over => unreachable!("polled again after its end"),
        };
        let output = reply.take_or_wait(task.waker());
        if output.is_pending() {
            self.state = SubmissionState::Started(reply);
        }
        output
    }
}

impl Drop for Submission {
    fn drop(&mut self) {
        if let SubmissionState::Started(reply) = &self.state {
            self.reactor.0.hub.abandon(reply, self.is_poll);
        }
    }
}
