//! Locks, condition variables, atomics and threads of this crate. They stand in one place so that a model checker can
//! replace them: with `--cfg loom` they are loom's (`just loom`), with `--cfg shuttle` shuttle's (`just schedules`).
//!
//! Invariant: no other file of this crate names `parking_lot`, `std::sync` or `std::thread`.

#[cfg(not(any(loom, shuttle)))]
mod announcement;
#[cfg(loom)]
pub(crate) mod model;

/// Not modelled: nothing here depends on when the last owner is dropped.
pub(crate) use std::sync::Arc;
/// A counter for reports. No decision depends on it, so it is not modelled.
pub(crate) use std::sync::atomic::AtomicU64 as Statistic;
pub(crate) use std::sync::atomic::Ordering;

#[cfg(loom)]
pub(crate) use self::model::{
    Announcement, AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Condvar, Mutex, MutexGuard,
};
#[cfg(loom)]
pub(crate) use loom::thread;

#[cfg(shuttle)]
pub(crate) use crate::scheduled::{
    Announcement, AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Condvar, Mutex, MutexGuard, thread,
};

#[cfg(not(any(loom, shuttle)))]
pub(crate) use self::announcement::Announcement;
#[cfg(not(any(loom, shuttle)))]
pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};
#[cfg(not(any(loom, shuttle)))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};
#[cfg(not(any(loom, shuttle)))]
pub(crate) use std::thread;
