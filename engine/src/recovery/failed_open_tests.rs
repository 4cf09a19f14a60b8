//! An open that fails begins no incarnation and adds no files, whichever call fails and however often it is tried.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use aio::sim::{DiskImage, Fault, FaultPlan};
use aio::{Backend, Errno, SimBackend};

use crate::Db;
use crate::base::error::Result;
use crate::io::files::Files;
use crate::manifest::edit_log;
use crate::testing::{Background, BuilderExt, Sizes};

const ROOT: &str = "/store";

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
    let mut image = sim.snapshot().power_cut_all();
    image.write_file("/store/segments/000777.seg".as_ref(), b"an orphan");
    image
}

fn check(sim: &SimBackend, entries: usize) {
    let db = open(sim, 64 << 10).unwrap();
    let keyspace = db.keyspace("default").unwrap();
    assert_eq!(keyspace.iter().map(Result::unwrap).count(), entries);
    db.verify().unwrap();
    db.close().unwrap();
}

/// Fails every call of an open of `image` once, and then each way of calls that follow from it.
fn fail_every_call(image: &DiskImage, ring_bytes: u64, entries: usize) {
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
            }
            if struck == 0 {
                break;
            }
            check(&sim, entries);
        }
    }
    assert!(refused > 100, "only {refused}");
}

#[test]
fn tries_of_a_failing_open_after_a_crash_add_nothing() {
    fail_every_call(&killed(), 64 << 10, 150);
}

#[test]
fn tries_of_a_failing_open_with_another_ring_add_nothing() {
    fail_every_call(&killed(), 32 << 10, 150);
}

#[test]
fn tries_of_a_failing_first_open_add_nothing() {
    fail_every_call(&SimBackend::new(1).snapshot().power_cut_all(), 64 << 10, 0);
}
