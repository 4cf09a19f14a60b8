//! Walks the entries of one segment.
//!
//! A seek reads the one block that it needs; a walk over what is not in the cache reads more and more blocks at once, in
//! either direction and on into the next segment of a run (`read_ahead.rs`). Should such a read fail, the block that is
//! wanted is read by itself: what was only expected to be needed is no reason to fail.
//!
//! Where index and filter are paged, it makes a small index of the index block that covers where it stands, and works on that;
//! what it reads ahead ends there.
//!
//! Invariants: it holds at most one block and one buffer of read-ahead, and that only as far as its grant goes; after an
//! error it stands nowhere.

use std::ops::Range;
use std::sync::Arc;

use aio::{Buf, Bug, File, planted};

use super::block::{Block, EntryAt, Frame};
use super::clip::{clipped, counted};
use super::index::{Index, IndexBuilder, Part};
use super::key_buf::KeyBuf;
use super::pages::{PIECE_BLOCKS, handle_in, separator_in};
use super::reader::{Form, Segment, Span, Way};
use super::top::Top;
use crate::base::error::Result;
use crate::base::key::Entry;
use crate::base::range::KeyBounds;
use crate::io::files::Files;
use crate::io::pool::SMALLEST_BYTES;
use crate::io::read_ahead::{Grant, MOST_BYTES, Window};
use crate::memory::cache::{Held, Use};
use crate::read::cursor::{Cursor, Target};

/// How many entries before its turn memory is asked for an entry.
const ASKED_AHEAD: usize = 4;

impl Segment {
    /// A cursor over all entries. With `fill_cache` the blocks that it reads stay in the cache; without, it uses what
    /// is there and leaves no trace, and reads far ahead from its beginning, since it goes to the end.
    pub(crate) fn cursor(self: &Arc<Self>, fill_cache: bool) -> SegmentCursor {
        SegmentCursor {
            segment: self.clone(),
            clip: None,
            fill_cache,
            piece: Piece::default(),
            block: None,
            number: 0,
            at: 0,
            counted: 0..0,
            spot: EntryAt::NONE,
            key: KeyBuf::default(),
            sole: 0..0,
            way: Way::Forward,
            window: first_window(fill_cache),
            ahead: None,
            spare: None,
            grant: fill_cache.then(|| self.files.read_ahead()),
        }
    }
}

/// A place in a segment; keeps the segment open.
pub(crate) struct SegmentCursor {
    segment: Arc<Segment>,
    /// The keys inside which entries count; `None`: all.
    clip: Option<Arc<KeyBounds>>,
    fill_cache: bool,
    /// The index around where it stands, if that is paged.
    piece: Piece,
    /// The block it stands in; `None` past the end.
    block: Option<Frame>,
    /// The number of that block.
    number: usize,
    /// The entries of the block that count: all of them, unless a bound of the clip lies in it.
    counted: Range<usize>,
    /// The entry in it, and what its columns say of it.
    at: usize,
    spot: EntryAt,
    key: KeyBuf,
    /// Entries of the block that are the only versions of their keys.
    sole: Range<usize>,
    /// Where it has gone since the last seek, and how far the next read goes.
    way: Way,
    window: Window,
    /// Blocks that were read, some of which are still to come.
    ahead: Option<Span>,
    /// A buffer of read-ahead whose blocks are all passed.
    spare: Option<Buf>,
    /// Memory for the one or the other; `None`: for a full window.
    grant: Option<Grant>,
}

/// The index of a few data blocks.
#[derive(Debug, Default)]
struct Piece {
    index: Index,
    /// The number of the first.
    first: usize,
}

impl Piece {
    /// What an index block, which was checked, says.
    fn of(block: Block<'_>, first: usize) -> Piece {
        let (mut joined, mut separator) = (IndexBuilder::default(), Vec::new());
        for i in 0..block.len() {
            separator_in(block, i, &mut separator);
            let added = handle_in(block, i).and_then(|handle| joined.push(handle, &separator));
            added.expect("it was checked when it was read");
        }
        Piece { index: joined.into_index(), first }
    }

    fn part<'a>(&'a self, top: &'a Top) -> Part<'a> {
        Part::piece(&self.index, self.first, top.separator_before(self.first / PIECE_BLOCKS))
    }

    fn holds(&self, number: usize) -> bool {
        (self.first..self.first + self.index.blocks()).contains(&number)
    }
}

/// A block that is not in memory: what to read for it.
#[derive(Debug)]
pub(crate) struct Missing {
    number: usize,
    pub(crate) file: File,
    pub(crate) offset: u64,
    pub(crate) len_bytes: usize,
}

impl Drop for SegmentCursor {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// For a cursor that begins.
fn first_window(fill_cache: bool) -> Window {
    if fill_cache { Window::growing() } else { Window::full() }
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
    fn sole_entries(&self, part: Part<'_>, block: Block<'_>, number: usize) -> Range<usize> {
        if !block.is_distinct() {
            return 0..0;
        }
        // A key that spans two blocks is the separator between them.
        let front = block.is_key(0, part.separator_before(number));
        let back = number + 1 < self.blocks && block.is_key(block.len() - 1, part.separator(number));
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
    /// As a new cursor over a part of another segment, with the memory of this one.
    pub(crate) fn enter(&mut self, segment: &Arc<Segment>, clip: Option<&Arc<KeyBounds>>) {
        if !Arc::ptr_eq(&self.segment, segment) {
            // The buffer serves again, if the walk goes on.
            self.spare = self.ahead.take().map(|span| span.buf).or(self.spare.take());
            self.segment = segment.clone();
            self.piece = Piece::default();
        }
        self.clip = clip.cloned();
        self.leave();
    }

    /// Whether it has entered this part of this segment last.
    pub(crate) fn is_on(&self, segment: &Arc<Segment>, clip: Option<&Arc<KeyBounds>>) -> bool {
        Arc::ptr_eq(&self.segment, segment) && self.clip.as_ref() == clip
    }

    /// Goes on from the segment before: stands on the first entry.
    pub(crate) fn enter_front(&mut self) -> Result<()> {
        if self.clip.is_some() { self.go_to(b"") } else { self.first_of(0) }
    }

    /// Goes on backwards from the segment behind: stands on the last entry.
    pub(crate) fn enter_back(&mut self) -> Result<()> {
        self.go_before(None)
    }

    /// To the first entry at or behind `key` that counts.
    fn go_to(&mut self, key: &[u8]) -> Result<()> {
        let clip = self.clip.clone();
        let Target::From(key) = clipped(clip.as_deref(), Target::From(key)) else { unreachable!() };
        let Some(number) = self.find(key)? else { return Ok(()) };
        let block = self.load(number)?;
        let at = Block::of(&block).lower_bound(key);
        if at < Block::of(&block).len() {
            self.stand(block, number, at);
            return Ok(());
        }
        // The key lies between the block's last key and its separator.
        self.first_of(number + 1)
    }

    /// To the last entry before `key` that counts.
    fn go_before(&mut self, key: Option<&[u8]>) -> Result<()> {
        let clip = self.clip.clone();
        let Target::Before(key) = clipped(clip.as_deref(), Target::Before(key)) else { unreachable!() };
        let found = match key {
            Some(key) => self.find(key)?.map(|number| (key, number)),
            None => None,
        };
        let Some((key, number)) = found else { return self.last_before(self.segment.blocks) };
        let block = self.load(number)?;
        match Block::of(&block).lower_bound(key).checked_sub(1) {
            Some(at) => {
                self.stand(block, number, at);
                Ok(())
            }
            None => self.last_before(number),
        }
    }

    /// Whether no entry counts in the blocks behind this one.
    fn clip_ends_here(&self) -> bool {
        let upto = self.clip.as_ref().and_then(|clip| clip.upto.as_ref());
        upto.is_some_and(|upto| self.part().separator(self.number) >= &upto[..])
            && !planted(Bug::ClipIgnoredByScan)
    }

    /// Whether no entry counts in the blocks before this one.
    fn clip_begins_here(&self) -> bool {
        let from = self.clip.as_ref().map(|clip| &clip.from);
        from.is_some_and(|from| self.part().separator_before(self.number) < &from[..])
            && !planted(Bug::ClipIgnoredBackwards)
    }

    /// The index around where it stands, or goes: see [`SegmentCursor::reach`].
    #[inline]
    fn part(&self) -> Part<'_> {
        match &self.segment.form {
            Form::Pinned { index, .. } => Part::whole(index),
            Form::Paged(top) => self.piece.part(top),
        }
    }

    /// Data block `number` is wanted: makes the index around it, unless it is there.
    fn reach(&mut self, number: usize) -> Result<()> {
        if let Form::Paged(top) = &self.segment.form
            && !self.piece.holds(number)
        {
            let piece = number / PIECE_BLOCKS;
            let frame = self.segment.page(top.index_block(piece), self.fill_cache)?;
            self.piece = Piece::of(Block::of(&frame), piece * PIECE_BLOCKS);
        }
        Ok(())
    }

    /// The first data block that may hold a key `>= key`, which is in reach then.
    fn find(&mut self, key: &[u8]) -> Result<Option<usize>> {
        if let Form::Paged(top) = &self.segment.form {
            let Some(piece) = top.find(key) else { return Ok(None) };
            self.reach(piece * PIECE_BLOCKS)?;
        }
        Ok(self.part().find(key))
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
        self.reach(number)?;
        let segment = &self.segment;
        let cached = if self.fill_cache {
            Held::into_inner(segment.cache.get(&segment.slots, number))
        } else {
            segment.slots.peek(number)
        };
        if let Some(frame) = cached {
            Block::prefetch(&frame);
            return Ok(frame);
        }
        let span = match self.ahead.take() {
            Some(span) if (span.first..span.end).contains(&number) => span,
            other => self.read(number, other)?,
        };
        let handle = self.part().handle(number).expect("it is in reach");
        let block = self.segment.decode(number, &handle, &span)?;
        let last = if self.way == Way::Forward { span.end - 1 } else { span.first };
        if number != last {
            self.ahead = Some(span);
        } else if span.first + 1 < span.end {
            self.spare = Some(span.buf);
        } else {
            drop(span);
        }
        let segment = &self.segment;
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

    /// A seek is coming: which block it begins with, if memory knows. Memory is asked for its place.
    pub(crate) fn foresee(&mut self, target: Target<'_>) -> Option<usize> {
        let clip = self.clip.clone();
        let target = clipped(clip.as_deref(), target);
        if let Form::Paged(top) = &self.segment.form {
            let last = || top.pieces().checked_sub(1);
            let piece = match target {
                Target::From(key) => top.find(key)?,
                Target::Before(key) => key.and_then(|key| top.find(key)).or_else(last)?,
            };
            if !self.piece.holds(piece * PIECE_BLOCKS) {
                let frame = self.segment.slots.peek(top.index_block(piece))?;
                self.piece = Piece::of(Block::of(&frame), piece * PIECE_BLOCKS);
            }
        }
        let part = self.part();
        let last = || part.blocks().end.checked_sub(1);
        let number = match target {
            Target::From(key) => part.find(key)?,
            Target::Before(key) => key.and_then(|key| part.find(key)).or_else(last)?,
        };
        self.segment.slots.prefetch(number);
        Some(number)
    }

    /// What is to be read for block `number`, if it is neither in the cache nor in hand; else memory is asked for it.
    pub(crate) fn missing(&self, number: usize) -> Option<Missing> {
        let mut is_cached = false;
        self.segment.slots.look(number, |frame| {
            Block::prefetch(frame);
            is_cached = true;
        });
        if is_cached || self.ahead.as_ref().is_some_and(|span| (span.first..span.end).contains(&number)) {
            return None;
        }
        let (offset, len_bytes) = self.segment.extent(self.part(), &(number..number + 1)).ok()?;
        Some(Missing { number, file: self.segment.file.clone(), offset, len_bytes })
    }

    /// The block was read into `buf`: the seek finds it.
    pub(crate) fn hand(&mut self, block: &Missing, buf: Buf) {
        self.let_go();
        self.ahead = Some(Span { first: block.number, end: block.number + 1, offset: block.offset, buf });
    }

    /// Where the segment stands.
    pub(crate) fn files(&self) -> &Arc<Files> {
        &self.segment.files
    }

    /// Reads block `number`, and ahead as far as the window and the grant go. `passed` is of no use any more.
    fn read(&mut self, number: usize, passed: Option<Span>) -> Result<Span> {
        self.spare = passed.map(|span| span.buf).or(self.spare.take());
        if self.window.blocks() == 1 {
            self.let_go();
        }
        let ahead = self.plan(number)?;
        self.window.grow();
        if ahead.len() > 1 {
            let extent = self.segment.extent(self.part(), &ahead)?;
            match self.segment.read_span(ahead, extent, self.spare.take()) {
                Ok(span) => return Ok(span),
                // Who reads everything, as a merge does, needs the others as well.
                Err(error) if !self.fill_cache => return Err(error),
                Err(_) => self.window = Window::growing(),
            }
        }
        let extent = self.segment.extent(self.part(), &(number..number + 1))?;
        self.segment.read_span(number..number + 1, extent, None)
    }

    /// The blocks to read; if they are several, `spare` is large enough for them.
    fn plan(&mut self, number: usize) -> Result<Range<usize>> {
        let plan = |cursor: &Self, limit_bytes| {
            let blocks = cursor.window.blocks();
            cursor.segment.blocks_ahead(cursor.part(), (number, cursor.way), blocks, limit_bytes)
        };
        let most = plan(self, MOST_BYTES);
        if most.len() == 1 {
            return Ok(most);
        }
        let len_bytes = self.segment.extent(self.part(), &most)?.1;
        // Rounded up, so that a buffer serves for reads of about the same length.
        let wanted = len_bytes.next_power_of_two().max(SMALLEST_BYTES);
        let granted = self.grant.as_mut().map_or(wanted, |grant| grant.widen(wanted));
        let ahead = match granted {
            0..SMALLEST_BYTES => number..number + 1,
            _ if granted < len_bytes => plan(self, granted),
            _ => most,
        };
        let buf_bytes = wanted.min(granted);
        if ahead.len() > 1 && self.spare.as_ref().is_none_or(|buf| buf.capacity() < buf_bytes) {
            self.spare = Some(self.segment.files.buf(buf_bytes));
        }
        Ok(ahead)
    }

    /// Gives back what it has for reading ahead.
    fn let_go(&mut self) {
        (self.spare, self.ahead) = (None, None);
        self.grant.as_mut().into_iter().for_each(Grant::release);
    }

    /// A walk begins.
    fn begin(&mut self, way: Way) {
        self.block = None;
        self.way = way;
        self.window = first_window(self.fill_cache);
    }

    /// Stands on entry `at` of a block, which exists.
    fn stand(&mut self, frame: Frame, number: usize, at: usize) {
        let block = Block::of(&frame);
        self.counted = counted(self.clip.as_deref(), block, self.way);
        if !self.counted.contains(&at) {
            self.block = None;
            return;
        }
        if block.is_long() {
            self.segment.look_around(block, (number, at), self.way);
        }
        self.key.set_prefix(block.prefix());
        self.sole = self.segment.sole_entries(self.part(), block, number);
        self.number = number;
        self.at = at;
        self.spot = block.entry_at(at);
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
        let has_next = self.at + 1 < self.counted.end;
        let Some(block) = self.block.as_ref().map(Block::of).filter(|_| has_next) else { return false };
        self.at += 1;
        self.spot = block.entry_at(self.at);
        if block.is_long() {
            self.look_forward(block);
        }
        self.key.set_suffix(block.bytes_from(&self.spot), self.spot.suffix_len());
        true
    }

    /// To the entry before in the same block, if there is one.
    #[inline]
    fn step_backward(&mut self) -> bool {
        let has_next = self.at > self.counted.start;
        let Some(block) = self.block.as_ref().map(Block::of).filter(|_| has_next) else { return false };
        self.at -= 1;
        self.spot = block.entry_at(self.at);
        if block.is_long() {
            self.look_backward(block);
        }
        self.key.set_suffix(block.bytes_from(&self.spot), self.spot.suffix_len());
        true
    }

    /// Stands on the first entry of block `number`, or past the end.
    fn first_of(&mut self, number: usize) -> Result<()> {
        self.block = None;
        if number < self.segment.blocks {
            let block = self.load(number)?;
            self.stand(block, number, 0);
        }
        Ok(())
    }

    /// Stands on the last entry of the block before `number`, or past the front.
    fn last_before(&mut self, number: usize) -> Result<()> {
        self.block = None;
        if let Some(number) = number.checked_sub(1) {
            let block = self.load(number)?;
            let last = Block::of(&block).len() - 1;
            self.stand(block, number, last);
        }
        Ok(())
    }
}

impl Cursor for SegmentCursor {
    fn seek(&mut self, key: &[u8]) -> Result<()> {
        self.begin(Way::Forward);
        self.go_to(key)
    }

    fn seek_before(&mut self, key: Option<&[u8]>) -> Result<()> {
        self.begin(Way::Backward);
        self.go_before(key)
    }

    fn next(&mut self) -> Result<()> {
        if self.step_forward() || self.block.is_none() {
            return Ok(());
        }
        if self.clip_ends_here() {
            self.leave();
            return Ok(());
        }
        self.first_of(self.number + 1)
    }

    fn prev(&mut self) -> Result<()> {
        if self.step_backward() || self.block.is_none() {
            return Ok(());
        }
        if self.clip_begins_here() {
            self.leave();
            return Ok(());
        }
        self.last_before(self.number)
    }

    #[inline]
    fn entry(&self) -> Option<Entry<'_>> {
        let block = self.block.as_ref().map(Block::of)?;
        let EntryAt { seq, kind, .. } = self.spot;
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
