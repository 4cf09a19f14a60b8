//! What the simulated disk may lose, must keep, and how it fails.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use aio::sim::{DiskImage, EventKind, Fault, FaultPlan, PendingUnit, SimBackend};
use aio::{Action, Backend, Buf, Completion, Errno, Error, File, OpenMode, Operation, Queue, Wake, file};

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

#[test]
fn unsynced_sectors_survive_in_every_subset() {
    let (sim, mut queue, f) = machine(1, 3);
    fill(&mut *queue, &f, 0, 3, 2);
    let image = sim.snapshot();
    assert_eq!(image.pending_sectors().len(), 3);
    let states: BTreeSet<Vec<u8>> =
        every_power_cut(&image).iter().map(|state| firsts(state, "/d/f")).collect();
    assert_eq!(states.len(), 8);
    assert_eq!(firsts(&image.power_cut_none(), "/d/f"), [1, 1, 1]);
    assert_eq!(firsts(&image.power_cut_all(), "/d/f"), [2, 2, 2]);
    sim.sync(&f).unwrap();
    assert_eq!(firsts(&sim.snapshot().power_cut_none(), "/d/f"), [2, 2, 2]);
}
