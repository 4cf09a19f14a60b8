//! Signal sets: the signals that a thread blocks, always or only outside a wait.
//!
//! A thread that Esker starts blocks every signal, so that an application's handlers never run on it. The other use is
//! a signal that ends a wait. The thread blocks it and lets it in only inside the wait (the [`SignalSet`] given to
//! `NativeBackend::queue_with_mask`), so it cannot arrive between a check and the wait, and is never lost.

use std::fmt;

use crate::sys;

/// Raised by the running instruction itself: blocking them would kill the process without its crash handler.
const SYNCHRONOUS: [i32; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGSYS];

/// A set of signals.
#[derive(Clone, Copy)]
pub struct SignalSet(libc::sigset_t);

impl SignalSet {
    /// No signals.
    #[must_use]
    pub fn none() -> SignalSet {
        SignalSet(sys::empty_sigset())
    }

    /// All signals except those that a fault of the thread itself raises (such as `SIGSEGV`).
    #[must_use]
    pub fn all() -> SignalSet {
        let mut set = sys::full_sigset();
        for signal in SYNCHRONOUS {
            sys::remove_signal(&mut set, signal);
        }
        SignalSet(set)
    }

    /// The signals that the calling thread blocks.
    #[must_use]
    pub fn blocked() -> SignalSet {
        SignalSet(sys::block_signals(None))
    }

    /// The set and `signal`.
    ///
    /// # Panics
    /// If there is no such signal.
    #[must_use]
    pub fn with(mut self, signal: i32) -> SignalSet {
        sys::add_signal(&mut self.0, signal);
        self
    }

    /// The set without `signal`.
    ///
    /// # Panics
    /// If there is no such signal.
    #[must_use]
    pub fn without(mut self, signal: i32) -> SignalSet {
        sys::remove_signal(&mut self.0, signal);
        self
    }

    /// Whether `signal` is in the set.
    #[must_use]
    pub fn contains(&self, signal: i32) -> bool {
        sys::has_signal(&self.0, signal)
    }

    /// Adds these signals to those that the calling thread blocks. Threads started by it inherit its blocked signals.
    pub fn block(&self) {
        sys::block_signals(Some(&self.0));
    }

    pub(crate) fn raw(&self) -> &libc::sigset_t {
        &self.0
    }
}

impl fmt::Debug for SignalSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries((1..=libc::SIGRTMAX()).filter(|&signal| self.contains(signal))).finish()
    }
}

/// Blocks every signal on the calling thread. Every thread of Esker calls it first.
pub fn block_all_signals() {
    SignalSet::all().block();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_blocks_all_signals_keeps_its_crash_handlers() {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert!(!SignalSet::blocked().contains(libc::SIGTERM));
                block_all_signals();
                let blocked = SignalSet::blocked();
                assert!(blocked.contains(libc::SIGTERM));
                assert!(blocked.contains(libc::SIGUSR1));
                assert!(!blocked.contains(libc::SIGSEGV));
            });
        });
        assert!(!SignalSet::blocked().contains(libc::SIGUSR1), "other threads are not touched");
    }

    #[test]
    fn signals_are_added_and_removed() {
        let set = SignalSet::all().without(libc::SIGUSR1);
        assert!(!set.contains(libc::SIGUSR1));
        assert!(set.with(libc::SIGUSR1).contains(libc::SIGUSR1));
    }
}
