//! Places that their writers gave up: nothing waits for them, and nothing of them comes back.
//!
//! With `--cfg planted` (`just planted-units`) a last test runs the others in processes of their own, with each planted bug
//! of [`IN_UNITS`](wal::planted::Bug::IN_UNITS) awake, and asks that one fails.

use std::path::Path;
use std::sync::Arc;

use aio::SimBackend;
use aio::sim::DiskImage;

use super::support::{Manifest, record};
use aio::Backend;
use wal::{Background, Log, LogOptions, ReplayInput, Seq, replay};

fn options() -> LogOptions {
    LogOptions {
        ring_bytes: 16 << 10,
        ring_file_bytes: 16 << 10,
        file_bytes: 64 << 10,
        background: Background::Manual,
        ..LogOptions::new("/wal", 7, 1, Seq::ZERO)
    }
}

/// A log that is never closed: a close waits for places that stay empty, and would hide which test failed.
fn log() -> (SimBackend, Arc<Manifest>, &'static Log) {
    let sim = SimBackend::new(1);
    sim.make_dir(Path::new("/wal")).unwrap();
    sim.sync_dir(Path::new("/")).unwrap();
    let manifest = Arc::new(Manifest::default());
    let host: Arc<Manifest> = Arc::clone(&manifest);
    let log = Log::open(Arc::new(sim.clone()), options(), host).unwrap();
    (sim, manifest, Box::leak(Box::new(log)))
}

/// Lengths of the payloads that a crash leaves.
fn left(image: DiskImage, manifest: &Manifest) -> Vec<usize> {
    let options = options();
    let input = ReplayInput {
        directory: options.directory,
        store_id: options.store_id,
        incarnation: options.incarnation,
        incarnation_start: options.start,
        from: options.start,
        files: manifest.files(),
        file_bytes: options.file_bytes,
        ring_path: options.ring_path,
        ring_bytes: options.ring_bytes,
        ring_file_bytes: options.ring_file_bytes,
    };
    let sim = SimBackend::from_image(image, 1);
    let (mut queue, mut lengths) = (sim.queue(1).unwrap(), Vec::new());
    let mut visit = |_, payload: &[u8]| {
        lengths.push(payload.len());
        Ok(())
    };
    let replayed = replay(&sim, &mut *queue, &input, &mut visit).unwrap();
    assert_eq!(replayed.records, lengths.len() as u64, "voids are not counted");
    lengths
}

/// Records of 100 bytes and places of 2,000 that are given up, by turns, until the ring has gone round.
#[test]
fn places_that_are_given_up_hold_nothing_up_and_leave_nothing() {
    let (sim, manifest, log) = log();
    for _ in 0..10 {
        log.append(&mut record(&[1; 100])).unwrap();
        let mut given_up = record(&[0xee; 2000]);
        let reservation = log.reserve(&mut given_up).unwrap();
        let end = reservation.place().end;
        drop(reservation);
        assert_eq!(log.published(), end, "the place is passed");
    }
    let last = log.append(&mut record(&[2; 50])).unwrap();
    log.wait_durable(last.end).unwrap();
    let expected: Vec<usize> = [vec![100; 10], vec![50]].concat();
    assert_eq!(left(sim.snapshot().power_cut_none(), &manifest), expected, "from log files");
    drop(log.reserve(&mut record(&[0xee; 300])).unwrap());
    log.append(&mut record(&[3; 60])).unwrap();
    let expected: Vec<usize> = [vec![100; 10], vec![50, 60]].concat();
    assert_eq!(left(sim.snapshot().process_crash(1), &manifest), expected, "the end from the ring");
}

/// A writer that reserved behind the place is acknowledged as soon as that is given up.
#[test]
fn a_place_behind_one_that_is_given_up_is_published() {
    let (_sim, _manifest, log) = log();
    let (mut first, mut second) = (record(&[1; 10]), record(&[2; 10]));
    let reservation = log.reserve(&mut first).unwrap();
    let behind = log.reserve(&mut second).unwrap().publish();
    assert_eq!(log.published(), Seq::ZERO, "nothing passes a place that is open");
    drop(reservation);
    assert_eq!(log.published(), behind.end);
}

#[cfg(planted)]
#[test]
fn every_planted_bug_is_found() {
    let run = |planted: Option<&str>| {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child
            .args(["voids::", "space::a_ring", "kept::", "closing::", "--skip", "every_planted_bug"])
            .env_remove("ESKER_PLANTED");
        let output = child.envs(planted.map(|bug| ("ESKER_PLANTED", bug))).output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let (passes, said) = run(None);
    assert!(passes && !said.contains(" 0 passed"), "without a bug the tests run and pass: {said}");
    for (bug, damage) in wal::planted::Bug::IN_UNITS {
        let (passes, said) = run(Some(bug));
        assert!(!passes, "{bug} was not found: {damage}");
        println!("{bug}: {} tests fail", said.lines().filter(|line| line.ends_with("FAILED")).count());
    }
}
