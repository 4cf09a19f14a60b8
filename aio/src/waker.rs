//! Wakes a thread that waits for completions, from any thread, without losing a wake-up.
//!
//! Where the kernel, or a sandbox, refuses the poll, the wake-up stays raised. A waiter with operations in flight sees it at
//! their completion, an idle one within a second; after that it looks once a millisecond.
//!
//! The waker submits a poll to the waiter's own context, on an eventfd that is always readable. The poll completes at
//! once, so a wake-up is one more completion and one system call. Rejected: an eventfd that the waker writes and the
//! waiter polls. Its latency is the same, but the waiter has to drain it and to poll again: two more calls for each
//! wake-up.
//!
//! The other waker sends a signal to the waiting thread. The thread blocks it and lets it in only inside
//! `io_pgetevents`, which exchanges the mask and goes to sleep in one step: a signal that comes between the last check
//! of `raised` and the sleep stays pending, and ends the sleep at once. It needs a handler in the process, so it is not
//! the default.
//!
//! Invariants
//! - `raised` goes from false to true only in `wake`, which then submits the poll; it goes back only in `consume`. So
//!   while it is true a poll was submitted or is about to be, and a second `wake` submits none: the waiter has not
//!   returned yet, and will see the memory that the second waker published. (A poll that comes after the waiter has
//!   seen `raised` by itself makes one wake-up too many, never one too few.)
//! - The kernel's context lives as long as its last waker, and a forked child does not use its number. So no poll is
//!   submitted to a number that the kernel has given to another context.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

use crate::error::Errno;
use crate::queue::WakeUp;
use crate::signal::SignalSet;
use crate::sys;

/// `data` of a wake-up; no slot has this number.
pub(crate) const WAKE_UP: u64 = u64::MAX;

/// How often a wake-up is tried when the kernel is short of memory or of room for events. (Without room for events the
/// waiter does not sleep, since it has events to reap.)
const TRIES: usize = 1000;

/// The descriptor of the polls of all contexts of a backend, made at the first use.
#[derive(Clone, Debug, Default)]
pub(crate) struct PolledEvent(Arc<OnceLock<Arc<OwnedFd>>>);

impl PolledEvent {
    pub(crate) fn get(&self) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(event) = self.0.get() {
            return Ok(Arc::clone(event));
        }
        let event = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::clone(self.0.get_or_init(|| Arc::new(event))))
    }
}

/// Wakes the owner of one context.
#[derive(Debug)]
pub(crate) struct PollWaker {
    context: Arc<sys::KernelContext>,
    /// Always readable. All contexts of a backend share it.
    event: Arc<OwnedFd>,
    /// Publishes the writes of the waking thread to the waiter that consumes the wake-up.
    raised: AtomicBool,
    /// The kernel has refused a poll for good.
    refused: AtomicBool,
}

impl PollWaker {
    pub(crate) fn new(context: Arc<sys::KernelContext>, event: Arc<OwnedFd>) -> PollWaker {
        PollWaker { context, event, raised: AtomicBool::new(false), refused: AtomicBool::new(false) }
    }

    /// Makes one event that carries [`WAKE_UP`]; an error if the kernel has no poll operation (before Linux 5.0).
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
        // In a forked child there is no waiter: it is the parent's.
        if !self.context.is_of_this_process() || self.raised.swap(true, Ordering::AcqRel) {
            return;
        }
        // After any error the waiter finds `raised` by itself, since it never sleeps without a limit.
        if self.post().is_err_and(|errno| !errno.is_not_now()) {
            self.refused.store(true, Ordering::Release);
        }
    }
}

/// Wakes the owner of one context by a signal.
///
/// Invariant: a signal is sent only while `waiting` names a thread, and that thread removes its number before it leaves
/// the wait. So the signal never reaches a thread that has ended or does not expect it.
#[derive(Debug)]
pub(crate) struct SignalWaker {
    signal: i32,
    process: sys::Process,
    /// See [`PollWaker`].
    raised: AtomicBool,
    waiting: Mutex<WaitingThread>,
}

#[derive(Debug, Default)]
struct WaitingThread {
    thread: Option<i32>,
    /// A signal was sent to the thread and may still be pending.
    is_sent: bool,
}

impl SignalWaker {
    /// Checks that the signal has a handler, or gives it one.
    pub(crate) fn new(signal: i32) -> Result<SignalWaker, Errno> {
        sys::handle_signal(signal)?;
        let process = sys::Process::current();
        Ok(SignalWaker { signal, process, raised: AtomicBool::new(false), waiting: Mutex::default() })
    }

    /// The calling thread is about to check `raised` and to sleep.
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
        // In a forked child there is no waiter, and a thread of the parent may hold the lock.
        if !self.process.is_current() || self.raised.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut waiting = self.waiting.lock();
        if let Some(thread) = waiting.thread {
            waiting.is_sent = true;
            sys::signal_thread(thread, self.signal);
        }
    }
}

/// The waker of one context.
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

    /// Whether a wake-up arrives as an event.
    pub(crate) fn is_poll(&self) -> bool {
        matches!(self, Waker::Poll(_))
    }

    /// Whether the kernel has refused a wake-up.
    pub(crate) fn is_refused(&self) -> bool {
        match self {
            Waker::Poll(waker) => waker.refused.load(Ordering::Acquire),
            Waker::Signal(_) => false,
        }
    }

    /// Whether a wake-up that is no event has ended the sleep.
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

    /// Whether there are references beside that of the context.
    pub(crate) fn is_shared(&mut self) -> bool {
        match self {
            Waker::Poll(waker) => Arc::get_mut(waker).is_none(),
            Waker::Signal(waker) => Arc::get_mut(waker).is_none(),
        }
    }

    /// The mask that lets wake-ups in; `base` is the mask of the settings, if any.
    pub(crate) fn mask(&self, base: Option<SignalSet>) -> Option<SignalSet> {
        match self {
            Waker::Poll(_) => base,
            Waker::Signal(waker) => Some(base.unwrap_or_else(SignalSet::blocked).without(waker.signal)),
        }
    }

    /// A reference for another thread.
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
        let waker = PollWaker::new(Arc::clone(&context), PolledEvent::default().get().unwrap());
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
        assert_eq!(reap(), 0, "the first was not consumed");
        waker.consume();
        assert!(!waker.is_raised());
        waker.wake();
        assert_eq!(reap(), 1);
    }

    #[test]
    fn a_waker_may_outlive_its_context() {
        let context = Arc::new(sys::setup(1).unwrap());
        let waker = PollWaker::new(context, PolledEvent::default().get().unwrap());
        for _ in 0..10 {
            waker.wake();
            waker.consume();
        }
    }
}
