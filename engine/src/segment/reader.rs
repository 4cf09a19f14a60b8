//! An open segment: point reads, and the reading of blocks for cursors and verification.
//!
//! Index and filter are loaded once and stay in memory as long as the segment is open, if the cache's budget has room for
//! them: *pinned*. Else only the top is in memory, and their blocks come through the cache as data blocks do: *paged*. A
//! point read costs at most one device read (see `mod.rs`), or three.
//!
//! ```text
//!   pinned:  filter, index in memory ------------------------------> data block -> found, or the next data block
//!   paged:   top in memory -> filter block -> (top) -> index block -> data block -> found, or the next one's index block
//! ```
//!
//! Invariants: nothing of a block is used before its checksum passed; bytes of another block or segment do not pass. Any
//! number of threads may read; no lock is held across a device read. The drop of the last reference to a segment takes its
//! blocks out of the cache, and its file is due for removal if no version names it any more.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aio::{Alignment, Buf, File};

use super::block::{Block, Frame};
use super::filter::Filter;
use super::footer::{SegmentMeta, checksum};
use super::index::{BlockHandle, Index, Part};
use super::pages::{PIECE_BLOCKS, handle_in, is_searchable, separator_in};
use super::top::{Role, Top};
use crate::base::error::{Error, Result};
use crate::base::key::{Kind, Seq};
use crate::base::planted::{Bug, planted};
use crate::io::background::JobKind;
use crate::io::files::Files;
use crate::io::open_files::CachedFile;
use crate::io::read_stream::{Extent, Window};
use crate::io::removals::WhenUnused;
use crate::memory::cache::{Cache, Protected, Slots, Use};
use crate::memory::reserve::ReservedBytes;
use crate::read::cursor::Direction;

/// The cache of decoded blocks.
pub(crate) type BlockCache = Cache<Frame>;

/// An open segment.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(super) files: Arc<Files>,
    pub(super) cache: Arc<BlockCache>,
    pub(super) file: CachedFile,
    pub(super) path: PathBuf,
    pub(super) meta: SegmentMeta,
    pub(super) form: Form,
    /// Number of data blocks; index and filter blocks have higher numbers.
    pub(super) blocks: usize,
    /// Cache slots of its blocks; of index and filter blocks only if they are paged.
    pub(super) slots: Arc<Slots<Frame>>,
    /// Its part of the cache's budget: given back after the rest.
    pub(super) reserved: ReservedBytes<Frame>,
    /// Dropped last: its file must be closed by then, since the thread that closes a removed file frees its blocks.
    pub(super) removal: WhenUnused,
}

/// The form of index and filter.
#[derive(Debug)]
pub(super) enum Form {
    /// In memory, in one piece each.
    Pinned { index: Index, filter: Filter },
    /// In blocks, to which the top leads.
    Paged(Top),
}

impl Drop for Segment {
    fn drop(&mut self) {
        self.cache.forget(&self.slots);
    }
}

/// A block for as long as it is read.
enum BlockRef {
    Cached(Protected<Frame>),
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

/// The next block to search for a key, and the purpose of the search.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Aim {
    /// The number of the block in the file.
    pub(crate) number: usize,
    asked: Asked,
}

/// The purpose of the search in a block.
#[derive(Clone, Copy, Debug)]
enum Asked {
    /// In a data block: the entry of the key. In a filter block: whether the segment may have one. In an index block: the data
    /// block that may have it.
    Key,
    /// The entry of the key, in a data block whose handle came from an index block.
    At(BlockHandle),
    /// In an index block: the handle of the data block with this number.
    Block(usize),
}

impl Aim {
    #[inline]
    fn key(number: usize) -> Aim {
        Aim { number, asked: Asked::Key }
    }
}

/// The answer of a block about a key.
#[derive(Debug)]
pub(crate) enum Step<'b> {
    /// Its newest entry below the position.
    Found(Kind, Seq, &'b [u8]),
    /// None here, but this block may hold one.
    Block(Aim),
    /// The segment holds none.
    Absent,
}

impl Segment {
    #[inline]
    pub(crate) fn meta(&self) -> &SegmentMeta {
        &self.meta
    }

    /// No version names it any more: its file goes with its last reader.
    pub(crate) fn retire(&self) {
        self.removal.unnamed();
    }

    /// Memory of the open segment: index and filter or the top, cache slots of its blocks, and bounds.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let form = match &self.form {
            Form::Pinned { index, filter } => index.memory_bytes() + filter.memory_bytes(),
            Form::Paged(top) => top.memory_bytes(),
        };
        form + Segment::other_bytes(&self.meta, self.slots.memory_bytes())
    }

    /// Memory of a segment beside index, filter and top.
    pub(super) fn other_bytes(meta: &SegmentMeta, slots_bytes: usize) -> u64 {
        (meta.smallest.len() + meta.largest.len() + size_of::<Segment>() + slots_bytes) as u64
    }

    /// Whether index and filter come through the cache.
    pub(crate) fn is_paged(&self) -> bool {
        matches!(self.form, Form::Paged(_))
    }

    /// Whether anything here is below `snapshot`.
    #[inline]
    fn reaches_below(&self, snapshot: Seq) -> bool {
        snapshot > self.meta.min_seq
    }

    /// Shows the newest entry of `key` with `seq < snapshot`, in place; `hash` is `key_hash(key)`.
    ///
    /// The caller has compared the key with the bounds (`Piece::holds`); a key beyond them is not found, either.
    ///
    /// # Errors
    /// The read failed, or the block is damaged.
    #[inline]
    pub(crate) fn get_with<R>(
        &self,
        (key, hash): (&[u8], u64),
        snapshot: Seq,
        found: impl FnOnce(Kind, Seq, &[u8]) -> R,
    ) -> Result<Option<R>> {
        let mut next = match &self.form {
            Form::Pinned { index, filter } => {
                // The filter mostly says yes for the run that is asked, so its line comes while the index is searched.
                filter.prefetch(hash);
                let first = first_block(index, key);
                if let Some(number) = first {
                    self.slots.prefetch(number);
                }
                if !self.reaches_below(snapshot) || !filter.may_contain(hash) {
                    return Ok(None);
                }
                first.map(Aim::key)
            }
            Form::Paged(_) => self.begin((key, hash), snapshot),
        };
        while let Some(aim) = next {
            let held = match self.block(aim) {
                Err(_) if planted(Bug::ReadErrorTakenAsMissing) => return Ok(None),
                read => read?,
            };
            next = match self.search(aim, held.block(), (key, hash), snapshot) {
                Step::Found(kind, seq, value) => return Ok(Some(found(kind, seq, value))),
                Step::Block(aim) => Some(aim),
                Step::Absent => None,
            };
        }
        Ok(None)
    }

    /// Asks memory for the lines that the first step needs.
    #[inline]
    pub(crate) fn prefetch_filter(&self, hash: u64) {
        match &self.form {
            Form::Pinned { filter, .. } => filter.prefetch(hash),
            Form::Paged(top) => self.slots.prefetch(top.filter_block(hash)),
        }
    }

    /// First step of a point read: the block that decides first, if an entry of `key` below `snapshot` may be here. No I/O.
    #[inline]
    pub(crate) fn begin(&self, (key, hash): (&[u8], u64), snapshot: Seq) -> Option<Aim> {
        if !self.reaches_below(snapshot) {
            return None;
        }
        match &self.form {
            Form::Pinned { index, filter } if filter.may_contain(hash) => {
                first_block(index, key).map(Aim::key)
            }
            Form::Pinned { .. } => None,
            Form::Paged(top) => Some(Aim::key(top.filter_block(hash))),
        }
    }

    /// Asks memory for the lines that the second step needs.
    #[inline]
    pub(crate) fn prefetch_slot(&self, number: usize) {
        self.slots.prefetch(number);
    }

    /// Second step: the block, if it is in the cache, marked as used. Memory is asked for the lines that a search needs first.
    #[inline]
    pub(crate) fn cached(&self, number: usize) -> Protected<Frame> {
        let held = self.cache.get(&self.slots, number);
        if let Some(frame) = held.as_ref() {
            Block::prefetch(frame);
        }
        held
    }

    /// Third step: searches the block.
    #[inline]
    pub(crate) fn search<'b>(
        &self,
        aim: Aim,
        block: Block<'b>,
        (key, hash): (&[u8], u64),
        snapshot: Seq,
    ) -> Step<'b> {
        if aim.number >= self.blocks {
            return self.search_page(aim, block, (key, hash)).map_or(Step::Absent, Step::Block);
        }
        if let Some(spot) = block.find(key, hash, snapshot) {
            return Step::Found(spot.kind, spot.seq, block.value_at(&spot));
        }
        let next = aim.number + 1;
        // Older entries of the key stand in the next block only if it fills the end of this one.
        let goes_on =
            next < self.blocks && self.may_be_shared(aim.number, key) && block.is_key(block.len() - 1, key);
        if goes_on { Step::Block(self.following(next)) } else { Step::Absent }
    }

    /// Whether `key` may be in data block `number` and in the next one, by the index.
    #[inline]
    fn may_be_shared(&self, number: usize, key: &[u8]) -> bool {
        match &self.form {
            Form::Pinned { index, .. } => index.separator(number) == key,
            // The separator is not in memory.
            Form::Paged(_) => true,
        }
    }

    /// The way to data block `number`, from the one before it.
    fn following(&self, number: usize) -> Aim {
        match &self.form {
            Form::Pinned { .. } => Aim::key(number),
            Form::Paged(top) => {
                Aim { number: top.index_block(number / PIECE_BLOCKS), asked: Asked::Block(number) }
            }
        }
    }

    /// Searches an index or filter block.
    fn search_page(&self, aim: Aim, block: Block<'_>, (key, hash): (&[u8], u64)) -> Option<Aim> {
        let Form::Paged(top) = &self.form else { return None };
        match top.role(aim.number)? {
            Role::Filter(_) if !top.may_contain(block, hash) => None,
            Role::Filter(_) => top.find(key).map(|piece| Aim::key(top.index_block(piece))),
            Role::Index(piece) => {
                let first = piece * PIECE_BLOCKS;
                let at = match aim.asked {
                    Asked::Block(wanted) => wanted.checked_sub(first)?,
                    Asked::Key | Asked::At(_) => self.first_in_page(block, first, key),
                };
                let handle = handle_in(block, at)?;
                Some(Aim { number: first + at, asked: Asked::At(handle) })
            }
        }
    }

    /// The entry of an index block for the first data block that may hold `key`; `first` is the number of its first one.
    fn first_in_page(&self, block: Block<'_>, first: usize, key: &[u8]) -> usize {
        let at = block.lower_bound(key);
        if planted(Bug::IndexOffByOne) && at + 1 < block.len() && first + at + 1 < self.blocks {
            let mut separator = Vec::new();
            separator_in(block, at, &mut separator);
            return at + usize::from(separator == key);
        }
        at
    }

    /// Stored size of the block.
    pub(crate) fn stored_bytes(&self, aim: Aim) -> usize {
        self.handle(aim).padded_bytes()
    }

    /// The read for the block, which the caller submits: file, offset and length.
    ///
    /// # Errors
    /// No such read is possible, or the file cannot be opened.
    pub(crate) fn range_of(&self, aim: Aim) -> Result<(File, u64, usize)> {
        let (offset, len_bytes) = self.extent_of(&self.handle(aim))?;
        self.files.note_read();
        Ok((self.file.get()?, offset, len_bytes))
    }

    /// Checks and decodes the block after a read of its range, and puts it into the cache.
    ///
    /// A block that another thread reads at the same moment is read twice, and the first that comes into the cache stays. To
    /// wait for other readers, which may wait for this one, is not worth the one read.
    ///
    /// # Errors
    /// It is damaged.
    pub(crate) fn take_in(&self, aim: Aim, offset: u64, buf: Buf) -> Result<Frame> {
        let window = Window { blocks: aim.number..aim.number + 1, offset, buf };
        let frame = self.decode(aim.number, &self.handle(aim), &window)?;
        let charged = (&frame, Block::of(&frame).memory_bytes());
        self.cache.insert(&self.slots, aim.number, charged, Use::Point);
        Ok(frame)
    }

    /// The files of its store.
    pub(crate) fn files(&self) -> &Arc<Files> {
        &self.files
    }

    fn handle(&self, aim: Aim) -> BlockHandle {
        let handle = match (&self.form, aim.asked) {
            (_, Asked::At(handle)) => Some(handle),
            (Form::Pinned { index, .. }, _) => index.handle(aim.number),
            (Form::Paged(top), _) => top.handle(aim.number),
        };
        handle.expect(
            "block numbers are below the number of blocks, and that of a data block comes with its handle",
        )
    }

    /// The number as checksums know it.
    pub(super) fn number_in_file(number: usize) -> u32 {
        u32::try_from(number).expect("the footer counts blocks in 32 bits")
    }

    /// The block, from the cache or the device; it is in the cache afterwards.
    #[inline]
    fn block(&self, aim: Aim) -> Result<BlockRef> {
        let held = self.cached(aim.number);
        if held.is_some() {
            return Ok(BlockRef::Cached(held));
        }
        let read = || {
            let frame = self.read_block(None, aim)?;
            let bytes = Block::of(&frame).memory_bytes();
            Ok((frame, bytes))
        };
        self.cache.load(&self.slots, aim.number, read).map(BlockRef::Read)
    }

    /// The block, from the device, for a job or a user.
    fn read_block(&self, job: Option<JobKind>, aim: Aim) -> Result<Frame> {
        let handle = self.handle(aim);
        let (offset, len_bytes) = self.extent_of(&handle)?;
        let extent = Extent { blocks: aim.number..aim.number + 1, offset, len_bytes };
        let window = self.read_window(job, extent)?;
        self.decode(aim.number, &handle, &window)
    }

    /// The index block with this number; it comes into the cache only with `fill_cache`. Only merges leave it out.
    pub(super) fn page(&self, number: usize, fill_cache: bool) -> Result<Frame> {
        if !fill_cache {
            let cached = self.slots.peek(number);
            return cached.map_or_else(|| self.read_block(Some(JobKind::Merge), Aim::key(number)), Ok);
        }
        Ok(match self.block(Aim::key(number))? {
            BlockRef::Cached(held) => held.as_ref().expect("it was found").clone(),
            BlockRef::Read(frame) => frame,
        })
    }

    /// The blocks to read when block `number` is wanted: it, and the following ones in this direction, within the limit. The
    /// last of them is not in the cache.
    pub(super) fn blocks_ahead(
        &self,
        part: Part<'_>,
        number: usize,
        direction: Direction,
        limit: ReadLimit,
    ) -> Range<usize> {
        let (mut ahead, mut wanted) = (number..number + 1, number..number + 1);
        for _ in 1..limit.blocks {
            let next = match direction {
                Direction::Forward => ahead.end,
                Direction::Backward => ahead.start.wrapping_sub(1),
            };
            if !part.blocks().contains(&next) {
                break;
            }
            ahead = ahead.start.min(next)..ahead.end.max(next + 1);
            if !self.extent(part, ahead.clone()).is_ok_and(|extent| extent.len_bytes <= limit.bytes) {
                break;
            }
            if !self.slots.is_taken(next) {
                wanted = ahead.clone();
            }
        }
        wanted
    }

    /// Where in the file these blocks of `part` stand, as direct I/O reads them.
    pub(super) fn extent(&self, part: Part<'_>, blocks: Range<usize>) -> Result<Extent> {
        let handle = |number| part.handle(number).expect("these are blocks of the part");
        let last = handle(blocks.end - 1);
        let stop = last.offset + last.padded_bytes() as u64;
        let (offset, len_bytes) = self.aligned(handle(blocks.start).offset, stop)?;
        Ok(Extent { blocks, offset, len_bytes })
    }

    fn extent_of(&self, handle: &BlockHandle) -> Result<(u64, usize)> {
        self.aligned(handle.offset, handle.offset + handle.padded_bytes() as u64)
    }

    fn aligned(&self, start: u64, stop: u64) -> Result<(u64, usize)> {
        aligned((&self.path, self.file.alignment()), start, stop)
    }

    /// Reads these blocks at once, for a job or a user.
    pub(super) fn read_window(&self, job: Option<JobKind>, extent: Extent) -> Result<Window> {
        let buf = self.files.read_cached(job, &self.file, extent.offset, extent.len_bytes)?;
        Ok(Window { blocks: extent.blocks, offset: extent.offset, buf })
    }

    /// Checks and decodes a block of a window.
    pub(super) fn decode(&self, number: usize, handle: &BlockHandle, window: &Window) -> Result<Frame> {
        let stored = usize::try_from(handle.offset - window.offset)
            .ok()
            .and_then(|start| window.buf.get(start..start + handle.padded_bytes()))
            .expect("the window holds its blocks");
        let frame = decode_block((&self.path, self.meta.id), number, handle, stored)?;
        if let Form::Paged(top) = &self.form {
            check_page(top, number, &frame, Care::Open)
                .map_err(|what| corrupt(&self.path, number, handle, what))?;
        }
        Ok(frame)
    }
}

/// The first block in which `key` may stand.
#[inline]
pub(super) fn first_block(index: &Index, key: &[u8]) -> Option<usize> {
    let first = index.find(key)?;
    let is_last = first + 1 == index.blocks();
    let skips = planted(Bug::IndexOffByOne) && !is_last && index.separator(first) == key;
    Some(if skips { first + 1 } else { first })
}

/// The error for a block whose content is wrong.
pub(super) fn corrupt(path: &Path, number: usize, handle: &BlockHandle, what: &'static str) -> Error {
    Error::corrupt(path, handle.offset, what, "a valid block", format!("block {number}"))
}

/// The most that one read covers, unless its first block alone is longer.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadLimit {
    pub(super) blocks: usize,
    pub(super) bytes: usize,
}

/// How much is checked when a block is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Care {
    /// Everything that a reader relies on.
    Open,
    /// Also the rules that a reader trusts the writer to keep.
    Verify,
}

/// Offset and length of the read for bytes `start..stop`, extended to the alignment of direct I/O.
pub(super) fn aligned((path, alignment): (&Path, Alignment), start: u64, stop: u64) -> Result<(u64, usize)> {
    let align = alignment.offset_bytes as u64;
    let offset = start - start % align;
    let len_bytes = usize::try_from(stop.next_multiple_of(align) - offset).map_err(|_| {
        Error::corrupt(path, start, "length of a read", "a length that fits into memory", stop - start)
    })?;
    Ok((offset, len_bytes))
}

/// Checks and decodes the stored bytes of a block.
pub(super) fn decode_block(
    (path, segment): (&Path, u64),
    number: usize,
    handle: &BlockHandle,
    stored: &[u8],
) -> Result<Frame> {
    let found = checksum(segment, Segment::number_in_file(number), stored);
    if found != handle.crc && !planted(Bug::BlockChecksumIgnored) {
        let (expected, found) = (format!("{:#x}", handle.crc), format!("{found:#x}"));
        return Err(Error::corrupt(path, handle.offset, "block checksum", expected, found));
    }
    Block::decode(stored, handle.len_bytes).map_err(|what| corrupt(path, number, handle, what))
}

/// Checks an index or filter block against the top.
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
