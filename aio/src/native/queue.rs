//! A context of native AIO: hands operations to the kernel, owns them while they are in flight, waits for them.
//!
//! Invariants
//! - An operation that the kernel has accepted stands in `slots` until its event was reaped, and the number of
//!   its slot is the event's `data`: so its buffer and its file live as long as the kernel may use them.
//! - `free` holds the numbers of the empty slots, so in flight + free = capacity.
//! - The kernel's context has one slot more than `slots`, for the poll on the waker.
//! - A wake-up that was reaped is remembered in `woken` until a wait has returned [`Wake::Woken`].
//! - In a forked child nothing is freed or destroyed: the context is the parent's.
//!
//! One call of the kernel reaps everything that has completed, since `events` has room for all that is in flight.
//!
//! A wait for several completions sleeps until all are there, but only while nobody else has a waker: the
//! poll counts as one event like any other, so a sleeper that can be woken is woken by every event.
#![expect(unsafe_code, reason = "hands buffers to the kernel")]

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::clock::Clock;
use crate::backend::{Action, Completion, Operation, Queue, Wake, WakeUp};
use crate::error::{Errno, Error, Result};
use crate::signal::SignalSet;
use crate::sys::{self, Context, IoEvent, Iocb, Process};
use crate::trace::Trace;
use crate::waker::EventWaker;

/// `data` of the poll on the waker; no slot has this number.
const POLL: u64 = u64::MAX;

/// How long a wait sleeps before it looks at the waker, where the kernel has no poll operation.
const SLICE_WITHOUT_POLL: Duration = Duration::from_millis(1);

/// The poll on the waker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Poll {
    /// Not in flight.
    Idle,
    /// In flight: a wake-up will complete it.
    Armed,
    /// The kernel refuses poll operations: waits sleep in slices.
    Refused,
}

/// What a queue shares with its backend.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) clock: Clock,
    pub(crate) trace: Arc<Trace>,
    pub(crate) process: Process,
}

#[derive(Debug)]
struct InFlight {
    operation: Operation,
    submitted_at: Duration,
}

/// A context of asynchronous I/O.
#[derive(Debug)]
pub(crate) struct NativeQueue {
    context: Context,
    slots: Vec<Option<InFlight>>,
    free: Vec<usize>,
    /// Scratch space of `submit`.
    iocbs: Vec<Iocb>,
    /// Scratch space of `reap`.
    events: Vec<IoEvent>,
    waker: Arc<EventWaker>,
    poll: Poll,
    woken: bool,
    /// The thread's signal mask while it waits.
    mask: Option<SignalSet>,
    /// False once the kernel has refused `io_pgetevents`.
    has_pgetevents: bool,
    shared: Shared,
}

impl NativeQueue {
    /// A queue for `slots` operations.
    ///
    /// # Panics
    /// If `slots` is 0.
    pub(crate) fn new(slots: usize, mask: Option<SignalSet>, shared: Shared) -> Result<NativeQueue> {
        assert!(slots > 0, "a queue without slots");
        let waker = EventWaker::new().map_err(|errno| context_error("eventfd", errno))?;
        // More than 32 bits, like more than fs.aio-max-nr, is more than the machine has.
        let kernel_slots = u32::try_from(slots + 1).map_err(|_| Error::Slots { slots })?;
        let context = match sys::setup(kernel_slots) {
            Ok(context) => context,
            Err(Errno::AGAIN | Errno::INVALID) => return Err(Error::Slots { slots }),
            Err(errno) => return Err(context_error("io_setup", errno)),
        };
        Ok(NativeQueue {
            context,
            slots: std::iter::repeat_with(|| None).take(slots).collect(),
            free: (0..slots).rev().collect(),
            iocbs: Vec::new(),
            events: vec![IoEvent::default(); slots + 1],
            waker: Arc::new(waker),
            poll: Poll::Idle,
            woken: false,
            mask,
            has_pgetevents: true,
            shared,
        })
    }

    /// Hands over one batch from the front; returns how many were taken.
    fn submit_batch(&mut self, operations: &mut VecDeque<Operation>) -> Result<usize> {
        let batch = operations.len().min(self.free.len()).min(sys::SUBMIT_MAX);
        self.iocbs.clear();
        let free = self.free.iter().rev();
        self.iocbs
            .extend(operations.iter().zip(free).take(batch).map(|(operation, &slot)| iocb(operation, slot)));
        // SAFETY: the buffers are owned by the operations, which the loop below moves into `slots`; they leave it only
        // when their event was reaped. Operations that were not taken are not known to the kernel.
        let submitted = unsafe { sys::submit(&self.context, &self.iocbs) };
        let taken = match submitted {
            Ok(taken) => taken,
            // Completed events that were not reaped hold slots of the kernel.
            Err(Errno::AGAIN) if self.in_flight() > 0 => 0,
            Err(errno) => return Err(refusal(operations.front(), errno)),
        };
        let submitted_at = self.shared.clock.now();
        for operation in operations.drain(..taken) {
            let slot = self.free.pop().expect("a batch is not longer than the free list");
            self.slots[slot] = Some(InFlight { operation, submitted_at });
        }
        self.shared.trace.submitted();
        Ok(taken)
    }

    /// Puts the poll on the waker in flight, so that a wake-up ends the next call of the kernel. After an error the
    /// wait sleeps in slices instead.
    fn arm(&mut self) {
        if self.poll != Poll::Idle {
            return;
        }
        let iocb = Iocb {
            data: POLL,
            opcode: sys::COMMAND_POLL,
            descriptor: self.waker.descriptor(),
            buf: u64::from(libc::POLLIN.cast_unsigned()),
            ..Iocb::default()
        };
        // SAFETY: a poll has no buffer.
        match unsafe { sys::submit(&self.context, &[iocb]) } {
            Ok(_) => self.poll = Poll::Armed,
            // For want of memory: tried again at the next wait.
            Err(Errno::AGAIN) => {}
            Err(_) => self.poll = Poll::Refused,
        }
    }

    /// Whether another thread can wake this one, or has. As nobody but this queue makes wakers, the answer holds
    /// until the next call of [`Queue::waker`].
    fn can_be_woken(&mut self) -> bool {
        Arc::get_mut(&mut self.waker).is_none() || self.waker.is_raised()
    }

    /// One call of the kernel; moves all completed operations to `completions`. False if a signal cut it short.
    fn reap(
        &mut self,
        at_least: usize,
        timeout: Option<Duration>,
        completions: &mut Vec<Completion>,
    ) -> Result<bool> {
        let wait = sys::Wait { at_least, timeout, mask: self.mask.as_ref().map(SignalSet::raw) };
        let mut reaped = Err(Errno::NOT_IMPLEMENTED);
        if self.has_pgetevents {
            reaped = sys::reap(&self.context, &mut self.events, wait);
            self.has_pgetevents = reaped != Err(Errno::NOT_IMPLEMENTED);
        }
        if !self.has_pgetevents {
            reaped = sys::reap_unmasked(&self.context, &mut self.events, wait);
        }
        let count = match reaped {
            Ok(count) => count,
            Err(Errno::INTERRUPTED) => return Ok(false),
            Err(errno) => return Err(context_error("io_getevents", errno)),
        };
        let now = self.shared.clock.now();
        for index in 0..count {
            let event = self.events[index];
            if event.data == POLL {
                self.poll = Poll::Idle;
                self.woken = true;
            } else {
                completions.push(self.complete(event, now));
            }
        }
        Ok(true)
    }

    fn complete(&mut self, event: IoEvent, now: Duration) -> Completion {
        let slot = usize::try_from(event.data).expect("the event's data is a slot's number");
        let in_flight = self.slots[slot].take().expect("an event belongs to an operation in flight");
        self.free.push(slot);
        let result = usize::try_from(event.result)
            .map_err(|_| Errno(i32::try_from(-event.result).unwrap_or(libc::EIO)));
        let operation = in_flight.operation;
        let latency = now.saturating_sub(in_flight.submitted_at);
        self.shared.trace.ended(operation.kind(), result.ok(), latency);
        Completion { operation, result }
    }

    /// How long the next call of the kernel may sleep; `None`: for ever.
    fn timeout(&self, deadline: Option<Duration>) -> Option<Duration> {
        deadline.map(|deadline| deadline.saturating_sub(self.shared.clock.now()))
    }

    fn check_fork(&self) -> Result<()> {
        if self.shared.process.is_current() { Ok(()) } else { Err(Error::Forked) }
    }
}

impl Queue for NativeQueue {
    fn submit(&mut self, operations: &mut VecDeque<Operation>) -> Result<usize> {
        self.check_fork()?;
        let mut taken = 0;
        while !operations.is_empty() && !self.free.is_empty() {
            match self.submit_batch(operations) {
                Ok(0) => break,
                Ok(count) => taken += count,
                // What was taken must be reported; the refused one is at the front for the next call.
                Err(_) if taken > 0 => break,
                Err(error) => return Err(error),
            }
        }
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
        loop {
            let missing = wanted.saturating_sub(completions.len());
            let can_be_woken = missing > 0 && self.can_be_woken();
            if can_be_woken && self.waker.is_raised() {
                self.woken = true;
            } else if can_be_woken {
                self.arm();
            }
            let mut timeout = self.timeout(deadline);
            if missing == 0 || self.woken {
                timeout = Some(Duration::ZERO);
            } else if can_be_woken && self.poll != Poll::Armed {
                timeout = Some(timeout.map_or(SLICE_WITHOUT_POLL, |rest| rest.min(SLICE_WITHOUT_POLL)));
            }
            let sleep_until = timeout.map(|timeout| self.shared.clock.now() + timeout);
            let before = completions.len();
            let at_once = if can_be_woken { missing.min(1) } else { missing };
            let undisturbed = self.reap(at_once, timeout, completions)?;
            let reaped = completions.len() - before;
            if completions.len() >= wanted {
                return Ok(Wake::Completed);
            }
            if self.woken {
                self.woken = false;
                self.waker.consume();
                return Ok(Wake::Woken);
            }
            let now = self.shared.clock.now();
            // With some events at hand the kernel hides the signal: it returns fewer than asked for, and early.
            let is_early = sleep_until.is_none_or(|end| now < end);
            if !undisturbed || (reaped > 0 && reaped < at_once && is_early) {
                return Ok(Wake::Interrupted);
            }
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Ok(Wake::TimedOut);
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn capacity(&self) -> usize {
        self.slots.len()
    }

    fn waker(&self) -> Arc<dyn WakeUp> {
        Arc::clone(&self.waker) as Arc<dyn WakeUp>
    }
}

impl Drop for NativeQueue {
    fn drop(&mut self) {
        if self.shared.process.is_current() {
            let mut completions = Vec::new();
            while self.in_flight() > 0 && self.reap(1, None, &mut completions).is_ok() {
                completions.clear();
            }
            // Cancels the poll. A failure leaves a context to the kernel, which frees it with the process.
            let _ = sys::destroy(&self.context);
        }
        // Whatever is still here may be in use by the kernel for ever: rather lost than freed.
        for slot in &mut self.slots {
            std::mem::forget(slot.take());
        }
    }
}

/// The kernel's form of an operation. Its addresses stay valid when the operation is moved.
fn iocb(operation: &Operation, slot: usize) -> Iocb {
    let mut iocb = Iocb {
        data: slot as u64,
        descriptor: raw_descriptor(operation),
        opcode: sys::COMMAND_DATA_SYNC,
        ..Iocb::default()
    };
    match &operation.action {
        Action::Read { offset, buf } => {
            iocb.opcode = sys::COMMAND_READ;
            (iocb.buf, iocb.len_bytes, iocb.offset) = (buf.address(), buf.len() as u64, offset.cast_signed());
        }
        Action::Write { offset, buf } | Action::WriteDurable { offset, buf } => {
            iocb.opcode = sys::COMMAND_WRITE;
            (iocb.buf, iocb.len_bytes, iocb.offset) = (buf.address(), buf.len() as u64, offset.cast_signed());
        }
        Action::Sync => {}
    }
    if let Action::WriteDurable { .. } = operation.action {
        iocb.rw_flags = libc::RWF_DSYNC;
    }
    iocb
}

fn raw_descriptor(operation: &Operation) -> u32 {
    use std::os::fd::AsRawFd;
    operation.file.descriptor().as_raw_fd().cast_unsigned()
}

/// The error of an operation that was not even started.
fn refusal(operation: Option<&Operation>, errno: Errno) -> Error {
    let Some(operation) = operation else { return context_error("io_submit", errno) };
    Error::Os {
        call: "io_submit",
        path: operation.file.path().to_owned(),
        offset: operation.offset(),
        len_bytes: operation.len_bytes(),
        errno,
    }
}

fn context_error(call: &'static str, errno: Errno) -> Error {
    Error::call(call, Path::new("(asynchronous I/O context)"), errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A queue on a kernel that lacks what younger kernels have.
    fn old_kernel(has_pgetevents: bool, poll: Poll) -> NativeQueue {
        let (clock, process) = (Clock::start(), Process::current());
        let shared = Shared { clock, trace: Arc::default(), process };
        let mut queue = NativeQueue::new(1, None, shared).unwrap();
        queue.has_pgetevents = has_pgetevents;
        queue.poll = poll;
        queue
    }

    #[test]
    fn old_kernels_time_out() {
        for (has_pgetevents, poll) in [(false, Poll::Idle), (true, Poll::Refused), (false, Poll::Refused)] {
            let mut queue = old_kernel(has_pgetevents, poll);
            let _waker = queue.waker();
            let deadline = queue.shared.clock.now() + Duration::from_millis(5);
            assert_eq!(queue.wait(1, Some(deadline), &mut Vec::new()), Ok(Wake::TimedOut));
            assert!(queue.shared.clock.now() >= deadline);
        }
    }

    #[test]
    fn old_kernels_are_woken() {
        for (has_pgetevents, poll) in [(false, Poll::Idle), (true, Poll::Refused), (false, Poll::Refused)] {
            let mut queue = old_kernel(has_pgetevents, poll);
            let waker = queue.waker();
            for _ in 0..20 {
                std::thread::scope(|scope| {
                    scope.spawn(|| waker.wake());
                    let far = queue.shared.clock.now() + Duration::from_mins(1);
                    assert_eq!(queue.wait(1, Some(far), &mut Vec::new()), Ok(Wake::Woken));
                });
            }
        }
    }

    #[test]
    fn a_queue_that_nobody_can_wake_needs_no_poll() {
        let mut queue = old_kernel(true, Poll::Idle);
        let deadline = queue.shared.clock.now() + Duration::from_millis(1);
        assert_eq!(queue.wait(1, Some(deadline), &mut Vec::new()), Ok(Wake::TimedOut));
        assert_eq!(queue.poll, Poll::Idle);
        let waker = queue.waker();
        assert_eq!(queue.wait(1, Some(deadline), &mut Vec::new()), Ok(Wake::TimedOut));
        assert_eq!(queue.poll, Poll::Armed);
        waker.wake();
        drop(waker);
        assert_eq!(
            queue.wait(1, None, &mut Vec::new()),
            Ok(Wake::Woken),
            "the waker is gone, its wake is not"
        );
    }
}
