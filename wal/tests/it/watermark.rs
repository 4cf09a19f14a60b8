//! The publish watermark over ranges that complete out of order.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::support::{Random, seed};
use wal::{GRANULE, Seq, Watermark};

#[test]
fn the_watermark_moves_only_over_contiguous_ranges() {
    let watermark = Watermark::new(Seq::new(96), 256);
    watermark.complete(Seq::new(160), Seq::new(224));
    watermark.complete(Seq::new(224), Seq::new(256));
    assert_eq!(watermark.get(), Seq::new(96));
    watermark.complete(Seq::new(96), Seq::new(160));
    assert_eq!(watermark.get(), Seq::new(256));
}

#[test]
fn entries_of_earlier_laps_never_count() {
    // Laps of 8 granules, cut into ranges of random length that complete in random order within a lap.
    let mut random = Random::new(seed());
    for _ in 0..2000 {
        let ring = 8 * GRANULE as u64;
        let watermark = Watermark::new(Seq::ZERO, 8 * GRANULE);
        let mut at = 0;
        for _ in 0..6 {
            let (mut ranges, limit) = (Vec::new(), at + ring);
            let begin = at;
            while at < limit {
                let len = ((1 + random.below(8)) * GRANULE as u64).min(limit - at);
                ranges.push((at, at + len));
                at += len;
            }
            let mut done = vec![false; ranges.len()];
            for _ in 0..ranges.len() {
                let left: Vec<usize> = (0..ranges.len()).filter(|&nth| !done[nth]).collect();
                let nth = left[usize::try_from(random.below(left.len() as u64)).unwrap()];
                done[nth] = true;
                watermark.complete(Seq::new(ranges[nth].0), Seq::new(ranges[nth].1));
                let whole = done.iter().take_while(|&&done| done).count();
                let expected = whole.checked_sub(1).map_or(begin, |last| ranges[last].1);
                assert_eq!(watermark.get(), Seq::new(expected));
            }
        }
    }
}

#[test]
fn threads_complete_in_any_order_and_no_range_is_left_behind() {
    const THREADS: u64 = 4;
    const RANGES: u64 = 60_000;
    let watermark = Arc::new(Watermark::new(Seq::ZERO, 64 * GRANULE));
    let reserved = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let (watermark, reserved) = (Arc::clone(&watermark), Arc::clone(&reserved));
            std::thread::Builder::new()
                .spawn(move || {
                    let mut random = Random::new(thread);
                    for nth in 0..RANGES {
                        let len = (1 + random.below(9)) * GRANULE as u64;
                        let seq = reserved.fetch_add(len, Ordering::SeqCst);
                        watermark.complete(Seq::new(seq), Seq::new(seq + len));
                        if nth % 5 == thread {
                            watermark.wait_for(Seq::new(seq + len));
                            assert!(watermark.get() >= Seq::new(seq + len));
                        }
                    }
                })
                .unwrap()
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(watermark.get(), Seq::new(reserved.load(Ordering::SeqCst)));
}

#[test]
fn a_thread_that_sleeps_for_the_watermark_is_seen_until_it_goes_on() {
    let watermark = Watermark::new(Seq::ZERO, 256);
    assert!(!watermark.is_awaited());
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| watermark.wait_for(Seq::new(64)));
        while !watermark.is_awaited() {
            std::thread::yield_now();
        }
        watermark.complete(Seq::ZERO, Seq::new(64));
        waiter.join().unwrap();
    });
    assert!(!watermark.is_awaited());
}
