//! Reads ahead: every order of completions, failing and short reads in flight, streams dropped in the middle.

use std::path::Path;
use std::time::Duration;

use aio::sim::{EventKind, Fault, FaultPlan};
use aio::{Backend, Errno, OpenMode, SimBackend};

use super::*;
use crate::io::background::JobKind;
use crate::read::cursor_contract::seed;

const BLOCK: usize = 4096;
const BLOCKS: usize = 24;
const FILES: usize = 3;

/// Files whose blocks all differ.
fn machine(seed: u64) -> (SimBackend, Arc<Files>, Vec<CachedFile>) {
    let sim = SimBackend::new(seed);
    sim.make_dir(Path::new("/store")).unwrap();
    let files = Arc::new(Files::new(Arc::new(sim.clone()), Path::new("/store"), 1 << 20));
    let inputs = (0..FILES).map(|number| {
        let file = sim.open(Path::new(&format!("/store/{number}")), OpenMode::Create).unwrap();
        let bytes: Vec<u8> = (0..BLOCKS).flat_map(|block| [byte_of(number, block); BLOCK]).collect();
        files
            .with_queue(|queue| Ok(aio::file::write_all(queue, &file, 0, bytes.as_slice().into())?))
            .unwrap();
        files.open_files().open_cached(file.path()).unwrap()
    });
    let inputs = inputs.collect();
    (sim, files, inputs)
}

fn byte_of(file: usize, block: usize) -> u8 {
    u8::try_from(file * BLOCKS + block).unwrap() + 1
}

fn extent(blocks: Range<usize>) -> Extent {
    Extent { offset: (blocks.start * BLOCK) as u64, len_bytes: blocks.len() * BLOCK, blocks }
}

/// The window that begins with this block, of 1 to 4 blocks.
fn window_at(block: usize) -> Extent {
    extent(block..(block + 1 + block % 4).min(BLOCKS))
}

/// Uses one block, as a cursor does.
fn step(
    stream: &mut ReadStream,
    files: &Arc<Files>,
    file: &CachedFile,
    (number, block): (usize, usize),
) -> Result<()> {
    if !stream.holds(block) {
        if stream.ahead().is_some_and(|ahead| ahead.contains(&block)) {
            stream.advance()?;
        } else {
            stream.read(files, file, window_at(block))?;
        }
        let end = stream.window().unwrap().blocks.end;
        if end < BLOCKS {
            stream.read_ahead(files, file, window_at(end));
        }
    }
    let window = stream.window().unwrap();
    let start = block * BLOCK - usize::try_from(window.offset).unwrap();
    assert!(window.buf[start..start + BLOCK].iter().all(|&byte| byte == byte_of(number, block)));
    if block + 1 == window.blocks.end {
        stream.drop_window();
    }
    Ok(())
}

/// Walks all files in turns, as a merge does; gives up after `most` blocks.
fn walk(streams: &mut [ReadStream], files: &Arc<Files>, inputs: &[CachedFile], most: usize) -> Result<()> {
    let blocks = (0..BLOCKS).flat_map(|block| (0..FILES).map(move |number| (number, block)));
    for (number, block) in blocks.take(most) {
        step(&mut streams[number], files, &inputs[number], (number, block))?;
    }
    Ok(())
}

fn streams(files: &Arc<Files>, is_job: bool) -> Vec<ReadStream> {
    if is_job {
        let lane = Lane::new(files, JobKind::Merge).unwrap();
        return (0..FILES).map(|_| ReadStream::of_job(&lane)).collect();
    }
    (0..FILES).map(|_| ReadStream::of_scan()).collect()
}

#[test]
fn every_order_of_completions_gives_every_block() {
    let first = seed();
    for seed in first..first + 200 {
        let (sim, files, inputs) = machine(seed);
        let late = FaultPlan::new(Fault::Last).on(&[EventKind::Read]).skip(seed % 20);
        sim.fail(late.times(1 + seed % 3));
        let mut streams = streams(&files, seed % 2 == 0);
        walk(&mut streams, &files, &inputs, usize::MAX).unwrap();
        drop(streams);
        assert_eq!(files.leases(), 0);
    }
}

#[test]
fn a_read_that_fails_or_is_short_is_an_error_and_leaks_no_lease() {
    for (fault, is_job) in
        [(Fault::Errno(Errno::IO), true), (Fault::Short(512), true), (Fault::Short(0), false)]
    {
        let mut reads = 0;
        loop {
            let (sim, files, inputs) = machine(reads);
            sim.fail(FaultPlan::new(fault).on(&[EventKind::Read]).skip(reads));
            let mut streams = streams(&files, is_job);
            let result = walk(&mut streams, &files, &inputs, usize::MAX);
            drop(streams);
            assert_eq!(files.leases(), 0);
            if sim.faults_struck() == 0 {
                result.unwrap();
                break;
            }
            assert!(result.is_err(), "{fault:?} in read {reads}");
            reads += 1;
        }
        assert!(reads >= 8 * FILES as u64, "{reads} reads");
    }
}

#[test]
fn a_refused_submit_of_a_read_ahead_costs_nothing_but_time() {
    for calls in 0..30 {
        let (sim, files, inputs) = machine(calls);
        let mut streams = streams(&files, true);
        walk(&mut streams, &files, &inputs, 1).unwrap();
        sim.fail(FaultPlan::new(Fault::Errno(Errno::IO)).on(&[EventKind::Submit]).skip(calls));
        let result = walk(&mut streams, &files, &inputs, usize::MAX);
        // The blocks that are needed at once are not read ahead.
        assert!(result.is_ok() || sim.faults_struck() == 1);
        drop(streams);
        assert_eq!(files.leases(), 0);
    }
}

#[test]
fn streams_dropped_or_cleared_in_the_middle_leak_no_lease() {
    for most in 0..BLOCKS * FILES {
        let (sim, files, inputs) = machine(1);
        sim.fail(FaultPlan::new(Fault::Delay(Duration::from_secs(1))).on(&[EventKind::Read]).forever());
        let mut streams = streams(&files, most % 2 == 0);
        walk(&mut streams, &files, &inputs, most).unwrap();
        streams.iter_mut().step_by(2).for_each(ReadStream::clear);
        drop(streams);
        assert_eq!(files.leases(), 0, "after {most} blocks");
        // The context that comes next is idle.
        files.read_cached(None, &inputs[0], 0, BLOCK).unwrap();
    }
}

#[test]
fn a_stream_holds_two_windows_at_most() {
    let (_, files, inputs) = machine(1);
    let mut streams = streams(&files, true);
    let mut most = 0;
    for blocks in 0..BLOCKS {
        step(&mut streams[0], &files, &inputs[0], (0, blocks)).unwrap();
        most = most.max(files.leases());
    }
    assert_eq!(most, 2);
}

#[test]
fn the_device_reads_while_a_window_is_used() {
    let (sim, files, inputs) = machine(1);
    sim.fail(FaultPlan::new(Fault::Delay(Duration::from_secs(1))).on(&[EventKind::Read]).forever());
    let mut streams = streams(&files, true);
    let before = sim.now();
    for block in 0..BLOCKS {
        step(&mut streams[0], &files, &inputs[0], (0, block)).unwrap();
        // The work on one block.
        sim.advance(Duration::from_secs(1));
    }
    let took = sim.now().saturating_sub(before);
    assert!(took < Duration::from_secs(BLOCKS as u64 + 4), "reading and working took {took:?}");
}
