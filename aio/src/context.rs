//! The context: all operations of Linux native AIO, with owned buffers and typed results.
//!
//! Invariants: one thread uses a context at a time (`&mut self`), so there is one consumer of its completion ring. The
//! operations in flight never exceed its slots. The default number of slots is the length of the device's queue: above
//! that the kernel would block in the submit.
//!
//! The queues of [`NativeBackend`](crate::NativeBackend) are contexts behind the narrow trait [`Queue`], for programs that
//! want to run on a simulated disk, too.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::in_flight::InFlight;
use crate::operation::{Completion, Operation};
use crate::probe::device_queue_slots;
use crate::profile::IoProfile;
use crate::queue::{Cancel, Queue, Wake, WakeUp};
use crate::settings::{BackendState, Reaping, Settings, Waking};
use crate::signal::SignalSet;

/// Slots of a context that was given neither a number nor a device.
const DEFAULT_SLOTS: usize = 128;

/// The settings of a new [`Context`]; see [`Context::builder`].
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct ContextBuilder {
    slots: Option<usize>,
    device_slots: Option<usize>,
    mask: Option<SignalSet>,
    reaping: Reaping,
    waking: Waking,
}

impl ContextBuilder {
    /// The most operations in flight. The default is the length of the queue of the [device](ContextBuilder::device_of),
    /// or 128.
    ///
    /// The kernel rounds up: for `n` operations (this crate asks for one more, for its waker) it makes room for `max(n,
    /// 4 * cpus) * 2` events, fills the last page of the ring with further ones, and charges `n` to the machine's
    /// `fs.aio-max-nr`. A context of this crate accepts exactly the number of operations that it was made for.
    ///
    /// # Panics
    /// If it is 0.
    pub fn slots(mut self, slots: usize) -> ContextBuilder {
        assert!(slots > 0, "a context without slots");
        self.slots = Some(slots);
        self
    }

    /// Limits the operations in flight to the length of the queue of the device that holds this file or directory
    /// (`nr_requests`; no limit where that is not known). Above it `io_submit` waits for the device.
    pub fn device_of(mut self, file: &impl AsFd) -> ContextBuilder {
        self.device_slots = device_queue_slots(file.as_fd());
        self
    }

    /// Sets the thread's signal mask to `mask` while it waits. A signal that the thread blocks otherwise and that is
    /// not in `mask` can arrive only during the wait, so it is never lost between a check and the wait. Every wait of
    /// such a context enters the kernel. Not used where the kernel has no `io_pgetevents` (before Linux 4.18).
    pub fn mask(mut self, mask: SignalSet) -> ContextBuilder {
        self.mask = Some(mask);
        self
    }

    /// Selects how completions are fetched.
    pub fn reaping(mut self, reaping: Reaping) -> ContextBuilder {
        self.reaping = reaping;
        self
    }

    /// Selects how other threads end a wait.
    pub fn waking(mut self, waking: Waking) -> ContextBuilder {
        self.waking = waking;
        self
    }

    /// Makes the context (`io_setup`). Contexts are long-lived, one for each role of a program: dropping one takes tens
    /// of milliseconds.
    ///
    /// # Errors
    /// [`Error::Slots`](crate::Error::Slots) when the machine's `fs.aio-max-nr` is exhausted;
    /// [`Error::Unsupported`](crate::Error::Unsupported) for waking by signal without `io_pgetevents`;
    /// [`Error::Os`](crate::Error::Os) when that signal is ignored or does not exist, or memory is short.
    pub fn build(self) -> Result<Context> {
        let wanted = self.slots.unwrap_or(DEFAULT_SLOTS.max(self.device_slots.unwrap_or(0)));
        let slots = self.device_slots.map_or(wanted, |device| wanted.min(device));
        let settings = Settings { slots, mask: self.mask, reaping: self.reaping, waking: self.waking };
        InFlight::new(&settings, BackendState::new()).map(Context)
    }
}

/// A context of asynchronous I/O.
///
/// It owns the operations in flight: an operation moves in at [`submit`](Context::submit) and comes out of
/// [`wait`](Context::wait) as [`Completion`]. Dropping a context cancels its polls and waits for the rest. Forgetting
/// one leaks it and the buffers in flight, which is safe.
///
/// # Concurrency
/// One thread at a time. A context can be sent to another thread between calls, even with operations in flight. After a
/// `fork` the parent's context continues to work, and the child's copy answers [`Error::Forked`](crate::Error::Forked).
///
/// # Examples
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR"))?;
/// # let path = dir.path().join("file");
/// use aio::{Buf, Context, Operation};
///
/// let file = std::sync::Arc::new(std::fs::OpenOptions::new().create(true).read(true).write(true).open(path)?);
/// let mut context = Context::builder().device_of(&file).build()?;
/// let write = Operation::write(file.clone(), 0, Buf::from(&b"four"[..]));
/// let done = context.run([write, Operation::data_sync(file)])?;
/// assert_eq!(done[0].result, Ok(4));
/// # Ok(()) }
/// ```
///
/// # References
/// `io_setup(2)`, `io_submit(2)`, `io_getevents(2)`, `io_cancel(2)`, `io_destroy(2)`.
#[derive(Debug)]
pub struct Context(InFlight);

impl From<InFlight> for Context {
    fn from(in_flight: InFlight) -> Context {
        Context(in_flight)
    }
}

/// The contract of [`Queue`]. A deadline is a reading of the clock of the backend that made the context.
impl Queue for Context {
    fn submit(&mut self, operations: &mut VecDeque<Operation>) -> Result<usize> {
        self.0.submit(operations)
    }

    fn wait(
        &mut self,
        at_least: usize,
        deadline: Option<Duration>,
        completions: &mut Vec<Completion>,
    ) -> Result<Wake> {
        self.0.wait(at_least, deadline, completions)
    }

    fn cancel(&mut self, token: u64) -> Result<Cancel> {
        self.0.cancel(token)
    }

    fn in_flight(&self) -> usize {
        self.0.len()
    }

    fn capacity(&self) -> usize {
        self.0.capacity()
    }

    fn waker(&self) -> Arc<dyn WakeUp> {
        self.0.waker()
    }
}

impl Context {
    /// Settings for a new context.
    pub fn builder() -> ContextBuilder {
        ContextBuilder::default()
    }

    /// Hands operations from the front of `operations` to the kernel, as many as there are free slots; the rest stays.
    ///
    /// Returns how many were taken. 0 means that no slot is free: [wait](Context::wait) first. The operations of one
    /// submit run in any order. A misaligned direct read or write is taken, and completes with
    /// [`Errno::INVALID`](crate::Errno::INVALID). Where a file system writes through the page cache, or has to
    /// allocate space first, this call blocks: see [`probe`](fn@crate::probe).
    ///
    /// # Errors
    /// The operation at the front was refused (it stays at the front), or [`Error::Forked`](crate::Error::Forked).
    ///
    /// # Panics
    /// If a file belongs to the simulated disk.
    pub fn submit(&mut self, operations: &mut VecDeque<Operation>) -> Result<usize> {
        self.0.submit(operations)
    }

    /// Reaps completions into `completions`, in the order in which they arrive. Every completed operation is reaped,
    /// even if there are more than `at_least`.
    ///
    /// Returns when at least `at_least` were reaped (0: without waiting), on a wake-up, at the `deadline` (`None`:
    /// never), or after a signal handler ran on this thread, with or without `SA_RESTART`. When signals and completions
    /// come together the wait reports the completions, and the handler still runs. If `at_least` exceeds the operations
    /// in flight, only a wake-up, the deadline or a signal ends the wait.
    ///
    /// # Errors
    /// [`Error::Forked`](crate::Error::Forked).
    pub fn wait(
        &mut self,
        at_least: usize,
        deadline: Option<Instant>,
        completions: &mut Vec<Completion>,
    ) -> Result<Wake> {
        let clock = self.0.shared().clock;
        self.0.wait(at_least, deadline.map(|deadline| clock.reading(deadline)), completions)
    }

    /// Waits like [`Context::wait`], for at most `timeout`.
    ///
    /// # Errors
    /// [`Error::Forked`](crate::Error::Forked).
    pub fn wait_for(
        &mut self,
        at_least: usize,
        timeout: Duration,
        completions: &mut Vec<Completion>,
    ) -> Result<Wake> {
        let deadline = self.0.shared().clock.now().saturating_add(timeout);
        self.0.wait(at_least, Some(deadline), completions)
    }

    /// Submits all operations and waits until they are done; returns their completions in the same order.
    ///
    /// The context must be idle. Signals do not end it.
    ///
    /// # Errors
    /// That of the first refused operation. By then the operations before it are done; those after it were not started.
    ///
    /// # Panics
    /// If operations are in flight.
    pub fn run(&mut self, operations: impl IntoIterator<Item = Operation>) -> Result<Vec<Completion>> {
        assert_eq!(self.in_flight(), 0, "an idle context");
        let mut tokens = Vec::new();
        let mut waiting = VecDeque::new();
        for operation in operations {
            tokens.push(operation.token());
            waiting.push_back(operation.with_token(tokens.len() as u64 - 1));
        }
        let mut completions = Vec::with_capacity(tokens.len());
        let mut refused = None;
        while !waiting.is_empty() || self.in_flight() > 0 {
            if let Err(error) = self.submit(&mut waiting) {
                refused = Some(error);
                waiting.clear();
            }
            if self.in_flight() > 0 {
                self.wait(1, None, &mut completions)?;
            }
        }
        if let Some(error) = refused {
            return Err(error);
        }
        completions.sort_by_key(|completion| completion.operation.token());
        for (completion, token) in completions.iter_mut().zip(tokens) {
            completion.operation.set_token(token);
        }
        Ok(completions)
    }

    /// Asks the kernel to cancel the first operation in flight with this token (`io_cancel`). After any answer an
    /// operation in flight still completes and must be reaped. Searches all slots.
    ///
    /// # Errors
    /// [`Error::Forked`](crate::Error::Forked), or the context is dead.
    pub fn cancel(&mut self, token: u64) -> Result<Cancel> {
        self.0.cancel(token)
    }

    /// Operations submitted and not yet reaped.
    pub fn in_flight(&self) -> usize {
        self.0.len()
    }

    /// The most operations that can be in flight.
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// A handle that ends a [`Context::wait`] from another thread. In a forked child it does nothing.
    ///
    /// The kernel's context and the slots charged for it live until the context and its last waker are dropped. The
    /// thread that drops the last of them destroys the kernel's context.
    pub fn waker(&self) -> Arc<dyn WakeUp> {
        self.0.waker()
    }

    /// Whether completions are read from the ring in user space.
    pub fn reads_ring(&self) -> bool {
        self.0.reads_ring()
    }

    /// The operations so far.
    pub fn profile(&self) -> IoProfile {
        self.0.shared().trace.profile()
    }
}
