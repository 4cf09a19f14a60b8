//! The simulated disk: the changes that a crash may lose and those that it must keep.

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex};

use aio::sim::{DiskImage, EventKind, PendingUnit, SimBackend};
use aio::{Backend, Buf, Error, File, OpenMode, Operation, Queue, file};

const SECTOR: usize = 512;

fn path(name: &str) -> &Path {
    Path::new(name)
}

/// A machine with a synced directory `/d` and in it a synced file `f` of `sectors` sectors filled with ones.
fn machine(seed: u64, sectors: usize) -> (SimBackend, Box<dyn Queue>, File) {
    let sim = SimBackend::new(seed);
    sim.make_dir(path("/d")).unwrap();
    sim.sync_dir(path("/")).unwrap();
    let mut queue = sim.queue(64).unwrap();
    let f = sim.open(path("/d/f"), OpenMode::Create).unwrap();
    fill(&mut *queue, &f, 0, sectors, 1);
    sim.sync(&f).unwrap();
    sim.sync_dir(path("/d")).unwrap();
    assert_eq!(sim.snapshot().pending_units(), 0, "all of it was synced");
    (sim, queue, f)
}

fn filled(sectors: usize, byte: u8) -> Buf {
    Buf::from(&vec![byte; sectors * SECTOR][..])
}

fn fill(queue: &mut dyn Queue, f: &File, sector: u64, sectors: usize, byte: u8) {
    if sectors > 0 {
        file::write_all(queue, f, sector * SECTOR as u64, filled(sectors, byte)).unwrap();
    }
}

fn submit(queue: &mut dyn Queue, operations: impl IntoIterator<Item = Operation>) {
    let numbered = operations.into_iter().zip(0..);
    let mut waiting: VecDeque<Operation> =
        numbered.map(|(operation, token)| operation.with_token(token)).collect();
    while !waiting.is_empty() {
        queue.submit(&mut waiting).unwrap();
    }
}

fn write(f: &File, sector: u64, byte: u8) -> Operation {
    Operation::write(f, sector * SECTOR as u64, filled(1, byte))
}

/// The first byte of each sector.
fn firsts(image: &DiskImage, name: &str) -> Vec<u8> {
    image.read_file(path(name)).unwrap().chunks(SECTOR).map(|sector| sector[0]).collect()
}

/// Every crash state: runs `power_cut` with each answer to each unit.
fn every_power_cut(image: &DiskImage) -> Vec<DiskImage> {
    let units = image.pending_units();
    assert!(units <= 16, "too many states to enumerate: {units} units");
    let cut = |mask: u32| {
        let mut unit = 0;
        image.power_cut(&mut |_| {
            unit += 1;
            mask >> (unit - 1) & 1 == 1
        })
    };
    (0..1 << units).map(cut).collect()
}

/// The distinct contents of `/d/f` over all crash states.
fn outcomes(sim: &SimBackend) -> BTreeSet<Vec<u8>> {
    every_power_cut(&sim.snapshot()).iter().map(|state| firsts(state, "/d/f")).collect()
}

/// The distinct lists of names in `/d` over all crash states.
fn name_outcomes(sim: &SimBackend) -> BTreeSet<String> {
    let names = |state: &DiskImage| -> String {
        let files = state.files().into_iter();
        let names = files.filter_map(|(path, _)| Some(path.file_name()?.to_str()?.to_owned()));
        names.collect::<Vec<_>>().join(" ")
    };
    every_power_cut(&sim.snapshot()).iter().map(names).collect()
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

#[test]
fn unsynced_sectors_survive_in_every_subset() {
    let (sim, mut queue, f) = machine(1, 3);
    fill(&mut *queue, &f, 0, 3, 2);
    let image = sim.snapshot();
    assert_eq!(image.pending_sectors().len(), 3);
    assert_eq!(outcomes(&sim).len(), 8);
    assert_eq!(firsts(&image.power_cut_none(), "/d/f"), [1, 1, 1]);
    assert_eq!(firsts(&image.power_cut_all(), "/d/f"), [2, 2, 2]);
    sim.sync(&f).unwrap();
    assert_eq!(firsts(&sim.snapshot().power_cut_none(), "/d/f"), [2, 2, 2]);
}

#[test]
fn an_older_unsynced_version_may_be_left() {
    let (sim, mut queue, f) = machine(2, 1);
    for byte in [2, 3] {
        fill(&mut *queue, &f, 0, 1, byte);
    }
    assert_eq!(outcomes(&sim), BTreeSet::from([vec![1], vec![2], vec![3]]));
}

#[test]
fn rewriting_the_same_bytes_adds_no_crash_state() {
    let (sim, mut queue, f) = machine(3, 4);
    fill(&mut *queue, &f, 1, 2, 1);
    assert_eq!(sim.snapshot().pending_units(), 0);
}

#[test]
fn a_write_in_flight_may_be_on_the_disk() {
    let (sim, mut queue, f) = machine(4, 2);
    submit(&mut *queue, [write(&f, 0, 2)]);
    assert_eq!(outcomes(&sim), BTreeSet::from([vec![1, 1], vec![2, 1]]));
    let seen = sim.snapshot().read_file(path("/d/f")).unwrap();
    assert_eq!(seen[0], 1, "it is not visible before it completes");
}

#[test]
fn a_sync_does_not_cover_writes_in_flight_when_it_was_submitted() {
    let (mut covered, mut seeds) = (0, 0);
    for seed in 0..20 {
        let (sim, mut queue, f) = machine(seed, 1);
        submit(&mut *queue, [write(&f, 0, 2), Operation::data_sync(&f)]);
        queue.wait(2, None, &mut Vec::new()).unwrap();
        covered += usize::from(sim.snapshot().pending_units() == 0);
        seeds += 1;
        submit(&mut *queue, [Operation::data_sync(&f)]);
        queue.wait(1, None, &mut Vec::new()).unwrap();
        assert_eq!(outcomes(&sim), BTreeSet::from([vec![2]]), "seed {seed}");
    }
    assert_eq!((covered, seeds), (0, 20));
}

#[test]
fn a_sync_covers_its_own_file_only() {
    let (sim, mut queue, f) = machine(5, 1);
    let g = sim.open(path("/d/g"), OpenMode::Create).unwrap();
    sim.sync_dir(path("/d")).unwrap();
    fill(&mut *queue, &f, 0, 1, 2);
    fill(&mut *queue, &g, 0, 1, 3);
    sim.sync(&g).unwrap();
    let left = sim.snapshot().power_cut_none();
    assert_eq!((firsts(&left, "/d/f"), firsts(&left, "/d/g")), (vec![1], vec![3]));
}

#[test]
fn a_durable_write_needs_no_sync_and_covers_nothing_else() {
    let (sim, mut queue, f) = machine(6, 1);
    fill(&mut *queue, &f, 0, 1, 2);
    let buf = filled(1, 3);
    submit(&mut *queue, [Operation::write_durable(&f, SECTOR as u64, buf)]);
    queue.wait(1, None, &mut Vec::new()).unwrap();
    assert_eq!(outcomes(&sim), BTreeSet::from([vec![1, 3], vec![2, 3]]), "its size is durable too");
    let buf = filled(1, 4);
    submit(&mut *queue, [Operation::write_durable(&f, 0, buf)]);
    queue.wait(1, None, &mut Vec::new()).unwrap();
    assert_eq!(outcomes(&sim), BTreeSet::from([vec![4, 3]]), "the older version cannot come back");
}

#[test]
fn a_durable_write_into_a_file_that_was_cut_is_not_lost_with_the_cut() {
    let (sim, mut queue, f) = machine(7, 4);
    sim.truncate(&f, 0).unwrap();
    submit(&mut *queue, [Operation::write_durable(&f, 0, filled(1, 2))]);
    queue.wait(1, None, &mut Vec::new()).unwrap();
    assert_eq!(outcomes(&sim), BTreeSet::from([vec![2]]));
}

#[test]
fn an_unsynced_size_is_old_or_new() {
    let (sim, mut queue, f) = machine(8, 1);
    fill(&mut *queue, &f, 1, 1, 2);
    let expected = [vec![1], vec![1, 0], vec![1, 2]];
    assert_eq!(outcomes(&sim), BTreeSet::from(expected), "old size, new size without and with the bytes");
    sim.sync(&f).unwrap();
    sim.allocate(&f, 3 * SECTOR as u64).unwrap();
    assert_eq!(outcomes(&sim), BTreeSet::from([vec![1, 2], vec![1, 2, 0]]));
    sim.sync(&f).unwrap();
    sim.truncate(&f, SECTOR as u64).unwrap();
    fill(&mut *queue, &f, 1, 1, 3);
    let expected = [vec![1, 2, 0], vec![1], vec![1, 0], vec![1, 3]];
    assert_eq!(
        outcomes(&sim),
        BTreeSet::from(expected),
        "bytes written after a truncation never mix with the truncated ones"
    );
}

#[test]
fn names_need_a_directory_sync_of_their_own() {
    let (sim, mut queue, _f) = machine(9, 1);
    let g = sim.open(path("/d/g"), OpenMode::Create).unwrap();
    fill(&mut *queue, &g, 0, 1, 7);
    sim.sync(&g).unwrap();
    assert_eq!(name_outcomes(&sim), set(["f", "f g"]));
    sim.sync_dir(path("/")).unwrap();
    assert_eq!(name_outcomes(&sim), set(["f", "f g"]), "another directory does not help");
    sim.sync_dir(path("/d")).unwrap();
    assert_eq!(name_outcomes(&sim), set(["f g"]));
    sim.remove(path("/d/g")).unwrap();
    assert_eq!(name_outcomes(&sim), set(["f", "f g"]));
    assert_eq!(firsts(&sim.snapshot().power_cut_none(), "/d/g"), [7], "a removed file comes back whole");
}

#[test]
fn changes_of_the_same_name_keep_their_order_and_others_do_not() {
    let (sim, _queue, _f) = machine(11, 1);
    drop(sim.open(path("/d/a"), OpenMode::Create).unwrap());
    drop(sim.open(path("/d/b"), OpenMode::Create).unwrap());
    sim.link(path("/d/a"), path("/d/c")).unwrap();
    sim.remove(path("/d/a")).unwrap();
    // Without the creation of `a` there is nothing to remove.
    let expected = ["f", "a f", "b f", "a b f", "c f", "a c f", "b c f", "a b c f"];
    assert_eq!(name_outcomes(&sim), set(expected.map(sorted)));
}

#[test]
fn a_name_is_not_taken_again_before_its_file_is_removed() {
    let (sim, mut queue, _f) = machine(21, 1);
    let g = sim.open(path("/d/g"), OpenMode::Create).unwrap();
    fill(&mut *queue, &g, 0, 1, 2);
    sim.sync(&g).unwrap();
    sim.sync_dir(path("/d")).unwrap();
    sim.link(path("/d/g"), path("/d/h")).unwrap();
    sim.sync_dir(path("/d")).unwrap();
    sim.remove(path("/d/g")).unwrap();
    drop(sim.open(path("/d/g"), OpenMode::Create).unwrap());
    let states: BTreeSet<_> = every_power_cut(&sim.snapshot())
        .iter()
        .map(|state| (firsts(state, "/d/h"), state.read_file(path("/d/g")).map(|bytes| bytes.len())))
        .collect();
    let expected = [Some(SECTOR), None, Some(0)].map(|len_bytes| (vec![2], len_bytes));
    assert_eq!(states, BTreeSet::from(expected), "the other name keeps the file");
}

fn sorted(names: &'static str) -> &'static str {
    assert!(names.split(' ').is_sorted(), "as the directory lists them: {names}");
    names
}

#[test]
fn a_directory_vanishes_with_all_that_is_in_it() {
    let (sim, _queue, _f) = machine(12, 1);
    sim.make_dir(path("/d/e")).unwrap();
    drop(sim.open(path("/d/e/g"), OpenMode::Create).unwrap());
    sim.sync_dir(path("/d/e")).unwrap();
    assert_eq!(name_outcomes(&sim), set(["f", "f g"]));
    let left = SimBackend::from_image(sim.snapshot().power_cut_none(), 1);
    assert_eq!(left.stat(path("/d/e")).unwrap(), None);
    left.make_dir(path("/d/e")).unwrap();
    assert!(left.list(path("/d/e")).unwrap().is_empty());
}

#[test]
fn stores_into_a_map_survive_the_process_but_not_a_power_cut() {
    let (sim, mut queue, f) = machine(13, 2);
    let map = sim.map_shared(&f, 2 * SECTOR).unwrap();
    for byte in [2, 3] {
        map.write(0, &[byte; 8]);
    }
    map.write(SECTOR, &[4; 8]);
    let image = sim.snapshot();
    assert_eq!(firsts(&image.process_crash(1), "/d/f"), [3, 4]);
    let expected: Vec<Vec<u8>> =
        [1, 2, 3].iter().flat_map(|&first| [1, 4].map(|second| vec![first, second])).collect();
    assert_eq!(outcomes(&sim), expected.into_iter().collect());
    sim.sync(&f).unwrap();
    assert_eq!(outcomes(&sim), BTreeSet::from([vec![3, 4]]));
    assert_eq!(file::read_exact(&mut *queue, &f, 0, SECTOR).unwrap()[..16], [[3; 8], [1; 8]].concat());
}

#[test]
fn a_ring_written_for_ever_keeps_few_versions() {
    let (sim, _queue, f) = machine(14, 2);
    let map = sim.map_shared(&f, 2 * SECTOR).unwrap();
    for lap in 0..100u8 {
        map.write(0, &[lap; 2 * SECTOR]);
    }
    assert!(sim.snapshot().pending_units() < 10);
    assert!(outcomes(&sim).contains(&vec![99, 99]));
}

#[test]
fn a_process_crash_keeps_completed_writes_and_maybe_those_in_flight() {
    let (sim, mut queue, f) = machine(15, 2);
    fill(&mut *queue, &f, 0, 1, 2);
    submit(&mut *queue, [write(&f, 1, 3)]);
    let image = sim.snapshot();
    let states: BTreeSet<_> = (0..32).map(|seed| firsts(&image.process_crash(seed), "/d/f")).collect();
    assert_eq!(states, BTreeSet::from([vec![2, 1], vec![2, 3]]));
    let afterwards = image.process_crash(0).power_cut_none();
    assert_eq!(firsts(&afterwards, "/d/f"), [1, 1], "the machine may still lose power");
}

#[test]
fn a_removed_open_file_works_until_it_is_closed() {
    let (sim, mut queue, f) = machine(16, 2);
    sim.set_capacity_bytes(4 * SECTOR as u64);
    sim.remove(path("/d/f")).unwrap();
    sim.sync_dir(path("/d")).unwrap();
    fill(&mut *queue, &f, 0, 1, 2);
    assert_eq!(sim.used_bytes(), 2 * SECTOR as u64);
    assert!(sim.snapshot().power_cut_all().files().is_empty());
    drop(f);
    assert_eq!(sim.used_bytes(), 0);
}

#[test]
fn after_a_crash_nothing_works_and_nothing_changes() {
    let (sim, mut queue, f) = machine(17, 2);
    let map = sim.map_shared(&f, SECTOR).unwrap();
    fill(&mut *queue, &f, 0, 1, 2);
    sim.crash_at(sim.events());
    submit(&mut *queue, [write(&f, 1, 3)]);
    let before = sim.snapshot().fingerprint();
    assert_eq!(queue.wait(1, None, &mut Vec::new()).unwrap_err(), Error::Crashed);
    assert!(sim.has_crashed());
    let results = [
        sim.sync(&f).err(),
        sim.sync_dir(path("/d")).err(),
        sim.remove(path("/d/f")).err(),
        sim.open(path("/d/f"), OpenMode::Read).err(),
        sim.allocate(&f, 1 << 20).err(),
        sim.link(path("/d/f"), path("/d/g")).err(),
        sim.make_dir(path("/e")).err(),
        sim.queue(1).err(),
        sim.size_bytes(&f).err(),
    ];
    assert!(results.iter().all(|error| *error == Some(Error::Crashed)), "{results:?}");
    map.write(0, &[9; 8]);
    drop(queue);
    assert_eq!(sim.snapshot().fingerprint(), before);
    let expected = [[1, 1], [1, 3], [2, 1], [2, 3]].map(Vec::from);
    assert_eq!(outcomes(&sim), BTreeSet::from(expected), "writes in flight may have happened");
}

/// A run that uses every kind of call; returns the trace hash.
fn busy_run(sim: &SimBackend) -> aio::Result<()> {
    sim.make_dir(path("/d"))?;
    let mut queue = sim.queue(8)?;
    let f = file::create_zeroed(sim, &mut *queue, (path("/d/f"), "ring"), 8 * SECTOR as u64)?;
    let map = sim.map_shared(&f, 4 * SECTOR)?;
    for round in 0..5u8 {
        let writes = (4..8).map(|sector| write(&f, sector, round).with_token(sector));
        for completion in file::run(&mut *queue, writes)? {
            completion.whole()?;
        }
        map.write(64 * usize::from(round), &[round; 64]);
        sim.sync(&f)?;
    }
    sim.link(path("/d/f"), path("/d/g"))?;
    sim.sync_dir(path("/d"))?;
    sim.remove(path("/d/g"))
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another_one() {
    let run = |seed| {
        let sim = SimBackend::new(seed);
        busy_run(&sim).unwrap();
        (sim.trace_hash(), sim.snapshot().fingerprint(), sim.now(), sim.random())
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1).0, run(2).0);
    assert_eq!(run(1).1, run(2).1, "the order in which writes complete does not change the outcome");
}

#[test]
fn watching_a_run_shows_the_disks_that_crashing_at_each_event_gives() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sim = SimBackend::new(3);
    let log = Arc::clone(&seen);
    sim.on_event(move |event, image| {
        let mut log = log.lock().unwrap();
        assert_eq!(event.index, log.len() as u64);
        log.push((event.kind, image.clone()));
    });
    busy_run(&sim).unwrap();
    sim.stop_observing();
    let seen = Arc::into_inner(seen).unwrap().into_inner().unwrap();
    assert_eq!(seen.len() as u64, sim.events());
    let kinds: BTreeSet<EventKind> = seen.iter().map(|(kind, _)| *kind).collect();
    assert!(kinds.contains(&EventKind::MapWrite) && kinds.contains(&EventKind::Link));
    for (index, (_, image)) in (0u64..).zip(&seen) {
        let again = SimBackend::new(3);
        again.crash_at(index);
        assert_eq!(busy_run(&again).unwrap_err(), Error::Crashed);
        assert_eq!(again.events(), index);
        for seed in 0..8 {
            let (left, right) = (image.power_cut_random(seed), again.snapshot().power_cut_random(seed));
            assert_eq!(left.fingerprint(), right.fingerprint(), "event {index}, cut {seed}");
        }
    }
}

#[test]
fn random_power_cuts_reach_every_state_and_no_other() {
    let (sim, mut queue, f) = machine(18, 2);
    fill(&mut *queue, &f, 0, 3, 2);
    let image = sim.snapshot();
    let all: BTreeSet<u64> = every_power_cut(&image).iter().map(DiskImage::fingerprint).collect();
    let reached: BTreeSet<u64> = (0..2000).map(|seed| image.power_cut_random(seed).fingerprint()).collect();
    assert_eq!(reached, all);
}

#[test]
fn the_order_of_units_does_not_depend_on_answers() {
    let (sim, mut queue, f) = machine(19, 1);
    fill(&mut *queue, &f, 0, 3, 2);
    sim.truncate(&f, 0).unwrap();
    drop(sim.open(path("/d/g"), OpenMode::Create).unwrap());
    let units = |answer: bool| {
        let mut seen = Vec::new();
        let image = sim.snapshot();
        let _ = image.power_cut(&mut |unit: PendingUnit<'_>| {
            seen.push(format!("{unit:?}"));
            answer
        });
        seen
    };
    assert_eq!(units(true), units(false));
    assert_eq!(units(true).len(), 6, "a name, three sectors, two sizes");
}

#[test]
fn images_can_be_damaged() {
    let (sim, _queue, _f) = machine(20, 3);
    let clean = sim.snapshot();
    let mut image = clean.clone();
    image.flip_bit(path("/d/f"), 8 * 600 + 1);
    assert_eq!(image.read_file(path("/d/f")).unwrap()[600], 3);
    image.zero_sector(path("/d/f"), 2);
    assert_eq!(firsts(&image, "/d/f"), [1, 1, 0]);
    image.damage(path("/d/f"), |bytes| bytes.truncate(700));
    assert_eq!(image.files(), [(path("/d/f").to_owned(), 700)]);
    assert_eq!(image.power_cut_none().fingerprint(), image.fingerprint(), "damage is durable");
    image.write_file(path("/d/g"), b"new");
    assert!(image.remove_file(path("/d/f")));
    assert!(!image.remove_file(path("/d/f")));
    assert_eq!(image.power_cut_none().files(), [(path("/d/g").to_owned(), 3)]);
    assert_eq!(firsts(&clean, "/d/f"), [1, 1, 1], "other copies of the image are not touched");
    assert_ne!(clean.fingerprint(), image.fingerprint());
}
