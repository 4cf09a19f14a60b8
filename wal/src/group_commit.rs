//! Group commit: who runs the flush rounds, and how everybody else waits for them.
//!
//! Invariants:
//! * lock order: `state`, then a lock of `ordered` or `log_file`; none of them is held across I/O or a call of the host.
//!   The ring's `growing` is, and is taken while nothing else of the log is held;
//! * the flush token is the [`Flusher`] itself: whoever took it out of the state runs a round and puts it back, so two
//!   rounds at a time, or a round whose end nobody is told, cannot be written down;
//! * the first error is latched in `state` and never cleared; a refusal (a round that found no space for its file) is
//!   told to everybody who waits, and cleared by the next round that is not refused.

use std::time::Duration;

use aio::{Bug, Queue, planted};

use crate::error::{Error, Result};
use crate::flusher::{Core, Flusher, Plan, Purpose, count};
use crate::log_file::Host;
use crate::record::Seq;
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Announcement, Arc, AtomicBool, Condvar, Mutex, MutexGuard, Ordering};

/// What the threads of a log share, and the rounds they run.
///
/// Rounds are run under the *flush token*. One group is in flight at a time; what is appended meanwhile is the next
/// group, so the more threads wait, the more records a sync carries.
///
/// *Who runs the round.* A thread of its own costs a lone writer two thread switches for each commit; letting waiters
/// take turns costs many writers the batching (the next leader seals before the others of the last group have appended
/// again: two thirds of the throughput at eight writers). So both: a writer that finds the token free runs the round
/// itself; as soon as a round has acknowledged two or more waiters there is a *crowd*, and rounds belong to the commit
/// thread until one acknowledges fewer.
///
/// *No wake-up is lost* because everything that decides about sleeping stands in one mutex: a waiter notes its target in
/// `wanted` before it sleeps, and who puts the token back looks at `wanted` under the same lock, and hands over to the
/// commit thread (or, without one, to the waiters) if it is above `durable`.
///
/// *A full disk* ends a round before it wrote anything. Everybody who waits is told; what is published stays in the
/// ring, and goes out with the next round that finds space: that of the next caller who waits, or the commit thread's,
/// which tries once in every drain interval.
///
/// *No needless wake-up* either: waiters whose records are in the group in flight sleep on one [`Announcement`], all
/// others on a second one, and the two change places each round. An announcement wakes all its sleepers at once, and who
/// finds its record durable goes on without the mutex: with a condition variable each would wait for the mutex in turn,
/// one thread switch after the other, and now and then behind those that come back with the next record.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) core: Core,
    host: Arc<dyn Host>,
    pub(crate) start: Seq,
    drain_bytes: u64,
    drain_interval: Duration,
    pub(crate) state: Mutex<State>,
    /// Where waiters of even and odd rounds sleep.
    rounds: [Announcement; 2],
    /// Where the commit thread sleeps.
    pub(crate) work: Condvar,
    /// The commit thread sleeps until somebody publishes.
    parked: AtomicBool,
    /// Somebody told the commit thread that `drain_bytes` are published.
    drain_asked: AtomicBool,
    /// As `state.halted`, for appends.
    halted: AtomicBool,
    pub(crate) closed: AtomicBool,
}

#[derive(Debug)]
pub(crate) struct State {
    /// The flush token; `None` while somebody runs a round.
    pub(crate) flusher: Option<Box<Flusher>>,
    /// The first error, and with it the end of all rounds.
    pub(crate) halted: Option<Error>,
    /// Why the last round could not begin, if it could not.
    refused: Option<Error>,
    /// Rounds refused so far.
    refusals: u64,
    /// The most that anybody waits for.
    pub(crate) wanted: Seq,
    /// Rounds begun.
    round: usize,
    /// End of the group of the last round begun.
    in_flight: Seq,
    /// Waiters of even and odd rounds.
    sleepers: [usize; 2],
    /// The last round acknowledged several waiters.
    crowd: bool,
    /// There is a commit thread.
    pub(crate) has_thread: bool,
    /// The commit thread shall end.
    pub(crate) stop: bool,
    idle: Idle,
}

/// What the commit thread remembers to tell how long something has been so.
#[derive(Debug, Default)]
struct Idle {
    durable: Seq,
    since: Option<Duration>,
}

/// What a waiter waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Level {
    Written,
    Durable,
}

/// When the next round without a waiter is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Now(Purpose),
    In(Duration),
    WhenPublished,
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
            state: Mutex::new(State::new(flusher, start)),
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
        assert!(end <= self.core.ring.reserved(), "nobody will ever publish {end:?}");
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
        // A round covers what is published; without this, one that covers less would be run in vain.
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
            // Only what was refused while this caller waited: each caller has at least one round tried for it.
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
            let side = if end > state.in_flight { state.round + 1 } else { state.round } % 2;
            state.sleepers[side] += 1;
            // Taken under the lock: whatever is announced from here on ends the sleep.
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
        let mut queue = self.core.backend.queue(1)?;
        self.grow_ring_by(len_bytes, &mut *queue)
    }

    pub(crate) fn grow_ring_by(&self, len_bytes: u64, queue: &mut dyn Queue) -> Result<()> {
        let core = &self.core;
        if core.ring.has_grown_for(len_bytes) {
            return Ok(());
        }
        // What stopped the log may have been this very write or sync.
        self.check_open()?;
        let grown = core.ring.grow(&*core.backend, queue, &*self.host, len_bytes);
        if let Err(cause) = &grown
            && !cause.is_shortage()
        {
            // Nobody knows how much of the file is there, and it is not tried again.
            self.halt(cause);
            return Err(cause.halted());
        }
        grown
    }

    /// Runs one round and puts the token back. `callers` is 1 if the caller itself waits for the round, else 0.
    pub(crate) fn run<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        flusher: Box<Flusher>,
        purpose: Purpose,
        callers: usize,
    ) -> MutexGuard<'a, State> {
        drop(state);
        let mut token = Token { shared: self, flusher: Some(flusher) };
        let outcome = token.round(purpose);
        if let Err(cause) = &outcome {
            self.halt(cause);
        }
        self.host.progressed(self.core.durable());
        let mut state = self.state.lock();
        state.flusher = token.flusher.take();
        if let Ok(refused) = &outcome {
            state.refused.clone_from(refused);
        }
        if state.refused.is_some() {
            state.refusals += 1;
            state.sleepers = [0, 0];
            drop(state);
            self.wake_waiters();
            return self.state.lock();
        }
        let side = state.round % 2;
        // Who sleeps on this side is covered by the group, and on the way once it is announced.
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
        // Not under the lock, which the woken want next.
        drop(state);
        self.rounds[side].announce();
        if take_over {
            self.rounds[1 - side].announce();
        }
        self.state.lock()
    }

    /// Called after every publication. Two loads, unless the commit thread has to hear of it.
    pub(crate) fn note_published(&self) {
        // The commit thread sets `parked` and then looks at `published`; here it is the other way round, so one of the
        // two sees the other.
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

    /// What to run now, or when to look again. Called by the commit thread, or in its stead.
    pub(crate) fn due(&self, state: &mut State) -> Due {
        self.drain_asked.store(false, Ordering::SeqCst);
        let (published, durable) = (self.core.ring.published().get(), self.core.durable());
        if state.halted.is_some() {
            return Due::WhenPublished;
        }
        // After a refusal everything waits for its interval: whoever is in a hurry has been told, and may try itself.
        let in_a_hurry = state.wanted > durable || published.since(durable) >= self.drain_bytes;
        if in_a_hurry && state.refused.is_none() {
            return Due::Now(Purpose::Data);
        }
        let purpose = if published > durable {
            Purpose::Data
        } else if state.flusher.as_ref().is_none_or(|flusher| flusher.needs_witness(&self.core)) {
            Purpose::Witness
        } else {
            state.idle.since = None;
            return Due::WhenPublished;
        };
        let now = self.core.backend.now();
        if state.idle.durable != durable {
            state.idle = Idle { durable, since: None };
        }
        let waited = now.saturating_sub(*state.idle.since.get_or_insert(now));
        match self.drain_interval.checked_sub(waited) {
            Some(left) if !left.is_zero() => Due::In(left),
            _ => Due::Now(purpose),
        }
    }

    fn commit_thread(&self) {
        let mut state = self.state.lock();
        while !state.stop {
            match self.due(&mut state) {
                Due::Now(purpose) => match state.flusher.take() {
                    Some(flusher) => {
                        state.idle.since = None;
                        state = self.run(state, flusher, purpose, 0);
                    }
                    // Who holds the token notifies when it leaves somebody waiting; the rest has time.
                    None => drop(self.work.wait_for(&mut state, self.drain_interval)),
                },
                Due::In(left) => drop(self.work.wait_for(&mut state, left)),
                Due::WhenPublished => {
                    self.parked.store(true, Ordering::SeqCst);
                    let published = self.core.ring.published().get();
                    if state.halted.is_some() || published == self.core.durable() {
                        self.work.wait(&mut state);
                    }
                    self.parked.store(false, Ordering::SeqCst);
                }
            }
        }
    }

    /// From now on those who wait run the rounds.
    fn thread_ends(&self, mut state: MutexGuard<'_, State>) {
        state.has_thread = false;
        self.wake_waiters();
    }

    fn wake_waiters(&self) {
        for round in &self.rounds {
            round.announce();
        }
    }

    pub(crate) fn halt(&self, cause: &Error) {
        let mut state = self.state.lock();
        if planted(Bug::LogErrorNotSticky) {
            // As if it were a full disk: those who wait are told, and the next round tries again.
            state.refused = Some(cause.clone());
            return;
        }
        if state.halted.is_none() {
            state.halted = Some(cause.halted());
        }
        self.halted.store(true, Ordering::SeqCst);
        if !planted(Bug::HaltWakesNobody) {
            self.wake_waiters();
        }
        drop(state);
        self.host.progressed(self.core.durable());
    }
}

impl State {
    fn new(flusher: Flusher, start: Seq) -> State {
        State {
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
            idle: Idle::default(),
        }
    }
}

/// The flush token while it is out of the state. If the round panics it goes back all the same, and the log stops.
struct Token<'a> {
    shared: &'a Shared,
    flusher: Option<Box<Flusher>>,
}

impl Token<'_> {
    /// Runs a round; gives back why it could not begin, if it could not.
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
        if purpose == Purpose::Witness {
            count(&shared.core.counters.witnesses, 1);
        }
        flusher.write(&shared.core, &group)?;
        if !shared.core.ring.is_shared() {
            let side = shared.state.lock().round % 2;
            shared.rounds[side].announce();
        }
        flusher.sync(&shared.core, &group)?;
        Ok(None)
    }
}

impl Drop for Token<'_> {
    fn drop(&mut self) {
        if let Some(flusher) = self.flusher.take() {
            self.shared.state.lock().flusher = Some(flusher);
            self.shared.halt(&Error::Host { message: "a flush round of the log panicked".to_owned() });
        }
    }
}

/// Starts the commit thread. It blocks all signals, so that no handler of the application runs on it.
pub(crate) fn start_thread(shared: &Arc<Shared>) -> Result<JoinHandle<()>> {
    shared.state.lock().has_thread = true;
    let body = {
        let shared = Arc::clone(shared);
        move || {
            let ended = ThreadEnds(&shared);
            aio::block_all_signals();
            shared.commit_thread();
            drop(ended);
        }
    };
    thread::Builder::new().name("wal-commit".to_owned()).spawn(body).map_err(|error| {
        let path = std::path::Path::new("wal-commit");
        Error::Io(aio::Error::call("start thread", path, aio::Errno::from(&error)))
    })
}

/// Tells the waiters when the thread ends, in whichever way.
struct ThreadEnds<'a>(&'a Shared);

impl Drop for ThreadEnds<'_> {
    fn drop(&mut self) {
        self.0.thread_ends(self.0.state.lock());
    }
}
