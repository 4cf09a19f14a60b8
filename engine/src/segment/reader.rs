//! An open segment: point reads, and the reading of blocks for cursors and verification.
//!
//! Index and filter are loaded once and stay in memory as long as the segment is open; blocks come through the cache.
//! A point read costs at most one device read (see `mod.rs`).
//!
//! Invariants: nothing of a block is used before its checksum passed; bytes of another place or segment do not pass.
//! Any number of threads may read; nothing is locked here across a device read. Whoever drops the last reference to a
//! segment takes its blocks out of the cache.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aio::{Buf, Bug, File, planted};

use super::block::{Block, Frame};
use super::filter::Filter;
use super::footer::{SegmentMeta, checksum};
use super::index::{Index, Place};
use super::pages::is_searchable;
use super::top::Top;
use crate::cache::{Cache, Held, Slots, Use, is_hot};
use crate::error::{Error, Result};
use crate::files::Files;
use crate::key::{Kind, Seq};

/// The cache of decoded blocks.
pub(crate) type BlockCache = Cache<Frame>;

/// An open segment.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(super) files: Arc<Files>,
    pub(super) cache: Arc<BlockCache>,
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) meta: SegmentMeta,
    pub(super) index: Index,
    pub(super) filter: Filter,
    /// Where its blocks stand when they are cached.
    pub(super) slots: Arc<Slots<Frame>>,
}

impl Drop for Segment {
    fn drop(&mut self) {
        self.cache.forget(&self.slots);
    }
}

/// A block for as long as it is looked at.
enum BlockRef {
    Cached(Held<Frame>),
    Read(Frame),
}

impl BlockRef {
    #[inline]
    fn block(&self) -> Block<'_> {
        Block::of(match self {
            BlockRef::Cached(held) => held.as_ref().expect("it was found"),
            BlockRef::Read(block) => block,
        })
    }
}

/// What a block says of a key.
#[derive(Debug)]
pub(crate) enum Step<'b> {
    /// Its newest entry below the position.
    Found(Kind, Seq, &'b [u8]),
    /// Nothing, but its versions go on in this block.
    Block(usize),
    /// Nothing is in this segment.
    Absent,
}

impl Segment {
    pub(crate) fn meta(&self) -> &SegmentMeta {
        &self.meta
    }

    /// What is pinned while the segment is open: index, filter, places of its blocks, and bounds.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let bounds = self.meta.smallest.len() + self.meta.largest.len() + size_of::<Segment>();
        let places = bounds + self.slots.memory_bytes();
        self.index.memory_bytes() + self.filter.memory_bytes() + places as u64
    }

    /// Whether the filter and the key range leave it possible that the key is here; no I/O.
    pub(crate) fn may_contain(&self, key: &[u8], hash: u64) -> bool {
        self.meta.smallest <= key && self.meta.largest >= key && self.filter.may_contain(hash)
    }

    /// Shows the newest entry of `key` with `seq < snapshot`, in place; `hash` is `key_hash(key)`.
    ///
    /// # Errors
    /// The read failed, or the block is damaged.
    pub(crate) fn get_with<R>(
        &self,
        (key, hash): (&[u8], u64),
        snapshot: Seq,
        found: impl FnOnce(Kind, Seq, &[u8]) -> R,
    ) -> Result<Option<R>> {
        // Mostly the filter says yes, or nobody would ask this run: so its line comes while the index is searched.
        self.filter.prefetch(hash);
        let mut next = self.first_block(key);
        if let Some(number) = next {
            self.slots.prefetch(number);
        }
        if !self.may_show(key, hash, snapshot) {
            return Ok(None);
        }
        while let Some(number) = next {
            let held = match self.block(number) {
                Err(_) if planted(Bug::ReadErrorTakenAsMissing) => return Ok(None),
                read => read?,
            };
            next = match self.search(number, held.block(), (key, hash), snapshot) {
                Step::Found(kind, seq, value) => return Ok(Some(found(kind, seq, value))),
                Step::Block(number) => Some(number),
                Step::Absent => None,
            };
        }
        Ok(None)
    }

    /// Asks memory for what the first step needs.
    pub(crate) fn prefetch_filter(&self, hash: u64) {
        self.filter.prefetch(hash);
    }

    /// First step of a point read: whether an entry of `key` below `snapshot` may be here. No I/O.
    pub(crate) fn may_show(&self, key: &[u8], hash: u64, snapshot: Seq) -> bool {
        snapshot > self.meta.min_seq && self.may_contain(key, hash)
    }

    /// Second step: the block in which the newest entry of `key` stands, if there is one here. No I/O.
    pub(crate) fn first_block(&self, key: &[u8]) -> Option<usize> {
        let first = self.index.find(key)?;
        let is_last = first + 1 == self.index.blocks();
        let skips = planted(Bug::IndexOffByOne) && !is_last && self.index.separator(first) == key;
        Some(if skips { first + 1 } else { first })
    }

    /// Asks memory for what the third step needs.
    pub(crate) fn prefetch_slot(&self, number: usize) {
        self.slots.prefetch(number);
    }

    /// Third step: the block, if it is in the cache, marked as used. Memory is asked for what a search needs first.
    pub(crate) fn cached(&self, number: usize) -> Held<Frame> {
        let held = self.cache.get(&self.slots, number);
        if let Some(frame) = held.as_ref() {
            Block::prefetch(frame);
        }
        held
    }

    /// Last step: searches block `number`.
    pub(crate) fn search<'b>(
        &self,
        number: usize,
        block: Block<'b>,
        (key, hash): (&[u8], u64),
        snapshot: Seq,
    ) -> Step<'b> {
        if let Some(i) = block.find(key, hash, snapshot) {
            return Step::Found(block.kind(i), block.seq(i), block.value(i));
        }
        let next = number + 1;
        // Older entries of the key stand in the next block only if it fills the end of this one.
        let goes_on = next < self.index.blocks()
            && self.index.separator(number) == key
            && block.is_key(block.len() - 1, key);
        if goes_on { Step::Block(next) } else { Step::Absent }
    }

    /// What reading block `number` takes off the device.
    pub(crate) fn stored_bytes(&self, number: usize) -> usize {
        self.place(number).padded_bytes()
    }

    /// What has to be read for block `number`: from where in the file, and how many bytes.
    ///
    /// # Errors
    /// No such read is possible.
    pub(crate) fn range_of(&self, number: usize) -> Result<(&File, u64, usize)> {
        let place = self.place(number);
        let stop = place.offset + place.padded_bytes() as u64;
        let (offset, len_bytes) = aligned(&self.file, place.offset, stop)?;
        Ok((&self.file, offset, len_bytes))
    }

    /// Checks and decodes block `number` after a read of its range, and puts it into the cache.
    ///
    /// A block that somebody else reads in the same moment is read twice, and the first that comes into the cache stays:
    /// to wait for others here, while they may wait for what is read here, is not worth the one read.
    ///
    /// # Errors
    /// It is damaged.
    pub(crate) fn take_in(&self, number: usize, offset: u64, buf: Buf) -> Result<Frame> {
        let span = Span { first: number, end: number + 1, offset, buf };
        let frame = self.decode(number, &span)?;
        self.files.give_back(span.buf);
        let charged = (&frame, Block::of(&frame).memory_bytes());
        self.cache.insert(&self.slots, number, charged, Use::Point);
        Ok(frame)
    }

    /// Number of blocks.
    pub(crate) fn blocks(&self) -> usize {
        self.index.blocks()
    }

    /// Calls `each` for the blocks that are in the cache and were used there: with bounds of their keys, and the bytes that
    /// they take on the device.
    pub(crate) fn each_hot_block(&self, mut each: impl FnMut(&[u8], &[u8], u64)) {
        for number in (0..self.blocks()).filter(|&number| is_hot(&self.slots, number)) {
            let before = number.checked_sub(1).map(|before| self.index.separator(before));
            let from = before.unwrap_or(self.meta.smallest.as_ref());
            each(from, self.index.separator(number), self.stored_bytes(number) as u64);
        }
    }

    /// Puts rising blocks together that stand side by side, as long as one read takes at most `limit_bytes`.
    pub(crate) fn pieces(
        &self,
        blocks: impl Iterator<Item = usize>,
        limit_bytes: usize,
    ) -> Vec<Range<usize>> {
        let mut pieces: Vec<Range<usize>> = Vec::new();
        for block in blocks {
            if let Some(piece) = pieces.last_mut().filter(|piece| piece.end == block) {
                let longer = piece.start..block + 1;
                if self.extent(&longer).is_ok_and(|(_, len_bytes)| len_bytes <= limit_bytes) {
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
    pub(crate) fn warm(&self, blocks: &Range<usize>) -> Result<()> {
        let span = self.read_span(blocks.clone(), None)?;
        for number in blocks.clone() {
            let frame = self.decode(number, &span)?;
            let charged = (&frame, Block::of(&frame).memory_bytes());
            self.cache.insert(&self.slots, number, charged, Use::Warm);
        }
        self.files.give_back(span.buf);
        Ok(())
    }

    /// The machine on which it stands.
    pub(crate) fn files(&self) -> &Arc<Files> {
        &self.files
    }

    fn place(&self, number: usize) -> Place {
        self.index.place(number).expect("block numbers are below the number of blocks")
    }

    /// The number as checksums know it.
    pub(super) fn number_in_file(number: usize) -> u32 {
        u32::try_from(number).expect("the footer counts blocks in 32 bits")
    }

    pub(super) fn corrupt(&self, number: usize, what: &'static str) -> Error {
        Error::corrupt(
            &self.path,
            self.place(number).offset,
            what,
            "a valid block",
            format!("block {number}"),
        )
    }

    /// The block, from the cache or the device; it is in the cache afterwards.
    fn block(&self, number: usize) -> Result<BlockRef> {
        let held = self.cache.get(&self.slots, number);
        if let Some(frame) = held.as_ref() {
            Block::prefetch(frame);
            return Ok(BlockRef::Cached(held));
        }
        let read = || {
            let span = self.read_span(number..number + 1, None)?;
            let frame = self.decode(number, &span)?;
            self.files.give_back(span.buf);
            let bytes = Block::of(&frame).memory_bytes();
            Ok((frame, bytes))
        };
        self.cache.load(&self.slots, number, read).map(BlockRef::Read)
    }

    /// What to read when block `number` is wanted: it, and up to `blocks` in all on the way, as long as no more than
    /// `limit_bytes` are read. Ends with a block that is not in the cache.
    pub(super) fn blocks_ahead(
        &self,
        number: usize,
        way: Way,
        blocks: usize,
        limit_bytes: usize,
    ) -> Range<usize> {
        let (mut ahead, mut wanted) = (number..number + 1, number..number + 1);
        for _ in 1..blocks {
            let next = match way {
                Way::Forward => ahead.end,
                Way::Backward => ahead.start.wrapping_sub(1),
            };
            if next >= self.index.blocks() {
                break;
            }
            ahead = ahead.start.min(next)..ahead.end.max(next + 1);
            if !self.extent(&ahead).is_ok_and(|(_, len_bytes)| len_bytes <= limit_bytes) {
                break;
            }
            if !self.slots.is_taken(next) {
                wanted = ahead.clone();
            }
        }
        wanted
    }

    /// Where in the file these blocks stand, as direct I/O reads them: offset and length.
    pub(super) fn extent(&self, blocks: &Range<usize>) -> Result<(u64, usize)> {
        let last = self.place(blocks.end - 1);
        let stop = last.offset + last.padded_bytes() as u64;
        aligned(&self.file, self.place(blocks.start).offset, stop)
    }

    /// Reads these blocks at once, into `buf` if there is one and it is long enough.
    pub(super) fn read_span(&self, blocks: Range<usize>, buf: Option<Buf>) -> Result<Span> {
        let (offset, len_bytes) = self.extent(&blocks)?;
        let buf = match buf.filter(|buf| buf.capacity() >= len_bytes) {
            Some(mut buf) => {
                buf.set_len(len_bytes);
                buf
            }
            None => self.files.buf(len_bytes),
        };
        let buf = self.files.read_into(&self.file, offset, buf)?;
        Ok(Span { first: blocks.start, end: blocks.end, offset, buf })
    }

    /// Checks and decodes a block of a span.
    pub(super) fn decode(&self, number: usize, span: &Span) -> Result<Frame> {
        let place = self.place(number);
        let stored = usize::try_from(place.offset - span.offset)
            .ok()
            .and_then(|start| span.buf.get(start..start + place.padded_bytes()))
            .expect("the span holds its blocks");
        decode_block((&self.path, self.meta.id), number, &place, stored)
    }
}

/// Blocks `first..end`, as read from the file.
pub(super) struct Span {
    pub(super) first: usize,
    pub(super) end: usize,
    /// Where the buffer begins in the file.
    pub(super) offset: u64,
    pub(super) buf: Buf,
}

/// The direction of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Forward,
    Backward,
}

/// How much is checked of what is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Care {
    /// What a reader relies on.
    Open,
    /// And what it takes from the writer.
    Verify,
}

/// Where a read of bytes `start..stop` begins in the file, and its length, with what direct I/O needs around them.
pub(super) fn aligned(file: &File, start: u64, stop: u64) -> Result<(u64, usize)> {
    let align = file.alignment().offset_bytes as u64;
    let offset = start - start % align;
    let len_bytes = usize::try_from(stop.next_multiple_of(align) - offset).map_err(|_| {
        Error::corrupt(file.path(), start, "length of a read", "what fits into memory", stop - start)
    })?;
    Ok((offset, len_bytes))
}

/// Checks and decodes the stored bytes of a block.
pub(super) fn decode_block(
    (path, segment): (&Path, u64),
    number: usize,
    place: &Place,
    stored: &[u8],
) -> Result<Frame> {
    let found = checksum(segment, Segment::number_in_file(number), stored);
    if found != place.crc && !planted(Bug::BlockChecksumIgnored) {
        let (expected, found) = (format!("{:#x}", place.crc), format!("{found:#x}"));
        return Err(Error::corrupt(path, place.offset, "block checksum", expected, found));
    }
    Block::decode(stored, place.len_bytes)
        .map_err(|what| Error::corrupt(path, place.offset, what, "a valid block", format!("block {number}")))
}

/// That an index or filter block is what the top says of it.
pub(super) fn check_page(
    top: &Top,
    number: usize,
    frame: &Frame,
    care: Care,
) -> std::result::Result<(), &'static str> {
    let block = Block::of(frame);
    let Some(role) = top.role(number) else { return Ok(()) };
    top.check(role, block)?;
    if care == Care::Verify && number < top.filter_blocks().start && !is_searchable(block) {
        return Err("search of an index block");
    }
    Ok(())
}
