//! Tests of the cache: its budget, its order, its single reads.

use std::sync::atomic::AtomicUsize;

use super::*;

fn slots<V: Counted>(blocks: usize) -> Arc<Slots<V>> {
    Arc::new(Slots::new(blocks, 0))
}

fn has<V: Counted>(cache: &Cache<V>, slots: &Slots<V>, block: usize) -> bool {
    cache.get(slots, block).is_some()
}

#[test]
fn the_budget_holds_after_every_insert_of_any_size() {
    for budget in [0, 100, 4096, 3 << 20, 40 << 20] {
        let cache: Cache<Arc<u64>> = Cache::new(budget);
        let segments: Vec<_> = (0..7).map(|_| slots(5000)).collect();
        let mut random = 0x1234_5678_9abc_def1_u64;
        for step in 0..20_000_u64 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let size = if step % 100 == 0 { random % (2 << 20) } else { random % 20_000 };
            let by = if random.is_multiple_of(3) { Use::Scan } else { Use::Point };
            let (segment, block) = (&segments[usize::try_from(random % 7).unwrap()], step % 5000);
            cache.insert(segment, usize::try_from(block).unwrap(), (&Arc::new(step), size), by);
            if random.is_multiple_of(5) {
                cache.get(segment, usize::try_from(random % 5000).unwrap());
            }
            if step % 3000 == 2999 {
                cache.forget(segment);
            }
            assert!(step % 64 != 0 || cache.stats().bytes <= budget);
        }
        let stats = cache.stats();
        assert!(stats.bytes <= budget, "{stats:?}");
        let held =
            segments.iter().flat_map(|slots| &slots.values).filter(|slot| slot.load().is_some()).count();
        assert_eq!(stats.values, held as u64, "the queued values are those in slots");
        if budget >= 3 << 20 {
            assert!(stats.bytes > budget / 2, "mostly full: {stats:?}");
            assert!(stats.evictions > 0);
        }
    }
}

#[test]
fn a_value_is_found_until_its_segment_is_forgotten() {
    let cache: Cache<Arc<usize>> = Cache::new(1 << 20);
    let segments = [slots(100), slots(100), slots(100)];
    for block in 0..100 {
        cache.insert(&segments[block % 2], block, (&Arc::new(block), 10), Use::Point);
    }
    for block in 0..100 {
        assert_eq!(cache.get(&segments[block % 2], block).as_deref(), Some(&block));
        assert!(!has(&cache, &segments[2], block));
    }
    cache.forget(&segments[0]);
    for block in 0..100 {
        assert_eq!(segments[block % 2].peek(block).is_some(), block % 2 == 1);
    }
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.values), (100, 100, 50));
    assert_eq!(stats.bytes, 50 * (10 + OVERHEAD_BYTES));
    cache.forget(&segments[1]);
    assert_eq!(cache.stats().bytes, 0);
}

#[test]
fn a_cleared_cache_is_empty_and_goes_on() {
    let cache: Cache<Arc<usize>> = Cache::new(20 * (1000 + OVERHEAD_BYTES));
    let slots = slots(100);
    for _ in 0..2 {
        for block in 0..100 {
            cache.insert(&slots, block, (&Arc::new(block), 1000), Use::Point);
            assert!(
                has(&cache, &slots, block) && has(&cache, &slots, block),
                "two uses, so both queues are filled"
            );
        }
        assert!(cache.stats().values > 10);
        cache.clear();
        assert_eq!((cache.stats().values, cache.stats().bytes), (0, 0));
        assert!((0..100).all(|block| slots.peek(block).is_none()));
    }
}

/// Uses a hot set of half the cache twice, and then five times as many values as fit, once each.
#[test]
fn a_scan_does_not_evict_used_values() {
    for by in [Use::Scan, Use::Point] {
        let cache: Cache<Arc<usize>> = Cache::new(100 * (1000 + OVERHEAD_BYTES));
        let (hot, scanned) = (slots(50), slots(500));
        for block in 0..50 {
            cache.insert(&hot, block, (&Arc::new(block), 1000), Use::Point);
        }
        for block in 0..50 {
            assert!(has(&cache, &hot, block));
            assert!(has(&cache, &hot, block));
        }
        for block in 0..500 {
            cache.insert(&scanned, block, (&Arc::new(block), 1000), by);
        }
        assert!((0..50).all(|block| hot.peek(block).is_some()));
        assert!(cache.stats().evictions >= 450);
    }
}

#[test]
fn values_brought_by_a_compaction_outlast_values_used_once() {
    for (by, stays) in [(Use::Warm, true), (Use::Point, false)] {
        let cache: Cache<Arc<usize>> = Cache::new(100 * (1000 + OVERHEAD_BYTES));
        let (hot, others) = (slots(50), slots(500));
        for block in 0..50 {
            cache.insert(&hot, block, (&Arc::new(block), 1000), by);
        }
        for block in 0..500 {
            cache.insert(&others, block, (&Arc::new(block), 1000), Use::Point);
        }
        assert!((0..50).all(|block| hot.peek(block).is_some() == stays), "{by:?}");
    }
}

#[test]
fn values_read_again_soon_stay_longer_than_those_a_scan_reads_again() {
    for (by, stays) in [(Use::Point, true), (Use::Scan, false)] {
        let cache: Cache<Arc<usize>> = Cache::new(100 * (1000 + OVERHEAD_BYTES));
        let (first, others) = (slots(1), slots(1000));
        cache.insert(&first, 0, (&Arc::new(0), 1000), Use::Point);
        for block in 0..110 {
            cache.insert(&others, block, (&Arc::new(block), 1000), Use::Scan);
        }
        assert!(first.peek(0).is_none(), "it was the oldest");
        cache.insert(&first, 0, (&Arc::new(0), 1000), by);
        for block in 110..500 {
            cache.insert(&others, block, (&Arc::new(block), 1000), Use::Scan);
        }
        assert_eq!(first.peek(0).is_some(), stays, "{by:?}");
    }
}

#[test]
fn several_threads_that_miss_a_block_read_it_once() {
    let cache: Cache<Arc<usize>> = Cache::new(1 << 20);
    let slots = slots(4);
    let (reads, together) = (AtomicUsize::new(0), std::sync::Barrier::new(8));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                together.wait();
                let read = || {
                    // The read takes long enough for the other threads to miss meanwhile.
                    std::thread::yield_now();
                    reads.fetch_add(1, Ordering::SeqCst);
                    Ok::<_, ()>((Arc::new(7), 100))
                };
                assert_eq!(cache.load(&slots, 3, read).as_deref(), Ok(&7));
            });
        }
    });
    assert_eq!(reads.load(Ordering::SeqCst), 1);
}

#[test]
fn a_thread_that_waits_for_a_read_that_fails_or_panics_reads_itself() {
    let cache: Cache<Arc<usize>> = Cache::new(1 << 20);
    let slots = slots(1);
    assert_eq!(cache.load(&slots, 0, || Err("unreadable")), Err("unreadable"));
    let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        cache.load(&slots, 0, || -> Result<(Arc<usize>, u64), ()> { panic!("on purpose") })
    }));
    assert!(panics.is_err());
    assert_eq!(cache.load(&slots, 0, || Ok::<_, ()>((Arc::new(5), 10))).as_deref(), Ok(&5));
    // A value too large for the cache is still returned to every thread.
    let small: Cache<Arc<usize>> = Cache::new(10);
    assert_eq!(small.load(&slots_of_one(), 0, || Ok::<_, ()>((Arc::new(6), 100))).as_deref(), Ok(&6));
}

fn slots_of_one() -> Arc<Slots<Arc<usize>>> {
    slots(1)
}

#[test]
fn threads_do_not_exceed_the_budget_together() {
    let cache: Cache<Arc<usize>> = Cache::new(2 << 20);
    let segments = [slots(5000), slots(5000)];
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (cache, slots) = (&cache, &segments[thread % 2]);
            scope.spawn(move || {
                for block in 0..5000 {
                    cache.insert(slots, block, (&Arc::new(block), 3000), Use::Point);
                    if let Some(found) = &*cache.get(slots, block) {
                        assert_eq!(**found, block);
                    }
                    assert!(block % 50 != 0 || cache.stats().bytes <= 2 << 20);
                    if block % 1000 == 999 {
                        cache.forget(slots);
                    }
                }
            });
        }
    });
    assert!(cache.stats().bytes <= 2 << 20);
}

/// A value that counts the bytes of all living values.
struct Live {
    bytes: u64,
    all: Arc<AtomicU64>,
}

impl Live {
    fn new(bytes: u64, all: &Arc<AtomicU64>) -> Arc<Live> {
        all.fetch_add(bytes, Ordering::Relaxed);
        Arc::new(Live { bytes, all: Arc::clone(all) })
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[test]
fn evicted_values_that_are_not_freed_are_a_small_part_of_the_budget() {
    for budget in [5000, 3 << 20, 20 << 20, 100 << 20] {
        let cache: Cache<Arc<Live>> = Cache::new(budget);
        let (slots, all) = (slots(100_000), Arc::default());
        let may_wait = (budget / 64).min(512 << 10);
        let mut most_retired = 0;
        for (block, step) in (0..100_000).zip(0_u64..) {
            // Now and then a value that is larger than the limit of waiting values.
            let bytes = if step.is_multiple_of(1000) {
                700_000
            } else {
                2000 + step.wrapping_mul(0x9e37_79b9) % 5000
            };
            cache.insert(&slots, block, (&Live::new(bytes, &all), bytes), Use::Point);
            let lives = all.load(Ordering::Relaxed);
            assert!(lives <= budget + may_wait, "{lives} of {budget}");
            if step.is_multiple_of(16) {
                let stats = cache.stats();
                assert!(lives <= stats.bytes + stats.retired_bytes);
                most_retired = most_retired.max(stats.retired_bytes);
            }
        }
        assert!(cache.stats().evictions > 0);
        assert!(
            budget < 3 << 20 || most_retired > may_wait / 4,
            "retired values are freed together: {most_retired}"
        );
        drop(cache);
        assert_eq!(all.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn only_held_values_outlive_their_segment_and_their_cache() {
    let cache: Cache<Arc<Live>> = Cache::new(8 << 20);
    let (segments, all) = ([slots(1000), slots(1000)], Arc::default());
    let fill = || {
        for block in 0..1000 {
            for slots in &segments {
                cache.insert(slots, block, (&Live::new(1000, &all), 1000), Use::Point);
            }
        }
    };
    let lives = || all.load(Ordering::Relaxed);
    fill();
    assert_eq!(lives(), 2_000_000);
    let held = cache.get(&segments[0], 3);
    cache.forget(&segments[0]);
    assert_eq!(lives(), 1_001_000);
    assert_eq!(held.as_ref().map(|live| live.bytes), Some(1000));
    drop(held);
    // The next search of the hazard slots notices that it is free.
    cache.forget(&segments[1]);
    assert_eq!((lives(), cache.stats().retired_bytes), (0, 0));

    fill();
    let held = [5, 6, 7].map(|block| cache.get(&segments[1], block));
    cache.clear();
    assert_eq!(lives(), 3000);
    assert!(cache.stats().retired_bytes <= 3 * (1000 + OVERHEAD_BYTES), "all other held values have counts");
    drop(held);
    cache.clear();
    assert_eq!((lives(), cache.stats().retired_bytes), (0, 0));

    fill();
    let held = cache.get(&segments[1], 9);
    drop(cache);
    assert_eq!(lives(), 1000);
    assert!(segments.iter().flat_map(|slots| &slots.values).all(|slot| !slot.is_some()));
    drop(segments);
    assert_eq!(held.as_ref().map(|live| live.bytes), Some(1000));
    drop(held);
    // The next thread that frees a value frees this orphan, too.
    let other: Cache<Arc<Live>> = Cache::new(1 << 20);
    while lives() > 0 {
        let slots = slots(1);
        other.insert(&slots, 0, (&Live::new(0, &all), 0), Use::Point);
        other.clear();
        std::thread::yield_now();
    }
}

/// Readers hold a few blocks at once, as user code does, while other threads evict them.
#[test]
fn held_values_are_not_freed_while_other_threads_evict_them() {
    let cache: Cache<Arc<Live>> = Cache::new(300_000);
    let all = Arc::default();
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            let (cache, all) = (&cache, &all);
            scope.spawn(move || {
                let segment = slots(1000);
                for round in 0..20 {
                    let mut held = std::collections::VecDeque::new();
                    for step in 0..1000 {
                        let (block, bytes) = (step * (thread + 7) % 1000, 1000 + (step * 7 % 1000) as u64);
                        cache.insert(&segment, block, (&Live::new(bytes, all), bytes), Use::Point);
                        held.push_back(cache.get(&segment, block));
                        let live: u64 =
                            held.iter().filter_map(|held| held.as_ref()).map(|live| live.bytes).sum();
                        assert!(live <= 2000 * 13, "a held value has its own size, so it was not freed");
                        while held.len() > step % 12 {
                            held.pop_front();
                        }
                    }
                    if round % 4 == thread {
                        cache.forget(&segment);
                    }
                }
                cache.forget(&segment);
            });
        }
    });
    cache.clear();
    assert_eq!((all.load(Ordering::Relaxed), cache.stats().bytes), (0, 0));
}
