//! Loom's atomics with the faces of the standard library's, and a place of the cache.
//!
//! Loom tries another order of two accesses if they concern the same atomic and one of them writes. Of an atomic it
//! remembers the last access only, so when a thread loads and then writes, the load of another thread before that is
//! forgotten, and whatever would follow from the other order is not tried: just what an optimistic reader does. So here
//! every access is preceded by one to a common atomic, by an operation that both reads and writes: then the order of any
//! two accesses matters to loom. It is relaxed, and so orders no memory.

use loom::sync::atomic::Ordering;
pub(crate) use loom::sync::atomic::fence;

loom::lazy_static! {
    static ref TURN: loom::sync::atomic::AtomicUsize = loom::sync::atomic::AtomicUsize::new(0);
}

/// Here any other thread may go on first.
fn turn() {
    TURN.fetch_add(1, Ordering::Relaxed);
}

macro_rules! atomic {
    ($name:ident, $value:ty) => {
        #[derive(Debug)]
        pub(crate) struct $name(loom::sync::atomic::$name);

        impl $name {
            pub(crate) fn new(value: $value) -> $name {
                $name(loom::sync::atomic::$name::new(value))
            }

            pub(crate) fn load(&self, order: Ordering) -> $value {
                turn();
                self.0.load(order)
            }

            pub(crate) fn store(&self, value: $value, order: Ordering) {
                turn();
                self.0.store(value, order);
            }
        }
    };
}

atomic!(AtomicU32, u32);
atomic!(AtomicU64, u64);

impl AtomicU32 {
    pub(crate) fn fetch_add(&self, more: u32, order: Ordering) -> u32 {
        turn();
        self.0.fetch_add(more, order)
    }
}

impl AtomicU64 {
    pub(crate) fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
        turn();
        self.0.fetch_or(bits, order)
    }

    pub(crate) fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        turn();
        self.0.compare_exchange(current, new, success, failure)
    }
}

/// Stands for a place of `arc-swap`: a value that any thread may load, store and swap. That those three are one step each is
/// that crate's affair; what follows from their order is looked at here.
pub(crate) struct Slot<T>(loom::sync::Mutex<T>);

impl<T: Clone> Slot<T> {
    pub(crate) fn new(value: T) -> Slot<T> {
        Slot(loom::sync::Mutex::new(value))
    }

    pub(crate) fn load(&self) -> SlotGuard<T> {
        SlotGuard(self.load_full())
    }

    pub(crate) fn load_full(&self) -> T {
        self.0.lock().expect("a panic ends the model").clone()
    }

    pub(crate) fn store(&self, value: T) {
        self.swap(value);
    }

    pub(crate) fn swap(&self, value: T) -> T {
        std::mem::replace(&mut *self.0.lock().expect("a panic ends the model"), value)
    }
}

/// What was loaded.
#[derive(Debug)]
pub(crate) struct SlotGuard<T>(T);

impl<T> SlotGuard<T> {
    pub(crate) fn into_inner(guard: SlotGuard<T>) -> T {
        guard.0
    }
}

impl<T> std::ops::Deref for SlotGuard<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
