//! State shared by a reactor's tasks and its driver: the list of waiting operations, and the reply to each.
//!
//! Invariant: locks are leaves. No waker of a task is called while one is held.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Waker};

use parking_lot::Mutex;

use crate::buf::Buf;
use crate::error::Error;
use crate::kind::OperationKind;
use crate::operation::{AnyFile, Completion, Operation};
use crate::planted::{Bug, planted};
use crate::queue::WakeUp;
use crate::sys::Process;

/// The result of an operation.
pub(super) type Ended = Result<Completion, Box<Refused>>;

/// An operation that ended without a completion.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Refused {
    /// The operation, with its buffers. `None` if the queue failed while it was in flight, or if it is a
    /// [`Reactor::read`](super::Reactor::read) that was not started and has no buffer yet.
    pub operation: Option<Operation>,
    /// The reason.
    #[source]
    pub error: Error,
}

/// An operation that was not started.
#[derive(Debug)]
pub(super) enum Request {
    Operation(Operation),
    Read { file: AnyFile, offset: u64, len_bytes: usize },
}

impl Request {
    pub(super) fn is_poll(&self) -> bool {
        matches!(self, Request::Operation(operation) if operation.kind() == OperationKind::Poll)
    }

    pub(super) fn into_operation(self) -> Operation {
        match self {
            Request::Operation(operation) => operation,
            Request::Read { file, offset, len_bytes } => {
                Operation::read(file, offset, Buf::zeroed(len_bytes))
            }
        }
    }

    fn refused(self, error: Error) -> Box<Refused> {
        let operation = match self {
            Request::Operation(operation) => Some(operation),
            Request::Read { .. } => None,
        };
        Box::new(Refused { operation, error })
    }
}

/// Carries the result of one operation from the driver to its future.
#[derive(Debug)]
pub(super) struct Reply(Mutex<ReplyState>);

#[derive(Debug)]
enum ReplyState {
    /// The operation has not ended; the task to wake.
    Awaited(Option<Waker>),
    /// The operation has ended; its future has not fetched the result.
    Arrived(Ended),
    /// The future was dropped, or has returned.
    Abandoned,
}

impl Reply {
    pub(super) fn is_abandoned(&self) -> bool {
        matches!(*self.0.lock(), ReplyState::Abandoned)
    }

    pub(super) fn has_arrived(&self) -> bool {
        matches!(*self.0.lock(), ReplyState::Arrived(_))
    }

    /// Fetches the result, or registers the task to be woken when it arrives.
    pub(super) fn take_or_wait(&self, task: &Waker) -> Poll<Ended> {
        let mut state = self.0.lock();
        match std::mem::replace(&mut *state, ReplyState::Abandoned) {
            ReplyState::Arrived(ended) => Poll::Ready(ended),
            ReplyState::Awaited(mut last) => {
                let same = last.take_if(|waker| waker.will_wake(task));
                *state = ReplyState::Awaited(Some(same.unwrap_or_else(|| task.clone())));
                Poll::Pending
            }
            ReplyState::Abandoned => unreachable!("a future that has ended does not poll"),
        }
    }
}

/// The result of one operation, not yet given to its future.
#[derive(Debug)]
#[must_use = "a task waits for it"]
pub(super) struct Outcome {
    pub(super) reply: Arc<Reply>,
    pub(super) ended: Ended,
}

impl Outcome {
    /// Puts the result into the reply and wakes the task. The caller holds no lock.
    pub(super) fn tell(self) {
        let mut state = self.reply.0.lock();
        let ReplyState::Awaited(task) = &mut *state else { return };
        let task = task.take();
        *state = ReplyState::Arrived(self.ended);
        drop(state);
        if let Some(task) = task
            && !planted(Bug::CompletionWakesNoTask)
        {
            // A waker is code of the application. Its panic must not end the driver, which other tasks wait for. The panic
            // hook has reported it already.
            let _ = std::panic::catch_unwind(AssertUnwindSafe(|| task.wake()));
        }
    }
}

/// State shared by tasks and driver.
#[derive(Debug)]
pub(super) struct Hub {
    waiting: Mutex<WaitingList>,
    /// Wakes the driver's thread, if there is one.
    waker: Option<Arc<dyn WakeUp>>,
    has_failed: AtomicBool,
    pub(super) process: Process,
}

#[derive(Debug, Default)]
struct WaitingList {
    requests: VecDeque<(Request, Arc<Reply>)>,
    /// Whether the future of a poll was dropped since the last fetch.
    has_dropped_polls: bool,
    /// The reason why new operations are refused.
    closed: Option<Error>,
}

/// The state of the list at a fetch.
pub(super) struct Found {
    pub(super) has_dropped_polls: bool,
    pub(super) is_closed: bool,
    /// No operation is left on the list.
    pub(super) is_empty: bool,
}

impl Hub {
    pub(super) fn new(waker: Option<Arc<dyn WakeUp>>) -> Hub {
        let (waiting, has_failed) = (Mutex::default(), AtomicBool::new(false));
        Hub { waiting, waker, has_failed, process: Process::current() }
    }

    fn wake_driver(&self) {
        if let Some(waker) = &self.waker {
            waker.wake();
        }
    }

    /// Whether a thread drives the reactor; otherwise tasks do.
    pub(super) fn has_thread(&self) -> bool {
        self.waker.is_some()
    }

    pub(super) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Acquire)
    }

    /// Puts an operation on the list.
    pub(super) fn submit(&self, request: Request) -> Result<Arc<Reply>, Box<Refused>> {
        if !self.process.is_current() {
            return Err(request.refused(Error::Forked));
        }
        let mut waiting = self.waiting.lock();
        if let Some(error) = waiting.closed.clone() {
            drop(waiting);
            return Err(request.refused(error));
        }
        let reply = Arc::new(Reply(Mutex::new(ReplyState::Awaited(None))));
        waiting.requests.push_back((request, Arc::clone(&reply)));
        drop(waiting);
        self.wake_driver();
        Ok(reply)
    }

    /// The future was dropped, or has returned.
    pub(super) fn abandon(&self, reply: &Reply, is_poll: bool) {
        // In a forked child the lock may be held by a thread of the parent.
        if !self.process.is_current() {
            return;
        }
        let before = std::mem::replace(&mut *reply.0.lock(), ReplyState::Abandoned);
        if is_poll && matches!(before, ReplyState::Awaited(_)) {
            self.waiting.lock().has_dropped_polls = true;
            self.wake_driver();
        }
    }

    /// Refuses new operations; those on the list are still done.
    pub(super) fn close(&self) {
        if self.process.is_current() {
            let mut waiting = self.waiting.lock();
            waiting.closed.get_or_insert(Error::Closed);
            let lost = if planted(Bug::CloseForgetsWaitingReads) {
                std::mem::take(&mut waiting.requests)
            } else {
                VecDeque::new()
            };
            drop(waiting);
            drop(lost);
            self.wake_driver();
        }
    }

    /// Refuses new operations, and ends all operations on the list.
    pub(super) fn fail(&self, error: &Error) -> impl Iterator<Item = Outcome> {
        let mut waiting = self.waiting.lock();
        waiting.closed.get_or_insert(error.clone());
        let requests = std::mem::take(&mut waiting.requests);
        drop(waiting);
        self.has_failed.store(true, Ordering::Release);
        requests
            .into_iter()
            .map(|(request, reply)| Outcome { reply, ended: Err(request.refused(error.clone())) })
    }

    /// Moves up to `room` operations from the front of the list to `requests`.
    pub(super) fn fetch(&self, room: usize, requests: &mut Vec<(Request, Arc<Reply>)>) -> Found {
        let mut waiting = self.waiting.lock();
        let count = room.min(waiting.requests.len());
        requests.extend(waiting.requests.drain(..count));
        Found {
            has_dropped_polls: std::mem::take(&mut waiting.has_dropped_polls),
            is_closed: waiting.closed.is_some(),
            is_empty: waiting.requests.is_empty(),
        }
    }
}
