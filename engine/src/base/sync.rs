//! Locks, conditions, atomics and threads of this crate, in one file, so that a model checker can replace them.
//!
//! The types at the root are for the memtable: with `--cfg loom` they are loom's (`just loom`), which orders each access.
//! [`shared`] is for all other code: with `--cfg shuttle` its types are shuttle's (`just schedules`), which runs the whole
//! store and takes each operation of the memtable as one step.
//!
//! Invariants: `memtable/{latch,node,tree,filter}.rs`, the links of `memtable/arena.rs` and `cache/{hazard,hazard_slots}.rs`
//! take their atomics from here; besides this file only files of the memtable name `parking_lot`. Counters and the marks of the
//! cache are plain atomics: the correctness of no thread depends on them.

#[cfg(loom)]
mod model;

pub(crate) use std::sync::atomic::Ordering;

#[cfg(loom)]
pub(crate) use self::model::{AtomicU32, AtomicU64, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, fence};

/// Number of tries before a thread yields: the thread that it waits for may have lost its core.
#[cfg(not(loom))]
const SPINS: u32 = 64;

/// Waits briefly for another thread. `spins` counts the calls in a row.
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

/// A companion of plain memory. In a model it detects a reader that is not ordered after the writer; otherwise it is empty.
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

    pub(crate) use aio::block_on;
    pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

    static THREADS: AtomicUsize = AtomicUsize::new(0);

    thread_local! {
        static NUMBER: usize = THREADS.fetch_add(1, Ordering::Relaxed);
    }

    /// A point at which a schedule may switch to another thread, next to an access that shuttle does not see.
    #[inline]
    pub(crate) fn turn() {}

    /// The number of this thread: threads are counted from 0, in the order of their first call.
    pub(crate) fn thread_number() -> usize {
        NUMBER.with(|number| *number)
    }
}

/// See the [module](self).
#[cfg(shuttle)]
pub(crate) mod shared {
    pub(crate) use wal::scheduled::{
        AtomicBool, AtomicU64, AtomicUsize, Condvar, Mutex, MutexGuard, RwLock, block_on, thread,
        thread_local, turn,
    };

    /// The number of this task.
    pub(crate) fn thread_number() -> usize {
        thread::current().id().into()
    }
}

/// Types for the cache: loom models these accesses, too; for shuttle a look-up is one step.
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
