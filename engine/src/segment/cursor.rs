//! Walks the entries of one segment in order.
//!
//! ```text
//!                 seek, seek_before                next, prev within the block: columns and suffix
//!   no entry ------------------------> at an entry ----------------------------------------------+
//!      ^                                  |    ^                                                 |
//!      |  past either end, or an error    |    +---- next, prev to another block: source, key ---+
//!      +----------------------------------+
//! ```
//!
//! The state at an entry is the block, the number of the block, the index of the entry in it, the columns of the entry, and
//! its whole key. The blocks come from a [`BlockSource`], which reads ahead of the walk.
//!
//! A step within a block is the hot path of scans and merges: it decodes one entry and copies one suffix. While it does so,
//! memory is asked for the entry that comes [`PREFETCH_DISTANCE`] steps later.
//!
//! Invariant: after an error the cursor is at no entry.

use std::ops::Range;
use std::sync::Arc;

use aio::File;

use super::block::{Block, EntryAt, Frame};
use super::block_source::BlockSource;
use super::clip::{clipped_before, clipped_from, counted};
use super::key_buf::KeyBuf;
use super::reader::Segment;
use crate::base::error::Result;
use crate::base::key::Entry;
use crate::base::planted::{Bug, planted};
use crate::base::range::KeyBounds;
use crate::io::files::Files;
use crate::io::lane::{Lane, Ticket};
use crate::io::read_stream::Extent;
use crate::read::cursor::{Cursor, Direction, Target};

/// Memory is asked for an entry this many steps before it is decoded.
const PREFETCH_DISTANCE: usize = 4;

impl Segment {
    /// A cursor over all entries. With `fill_cache` the blocks that it reads stay in the cache. Without, it uses the blocks
    /// that are there, leaves the cache as it is, and reads full windows from the beginning, since it goes to the end.
    pub(crate) fn cursor(self: &Arc<Self>, fill_cache: bool) -> SegmentCursor {
        SegmentCursor::new(BlockSource::of_scan(self, fill_cache))
    }

    /// A cursor for an input of a job: as one without `fill_cache`, on the context of the job.
    pub(crate) fn job_cursor(self: &Arc<Self>, lane: &Arc<Lane>) -> SegmentCursor {
        SegmentCursor::new(BlockSource::of_job(self, lane))
    }

    /// Asks memory for the entries around `at` of a block at which a cursor arrives, for the front of the next block, and
    /// for the cache slot of the one behind that.
    fn prefetch_around(&self, block: Block<'_>, (number, at): (usize, usize), way: Direction) {
        let (soon, next, later) = match way {
            Direction::Forward => (at + 1..at + PREFETCH_DISTANCE, number + 1, number + 2),
            Direction::Backward => {
                let soon = at.saturating_sub(PREFETCH_DISTANCE)..at;
                (soon, number.wrapping_sub(1), number.wrapping_sub(2))
            }
        };
        soon.for_each(|entry| block.prefetch_front(entry));
        self.slots.look(next, Block::prefetch);
        self.slots.prefetch(later);
    }
}

/// A position in a segment. Keeps the segment open.
pub(crate) struct SegmentCursor {
    source: BlockSource,
    /// The keys inside which entries count; `None`: all.
    clip: Option<Arc<KeyBounds>>,
    /// The block of the entry; `None` when the cursor is at no entry.
    block: Option<Frame>,
    /// The number of that block.
    number: usize,
    /// The entries of the block that count: all of them, unless a bound of the clip lies in it.
    counted: Range<usize>,
    /// The index of the entry in it.
    at: usize,
    /// The columns of the entry.
    entry: EntryAt,
    key: KeyBuf,
    /// Entries of the block that are the only versions of their keys, as the block alone shows: none if it holds two
    /// versions of a key, else all but the first and the last. See [`SegmentCursor::is_sole_at_edge`].
    sole: Range<usize>,
}

impl std::fmt::Debug for SegmentCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = self.block.as_ref().map(|_| (self.number, self.at));
        f.debug_struct("SegmentCursor")
            .field("path", &self.source.segment().path)
            .field("at", &at)
            .finish_non_exhaustive()
    }
}

impl SegmentCursor {
    fn new(source: BlockSource) -> SegmentCursor {
        SegmentCursor {
            source,
            clip: None,
            block: None,
            number: 0,
            counted: 0..0,
            at: 0,
            entry: EntryAt::NONE,
            key: KeyBuf::default(),
            sole: 0..0,
        }
    }

    /// Becomes a cursor over a part of another segment that is at no entry; buffers and direction stay.
    pub(crate) fn change_segment(&mut self, segment: &Arc<Segment>, clip: Option<&Arc<KeyBounds>>) {
        self.source.change_segment(segment);
        self.clip = clip.cloned();
        self.clear();
    }

    /// Whether this part of this segment is the one that was entered last.
    pub(crate) fn is_on(&self, segment: &Arc<Segment>, clip: Option<&Arc<KeyBounds>>) -> bool {
        Arc::ptr_eq(self.source.segment(), segment) && self.clip.as_ref() == clip
    }

    /// To the first entry: a walk goes on from the segment before.
    pub(crate) fn move_to_first(&mut self) -> Result<()> {
        if self.clip.is_some() { self.move_to(b"") } else { self.move_to_first_of(0) }
    }

    /// To the last entry: a walk goes on backwards from the segment behind.
    pub(crate) fn move_to_last(&mut self) -> Result<()> {
        self.move_before(None)
    }

    /// To the first entry at or behind `key` that counts.
    fn move_to(&mut self, key: &[u8]) -> Result<()> {
        let key = clipped_from(self.clip.as_deref(), key);
        let Some(number) = self.source.find(key)? else { return Ok(()) };
        let block = self.source.block(number)?;
        let at = Block::of(&block).lower_bound(key);
        if at < Block::of(&block).len() {
            self.enter(block, number, at);
            return Ok(());
        }
        // The key lies between the block's last key and its separator.
        self.move_to_first_of(number + 1)
    }

    /// To the last entry before `key` that counts.
    fn move_before(&mut self, key: Option<&[u8]>) -> Result<()> {
        let found = match clipped_before(self.clip.as_deref(), key) {
            Some(key) => self.source.find(key)?.map(|number| (key, number)),
            None => None,
        };
        let Some((key, number)) = found else {
            return self.move_to_last_before(self.source.segment().blocks);
        };
        let block = self.source.block(number)?;
        match Block::of(&block).lower_bound(key).checked_sub(1) {
            Some(at) => {
                self.enter(block, number, at);
                Ok(())
            }
            None => self.move_to_last_before(number),
        }
    }

    /// Whether no entry counts in the blocks behind this one.
    fn clip_ends_here(&self) -> bool {
        let upto = self.clip.as_ref().and_then(|clip| clip.upto.as_ref());
        upto.is_some_and(|upto| self.source.index().separator(self.number) >= &upto[..])
            && !planted(Bug::ClipIgnoredByScan)
    }

    /// Whether no entry counts in the blocks before this one.
    fn clip_begins_here(&self) -> bool {
        let from = self.clip.as_ref().map(|clip| &clip.from);
        from.is_some_and(|from| self.source.index().separator_before(self.number) < &from[..])
            && !planted(Bug::ClipIgnoredBackwards)
    }

    /// Whether the cursor is at no entry.
    #[inline]
    pub(crate) fn is_at_end(&self) -> bool {
        self.block.is_none()
    }

    /// From now on the cursor is at no entry.
    pub(crate) fn clear(&mut self) {
        self.block = None;
    }

    /// The block with which a seek begins, if memory knows it.
    pub(crate) fn locate(&mut self, target: Target<'_>) -> Option<usize> {
        let clip = self.clip.as_deref();
        self.source.locate(match target {
            Target::From(key) => Target::From(clipped_from(clip, key)),
            Target::Before(key) => Target::Before(clipped_before(clip, key)),
        })
    }

    /// The read of this block, if the block is not in memory; else memory is asked for its front.
    pub(crate) fn missing(&self, block: usize) -> Option<Extent> {
        self.source.missing(block)
    }

    /// The read of a missing block is in flight: the seek that comes waits for it.
    pub(crate) fn expect(&mut self, extent: Extent, read: Ticket) {
        self.source.expect(extent, read);
    }

    /// The file of the segment.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(crate) fn file(&self) -> Result<File> {
        self.source.segment().file.get()
    }

    pub(crate) fn files(&self) -> &Arc<Files> {
        &self.source.segment().files
    }

    fn start_walk(&mut self, way: Direction) {
        self.block = None;
        self.source.start(way);
    }

    /// To entry `at` of a block, which exists; to none if the clip leaves it out.
    fn enter(&mut self, frame: Frame, number: usize, at: usize) {
        let block = Block::of(&frame);
        self.counted = counted(self.clip.as_deref(), block, self.source.way());
        if !self.counted.contains(&at) {
            self.block = None;
            return;
        }
        let segment = self.source.segment();
        if block.is_long() {
            segment.prefetch_around(block, (number, at), self.source.way());
        }
        self.key.set_prefix(block.prefix());
        self.sole = if block.is_distinct() { 1..block.len() - 1 } else { 0..0 };
        self.number = number;
        self.at = at;
        self.entry = block.entry_at(at);
        self.key.set_suffix(block.bytes_from(&self.entry), self.entry.suffix_len());
        self.block = Some(frame);
    }

    /// Whether the entry is the only version of its key, if it is the first or the last of its block. The key of such an
    /// entry may stand in the neighbouring block as well. Then it is the separator between the two.
    #[cold]
    fn is_sole_at_edge(&self) -> bool {
        let Some(block) = self.block.as_ref().map(Block::of).filter(|block| block.is_distinct()) else {
            return false;
        };
        let (index, last) = (self.source.index(), block.len() - 1);
        let is_first = self.at == 0;
        let is_last = self.at == last && self.number + 1 < self.source.segment().blocks;
        let is_shared = is_first && block.is_key(0, index.separator_before(self.number))
            || is_last && block.is_key(last, index.separator(self.number));
        !is_shared
    }

    /// To the first entry of block `number`, or to none past the end.
    fn move_to_first_of(&mut self, number: usize) -> Result<()> {
        self.block = None;
        if number < self.source.segment().blocks {
            let block = self.source.block(number)?;
            self.enter(block, number, 0);
        }
        Ok(())
    }

    /// To the last entry of the block before `number`, or to none before the front.
    fn move_to_last_before(&mut self, number: usize) -> Result<()> {
        self.block = None;
        if let Some(number) = number.checked_sub(1) {
            let block = self.source.block(number)?;
            let last = Block::of(&block).len() - 1;
            self.enter(block, number, last);
        }
        Ok(())
    }

    /// Asks memory for an entry that comes soon, in this block or the next.
    #[inline(never)]
    fn prefetch_forward(&self, block: Block<'_>) {
        let at = self.at + PREFETCH_DISTANCE;
        match at.checked_sub(block.len()) {
            None => block.prefetch_front(at),
            Some(entry) => {
                let slots = &self.source.segment().slots;
                slots.look(self.number + 1, |frame| Block::of(frame).prefetch_front(entry));
            }
        }
    }

    /// Asks memory for an entry that comes soon on the way back, in this block or the one before.
    #[inline(never)]
    fn prefetch_backward(&self, block: Block<'_>) {
        match self.at.checked_sub(PREFETCH_DISTANCE) {
            Some(entry) => block.prefetch_front(entry),
            None => self.source.segment().slots.look(self.number.wrapping_sub(1), |frame| {
                let block = Block::of(frame);
                block.prefetch_front((block.len() + self.at).saturating_sub(PREFETCH_DISTANCE));
            }),
        }
    }

    /// To the next entry of the same block, if there is one.
    #[inline]
    fn step_forward(&mut self) -> bool {
        let has_next = self.at + 1 < self.counted.end;
        let Some(block) = self.block.as_ref().map(Block::of).filter(|_| has_next) else { return false };
        self.at += 1;
        self.entry = block.entry_at(self.at);
        if block.is_long() {
            self.prefetch_forward(block);
        }
        self.key.set_suffix(block.bytes_from(&self.entry), self.entry.suffix_len());
        true
    }

    /// To the entry before in the same block, if there is one.
    #[inline]
    fn step_backward(&mut self) -> bool {
        let has_next = self.at > self.counted.start;
        let Some(block) = self.block.as_ref().map(Block::of).filter(|_| has_next) else { return false };
        self.at -= 1;
        self.entry = block.entry_at(self.at);
        if block.is_long() {
            self.prefetch_backward(block);
        }
        self.key.set_suffix(block.bytes_from(&self.entry), self.entry.suffix_len());
        true
    }
}

impl Cursor for SegmentCursor {
    fn seek(&mut self, key: &[u8]) -> Result<()> {
        self.start_walk(Direction::Forward);
        self.move_to(key)
    }

    fn seek_before(&mut self, key: Option<&[u8]>) -> Result<()> {
        self.start_walk(Direction::Backward);
        self.move_before(key)
    }

    fn next(&mut self) -> Result<()> {
        if self.step_forward() || self.block.is_none() {
            return Ok(());
        }
        if self.clip_ends_here() {
            self.clear();
            return Ok(());
        }
        self.move_to_first_of(self.number + 1)
    }

    fn prev(&mut self) -> Result<()> {
        if self.step_backward() || self.block.is_none() {
            return Ok(());
        }
        if self.clip_begins_here() {
            self.clear();
            return Ok(());
        }
        self.move_to_last_before(self.number)
    }

    #[inline]
    fn entry(&self) -> Option<Entry<'_>> {
        let block = self.block.as_ref().map(Block::of)?;
        let EntryAt { seq, kind, .. } = self.entry;
        Some(Entry { key: self.key.as_slice(), seq, kind, value: block.value_at(&self.entry) })
    }

    #[inline]
    fn ends_key(&self) -> bool {
        self.block.is_some() && (self.sole.contains(&self.at) || self.is_sole_at_edge())
    }

    /// Within the block.
    #[inline]
    fn quick_next(&mut self) -> bool {
        self.ends_key() && self.step_forward()
    }

    /// Within the block.
    #[inline]
    fn quick_prev(&mut self) -> bool {
        self.ends_key() && self.step_backward()
    }
}
