//! Progress in order over work that completes out of order.
//!
//! Invariants: the position only rises; it passes a range only when that range and all before it are complete.

use std::fmt;

use crate::record::{GRANULE, Seq};
use crate::sync::{AtomicU32, AtomicU64, AtomicUsize, Condvar, Mutex, Ordering};

/// The top bit of a table entry: the parity of the lap that wrote it.
const LAP: u32 = 1 << 31;

/// How often a waiter looks before it sleeps. A predecessor is usually in the middle of a copy of some hundred bytes;
/// where it lost its CPU, more spinning only keeps it from getting one.
const SPINS: u32 = if cfg!(any(loom, shuttle)) { 0 } else { 100 };

/// A watermark over the stream that advances over contiguous complete ranges.
///
/// Writers reserve ranges of the stream in order and fill them at their own pace. What follows (readers, the flusher)
/// wants one number: everything below it is filled. A lock around a queue of finished ranges would do, and makes every
/// writer wait for every other at a few hundred thousand a second. A `done` bit per writer slot needs a bound on the
/// writers. Instead there is a table with one entry per 32-byte granule of the ring:
///
/// * A finished range `[seq, end)` is noted in the entry of its first granule: its length in granules, and the parity of
///   the lap (`seq / ring`), so that an entry of the lap before does not count.
/// * An entry of *two* laps before would have the right parity. So the owner of a range first clears the entries of all
///   its other granules: after each lap every entry was either written or cleared in that lap, never left alone.
/// * After noting its range, each writer moves the position as far as it can: while the entry at the position is of
///   this lap, compare-and-swap the position past it. Whoever wins, everybody sees the same entries.
///
/// No range is left behind: a writer that stops at an entry looked at it before its owner noted it; in the single order
/// of all these (sequentially consistent) operations the owner's own look at the position comes later still, finds
/// it there, and goes on. A look at a stale position shows in the failed swap, or in the position having moved when it is
/// read again.
///
/// The table is reused lap by lap, so a range may be noted only when the position is less than one lap behind its end.
/// [`Ordered::complete`] waits for that; it waits for earlier ranges only, so no cycle can come of it.
///
/// What the position publishes: all that a writer did before `complete` happens before anything that follows a read
/// of a position at or above its `end`.
pub struct Ordered {
    position: AtomicU64,
    table: Box<[AtomicU32]>,
    /// How many sleep or are about to.
    waiters: AtomicUsize,
    /// Guards nothing but the decision to sleep.
    sleep: Mutex<()>,
    moved: Condvar,
}

impl Ordered {
    /// Nothing complete from `start` on; ranges lie within laps of `ring_bytes`.
    ///
    /// # Panics
    /// If `start` or `ring_bytes` is not a multiple of [`GRANULE`], or the ring is empty or of 64 GiB or more.
    #[must_use]
    pub fn new(start: Seq, ring_bytes: usize) -> Ordered {
        assert!(ring_bytes > 0, "a ring is not empty");
        assert!(ring_bytes.is_multiple_of(GRANULE), "a ring is whole granules");
        assert!((ring_bytes / GRANULE) as u64 <= u64::from(LAP - 1), "an entry can hold any length");
        assert!(start.get().is_multiple_of(GRANULE as u64), "positions are at granules");
        Ordered {
            position: AtomicU64::new(start.get()),
            table: (0..ring_bytes / GRANULE).map(|_| AtomicU32::new(0)).collect(),
            waiters: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            moved: Condvar::new(),
        }
    }

    /// Everything below is complete.
    pub fn get(&self) -> Seq {
        Seq::new(self.position.load(Ordering::SeqCst))
    }

    /// Marks `[seq, end)` as complete, and moves the position over all that is now contiguous.
    ///
    /// Each range of the stream is completed once, in any order, from any thread. Waits only while the position is a
    /// whole lap behind `end`.
    ///
    /// # Panics
    /// If the range is empty, longer than a lap, not at granules, or already passed.
    pub fn complete(&self, seq: Seq, end: Seq) {
        assert!(seq < end, "a range is not empty");
        assert!(end.since(seq) <= self.lap_bytes(), "a range fits into a lap");
        assert!(seq.get().is_multiple_of(GRANULE as u64), "positions are at granules");
        assert!(end.get().is_multiple_of(GRANULE as u64), "positions are at granules");
        self.wait_for(Seq::new(end.get().saturating_sub(self.lap_bytes())));
        assert!(self.get() <= seq, "a range is completed once");
        let granules = end.since(seq) / GRANULE as u64;
        for nth in 1..granules {
            // Ordered before the entry below is seen: that store is sequentially consistent.
            self.entry(seq.get() + nth * GRANULE as u64).store(0, Ordering::Relaxed);
        }
        let length = u32::try_from(granules).expect("a lap fits into an entry");
        self.entry(seq.get()).store(length | self.lap(seq.get()), Ordering::SeqCst);
        if self.advance() && self.waiters.load(Ordering::SeqCst) > 0 {
            // A waiter that has decided to sleep holds this lock until it does.
            drop(self.sleep.lock());
            self.moved.notify_all();
        }
    }

    /// Waits until everything below `end` is complete.
    #[cfg_attr(
        any(loom, shuttle),
        expect(clippy::reversed_empty_ranges, reason = "models have no use for another look")
    )]
    pub fn wait_for(&self, end: Seq) {
        for _ in 0..SPINS {
            if self.get() >= end {
                return;
            }
            std::hint::spin_loop();
        }
        let mut sleep = self.sleep.lock();
        self.waiters.fetch_add(1, Ordering::SeqCst);
        // Either this sees the new position, or the one who moved it sees the waiter.
        while self.get() < end {
            self.moved.wait(&mut sleep);
        }
        self.waiters.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether it moved.
    fn advance(&self) -> bool {
        let mut moved = false;
        let mut at = self.position.load(Ordering::SeqCst);
        loop {
            let entry = self.entry(at).load(Ordering::SeqCst);
            if entry & !LAP == 0 || entry & LAP != self.lap(at) {
                let now = self.position.load(Ordering::SeqCst);
                if now == at {
                    return moved;
                }
                at = now;
                continue;
            }
            let next = at + u64::from(entry & !LAP) * GRANULE as u64;
            match self.position.compare_exchange(at, next, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => (moved, at) = (true, next),
                Err(now) => at = now,
            }
        }
    }

    fn entry(&self, at: u64) -> &AtomicU32 {
        let slot = at / GRANULE as u64 % self.table.len() as u64;
        &self.table[usize::try_from(slot).expect("a slot is an index")]
    }

    fn lap(&self, at: u64) -> u32 {
        if (at / self.lap_bytes()).is_multiple_of(2) { 0 } else { LAP }
    }

    fn lap_bytes(&self) -> u64 {
        (self.table.len() * GRANULE) as u64
    }
}

impl fmt::Debug for Ordered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ordered({})", self.get())
    }
}
