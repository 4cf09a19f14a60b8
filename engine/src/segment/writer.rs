//! Writes a segment front to back, in direct writes of 1 MiB.
//!
//! Per segment: `size / 1 MiB` writes, a few per `io_submit`; one allocation per [`ALLOCATE_BYTES`], one truncation,
//! one sync. In memory: a few chunks, one block, the index, and 8 bytes of hash for each key.
//!
//! # Crash
//! Until [`SegmentWriter::finish`] has returned, the directory is synced and a manifest edit names it, the file is an
//! orphan that the next open removes. A writer that is dropped or fails removes its file itself.
//!
//! Invariants: entries rise strictly in internal order; `written` bytes are handed to the disk, `pending` follow.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use aio::{Buf, Bug, File, OpenMode, Operation, planted};
use bytes::Bytes;

use super::block_builder::{ALONE_BYTES, BlockBuilder, Encoded};
use super::filter::Filter;
use super::footer::{FEATURE_LZ4, FOOTER_BYTES, Footer, Layout, Section, SegmentMeta, TOP_PART, checksum};
use super::index::{BlockHandle, IndexBuilder};
use super::pages::{PIECE_BLOCKS, filter_blocks, index_blocks};
use super::top::TopBuilder;
use crate::base::error::Result;
use crate::base::key::{Entry, MAX_KEY_BYTES, Seq, key_hash};
use crate::io::files::Files;

/// Bytes of one write of a large segment.
const CHUNK_BYTES: usize = 1 << 20;
/// Bytes of the first write; the others are as large as the file so far, up to [`CHUNK_BYTES`].
const FIRST_CHUNK_BYTES: usize = 64 << 10;
/// Writes that are submitted together.
const CHUNKS_TOGETHER: usize = 4;
/// Space is reserved this far ahead of the writes.
const ALLOCATE_BYTES: u64 = 16 << 20;

/// A read of so much takes one page of memory, and the device less for it than for two: of reads of 4.5 or 5 KiB, with 8 or 32
/// in flight, it did a tenth to a seventh less in a second.
const PAGE_BYTES: usize = 4096;

/// The raw size at which the next block is full, after one of `raw` bytes was stored in `stored`: where an eighth or two
/// less makes it fit into a page, so much less.
fn aim(block_bytes: usize, (raw, stored): (usize, usize)) -> usize {
    // Blocks do not all shrink alike.
    let fits = raw * (PAGE_BYTES - PAGE_BYTES / 32) / stored;
    if fits >= block_bytes / 8 * 6 { fits.min(block_bytes) } else { block_bytes }
}

/// What the writer needs to know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriterOptions {
    /// File number of the new segment.
    pub(crate) id: u64,
    /// The keyspace whose entries come.
    pub(crate) keyspace: u32,
    /// The store that owns the file.
    pub(crate) store_id: u64,
    /// Raw size at which a block is full, if nothing speaks for a little less; 512 bytes to 32 KiB.
    pub(crate) block_bytes: usize,
    /// Whether to compress blocks (those that shrink by an eighth or more).
    pub(crate) compress: bool,
    /// Size of the filter.
    pub(crate) filter_bits_per_key: u32,
}

/// Counts that end up in the footer.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    entries: u64,
    tombstones: u64,
    raw_bytes: u64,
    min_seq: Option<Seq>,
    max_seq: Option<Seq>,
    features: u32,
}

/// Writes one segment.
#[derive(Debug)]
pub(crate) struct SegmentWriter {
    options: WriterOptions,
    output: Output,
    builder: BlockBuilder,
    /// See [`aim`].
    full_bytes: usize,
    /// The encoded block whose index entry waits for the next block's first key.
    unindexed: Option<BlockHandle>,
    index: IndexBuilder,
    hashes: Vec<u64>,
    smallest: Bytes,
    last_key: Vec<u8>,
    last_seq: Seq,
    totals: Totals,
}

impl SegmentWriter {
    /// Creates the file.
    ///
    /// # Errors
    /// The name is taken, or the disk is full or failing.
    pub(crate) fn create(files: &Arc<Files>, options: WriterOptions) -> Result<SegmentWriter> {
        assert!((512..=ALONE_BYTES).contains(&options.block_bytes), "block size out of range");
        Ok(SegmentWriter {
            output: Output::create(files, files.segment_path(options.id))?,
            full_bytes: options.block_bytes,
            options,
            builder: BlockBuilder::default(),
            unindexed: None,
            index: IndexBuilder::default(),
            hashes: Vec::new(),
            smallest: Bytes::new(),
            last_key: Vec::new(),
            last_seq: Seq::new(0),
            totals: Totals::default(),
        })
    }

    /// Adds the next entry; in strict internal order (key ascending, then newest first).
    ///
    /// # Errors
    /// The disk is full or failing: drop the writer.
    ///
    /// # Panics
    /// If the order is broken, the key is empty or too long, or a tombstone has a value.
    pub(crate) fn add(&mut self, entry: Entry<'_>) -> Result<()> {
        assert!((1..=MAX_KEY_BYTES).contains(&entry.key.len()), "key length out of range");
        assert!(entry.kind.allows_value_bytes(entry.value.len()), "this kind of entry has no value");
        let first = self.is_empty();
        let new_key = first || entry.key != self.last_key;
        if !first {
            assert!(entry.key >= self.last_key.as_slice(), "keys fall");
            assert!(new_key || entry.seq < self.last_seq, "entries of one key come newest first");
        }
        if !self.builder.has_room(&entry, self.full_bytes) {
            self.finish_block()?;
        }
        if let Some(handle) = self.unindexed.take() {
            self.index.add(handle, &self.last_key, Some(entry.key));
        }
        let hash = match self.hashes.last() {
            Some(&hash) if !new_key => hash,
            _ => key_hash(entry.key),
        };
        if new_key {
            self.hashes.push(hash);
            self.last_key.clear();
            self.last_key.extend_from_slice(entry.key);
        }
        if first {
            self.smallest = Bytes::copy_from_slice(entry.key);
        }
        self.last_seq = entry.seq;
        self.totals.count(&entry);
        self.builder.add(&entry, hash);
        Ok(())
    }

    /// Whether no entry was added yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.totals.entries == 0
    }

    /// About how large the file would be if it ended here.
    pub(crate) fn size_bytes(&self) -> u64 {
        let filter_bits = self.hashes.len() as u64 * u64::from(self.options.filter_bits_per_key);
        self.output.end()
            + self.builder.raw_bytes() as u64
            + self.index.len_bytes() as u64
            + filter_bits / 8
            + FOOTER_BYTES as u64
    }

    /// Writes what is missing and makes the file durable; its name is durable after the next sync of the directory.
    ///
    /// # Errors
    /// The disk is full or failing; the file is removed.
    ///
    /// # Panics
    /// If no entry was added: a segment holds at least one.
    pub(crate) fn finish(mut self) -> Result<SegmentMeta> {
        assert!(!self.is_empty(), "a segment holds at least one entry");
        self.finish_block()?;
        if let Some(handle) = self.unindexed.take() {
            self.index.add(handle, &self.last_key, None);
        }
        let layout = self.finish_pages()?;
        let footer = Footer {
            features: self.totals.features,
            segment: self.options.id,
            store: self.options.store_id,
            keyspace: self.options.keyspace,
            blocks: self.index.blocks(),
            entries: self.totals.entries,
            tombstones: self.totals.tombstones,
            raw_bytes: self.totals.raw_bytes,
            min_seq: self.totals.min_seq.unwrap_or_default(),
            max_seq: self.totals.max_seq.unwrap_or_default(),
            layout,
            size_bytes: self.output.end() + FOOTER_BYTES as u64,
        };
        let (bytes, footer_crc) = footer.encode();
        self.output.append(&bytes)?;
        assert_eq!(self.output.end(), footer.size_bytes, "the footer is last");
        self.output.finish()?;
        Ok(SegmentMeta {
            id: footer.segment,
            keyspace: footer.keyspace,
            size_bytes: footer.size_bytes,
            entries: footer.entries,
            tombstones: footer.tombstones,
            smallest: self.smallest,
            largest: Bytes::from(self.last_key),
            min_seq: footer.min_seq,
            max_seq: footer.max_seq,
            raw_bytes: footer.raw_bytes,
            footer_crc,
        })
    }

    fn finish_block(&mut self) -> Result<()> {
        let raw_bytes = self.builder.raw_bytes();
        let encoded = self.builder.finish(self.options.compress);
        self.full_bytes = aim(self.options.block_bytes, (raw_bytes, encoded.len_bytes));
        if encoded.compressed {
            self.totals.features |= FEATURE_LZ4;
        }
        let number = self.index.blocks();
        self.unindexed = Some(self.append_block(number, &encoded)?);
        Ok(())
    }

    /// Appends block `number` of the file.
    fn append_block(&mut self, number: u32, encoded: &Encoded) -> Result<BlockHandle> {
        let crc = checksum(self.options.id, number, &encoded.bytes);
        let handle = BlockHandle { offset: self.output.end(), len_bytes: encoded.len_bytes, crc };
        self.output.append(&encoded.bytes)?;
        Ok(handle)
    }

    /// Writes index and filter in blocks, and the top.
    fn finish_pages(&mut self) -> Result<Layout> {
        let entries = std::mem::take(&mut self.index);
        let mut top = TopBuilder::default();
        top.set_smallest(&self.smallest);
        let index = self.output.end();
        let first = self.finish_index(&entries, &mut top)?;
        let filter = self.output.end();
        let built = Filter::build(&self.hashes, self.options.filter_bits_per_key);
        for (number, encoded) in (first..).zip(filter_blocks(built.lines())) {
            top.add_filter(self.append_block(number, &encoded)?.crc);
        }
        let separators_bytes = entries.separators_bytes();
        let top = self.append_top(top.encode(built.lines().len()))?;
        self.index = entries;
        Ok(Layout { index, filter, top, separators_bytes })
    }

    /// Writes the index blocks; says which number the next block has.
    fn finish_index(&mut self, entries: &IndexBuilder, top: &mut TopBuilder) -> Result<u32> {
        let mut number = entries.blocks();
        let mut all = entries.entries();
        for encoded in index_blocks(entries.entries()) {
            let handle = self.append_block(number, &encoded)?;
            let mut piece = all.by_ref().take(PIECE_BLOCKS);
            let (first, separator) = piece.next().expect("an index block has an entry");
            top.add_index(handle, piece.last().map_or(separator, |(_, last)| last), first);
            number += 1;
        }
        Ok(number)
    }

    /// Appends the top with zeros up to where the footer may stand.
    fn append_top(&mut self, mut bytes: Vec<u8>) -> Result<Section> {
        let (offset, len_bytes) = (self.output.end(), bytes.len() as u64);
        let end = (offset + len_bytes).next_multiple_of(FOOTER_BYTES as u64);
        bytes.resize(usize::try_from(end - offset).expect("it is in memory already"), 0);
        let crc = checksum(self.options.id, TOP_PART, &bytes);
        self.output.append(&bytes)?;
        Ok(Section { offset, len_bytes, crc })
    }
}

impl Totals {
    fn count(&mut self, entry: &Entry<'_>) {
        self.entries += 1;
        self.tombstones += u64::from(entry.is_tombstone());
        self.raw_bytes += (entry.key.len() + entry.value.len()) as u64;
        self.min_seq = Some(self.min_seq.map_or(entry.seq, |seq| seq.min(entry.seq)));
        self.max_seq = Some(self.max_seq.map_or(entry.seq, |seq| seq.max(entry.seq)));
    }
}

/// The growing file. Removed when dropped unfinished.
#[derive(Debug)]
struct Output {
    files: Arc<Files>,
    file: File,
    path: PathBuf,
    /// Bytes handed to the disk; a multiple of [`FIRST_CHUNK_BYTES`] until the end.
    written: u64,
    /// Space reserved so far.
    allocated: u64,
    /// Full chunks, then the one that is being filled.
    pending: VecDeque<Buf>,
    /// Bytes in the last pending chunk.
    filled: usize,
    /// Chunks that came back.
    idle: Vec<Buf>,
    finished: bool,
}

impl Output {
    fn create(files: &Arc<Files>, path: PathBuf) -> Result<Output> {
        let file = files.open(&path, OpenMode::Create)?;
        Ok(Output {
            files: files.clone(),
            file,
            path,
            written: 0,
            allocated: 0,
            pending: VecDeque::new(),
            filled: 0,
            idle: Vec::new(),
            finished: false,
        })
    }

    /// Where the next byte will stand.
    fn end(&self) -> u64 {
        let full = self.pending.iter().rev().skip(1).map(|chunk| chunk.len()).sum::<usize>();
        self.written + (full + self.filled) as u64
    }

    fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.pending.back().is_none_or(|chunk| self.filled == chunk.len()) {
                self.next_chunk()?;
            }
            let chunk = self.pending.back_mut().expect("pushed above if there was none");
            let (now, later) = bytes.split_at(bytes.len().min(chunk.len() - self.filled));
            chunk[self.filled..self.filled + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
        }
        Ok(())
    }

    /// Begins a chunk, after handing out the full ones if there are enough.
    ///
    /// Chunks grow with the file: zeroing a megabyte would cost a small segment more than all the rest.
    fn next_chunk(&mut self) -> Result<()> {
        let end = self.end();
        if self.pending.len() == CHUNKS_TOGETHER {
            self.write_out(end + ALLOCATE_BYTES)?;
        }
        let len_bytes =
            usize::try_from(end).map_or(CHUNK_BYTES, |end| end.clamp(FIRST_CHUNK_BYTES, CHUNK_BYTES));
        let idle = self.idle.pop().filter(|chunk| chunk.len() >= len_bytes);
        self.pending.push_back(idle.unwrap_or_else(|| Buf::zeroed(len_bytes)));
        self.filled = 0;
        Ok(())
    }

    /// Writes the rest, sets the size, syncs.
    fn finish(&mut self) -> Result<()> {
        let size_bytes = self.end();
        assert!(size_bytes.is_multiple_of(FOOTER_BYTES as u64), "direct writes need whole pages");
        if let Some(last) = self.pending.back_mut() {
            last.set_len(self.filled);
        }
        self.write_out(size_bytes)?;
        let backend = self.files.backend();
        if self.allocated > size_bytes {
            backend.truncate(&self.file, size_bytes)?;
        }
        if !planted(Bug::SegmentNotSynced) {
            backend.sync(&self.file)?;
        }
        self.finished = true;
        Ok(())
    }

    /// Writes all pending chunks, after reserving space up to `allocate_to` unless there is enough.
    fn write_out(&mut self, allocate_to: u64) -> Result<()> {
        let end = self.end();
        if self.allocated < end {
            self.files.backend().allocate(&self.file, allocate_to)?;
            self.allocated = allocate_to;
        }
        let mut operations = VecDeque::new();
        let mut offset = self.written;
        for buf in self.pending.drain(..) {
            let len_bytes = buf.len() as u64;
            operations.push_back(Operation::write(&self.file, offset, buf).with_token(offset));
            offset += len_bytes;
        }
        assert_eq!(offset, end, "chunks follow each other");
        self.filled = 0;
        for completion in self.files.run(operations)? {
            self.idle.push(completion.whole()?.into_buf());
        }
        self.written = end;
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.finished {
            // Best effort: no version names the file, and the next open removes what stays behind.
            let _ = self.files.backend().remove(&self.path);
        }
    }
}
