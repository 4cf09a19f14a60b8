//! A whole segment file under a fuzzer: written by the writer on the simulated disk, changed by the input, read through
//! the reader. Compiled under `--cfg fuzzing` only.
//!
//! ```text
//!   input   | way | offset u16 | n | n bytes | offset u16 | n | n bytes | ...      each change overwrites
//!           way bit 0: make all checksums right again, so that the change gets behind them
//! ```
//!
//! Invariant: with checksums as they were, every read gives what was written or `Corrupt`; with forged ones, anything but
//! a panic or a walk without end.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use aio::sim::DiskImage;
use aio::{Backend, SimBackend};

use super::footer::{FILTER_PLACE, FOOTER_BYTES, Footer, INDEX_PLACE, SegmentMeta, UNIT_BYTES, checksum};
use super::index::Index;
use super::reader::{BlockCache, Segment};
use super::writer::{SegmentWriter, WriterOptions};
use crate::cache::Cache;
use crate::coding::Reader;
use crate::error::{Error, Result};
use crate::files::Files;
use crate::iter::Cursor;
use crate::key::{Entry, Kind, Seq, key_hash};

const STORE: u64 = 0x5702_e1d5;
const ID: u64 = 12;
const ROOT: &str = "/store";
const FILE: &str = "/store/segments/000012.seg";

/// Key, place in the order of writes, kind and value.
pub(super) type Owned = (Vec<u8>, Seq, Kind, Vec<u8>);

/// The file before any change.
struct Sample {
    disk: DiskImage,
    meta: SegmentMeta,
    bytes: Vec<u8>,
    entries: Vec<Owned>,
}

/// A segment file with the changes that the input says.
pub fn segment(data: &[u8]) {
    static SAMPLE: OnceLock<Sample> = OnceLock::new();
    let sample = SAMPLE.get_or_init(|| sample().expect("a segment can be written"));
    let mut reader = Reader::new(data);
    let forged = reader.u8().unwrap_or(0) & 1 == 1;
    let mut bytes = sample.bytes.clone();
    while let Some(offset) = reader.u16() {
        let len = usize::from(reader.u8().unwrap_or(0));
        let change = reader.take(len).unwrap_or(reader.rest());
        let at = usize::from(offset) % bytes.len();
        let end = bytes.len().min(at + change.len());
        bytes[at..end].copy_from_slice(&change[..end - at]);
    }
    let mut meta = sample.meta.clone();
    if forged {
        let Some(right) = forge(&mut bytes) else { return };
        meta = right;
    }
    let mut disk = sample.disk.clone();
    disk.write_file(Path::new(FILE), &bytes);
    let sim = SimBackend::from_image(disk, 1);
    sim.stop_tracing();
    let expected = (!forged).then_some(&sample.entries[..]);
    if let Err(error) = read_all(&sim, &meta, &sample.entries, expected) {
        assert!(matches!(error, Error::Corrupt { .. } | Error::Format { .. }), "{error:?}");
        assert!(bytes != sample.bytes, "an unchanged file is refused: {error}");
    }
}

fn sample() -> Result<Sample> {
    let sim = SimBackend::new(1);
    for dir in [ROOT, "/store/segments"] {
        sim.make_dir(Path::new(dir))?;
    }
    let files = Arc::new(Files::new(Arc::new(sim.clone()), Path::new(ROOT), 1 << 20));
    let options = WriterOptions {
        id: ID,
        keyspace: 3,
        store_id: STORE,
        block_bytes: 512,
        compress: true,
        filter_bits_per_key: 14,
    };
    let mut writer = SegmentWriter::create(&files, options)?;
    // Several blocks, versions of one key across two of them, tombstones, values that shrink and ones that do not.
    let noise: Vec<u8> = (0..=255_u8).map(|byte| byte.wrapping_mul(167) ^ 0x2d).collect();
    let mut entries = entries_of(&noise.repeat(2));
    entries
        .extend((0..40).map(|seq| (vec![0xff, 0xff], Seq::new(400 - seq), Kind::Put, noise[..24].to_vec())));
    entries.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
    for (key, seq, kind, value) in &entries {
        writer.add(Entry { key, seq: *seq, kind: *kind, value })?;
    }
    let meta = writer.finish()?;
    let disk = sim.snapshot().power_cut_all();
    let bytes = disk.read_file(Path::new(FILE)).expect("it was written");
    Ok(Sample { disk, meta, bytes, entries })
}

/// Makes every checksum that can be found right, and gives what the manifest would say.
fn forge(bytes: &mut [u8]) -> Option<SegmentMeta> {
    let footer_at = bytes.len() - FOOTER_BYTES;
    seal_footer(bytes, footer_at);
    let footer = Footer::decode(&bytes[footer_at..], Path::new(FILE), 0).ok()?.0;
    let at = |offset: u64| usize::try_from(offset).ok().filter(|at| *at <= footer_at);
    let (index_at, filter_at) = (at(footer.index.offset)?, at(footer.filter.offset)?);
    let index_end = at(footer.index.offset + footer.index.len_bytes)?;
    let mut word = |at: usize, value: Option<u32>| -> Option<u32> {
        let field: &mut [u8; 4] = bytes.get_mut(at..)?.first_chunk_mut()?;
        if let Some(value) = value {
            *field = value.to_le_bytes();
        }
        Some(u32::from_le_bytes(*field))
    };
    let blocks = usize::try_from(word(index_at, None)?).ok()?.min(1 << 10);
    let mut places = Vec::new();
    for block in 0..blocks {
        let unit = word(index_at + 16 + 4 * block, None)?;
        let len = word(index_at + 16 + 4 * (blocks + block), None)?;
        places.push((usize::try_from(unit).ok()? * UNIT_BYTES, usize::try_from(len).ok()?));
    }
    for (block, (start, len)) in places.into_iter().enumerate() {
        let Some(stored) = bytes.get(start..start + len.next_multiple_of(UNIT_BYTES)) else { continue };
        let crc = checksum(footer.segment, u32::try_from(block).ok()?, stored);
        let field = bytes.get_mut(index_at + 16 + 4 * (2 * blocks + block)..)?.first_chunk_mut()?;
        *field = crc.to_le_bytes();
    }
    let index_crc = checksum(footer.segment, INDEX_PLACE, bytes.get(index_at..filter_at)?);
    let filter_crc = checksum(footer.segment, FILTER_PLACE, bytes.get(filter_at..footer_at)?);
    bytes[footer_at + 120..footer_at + 124].copy_from_slice(&index_crc.to_le_bytes());
    bytes[footer_at + 124..footer_at + 128].copy_from_slice(&filter_crc.to_le_bytes());
    let crc = seal_footer(bytes, footer_at);
    let footer = Footer::decode(&bytes[footer_at..], Path::new(FILE), 0).ok()?.0;
    let index = Index::decode(bytes.get(index_at..index_end)?, footer.index.offset).ok()?;
    // The name on the disk and the number in the file are one.
    (footer.segment == ID).then(|| meta_of(&footer, &index, crc))
}

fn seal_footer(bytes: &mut [u8], footer_at: usize) -> u32 {
    let (body, field) = bytes[footer_at..].split_at_mut(FOOTER_BYTES - 4);
    let crc = crc32fast::hash(body);
    field.copy_from_slice(&crc.to_le_bytes());
    crc
}

/// Every way to read, each by itself; the first error, after all of them.
fn read_all(sim: &SimBackend, meta: &SegmentMeta, keys: &[Owned], expected: Option<&[Owned]>) -> Result<()> {
    let files = Arc::new(Files::new(Arc::new(sim.clone()), Path::new(ROOT), 1 << 20));
    let cache: Arc<BlockCache> = Arc::new(Cache::new(1 << 16));
    let segment = Segment::open(&files, &cache, meta, STORE)?;
    let mut results = vec![segment.verify().map(drop)];
    for (i, (key, seq, ..)) in keys.iter().enumerate().step_by(5) {
        let snapshot = Seq::new(seq.get().saturating_add(1));
        let found = segment.get_with((key, key_hash(key)), snapshot, |kind, seq, value| {
            (key.clone(), seq, kind, value.to_vec())
        });
        if let (Some(expected), Ok(found)) = (expected, &found) {
            assert_eq!(found.as_ref(), Some(&expected[i]), "a get is wrong");
        }
        results.push(found.map(drop));
    }
    results.push(walk(&segment, expected));
    results.push(walk_back(&segment, expected));
    let middle = &keys[keys.len() / 2].0;
    let mut cursor = segment.cursor(true);
    results.push(cursor.seek(middle));
    results.push(cursor.seek_before(Some(middle)));
    results.into_iter().collect()
}

/// More than any block of the file can hold when it is unpacked.
const MOST_STEPS: usize = 1 << 22;

fn walk(segment: &Arc<Segment>, expected: Option<&[Owned]>) -> Result<()> {
    let mut cursor = segment.cursor(false);
    cursor.seek(b"")?;
    let mut seen = 0;
    while let Some(entry) = cursor.entry() {
        if let Some(expected) = expected {
            must_be(&entry, expected.get(seen));
        }
        seen += 1;
        assert!(seen < MOST_STEPS, "a scan without end");
        cursor.next()?;
    }
    assert!(expected.is_none_or(|expected| seen == expected.len()), "a scan ends early");
    Ok(())
}

fn walk_back(segment: &Arc<Segment>, expected: Option<&[Owned]>) -> Result<()> {
    let mut cursor = segment.cursor(true);
    cursor.seek_before(None)?;
    let mut seen = 0;
    while let Some(entry) = cursor.entry() {
        seen += 1;
        if let Some(expected) = expected {
            must_be(&entry, expected.len().checked_sub(seen).map(|at| &expected[at]));
        }
        assert!(seen < MOST_STEPS, "a scan without end");
        cursor.prev()?;
    }
    assert!(expected.is_none_or(|expected| seen == expected.len()), "a scan backwards ends early");
    Ok(())
}

fn must_be(entry: &Entry<'_>, expected: Option<&Owned>) {
    let found = (entry.key, entry.seq, entry.kind, entry.value);
    let expected = expected.map(|(key, seq, kind, value)| (&key[..], *seq, *kind, &value[..]));
    assert_eq!(Some(found), expected, "a scan is wrong");
}

/// What the manifest would say of a file with this footer.
fn meta_of(footer: &Footer, index: &Index, footer_crc: u32) -> SegmentMeta {
    SegmentMeta {
        id: footer.segment,
        keyspace: footer.keyspace,
        size_bytes: footer.size_bytes,
        entries: footer.entries,
        tombstones: footer.tombstones,
        smallest: index.smallest().to_vec().into(),
        largest: index.separator(index.blocks() - 1).to_vec().into(),
        min_seq: footer.min_seq,
        max_seq: footer.max_seq,
        raw_bytes: footer.raw_bytes,
        footer_crc,
    }
}

/// A list of entries in internal order, each key with at least a byte.
pub(super) fn entries_of(data: &[u8]) -> Vec<Owned> {
    let mut reader = Reader::new(data);
    let mut entries: Vec<Owned> = Vec::new();
    while let Some(shape) = reader.u8() {
        let mut key = entries.last().map_or(Vec::new(), |last| last.0[..last.0.len() / 2].to_vec());
        key.extend_from_slice(reader.take(usize::from(shape % 8)).unwrap_or_default());
        key.push(shape);
        let seq =
            if shape & 64 == 0 { u64::from(reader.u8().unwrap_or(0)) } else { reader.u64().unwrap_or(7) };
        let kind = if shape & 128 == 0 { Kind::Put } else { Kind::Delete };
        let len = if kind == Kind::Put { usize::from(shape / 8 % 8) } else { 0 };
        let value = reader.take(len).unwrap_or_default().repeat(1 + len);
        entries.push((key, Seq::new(seq), kind, value));
    }
    entries.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
    entries.dedup_by(|a, b| a.0 == b.0 && a.1 == b.1);
    entries
}
