//! Slots that own a counted value each, and guards that keep a value without counting: hazard pointers.
//!
//! ```text
//!   load:   look at the slot -> announce what it has -> look again: still there, so it is held; else announce the other
//!   let go: clear the announcement
//!   free:   take the value out of its slot -> look through all announcements (`places`) -> not there, so drop its count
//! ```
//!
//! Why this is right: the announcement, the second look, the taking out and the looking through are sequentially consistent.
//! In their order either the announcement is before the looking through, which finds it; or the second look is after the
//! taking out, and does not find the value. A value that was freed and another that came to its address are not told
//! apart between the two looks, and need not be: who holds the address holds what stands in the slot at the second look.
//!
//! A guard delays the freeing of its own value and of nothing else, however long it is kept, which an epoch would not do; it
//! costs one exchange in a line of memory of its own thread, and a store. Slots of `arc-swap` have such guards, too, but each
//! swap pays what every other thread owes: with 32 threads at misses that was 7 % of their time. Here whoever frees looks
//! once for many values.
//!
//! Invariants: a slot owns one count of what stands in it; a [`Taken`] value owns that count until [`free_unheld`] finds it
//! held by nobody; a [`Held`] value either is announced in a place of its own, or owns a count. What is never handed to
//! [`free_unheld`] or [`leave_to_others`] is never freed.
#![expect(unsafe_code, reason = "values are kept by an announcement instead of a count")]

use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use triomphe::ThinArc;

use super::places::{self, Place};
use crate::base::sync::Ordering;
use crate::base::sync::cached::AtomicPtr;

/// A counted pointer of one word.
///
/// # Safety
/// * Two that are equal as raw pointers share value and count, and stay so when they are moved.
/// * From a raw pointer that [`Counted::into_raw`] gave, and whose count nobody has dropped, any number of values may be
///   made, of which all but one are never dropped; each may be used as long as the count is there.
pub(crate) unsafe trait Counted: Clone + Send + Sync + 'static {
    /// Its count goes with it.
    fn into_raw(self) -> NonNull<()>;

    /// What [`Counted::into_raw`] would give, as a number.
    fn address(&self) -> usize;

    /// # Safety
    /// The pointer is from [`Counted::into_raw`], the count is still there, and only one of all values that are made from it
    /// is dropped.
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

// SAFETY: the pointer is that to the value, which stands behind its counts, so also values without bytes have different ones;
// an `Arc` is this pointer and nothing else.
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

/// A place for a value, which any number of threads may load. Who fills and empties it takes turns by other means.
pub(crate) struct Slot<V: Counted> {
    value: AtomicPtr<()>,
    owns: PhantomData<V>,
}

/// What a load found, for as long as it is held; any thread may let it go.
pub(crate) struct Held<V: Counted> {
    /// Dropped only if there is no place.
    value: ManuallyDrop<Option<V>>,
    /// Where it is announced.
    place: Option<&'static Place>,
}

/// A value that was taken out of its slot, and that others may still hold.
#[must_use = "else it is never freed"]
pub(crate) struct Taken<V: Counted> {
    value: ManuallyDrop<V>,
    charge: u64,
}

impl<V: Counted> Slot<V> {
    /// With nothing in it.
    pub(crate) fn empty() -> Slot<V> {
        Slot { value: AtomicPtr::new(ptr::null_mut()), owns: PhantomData }
    }

    /// Whether there is a value. For all but who fills and empties it that may change in the next moment.
    pub(crate) fn is_some(&self) -> bool {
        !self.value.load(Ordering::Relaxed).is_null()
    }

    /// What stands in it, held.
    #[inline]
    pub(crate) fn load(&self) -> Held<V> {
        // Relaxed: what it says is looked at again, or used for nothing.
        let Some(seen) = NonNull::new(self.value.load(Ordering::Relaxed)) else { return Held::NOTHING };
        let Some(place) = places::free_place() else { return self.load_counted(seen) };
        let Some(found) = self.announce(place, seen) else { return Held::NOTHING };
        // SAFETY: it came out of `into_raw` in `fill`, and its count is there: the slot had it when it was announced, and
        // whoever takes it out drops it only where it is not announced. This value is never dropped.
        let value = unsafe { V::from_raw(found) };
        Held { value: ManuallyDrop::new(Some(value)), place: Some(place) }
    }

    /// As [`Slot::load`], with a count: all places are in use, or the thread is about to end.
    #[cold]
    fn load_counted(&self, seen: NonNull<()>) -> Held<V> {
        let counted = places::in_passing(|place| {
            let found = self.announce(place, seen)?;
            // SAFETY: as in `load`; it is announced until its second count is there, and is never dropped.
            let value = ManuallyDrop::new(unsafe { V::from_raw(found) });
            let counted = V::clone(&value);
            place.clear();
            Some(counted)
        });
        Held { value: ManuallyDrop::new(counted), place: None }
    }

    /// Announces what stands here, which was `seen` at the first look; if it is nothing now, nothing is announced.
    #[inline]
    fn announce(&self, place: &Place, mut seen: NonNull<()>) -> Option<NonNull<()>> {
        loop {
            place.announce(seen);
            match NonNull::new(self.value.load(Ordering::SeqCst)) {
                Some(found) if found == seen => return Some(found),
                Some(other) => seen = other,
                None => {
                    place.clear();
                    return None;
                }
            }
        }
    }

    /// Puts a value into an empty slot.
    pub(crate) fn fill(&self, value: V) {
        // Publishes the value to who loads it.
        let before = self.value.swap(value.into_raw().as_ptr(), Ordering::SeqCst);
        assert!(before.is_null(), "only an empty slot is filled");
    }

    /// Takes the value out, if there is one; it was charged so many bytes.
    pub(crate) fn take(&self, charge: u64) -> Option<Taken<V>> {
        let taken = NonNull::new(self.value.swap(ptr::null_mut(), Ordering::SeqCst))?;
        // SAFETY: it came out of `into_raw` in `fill`, and the slot's count goes with it. Those that `load` makes of it are
        // never dropped.
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

impl<V: Counted> Held<V> {
    const NOTHING: Held<V> = Held { value: ManuallyDrop::new(None), place: None };

    /// The value with a count of its own.
    pub(crate) fn into_inner(mut held: Held<V>) -> Option<V> {
        // It is announced until the count is there.
        if held.place.is_some() { Option::clone(&held) } else { held.value.take() }
    }
}

impl<V: Counted> Deref for Held<V> {
    type Target = Option<V>;

    #[inline]
    fn deref(&self) -> &Option<V> {
        &self.value
    }
}

impl<V: Counted> Drop for Held<V> {
    #[inline]
    fn drop(&mut self) {
        match self.place {
            Some(place) => place.clear(),
            // SAFETY: it has a count of its own or is nothing, and nobody comes behind its destructor.
            None => unsafe { ManuallyDrop::drop(&mut self.value) },
        }
    }
}

impl<V: Counted> Taken<V> {
    /// What it was charged.
    pub(crate) fn charge(&self) -> u64 {
        self.charge
    }

    fn free(self) {
        drop(ManuallyDrop::into_inner(self.value));
    }
}

/// Drops the counts of those that nobody holds, and leaves the others.
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

/// Drops the counts of those that nobody holds; the others are left to whoever frees something later, anywhere.
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

/// Moves what somebody holds to the front; says how many those are.
fn bring_held_forward<T>(items: &mut [T], address: impl Fn(&T) -> usize) -> usize {
    let mut held = 0;
    places::each_held(|announced| {
        while let Some(at) = items[held..].iter().position(|item| address(item) == announced) {
            items.swap(held, held + at);
            held += 1;
        }
    });
    held
}

/// A value that was held when its cache or its slot went.
struct Orphan {
    address: usize,
    /// Dropped, its count is gone.
    #[expect(dead_code, reason = "only dropped")]
    value: Box<dyn Send>,
}

/// All of them. In this crate there are none: who holds a block holds its segment, and that the cache.
struct Orphans {
    /// So that who frees something takes no lock for nothing.
    count: AtomicUsize,
    list: Mutex<Vec<Orphan>>,
}

static ORPHANS: Orphans = Orphans { count: AtomicUsize::new(0), list: Mutex::new(Vec::new()) };

impl Orphans {
    fn lock(&self) -> MutexGuard<'_, Vec<Orphan>> {
        // No value is dropped under it.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<V: Counted> fmt::Debug for Slot<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({})", if self.is_some() { "a value" } else { "nothing" })
    }
}

impl<V: Counted + fmt::Debug> fmt::Debug for Held<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Held").field(&**self).finish()
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
