//! The contexts of asynchronous I/O of a store: lent, given back, and bounded, since the machine has few slots for them and
//! all its programs share those.
//!
//! ```text
//!   lend:       idle -> new, within the bound -> wait for one to come back        reads, which wait for nothing meanwhile
//!   try_lend:   idle -> new, within half of the bound -> none                     scans and batches, which call the user
//!   lend_to_job: idle -> new -> wait, if the machine has none                     flush, merge, manifest: a few at once
//! ```
//!
//! A context is made when there is no idle one: that takes milliseconds, and to destroy one takes 20 to 50. So an idle one
//! is kept while there is load, and no read destroys one: [`Contexts::trim`], which the flush thread calls, drops those that
//! were not needed since its last call, but for a few. Rejected: a thread that drops them a second after the last read.
//! The bound is small enough for a store that only reads to keep them.
//!
//! Any context serves any use: one with a single slot takes the operations of a batch one by one.
//!
//! # Invariants
//! * The holder of a context from [`Contexts::lend`] calls no code of the user and lends no other one this way, so it comes
//!   back without any other thread. Only for those does a `lend` wait without a limit. It may hold one while it waits
//!   for a lock whose holder calls [`Contexts::lend_to_job`], since that never waits for one from `lend` alone.
//! * A context from [`Contexts::try_lend`] may be held for ever: nothing waits for it. So these are at most half of the
//!   bound, and never the last idle one.
//! * All but those of jobs, of which there are as many as jobs, are at most [`MOST_CONTEXTS`] with at most a sixteenth of the
//!   machine's slots, or one.
//! * A thread that waits gets the context that comes back, even if another one asks meanwhile. `promised` counts idle
//!   contexts that waiting threads were woken for.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Weak};
use std::time::Duration;

use aio::{Backend, Queue};

use crate::base::error::{Error, Result};
use crate::base::sync::shared::{Condvar, Mutex, MutexGuard};

/// Contexts of reads at most: as many as the queues of devices take requests. With more threads in the kernel a device gives
/// no more reads, only each one later.
const MOST_CONTEXTS: usize = 128;

/// A store takes at most this part of the machine's slots.
const PART_OF_MACHINE: u64 = 16;

/// The pause of a read between two tries for a new context while others will come back.
const PAUSE: Duration = Duration::from_millis(50);

/// The size of a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// For one operation at a time.
    Single,
    /// For a batch.
    Wide,
}

impl Size {
    /// Operations that are in flight at once in a wide context.
    pub(crate) const WIDE_SLOTS: usize = 64;

    /// Idle contexts of each size that [`Contexts::trim`] leaves.
    const KEPT: [usize; 2] = [8, 2];

    /// For so many operations.
    pub(crate) fn of(operations: usize) -> Size {
        if operations > 1 { Size::Wide } else { Size::Single }
    }

    fn other(self) -> Size {
        match self {
            Size::Single => Size::Wide,
            Size::Wide => Size::Single,
        }
    }

    fn slots(self) -> usize {
        match self {
            Size::Single => 1,
            Size::Wide => Size::WIDE_SLOTS,
        }
    }

    /// Slots that the machine counts: a context has one more, by which another thread wakes its user.
    fn charged(self) -> usize {
        self.slots() + 1
    }
}

/// Contexts, and the machine's slots that they take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) contexts: usize,
    pub(crate) slots: usize,
}

impl Usage {
    fn add(&mut self, size: Size) {
        self.contexts += 1;
        self.slots += size.charged();
    }

    fn remove(&mut self, size: Size) {
        self.contexts -= 1;
        self.slots -= size.charged();
    }

    /// Whether one more of this size is within the bound.
    fn has_room(self, size: Size, bound: Usage) -> bool {
        self.contexts < bound.contexts && self.slots + size.charged() <= bound.slots
    }
}

/// The contexts of a store. See the [module](self).
#[derive(Debug)]
pub(crate) struct Contexts {
    backend: Arc<dyn Backend>,
    bound: Usage,
    state: Mutex<State>,
    came_back: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// By size; the one that was used last is the last.
    idle: [Vec<Box<dyn Queue>>; 2],
    /// The fewest that were idle since the last trim.
    least_idle: [usize; 2],
    /// All, idle and lent.
    all: Usage,
    /// Those from [`Contexts::lend`], which come back, and those that are being made there.
    lent: usize,
    /// Those from [`Contexts::try_lend`].
    held: Usage,
    /// Threads that wait in [`Contexts::lend`].
    waiting: usize,
    /// Idle contexts for those of them that were woken.
    promised: usize,
    /// Jobs that the machine has refused a context. They are served first.
    jobs_waiting: usize,
    /// Those who hold a context without an end.
    holders: Vec<Weak<dyn Holder>>,
    is_ended: bool,
}

/// Holds a context for as long as it likes, but for no longer than the store is open.
pub(crate) trait Holder: Send + Sync + std::fmt::Debug {
    /// Gives it back.
    fn end(&self);
}

/// The use of a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Read,
    Held,
    Job,
}

/// A context in use. Its drop gives it back.
#[derive(Debug)]
pub(crate) struct Lent {
    /// `None` only while it is dropped.
    queue: Option<Box<dyn Queue>>,
    size: Size,
    purpose: Purpose,
    of: Arc<Contexts>,
}

impl Contexts {
    pub(crate) fn new(backend: Arc<dyn Backend>) -> Arc<Contexts> {
        let of_machine = |limit: u64| usize::try_from(limit / PART_OF_MACHINE).unwrap_or(usize::MAX);
        let slots = backend.aio_slots().map_or(usize::MAX, |slots| of_machine(slots.limit));
        let bound = Usage { contexts: MOST_CONTEXTS, slots };
        Arc::new(Contexts { backend, bound, state: Mutex::default(), came_back: Condvar::new() })
    }

    /// A context for single operations, whose user waits for nothing else. Waits for one to come back where the bound or the
    /// machine allows no more.
    ///
    /// # Errors
    /// The machine has had no slots for five seconds and this store no context that comes back; or it is closed.
    pub(crate) fn lend(self: &Arc<Self>) -> Result<Lent> {
        let lent = aio::wait_out(&*self.backend, || self.lend_or_wait());
        lent.map_err(|error| self.explain(error))
    }

    /// A context that the caller may hold as long as it likes; `None` if it should do without.
    pub(crate) fn try_lend(self: &Arc<Self>, size: Size) -> Option<Lent> {
        let mut state = self.state.lock();
        let half = Usage { contexts: self.bound.contexts / 2, slots: self.bound.slots / 2 };
        if state.is_ended || !state.held.has_room(size, half) {
            return None;
        }
        if state.free_idle() > 1 {
            return self.take_idle(&mut state, size, Purpose::Held);
        }
        if !state.all.has_room(size, self.bound) {
            return None;
        }
        self.make(state, size, Purpose::Held).0.ok()
    }

    /// This one has a context from [`Contexts::try_lend`] and is told of the end. Called before the context is used.
    pub(crate) fn register(&self, holder: Weak<dyn Holder>) {
        let mut state = self.state.lock();
        state.holders.retain(|holder| holder.strong_count() > 0);
        if !state.is_ended {
            state.holders.push(holder);
            return;
        }
        drop(state);
        holder.upgrade().into_iter().for_each(|holder| holder.end());
    }

    /// A context for a job, of which there are few. Bounds do not count; idle contexts go to jobs first.
    ///
    /// # Errors
    /// The machine has had no slots for five seconds, and no context of this store was idle; or it is closed.
    pub(crate) fn lend_to_job(self: &Arc<Self>, size: Size) -> Result<Lent> {
        let mut is_waiting = false;
        let lent = aio::wait_out(&*self.backend, || {
            let mut state = self.state.lock();
            if state.is_ended {
                return Err(aio::Error::Closed);
            }
            if state.idle() > state.promised
                && let Some(lent) = self.take_idle(&mut state, size, Purpose::Job)
            {
                return Ok(lent);
            }
            let (made, mut state) = self.make(state, size, Purpose::Job);
            if made.is_err() && !std::mem::replace(&mut is_waiting, true) {
                state.jobs_waiting += 1;
            }
            made
        });
        if is_waiting {
            let mut state = self.state.lock();
            state.jobs_waiting -= 1;
            self.promise(&mut state);
        }
        lent.map_err(|error| self.explain(error))
    }

    /// Destroys idle contexts that were not needed since the last call, but for a few. That takes long: 20 to 50 ms each,
    /// several at a time.
    pub(crate) fn trim(&self) {
        let surplus = {
            let mut state = self.state.lock();
            let mut surplus = Vec::new();
            for size in [Size::Single, Size::Wide] {
                let unneeded = state.least_idle[size as usize].saturating_sub(Size::KEPT[size as usize]);
                surplus.extend(state.idle[size as usize].drain(..unneeded));
                (0..unneeded).for_each(|_| state.all.remove(size));
                state.least_idle[size as usize] = state.idle[size as usize].len();
            }
            surplus
        };
        if !surplus.is_empty() {
            self.backend.drop_queues(surplus);
        }
    }

    /// The store is closed: destroys all idle contexts, and each other one when it comes back. Nothing is lent any more.
    pub(crate) fn end(&self) {
        let holders = {
            let mut state = self.state.lock();
            state.is_ended = true;
            std::mem::take(&mut state.holders)
        };
        holders.iter().filter_map(Weak::upgrade).for_each(|holder| holder.end());
        let idle = {
            let mut state = self.state.lock();
            for size in [Size::Single, Size::Wide] {
                (0..state.idle[size as usize].len()).for_each(|_| state.all.remove(size));
            }
            state.promised = 0;
            std::mem::take(&mut state.idle).into_iter().flatten().collect::<Vec<_>>()
        };
        self.came_back.notify_all();
        if !idle.is_empty() {
            self.backend.drop_queues(idle);
        }
    }

    /// All contexts now, idle ones included.
    pub(crate) fn usage(&self) -> Usage {
        self.state.lock().all
    }

    fn lend_or_wait(self: &Arc<Self>) -> aio::Result<Lent> {
        let mut state = self.state.lock();
        let mut is_refused = false;
        loop {
            if state.is_ended {
                return Err(aio::Error::Closed);
            }
            if state.free_idle() > 0
                && let Some(lent) = self.take_idle(&mut state, Size::Single, Purpose::Read)
            {
                return Ok(lent);
            }
            if state.has_room(self.bound) {
                let (made, locked) = self.make(state, Size::Single, Purpose::Read);
                state = locked;
                match made {
                    Err(error) if error.is_not_now() && state.lent + state.idle() > 0 => is_refused = true,
                    made => {
                        if made.is_err() {
                            // There may be none that comes back: the next one has to try for itself.
                            self.came_back.notify_one();
                        }
                        return made;
                    }
                }
            }
            state.waiting += 1;
            if is_refused {
                self.came_back.wait_for(&mut state, PAUSE);
            } else {
                self.came_back.wait(&mut state);
            }
            state.waiting -= 1;
            state.promised = state.promised.saturating_sub(1);
        }
    }

    /// An idle context, of this size if there is one.
    fn take_idle(self: &Arc<Self>, state: &mut State, size: Size, purpose: Purpose) -> Option<Lent> {
        let (queue, size) = [size, size.other()].into_iter().find_map(|size| {
            let queue = state.idle[size as usize].pop()?;
            let least = &mut state.least_idle[size as usize];
            *least = state.idle[size as usize].len().min(*least);
            Some((queue, size))
        })?;
        state.begin(size, purpose);
        Some(Lent { queue: Some(queue), size, purpose, of: Arc::clone(self) })
    }

    /// Makes a context, without the lock meanwhile. It counts from the beginning.
    fn make<'a>(
        self: &'a Arc<Self>,
        mut state: MutexGuard<'a, State>,
        size: Size,
        purpose: Purpose,
    ) -> (aio::Result<Lent>, MutexGuard<'a, State>) {
        state.all.add(size);
        state.begin(size, purpose);
        drop(state);
        let made = self.backend.queue(size.slots());
        let mut state = self.state.lock();
        if made.is_err() {
            state.all.remove(size);
            state.end(size, purpose);
        }
        (made.map(|queue| Lent { queue: Some(queue), size, purpose, of: Arc::clone(self) }), state)
    }

    fn give_back(&self, queue: Box<dyn Queue>, size: Size, purpose: Purpose) {
        // In a forked child the lock may have been held at the fork.
        if self.backend.check_fork().is_err() {
            return;
        }
        let is_idle = queue.in_flight() == 0;
        let mut state = self.state.lock();
        state.end(size, purpose);
        if is_idle && !state.is_ended {
            state.idle[size as usize].push(queue);
            self.promise(&mut state);
            return;
        }
        state.all.remove(size);
        drop(state);
        // Its slots are free for a new one.
        self.came_back.notify_one();
        // Waits for operations in flight.
        drop(queue);
    }

    /// Wakes as many waiting threads as there are idle contexts for.
    fn promise(&self, state: &mut State) {
        while state.waiting > state.promised && state.free_idle() > 0 {
            state.promised += 1;
            self.came_back.notify_one();
        }
    }

    /// Says how many slots are in use, and which setting has more.
    fn explain(&self, error: aio::Error) -> Error {
        let (aio::Error::Slots { .. }, Some(machine)) = (&error, self.backend.aio_slots()) else {
            return error.into();
        };
        let Usage { contexts, slots } = self.usage();
        let message = format!(
            "no AIO slots left: this store has {slots} in {contexts} contexts, all programs of the machine have {} of {}; \
             raise the limit with sysctl fs.aio-max-nr, which for a container is the host's",
            machine.in_use, machine.limit,
        );
        let errno = error.errno();
        Error::Io {
            kind: errno.map_or(std::io::ErrorKind::Other, aio::Errno::kind),
            errno: errno.map(|errno| errno.0),
            message,
        }
    }
}

impl State {
    fn idle(&self) -> usize {
        self.idle.iter().map(Vec::len).sum()
    }

    /// Idle contexts that are for no one in particular.
    fn free_idle(&self) -> usize {
        self.idle().saturating_sub(self.promised + self.jobs_waiting)
    }

    fn begin(&mut self, size: Size, purpose: Purpose) {
        match purpose {
            Purpose::Read => self.lent += 1,
            Purpose::Held => self.held.add(size),
            Purpose::Job => {}
        }
    }

    fn end(&mut self, size: Size, purpose: Purpose) {
        match purpose {
            Purpose::Read => self.lent -= 1,
            Purpose::Held => self.held.remove(size),
            Purpose::Job => {}
        }
    }

    /// Whether a read may make a context. One is always allowed.
    fn has_room(&self, bound: Usage) -> bool {
        self.all.has_room(Size::Single, bound) || self.lent == 0 && self.idle() == 0
    }
}

impl Deref for Lent {
    type Target = dyn Queue;

    fn deref(&self) -> &(dyn Queue + 'static) {
        self.queue.as_deref().expect("it is there until the drop")
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut (dyn Queue + 'static) {
        self.queue.as_deref_mut().expect("it is there until the drop")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            self.of.give_back(queue, self.size, self.purpose);
        }
    }
}

impl Drop for Contexts {
    fn drop(&mut self) {
        // A store that was not opened to the end is not closed.
        if self.backend.check_fork().is_ok() {
            self.end();
        }
    }
}

#[cfg(test)]
#[path = "contexts_tests.rs"]
mod tests;
