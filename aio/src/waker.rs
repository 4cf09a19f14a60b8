//! Wakes a thread that waits for completions, from any thread, without losing a wake-up.
//!
//! The waker is an eventfd and a flag. Before a queue sleeps it makes sure that a poll operation on the eventfd is in
//! flight in its own context; so a wake-up is one more completion, and one that came before the poll completes it at
//! once. Rejected: a signal (needs a handler in the application), a poll submitted by the waker (needs the context to
//! be kept alive by every waker).
//!
//! Invariants. `raised` goes from false to true only in `wake`, which then writes the eventfd; it goes back only in
//! `consume`, after the eventfd was drained. So while it is true a write was done or is about to be, and a second
//! `wake` needs none: the waiter has not returned yet, and will see what that waker published. (A write that is late,
//! after the waiter noticed `raised` by itself, makes one more wake-up, never one less.)

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

use crate::backend::WakeUp;
use crate::error::Errno;

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
