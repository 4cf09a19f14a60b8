//! Where threads announce what they hold: each has a line of places, which anybody may look through.
//!
//! ```text
//!   LINES -> | 7 places for guards | 1 in passing | taken | next | -> | ... | -> ...      128 bytes each
//! ```
//!
//! A thread takes a line when it loads its first value, one that another left or a new one, and leaves it when it ends. In a
//! line of its own it writes what nobody else writes, so to announce costs one exchange in a line of memory that mostly
//! nobody else has.
//!
//! Invariants: lines are never freed, so there are as many as there were threads at once; only who has a line fills its
//! places; a place may be cleared by any thread, and also after its line was left; who has nothing announced any more in a
//! place has cleared it with release, so whoever finds it so is ordered behind all that was done with the value.
#![expect(unsafe_code, reason = "lines are found through an atomic pointer")]

use std::cell::Cell;
use std::ptr::{self, NonNull};

use crate::base::sync::Ordering;
use crate::base::sync::cached::{AtomicBool, AtomicPtr};

/// Guards that a thread may have without counting: with one more that is in use in passing they fill 64 bytes.
const GUARDS: usize = if cfg!(loom) { 1 } else { 7 };

/// A value that somebody holds, or nothing.
#[derive(Debug)]
pub(super) struct Place(AtomicPtr<()>);

/// The places of one thread.
#[repr(C, align(128))]
struct Line {
    guards: [Place; GUARDS],
    /// In use while its thread takes a count and never longer, so it is free whenever it is needed.
    passing: Place,
    /// Whether a thread has it.
    taken: AtomicBool,
    next: Option<&'static Line>,
}

#[cfg(not(loom))]
static LINES: AtomicPtr<Line> = AtomicPtr::new(ptr::null_mut());

#[cfg(not(loom))]
thread_local! {
    static OWN: Own = const { Own(Cell::new(None)) };
}

// Of one run, and its threads.
#[cfg(loom)]
loom::lazy_static! {
    static ref LINES: AtomicPtr<Line> = AtomicPtr::new(ptr::null_mut());
}

#[cfg(loom)]
loom::thread_local! {
    static OWN: Own = Own(Cell::new(None));
}

/// The line of a thread that has one, given back when the thread ends.
struct Own(Cell<Option<&'static Line>>);

impl Place {
    fn new() -> Place {
        Place(AtomicPtr::new(ptr::null_mut()))
    }

    /// Says that the value is held, to everybody who looks after this in the order of all sequentially consistent accesses.
    /// Only for who has its line, or the place in it.
    #[inline]
    pub(super) fn announce(&self, value: NonNull<()>) {
        self.0.swap(value.as_ptr(), Ordering::SeqCst);
    }

    /// The value is not held any more.
    #[inline]
    pub(super) fn clear(&self) {
        self.0.store(ptr::null_mut(), Ordering::Release);
    }

    /// For the thread that has its line. Relaxed: what another thread did that cleared it is ordered before the exchange
    /// that comes next.
    #[inline]
    fn is_free(&self) -> bool {
        self.0.load(Ordering::Relaxed).is_null()
    }
}

/// A place of this thread in which nothing is announced. None is there if all are in use, or the thread is about to end.
#[inline]
pub(super) fn free_place() -> Option<&'static Place> {
    OWN.try_with(|own| own.line().guards.iter().find(|place| place.is_free())).ok().flatten()
}

/// With a place that is this thread's during `work`, which must leave it cleared and must not come here again.
pub(super) fn in_passing<R>(work: impl FnOnce(&Place) -> R) -> R {
    if let Ok(line) = OWN.try_with(Own::line) {
        return work(&line.passing);
    }
    // The destructor of another thread-local runs, and the line is given back already.
    let line = Line::take();
    let result = work(&line.passing);
    line.leave();
    result
}

/// Shows the address of everything that is held. What was taken out of its slot before this, and is not shown, nobody holds
/// nor will.
pub(super) fn each_held(mut see: impl FnMut(usize)) {
    for line in lines() {
        for place in line.guards.iter().chain([&line.passing]) {
            // Either this comes after the announcement in the order of all sequentially consistent accesses, and finds it;
            // or the announcer's second look at the slot comes after the value was taken out of it, and finds that.
            let held = place.0.load(Ordering::SeqCst);
            if !held.is_null() {
                see(held.addr());
            }
        }
    }
}

impl Own {
    #[inline]
    fn line(&self) -> &'static Line {
        self.0.get().unwrap_or_else(|| self.take())
    }

    #[cold]
    fn take(&self) -> &'static Line {
        let line = Line::take();
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

impl Line {
    /// For a thread that has none: one that was left, or a new one.
    fn take() -> &'static Line {
        // Acquire: behind what the thread before did with its places.
        let left =
            |line: &&Line| !line.taken.load(Ordering::Relaxed) && !line.taken.swap(true, Ordering::Acquire);
        lines().find(left).unwrap_or_else(Line::add)
    }

    fn leave(&self) {
        self.taken.store(false, Ordering::Release);
    }

    fn add() -> &'static Line {
        let mut line = Box::new(Line {
            guards: std::array::from_fn(|_| Place::new()),
            passing: Place::new(),
            taken: AtomicBool::new(true),
            next: None,
        });
        let mut first = LINES.load(Ordering::SeqCst);
        loop {
            line.next = published(first);
            let added = Box::into_raw(line);
            // Sequentially consistent, as the announcements in it: who looks for those finds the line.
            match LINES.compare_exchange(first, added, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return published(added).expect("a box is not at null"),
                Err(other) => {
                    first = other;
                    // SAFETY: it came out of a box just now, and the exchange did not give it to anybody.
                    line = unsafe { Box::from_raw(added) };
                }
            }
        }
    }
}

fn lines() -> impl Iterator<Item = &'static Line> {
    std::iter::successors(published(LINES.load(Ordering::SeqCst)), |line| line.next)
}

/// What stands in `LINES`.
fn published(line: *mut Line) -> Option<&'static Line> {
    // SAFETY: only `Line::add` stores there, out of a box that is never freed, and writes the line no more but through its
    // atomics; the exchange that stored it and every load are sequentially consistent, so all of it is seen.
    unsafe { line.as_ref() }
}

/// The end of a thread, for a model: there, destructors of thread-locals may run when the model is over.
#[cfg(all(test, loom))]
pub(super) fn end_thread() {
    OWN.with(Own::leave);
}

/// How many there are.
#[cfg(test)]
pub(super) fn count_lines() -> usize {
    lines().count()
}
