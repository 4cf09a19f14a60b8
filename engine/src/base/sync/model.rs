//! Loom's atomics with the interface of the standard library's.
//!
//! Loom tries both orders of two accesses if they use the same atomic and one of them writes. It remembers only the last
//! access of an atomic. So when a thread loads and then writes, loom forgets an earlier load of another thread and does not
//! try the other order, which is the one that matters for an optimistic reader. Here every access is therefore preceded by a
//! read-modify-write of one common atomic, so that loom tries both orders of any two accesses. It is relaxed and orders no
//! memory.

use loom::sync::atomic::Ordering;
pub(crate) use loom::sync::atomic::fence;

loom::lazy_static! {
    static ref TURN: loom::sync::atomic::AtomicUsize = loom::sync::atomic::AtomicUsize::new(0);
}

/// A point at which any other thread may run first.
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

atomic!(AtomicBool, bool);
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

impl AtomicBool {
    pub(crate) fn swap(&self, value: bool, order: Ordering) -> bool {
        turn();
        self.0.swap(value, order)
    }
}

/// Loom treats a sequentially consistent access like acquire and release, and would find executions that no machine has. So
/// here, as in the log's models, each sequentially consistent exchange is followed by a sequentially consistent fence, which
/// loom does model.
#[derive(Debug)]
pub(crate) struct AtomicPtr<T>(loom::sync::atomic::AtomicPtr<T>);

impl<T> AtomicPtr<T> {
    pub(crate) fn new(value: *mut T) -> AtomicPtr<T> {
        AtomicPtr(loom::sync::atomic::AtomicPtr::new(value))
    }

    pub(crate) fn load(&self, order: Ordering) -> *mut T {
        turn();
        self.0.load(order)
    }

    pub(crate) fn store(&self, value: *mut T, order: Ordering) {
        assert_ne!(order, Ordering::SeqCst, "it would need the fence");
        turn();
        self.0.store(value, order);
    }

    pub(crate) fn swap(&self, value: *mut T, order: Ordering) -> *mut T {
        turn();
        let before = self.0.swap(value, order);
        fence_after(order);
        before
    }

    pub(crate) fn compare_exchange(
        &self,
        current: *mut T,
        new: *mut T,
        success: Ordering,
        failure: Ordering,
    ) -> Result<*mut T, *mut T> {
        turn();
        let outcome = self.0.compare_exchange(current, new, success, failure);
        fence_after(success);
        outcome
    }
}

fn fence_after(order: Ordering) {
    if order == Ordering::SeqCst {
        fence(Ordering::SeqCst);
    }
}
