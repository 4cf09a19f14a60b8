//! Futures over a context: one thread harvests it and wakes the tasks of any executor.
//!
//! A task hands its operation to the thread over a bounded list and wakes it; the thread submits, sleeps in the kernel,
//! and puts each completion where its task will find it. There is one thread for a reactor, whatever number of
//! operations is in flight, and none for an operation.
//!
//! Invariants
//! - The thread owns the context; an operation belongs to the list, then to the context, then to its [`Shot`], and to the
//!   task only at the end. A future that is dropped early leaves the operation where it is; so cancelling a task
//!   at any point frees no buffer that the kernel uses.
//! - The list holds at most as many operations as the context has slots; a task that finds it full is woken when
//!   there is room.
//! - Locks are leaves: no waker of a task is called, and nothing is submitted, while one is held.

use std::collections::VecDeque;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};
use std::thread::{JoinHandle, Thread};

use parking_lot::Mutex;

use crate::backend::WakeUp;
use crate::context::{Context, ContextBuilder, Refused};
use crate::error::{Errno, Error, Result};
use crate::op::{Done, Op, OpKind};
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
/// use aio::{Buf, Context, Op, Reactor};
///
/// let reactor = Reactor::new(Context::builder().slots(32))?;
/// let file = std::sync::Arc::new(std::fs::OpenOptions::new().read(true).open("Cargo.toml")?);
/// let read = reactor.submit(Op::read(file, 0, Buf::zeroed(9)));
/// // In a task: `read.await`. Without an executor:
/// let done = read.wait()?;
/// assert_eq!(&done.op.into_buf()[..], b"[package]");
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
        let context = builder.build()?;
        let hub = Arc::new(Hub {
            list: Mutex::default(),
            capacity: context.capacity(),
            waker: context.waker(),
            process: Process::current(),
        });
        let driver = Driver { context, hub: Arc::clone(&hub), flights: Vec::new(), free: Vec::new() };
        let thread =
            std::thread::Builder::new()
                .name("aio-reactor".to_owned())
                .spawn(move || driver.run())
                .map_err(|error| Error::call("start thread", Path::new("(reactor)"), Errno::from(&error)))?;
        Ok(Reactor(Arc::new(Owner { hub, thread: Mutex::new(Some(thread)) })))
    }

    /// Hands an operation to the reactor's thread, at once if there is room, else when the future is first polled and
    /// there is.
    ///
    /// The future may be dropped at any time. What was started is done all the same (a poll is cancelled), and
    /// its buffers are freed when it is.
    pub fn submit(&self, op: Op) -> Submission {
        let hub = Arc::clone(&self.0.hub);
        let kind = op.kind();
        let stage = hub.try_start(op, None);
        Submission { hub, kind, stage }
    }

    /// Refuses new operations, cancels polls, and waits until everything else is done and the thread has ended.
    ///
    /// In a forked child it does nothing.
    pub fn shutdown(&self) {
        self.0.hub.close();
        if self.0.hub.process.is_current() {
            let thread = self.0.thread.lock().take();
            if let Some(thread) = thread {
                // A panic there would be a bug of ours; its message is out already.
                let _ = thread.join();
            }
        }
    }
}

/// Where tasks and the thread meet.
#[derive(Debug)]
struct Hub {
    list: Mutex<List>,
    capacity: usize,
    /// Wakes the thread.
    waker: Arc<dyn WakeUp>,
    process: Process,
}

#[derive(Debug, Default)]
struct List {
    ops: VecDeque<(Op, Arc<Shot>)>,
    /// Tasks that found it full.
    without_room: Vec<Waker>,
    /// The future of a poll was dropped.
    has_orphans: bool,
    is_closed: bool,
}

impl Hub {
    /// Puts an operation on the list, if there is room; else the task is woken when there is.
    fn try_start(&self, op: Op, task: Option<&Waker>) -> Stage {
        if !self.process.is_current() {
            return Stage::Refused(Box::new(Refused { op, error: Error::Forked }));
        }
        let mut list = self.list.lock();
        if list.is_closed {
            return Stage::Refused(Box::new(Refused { op, error: Error::Closed }));
        }
        if list.ops.len() >= self.capacity {
            if let Some(task) = task
                && !list.without_room.iter().any(|waiting| waiting.will_wake(task))
            {
                list.without_room.push(task.clone());
            }
            return Stage::Outside(Box::new(op));
        }
        let shot = Arc::new(Shot(Mutex::new(ShotState::Flying(None))));
        list.ops.push_back((op, Arc::clone(&shot)));
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
    /// Done, and not fetched.
    Landed(std::result::Result<Done, Box<Refused>>),
    /// The future was dropped, or has returned.
    Gone,
}

impl Shot {
    fn land(&self, result: std::result::Result<Done, Box<Refused>>) {
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
    kind: OpKind,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// The list was full.
    Outside(Box<Op>),
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
    pub fn wait(mut self) -> std::result::Result<Done, Box<Refused>> {
        struct Unpark(Thread);
        impl std::task::Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let task = Waker::from(Arc::new(Unpark(std::thread::current())));
        loop {
            match Pin::new(&mut self).poll(&mut TaskContext::from_waker(&task)) {
                Poll::Ready(result) => return result,
                Poll::Pending => std::thread::park(),
            }
        }
    }
}

impl Future for Submission {
    type Output = std::result::Result<Done, Box<Refused>>;

    fn poll(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let mut stage = std::mem::replace(&mut self.stage, Stage::Over);
        if let Stage::Outside(op) = stage {
            stage = self.hub.try_start(*op, Some(task.waker()));
        }
        let shot = match stage {
            Stage::Started(shot) => shot,
            Stage::Refused(refused) => return Poll::Ready(Err(refused)),
            Stage::Outside(_) => {
                self.stage = stage;
                return Poll::Pending;
            }
            Stage::Over => unreachable!("polled again after its end"),
        };
        let mut landing = shot.0.lock();
        match std::mem::replace(&mut *landing, ShotState::Gone) {
            ShotState::Landed(result) => Poll::Ready(result),
            ShotState::Flying(_) => {
                *landing = ShotState::Flying(Some(task.waker().clone()));
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
        if matches!(before, ShotState::Flying(_)) && self.kind == OpKind::Poll {
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
                let flight = self.end(done.op.token());
                flight.shot.land(Ok(Done { op: done.op.with_token(flight.token), ..done }));
            }
        }
    }

    /// Takes from the list what the context has room for.
    fn fetch(&mut self, batch: &mut VecDeque<Op>) -> Fetched {
        let mut list = self.hub.list.lock();
        let room = self.context.capacity() - self.context.in_flight() - batch.len();
        let count = room.min(list.ops.len());
        let fetched: Vec<_> = list.ops.drain(..count).collect();
        let waiting = if count > 0 { std::mem::take(&mut list.without_room) } else { Vec::new() };
        let state = Fetched {
            has_orphans: std::mem::take(&mut list.has_orphans),
            is_closed: list.is_closed,
            is_last: list.is_closed && list.ops.is_empty(),
        };
        drop(list);
        waiting.into_iter().for_each(Waker::wake);
        for (op, shot) in fetched {
            batch.push_back(self.begin(op, shot));
        }
        state
    }

    /// Gives an operation the token by which its future is found.
    fn begin(&mut self, op: Op, shot: Arc<Shot>) -> Op {
        let flight = Flight { token: op.token(), is_poll: op.kind() == OpKind::Poll, shot };
        let index = self.free.pop().unwrap_or_else(|| {
            self.flights.push(None);
            self.flights.len() - 1
        });
        self.flights[index] = Some(flight);
        op.with_token(index as u64)
    }

    fn end(&mut self, token: u64) -> Flight {
        let index = usize::try_from(token).expect("tokens are indexes");
        self.free.push(index);
        self.flights[index].take().expect("a token belongs to a flight")
    }

    fn start(&mut self, batch: &mut VecDeque<Op>) {
        while !batch.is_empty() {
            let submitted = self.context.submit(batch).expect("the context lives as long as its thread");
            if let Some(refused) = submitted.refused {
                let flight = self.end(refused.op.token());
                let Refused { op, error } = *refused;
                flight.shot.land(Err(Box::new(Refused { op: op.with_token(flight.token), error })));
            } else if submitted.taken == 0 {
                // Short of memory: again after the next completion.
                break;
            }
        }
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
