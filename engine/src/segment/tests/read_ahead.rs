//! Cursors that read ahead: with failing reads, and with little memory.

use super::super::pages::PIECE_BLOCKS;
use super::*;
use crate::io::background::JobKind;

/// Steps through a whole segment while the `nth` read fails. Returns the number of reads.
fn walk_with_failure(form: Form, nth: u64, is_forward: bool) -> Result<u64> {
    let (sim, files) = machine();
    let entries = random_entries(&mut Random::new(6), 300, 100);
    let meta = write(&files, options(512, false), &entries).unwrap();
    let segment = form.open(&files, 1 << 20, &meta).unwrap();
    if form == Form::Paged {
        // The index blocks are in the cache, so they are not read ahead.
        for number in segment.blocks..segment.blocks + segment.blocks.div_ceil(PIECE_BLOCKS) {
            segment.page(number, true).unwrap();
        }
    }
    let before = sim.profile().read().count;
    sim.fail(FaultPlan::new(Fault::Errno(Errno::IO)).skip(nth));
    let mut cursor = segment.cursor(true);
    if is_forward {
        cursor.seek(b"")?;
        for owned in &entries {
            assert_eq!(cursor.entry(), Some(entry(owned)));
            cursor.next()?;
        }
    } else {
        cursor.seek_before(None)?;
        for owned in entries.iter().rev() {
            assert_eq!(cursor.entry(), Some(entry(owned)));
            cursor.prev()?;
        }
    }
    assert_eq!(cursor.entry(), None);
    Ok(sim.profile().read().count - before)
}

#[test]
fn scans_read_ahead_and_leave_the_cache_alone_unless_asked_to_fill_it() {
    let mut random = Random::new(5);
    let (sim, files) = machine();
    let entries = random_entries(&mut random, 4000, 300);
    let meta = write(&files, options(4096, false), &entries).unwrap();
    let cache = cache(64 << 20);
    let segment = open(&files, &cache, &meta).unwrap();
    let scan = |fill_cache| {
        let before = sim.profile().read().count;
        let mut cursor = segment.cursor(fill_cache);
        cursor.seek(b"").unwrap();
        let mut count = 0;
        while cursor.entry().is_some() {
            count += 1;
            cursor.next().unwrap();
        }
        assert_eq!(count, entries.len());
        sim.profile().read().count - before
    };
    let most = meta.size_bytes / (256 << 10) + 6;
    assert!(scan(false) <= most);
    assert_eq!(cache.stats().values, 0);
    assert!(scan(true) <= most);
    assert_eq!(scan(true), 0);
    assert_eq!(scan(false), 0);
}

#[test]
fn a_read_ahead_that_fails_is_no_failure_of_the_block_that_is_wanted() {
    for (form, is_forward) in FORMS.into_iter().flat_map(|form| [(form, true), (form, false)]) {
        let reads = walk_with_failure(form, 1000, is_forward).unwrap();
        assert!(reads >= 5, "{reads} reads are too few to tell");
        assert!(
            walk_with_failure(form, 0, is_forward).is_err(),
            "the first read is of the one requested block"
        );
        // The last read may be of one block only, too.
        for nth in 1..reads - 1 {
            match walk_with_failure(form, nth, is_forward) {
                Ok(again) => assert!(again > reads, "read {nth} was made once more"),
                // A read ahead ends with the index block. It may contain only the requested block.
                Err(error) => assert_eq!(form, Form::Paged, "read {nth}: {error}"),
            }
        }
    }
}

#[test]
fn cursors_return_the_same_for_every_limit_of_read_ahead() {
    let mut random = Random::new(9);
    for (allowance, form) in
        [0, 20_000, 40_000, 1 << 20].into_iter().flat_map(|bytes| FORMS.map(|form| (bytes, form)))
    {
        let sim = machine().0;
        let files = Arc::new(Files::new(Arc::new(sim.clone()), Path::new(ROOT), allowance));
        let entries = random_entries(&mut random, 2000, 200);
        let meta = write(&files, options(4096, false), &entries).unwrap();
        let segment = form.open(&files, 0, &meta).unwrap();
        // The cache gets no memory.
        std::mem::forget(ReservedBytes::take(&segment.cache, 1 << 30));
        let pieces = if form == Form::Paged { segment.blocks.div_ceil(PIECE_BLOCKS) } else { 0 };
        let blocks = u64::try_from(segment.blocks + pieces).unwrap();
        let mut cursors: Vec<_> = (0..10).map(|_| segment.cursor(true)).collect();
        let before = sim.profile().read().count;
        for cursor in &mut cursors {
            cursor.seek(b"").unwrap();
        }
        for owned in &entries {
            for cursor in &mut cursors {
                assert_eq!(cursor.entry(), Some(entry(owned)));
                cursor.next().unwrap();
            }
        }
        let reads = sim.profile().read().count - before;
        assert_eq!(
            reads == 10 * blocks,
            allowance < 40_000,
            "{reads} reads for {blocks} blocks with {allowance}"
        );
        drop(cursors);
        let most = files.read_ahead().widen(usize::MAX);
        assert_eq!(most, allowance / 2, "all memory was given back");
        check_scans(&segment, &entries, true).unwrap();
    }
}

/// Walks the inputs of a job in turns; the buffers that they held at most, and the reads that they made.
fn walk_as_job(form: Form, sim: &SimBackend, files: &Arc<Files>, meta: &SegmentMeta) -> Result<(usize, u64)> {
    let segment = form.open(files, 1 << 20, meta)?;
    let lane = Lane::new(files, JobKind::Merge)?;
    let mut cursors: Vec<_> = (0..3).map(|_| segment.job_cursor(&lane)).collect();
    let (mut most, before) = (0, sim.profile().read().count);
    for cursor in &mut cursors {
        cursor.seek(b"")?;
    }
    while cursors[0].entry().is_some() {
        for cursor in &mut cursors {
            cursor.next()?;
        }
        most = most.max(files.leases());
    }
    Ok((most, sim.profile().read().count - before))
}

#[test]
fn inputs_of_a_job_hold_two_windows_each_and_read_every_block_once() {
    let (sim, files) = machine();
    let entries = random_entries(&mut Random::new(8), 4000, 300);
    let meta = write(&files, options(4096, false), &entries).unwrap();
    let windows = meta.size_bytes.div_ceil(128 << 10);
    let (most, reads) = walk_as_job(Form::Pinned, &sim, &files, &meta).unwrap();
    assert_eq!(most, 6);
    assert!((3 * (windows - 1)..=3 * (windows + 1)).contains(&reads), "{reads} reads of {windows} windows");
    assert!(walk_as_job(Form::Paged, &sim, &files, &meta).unwrap().0 <= 6);
    assert_eq!(files.leases(), 0);
}

#[test]
fn an_input_of_a_job_that_cannot_be_read_fails_the_job_and_leaks_nothing() {
    for form in FORMS {
        let (sim, files) = machine();
        let entries = random_entries(&mut Random::new(8), 1000, 300);
        let meta = write(&files, options(4096, false), &entries).unwrap();
        let reads = walk_as_job(form, &sim, &files, &meta).unwrap().1;
        for nth in 0..reads {
            for fault in [Fault::Errno(Errno::IO), Fault::Short(512), Fault::FlipBit(7)] {
                // Behind the reads that open the segment.
                let plan = FaultPlan::new(fault).on(&[EventKind::Read]).skip(3 + nth);
                let struck = sim.faults_struck();
                sim.fail(plan);
                let result = walk_as_job(form, &sim, &files, &meta);
                assert_eq!(result.is_err(), sim.faults_struck() > struck, "{form:?} {fault:?} {nth}");
                assert_eq!(files.leases(), 0, "{form:?} {fault:?} {nth}");
                sim.clear_faults();
            }
        }
    }
}
