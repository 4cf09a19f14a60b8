//! Wakes a thread that waits for completions, from any thread, without losing a wake-up.
//!
//! The waker is an eventfd and a flag. Before a queue sleeps it makes sure that a poll operation on the eventfd is in
//! flight in its own context; so a wake-up is one more completion, and one that came before the poll completes it at
//! once. Rejected: a poll submitted by the waker (needs the context to be kept alive by every waker).
//!
//! The other waker sends a signal to the waiting thread. The thread blocks it and lets it in only inside
//! `io_pgetevents`, which exchanges the mask and goes to sleep in one step: a signal that comes between the last look at
//! `raised` and the sleep stays pending, and ends the sleep at once. It needs a handler in the process, so it is
//! not the default.
//!
//! Invariants. `raised` goes from false to true only in `wake`, which then writes the eventfd; it goes back only in
//! `consume`, after the eventfd was drained. So while it is true a write was done or is about to be, and a second
//! `wake` needs none: the waiter has not returned yet, and will see what that waker published. (A write that is late,
//! after the waiter noticed `raised` by itself, makes one more wake-up, never one less.)

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

use crate::backend::WakeUp;
use crate::error::Errno;
use crate::signal::SignalSet;
use crate::sys;

/// Wakes the owner of one queue.
#[derive(Debug)]
pub(crate) struct EventWaker {
    event: OwnedFd,
    /// Publishes what the waking thread did before to the waiter that consumes it.
    raised: AtomicBool,
}

impl EventWaker {
    pub(crate) fn new() -> Result<EventWaker, Errno> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(EventWaker { event, raised: AtomicBool::new(false) })
    }

    /// The descriptor that becomes readable on a wake-up, as the kernel wants it in an `iocb`.
    pub(crate) fn descriptor(&self) -> u32 {
        self.event.as_raw_fd().cast_unsigned()
    }

    /// Whether a wake-up has not been consumed yet.
    pub(crate) fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Acquire)
    }

    /// Takes all wake-ups so far; the waiter must return to its caller after it.
    pub(crate) fn consume(&self) {
        let mut count = [0; 8];
        // EAGAIN if the waker has raised the flag and not written yet: nothing to drain.
        let _ = rustix::io::read(&self.event, &mut count);
        self.raised.swap(false, Ordering::AcqRel);
    }
}

impl WakeUp for EventWaker {
    fn wake(&self) {
        if !self.raised.swap(true, Ordering::AcqRel) {
            // Fails only if the counter is full, and then the eventfd is readable anyway.
            let _ = rustix::io::write(&self.event, &1_u64.to_le_bytes());
        }
    }
}

/// Wakes the owner of one context by a signal.
///
/// Invariant: a signal is sent only while `waiting` names a thread, and that thread takes its name out before it leaves
/// the wait; so the signal never hits a thread that has ended, or one that does not expect it.
#[derive(Debug)]
pub(crate) struct SignalWaker {
    signal: i32,
    /// As in [`EventWaker`].
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
    Event(Arc<EventWaker>),
    Signal(Arc<SignalWaker>),
}

impl Waker {
    /// Whether a wake-up has not been consumed yet.
    pub(crate) fn is_raised(&self) -> bool {
        match self {
            Waker::Event(waker) => waker.is_raised(),
            Waker::Signal(waker) => waker.raised.load(Ordering::Acquire),
        }
    }

    /// Whether a poll must be in flight for a wake-up to end a sleep.
    pub(crate) fn needs_poll(&self) -> bool {
        matches!(self, Waker::Event(_))
    }

    /// Whether a sleep that has ended was ended by a wake-up that no event tells of.
    pub(crate) fn ends_sleep(&self) -> bool {
        !self.needs_poll() && self.is_raised()
    }

    /// Takes all wake-ups so far; the waiter must return to its caller after it.
    pub(crate) fn consume(&self) {
        match self {
            Waker::Event(waker) => waker.consume(),
            Waker::Signal(waker) => {
                waker.raised.swap(false, Ordering::AcqRel);
            }
        }
    }

    /// Whether somebody beside the context holds it.
    pub(crate) fn is_shared(&mut self) -> bool {
        match self {
            Waker::Event(waker) => Arc::get_mut(waker).is_none(),
            Waker::Signal(waker) => Arc::get_mut(waker).is_none(),
        }
    }

    /// The mask that lets wake-ups in; `base` is the one that was asked for, if any.
    pub(crate) fn mask(&self, base: Option<SignalSet>) -> Option<SignalSet> {
        match self {
            Waker::Event(_) => base,
            Waker::Signal(waker) => Some(base.unwrap_or_else(SignalSet::blocked).without(waker.signal)),
        }
    }

    /// For another thread.
    pub(crate) fn handle(&self) -> Arc<dyn WakeUp> {
        match self {
            Waker::Event(waker) => Arc::clone(waker) as Arc<dyn WakeUp>,
            Waker::Signal(waker) => Arc::clone(waker) as Arc<dyn WakeUp>,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_readable(waker: &EventWaker) -> bool {
        let mut polled = [rustix::event::PollFd::new(&waker.event, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut polled, Some(&rustix::event::Timespec::default())).unwrap() == 1
    }

    #[test]
    fn many_wakes_are_one_until_consumed() {
        let waker = EventWaker::new().unwrap();
        assert!(!waker.is_raised());
        waker.wake();
        waker.wake();
        assert!(waker.is_raised());
        assert!(is_readable(&waker));
        waker.consume();
        assert!(!waker.is_raised());
        assert!(!is_readable(&waker));
        waker.wake();
        assert!(is_readable(&waker));
    }
}
