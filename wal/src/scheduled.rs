//! Shuttle's locks, conditions and atomics with the faces of those that they stand for, for log and engine alike: with
//! `--cfg shuttle`, where threads are tasks of one thread and each of these operations is a place where another may go on.
//!
//! Invariants:
//! * a lock for reading is not given while somebody waits for it alone, as `parking_lot` does it: who takes one twice may
//!   stand still here, too;
//! * whether timers ring is decided once for a run ([`set_timers`]). Where they do, each rings at once, so that whatever may
//!   happen before and after it does; where they do not, who waits is woken by somebody, or shuttle says that all stand still;
//! * all accesses are sequentially consistent, whatever they ask for: weaker ones are loom's affair.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
use std::time::Duration;

pub use shuttle::future::block_on;
pub use shuttle::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};
pub use shuttle::{thread, thread_local};

std::thread_local! {
    /// Tasks of one run share their thread.
    static TIMERS: Cell<bool> = const { Cell::new(false) };
}

/// Whether a wait with a limit reaches it, in the runs of this thread from now on.
pub fn set_timers(ring: bool) {
    TIMERS.set(ring);
}

/// Here another task may go on.
pub fn turn() {
    // Shuttle knows no time: this is a switch and nothing else.
    thread::sleep(Duration::ZERO);
}

/// A lock.
#[derive(Debug, Default)]
pub struct Mutex<T>(shuttle::sync::Mutex<T>);

impl<T> Mutex<T> {
    /// A free lock around a value.
    pub fn new(value: T) -> Mutex<T> {
        Mutex(shuttle::sync::Mutex::new(value))
    }

    /// Waits for it. Who panics with it leaves the value to the next, as with `parking_lot`.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard { mutex: self, held: Some(self.hold()) }
    }

    fn hold(&self) -> shuttle::sync::MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A lock that is held. Its second part is there except while its thread waits for a condition.
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

/// A condition to wait for.
#[derive(Debug, Default)]
pub struct Condvar(shuttle::sync::Condvar);

/// Whether a wait reached its limit.
#[derive(Clone, Copy, Debug)]
pub struct TimedOut(bool);

impl TimedOut {
    /// Whether it did.
    pub fn timed_out(self) -> bool {
        self.0
    }
}

impl Condvar {
    /// For which nobody waits.
    pub fn new() -> Condvar {
        Condvar::default()
    }

    /// Lets the lock go until somebody notifies.
    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let held = guard.held.take().map(|held| self.0.wait(held).unwrap_or_else(PoisonError::into_inner));
        guard.held = held;
    }

    /// As [`Condvar::wait`], or until a timer rings, see the [module](self).
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

    /// Wakes one.
    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    /// Wakes all.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// A lock that several may hold for reading. They come by a door, which is shut as soon as somebody wants it alone.
#[derive(Debug, Default)]
pub struct RwLock<T> {
    /// How many want it alone, or have it so.
    alone: Mutex<usize>,
    opened: Condvar,
    value: shuttle::sync::RwLock<T>,
}

impl<T> RwLock<T> {
    /// A free lock around a value.
    pub fn new(value: T) -> RwLock<T> {
        RwLock { alone: Mutex::new(0), opened: Condvar::new(), value: shuttle::sync::RwLock::new(value) }
    }

    /// Waits until nobody has it alone, or wants it so.
    pub fn read(&self) -> shuttle::sync::RwLockReadGuard<'_, T> {
        let mut alone = self.alone.lock();
        while *alone > 0 {
            self.opened.wait(&mut alone);
        }
        drop(alone);
        self.value.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody else has it.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        *self.alone.lock() += 1;
        let held = self.value.write().unwrap_or_else(PoisonError::into_inner);
        RwLockWriteGuard { lock: self, held: Some(held) }
    }
}

/// A lock that is held alone. Its second part is there until it is dropped.
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
        *self.lock.alone.lock() -= 1;
        self.lock.opened.notify_all();
    }
}

/// Stands for the one of the machine, whose word and wake-ups are the kernel's affair: here a lock and a condition.
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
