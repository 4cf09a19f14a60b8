//! Wakes any number of sleepers at once, by `futex(2)`.
//!
//! A condition variable gives its mutex to one sleeper after the other: each of them is woken by the one before, and the
//! last of 64 waits for 63 thread switches. Here the kernel makes all of them runnable in one call, and none takes a lock
//! that it does not need.
//!
//! Invariant: the word changes with every announcement, so a sleeper that read it before some announcement either does
//! not fall asleep any more or is woken. (Only one that stands still for 2^32 announcements could take the new word for
//! the old one; the next announcement wakes it.)

use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::futex;

/// See the module.
#[derive(Debug)]
pub(crate) struct Announcement(AtomicU32);

impl Announcement {
    pub(crate) fn new() -> Announcement {
        Announcement(AtomicU32::new(0))
    }

    /// What has been announced so far: to be read where the decision to sleep is made.
    pub(crate) fn heard(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }

    /// Sleeps until something is announced that was not `heard`; may return early.
    pub(crate) fn wait(&self, heard: u32) {
        // An error says that the word has changed, or that a signal came: both are reasons to look again.
        let _ = futex::wait(&self.0, futex::Flags::PRIVATE, heard, None);
    }

    /// Wakes everybody who sleeps. What was written before is seen by who looks after waking.
    pub(crate) fn announce(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
        // Fails only for a word that is not there.
        let _ = futex::wake(&self.0, futex::Flags::PRIVATE, u32::MAX >> 1);
    }
}
