//! The manifest on the simulated disk: the manifest in force after a crash, refused files, and failures that halt.

use std::path::Path;

use aio::sim::{DiskImage, EventKind, Fault, FaultPlan};
use aio::{Backend, Errno, SimBackend};

use super::*;
use crate::io::contexts::Size;
use crate::manifest::version::Format;

const ROOT: &str = "/store";
const FIRST: &str = "/store/manifest-000001";
const SECOND: &str = "/store/manifest-000002";
const MIN_BYTES: u64 = 16 << 10;

fn machine() -> SimBackend {
    let sim = SimBackend::new(1);
    for dir in [ROOT, "/store/wal", "/store/segments"] {
        sim.make_dir(Path::new(dir)).unwrap();
    }
    sim.sync_dir(Path::new("/")).unwrap();
    sim.sync_dir(Path::new(ROOT)).unwrap();
    sim
}

fn files_on(sim: &SimBackend) -> Arc<Files> {
    Arc::new(Files::new(Arc::new(sim.clone()), Path::new(ROOT), 1 << 20))
}

fn create(sim: &SimBackend, number: u64) -> Manifest {
    let mut version = Version { next_file: 1, next_epoch: 1, next_keyspace: 1, ..Version::default() };
    version.incarnation.number = u32::try_from(number).unwrap();
    Manifest::create(&files_on(sim), number, version, MIN_BYTES).unwrap()
}

fn add_keyspace(manifest: &Manifest) -> Result<()> {
    manifest
        .append_with(Reserve::Keep, |version| {
            let keyspace = version.next_keyspace;
            vec![Edit::KeyspaceCreated { keyspace, name: format!("keyspace {keyspace}") }]
        })
        .map(drop)
}

fn loaded(image: &DiskImage) -> Result<Option<Version>> {
    load(&files_on(&SimBackend::from_image(image.clone(), 1)))
}

/// The number of the incarnation in the manifest that is in force.
fn incarnation(image: &DiskImage) -> u32 {
    loaded(image).unwrap().unwrap().incarnation.number
}

fn check_corrupt(image: &DiskImage, path: &str, expected: &str) {
    match loaded(image) {
        Err(Error::Corrupt { file, what, .. }) => {
            assert_eq!((file.as_path(), what), (Path::new(path), expected));
        }
        other => panic!("{expected}: {other:?}"),
    }
}

#[test]
fn appended_edits_are_loaded() {
    let sim = machine();
    assert_eq!(load(&files_on(&sim)).unwrap(), None);
    let manifest = create(&sim, 1);
    for _ in 0..3 {
        add_keyspace(&manifest).unwrap();
        assert_eq!(loaded(&sim.snapshot().power_cut_none()).unwrap().as_ref(), Some(&*manifest.version()));
        manifest.verify().unwrap();
    }
}

#[test]
fn the_highest_complete_manifest_counts() {
    let sim = machine();
    let (_first, second) = (create(&sim, 1), create(&sim, 2));
    add_keyspace(&second).unwrap();
    let image = sim.snapshot().power_cut_none();
    assert_eq!(incarnation(&image), 2);

    // Older sectors in the first group and none behind it: the creation was interrupted.
    let alone = create_alone(&sim);
    for sector in 0..8 {
        let mut torn = alone.clone();
        torn.zero_sector(Path::new(SECOND), sector);
        assert_eq!(incarnation(&torn), 1, "sector {sector}");
    }
    let mut empty = alone.clone();
    empty.write_file(Path::new(SECOND), b"");
    assert_eq!(incarnation(&empty), 1);
}

/// Manifests 1 and 2, with one group each.
fn create_alone(sim: &SimBackend) -> DiskImage {
    let mut image = sim.snapshot().power_cut_none();
    image.remove_file(Path::new(SECOND));
    let sim = SimBackend::from_image(image, 1);
    create(&sim, 2);
    sim.snapshot().power_cut_none()
}

#[test]
fn damage_is_refused_and_never_falls_back() {
    let sim = machine();
    let (_first, second) = (create(&sim, 1), create(&sim, 2));
    add_keyspace(&second).unwrap();
    add_keyspace(&second).unwrap();
    let image = sim.snapshot().power_cut_none();

    for sector in 0..24 {
        let mut flipped = image.clone();
        flipped.flip_bit(Path::new(SECOND), sector * 4096 + 1000);
        check_corrupt(&flipped, SECOND, "sector");
    }
    // Sectors that the disk lost. In the last group they look like a torn append; later groups claim all others.
    for sector in 0..24 {
        let mut lost = image.clone();
        lost.zero_sector(Path::new(SECOND), sector);
        if sector < 16 {
            assert!(matches!(loaded(&lost), Err(Error::Corrupt { .. })), "sector {sector}");
        } else {
            assert_eq!(loaded(&lost).unwrap().unwrap().keyspaces.len(), 1, "sector {sector}");
        }
    }
    let mut cut = image.clone();
    cut.damage(Path::new(SECOND), |bytes| bytes.truncate(12 << 10));
    check_corrupt(&cut, SECOND, "size of the manifest");
    let mut longer = image;
    longer.damage(Path::new(SECOND), |bytes| bytes.resize(bytes.len() + 100, 0));
    check_corrupt(&longer, SECOND, "size of the manifest");
}

#[test]
fn a_missing_manifest_is_noticed_by_the_files_it_named() {
    let sim = machine();
    create(&sim, 1);
    let mut image = sim.snapshot().power_cut_none();
    assert!(image.remove_file(Path::new(FIRST)));
    assert_eq!(loaded(&image).unwrap(), None, "no manifest was complete");
    for (orphan, bytes) in [
        ("/store/wal/000004.log", &[0_u8; 4096][..]),
        ("/store/segments/000005.seg", &[0; 4096]),
        ("/store/wal/ring-000003", &[1; 4096]),
        ("/store/manifest-000002", &[0; 4096]),
    ] {
        let mut image = image.clone();
        image.write_file(Path::new(orphan), bytes);
        let named = if orphan.contains("manifest") { orphan } else { FIRST };
        check_corrupt(&image, named, "the manifest is missing");
    }
    let mut blank_ring = image.clone();
    blank_ring.write_file(Path::new("/store/wal/ring-000003"), &[0; 4096]);
    assert_eq!(loaded(&blank_ring).unwrap(), None, "an interrupted creation leaves this");
}

#[test]
fn a_full_manifest_rolls_into_the_next() {
    let sim = machine();
    let manifest = create(&sim, 1);
    for count in 1..=20 {
        add_keyspace(&manifest).unwrap();
        let left = loaded(&sim.snapshot().power_cut_none()).unwrap().unwrap();
        assert_eq!(left.keyspaces.len(), count);
        assert_eq!(left, *manifest.version());
    }
    manifest.verify().unwrap();
    let numbers = numbers(&files_on(&sim)).unwrap();
    assert!(numbers.len() == 1 && numbers[0] > 2, "{numbers:?}");
}

#[test]
fn a_full_disk_fails_an_append_and_nothing_else() {
    let sim = machine();
    let manifest = create(&sim, 1);
    sim.set_capacity_bytes(sim.used_bytes());
    let refused = (0..20).map(|_| add_keyspace(&manifest)).find_map(Result::err).unwrap();
    assert!(matches!(refused, Error::NoSpace { .. }), "{refused:?}");
    manifest.health().unwrap();
    manifest.verify().unwrap();
    let before = manifest.version().keyspaces.len();
    sim.set_capacity_bytes(u64::MAX);
    add_keyspace(&manifest).unwrap();
    assert_eq!(loaded(&sim.snapshot().power_cut_none()).unwrap().unwrap().keyspaces.len(), before + 1);
}

#[test]
fn a_failed_write_or_sync_halts_for_good() {
    let kinds = [EventKind::Write, EventKind::Sync];
    // A shortage, too: it is unknown how much was written.
    let errnos = [Errno::IO, Errno::AGAIN, Errno::NO_SPACE];
    for (kind, errno) in kinds.into_iter().flat_map(|kind| errnos.map(|errno| (kind, errno))) {
        let sim = machine();
        let manifest = create(&sim, 1);
        add_keyspace(&manifest).unwrap();
        sim.fail(FaultPlan::new(Fault::Errno(errno)).on(&[kind]).path("manifest"));
        let first = add_keyspace(&manifest).unwrap_err();
        assert!(matches!(first, Error::Halted { .. }), "{first:?}");
        let events = sim.events();
        let later = add_keyspace(&manifest).unwrap_err();
        assert_eq!(later.to_string(), first.to_string(), "the first cause stays");
        assert_eq!(sim.events(), events, "nothing is written after a failure");
        assert!(manifest.verify().is_err());
        assert_eq!(manifest.version().keyspaces.len(), 1, "a failed edit is not current");
        for seed in 0..20 {
            let left = loaded(&sim.snapshot().power_cut_random(seed)).unwrap().unwrap();
            assert!((1..=2).contains(&left.keyspaces.len()), "the failed edit may be on disk or not");
        }
    }
}

#[test]
fn a_crash_anywhere_leaves_every_acknowledged_edit() {
    let sim = machine();
    let manifest = create(&sim, 1);
    let (images, seen) = std::sync::mpsc::channel();
    sim.on_event(move |_, image| images.send(image.clone()).unwrap());
    for acknowledged in 0..12 {
        add_keyspace(&manifest).unwrap();
        for image in seen.try_iter() {
            for seed in 0..4 {
                let left = loaded(&image.power_cut_random(seed)).unwrap().unwrap();
                let count = left.keyspaces.len();
                assert!(count == acknowledged || count == acknowledged + 1, "{count} of {acknowledged}");
            }
        }
    }
    assert!(numbers(&files_on(&sim)).unwrap()[0] > 1, "it has rolled meanwhile");
}

#[test]
fn another_version_or_an_unknown_feature_is_refused_by_name() {
    let (before, next) = (FORMAT_VERSION - 1, FORMAT_VERSION + 1);
    for (version, features, expected) in [
        (0, 0, "format version 0;".to_owned()),
        (before, 0, format!("format version {before};")),
        (next, 0, format!("format version {next};")),
        (FORMAT_VERSION, 4, "bits 0x4".to_owned()),
    ] {
        let sim = machine();
        let manifest = create(&sim, 1);
        let format = Format { version, features, ..manifest.version().format };
        manifest.append(&[Edit::Format(format)]).unwrap();
        match load(&files_on(&sim)) {
            Err(Error::Format { path, what }) => {
                assert_eq!(path, Path::new(FIRST));
                assert!(what.contains(&expected), "{what}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_edit_that_only_a_later_version_knows_is_no_damage() {
    let mut stream = Vec::new();
    edit::encode(&[Edit::Format(Format { version: FORMAT_VERSION + 1, ..Format::default() })], &mut stream);
    // Two edits. The second has an unknown tag.
    stream[0] = 2;
    stream.push(200);
    assert!(matches!(replay(Path::new(FIRST), &stream), Err(Error::Format { .. })));
    stream[5] = u8::try_from(FORMAT_VERSION).unwrap();
    assert!(matches!(replay(Path::new(FIRST), &stream), Err(Error::Corrupt { .. })));
}

#[test]
fn a_manifest_that_gets_no_context_changes_nothing_and_goes_on() {
    let sim = machine();
    let manifest = create(&sim, 1);
    let idle = manifest.files.contexts().lend_to_job(Size::Single).unwrap();
    for errno in [Errno::AGAIN, Errno::TOO_MANY_FILES] {
        sim.fail(FaultPlan::new(Fault::Errno(errno)).on(&[EventKind::Queue]).forever());
        let error = wal::Host::activate(&manifest, 7, Seq::ZERO).unwrap_err();
        assert!(error.is_shortage(), "the log would halt: {error:?}");
        assert_eq!(manifest.version().logs, [], "{errno:?}");
        sim.clear_faults();
    }
    sim.fail(FaultPlan::new(Fault::Errno(Errno::AGAIN)).on(&[EventKind::Queue]).forever());
    drop(idle);
    wal::Host::activate(&manifest, 7, Seq::ZERO).unwrap();
    assert_eq!(manifest.version().logs.len(), 1);
}
