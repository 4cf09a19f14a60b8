//! The log on the simulated disk: crashes at every event, several incarnations, recycled files. A replay gives
//! a prefix that holds everything acknowledged.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::support::{Manifest, RING_FIRST_BYTES, Random, record, seed};
use aio::sim::{DiskImage, SimBackend};
use aio::{Alignment, Backend, SECTOR_BYTES};
use wal::{
    ActiveFile, Appended, Background, Error, Log, LogOptions, ReplayInput, Replayed, STEP, Seq, Verdict,
    log_file_path, replay,
};

const STORE: u64 = 99;
const RING_BYTES: usize = 16 << 10;
const FILE_BYTES: u64 = 16 << 10;

/// One incarnation, as the test knows it.
#[derive(Default)]
struct Incarnation {
    number: u32,
    start: Seq,
    /// Everything below is in segments, so to say.
    from: Seq,
    recycled: u64,
    /// In order, also those whose append was cut short.
    appended: Vec<(Seq, Vec<u8>)>,
    /// Ends of records and voids.
    ends: Vec<Seq>,
    /// Stream bytes below are durable, also those of a record that ends above.
    bytes: Seq,
    durable: Seq,
    process: Seq,
    closed: bool,
}

fn options(incarnation: u32, start: Seq) -> LogOptions {
    LogOptions {
        ring_bytes: RING_BYTES,
        ring_file_bytes: RING_FIRST_BYTES,
        file_bytes: FILE_BYTES,
        background: Background::Manual,
        ..LogOptions::new("/wal", STORE, incarnation, start)
    }
}

/// With a ring of which `ring_file_bytes` are there.
fn input(incarnation: &Incarnation, (files, ring_file_bytes): (Vec<ActiveFile>, usize)) -> ReplayInput {
    ReplayInput {
        directory: "/wal".into(),
        store_id: STORE,
        incarnation: incarnation.number,
        incarnation_start: incarnation.start,
        from: incarnation.from,
        files,
        file_bytes: FILE_BYTES,
        ring_path: ring_path(incarnation),
        ring_bytes: RING_BYTES,
        ring_file_bytes,
    }
}

fn ring_path(incarnation: &Incarnation) -> PathBuf {
    options(incarnation.number, incarnation.start).ring_path
}

/// A disk with a directory for the log.
fn disk() -> DiskImage {
    let sim = SimBackend::new(0);
    sim.make_dir(Path::new("/wal")).unwrap();
    sim.sync_dir(Path::new("/")).unwrap();
    sim.snapshot().power_cut_all()
}

/// Appends random records, waits for some, drains, retires, and at last closes; stops at the first error.
fn live(sim: &SimBackend, manifest: &Arc<Manifest>, incarnation: &mut Incarnation, records: u64) {
    let mut random = Random::new(u64::from(incarnation.number));
    let host: Arc<Manifest> = Arc::clone(manifest);
    let Ok(log) = Log::open(Arc::new(sim.clone()), options(incarnation.number, incarnation.start), host)
    else {
        assert!(sim.has_crashed());
        return;
    };
    let outcome = (0..records).try_for_each(|nth| step(sim, manifest, incarnation, (&log, nth, &mut random)));
    incarnation.recycled = log.metrics().recycled;
    incarnation.closed = outcome.and_then(|()| log.close()).is_ok();
    // Whether or not the last step failed: a round before its failure may have ended.
    incarnation.bytes = log.durable();
    assert!(incarnation.closed || sim.has_crashed());
    if incarnation.closed {
        incarnation.durable = log.durable();
        assert_eq!(log.durable(), log.published());
    }
}

fn step(
    sim: &SimBackend,
    manifest: &Manifest,
    incarnation: &mut Incarnation,
    (log, nth, random): (&Log, u64, &mut Random),
) -> Result<(), Error> {
    let most = if nth.is_multiple_of(8) { 3900 } else { 300 };
    let len = usize::try_from(random.below(most)).unwrap();
    let payload = random.bytes(len);
    if random.below(8) == 0 {
        // A writer gives up: nothing of it comes back.
        let mut record = record(&payload);
        let reservation = log.reserve(&mut record)?;
        incarnation.ends.push(reservation.place().end);
        return Ok(());
    }
    incarnation.appended.push((log.published(), payload.clone()));
    let Appended { seq, end } = log.append(&mut record(&payload))?;
    assert_eq!(seq, incarnation.appended.last().unwrap().0);
    log.wait_process(end)?;
    if sim.has_crashed() {
        // Stores into a map do not fail, so no call has returned an error yet.
        return Err(Error::Closed);
    }
    incarnation.process = end;
    incarnation.ends.push(end);
    match random.below(10) {
        0..4 => log.wait_durable(end)?,
        4 => {
            sim.advance(Duration::from_millis(20));
            log.run_due()?;
            sim.advance(Duration::from_millis(20));
            log.run_due()?;
        }
        5 => {
            log.sync()?;
            incarnation.from = end;
            let retired = log.retirable(end);
            manifest.forget(&retired);
            log.retire(&retired)?;
        }
        _ => {}
    }
    // A group that meets the end of its file ends inside a record, which counts when it is whole.
    let durable = log.durable();
    incarnation.durable =
        incarnation.ends.iter().rev().find(|&&end| end <= durable).copied().unwrap_or(incarnation.start);
    Ok(())
}

/// With the log files, and how much of the ring is there.
fn run_replay(
    image: DiskImage,
    incarnation: &Incarnation,
    files: (Vec<ActiveFile>, usize),
) -> Result<(Replayed, usize), Error> {
    let sim = SimBackend::from_image(image, 5);
    let mut queue = sim.queue(4).unwrap();
    let expected =
        &incarnation.appended[incarnation.appended.partition_point(|(seq, _)| *seq < incarnation.from)..];
    let mut visited = 0;
    let replayed = replay(&sim, &mut *queue, &input(incarnation, files), &mut |seq, payload| {
        assert!(visited < expected.len(), "a record that was not appended at {seq}");
        assert_eq!((seq, payload), (expected[visited].0, &expected[visited].1[..]));
        visited += 1;
        Ok(())
    })?;
    Ok((replayed, visited))
}

/// Replays the disk that a crash has left, and checks the promise.
fn check(image: &DiskImage, incarnation: &Incarnation, manifest: &Manifest, acknowledged: Seq) -> Replayed {
    let files = (manifest.files(), manifest.ring_file_bytes());
    let (replayed, _) =
        run_replay(image.clone(), incarnation, files).unwrap_or_else(|error| panic!("{error}"));
    assert!(replayed.end >= acknowledged, "{replayed:?} lost records acknowledged up to {acknowledged}");
    assert!(
        replayed.log_end >= incarnation.bytes,
        "{replayed:?}: stream bytes that a sync covered are gone, of {}",
        incarnation.bytes
    );
    replayed
}

/// Crashes at every event of a second incarnation, which recycles its files; then at a random one of a third
/// incarnation.
#[test]
fn every_crash_leaves_a_prefix_with_everything_acknowledged() {
    for block_bytes in [SECTOR_BYTES, STEP] {
        every_crash_on(block_bytes);
    }
}

/// On a disk of which every write changes blocks of this size.
fn every_crash_on(block_bytes: usize) {
    let seed = seed();
    // The first incarnation is the same each time, and closes.
    let first_manifest = || {
        let (sim, manifest) = (SimBackend::from_image(disk(), seed), Arc::new(Manifest::default()));
        sim.set_physical_block_bytes(block_bytes);
        let mut incarnation = Incarnation { number: 1, ..Incarnation::default() };
        live(&sim, &manifest, &mut incarnation, 40);
        assert!(incarnation.closed);
        (sim, manifest, incarnation)
    };
    let (sim, _, _) = first_manifest();
    let before = sim.events();
    let mut random = Random::new(seed);
    let (mut k, mut crashed, mut torn, mut from_ring, mut recycled) = (before, true, 0, 0, 0);
    while crashed {
        let (sim, manifest, first) = first_manifest();
        // A store removes the files of the incarnation before when the new one is in its manifest.
        for id in manifest.forget_all() {
            sim.remove(&log_file_path(Path::new("/wal"), id)).unwrap();
        }
        sim.crash_at(k);
        let mut incarnation =
            Incarnation { number: 2, start: first.durable, from: first.durable, ..Incarnation::default() };
        (incarnation.durable, incarnation.process) = (incarnation.start, incarnation.start);
        live(&sim, &manifest, &mut incarnation, 150);
        crashed = sim.has_crashed();
        recycled = incarnation.recycled;
        k += 1;
        let image = sim.snapshot();
        if image.read_file(&ring_path(&incarnation)).is_none_or(|ring| ring.len() < RING_FIRST_BYTES)
            || incarnation.appended.is_empty()
        {
            // Before `open` returned, no manifest names the incarnation.
            continue;
        }
        let process =
            check(&image.process_crash(random.next()), &incarnation, &manifest, incarnation.process);
        from_ring += process.ring_bytes;
        check(&image.power_cut_all(), &incarnation, &manifest, incarnation.durable);
        check(&image.power_cut_none(), &incarnation, &manifest, incarnation.durable);
        let mut left = image.power_cut_none();
        for _ in 0..4 {
            left = image.power_cut_random(random.next());
            let replayed = check(&left, &incarnation, &manifest, incarnation.durable);
            torn += u32::from(replayed.verdict == Verdict::TornTail);
        }
        next_incarnation(left, (&incarnation, &manifest), &mut random);
    }
    println!(
        "blocks of {block_bytes}: {} crash points, {torn} torn tails, {from_ring} bytes from the ring",
        k - before
    );
    assert!(recycled > 2, "retired files are used again: {recycled}");
    assert!(torn > 0, "some crash tears a group");
    assert!(from_ring > 0, "some process crash leaves records that only the ring has");
}

/// The incarnation after a crash never goes on in old files; it begins behind everything replayed.
fn next_incarnation(
    image: DiskImage,
    (incarnation, manifest): (&Incarnation, &Arc<Manifest>),
    random: &mut Random,
) {
    let (replayed, _) =
        run_replay(image.clone(), incarnation, (manifest.files(), manifest.ring_file_bytes())).unwrap();
    let sim = SimBackend::from_image(image, random.next());
    for id in manifest.forget_all() {
        sim.remove(&log_file_path(Path::new("/wal"), id)).unwrap();
    }
    let start = replayed.end;
    let mut next = Incarnation {
        number: 3,
        start,
        from: start,
        durable: start,
        process: start,
        ..Incarnation::default()
    };
    sim.crash_at(sim.events() + 15 + random.below(60));
    live(&sim, manifest, &mut next, 20);
    if next.appended.is_empty() {
        return;
    }
    let image = sim.snapshot();
    check(&image.process_crash(random.next()), &next, manifest, next.process);
    check(&image.power_cut_random(random.next()), &next, manifest, next.durable);
}

/// One incarnation with several files, closed.
fn closed_incarnation(records: u64) -> (SimBackend, Arc<Manifest>, Incarnation) {
    let (sim, manifest) = (SimBackend::from_image(disk(), 3), Arc::new(Manifest::default()));
    let mut incarnation = Incarnation { number: 6, ..Incarnation::default() };
    live(&sim, &manifest, &mut incarnation, records);
    assert!(incarnation.closed);
    (sim, manifest, incarnation)
}

#[test]
fn damage_of_any_sector_in_use_is_reported_and_never_loses_a_record() {
    let (sim, manifest, incarnation) = closed_incarnation(24);
    let (files, ring) = (manifest.files(), manifest.ring_file_bytes());
    assert!(files.len() >= 2, "several files are in use");
    let whole = run_replay(sim.snapshot(), &incarnation, (files.clone(), ring)).unwrap();
    let (mut reported, mut random) = (0, Random::new(seed()));
    for file in &files {
        let path = log_file_path(Path::new("/wal"), file.id);
        for sector in 0..FILE_BYTES / SECTOR_BYTES as u64 {
            for flip in [false, true] {
                let mut image = sim.snapshot();
                if flip {
                    image.flip_bit(&path, sector * 4096 + random.below(4096));
                } else {
                    image.zero_sector(&path, sector);
                }
                match run_replay(image, &incarnation, (files.clone(), ring)) {
                    // The ring may replace a lost group, and the claim group holds no records.
                    Ok(found) => assert_eq!((found.0.end, found.1), (whole.0.end, whole.1)),
                    Err(Error::Corrupt { file, .. }) => {
                        assert_eq!(file, path);
                        reported += 1;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }
    assert!(reported > 20, "damage is reported: {reported}");
}

#[test]
fn missing_and_short_files_are_corruption() {
    let (sim, manifest, incarnation) = closed_incarnation(24);
    let (files, ring) = (manifest.files(), manifest.ring_file_bytes());
    let mut paths: Vec<_> = files.iter().map(|file| log_file_path(Path::new("/wal"), file.id)).collect();
    paths.push(ring_path(&incarnation));
    for path in &paths {
        let mut missing = sim.snapshot();
        assert!(missing.remove_file(path));
        let mut short = sim.snapshot();
        short.damage(path, |bytes| bytes.truncate(bytes.len() - 4096));
        for image in [missing, short] {
            let error = run_replay(image, &incarnation, (files.clone(), ring)).unwrap_err();
            assert!(matches!(&error, Error::Corrupt { file, .. } if file == path), "{error}");
        }
    }
    let error = run_replay(sim.snapshot(), &incarnation, (files[1..].to_vec(), ring));
    assert!(incarnation.from >= files[1].start || error.is_err(), "a file in front is missing");
    let mut exchanged = files.clone();
    exchanged.swap(0, 1);
    assert!(run_replay(sim.snapshot(), &incarnation, (exchanged, ring)).is_err());
}

#[test]
fn a_log_that_ends_before_the_segments_is_corruption() {
    let (sim, manifest, mut incarnation) = closed_incarnation(10);
    incarnation.from = incarnation.durable.plus(32);
    assert!(matches!(
        run_replay(sim.snapshot(), &incarnation, (manifest.files(), manifest.ring_file_bytes())),
        Err(Error::Corrupt { .. })
    ));
}

#[test]
fn records_come_back_from_the_ring_alone_after_a_kill() {
    let (sim, manifest) = (SimBackend::from_image(disk(), 3), Arc::new(Manifest::default()));
    let mut incarnation = Incarnation { number: 1, ..Incarnation::default() };
    let host: Arc<Manifest> = Arc::clone(&manifest);
    let log = Log::open(Arc::new(sim.clone()), options(1, Seq::ZERO), host).unwrap();
    for nth in 0..20_u8 {
        incarnation.appended.push((log.published(), vec![nth; 100]));
        let appended = log.append(&mut record(&[nth; 100])).unwrap();
        log.wait_process(appended.end).unwrap();
    }
    assert_eq!(log.metrics().groups, 0, "nothing was written");
    let (replayed, visited) = run_replay(
        sim.snapshot().process_crash(1),
        &incarnation,
        (manifest.files(), manifest.ring_file_bytes()),
    )
    .unwrap();
    assert_eq!((visited, replayed.log_bytes, replayed.end), (20, 0, log.published()));
    let (replayed, visited) = run_replay(
        sim.snapshot().power_cut_none(),
        &incarnation,
        (manifest.files(), manifest.ring_file_bytes()),
    )
    .unwrap();
    assert_eq!((visited, replayed.end), (0, Seq::ZERO));
}

#[test]
fn drains_run_after_the_interval_and_leave_a_claim_group() {
    let (sim, manifest) = (SimBackend::from_image(disk(), 3), Arc::new(Manifest::default()));
    let log = Log::open(Arc::new(sim.clone()), options(1, Seq::ZERO), manifest).unwrap();
    let end = log.append(&mut record(b"one")).unwrap().end;
    assert!(!log.run_due().unwrap(), "not due yet");
    sim.advance(Duration::from_millis(9));
    assert!(!log.run_due().unwrap(), "not due yet");
    sim.advance(Duration::from_millis(1));
    assert!(log.run_due().unwrap());
    assert_eq!((log.durable(), log.metrics().claim_groups), (end, 0));
    assert!(!log.run_due().unwrap());
    sim.advance(Duration::from_millis(10));
    assert!(log.run_due().unwrap());
    assert_eq!(log.metrics().claim_groups, 1);
    sim.advance(Duration::from_millis(10));
    assert!(!log.run_due().unwrap(), "one claim group is enough");
}

/// A group takes whole alignments of the file and whole physical blocks of the device, and no more.
#[test]
fn groups_are_padded_to_the_alignment_and_to_the_physical_block() {
    for (alignment, block, buffered, step) in [
        (512, 512, false, 512),
        (512, 4096, false, 4096),
        (2048, 512, false, 2048),
        (4096, 512, false, 4096),
        (512, 512, true, 4096),
    ] {
        let (sim, manifest) = (SimBackend::from_image(disk(), 3), Arc::new(Manifest::default()));
        sim.set_alignment(Alignment { memory_bytes: 512, offset_bytes: alignment });
        sim.set_physical_block_bytes(block);
        sim.set_buffered(buffered);
        let log = Log::open(Arc::new(sim.clone()), options(1, Seq::ZERO), manifest).unwrap();
        for _ in 0..3 {
            let end = log.append(&mut record(b"one")).unwrap().end;
            log.wait_durable(end).unwrap();
        }
        assert_eq!(
            (log.metrics().groups, log.metrics().written_bytes),
            (3, 3 * step),
            "{alignment}, {block}, {buffered}"
        );
        log.close().unwrap();
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    let hash = || closed_incarnation(30).0.trace_hash();
    assert_eq!(hash(), hash());
}
