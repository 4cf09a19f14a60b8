//! An open that fails begins no incarnation and adds no files, whichever call fails and however often it is tried.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use aio::sim::{DiskImage, Fault, FaultPlan};
use aio::{Backend, Errno, SimBackend};

use crate::base::error::Result;
use crate::io::files::Files;
use crate::manifest::edit_log;
use crate::testing::{Background, BuilderExt, Sizes};
use crate::{Db, Durability};

const ROOT: &str = "/store";

/// Entries that are nowhere else yet.
const RING_ONLY: usize = 20;

/// Tries of an open, in each of which the call with the same number fails.
const TRIES: usize = 3;

fn open(sim: &SimBackend, ring_bytes: u64) -> Result<Db> {
    let sizes = Sizes {
        ring_bytes: Some(ring_bytes),
        log_file_bytes: Some(64 << 10),
        manifest_bytes: Some(16 << 10),
        ..Sizes::default()
    };
    let builder = Db::builder().backend(Arc::new(sim.clone())).background(Background::Manual);
    builder.sizes(sizes).open(ROOT)
}

/// Names and sizes of all files.
fn files(sim: &SimBackend) -> BTreeMap<PathBuf, u64> {
    sim.snapshot().files().into_iter().collect()
}

fn incarnation(sim: &SimBackend) -> Option<u32> {
    sim.stat(ROOT.as_ref()).unwrap()?;
    let files = Files::new(Arc::new(sim.clone()), ROOT.as_ref(), 1 << 20);
    edit_log::load(&files).unwrap().map(|version| version.incarnation.number)
}

/// What a killed process leaves: runs, records in the log, and an orphan.
fn killed() -> DiskImage {
    let sim = SimBackend::new(1);
    let db = open(&sim, 64 << 10).unwrap();
    let keyspace = db.keyspace("default").unwrap();
    for round in 0..3 {
        for number in 0..50 {
            keyspace.put(format!("{round} {number}"), [7; 300]).unwrap();
        }
        if round < 2 {
            db.flush().unwrap();
        }
    }
    // Only the ring has these.
    for number in 0..RING_ONLY {
        let mut batch = db.batch();
        batch.durability(Durability::Process).put(&keyspace, format!("ring {number}"), [8; 30]);
        batch.commit().unwrap();
    }
    let mut image = sim.snapshot().process_crash(1);
    image.write_file("/store/segments/000777.seg".as_ref(), b"an orphan");
    image
}

/// `entries`: those that are on stable media, and those that only the ring may have.
fn check(sim: &SimBackend, (stable, ring_only): (usize, usize)) {
    let db = open(sim, 64 << 10).unwrap();
    let keyspace = db.keyspace("default").unwrap();
    let found = keyspace.iter().map(Result::unwrap).count();
    assert!((stable..=stable + ring_only).contains(&found), "{found} of {stable} and {ring_only}");
    db.verify().unwrap();
    db.close().unwrap();
}

/// Fails every call of an open of `image` once, and then each way of calls that follow from it.
fn fail_every_call(image: &DiskImage, ring_bytes: u64, (stable, ring_only): (usize, usize)) {
    let mut refused = 0;
    for errno in [Errno::IO, Errno::NO_SPACE, Errno::ACCESS] {
        for call in 0.. {
            let sim = SimBackend::from_image(image.clone(), 2);
            let before = incarnation(&sim);
            let (mut struck, mut first) = (0, None);
            for _ in 0..TRIES {
                sim.fail(FaultPlan::new(Fault::Errno(errno)).skip(call));
                let result = open(&sim, ring_bytes);
                struck = sim.faults_struck();
                sim.clear_faults();
                let Err(error) = result else { break };
                refused += 1;
                assert_eq!(incarnation(&sim), before, "{errno:?} in call {call}: {error}");
                let left = files(&sim);
                assert_eq!(
                    left,
                    *first.get_or_insert_with(|| left.clone()),
                    "{errno:?} in call {call}: {error}"
                );
                let cut = sim.snapshot().power_cut_random(call);
                check(&SimBackend::from_image(cut, 3), (stable, ring_only));
            }
            if struck == 0 {
                break;
            }
            check(&sim, (stable + ring_only, 0));
        }
    }
    assert!(refused > 100, "only {refused}");
}

#[test]
fn tries_of_a_failing_open_after_a_crash_add_nothing() {
    fail_every_call(&killed(), 64 << 10, (150, RING_ONLY));
}

#[test]
fn tries_of_a_failing_open_with_another_ring_add_nothing() {
    fail_every_call(&killed(), 32 << 10, (150, RING_ONLY));
}

#[test]
fn tries_of_a_failing_first_open_add_nothing() {
    fail_every_call(&SimBackend::new(1).snapshot().power_cut_all(), 64 << 10, (0, 0));
}
