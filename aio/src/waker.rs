//! Wakes a thread that waits for completions, from any thread, without losing a wake-up.
//!
//! The waker submits a poll on an eventfd that is always readable to the waiter's own context: it is done at once, so a
//! wake-up is one more completion and one system call. Rejected: an eventfd that the waker writes and the waiter polls. It
//! takes as long from wake to wake-up, but the waiter has to drain it and to poll again, two more calls for each.
//!
//! The other waker sends a signal to the waiting thread. The thread blocks it and lets it in only inside
//! `io_pgetevents`, which exchanges the mask and goes to sleep in one step: a signal that comes between the last look at
//! `raised` and the sleep stays pending, and ends the sleep at once. It needs a handler in the process, so it is
//! not the default.
//!
//! Invariants
//! - `raised` goes from false to true only in `wake`, which then submits the poll; it goes back only in `consume`. So
//!   while it is true a poll was submitted or is about to be, and a second `wake` needs none: the waiter has
//!   not returned yet, and will see what that waker published. (A poll that is late, after the waiter noticed
//!   `raised` by itself, makes one more wake-up, never one less.)
//! - The kernel's context lives as long as its last waker, and a forked child does not use the number, so one that the
//!   kernel has given to another context is never submitted to.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

use crate::error::Errno;
use crate::queue::WakeUp;
use crate::signal::SignalSet;
use crate::sys;

/// `data` of a wake-up; no slot has this number.
pub(crate) const WAKE_UP: u64 = u64::MAX;

/// How often a wake-up tries again when the kernel is short of memory, or of room for events (and then the waiter does not
/// sleep, since those events are there).
const TRIES: usize = 1000;

/// Wakes the owner of one context.
#[derive(Debug)]
pub(crate) struct PollWaker {
    context: Arc<sys::Context>,
    /// Always readable.
    event: OwnedFd,
    /// Publishes what the waking thread did before to the waiter that consumes it.
    raised: AtomicBool,
}

impl PollWaker {
    pub(crate) fn new(context: Arc<sys::Context>) -> Result<PollWaker, Errno> {
        let event = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(PollWaker { context, event, raised: AtomicBool::new(false) })
    }

    /// Makes one event that carries [`WAKE_UP`]; an error if the kernel has no poll operation (before Linux 4.18).
    pub(crate) fn post(&self) -> Result<(), Errno> {
        for _ in 0..TRIES {
            match sys::submit_poll(&self.context, self.event.as_fd(), WAKE_UP) {
                Err(Errno::AGAIN) => std::thread::yield_now(),
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Whether a wake-up has not been consumed yet.
    pub(crate) fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Acquire)
    }

    /// Takes all wake-ups so far; the waiter must return to its caller after it.
    pub(crate) fn consume(&self) {
        self.raised.swap(false, Ordering::AcqRel);
    }
}

impl WakeUp for PollWaker {
    fn wake(&self) {
        // The waiter is the parent's.
        if !self.context.is_of_this_process() || self.raised.swap(true, Ordering::AcqRel) {
            return;
        }
        if self.post() == Err(Errno::AGAIN) {
            // No memory for so long: the next wake-up tries again.
            self.raised.store(false, Ordering::Release);
        }
        // Where there are no polls the waiter looks at `raised` every now and then.
    }
}

/// Wakes the owner of one context by a signal.
///
/// Invariant: a signal is sent only while `waiting` names a thread, and that thread takes its name out before it leaves
/// the wait; so the signal never hits a thread that has ended, or one that does not expect it.
#[derive(Debug)]
pub(crate) struct SignalWaker {
    signal: i32,
    /// As in [`PollWaker`].
    raised: AtomicBool,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    thread: Option<i32>,
    /// A signal was sent to it, which may still be pending.
    is_sent: bool,
}

impl SignalWaker {
    /// Checks that the signal has a handler, or gives it one.
    pub(crate) fn new(signal: i32) -> Result<SignalWaker, Errno> {
        sys::handle_signal(signal)?;
        Ok(SignalWaker { signal, raised: AtomicBool::new(false), waiting: Mutex::default() })
    }

    /// The calling thread is about to look at `raised` and to sleep.
    pub(crate) fn enter(&self) {
        SignalSet::none().with(self.signal).block();
        self.waiting.lock().thread = Some(sys::this_thread());
    }

    /// The calling thread is about to return.
    pub(crate) fn leave(&self) {
        let mut waiting = self.waiting.lock();
        waiting.thread = None;
        if std::mem::take(&mut waiting.is_sent) {
            sys::take_pending(SignalSet::none().with(self.signal).raw());
        }
    }
}

impl WakeUp for SignalWaker {
    fn wake(&self) {
        if self.raised.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut waiting = self.waiting.lock();
        if let Some(thread) = waiting.thread {
            waiting.is_sent = true;
            sys::signal_thread(thread, self.signal);
        }
    }
}

/// One of the two.
#[derive(Debug)]
pub(crate) enum Waker {
    Poll(Arc<PollWaker>),
    Signal(Arc<SignalWaker>),
}

impl Waker {
    /// Whether a wake-up has not been consumed yet.
    pub(crate) fn is_raised(&self) -> bool {
        match self {
            Waker::Poll(waker) => waker.is_raised(),
            Waker::Signal(waker) => waker.raised.load(Ordering::Acquire),
        }
    }

    /// Whether a wake-up is an event.
    pub(crate) fn is_poll(&self) -> bool {
        matches!(self, Waker::Poll(_))
    }

    /// Whether a sleep that has ended was ended by a wake-up that no event tells of.
    pub(crate) fn ends_sleep(&self) -> bool {
        !self.is_poll() && self.is_raised()
    }

    /// Takes all wake-ups so far; the waiter must return to its caller after it.
    pub(crate) fn consume(&self) {
        match self {
            Waker::Poll(waker) => waker.consume(),
            Waker::Signal(waker) => {
                waker.raised.swap(false, Ordering::AcqRel);
            }
        }
    }

    /// Whether somebody beside the context holds it.
    pub(crate) fn is_shared(&mut self) -> bool {
        match self {
            Waker::Poll(waker) => Arc::get_mut(waker).is_none(),
            Waker::Signal(waker) => Arc::get_mut(waker).is_none(),
        }
    }

    /// The mask that lets wake-ups in; `base` is the one that was asked for, if any.
    pub(crate) fn mask(&self, base: Option<SignalSet>) -> Option<SignalSet> {
        match self {
            Waker::Poll(_) => base,
            Waker::Signal(waker) => Some(base.unwrap_or_else(SignalSet::blocked).without(waker.signal)),
        }
    }

    /// For another thread.
    pub(crate) fn handle(&self) -> Arc<dyn WakeUp> {
        match self {
            Waker::Poll(waker) => Arc::clone(waker) as Arc<dyn WakeUp>,
            Waker::Signal(waker) => Arc::clone(waker) as Arc<dyn WakeUp>,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_wakes_are_one_until_consumed() {
        let context = Arc::new(sys::setup(8).unwrap());
        let waker = PollWaker::new(Arc::clone(&context)).unwrap();
        let mut events = [sys::IoEvent::default(); 8];
        let wait = sys::Wait { at_least: 0, timeout: None, mask: None };
        let mut reap = || {
            let count = sys::reap_unmasked(&context, &mut events, wait).unwrap();
            assert!(events[..count].iter().all(|event| event.data == WAKE_UP));
            count
        };
        assert!(!waker.is_raised());
        waker.wake();
        waker.wake();
        assert!(waker.is_raised());
        assert_eq!(reap(), 1);
        waker.wake();
        assert_eq!(reap(), 0, "nobody has consumed the first");
        waker.consume();
        assert!(!waker.is_raised());
        waker.wake();
        assert_eq!(reap(), 1);
    }

    #[test]
    fn a_waker_may_outlive_its_context() {
        let context = Arc::new(sys::setup(1).unwrap());
        let waker = PollWaker::new(context).unwrap();
        for _ in 0..10 {
            waker.wake();
            waker.consume();
        }
    }
}
