//! Log files of an earlier life: used before new ones are made, and only if they are fit for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::support::{Manifest, record};
use aio::sim::{DiskImage, EventKind, Fault, FaultPlan, SimBackend};
use aio::{Backend, Errno, OpenMode};
use wal::{Background, Error, KeptFiles, Log, LogOptions, ReplayInput, Seq, log_file_path, replay};

const FILE_BYTES: usize = 16 << 10;

fn options(incarnation: u32, start: Seq) -> LogOptions {
    LogOptions {
        ring_bytes: 16 << 10,
        ring_file_bytes: 16 << 10,
        file_bytes: FILE_BYTES as u64,
        background: Background::Manual,
        ..LogOptions::new("/wal", 7, incarnation, start)
    }
}

fn path(id: u64) -> PathBuf {
    log_file_path(Path::new("/wal"), id)
}

/// A life that has written to files 1 and 2, and its manifest, which has forgotten them.
fn first_life() -> (DiskImage, Arc<Manifest>, Seq) {
    let sim = SimBackend::new(1);
    // Each record takes one.
    sim.set_physical_block_bytes(4096);
    sim.make_dir(Path::new("/wal")).unwrap();
    sim.sync_dir(Path::new("/")).unwrap();
    let manifest = Arc::new(Manifest::default());
    let host: Arc<Manifest> = Arc::clone(&manifest);
    let log = Log::open(Arc::new(sim.clone()), options(1, Seq::ZERO), host).unwrap();
    for _ in 0..6 {
        put(&log, &[1; 3000]);
    }
    assert_eq!(manifest.forget_all(), [1, 2]);
    (sim.snapshot().power_cut_none(), manifest, log.durable())
}

fn put(log: &Log, payload: &[u8]) {
    log.wait_durable(log.append(&mut record(payload)).unwrap().end).unwrap();
}

/// The log of the next life. All epochs up to 2 were used.
fn second_life(sim: &SimBackend, manifest: &Arc<Manifest>, start: Seq, ids: &[u64]) -> Log {
    let host: Arc<Manifest> = Arc::clone(manifest);
    let kept = KeptFiles { ids: ids.to_vec(), next_epoch: 3 };
    Log::open(Arc::new(sim.clone()), LogOptions { kept, ..options(2, start) }, host).unwrap()
}

/// The records that a power cut leaves which keeps nothing unsynced, without the ring.
fn replayed(sim: &SimBackend, manifest: &Manifest, start: Seq) -> wal::Result<Vec<Vec<u8>>> {
    let mut image = sim.snapshot().power_cut_none();
    let options = options(2, start);
    image.damage(&options.ring_path, |ring| ring.fill(0));
    let sim = SimBackend::from_image(image, 1);
    let input = ReplayInput {
        directory: options.directory,
        store_id: options.store_id,
        incarnation: options.incarnation,
        incarnation_start: start,
        from: start,
        files: manifest.files(),
        file_bytes: options.file_bytes,
        ring_path: options.ring_path,
        ring_bytes: options.ring_bytes,
        ring_file_bytes: options.ring_bytes,
    };
    let mut found = Vec::new();
    replay(&sim, &mut *sim.queue(1).unwrap(), &input, &mut |_, payload| {
        found.push(payload.to_vec());
        Ok(())
    })?;
    Ok(found)
}

#[test]
fn files_of_an_earlier_life_are_used_before_a_new_one_is_made() {
    let (image, manifest, start) = first_life();
    let sim = SimBackend::from_image(image, 1);
    let log = second_life(&sim, &manifest, start, &[1, 2]);
    for nth in 0..6 {
        put(&log, &[nth; 3000]);
    }
    let used = manifest.files();
    assert_eq!(used.iter().map(|file| (file.id, file.epoch)).collect::<Vec<_>>(), [(2, 3), (1, 4)]);
    assert_eq!(
        replayed(&sim, &manifest, start).unwrap(),
        (0..6).map(|nth| vec![nth; 3000]).collect::<Vec<_>>()
    );
    for nth in 6..9 {
        put(&log, &[nth; 3000]);
    }
    log.close().unwrap();
    assert_eq!(manifest.files()[2].id, 3, "then a new one is made");
    log.leave_files(2).unwrap();
    assert_eq!(
        sim.list(Path::new("/wal")).unwrap(),
        ["000001.log", "000002.log", "ring-000001", "ring-000002"]
    );
}

/// The process died while it made the file: the size is not durable, nor is the name.
#[test]
fn a_kept_file_is_durable_before_its_first_use() {
    let (image, manifest, start) = first_life();
    let sim = SimBackend::from_image(image, 1);
    let id = 9;
    let made = sim.open(&path(id), OpenMode::Create).unwrap();
    sim.allocate(&made, FILE_BYTES as u64).unwrap();
    let log = second_life(&sim, &manifest, start, &[id]);
    // The manifest names the file before the first group is written.
    sim.fail(FaultPlan::new(Fault::Errno(Errno::IO)).on(&[EventKind::Write]).path(".log"));
    let end = log.append(&mut record(b"lost")).unwrap().end;
    log.wait_durable(end).unwrap_err();
    assert_eq!(manifest.files().iter().map(|file| file.id).collect::<Vec<_>>(), [id]);
    assert_eq!(replayed(&sim, &manifest, start), Ok(Vec::new()));
}

/// A name, and a change of the disk.
type Change<'a> = (&'a str, &'a dyn Fn(&mut DiskImage));

#[test]
fn a_kept_file_with_a_sector_that_is_not_older_is_removed() {
    let (image, manifest, start) = first_life();
    let changes: [Change<'_>; 4] = [
        ("a flipped bit", &|image| image.flip_bit(&path(1), 8 * 9000)),
        ("the content of another file", &|image| {
            let other = image.read_file(&path(2)).unwrap();
            image.write_file(&path(1), &other);
        }),
        ("another program's file", &|image| image.write_file(&path(1), &[b'x'; FILE_BYTES])),
        ("a missing file", &|image| assert!(image.remove_file(&path(1)))),
    ];
    for (what, change) in changes {
        let mut image = image.clone();
        change(&mut image);
        let sim = SimBackend::from_image(image, 1);
        let log = second_life(&sim, &manifest, start, &[1]);
        put(&log, b"kept");
        assert!(manifest.forget_all().iter().all(|&id| id > 2), "{what}");
        assert_eq!(sim.stat(&path(1)).unwrap().map(drop), None, "{what}");
    }
    // An epoch that is not below the bound.
    let sim = SimBackend::from_image(image, 1);
    let host: Arc<Manifest> = Arc::clone(&manifest);
    let kept = KeptFiles { ids: vec![1, 2], next_epoch: 2 };
    let log = Log::open(Arc::new(sim.clone()), LogOptions { kept, ..options(2, start) }, host).unwrap();
    put(&log, b"kept");
    assert_eq!(manifest.forget_all(), [1], "file 2 has epoch 2");
}

#[test]
fn a_kept_file_that_fails_is_replaced_and_a_failed_sync_of_the_folder_halts() {
    let (image, manifest, start) = first_life();
    let io = Fault::Errno(Errno::IO);
    for (kind, fault, halts) in [
        (EventKind::Open, Fault::Errno(Errno::ACCESS), false),
        (EventKind::Read, io, false),
        (EventKind::Sync, io, false),
        (EventKind::Allocate, Fault::Errno(Errno::NO_SPACE), false),
        (EventKind::SyncDir, io, true),
    ] {
        let sim = SimBackend::from_image(image.clone(), 1);
        let log = second_life(&sim, &manifest, start, &[1]);
        sim.fail(FaultPlan::new(fault).on(&[kind]).path("/wal"));
        let mut queue = sim.queue(4).unwrap();
        let made = log.prepare_spare(&mut *queue);
        assert_eq!(sim.faults_struck(), 1, "{kind:?}");
        if halts {
            assert!(matches!(made, Err(Error::Halted { .. })), "{made:?}");
            assert_eq!(log.health(), made.map(drop));
            continue;
        }
        assert_eq!(made, Ok(true), "{kind:?}");
        put(&log, b"kept");
        assert!(manifest.forget_all()[0] > 2, "{kind:?}");
        log.close().unwrap();
    }
    // The lack of a handle says nothing about the file.
    let sim = SimBackend::from_image(image, 1);
    let log = second_life(&sim, &manifest, start, &[1]);
    sim.fail(
        FaultPlan::new(Fault::Errno(Errno::TOO_MANY_FILES)).on(&[EventKind::Open]).path(".log").forever(),
    );
    assert!(log.prepare_spare(&mut *sim.queue(4).unwrap()).unwrap_err().is_shortage());
    sim.clear_faults();
    put(&log, b"kept");
    assert_eq!(manifest.forget_all(), [1]);
}
