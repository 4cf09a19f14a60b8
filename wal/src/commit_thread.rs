//! The commit thread: runs the rounds that are due and that no writer runs.
//!
//! [`group_commit`](crate::group_commit) draws its states and explains the fields.
//!
//! Invariant: however the thread ends, by a panic too, the waiters run the rounds from then on.

use std::path::Path;
use std::time::Duration;

use crate::error::Result;
use crate::flusher::Purpose;
use crate::group_commit::{CommitState, DrainInterval, Shared};
use crate::ring::TRUST;
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Arc, MutexGuard, Ordering};

/// When the commit thread runs its next round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Now(Purpose),
    In(Duration),
    WhenPublished,
}

impl Shared {
    /// The round to run now, or the time of the next check. For the commit thread, or `Log::run_due` in its place.
    pub(crate) fn due(&self, state: &mut CommitState) -> Due {
        self.drain_asked.store(false, Ordering::SeqCst);
        let (published, durable) = (self.core.ring.published().get(), self.core.durable());
        if state.halted.is_some() {
            return Due::WhenPublished;
        }
        // After a refusal every round waits for its interval. The waiters have the error and may try again themselves.
        let in_a_hurry = state.wanted > durable || published.since(durable) >= self.drain_bytes;
        if in_a_hurry && state.refused.is_none() {
            return Due::Now(Purpose::Data);
        }
        let purpose = if published > durable {
            Purpose::Data
        } else if state.flusher.as_ref().is_none_or(|flusher| flusher.needs_claim(&self.core)) {
            Purpose::Claim
        } else {
            state.idle.begin_anew();
            return Due::WhenPublished;
        };
        let now = self.core.backend.now();
        if state.idle.durable != durable {
            state.idle = DrainInterval { durable, ..DrainInterval::default() };
        }
        if state.idle.is_over {
            return Due::Now(purpose);
        }
        let waited = now.saturating_sub(*state.idle.since.get_or_insert(now));
        match self.drain_interval.checked_sub(waited) {
            Some(left) if !left.is_zero() => Due::In(left),
            _ => Due::Now(purpose),
        }
    }

    fn commit_thread(&self) {
        // Whether the log has been idle for a while.
        let mut rested = false;
        let mut state = self.state.lock();
        while !state.stop {
            match self.due(&mut state) {
                Due::Now(purpose) => match state.flusher.take() {
                    Some(flusher) => {
                        state.idle.begin_anew();
                        state = self.run(state, flusher, purpose, 0);
                    }
                    // The holder of the token notifies `work` if a waiter is left over. The rest has time.
                    None => drop(self.work.wait_for(&mut state, self.drain_interval)),
                },
                // The clock of the backend may stand still while threads sleep, if it is that of a simulation.
                Due::In(left) => state.idle.is_over = self.work.wait_for(&mut state, left).timed_out(),
                Due::WhenPublished => {
                    self.parked.store(true, Ordering::SeqCst);
                    let published = self.core.ring.published().get();
                    let was_rested = std::mem::take(&mut rested);
                    if state.halted.is_some() || published == self.core.durable() {
                        if was_rested {
                            self.work.wait(&mut state);
                        } else {
                            rested = self.work.wait_for(&mut state, TRUST).timed_out();
                        }
                    }
                    self.parked.store(false, Ordering::SeqCst);
                    if rested {
                        // The room for the next record may be gone by the time it comes.
                        self.core.ring.doubt(&*self.core.backend);
                    }
                }
            }
        }
    }

    /// Leaves the rounds to the waiters.
    fn thread_ends(&self, mut state: MutexGuard<'_, CommitState>) {
        state.has_thread = false;
        self.wake_waiters();
    }
}

/// Starts the commit thread. It blocks all signals, so that no handler of the application runs on it.
pub(crate) fn start_thread(shared: &Arc<Shared>) -> Result<JoinHandle<()>> {
    shared.state.lock().has_thread = true;
    let start = || {
        let shared = Arc::clone(shared);
        let body = move || {
            let ended = ThreadEnds(&shared);
            aio::block_all_signals();
            shared.commit_thread();
            drop(ended);
        };
        thread::Builder::new().name("wal-commit".to_owned()).spawn(body).map_err(|error| {
            aio::Error::call("start thread", Path::new("wal-commit"), aio::Errno::from(&error))
        })
    };
    Ok(aio::wait_out(&*shared.core.backend, start)?)
}

/// Leaves the rounds to the waiters when the commit thread returns or panics.
struct ThreadEnds<'a>(&'a Shared);

impl Drop for ThreadEnds<'_> {
    fn drop(&mut self) {
        self.0.thread_ends(self.0.state.lock());
    }
}
