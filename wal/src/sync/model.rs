//! Loom's locks and atomics behind the interface of the real ones.
//!
//! Invariant: a sequentially consistent access is sequentially consistent in the model too. Loom treats it as acquire and
//! release only, and would find executions that no machine has. So a sequentially consistent fence, which loom does
//! model, follows each store and each read-modify-write; none follows a load, as on x86. The bytes of the ring and of the
//! simulated disk are ordinary memory: the models see their values, but not their order.
//!
//! Loom tries both orders of two accesses if they concern the same atomic and one of them writes. It remembers only the
//! last access of each atomic. Where a thread loads and then writes, an earlier load of another thread is forgotten, and
//! loom does not try the executions in which the two swap. So a read-modify-write of one common atomic precedes every
//! access: then loom tries both orders of any two accesses. It is relaxed and orders no memory.
//!
//! No timeout expires: another thread wakes each sleeper, or the model deadlocks and loom reports it.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use loom::sync::atomic::{Ordering, fence};

loom::lazy_static! {
    static ref TURN: loom::sync::atomic::AtomicUsize = loom::sync::atomic::AtomicUsize::new(0);
}

/// A point at which loom may switch to any other thread.
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

            #[allow(dead_code, reason = "not for every type")]
            pub(crate) fn store(&self, value: $value, order: Ordering) {
                turn();
                self.0.store(value, order);
                fence_after(order);
            }

            #[allow(dead_code, reason = "not for every type")]
            pub(crate) fn swap(&self, value: $value, order: Ordering) -> $value {
                turn();
                let before = self.0.swap(value, order);
                fence_after(order);
                before
            }

            #[allow(dead_code, reason = "not for every type")]
            pub(crate) fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                turn();
                let outcome = self.0.compare_exchange(current, new, success, failure);
                fence_after(success);
                outcome
            }

            /// Never fails spuriously, so that models end.
            #[allow(dead_code, reason = "not for every type")]
            pub(crate) fn compare_exchange_weak(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.compare_exchange(current, new, success, failure)
            }
        }
    };
}

macro_rules! number {
    ($name:ident, $value:ty) => {
        impl $name {
            #[allow(dead_code, reason = "not for every type")]
            pub(crate) fn fetch_add(&self, more: $value, order: Ordering) -> $value {
                turn();
                let before = self.0.fetch_add(more, order);
                fence_after(order);
                before
            }

            #[allow(dead_code, reason = "not for every type")]
            pub(crate) fn fetch_sub(&self, less: $value, order: Ordering) -> $value {
                turn();
                let before = self.0.fetch_sub(less, order);
                fence_after(order);
                before
            }
        }
    };
}

atomic!(AtomicBool, bool);
atomic!(AtomicU32, u32);
atomic!(AtomicU64, u64);
atomic!(AtomicUsize, usize);
number!(AtomicU64, u64);
number!(AtomicUsize, usize);

fn fence_after(order: Ordering) {
    if order == Ordering::SeqCst {
        fence(Ordering::SeqCst);
    }
}

/// Loom's mutex with the interface of `parking_lot`.
#[derive(Debug)]
pub struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    /// A free lock around `value`.
    pub fn new(value: T) -> Mutex<T> {
        Mutex(loom::sync::Mutex::new(value))
    }

    /// Waits for the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(Some(self.0.lock().expect("a panic ends the model")))
    }

    /// The lock, if it is free.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock().ok().map(|held| MutexGuard(Some(held)))
    }
}

/// A held lock. `None` only while its thread waits for a condition.
#[derive(Debug)]
pub struct MutexGuard<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("its thread does not wait")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("its thread does not wait")
    }
}

/// Loom's condition variable with the interface of `parking_lot`.
#[derive(Debug)]
pub struct Condvar(loom::sync::Condvar);

/// The result of a wait with a limit, which never expires here.
#[derive(Debug)]
pub struct Woken;

impl Woken {
    /// Never: the models have no clock.
    pub fn timed_out(&self) -> bool {
        false
    }
}

impl Condvar {
    /// A condition variable without waiters.
    pub fn new() -> Condvar {
        Condvar(loom::sync::Condvar::new())
    }

    /// Releases the lock, sleeps until notified, and takes the lock again.
    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let held = guard.0.take().expect("its thread does not wait");
        guard.0 = Some(self.0.wait(held).expect("a panic ends the model"));
    }

    /// Ignores the limit: same as [`Condvar::wait`].
    pub fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _timeout: Duration) -> Woken {
        self.wait(guard);
        Woken
    }

    /// Wakes one waiter.
    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    /// Wakes all waiters.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// Models the announcement on a futex by a lock and a condition variable.
#[derive(Debug)]
pub(crate) struct Announcement {
    word: loom::sync::Mutex<u32>,
    changed: loom::sync::Condvar,
}

impl Announcement {
    pub(crate) fn new() -> Announcement {
        Announcement { word: loom::sync::Mutex::new(0), changed: loom::sync::Condvar::new() }
    }

    pub(crate) fn heard(&self) -> u32 {
        *self.word.lock().expect("a panic ends the model")
    }

    pub(crate) fn wait(&self, heard: u32) {
        let mut word = self.word.lock().expect("a panic ends the model");
        while *word == heard {
            word = self.changed.wait(word).expect("a panic ends the model");
        }
    }

    pub(crate) fn announce(&self) {
        *self.word.lock().expect("a panic ends the model") += 1;
        self.changed.notify_all();
    }
}
