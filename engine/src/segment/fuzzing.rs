//! The entry points of the fuzzers into this folder: one function for each decoder, which takes any bytes and panics if an
//! invariant is broken. Compiled under `--cfg fuzzing` only.
//!
//! The first byte of an input selects its use: the bytes as they are, or with valid checksums and lengths so that they are
//! not refused at once, or as a list that the encoder writes and the decoder must return.
//!
//! Invariant: no function returns a decoder; all comparisons are made here.

use std::path::Path;

use super::block::{Block, CODEC_LZ4, CODEC_NONE, Frame, RAW_HEADER_BYTES};
use super::block_builder::BlockBuilder;
use super::filter::{Filter, LINE_BYTES, line_from};
use super::footer::{FOOTER_BYTES, Footer, Layout, Section, UNIT_BYTES};
use super::fuzzing_file::{Owned, entries_of};
use super::index::{BlockHandle, Index, IndexBuilder};
use super::pages::{filter_blocks, handle_in, index_blocks, is_searchable, lines_in};
use super::top::{Role, Top, TopBuilder};
use crate::base::coding::{Put, Reader};
use crate::base::key::{Entry, Seq, key_hash};

pub use super::fuzzing_file::segment;

/// The most keys that are looked up in one input, since a small input may decompress to many.
const MOST_PROBES: usize = 16;

/// A stored block: structure, both searches, and every entry. A block that passes [`Block::check`] is encoded again and read
/// back.
pub fn block(data: &[u8]) {
    let Some((way, rest)) = data.split_first() else { return };
    match way % 4 {
        0 => any_block(rest),
        1 => any_block(&stored(CODEC_NONE, rest.len(), rest)),
        2 => any_block(&stored(CODEC_LZ4, rest.len(), &lz4_flex::block::compress(rest))),
        _ => built_block(rest, way & 4 != 0),
    }
}

fn stored(codec: u8, raw_len: usize, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 + body.len());
    bytes.put_u32(u32::try_from(raw_len).expect("an input is short"));
    bytes.extend_from_slice(&[codec, 0, 0, 0]);
    bytes.extend_from_slice(body);
    bytes
}

fn any_block(bytes: &[u8]) {
    let Ok(frame) = Block::decode(bytes, bytes.len()) else { return };
    Block::prefetch(&frame);
    let block = Block::of(&frame);
    let _ = block.memory_bytes();
    let step = block.len().div_ceil(MOST_PROBES);
    for i in (0..block.len()).step_by(step) {
        let spot = block.entry_at(i);
        assert_eq!((spot.seq, spot.kind), (block.seq(i), block.kind(i)));
        assert_eq!(block.value_at(&spot), block.value(i));
        assert!(block.bytes_from(&spot).starts_with(block.suffix(i)));
        probe(block, &[block.prefix(), block.suffix(i)].concat());
    }
    probe(block, &bytes[bytes.len().min(RAW_HEADER_BYTES)..bytes.len().min(64)]);
    let mut entries = Vec::new();
    let checked = block.check(|entry, hash| {
        assert_eq!(hash, key_hash(entry.key));
        entries.push((entry.key.to_vec(), entry.seq, entry.kind, entry.value.to_vec()));
    });
    // A block that the writer did not make may be out of order. Its searches may then return any entry.
    if checked.is_ok() {
        must_hold(block, &entries);
        must_hold(Block::of(&rebuilt(&entries, false)), &entries);
        must_hold(Block::of(&rebuilt(&entries, true)), &entries);
    }
}

fn probe(block: Block<'_>, key: &[u8]) {
    block.prefetch_entry(key_hash(key));
    assert!(block.lower_bound(key) <= block.len());
    for snapshot in [Seq::new(0), Seq::new(1 << 20), Seq::new(u64::MAX)] {
        if let Some(spot) = block.find(key, key_hash(key), snapshot) {
            let suffix = block.bytes_from(&spot).get(..spot.suffix_len()).expect("it is in the block");
            assert_eq!([block.prefix(), suffix].concat(), key, "another key was found");
            assert!(spot.seq < snapshot, "an entry from after the snapshot was found");
        }
    }
}

fn rebuilt(entries: &[Owned], compress: bool) -> Frame {
    let mut builder = BlockBuilder::default();
    for (key, seq, kind, value) in entries {
        builder.add(&Entry { key, seq: *seq, kind: *kind, value }, key_hash(key));
    }
    let encoded = builder.finish(compress);
    assert!(encoded.bytes.len().is_multiple_of(UNIT_BYTES));
    Block::decode(&encoded.bytes, encoded.len_bytes).expect("encoded bytes are decoded")
}

/// Checks that the block holds these entries in internal order and finds each.
fn must_hold(block: Block<'_>, entries: &[Owned]) {
    assert_eq!(block.len(), entries.len());
    let step = entries.len().div_ceil(MOST_PROBES);
    for (i, (key, seq, kind, value)) in entries.iter().enumerate().step_by(step) {
        assert!(block.is_key(i, key), "key {i}");
        assert_eq!((block.seq(i), block.kind(i), block.value(i)), (*seq, *kind, &value[..]));
        let first = entries.partition_point(|entry| entry.0 < *key);
        assert_eq!(block.lower_bound(key), first);
        if let Some(after) = seq.get().checked_add(1) {
            assert_eq!(block.find(key, key_hash(key), Seq::new(after)), Some(block.entry_at(i)));
        }
        let mut longer = key.clone();
        longer.push(0);
        assert_eq!(
            block.lower_bound(&longer),
            entries.partition_point(|entry| entry.0 < longer),
            "after {key:?}"
        );
    }
    let has_twins = entries.windows(2).any(|pair| pair[0].0 == pair[1].0);
    assert_eq!(block.is_distinct(), !has_twins);
}

/// Entries from the input, encoded to a block as the writer does.
fn built_block(data: &[u8], compress: bool) {
    let mut entries = entries_of(data);
    entries.truncate(200);
    if !entries.is_empty() {
        must_hold(Block::of(&rebuilt(&entries, compress)), &entries);
    }
}

/// The index: compares its search with a walk, and checks that accepted bytes are those that the encoder writes.
pub fn index(data: &[u8]) {
    let Some((way, rest)) = data.split_first() else { return };
    match way % 3 {
        0 => {
            let Some((end, bytes)) = rest.split_first_chunk() else { return };
            any_index(bytes, u64::from_le_bytes(*end), rest);
        }
        1 => {
            let mut bytes = rest.to_vec();
            let end = lay_out_blocks(&mut bytes);
            any_index(&bytes, end, rest);
        }
        _ => built_index(rest),
    }
}

/// Places each block behind the previous one. Returns the end of the last one.
fn lay_out_blocks(bytes: &mut [u8]) -> u64 {
    let word = |bytes: &[u8], at: usize| Reader::new(bytes.get(at..).unwrap_or_default()).u32();
    let blocks = word(bytes, 0).and_then(|blocks| usize::try_from(blocks).ok()).unwrap_or(0);
    let mut end = 0_u64;
    for block in 0..blocks.min(bytes.len() / 16) {
        let len = u64::from(word(bytes, 16 + 4 * (blocks + block)).unwrap_or(0));
        let unit = u32::try_from(end / UNIT_BYTES as u64).unwrap_or(u32::MAX);
        if let Some(field) = bytes.get_mut(16 + 4 * block..).and_then(<[u8]>::first_chunk_mut) {
            *field = unit.to_le_bytes();
        }
        end = end.saturating_add(len.next_multiple_of(UNIT_BYTES as u64));
    }
    end
}

fn any_index(bytes: &[u8], blocks_end: u64, probes: &[u8]) {
    let Ok(index) = Index::decode(bytes, blocks_end) else { return };
    let _ = index.memory_bytes();
    let mut builder = IndexBuilder::default();
    builder.set_smallest(index.smallest());
    for block in 0..index.blocks() {
        let handle = index.handle(block).expect("a block that is counted has a handle");
        assert!(handle.offset + handle.padded_bytes() as u64 <= blocks_end);
        builder.add(handle, index.separator(block), None);
    }
    assert_eq!(builder.encode(), bytes, "an index has one form");
    assert_eq!(index.handle(index.blocks()), None);
    let step = index.blocks().div_ceil(MOST_PROBES);
    for block in (0..index.blocks()).step_by(step) {
        let separator = index.separator(block).to_vec();
        must_find(&index, &separator);
        must_find(&index, &separator[..separator.len() - 1]);
        must_find(&index, &[&separator[..], &[0]].concat());
    }
    for probe in probes.chunks(9).take(8) {
        must_find(&index, probe);
    }
}

fn must_find(index: &Index, key: &[u8]) {
    let walked = (0..index.blocks()).find(|block| index.separator(*block) >= key);
    assert_eq!(index.find(key), walked, "{key:?}");
}

/// Blocks of two keys each, as a writer indexes them.
fn built_index(data: &[u8]) {
    let keys: Vec<Vec<u8>> = entries_of(data).into_iter().map(|entry| entry.0).collect();
    let Some(smallest) = keys.first() else { return };
    let mut builder = IndexBuilder::default();
    builder.set_smallest(smallest);
    let mut offset = 0;
    let blocks: Vec<_> = keys.chunks(2).collect();
    for (i, block) in blocks.iter().enumerate() {
        let handle = BlockHandle { offset, len_bytes: 1 + i * 100, crc: 7 };
        offset += handle.padded_bytes() as u64;
        let next = blocks.get(i + 1).and_then(|next| next.first());
        builder.add(handle, &block[block.len() - 1], next.map(Vec::as_slice));
    }
    let index = Index::decode(&builder.encode(), offset).expect("encoded bytes are decoded");
    for (i, block) in blocks.iter().enumerate() {
        let last = &block[block.len() - 1];
        assert!(index.separator(i) >= &last[..], "a separator below its block");
        let found = index.find(last).expect("a key that is there");
        assert!(found <= i, "a key is looked for behind its block");
        assert!(blocks[found..=i].iter().all(|block| block.contains(last)), "a key is looked for elsewhere");
    }
}

/// The filter: every added key is found, in the lines themselves and in filter blocks.
pub fn filter(data: &[u8]) {
    let Some((way, rest)) = data.split_first() else { return };
    if way % 2 == 0 {
        let lines: Vec<_> = rest.as_chunks::<LINE_BYTES>().0.iter().map(line_from).collect();
        if lines.is_empty() {
            return;
        }
        let filter = Filter::of(lines);
        let _ = filter.memory_bytes();
        for probe in rest.chunks(8).take(MOST_PROBES) {
            let _ = filter.may_contain(key_hash(probe));
        }
        return;
    }
    let hashes: Vec<u64> = rest.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let built = Filter::build(&hashes, u32::from(way / 2));
    let mut lines = Vec::new();
    for encoded in filter_blocks(built.lines()) {
        let frame = Block::decode(&encoded.bytes, encoded.len_bytes).expect("encoded bytes are decoded");
        lines.extend(lines_in(Block::of(&frame)).iter().map(line_from));
    }
    assert_eq!(lines, built.lines());
    let joined = Filter::of(lines);
    assert!(hashes.iter().all(|hash| joined.may_contain(*hash)), "a filter forgets a key");
}

/// The top: an accepted top describes blocks without a gap, and in one that the writer makes every key is found.
pub fn top(data: &[u8]) {
    let Some((way, rest)) = data.split_first() else { return };
    if way % 2 == 1 {
        return built_top(rest);
    }
    let mut reader = Reader::new(rest);
    let (Some(blocks), Some(index), Some(filter), Some(top)) =
        (reader.u32(), reader.u64(), reader.u64(), reader.u64())
    else {
        return;
    };
    let footer = footer_of(blocks, [index, filter, top]);
    let Ok(decoded) = Top::decode(reader.rest(), &footer) else { return };
    must_be_contiguous(&decoded, &footer);
    for probe in rest.chunks(9).take(MOST_PROBES) {
        assert!(decoded.find(probe).is_none_or(|piece| piece < decoded.pieces()));
        assert!(decoded.filter_blocks().contains(&decoded.filter_block(key_hash(probe))));
    }
}

fn footer_of(blocks: u32, [index, filter, top]: [u64; 3]) -> Footer {
    let top = Section { offset: top, len_bytes: 0, crc: 0 };
    Footer {
        features: 0,
        segment: 0,
        store: 0,
        keyspace: 0,
        blocks,
        entries: 1,
        tombstones: 0,
        raw_bytes: 0,
        min_seq: Seq::new(0),
        max_seq: Seq::new(0),
        layout: Layout { index, filter, top, separators_bytes: 0 },
        size_bytes: 0,
    }
}

fn must_be_contiguous(top: &Top, footer: &Footer) {
    let Layout { index, top: section, .. } = footer.layout;
    let mut offset = index;
    for number in top.index_block(0)..top.blocks() {
        let handle = top.handle(number).expect("a block that is counted has a handle");
        assert_eq!(handle.offset, offset, "block {number}");
        offset += handle.padded_bytes() as u64;
    }
    assert_eq!(offset, section.offset);
    assert_eq!((top.handle(top.blocks()), top.handle(top.index_block(0).wrapping_sub(1))), (None, None));
}

/// An index over as many data blocks as there are keys, and a filter of them, as a writer lays them out.
fn built_top(data: &[u8]) {
    let keys: Vec<Vec<u8>> = entries_of(data).into_iter().map(|entry| entry.0).collect();
    let (Some(smallest), Some(largest)) = (keys.first(), keys.last()) else { return };
    let (mut builder, mut top) = (IndexBuilder::default(), TopBuilder::default());
    top.set_smallest(smallest);
    let mut offset = 0;
    for key in &keys {
        let handle = BlockHandle { offset, len_bytes: 1 + key.len() * 100, crc: 7 };
        offset += handle.padded_bytes() as u64;
        builder.add(handle, key, None);
    }
    let hashes: Vec<u64> = keys.iter().map(|key| key_hash(key)).collect();
    let filter = Filter::build(&hashes, 14);
    let (data_end, mut frames, mut all) = (offset, Vec::new(), builder.entries());
    for encoded in index_blocks(builder.entries()) {
        let frame = Block::decode(&encoded.bytes, encoded.len_bytes).expect("encoded bytes are decoded");
        let entries: Vec<_> = all.by_ref().take(Block::of(&frame).len()).collect();
        let handle = BlockHandle { offset, len_bytes: encoded.len_bytes, crc: 8 };
        top.add_index(handle, entries[entries.len() - 1].1, entries[0].0);
        offset += handle.padded_bytes() as u64;
        frames.push(frame);
    }
    let filter_offset = offset;
    for encoded in filter_blocks(filter.lines()) {
        top.add_filter(9);
        offset += encoded.bytes.len() as u64;
        frames.push(Block::decode(&encoded.bytes, encoded.len_bytes).expect("encoded bytes are decoded"));
    }
    let footer = footer_of(builder.blocks(), [data_end, filter_offset, offset]);
    let decoded = Top::decode(&top.encode(filter.lines().len()), &footer).expect("encoded bytes are decoded");
    assert_eq!((decoded.smallest(), decoded.largest()), (&smallest[..], &largest[..]));
    must_be_contiguous(&decoded, &footer);
    must_lead(&decoded, &frames, &keys, &builder);
}

fn must_lead(top: &Top, frames: &[Frame], keys: &[Vec<u8>], builder: &IndexBuilder) {
    let block_of = |number: usize| Block::of(&frames[number - top.index_block(0)]);
    for number in top.index_block(0)..top.blocks() {
        let role = top.role(number).expect("the block is no data block");
        top.check(role, block_of(number)).expect("a block as it was written");
        match role {
            Role::Index(_) => assert!(is_searchable(block_of(number))),
            Role::Filter(_) => assert!(!lines_in(block_of(number)).is_empty()),
        }
    }
    let places: Vec<BlockHandle> = builder.entries().map(|(handle, _)| handle).collect();
    for key in keys.iter().step_by(keys.len().div_ceil(MOST_PROBES)) {
        let hash = key_hash(key);
        assert!(top.may_contain(block_of(top.filter_block(hash)), hash), "a filter forgets a key");
        let index = block_of(top.index_block(top.find(key).expect("a key that is there")));
        let first = keys.partition_point(|other| other < key);
        assert_eq!(handle_in(index, index.lower_bound(key)), Some(places[first]), "{key:?}");
    }
}

/// The footer: an accepted footer is consistent and has one encoding.
pub fn footer(data: &[u8]) {
    let Some((way, rest)) = data.split_first() else { return };
    let mut bytes = rest.to_vec();
    if way % 2 == 1 {
        bytes.resize(FOOTER_BYTES - 4, 0);
        let crc = crc32fast::hash(&bytes);
        bytes.put_u32(crc);
    }
    let Ok((footer, crc)) = Footer::decode(&bytes, Path::new("fuzzed"), 0) else { return };
    let (mut again, _) = footer.encode();
    // The reserved bytes, which the reader ignores.
    again[128..].copy_from_slice(&bytes[128..]);
    assert!(again == bytes, "a footer has one form");
    assert_eq!(crc, crc32fast::hash(&bytes[..FOOTER_BYTES - 4]));
    let Layout { index, filter, top, .. } = footer.layout;
    assert!(index < filter && filter < top.offset);
    assert!(top.offset + top.len_bytes <= footer.offset());
}

/// The parts of a segment file as inputs: the name of the function above, and the bytes. Empty if the file is no segment.
#[must_use]
pub fn parts(file: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    split(file).unwrap_or_default()
}

fn split(file: &[u8]) -> Option<Vec<(&'static str, Vec<u8>)>> {
    let tail = file.get(file.len().checked_sub(FOOTER_BYTES)?..)?;
    let footer = Footer::decode(tail, Path::new("specimen"), 0).ok()?.0;
    let part = |offset: u64, len: u64| {
        let start = usize::try_from(offset).ok()?;
        file.get(start..start.checked_add(usize::try_from(len).ok()?)?)
    };
    let with = |way: u8, bytes: &[u8]| [&[way], bytes].concat();
    let Layout { index, filter, top, .. } = footer.layout;
    let top_bytes = part(top.offset, top.len_bytes)?;
    let decoded = Top::decode(top_bytes, &footer).ok()?;
    let mut words = footer.blocks.to_le_bytes().to_vec();
    [index, filter, top.offset].iter().for_each(|word| words.put_u64(*word));
    let stored = |number: usize| {
        let handle = decoded.handle(number)?;
        part(handle.offset, handle.len_bytes as u64)
    };
    let index_block = stored(decoded.index_block(0))?;
    let first = handle_in(Block::of(&Block::decode(index_block, index_block.len()).ok()?), 0)?;
    let block = part(0, first.len_bytes as u64)?;
    let mut parts = vec![
        ("block", with(0, block)),
        ("block", with(0, index_block)),
        ("block", with(0, stored(decoded.filter_blocks().start)?)),
        ("top", with(0, &[&words[..], top_bytes].concat())),
        ("footer", with(1, &tail[..128])),
    ];
    if block.get(4) == Some(&CODEC_NONE) {
        parts.push(("block", with(1, &block[8..])));
        parts.push(("block", with(2, &block[8..])));
    }
    Some(parts)
}
