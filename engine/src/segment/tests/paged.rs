//! Segments whose index and filter come through the cache: their reads, their errors, and the borders of index blocks.

use super::super::pages::PIECE_BLOCKS;
use super::*;
use crate::tree::piece::Piece;

/// Entries in a block of 512 bytes each, so that there are several index blocks. `hot` has versions across two of them.
fn one_entry_a_block() -> Vec<Owned> {
    let mut random = Random::new(11);
    let value = |random: &mut Random| random.bytes(420);
    let mut entries: Vec<Owned> = (0..200_u64)
        .map(|i| (format!("first/{i:03}").into_bytes(), 7 + i, Kind::Put, value(&mut random)))
        .collect();
    entries.extend((0..300).map(|seq| (b"hot".to_vec(), seq * 3, Kind::Put, value(&mut random))));
    entries.extend(
        (0..200_u64).map(|i| (format!("last/{i:03}").into_bytes(), 9 + i, Kind::Put, value(&mut random))),
    );
    sort(entries)
}

#[test]
fn versions_of_one_key_may_span_index_blocks() {
    let (_, files) = machine();
    let entries = one_entry_a_block();
    let meta = write(&files, options(512, false), &entries).unwrap();
    for budget_bytes in [0, 20_000, 1 << 20] {
        let segment = Form::Paged.open(&files, budget_bytes, &meta).unwrap();
        assert!(segment.blocks > 4 * PIECE_BLOCKS, "{} blocks", segment.blocks);
        for snapshot in 0..910 {
            check_get(&segment, &entries, b"hot", snapshot).unwrap();
        }
        for fill_cache in [false, true] {
            check_scans(&segment, &entries, fill_cache).unwrap();
            let mut cursor = segment.cursor(fill_cache);
            for owned in entries.iter().step_by(5) {
                check_seeks(&mut cursor, &entries, &owned.0).unwrap();
                check_get(&segment, &entries, &owned.0, u64::MAX).unwrap();
            }
            check_seeks(&mut cursor, &entries, b"a").unwrap();
            check_seeks(&mut cursor, &entries, b"z").unwrap();
        }
        segment.verify().unwrap();
    }
}

#[test]
fn a_cold_get_reads_a_filter_an_index_and_a_data_block_and_a_warm_one_less() {
    let (sim, files) = machine();
    let entries = one_entry_a_block();
    let meta = write(&files, options(512, false), &entries).unwrap();
    let reads = || sim.profile().read().count;
    let before = reads();
    let cold = Form::Paged.open(&files, 0, &meta).unwrap();
    assert_eq!(reads() - before, 2, "footer and top");
    let first = |entry: &&Owned| entry.0.starts_with(b"first");
    for owned in entries.iter().filter(first) {
        let before = reads();
        check_get(&cold, &entries, &owned.0, u64::MAX).unwrap();
        assert_eq!(reads() - before, 3);
    }
    let warm = Form::Paged.open(&files, 8 << 20, &meta).unwrap();
    let before = reads();
    for owned in entries.iter().filter(first) {
        check_get(&warm, &entries, &owned.0, u64::MAX).unwrap();
    }
    assert!(reads() - before <= 200 + 8, "{} reads for 200 blocks", reads() - before);
    let before = reads();
    let piece = Piece { segment: Arc::clone(&cold), clip: None, stamp: Seq::ZERO };
    for owned in entries.iter().filter(first) {
        check_get(&warm, &entries, &owned.0, u64::MAX).unwrap();
        // A snapshot below all entries needs no read. The piece excludes keys out of its bounds.
        check_get(&cold, &entries, &owned.0, 0).unwrap();
        for beyond in [&b"zz"[..], &owned.0[..2]] {
            assert!(!piece.holds(beyond));
        }
    }
    assert_eq!(reads(), before);
    // A get in the segment itself returns the same and costs a read.
    check_get(&cold, &entries, b"zz", u64::MAX).unwrap();
    check_get(&cold, &entries, b"a", u64::MAX).unwrap();
    let before = reads();
    let absent = (0..200).map(|i| format!("first/{i:03}x").into_bytes());
    absent.for_each(|key| check_get(&cold, &entries, &key, u64::MAX).unwrap());
    assert!(reads() - before < 210, "a filter block excludes most keys");
}

#[test]
fn pinned_and_cached_parts_are_within_one_budget() {
    let (_, files) = machine();
    let entries = one_entry_a_block();
    let metas: Vec<_> = (0..12)
        .map(|id| write(&files, WriterOptions { id: ID + id, ..options(512, false) }, &entries).unwrap())
        .collect();
    let pinned = Form::Pinned.open(&files, 0, &metas[0]).unwrap();
    let paged = Form::Paged.open(&files, 0, &metas[0]).unwrap();
    assert!(paged.memory_bytes() < pinned.memory_bytes() * 3 / 4, "{paged:?} against {pinned:?}");
    let cache = cache(pinned.memory_bytes() * 10);
    let within = |segments: &[Arc<Segment>]| {
        let stats = cache.stats();
        let held = segments.iter().map(|segment| segment.memory_bytes()).sum::<u64>();
        assert_eq!(stats.reserved_bytes, held, "all pinned memory is counted");
        assert!(stats.bytes + stats.reserved_bytes <= stats.budget_bytes, "{stats:?}");
    };
    let mut segments = Vec::new();
    for meta in &metas {
        segments.push(open(&files, &cache, meta).unwrap());
        check_scans(segments.last().unwrap(), &entries, true).unwrap();
        within(&segments);
    }
    let paged = segments.iter().filter(|segment| segment.is_paged()).count();
    assert!((6..=8).contains(&paged), "{paged} of 12 are paged");
    assert!(!segments[0].is_paged() && segments[11].is_paged(), "first come, first served");
    // Dropped segments free memory for others.
    segments.drain(..6);
    within(&segments);
    let again = open(&files, &cache, &metas[0]).unwrap();
    assert!(!again.is_paged());
    drop((again, segments));
    assert_eq!((cache.stats().reserved_bytes, cache.stats().bytes), (0, 0));
}

/// Every read of a get, a seek, a walk in each direction fails once.
#[test]
fn reads_of_index_and_filter_blocks_that_fail_are_errors_and_the_next_try_works() {
    let (sim, files) = machine();
    let entries = one_entry_a_block();
    let meta = write(&files, options(512, false), &entries).unwrap();
    let key = &entries[350].0;
    for fault in [Fault::Errno(Errno::IO), Fault::Short(0), Fault::FlipBit(77)] {
        for nth in 0..3 {
            let segment = Form::Paged.open(&files, 0, &meta).unwrap();
            sim.fail(FaultPlan::new(fault).skip(nth));
            let result = check_get(&segment, &entries, key, u64::MAX);
            assert!(
                matches!(result, Err(Error::Io { .. } | Error::Corrupt { .. })),
                "{fault:?} {nth}: {result:?}"
            );
            check_get(&segment, &entries, key, u64::MAX).unwrap();
        }
        for nth in 0..2 {
            let segment = Form::Paged.open(&files, 0, &meta).unwrap();
            let mut cursor = segment.cursor(true);
            sim.fail(FaultPlan::new(fault).skip(nth));
            assert!(cursor.seek(key).is_err(), "{fault:?} {nth}");
            assert_eq!(cursor.entry(), None);
            check_seeks(&mut cursor, &entries, key).unwrap();
        }
    }
}
