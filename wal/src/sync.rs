//! Locks, condition variables and atomics of this crate, in one place so that a model checker can be put in their
//! stead.
//!
//! Invariant: no other file of this crate names `parking_lot` or `std::sync`.

pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};
pub(crate) use std::sync::Arc;
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
