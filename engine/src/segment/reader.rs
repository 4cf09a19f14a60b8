//! Reads a segment: point reads, cursors, verification.
//!
//! Index and filter are loaded once and stay in memory as long as the segment is open; blocks come through the cache.
//! A point read costs at most one device read (see `mod.rs`); a cursor reads one block at a time and, once it has
//! gone a few blocks in one direction, up to [`READ_AHEAD_BYTES`] at once.
//!
//! Invariants: nothing of a block is used before its checksum passed; bytes of another place or segment do not pass.
//! Any number of threads may read; nothing is locked here across a device read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aio::{Buf, Errno, File, OpenMode};
use bytes::Bytes;

use super::block::Block;
use super::filter::Filter;
use super::footer::{FILTER_PLACE, FOOTER_BYTES, Footer, INDEX_PLACE, Section, SegmentMeta, checksum};
use super::index::{Index, Place};
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::files::Files;
use crate::iter::Cursor;
use crate::key::{Entry, Kind, Seq};

/// Most bytes that a cursor reads at once.
const READ_AHEAD_BYTES: usize = 256 << 10;
/// Consecutive blocks after which a cursor begins to read ahead.
const READ_AHEAD_AFTER_BLOCKS: u32 = 2;

/// The cache of decoded blocks.
pub(crate) type BlockCache = Cache<Block>;

/// An open segment.
#[derive(Debug)]
pub(crate) struct Segment {
    files: Arc<Files>,
    cache: Arc<BlockCache>,
    file: File,
    path: PathBuf,
    meta: SegmentMeta,
    index: Index,
    filter: Filter,
}

impl Segment {
    /// Opens the file that `meta` describes and loads its index and filter: two reads.
    ///
    /// # Errors
    /// `Corrupt` if the file is missing or is not the file that `meta` and `store_id` describe; `Format` if a newer
    /// program wrote it.
    pub(crate) fn open(
        files: &Arc<Files>,
        cache: &Arc<BlockCache>,
        meta: &SegmentMeta,
        store_id: u64,
    ) -> Result<Arc<Segment>> {
        let path = files.segment_path(meta.id);
        let file = open_file(files, &path)?;
        let size_bytes = files.backend().size_bytes(&file)?;
        if size_bytes != meta.size_bytes {
            return Err(Error::corrupt(&path, 0, "segment size in bytes", meta.size_bytes, size_bytes));
        }
        let footer = read_footer(files, &file, size_bytes, Some(meta.footer_crc))?.0;
        check_footer(&path, meta, &footer, store_id)?;
        let (index, filter) = load(files, &file, &footer)?;
        let largest = index.separator(index.blocks() - 1);
        if index.smallest() != meta.smallest || largest != meta.largest {
            let what = "segment key bounds";
            return Err(Error::corrupt(&path, footer.index.offset, what, "the manifest's", "others"));
        }
        Ok(Arc::new(Segment {
            files: files.clone(),
            cache: cache.clone(),
            file,
            path,
            meta: meta.clone(),
            index,
            filter,
        }))
    }

    /// What the file itself says it is: for tools and repair, where no manifest vouches for it. Also the store's id.
    ///
    /// # Errors
    /// As [`Segment::open`].
    pub(crate) fn describe(files: &Files, id: u64) -> Result<(SegmentMeta, u64)> {
        let path = files.segment_path(id);
        let file = open_file(files, &path)?;
        let size_bytes = files.backend().size_bytes(&file)?;
        if size_bytes < FOOTER_BYTES as u64 || !size_bytes.is_multiple_of(FOOTER_BYTES as u64) {
            return Err(Error::corrupt(&path, 0, "segment size in bytes", "a multiple of 4096", size_bytes));
        }
        let (footer, footer_crc) = read_footer(files, &file, size_bytes, None)?;
        if footer.size_bytes != size_bytes || footer.segment != id {
            return Err(Error::corrupt(&path, 0, "segment id and size", id, footer.segment));
        }
        let (index, _) = load(files, &file, &footer)?;
        let meta = SegmentMeta {
            id,
            keyspace: footer.keyspace,
            size_bytes,
            entries: footer.entries,
            tombstones: footer.tombstones,
            smallest: Bytes::copy_from_slice(index.smallest()),
            largest: Bytes::copy_from_slice(index.separator(index.blocks() - 1)),
            min_seq: footer.min_seq,
            max_seq: footer.max_seq,
            raw_bytes: footer.raw_bytes,
            footer_crc,
        };
        Ok((meta, footer.store))
    }

    pub(crate) fn meta(&self) -> &SegmentMeta {
        &self.meta
    }

    /// What is pinned while the segment is open: index, filter and bounds.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let bounds = self.meta.smallest.len() + self.meta.largest.len() + size_of::<Segment>();
        self.index.memory_bytes() + self.filter.memory_bytes() + bounds as u64
    }

    /// Whether the filter and the key range leave it possible that the key is here; no I/O.
    pub(crate) fn may_contain(&self, key: &[u8], hash: u64) -> bool {
        self.meta.smallest <= key && self.meta.largest >= key && self.filter.may_contain(hash)
    }

    /// The newest entry of `key` with `seq < snapshot`; `hash` is `key_hash(key)`. The value is a copy.
    ///
    /// # Errors
    /// The read failed, or the block is damaged.
    pub(crate) fn get(&self, key: &[u8], hash: u64, snapshot: Seq) -> Result<Option<(Kind, Seq, Bytes)>> {
        if snapshot <= self.meta.min_seq || !self.may_contain(key, hash) {
            return Ok(None);
        }
        let Some(first) = self.index.find(key) else { return Ok(None) };
        for number in first..self.index.blocks() {
            let block = self.block(number)?;
            if let Some(i) = block.find(key, hash, snapshot) {
                let value = Bytes::copy_from_slice(block.value(i));
                return Ok(Some((block.kind(i), block.seq(i), value)));
            }
            // Older entries of the key stand in the next block only if it fills the end of this one.
            if self.index.separator(number) != key || !block.is_key(block.len() - 1, key) {
                break;
            }
        }
        Ok(None)
    }

    /// A cursor over all entries. With `fill_cache` the blocks that it reads stay in the cache; without, it uses what
    /// is there and leaves no trace.
    pub(crate) fn cursor(self: &Arc<Self>, fill_cache: bool) -> SegmentCursor {
        SegmentCursor { segment: self.clone(), fill_cache, at: None, key: Vec::new(), steps: 0, ahead: None }
    }

    /// Reads everything and checks it: checksums, order within and across blocks, separators, filter, counts, bounds.
    /// Returns the bytes checked.
    ///
    /// # Errors
    /// `Corrupt` names the first thing that does not fit.
    pub(crate) fn verify(&self) -> Result<u64> {
        let footer =
            read_footer(&self.files, &self.file, self.meta.size_bytes, Some(self.meta.footer_crc))?.0;
        load(&self.files, &self.file, &footer)?;
        let mut seen = Seen::default();
        let mut next = 0;
        while next < self.index.blocks() {
            let span = self.read_span(next, true)?;
            while next < span.end {
                let block = self.decode(next, &span)?;
                seen.block(&block, self, next)?;
                next += 1;
            }
        }
        seen.totals(self)?;
        Ok(self.meta.size_bytes)
    }

    fn place(&self, number: usize) -> Place {
        self.index.place(number).expect("block numbers are below the number of blocks")
    }

    fn cache_key(number: usize) -> u32 {
        u32::try_from(number).expect("the footer counts blocks in 32 bits")
    }

    fn corrupt(&self, number: usize, what: &'static str) -> Error {
        Error::corrupt(
            &self.path,
            self.place(number).offset,
            what,
            "a valid block",
            format!("block {number}"),
        )
    }

    /// The block, from the cache or the device; it is in the cache afterwards.
    fn block(&self, number: usize) -> Result<Arc<Block>> {
        if let Some(block) = self.cache.get(self.meta.id, Segment::cache_key(number)) {
            return Ok(block);
        }
        let span = self.read_span(number, false)?;
        let block = Arc::new(self.decode(number, &span)?);
        self.cache.insert(self.meta.id, Segment::cache_key(number), &block, block.memory_bytes());
        Ok(block)
    }

    /// Reads block `first`, and with `ahead` as many of the following as fit into [`READ_AHEAD_BYTES`].
    fn read_span(&self, first: usize, ahead: bool) -> Result<Span> {
        let start = self.place(first).offset;
        let stop_of = |number| {
            let place = self.place(number);
            place.offset + place.padded_bytes() as u64
        };
        let mut end = first + 1;
        while ahead && end < self.index.blocks() && stop_of(end) - start <= READ_AHEAD_BYTES as u64 {
            end += 1;
        }
        let (offset, buf) = read_range(&self.files, &self.file, start, stop_of(end - 1))?;
        Ok(Span { first, end, offset, buf })
    }

    /// Checks and decodes a block of a span.
    fn decode(&self, number: usize, span: &Span) -> Result<Block> {
        let place = self.place(number);
        let stored = usize::try_from(place.offset - span.offset)
            .ok()
            .and_then(|start| span.buf.get(start..start + place.padded_bytes()))
            .expect("the span holds its blocks");
        let found = checksum(self.meta.id, Segment::cache_key(number), stored);
        if found != place.crc {
            let (expected, found) = (format!("{:#x}", place.crc), format!("{found:#x}"));
            return Err(Error::corrupt(&self.path, place.offset, "block checksum", expected, found));
        }
        Block::decode(stored, place.len_bytes).map_err(|what| self.corrupt(number, what))
    }
}

/// Blocks `first..end`, as read from the file.
struct Span {
    first: usize,
    end: usize,
    /// Where the buffer begins in the file.
    offset: u64,
    buf: Buf,
}

fn open_file(files: &Files, path: &Path) -> Result<File> {
    files.backend().open(path, OpenMode::Read).map_err(|error| match error.errno() {
        Some(Errno::NOT_FOUND) => Error::corrupt(path, 0, "segment file", "a file", "none"),
        _ => error.into(),
    })
}

/// Reads bytes `start..stop` with what direct I/O needs around them; returns where the buffer begins in the file.
fn read_range(files: &Files, file: &File, start: u64, stop: u64) -> Result<(u64, Buf)> {
    let align = file.alignment().offset_bytes as u64;
    let offset = start - start % align;
    let len_bytes = usize::try_from(stop.next_multiple_of(align) - offset).map_err(|_| {
        Error::corrupt(file.path(), start, "length of a read", "what fits into memory", stop - start)
    })?;
    Ok((offset, files.read(file, offset, len_bytes)?))
}

/// The footer and its checksum, which must be `expected` if that is known.
fn read_footer(files: &Files, file: &File, size_bytes: u64, expected: Option<u32>) -> Result<(Footer, u32)> {
    let path = file.path();
    let Some(start) = size_bytes.checked_sub(FOOTER_BYTES as u64) else {
        return Err(Error::corrupt(path, 0, "segment size in bytes", "at least 4096", size_bytes));
    };
    let (offset, buf) = read_range(files, file, start, size_bytes)?;
    let skip = usize::try_from(start - offset).unwrap_or(usize::MAX);
    let (footer, crc) = Footer::decode(buf.get(skip..).unwrap_or_default(), path, start)?;
    match expected {
        Some(expected) if expected != crc => {
            let (expected, found) = (format!("{expected:#x}"), format!("{crc:#x}"));
            Err(Error::corrupt(path, start, "segment footer against the manifest", expected, found))
        }
        _ => Ok((footer, crc)),
    }
}

/// That the footer says what the manifest says.
fn check_footer(path: &Path, meta: &SegmentMeta, footer: &Footer, store_id: u64) -> Result<()> {
    let pairs = [
        ("segment id", meta.id, footer.segment),
        ("store id", store_id, footer.store),
        ("keyspace id", u64::from(meta.keyspace), u64::from(footer.keyspace)),
        ("segment size in bytes", meta.size_bytes, footer.size_bytes),
        ("number of entries", meta.entries, footer.entries),
        ("number of tombstones", meta.tombstones, footer.tombstones),
        ("raw bytes", meta.raw_bytes, footer.raw_bytes),
        ("smallest sequence number", meta.min_seq.get(), footer.min_seq.get()),
        ("largest sequence number", meta.max_seq.get(), footer.max_seq.get()),
    ];
    for (what, expected, found) in pairs {
        if expected != found {
            return Err(Error::corrupt(path, footer.size_bytes - FOOTER_BYTES as u64, what, expected, found));
        }
    }
    Ok(())
}

/// Reads and decodes index and filter.
fn load(files: &Files, file: &File, footer: &Footer) -> Result<(Index, Filter)> {
    let path = file.path();
    let footer_offset = footer.size_bytes - FOOTER_BYTES as u64;
    let (offset, buf) = read_range(files, file, footer.index.offset, footer_offset)?;
    let section = |section: &Section, stop: u64, place: u32, what: &'static str| {
        let at = |position: u64| usize::try_from(position - offset).unwrap_or(usize::MAX);
        let padded = buf.get(at(section.offset)..at(stop)).unwrap_or_default();
        let found = checksum(footer.segment, place, padded);
        if found != section.crc {
            let (expected, found) = (format!("{:#x}", section.crc), format!("{found:#x}"));
            return Err(Error::corrupt(path, section.offset, what, expected, found));
        }
        Ok(buf.get(at(section.offset)..at(section.offset + section.len_bytes)).unwrap_or_default())
    };
    let index = section(&footer.index, footer.filter.offset, INDEX_PLACE, "segment index checksum")?;
    let index = Index::decode(index, footer.index.offset)
        .map_err(|what| Error::corrupt(path, footer.index.offset, what, "a valid index", "another"))?;
    if index.blocks() as u64 != u64::from(footer.blocks) {
        let what = "number of blocks in the index";
        return Err(Error::corrupt(path, footer.index.offset, what, footer.blocks, index.blocks()));
    }
    let filter = section(&footer.filter, footer_offset, FILTER_PLACE, "segment filter checksum")?;
    let filter = Filter::decode(filter)
        .map_err(|what| Error::corrupt(path, footer.filter.offset, what, "a valid filter", "another"))?;
    Ok((index, filter))
}

/// What a verification has seen so far.
#[derive(Default)]
struct Seen {
    entries: u64,
    tombstones: u64,
    raw_bytes: u64,
    min_seq: Option<Seq>,
    max_seq: Option<Seq>,
    first_key: Vec<u8>,
    last: Option<(Vec<u8>, Seq)>,
}

impl Seen {
    fn block(&mut self, block: &Block, segment: &Segment, number: usize) -> Result<()> {
        let (mut failed, mut first) = (None, true);
        block
            .check(|entry, hash| {
                if first {
                    failed = failed.or(self.first_of_block(entry, segment, number));
                    first = false;
                }
                if !segment.filter.may_contain(hash) {
                    failed = failed.or(Some("a key of a block is not in the filter"));
                }
                self.entries += 1;
                self.tombstones += u64::from(entry.kind == Kind::Delete);
                self.raw_bytes += (entry.key.len() + entry.value.len()) as u64;
                self.min_seq = Some(self.min_seq.map_or(entry.seq, |seq| seq.min(entry.seq)));
                self.max_seq = Some(self.max_seq.map_or(entry.seq, |seq| seq.max(entry.seq)));
            })
            .map_err(|what| segment.corrupt(number, what))?;
        let last = block.len() - 1;
        let key = [block.prefix(), block.suffix(last)].concat();
        if key.as_slice() > segment.index.separator(number) {
            failed = failed.or(Some("a key of a block is above its separator"));
        }
        self.last = Some((key, block.seq(last)));
        failed.map_or(Ok(()), |what| Err(segment.corrupt(number, what)))
    }

    /// How the block continues the one before.
    fn first_of_block(
        &mut self,
        entry: &Entry<'_>,
        segment: &Segment,
        number: usize,
    ) -> Option<&'static str> {
        let Some((key, seq)) = &self.last else {
            self.first_key = entry.key.to_vec();
            return None;
        };
        let same_key = key == entry.key;
        if key.as_slice() > entry.key || same_key && *seq <= entry.seq {
            return Some("order of entries across blocks");
        }
        let separator = segment.index.separator(number - 1);
        if separator > entry.key || separator == entry.key && !same_key {
            return Some("a key of a block is not above the separator before");
        }
        None
    }

    fn totals(&self, segment: &Segment) -> Result<()> {
        let meta = &segment.meta;
        let last_key = self.last.as_ref().map_or(&[] as &[u8], |(key, _)| key);
        let equal = self.entries == meta.entries
            && self.tombstones == meta.tombstones
            && self.raw_bytes == meta.raw_bytes
            && self.min_seq == Some(meta.min_seq)
            && self.max_seq == Some(meta.max_seq)
            && meta.smallest == self.first_key
            && meta.largest == last_key;
        if equal {
            return Ok(());
        }
        let found =
            format!("{} entries, {} tombstones, {} bytes", self.entries, self.tombstones, self.raw_bytes);
        Err(Error::corrupt(&segment.path, 0, "segment totals", format!("{meta:?}"), found))
    }
}

/// Walks the entries of one segment. Holds at most one block and one span of read-ahead.
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
