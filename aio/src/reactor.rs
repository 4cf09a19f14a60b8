//! Futures over a context: one thread harvests it and wakes the tasks of any executor.
//!
//! A task hands its operation to the thread over a list and wakes it; the thread submits, sleeps in the kernel,
//! and puts each completion where its task will find it. There is one thread for a reactor, whatever number of
//! operations is in flight, and none for an operation.
//!
//! The list has no bound, and needs none: who waits for room would keep his operation, with its buffers, all the same.
//! Rejected: a bounded list whose waiters are woken when there is room. A task that is woken and does not poll (it turned
//! to something else meanwhile) keeps the room from all behind it, for ever if they are what it turned to. Where
//! thousands wait, [`Reactor::read`] makes each buffer only when its turn has come.
//!
//! Invariants
//! - The thread owns the context; an operation belongs to the list, then to the context, then to its [`Shot`], and to the
//!   task only at the end. A future that is dropped early leaves the operation where it is; so cancelling a task
//!   at any point frees no buffer that the kernel uses. What is still on the list then is never started.
//! - What is in flight is bounded by the slots of the context; the rest stands on the list, first come, first served.
//! - Locks are leaves: no waker of a task is called, and nothing is submitted, while one is held.

use std::collections::VecDeque;
use std::future::Future;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};
use std::thread::{JoinHandle, Thread};

use parking_lot::Mutex;

use crate::backend::WakeUp;
use crate::buf::Buf;
use crate::context::{Context, ContextBuilder};
use crate::error::{Errno, Error, Result};
use crate::operation::{AnyFile, Completion, Operation, OperationKind};
use crate::signal::block_all_signals;
use crate::sys::Process;

/// A thread that does asynchronous I/O for futures. Clones share it.
///
/// When the last clone is dropped the thread finishes what was handed to it (polls are cancelled) and ends by itself;
/// [`Reactor::shutdown`] waits for that.
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

/// Its end is the end of the reactor.
#[derive(Debug)]
struct Owner {
    hub: Arc<Hub>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.hub.close();
    }
}

impl Reactor {
    /// Starts the thread, with a context of its own. The thread blocks all signals, so handlers of the application
    /// never run on it.
    ///
    /// # Errors
    /// As [`ContextBuilder::build`], and if no thread can be started.
    pub fn new(builder: ContextBuilder) -> Result<Reactor> {
        Reactor::over(builder.build()?)
    }

    /// As [`Reactor::new`], with this context.
    pub(crate) fn over(context: Context) -> Result<Reactor> {
        let hub =
            Arc::new(Hub { list: Mutex::default(), waker: context.waker(), process: Process::current() });
        let driver = Driver { context, hub: Arc::clone(&hub), flights: Vec::new(), free: Vec::new() };
        let thread =
            std::thread::Builder::new()
                .name("aio-reactor".to_owned())
                .spawn(move || driver.run())
                .map_err(|error| Error::call("start thread", Path::new("(reactor)"), Errno::from(&error)))?;
        Ok(Reactor(Arc::new(Owner { hub, thread: Mutex::new(Some(thread)) })))
    }

    /// Hands an operation to the reactor's thread, at once. It is started when a slot of the context is free.
    ///
    /// The future may be dropped at any time. What was started is done all the same (a poll is cancelled), and
    /// its buffers are freed when it is; what was not, never is.
    pub fn submit(&self, operation: Operation) -> Submission {
        self.hand_over(Pending::Operation(operation))
    }

    /// As [`submit`](Reactor::submit) of a [read](Operation::read) into a new buffer of `len_bytes`, which is made only when it is
    /// started: any number of reads can wait for their turn without taking memory.
    pub fn read(&self, file: impl Into<AnyFile>, offset: u64, len_bytes: usize) -> Submission {
        self.hand_over(Pending::Read { file: file.into(), offset, len_bytes })
    }

    fn hand_over(&self, pending: Pending) -> Submission {
        let hub = Arc::clone(&self.0.hub);
        let is_poll =
            matches!(&pending, Pending::Operation(operation) if operation.kind() == OperationKind::Poll);
        let stage = hub.start(pending);
        Submission { hub, is_poll, stage }
    }

    /// Refuses new operations, cancels polls, and waits until everything else is done and the thread has ended.
    ///
    /// In a forked child it does nothing. On the reactor's own thread (where wakers of tasks are called, and what they own
    /// may be dropped) it waits for nothing.
    pub fn shutdown(&self) {
        self.0.hub.close();
        if self.0.hub.process.is_current() {
            let thread = self.0.thread.lock().take();
            let own = std::thread::current().id();
            if let Some(thread) = thread.filter(|thread| thread.thread().id() != own) {
                // A panic there would be a bug of ours; its message is out already.
                let _ = thread.join();
            }
        }
    }
}

/// An operation that was not started.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Refused {
    /// It, with its buffers.
    pub operation: Operation,
    /// Why.
    #[source]
    pub error: Error,
}

/// An operation that was not started.
#[derive(Debug)]
enum Pending {
    Operation(Operation),
    Read { file: AnyFile, offset: u64, len_bytes: usize },
}

impl Pending {
    fn into_operation(self) -> Operation {
        match self {
            Pending::Operation(operation) => operation,
            Pending::Read { file, offset, len_bytes } => {
                Operation::read(file, offset, Buf::zeroed(len_bytes))
            }
        }
    }

    fn refused(self, error: Error) -> Stage {
        Stage::Refused(Box::new(Refused { operation: self.into_operation(), error }))
    }
}

/// Where tasks and the thread meet.
#[derive(Debug)]
struct Hub {
    list: Mutex<List>,
    /// Wakes the thread.
    waker: Arc<dyn WakeUp>,
    process: Process,
}

#[derive(Debug, Default)]
struct List {
    ops: VecDeque<(Pending, Arc<Shot>)>,
    /// The future of a poll was dropped.
    has_orphans: bool,
    is_closed: bool,
}

impl Hub {
    /// Puts an operation on the list.
    fn start(&self, pending: Pending) -> Stage {
        if !self.process.is_current() {
            return pending.refused(Error::Forked);
        }
        let mut list = self.list.lock();
        if list.is_closed {
            drop(list);
            return pending.refused(Error::Closed);
        }
        let shot = Arc::new(Shot(Mutex::new(ShotState::Flying(None))));
        list.ops.push_back((pending, Arc::clone(&shot)));
        drop(list);
        self.waker.wake();
        Stage::Started(shot)
    }

    fn close(&self) {
        if self.process.is_current() {
            self.list.lock().is_closed = true;
            self.waker.wake();
        }
    }
}

/// Where the completion of one operation is put.
#[derive(Debug)]
struct Shot(Mutex<ShotState>);

#[derive(Debug)]
enum ShotState {
    /// Not done; the task to wake.
    Flying(Option<Waker>),
    /// Completion, and not fetched.
    Landed(std::result::Result<Completion, Box<Refused>>),
    /// The future was dropped, or has returned.
    Gone,
}

impl Shot {
    fn land(&self, result: std::result::Result<Completion, Box<Refused>>) {
        let mut state = self.0.lock();
        let ShotState::Flying(task) = &mut *state else { return };
        let task = task.take();
        *state = ShotState::Landed(result);
        drop(state);
        if let Some(task) = task {
            task.wake();
        }
    }

    fn is_gone(&self) -> bool {
        matches!(*self.0.lock(), ShotState::Gone)
    }
}

/// The future of one operation; see [`Reactor::submit`].
///
/// Its output is the completion, or the operation with the reason why it was not started.
#[derive(Debug)]
#[must_use = "the operation is done, but nobody learns how"]
pub struct Submission {
    hub: Arc<Hub>,
    is_poll: bool,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Started(Arc<Shot>),
    Refused(Box<Refused>),
    /// The output was returned.
    Over,
}

impl Submission {
    /// Waits for it on this thread, without an executor.
    ///
    /// # Errors
    /// The operation was not started.
    pub fn wait(self) -> std::result::Result<Completion, Box<Refused>> {
        block_on(self)
    }
}

/// Waits for a future on this thread, without an executor.
pub fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let task = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut TaskContext::from_waker(&task)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

impl Future for Submission {
    type Output = std::result::Result<Completion, Box<Refused>>;

    fn poll(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let shot = match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Started(shot) => shot,
            Stage::Refused(refused) => return Poll::Ready(Err(refused)),
            Stage::Over => unreachable!("polled again after its end"),
        };
        let mut landing = shot.0.lock();
        match std::mem::replace(&mut *landing, ShotState::Gone) {
            ShotState::Landed(result) => Poll::Ready(result),
            ShotState::Flying(mut last) => {
                let same = last.take_if(|waker| waker.will_wake(task.waker()));
                *landing = ShotState::Flying(Some(same.unwrap_or_else(|| task.waker().clone())));
                drop(landing);
                self.stage = Stage::Started(shot);
                Poll::Pending
            }
            ShotState::Gone => unreachable!("only the end of its future sets it"),
        }
    }
}

impl Drop for Submission {
    fn drop(&mut self) {
        let Stage::Started(shot) = &self.stage else { return };
        // In a forked child the lock may be held by a thread that is not there.
        if !self.hub.process.is_current() {
            return;
        }
        let before = std::mem::replace(&mut *shot.0.lock(), ShotState::Gone);
        if matches!(before, ShotState::Flying(_)) && self.is_poll {
            self.hub.list.lock().has_orphans = true;
            self.hub.waker.wake();
        }
    }
}

/// The thread's side.
struct Driver {
    context: Context,
    hub: Arc<Hub>,
    /// What is in the context, by token.
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
}

struct Flight {
    /// The token that the user gave it.
    token: u64,
    is_poll: bool,
    shot: Arc<Shot>,
}

/// What the thread found beside operations.
struct Fetched {
    has_orphans: bool,
    is_closed: bool,
    /// Closed, and nothing is left on the list.
    is_last: bool,
}

impl Driver {
    fn run(mut self) {
        block_all_signals();
        let mut batch = VecDeque::new();
        let mut done = Vec::new();
        loop {
            let fetched = self.fetch(&mut batch);
            self.start(&mut batch);
            // After the start, so that none of those fetched is overlooked.
            if fetched.has_orphans || fetched.is_closed {
                self.cancel_polls(fetched.is_closed);
            }
            if fetched.is_last && batch.is_empty() && self.context.in_flight() == 0 {
                break;
            }
            // A context fails only in a forked child, which has no copy of this thread.
            self.context.wait(1, None, &mut done).expect("the context lives as long as its thread");
            for done in done.drain(..) {
                let flight = self.end(done.operation.token());
                flight
                    .shot
                    .land(Ok(Completion { operation: done.operation.with_token(flight.token), ..done }));
            }
        }
    }

    /// Takes from the list what the context has room for, and nothing that nobody waits for any more.
    fn fetch(&mut self, batch: &mut VecDeque<Operation>) -> Fetched {
        let mut has_orphans = false;
        loop {
            let mut list = self.hub.list.lock();
            let room = self.context.capacity() - self.context.in_flight() - batch.len();
            let count = room.min(list.ops.len());
            let fetched: Vec<_> = list.ops.drain(..count).collect();
            let is_empty = list.ops.is_empty();
            has_orphans |= std::mem::take(&mut list.has_orphans);
            let is_closed = list.is_closed;
            drop(list);
            let before = batch.len();
            for (pending, shot) in fetched {
                if !shot.is_gone() {
                    batch.push_back(self.begin(pending.into_operation(), shot));
                }
            }
            // If some were not wanted any more there is room for others.
            if is_empty || batch.len() - before == count {
                return Fetched { has_orphans, is_closed, is_last: is_closed && is_empty };
            }
        }
    }

    /// Gives an operation the token by which its future is found.
    fn begin(&mut self, operation: Operation, shot: Arc<Shot>) -> Operation {
        let flight =
            Flight { token: operation.token(), is_poll: operation.kind() == OperationKind::Poll, shot };
        let index = self.free.pop().unwrap_or_else(|| {
            self.flights.push(None);
            self.flights.len() - 1
        });
        self.flights[index] = Some(flight);
        operation.with_token(index as u64)
    }

    fn end(&mut self, token: u64) -> Flight {
        let index = usize::try_from(token).expect("tokens are indexes");
        self.free.push(index);
        self.flights[index].take().expect("a token belongs to a flight")
    }

    fn start(&mut self, batch: &mut VecDeque<Operation>) {
        while !batch.is_empty() {
            match self.context.submit(batch) {
                Ok(0) => break, // Short of memory: again after the next completion.
                Ok(_) => {}
                Err(error) => self.refuse(batch, error),
            }
        }
    }

    /// Ends the operation at the front, which the kernel has refused.
    fn refuse(&mut self, batch: &mut VecDeque<Operation>, error: Error) {
        let Some(operation) = batch.pop_front() else { return };
        let flight = self.end(operation.token());
        let operation = operation.with_token(flight.token);
        flight.shot.land(Err(Box::new(Refused { operation, error })));
    }

    /// Cancels the polls that nobody waits for, or all.
    fn cancel_polls(&mut self, all: bool) {
        for (index, flight) in self.flights.iter().enumerate() {
            let Some(flight) = flight else { continue };
            if flight.is_poll && (all || flight.shot.is_gone()) {
                // Whatever the answer, its completion comes.
                let _ = self.context.cancel(index as u64);
            }
        }
    }
}
