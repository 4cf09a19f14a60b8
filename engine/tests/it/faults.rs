//! The store on a machine that fails once, at a chosen call. Each case was found by `kvtorture errors`.

use std::sync::Arc;

use aio::sim::{EventKind, Fault, FaultPlan};
use aio::{Errno, SimBackend};
use esker::testing::{Background, BuilderExt, Sizes};
use esker::{Db, Error};

fn open(sim: &SimBackend) -> esker::Result<Db> {
    let sizes = Sizes { manifest_bytes: Some(8 << 10), ..Sizes::default() };
    let builder = Db::builder().backend(Arc::new(sim.clone())).background(Background::Manual).sizes(sizes);
    builder.memory_budget_bytes(1 << 20).open("/store")
}

#[test]
fn a_new_manifest_that_failed_half_way_takes_no_acknowledged_edit_along() {
    let sim = SimBackend::new(1);
    let db = open(&sim).unwrap();
    // The zeros of the new manifest are synced first, then its first group, which is whole on the disk by then.
    let plan = FaultPlan::new(Fault::Errno(Errno::NO_SPACE)).on(&[EventKind::Sync]).path("manifest-000002");
    sim.fail(plan.skip(1));
    let mut made = vec!["default".to_owned()];
    let mut refused = Vec::new();
    for number in 0..20 {
        let name = format!("keyspace-{number:02}");
        match db.keyspace(&name) {
            Ok(_) => made.push(name),
            Err(_) => refused.push(name),
        }
    }
    assert!(!refused.is_empty(), "the manifest was replaced, and that failed");

    for image in [sim.snapshot().power_cut_none(), sim.snapshot().power_cut_all()] {
        let mut found = open(&SimBackend::from_image(image, 2)).unwrap().keyspaces();
        // Only the edit that failed is in doubt.
        found.retain(|name| *name != refused[0]);
        assert_eq!(found, made);
    }
}

#[test]
fn a_full_disk_that_keeps_half_a_manifest_is_forgotten_when_there_is_space() {
    let sim = SimBackend::new(1);
    let db = open(&sim).unwrap();
    // The removal of the unfinished file fails too.
    sim.fail(FaultPlan::new(Fault::Errno(Errno::NO_SPACE)).path("manifest-000002").skip(1).forever());
    let mut number = 0;
    while db.keyspace(&format!("keyspace-{number:02}")).is_ok() {
        number += 1;
    }
    assert!(sim.snapshot().files().iter().any(|(path, _)| path.ends_with("manifest-000002")));
    sim.clear_faults();
    for number in 0..=number {
        db.keyspace(&format!("keyspace-{number:02}")).unwrap();
    }
    db.verify().unwrap();
    let made = db.keyspaces();
    for image in [sim.snapshot().power_cut_none(), sim.snapshot().power_cut_all()] {
        assert_eq!(open(&SimBackend::from_image(image, 2)).unwrap().keyspaces(), made);
    }
}

#[test]
fn a_write_that_needs_a_new_log_file_fails_as_long_as_none_can_be_made() {
    let sim = SimBackend::new(1);
    let db = open(&sim).unwrap();
    sim.fail(FaultPlan::new(Fault::Errno(Errno::IO)).forever());
    let default = db.keyspace("default").unwrap();
    let write = |number: u32| default.put(number.to_string(), vec![7; 4000]);
    for number in 0..200 {
        let error = write(number).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "no file with data is in doubt: {error}");
    }
    assert_eq!(default.get("0").unwrap(), None, "a refused write was not made");
}

#[test]
fn after_a_halt_a_write_that_needs_a_new_log_file_says_so() {
    let sim = SimBackend::new(1);
    let db = open(&sim).unwrap();
    sim.fail(FaultPlan::new(Fault::Errno(Errno::IO)).forever());
    let default = db.keyspace("default").unwrap();
    assert!(matches!(db.keyspace("another"), Err(Error::Halted { .. })));
    assert!(matches!(default.put("k", vec![7; 4000]), Err(Error::Halted { .. })));
}

#[test]
fn a_manifest_that_found_no_space_in_a_write_halts_the_log_too() {
    let sim = SimBackend::new(1);
    let db = open(&sim).unwrap();
    sim.fail(FaultPlan::new(Fault::Errno(Errno::NO_SPACE)).on(&[EventKind::Write]).path("manifest-"));
    let default = db.keyspace("default").unwrap();
    for _ in 0..2 {
        // The manifest must name a log file before the first write can use it.
        assert!(matches!(default.put("k", "v"), Err(Error::Halted { .. })));
        assert!(matches!(db.sync(), Err(Error::Halted { .. })));
    }
}

#[test]
fn verify_of_a_store_that_has_halted_says_so_and_finds_no_damage() {
    let sim = SimBackend::new(1);
    let db = open(&sim).unwrap();
    db.keyspace("default").unwrap().put("k", "v").unwrap();
    // The edit is written, but not known to be durable: the file is ahead of the memory.
    sim.fail(FaultPlan::new(Fault::Errno(Errno::IO)).on(&[EventKind::Sync]).path("manifest-"));
    assert!(matches!(db.flush(), Err(Error::Halted { .. })));
    assert!(matches!(db.verify(), Err(Error::Halted { .. })));

    drop(db);
    assert!(open(&sim).unwrap().verify().is_ok());
}
