//! A damaged log: every open refuses it, an explicit repair cuts it, and the records before the cut stay.

use std::path::PathBuf;
use std::sync::Arc;

use aio::SimBackend;
use aio::sim::DiskImage;
use esker::testing::{Background, BuilderExt, Sizes};
use esker::{Builder, Db, Error};

const KEYS: u32 = 60;

/// A record of one short key in the log: header, number of operations, operation, key and value, up to a whole granule.
const RECORD_BYTES: u64 = 64;

/// The steps of groups, on disks of such blocks. A log file has 16, and each record is in a group of one.
const STEPS: [u64; 2] = [512, 4096];

fn builder(sim: &SimBackend) -> Builder {
    let sizes = Sizes {
        ring_bytes: Some(64 << 10),
        log_file_bytes: Some(16 * step_of(sim)),
        memtable_bytes: Some(1 << 20),
        ..Sizes::default()
    };
    Db::builder().backend(Arc::new(sim.clone())).background(Background::Manual).sizes(sizes)
}

fn open(image: &DiskImage) -> (SimBackend, Db) {
    let sim = SimBackend::from_image(image.clone(), 7);
    let db = builder(&sim).open("/store").unwrap();
    (sim, db)
}

fn key(nth: u32) -> String {
    format!("key {nth:03}")
}

/// A machine whose disk has blocks of a step.
fn machine(step: u64) -> SimBackend {
    let sim = SimBackend::new(7);
    sim.set_physical_block_bytes(usize::try_from(step).unwrap());
    sim
}

/// The step on the disk of a machine.
fn step_of(sim: &SimBackend) -> u64 {
    sim.snapshot().physical_block_bytes() as u64
}

/// A store with `KEYS` records in the log, each in a group of its own, after a power cut that has emptied the ring.
fn cut_off(step: u64) -> DiskImage {
    let mut image = killed(step);
    for path in paths(&image, "/ring-") {
        image.damage(&path, |bytes| bytes.fill(0));
    }
    image
}

/// The same store when only the process died.
fn killed(step: u64) -> DiskImage {
    let sim = machine(step);
    let db = builder(&sim).open("/store").unwrap();
    let ks = db.keyspace("default").unwrap();
    for nth in 0..KEYS {
        ks.put(key(nth), nth.to_le_bytes()).unwrap();
    }
    sim.snapshot().process_crash(1)
}

fn paths(image: &DiskImage, part: &str) -> Vec<PathBuf> {
    let names = image.files().into_iter().map(|(path, _)| path);
    names.filter(|path| path.to_string_lossy().contains(part)).collect()
}

/// The log files in the order of their numbers.
fn logs(image: &DiskImage) -> Vec<PathBuf> {
    let mut logs = paths(image, ".log");
    logs.sort();
    logs
}

/// The number of keys that are visible. They must be the first ones.
fn kept(db: &Db) -> u32 {
    let ks = db.keyspace("default").unwrap();
    let found: Vec<_> = ks.iter().map(|pair| pair.unwrap()).collect();
    for (nth, (found_key, value)) in (0..).zip(&found) {
        assert_eq!((&found_key[..], &value[..]), (key(nth).as_bytes(), &u32::to_le_bytes(nth)[..]));
    }
    u32::try_from(found.len()).unwrap()
}

#[test]
fn a_repair_keeps_everything_before_the_damage_and_reports_the_loss() {
    for step in STEPS {
        let image = cut_off(step);
        let log = &logs(&image)[0];
        for group in [0, 1, 7, 14] {
            let mut damaged = image.clone();
            damaged.flip_bit(log, (group * step + 300) * 8);
            let sim = SimBackend::from_image(damaged.clone(), 7);
            let before = sim.snapshot().fingerprint();
            let refused = builder(&sim).open("/store").unwrap_err();
            assert!(matches!(&refused, Error::Corrupt { file, .. } if file == log), "{refused}");

            let found = builder(&sim).find_damage("/store").unwrap().log.unwrap();
            assert_eq!(found.error.to_string(), refused.to_string());
            assert_eq!(found.kept_records, group);
            // Each record takes a granule or two; a later group claims each one except the newest.
            let lost_bytes = (u64::from(KEYS) - group) * RECORD_BYTES;
            let least = found.loss.at_least_bytes;
            assert!((lost_bytes - RECORD_BYTES..=lost_bytes).contains(&least), "{found:?}");
            assert_eq!(found.loss.at_most_durable_bytes, lost_bytes, "the groups behind it can be read");
            assert_eq!(sim.snapshot().fingerprint(), before, "the check changes no file");
            builder(&sim).open("/store").unwrap_err();

            let cut = builder(&sim).repair("/store").unwrap().log.unwrap();
            assert_eq!(format!("{cut:?}"), format!("{found:?}"));
            let (_, db) = open(&sim.snapshot().power_cut_none());
            assert_eq!(u64::from(kept(&db)), group);
            db.verify().unwrap();
            assert!(builder(&sim).repair("/store").unwrap().is_none(), "a second repair finds no damage");
        }
    }
}

#[test]
fn the_ring_replaces_damaged_records_as_far_as_it_reaches() {
    for step in STEPS {
        let image = killed(step);
        // The last file may be a spare one.
        for (nth, log) in logs(&image)[..3].iter().enumerate() {
            let mut damaged = image.clone();
            damaged.flip_bit(log, 3000);
            if nth == 1 {
                // All records are at its front.
                damaged.damage(&paths(&image, "/ring-")[0], |bytes| bytes.truncate(32 << 10));
            }
            let sim = SimBackend::from_image(damaged, 7);
            builder(&sim).open("/store").unwrap_err();
            let cut = builder(&sim).repair("/store").unwrap().log.unwrap();
            assert_eq!(cut.kept_records, u64::from(KEYS), "{cut:?}");
            let loss = (cut.loss.at_least_bytes, cut.loss.at_most_durable_bytes);
            // Nothing proves that the last file did not go on behind its damaged group.
            assert!(loss.0 == 0 && (loss.1 == 0 || nth == 2), "{cut:?}");
            let (_, db) = open(&sim.snapshot().power_cut_none());
            assert_eq!(kept(&db), KEYS);
        }
    }
}

#[test]
fn a_missing_or_shortened_file_of_the_log_is_repaired_too() {
    for step in STEPS {
        let image = cut_off(step);
        let logs = logs(&image);
        assert!(logs.len() >= 3, "{logs:?}");
        let ring = &paths(&image, "/ring-")[0];
        let per_file = 16;
        let missing = |path: &PathBuf| {
            let mut image = image.clone();
            assert!(image.remove_file(path));
            image
        };
        let shortened = |path: &PathBuf, len: usize| {
            let mut image = image.clone();
            image.damage(path, |bytes| bytes.truncate(len));
            image
        };
        for (damaged, expected) in [
            (missing(&logs[0]), 0),
            (missing(&logs[1]), per_file),
            (shortened(&logs[1], usize::try_from(3 * step + step / 6).unwrap()), per_file + 3),
            (shortened(&logs[1], 0), per_file),
            (missing(ring), KEYS),
            (shortened(ring, 2048), KEYS),
        ] {
            let sim = SimBackend::from_image(damaged, 7);
            builder(&sim).open("/store").unwrap_err();
            let cut = builder(&sim).repair("/store").unwrap().log.unwrap();
            assert_eq!(cut.kept_records, u64::from(expected), "{cut:?}");
            let (sim, db) = open(&sim.snapshot().power_cut_none());
            assert_eq!(kept(&db), expected);
            drop(db);
            let (_, db) = open(&sim.snapshot().power_cut_none());
            assert_eq!(kept(&db), expected, "also after another incarnation");
        }
    }
}

fn flushed_unevenly(sim: &SimBackend) -> Builder {
    // One log file only, so that the start of no later file shows how much was acknowledged.
    let sizes = Sizes {
        memtable_bytes: Some(32 << 10),
        log_file_bytes: Some(1 << 20),
        ring_bytes: Some(64 << 10),
        ..Sizes::default()
    };
    builder(sim).sizes(sizes)
}

/// A store in which one keyspace was flushed and an older write of another one was not. Nothing of its log is left.
fn without_its_log(step: u64) -> DiskImage {
    let sim = machine(step);
    let db = flushed_unevenly(&sim).open("/store").unwrap();
    let (early, late) = (db.keyspace("early").unwrap(), db.keyspace("late").unwrap());
    early.put("key", "in the log alone").unwrap();
    for nth in 0..KEYS {
        late.put(key(nth), vec![1; 1000]).unwrap();
    }
    let keyspaces = db.metrics().keyspaces;
    let segments = |name: &str| keyspaces.iter().find(|keyspace| keyspace.name == name).unwrap().segments;
    assert_eq!(segments("early"), 0, "only the large one was flushed");
    assert!(segments("late") > 0);
    let mut image = sim.snapshot().power_cut_none();
    for path in [paths(&image, ".log"), paths(&image, "/ring-")].concat() {
        image.damage(&path, |bytes| bytes.fill(0xa5));
    }
    image
}

/// The same store after a power cut that has emptied the ring, with damage in the last group of the log that was flushed: a
/// tail that looks torn.
fn with_a_torn_log(step: u64) -> DiskImage {
    let sim = machine(step);
    let db = flushed_unevenly(&sim).open("/store").unwrap();
    let (early, late) = (db.keyspace("early").unwrap(), db.keyspace("late").unwrap());
    early.put("key", "in the log alone").unwrap();
    for nth in 0.. {
        late.put(key(nth), vec![1; 1000]).unwrap();
        if db.metrics().keyspaces.iter().any(|keyspace| keyspace.segments > 0) {
            break;
        }
    }
    let mut image = sim.snapshot().power_cut_none();
    for path in paths(&image, "/ring-") {
        image.damage(&path, |bytes| bytes.fill(0));
    }
    // Header of the group, record of a kilobyte, headers of the sectors.
    let group_bytes = (64 + 1056_usize).div_ceil(504) * 512;
    let group_bytes = group_bytes.next_multiple_of(usize::try_from(step).unwrap());
    image.damage(&logs(&image)[0], |bytes| {
        // The last groups in use: the put that was not flushed, and the last one that was.
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        bytes[used.next_multiple_of(512) - 4 * group_bytes..].fill(0);
    });
    image
}

#[test]
fn a_log_that_ends_before_a_flushed_position_is_damage() {
    for step in STEPS {
        let image = with_a_torn_log(step);
        let sim = SimBackend::from_image(image, 7);
        let what = "the log ends before the flushed position of a keyspace";
        let found = flushed_unevenly(&sim).open("/store").map(drop);
        assert!(matches!(&found, Err(Error::Corrupt { what: found, .. }) if *found == what), "{found:?}");
        assert!(flushed_unevenly(&sim).find_damage("/store").unwrap().log.is_some());
        let cut = flushed_unevenly(&sim).repair("/store").unwrap().log.unwrap();
        // The record of a kilobyte is in a segment. Whether others were behind it, nothing shows.
        assert!(cut.loss.at_least_bytes == 0 && cut.loss.at_most_bytes > 1000, "{cut:?}");
        let db = flushed_unevenly(&sim).open("/store").unwrap();
        let (early, late) = (db.keyspace("early").unwrap(), db.keyspace("late").unwrap());
        assert_eq!(early.get("key").unwrap().as_deref(), Some(&b"in the log alone"[..]));
        for nth in 0..KEYS {
            late.put(key(nth), "new").unwrap();
        }
        db.flush().unwrap();
        let again = SimBackend::from_image(sim.snapshot().power_cut_none(), 7);
        let late = flushed_unevenly(&again).open("/store").unwrap().keyspace("late").unwrap();
        assert!((0..KEYS).all(|nth| late.get(key(nth)).unwrap().as_deref() == Some(b"new")));
    }
}

/// The flushed records are visible, the older write is not, and new writes are newer than both.
fn check_flushed(sim: &SimBackend) {
    let db = flushed_unevenly(sim).open("/store").unwrap();
    assert_eq!(db.keyspace("early").unwrap().get("key").unwrap(), None);
    let late = db.keyspace("late").unwrap();
    let flushed = late.iter().count();
    assert!(flushed > 10 && flushed < KEYS as usize, "{flushed} records were flushed");
    for nth in 0..KEYS {
        late.put(key(nth), "new").unwrap();
        assert_eq!(late.get(key(nth)).unwrap().as_deref(), Some(&b"new"[..]));
    }
    db.compact().unwrap();
    assert!(late.iter().all(|pair| &pair.unwrap().1[..] == b"new"));
    assert_eq!(late.iter().count(), KEYS as usize);
}

#[test]
fn a_repaired_store_keeps_flushed_records_and_takes_writes_over_them() {
    for step in STEPS {
        let sim = SimBackend::from_image(without_its_log(step), 7);
        let cut = flushed_unevenly(&sim).repair("/store").unwrap().log.unwrap();
        assert_eq!(cut.kept_records, 0);
        check_flushed(&sim);
    }
}

#[test]
fn a_repair_that_a_crash_interrupts_is_done_or_can_be_done_again() {
    for step in STEPS {
        let image = without_its_log(step);
        let whole = SimBackend::from_image(image.clone(), 7);
        flushed_unevenly(&whole).repair("/store").unwrap().log.unwrap();
        let (mut done, mut again) = (0, 0);
        for event in 0..whole.events() {
            let sim = SimBackend::from_image(image.clone(), 7);
            sim.crash_at(event);
            flushed_unevenly(&sim).repair("/store").unwrap_err();
            for left in [sim.snapshot().power_cut_none(), sim.snapshot().power_cut_all()] {
                let sim = SimBackend::from_image(left, 7);
                // The repair was complete before the crash. The store must be right without another one.
                if flushed_unevenly(&sim).find_damage("/store").unwrap().log.is_some() {
                    flushed_unevenly(&sim).repair("/store").unwrap();
                    again += 1;
                } else {
                    done += 1;
                }
                check_flushed(&sim);
            }
        }
        assert!(done > 0 && again > 0, "{done} done, {again} again");
    }
}

/// The stores after each put, and the number of puts. The power has failed, the ring is empty, and the manifest has lost
/// the edit that named the log file of that put.
fn without_an_activation(step: u64) -> Vec<(u32, DiskImage)> {
    let sim = machine(step);
    let db = builder(&sim).open("/store").unwrap();
    let ks = db.keyspace("default").unwrap();
    let manifest = || {
        let image = sim.snapshot();
        let path = paths(&image, "/manifest-").remove(0);
        let bytes = image.read_file(&path).unwrap();
        (path, bytes)
    };
    let (mut images, mut before) = (Vec::new(), manifest());
    let mut now = before.clone();
    for nth in 0..KEYS {
        ks.put(key(nth), nth.to_le_bytes()).unwrap();
        let after = manifest();
        if after.1 != now.1 {
            before = std::mem::replace(&mut now, after);
        }
        let mut image = sim.snapshot().power_cut_all();
        assert_eq!(before.0, now.0, "one manifest");
        image.write_file(&before.0, &before.1);
        for ring in paths(&image, "/ring-") {
            image.damage(&ring, |bytes| bytes.fill(0));
        }
        images.push((nth + 1, image));
    }
    images
}

#[test]
fn a_log_file_that_was_used_proves_that_the_manifest_has_lost_its_edit() {
    for step in STEPS {
        for (puts, image) in without_an_activation(step) {
            let sim = SimBackend::from_image(image.clone(), 7);
            let refused = builder(&sim).open("/store").unwrap_err();
            let text = refused.to_string();
            assert!(
                matches!(&refused, Error::Corrupt { file, .. } if file.ends_with("manifest-000001")),
                "{text}"
            );
            assert!(text.contains("an edit is lost"), "{text}");
            assert_eq!(sim.snapshot().fingerprint(), image.fingerprint(), "a refusal changes nothing");

            let cut = builder(&sim).repair("/store").unwrap().log.unwrap();
            assert_eq!((cut.kept_records, cut.loss.at_least_bytes), (u64::from(puts), 0), "{cut:?}");
            assert_eq!(cut.loss.at_most_durable_bytes, 0, "{cut:?}");
            assert_eq!(cut.error.to_string(), text);
            let (sim, db) = open(&sim.snapshot().power_cut_none());
            assert_eq!(kept(&db), puts);
            drop(db);
            let (_, db) = open(&sim.snapshot().power_cut_none());
            assert_eq!(kept(&db), puts, "also after another incarnation");
        }
    }
}

#[test]
fn where_a_file_without_its_edit_is_damaged_too_a_repair_takes_the_records_before() {
    for step in STEPS {
        let (puts, image) = without_an_activation(step).remove(40);
        // Puts 32 to 47 are in the third file, one in each group.
        let mut damaged = image.clone();
        damaged.flip_bit(&logs(&image)[2], (5 * step + 300) * 8);
        let sim = SimBackend::from_image(damaged, 7);
        builder(&sim).open("/store").unwrap_err();
        let cut = builder(&sim).repair("/store").unwrap().log.unwrap();
        assert_eq!(cut.kept_records, 37, "{cut:?}");
        let lost_bytes = u64::from(puts - 37) * RECORD_BYTES;
        assert!(cut.loss.at_least_bytes >= lost_bytes - RECORD_BYTES, "{cut:?}");
        assert_eq!(cut.loss.at_most_durable_bytes, lost_bytes, "{cut:?}");
        let (_, db) = open(&sim.snapshot().power_cut_none());
        assert_eq!(kept(&db), 37);
    }
}

#[test]
fn a_crash_while_a_lost_edit_is_made_good_leaves_it_to_do_or_done() {
    for step in STEPS {
        let (puts, image) = without_an_activation(step).pop().unwrap();
        let whole = SimBackend::from_image(image.clone(), 7);
        builder(&whole).repair("/store").unwrap().log.unwrap();
        let (mut done, mut again) = (0, 0);
        for event in 0..whole.events() {
            let sim = SimBackend::from_image(image.clone(), 7);
            sim.crash_at(event);
            builder(&sim).repair("/store").unwrap_err();
            for left in [sim.snapshot().power_cut_none(), sim.snapshot().power_cut_all()] {
                let sim = SimBackend::from_image(left, 7);
                if builder(&sim).open("/store").is_err() {
                    builder(&sim).repair("/store").unwrap().log.unwrap();
                    again += 1;
                } else {
                    done += 1;
                }
                let (_, db) = open(&sim.snapshot().power_cut_none());
                assert_eq!(kept(&db), puts);
            }
        }
        assert!(done > 0 && again > 0, "{done} done, {again} again");
    }
}

#[test]
fn an_undamaged_store_and_no_store_are_left_alone() {
    let sim = SimBackend::from_image(cut_off(512), 7);
    assert!(builder(&sim).find_damage("/store").unwrap().is_none());
    assert!(builder(&sim).repair("/store").unwrap().is_none());
    let (_, db) = open(&sim.snapshot().power_cut_none());
    assert_eq!(kept(&db), KEYS);
    drop(db);
    let empty = SimBackend::new(1);
    for refused in [builder(&empty).find_damage("/store"), builder(&empty).repair("/store")] {
        assert!(matches!(refused, Err(Error::Format { .. })), "{refused:?}");
    }
}
