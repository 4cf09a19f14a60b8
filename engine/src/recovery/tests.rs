//! Copies of a store made by hand: the same segments in a store with another id.

use std::path::Path;
use std::sync::Arc;

use aio::sim::DiskImage;
use aio::{Backend, SimBackend};

use crate::base::error::{Error, Result};
use crate::io::files::Files;
use crate::manifest::edit_log::{self, FIRST_NUMBER, Manifest};
use crate::manifest::version::{Incarnation, Origin, Version};
use crate::testing::{Background, BuilderExt};
use crate::{Db, Keyspace};

const SOURCE: &str = "/source";
const COPY: &str = "/copy";

fn open(sim: &SimBackend, root: &str) -> Result<Db> {
    Db::builder().backend(Arc::new(sim.clone())).background(Background::Manual).open(root)
}

fn files_in(sim: &SimBackend, root: &str) -> Arc<Files> {
    Arc::new(Files::new(Arc::new(sim.clone()), Path::new(root), 1 << 20))
}

fn key(i: u32) -> Vec<u8> {
    format!("{i:05}").into_bytes()
}

fn put(keyspace: &Keyspace, numbers: std::ops::Range<u32>, value: &str) {
    for i in numbers {
        keyspace.put(key(i), value).unwrap();
    }
}

fn check(db: &Db, expected: &[(std::ops::Range<u32>, &str)]) {
    let keyspace = db.keyspace("default").unwrap();
    let found: Vec<_> = keyspace.iter().map(Result::unwrap).collect();
    let expected: Vec<_> = expected
        .iter()
        .flat_map(|(numbers, value)| numbers.clone().map(|i| (key(i), value.as_bytes())))
        .collect();
    assert_eq!(found.len(), expected.len());
    assert!(
        found.iter().zip(&expected).all(|(found, expected)| found.0 == expected.0 && found.1 == expected.1)
    );
    db.verify().unwrap();
}

/// Makes a store with all entries in segments: two runs, written in two incarnations.
fn source() -> SimBackend {
    let sim = SimBackend::new(1);
    for (numbers, value) in [(0..200, "first"), (100..300, "second")] {
        let db = open(&sim, SOURCE).unwrap();
        put(&db.keyspace("default").unwrap(), numbers, value);
        db.flush().unwrap();
        db.close().unwrap();
    }
    sim
}

fn loaded(sim: &SimBackend, root: &str) -> Version {
    edit_log::load(&files_in(sim, root)).unwrap().unwrap()
}

/// Makes `COPY` with the segments of `root`, and a manifest with this id and these origins.
fn copy(sim: &SimBackend, root: &str, store_id: u64, origins: Vec<Origin>) -> SimBackend {
    let from = loaded(sim, root);
    let (ring_bytes, end) = (from.incarnation.ring_bytes, from.horizon);
    for dir in ["", "wal", "segments"] {
        sim.make_dir(&Path::new(COPY).join(dir)).unwrap();
    }
    let files = files_in(sim, COPY);
    let segments: Vec<_> = from.segments().map(|segment| segment.id).collect();
    let ring = from.incarnation.ring;
    let incarnation = Incarnation { store_id, number: 1, start: end, ..from.incarnation.clone() };
    let version = Version { incarnation, origins, ring_file_bytes: ring_bytes, logs: Vec::new(), ..from };
    Manifest::create(&files, FIRST_NUMBER, version, 1 << 20).unwrap();
    let mut image = sim.snapshot().power_cut_all();
    for id in segments {
        let bytes = read(&image, &files_in(sim, root).segment_path(id));
        image.write_file(&files.segment_path(id), &bytes);
    }
    image.write_file(&files.ring_path(ring), &vec![0; usize::try_from(ring_bytes).unwrap()]);
    SimBackend::from_image(image, 2)
}

fn read(image: &DiskImage, path: &Path) -> Vec<u8> {
    image.read_file(path).unwrap()
}

/// The origins of a copy: those of the source, and the source for the rest of its files.
fn origins_for_copy(version: &Version) -> Vec<Origin> {
    let own = Origin { below: version.next_file, store_id: version.incarnation.store_id };
    version.origins.iter().copied().chain([own]).collect()
}

#[test]
fn a_copy_keeps_the_segments_of_its_origin_and_writes_its_own() {
    let sim = source();
    let from = loaded(&sim, SOURCE);
    assert!(from.origins.is_empty() && from.segments().count() == 2);
    let sim = copy(&sim, SOURCE, 77, origins_for_copy(&from));
    check(&open(&sim, SOURCE).unwrap(), &[(0..100, "first"), (100..300, "second")]);

    let db = open(&sim, COPY).unwrap();
    check(&db, &[(0..100, "first"), (100..300, "second")]);
    put(&db.keyspace("default").unwrap(), 50..60, "copied");
    db.flush().unwrap();
    db.close().unwrap();
    // Each open writes a new manifest, which keeps the origins.
    let version = loaded(&sim, COPY);
    assert_eq!((version.incarnation.store_id, version.origins.len()), (77, 1));
    let stores: Vec<u64> = version.segments().map(|segment| version.origin_of(segment.id)).collect();
    assert_eq!(stores, [77, from.incarnation.store_id, from.incarnation.store_id]);
    let all = [(0..50, "first"), (50..60, "copied"), (60..100, "first"), (100..300, "second")];
    let db = open(&sim, COPY).unwrap();
    check(&db, &all);
    db.compact().unwrap();
    db.close().unwrap();
    check(&open(&sim, COPY).unwrap(), &all);
}

#[test]
fn segments_of_a_store_that_is_no_origin_are_refused() {
    let sim = source();
    let from = loaded(&sim, SOURCE);
    let too_low = Origin { below: 1, store_id: from.incarnation.store_id };
    let another = Origin { below: from.next_file, store_id: from.incarnation.store_id + 1 };
    for origins in [vec![], vec![too_low], vec![another]] {
        let sim =
            copy(&SimBackend::from_image(sim.snapshot().power_cut_all(), 1), SOURCE, 77, origins.clone());
        let found = open(&sim, COPY).map(drop);
        assert!(matches!(found, Err(Error::Corrupt { what: "store id", .. })), "{origins:?}: {found:?}");
    }
}
