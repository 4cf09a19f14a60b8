//! Writes behind: every order of completions, failing and short writes, streams dropped in the middle, memory.

use std::path::Path;
use std::time::Duration;

use aio::sim::{EventKind, Fault, FaultPlan};
use aio::{Backend, Errno, SimBackend};

use super::*;
use crate::base::error::Error;
use crate::io::background::JobKind;
use crate::read::cursor_contract::seed;

const ROOT: &str = "/store";
const CHUNK: usize = 4096;

/// Pages of the files that each test writes.
const PAGES: [usize; 4] = [7, 1, 12, 3];

fn machine(seed: u64) -> (SimBackend, Arc<Files>) {
    let sim = SimBackend::new(seed);
    for dir in [ROOT, "/store/segments"] {
        sim.make_dir(Path::new(dir)).unwrap();
    }
    sim.sync_dir(Path::new("/")).unwrap();
    sim.sync_dir(Path::new(ROOT)).unwrap();
    let files = Arc::new(Files::new(Arc::new(sim.clone()), Path::new(ROOT), 1 << 20));
    (sim, files)
}

/// Bytes that differ in every page of every file.
fn content(file: usize) -> Vec<u8> {
    (0..PAGES[file]).flat_map(|page| vec![u8::try_from(file * 40 + page).unwrap() + 1; 4096]).collect()
}

fn path(files: &Files, file: usize) -> PathBuf {
    files.segment_path(file as u64)
}

/// Writes all files in appends of an odd length; gives up after `most` of them.
fn write(files: &Arc<Files>, most: usize) -> Result<()> {
    let mut stream = WriteStream::new(&Lane::new(files, JobKind::Flush)?, CHUNK);
    let mut appends = 0;
    for file in 0..PAGES.len() {
        stream.begin(path(files, file))?;
        for part in content(file).chunks(1000) {
            if appends == most {
                return Ok(());
            }
            appends += 1;
            stream.append(part)?;
        }
        assert_eq!(stream.len_bytes(), content(file).len() as u64);
        stream.finish()?;
    }
    stream.close()
}

fn names(sim: &SimBackend, files: &Files) -> usize {
    sim.list(&files.segments_dir()).unwrap().len()
}

#[test]
fn a_closed_stream_is_durable_in_every_order_of_completions() {
    let first = seed();
    for seed in first..first + 200 {
        let (sim, files) = machine(seed);
        if seed % 2 == 0 {
            let late = FaultPlan::new(Fault::Last).on(&[EventKind::Write]).skip(seed / 2 % 20);
            sim.fail(late.times(1 + seed % 3));
        }
        write(&files, usize::MAX).unwrap();
        let disk = sim.snapshot().power_cut_none();
        for file in 0..PAGES.len() {
            assert!(disk.read_file(&path(&files, file)) == Some(content(file)), "seed {seed}, file {file}");
        }
        assert_eq!(files.leases(), 0);
    }
}

#[test]
fn any_call_that_fails_or_is_short_fails_the_stream_and_removes_its_files() {
    for fault in [Fault::Errno(Errno::IO), Fault::Errno(Errno::NO_SPACE), Fault::Short(512), Fault::Short(0)]
    {
        for seed in 0..3 {
            let mut calls = 0;
            loop {
                let (sim, files) = machine(seed);
                sim.fail(FaultPlan::new(fault).path(".seg").skip(calls));
                let result = write(&files, usize::MAX);
                assert_eq!(files.leases(), 0, "{fault:?} in call {calls}");
                if sim.faults_struck() == 0 {
                    result.unwrap();
                    break;
                }
                assert!(
                    matches!(result, Err(Error::Io { .. } | Error::NoSpace { .. })),
                    "{fault:?}: {result:?}"
                );
                assert_eq!(names(&sim, &files), 0, "{fault:?} in call {calls}");
                calls += 1;
            }
            assert!(calls >= PAGES.iter().sum::<usize>() as u64, "each write failed once: {calls}");
        }
    }
}

#[test]
fn a_refused_submit_and_a_dead_context_fail_the_stream_and_leak_nothing() {
    for kind in [EventKind::Submit, EventKind::Wait] {
        for calls in 0..25 {
            let (sim, files) = machine(calls);
            sim.fail(FaultPlan::new(Fault::Errno(Errno::IO)).on(&[kind]).skip(calls));
            let result = write(&files, usize::MAX);
            assert_eq!(result.is_err(), sim.faults_struck() > 0, "{kind:?} {calls}");
            assert_eq!((files.leases(), names(&sim, &files) == 0), (0, result.is_err()));
        }
    }
}

#[test]
fn a_stream_dropped_in_the_middle_leaves_no_file_and_no_lease() {
    let appends: usize = (0..PAGES.len()).map(|file| content(file).chunks(1000).count()).sum();
    for most in 0..appends {
        let (sim, files) = machine(most as u64);
        sim.fail(FaultPlan::new(Fault::Delay(Duration::from_secs(1))).on(&[EventKind::Write]).forever());
        write(&files, most).unwrap();
        assert_eq!((names(&sim, &files), files.leases()), (0, 0), "after {most} appends");
        // The context is idle: it is lent again.
        files.read(&files.open(&file_beside(&sim), OpenMode::Read).unwrap(), 0, 4096).unwrap();
    }
}

fn file_beside(sim: &SimBackend) -> PathBuf {
    let path = PathBuf::from("/store/beside");
    let file = sim.open(&path, OpenMode::Create).unwrap();
    sim.allocate(&file, 4096).unwrap();
    path
}

#[test]
fn a_panic_while_writes_are_in_flight_leaks_no_lease() {
    let (sim, files) = machine(1);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut stream = WriteStream::new(&Lane::new(&files, JobKind::Flush).unwrap(), CHUNK);
        stream.begin(path(&files, 0)).unwrap();
        stream.append(&content(0)).unwrap();
        // A page is missing in the rest.
        stream.append(b"not a page").unwrap();
        stream.finish().unwrap();
    }));
    assert!(panicked.is_err());
    assert_eq!((names(&sim, &files), files.leases()), (0, 0));
}

#[test]
fn a_stream_holds_one_chunk_and_those_in_flight() {
    let (sim, files) = machine(1);
    sim.fail(FaultPlan::new(Fault::Delay(Duration::from_secs(1))).on(&[EventKind::Write]).forever());
    let mut stream = WriteStream::new(&Lane::new(&files, JobKind::Flush).unwrap(), CHUNK);
    let mut most = 0;
    for file in [0, 2] {
        stream.begin(path(&files, file)).unwrap();
        for part in content(file).chunks(512) {
            stream.append(part).unwrap();
            most = most.max(files.leases());
        }
        stream.finish().unwrap();
    }
    assert_eq!(most, MOST_WRITES + 1);
    stream.close().unwrap();
    assert_eq!(files.leases(), 0);
}

#[test]
fn the_next_file_is_filled_while_the_one_before_is_synced() {
    let (sim, files) = machine(1);
    sim.fail(FaultPlan::new(Fault::Delay(Duration::from_secs(1))).on(&[EventKind::Sync]).forever());
    let before = sim.now();
    write(&files, usize::MAX).unwrap();
    let took = sim.now().saturating_sub(before);
    assert!(took < Duration::from_secs(3), "four syncs of a second each took {took:?}");
}

#[test]
fn a_failed_sync_of_the_names_ends_all_jobs_whatever_the_next_sync_says() {
    for errno in [Errno::IO, Errno::NO_SPACE, Errno::INTERRUPTED] {
        let (sim, files) = machine(seed());
        let other_job = {
            let mut stream = WriteStream::new(&Lane::new(&files, JobKind::Flush).unwrap(), CHUNK);
            stream.begin(files.segment_path(100)).unwrap();
            stream.append(&[7; CHUNK]).unwrap();
            stream.finish().unwrap();
            stream
        };
        sim.fail(FaultPlan::new(Fault::Errno(errno)).on(&[EventKind::SyncDir]).path("/segments"));
        let first = write(&files, usize::MAX).unwrap_err();
        assert_eq!(sim.faults_struck(), 1, "not tried again");
        for error in [&first, &other_job.close().unwrap_err(), &write(&files, usize::MAX).unwrap_err()] {
            assert!(matches!(error, Error::Halted { .. }), "{errno:?}: {error}");
        }
        assert_eq!(names(&sim, &files), 0, "the files are removed");
    }
}
