//! The unit of checksum and cache: about 8 KiB of entries, as columns.
//!
//! A point read compares one byte per entry (the fingerprints, which are adjacent) and touches the entries
//! only where that byte is equal; a seek is a binary search over 4-byte key heads and compares keys only on ties.
//!
//! ```text
//!   stored block:  OFFSET  SIZE  FIELD (all integers little-endian)
//!                       0     4  length of the raw block
//!                       4     1  codec: 0 none, 1 LZ4 block
//!                       5     3  zero
//!                       8   ...  the raw block, or its compressed form; then zeros up to a multiple of 512
//!
//!   raw block:     OFFSET  SIZE  FIELD
//!                       0     2  n, number of entries, at least 1
//!                       2     2  p, length of the prefix that all keys share
//!                       4     1  bytes of an end: 2 or 4
//!                       5     1  bytes of a suffix length: 0, 1 or 2
//!                       6     1  bytes of a Seq delta: 0, 4 or 8
//!                       7     1  bytes of a kind: 0 (all are puts) or 1
//!                       8     8  smallest Seq of the block
//!                      16     2  suffix length of all keys, if their column is absent; else 0
//!                      18     6  zero
//!                      24     n  fingerprints: hash >> 56 of each key; then zeros up to a multiple of 32 for the column
//!                     ...    4n  heads: first 4 bytes of each suffix as a big-endian number, zero-extended
//!                     ...   e*n  ends: where the entry ends in the heap
//!                     ...   s*n  suffix lengths
//!                     ...   q*n  Seq minus the smallest
//!                     ...   k*n  kinds
//!                     ...     p  the prefix
//!                     ...   ...  heap: suffix and value of each entry
//! ```
//!
//! Invariants: [`Block::decode`] checks everything on which an accessor relies, so no accessor panics for any bytes.
//! Entries rise in internal order: key ascending, newest first. A read does not check order, heads and fingerprints, since
//! the checksum covers them; [`Block::check`] does, which a verification calls.
#![deny(clippy::indexing_slicing)]

use std::cell::RefCell;
use std::cmp::Ordering;

use triomphe::ThinArc;

use super::lanes::{LANES, same_lanes};
use crate::base::coding::Reader;
use crate::base::key::{Entry, Kind, MAX_KEY_BYTES, Seq, key_hash};
use crate::base::prefetch::prefetch_bytes;

/// Size of the stored block's header.
pub(super) const STORED_HEADER_BYTES: usize = 8;
pub(super) const RAW_HEADER_BYTES: usize = 24;
/// Memory of a frame without the raw bytes: two counts, and the columns.
const FRAME_BYTES: usize = size_of::<Head>() + 2 * size_of::<usize>();
/// Bytes that [`Block::prefetch`] fetches: all up to the ends of 70 entries.
const FRONT_BYTES: usize = 14 * 64;
/// From this length of an entry on, the processor does not prefetch the next one by itself.
const LONG_BYTES: usize = 192;
/// The most memory that a thread keeps for its next decompression.
const MAX_SCRATCH_BYTES: usize = 64 << 10;
/// LZ4 cannot expand its input more than this many times.
const MAX_LZ4_RATIO: usize = 255;
pub(super) const CODEC_NONE: u8 = 0;
pub(super) const CODEC_LZ4: u8 = 1;

thread_local! {
    /// A block is decompressed here before it becomes a frame, so that a miss allocates only the frame.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// First 4 bytes as a big-endian number, zero-extended: orders like the bytes, up to ties.
pub(super) fn head_of(bytes: &[u8]) -> u32 {
    (0..4).fold(0, |head, i| head << 8 | u32::from(bytes.get(i).copied().unwrap_or(0)))
}

/// Number of leading bytes that two keys share.
pub(super) fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The first index in `[0, len)` at which `is_before` is false; `len` if there is none. It must be true for all indexes before
/// and false for all from there on.
#[inline]
pub(super) fn partition(len: usize, is_before: impl Fn(usize) -> bool) -> usize {
    let (mut start, mut size) = (0, len);
    while size > 0 {
        let half = size / 2;
        if is_before(start + half) {
            start += half + 1;
            size -= half + 1;
        } else {
            size = half;
        }
    }
    start
}

/// The byte of a key's hash that is its fingerprint.
pub(super) fn fingerprint(hash: u64) -> u8 {
    u8::try_from(hash >> 56).expect("8 bits are left")
}

/// A column of numbers: its offset in the raw block, and their width in bytes.
#[derive(Clone, Copy, Debug)]
struct Column {
    start: usize,
    /// 0: all are zero.
    width: usize,
    /// The low `width` bytes.
    mask: u64,
}

impl Column {
    fn new(start: usize, width: usize) -> Column {
        let mask = (0..width.min(8)).fold(0, |mask, _| mask << 8 | 0xff);
        Column { start, width, mask }
    }

    /// Number `i`; 0 past the end of the block. Without a branch on the width, since a scan reads several for each entry.
    #[expect(
        clippy::inline_always,
        reason = "a scan decodes an entry in a few nanoseconds, a call costs as much"
    )]
    #[inline(always)]
    fn get(&self, raw: &[u8], i: usize) -> u64 {
        let from = raw.get(self.start + self.width * i..).unwrap_or_default();
        match from.first_chunk() {
            Some(word) => u64::from_le_bytes(*word) & self.mask,
            None => from.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)) & self.mask,
        }
    }

    #[inline]
    fn len_at(&self, raw: &[u8], i: usize) -> usize {
        usize::try_from(self.get(raw, i)).unwrap_or(usize::MAX)
    }

    /// Numbers `i - 1` and `i` of a column whose numbers are at most 4 bytes wide; the one before the first is 0.
    #[expect(
        clippy::inline_always,
        reason = "a scan decodes an entry in a few nanoseconds, a call costs as much"
    )]
    #[inline(always)]
    fn len_pair_at(&self, raw: &[u8], i: usize) -> (usize, usize) {
        let Some(before) = i.checked_sub(1) else { return (0, self.len_at(raw, 0)) };
        let from = raw.get(self.start + self.width * before..).unwrap_or_default();
        // One word holds both.
        let Some(word) = from.first_chunk() else { return (self.len_at(raw, before), self.len_at(raw, i)) };
        let word = u64::from_le_bytes(*word);
        let len = |word: u64| usize::try_from(word & self.mask).unwrap_or(usize::MAX);
        (len(word), len(word >> (8 * self.width)))
    }
}

/// Offsets of the columns in the raw block.
#[derive(Clone, Copy, Debug)]
struct Columns {
    entries: usize,
    suffix_fixed: usize,
    base_seq: u64,
    heads: Column,
    ends: Column,
    suffixes: Column,
    seqs: Column,
    kinds: Column,
    prefix: usize,
    heap: usize,
}

/// A decoded block whose structure was checked, as the cache keeps it. The header, which a search reads first, is directly
/// before the raw bytes, so both are fetched together and from one page.
pub(crate) type Frame = ThinArc<Head, u8>;

/// Facts about a block that are kept with its bytes.
#[derive(Debug)]
pub(crate) struct Head {
    columns: Columns,
    /// No two entries have the same key.
    is_distinct: bool,
    /// Its entries have at least [`LONG_BYTES`] bytes on average.
    is_long: bool,
}

/// The block in a [`Frame`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block<'a> {
    raw: &'a [u8],
    head: &'a Head,
}

/// An entry, as its columns describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EntryAt {
    pub(super) seq: Seq,
    pub(super) kind: Kind,
    /// See [`Block::bounds`].
    suffix: usize,
    value: usize,
    end: usize,
}

impl EntryAt {
    /// No entry.
    pub(super) const NONE: EntryAt =
        EntryAt { seq: Seq::new(0), kind: Kind::Put, suffix: 0, value: 0, end: 0 };

    /// Length of the suffix.
    #[inline]
    pub(super) fn suffix_len(&self) -> usize {
        self.value - self.suffix
    }
}

impl<'a> Block<'a> {
    /// The block in a frame.
    #[inline]
    pub(crate) fn of(frame: &'a Frame) -> Block<'a> {
        Block { raw: &frame.slice, head: &frame.header.header }
    }

    /// Decodes a stored block, with or without its padding. The error names the failed check.
    ///
    /// Reads every column once. Never takes more than 255 times the memory of the stored bytes.
    pub(super) fn decode(stored: &[u8], len_bytes: usize) -> Result<Frame, &'static str> {
        let mut reader = Reader::new(stored.get(..len_bytes).ok_or("block length")?);
        let raw_len = reader.u32().and_then(|len| usize::try_from(len).ok()).ok_or("block header")?;
        let codec = reader.u8().ok_or("block header")?;
        if reader.take(STORED_HEADER_BYTES - 5).ok_or("block header")? != [0; 3] {
            return Err("block header");
        }
        let body = reader.rest();
        match codec {
            CODEC_NONE if body.len() == raw_len => Block::checked(body),
            CODEC_LZ4 if raw_len <= body.len().saturating_mul(MAX_LZ4_RATIO) => {
                let mut raw = SCRATCH.try_with(RefCell::take).unwrap_or_default();
                // All earlier bytes are overwritten; a shorter result is an error.
                raw.resize(raw.len().max(raw_len), 0);
                let (whole, _) = raw.split_at_mut(raw_len);
                let frame = match lz4_flex::block::decompress_into(body, whole) {
                    Ok(found) if found == raw_len => Block::checked(whole),
                    Ok(_) => Err("block decompressed length"),
                    Err(_) => Err("block compression"),
                };
                if raw.capacity() <= MAX_SCRATCH_BYTES {
                    // Fails while the thread ends.
                    let _ = SCRATCH.try_with(|scratch| scratch.replace(raw));
                }
                frame
            }
            CODEC_NONE | CODEC_LZ4 => Err("block raw length"),
            _ => Err("block codec"),
        }
    }

    fn checked(raw: &[u8]) -> Result<Frame, &'static str> {
        let head = Head { columns: Columns::parse(raw)?, is_distinct: true, is_long: false };
        let block = Block { raw, head: &head };
        block.check_structure()?;
        let is_distinct = (1..block.len()).all(|i| !block.is_same_key(i - 1, i));
        let is_long = raw.len() / block.len() >= LONG_BYTES;
        let head = Head { is_distinct, is_long, ..head };
        Ok(Frame::from_header_and_slice(head, raw))
    }

    /// Its memory in bytes.
    pub(super) fn memory_bytes(self) -> u64 {
        (self.raw.len() + FRAME_BYTES) as u64
    }

    /// Prefetches the bytes that a point read of this frame needs first: columns, fingerprints, and the ends behind them,
    /// unless the block has many small entries.
    #[inline]
    pub(crate) fn prefetch(frame: &Frame) {
        prefetch_bytes(std::ptr::from_ref(&**frame).cast(), FRONT_BYTES);
    }

    /// Prefetches the entry that will probably be found for a hash.
    #[inline]
    pub(crate) fn prefetch_entry(self, hash: u64) {
        if let Some(i) = self.candidates(hash).next() {
            let (suffix, value, end) = self.bounds(i);
            if let Some(entry) = self.raw.get(suffix..end) {
                prefetch_bytes(entry.as_ptr(), (value - suffix + 1).min(entry.len()));
            }
        }
    }

    /// Number of entries, at least 1.
    #[inline]
    pub(super) fn len(self) -> usize {
        self.head.columns.entries
    }

    /// The prefix that all keys share.
    #[inline]
    pub(super) fn prefix(self) -> &'a [u8] {
        self.raw.get(self.head.columns.prefix..self.head.columns.heap).unwrap_or_default()
    }

    /// Key `i` without the prefix.
    #[inline]
    pub(super) fn suffix(self, i: usize) -> &'a [u8] {
        let start = self.head.columns.heap + i.checked_sub(1).map_or(0, |before| self.end(before));
        self.raw.get(start..start + self.suffix_len(i)).unwrap_or_default()
    }

    /// The value of entry `i`; empty for a tombstone.
    pub(super) fn value(self, i: usize) -> &'a [u8] {
        let (_, value, end) = self.bounds(i);
        self.raw.get(value..end).unwrap_or_default()
    }

    #[inline]
    pub(super) fn seq(self, i: usize) -> Seq {
        Seq::new(self.head.columns.base_seq.wrapping_add(self.head.columns.seqs.get(self.raw, i)))
    }

    #[inline]
    pub(super) fn kind(self, i: usize) -> Kind {
        let byte = u8::try_from(self.head.columns.kinds.get(self.raw, i)).ok();
        byte.and_then(Kind::from_byte).unwrap_or(Kind::Put)
    }

    /// Whether no two entries of this block have the same key.
    pub(super) fn is_distinct(self) -> bool {
        self.head.is_distinct
    }

    fn is_same_key(self, i: usize, other: usize) -> bool {
        self.head(i) == self.head(other) && self.suffix(i) == self.suffix(other)
    }

    /// Reads the columns of entry `i`.
    #[expect(
        clippy::inline_always,
        reason = "a scan decodes an entry in a few nanoseconds, a call costs as much"
    )]
    #[inline(always)]
    pub(super) fn entry_at(self, i: usize) -> EntryAt {
        let (suffix, value, end) = self.bounds(i);
        EntryAt { seq: self.seq(i), kind: self.kind(i), suffix, value, end }
    }

    /// Whether its entries are so long that each must be prefetched. The processor prefetches short ones, which are adjacent, by
    /// itself.
    #[inline]
    pub(super) fn is_long(self) -> bool {
        self.head.is_long
    }

    /// Prefetches the start of entry `i`, which is also the end of the entry before it.
    #[inline]
    pub(super) fn prefetch_front(self, i: usize) {
        if i < self.len() {
            let (suffix, ..) = self.bounds(i);
            self.raw.get(suffix..).into_iter().for_each(|entry| prefetch_bytes(entry.as_ptr(), 1));
        }
    }

    /// All bytes of the block from the suffix of this entry on.
    #[inline]
    pub(super) fn bytes_from(self, at: &EntryAt) -> &'a [u8] {
        self.raw.get(at.suffix..).unwrap_or_default()
    }

    /// The value of an entry of this block.
    #[inline]
    pub(super) fn value_at(self, at: &EntryAt) -> &'a [u8] {
        self.raw.get(at.value..at.end).unwrap_or_default()
    }

    /// Whether key `i` is `key`.
    #[inline]
    pub(super) fn is_key(self, i: usize, key: &[u8]) -> bool {
        key.strip_prefix(self.prefix()).is_some_and(|rest| rest == self.suffix(i))
    }

    /// The newest entry of `key` with `seq < snapshot`.
    #[inline]
    pub(super) fn find(self, key: &[u8], hash: u64, snapshot: Seq) -> Option<EntryAt> {
        let rest = key.strip_prefix(self.prefix())?;
        for i in self.candidates(hash) {
            let at = self.entry_at(i);
            if self.raw.get(at.suffix..at.value) == Some(rest) && at.seq < snapshot {
                return Some(at);
            }
        }
        None
    }

    /// The entries whose fingerprint is that of a hash.
    #[inline]
    fn candidates(self, hash: u64) -> impl Iterator<Item = usize> {
        let wanted = fingerprint(hash);
        let fingerprints = self.raw.get(RAW_HEADER_BYTES..self.head.columns.heads.start).unwrap_or_default();
        let (chunks, _) = fingerprints.as_chunks::<LANES>();
        let hits = chunks.iter().enumerate().flat_map(move |(chunk, lanes)| {
            let mut hits = same_lanes(lanes, wanted);
            std::iter::from_fn(move || {
                let lane = (hits != 0).then(|| hits.trailing_zeros() as usize)?;
                hits &= hits - 1;
                Some(chunk * LANES + lane)
            })
        });
        // The padding after the last fingerprint may match, too.
        hits.take_while(move |&i| i < self.len())
    }

    /// The first entry whose key is `>= key`; `len()` if there is none.
    pub(super) fn lower_bound(self, key: &[u8]) -> usize {
        let (front, rest) = key.split_at_checked(self.prefix().len()).unwrap_or((key, &[]));
        match front.cmp(self.prefix()) {
            Ordering::Less => 0,
            Ordering::Greater => self.len(),
            Ordering::Equal => {
                let head = head_of(rest);
                let tie = self.heads().partition_point(|other| u32::from_le_bytes(*other) < head);
                let from = self.heads().get(tie..).unwrap_or_default();
                let is_tie = |other: &[u8; 4]| u32::from_le_bytes(*other) == head;
                // Usually the key itself, or no key.
                let ties = if from.get(1).is_some_and(is_tie) {
                    from.partition_point(is_tie)
                } else {
                    usize::from(from.first().is_some_and(is_tie))
                };
                tie + partition(ties, |i| self.suffix(tie + i) < rest)
            }
        }
    }

    /// Checks order, heads and fingerprints, which a read does not check. Calls `each` for every entry, in order.
    pub(super) fn check(self, mut each: impl FnMut(&Entry<'_>, u64)) -> Result<(), &'static str> {
        let (mut key, mut previous) = (Vec::new(), Vec::new());
        for i in 0..self.len() {
            key.clear();
            key.extend_from_slice(self.prefix());
            key.extend_from_slice(self.suffix(i));
            let entry = Entry { key: &key, seq: self.seq(i), kind: self.kind(i), value: self.value(i) };
            let hash = key_hash(&key);
            if self.head(i) != u64::from(head_of(self.suffix(i))) {
                return Err("key head in a block");
            }
            if self.raw.get(RAW_HEADER_BYTES + i) != Some(&fingerprint(hash)) {
                return Err("key fingerprint in a block");
            }
            let rises = i == 0 || key > previous || key == previous && self.seq(i) < self.seq(i - 1);
            if !rises {
                return Err("order of entries in a block");
            }
            each(&entry, hash);
            std::mem::swap(&mut key, &mut previous);
        }
        Ok(())
    }

    /// The column of heads, undecoded.
    #[inline]
    fn heads(self) -> &'a [[u8; 4]] {
        let Columns { heads, ends, .. } = &self.head.columns;
        self.raw.get(heads.start..ends.start).unwrap_or_default().as_chunks().0
    }

    #[inline]
    fn head(self, i: usize) -> u64 {
        self.head.columns.heads.get(self.raw, i)
    }

    /// The offsets of entry `i` in the raw block: start of its suffix, start of its value, end of its value.
    #[expect(
        clippy::inline_always,
        reason = "a scan decodes an entry in a few nanoseconds, a call costs as much"
    )]
    #[inline(always)]
    fn bounds(self, i: usize) -> (usize, usize, usize) {
        let heap = self.head.columns.heap;
        let (start, end) = self.head.columns.ends.len_pair_at(self.raw, i);
        let suffix = heap + start;
        (suffix, suffix + self.suffix_len(i), heap + end)
    }

    #[inline]
    fn end(self, i: usize) -> usize {
        self.head.columns.ends.len_at(self.raw, i)
    }

    #[inline]
    fn suffix_len(self, i: usize) -> usize {
        // One of the two is 0.
        self.head.columns.suffix_fixed + self.head.columns.suffixes.len_at(self.raw, i)
    }

    /// Checks that all entries lie in the heap and that all numbers are valid.
    fn check_structure(self) -> Result<(), &'static str> {
        let columns = &self.head.columns;
        let heap_len = self.raw.len() - columns.heap;
        let prefix_len = columns.heap - columns.prefix;
        let mut start = 0;
        for i in 0..columns.entries {
            let end = self.end(i);
            let len = end.checked_sub(start).ok_or("ends of a block")?;
            let suffix_len = self.suffix_len(i);
            let value_len = len.checked_sub(suffix_len).ok_or("suffix lengths of a block")?;
            if !(1..=MAX_KEY_BYTES).contains(&(prefix_len + suffix_len)) {
                return Err("key length in a block");
            }
            let kind = u8::try_from(columns.kinds.get(self.raw, i)).ok();
            match kind.and_then(Kind::from_byte) {
                Some(kind) if kind.allows_value_bytes(value_len) => {}
                _ => return Err("kinds of a block"),
            }
            let delta = columns.seqs.get(self.raw, i);
            columns.base_seq.checked_add(delta).ok_or("sequence numbers of a block")?;
            start = end;
        }
        if start == heap_len { Ok(()) } else { Err("heap length of a block") }
    }
}

impl Columns {
    /// Finds the columns and checks that the block holds all of them.
    fn parse(raw: &[u8]) -> Result<Columns, &'static str> {
        Columns::header(raw).ok_or("block header fields")?.check_widths(raw.len())
    }

    fn header(raw: &[u8]) -> Option<Columns> {
        let mut reader = Reader::new(raw.get(..RAW_HEADER_BYTES)?);
        let entries = usize::from(reader.u16()?);
        let prefix_len = usize::from(reader.u16()?);
        let end_width = usize::from(reader.u8()?);
        let suffix_width = usize::from(reader.u8()?);
        let seq_width = usize::from(reader.u8()?);
        let kind_width = usize::from(reader.u8()?);
        let base_seq = reader.u64()?;
        let suffix_fixed = usize::from(reader.u16()?);
        if reader.rest().iter().any(|&byte| byte != 0) || kind_width > 1 {
            return None;
        }
        // No overflow: every factor is below 2^16.
        let heads = Column::new(RAW_HEADER_BYTES + entries.next_multiple_of(LANES), 4);
        let behind = |column: Column, width| Column::new(column.start + column.width * entries, width);
        let ends = behind(heads, end_width);
        let suffixes = behind(ends, suffix_width);
        let seqs = behind(suffixes, seq_width);
        let kinds = behind(seqs, kind_width);
        let prefix = behind(kinds, 0).start;
        let heap = prefix + prefix_len;
        Some(Columns { entries, suffix_fixed, base_seq, heads, ends, suffixes, seqs, kinds, prefix, heap })
    }

    fn check_widths(self, raw_len: usize) -> Result<Columns, &'static str> {
        let widths = matches!(self.ends.width, 2 | 4)
            && matches!(self.suffixes.width, 0..=2)
            && matches!(self.seqs.width, 0 | 4 | 8)
            && (self.suffixes.width == 0 || self.suffix_fixed == 0);
        if !widths || self.entries == 0 {
            return Err("block header fields");
        }
        if self.heap > raw_len { Err("block columns") } else { Ok(self) }
    }
}
