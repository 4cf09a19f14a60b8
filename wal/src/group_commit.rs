//! Group commit: which thread runs the next flush round, and how the other threads wait for it.
//!
//! ```text
//!   THE LOG (under the mutex `state`)             a thread takes `flusher`
//!        +----------------------------------------------------------------------------+
//!        |                                                                            v
//!   +----+------------+                                                    +----------+--------------+
//!   | FREE            |<-- nothing to write -------------------------------+ PLANNING                |
//!   |  flusher: Some  |<-- shortage: `refused`, refusals + 1, wake all ----+  flusher: None          |
//!   |                 |                                                    +----------+--------------+
//!   |                 |                                                     round + 1 | in_flight = end of the group
//!   |                 |                                                    +----------v--------------+
//!   |                 |<-- durable = in_flight: set `crowd`, wake the -----+ IN FLIGHT               |
//!   +----+------------+    sleepers of this round, hand over               |  write, then sync       |
//!        | `halt`, from any state                                          +----------+--------------+
//!        v                                                                            v an error or a panic (PLANNING too)
//!   +----+----------------------------------------------------------------------------+--------------+
//!   | HALTED  `halted` is the first error, for good. All waiters wake, no further round begins       |
//!   +------------------------------------------------------------------------------------------------+
//!
//!   A WAITER for `end`                            first waits until `end` is published
//!        +<---------------------- woken ----------------------+<------ the round has ended ------+
//!        v                                                    |                                  |
//!   +----+----+  flusher taken, or `crowd` and `has_thread`   |                                  |
//!   | CHECK   +---- `wanted`, `sleepers`, sleep on a side --->+                                  |
//!   |         +---- flusher free otherwise: take it, run a round ------------------------------->+
//!   +----+----+
//!        +-> durable >= end: Ok     +-> halted: the cause     +-> refusals rose while it waited: `refused`
//!
//!   THE COMMIT THREAD (`has_thread`)
//!        +<-- notified, or the time is over --+<----- notified -----+<--- the round has ended ---+
//!        v                                    |                     |                            |
//!   +----+----+  due later, or flusher taken  |                     |                            |
//!   | CHECK   +--- sleep for at most an interval (`idle`)           |                            |
//!   |         +--- nothing to write: `parked`, sleep without limit -+                            |
//!   |         +--- due now, flusher free: take it, run a round --------------------------------->+
//!   +----+----+
//!        +-> `stop`: has_thread = false, wake all; from then on the waiters run the rounds
//!
//!   CLOSE: `closed` (appends fail), `stop`, join the thread, wait for all records as a waiter, run a last claim round, take
//!   the token for good, in a halted log, too: `has_ended`
//! ```
//!
//! # The fields
//! * FREE or not: `flusher` is the flush token.
//! * Position of the rounds: `round` counts the groups begun, `in_flight` is the end of the last one.
//! * Refusal: `refused` is the error of the last round if a shortage ended it before its write, else `None`. `refusals` counts
//!   such rounds: a waiter compares it with its value at the start of the wait, so one round at least is tried for it.
//! * Halt: `halted`; the atomic of the same name repeats it for appends, which take no lock.
//! * Waiters: `wanted` is the highest `end` waited for or requested. `sleepers` counts the sleepers of even and of odd
//!   rounds. `crowd` says that the last data round with a waiter acknowledged two or more.
//! * End: `has_ended` when a close has taken the token. The next incarnation may own the files then.
//! * Commit thread: `has_thread` while it runs. `stop` asks it to end. `idle` is the drain interval: it starts when there
//!   is something to write, and starts again when `durable` rises. Two atomics spare an append the lock: `parked` (the
//!   thread sleeps until a record is published) and `drain_asked` (the thread knows that `drain_bytes` are waiting).
//!
//! # Invariants
//! * Lock order: `state`, then a lock of `watermark` or `log_file`. None of them is held across I/O or a call of the host.
//!   Two locks are, and are taken while no other lock of the log is held: the ring's `growing`, and `making` of
//!   `log_file`, while a file is made.
//! * The flush token is the [`Flusher`] itself. A thread takes it out of the state, runs one round and puts it back. Two
//!   rounds at a time cannot be expressed, nor a round that ends without waking its waiters: [`HeldToken`] puts it back
//!   even if the round panics.
//! * No wake-up is lost. Everything that decides about sleeping is guarded by `state`. A waiter stores its `end` in
//!   `wanted` before it sleeps. The thread that puts the token back reads `wanted` under the same lock. If `wanted` is
//!   above `durable`, that thread notifies the commit thread, or wakes the waiters where there is none.
//! * A waiter sleeps on the side (even or odd) of the round that covers it: the last one begun if `end` is at or below
//!   `in_flight`, else the next one. A round that succeeds wakes its own side; where the waiters run the rounds and one
//!   of them is left over, the other side as well.
//! * The first error is latched in `halted` and never cleared. A refusal goes to all waiters, and the next round that is
//!   not refused clears it.
//!
//! # Why so
//! *The naive way* is one sync for each commit: the device then bounds the commits per second. Here one group is in
//! flight at a time, and all records published meanwhile are the next group. The more threads wait, the more records a
//! sync carries.
//!
//! *Which thread runs a round.* A commit thread alone costs a lone writer two thread switches for each commit. Waiters
//! alone (leader and followers) cost many writers the batching: the next leader seals its group before the others of the
//! last group have appended again, and eight writers reach two thirds of the throughput. So both: a writer that finds
//! the token free runs the round itself, but while there is a `crowd` the rounds belong to the commit thread.
//!
//! *Two announcements instead of a condition variable.* An [`Announcement`] wakes all sleepers of a round at once, and a
//! sleeper whose record is durable returns without the mutex. With a condition variable each sleeper takes the mutex in
//! turn: one thread switch after the other, sometimes behind threads that return with their next record. With one
//! announcement for all, each round would wake the sleepers of the next one in vain.
//!
//! *A shortage* (a full disk, no slot or no memory for the write) ends a round before its first byte is written. The records
//! stay in the ring. They go out with the next round that is not refused: that of the next waiter, or of the commit thread,
//! which tries once in each drain interval. A halt was rejected, because nothing was lost and shortages pass.
//!
//! *A claim group* ([`Purpose::Claim`]) is empty. It is written when nothing else is, and its header claims that the
//! newest group is durable. A replay that does not find that group then reports damage; `chain` has the proof.

use std::time::Duration;

use aio::Queue;

use crate::error::{Error, Result};
use crate::flusher::{Core, Flusher, Plan, Purpose, count};
use crate::log_file::Host;
use crate::planted::{Bug, planted};
use crate::record::Seq;
use crate::sync::{Announcement, Arc, AtomicBool, Condvar, Mutex, MutexGuard, Ordering};

/// State shared by the threads of a log, and the rounds they run. The module explains the fields.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) core: Core,
    host: Arc<dyn Host>,
    pub(crate) start: Seq,
    pub(crate) drain_bytes: u64,
    pub(crate) drain_interval: Duration,
    pub(crate) state: Mutex<CommitState>,
    /// The sleeping waiters of even and of odd rounds.
    rounds: [Announcement; 2],
    /// The sleeping commit thread.
    pub(crate) work: Condvar,
    pub(crate) parked: AtomicBool,
    pub(crate) drain_asked: AtomicBool,
    halted: AtomicBool,
    pub(crate) closed: AtomicBool,
}

/// The states of the protocol. The module draws them and explains the fields.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each changes by itself")]
pub(crate) struct CommitState {
    pub(crate) flusher: Option<Box<Flusher>>,

    round: usize,
    in_flight: Seq,

    pub(crate) refused: Option<Error>,
    refusals: u64,
    pub(crate) halted: Option<Error>,

    pub(crate) wanted: Seq,
    sleepers: [usize; 2],
    crowd: bool,

    pub(crate) has_thread: bool,
    pub(crate) stop: bool,
    pub(crate) has_ended: bool,
    pub(crate) idle: DrainInterval,
}

/// Start of the current drain interval.
#[derive(Debug, Default)]
pub(crate) struct DrainInterval {
    /// `durable` when the interval began. A new value starts another one.
    pub(crate) durable: Seq,
    /// By the clock of the backend; `None` while no interval runs.
    pub(crate) since: Option<Duration>,
    /// The commit thread has slept until its end.
    pub(crate) is_over: bool,
}

impl DrainInterval {
    /// The next interval begins when there is something to write.
    pub(crate) fn begin_anew(&mut self) {
        (self.since, self.is_over) = (None, false);
    }
}

/// The progress that a waiter needs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Level {
    /// The write was reaped: the record survives the process.
    Written,
    /// The sync ended: the record survives a loss of power.
    Durable,
}

impl Shared {
    pub(crate) fn new(
        core: Core,
        host: Arc<dyn Host>,
        flusher: Flusher,
        drain_bytes: u64,
        drain_interval: Duration,
    ) -> Shared {
        let start = core.durable();
        Shared {
            core,
            host,
            start,
            drain_bytes,
            drain_interval,
            state: Mutex::new(CommitState::new(flusher, start)),
            rounds: [Announcement::new(), Announcement::new()],
            work: Condvar::new(),
            parked: AtomicBool::new(false),
            drain_asked: AtomicBool::new(false),
            halted: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        }
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(Error::Closed);
        }
        if self.halted.load(Ordering::SeqCst)
            && let Some(cause) = &self.state.lock().halted
        {
            return Err(cause.halted());
        }
        Ok(())
    }

    pub(crate) fn check_reserved(&self, end: Seq) {
        assert!(end <= self.core.ring.reserved(), "no append has reserved up to {end:?}");
    }

    fn reached(&self, level: Level) -> Seq {
        match level {
            Level::Written => self.core.written(),
            Level::Durable => self.core.durable(),
        }
    }

    pub(crate) fn wait(&self, level: Level, end: Seq) -> Result<()> {
        if self.reached(level) >= end {
            return Ok(());
        }
        self.check_reserved(end);
        // A round covers the published records only. Run before `end` is published, it would be in vain.
        self.core.ring.published().wait_for(end);
        count(&self.core.counters.waits, 1);
        let mut state = self.state.lock();
        let refusals = state.refusals;
        loop {
            if self.reached(level) >= end {
                return Ok(());
            }
            if let Some(cause) = &state.halted {
                return Err(cause.halted());
            }
            if state.has_ended {
                // Only a round that was refused has left records behind.
                return Err(state.refused.clone().unwrap_or(Error::Closed));
            }
            // Refusals before this call do not count: each caller has at least one round tried for it.
            if state.refusals != refusals
                && let Some(refused) = &state.refused
            {
                return Err(refused.clone());
            }
            if !(state.has_thread && state.crowd)
                && let Some(flusher) = state.flusher.take()
            {
                state = self.run(state, flusher, Purpose::Data, 1);
                continue;
            }
            state.wanted = state.wanted.max(end);
            if state.flusher.is_some() {
                self.work.notify_one();
            }
            let covering = if end > state.in_flight { state.round + 1 } else { state.round };
            let side = covering % 2;
            state.sleepers[side] += 1;
            // Read under the lock: every later announcement ends the sleep.
            let mut heard = self.rounds[side].heard();
            drop(state);
            if planted(Bug::AnnouncementMissed) {
                heard = self.rounds[side].heard();
            }
            self.rounds[side].wait(heard);
            if self.reached(level) >= end {
                return Ok(());
            }
            state = self.state.lock();
        }
    }

    /// Lets the ring's file grow for a record of `len_bytes`.
    pub(crate) fn grow_ring(&self, len_bytes: u64) -> Result<()> {
        let backend = &*self.core.backend;
        let mut queue = aio::wait_out(backend, || backend.queue(1))?;
        self.grow_ring_by(len_bytes, &mut *queue)
    }

    pub(crate) fn grow_ring_by(&self, len_bytes: u64, queue: &mut dyn Queue) -> Result<()> {
        let core = &self.core;
        if core.ring.has_grown_for(len_bytes) {
            return Ok(());
        }
        // The failed write or sync that stopped the log may have been this one.
        self.check_open()?;
        let grown = core.ring.grow(&*core.backend, queue, &*self.host, len_bytes);
        if let Err(cause) = &grown
            && !cause.is_shortage()
            && *cause != Error::Closed
        {
            // The size of the file on the device is unknown now. Nothing is retried.
            self.halt(cause);
            return Err(cause.halted());
        }
        grown
    }

    /// Runs one round and puts the token back. `callers` is 1 if the caller itself waits for the round, else 0.
    pub(crate) fn run<'a>(
        &'a self,
        state: MutexGuard<'a, CommitState>,
        flusher: Box<Flusher>,
        purpose: Purpose,
        callers: usize,
    ) -> MutexGuard<'a, CommitState> {
        drop(state);
        let mut token = HeldToken { shared: self, flusher: Some(flusher) };
        let outcome = token.round(purpose);
        if let Err(cause) = &outcome {
            self.halt(cause);
        }
        self.core.ring.doubt(&*self.core.backend);
        self.host.progressed(self.core.durable());
        let mut state = self.state.lock();
        state.flusher = token.flusher.take();
        self.tell_close(&state);
        if let Ok(refused) = &outcome {
            state.refused.clone_from(refused);
        }
        if state.refused.is_some() {
            state.refusals += 1;
            state.sleepers = [0, 0];
            // A group whose write was refused is not in flight: the next round covers its records.
            state.in_flight = self.core.durable();
            drop(state);
            self.wake_waiters();
            return self.state.lock();
        }
        let side = state.round % 2;
        // The group covers all sleepers of this side. They count as awake from here on.
        let sleepers = std::mem::take(&mut state.sleepers[side]);
        let acknowledged = sleepers + callers;
        if outcome.is_ok() && purpose == Purpose::Data && acknowledged > 0 {
            state.crowd = acknowledged > 1;
        }
        let is_wanted = state.wanted > self.core.durable() && !planted(Bug::TokenNotHandedOver);
        let hand_over = is_wanted && state.halted.is_none();
        if hand_over && state.has_thread {
            self.work.notify_one();
        }
        let take_over = hand_over && !state.has_thread;
        if sleepers == 0 && !take_over {
            return state;
        }
        // Without the lock: a woken waiter may take it next.
        drop(state);
        self.rounds[side].announce();
        if take_over {
            self.rounds[1 - side].announce();
        }
        self.state.lock()
    }

    /// Called after every publication. Two atomic loads, unless the commit thread has to be notified.
    pub(crate) fn note_published(&self) {
        // The commit thread stores `parked` and then loads `published`. An append publishes and then loads `parked`. So
        // one of the two sees the store of the other.
        if self.parked.load(Ordering::SeqCst) && self.parked.swap(false, Ordering::SeqCst) {
            drop(self.state.lock());
            self.work.notify_one();
            return;
        }
        let waiting_bytes = self.core.ring.published().get().since(self.core.durable());
        if waiting_bytes >= self.drain_bytes && !self.drain_asked.swap(true, Ordering::SeqCst) {
            drop(self.state.lock());
            self.work.notify_one();
        }
    }

    /// Takes the token for good, after the round that is under way. Runs a last claim round, unless the log has halted or
    /// `claims` is false. When this returns no I/O on log files is under way, and none begins.
    pub(crate) fn end(&self, mut claims: bool) {
        let mut state = self.state.lock();
        while !state.has_ended {
            match state.flusher.take() {
                Some(flusher) if claims && state.halted.is_none() => {
                    claims = false;
                    state = self.run(state, flusher, Purpose::Claim, 0);
                }
                Some(flusher) => {
                    // The drop waits for operations that a failed round has left behind.
                    drop(flusher);
                    state.has_ended = true;
                }
                None if planted(Bug::RoundAfterTheClose) => break,
                None => self.work.wait(&mut state),
            }
        }
        drop(state);
        self.wake_waiters();
    }

    /// The token is back: a close may wait for it.
    fn tell_close(&self, state: &CommitState) {
        if state.stop {
            self.work.notify_all();
        }
    }

    pub(crate) fn wake_waiters(&self) {
        for round in &self.rounds {
            round.announce();
        }
    }

    pub(crate) fn halt(&self, cause: &Error) {
        let mut state = self.state.lock();
        if planted(Bug::LogErrorNotSticky) {
            // Treats the error as a full disk: the waiters get it, and the next round tries again.
            state.refused = Some(cause.clone());
            return;
        }
        if state.halted.is_none() {
            state.halted = Some(cause.halted());
        }
        self.halted.store(true, Ordering::SeqCst);
        if !planted(Bug::HaltWakesNoWaiter) {
            self.wake_waiters();
        }
        drop(state);
        self.host.progressed(self.core.durable());
    }
}

impl CommitState {
    fn new(flusher: Flusher, start: Seq) -> CommitState {
        CommitState {
            flusher: Some(Box::new(flusher)),
            halted: None,
            refused: None,
            refusals: 0,
            wanted: start,
            round: 0,
            in_flight: start,
            sleepers: [0, 0],
            crowd: false,
            has_thread: false,
            stop: false,
            has_ended: false,
            idle: DrainInterval::default(),
        }
    }
}

/// The flush token while it is out of the state. If the round panics, the drop puts it back and halts the log.
struct HeldToken<'a> {
    shared: &'a Shared,
    flusher: Option<Box<Flusher>>,
}

impl HeldToken<'_> {
    /// Runs a round. Returns the error of a refused round as `Ok(Some)`.
    fn round(&mut self, purpose: Purpose) -> Result<Option<Error>> {
        let shared = self.shared;
        let flusher = self.flusher.as_mut().expect("the token is held");
        if let Some(cause) = &shared.state.lock().halted {
            return Err(cause.clone());
        }
        let group = match flusher.plan(&shared.core, purpose)? {
            Plan::Nothing => return Ok(None),
            Plan::Refused(error) => return Ok(Some(error)),
            Plan::Group(group) => group,
        };
        {
            let mut state = shared.state.lock();
            state.round += 1;
            state.in_flight = group.end;
        }
        if purpose == Purpose::Claim {
            count(&shared.core.counters.claim_groups, 1);
        }
        if let Err(error) = flusher.write(&shared.core, &group) {
            return if error.is_refusal() { Ok(Some(error)) } else { Err(error) };
        }
        if !shared.core.ring.is_shared() {
            // Some sleepers of this round wait for the write only. With a shared ring there are none.
            let side = shared.state.lock().round % 2;
            shared.rounds[side].announce();
        }
        flusher.sync(&shared.core, &group)?;
        Ok(None)
    }
}

impl Drop for HeldToken<'_> {
    fn drop(&mut self) {
        if let Some(flusher) = self.flusher.take() {
            let mut state = self.shared.state.lock();
            state.flusher = Some(flusher);
            self.shared.tell_close(&state);
            drop(state);
            self.shared.halt(&Error::Host { message: "a flush round of the log panicked".to_owned() });
        }
    }
}
