//! The stores that are damaged: three, each with every structure.
//!
//! Invariant: the image is that of a process that died, with records in the ring that are in no log file; or that of a
//! power cut that took the whole ring, so that only the log has the acknowledged writes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use aio::SimBackend;
use aio::sim::DiskImage;
use bytes::Bytes;
use esker::{Damage, Db};
use fastrand::Rng;

use crate::config::{Config, ROOT, SWEPT};
use crate::model::{Bounds, Model, Prefix};
use crate::report::{Check, Failure, complain};
use crate::workload::{CrashKind, Level, Op, Write};
use crate::world::{Outcome, World};

pub(super) const SECTOR_BYTES: usize = 512;

/// How large the store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// Small enough to flip every bit of it.
    Small,
    /// The small store after a power cut that took the content of the ring.
    Cut,
    /// Large enough for runs of several segments.
    Large,
}

/// The data that the loss of a sector may take along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// The newest group of the log.
    LogGroup,
    /// The newest group of the manifest.
    ManifestGroup,
    /// Records that only the ring has.
    Ring,
}

/// A store, its history, and its content.
#[derive(Debug)]
pub(super) struct Specimen {
    pub(super) image: DiskImage,
    pub(super) model: Model,
    size: Size,
    config: &'static Config,
    end: Prefix,
    /// The files of a store that was made by the same calls with other values.
    pub(super) foreign: Files,
    /// The bytes of every file.
    pub(super) files: BTreeMap<PathBuf, Vec<u8>>,
    /// The earlier versions of each file, newest first, each once.
    pub(super) older: BTreeMap<PathBuf, Vec<Vec<u8>>>,
    /// Sectors of the newest groups.
    newest: BTreeMap<(PathBuf, usize), Loss>,
    /// The content of segments and of groups before the newest one.
    before_newest_group: Prefix,
    /// The content that survives a power cut.
    power: Prefix,
    /// The content before the newest edit.
    before_newest_edit: Prefix,
    /// Bytes of each commit in the log.
    log_bytes: Vec<u64>,
}

/// Seeds that are tried until a store has every structure. Nearly every store has.
const MOST_DRAWS: usize = 64;

impl Specimen {
    /// The store of this seed. A store that lacks a structure is drawn again, with the next seed that follows from it.
    pub(super) fn new(seed: u64, size: Size) -> Check<Specimen> {
        let mut rng = Rng::with_seed(seed);
        let mut drawn = seed;
        for _ in 0..MOST_DRAWS {
            let specimen = Specimen::of(drawn, size)?;
            let lacking = specimen.lacking()?;
            if lacking.is_empty() {
                return Ok(specimen);
            }
            let next = rng.u64(..FOREIGN);
            complain(format!(
                "{size:?}: the store of seed {drawn} lacks {}: {next} instead",
                lacking.join(", ")
            ));
            drawn = next;
        }
        Err(Failure::new(format!("none of {MOST_DRAWS} stores has every structure")))
    }

    fn of(seed: u64, size: Size) -> Check<Specimen> {
        let (mut world, versions, log_bytes) = build(seed, size, 0)?;
        let power = world.acks().power;
        let is_cut = size == Size::Cut;
        let mut image = world.crash(CrashKind::Process, seed).0.power_cut_all();
        if is_cut {
            lose_ring(&mut image);
        }
        let end = if is_cut { power } else { world.model.end() };
        let foreign = files_of(&build(seed ^ FOREIGN, size, 1)?.0.sim.snapshot());
        let files = files_of(&image);
        let older = older(&versions, &files);
        let (mut newest, mut before) = (BTreeMap::new(), [power, end]);
        for (nth, (loss, ending)) in
            [(Loss::LogGroup, is_log as fn(&Path) -> bool), (Loss::ManifestGroup, is_manifest)]
                .into_iter()
                .enumerate()
        {
            if let Some((sectors, prefix)) = newest_change(&versions, &files, ending) {
                before[nth] = prefix;
                newest.extend(sectors.into_iter().map(|sector| (sector, loss)));
            }
        }
        Ok(Specimen {
            image,
            model: world.model,
            size,
            config: world.config,
            end,
            foreign,
            files,
            older,
            newest,
            before_newest_group: before[0],
            before_newest_edit: before[1],
            power,
            log_bytes,
        })
    }

    pub(super) fn open(&self, sim: &SimBackend) -> esker::Result<Db> {
        self.config.open(sim)
    }

    pub(super) fn repair(&self, sim: &SimBackend) -> esker::Result<Damage> {
        self.config.builder(sim).repair(ROOT)
    }

    pub(super) fn find_damage(&self, sim: &SimBackend) -> esker::Result<Damage> {
        self.config.builder(sim).find_damage(ROOT)
    }

    /// The bytes of log that a store lacks which holds the first `commits`: of the durable ones, and of all.
    pub(super) fn lost_bytes(&self, commits: usize) -> [u64; 2] {
        [self.power.commits, self.end.commits].map(|end| self.log_bytes.iter().take(end).skip(commits).sum())
    }

    /// The content without damage.
    pub(super) fn end(&self) -> Prefix {
        self.end
    }

    /// The content that the store may have after this loss.
    pub(super) fn bounds(&self, loss: Option<Loss>) -> Bounds {
        let end = self.end;
        let least = match loss {
            None => end,
            Some(Loss::LogGroup) => Prefix { commits: self.before_newest_group.commits, ..end },
            Some(Loss::ManifestGroup) => {
                Prefix { commits: self.power.commits, edits: self.before_newest_edit.edits }
            }
            Some(Loss::Ring) => Prefix { commits: self.power.commits, ..end },
        };
        Bounds { commits: least.commits..=end.commits, edits: least.edits..=end.edits }
    }

    /// The data that are lost with this sector, if the loss cannot be told from a power cut's.
    pub(super) fn loss_of(&self, path: &Path, sector: usize) -> Option<Loss> {
        if is_ring(path) {
            return Some(Loss::Ring);
        }
        self.newest.get(&(path.to_owned(), sector)).copied()
    }

    pub(super) fn content_bytes(&self) -> u64 {
        self.files.values().map(|bytes| bytes.iter().filter(|byte| **byte != 0).count() as u64).sum()
    }

    /// The structures that the store does not have. A sweep of what remains would cover too little.
    fn lacking(&self) -> Check<Vec<&'static str>> {
        let sim = SimBackend::from_image(self.image.clone(), 0);
        let db = self.open(&sim)?;
        let found = crate::check::compare(&db, &self.model, &self.bounds(None))?;
        let metrics = db.metrics();
        sim.crash();
        let segments = self.files.keys().filter(|path| is_segment(path)).count();
        let logs = self.files.keys().filter(|path| is_log(path)).count();
        let rolled = self.files.keys().any(|path| is_manifest(path) && !path.ends_with("manifest-000001"));
        let has_ring = (self.power.commits < found.commits) != (self.size == Size::Cut);
        let tombstones: u64 = metrics.keyspaces.iter().map(|keyspace| keyspace.tombstones).sum();
        let has_newest = |loss: Loss| self.newest.values().any(|newest| *newest == loss);
        let structures = [
            ("keyspaces", metrics.keyspaces.len() >= 2),
            ("segments", segments >= 4),
            ("log files", logs >= 2),
            ("a second manifest", rolled),
            ("the right content of the ring", has_ring),
            ("deletes in segments", tombstones > 0),
            ("a newest group of the log", has_newest(Loss::LogGroup)),
            ("a newest edit", has_newest(Loss::ManifestGroup)),
        ];
        Ok(structures.into_iter().filter(|(_, there)| !there).map(|(name, _)| name).collect())
    }
}

/// Names and bytes.
type Files = BTreeMap<PathBuf, Vec<u8>>;

/// Each version of the files, with the content that was durable before it.
type Versions = Vec<(Prefix, Files)>;

/// Makes the machine of the other store different, and with it the store's id, which every checksum covers.
const FOREIGN: u64 = 1 << 40;

/// Makes a store. `twist` changes the bytes of all values, and nothing else.
fn build(seed: u64, size: Size, twist: u8) -> Check<(World, Versions, Vec<u64>)> {
    let mut world = World::new(seed, 0);
    world.config = &SWEPT[size as usize];
    let found = world.open(&Bounds::exactly(Prefix::default()))?;
    world.settle(found)?;
    let (mut versions, mut log_bytes): (Versions, Vec<u64>) = Default::default();
    for mut op in script(seed % FOREIGN, size) {
        if let Op::Put { value, .. } = &mut op {
            *value = value.iter().map(|byte| byte ^ twist).collect();
        }
        match world.run(&op)? {
            Outcome::Refused(error) => return Err(Failure::from(error).at(format!("{op:?}"))),
            _ => versions.push((world.acks().power, files_of(&world.sim.snapshot()))),
        }
        log_bytes.resize(world.model.end().commits, record_bytes(&op));
    }
    Ok((world, versions, log_bytes))
}

/// Bytes of the record that an operation writes.
fn record_bytes(op: &Op) -> u64 {
    let write = |key: &Bytes, value: Option<&Bytes>| 7 + key.len() + value.map_or(0, |value| 4 + value.len());
    let writes = match op {
        Op::Put { key, value, .. } => write(key, Some(value)),
        Op::Delete { key, .. } => write(key, None),
        Op::Batch { writes, .. } => writes.iter().map(|one| write(&one.key, one.value.as_ref())).sum(),
        _ => 0,
    };
    ((8 + 4 + writes) as u64).next_multiple_of(32)
}

fn files_of(image: &DiskImage) -> Files {
    let names = image.files().into_iter().map(|(path, _)| path).filter(|path| path.starts_with(ROOT));
    names.filter_map(|path| image.read_file(&path).map(|bytes| (path, bytes))).collect()
}

/// The ring is never synced: a power cut may leave it empty.
fn lose_ring(image: &mut DiskImage) {
    for (path, bytes) in files_of(image).into_iter().filter(|(path, _)| is_ring(path)) {
        image.write_file(&path, &vec![0; bytes.len()]);
    }
}

fn ending(path: &Path, part: &str) -> bool {
    path.to_string_lossy().contains(part)
}

pub(super) fn is_ring(path: &Path) -> bool {
    ending(path, "/ring-")
}

pub(super) fn is_log(path: &Path) -> bool {
    ending(path, ".log")
}

pub(super) fn is_segment(path: &Path) -> bool {
    ending(path, ".seg")
}

pub(super) fn is_manifest(path: &Path) -> bool {
    ending(path, "/manifest-")
}

/// Every version of every file, except the last one.
fn older(versions: &[(Prefix, Files)], files: &Files) -> BTreeMap<PathBuf, Vec<Vec<u8>>> {
    let mut older: BTreeMap<PathBuf, Vec<Vec<u8>>> = BTreeMap::new();
    for (path, last) in files {
        let found = older.entry(path.clone()).or_default();
        for bytes in versions.iter().rev().filter_map(|(_, files)| files.get(path)) {
            if bytes != last && !found.contains(bytes) {
                found.push(bytes.clone());
            }
        }
    }
    older
}

/// The sectors that were changed by the newest operation that changed a file of this kind, and the content that was
/// durable before it.
fn newest_change(
    versions: &[(Prefix, Files)],
    last: &Files,
    kind: fn(&Path) -> bool,
) -> Option<(BTreeSet<(PathBuf, usize)>, Prefix)> {
    for (before, files) in versions.iter().rev() {
        let mut changed = BTreeSet::new();
        for (path, bytes) in last.iter().filter(|(path, _)| kind(path)) {
            let old = files.get(path);
            for (sector, new) in bytes.chunks(SECTOR_BYTES).enumerate() {
                let at = sector * SECTOR_BYTES;
                let is_same = old.map_or(new.iter().all(|byte| *byte == 0), |old| {
                    old.get(at..at + new.len()) == Some(new)
                });
                if !is_same {
                    changed.insert((path.clone(), sector));
                }
            }
        }
        if !changed.is_empty() {
            return Some((changed, *before));
        }
    }
    None
}

/// The operations that make the store. The last ones depend on the seed.
fn script(seed: u64, size: Size) -> Vec<Op> {
    let mut rng = Rng::with_seed(seed);
    let (rounds, keys, len) = if size == Size::Large { (4, 40, 500) } else { (3, 6, 60) };
    let mut ops = vec![Op::Create { slot: 1 }, Op::Create { slot: 3 }];
    for round in 0..rounds {
        for number in 0..keys {
            let slot = [0, 0, 1, 3][rng.usize(..4)];
            let key = Bytes::from(format!("key/{number:03}"));
            let op = if round > 0 && rng.u8(..4) == 0 {
                Op::Delete { slot, key, level: Level::Power }
            } else {
                Op::Put { slot, key, value: value(&mut rng, len), level: Level::Power }
            };
            ops.push(op);
        }
        if round == 0 {
            // Keeps the older versions of overwritten keys.
            ops.push(Op::TakeSnapshot);
        }
        ops.push(Op::Flush);
        if round == 1 && size == Size::Large {
            ops.push(Op::Compact);
        }
    }
    // Groups in the log, in more than one file.
    let put = |rng: &mut Rng, slot, key: &'static str, len, level| Op::Put {
        slot,
        key: key.into(),
        value: value(rng, len),
        level,
    };
    for (key, slot) in [("log/1", 0), ("log/2", 1), ("log/3", 0), ("log/4", 3), ("log/5", 0), ("log/6", 0)] {
        ops.push(put(&mut rng, slot, key, 60, Level::Power));
    }
    let write = |slot, key: &'static str| Write { slot, key: key.into(), value: Some("batch".into()) };
    ops.push(Op::Batch { writes: vec![write(0, "log/batch"), write(1, "log/batch")], level: Level::Power });
    match seed % 3 {
        0 => ops.push(Op::Create { slot: 2 }),
        1 => ops.push(Op::Drop { slot: 3 }),
        _ => {}
    }
    ops.push(put(&mut rng, 0, "log/last", 60, Level::Power));
    // Only the ring has these.
    ops.push(put(&mut rng, 1, "ring/1", 60, Level::Process));
    ops.push(Op::Delete { slot: 0, key: "log/1".into(), level: Level::Process });
    ops.push(put(&mut rng, 0, "ring/2", 60, Level::Process));
    ops
}

/// Half of them compress.
fn value(rng: &mut Rng, len: usize) -> Bytes {
    let noise = rng.bool();
    let fill = rng.u8(..);
    (0..len).map(|_| if noise { rng.u8(..) } else { fill }).collect()
}
