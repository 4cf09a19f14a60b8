//! Writes the blocks, the index, the filter and the footer of one segment, front to back.
//!
//! The bytes go through the [`WriteStream`] of the job, which makes them durable. In memory: one block, the index, and 8
//! bytes of hash for each key.
//!
//! # Crash
//! Until the stream is closed and a manifest edit names the file, it is an orphan that the next open removes.
//!
//! Invariant: entries rise strictly in internal order. The caller compares the keys, so that each is compared once.

use bytes::Bytes;

use super::block_builder::{ALONE_BYTES, BlockBuilder, Encoded};
use super::filter::Filter;
use super::footer::{FEATURE_LZ4, FOOTER_BYTES, Footer, Layout, Section, SegmentMeta, TOP_PART, checksum};
use super::index::{BlockHandle, IndexBuilder};
use super::pages::{PIECE_BLOCKS, filter_blocks, index_blocks};
use super::top::TopBuilder;
use crate::base::error::Result;
use crate::base::key::{Entry, MAX_KEY_BYTES, Seq, key_hash};
use crate::compaction::retain::Kept;
use crate::io::write_stream::WriteStream;

/// A read of this size takes one page of memory. The device is faster with it than with two pages: it did a tenth to a seventh
/// fewer reads of 4.5 or 5 KiB in a second, with 8 or 32 in flight.
const PAGE_BYTES: usize = 4096;

/// The raw size at which the next block is full, after one of `raw_bytes` was stored in `stored_bytes`. It is less than
/// `block_bytes`, by up to a quarter, if the stored block then fits into a page.
fn next_full_bytes(block_bytes: usize, raw_bytes: usize, stored_bytes: usize) -> usize {
    // Not all blocks shrink alike.
    let fits = raw_bytes * (PAGE_BYTES - PAGE_BYTES / 32) / stored_bytes;
    if fits >= block_bytes / 8 * 6 { fits.min(block_bytes) } else { block_bytes }
}

/// The properties of a new segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriterOptions {
    /// File number of the new segment.
    pub(crate) id: u64,
    /// The keyspace of its entries.
    pub(crate) keyspace: u32,
    /// The store that owns the file.
    pub(crate) store_id: u64,
    /// Raw size at which a block is full at the latest; 512 bytes to 32 KiB.
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
    stream: WriteStream,
    builder: BlockBuilder,
    /// See [`next_full_bytes`].
    full_bytes: usize,
    /// The encoded block whose index entry waits for the next block's first key.
    unindexed: Option<BlockHandle>,
    index: IndexBuilder,
    hashes: Vec<u64>,
    smallest: Bytes,
    /// The last key of the last finished block.
    last_key: Vec<u8>,
    totals: Totals,
}

impl SegmentWriter {
    /// Creates the file as the next one of the stream.
    ///
    /// # Errors
    /// The name is taken, or the disk is full or failing.
    pub(crate) fn create(mut stream: WriteStream, options: WriterOptions) -> Result<SegmentWriter> {
        assert!((512..=ALONE_BYTES).contains(&options.block_bytes), "block size out of range");
        stream.begin(stream.files().segment_path(options.id))?;
        Ok(SegmentWriter {
            stream,
            full_bytes: options.block_bytes,
            options,
            builder: BlockBuilder::default(),
            unindexed: None,
            index: IndexBuilder::default(),
            hashes: Vec::new(),
            smallest: Bytes::new(),
            last_key: Vec::new(),
            totals: Totals::default(),
        })
    }

    /// Adds the next entry; in strict internal order (key ascending, then newest first). `kept` says whether it has the key
    /// of the entry before.
    ///
    /// # Errors
    /// The disk is full or failing: drop the writer.
    ///
    /// # Panics
    /// If the key is empty or too long, or a tombstone has a value.
    #[inline]
    pub(crate) fn add(&mut self, entry: Entry<'_>, kept: Kept) -> Result<()> {
        assert!((1..=MAX_KEY_BYTES).contains(&entry.key.len()), "key length out of range");
        assert!(entry.kind.allows_value_bytes(entry.value.len()), "this kind of entry has no value");
        if !self.builder.has_room(&entry, self.full_bytes) {
            self.finish_block()?;
        }
        if let Some(handle) = self.unindexed.take() {
            self.index.add(handle, &self.last_key, Some(entry.key));
        }
        let hash = match self.hashes.last() {
            Some(&hash) if kept == Kept::SameKey => hash,
            _ => key_hash(entry.key),
        };
        if kept == Kept::NewKey {
            self.hashes.push(hash);
        }
        if self.is_empty() {
            self.smallest = Bytes::copy_from_slice(entry.key);
        }
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
        self.stream.len_bytes()
            + self.builder.raw_bytes() as u64
            + self.index.len_bytes() as u64
            + filter_bits / 8
            + FOOTER_BYTES as u64
    }

    /// Hands over the rest of the file, and returns the stream. The file is durable when the stream is closed.
    ///
    /// # Errors
    /// The disk is full or failing; all files of the stream were removed.
    ///
    /// # Panics
    /// If no entry was added: a segment holds at least one.
    pub(crate) fn finish(mut self) -> Result<(SegmentMeta, WriteStream)> {
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
            size_bytes: self.stream.len_bytes() + FOOTER_BYTES as u64,
        };
        let (bytes, footer_crc) = footer.encode();
        self.stream.append(&bytes)?;
        assert_eq!(self.stream.len_bytes(), footer.size_bytes, "the footer is last");
        self.stream.finish()?;
        let meta = SegmentMeta {
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
        };
        Ok((meta, self.stream))
    }

    fn finish_block(&mut self) -> Result<()> {
        self.last_key.clear();
        self.last_key.extend_from_slice(self.builder.last_key());
        let raw_bytes = self.builder.raw_bytes();
        let encoded = self.builder.finish(self.options.compress);
        self.full_bytes = next_full_bytes(self.options.block_bytes, raw_bytes, encoded.len_bytes);
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
        let handle = BlockHandle { offset: self.stream.len_bytes(), len_bytes: encoded.len_bytes, crc };
        self.stream.append(&encoded.bytes)?;
        Ok(handle)
    }

    /// Writes index and filter in blocks, and the top.
    fn finish_pages(&mut self) -> Result<Layout> {
        let entries = std::mem::take(&mut self.index);
        let mut top = TopBuilder::default();
        top.set_smallest(&self.smallest);
        let index = self.stream.len_bytes();
        let first = self.finish_index(&entries, &mut top)?;
        let filter = self.stream.len_bytes();
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
        let (offset, len_bytes) = (self.stream.len_bytes(), bytes.len() as u64);
        let end = (offset + len_bytes).next_multiple_of(FOOTER_BYTES as u64);
        bytes.resize(usize::try_from(end - offset).expect("it is in memory already"), 0);
        let crc = checksum(self.options.id, TOP_PART, &bytes);
        self.stream.append(&bytes)?;
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
