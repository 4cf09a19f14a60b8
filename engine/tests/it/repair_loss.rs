//! A repair tells the truth: the loss that it announces is never smaller than the one that a comparison finds, "nothing" is
//! never said where something is lost, and every damaged file is named.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aio::SimBackend;
use aio::sim::DiskImage;
use esker::testing::{Background, BuilderExt, Sizes};
use esker::{Builder, Damage, Db, Durability, Error, LogDamage};

use super::random::Random;

const ROOT: &str = "/store";

/// The two keyspaces of the stores below.
const KEYSPACES: [&str; 2] = ["default", "other"];

fn builder(sim: &SimBackend) -> Builder {
    let sizes = Sizes {
        ring_bytes: Some(32 << 10),
        log_file_bytes: Some(32 << 10),
        memtable_bytes: Some(1 << 20),
        ..Sizes::default()
    };
    Db::builder().backend(Arc::new(sim.clone())).background(Background::Manual).sizes(sizes)
}

/// A put that was acknowledged.
struct Put {
    keyspace: usize,
    key: String,
    /// Bytes in the log: header, number of operations, operation, key and value, up to a whole granule.
    log_bytes: u64,
}

/// A store, and what it has acknowledged.
struct Specimen {
    image: DiskImage,
    puts: Vec<Put>,
    /// So many of them were durable.
    durable: usize,
}

fn specimen(random: &mut Random, has_ring: bool) -> Specimen {
    let seed = random.below(1 << 30);
    let sim = SimBackend::new(seed as u64);
    sim.set_physical_block_bytes(BLOCKS[seed % 2]);
    let db = builder(&sim).open(ROOT).unwrap();
    let keyspaces = KEYSPACES.map(|name| db.keyspace(name).unwrap());
    let (mut puts, mut durable) = (Vec::new(), 0);
    let count = 40 + random.below(200);
    // Up to here everything is flushed; the log files of it may stay.
    let flushed = if random.below(3) == 0 { random.below(count) } else { 0 };
    for nth in 0..count {
        let keyspace = random.below(2);
        let (key, value) = (format!("key {nth:05}"), vec![b'v'; random.below(900)]);
        let is_durable = random.below(3) > 0;
        let level = if is_durable { Durability::Power } else { Durability::Process };
        keyspaces[keyspace].with_durability(level).put(&key, &value).unwrap();
        let log_bytes = ((8 + 4 + 11 + key.len() + value.len()) as u64).next_multiple_of(32);
        puts.push(Put { keyspace, key, log_bytes });
        if is_durable {
            durable = puts.len();
        }
        if nth + 1 == flushed {
            db.flush().unwrap();
            durable = puts.len();
        }
    }
    let mut image = sim.snapshot().process_crash(1);
    if !has_ring {
        puts.truncate(durable);
        lose_ring(&mut image);
    }
    Specimen { image, puts, durable }
}

fn files(image: &DiskImage, part: &str) -> Vec<PathBuf> {
    let names = image.files().into_iter().map(|(path, _)| path);
    let mut found: Vec<_> = names.filter(|path| path.to_string_lossy().contains(part)).collect();
    found.sort();
    found
}

fn lose_ring(image: &mut DiskImage) {
    for ring in files(image, "/ring-") {
        image.damage(&ring, |bytes| bytes.fill(0));
    }
}

/// A lost sector of the newest group cannot be told from a write that a loss of power has torn.
const ZEROED: &str = "lost sector";

/// A file that is zero from a group to its end cannot be told from one in which that group was never written.
const ZERO_TAIL: &str = "zero from";

/// The files have only to get their names back.
const EXCHANGED: &str = "exchanged with";

/// Damages one file. Says how, for a failure.
fn damage(image: &mut DiskImage, random: &mut Random) -> String {
    let (logs, rings, segments) = (files(image, ".log"), files(image, "/ring-"), files(image, ".seg"));
    let pick = |random: &mut Random, among: &[PathBuf]| among[random.below(among.len())].clone();
    let kind = random.below(10);
    let path = match kind {
        8 if !rings.is_empty() => pick(random, &rings),
        9 if !segments.is_empty() => pick(random, &segments),
        _ => pick(random, &logs),
    };
    let len = image.read_file(&path).unwrap().len();
    let said = match random.below(6) {
        0 => {
            let used = image.read_file(&path).unwrap().iter().rposition(|byte| *byte != 0).unwrap_or(0);
            let bit = random.below((used + 1) * 8);
            image.flip_bit(&path, bit as u64);
            format!("bit {bit} flipped")
        }
        1 => {
            let to = random.below(len);
            image.damage(&path, |bytes| bytes.truncate(to));
            format!("cut to {to}")
        }
        2 => {
            let used = image.read_file(&path).unwrap().iter().rposition(|byte| *byte != 0).unwrap_or(0);
            let sector = random.below(used / 512 + 1);
            image.zero_sector(&path, sector as u64);
            format!("{ZEROED} {sector}")
        }
        3 => {
            image.remove_file(&path);
            "missing".to_owned()
        }
        4 if path.to_string_lossy().ends_with(".log") => {
            let used = image.read_file(&path).unwrap().iter().rposition(|byte| *byte != 0).unwrap_or(0);
            let from = random.below(used + 1);
            image.damage(&path, |bytes| bytes[from..].fill(0));
            format!("{ZERO_TAIL} {from} on")
        }
        _ if path.to_string_lossy().ends_with(".log") => {
            let other = pick(random, &logs);
            let (one, two) = (image.read_file(&path).unwrap(), image.read_file(&other).unwrap());
            image.write_file(&path, &two);
            image.write_file(&other, &one);
            format!("{EXCHANGED} {}", other.display())
        }
        _ => {
            image.damage(&path, |bytes| bytes[len / 2..].fill(0xa5));
            "half overwritten".to_owned()
        }
    };
    format!("{} {said}", path.display())
}

impl Specimen {
    /// Bytes of the acknowledged puts that the store lacks: of the durable ones, and of all. They must be the last ones, but
    /// for those that segments have.
    fn lost_bytes(&self, db: &Db) -> (u64, u64) {
        let found = KEYSPACES.map(|name| -> BTreeMap<_, _> {
            db.keyspace(name).unwrap().iter().map(Result::unwrap).collect()
        });
        let (mut durable, mut all) = (0, 0);
        for (nth, put) in self.puts.iter().enumerate() {
            if !found[put.keyspace].contains_key(put.key.as_bytes()) {
                all += put.log_bytes;
                durable += if nth < self.durable { put.log_bytes } else { 0 };
            }
        }
        (durable, all)
    }

    fn check_announced(&self, log: &LogDamage, db: &Db, how: &str) {
        let (durable, all) = self.lost_bytes(db);
        let loss = log.loss;
        assert!(loss.at_least_bytes <= all, "{how}: {loss:?}, lost are {all}");
        assert!(durable <= loss.at_most_durable_bytes, "{how}: {loss:?}, lost are {durable} durable bytes");
        assert!(all <= loss.at_most_bytes, "{how}: {loss:?}, lost are {all} bytes");
        assert!(durable == 0 || !loss.to_string().contains("no durable write is lost"), "{how}: {loss}");
    }
}

#[test]
fn an_announced_loss_is_never_smaller_than_the_real_one() {
    let mut random = Random::new(19);
    let (mut cut, mut unknown, mut sound, mut segments, mut renamed) = (0, 0, 0, 0, 0);
    for nth in 0..200 {
        let has_ring = nth % 2 == 0;
        let specimen = specimen(&mut random, has_ring);
        let mut image = specimen.image.clone();
        let count = 1 + random.below(2);
        let mut how: Vec<_> = (0..count).map(|_| damage(&mut image, &mut random)).collect();
        how.push(format!("store {nth}, with a ring: {has_ring}"));
        let how = how.join("; ");
        let sim = SimBackend::from_image(image.clone(), 7);
        let opened = builder(&SimBackend::from_image(image.clone(), 7)).open(ROOT);
        let found = match builder(&sim).find_damage(ROOT) {
            Ok(found) => found,
            Err(error) => {
                assert!(how.contains(EXCHANGED) && !error.is_repairable(), "{how}: {error}");
                let refused =
                    [opened.map(drop), builder(&sim).repair(ROOT).map(drop)].map(Result::unwrap_err);
                assert_eq!(refused.map(|error| error.to_string()), [error.to_string(), error.to_string()]);
                assert_eq!(sim.snapshot().fingerprint(), image.fingerprint(), "{how}");
                renamed += 1;
                continue;
            }
        };
        segments += found.segments.len();
        let Some(log) = found.log else {
            // Damage in the ring is the end of its records. All other damage to one file is found. Two can hide each other: the
            // last log file and a new one change places, and then the file with the groups is lost.
            if found.segments.is_empty() && count == 1 {
                let (durable, _) = specimen.lost_bytes(&opened.unwrap());
                // Of a group of one sector nothing is left that looks torn.
                let is_torn = how.contains(ZEROED)
                    && (found.torn_tail || durable < 512 && specimen.image.physical_block_bytes() == 512);
                assert!(durable == 0 || is_torn || how.contains(ZERO_TAIL), "{durable} bytes: {how}");
                sound += 1;
            }
            continue;
        };
        assert!(matches!(opened, Err(Error::Corrupt { .. })), "{how}: {opened:?}");
        let repaired = match builder(&sim).repair(ROOT) {
            Ok(repaired) => repaired,
            // The open refuses this segment.
            Err(error) => {
                assert!(!found.segments.is_empty(), "{how}: {error}");
                continue;
            }
        };
        assert_eq!(format!("{:?}", repaired.log), format!("{:?}", Some(&log)), "{how}");
        // Beside damage to another file, an end that looks unused is taken for unused: see `Loss`. A lost sector may be all of
        // such an end.
        let is_sector = specimen.image.physical_block_bytes() == 512 && how.contains(ZEROED);
        let is_hidden = count > 1 && (how.contains(ZERO_TAIL) || is_sector);
        if found.segments.is_empty() && !is_hidden {
            let sim = SimBackend::from_image(sim.snapshot().power_cut_none(), 7);
            specimen.check_announced(&log, &builder(&sim).open(ROOT).unwrap(), &how);
            cut += 1;
            unknown += usize::from(log.loss.at_least_bytes == 0 && log.loss.at_most_durable_bytes > 0);
        }
    }
    let counts = [cut, unknown, sound, segments, renamed];
    assert!(cut > 50 && !counts.contains(&0), "{counts:?}");
}

/// The physical blocks of the disks.
const BLOCKS: [usize; 2] = [512, 4096];

/// The size of a group with one put of 900 bytes, on a disk of such blocks.
fn group_bytes(block_bytes: usize) -> usize {
    (3 * 512_usize).next_multiple_of(block_bytes)
}

/// 200 puts, each durable, in several log files; the ring is lost.
fn durable_puts(block_bytes: usize) -> Specimen {
    let sim = SimBackend::new(7);
    sim.set_physical_block_bytes(block_bytes);
    let db = builder(&sim).open(ROOT).unwrap();
    let keyspace = db.keyspace("default").unwrap();
    let mut puts = Vec::new();
    for nth in 0..200 {
        let key = format!("key {nth:05}");
        keyspace.put(&key, [b'v'; 900]).unwrap();
        puts.push(Put { keyspace: 0, key, log_bytes: 960 });
    }
    let mut image = sim.snapshot().power_cut_none();
    lose_ring(&mut image);
    Specimen { image, puts, durable: 200 }
}

#[test]
fn a_loss_that_nothing_proves_is_called_unknown_with_the_most_that_it_can_be() {
    for block_bytes in BLOCKS {
        let specimen = durable_puts(block_bytes);
        let logs = files(&specimen.image, ".log");
        // The manifest names all but the spares, which are zero.
        let used = |path: &&PathBuf| specimen.image.read_file(path).unwrap().iter().any(|byte| *byte != 0);
        let last = logs.iter().rfind(used).unwrap();
        for keep in [None, Some(0), Some(4096), Some(9000)] {
            let mut image = specimen.image.clone();
            match keep {
                None => assert!(image.remove_file(last)),
                Some(len) => image.damage(last, |bytes| bytes.truncate(len)),
            }
            let sim = SimBackend::from_image(image, 7);
            let log = builder(&sim).repair(ROOT).unwrap().log.unwrap();
            let text = log.loss.to_string();
            assert!(log.loss.at_least_bytes == 0 && text.contains("unknown"), "{text}");
            let db = builder(&sim).open(ROOT).unwrap();
            assert!(specimen.lost_bytes(&db).0 > 0, "{keep:?}");
            specimen.check_announced(&log, &db, &format!("{keep:?}"));
        }
    }
}

/// Fifty durable puts, each in a group of its own, in one log file; a flush after some of them; the ring is lost.
fn one_file(block_bytes: usize, flush_after: Option<usize>) -> Specimen {
    let sizes = Sizes { ring_bytes: Some(32 << 10), log_file_bytes: Some(256 << 10), ..Sizes::default() };
    let sim = SimBackend::new(7);
    sim.set_physical_block_bytes(block_bytes);
    let db = builder(&sim).sizes(sizes).open(ROOT).unwrap();
    let keyspace = db.keyspace("default").unwrap();
    let mut puts = Vec::new();
    for nth in 0..50 {
        let key = format!("key {nth:05}");
        keyspace.put(&key, [b'v'; 900]).unwrap();
        puts.push(Put { keyspace: 0, key, log_bytes: 960 });
        if flush_after == Some(nth + 1) {
            db.flush().unwrap();
        }
    }
    let mut image = sim.snapshot().power_cut_none();
    lose_ring(&mut image);
    Specimen { image, puts, durable: 50 }
}

#[test]
fn an_end_that_looks_unused_is_not_believed_where_the_file_proves_that_it_has_lost_sectors() {
    for block_bytes in BLOCKS {
        let group = group_bytes(block_bytes);
        // A flush behind the end, damage in front of the end (in the first sector of a group, and in a later one), a claim of
        // what is missing.
        for (flush_after, zeros) in [
            (Some(20), [0..0, 10 * group..256 << 10]),
            (None, [0..0, 10 * group + 300..256 << 10]),
            (None, [0..0, 10 * group + 700..256 << 10]),
            (None, [5 * group..6 * group, 10 * group..256 << 10]),
        ] {
            check_unused_end(&one_file(block_bytes, flush_after), &zeros);
        }
    }
}

fn check_unused_end(specimen: &Specimen, zeros: &[Range<usize>]) {
    let mut image = specimen.image.clone();
    let used = |path: &&PathBuf| specimen.image.read_file(path).unwrap().iter().any(|byte| *byte != 0);
    let log = files(&specimen.image, ".log").iter().find(used).unwrap().clone();
    image.damage(&log, |bytes| zeros.iter().for_each(|range| bytes[range.clone()].fill(0)));
    let sim = SimBackend::from_image(image, 7);
    let damage = builder(&sim).repair(ROOT).unwrap().log.unwrap();
    let db = builder(&sim).open(ROOT).unwrap();
    assert!(specimen.lost_bytes(&db).0 > 20_000, "{zeros:?}");
    specimen.check_announced(&damage, &db, &format!("{zeros:?}"));
}

/// Takes three steps of a group and a file has eight; or 17 of 64 where a step is a sector.
const VALUE: [u8; 8000] = [b'v'; 8000];

#[test]
fn the_least_loss_counts_the_durable_part_of_a_write_that_was_not_acknowledged() {
    for block_bytes in BLOCKS {
        let record_bytes = (8_u64 + 4 + 11 + 3 + 8000).next_multiple_of(32);
        let mut parts = 0;
        for event in 0.. {
            let sim = SimBackend::new(7);
            sim.set_physical_block_bytes(block_bytes);
            sim.crash_at(event);
            let Ok(db) = builder(&sim).open(ROOT) else { continue };
            let Ok(keyspace) = db.keyspace("default") else { continue };
            let acknowledged = (0..12).take_while(|_| keyspace.put("key", VALUE).is_ok()).count() as u64;
            let mut image = sim.snapshot().power_cut_all();
            lose_ring(&mut image);
            let log = files(&image, ".log").into_iter().next();
            if let (Some(log), 1..) = (log, acknowledged) {
                image.flip_bit(&log, 300 * 8);
                let damage = builder(&SimBackend::from_image(image, 7)).find_damage(ROOT).unwrap();
                let least = damage.log.unwrap().loss.at_least_bytes;
                assert!(least <= (acknowledged + 1) * record_bytes, "event {event}: {least} bytes");
                parts += usize::from(least > acknowledged * record_bytes);
            }
            if acknowledged == 12 {
                break;
            }
        }
        assert!(parts > 0, "no file began within a record");
    }
}

/// Every call refuses the store, names both files, and changes nothing.
fn check_names_refused(image: &DiskImage, (named, other): (&Path, &Path)) {
    let sim = SimBackend::from_image(image.clone(), 7);
    for refused in [
        builder(&sim).open(ROOT).map(drop),
        builder(&sim).find_damage(ROOT).map(drop),
        builder(&sim).repair(ROOT).map(drop),
    ] {
        let error = refused.unwrap_err();
        let text = error.to_string();
        assert!(matches!(&error, Error::Corrupt { file, .. } if file == named), "{text}");
        assert!(text.contains(other.to_str().unwrap()) && text.contains("exchange the names"), "{text}");
        assert!(!error.is_repairable() && !text.contains("epair"), "a cut would lose the groups: {text}");
    }
    assert_eq!(sim.snapshot().fingerprint(), image.fingerprint(), "a refusal changes nothing");
}

/// Nothing is lost, and the next open too finds the store whole.
fn check_whole(specimen: &Specimen, image: DiskImage, how: &str) {
    let sim = SimBackend::from_image(image, 7);
    let db = builder(&sim).open(ROOT).unwrap();
    assert_eq!(specimen.lost_bytes(&db), (0, 0), "{how}");
    drop(db);
    assert_eq!(specimen.lost_bytes(&builder(&sim).open(ROOT).unwrap()), (0, 0), "{how}");
}

#[test]
fn log_files_under_wrong_names_are_refused_until_they_have_their_names_back() {
    for block_bytes in BLOCKS {
        let specimen = durable_puts(block_bytes);
        let logs = files(&specimen.image, ".log");
        let bytes = |path: &Path| specimen.image.read_file(path).unwrap();
        let is_new = |path: &&PathBuf| bytes(path).iter().all(|byte| *byte == 0);
        let new = logs.iter().find(is_new).unwrap();
        let used: Vec<&PathBuf> = logs.iter().filter(|path| !is_new(path)).collect();
        let (first, last) = (used[0], used[used.len() - 1]);
        // With a new one the named file looks as if it was never written to.
        for (one, other) in [(last, new), (first, new), (first, last), (used[1], used[2])] {
            let mut image = specimen.image.clone();
            image.write_file(other, &bytes(one));
            image.write_file(one, &bytes(other));
            check_names_refused(&image, (one, other));
            image.write_file(one, &bytes(one));
            image.write_file(other, &bytes(other));
            check_whole(&specimen, image, &format!("{} and {}", one.display(), other.display()));
        }
        let free = Path::new("/store/wal/000900.log");
        for path in used {
            let mut image = specimen.image.clone();
            image.remove_file(path);
            image.write_file(free, &bytes(path));
            check_names_refused(&image, (path, free));
            // A sector that is lost, in the file with the name, beside a copy of the file.
            image.write_file(path, &bytes(path));
            image.zero_sector(path, 0);
            check_names_refused(&image, (path, free));
            image.remove_file(free);
            image.write_file(path, &bytes(path));
            check_whole(&specimen, image, &path.display().to_string());
        }
    }
}

#[test]
fn a_copy_of_a_log_file_beside_a_whole_store_is_an_orphan() {
    let specimen = durable_puts(4096);
    let free = Path::new("/store/wal/000900.log");
    for path in files(&specimen.image, ".log") {
        let mut image = specimen.image.clone();
        image.write_file(free, &specimen.image.read_file(&path).unwrap());
        let sim = SimBackend::from_image(image.clone(), 7);
        assert!(builder(&sim).find_damage(ROOT).unwrap().is_none());
        builder(&sim).open(ROOT).unwrap();
        assert!(!files(&sim.snapshot(), ".log").iter().any(|path| path == free), "an open removes it");
        check_whole(&specimen, image.clone(), &path.display().to_string());
        // The copy may be older. So damage of the file itself is not taken for a wrong name.
        if image.read_file(&path).unwrap().iter().any(|byte| *byte != 0) {
            image.flip_bit(&path, 8 * 100);
            let found = builder(&SimBackend::from_image(image, 7)).open(ROOT).unwrap_err();
            assert!(found.is_repairable(), "{found}");
        }
    }
}

#[test]
fn every_damaged_segment_is_named_and_a_repair_changes_nothing() {
    let sim = SimBackend::new(7);
    let db = builder(&sim).open(ROOT).unwrap();
    for name in ["one", "two", "three"] {
        db.keyspace(name).unwrap().put("key", vec![b'v'; 5000]).unwrap();
    }
    db.close().unwrap();
    let image = sim.snapshot().power_cut_none();
    let segments = files(&image, ".seg");
    assert_eq!(segments.len(), 3);
    let flip: fn(&mut DiskImage, &Path) = |image, path| image.flip_bit(path, 200 * 8);
    let remove: fn(&mut DiskImage, &Path) = |image, path| assert!(image.remove_file(path));
    let shorten: fn(&mut DiskImage, &Path) = |image, path| image.damage(path, |bytes| bytes.truncate(600));
    for damage in [flip, remove, shorten] {
        let mut image = image.clone();
        for path in &segments[..2] {
            damage(&mut image, path);
        }
        let sim = SimBackend::from_image(image.clone(), 7);
        let named = |damage: &Damage| -> Vec<PathBuf> {
            let file = |error: &Error| match error {
                Error::Corrupt { file, .. } => file.clone(),
                other => panic!("{other:?}"),
            };
            assert!(damage.log.is_none() && !damage.is_none());
            damage.segments.iter().map(file).collect()
        };
        for found in [builder(&sim).find_damage(ROOT).unwrap(), builder(&sim).repair(ROOT).unwrap()] {
            let mut named = named(&found);
            named.sort();
            assert_eq!(named, &segments[..2]);
        }
        assert_eq!(sim.snapshot().fingerprint(), image.fingerprint());
    }
}

#[test]
fn a_missing_manifest_beside_other_files_is_damage_and_no_missing_store() {
    let mut image = durable_puts(4096).image;
    for manifest in files(&image, "/manifest-") {
        image.remove_file(&manifest);
    }
    let mut without_lock = image.clone();
    without_lock.remove_file(Path::new("/store/LOCK"));
    for image in [image, without_lock] {
        let sim = SimBackend::from_image(image.clone(), 7);
        for refused in [
            builder(&sim).open(ROOT).map(drop),
            builder(&sim).create(false).open(ROOT).map(drop),
            builder(&sim).find_damage(ROOT).map(drop),
            builder(&sim).repair(ROOT).map(drop),
        ] {
            let error = refused.unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, Error::Corrupt { .. }), "{text}");
            assert!(text.contains("the manifest is missing") && text.contains("backup"), "{text}");
        }
        assert_eq!(sim.snapshot().fingerprint(), image.fingerprint(), "a refusal changes nothing");
    }
}
