//! Tests of the cache: its budget, its order, its single reads.

use std::sync::atomic::AtomicUsize;

use super::*;

fn slots<V: RefCnt>(blocks: usize) -> Arc<Slots<V>> {
    Arc::new(Slots::new(blocks, 0))
}

fn has<V: RefCnt>(cache: &Cache<V>, slots: &Slots<V>, block: usize) -> bool {
    cache.get(slots, block).is_some()
}

#[test]
fn the_budget_holds_after_every_insert_whatever_the_sizes() {
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
        assert_eq!(stats.values, held as u64, "what is queued is there, and the other way round");
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
            assert!(has(&cache, &slots, block) && has(&cache, &slots, block), "so both queues are in use");
        }
        assert!(cache.stats().values > 10);
        cache.clear();
        assert_eq!((cache.stats().values, cache.stats().bytes), (0, 0));
        assert!((0..100).all(|block| slots.peek(block).is_none()));
    }
}

/// A hot set of half the cache, used twice; then values that are used once, five times as many as fit.
#[test]
fn a_scan_does_not_push_out_what_is_used() {
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
fn what_a_compaction_brings_stays_where_others_come_once() {
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
fn what_comes_back_soon_stays_longer_than_what_a_scan_brings_back() {
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
                    // Long enough in the reader's hands that the others come by.
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
fn who_waits_for_a_read_that_fails_or_panics_reads_itself() {
    let cache: Cache<Arc<usize>> = Cache::new(1 << 20);
    let slots = slots(1);
    assert_eq!(cache.load(&slots, 0, || Err("unreadable")), Err("unreadable"));
    let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        cache.load(&slots, 0, || -> Result<(Arc<usize>, u64), ()> { panic!("on purpose") })
    }));
    assert!(panics.is_err());
    assert_eq!(cache.load(&slots, 0, || Ok::<_, ()>((Arc::new(5), 10))).as_deref(), Ok(&5));
    // Too large to be kept: everybody gets it all the same.
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
