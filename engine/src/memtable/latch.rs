//! A version word: readers load it before and after their reads, writers lock it and then increase it.
//!
//! Bit 0 is set while a writer holds the latch; the other bits count changes. All values that a reader loads between
//! [`Latch::begin`] and a successful [`Latch::check`] existed at one moment. Every guarded field is an atomic, so values
//! loaded before a failed check may be stale or mixed, but never torn.
//!
//! Proof: assume that a reader has loaded a value that a writer stored while it held the latch. The writer's fence is between
//! the taking of the latch and that store, the reader's fence is between that load and the check. So the check finds the
//! latch taken, or a later count, and fails. Values stored before the count at which the reader began are visible to it: it
//! loaded that count with acquire, and the writer had stored it with release.

use crate::base::sync::{AtomicU64, Ordering, fence, pause};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Latch(AtomicU64);

/// A count at which the latch was free.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp(u64);

/// A failed check: the loaded values may be stale or mixed, so the reader has to start again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Changed;

/// Holds the latch. The drop releases it with the next count.
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

    /// Begins a read. Waits while a writer holds the latch.
    pub(super) fn begin(&self) -> Stamp {
        let mut spins = 0;
        loop {
            if let Ok(stamp) = self.try_begin() {
                return stamp;
            }
            pause(&mut spins);
        }
    }

    /// Begins a read. Fails if a writer holds the latch.
    pub(super) fn try_begin(&self) -> Result<Stamp, Changed> {
        let word = self.0.load(Ordering::Acquire);
        if word & HELD == 0 { Ok(Stamp(word)) } else { Err(Changed) }
    }

    /// Succeeds if nothing has changed since `stamp`.
    pub(super) fn check(&self, stamp: Stamp) -> Result<(), Changed> {
        fence(Ordering::Acquire);
        if self.0.load(Ordering::Relaxed) == stamp.0 { Ok(()) } else { Err(Changed) }
    }

    /// Takes the latch, if nothing has changed since `stamp`. The loaded values stay valid while it is held.
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
