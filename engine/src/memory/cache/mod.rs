//! The block cache: decoded blocks under one byte budget that is never exceeded.
//!
//! ```text
//!   open segment:   slots   [ block 0 | block 1 |    | block 3 | ... ]     one word and one mark for each block
//!   cache, shards:  small   -> -> ->          main -> -> ->                the order of eviction: `policy`
//! ```
//!
//! The cache knows nothing about blocks: it keeps counted values in slots. Every open segment has slots of its own, so a hit
//! is one load without a hash table. A hit on a value that is known to be hot writes nothing that another thread reads. A
//! reader protects the value that it found by a hazard pointer ([`hazard`]). That delays the freeing of this value only, so
//! the reader may keep it across user code, a submit or a wait.
//!
//! A value that leaves the cache waits in its shard ([`retired`]) until enough wait for one search of the hazard slots. It is
//! no longer charged, so its memory comes on top of the budget. The waiting values take at most a 64th of the budget and
//! 512 KiB, or are one larger value. To these add the values that a thread is freeing, and the held values, of which there
//! are at most as many as guards.
//!
//! Each slot belongs to one of a few shards, which share the budget evenly and have a lock each. With a single lock, threads
//! that missed queued up behind a lock holder that had lost its core.
//!
//! Other parts of the store may reserve a part of the budget (`reserve.rs`). The shards share the rest.
//!
//! Invariants: the charges of all values that can be found sum to at most the budget, also while an insert is under way; a
//! value that is larger than its shard's part of the budget is not kept; when a segment is dropped, so are its values, at
//! once except for held ones; of several threads that miss a block in `load` at once, one reads it.

mod hazard;
mod hazard_slots;
#[cfg(all(test, loom))]
mod models;

mod policy;
mod retired;
mod slots;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hazard::Taken;
use policy::Queues;

use crate::base::sync::cached::{Condvar, Mutex};
use crate::base::sync::shared::thread_number;

pub(crate) use hazard::{Counted, Protected};
pub(crate) use slots::{Slots, Use};

/// Memory of a queue's entry and of the value's counts, without the value itself.
const OVERHEAD_BYTES: u64 = 64;

/// The least budget of a shard, so that large blocks fit and its queues are long enough to choose well.
const MIN_SHARD_BYTES: u64 = 4 << 20;

/// The most shards. With more threads that miss at once the device is the limit.
const MAX_SHARDS: u64 = 16;

/// Values that left the cache may wait for the next search up to this part of the budget, and up to so many bytes.
const RETIRED_PART: u64 = 64;
const MOST_RETIRED_BYTES: u64 = 512 << 10;

/// Counts and sizes of a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CacheStats {
    /// Look-ups that found their value.
    pub(crate) hits: u64,
    /// Look-ups that did not find a value.
    pub(crate) misses: u64,
    /// Evicted values.
    pub(crate) evictions: u64,
    /// Values in the cache now.
    pub(crate) values: u64,
    /// Bytes charged now, overhead included.
    pub(crate) bytes: u64,
    /// The part of the budget that is reserved; with `bytes` at most `budget_bytes`.
    pub(crate) reserved_bytes: u64,
    /// The whole budget in bytes.
    pub(crate) budget_bytes: u64,
    /// Charges of values that left the cache and are not freed yet: some are held, the others wait for the next search.
    pub(crate) retired_bytes: u64,
}

/// Whether there is a value that was used since it came. Leaves no mark.
pub(crate) fn is_hot<V: Counted>(slots: &Slots<V>, block: usize) -> bool {
    slots.is_taken(block) && slots.marks.get(block).is_some_and(policy::is_used)
}

/// Counted values under a byte budget, for any number of threads.
#[derive(Debug)]
pub(crate) struct Cache<V: Counted> {
    /// Each slot belongs to one shard.
    shards: Box<[Mutex<Queues<V>>]>,
    budget_bytes: u64,
    /// The reserved part of the budget. Locked before the shards.
    reserved_bytes: Mutex<u64>,
    looked_up: Stripes,
    /// Blocks that are being read: the address of the slots, and the number.
    loading: Mutex<Vec<(usize, usize)>>,
    loaded: Condvar,
}

impl<V: Counted> Cache<V> {
    /// An empty cache of at most `budget_bytes`. With 0 it keeps nothing and every look-up misses.
    pub(crate) fn new(budget_bytes: u64) -> Cache<V> {
        let shards = (budget_bytes / MIN_SHARD_BYTES).clamp(1, MAX_SHARDS);
        let shard_bytes = budget_bytes / shards;
        let retired_bytes = (budget_bytes / RETIRED_PART).min(MOST_RETIRED_BYTES) / shards;
        Cache {
            shards: (0..shards).map(|_| Mutex::new(Queues::new(shard_bytes, retired_bytes))).collect(),
            budget_bytes,
            reserved_bytes: Mutex::new(0),
            looked_up: Stripes::default(),
            loading: Mutex::new(Vec::new()),
            loaded: Condvar::new(),
        }
    }

    /// The value, marked as used.
    #[inline]
    pub(crate) fn get(&self, slots: &Slots<V>, block: usize) -> Protected<V> {
        let held = slots.values[block].load();
        if held.is_some() {
            policy::mark_used(&slots.marks[block]);
            self.looked_up.hit();
        } else {
            self.looked_up.missed();
        }
        held
    }

    /// Keeps the value if it fits, and evicts others for it. If the slot has a value already, that one stays.
    pub(crate) fn insert(&self, slots: &Arc<Slots<V>>, block: usize, (value, bytes): (&V, u64), by: Use) {
        let charge = bytes.saturating_add(OVERHEAD_BYTES);
        let shard = self.shard(slots, block);
        let taken = shard.lock().insert((slots, block), value, charge, by);
        free(shard, taken);
    }

    /// The value after a miss. If another thread reads it already, this call waits for its result; else it calls `read`.
    ///
    /// # Errors
    /// Those of `read`. If the other thread's read fails, this one reads the value itself.
    pub(crate) fn load<E>(
        &self,
        slots: &Arc<Slots<V>>,
        block: usize,
        read: impl FnOnce() -> Result<(V, u64), E>,
    ) -> Result<V, E> {
        let key = (Arc::as_ptr(slots).addr(), block);
        let mut loading = self.loading.lock();
        loop {
            if let Some(value) = slots.peek(block) {
                return Ok(value);
            }
            if !loading.contains(&key) {
                break;
            }
            self.loaded.wait(&mut loading);
        }
        loading.push(key);
        drop(loading);
        let done = LoadGuard { cache: self, key };
        let (value, bytes) = read()?;
        self.insert(slots, block, (&value, bytes), Use::Point);
        drop(done);
        Ok(value)
    }

    /// The whole budget, with the reserved part.
    pub(crate) fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }

    /// Sets the reserved part of the budget to the result of `change`; the cache has the rest. False if that was `None`.
    pub(crate) fn reserve(&self, change: impl FnOnce(u64) -> Option<u64>) -> bool {
        let mut reserved = self.reserved_bytes.lock();
        let Some(wanted) = change(*reserved) else { return false };
        let shard_bytes = self.budget_bytes.saturating_sub(wanted) / self.shards.len() as u64;
        for shard in &self.shards {
            let taken = shard.lock().resize(shard_bytes);
            free(shard, taken);
        }
        *reserved = wanted;
        true
    }

    /// Removes the values of a segment that is no longer read. O(values).
    pub(crate) fn forget(&self, slots: &Arc<Slots<V>>) {
        for shard in &self.shards {
            let taken = shard.lock().forget(slots);
            free(shard, taken);
        }
    }

    /// Removes all values. A store calls this when it closes: to forget its segments one by one would search all values for
    /// each.
    pub(crate) fn clear(&self) {
        for shard in &self.shards {
            let taken = shard.lock().clear();
            free(shard, taken);
        }
    }

    pub(crate) fn stats(&self) -> CacheStats {
        let (hits, misses) = self.looked_up.sums();
        let mut stats = CacheStats { hits, misses, budget_bytes: self.budget_bytes, ..CacheStats::default() };
        // Held to the end. Otherwise the sums over the shards, which are locked one after the other, could exceed the budget.
        let reserved_bytes = self.reserved_bytes.lock();
        stats.reserved_bytes = *reserved_bytes;
        for shard in &self.shards {
            let queues = shard.lock();
            stats.evictions += queues.evictions();
            stats.values += queues.values();
            stats.bytes += queues.used_bytes();
            stats.retired_bytes += queues.retired_bytes();
        }
        stats
    }

    fn shard(&self, slots: &Slots<V>, block: usize) -> &Mutex<Queues<V>> {
        &self.shards[slots.salt.wrapping_add(block) % self.shards.len()]
    }
}

/// Frees the values that left a shard, outside of its lock. Values that are still held go back to the shard.
fn free<V: Counted>(shard: &Mutex<Queues<V>>, mut taken: Vec<Taken<V>>) {
    if taken.is_empty() {
        return;
    }
    hazard::free_unheld(&mut taken);
    if !taken.is_empty() {
        shard.lock().wait_again(taken);
    }
}

impl<V: Counted> Drop for Cache<V> {
    fn drop(&mut self) {
        for shard in &self.shards {
            let taken = shard.lock().clear();
            hazard::leave_to_others(taken);
        }
    }
}

/// Marks a block that this thread reads. The drop wakes the waiting threads, also if the read fails or panics.
struct LoadGuard<'a, V: Counted> {
    cache: &'a Cache<V>,
    key: (usize, usize),
}

impl<V: Counted> Drop for LoadGuard<'_, V> {
    fn drop(&mut self) {
        self.cache.loading.lock().retain(|key| *key != self.key);
        self.cache.loaded.notify_all();
    }
}

const STRIPES: usize = 16;

/// Counters of hits and misses. While there are few threads, each counts in its own cache line: one line for all would cost
/// more than the rest of a hit.
#[derive(Debug, Default)]
struct Stripes([Stripe; STRIPES]);

#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe {
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Stripes {
    fn own(&self) -> &Stripe {
        &self.0[thread_number() % STRIPES]
    }

    // Relaxed: the counters publish nothing.
    fn hit(&self) {
        self.own().hits.fetch_add(1, Ordering::Relaxed);
    }

    fn missed(&self) {
        self.own().misses.fetch_add(1, Ordering::Relaxed);
    }

    fn sums(&self) -> (u64, u64) {
        self.0.iter().fold((0, 0), |(hits, misses), stripe| {
            (hits + stripe.hits.load(Ordering::Relaxed), misses + stripe.misses.load(Ordering::Relaxed))
        })
    }
}

#[cfg(test)]
mod tests;
