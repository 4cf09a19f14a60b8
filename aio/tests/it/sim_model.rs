//! Random runs of one simulated file against a naive model of the states that a power cut may leave.
//!
//! A failure prints the seed of its run, which `SEED=` makes the first one.

use std::collections::BTreeSet;
use std::path::Path;

use aio::sim::{DiskImage, SimBackend};
use aio::{Backend, Buf, File, OpenMode, Operation, Queue, SharedMap, file};

use crate::seeds::seeds;

const SECTOR: usize = 512;
/// Longest file, in sectors: more than two pages.
const SECTORS: usize = 20;
const RUNS: u64 = 300;
const STEPS: usize = 60;

/// The possible states of the file, by sector. All bytes of a sector have one value.
#[derive(Debug)]
struct Model {
    seen: Vec<u8>,
    possible: Vec<BTreeSet<u8>>,
    sizes: BTreeSet<usize>,
}

impl Model {
    fn new() -> Model {
        Model { seen: vec![], possible: vec![BTreeSet::from([0]); SECTORS], sizes: BTreeSet::from([0]) }
    }

    fn resize(&mut self, sectors: usize) {
        for possible in &mut self.possible[sectors..] {
            possible.insert(0);
        }
        self.seen.resize(sectors, 0);
        self.sizes.insert(sectors);
    }

    fn write(&mut self, first: usize, sectors: usize, byte: u8) {
        let end = first + sectors;
        if end > self.seen.len() {
            self.resize(end);
        }
        for sector in first..end {
            self.seen[sector] = byte;
            self.possible[sector].insert(byte);
        }
    }

    fn write_durable(&mut self, first: usize, sectors: usize, byte: u8) {
        let end = first + sectors;
        self.write(first, sectors, byte);
        for possible in &mut self.possible[first..end] {
            *possible = BTreeSet::from([byte]);
        }
        if self.sizes.first().is_some_and(|&smallest| smallest < end) {
            self.sizes = BTreeSet::from([self.seen.len()]);
        }
    }

    fn sync(&mut self) {
        self.settle(self.seen.clone());
    }

    /// Makes this the only possible state of the file.
    fn settle(&mut self, seen: Vec<u8>) {
        self.sizes = BTreeSet::from([seen.len()]);
        for (sector, possible) in self.possible.iter_mut().enumerate() {
            *possible = BTreeSet::from([seen.get(sector).copied().unwrap_or(0)]);
        }
        self.seen = seen;
    }

    fn check(&self, image: &DiskImage, seed: u64) {
        assert_eq!(sectors_of(image), self.seen, "the content for reads");
        assert_eq!(sectors_of(&image.power_cut_all()), self.seen);
        assert_eq!(sectors_of(&image.process_crash(seed)), self.seen);
        for cut in [image.power_cut_none(), image.power_cut_random(seed)] {
            let left = sectors_of(&cut);
            assert!(self.sizes.contains(&left.len()), "{} sectors left", left.len());
            for (sector, byte) in left.iter().enumerate() {
                assert!(self.possible[sector].contains(byte), "sector {sector} holds {byte}: {self:?}");
            }
        }
    }
}

/// The byte that fills each sector.
fn sectors_of(image: &DiskImage) -> Vec<u8> {
    let bytes = image.read_file(Path::new("/f")).unwrap();
    let value = |sector: &[u8]| {
        assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector is torn");
        sector[0]
    };
    bytes.chunks(SECTOR).map(value).collect()
}

/// An open machine.
struct Subject {
    sim: SimBackend,
    queue: Box<dyn Queue>,
    file: File,
}

impl Subject {
    fn open(sim: SimBackend, mode: OpenMode) -> Subject {
        let file = sim.open(Path::new("/f"), mode).unwrap();
        Subject { queue: sim.queue(4).unwrap(), file, sim }
    }

    fn run(&mut self, operation: Operation) {
        file::run(&mut *self.queue, [operation]).unwrap().pop().unwrap().whole().unwrap();
    }
}

/// A number in `range`, from the run's own generator: a machine of its own.
fn draw(dice: &SimBackend, range: std::ops::Range<usize>) -> usize {
    let width = u64::try_from(range.len()).unwrap();
    range.start + usize::try_from(dice.random() % width).unwrap()
}

fn step(subject: &mut Subject, model: &mut Model, dice: &SimBackend) {
    let byte = u8::try_from(draw(dice, 0..200)).unwrap();
    let first = draw(dice, 0..SECTORS);
    let sectors = draw(dice, 1..SECTORS - first + 1);
    let (offset, buf) = ((first * SECTOR) as u64, Buf::from(&vec![byte; sectors * SECTOR][..]));
    match draw(dice, 0..12) {
        0..4 => {
            subject.run(Operation::write(&subject.file, offset, buf));
            model.write(first, sectors, byte);
        }
        4 => {
            subject.run(Operation::write_durable(&subject.file, offset, buf));
            model.write_durable(first, sectors, byte);
        }
        5 => {
            subject.sim.sync(&subject.file).unwrap();
            model.sync();
        }
        6 => {
            subject.run(Operation::data_sync(&subject.file));
            model.sync();
        }
        7 => {
            subject.sim.truncate(&subject.file, offset).unwrap();
            model.resize(first);
        }
        8 => {
            subject.sim.allocate(&subject.file, offset).unwrap();
            model.resize(first.max(model.seen.len()));
        }
        9 if first < model.seen.len() => {
            let map: std::sync::Arc<dyn SharedMap> =
                subject.sim.map_shared(&subject.file, (first + 1) * SECTOR).unwrap();
            map.write(first * SECTOR, &[byte; SECTOR]);
            model.write(first, 1, byte);
        }
        10 => {
            let left = subject.sim.snapshot().power_cut_random(dice.random());
            model.check(&subject.sim.snapshot(), dice.random());
            model.settle(sectors_of(&left));
            *subject = Subject::open(SimBackend::from_image(left, dice.random()), OpenMode::Write);
        }
        _ => {
            let left = subject.sim.snapshot().process_crash(dice.random());
            *subject = Subject::open(SimBackend::from_image(left, dice.random()), OpenMode::Write);
        }
    }
}

fn run(seed: u64) {
    let dice = SimBackend::new(!seed);
    let sim = SimBackend::new(seed);
    let mut subject = Subject::open(sim, OpenMode::Create);
    subject.sim.sync_dir(Path::new("/")).unwrap();
    let mut model = Model::new();
    for _ in 0..STEPS {
        step(&mut subject, &mut model, &dice);
        model.check(&subject.sim.snapshot(), dice.random());
    }
}

#[test]
fn power_cuts_leave_only_states_that_the_model_allows() {
    for seed in seeds(RUNS) {
        if let Err(panic) = std::panic::catch_unwind(|| run(seed)) {
            println!("SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
