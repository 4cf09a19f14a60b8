//! Damage of the medium: every bit flipped; every sector zeroed, replaced by an older version, or swapped with another
//! one; every subset of a torn group. The replay returns all acknowledged records, or refuses with file and offset.
//!
//! The ring is zeroed, as a power cut may leave it, so no record comes back from there.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::support::{Manifest, Random, record};
use aio::sim::{DiskImage, SimBackend};
use aio::{Backend, SECTOR_BYTES};
use wal::{
    ActiveFile, Background, Bounds, ChainRules, Error, Log, LogOptions, Place, ReplayInput, Seq, bounds,
    log_file_path, read_chain, replay, replay_to_damage,
};

const RING_BYTES: usize = 16 << 10;

/// A disk, its log files, and records for it. No group is cut by the end of a file: each is a step or two, as said here.
struct Disk {
    /// The physical block, and so the step.
    block_bytes: usize,
    file_bytes: usize,
    /// The payload of a record that takes a quarter of a file, in bytes.
    quarter: usize,
    /// Records that take a step or two together.
    several: [usize; 3],
    /// Two records that take many sectors together.
    large: [usize; 2],
}

static DISKS: [Disk; 2] = [
    Disk { block_bytes: 512, file_bytes: 4 << 10, quarter: 700, several: [300, 0, 500], large: [1500, 1500] },
    Disk {
        block_bytes: 4096,
        file_bytes: 16 << 10,
        quarter: 1000,
        several: [300, 0, 2000],
        large: [2800, 2800],
    },
];

impl Disk {
    fn sectors(&self) -> usize {
        self.file_bytes / SECTOR_BYTES
    }

    fn options(&self) -> LogOptions {
        LogOptions { file_bytes: self.file_bytes as u64, ..options() }
    }
}

/// A disk image with a log, and the acknowledged records.
struct Specimen {
    disk: &'static Disk,
    image: DiskImage,
    /// The disk after each round, the newest last.
    after_rounds: Vec<DiskImage>,
    files: Vec<ActiveFile>,
    from: Seq,
    acknowledged: Vec<(Seq, Vec<u8>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// All acknowledged records came back.
    Whole,
    /// Refused, with a file and an offset.
    Refused,
}

fn options() -> LogOptions {
    LogOptions {
        ring_bytes: RING_BYTES,
        ring_file_bytes: RING_BYTES,
        background: Background::Manual,
        ..LogOptions::new("/wal", 7, 1, Seq::ZERO)
    }
}

/// A log on a simulated disk, while records are written.
struct Writer {
    disk: &'static Disk,
    sim: SimBackend,
    manifest: Arc<Manifest>,
    log: Log,
    random: Random,
    after_rounds: Vec<DiskImage>,
    from: Seq,
    acknowledged: Vec<(Seq, Vec<u8>)>,
}

impl Writer {
    /// A log whose files are all in their second use: each older sector is a valid one of the first use.
    fn on_recycled_files(disk: &'static Disk) -> Writer {
        let sim = SimBackend::new(1);
        sim.set_physical_block_bytes(disk.block_bytes);
        sim.make_dir(Path::new("/wal")).unwrap();
        sim.sync_dir(Path::new("/")).unwrap();
        let manifest = Arc::new(Manifest::default());
        let host: Arc<Manifest> = Arc::clone(&manifest);
        let log = Log::open(Arc::new(sim.clone()), disk.options(), host).unwrap();
        let random = Random::new(1);
        let (after_rounds, from) = (Vec::new(), Seq::ZERO);
        let mut writer =
            Writer { disk, sim, manifest, log, random, after_rounds, from, acknowledged: Vec::new() };
        for _ in 0..2 {
            for _ in 0..14 {
                writer.group(&[disk.quarter]);
            }
            writer.retire();
        }
        writer
    }

    /// Writes records of these lengths in bytes in one group.
    fn group(&mut self, lengths: &[usize]) {
        let mut records = Vec::new();
        for &length in lengths {
            let payload = self.random.bytes(length);
            let appended = self.log.append(&mut record(&payload)).unwrap();
            records.push((appended.seq, payload));
        }
        let groups = self.log.metrics().groups;
        self.log.sync().unwrap();
        assert_eq!(self.log.metrics().groups, groups + 1);
        self.acknowledged.append(&mut records);
        self.after_rounds.push(self.image());
    }

    /// Retires all log files, as if all records were in segments.
    fn retire(&mut self) {
        self.from = self.log.durable();
        self.acknowledged.clear();
        let retired = self.log.retirable(self.from);
        self.manifest.forget(&retired);
        self.log.retire(&retired).unwrap();
    }

    /// Writes the claim group: an empty group whose header claims how far the log was durable.
    fn claim_group(&mut self) {
        let before = self.log.metrics().claim_groups;
        for _ in 0..2 {
            self.log.run_due().unwrap();
            self.sim.advance(Duration::from_millis(20));
        }
        assert_eq!(self.log.metrics().claim_groups, before + 1);
        self.after_rounds.push(self.image());
    }

    /// The disk after a power cut that kept no unsynced write, with a zeroed ring.
    fn image(&self) -> DiskImage {
        let mut image = self.sim.snapshot().power_cut_none();
        image.damage(&options().ring_path, |ring| ring.fill(0));
        image
    }

    fn specimen(self) -> Specimen {
        Specimen {
            disk: self.disk,
            image: self.image(),
            after_rounds: self.after_rounds,
            files: self.manifest.files(),
            from: self.from,
            acknowledged: self.acknowledged,
        }
    }
}

impl Specimen {
    fn paths(&self) -> Vec<PathBuf> {
        self.files.iter().map(|file| log_file_path(Path::new("/wal"), file.id)).collect()
    }

    fn input(&self) -> ReplayInput {
        let options = self.disk.options();
        ReplayInput {
            directory: options.directory,
            store_id: options.store_id,
            incarnation: options.incarnation,
            incarnation_start: options.start,
            from: self.from,
            files: self.files.clone(),
            file_bytes: options.file_bytes,
            ring_path: options.ring_path,
            ring_bytes: options.ring_bytes,
            ring_file_bytes: options.ring_bytes,
        }
    }

    /// Replays and checks each record. Returns the number of records, or the refusal.
    fn replay(&self, image: &DiskImage) -> Result<usize, Error> {
        let sim = SimBackend::from_image(image.clone(), 1);
        let mut queue = sim.queue(1).unwrap();
        let mut visited = 0;
        let replayed = replay(&sim, &mut *queue, &self.input(), &mut |seq, payload| {
            self.check_record(visited, seq, payload);
            visited += 1;
            Ok(())
        });
        replayed.map(|_| visited)
    }

    /// Replays up to the damage, as a repair does. Returns the number of records, and the bounds of the loss. The acknowledged
    /// records must end inside of them.
    fn salvage(&self, image: &DiskImage) -> (usize, Bounds) {
        let sim = SimBackend::from_image(image.clone(), 1);
        let mut queue = sim.queue(1).unwrap();
        let mut visited = 0;
        let (replayed, damage) = replay_to_damage(&sim, &mut *queue, &self.input(), &mut |seq, payload| {
            self.check_record(visited, seq, payload);
            visited += 1;
            Ok(())
        })
        .unwrap();
        let bounds = bounds(&sim, &mut *queue, &self.input()).unwrap();
        let (seq, payload) = self.acknowledged.last().unwrap();
        let end = seq.plus(record(payload).len_bytes());
        assert!(bounds.least <= end && end <= bounds.durable, "{end:?} is not inside of {bounds:?}");
        assert!(bounds.durable <= bounds.published, "{bounds:?}");
        assert!(damage.is_some() || replayed.end == end);
        (visited, bounds)
    }

    fn check_record(&self, nth: usize, seq: Seq, payload: &[u8]) {
        let (expected_seq, expected) = &self.acknowledged[nth];
        assert_eq!((seq, payload), (*expected_seq, &expected[..]));
    }

    /// Replays a damaged disk; `what` names the damage. Panics if an acknowledged record is missing silently.
    fn outcome(&self, image: &DiskImage, what: &dyn Fn() -> String) -> Outcome {
        match self.replay(image) {
            Ok(visited) => {
                assert_eq!(visited, self.acknowledged.len(), "{} lost records silently", what());
                Outcome::Whole
            }
            Err(Error::Corrupt { file, .. }) => {
                assert!(file.starts_with("/wal"), "{}: {}", what(), file.display());
                Outcome::Refused
            }
            Err(other) => panic!("{}: {other}", what()),
        }
    }
}

/// At least 12 groups in recycled files, and the claim group behind the last one.
fn with_claim_group(disk: &'static Disk) -> Specimen {
    let mut writer = Writer::on_recycled_files(disk);
    for nth in 0..13 {
        writer.group(if nth % 3 == 2 { &disk.several } else { &[40] });
    }
    writer.claim_group();
    let specimen = writer.specimen();
    assert_eq!(specimen.outcome(&specimen.image, &|| "no damage".to_owned()), Outcome::Whole);
    specimen
}

/// A repair keeps every record that ends before the damaged group, and knows the acknowledged end behind it.
#[test]
fn a_repair_keeps_everything_before_the_damage() {
    DISKS.iter().for_each(check_repair);
}

fn check_repair(disk: &'static Disk) {
    let specimen = with_claim_group(disk);
    let all = specimen.acknowledged.len();
    let whole = specimen.salvage(&specimen.image);
    let end = whole.1.durable;
    assert_eq!((whole.0, whole.1.least), (all, end));
    let mut kept_most = 0;
    for (file, path) in specimen.paths().iter().enumerate() {
        let ActiveFile { id, epoch, start } = specimen.files[file];
        let rules = ChainRules {
            place: Place { store_id: options().store_id, file_id: id, epoch },
            incarnation: 1,
            start,
        };
        let chain = read_chain(&specimen.image.read_file(path).unwrap(), &rules);
        for sector in 0..disk.sectors() {
            let offset = (sector * SECTOR_BYTES) as u64;
            let mut image = specimen.image.clone();
            image.flip_bit(path, offset * 8 + 77);
            let (kept, bounds) = specimen.salvage(&image);
            let group = chain.groups.iter().rev().find(|(_, at)| *at <= offset);
            let group_start = group.map_or(start, |(group_start, _)| *group_start);
            let ended = |seq: Seq, payload: &[u8]| seq.plus(record(payload).len_bytes()) <= group_start;
            let before = specimen.acknowledged.iter().filter(|(seq, payload)| ended(*seq, payload)).count();
            assert!(
                kept >= before,
                "{kept} of {before} records before sector {sector} of {}",
                path.display()
            );
            // The claim group names the whole stream, unless the claim group itself is damaged.
            let is_last = file + 1 == specimen.files.len() && group == chain.groups.last();
            let is_exact = bounds.least == end && bounds.durable == end;
            assert!(is_last || is_exact, "{bounds:?} of {end}");
            kept_most = kept_most.max(if kept < all { kept } else { 0 });
        }
    }
    assert!(kept_most > all / 2, "{kept_most} of {all}");
}

/// Counts the outcomes over the damages of all files: `[whole, refused]`. Two threads take half of the files each.
fn tally(specimen: &Specimen, damage: impl Fn(usize) -> Vec<Outcome> + Sync) -> [usize; 2] {
    let (count, damage) = (specimen.files.len(), &damage);
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let halves = [0, 1]
            .map(|half| scope.spawn(move || (half..count).step_by(2).flat_map(damage).collect::<Vec<_>>()));
        halves.into_iter().flat_map(|half| half.join().unwrap()).collect()
    });
    let whole = outcomes.iter().filter(|&&outcome| outcome == Outcome::Whole).count();
    [whole, outcomes.len() - whole]
}

#[test]
fn no_flipped_bit_loses_a_record_silently() {
    DISKS.iter().for_each(check_flips);
}

fn check_flips(disk: &'static Disk) {
    let specimen = with_claim_group(disk);
    let paths = specimen.paths();
    let [whole, refused] = tally(&specimen, |file| {
        let path = &paths[file];
        let flip = |bit: u64| {
            let mut image = specimen.image.clone();
            image.flip_bit(path, bit);
            specimen.outcome(&image, &|| format!("bit {bit} of {}", path.display()))
        };
        (0..disk.file_bytes as u64 * 8).map(flip).collect()
    });
    println!("{} files, {whole} flips did no harm, {refused} were refused, none was silent", paths.len());
    assert_eq!(whole + refused, paths.len() * disk.file_bytes * 8);
    // 13 groups of a step or more each, before the claim group.
    assert!(refused >= 13 * disk.block_bytes * 8, "{refused}");
}

#[test]
fn no_replaced_or_swapped_sector_loses_a_record_silently() {
    DISKS.iter().for_each(check_replaced);
}

fn check_replaced(disk: &'static Disk) {
    let specimen = with_claim_group(disk);
    let paths = specimen.paths();
    let contents: Vec<Vec<u8>> = paths.iter().map(|path| specimen.image.read_file(path).unwrap()).collect();
    let sector = |file: usize, nth: usize| &contents[file][nth * SECTOR_BYTES..(nth + 1) * SECTOR_BYTES];
    let [whole, refused] = tally(&specimen, |file| {
        let mut outcomes = Vec::new();
        for nth in 0..disk.sectors() {
            let mut put = |bytes: &[u8], what: &str, back: Option<(usize, usize)>| {
                let mut image = specimen.image.clone();
                let mut put_at = |file: usize, nth: usize, bytes: &[u8]| {
                    image.damage(&paths[file], |content| {
                        content[nth * SECTOR_BYTES..(nth + 1) * SECTOR_BYTES].copy_from_slice(bytes);
                    });
                };
                put_at(file, nth, bytes);
                if let Some((other, other_nth)) = back {
                    put_at(other, other_nth, sector(file, nth));
                }
                outcomes.push(specimen.outcome(&image, &|| format!("sector {nth} of file {file} {what}")));
            };
            put(&[0; SECTOR_BYTES], "zeroed", None);
            for (age, version) in specimen.after_rounds.iter().enumerate() {
                if let Some(older) = version.read_file(&paths[file]) {
                    put(&older[nth * SECTOR_BYTES..(nth + 1) * SECTOR_BYTES], &format!("as of {age}"), None);
                }
            }
            for other in file..paths.len() {
                let first = if other == file { nth + 1 } else { 0 };
                for other_nth in first..disk.sectors() {
                    let what = format!("exchanged with {other_nth} of file {other}");
                    put(sector(other, other_nth), &what, Some((other, other_nth)));
                }
            }
        }
        outcomes
    });
    println!("{whole} changed sectors did no harm, {refused} were refused, none was silent");
    assert!(whole > 0, "some replacements equal the sector");
    assert!(refused > 13 * disk.sectors(), "{refused}");
}

/// A power cut keeps any subset of the sectors of the newest group, which was not acknowledged.
#[test]
fn every_torn_newest_group_opens_without_it() {
    DISKS.iter().for_each(check_torn);
}

fn check_torn(disk: &'static Disk) {
    for lengths in [&[disk.quarter][..], &disk.large] {
        let mut writer = Writer::on_recycled_files(disk);
        writer.group(&[40]);
        let before = writer.image();
        let known = writer.acknowledged.len();
        writer.group(lengths);
        let specimen = writer.specimen();
        let path = specimen.paths().pop().unwrap();
        let (old, new) = (before.read_file(&path).unwrap(), specimen.image.read_file(&path).unwrap());
        let changed: Vec<usize> = (0..disk.file_bytes)
            .step_by(SECTOR_BYTES)
            .filter(|&at| old[at..at + SECTOR_BYTES] != new[at..at + SECTOR_BYTES])
            .collect();
        let expected = if disk.block_bytes == 512 { [2, 7] } else { [8, 16] };
        assert!(expected.contains(&changed.len()), "{} sectors", changed.len());
        let states = 1_u32 << changed.len();
        for kept in 0..states {
            let mut image = before.clone();
            image.damage(&path, |content| {
                for (nth, &at) in changed.iter().enumerate() {
                    if kept & (1 << nth) != 0 {
                        content[at..at + SECTOR_BYTES].copy_from_slice(&new[at..at + SECTOR_BYTES]);
                    }
                }
            });
            let expected = if kept == states - 1 { specimen.acknowledged.len() } else { known };
            let found = specimen.replay(&image).unwrap_or_else(|error| panic!("{kept:b}: {error}"));
            assert_eq!(found, expected, "{kept:b}");
        }
    }
}
