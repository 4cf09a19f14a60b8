//! The block cache: decoded blocks under one byte budget that is never exceeded.
//!
//! It knows nothing about blocks: it keeps counted values under `(segment id, block number)`, each with the bytes it
//! is charged for. Numbers of segments are used once, so a value can never be stale; it can only be unwanted.
//!
//! # How it works
//! Shards, each with its own lock, map and CLOCK hand (see `policy.rs`). Nothing else is locked inside, and nothing
//! waits while a lock is held.
//!
//! Invariants: the charges of all values sum to at most the budget, also while an insert is under way; a value that
//! is larger than its shard's part of the budget is not kept.

mod policy;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use policy::{Clock, Key};

/// More shards than this do not help: there are far more shards than cores that miss at the same time.
const MAX_SHARDS: u64 = 16;

/// A shard smaller than this could not keep a few large blocks.
const MIN_SHARD_BYTES: u64 = 1 << 20;

/// What a slot, its map entry and the value's counts take beside the value itself, in bytes.
const SLOT_OVERHEAD_BYTES: u64 = 96;

/// What the cache has done so far, and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CacheStats {
    /// Look-ups that found their value.
    pub(crate) hits: u64,
    /// Look-ups that did not.
    pub(crate) misses: u64,
    /// Values that had to make room.
    pub(crate) evictions: u64,
    /// Values held now.
    pub(crate) values: u64,
    /// Charged now, overhead included; at most `budget_bytes`.
    pub(crate) bytes: u64,
    /// The limit.
    pub(crate) budget_bytes: u64,
}

/// Counted values under a byte budget, for any number of threads.
#[derive(Debug)]
pub(crate) struct Cache<V> {
    shards: Box<[Mutex<Clock<V>>]>,
    budget_bytes: u64,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl<V> Cache<V> {
    /// An empty cache of at most `budget_bytes`. With 0 it keeps nothing and every look-up misses.
    pub(crate) fn new(budget_bytes: u64) -> Cache<V> {
        let shards = (budget_bytes / MIN_SHARD_BYTES).clamp(1, MAX_SHARDS);
        let shard_budget = budget_bytes / shards;
        let shards = (0..shards).map(|_| Mutex::new(Clock::new(shard_budget))).collect();
        Cache { shards, budget_bytes, hits: AtomicU64::new(0), misses: AtomicU64::new(0) }
    }

    /// The value, marked as used.
    pub(crate) fn get(&self, segment: u64, block: u32) -> Option<Arc<V>> {
        let key = Key { segment, block };
        let found = self.shard(key).lock().get(key);
        // Relaxed: the counters publish nothing.
        let counter = if found.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// The value, neither marked nor counted: for scans that shall leave no trace.
    pub(crate) fn peek(&self, segment: u64, block: u32) -> Option<Arc<V>> {
        let key = Key { segment, block };
        self.shard(key).lock().peek(key)
    }

    /// Keeps the value if it fits, after evicting others. A value that is there already stays.
    pub(crate) fn insert(&self, segment: u64, block: u32, value: &Arc<V>, value_bytes: u64) {
        let key = Key { segment, block };
        let charge = value_bytes.saturating_add(SLOT_OVERHEAD_BYTES);
        let evicted = self.shard(key).lock().insert(key, value, charge);
        // Freed here, after the lock.
        drop(evicted);
    }

    /// Forgets all blocks of a segment that was deleted. O(values); called once per deleted segment.
    pub(crate) fn remove_segment(&self, segment: u64) {
        for shard in &self.shards {
            let removed = shard.lock().remove_segment(segment);
            drop(removed);
        }
    }

    pub(crate) fn stats(&self) -> CacheStats {
        let mut stats = CacheStats {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            budget_bytes: self.budget_bytes,
            ..CacheStats::default()
        };
        for shard in &self.shards {
            let shard = shard.lock();
            stats.bytes += shard.used_bytes();
            stats.values += shard.values();
            stats.evictions += shard.evictions();
        }
        stats
    }

    fn shard(&self, key: Key) -> &Mutex<Clock<V>> {
        let count = self.shards.len() as u64;
        let index = usize::try_from((key.mix() >> 32) % count).expect("less than the number of shards");
        self.shards.get(index).expect("a remainder is below its divisor")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_holds_after_every_insert_whatever_the_sizes() {
        for budget in [0, 100, 4096, 3 << 20, 40 << 20] {
            let cache: Cache<u64> = Cache::new(budget);
            let mut random = 0x1234_5678_9abc_def1_u64;
            for step in 0..20_000_u64 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let size = if step % 100 == 0 { random % (2 << 20) } else { random % 20_000 };
                cache.insert(random % 7, u32::try_from(step % 5000).unwrap(), &Arc::new(step), size);
                assert!(step % 64 != 0 || cache.stats().bytes <= budget);
            }
            let stats = cache.stats();
            assert!(stats.bytes <= budget, "{stats:?}");
            if budget >= 3 << 20 {
                assert!(stats.bytes > budget / 2, "mostly full: {stats:?}");
                assert!(stats.evictions > 0);
            }
        }
    }

    #[test]
    fn a_value_is_found_until_its_segment_is_removed() {
        let cache: Cache<u32> = Cache::new(1 << 20);
        for block in 0..100 {
            cache.insert(u64::from(block % 2), block, &Arc::new(block), 10);
        }
        for block in 0..100 {
            assert_eq!(cache.get(u64::from(block % 2), block).as_deref(), Some(&block));
            assert_eq!(cache.get(u64::from(block % 2) + 2, block), None);
        }
        cache.remove_segment(0);
        for block in 0..100 {
            assert_eq!(cache.peek(u64::from(block % 2), block).is_some(), block % 2 == 1);
        }
        let stats = cache.stats();
        assert_eq!((stats.hits, stats.misses, stats.values), (100, 100, 50));
        assert_eq!(stats.bytes, 50 * (10 + SLOT_OVERHEAD_BYTES));
        cache.remove_segment(1);
        assert_eq!(cache.stats().bytes, 0);
    }

    #[test]
    fn used_values_outlive_unused_ones() {
        let cache: Cache<u32> = Cache::new(100 * (1000 + SLOT_OVERHEAD_BYTES));
        for block in 0..50 {
            cache.insert(1, block, &Arc::new(block), 1000);
        }
        for scan in 0..40 {
            for block in 0..50 {
                assert!(cache.get(1, block).is_some(), "block {block} in round {scan}");
            }
            for block in 0..40 {
                cache.insert(2, scan * 40 + block, &Arc::new(0), 1000);
            }
        }
    }

    #[test]
    fn threads_do_not_exceed_the_budget_together() {
        let cache: Cache<u32> = Cache::new(2 << 20);
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let cache = &cache;
                scope.spawn(move || {
                    for block in 0..5000 {
                        cache.insert(thread % 2, block, &Arc::new(block), 3000);
                        if let Some(found) = cache.get(thread % 2, block) {
                            assert_eq!(*found, block);
                        }
                        assert!(block % 50 != 0 || cache.stats().bytes <= 2 << 20);
                        if block % 1000 == 999 {
                            cache.remove_segment(thread % 2);
                        }
                    }
                });
            }
        });
        assert!(cache.stats().bytes <= 2 << 20);
    }
}
