//! Wakes any number of sleepers at once, by `futex(2)`.
//!
//! A condition variable passes its mutex from one sleeper to the next: each is woken by the one before, and the last of
//! 64 waits for 63 thread switches. Here the kernel makes all of them runnable in one call, and none takes a lock that it
//! does not need.
//!
//! Invariant: every announcement changes the word. A sleeper that read the word before an announcement therefore either
//! does not fall asleep or is woken. (A thread that is suspended for exactly 2^32 announcements between the two could
//! take the new word for the old one. The next announcement wakes it.)

use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::futex;

/// The word that changes with every announcement.
#[derive(Debug)]
pub(crate) struct Announcement(AtomicU32);

impl Announcement {
    pub(crate) fn new() -> Announcement {
        Announcement(AtomicU32::new(0))
    }

    /// The number of announcements so far, for [`Announcement::wait`]. Read it where the decision to sleep is made.
    pub(crate) fn heard(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }

    /// Sleeps until an announcement after `heard`. May return early.
    pub(crate) fn wait(&self, heard: u32) {
        // An error means that the word has changed or that a signal came. The caller checks its condition again.
        let _ = futex::wait(&self.0, futex::Flags::PRIVATE, heard, None);
    }

    /// Wakes all sleepers. They see all writes of this thread before the call.
    pub(crate) fn announce(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
        // Fails only for an invalid address.
        let _ = futex::wake(&self.0, futex::Flags::PRIVATE, u32::MAX >> 1);
    }
}
