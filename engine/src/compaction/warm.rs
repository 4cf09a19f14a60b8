//! Keeps the cache warm over a compaction: blocks of the output take the place of the hot blocks of the inputs.
//!
//! A block of the inputs is hot if it is in the cache and was used there. Its keys went into a few neighbouring blocks of
//! the output, and each of them gets an even part of its bytes. An output block is hot if hot blocks gave it at least half
//! of its bytes. So the hot blocks of the output take at most twice the bytes of those before, and a compaction of data that
//! is not read brings no block.
//!
//! Order: the plan is made while the inputs are still in the cache. The reads begin when the inputs have left it, so that
//! they use that room and evict no other blocks. A get that misses meanwhile reads its block itself, as always.
//!
//! Only speed depends on it, so it reports no error: a read that needs a block which could not be brought here reports its
//! own.

use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use crate::io::read_ahead::MOST_BYTES;
use crate::segment::Segment;
use crate::tree::run::Run;

/// Blocks to bring, side by side in one segment, in one read.
pub(crate) type Span = (Arc<Segment>, Range<usize>);

/// The blocks of `segments` to bring once `inputs`, which were merged into them, have left the cache.
pub(crate) fn plan(inputs: &[Run], segments: &[Arc<Segment>]) -> Vec<Span> {
    // Bytes that hot blocks gave, by segment and block.
    let mut heat: Vec<Vec<u64>> = segments.iter().map(|segment| vec![0; segment.loadable_blocks()]).collect();
    for input in inputs.iter().flat_map(Run::segments) {
        input.each_hot_block(|from, upto, bytes| spread(segments, &mut heat, from..=upto, bytes));
    }
    let pieces = segments.iter().zip(&heat).flat_map(|(segment, heat)| {
        let is_hot = |&block: &usize| heat[block] * 2 >= segment.block_bytes(block);
        let hot = (0..heat.len()).filter(is_hot);
        segment.pieces(hot, MOST_BYTES).into_iter().map(|piece| (Arc::clone(segment), piece))
    });
    pieces.collect()
}

/// Divides the bytes of a block with such keys among the output blocks in which they may stand.
fn spread(segments: &[Arc<Segment>], heat: &mut [Vec<u64>], keys: RangeInclusive<&[u8]>, bytes: u64) {
    let first = place_of(segments, keys.start());
    let last = place_of(segments, keys.end());
    let blocks_of = |segment: usize| {
        let start = if segment == first.0 { first.1 } else { 0 };
        let end = if segment == last.0 { last.1 + 1 } else { segments[segment].loadable_blocks() };
        start..end.min(segments[segment].loadable_blocks())
    };
    let reached = first.0..(last.0 + 1).min(segments.len());
    let blocks: usize = reached.clone().map(|segment| blocks_of(segment).len()).sum();
    for segment in reached {
        for block in blocks_of(segment) {
            heat[segment][block] += bytes / blocks as u64;
        }
    }
}

/// The segment and the block in which the first entry at or behind `key` stands; past the last segment if there is none.
fn place_of(segments: &[Arc<Segment>], key: &[u8]) -> (usize, usize) {
    let at = segments.partition_point(|segment| segment.meta().largest < key);
    (at, segments.get(at).map_or(0, |segment| segment.block_of(key)))
}

/// Reads the blocks into the cache, until `stop` says so.
pub(crate) fn bring(pieces: &[Span], stop: &dyn Fn() -> bool) {
    for (segment, blocks) in pieces {
        if stop() || segment.load_into_cache(blocks).is_err() {
            return;
        }
    }
}
