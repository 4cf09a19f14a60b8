//! Walks the entries of one segment.
//!
//! It reads one block at a time and, once it has gone a few blocks forward, up to `reader::READ_AHEAD_BYTES` at once.
//!
//! Invariants: it holds at most one block and one span of read-ahead; after an error it stands nowhere.

use std::sync::Arc;

use super::block::Block;
use super::reader::{Segment, Span};
use crate::error::Result;
use crate::iter::Cursor;
use crate::key::Entry;

/// Consecutive blocks after which a cursor begins to read ahead.
const READ_AHEAD_AFTER_BLOCKS: u32 = 2;

impl Segment {
    /// A cursor over all entries. With `fill_cache` the blocks that it reads stay in the cache; without, it uses what
    /// is there and leaves no trace.
    pub(crate) fn cursor(self: &Arc<Self>, fill_cache: bool) -> SegmentCursor {
        SegmentCursor { segment: self.clone(), fill_cache, at: None, key: Vec::new(), steps: 0, ahead: None }
    }
}

/// A place in a segment; keeps the segment open.
pub(crate) struct SegmentCursor {
    segment: Arc<Segment>,
    fill_cache: bool,
    /// The block it stands in, its number, and the entry in it.
    at: Option<(Arc<Block>, usize, usize)>,
    /// The whole key of that entry.
    key: Vec<u8>,
    /// Blocks taken forward one after the other since the last seek.
    steps: u32,
    ahead: Option<Span>,
}

impl std::fmt::Debug for SegmentCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = self.at.as_ref().map(|(_, number, i)| (number, i));
        f.debug_struct("SegmentCursor")
            .field("path", &self.segment.path)
            .field("at", &at)
            .finish_non_exhaustive()
    }
}

impl SegmentCursor {
    fn load(&mut self, number: usize) -> Result<Arc<Block>> {
        let (segment, key) = (&self.segment, Segment::cache_key(number));
        let id = segment.meta.id;
        let cached = if self.fill_cache { segment.cache.get(id, key) } else { segment.cache.peek(id, key) };
        if let Some(block) = cached {
            return Ok(block);
        }
        let held = self.ahead.take().filter(|span| (span.first..span.end).contains(&number));
        let span = match held {
            Some(span) => span,
            None => segment.read_span(number, self.steps >= READ_AHEAD_AFTER_BLOCKS)?,
        };
        let block = Arc::new(segment.decode(number, &span)?);
        if number + 1 < span.end {
            self.ahead = Some(span);
        }
        if self.fill_cache {
            segment.cache.insert(id, key, &block, block.memory_bytes());
        }
        Ok(block)
    }

    /// Stands on entry `i` of a block.
    fn stand(&mut self, block: Arc<Block>, number: usize, i: usize) {
        self.key.clear();
        self.key.extend_from_slice(block.prefix());
        self.key.extend_from_slice(block.suffix(i));
        self.at = Some((block, number, i));
    }

    /// Stands on the first entry of block `number`, or past the end.
    fn first_of(&mut self, number: usize) -> Result<()> {
        if number < self.segment.index.blocks() {
            let block = self.load(number)?;
            self.stand(block, number, 0);
        }
        Ok(())
    }

    /// Stands on the last entry of the block before `number`, or past the front.
    fn last_before(&mut self, number: usize) -> Result<()> {
        if let Some(number) = number.checked_sub(1) {
            let block = self.load(number)?;
            let last = block.len() - 1;
            self.stand(block, number, last);
        }
        Ok(())
    }
}

impl Cursor for SegmentCursor {
    fn seek(&mut self, key: &[u8]) -> Result<()> {
        self.at = None;
        self.steps = 0;
        let Some(number) = self.segment.index.find(key) else { return Ok(()) };
        let block = self.load(number)?;
        let i = block.lower_bound(key);
        if i < block.len() {
            self.stand(block, number, i);
            return Ok(());
        }
        // The key lies between the block's last key and its separator.
        self.first_of(number + 1)
    }

    fn seek_before(&mut self, key: Option<&[u8]>) -> Result<()> {
        self.at = None;
        self.steps = 0;
        let Some((key, number)) = key.and_then(|key| Some((key, self.segment.index.find(key)?))) else {
            return self.last_before(self.segment.index.blocks());
        };
        let block = self.load(number)?;
        match block.lower_bound(key).checked_sub(1) {
            Some(i) => {
                self.stand(block, number, i);
                Ok(())
            }
            None => self.last_before(number),
        }
    }

    fn next(&mut self) -> Result<()> {
        let Some((block, number, i)) = self.at.take() else { return Ok(()) };
        if i + 1 < block.len() {
            self.key.truncate(block.prefix().len());
            self.key.extend_from_slice(block.suffix(i + 1));
            self.at = Some((block, number, i + 1));
            return Ok(());
        }
        self.steps = self.steps.saturating_add(1);
        self.first_of(number + 1)
    }

    fn prev(&mut self) -> Result<()> {
        let Some((block, number, i)) = self.at.take() else { return Ok(()) };
        if i > 0 {
            self.stand(block, number, i - 1);
            return Ok(());
        }
        self.last_before(number)
    }

    fn entry(&self) -> Option<Entry<'_>> {
        let (block, _, i) = self.at.as_ref()?;
        Some(Entry { key: &self.key, seq: block.seq(*i), kind: block.kind(*i), value: block.value(*i) })
    }
}
