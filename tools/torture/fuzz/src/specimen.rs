//! Stores with every structure, and the inputs that are cut out of them.
//!
//! Invariant: built by the same calls each time, so the inputs are the same each time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aio::SimBackend;
use aio::sim::DiskImage;
use esker::testing::{Background, BuilderExt, Sizes};
use esker::{Builder, Db, Durability};
use wal::{ChainRules, Decoded, Place, Seq, StreamOrigin, decode, read_chain};

pub(crate) const ROOT: &str = "/store";
pub(crate) const NAMES: [&str; 2] = ["default", "other"];

/// The content of a store: keyspace and key, and the value.
pub(crate) type State = BTreeMap<(usize, Vec<u8>), Vec<u8>>;

/// A store on a disk, and its content after each commit.
#[derive(Debug)]
pub(crate) struct Specimen {
    pub(crate) disk: DiskImage,
    /// All files but the lock.
    pub(crate) files: Vec<PathBuf>,
    /// After each commit, the newest last.
    pub(crate) states: Vec<State>,
    /// The first of them that may be found: the content of the segments.
    pub(crate) flushed: usize,
    pub(crate) store_id: u64,
    /// Where the log ends, and the ring's part of it.
    pub(crate) end: Seq,
}

/// The options of every store here: files so small that a few dozen writes use all of them.
pub(crate) fn builder(sim: &SimBackend, compress: bool) -> Builder {
    Db::builder()
        .backend(Arc::new(sim.clone()))
        .background(Background::Manual)
        .memory_budget_bytes(1 << 20)
        .compress(compress)
        .drain_interval(Duration::from_millis(1))
        .sizes(Sizes {
            ring_bytes: Some(64 << 10),
            log_file_bytes: Some(8 << 10),
            memtable_bytes: Some(16 << 10),
            segment_bytes: Some(8 << 10),
            manifest_bytes: Some(8 << 10),
            block_bytes: Some(512),
        })
}

impl Specimen {
    pub(crate) fn new(compress: bool) -> esker::Result<Specimen> {
        let sim = SimBackend::new(3);
        let db = builder(&sim, compress).open(ROOT)?;
        let keyspaces = [db.keyspace(NAMES[0])?, db.keyspace(NAMES[1])?];
        let mut states = vec![State::new()];
        let mut flushed = 0;
        for number in 0..56_u8 {
            let mut state = states.last().cloned().unwrap_or_default();
            let level = if number < 52 { Durability::Power } else { Durability::Process };
            let mut batch = db.batch();
            batch.durability(level);
            for (side, keyspace) in keyspaces.iter().enumerate().skip(usize::from(number % 3 == 0)) {
                let key = format!("key/{:02}", number % 19).into_bytes();
                if number % 7 == 6 {
                    batch.delete(keyspace, &key);
                    state.remove(&(side, key));
                } else {
                    let value = vec![number; usize::from(number % 5) * 30];
                    batch.put(keyspace, &key, &value);
                    state.insert((side, key), value);
                }
            }
            batch.commit()?;
            states.push(state);
            if number == 15 || number == 30 || number == 40 {
                db.flush()?;
                flushed = states.len() - 1;
            }
            if number == 30 {
                db.compact()?;
            }
        }
        let disk = sim.snapshot().process_crash(1).power_cut_all();
        sim.crash();
        let files: Vec<PathBuf> = disk
            .files()
            .into_iter()
            .map(|(path, _)| path)
            .filter(|path| path.starts_with(ROOT) && !path.ends_with("LOCK"))
            .collect();
        let store_id = store_id(&disk, &files).expect("a segment names its store");
        let mut specimen = Specimen { disk, files, states, flushed, store_id, end: Seq::ZERO };
        specimen.end =
            specimen.records().last().map_or(Seq::ZERO, |(seq, payload)| seq.plus(framed(payload)));
        Ok(specimen)
    }

    /// The records in the ring from the start of the incarnation on, which it has not lapped.
    pub(crate) fn records(&self) -> Vec<(Seq, Vec<u8>)> {
        let ring = self.named("/ring-").and_then(|path| self.disk.read_file(path)).unwrap_or_default();
        let origin = StreamOrigin { store_id: self.store_id, incarnation: 1 };
        let (mut records, mut at) = (Vec::new(), 0);
        while let Decoded::Record { payload, len_bytes } = decode(&ring[at..], origin, Seq::new(at as u64)) {
            records.push((Seq::new(at as u64), payload.to_vec()));
            at += len_bytes;
        }
        records
    }

    /// A file whose name contains this.
    pub(crate) fn named(&self, part: &str) -> Option<&Path> {
        self.files.iter().map(PathBuf::as_path).find(|path| path.to_string_lossy().contains(part))
    }
}

fn framed(payload: &[u8]) -> usize {
    (payload.len() + wal::RECORD_HEADER_BYTES).next_multiple_of(wal::GRANULE)
}

fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "seg")
}

fn store_id(disk: &DiskImage, files: &[PathBuf]) -> Option<u64> {
    let bytes = disk.read_file(files.iter().find(|path| is_segment(path))?)?;
    let footer = bytes.get(bytes.len().checked_sub(4096)?..)?;
    Some(u64::from_le_bytes(*footer[24..].first_chunk()?))
}

/// The number in a file's name.
pub(crate) fn number(path: &Path) -> Option<u64> {
    let name = path.file_stem()?.to_str()?;
    name.rsplit('-').next()?.parse().ok()
}

/// The position of the sectors of a log file or manifest; `None` for other files.
pub(crate) fn place(path: &Path, bytes: &[u8], store_id: u64) -> Option<Place> {
    let file_id = number(path)?;
    if path.to_string_lossy().contains("/manifest-") {
        return Some(Place { store_id: 0, file_id, epoch: 1 });
    }
    let epoch = u32::from_le_bytes(*bytes.get(4..)?.first_chunk()?) & wal::MAX_EPOCH;
    (path.extension()? == "log" && epoch != 0).then_some(Place { store_id, file_id, epoch })
}

/// Inputs for every target, from real stores: target, name, bytes.
///
/// # Errors
/// A store could not be made.
pub fn corpus() -> esker::Result<Vec<(&'static str, String, Vec<u8>)>> {
    let mut inputs: Vec<(&'static str, String, Vec<u8>)> = Vec::new();
    for (kind, compress) in [("plain", false), ("packed", true)] {
        let specimen = Specimen::new(compress)?;
        for path in specimen.files.iter().filter(|path| is_segment(path)).take(2) {
            let bytes = specimen.disk.read_file(path).unwrap_or_default();
            for (nth, (target, part)) in esker::fuzzing::parts(&bytes).into_iter().enumerate() {
                let name = format!("{kind}-{}-{nth}", number(path).unwrap_or(0));
                inputs.push((target, name, part));
            }
        }
        if !compress {
            from_log(&specimen, &mut inputs);
        }
    }
    // Inputs that are instructions, in the languages of their targets.
    let with = |way: u8, rest: &[u8]| [&[way], rest].concat();
    let words: Vec<u8> = (0..120_u8).map(|byte| byte.wrapping_mul(73) ^ 0x5a).collect();
    for (target, ways) in
        [("block", &[3_u8, 7][..]), ("index", &[2]), ("top", &[1]), ("filter", &[29]), ("sector", &[1, 3])]
    {
        inputs.extend(ways.iter().map(|way| (target, format!("built-{way}"), with(*way, &words))));
    }
    for target in ["segment", "replay", "store"] {
        for way in [0, 1, 3] {
            inputs.push((target, format!("changed-{way}"), with(way, &words[..24])));
        }
        inputs.push((target, "unchanged".to_owned(), vec![0]));
    }
    inputs.push(("store", "forged-record".to_owned(), with(5, &specimen_batch())));
    for way in 0..4 {
        inputs.push(("model", format!("operations-{way}"), with(way, &words)));
    }
    inputs.push(("chain", "built".to_owned(), with(1, &words)));
    Ok(inputs)
}

/// One put of a key, as a payload.
fn specimen_batch() -> Vec<u8> {
    let mut payload = vec![1, 0, 0, 0, 0, 1, 0, 0, 0, 3, 0, 2, 0, 0, 0];
    payload.extend_from_slice(b"keyva");
    payload
}

/// Sectors, groups, records and edits.
fn from_log(specimen: &Specimen, inputs: &mut Vec<(&'static str, String, Vec<u8>)>) {
    for (nth, (_, payload)) in specimen.records().into_iter().take(4).enumerate() {
        inputs.push(("batch", format!("record-{nth}"), payload.clone()));
        inputs.push(("record", format!("record-{nth}"), [&[1, 0, 0, 9, 0], &payload[..]].concat()));
    }
    for path in &specimen.files {
        let bytes = specimen.disk.read_file(path).unwrap_or_default();
        let Some(place) = place(path, &bytes, specimen.store_id) else { continue };
        let name = format!("file-{}", place.file_id);
        inputs.push(("sector", name.clone(), [&[0, 0, 0, 1, 0, 0, 0], &bytes[..512]].concat()));
        inputs.push(("group", name.clone(), [&[1], &bytes[8..72]].concat()));
        inputs.push(("chain", name.clone(), [&[6, 0], &bytes[..4096]].concat()));
        if place.store_id == 0 {
            let chain = read_chain(&bytes, &ChainRules { place, incarnation: 0, start: Seq::ZERO });
            inputs.push(("manifest", name.clone(), chain.stream.clone()));
            inputs.push(("edits", name, chain.stream));
        }
    }
}
