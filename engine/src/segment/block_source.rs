//! The blocks of one segment for a walk: from the cache, from a window that was read, or from the device.
//!
//! ```text
//!   block(n):  cache -> window in use -> window in flight (waits) -> read now: n alone, or n and more on the way
//! ```
//!
//! A scan begins with the one block that it needs and reads more with every step that goes on in the same direction (see
//! `read_ahead.rs`); once its windows are full, the next one is in flight while this one is used. A job knows that it needs
//! everything: its windows are full from the start.
//!
//! If a window of a scan cannot be read, the block that is needed is read alone: a failure of blocks that were only expected
//! to be needed is no failure of the scan. A job needs them all, so for a job it is one.
//!
//! Where the index of the segment is paged, the source decodes the index block around the walk into a small index of its own.
//! Windows end where that ends.
//!
//! Invariants: the buffers of a scan are granted by the store's allowance, but for those of a single block; the windows of a
//! job sum to at most [`JOB_WINDOW_BYTES`] twice, unless one block alone is larger.

use std::ops::Range;
use std::sync::Arc;

use super::block::{Block, Frame};
use super::index::{Index, IndexBuilder, Part};
use super::pages::{PIECE_BLOCKS, handle_in, separator_in};
use super::reader::{Form, ReadLimit, Segment};
use super::top::Top;
use crate::base::error::Result;
use crate::io::lane::{Lane, Ticket};
use crate::io::pool::{SMALLEST_BYTES, capacity_for};
use crate::io::read_ahead::{Grant, MOST_BYTES, Pace};
use crate::io::read_stream::{Extent, ReadStream};
use crate::memory::cache::{Protected, Use};
use crate::read::cursor::{Direction, Target};

/// Bytes of one window of a job.
const JOB_WINDOW_BYTES: usize = 128 << 10;

/// Gives the blocks of a segment in the order of a walk. Keeps the segment open.
pub(super) struct BlockSource {
    segment: Arc<Segment>,
    /// Whether blocks that were read stay in the cache.
    fill_cache: bool,
    /// Of one window at most.
    window_bytes: usize,
    /// The part of a paged index in which the walk is.
    piece: IndexPiece,
    way: Direction,
    pace: Pace,
    stream: ReadStream,
    /// For the buffers of both windows; `None` for a job.
    grant: Option<Grant>,
}

/// The index of a few data blocks.
#[derive(Debug, Default)]
struct IndexPiece {
    index: Index,
    /// The number of the first.
    first: usize,
}

impl IndexPiece {
    /// Of an index block that was checked.
    fn of(block: Block<'_>, first: usize) -> IndexPiece {
        let (mut joined, mut separator) = (IndexBuilder::default(), Vec::new());
        for i in 0..block.len() {
            separator_in(block, i, &mut separator);
            let added = handle_in(block, i).and_then(|handle| joined.push(handle, &separator));
            added.expect("it was checked when it was read");
        }
        IndexPiece { index: joined.into_index(), first }
    }

    fn part<'a>(&'a self, top: &'a Top) -> Part<'a> {
        Part::piece(&self.index, self.first, top.separator_before(self.first / PIECE_BLOCKS))
    }

    fn holds(&self, number: usize) -> bool {
        (self.first..self.first + self.index.blocks()).contains(&number)
    }
}

impl BlockSource {
    /// For a scan.
    pub(super) fn of_scan(segment: &Arc<Segment>, fill_cache: bool) -> BlockSource {
        let grant = fill_cache.then(|| segment.files.read_ahead());
        BlockSource { grant, ..BlockSource::new(segment, fill_cache, ReadStream::of_scan()) }
    }

    /// For a job, which reads everything and leaves the cache as it is.
    pub(super) fn of_job(segment: &Arc<Segment>, lane: &Arc<Lane>) -> BlockSource {
        let source = BlockSource::new(segment, false, ReadStream::of_job(lane));
        BlockSource { window_bytes: JOB_WINDOW_BYTES, ..source }
    }

    fn new(segment: &Arc<Segment>, fill_cache: bool, stream: ReadStream) -> BlockSource {
        BlockSource {
            segment: Arc::clone(segment),
            fill_cache,
            window_bytes: MOST_BYTES,
            piece: IndexPiece::default(),
            way: Direction::Forward,
            pace: Pace::new(fill_cache),
            stream,
            grant: None,
        }
    }

    #[inline]
    pub(super) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    #[inline]
    pub(super) fn way(&self) -> Direction {
        self.way
    }

    /// The walk goes on in another segment.
    pub(super) fn change_segment(&mut self, segment: &Arc<Segment>) {
        if !Arc::ptr_eq(&self.segment, segment) {
            self.stream.change_file();
            self.segment = Arc::clone(segment);
            self.piece = IndexPiece::default();
        }
    }

    /// A walk begins.
    pub(super) fn start(&mut self, way: Direction) {
        self.way = way;
        self.pace = Pace::new(self.fill_cache);
    }

    /// The index around the walk. It covers block `number` after [`BlockSource::load_index`].
    #[inline]
    pub(super) fn index(&self) -> Part<'_> {
        match &self.segment.form {
            Form::Pinned { index, .. } => Part::whole(index),
            Form::Paged(top) => self.piece.part(top),
        }
    }

    /// Decodes the index block that covers data block `number`, unless it is at hand.
    fn load_index(&mut self, number: usize) -> Result<()> {
        if let Form::Paged(top) = &self.segment.form
            && !self.piece.holds(number)
        {
            let piece = number / PIECE_BLOCKS;
            let frame = self.segment.page(top.index_block(piece), self.fill_cache)?;
            self.piece = IndexPiece::of(Block::of(&frame), piece * PIECE_BLOCKS);
        }
        Ok(())
    }

    /// The first data block that may hold a key `>= key`.
    pub(super) fn find(&mut self, key: &[u8]) -> Result<Option<usize>> {
        if let Form::Paged(top) = &self.segment.form {
            let Some(piece) = top.find(key) else { return Ok(None) };
            self.load_index(piece * PIECE_BLOCKS)?;
        }
        Ok(self.index().find(key))
    }

    /// The block with which a seek begins, if memory knows it. Memory is asked for its slot in the cache.
    pub(super) fn locate(&mut self, target: Target<'_>) -> Option<usize> {
        if let Form::Paged(top) = &self.segment.form {
            let last = || top.pieces().checked_sub(1);
            let piece = match target {
                Target::From(key) => top.find(key)?,
                Target::Before(key) => key.and_then(|key| top.find(key)).or_else(last)?,
            };
            if !self.piece.holds(piece * PIECE_BLOCKS) {
                let frame = self.segment.slots.peek(top.index_block(piece))?;
                self.piece = IndexPiece::of(Block::of(&frame), piece * PIECE_BLOCKS);
            }
        }
        let index = self.index();
        let last = || index.blocks().end.checked_sub(1);
        let number = match target {
            Target::From(key) => index.find(key)?,
            Target::Before(key) => key.and_then(|key| index.find(key)).or_else(last)?,
        };
        self.segment.slots.prefetch(number);
        Some(number)
    }

    /// The read of block `number`, if the block is neither in the cache nor in the window in use.
    pub(super) fn missing(&self, number: usize) -> Option<Extent> {
        let mut is_cached = false;
        self.segment.slots.look(number, |frame| {
            Block::prefetch(frame);
            is_cached = true;
        });
        if is_cached || self.stream.holds(number) {
            return None;
        }
        self.segment.extent(self.index(), number..number + 1).ok()
    }

    /// The read of a missing block is in flight.
    pub(super) fn expect(&mut self, extent: Extent, read: Ticket) {
        self.release();
        self.stream.expect(extent, read);
    }

    /// The block with this number, wherever it is.
    ///
    /// # Errors
    /// It could not be read, or is damaged.
    pub(super) fn block(&mut self, number: usize) -> Result<Frame> {
        self.load_index(number)?;
        let segment = &self.segment;
        let cached = if self.fill_cache {
            Protected::into_inner(segment.cache.get(&segment.slots, number))
        } else {
            segment.slots.peek(number)
        };
        if let Some(frame) = cached {
            Block::prefetch(&frame);
            return Ok(frame);
        }
        if !self.stream.holds(number) {
            self.next_window(number)?;
        }
        self.decode(number)
    }

    /// Decodes a block of the window in use.
    fn decode(&mut self, number: usize) -> Result<Frame> {
        let handle = self.index().handle(number).expect("its index block was loaded");
        let window = self.stream.window().expect("it holds the block");
        let decoded = self.segment.decode(number, &handle, window);
        let unused = match self.way {
            Direction::Forward => window.blocks.end - 1 - number,
            Direction::Backward => number - window.blocks.start,
        };
        if decoded.is_ok() {
            self.keep_ahead(unused);
        }
        if unused == 0 || decoded.is_err() {
            // After an error the next try reads again.
            self.stream.drop_window();
        }
        let frame = decoded?;
        if self.fill_cache {
            let charged = (&frame, Block::of(&frame).memory_bytes());
            self.segment.cache.insert(&self.segment.slots, number, charged, Use::Scan);
        }
        Ok(frame)
    }

    /// Makes a window that holds block `number` the one in use.
    fn next_window(&mut self, number: usize) -> Result<()> {
        if self.stream.ahead().is_some_and(|ahead| ahead.contains(&number)) {
            match self.stream.advance() {
                Err(error) if !self.fill_cache => return Err(error),
                Err(_) => self.pace = Pace::new(self.fill_cache),
                Ok(()) => return Ok(()),
            }
        }
        self.stream.drop_window();
        if self.pace.is_new() {
            self.release();
        }
        let window = self.plan(number)?;
        let is_single = window.blocks.len() == 1;
        match self.read(window) {
            Err(_) if self.fill_cache && !is_single => {
                self.pace = Pace::new(true);
                let single = self.segment.extent(self.index(), number..number + 1)?;
                self.read(single)
            }
            result => result,
        }
    }

    fn read(&mut self, window: Extent) -> Result<()> {
        self.pace.add(window.blocks.len());
        self.stream.read(&self.segment.files, &self.segment.file, window)
    }

    /// Puts the next window in flight when the walk is fast enough; `unused` blocks of the window in use are still to come.
    fn keep_ahead(&mut self, unused: usize) {
        let Some(window) = self.stream.window().filter(|_| self.stream.ahead().is_none()) else { return };
        // Smaller windows of a scan double instead: a scan takes no more reads than one that only reads when it must.
        let is_full = !self.fill_cache || window.buf.len() >= self.window_bytes / 4 * 3;
        if !is_full || self.pace.blocks(unused) < window.blocks.len() {
            return;
        }
        let window = window.blocks.clone();
        if let Some(first) = self.next_uncached(&window)
            && let Some(extent) = self.plan_ahead(first, unused)
        {
            self.pace.add(extent.blocks.len());
            self.stream.read_ahead(&self.segment.files, &self.segment.file, extent);
        }
    }

    /// The next block behind the window that is not in the cache, as far as the index at hand and one window reach.
    fn next_uncached(&self, window: &Range<usize>) -> Option<usize> {
        let blocks = self.index().blocks();
        let is_uncached = |number: &usize| !self.segment.slots.is_taken(*number);
        match self.way {
            Direction::Forward => (window.end..blocks.end).take(window.len()).find(is_uncached),
            Direction::Backward => (blocks.start..window.start).rev().take(window.len()).find(is_uncached),
        }
    }

    /// The window to read now that block `number` is needed.
    fn plan(&mut self, number: usize) -> Result<Extent> {
        // While a window further on is in flight, only the block between is missing.
        let blocks = if self.stream.ahead().is_some() { 1 } else { self.pace.blocks(0) };
        let most = self.blocks_from(number, ReadLimit { blocks, bytes: self.window_bytes });
        let extent = self.segment.extent(self.index(), most)?;
        let Some(grant) = self.grant.as_mut().filter(|_| extent.blocks.len() > 1) else { return Ok(extent) };
        let wanted = capacity_for(extent.len_bytes);
        let granted = grant.widen(wanted);
        if granted >= wanted {
            return Ok(extent);
        }
        // The largest buffer that there is memory for. One block is read in any case.
        let fits = granted / SMALLEST_BYTES * SMALLEST_BYTES;
        grant.narrow(fits);
        let fewer = self.blocks_from(number, ReadLimit { blocks, bytes: fits });
        self.segment.extent(self.index(), fewer)
    }

    /// The window to put in flight beside the one in use; `None` if there is no memory for a whole one.
    fn plan_ahead(&mut self, first: usize, unused: usize) -> Option<Extent> {
        let held = self.stream.window().map_or(0, |window| window.buf.capacity());
        let limit = ReadLimit { blocks: self.pace.blocks(unused), bytes: self.window_bytes };
        let blocks = self.blocks_from(first, limit);
        let extent = self.segment.extent(self.index(), blocks).ok()?;
        let wanted = held + capacity_for(extent.len_bytes);
        if wanted > 2 * self.window_bytes {
            return None;
        }
        let Some(grant) = &mut self.grant else { return Some(extent) };
        if grant.widen(wanted) < wanted {
            grant.narrow(held);
            return None;
        }
        Some(extent)
    }

    /// The blocks of one read, from `first` on.
    fn blocks_from(&self, first: usize, limit: ReadLimit) -> Range<usize> {
        self.segment.blocks_ahead(self.index(), first, self.way, limit)
    }

    /// Gives back all memory for reading ahead.
    fn release(&mut self) {
        self.stream.clear();
        self.grant.as_mut().into_iter().for_each(Grant::release);
    }
}
