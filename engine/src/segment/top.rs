//! The top describes the index and filter blocks: their offsets, and the keys and lines in each. It is in memory while the
//! segment is open and paged. If index and filter are pinned, it is only read to check and to join them.
//!
//! ```text
//!   OFFSET  SIZE  FIELD (all integers little-endian; p index blocks, q filter blocks)
//!        0     i  an index, as `index` draws it, of the index blocks: a block's separator is that of its last data block
//!        i    4p  where the first data block of each index block starts, in units of 512 bytes
//!      ...     1  kind of the filter: 1 = blocked Bloom (see `filter`)
//!      ...     3  zero
//!      ...     4  b, number of lines of the filter, at least 1
//!      ...    4q  checksums of the filter blocks, padding included; q = b / 60, rounded up
//! ```
//!
//! Filter blocks begin where the index blocks end, 4096 bytes apart. The smallest key of the segment is in the index.
//!
//! Invariants, checked when decoding: index blocks follow the data blocks, filter blocks the index blocks, and the top
//! the filter blocks, without a gap. [`Top::check`] checks that a block is the one that the top describes.
#![deny(clippy::indexing_slicing)]

use super::block::Block;
use super::filter::{KIND_BLOCKED_BLOOM, line_from, line_of, may_be_in};
use super::footer::{Footer, Layout, Section, TOP_PART, UNIT_BYTES};
use super::index::{BlockHandle, Index, IndexBuilder};
use super::pages::{
    PAGE_BYTES, PAGE_LINES, PIECE_BLOCKS, filter_block_bytes, handle_in, lines_in, separator_in,
};
use crate::base::coding::{Put, Reader};

/// Collects index and filter blocks in order.
#[derive(Debug, Default)]
pub(super) struct TopBuilder {
    index: IndexBuilder,
    starts: Vec<u32>,
    crcs: Vec<u32>,
}

impl TopBuilder {
    /// The segment's first key.
    pub(super) fn set_smallest(&mut self, key: &[u8]) {
        self.index.set_smallest(key);
    }

    /// The next index block, the separator of its last data block, and the handle of its first data block.
    pub(super) fn add_index(&mut self, handle: BlockHandle, separator: &[u8], first: BlockHandle) {
        self.index.add(handle, separator, None);
        self.starts.push(first.units());
    }

    /// The next filter block.
    pub(super) fn add_filter(&mut self, crc: u32) {
        self.crcs.push(crc);
    }

    pub(super) fn encode(&self, lines: usize) -> Vec<u8> {
        let mut out = self.index.encode();
        for &start in &self.starts {
            out.put_u32(start);
        }
        out.extend_from_slice(&[KIND_BLOCKED_BLOOM, 0, 0, 0]);
        out.put_u32(u32::try_from(lines).expect("clamped when built"));
        for &crc in &self.crcs {
            out.put_u32(crc);
        }
        out
    }
}

/// The content of a block behind the data blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// This piece of the index.
    Index(usize),
    /// This page of the filter.
    Filter(usize),
}

/// The decoded top.
#[derive(Debug)]
pub(super) struct Top {
    /// The index over the index blocks.
    index: Index,
    /// Offset of the first data block of each, in units.
    starts: Box<[u32]>,
    data_blocks: usize,
    /// End of the data blocks.
    data_end: u64,
    /// Offset of the filter blocks.
    filter_offset: u64,
    lines: usize,
    /// Checksums of the filter blocks.
    crcs: Box<[u32]>,
}

impl Top {
    /// Decodes the top of a segment with this footer. The error names the check that failed.
    pub(super) fn decode(bytes: &[u8], footer: &Footer) -> Result<Top, &'static str> {
        let Layout {
            index: data_end, filter: filter_offset, top: Section { offset: top_offset, .. }, ..
        } = footer.layout;
        let mut reader = Reader::new(bytes);
        let index = Index::read(&mut reader, data_end..filter_offset)?;
        let data_blocks = usize::try_from(footer.blocks).map_err(|_| "number of blocks")?;
        if index.blocks() != data_blocks.div_ceil(PIECE_BLOCKS) {
            return Err("number of index blocks");
        }
        let starts = words(&mut reader, index.blocks()).ok_or("length of the top")?;
        match reader.take(4) {
            Some([KIND_BLOCKED_BLOOM, 0, 0, 0]) => {}
            _ => return Err("filter kind"),
        }
        let lines = reader.u32().and_then(|lines| usize::try_from(lines).ok()).ok_or("length of the top")?;
        let crcs = words(&mut reader, lines.div_ceil(PAGE_LINES)).ok_or("length of the top")?;
        if lines == 0 || !reader.is_empty() {
            return Err("length of the top");
        }
        if starts.first() != Some(&0) {
            return Err("block places in the top");
        }
        let top = Top { index, starts, data_blocks, data_end, filter_offset, lines, crcs };
        let last = top.handle(top.blocks() - 1).ok_or("number of filter blocks")?;
        let is_counted = u32::try_from(top.blocks()).is_ok_and(|blocks| blocks < TOP_PART);
        if !is_counted || last.offset + last.padded_bytes() as u64 != top_offset {
            return Err("number of filter blocks");
        }
        Ok(top)
    }

    /// The segment's first key.
    pub(super) fn smallest(&self) -> &[u8] {
        self.index.smallest()
    }

    /// The segment's last key.
    pub(super) fn largest(&self) -> &[u8] {
        self.index.separator(self.index.blocks().saturating_sub(1))
    }

    /// Number of blocks of all kinds.
    pub(super) fn blocks(&self) -> usize {
        self.data_blocks + self.pieces() + self.crcs.len()
    }

    /// Number of lines of the filter.
    pub(super) fn lines(&self) -> usize {
        self.lines
    }

    /// Number of index blocks.
    pub(super) fn pieces(&self) -> usize {
        self.index.blocks()
    }

    /// The numbers of the filter blocks in the file.
    pub(super) fn filter_blocks(&self) -> std::ops::Range<usize> {
        self.data_blocks + self.pieces()..self.blocks()
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        let words = size_of_val(&*self.starts) + size_of_val(&*self.crcs);
        self.index.memory_bytes() + (words + size_of::<Top>() - size_of::<Index>()) as u64
    }

    /// The first piece that may hold the block of a key `>= key`; `None` if all keys are smaller.
    pub(super) fn find(&self, key: &[u8]) -> Option<usize> {
        self.index.find(key)
    }

    /// The number of an index block in the file.
    pub(super) fn index_block(&self, piece: usize) -> usize {
        self.data_blocks + piece
    }

    /// The filter block with the line of a hash.
    pub(super) fn filter_block(&self, hash: u64) -> usize {
        self.data_blocks + self.pieces() + line_of(hash, self.lines) / PAGE_LINES
    }

    /// The separator of the last block before a piece; empty before the first.
    pub(super) fn separator_before(&self, piece: usize) -> &[u8] {
        piece.checked_sub(1).map_or(&[], |before| self.index.separator(before))
    }

    /// The content of block `number`; `None` if it is a data block, or there is none.
    pub(super) fn role(&self, number: usize) -> Option<Role> {
        let piece = number.checked_sub(self.data_blocks)?;
        match piece.checked_sub(self.pieces()) {
            None => Some(Role::Index(piece)),
            Some(page) => (page < self.crcs.len()).then_some(Role::Filter(page)),
        }
    }

    /// The handle of block `number`; `None` if it is a data block, or there is none.
    pub(super) fn handle(&self, number: usize) -> Option<BlockHandle> {
        match self.role(number)? {
            Role::Index(piece) => self.index.handle(piece),
            Role::Filter(page) => Some(BlockHandle {
                offset: self.filter_offset + page as u64 * PAGE_BYTES,
                len_bytes: filter_block_bytes(self.lines_of(page)),
                crc: *self.crcs.get(page)?,
            }),
        }
    }

    /// Whether a key with this hash may be in the segment, by its filter block.
    pub(super) fn may_contain(&self, block: Block<'_>, hash: u64) -> bool {
        let line = lines_in(block).get(line_of(hash, self.lines) % PAGE_LINES);
        line.is_none_or(|line| may_be_in(&line_from(line), hash))
    }

    /// Checks a block that passed its checksum against the top. The error names the check that failed.
    pub(super) fn check(&self, role: Role, block: Block<'_>) -> Result<(), &'static str> {
        match role {
            Role::Index(piece) => self.check_piece(piece, block),
            Role::Filter(page) => {
                let fits = block.len() == 1
                    && lines_in(block).len() == self.lines_of(page)
                    && block.value(0).len() == size_of_val(lines_in(block));
                if fits { Ok(()) } else { Err("length of a filter block") }
            }
        }
    }

    fn check_piece(&self, piece: usize, block: Block<'_>) -> Result<(), &'static str> {
        let first = piece * PIECE_BLOCKS;
        if block.len() != (self.data_blocks - first).min(PIECE_BLOCKS) {
            return Err("number of entries in an index block");
        }
        let mut offset = self.start(piece);
        for i in 0..block.len() {
            let handle = handle_in(block, i).ok_or("block places in an index block")?;
            if handle.offset != offset || handle.len_bytes == 0 {
                return Err("block places in an index block");
            }
            offset += handle.padded_bytes() as u64;
            if i > 0 && block.suffix(i) < block.suffix(i - 1) {
                return Err("order of the separators in an index block");
            }
        }
        if offset != self.start(piece + 1) {
            return Err("block places in an index block");
        }
        let mut key = Vec::new();
        separator_in(block, 0, &mut key);
        if key.as_slice() < self.separator_before(piece) {
            return Err("order of the separators in an index block");
        }
        separator_in(block, block.len() - 1, &mut key);
        if key != self.index.separator(piece) {
            return Err("last separator of an index block");
        }
        if piece == 0 {
            separator_in(block, 0, &mut key);
            if self.smallest() > key.as_slice() {
                return Err("smallest key in the index");
            }
        }
        Ok(())
    }

    /// Offset of the first data block of a piece. For the number after the last piece, the end of the data blocks.
    fn start(&self, piece: usize) -> u64 {
        self.starts.get(piece).map_or(self.data_end, |&units| u64::from(units) * UNIT_BYTES as u64)
    }

    /// Lines of a filter block.
    fn lines_of(&self, page: usize) -> usize {
        self.lines.saturating_sub(page * PAGE_LINES).min(PAGE_LINES)
    }
}

fn words(reader: &mut Reader<'_>, count: usize) -> Option<Box<[u32]>> {
    let (words, _) = reader.take(count.checked_mul(4)?)?.as_chunks::<4>();
    Some(words.iter().map(|word| u32::from_le_bytes(*word)).collect())
}
