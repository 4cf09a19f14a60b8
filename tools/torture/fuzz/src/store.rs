//! A whole store: a small valid one, its files changed by the input, opened and read.
//!
//! ```text
//!   input   | way | file u8, offset u16, kind u8 | fields of the kind  | file, offset, kind | ...
//!           way bit 0: make the checksums of changed sectors right again
//!           way bit 2: no changes; the rest is the payload of one more record, at the end of the log
//! ```
//!
//! Invariant: after changes that a checksum must notice every answer is the content after one commit, the same for all
//! answers, and not older than the segments; or it is `Corrupt`. A forged store may give any answer.

use std::sync::OnceLock;

use aio::sim::DiskImage;
use aio::{SECTOR_BYTES, SimBackend};
use esker::{Db, Error};
use wal::{RecordBuf, StreamOrigin};

use crate::input::{Input, overwrite};
use crate::replay::reseal;
use crate::specimen::{NAMES, ROOT, Specimen, State, builder, place};

/// More calls than any open and all reads need.
const MOST_CALLS: u64 = 1_000_000;

/// The input changes the store's files.
pub(crate) fn store(data: &[u8]) {
    static SPECIMENS: OnceLock<[Specimen; 2]> = OnceLock::new();
    let specimens = SPECIMENS
        .get_or_init(|| [false, true].map(|compress| Specimen::new(compress).expect("a store can be made")));
    let mut input = Input(data);
    let way = input.u8();
    let specimen = &specimens[usize::from(way >> 3 & 1)];
    let forged = way & 1 == 1;
    let mut disk = specimen.disk.clone();
    if forged && way & 4 != 0 {
        add_record(specimen, &mut disk, input.0);
    } else {
        change(specimen, &mut disk, &mut input, forged);
    }
    let sim = SimBackend::from_image(disk.clone(), 1);
    sim.stop_tracing();
    sim.crash_after_calls(MOST_CALLS);
    let db = match builder(&sim, way & 8 != 0).create(false).open(ROOT) {
        Ok(db) => db,
        Err(error) => return must_be_told(&error, &sim, specimen, &disk),
    };
    let found = read(&db, specimen, !forged);
    if let Err(error) = &found {
        must_be_told(error, &sim, specimen, &disk);
    }
    if let (Ok(state), false) = (&found, forged) {
        let allowed = &specimen.states[specimen.flushed..];
        assert!(allowed.contains(state), "the store equals no prefix: {state:?}");
    }
    let verified = db.verify();
    if let Err(error) = &verified {
        must_be_told(error, &sim, specimen, &disk);
    }
    assert!(!sim.has_crashed(), "a walk without end");
    // Not closed: every answer was checked, and a close would flush the store.
    sim.crash();
}

/// Only damage may be reported, and only of a changed store.
fn must_be_told(error: &Error, sim: &SimBackend, specimen: &Specimen, disk: &DiskImage) {
    assert!(!sim.has_crashed(), "a walk without end: {error}");
    let is_told = matches!(
        error,
        Error::Corrupt { .. } | Error::Format { .. } | Error::NoSpace { .. } | Error::InvalidArgument { .. }
    );
    assert!(is_told, "neither right nor Corrupt: {error:?}");
    assert!(disk.fingerprint() != specimen.disk.fingerprint(), "an unchanged store is refused: {error}");
}

fn add_record(specimen: &Specimen, disk: &mut DiskImage, payload: &[u8]) {
    let Some(path) = specimen.named("/ring-") else { return };
    let mut record = RecordBuf::new();
    record.push(payload);
    let origin = StreamOrigin { store_id: specimen.store_id, incarnation: 1 };
    let bytes = record.prepare().frame(origin, specimen.end).to_vec();
    let at = usize::try_from(specimen.end.get()).expect("the ring has not gone round");
    disk.damage(path, |ring| overwrite(ring, at, &bytes));
}

fn change(specimen: &Specimen, disk: &mut DiskImage, input: &mut Input<'_>, forged: bool) {
    let mut bursts = 0_u64;
    while !input.is_empty() {
        let nth = usize::from(input.u8()) % specimen.files.len();
        let path = &specimen.files[nth];
        let Some(mut bytes) = disk.read_file(path).filter(|bytes| !bytes.is_empty()) else { continue };
        let offset = usize::from(input.u16()) % bytes.len();
        let sector = offset / SECTOR_BYTES * SECTOR_BYTES;
        match input.u8() % 4 {
            0 if forged => {
                let len = usize::from(input.u8());
                let place = place(path, &bytes, specimen.store_id);
                overwrite(&mut bytes, offset, input.bytes(len));
                if let Some(place) = place {
                    reseal(&place, &mut bytes, offset / SECTOR_BYTES..(offset + len).div_ceil(SECTOR_BYTES));
                }
            }
            // A checksum of 32 bits always notices one of these; two in one file could cancel.
            0 if bursts & 1 << nth == 0 => {
                bursts |= 1 << nth;
                let end = (offset + 4).min(sector + SECTOR_BYTES).min(bytes.len());
                overwrite(&mut bytes[..end], offset, input.bytes(4));
            }
            1 => {
                let end = bytes.len().min(sector + SECTOR_BYTES);
                bytes[sector..end].fill(0);
            }
            2 => bytes.truncate(offset),
            _ if input.u8() == 0 => {
                disk.remove_file(path);
                continue;
            }
            _ => continue,
        }
        disk.write_file(path, &bytes);
    }
}

/// Reads single keys, cold, and then everything in both directions; the first error, after all of it.
fn read(db: &Db, specimen: &Specimen, judge: bool) -> esker::Result<State> {
    let allowed = &specimen.states[specimen.flushed..];
    let mut state = State::new();
    let mut failed = None;
    let names = db.keyspaces();
    if judge {
        assert_eq!(names, NAMES, "a keyspace that was never made, or one is lost");
    }
    for (side, name) in names.iter().enumerate() {
        let keyspace = db.keyspace(name)?;
        let mut singles = Vec::new();
        for number in (0..19).step_by(3) {
            let key = format!("key/{number:02}").into_bytes();
            match keyspace.get(&key) {
                Ok(value) => {
                    let place = (side, key.clone());
                    let is_allowed =
                        allowed.iter().any(|state| state.get(&place).map(Vec::as_slice) == value.as_deref());
                    assert!(!judge || is_allowed, "{key:?} of {name} gives {value:?}, as nothing allows");
                    singles.push((key, value));
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        let forwards: esker::Result<Vec<_>> = keyspace.iter().collect();
        let backwards: esker::Result<Vec<_>> = keyspace.iter().rev().collect();
        match (forwards, backwards) {
            (Ok(forwards), Ok(mut backwards)) => {
                backwards.reverse();
                assert!(!judge || forwards == backwards, "the two directions differ");
                for (key, value) in singles {
                    let pair = forwards.iter().find(|pair| pair.0 == key);
                    assert!(!judge || pair.map(|pair| &pair.1) == value.as_ref(), "get and scan differ");
                }
                state.extend(forwards.into_iter().map(|(key, value)| ((side, key.to_vec()), value.to_vec())));
            }
            (Err(error), _) | (_, Err(error)) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(state), Err)
}
