//! Hazard slots: each thread announces there the values that it holds. Each thread owns one line of slots; all threads may
//! read all lines.
//!
//! ```text
//!   LINES -> | 7 slots for guards | 1 in passing | taken | next | -> | ... | -> ...      128 bytes each
//! ```
//!
//! A thread takes a line when it loads its first value: one that an ended thread has left, or a new one. It leaves the line
//! when it ends. Other threads seldom touch the line, so an announcement costs one exchange in a cache line that other cores
//! rarely hold.
//!
//! Invariants: lines are never freed, so their number is the largest number of threads at once. Only the owner of a line fills
//! its slots. Any thread may clear a slot, also after its line was left. A slot is cleared with release, so a thread that finds
//! it clear is ordered after all uses of the value.
#![expect(unsafe_code, reason = "lines are found through an atomic pointer")]

use std::cell::Cell;
use std::ptr::{self, NonNull};

use crate::base::sync::Ordering;
use crate::base::sync::cached::{AtomicBool, AtomicPtr};

/// The most guards of a thread without counts. With the slot for short use they fill 64 bytes.
const GUARDS: usize = if cfg!(loom) { 1 } else { 7 };

/// The address of a value that is held, or null.
#[derive(Debug)]
pub(super) struct HazardSlot(AtomicPtr<()>);

/// The hazard slots of one thread.
#[repr(C, align(128))]
struct HazardLine {
    guards: [HazardSlot; GUARDS],
    /// In use only while its thread takes a count, so it is always free when it is needed.
    passing: HazardSlot,
    /// Whether a thread owns the line.
    taken: AtomicBool,
    next: Option<&'static HazardLine>,
}

#[cfg(not(loom))]
static LINES: AtomicPtr<HazardLine> = AtomicPtr::new(ptr::null_mut());

#[cfg(not(loom))]
thread_local! {
    static OWN: Own = const { Own(Cell::new(None)) };
}

// The lines of one run of a model, and of its threads.
#[cfg(loom)]
loom::lazy_static! {
    static ref LINES: AtomicPtr<HazardLine> = AtomicPtr::new(ptr::null_mut());
}

#[cfg(loom)]
loom::thread_local! {
    static OWN: Own = Own(Cell::new(None));
}

/// The line of this thread, if it has one. Given back when the thread ends.
struct Own(Cell<Option<&'static HazardLine>>);

impl HazardSlot {
    fn new() -> HazardSlot {
        HazardSlot(AtomicPtr::new(ptr::null_mut()))
    }

    /// Announces the value to every search that is later in the order of all sequentially consistent accesses. Called by the
    /// owner of the line, or of the slot in it.
    #[inline]
    pub(super) fn announce(&self, value: NonNull<()>) {
        self.0.swap(value.as_ptr(), Ordering::SeqCst);
    }

    /// Ends the announcement.
    #[inline]
    pub(super) fn clear(&self) {
        self.0.store(ptr::null_mut(), Ordering::Release);
    }

    /// Called by the owner of the line. Relaxed: the accesses of another thread that cleared the slot are ordered before the
    /// exchange that comes next.
    #[inline]
    fn is_free(&self) -> bool {
        self.0.load(Ordering::Relaxed).is_null()
    }
}

/// A free slot of this thread. `None` if all are in use, or the thread is about to end.
#[inline]
pub(super) fn free_slot() -> Option<&'static HazardSlot> {
    OWN.try_with(|own| own.line().guards.iter().find(|slot| slot.is_free())).ok().flatten()
}

/// Runs `work` with a slot that only this thread uses meanwhile. `work` must leave it cleared and must not call this again.
pub(super) fn in_passing<R>(work: impl FnOnce(&HazardSlot) -> R) -> R {
    if let Ok(line) = OWN.try_with(Own::line) {
        return work(&line.passing);
    }
    // The destructor of another thread-local runs after the line was given back.
    let line = HazardLine::take();
    let result = work(&line.passing);
    line.leave();
    result
}

/// Calls `see` with the address of every held value. A value that was taken out of its cache slot before this call, and is
/// not reported, is not held and never will be.
pub(super) fn each_held(mut see: impl FnMut(usize)) {
    for line in lines() {
        for slot in line.guards.iter().chain([&line.passing]) {
            // In the order of all sequentially consistent accesses either this load follows the announcement and finds it, or
            // the announcer's second load of the cache slot follows the removal of the value and does not find it.
            let held = slot.0.load(Ordering::SeqCst);
            if !held.is_null() {
                see(held.addr());
            }
        }
    }
}

impl Own {
    #[inline]
    fn line(&self) -> &'static HazardLine {
        self.0.get().unwrap_or_else(|| self.take())
    }

    #[cold]
    fn take(&self) -> &'static HazardLine {
        let line = HazardLine::take();
        self.0.set(Some(line));
        line
    }

    fn leave(&self) {
        if let Some(line) = self.0.take() {
            line.leave();
        }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.leave();
    }
}

impl HazardLine {
    /// A line for a thread that has none: one that another thread has left, or a new one.
    fn take() -> &'static HazardLine {
        // Acquire: ordered behind the previous thread's use of its slots.
        let left = |line: &&HazardLine| {
            !line.taken.load(Ordering::Relaxed) && !line.taken.swap(true, Ordering::Acquire)
        };
        lines().find(left).unwrap_or_else(HazardLine::add)
    }

    fn leave(&self) {
        self.taken.store(false, Ordering::Release);
    }

    fn add() -> &'static HazardLine {
        let mut line = Box::new(HazardLine {
            guards: std::array::from_fn(|_| HazardSlot::new()),
            passing: HazardSlot::new(),
            taken: AtomicBool::new(true),
            next: None,
        });
        let mut first = LINES.load(Ordering::SeqCst);
        loop {
            line.next = published(first);
            let added = Box::into_raw(line);
            // Sequentially consistent, like the announcements in it: a thread that searches for those finds the line.
            match LINES.compare_exchange(first, added, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return published(added).expect("a box is not at null"),
                Err(other) => {
                    first = other;
                    // SAFETY: it came out of a box just now, and the exchange has not published it.
                    line = unsafe { Box::from_raw(added) };
                }
            }
        }
    }
}

fn lines() -> impl Iterator<Item = &'static HazardLine> {
    std::iter::successors(published(LINES.load(Ordering::SeqCst)), |line| line.next)
}

/// The line that `LINES` or another line leads to.
fn published(line: *mut HazardLine) -> Option<&'static HazardLine> {
    // SAFETY: only `HazardLine::add` stores there, out of a box that is never freed, and from then on writes only the atomics of
    // the line; the exchange that stored it and every load are sequentially consistent, so all of it is seen.
    unsafe { line.as_ref() }
}

/// Ends a thread of a model: there, destructors of thread-locals may run only when the model is over.
#[cfg(all(test, loom))]
pub(super) fn end_thread() {
    OWN.with(Own::leave);
}

/// Number of lines.
#[cfg(test)]
pub(super) fn count_lines() -> usize {
    lines().count()
}
