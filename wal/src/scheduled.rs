//! Shuttle's locks, conditions and atomics behind the interface of the real ones, for log and engine alike. With
//! `--cfg shuttle`, threads are tasks of one thread, and shuttle may switch tasks at each of these operations.
//!
//! Invariants:
//! * No read lock is granted while a writer waits, as in `parking_lot`. So a thread that takes a read lock twice can
//!   deadlock here too.
//! * Whether timeouts expire is set once for a run ([`set_timers`]). If they do, each expires at once, so a run can show
//!   any order of the timeout and other events. If they do not, another task wakes each sleeper, or shuttle reports a
//!   deadlock.
//! * All accesses are sequentially consistent, also those that ask for less. The loom models check the weaker orders.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::sync::{PoisonError, TryLockError};
use std::time::Duration;

pub use shuttle::future::block_on;
pub use shuttle::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};
pub use shuttle::{thread, thread_local};

std::thread_local! {
    /// Whether timeouts expire. The tasks of a run share one thread, and so this value.
    static TIMERS: Cell<bool> = const { Cell::new(false) };
}

/// Sets whether waits with a limit time out, for later runs of this thread.
pub fn set_timers(ring: bool) {
    TIMERS.set(ring);
}

/// A point at which shuttle may switch to another task.
pub fn turn() {
    // Shuttle has no clock: a sleep only switches tasks.
    thread::sleep(Duration::ZERO);
}

/// Shuttle's mutex with the interface of `parking_lot`.
#[derive(Debug, Default)]
pub struct Mutex<T>(shuttle::sync::Mutex<T>);

impl<T> Mutex<T> {
    /// A free lock around a value.
    pub fn new(value: T) -> Mutex<T> {
        Mutex(shuttle::sync::Mutex::new(value))
    }

    /// Waits for the lock. A panic of its holder does not poison it, as in `parking_lot`.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard { mutex: self, held: Some(self.hold()) }
    }

    /// The lock, if it is free.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let held = match self.0.try_lock() {
            Ok(held) => held,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(MutexGuard { mutex: self, held: Some(held) })
    }

    fn hold(&self) -> shuttle::sync::MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A held lock. `held` is `None` only while its thread waits for a condition.
#[derive(Debug)]
pub struct MutexGuard<'a, T> {
    mutex: &'a Mutex<T>,
    held: Option<shuttle::sync::MutexGuard<'a, T>>,
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.held.as_ref().expect("its thread does not wait")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.held.as_mut().expect("its thread does not wait")
    }
}

/// Shuttle's condition variable with the interface of `parking_lot`.
#[derive(Debug, Default)]
pub struct Condvar(shuttle::sync::Condvar);

/// Whether a wait timed out.
#[derive(Clone, Copy, Debug)]
pub struct TimedOut(bool);

impl TimedOut {
    /// Whether the wait timed out.
    pub fn timed_out(self) -> bool {
        self.0
    }
}

impl Condvar {
    /// A condition variable without waiters.
    pub fn new() -> Condvar {
        Condvar::default()
    }

    /// Releases the lock, sleeps until notified, and takes the lock again.
    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let held = guard.held.take().map(|held| self.0.wait(held).unwrap_or_else(PoisonError::into_inner));
        guard.held = held;
    }

    /// Waits, or times out at once: the [module](self) says when.
    pub fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _limit: Duration) -> TimedOut {
        let ring = TIMERS.get();
        if ring {
            drop(guard.held.take());
            thread::yield_now();
            guard.held = Some(guard.mutex.hold());
        } else {
            self.wait(guard);
        }
        TimedOut(ring)
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

/// A reader-writer lock. A waiting writer keeps new readers out.
#[derive(Debug, Default)]
pub struct RwLock<T> {
    /// Writers that hold the lock or wait for it.
    writers: Mutex<usize>,
    no_writer: Condvar,
    value: shuttle::sync::RwLock<T>,
}

impl<T> RwLock<T> {
    /// A free lock around a value.
    pub fn new(value: T) -> RwLock<T> {
        RwLock { writers: Mutex::new(0), no_writer: Condvar::new(), value: shuttle::sync::RwLock::new(value) }
    }

    /// Waits until no writer holds the lock or waits for it.
    pub fn read(&self) -> shuttle::sync::RwLockReadGuard<'_, T> {
        let mut writers = self.writers.lock();
        while *writers > 0 {
            self.no_writer.wait(&mut writers);
        }
        drop(writers);
        self.value.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no other thread holds the lock.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        *self.writers.lock() += 1;
        let held = self.value.write().unwrap_or_else(PoisonError::into_inner);
        RwLockWriteGuard { lock: self, held: Some(held) }
    }
}

/// A lock held for writing. `held` is `None` only during the drop.
#[derive(Debug)]
pub struct RwLockWriteGuard<'a, T> {
    lock: &'a RwLock<T>,
    held: Option<shuttle::sync::RwLockWriteGuard<'a, T>>,
}

impl<T> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.held.as_ref().expect("it is not dropped")
    }
}

impl<T> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.held.as_mut().expect("it is not dropped")
    }
}

impl<T> Drop for RwLockWriteGuard<'_, T> {
    fn drop(&mut self) {
        self.held = None;
        *self.lock.writers.lock() -= 1;
        self.lock.no_writer.notify_all();
    }
}

/// Models the announcement on a futex by a lock and a condition variable.
#[derive(Debug, Default)]
pub(crate) struct Announcement {
    word: Mutex<u32>,
    changed: Condvar,
}

impl Announcement {
    pub(crate) fn new() -> Announcement {
        Announcement::default()
    }

    pub(crate) fn heard(&self) -> u32 {
        *self.word.lock()
    }

    pub(crate) fn wait(&self, heard: u32) {
        let mut word = self.word.lock();
        while *word == heard {
            self.changed.wait(&mut word);
        }
    }

    pub(crate) fn announce(&self) {
        *self.word.lock() += 1;
        self.changed.notify_all();
    }
}
