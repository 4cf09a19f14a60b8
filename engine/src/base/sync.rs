//! Locks, conditions, atomics and threads of this crate, in one place so that a model checker can be put in their stead.
//!
//! What stands here itself is the memtable's: with `--cfg loom` loom's (`just loom`), which looks at each access. [`shared`]
//! is everybody else's: with `--cfg shuttle` shuttle's (`just schedules`), which runs the whole store and takes each
//! operation of the memtable as one step.
//!
//! Invariants: `memtable/{latch,node,tree,filter}.rs`, the links of `memtable/arena.rs` and `cache/{hazard,places}.rs` take
//! their atomics from here; no other file but those of the memtable names `parking_lot`. What only counts, and the marks of
//! the cache, stay as they are: nothing is decided by them on which another thread relies.

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

/// See the [module](self).
#[cfg(not(shuttle))]
pub(crate) mod shared {
    use std::sync::atomic::Ordering;
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
    pub(crate) use std::{thread, thread_local};

    pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

    static THREADS: AtomicUsize = AtomicUsize::new(0);

    thread_local! {
        static NUMBER: usize = THREADS.fetch_add(1, Ordering::Relaxed);
    }

    /// Where a schedule may go on with another thread, beside an access that it does not see.
    #[inline]
    pub(crate) fn turn() {}

    /// Of this thread, counted from 0 as threads come to ask.
    pub(crate) fn thread_number() -> usize {
        NUMBER.with(|number| *number)
    }
}

/// See the [module](self).
#[cfg(shuttle)]
pub(crate) mod shared {
    pub(crate) use wal::scheduled::{
        AtomicBool, AtomicU64, AtomicUsize, Condvar, Mutex, MutexGuard, RwLock, thread, thread_local, turn,
    };

    /// Of this task.
    pub(crate) fn thread_number() -> usize {
        thread::current().id().into()
    }
}

/// The cache's: `just loom` looks at those, too; to a schedule a look-up is one step.
pub(crate) mod cached {
    #[cfg(not(loom))]
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicPtr};

    #[cfg(loom)]
    pub(crate) use super::model::{AtomicBool, AtomicPtr};
    #[cfg(not(loom))]
    pub(crate) use super::shared::{Condvar, Mutex};
    #[cfg(loom)]
    pub(crate) use wal::modelled::{Condvar, Mutex};
}
