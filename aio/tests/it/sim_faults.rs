//! The faults of the simulated machine: each kind, its effect on the disk, and the scheduling of operations.

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aio::sim::{EventKind, Fault, FaultPlan, SimBackend};
use aio::{
    Alignment, Backend, Buf, Completion, Errno, Error, File, OpenMode, Operation, Queue, SharedMap, Wake,
    file,
};

const SECTOR: usize = 512;
const BLOCK: usize = 4096;

fn path(name: &str) -> &Path {
    Path::new(name)
}

/// A machine with a synced file `/f` of `sectors` sectors filled with ones.
fn machine(seed: u64, sectors: usize) -> (SimBackend, Box<dyn Queue>, File) {
    let sim = SimBackend::new(seed);
    let mut queue = sim.queue(64).unwrap();
    let f = sim.open(path("/f"), OpenMode::Create).unwrap();
    file::write_all(&mut *queue, &f, 0, filled(sectors, 1)).unwrap();
    sim.sync(&f).unwrap();
    sim.sync_dir(path("/")).unwrap();
    (sim, queue, f)
}

fn filled(sectors: usize, byte: u8) -> Buf {
    Buf::from(&vec![byte; sectors * SECTOR][..])
}

fn write(f: &File, sector: u64, sectors: usize, byte: u8) -> Operation {
    Operation::write(f, sector * SECTOR as u64, filled(sectors, byte))
}

fn read(f: &File, sector: u64, sectors: usize) -> Operation {
    Operation::read(f, sector * SECTOR as u64, Buf::zeroed(sectors * SECTOR))
}

fn numbered(operations: impl IntoIterator<Item = Operation>) -> VecDeque<Operation> {
    operations.into_iter().zip(0..).map(|(operation, token)| operation.with_token(token)).collect()
}

/// Runs one operation.
fn run(queue: &mut dyn Queue, operation: Operation) -> Completion {
    file::run(queue, [operation]).unwrap().pop().unwrap()
}

/// The first byte of each sector, as reads see it.
fn seen(sim: &SimBackend) -> Vec<u8> {
    let bytes = sim.snapshot().read_file(path("/f")).unwrap();
    bytes.chunks(SECTOR).map(|sector| sector[0]).collect()
}

/// The first bytes of the sectors after each power cut that was tried.
fn left(sim: &SimBackend) -> BTreeSet<Vec<u8>> {
    let image = sim.snapshot();
    let cuts = (0..200).map(|seed| SimBackend::from_image(image.power_cut_random(seed), 0));
    cuts.map(|sim| seen(&sim)).collect()
}

fn errno<T>(result: aio::Result<T>) -> Option<Errno> {
    result.err().and_then(|error| error.errno())
}

#[test]
fn each_call_fails_with_the_planned_error_once() {
    use EventKind::{
        Allocate, Create, Link, List, MakeDir, Map, Open, Remove, Stat, Sync, SyncDir, Truncate,
    };
    let (sim, _queue, f) = machine(1, 1);
    let call = |kind: EventKind| match kind {
        Open => errno(sim.open(path("/f"), OpenMode::Read)),
        Create => errno(sim.open(path("/new"), OpenMode::Create)),
        Allocate => errno(sim.allocate(&f, 4096)),
        Truncate => errno(sim.truncate(&f, 512)),
        Link => errno(sim.link(path("/f"), path("/h"))),
        Remove => errno(sim.remove(path("/h"))),
        MakeDir => errno(sim.make_dir(path("/d"))),
        SyncDir => errno(sim.sync_dir(path("/"))),
        Sync => errno(sim.sync(&f)),
        Map => errno(sim.map_shared(&f, 512)),
        List => errno(sim.list(path("/"))),
        Stat => errno(sim.stat(path("/f"))),
        other => panic!("not a call: {other:?}"),
    };
    let kinds = [Open, Create, Allocate, Truncate, Link, Remove, MakeDir, SyncDir, Sync, Map, List, Stat];
    for kind in kinds {
        sim.fail(FaultPlan::new(Fault::Errno(Errno::READ_ONLY)).on(&[kind]));
        let before = sim.snapshot().power_cut_all().fingerprint();
        assert_eq!(call(kind), Some(Errno::READ_ONLY), "{kind:?}");
        assert_eq!(
            sim.snapshot().power_cut_all().fingerprint(),
            before,
            "{kind:?} failed but changed the disk"
        );
        assert_eq!(call(kind), None, "{kind:?} fails once");
    }
    assert_eq!(sim.faults_struck(), kinds.len() as u64);
}

#[test]
fn a_plan_counts_only_matching_calls() {
    let (sim, mut queue, f) = machine(2, 4);
    let g = sim.open(path("/g"), OpenMode::Create).unwrap();
    let plan = FaultPlan::new(Fault::Errno(Errno::IO)).on(&[EventKind::Write]).path("/f");
    sim.fail(plan.skip(1).times(2));
    for _ in 0..3 {
        assert!(run(&mut *queue, write(&g, 0, 1, 2)).result.is_ok());
        assert!(run(&mut *queue, read(&f, 0, 1)).result.is_ok());
    }
    let results: Vec<bool> = (0..5).map(|_| run(&mut *queue, write(&f, 0, 1, 2)).result.is_ok()).collect();
    assert_eq!(results, [true, false, false, true, true]);
    sim.fail(FaultPlan::new(Fault::Errno(Errno::IO)).on(&[EventKind::Read]).forever());
    assert!((0..20).all(|_| run(&mut *queue, read(&f, 0, 1)).result == Err(Errno::IO)));
    sim.clear_faults();
    assert_eq!(run(&mut *queue, read(&f, 0, 1)).result, Ok(SECTOR));
}

#[test]
fn of_a_failed_write_any_mixture_is_seen_and_any_is_left() {
    let mut visible = BTreeSet::new();
    for seed in 0..64 {
        let (sim, mut queue, f) = machine(seed, 2);
        sim.fail(FaultPlan::new(Fault::Errno(Errno::IO)).on(&[EventKind::Write]));
        assert_eq!(run(&mut *queue, write(&f, 0, 2, 2)).result, Err(Errno::IO));
        visible.insert(seen(&sim));
        sim.sync(&f).unwrap();
        assert_eq!(left(&sim).len(), 4, "a later sync settles nothing");
        run(&mut *queue, write(&f, 0, 2, 3)).whole().unwrap();
        sim.sync(&f).unwrap();
        assert_eq!(left(&sim), BTreeSet::from([vec![3, 3]]), "a whole new write does");
    }
    assert_eq!(visible.len(), 4);
}

#[test]
fn writes_that_a_failed_sync_covered_stay_lost() {
    let (sim, mut queue, f) = machine(3, 3);
    run(&mut *queue, write(&f, 0, 1, 2)).whole().unwrap();
    sim.fail(FaultPlan::new(Fault::Errno(Errno::IO)).on(&[EventKind::Sync]));
    assert_eq!(errno(sim.sync(&f)), Some(Errno::IO));
    assert_eq!(seen(&sim), [2, 1, 1], "reads still see it");
    run(&mut *queue, write(&f, 1, 1, 3)).whole().unwrap();
    sim.sync(&f).unwrap();
    assert_eq!(left(&sim), BTreeSet::from([vec![1, 3, 1], vec![2, 3, 1]]));
    run(&mut *queue, write(&f, 0, 1, 4)).whole().unwrap();
    sim.sync(&f).unwrap();
    assert_eq!(left(&sim), BTreeSet::from([vec![4, 3, 1]]), "written again, it is durable");
}

#[test]
fn a_failed_asynchronous_sync_loses_the_writes_it_covered() {
    let (sim, mut queue, f) = machine(4, 1);
    run(&mut *queue, write(&f, 0, 1, 2)).whole().unwrap();
    sim.fail(FaultPlan::new(Fault::Errno(Errno::IO)).on(&[EventKind::Sync]));
    assert_eq!(run(&mut *queue, Operation::data_sync(&f)).result, Err(Errno::IO));
    assert_eq!(run(&mut *queue, Operation::data_sync(&f)).result, Ok(0));
    assert_eq!(left(&sim), BTreeSet::from([vec![1], vec![2]]));
}

#[test]
fn names_that_a_failed_directory_sync_covered_stay_lost() {
    let (sim, _queue, _f) = machine(5, 1);
    drop(sim.open(path("/g"), OpenMode::Create).unwrap());
    sim.fail(FaultPlan::new(Fault::Errno(Errno::IO)).on(&[EventKind::SyncDir]));
    assert_eq!(errno(sim.sync_dir(path("/"))), Some(Errno::IO));
    drop(sim.open(path("/h"), OpenMode::Create).unwrap());
    sim.sync_dir(path("/")).unwrap();
    let names = |image: &aio::sim::DiskImage| image.files().len();
    assert_eq!((names(&sim.snapshot().power_cut_none()), names(&sim.snapshot())), (2, 3));
}

#[test]
fn short_transfers_move_a_part_and_say_so() {
    let (sim, mut queue, f) = machine(6, 4);
    sim.fail(FaultPlan::new(Fault::Short(1100)));
    let completion = run(&mut *queue, write(&f, 0, 4, 2));
    assert_eq!(completion.result, Ok(1024), "whole sectors");
    assert!(matches!(completion.whole(), Err(Error::Short { expected: 2048, found: 1024, .. })));
    assert_eq!(seen(&sim), [2, 2, 1, 1]);
    sim.fail(FaultPlan::new(Fault::Short(100)));
    let completion = run(&mut *queue, read(&f, 0, 1));
    assert_eq!(completion.result, Ok(100));
    assert_eq!(completion.operation.into_buf()[..], [[2; 100].as_slice(), &[0; 412]].concat());
}

#[test]
fn rot_flips_one_bit_of_one_read_and_not_of_the_disk() {
    let (sim, mut queue, f) = machine(7, 1);
    sim.fail(FaultPlan::new(Fault::FlipBit(8 * 5 + 7)));
    let rotten = run(&mut *queue, read(&f, 0, 1)).whole().unwrap().into_buf();
    let mut expected = [1; SECTOR];
    expected[5] = 0x81;
    assert_eq!(rotten[..], expected);
    assert_eq!(run(&mut *queue, read(&f, 0, 1)).operation.into_buf()[..], [1; SECTOR]);
}

#[test]
fn a_lying_disk_drops_writes_and_syncs() {
    let (sim, mut queue, f) = machine(8, 1);
    sim.fail(FaultPlan::new(Fault::Dropped).on(&[EventKind::Write]));
    assert_eq!(run(&mut *queue, write(&f, 0, 1, 2)).result, Ok(SECTOR));
    assert_eq!(seen(&sim), [1]);
    sim.fail(FaultPlan::new(Fault::Dropped).on(&[EventKind::Sync]));
    run(&mut *queue, write(&f, 0, 1, 3)).whole().unwrap();
    sim.sync(&f).unwrap();
    assert_eq!(left(&sim), BTreeSet::from([vec![1], vec![3]]));
    sim.sync(&f).unwrap();
    assert_eq!(left(&sim), BTreeSet::from([vec![3]]), "the next sync works");
}

#[test]
fn a_misdirected_write_lands_elsewhere() {
    let (sim, mut queue, f) = machine(9, 3);
    sim.fail(FaultPlan::new(Fault::Misdirected(2 * SECTOR as u64)));
    assert_eq!(run(&mut *queue, write(&f, 0, 1, 2)).result, Ok(SECTOR));
    assert_eq!(seen(&sim), [1, 1, 2]);
}

#[test]
fn a_delayed_operation_completes_when_its_time_has_come() {
    let (sim, mut queue, f) = machine(10, 1);
    let second = Duration::from_secs(1);
    sim.fail(FaultPlan::new(Fault::Delay(10 * second)));
    let begin = sim.now();
    queue.submit(&mut numbered([read(&f, 0, 1)])).unwrap();
    let mut done = Vec::new();
    assert_eq!(queue.wait(1, Some(begin + second), &mut done).unwrap(), Wake::TimedOut);
    assert!(done.is_empty() && sim.now() < begin + 2 * second);
    assert_eq!(queue.wait(1, None, &mut done).unwrap(), Wake::Completed);
    assert!(sim.now() >= begin + 10 * second);
}

#[test]
fn one_reordered_operation_completes_after_all_others() {
    for seed in 0..20 {
        let (sim, mut queue, f) = machine(seed, 4);
        sim.fail(FaultPlan::new(Fault::Last).skip(1));
        let mut waiting = numbered((0..4).map(|sector| read(&f, sector, 1)));
        while !waiting.is_empty() {
            queue.submit(&mut waiting).unwrap();
        }
        let mut done = Vec::new();
        queue.wait(4, None, &mut done).unwrap();
        assert_eq!(done.last().map(|completion| completion.operation.token()), Some(1), "seed {seed}");
    }
}

#[test]
fn operations_complete_in_many_orders() {
    let mut orders = BTreeSet::new();
    for seed in 0..100 {
        let (_sim, mut queue, f) = machine(seed, 3);
        let mut waiting = numbered((0..3).map(|sector| read(&f, sector, 1)));
        while !waiting.is_empty() {
            queue.submit(&mut waiting).unwrap();
        }
        let mut done = Vec::new();
        queue.wait(3, None, &mut done).unwrap();
        orders.insert(done.iter().map(|completion| completion.operation.token()).collect::<Vec<_>>());
    }
    assert_eq!(orders.len(), 6);
}

#[test]
fn submits_and_waits_fail_when_asked_to_by_name() {
    let (sim, mut queue, f) = machine(11, 1);
    sim.fail(FaultPlan::new(Fault::Errno(Errno::AGAIN)).on(&[EventKind::Submit]));
    let mut waiting = numbered([read(&f, 0, 1)]);
    assert_eq!(errno(queue.submit(&mut waiting)), Some(Errno::AGAIN));
    assert_eq!((waiting.len(), queue.in_flight()), (1, 0));
    queue.submit(&mut waiting).unwrap();
    sim.fail(FaultPlan::new(Fault::Errno(Errno::INTERRUPTED)).on(&[EventKind::Wait]));
    let mut done = Vec::new();
    assert_eq!(queue.wait(1, None, &mut done).unwrap(), Wake::Interrupted);
    queue.wait(1 - done.len(), None, &mut done).unwrap();
    assert_eq!(done.len(), 1);
    sim.fail(FaultPlan::new(Fault::Errno(Errno::AGAIN)).on(&[EventKind::Queue]));
    assert_eq!(sim.queue(8).unwrap_err(), Error::Slots { slots: 8 });
    sim.fail(FaultPlan::new(Fault::Errno(Errno::IO)));
    queue.wait(0, None, &mut done).unwrap();
    assert_eq!(errno(sim.sync(&f)), Some(Errno::IO), "a plan without kinds spares submit and wait");
}

#[test]
fn a_full_disk_refuses_to_grow_and_recovers_after_removal() {
    let (sim, mut queue, f) = machine(12, 2);
    sim.set_capacity_bytes(4 * SECTOR as u64);
    assert!(run(&mut *queue, write(&f, 2, 2, 2)).result.is_ok());
    assert_eq!(run(&mut *queue, write(&f, 4, 1, 2)).result, Err(Errno::NO_SPACE));
    assert_eq!(errno(sim.allocate(&f, 5 * SECTOR as u64)), Some(Errno::NO_SPACE));
    assert_eq!(sim.size_bytes(&f).unwrap(), 4 * SECTOR as u64);
    assert!(run(&mut *queue, write(&f, 0, 4, 3)).result.is_ok(), "overwriting needs no space");
    let g = sim.open(path("/g"), OpenMode::Create).unwrap();
    assert_eq!(run(&mut *queue, write(&g, 0, 1, 2)).result, Err(Errno::NO_SPACE));
    sim.remove(path("/f")).unwrap();
    drop(f);
    assert!(run(&mut *queue, write(&g, 0, 4, 2)).result.is_ok());
}

/// A full machine with a file `/f` of four blocks, which has lost its space, and the map of it.
fn sparse(seed: u64) -> (SimBackend, Box<dyn Queue>, File, Arc<dyn SharedMap>) {
    let (sim, queue, f) = machine(seed, 4 * BLOCK / SECTOR);
    let map = sim.map_shared(&f, 4 * BLOCK).unwrap();
    sim.set_capacity_bytes(4 * BLOCK as u64);
    map.make_room(0, 4 * BLOCK).unwrap();
    sim.lose_blocks(path("/f"));
    (sim, queue, f, map)
}

#[test]
fn a_map_over_lost_space_has_no_room_on_a_full_disk_until_it_is_written_or_the_disk_has_space() {
    let (sim, mut queue, f, map) = sparse(16);
    assert_eq!(errno(map.make_room(BLOCK, 8)), Some(Errno::NO_SPACE));
    assert!(run(&mut *queue, write(&f, 8, 8, 2)).result.is_ok());
    map.make_room(BLOCK, BLOCK).unwrap();
    map.write(2 * BLOCK - 8, &[3; 8]);
    assert_eq!(
        errno(map.make_room(2 * BLOCK - 8, 16)),
        Some(Errno::NO_SPACE),
        "of two blocks one has no space"
    );
    sim.set_capacity_bytes(5 * BLOCK as u64);
    map.make_room(2 * BLOCK, BLOCK).unwrap();
    sim.set_capacity_bytes(4 * BLOCK as u64);
    map.write(2 * BLOCK, &[4; 8]);
    assert_eq!(errno(map.make_room(3 * BLOCK, 8)), Some(Errno::NO_SPACE));
    assert_eq!(seen(&sim)[..3], [1; 3], "the bytes are still there");
}

#[test]
#[should_panic(expected = "SIGBUS")]
fn a_store_into_a_map_without_room_on_a_full_disk_is_a_bug() {
    let (_sim, _queue, _f, map) = sparse(17);
    map.write(0, &[2; 8]);
}

#[test]
fn room_in_a_map_can_be_refused_by_a_fault() {
    let (sim, _queue, f) = machine(18, 8);
    let map = sim.map_shared(&f, BLOCK).unwrap();
    sim.fail(FaultPlan::new(Fault::Errno(Errno::NO_SPACE)).on(&[EventKind::MakeRoom]));
    assert_eq!(errno(map.make_room(0, 8)), Some(Errno::NO_SPACE));
    map.make_room(0, 8).unwrap();
}

/// A write of whole blocks leaves each sector old or new. After a write of a part all of the block may be garbage.
#[test]
fn a_power_cut_may_destroy_a_physical_block_of_which_a_part_is_written() {
    const GARBAGE: u8 = 0xDB;
    let (sim, mut queue, f) = machine(19, 16);
    sim.set_physical_block_bytes(BLOCK);
    assert_eq!(sim.physical_block_bytes(&f), BLOCK);
    assert_eq!(run(&mut *queue, write(&f, 0, 16, 2)).result, Ok(2 * BLOCK));
    assert!(left(&sim).iter().flatten().all(|byte| [1, 2].contains(byte)), "whole blocks are in no danger");
    sim.sync(&f).unwrap();
    assert_eq!(run(&mut *queue, write(&f, 7, 1, 3)).result, Ok(SECTOR));
    let old_or_new = |first: &[u8]| first[..7] == [2; 7] && [2, 3].contains(&first[7]);
    for sectors in left(&sim) {
        let (first, second) = sectors.split_at(8);
        assert!(first.iter().all(|byte| *byte == GARBAGE) || old_or_new(first), "{sectors:?}");
        assert_eq!(second, [2; 8], "no other block is touched");
    }
    assert!(left(&sim).iter().any(|sectors| sectors[0] == GARBAGE), "durable bytes beside it are destroyed");
    assert_eq!(seen(&sim)[..8], [2, 2, 2, 2, 2, 2, 2, 3], "the machine goes on with all of them");
    sim.sync(&f).unwrap();
    assert_eq!(left(&sim).len(), 1);
    let again = SimBackend::from_image(sim.snapshot().power_cut_none(), 1);
    let f = again.open(path("/f"), OpenMode::Write).unwrap();
    assert_eq!(again.physical_block_bytes(&f), BLOCK, "the block is a property of the disk");
    // In flight, and failed.
    let mut queue = again.queue(4).unwrap();
    queue.submit(&mut numbered([write(&f, 8, 1, 4)])).unwrap();
    assert!(left(&again).iter().any(|sectors| sectors[15] == GARBAGE));
    let mut done = Vec::new();
    queue.wait(1, None, &mut done).unwrap();
    again.sync(&f).unwrap();
    again.fail(FaultPlan::new(Fault::Errno(Errno::IO)).on(&[EventKind::Write]));
    assert_eq!(run(&mut *queue, write(&f, 1, 1, 5)).result, Err(Errno::IO));
    assert!(left(&again).iter().any(|sectors| sectors[0] == GARBAGE));
}

/// Bytes that stay the same are no less written: the device rewrites the block that they are in.
#[test]
fn a_write_of_the_same_bytes_endangers_a_physical_block_too() {
    const GARBAGE: u8 = 0xDB;
    for (first, count, second_block) in [(6, 2, false), (7, 2, true), (0, 9, true), (15, 1, true)] {
        let (sim, mut queue, f) = machine(22, 16);
        sim.set_physical_block_bytes(BLOCK);
        assert_eq!(run(&mut *queue, write(&f, first, count, 1)).result, Ok(count * SECTOR));
        let left = left(&sim);
        let destroyed = |sector: usize| left.iter().any(|sectors| sectors[sector] == GARBAGE);
        let first_block = first < 8 && count < 9;
        assert_eq!((destroyed(0), destroyed(15)), (first_block, second_block), "{first} {count}");
        assert!(left.contains(&vec![1; 16]), "or nothing happens");
        sim.sync(&f).unwrap();
        assert!(sim.snapshot().power_cut_none().read_file(path("/f")).unwrap().iter().all(|byte| *byte == 1));
    }
    // Whole blocks are in no danger, and blocks of a sector are always whole.
    for (block_bytes, first, count) in [(BLOCK, 8, 8), (SECTOR, 7, 2)] {
        let (sim, mut queue, f) = machine(23, 16);
        sim.set_physical_block_bytes(block_bytes);
        assert_eq!(run(&mut *queue, write(&f, first, count, 1)).result, Ok(count * SECTOR));
        assert_eq!(left(&sim), BTreeSet::from([vec![1; 16]]), "{block_bytes}");
    }
}

/// Zeros that the device makes take no write, and the file is as if they had been written. Refused and failed ones are written.
#[test]
fn a_device_that_zeroes_saves_the_writes_of_a_new_file() {
    let refusals = [
        libc::EOPNOTSUPP,
        libc::EINVAL,
        libc::EPERM,
        libc::EACCES,
        libc::ENOSYS,
        libc::EIO,
        libc::ENODEV,
        libc::ENOTTY,
        libc::EREMOTEIO,
    ];
    for refusal in std::iter::once(None).chain(refusals.map(Some)) {
        let (sim, mut queue, f) = machine(20, 4);
        sim.set_zeroes_ranges(true);
        if let Some(errno) = refusal {
            sim.fail(FaultPlan::new(Fault::Errno(Errno(errno))).on(&[EventKind::ZeroRange]).forever());
        }
        let kinds = Arc::new(Mutex::new(Vec::new()));
        let seen_kinds = Arc::clone(&kinds);
        sim.on_event(move |event, _| seen_kinds.lock().unwrap().push(event.kind));
        let z = file::create_zeroed(&sim, &mut *queue, (path("/z"), "z"), 4 * BLOCK as u64).unwrap();
        file::extend_zeroed(&sim, &mut *queue, &z, 4 * BLOCK as u64..6 * BLOCK as u64).unwrap();
        sim.stop_observing();
        let is_written = kinds.lock().unwrap().contains(&EventKind::Write);
        assert_eq!(is_written, refusal.is_some(), "{refusal:?}");
        let left = sim.snapshot().power_cut_none();
        assert_eq!(left.read_file(path("/z")), Some(vec![0; 6 * BLOCK]), "{refusal:?}");
        assert_eq!(sim.zero_range(&f, SECTOR as u64..BLOCK as u64), Ok(refusal.is_none()));
        let expected: &[u8] = if refusal.is_none() { &[1, 0, 0, 0, 0, 0, 0, 0] } else { &[1; 4] };
        assert_eq!(seen(&sim), expected);
    }
}

#[test]
fn a_device_that_zeroes_may_be_full_and_leaves_no_file() {
    let (sim, mut queue, _f) = machine(21, 4);
    sim.set_zeroes_ranges(true);
    let mut create = || errno(file::create_zeroed(&sim, &mut *queue, (path("/z"), "z"), 4 * BLOCK as u64));
    for kind in [Errno::NO_SPACE, Errno::QUOTA, Errno(libc::EFBIG)] {
        sim.fail(FaultPlan::new(Fault::Errno(kind)).on(&[EventKind::ZeroRange]));
        assert_eq!(create(), Some(kind));
        assert_eq!(sim.stat(path("/z")), Ok(None));
    }
    sim.set_capacity_bytes(3 * BLOCK as u64);
    assert_eq!(create(), Some(Errno::NO_SPACE));
    assert_eq!(sim.stat(path("/z")), Ok(None));
    sim.set_capacity_bytes(u64::MAX);
    sim.fail(FaultPlan::new(Fault::Errno(Errno(libc::ENOMEM))).on(&[EventKind::ZeroRange]));
    sim.fail(FaultPlan::new(Fault::Errno(Errno::IO)).on(&[EventKind::Write]));
    assert_eq!(create(), None, "a shortage of the moment is waited out, and nothing is written");
}

#[test]
fn a_coarser_alignment_is_enforced() {
    let (sim, mut queue, _f) = machine(13, 1);
    sim.set_alignment(Alignment { memory_bytes: SECTOR, offset_bytes: 4096 });
    let g = sim.open(path("/g"), OpenMode::Create).unwrap();
    assert_eq!(g.alignment().offset_bytes, 4096);
    assert_eq!(run(&mut *queue, write(&g, 0, 1, 2)).result, Err(Errno::INVALID));
    assert_eq!(run(&mut *queue, write(&g, 1, 8, 2)).result, Err(Errno::INVALID));
    assert_eq!(run(&mut *queue, write(&g, 8, 8, 2)).result, Ok(4096));
}

#[test]
#[should_panic(expected = "overlapping writes in flight")]
fn overlapping_writes_in_flight_are_a_bug() {
    let (_sim, mut queue, f) = machine(14, 4);
    for operation in [write(&f, 0, 2, 2), write(&f, 1, 2, 3)] {
        queue.submit(&mut numbered([operation])).unwrap();
    }
}

#[test]
#[should_panic(expected = "would hang")]
fn a_wait_that_can_never_end_panics() {
    let (_sim, mut queue, _f) = machine(15, 1);
    let _ = queue.wait(1, None, &mut Vec::new());
}
