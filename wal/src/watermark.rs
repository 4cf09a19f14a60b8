//! A watermark: in-order progress over ranges that complete out of order.
//!
//! Invariants: the position only rises; it passes a range only after that range and all before it are complete.

use std::fmt;

use crate::record::{GRANULE, Seq};
use crate::sync::{AtomicU32, AtomicU64, AtomicUsize, Condvar, Mutex, Ordering};

/// The top bit of a table entry: the parity of the lap that wrote it.
const LAP: u32 = 1 << 31;

/// Loads of the position before a waiter sleeps. A predecessor is usually in the middle of a copy of some hundred bytes.
/// If it lost its CPU, more spinning only delays its return to one.
const SPINS: u32 = if cfg!(any(loom, shuttle)) { 0 } else { 100 };

/// A publish watermark: a position in the stream below which all ranges are complete.
///
/// Writers reserve ranges of the stream in order and fill them at their own pace. Readers and the flusher need one
/// number: everything below it is filled. Two designs were rejected. A lock around a queue of finished ranges makes every
/// writer wait for every other one at a few hundred thousand ranges a second. A `done` bit for each writer needs a bound
/// on the writers. This is a table with one entry for each granule ([`GRANULE`] bytes) of the ring:
///
/// * A finished range `[seq, end)` is stored in the entry of its first granule: its length in granules, and the parity of
///   its lap (`seq / ring`). The parity tells it from an entry of the lap before.
/// * An entry of *two* laps before has the same parity. So the owner of a range first clears the entries of all its other
///   granules. In each lap every entry is either written or cleared.
/// * After that, each writer advances the position as far as it can: while the entry at the position is of this lap, it
///   moves the position past the range by compare-and-swap. All writers see the same entries, so any of them may win.
///
/// No range is left behind. A writer that stops at an entry loaded it before the owner of the range stored it. All these
/// operations are sequentially consistent, so in their single order the owner loads the position later than that, finds
/// it at its range, and advances it. A stale position shows in the failed swap, or when the position is loaded again.
///
/// The table is reused in each lap. A range may therefore be stored only while its end is at most one lap above the
/// position. [`Watermark::complete`] waits for that. It waits for earlier ranges only, so there is no cycle of waits.
///
/// Memory order: all that a writer did before `complete` happens before all that follows a load of a position at or
/// above the `end` of its range.
pub struct Watermark {
    position: AtomicU64,
    table: Box<[AtomicU32]>,
    waiters: Waiters,
    /// Guards the decision to sleep, and no data.
    sleep: Mutex<()>,
    moved: Condvar,
}

impl Watermark {
    /// A watermark at `start`, with laps of `ring_bytes` bytes.
    ///
    /// # Panics
    /// If `start` or `ring_bytes` is not a multiple of [`GRANULE`], or the ring is empty or of 64 GiB or more.
    #[must_use]
    pub fn new(start: Seq, ring_bytes: usize) -> Watermark {
        assert!(ring_bytes > 0, "a ring is not empty");
        assert!(ring_bytes.is_multiple_of(GRANULE), "a ring is whole granules");
        assert!((ring_bytes / GRANULE) as u64 <= u64::from(LAP - 1), "an entry can hold any length");
        assert!(start.get().is_multiple_of(GRANULE as u64), "positions are at granules");
        Watermark {
            position: AtomicU64::new(start.get()),
            table: (0..ring_bytes / GRANULE).map(|_| AtomicU32::new(0)).collect(),
            waiters: Waiters(AtomicUsize::new(0)),
            sleep: Mutex::new(()),
            moved: Condvar::new(),
        }
    }

    /// The watermark: every range below is complete.
    #[inline]
    pub fn get(&self) -> Seq {
        Seq::new(self.position.load(Ordering::SeqCst))
    }

    /// Marks `[seq, end)` as complete, and advances the watermark over all ranges that are now contiguous.
    ///
    /// Each range of the stream is completed once, in any order, from any thread. Blocks only while `end` is more than one
    /// lap above the watermark.
    ///
    /// # Panics
    /// If the range is empty, longer than a lap, not aligned to [`GRANULE`], or already below the watermark.
    pub fn complete(&self, seq: Seq, end: Seq) {
        assert!(seq < end, "a range is not empty");
        assert!(end.since(seq) <= self.lap_bytes(), "a range fits into a lap");
        assert!(seq.get().is_multiple_of(GRANULE as u64), "positions are at granules");
        assert!(end.get().is_multiple_of(GRANULE as u64), "positions are at granules");
        self.wait_for(Seq::new(end.get().saturating_sub(self.lap_bytes())));
        assert!(self.get() <= seq, "a range is completed once");
        let granules = end.since(seq) / GRANULE as u64;
        for nth in 1..granules {
            // Relaxed suffices: the sequentially consistent store of the entry below releases these stores.
            self.entry(seq.get() + nth * GRANULE as u64).store(0, Ordering::Relaxed);
        }
        let length = u32::try_from(granules).expect("a lap fits into an entry");
        self.entry(seq.get()).store(length | self.lap(seq.get()), Ordering::SeqCst);
        if self.advance() && self.waiters.0.load(Ordering::SeqCst) > 0 {
            // A waiter holds this lock from its decision until it sleeps.
            drop(self.sleep.lock());
            self.moved.notify_all();
        }
    }

    /// Whether a thread sleeps in [`Watermark::wait_for`], or is about to: others should leave it the processor, since the
    /// thread that it waits for may have none.
    #[inline]
    pub fn is_awaited(&self) -> bool {
        self.waiters.0.load(Ordering::Relaxed) > 0
    }

    /// Blocks until every range below `end` is complete: spins shortly, then sleeps.
    #[cfg_attr(
        any(loom, shuttle),
        expect(clippy::reversed_empty_ranges, reason = "a model gains nothing from spinning")
    )]
    pub fn wait_for(&self, end: Seq) {
        for _ in 0..SPINS {
            if self.get() >= end {
                return;
            }
            std::hint::spin_loop();
        }
        let mut sleep = self.sleep.lock();
        self.waiters.0.fetch_add(1, Ordering::SeqCst);
        // Either this loads the new position, or the thread that moved it loads the new count of waiters.
        while self.get() < end {
            self.moved.wait(&mut sleep);
        }
        self.waiters.0.fetch_sub(1, Ordering::SeqCst);
    }

    /// Advances the position over complete ranges. Returns whether it moved.
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

/// Threads that sleep or are about to. Not in a cache line that every write changes: jobs look at it after each entry.
#[repr(align(128))]
struct Waiters(AtomicUsize);

impl fmt::Debug for Watermark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watermark({})", self.get())
    }
}
