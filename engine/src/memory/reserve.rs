//! The reserved part of the cache's budget: the memory of open segments without their blocks.
//!
//! The cache has the rest of the budget. Reserved memory is never evicted. A request is granted only while all reserved bytes
//! are at most half of the budget. Memory that cannot be refused is taken without this limit. For the output of a compaction
//! the memory of its inputs, which is free soon, is not counted.
//!
//! Invariants: cache and reserved bytes together never exceed the budget, unless more than the budget was taken. Reserved
//! bytes return to the cache when their owner is dropped.

use std::fmt;
use std::sync::Arc;

use crate::memory::cache::{Cache, Counted};

/// Requests are granted up to the budget divided by this.
const ASKED_PART: u64 = 2;

/// Reserved bytes of a cache's budget. The drop returns them.
pub(crate) struct ReservedBytes<V: Counted> {
    cache: Arc<Cache<V>>,
    bytes: u64,
}

impl<V: Counted> ReservedBytes<V> {
    /// Reserves `bytes` if all reserved bytes are then at most half of the budget, not counting `leaving_bytes`, which are free
    /// soon.
    pub(crate) fn ask(cache: &Arc<Cache<V>>, bytes: u64, leaving_bytes: u64) -> Option<ReservedBytes<V>> {
        let half_bytes = cache.budget_bytes() / ASKED_PART;
        let limit_bytes = half_bytes + leaving_bytes.min(half_bytes);
        let granted =
            cache.reserve(|reserved| reserved.checked_add(bytes).filter(|wanted| *wanted <= limit_bytes));
        granted.then(|| ReservedBytes { cache: Arc::clone(cache), bytes })
    }

    /// Reserves `bytes` without a limit.
    pub(crate) fn take(cache: &Arc<Cache<V>>, bytes: u64) -> ReservedBytes<V> {
        let mut taken = ReservedBytes { cache: Arc::clone(cache), bytes: 0 };
        taken.resize(bytes);
        taken
    }

    /// Changes the reservation to `bytes`.
    pub(crate) fn resize(&mut self, bytes: u64) {
        if bytes != self.bytes {
            let before = std::mem::replace(&mut self.bytes, bytes);
            self.cache.reserve(|reserved| Some(reserved.saturating_sub(before).saturating_add(bytes)));
        }
    }
}

impl<V: Counted> Drop for ReservedBytes<V> {
    fn drop(&mut self) {
        self.resize(0);
    }
}

impl<V: Counted> fmt::Debug for ReservedBytes<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReservedBytes({} bytes)", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::memory::cache::{Slots, Use};

    #[test]
    fn reserved_bytes_and_the_cache_share_one_budget() {
        const BUDGET: u64 = 20 << 20;
        let cache: Arc<Cache<Arc<usize>>> = Arc::new(Cache::new(BUDGET));
        let slots = Arc::new(Slots::new(20_000, 0));
        let fill = |from: usize| {
            for block in from..from + 10_000 {
                cache.insert(&slots, block, (&Arc::new(block), 4000), Use::Point);
            }
            cache.stats()
        };
        assert!(fill(0).bytes > BUDGET * 9 / 10);
        let mut first = ReservedBytes::ask(&cache, BUDGET / 2, 0).unwrap();
        let stats = cache.stats();
        assert!(
            stats.bytes <= BUDGET / 2 && stats.bytes > BUDGET * 4 / 10,
            "the cache evicted exactly as much as needed: {stats:?}"
        );
        assert!(ReservedBytes::ask(&cache, 1, 0).is_none(), "half of the budget is reserved already");
        assert!(ReservedBytes::ask(&cache, 101, 100).is_none(), "the leaving bytes are not enough");
        assert!(ReservedBytes::ask(&cache, 100, 100).is_some());
        assert!(
            ReservedBytes::ask(&cache, BUDGET / 2 + 1, BUDGET).is_none(),
            "more than the budget is not granted"
        );
        let second = ReservedBytes::take(&cache, BUDGET / 4);
        assert_eq!(cache.stats().reserved_bytes, BUDGET / 4 * 3);
        assert!(fill(10_000).bytes <= BUDGET / 4);
        first.resize(BUDGET / 8);
        assert_eq!(cache.stats().reserved_bytes, BUDGET / 8 * 3);
        assert!(fill(0).bytes > BUDGET / 2, "the cache uses the returned bytes");
        let third = ReservedBytes::take(&cache, 2 * BUDGET);
        assert_eq!((cache.stats().bytes, cache.stats().values), (0, 0), "more than the budget was taken");
        assert_eq!(fill(0).bytes, 0);
        drop((first, second, third));
        assert_eq!(cache.stats().reserved_bytes, 0);
        assert!(fill(0).bytes > BUDGET * 9 / 10);
    }

    #[test]
    fn the_shared_budget_holds_at_every_moment() {
        const BUDGET: u64 = 9 << 20;
        let cache: Arc<Cache<Arc<usize>>> = Arc::new(Cache::new(BUDGET));
        let slots = Arc::new(Slots::new(5000, 0));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let (cache, slots, stop) = (&cache, &slots, &stop);
                scope.spawn(move || {
                    for block in (0..5000).cycle().skip(thread * 2500) {
                        cache.insert(slots, block, (&Arc::new(block), 3000), Use::Point);
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                    }
                });
            }
            for round in 0..2000_u64 {
                let held = [
                    ReservedBytes::ask(&cache, round * 997 % BUDGET, 0),
                    Some(ReservedBytes::take(&cache, round * 7919 % (BUDGET / 2))),
                ];
                for _ in 0..2 {
                    let stats = cache.stats();
                    assert!(stats.bytes + stats.reserved_bytes <= BUDGET, "{stats:?}");
                    std::thread::yield_now();
                }
                drop(held);
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(cache.stats().reserved_bytes, 0);
    }
}
