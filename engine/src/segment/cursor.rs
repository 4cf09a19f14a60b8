//! Walks the entries of one segment.
//!
//! It reads one block at a time and, once it has gone a few blocks forward, up to `reader::READ_AHEAD_BYTES` at once.
//!
//! Invariants: it holds at most one block and one span of read-ahead; after an error it stands nowhere.

use std::ops::Range;
use std::sync::Arc;

use arc_swap::Guard;

use super::block::{Block, Frame, Spot};
use super::reader::{Segment, Span};
use crate::cache::Use;
use crate::error::Result;
use crate::iter::Cursor;
use crate::key::Entry;

/// How many entries before its turn memory is asked for an entry.
const ASKED_AHEAD: usize = 4;

/// Consecutive blocks after which a cursor begins to read ahead.
const READ_AHEAD_AFTER_BLOCKS: u32 = 2;

/// Where a cursor goes.
#[derive(Clone, Copy, Debug)]
enum Way {
    Forward,
    Backward,
}

impl Segment {
    /// A cursor over all entries. With `fill_cache` the blocks that it reads stay in the cache; without, it uses what
    /// is there and leaves no trace.
    pub(crate) fn cursor(self: &Arc<Self>, fill_cache: bool) -> SegmentCursor {
        SegmentCursor {
            segment: self.clone(),
            fill_cache,
            block: None,
            number: 0,
            at: 0,
            spot: Spot::NONE,
            key: KeyBuf::default(),
            sole: 0..0,
            steps: 0,
            ahead: None,
        }
    }
}

/// A place in a segment; keeps the segment open.
pub(crate) struct SegmentCursor {
    segment: Arc<Segment>,
    fill_cache: bool,
    /// The block it stands in; `None` past the end.
    block: Option<Frame>,
    /// The number of that block.
    number: usize,
    /// The entry in it, and what its columns say of it.
    at: usize,
    spot: Spot,
    key: KeyBuf,
    /// Entries of the block that are the only versions of their keys.
    sole: Range<usize>,
    /// Blocks taken forward one after the other since the last seek.
    steps: u32,
    ahead: Option<Span>,
}

impl Segment {
    /// Asks memory for the entries around `at` of a block that a cursor comes to, for the front of the next block, and for
    /// the place of the one behind that.
    fn look_around(&self, block: Block<'_>, (number, at): (usize, usize), way: Way) {
        let (soon, next, later) = match way {
            Way::Forward => (at + 1..at + ASKED_AHEAD, number + 1, number + 2),
            Way::Backward => {
                (at.saturating_sub(ASKED_AHEAD)..at, number.wrapping_sub(1), number.wrapping_sub(2))
            }
        };
        soon.for_each(|entry| block.prefetch_front(entry));
        self.slots.look(next, Block::prefetch);
        self.slots.prefetch(later);
    }

    /// The entries of block `number` that are known to be the only versions of their keys: none if it holds two of one
    /// key, else all but those at its edges whose key may stand in the neighbouring block as well.
    fn sole_entries(&self, block: Block<'_>, number: usize) -> Range<usize> {
        if !block.is_distinct() {
            return 0..0;
        }
        // A key that spans two blocks is the separator between them.
        let is_shared = |i, before: usize| block.is_key(i, self.index.separator(before));
        let front = number.checked_sub(1).is_some_and(|before| is_shared(0, before));
        let back = number + 1 < self.index.blocks() && is_shared(block.len() - 1, number);
        usize::from(front)..block.len() - usize::from(back)
    }
}

impl std::fmt::Debug for SegmentCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = self.block.as_ref().map(|_| (self.number, self.at));
        f.debug_struct("SegmentCursor")
            .field("path", &self.segment.path)
            .field("at", &at)
            .finish_non_exhaustive()
    }
}

impl SegmentCursor {
    /// As a new cursor over another segment, with the memory of this one.
    pub(crate) fn enter(&mut self, segment: &Arc<Segment>) {
        if !Arc::ptr_eq(&self.segment, segment) {
            self.segment = segment.clone();
            self.ahead = None;
        }
        self.leave();
    }

    /// Whether it stands nowhere.
    #[inline]
    pub(crate) fn is_at_end(&self) -> bool {
        self.block.is_none()
    }

    /// Stands nowhere.
    pub(crate) fn leave(&mut self) {
        self.block = None;
    }

    fn load(&mut self, number: usize) -> Result<Frame> {
        let segment = &self.segment;
        let cached = if self.fill_cache {
            Guard::into_inner(segment.cache.get(&segment.slots, number))
        } else {
            segment.slots.peek(number)
        };
        if let Some(frame) = cached {
            Block::prefetch(&frame);
            return Ok(frame);
        }
        let held = self.ahead.take().filter(|span| (span.first..span.end).contains(&number));
        let span = match held {
            Some(span) => span,
            None => segment.read_span(number, self.steps >= READ_AHEAD_AFTER_BLOCKS)?,
        };
        let block = segment.decode(number, &span)?;
        if number + 1 < span.end {
            self.ahead = Some(span);
        }
        if self.fill_cache {
            segment.cache.insert(
                &segment.slots,
                number,
                (&block, Block::of(&block).memory_bytes()),
                Use::Scan,
            );
        }
        Ok(block)
    }

    /// Stands on entry `at` of a block, which exists; `way` says where to from there.
    fn stand(&mut self, frame: Frame, number: usize, at: usize, way: Way) {
        let block = Block::of(&frame);
        if block.is_long() {
            self.segment.look_around(block, (number, at), way);
        }
        self.key.set_prefix(block.prefix());
        self.sole = self.segment.sole_entries(block, number);
        self.number = number;
        self.at = at;
        self.spot = block.spot(at);
        self.key.set_suffix(block.bytes_from(&self.spot), self.spot.suffix_len());
        self.block = Some(frame);
    }

    /// Asks memory for an entry that will be stepped on soon, here or in the next block.
    #[inline(never)]
    fn look_forward(&self, block: Block<'_>) {
        let at = self.at + ASKED_AHEAD;
        match at.checked_sub(block.len()) {
            None => block.prefetch_front(at),
            Some(entry) => {
                self.segment.slots.look(self.number + 1, |frame| Block::of(frame).prefetch_front(entry));
            }
        }
    }

    /// As [`SegmentCursor::look_forward`], the other way.
    #[inline(never)]
    fn look_backward(&self, block: Block<'_>) {
        match self.at.checked_sub(ASKED_AHEAD) {
            Some(entry) => block.prefetch_front(entry),
            None => self.segment.slots.look(self.number.wrapping_sub(1), |frame| {
                let block = Block::of(frame);
                block.prefetch_front((block.len() + self.at).saturating_sub(ASKED_AHEAD));
            }),
        }
    }

    /// To the next entry of the same block, if there is one.
    #[inline]
    fn step_forward(&mut self) -> bool {
        let Some(block) = self.block.as_ref().map(Block::of).filter(|block| self.at + 1 < block.len()) else {
            return false;
        };
        self.at += 1;
        self.spot = block.spot(self.at);
        if block.is_long() {
            self.look_forward(block);
        }
        self.key.set_suffix(block.bytes_from(&self.spot), self.spot.suffix_len());
        true
    }

    /// To the entry before in the same block, if there is one.
    #[inline]
    fn step_backward(&mut self) -> bool {
        let Some(block) = self.block.as_ref().map(Block::of).filter(|_| self.at > 0) else { return false };
        self.at -= 1;
        self.spot = block.spot(self.at);
        if block.is_long() {
            self.look_backward(block);
        }
        self.key.set_suffix(block.bytes_from(&self.spot), self.spot.suffix_len());
        true
    }

    /// Stands on the first entry of block `number`, or past the end.
    fn first_of(&mut self, number: usize) -> Result<()> {
        self.block = None;
        if number < self.segment.index.blocks() {
            let block = self.load(number)?;
            self.stand(block, number, 0, Way::Forward);
        }
        Ok(())
    }

    /// Stands on the last entry of the block before `number`, or past the front.
    fn last_before(&mut self, number: usize) -> Result<()> {
        self.block = None;
        if let Some(number) = number.checked_sub(1) {
            let block = self.load(number)?;
            let last = Block::of(&block).len() - 1;
            self.stand(block, number, last, Way::Backward);
        }
        Ok(())
    }
}

impl Cursor for SegmentCursor {
    fn seek(&mut self, key: &[u8]) -> Result<()> {
        self.block = None;
        self.steps = 0;
        let Some(number) = self.segment.index.find(key) else { return Ok(()) };
        let block = self.load(number)?;
        let at = Block::of(&block).lower_bound(key);
        if at < Block::of(&block).len() {
            self.stand(block, number, at, Way::Forward);
            return Ok(());
        }
        // The key lies between the block's last key and its separator.
        self.first_of(number + 1)
    }

    fn seek_before(&mut self, key: Option<&[u8]>) -> Result<()> {
        self.block = None;
        self.steps = 0;
        let Some((key, number)) = key.and_then(|key| Some((key, self.segment.index.find(key)?))) else {
            return self.last_before(self.segment.index.blocks());
        };
        let block = self.load(number)?;
        match Block::of(&block).lower_bound(key).checked_sub(1) {
            Some(at) => {
                self.stand(block, number, at, Way::Backward);
                Ok(())
            }
            None => self.last_before(number),
        }
    }

    fn next(&mut self) -> Result<()> {
        if self.step_forward() || self.block.is_none() {
            return Ok(());
        }
        self.steps = self.steps.saturating_add(1);
        self.first_of(self.number + 1)
    }

    fn prev(&mut self) -> Result<()> {
        if self.step_backward() || self.block.is_none() {
            return Ok(());
        }
        self.last_before(self.number)
    }

    #[inline]
    fn entry(&self) -> Option<Entry<'_>> {
        let block = self.block.as_ref().map(Block::of)?;
        let Spot { seq, kind, .. } = self.spot;
        Some(Entry { key: self.key.as_slice(), seq, kind, value: block.value_at(&self.spot) })
    }

    #[inline]
    fn ends_key(&self) -> bool {
        self.block.is_some() && self.sole.contains(&self.at)
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

/// A suffix up to this long is copied as this many bytes, whatever its length: a few instructions instead of a call.
const SHORT_BYTES: usize = 16;

/// A whole key, put together from the prefix of a block and a suffix.
#[derive(Debug, Default)]
struct KeyBuf {
    /// The key, and room for a short suffix behind the prefix.
    bytes: Vec<u8>,
    prefix_len: usize,
    len: usize,
}

impl KeyBuf {
    fn set_prefix(&mut self, prefix: &[u8]) {
        self.bytes.clear();
        self.bytes.extend_from_slice(prefix);
        self.bytes.resize(prefix.len() + SHORT_BYTES, 0);
        self.prefix_len = prefix.len();
    }

    /// The suffix is the first `len` bytes of `from`.
    #[inline]
    fn set_suffix(&mut self, from: &[u8], len: usize) {
        self.len = self.prefix_len + len;
        let room =
            self.bytes.get_mut(self.prefix_len..).and_then(|room| room.first_chunk_mut::<SHORT_BYTES>());
        match (room, from.first_chunk::<SHORT_BYTES>()) {
            (Some(room), Some(short)) if len <= SHORT_BYTES => *room = *short,
            _ => self.set_long_suffix(from.get(..len).unwrap_or_default()),
        }
    }

    fn set_long_suffix(&mut self, suffix: &[u8]) {
        self.bytes.truncate(self.prefix_len);
        self.bytes.extend_from_slice(suffix);
        self.bytes.resize(self.prefix_len + suffix.len().max(SHORT_BYTES), 0);
    }

    #[inline]
    fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}
