//! The hot blocks of a segment, and loading blocks into the cache that will be hot: for a compaction.
//!
//! Only for segments whose index is pinned: where it is paged, memory is too small for this.

use std::ops::Range;

use super::block::Block;
use super::index::{Index, Part};
use super::reader::{Form, Segment, first_block};
use crate::base::error::Result;
use crate::io::background::JobKind;
use crate::memory::cache::{Use, is_hot};

impl Segment {
    fn pinned(&self) -> Option<&Index> {
        match &self.form {
            Form::Pinned { index, .. } => Some(index),
            Form::Paged(_) => None,
        }
    }

    /// Calls `each` for the blocks that are in the cache and were used there, with bounds of their keys and their bytes on
    /// the device.
    pub(crate) fn each_hot_block(&self, mut each: impl FnMut(&[u8], &[u8], u64)) {
        let Some(index) = self.pinned() else { return };
        for number in (0..index.blocks()).filter(|&number| is_hot(&self.slots, number)) {
            let before = number.checked_sub(1).map(|before| index.separator(before));
            let from = before.unwrap_or(self.meta.smallest.as_ref());
            each(from, index.separator(number), self.block_bytes(number));
        }
    }

    /// The number of blocks that can be loaded.
    pub(crate) fn loadable_blocks(&self) -> usize {
        self.pinned().map_or(0, Index::blocks)
    }

    /// The block with the first entry at or behind `key`; the first block if there is no such entry.
    pub(crate) fn block_of(&self, key: &[u8]) -> usize {
        self.pinned().and_then(|index| first_block(index, key)).unwrap_or(0)
    }

    /// Bytes of a block on the device.
    pub(crate) fn block_bytes(&self, number: usize) -> u64 {
        let handle = self.pinned().and_then(|index| index.handle(number));
        handle.map_or(0, |handle| handle.padded_bytes() as u64)
    }

    /// Joins neighbours among rising blocks, as long as one read takes at most `limit_bytes`.
    pub(crate) fn pieces(
        &self,
        blocks: impl Iterator<Item = usize>,
        limit_bytes: usize,
    ) -> Vec<Range<usize>> {
        let mut pieces: Vec<Range<usize>> = Vec::new();
        let Some(index) = self.pinned() else { return pieces };
        for block in blocks {
            if let Some(piece) = pieces.last_mut().filter(|piece| piece.end == block) {
                let longer = piece.start..block + 1;
                let extent = self.extent(Part::whole(index), longer.clone());
                if extent.is_ok_and(|extent| extent.len_bytes <= limit_bytes) {
                    *piece = longer;
                    continue;
                }
            }
            pieces.push(block..block + 1);
        }
        pieces
    }

    /// Reads these blocks in one operation and puts them into the cache as blocks that are in use.
    ///
    /// # Errors
    /// The read failed, or a block is damaged; those before it are in the cache.
    pub(crate) fn load_into_cache(&self, blocks: &Range<usize>) -> Result<()> {
        let Some(index) = self.pinned() else { return Ok(()) };
        let window =
            self.read_window(Some(JobKind::Merge), self.extent(Part::whole(index), blocks.clone())?)?;
        for number in blocks.clone() {
            let Some(handle) = index.handle(number) else { break };
            let frame = self.decode(number, &handle, &window)?;
            let charged = (&frame, Block::of(&frame).memory_bytes());
            self.cache.insert(&self.slots, number, charged, Use::Warm);
        }
        Ok(())
    }
}
