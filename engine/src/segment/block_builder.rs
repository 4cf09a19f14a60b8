//! Makes blocks: collects entries, then lays them out as the columns that `block.rs` draws.
//!
//! Invariant: [`Block::decode`](super::block::Block) takes an encoded block apart into the same entries.
#![deny(clippy::indexing_slicing)]

use super::block::{CODEC_LZ4, CODEC_NONE, RAW_HEADER_BYTES, common_prefix, fingerprint, head_of};
use super::footer::UNIT_BYTES;
use super::lanes::LANES;
use crate::base::coding::Put;
use crate::base::key::{Entry, Kind, Seq};

/// An entry whose key and value together are larger is alone in its block.
pub(super) const ALONE_BYTES: usize = 32 << 10;
/// A block holds at most this many entries, however small they are.
const MAX_ENTRIES: usize = 8192;

/// An encoded block for the writer.
#[derive(Debug)]
pub(super) struct Encoded {
    /// Padded to a multiple of 512.
    pub(super) bytes: Vec<u8>,
    /// Length without the padding.
    pub(super) len_bytes: usize,
    /// Whether it was compressed.
    pub(super) compressed: bool,
}

/// Collects entries in internal order.
#[derive(Debug, Default)]
pub(super) struct BlockBuilder {
    keys: Vec<u8>,
    key_ends: Vec<usize>,
    values: Vec<u8>,
    value_ends: Vec<usize>,
    fingerprints: Vec<u8>,
    seqs: Vec<Seq>,
    kinds: Vec<Kind>,
}

impl BlockBuilder {
    pub(super) fn is_empty(&self) -> bool {
        self.seqs.is_empty()
    }

    /// Whether the entry should go into this block. An empty block takes any entry.
    pub(super) fn has_room(&self, entry: &Entry<'_>, block_bytes: usize) -> bool {
        let added = entry.key.len() + entry.value.len();
        self.is_empty()
            || added <= ALONE_BYTES
                && self.seqs.len() < MAX_ENTRIES
                && self.keys.len() + self.values.len() <= ALONE_BYTES
                && self.raw_bytes() + added + 12 <= block_bytes
    }

    /// About the size of the raw block.
    pub(super) fn raw_bytes(&self) -> usize {
        RAW_HEADER_BYTES + self.keys.len() + self.values.len() + 12 * self.seqs.len()
    }

    pub(super) fn last_key(&self) -> &[u8] {
        self.key(self.seqs.len().saturating_sub(1))
    }

    pub(super) fn add(&mut self, entry: &Entry<'_>, hash: u64) {
        self.keys.extend_from_slice(entry.key);
        self.key_ends.push(self.keys.len());
        self.values.extend_from_slice(entry.value);
        self.value_ends.push(self.values.len());
        self.fingerprints.push(fingerprint(hash));
        self.seqs.push(entry.seq);
        self.kinds.push(entry.kind);
    }

    /// Encodes the entries and becomes empty.
    pub(super) fn finish(&mut self, compress: bool) -> Encoded {
        assert!(!self.is_empty(), "a block has at least one entry");
        let mut raw = Vec::with_capacity(self.raw_bytes() + LANES);
        self.encode_raw(&mut raw);
        self.clear();
        let mut bytes = Vec::new();
        bytes.put_u32(u32::try_from(raw.len()).expect("a record, so also an entry, is far below 4 GiB"));
        let packed = if compress { lz4_flex::block::compress(&raw) } else { Vec::new() };
        // A saving of less than an eighth is not worth the decompression at each read.
        let compressed = compress && packed.len() <= raw.len() - raw.len().div_ceil(8);
        bytes.put_u8(if compressed { CODEC_LZ4 } else { CODEC_NONE });
        bytes.extend_from_slice(&[0; 3]);
        bytes.extend_from_slice(if compressed { &packed } else { &raw });
        let len_bytes = bytes.len();
        bytes.resize(len_bytes.next_multiple_of(UNIT_BYTES), 0);
        Encoded { bytes, len_bytes, compressed }
    }

    fn clear(&mut self) {
        self.keys.clear();
        self.key_ends.clear();
        self.values.clear();
        self.value_ends.clear();
        self.fingerprints.clear();
        self.seqs.clear();
        self.kinds.clear();
    }

    fn key(&self, i: usize) -> &[u8] {
        part(&self.keys, &self.key_ends, i)
    }

    fn encode_raw(&self, out: &mut Vec<u8>) {
        let n = self.seqs.len();
        let prefix_len = common_prefix(self.key(0), self.last_key());
        let suffix = |i| self.key(i).get(prefix_len..).unwrap_or_default();
        let heap_len = self.keys.len() - prefix_len * n + self.values.len();
        let end_width = if u16::try_from(heap_len).is_ok() { 2 } else { 4 };
        let longest = (0..n).map(|i| suffix(i).len()).max().unwrap_or(0);
        let fixed = (0..n).all(|i| suffix(i).len() == longest);
        let suffix_width = if fixed {
            0
        } else if u8::try_from(longest).is_ok() {
            1
        } else {
            2
        };
        let base = self.seqs.iter().min().map_or(0, |seq| seq.get());
        let spread = self.seqs.iter().max().map_or(0, |seq| seq.get()) - base;
        let seq_width = if spread == 0 {
            0
        } else if u32::try_from(spread).is_ok() {
            4
        } else {
            8
        };
        let kind_width = u8::from(self.kinds.iter().any(|&kind| kind.to_byte() != 0));

        out.put_u16(u16::try_from(n).expect("at most MAX_ENTRIES"));
        out.put_u16(u16::try_from(prefix_len).expect("at most MAX_KEY_BYTES"));
        out.extend_from_slice(&[end_width, suffix_width, seq_width, kind_width]);
        out.put_u64(base);
        out.put_u16(if fixed { u16::try_from(longest).expect("at most MAX_KEY_BYTES") } else { 0 });
        out.resize(RAW_HEADER_BYTES, 0);
        out.extend_from_slice(&self.fingerprints);
        out.resize(RAW_HEADER_BYTES + n.next_multiple_of(LANES), 0);
        for i in 0..n {
            out.put_u32(head_of(suffix(i)));
        }
        let mut end = 0;
        for i in 0..n {
            end += suffix(i).len() + part(&self.values, &self.value_ends, i).len();
            put_uint(out, end as u64, end_width);
        }
        if !fixed {
            for i in 0..n {
                put_uint(out, suffix(i).len() as u64, suffix_width);
            }
        }
        for seq in &self.seqs {
            put_uint(out, seq.get() - base, seq_width);
        }
        if kind_width == 1 {
            out.extend(self.kinds.iter().map(|kind| kind.to_byte()));
        }
        out.extend_from_slice(self.key(0).get(..prefix_len).unwrap_or_default());
        for i in 0..n {
            out.extend_from_slice(suffix(i));
            out.extend_from_slice(part(&self.values, &self.value_ends, i));
        }
    }
}

/// The `i`th of adjacent strings.
fn part<'a>(bytes: &'a [u8], ends: &[usize], i: usize) -> &'a [u8] {
    let start = if i == 0 { 0 } else { ends.get(i - 1).copied().unwrap_or(0) };
    bytes.get(start..ends.get(i).copied().unwrap_or(0)).unwrap_or_default()
}

/// The low `width` bytes of a number. The others must be zero.
fn put_uint(out: &mut Vec<u8>, value: u64, width: u8) {
    let bytes = value.to_le_bytes();
    let (low, high) = bytes.split_at(usize::from(width));
    assert!(high.iter().all(|&byte| byte == 0), "the column is too narrow");
    out.extend_from_slice(low);
}
