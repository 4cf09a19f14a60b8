//! The index of a segment: for each block its last key (shortened), its offset, length and checksum.
//!
//! The separator of a block is the shortest key that is `>=` every key in it and `<` every key of the next block. So the only
//! block that may hold a key is the first one whose separator is `>=` the key. If the entries of one key span two blocks, the
//! separator is that key, and a reader continues in the next block. The separator of the last block is the segment's largest
//! key.
//!
//! On disk the entries of data blocks are in index blocks (`pages.rs`), and the form drawn here is that of the index over
//! those, in the top. In memory a pinned index, and the part of an index that a cursor uses, have this form, too.
//!
//! ```text
//!   OFFSET  SIZE  FIELD (all integers little-endian; n blocks)
//!        0     4  n, at least 1
//!        4     4  f, length of the smallest key
//!        8     4  h, length of all separators together
//!       12     4  zero
//!       16    4n  where the block starts, in units of 512 bytes
//!      ...    4n  length of the stored block in bytes, without its padding
//!      ...    4n  checksum of the stored block, padding included (see `footer`)
//!      ...    4n  where the separator ends in the last column
//!      ...     f  the smallest key of the segment
//!      ...     h  the separators
//! ```
//!
//! In memory there is also a column of `u64` heads: the 8 bytes of each separator after the prefix that all share.
//!
//! Invariants, checked when decoding: blocks follow each other without a gap; separators do not fall; every separator is
//! a possible key.
#![deny(clippy::indexing_slicing)]

use std::ops::Range;

use super::block::{common_prefix, partition};
use super::footer::UNIT_BYTES;
use crate::base::coding::{Put, Reader};
use crate::base::key::{MAX_KEY_BYTES, key_head};

const HEADER_BYTES: usize = 16;
/// Heads in a line of memory.
const GROUP: usize = 8;

/// The shortest key that is `>= last` and `< next`; `last` itself if they are the same key.
fn separator<'a>(last: &'a [u8], next: &[u8], shortened: &'a mut Vec<u8>) -> &'a [u8] {
    let common = common_prefix(last, next);
    for (i, &byte) in last.iter().enumerate().skip(common) {
        // At the first difference one more must stay below `next`, or at least not end there.
        let limit = if i == common { next.get(i).copied().unwrap_or(0) } else { u8::MAX };
        let Some(raised) = byte.checked_add(1) else { continue };
        let below = raised < limit || i > common || next.len() > common + 1 && raised == limit;
        if below && i + 1 < last.len() {
            shortened.clear();
            shortened.extend_from_slice(last.get(..i).unwrap_or_default());
            shortened.push(raised);
            return shortened;
        }
    }
    last
}

/// Offset, length and checksum of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockHandle {
    /// First byte in the file.
    pub(super) offset: u64,
    /// Stored bytes without padding.
    pub(super) len_bytes: usize,
    /// Checksum of the padded bytes.
    pub(super) crc: u32,
}

impl BlockHandle {
    /// Its offset in the units of the disk format.
    pub(super) fn units(&self) -> u32 {
        u32::try_from(self.offset / UNIT_BYTES as u64).expect("a segment is smaller than 2 TiB")
    }

    /// Stored bytes with padding.
    pub(super) fn padded_bytes(&self) -> usize {
        self.len_bytes.next_multiple_of(UNIT_BYTES)
    }
}

/// A handle from its three numbers on disk.
pub(super) fn handle_of(units: u32, length: u32, crc: u32) -> BlockHandle {
    let len_bytes = usize::try_from(length).unwrap_or(usize::MAX);
    BlockHandle { offset: u64::from(units) * UNIT_BYTES as u64, len_bytes, crc }
}

/// Collects blocks in order.
#[derive(Debug, Default)]
pub(super) struct IndexBuilder {
    smallest: Vec<u8>,
    units: Vec<u32>,
    lengths: Vec<u32>,
    crcs: Vec<u32>,
    ends: Vec<u32>,
    separators: Vec<u8>,
    scratch: Vec<u8>,
}

impl IndexBuilder {
    /// The segment's first key.
    pub(super) fn set_smallest(&mut self, key: &[u8]) {
        self.smallest = key.to_vec();
    }

    /// Adds the next block. `next` is the first key after it, `None` at the end of the segment.
    pub(super) fn add(&mut self, handle: BlockHandle, last: &[u8], next: Option<&[u8]>) {
        self.units.push(handle.units());
        self.lengths.push(u32::try_from(handle.len_bytes).expect("a block is smaller than 4 GiB"));
        self.crcs.push(handle.crc);
        let separator = match next {
            Some(next) => separator(last, next, &mut self.scratch),
            None => last,
        };
        self.separators.extend_from_slice(separator);
        self.ends.push(u32::try_from(self.separators.len()).expect("separators take less than 4 GiB"));
    }

    /// Adds a block from disk with its separator. `None`: the columns cannot hold it.
    pub(super) fn push(&mut self, handle: BlockHandle, separator: &[u8]) -> Option<()> {
        let units = u32::try_from(handle.offset / UNIT_BYTES as u64).ok()?;
        let length = u32::try_from(handle.len_bytes).ok()?;
        let end = u32::try_from(self.separators.len().checked_add(separator.len())?).ok()?;
        self.separators.extend_from_slice(separator);
        self.units.push(units);
        self.lengths.push(length);
        self.crcs.push(handle.crc);
        self.ends.push(end);
        Some(())
    }

    /// Length of all separators.
    pub(super) fn separators_bytes(&self) -> u32 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Handle and separator of each block.
    pub(super) fn entries(&self) -> impl Iterator<Item = (BlockHandle, &[u8])> {
        let starts = std::iter::once(&0).chain(&self.ends);
        let columns = self.units.iter().zip(&self.lengths).zip(&self.crcs).zip(starts.zip(&self.ends));
        columns.map(|(((units, length), crc), (start, end))| {
            let at = |end: &u32| usize::try_from(*end).unwrap_or(usize::MAX);
            let separator = self.separators.get(at(start)..at(end)).unwrap_or_default();
            (handle_of(*units, *length, *crc), separator)
        })
    }

    /// The collected blocks as an index that can be searched. The caller has checked them.
    pub(super) fn into_index(self) -> Index {
        let mut index = Index {
            units: self.units,
            lengths: self.lengths,
            crcs: self.crcs,
            ends: self.ends,
            separators: self.separators.into(),
            smallest: self.smallest.into(),
            ..Index::default()
        };
        for column in [&mut index.units, &mut index.lengths, &mut index.crcs, &mut index.ends] {
            column.shrink_to_fit();
        }
        index.find_heads();
        index
    }

    /// Number of blocks.
    pub(super) fn blocks(&self) -> u32 {
        u32::try_from(self.units.len()).expect("fewer blocks than units")
    }

    /// Length of the encoded index.
    pub(super) fn len_bytes(&self) -> usize {
        HEADER_BYTES + 16 * self.units.len() + self.smallest.len() + self.separators.len()
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.len_bytes());
        out.put_u32(self.blocks());
        out.put_u32(u32::try_from(self.smallest.len()).expect("at most MAX_KEY_BYTES"));
        out.put_u32(self.ends.last().copied().unwrap_or(0));
        out.put_u32(0);
        for column in [&self.units, &self.lengths, &self.crcs, &self.ends] {
            for &number in column {
                out.put_u32(number);
            }
        }
        out.extend_from_slice(&self.smallest);
        out.extend_from_slice(&self.separators);
        out
    }
}

/// The decoded index.
#[derive(Debug, Default)]
pub(super) struct Index {
    heads: Vec<u64>,
    /// The last head of each [`GROUP`]. These stay in the processor's first caches, so a search touches one more line. A binary
    /// search of all heads would touch four or five.
    group_ends: Vec<u64>,
    units: Vec<u32>,
    lengths: Vec<u32>,
    crcs: Vec<u32>,
    ends: Vec<u32>,
    separators: Box<[u8]>,
    prefix_len: usize,
    smallest: Box<[u8]>,
}

impl Index {
    /// Decodes an index from the reader. Its blocks are at `places` in the file. The error names the failed check.
    pub(super) fn read(reader: &mut Reader<'_>, places: Range<u64>) -> Result<Index, &'static str> {
        let mut index = Index::columns(reader).ok_or("index length")?;
        index.check(places)?;
        index.find_heads();
        Ok(index)
    }

    /// Decodes an index of blocks up to `blocks_end`. The bytes must contain nothing else.
    #[cfg(any(test, fuzzing))]
    pub(super) fn decode(bytes: &[u8], blocks_end: u64) -> Result<Index, &'static str> {
        let mut reader = Reader::new(bytes);
        let index = Index::read(&mut reader, 0..blocks_end)?;
        if reader.is_empty() { Ok(index) } else { Err("index length") }
    }

    /// Computes the columns that exist in memory only.
    fn find_heads(&mut self) {
        let (first, last) = (self.separator(0), self.separator(self.blocks().saturating_sub(1)));
        self.prefix_len = common_prefix(first, last);
        self.heads = (0..self.blocks()).map(|block| key_head(self.rest(block))).collect();
        self.group_ends = self.heads.chunks(GROUP).filter_map(|group| group.last().copied()).collect();
    }

    /// Number of blocks; 0 only in an empty index.
    pub(super) fn blocks(&self) -> usize {
        self.units.len()
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        let keys = self.separators.len() + self.smallest.len();
        Index::bytes_for(self.blocks() as u64, keys as u64)
    }

    /// Memory of an index of `blocks` blocks, with `keys_bytes` of separators and smallest key.
    pub(super) fn bytes_for(blocks: u64, keys_bytes: u64) -> u64 {
        24 * blocks + 8 * blocks.div_ceil(GROUP as u64) + keys_bytes + size_of::<Index>() as u64
    }

    /// The segment's first key.
    pub(super) fn smallest(&self) -> &[u8] {
        &self.smallest
    }

    /// The first block that may hold a key `>= key`; `None` if all keys are smaller.
    pub(super) fn find(&self, key: &[u8]) -> Option<usize> {
        let prefix = self.separators.get(..self.prefix_len).unwrap_or_default();
        let Some(rest) = key.strip_prefix(prefix) else {
            // The key is before all blocks, or behind them.
            return (key < prefix).then_some(0);
        };
        let head = key_head(rest);
        let tie = self.first_head_from(head);
        let ties = self.heads.get(tie..).unwrap_or_default();
        let block = if ties.first() == Some(&head) {
            let ties = ties.partition_point(|&other| other == head);
            tie + partition(ties, |i| self.rest(tie + i) < rest)
        } else {
            // The usual case: the heads differ within their 8 bytes.
            tie
        };
        (block < self.blocks()).then_some(block)
    }

    /// The first block whose head is not below `head`.
    #[inline]
    fn first_head_from(&self, head: u64) -> usize {
        let group = self.group_ends.partition_point(|&last| last < head);
        let heads = self.heads.get(group * GROUP..).unwrap_or_default();
        // Compares all of them, without a branch that can be mispredicted.
        group * GROUP + heads.iter().take(GROUP).map(|&other| usize::from(other < head)).sum::<usize>()
    }

    /// The handle of block `block`; `None` past the end.
    pub(super) fn handle(&self, block: usize) -> Option<BlockHandle> {
        Some(handle_of(*self.units.get(block)?, *self.lengths.get(block)?, *self.crcs.get(block)?))
    }

    /// The separator of a block: `>=` every key of the block, and `<` every key of the next one unless one key spans both. Empty
    /// past the end.
    pub(super) fn separator(&self, block: usize) -> &[u8] {
        let start = if block == 0 { 0 } else { self.end(block - 1) };
        self.separators.get(start..self.end(block)).unwrap_or_default()
    }

    fn end(&self, block: usize) -> usize {
        self.ends.get(block).and_then(|&end| usize::try_from(end).ok()).unwrap_or(0)
    }

    /// The separator without the shared prefix.
    fn rest(&self, block: usize) -> &[u8] {
        self.separator(block).get(self.prefix_len..).unwrap_or_default()
    }

    fn columns(reader: &mut Reader<'_>) -> Option<Index> {
        let blocks = usize::try_from(reader.u32()?).ok()?;
        let smallest_len = usize::try_from(reader.u32()?).ok()?;
        let separators_len = usize::try_from(reader.u32()?).ok()?;
        let zero = reader.u32()?;
        let mut column = || {
            let (words, _) = reader.take(blocks.checked_mul(4)?)?.as_chunks::<4>();
            Some(words.iter().map(|word| u32::from_le_bytes(*word)).collect::<Vec<u32>>())
        };
        let (units, lengths, crcs, ends) = (column()?, column()?, column()?, column()?);
        let smallest = reader.take(smallest_len)?.into();
        let separators = reader.take(separators_len)?.into();
        let index = Index { units, lengths, crcs, ends, separators, smallest, ..Index::default() };
        (zero == 0 && blocks > 0).then_some(index)
    }

    fn check(&self, places: Range<u64>) -> Result<(), &'static str> {
        let possible = |key: &[u8]| (1..=MAX_KEY_BYTES).contains(&key.len());
        let (mut offset, mut end) = (places.start, 0);
        for block in 0..self.blocks() {
            let handle = self.handle(block).ok_or("index columns")?;
            if handle.offset != offset || handle.len_bytes == 0 {
                return Err("block places in the index");
            }
            offset += handle.padded_bytes() as u64;
            if self.end(block) < end || !possible(self.separator(block)) {
                return Err("separator lengths in the index");
            }
            end = self.end(block);
            if block > 0 && self.separator(block) < self.separator(block - 1) {
                return Err("order of the separators in the index");
            }
        }
        if offset != places.end {
            return Err("block places in the index");
        }
        if end != self.separators.len() {
            return Err("separator lengths in the index");
        }
        if !possible(&self.smallest) || self.smallest.as_ref() > self.separator(0) {
            return Err("smallest key in the index");
        }
        Ok(())
    }
}

/// Index entries of consecutive data blocks, with their numbers in the segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    index: &'a Index,
    /// The number of the first block.
    first: usize,
    /// The separator of the block before the first; empty if there is none.
    before: &'a [u8],
}

impl<'a> Part<'a> {
    /// All blocks.
    #[inline]
    pub(super) fn whole(index: &'a Index) -> Part<'a> {
        Part { index, first: 0, before: &[] }
    }

    /// The blocks from `first` on. `before` is the separator of the block before `first`.
    pub(super) fn piece(index: &'a Index, first: usize, before: &'a [u8]) -> Part<'a> {
        Part { index, first, before }
    }

    /// The numbers of these blocks.
    #[inline]
    pub(super) fn blocks(self) -> Range<usize> {
        self.first..self.first + self.index.blocks()
    }

    /// The first block that may hold a key `>= key`; `None` if all keys are smaller.
    #[inline]
    pub(super) fn find(self, key: &[u8]) -> Option<usize> {
        self.index.find(key).map(|block| self.first + block)
    }

    /// The handle of block `number`; `None` if it is not one of these.
    pub(super) fn handle(self, number: usize) -> Option<BlockHandle> {
        self.index.handle(number.checked_sub(self.first)?)
    }

    /// The separator of block `number`, which is one of these.
    pub(super) fn separator(self, number: usize) -> &'a [u8] {
        number.checked_sub(self.first).map_or(&[], |block| self.index.separator(block))
    }

    /// The separator of the block before `number`, which is one of these; empty if that is the first of all.
    pub(super) fn separator_before(self, number: usize) -> &'a [u8] {
        if number == self.first { self.before } else { self.separator(number - 1) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::read::cursor_contract::runner;

    fn handle(offset: u64, len_bytes: usize) -> BlockHandle {
        BlockHandle { offset, len_bytes, crc: 0xfeed }
    }

    /// An index over one block per pair of (first, last) keys.
    fn build(blocks: &[(Vec<u8>, Vec<u8>)]) -> (Vec<u8>, u64) {
        let mut builder = IndexBuilder::default();
        builder.set_smallest(&blocks[0].0);
        let mut offset = 0;
        for (i, (_, last)) in blocks.iter().enumerate() {
            let handle = handle(offset, 700 + i);
            offset += handle.padded_bytes() as u64;
            builder.add(handle, last, blocks.get(i + 1).map(|next| next.0.as_slice()));
        }
        let bytes = builder.encode();
        assert_eq!(bytes.len(), builder.len_bytes());
        (bytes, offset)
    }

    fn separate(last: &[u8], next: &[u8]) -> Vec<u8> {
        separator(last, next, &mut Vec::new()).to_vec()
    }

    #[test]
    fn separators_are_short_and_lie_between() {
        assert_eq!(separate(b"abcdef", b"abxyz"), b"abd");
        assert_eq!(separate(b"abcdef", b"abd"), b"abce");
        assert_eq!(separate(b"abcdef", b"abde"), b"abd");
        assert_eq!(separate(b"abc", b"abcd"), b"abc");
        assert_eq!(separate(b"ab\xff\xffz1", b"ac"), b"ab\xff\xff{");
        assert_eq!(separate(b"same", b"same"), b"same");
    }

    fn short_key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(vec![0_u8, 1, 2, 0x7f, 0xfe, 0xff]), 1..14)
    }

    #[test]
    fn a_separator_lies_between_any_two_keys() {
        let result = runner(2000).run(&(short_key(), short_key()), |(a, b)| {
            let (last, next) = if a < b { (a, b) } else { (b, a) };
            let found = separate(&last, &next);
            prop_assert!(found >= last && found.len() <= last.len());
            prop_assert!(found < next || last == next);
            Ok(())
        });
        result.unwrap();
    }

    #[test]
    fn find_gives_the_first_block_that_may_hold_the_key() {
        let input = (prop::collection::vec(short_key(), 2..60), prop::collection::vec(short_key(), 1..40));
        let result = runner(256).run(&input, |(mut keys, probes)| {
            keys.sort();
            let blocks: Vec<_> =
                keys.chunks(2).map(|pair| (pair[0].clone(), pair[pair.len() - 1].clone())).collect();
            let (bytes, end) = build(&blocks);
            let index = Index::decode(&bytes, end).unwrap();
            prop_assert_eq!(index.smallest(), keys[0].as_slice());
            prop_assert_eq!(index.separator(blocks.len() - 1), keys[keys.len() - 1].as_slice());
            for probe in probes.iter().chain(&keys) {
                let found = index.find(probe);
                // The first block with a key >= probe is the found one, or the next one if the found one ends below probe.
                let exact = blocks.iter().position(|(_, last)| last >= probe);
                match (found, exact) {
                    (Some(found), Some(exact)) => {
                        prop_assert!(found <= exact && exact <= found + 1);
                        prop_assert!(
                            found == exact || !keys.contains(probe),
                            "an existing key is found directly"
                        );
                    }
                    (found, exact) => prop_assert_eq!(found, exact),
                }
            }
            Ok(())
        });
        result.unwrap();
    }

    #[test]
    fn any_bytes_are_an_index_or_an_error() {
        let input = (prop::collection::vec(any::<u8>(), 0..200), 0_u64..4096);
        let result = runner(2000).run(&input, |(bytes, end)| {
            let _ = Index::decode(&bytes, end);
            Ok(())
        });
        result.unwrap();
    }

    #[test]
    fn every_truncation_is_noticed_and_no_flipped_bit_panics() {
        let blocks: Vec<_> = (0..9_u8).map(|i| (vec![b'k', i, 1], vec![b'k', i, 9])).collect();
        let (bytes, end) = build(&blocks);
        assert!(Index::decode(&bytes, end).is_ok());
        assert!(Index::decode(&bytes, end + 512).is_err());
        for len in 0..bytes.len() {
            assert!(Index::decode(&bytes[..len], end).is_err(), "{len} bytes");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            if let Ok(index) = Index::decode(&bad, end) {
                for block in 0..10 {
                    let _ = index.find(&[b'k', block, 5]);
                    let _ = index.handle(usize::from(block));
                }
            }
        }
    }
}
