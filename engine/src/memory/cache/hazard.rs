//! Slots that own one counted value each, and guards that protect a value without a count: hazard pointers.
//!
//! ```text
//!   load:   load the slot -> announce the value -> load it again: the same, so it is held; else announce the other one
//!   drop:   clear the announcement
//!   free:   take the value out of its slot -> read all hazard slots -> not announced, so drop its count
//! ```
//!
//! This is correct because the announcement, the second load, the removal from the slot and the reading of the hazard slots
//! are sequentially consistent. In their order either the announcement precedes the reading, which finds it; or the second
//! load follows the removal, and does not find the value. A value may be freed between the two loads, and another one may be
//! allocated at its address. The guard then protects the new value, which is the one in the slot at the second load.
//!
//! A guard delays the freeing of its own value only, however long it is kept; an epoch would delay all. It costs one exchange
//! in a cache line of its own thread, and a store. Rejected: slots of `arc-swap`, where each swap settles the debts of all
//! other threads. With 32 threads at misses that took 7 % of their time. Here one reading of the hazard slots serves many
//! values.
//!
//! Invariants: a slot owns one count of its value; a [`Taken`] value owns that count until [`free_unheld`] finds that it is not
//! held; a [`Protected`] value either is announced in a hazard slot of its own, or owns a count. A value that is never handed to
//! [`free_unheld`] or [`leave_to_others`] is never freed.
#![expect(unsafe_code, reason = "hazard pointers protect values instead of counts")]

use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use triomphe::ThinArc;

use super::hazard_slots::{self, HazardSlot};
use crate::base::sync::Ordering;
use crate::base::sync::cached::AtomicPtr;

/// A counted pointer of one word.
///
/// # Safety
/// * Two pointers that are equal as raw pointers share value and count, and still do after a move.
/// * Any number of pointers may be made from a raw pointer that [`Counted::into_raw`] returned and whose count was not
///   dropped, if all but one of them are never dropped. Each may be used as long as the count exists.
pub(crate) unsafe trait Counted: Clone + Send + Sync + 'static {
    /// The raw pointer, which now owns the count.
    fn into_raw(self) -> NonNull<()>;

    /// The address that [`Counted::into_raw`] would return.
    fn address(&self) -> usize;

    /// # Safety
    /// The pointer is from [`Counted::into_raw`], its count still exists, and only one of all pointers made from it is
    /// dropped.
    unsafe fn from_raw(raw: NonNull<()>) -> Self;
}

// SAFETY: the pointer is that to the allocation, which holds the count; a value is this pointer and nothing else.
unsafe impl<H: Send + Sync + 'static, T: Send + Sync + 'static> Counted for ThinArc<H, T> {
    fn into_raw(self) -> NonNull<()> {
        NonNull::new(ThinArc::into_raw(self).cast_mut()).expect("an allocation is not at null").cast()
    }

    fn address(&self) -> usize {
        self.as_ptr().addr()
    }

    #[inline]
    unsafe fn from_raw(raw: NonNull<()>) -> ThinArc<H, T> {
        // SAFETY: the caller's promise.
        unsafe { ThinArc::from_raw(raw.cast().as_ptr()) }
    }
}

// SAFETY: the pointer is that to the value, which is behind its counts, so values without bytes have different addresses,
// too; an `Arc` is this pointer and nothing else.
unsafe impl<T: Send + Sync + 'static> Counted for Arc<T> {
    fn into_raw(self) -> NonNull<()> {
        NonNull::new(Arc::into_raw(self).cast_mut()).expect("an allocation is not at null").cast()
    }

    fn address(&self) -> usize {
        Arc::as_ptr(self).addr()
    }

    #[inline]
    unsafe fn from_raw(raw: NonNull<()>) -> Arc<T> {
        // SAFETY: the caller's promise.
        unsafe { Arc::from_raw(raw.cast().as_ptr()) }
    }
}

/// A place for one value. Any number of threads may load it. Its users make sure that one thread at a time fills or empties it.
pub(crate) struct Slot<V: Counted> {
    value: AtomicPtr<()>,
    owns: PhantomData<V>,
}

/// A protected value that a load found, or null. Any thread may drop it.
pub(crate) struct Protected<V: Counted> {
    /// Dropped only if it is not announced.
    value: ManuallyDrop<Option<V>>,
    announced: Option<&'static HazardSlot>,
}

/// A value that was taken out of its slot and that other threads may still hold.
#[must_use = "a dropped value is never freed"]
pub(crate) struct Taken<V: Counted> {
    value: ManuallyDrop<V>,
    charge: u64,
}

impl<V: Counted> Slot<V> {
    /// An empty slot.
    pub(crate) fn empty() -> Slot<V> {
        Slot { value: AtomicPtr::new(ptr::null_mut()), owns: PhantomData }
    }

    /// Whether there is a value. This may change at any moment, except for the thread that fills and empties it.
    pub(crate) fn is_some(&self) -> bool {
        !self.value.load(Ordering::Relaxed).is_null()
    }

    /// Its value, protected.
    #[inline]
    pub(crate) fn load(&self) -> Protected<V> {
        // Relaxed: a value is loaded again below, and null is the answer.
        let Some(seen) = NonNull::new(self.value.load(Ordering::Relaxed)) else { return Protected::NOTHING };
        let Some(slot) = hazard_slots::free_slot() else { return self.load_counted(seen) };
        let Some(found) = self.announce(slot, seen) else { return Protected::NOTHING };
        // SAFETY: the pointer is from `into_raw` in `fill`, and its count exists: the slot owned it when it was announced, and
        // `free_unheld` drops it only when it is not announced. This value is never dropped.
        let value = unsafe { V::from_raw(found) };
        Protected { value: ManuallyDrop::new(Some(value)), announced: Some(slot) }
    }

    /// The value with a count of its own, for a thread whose hazard slots are all in use, or which is about to end.
    #[cold]
    fn load_counted(&self, seen: NonNull<()>) -> Protected<V> {
        let counted = hazard_slots::in_passing(|slot| {
            let found = self.announce(slot, seen)?;
            // SAFETY: as in `load`. It is announced until its second count exists, and is never dropped.
            let value = ManuallyDrop::new(unsafe { V::from_raw(found) });
            let counted = V::clone(&value);
            slot.clear();
            Some(counted)
        });
        Protected { value: ManuallyDrop::new(counted), announced: None }
    }

    /// Announces the value, which was `seen` at the first load. If the slot is empty now, nothing is announced.
    #[inline]
    fn announce(&self, slot: &HazardSlot, mut seen: NonNull<()>) -> Option<NonNull<()>> {
        loop {
            slot.announce(seen);
            match NonNull::new(self.value.load(Ordering::SeqCst)) {
                Some(found) if found == seen => return Some(found),
                Some(other) => seen = other,
                None => {
                    slot.clear();
                    return None;
                }
            }
        }
    }

    /// Puts a value into an empty slot.
    pub(crate) fn fill(&self, value: V) {
        // Publishes the value to the threads that load it.
        let before = self.value.swap(value.into_raw().as_ptr(), Ordering::SeqCst);
        assert!(before.is_null(), "only an empty slot is filled");
    }

    /// Takes the value out, if there is one. `charge` is its size in the budget, in bytes.
    pub(crate) fn take(&self, charge: u64) -> Option<Taken<V>> {
        let taken = NonNull::new(self.value.swap(ptr::null_mut(), Ordering::SeqCst))?;
        // SAFETY: the pointer is from `into_raw` in `fill`, and this value takes over the slot's count. The values that `load`
        // makes of it are never dropped.
        Some(Taken { value: ManuallyDrop::new(unsafe { V::from_raw(taken) }), charge })
    }
}

impl<V: Counted> Drop for Slot<V> {
    fn drop(&mut self) {
        if self.is_some() {
            leave_to_others(self.take(0).into_iter().collect());
        }
    }
}

impl<V: Counted> Protected<V> {
    const NOTHING: Protected<V> = Protected { value: ManuallyDrop::new(None), announced: None };

    /// The same value with a count of its own.
    pub(crate) fn into_inner(mut held: Protected<V>) -> Option<V> {
        // It is announced until the count exists.
        if held.announced.is_some() { Option::clone(&held) } else { held.value.take() }
    }
}

impl<V: Counted> Deref for Protected<V> {
    type Target = Option<V>;

    #[inline]
    fn deref(&self) -> &Option<V> {
        &self.value
    }
}

impl<V: Counted> Drop for Protected<V> {
    #[inline]
    fn drop(&mut self) {
        match self.announced {
            Some(slot) => slot.clear(),
            // SAFETY: it has a count of its own or is `None`, and it is not used after this destructor.
            None => unsafe { ManuallyDrop::drop(&mut self.value) },
        }
    }
}

impl<V: Counted> Taken<V> {
    /// Its size in the budget, in bytes.
    pub(crate) fn charge(&self) -> u64 {
        self.charge
    }

    fn free(self) {
        drop(ManuallyDrop::into_inner(self.value));
    }
}

/// Drops the counts of values that are not held. The others stay in the list.
pub(crate) fn free_unheld<V: Counted>(taken: &mut Vec<Taken<V>>) {
    let held = bring_held_forward(taken, |taken| taken.value.address());
    taken.drain(held..).for_each(Taken::free);
    if ORPHANS.count.load(Ordering::Relaxed) > 0 {
        let mut orphans = std::mem::take(&mut *ORPHANS.lock());
        let held = bring_held_forward(&mut orphans, |orphan| orphan.address);
        ORPHANS.count.fetch_sub(orphans.len() - held, Ordering::Relaxed);
        drop(orphans.split_off(held));
        ORPHANS.lock().append(&mut orphans);
    }
}

/// Drops the counts of values that are not held. The others become orphans, which a later call for any cache frees.
pub(crate) fn leave_to_others<V: Counted>(mut taken: Vec<Taken<V>>) {
    free_unheld(&mut taken);
    if taken.is_empty() {
        return;
    }
    ORPHANS.count.fetch_add(taken.len(), Ordering::Relaxed);
    ORPHANS.lock().extend(taken.into_iter().map(|taken| {
        let value = ManuallyDrop::into_inner(taken.value);
        Orphan { address: value.address(), value: Box::new(value) }
    }));
}

/// Moves held items to the front and returns their number.
fn bring_held_forward<T>(items: &mut [T], address: impl Fn(&T) -> usize) -> usize {
    let mut held = 0;
    hazard_slots::each_held(|announced| {
        while let Some(at) = items[held..].iter().position(|item| address(item) == announced) {
            items.swap(held, held + at);
            held += 1;
        }
    });
    held
}

/// A value that was held when its cache or its slot was dropped.
struct Orphan {
    address: usize,
    /// Its drop drops the count.
    #[expect(dead_code, reason = "only dropped")]
    value: Box<dyn Send>,
}

/// All orphans. This crate makes none: the holder of a block holds its segment, and the segment holds the cache.
struct Orphans {
    /// Avoids the lock while there are no orphans.
    count: AtomicUsize,
    list: Mutex<Vec<Orphan>>,
}

static ORPHANS: Orphans = Orphans { count: AtomicUsize::new(0), list: Mutex::new(Vec::new()) };

impl Orphans {
    fn lock(&self) -> MutexGuard<'_, Vec<Orphan>> {
        // No value is dropped while the lock is held.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<V: Counted> fmt::Debug for Slot<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({})", if self.is_some() { "a value" } else { "nothing" })
    }
}

impl<V: Counted + fmt::Debug> fmt::Debug for Protected<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Protected").field(&**self).finish()
    }
}

impl<V: Counted> fmt::Debug for Taken<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Taken({} bytes)", self.charge)
    }
}

#[cfg(all(test, loom))]
mod models;

#[cfg(test)]
mod tests;
