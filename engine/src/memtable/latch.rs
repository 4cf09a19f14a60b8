//! A version word: readers look at it before and after, writers hold it and move it on.
//!
//! Bit 0 says that a writer is at work, the other bits count changes. All values that a reader loads between
//! [`Latch::begin`] and a [`Latch::check`] that succeeds were there at one moment. Everything guarded is an atomic, so
//! values loaded before a check that fails are stale or mixed, and nothing worse.
//!
//! Why this holds: assume that a reader has loaded a value that a writer stored while it held the latch. The writer's
//! fence stands between the taking of the latch and that store, the reader's fence between that load and the check; so the
//! check finds the latch taken, or a later count, and fails. Values that were stored before the count at which the reader
//! began are visible to it, since it loaded that count with acquire and the writer had stored it with release.

use crate::base::sync::{AtomicU64, Ordering, fence, pause};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Latch(AtomicU64);

/// A count at which the latch was free.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp(u64);

/// The values that were read may be stale or mixed: begin again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Changed;

/// The latch is held until this is dropped; then the count is the next one.
#[derive(Debug)]
pub(super) struct Latched<'a> {
    latch: &'a Latch,
    stamp: Stamp,
}

const HELD: u64 = 1;
const STEP: u64 = 2;

impl Latch {
    pub(super) fn new() -> Latch {
        Latch(AtomicU64::new(0))
    }

    /// Begins to read, when no writer is at work.
    pub(super) fn begin(&self) -> Stamp {
        let mut spins = 0;
        loop {
            if let Ok(stamp) = self.try_begin() {
                return stamp;
            }
            pause(&mut spins);
        }
    }

    /// Begins to read, unless a writer is at work.
    pub(super) fn try_begin(&self) -> Result<Stamp, Changed> {
        let word = self.0.load(Ordering::Acquire);
        if word & HELD == 0 { Ok(Stamp(word)) } else { Err(Changed) }
    }

    /// Whether nothing has changed since.
    pub(super) fn check(&self, stamp: Stamp) -> Result<(), Changed> {
        fence(Ordering::Acquire);
        if self.0.load(Ordering::Relaxed) == stamp.0 { Ok(()) } else { Err(Changed) }
    }

    /// Takes the latch, if nothing has changed since: the values that were read stay true while it is held.
    pub(super) fn hold(&self, stamp: Stamp) -> Result<Latched<'_>, Changed> {
        self.0
            .compare_exchange(stamp.0, stamp.0 | HELD, Ordering::Acquire, Ordering::Relaxed)
            .map_err(|_| Changed)?;
        fence(Ordering::Release);
        Ok(Latched { latch: self, stamp })
    }
}

impl Drop for Latched<'_> {
    fn drop(&mut self) {
        self.latch.0.store(self.stamp.0.wrapping_add(STEP), Ordering::Release);
    }
}
