//! Index and filter of a segment as blocks, so that they can come through the cache one at a time.
//!
//! Both are stored like other blocks (see `block`), never compressed. Their numbers continue those of the data blocks.
//!
//! ```text
//!   index block:   one entry for each of the next 128 data blocks, fewer in the last one
//!                  key: the separator of the data block (see `index`); Seq 0, a put
//!                  value: OFFSET  SIZE  FIELD (all integers little-endian)
//!                              0     4  where the data block starts, in units of 512 bytes
//!                              4     4  length of the stored block in bytes, without its padding
//!                              8     4  checksum of the stored block, padding included (see `footer`)
//!
//!   filter block:  one entry; key: a zero byte; Seq 0, a put
//!                  value: the next 60 lines of the filter (see `filter`), fewer in the last one
//!                  So it has 71 bytes, and 64 for each line: 4096 on the device, and the last one no more.
//! ```
//!
//! Data block `i` is in index block `i / 128`; line `i` of the filter is in filter block `i / 60`.
//!
//! Invariant: no part of such a block is used before it was checked against the top (see `top`).
#![deny(clippy::indexing_slicing)]

use super::block::{Block, RAW_HEADER_BYTES, STORED_HEADER_BYTES};
use super::block_builder::{BlockBuilder, Encoded};
use super::filter::{LINE_BYTES, Line};
use super::index::{BlockHandle, handle_of};
use crate::base::coding::{Put, Reader};
use crate::base::key::{Entry, Kind, Seq, key_hash};

/// Data blocks of an index block.
pub(super) const PIECE_BLOCKS: usize = 128;
/// Lines of a filter block.
pub(super) const PAGE_LINES: usize = 60;
/// Stored size of a full filter block.
pub(super) const PAGE_BYTES: u64 = 4096;

/// Bytes of a filter block without its lines: both headers, a fingerprint in its 32 lanes, head, end, key.
const PAGE_FRONT_BYTES: usize = STORED_HEADER_BYTES + RAW_HEADER_BYTES + 32 + 4 + 2 + FILTER_KEY.len();
const FILTER_KEY: &[u8] = &[0];

/// Stored bytes of a filter block with so many lines.
pub(super) fn filter_block_bytes(lines: usize) -> usize {
    PAGE_FRONT_BYTES + lines * LINE_BYTES
}

/// The blocks of an index, one after the other.
pub(super) fn index_blocks<'a, I: Iterator<Item = (BlockHandle, &'a [u8])>>(
    mut entries: I,
) -> impl Iterator<Item = Encoded> + use<'a, I> {
    let mut builder = BlockBuilder::default();
    std::iter::from_fn(move || {
        for (handle, separator) in entries.by_ref().take(PIECE_BLOCKS) {
            let mut value = Vec::with_capacity(12);
            value.put_u32(handle.units());
            value.put_u32(u32::try_from(handle.len_bytes).expect("a block is smaller than 4 GiB"));
            value.put_u32(handle.crc);
            add(&mut builder, separator, &value);
        }
        (!builder.is_empty()).then(|| builder.finish(false))
    })
}

/// The blocks of a filter, one after the other.
pub(super) fn filter_blocks(lines: &[Line]) -> impl Iterator<Item = Encoded> {
    let mut builder = BlockBuilder::default();
    lines.chunks(PAGE_LINES).map(move |lines| {
        let mut value = Vec::with_capacity(lines.len() * LINE_BYTES);
        for &word in lines.as_flattened() {
            value.put_u64(word);
        }
        add(&mut builder, FILTER_KEY, &value);
        let encoded = builder.finish(false);
        assert_eq!(encoded.len_bytes, filter_block_bytes(lines.len()), "readers count on it");
        encoded
    })
}

fn add(builder: &mut BlockBuilder, key: &[u8], value: &[u8]) {
    builder.add(&Entry { key, seq: Seq::new(0), kind: Kind::Put, value }, key_hash(key));
}

/// The handle in entry `i` of an index block; `None` if there is none.
pub(super) fn handle_in(block: Block<'_>, i: usize) -> Option<BlockHandle> {
    if i >= block.len() {
        return None;
    }
    let mut reader = Reader::new(block.value(i));
    let handle = handle_of(reader.u32()?, reader.u32()?, reader.u32()?);
    reader.is_empty().then_some(handle)
}

/// The separator in entry `i` of an index block, appended to `key`, which is emptied before.
pub(super) fn separator_in(block: Block<'_>, i: usize, key: &mut Vec<u8>) {
    key.clear();
    key.extend_from_slice(block.prefix());
    key.extend_from_slice(block.suffix(i));
}

/// The lines in a filter block.
pub(super) fn lines_in(block: Block<'_>) -> &[[u8; LINE_BYTES]] {
    block.value(0).as_chunks::<LINE_BYTES>().0
}

/// Whether a search of an index block finds each of its separators. A verification checks this; a read does not.
pub(super) fn is_searchable(block: Block<'_>) -> bool {
    let (mut key, mut first) = (Vec::new(), 0);
    (0..block.len()).all(|i| {
        if i > 0 && block.suffix(i) != block.suffix(i - 1) {
            first = i;
        }
        separator_in(block, i, &mut key);
        block.lower_bound(&key) == first
    })
}
