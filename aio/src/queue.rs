//! The queue of asynchronous operations that every backend provides.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;
use crate::operation::{Completion, Operation};

/// Why [`Queue::wait`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// At least as many completions as asked for.
    Completed,
    /// [`WakeUp::wake`] was called.
    Woken,
    /// The deadline passed.
    TimedOut,
    /// A signal handler of the application ran on this thread.
    Interrupted,
}

/// Wakes the thread that waits on a [`Queue`]. A wake-up before the wait ends the next wait at once.
pub trait WakeUp: Send + Sync + fmt::Debug {
    /// Wakes the waiter. Cheap, callable from any thread, never blocks.
    fn wake(&self);
}

/// A context of asynchronous I/O, used by one thread at a time. Dropping it waits for everything in flight.
pub trait Queue: Send + fmt::Debug {
    /// Hands operations from the front of `operations` to the kernel, as many as there are free slots; the rest stays.
    ///
    /// Returns how many were taken. 0 means that no slot is free: reap first. A misaligned operation is taken and
    /// completes with [`Errno::INVALID`](crate::Errno::INVALID). Operations of one call may be executed in any order.
    ///
    /// # Errors
    /// The operation at the front was refused (it stays at the front), or the context is dead.
    fn submit(&mut self, operations: &mut VecDeque<Operation>) -> Result<usize>;

    /// Reaps completions into `completions`, in the order in which they arrive.
    ///
    /// Returns when at least `at_least` were reaped (`0`: without waiting), on a wake-up, at the `deadline` (a reading
    /// of [`Backend::now`](crate::Backend::now); `None`: never), or after a signal handler ran. All operations that had
    /// completed by then are reaped, in each of these cases. If `at_least` exceeds the operations in flight, only a
    /// wake-up, the deadline or a signal ends the wait.
    ///
    /// # Errors
    /// The context is dead.
    fn wait(
        &mut self,
        at_least: usize,
        deadline: Option<Duration>,
        completions: &mut Vec<Completion>,
    ) -> Result<Wake>;

    /// Requests the cancellation of the first operation in flight with this token. After any answer an operation in
    /// flight still completes and must be reaped.
    ///
    /// # Errors
    /// The context is dead.
    fn cancel(&mut self, token: u64) -> Result<Cancel>;

    /// Operations submitted and not yet reaped.
    fn in_flight(&self) -> usize;

    /// The most operations that can be in flight.
    fn capacity(&self) -> usize;

    /// A handle that ends a [`Queue::wait`] from another thread.
    fn waker(&self) -> Arc<dyn WakeUp>;
}

/// The answer to a request to cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cancel {
    /// The operation is cancelled and completes with `Ok(0)`. Only polls can be cancelled.
    Cancelled,
    /// The operation continues and completes by itself: the kernel cannot cancel reads, writes and syncs.
    NotCancelable,
    /// The poll is done already; its completion waits to be reaped.
    AlreadyDone,
    /// No operation with this token is in flight.
    NotInFlight,
}
