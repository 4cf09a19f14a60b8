//! Atomics of the memtable, in one place so that a model checker can be put in their stead: with `--cfg loom` they are
//! loom's (`just loom`).
//!
//! Invariant: `memtable/{latch,node,tree,filter}.rs` and the links of `memtable/arena.rs` take their atomics from here.
//! What only counts or hands out memory stays as it is: no model has to look at it.

#[cfg(loom)]
mod model;

pub(crate) use std::sync::atomic::Ordering;

#[cfg(loom)]
pub(crate) use self::model::{AtomicU32, AtomicU64, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, fence};

/// How often a thread looks again before it lets others run: whoever it waits for may have lost its core.
#[cfg(not(loom))]
const SPINS: u32 = 64;

/// Waits a moment for another thread, the `spins`-th time in a row.
pub(crate) fn pause(spins: &mut u32) {
    *spins += 1;
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(not(loom))]
    if spins.is_multiple_of(SPINS) {
        std::thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

/// Stands beside plain memory. In a model it notices a reader who is not ordered after the writer; else it is nothing.
#[derive(Debug)]
pub(crate) struct Witness(#[cfg(loom)] AtomicU32);

impl Witness {
    pub(crate) fn new() -> Witness {
        Witness(
            #[cfg(loom)]
            AtomicU32::new(0),
        )
    }

    /// The memory was written.
    #[cfg_attr(not(loom), expect(clippy::unused_self, reason = "only the models look"))]
    pub(crate) fn written(&self) {
        #[cfg(loom)]
        self.0.store(1, Ordering::Relaxed);
    }

    /// The memory is about to be read.
    #[cfg_attr(not(loom), expect(clippy::unused_self, reason = "only the models look"))]
    pub(crate) fn check(&self) {
        #[cfg(loom)]
        assert_eq!(self.0.load(Ordering::Relaxed), 1, "a reader overtook the writer");
    }
}
