//! A context of native AIO: hands operations to the kernel, owns them while they are in flight, waits for them.
//!
//! Invariants
//! - An operation that the kernel has accepted stays in `slots` until its event is reaped, and the number of its slot
//!   is the event's `data`: so its buffer and its file live as long as the kernel may use them.
//! - `free` holds the numbers of the empty slots, so in flight + free = capacity.
//! - The `iocb` of a slot stays where it is while the slot is taken: its address is the operation's name in `io_cancel`.
//! - The kernel's context has one slot more than `slots`, for the poll that is a wake-up.
//! - A wake-up that was reaped is remembered in `woken` until a wait has returned [`Wake::Woken`].
//! - In a forked child nothing is freed or destroyed: the context is the parent's.
//!
//! One system call reaps all completed operations, since `events` has room for all operations in flight.
//!
//! A wait for several completions sleeps until all have arrived, but only while the context holds the only reference to
//! its waker. The waker's poll counts as one event, so a thread that can be woken has to wake up for every event. A
//! signal is not an event and does not have this cost.
#![expect(unsafe_code, reason = "hands buffers to the kernel")]

mod set_up;
mod turns;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use self::set_up::{CONTEXT, context_error, front_refused, set_up};
use self::turns::{End, InSlot, Looked, Turn};
use crate::calls::execute;
use crate::clock;
use crate::completion_ring::CompletionRing;
use crate::error::{Errno, Error, Result};
use crate::fall_back::FallBack;
use crate::identity::Identities;
use crate::kind::IoClass;
use crate::operation::{Completion, Operation};
use crate::patience::Patience;
use crate::queue::{Cancel, Wake, WakeUp};
use crate::settings::{BackendState, Reaping, Settings, Waking};
use crate::signal::SignalSet;
use crate::sys::{self, IoEvent, Iocb};
use crate::trace::{Ended, Submitted};
use crate::waker::{PollWaker, SignalWaker, WAKE_UP, Waker};

/// How long a wait sleeps before it checks the waker, where the kernel has no poll operation.
const SLICE_WITHOUT_POLL: Duration = Duration::from_millis(1);

/// How long an idle wait sleeps before it checks the waker: the poll of a wake-up can be refused at any time.
const IDLE_SLICE: Duration = Duration::from_secs(1);

/// How long a wait sleeps between two looks at the completion ring, where the kernel refuses the calls that reap.
const SLICE_BY_RING: Duration = Duration::from_micros(100);

/// A context and its operations in flight.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent answers of the kernel")]
pub(crate) struct InFlight {
    context: Arc<sys::KernelContext>,
    slots: Vec<Option<InSlot>>,
    free: Vec<usize>,
    /// One for each slot.
    iocbs: Box<[Iocb]>,
    /// Scratch space of `submit`.
    batch: Vec<usize>,
    /// Scratch space of `reap`.
    events: Box<[IoEvent]>,
    ring: Option<CompletionRing>,
    /// Whether waits look at the ring first. Otherwise it is read only if the kernel refuses the calls that reap.
    reads_ring: bool,
    /// Operations that were done by system calls and not reaped yet.
    done: Vec<(usize, Completion)>,
    /// The slot of the operation that was submitted last.
    newest: Option<usize>,
    looked: Looked,
    /// Scratch space of `harvest`.
    ends: Vec<End>,
    identities: Identities,
    waker: Waker,
    /// False where the kernel has no poll operation: waits sleep in slices.
    has_poll: bool,
    woken: bool,
    mask: Option<SignalSet>,
    /// False once the kernel has refused `io_pgetevents`.
    has_pgetevents: bool,
    shared: BackendState,
}

impl InFlight {
    /// # Panics
    /// If there are no slots.
    pub(crate) fn new(settings: &Settings, shared: BackendState) -> Result<InFlight> {
        let slots = settings.slots;
        assert!(slots > 0, "a queue without slots");
        let context = Arc::new(set_up(slots)?);
        let waker = match settings.waking {
            Waking::Poll => {
                let event = shared.event.get().map_err(|errno| context_error("eventfd", errno))?;
                Waker::Poll(Arc::new(PollWaker::new(Arc::clone(&context), event)))
            }
            Waking::Signal(signal) => {
                let waker = SignalWaker::new(signal).map_err(|errno| context_error("sigaction", errno))?;
                Waker::Signal(Arc::new(waker))
            }
        };
        // Looked up even if it is not used, since the lookup hides the ring from forked children.
        let ring = CompletionRing::of(&context);
        let reads_ring = ring.is_some() && settings.reaping == Reaping::Ring && settings.mask.is_none();
        let mut in_flight = InFlight {
            context,
            slots: std::iter::repeat_with(|| None).take(slots).collect(),
            free: (0..slots).rev().collect(),
            iocbs: vec![Iocb::default(); slots].into_boxed_slice(),
            batch: Vec::new(),
            events: vec![IoEvent::default(); slots + 1].into_boxed_slice(),
            ring,
            reads_ring,
            done: Vec::new(),
            newest: None,
            looked: Looked::default(),
            ends: Vec::new(),
            identities: Identities::default(),
            waker,
            has_poll: true,
            woken: false,
            mask: settings.mask,
            has_pgetevents: settings.reaping != Reaping::OldSystemCall,
            shared,
        };
        in_flight.check_waker()?;
        Ok(in_flight)
    }

    /// A wake-up by poll needs a kernel with polls, one by signal a kernel with `io_pgetevents`.
    fn check_waker(&mut self) -> Result<()> {
        if let Waker::Poll(waker) = &self.waker {
            self.has_poll = match waker.post() {
                Ok(()) => true,
                Err(errno) if errno.is_not_now() => return Err(context_error("io_submit", errno)),
                Err(_) => false,
            };
            let posted = usize::from(self.has_poll);
            while self.system_call(posted, None, None)?.is_none() {}
        } else {
            self.system_call(0, Some(Duration::ZERO), None)?;
            if !self.has_pgetevents {
                return Err(Error::Unsupported {
                    call: "waking by signal",
                    path: Path::new(CONTEXT).to_owned(),
                    needs: "io_pgetevents (Linux 4.18)".to_owned(),
                    errno: Errno::NOT_IMPLEMENTED,
                });
            }
        }
        Ok(())
    }

    /// See [`Queue::submit`](crate::Queue::submit).
    pub(crate) fn submit(&mut self, waiting: &mut VecDeque<Operation>) -> Result<usize> {
        self.check_fork()?;
        let mut patience = Patience::default();
        let mut taken = 0;
        while !waiting.is_empty() && !self.free.is_empty() {
            let errno = match self.submit_batch(waiting) {
                Ok(0) => break,
                Ok(count) => {
                    taken += count;
                    continue;
                }
                Err(errno) => errno,
            };
            if errno.is_not_now() && taken == 0 {
                // The kernel holds nothing of ours that a reap would free.
                let Some(pause) = patience.pause(self.shared.clock.now()) else {
                    return Err(front_refused(waiting, errno));
                };
                std::thread::park_timeout(pause);
            } else if errno.is_refusal() && self.do_by_calls(waiting, errno) {
                taken += 1;
            } else if taken == 0 {
                return Err(front_refused(waiting, errno));
            } else {
                // The operations taken before must be reported. The next call meets the refused one again.
                break;
            }
        }
        Ok(taken)
    }

    /// Does the operation at the front by system calls, after the kernel has refused it with `errno`. False if system calls
    /// cannot do it either: then it stays where it is.
    fn do_by_calls(&mut self, waiting: &mut VecDeque<Operation>, errno: Errno) -> bool {
        let Some(mut operation) = waiting.pop_front_if(|operation| operation.is_plain()) else {
            return false;
        };
        let begin_nanos = clock::nanos();
        let result = execute(&mut operation, &self.shared.fall_backs);
        if result.is_err_and(Errno::is_refusal) {
            waiting.push_front(operation);
            return false;
        }
        self.shared.fall_backs.note(FallBack::SystemCalls { call: "io_submit", errno });
        let nanos = clock::nanos().saturating_sub(begin_nanos);
        let (arguments, moved_bytes) = (operation.arguments(None), result.ok());
        self.shared.trace.ended([Ended { arguments, moved_bytes, nanos, submitted: None }]);
        // It keeps a slot until it is reaped, like every operation.
        let slot = self.free.pop().expect("a slot is free");
        self.done.push((slot, Completion { operation, result }));
        true
    }

    /// Hands over one batch from the front; returns how many were taken.
    fn submit_batch(&mut self, waiting: &mut VecDeque<Operation>) -> std::result::Result<usize, Errno> {
        let batch = waiting.len().min(self.free.len()).min(sys::SUBMIT_MAX);
        self.batch.clear();
        self.batch.extend(self.free.iter().rev().take(batch));
        for (operation, &slot) in waiting.iter().zip(&self.batch) {
            self.iocbs[slot] = Iocb { data: slot as u64, ..operation.iocb() };
        }
        let begin_nanos = clock::nanos();
        // SAFETY: the buffers are owned by the operations (see `Operation::iocb`), which the loop below moves into
        // `slots`; they leave it only when their event was reaped, and no reference to them is given out before. Those
        // that were not taken are not known to the kernel.
        let submitted = unsafe { sys::submit(&self.context, &mut self.iocbs, &self.batch) };
        let taken = match submitted {
            Ok(taken) => taken,
            // Completed events that were not reaped hold slots of the kernel.
            Err(errno) if errno.is_not_now() && self.len() > 0 => 0,
            Err(errno) => return Err(errno),
        };
        #[cfg(feature = "tracing")]
        tracing::trace!(target: "aio", asked = batch, taken, in_flight = self.len(), "submitted");
        let unreaped = self.ring.as_ref().map_or(0, CompletionRing::len);
        let fresh = self.looked.fresh(unreaped);
        // A clock costs more than most of the profile, and the end of a single turn is used only if it was the end.
        let end_nanos = if taken > 1 || !fresh.is_empty() { clock::nanos() } else { begin_nanos };
        for (operation, turn) in waiting.drain(..taken).zip(Turn::all((begin_nanos, end_nanos), taken)) {
            let slot = self.free.pop().expect("a batch is not longer than the free list");
            let call_end_nanos = end_nanos;
            self.slots[slot] =
                Some(InSlot { operation, turn, call_end_nanos, is_done: false, submitted: None });
        }
        let events = self.ring.iter().flat_map(|ring| ring.data(fresh.clone()));
        self.looked.mark_done(events, begin_nanos, &mut self.slots);
        let done = self.done.len() + self.looked.operations();
        let submitted = Submitted { operations: taken, depth: self.len().saturating_sub(done) };
        if let Some(last) = self.batch[..taken].last().and_then(|&slot| self.slots[slot].as_mut()) {
            last.submitted = Some(submitted);
            self.newest = self.batch[..taken].last().copied();
        }
        Ok(taken)
    }

    /// See [`Context::cancel`](crate::Context::cancel).
    pub(crate) fn cancel(&mut self, token: u64) -> Result<Cancel> {
        self.check_fork()?;
        let slots = self.slots.iter().enumerate();
        let mut in_flight = slots.filter_map(|(at, slot)| Some((at, &slot.as_ref()?.operation)));
        let meant = in_flight.find(|(_, operation)| operation.token() == token);
        let Some((slot, class)) = meant.map(|(at, operation)| (at, operation.class())) else {
            return Ok(Cancel::NotInFlight);
        };
        match sys::cancel(&self.context, &mut self.iocbs[slot]) {
            // Old kernels answered with success and also sent the event.
            Ok(()) | Err(Errno::IN_PROGRESS) => Ok(Cancel::Cancelled),
            Err(Errno::INVALID | Errno::NOT_IMPLEMENTED | Errno::AGAIN) if class == IoClass::Poll => {
                Ok(Cancel::AlreadyDone)
            }
            Err(Errno::INVALID | Errno::NOT_IMPLEMENTED | Errno::AGAIN) => Ok(Cancel::NotCancelable),
            Err(errno) => Err(context_error("io_cancel", errno)),
        }
    }

    /// See [`Queue::wait`](crate::Queue::wait).
    pub(crate) fn wait(
        &mut self,
        at_least: usize,
        deadline: Option<Duration>,
        completions: &mut Vec<Completion>,
    ) -> Result<Wake> {
        self.check_fork()?;
        let wanted = completions.len() + at_least;
        self.take_done(completions);
        if self.reads_ring {
            self.drain_ring(completions);
            if completions.len() >= wanted {
                return Ok(Wake::Completed);
            }
        }
        if let Waker::Signal(waker) = &self.waker {
            let waker = Arc::clone(waker);
            waker.enter();
            let wake = self.sleep(wanted, deadline, completions);
            waker.leave();
            wake
        } else {
            self.sleep(wanted, deadline, completions)
        }
    }

    /// Waits in the kernel until `completions` holds as many as `wanted`, or there is another reason to return.
    fn sleep(
        &mut self,
        wanted: usize,
        deadline: Option<Duration>,
        completions: &mut Vec<Completion>,
    ) -> Result<Wake> {
        loop {
            let missing = wanted.saturating_sub(completions.len());
            let can_be_woken = missing > 0 && self.can_be_woken();
            if can_be_woken && self.waker.is_raised() {
                self.woken = true;
            }
            let mut timeout = self.timeout(deadline);
            let is_polled = can_be_woken && self.waker.is_poll();
            if missing == 0 || self.woken {
                timeout = Some(Duration::ZERO);
            } else if is_polled && let Some(slice) = self.slice() {
                timeout = Some(timeout.map_or(slice, |rest| rest.min(slice)));
            }
            let sleep_until = timeout.map(|timeout| self.shared.clock.now() + timeout);
            let before = completions.len();
            let at_once = if is_polled { missing.min(1) } else { missing };
            let undisturbed = self.reap(at_once, timeout, completions)?;
            let reaped = completions.len() - before;
            if completions.len() >= wanted {
                return Ok(Wake::Completed);
            }
            if self.woken || (can_be_woken && self.waker.ends_sleep()) {
                self.woken = false;
                self.waker.consume();
                return Ok(Wake::Woken);
            }
            // If some events have arrived the kernel does not report the signal: it returns early, with fewer events
            // than asked for.
            let is_early = || sleep_until.is_none_or(|end| self.shared.clock.now() < end);
            if !undisturbed || (reaped > 0 && reaped < at_once && is_early()) {
                return Ok(Wake::Interrupted);
            }
            if deadline.is_some_and(|deadline| self.shared.clock.now() >= deadline) {
                return Ok(Wake::TimedOut);
            }
        }
    }

    /// How long a sleep may last that a wake-up ends; `None`: a completion ends it soon.
    fn slice(&self) -> Option<Duration> {
        if !self.has_poll || self.waker.is_refused() {
            return Some(SLICE_WITHOUT_POLL);
        }
        (self.len() == 0).then_some(IDLE_SLICE)
    }

    /// Reaps the operations that were done by system calls.
    fn take_done(&mut self, completions: &mut Vec<Completion>) {
        for (slot, completion) in self.done.drain(..) {
            self.free.push(slot);
            completions.push(completion);
        }
    }

    /// Whether another thread can wake this one, or has. Only this context makes wakers, so the answer holds until the
    /// next call of [`InFlight::waker`].
    fn can_be_woken(&mut self) -> bool {
        self.waker.is_shared() || self.waker.is_raised()
    }

    /// Moves all events of the ring to `completions`.
    fn drain_ring(&mut self, completions: &mut Vec<Completion>) {
        let Some(ring) = &mut self.ring else { return };
        if ring.is_empty() {
            return;
        }
        let count = ring.drain(&mut self.events);
        self.harvest(count, completions);
    }

    /// One call of the kernel; moves all completed operations to `completions`. False if a signal cut it short.
    fn reap(
        &mut self,
        at_least: usize,
        timeout: Option<Duration>,
        completions: &mut Vec<Completion>,
    ) -> Result<bool> {
        let mask = self.waker.mask(self.mask);
        let Some(count) = self.system_call(at_least, timeout, mask.as_ref())? else { return Ok(false) };
        self.harvest(count, completions);
        Ok(true)
    }

    /// Fills `events`; returns how many, `None` if a signal came first.
    fn system_call(
        &mut self,
        at_least: usize,
        timeout: Option<Duration>,
        mask: Option<&SignalSet>,
    ) -> Result<Option<usize>> {
        #[cfg(feature = "tracing")]
        let _span = tracing::trace_span!(target: "aio", "wait", at_least, ?timeout).entered();
        let wait = sys::Wait { at_least, timeout, mask: mask.map(SignalSet::raw) };
        let mut reaped = Err(Errno::NOT_IMPLEMENTED);
        if self.has_pgetevents {
            reaped = sys::reap(&self.context, &mut self.events, wait);
        }
        if let Err(refusal) = reaped
            && refusal != Errno::INTERRUPTED
        {
            // Kernels, tools and sandboxes refuse the newer call with different codes, so the trial decides.
            reaped = sys::reap_unmasked(&self.context, &mut self.events, wait);
            let does_old_call = matches!(reaped, Ok(_) | Err(Errno::INTERRUPTED));
            if does_old_call && std::mem::take(&mut self.has_pgetevents) {
                self.shared.fall_backs.note(FallBack::OldWait { errno: refusal });
            }
        }
        match reaped {
            Ok(count) => Ok(Some(count)),
            Err(Errno::INTERRUPTED) => Ok(None),
            Err(errno) => match self.reap_by_ring(timeout) {
                Some(count) => Ok(Some(count)),
                // Not one that may pass: the operations in flight may be done.
                None => Err(Error::failed("io_getevents", Path::new(CONTEXT), errno)),
            },
        }
    }

    /// Fills `events` from the completion ring, after the kernel has refused the calls that reap. Returns with the first
    /// events, a wake-up or at the end of the time; `None` if there is no ring to read.
    fn reap_by_ring(&mut self, timeout: Option<Duration>) -> Option<usize> {
        // A dead context has no ring either.
        let ring = self.ring.as_mut().filter(|ring| ring.is_mapped())?;
        let end = timeout.map(|timeout| self.shared.clock.now() + timeout);
        loop {
            let count = ring.drain(&mut self.events);
            let is_over = end.is_some_and(|end| self.shared.clock.now() >= end);
            if count > 0 || is_over || self.waker.is_raised() {
                return Some(count);
            }
            std::thread::park_timeout(SLICE_BY_RING);
        }
    }

    /// Ends the operations of the first `count` events.
    fn harvest(&mut self, count: usize, completions: &mut Vec<Completion>) {
        let mut now_nanos = None;
        let before = completions.len();
        self.looked = Looked::default();
        for index in 0..count {
            let event = self.events[index];
            if event.data == WAKE_UP {
                self.woken = true;
            } else {
                completions.push(self.complete(event, &mut now_nanos));
            }
        }
        if self.ends.is_empty() {
            return;
        }
        let reaped = completions[before..].iter().zip(&self.ends);
        self.shared.trace.ended(reaped.map(|(completion, end)| end.of(completion)));
        self.ends.clear();
    }

    fn complete(&mut self, event: IoEvent, now_nanos: &mut Option<u64>) -> Completion {
        let slot = usize::try_from(event.data).expect("the event's data is a slot's number");
        let InSlot { mut operation, turn, call_end_nanos, is_done, submitted } =
            self.slots[slot].take().expect("an event belongs to an operation in flight");
        self.free.push(slot);
        let mut result = usize::try_from(event.result)
            .map_err(|_| Errno(i32::try_from(-event.result).unwrap_or(libc::EIO)));
        let mut now = || *now_nanos.get_or_insert_with(clock::nanos);
        let mut end_nanos = match is_done {
            true if operation.is_direct() => call_end_nanos,
            true if self.newest != Some(slot) => turn.end_nanos,
            _ => now(),
        };
        if let Err(errno) = result
            && InFlight::may_repeat(&operation, errno)
        {
            result = execute(&mut operation, &self.shared.fall_backs);
            end_nanos = clock::nanos();
        }
        let nanos = end_nanos.saturating_sub(turn.begin_nanos);
        #[cfg(feature = "tracing")]
        tracing::trace!(target: "aio", class = operation.class().name(), slot, ?result, nanos, "completed");
        let file = operation.unknown_file().and_then(|owner| self.identities.of(owner));
        self.ends.push(End { nanos, submitted, file });
        Completion { operation, result }
    }

    /// Whether system calls may succeed with an operation that has failed: a file refuses direct I/O although it took the
    /// flag, or a read met a shortage. Nothing of it was done.
    fn may_repeat(operation: &Operation, errno: Errno) -> bool {
        let is_short = errno.is_not_now() && operation.class() == IoClass::Read;
        let is_refused = errno.is_refusal() && operation.aligned_file().is_some();
        operation.is_plain() && (is_short || is_refused)
    }

    /// How long the next call of the kernel may sleep; `None`: for ever.
    fn timeout(&self, deadline: Option<Duration>) -> Option<Duration> {
        deadline.map(|deadline| deadline.saturating_sub(self.shared.clock.now()))
    }

    pub(crate) fn check_fork(&self) -> Result<()> {
        if self.shared.process.is_current() { Ok(()) } else { Err(Error::Forked) }
    }

    /// How many operations are in flight.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The most operations that can be in flight.
    pub(crate) fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Ends a wait from another thread.
    pub(crate) fn waker(&self) -> Arc<dyn WakeUp> {
        self.waker.handle()
    }

    /// Whether completions are read from the ring.
    pub(crate) fn reads_ring(&self) -> bool {
        self.reads_ring
    }

    pub(crate) fn shared(&self) -> &BackendState {
        &self.shared
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.shared.process.is_current() {
            let mut endless = 0;
            // Polls may never complete by themselves.
            for slot in 0..self.slots.len() {
                if self.slots[slot].as_ref().is_some_and(|taken| taken.operation.class() == IoClass::Poll) {
                    // A poll that is done cannot be cancelled either; its event is in the ring then. One that a sandbox does
                    // not let cancel may never end, and is leaked below.
                    let cancelled = sys::cancel(&self.context, &mut self.iocbs[slot]);
                    endless += usize::from(matches!(
                        cancelled,
                        Err(Errno::NOT_IMPLEMENTED | Errno::NOT_PERMITTED | Errno::ACCESS)
                    ));
                }
            }
            let mut completions = Vec::new();
            self.take_done(&mut completions);
            while self.len() > endless && self.reap(1, None, &mut completions).is_ok() {
                completions.clear();
            }
        }
        // The kernel may still use the operations that are left here. They are leaked, since freeing them is unsound.
        for slot in &mut self.slots {
            std::mem::forget(slot.take());
        }
    }
}

#[cfg(test)]
#[path = "in_flight/tests.rs"]
mod tests;
