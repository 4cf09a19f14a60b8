//! A whole segment file under a fuzzer: written by the writer on the simulated disk, changed by the input, read through
//! the reader. Compiled under `--cfg fuzzing` only.
//!
//! ```text
//!   input   | way | offset u16 | n | n bytes | offset u16 | n | n bytes | ...      each change overwrites
//!           way bit 0: make all checksums right again, so that the change gets behind them
//! ```
//!
//! Invariant: with checksums as they were, every read gives the written entries or `Corrupt`; with forged ones, anything
//! but a panic or a walk without end.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use aio::sim::DiskImage;
use aio::{Backend, SimBackend};

use super::block::{Block, STORED_HEADER_BYTES};
use super::footer::{FOOTER_BYTES, Footer, SegmentMeta, TOP_PART, checksum};
use super::index::BlockHandle;
use super::open::Opening;
use super::pages::{PIECE_BLOCKS, handle_in};
use super::reader::{BlockCache, Segment};
use super::top::Top;
use super::writer::{SegmentWriter, WriterOptions};
use crate::base::coding::Reader;
use crate::base::error::{Error, Result};
use crate::base::key::{Entry, Kind, Seq, key_hash};
use crate::compaction::retain::Kept;
use crate::io::background::JobKind;
use crate::io::files::Files;
use crate::io::lane::Lane;
use crate::io::write_stream::WriteStream;
use crate::memory::cache::Cache;
use crate::memory::reserve::ReservedBytes;
use crate::read::cursor::Cursor;

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
    let stream = WriteStream::new(&Lane::new(&files, JobKind::Flush)?, 4096);
    let mut writer = SegmentWriter::create(stream, options)?;
    // Several blocks, versions of one key across two of them, tombstones, values that shrink and ones that do not.
    let noise: Vec<u8> = (0..=255_u8).map(|byte| byte.wrapping_mul(167) ^ 0x2d).collect();
    let mut entries = entries_of(&noise.repeat(2));
    entries
        .extend((0..40).map(|seq| (vec![0xff, 0xff], Seq::new(400 - seq), Kind::Put, noise[..24].to_vec())));
    entries.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
    let mut last_key: &[u8] = &[];
    for (key, seq, kind, value) in &entries {
        let kept = if last_key == key { Kept::SameKey } else { Kept::NewKey };
        writer.add(Entry { key, seq: *seq, kind: *kind, value }, kept)?;
        last_key = key;
    }
    let (meta, stream) = writer.finish()?;
    stream.close()?;
    let disk = sim.snapshot().power_cut_all();
    let bytes = disk.read_file(Path::new(FILE)).expect("it was written");
    Ok(Sample { disk, meta, bytes, entries })
}

/// Makes every checksum that can be found right, and gives the meta that the manifest would have.
fn forge(bytes: &mut [u8]) -> Option<SegmentMeta> {
    let footer_at = bytes.len() - FOOTER_BYTES;
    seal_footer(bytes, footer_at);
    let footer = Footer::decode(&bytes[footer_at..], Path::new(FILE), 0).ok()?.0;
    let section = footer.layout.top;
    let top_at = usize::try_from(section.offset).ok()?;
    let top_end = usize::try_from(section.offset + section.len_bytes).ok()?;
    let top = Top::decode(bytes.get(top_at..top_end)?, &footer).ok()?;
    // Behind the columns of the index over the index blocks, and from the end: see the tables.
    let pieces = top.pieces();
    let crcs_at = top_end.checked_sub(4 * (top.blocks() - top.filter_blocks().start))?;
    for number in top.index_block(0)..top.blocks() {
        let handle = top.handle(number)?;
        forge_places(bytes, &footer, number - top.index_block(0), &handle, pieces);
        let crc = forged_crc(bytes, &footer, number, &handle)?;
        let at = match number.checked_sub(top.filter_blocks().start) {
            Some(page) => crcs_at + 4 * page,
            None => top_at + 16 + 4 * (2 * pieces + number - top.index_block(0)),
        };
        *bytes.get_mut(at..)?.first_chunk_mut()? = crc.to_le_bytes();
    }
    let top_crc = checksum(footer.segment, TOP_PART, bytes.get(top_at..footer_at)?);
    bytes[footer_at + 120..footer_at + 124].copy_from_slice(&top_crc.to_le_bytes());
    let crc = seal_footer(bytes, footer_at);
    let footer = Footer::decode(&bytes[footer_at..], Path::new(FILE), 0).ok()?.0;
    // The name on the disk and the number in the file are one.
    (footer.segment == ID).then(|| meta_of(&footer, &top, crc))
}

/// Makes the checksums of the data blocks right in an index block.
fn forge_places(
    bytes: &mut [u8],
    footer: &Footer,
    piece: usize,
    handle: &BlockHandle,
    pieces: usize,
) -> Option<()> {
    if piece >= pieces {
        return None;
    }
    let at = usize::try_from(handle.offset).ok()?;
    let frame =
        Block::decode(bytes.get(at..at.checked_add(handle.padded_bytes())?)?, handle.len_bytes).ok()?;
    let block = Block::of(&frame);
    let raw_bytes = handle.len_bytes - STORED_HEADER_BYTES;
    for i in 0..block.len() {
        let spot = block.entry_at(i);
        let value_at = raw_bytes.checked_sub(block.bytes_from(&spot).len())? + spot.suffix_len();
        let data = handle_in(block, i)?;
        let crc = forged_crc(bytes, footer, piece * PIECE_BLOCKS + i, &data)?;
        *bytes.get_mut(at + STORED_HEADER_BYTES + value_at + 8..)?.first_chunk_mut()? = crc.to_le_bytes();
    }
    Some(())
}

fn forged_crc(bytes: &[u8], footer: &Footer, number: usize, handle: &BlockHandle) -> Option<u32> {
    let at = usize::try_from(handle.offset).ok()?;
    let stored = bytes.get(at..at.checked_add(handle.padded_bytes())?)?;
    Some(checksum(footer.segment, u32::try_from(number).ok()?, stored))
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
    let cache: Arc<BlockCache> = Arc::new(Cache::new(1 << 17));
    let pinned = read_in(&files, &cache, meta, keys, expected);
    // No request for memory is granted any more: index and filter are paged.
    let _taken = ReservedBytes::take(&cache, 1 << 16);
    let paged = read_in(&files, &cache, meta, keys, expected);
    pinned.and(paged)
}

fn read_in(
    files: &Arc<Files>,
    cache: &Arc<BlockCache>,
    meta: &SegmentMeta,
    keys: &[Owned],
    expected: Option<&[Owned]>,
) -> Result<()> {
    let segment = Segment::open(&Opening { files, cache, origin: STORE, leaving_bytes: 0 }, meta)?;
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

/// The meta that the manifest would have of a file with this footer.
fn meta_of(footer: &Footer, top: &Top, footer_crc: u32) -> SegmentMeta {
    SegmentMeta {
        id: footer.segment,
        keyspace: footer.keyspace,
        size_bytes: footer.size_bytes,
        entries: footer.entries,
        tombstones: footer.tombstones,
        smallest: top.smallest().to_vec().into(),
        largest: top.largest().to_vec().into(),
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
        let len = if kind.stores_value() { usize::from(shape / 8 % 8) } else { 0 };
        let value = reader.take(len).unwrap_or_default().repeat(1 + len);
        entries.push((key, Seq::new(seq), kind, value));
    }
    entries.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
    entries.dedup_by(|a, b| a.0 == b.0 && a.1 == b.1);
    entries
}
