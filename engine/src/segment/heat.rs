//! Which blocks of a segment are hot, and bringing blocks into the cache that will be: for a compaction.
//!
//! Only of segments whose index is pinned: where it is paged, memory is too small for that.

use std::ops::Range;

use super::block::Block;
use super::index::{Index, Part};
use super::reader::{Form, Segment, first_block};
use crate::base::error::Result;
use crate::memory::cache::{Use, is_hot};

impl Segment {
    fn pinned(&self) -> Option<&Index> {
        match &self.form {
            Form::Pinned { index, .. } => Some(index),
            Form::Paged(_) => None,
        }
    }

    /// Calls `each` for the blocks that are in the cache and were used there: with bounds of their keys, and the bytes that
    /// they take on the device.
    pub(crate) fn each_hot_block(&self, mut each: impl FnMut(&[u8], &[u8], u64)) {
        let Some(index) = self.pinned() else { return };
        for number in (0..index.blocks()).filter(|&number| is_hot(&self.slots, number)) {
            let before = number.checked_sub(1).map(|before| index.separator(before));
            let from = before.unwrap_or(self.meta.smallest.as_ref());
            each(from, index.separator(number), self.block_bytes(number));
        }
    }

    /// Blocks that can be brought: numbers below.
    pub(crate) fn blocks_to_bring(&self) -> usize {
        self.pinned().map_or(0, Index::blocks)
    }

    /// The one of them in which the first entry at or behind `key` stands; the first, if there is none.
    pub(crate) fn block_of(&self, key: &[u8]) -> usize {
        self.pinned().and_then(|index| first_block(index, key)).unwrap_or(0)
    }

    /// Bytes that it takes on the device.
    pub(crate) fn block_bytes(&self, number: usize) -> u64 {
        let handle = self.pinned().and_then(|index| index.handle(number));
        handle.map_or(0, |handle| handle.padded_bytes() as u64)
    }

    /// Puts rising blocks together that stand side by side, as long as one read takes at most `limit_bytes`.
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
                let extent = self.extent(Part::whole(index), &longer);
                if extent.is_ok_and(|(_, len_bytes)| len_bytes <= limit_bytes) {
                    *piece = longer;
                    continue;
                }
            }
            pieces.push(block..block + 1);
        }
        pieces
    }

    /// Reads these blocks in one go and puts them into the cache as what is wanted.
    ///
    /// # Errors
    /// The read failed, or a block is damaged; those before it are in the cache.
    pub(crate) fn bring(&self, blocks: &Range<usize>) -> Result<()> {
        let Some(index) = self.pinned() else { return Ok(()) };
        let extent = self.extent(Part::whole(index), blocks)?;
        let span = self.read_span(blocks.clone(), extent, None)?;
        for number in blocks.clone() {
            let Some(handle) = index.handle(number) else { break };
            let frame = self.decode(number, &handle, &span)?;
            let charged = (&frame, Block::of(&frame).memory_bytes());
            self.cache.insert(&self.slots, number, charged, Use::Warm);
        }
        Ok(())
    }
}
