//! Keeps the cache warm over a compaction: what was hot in the inputs is brought into the cache again from the output.
//!
//! A block of the inputs is hot if it is in the cache and was used there. Its keys went into a few neighbouring blocks of
//! the output, and it counts for each of them with an even part of its bytes. An output block to which hot ones gave at
//! least half of its bytes is hot as well, so those together take at most twice what was hot before, and a compaction of what
//! nobody reads brings nothing.
//!
//! Order: the plan is made while the inputs are still in the cache; the reading begins when they are gone from it, so it
//! takes their room and throws nobody else out. Meanwhile a get that misses reads its block itself, as always.
//!
//! Nothing but time depends on it. So it reports no error: whatever goes wrong here goes wrong again for who needs the
//! block, and is told there.

use std::ops::Range;
use std::sync::Arc;

use crate::io::read_ahead::MOST_BYTES;
use crate::segment::Segment;
use crate::tree::run::Run;

/// Blocks to bring, side by side in one segment, in one read.
pub(crate) type Piece = (Arc<Segment>, Range<usize>);

/// What is to be brought into the cache once `inputs`, merged into `output`, are gone.
pub(crate) fn plan(inputs: &[Run], output: &Run) -> Vec<Piece> {
    let segments = output.segments();
    // By segment and block: how many bytes of hot blocks went there.
    let mut heat: Vec<Vec<u64>> = segments.iter().map(|segment| vec![0; segment.blocks_to_bring()]).collect();
    for input in inputs.iter().flat_map(Run::segments) {
        input.each_hot_block(|from, upto, bytes| spread(output, &mut heat, (from, upto), bytes));
    }
    let pieces = segments.iter().zip(&heat).flat_map(|(segment, heat)| {
        let is_hot = |&block: &usize| heat[block] * 2 >= segment.block_bytes(block);
        let hot = (0..heat.len()).filter(is_hot);
        segment.pieces(hot, MOST_BYTES).into_iter().map(|piece| (Arc::clone(segment), piece))
    });
    pieces.collect()
}

/// Shares the bytes of a block with keys `from..=upto` out among the blocks of the output in which such keys may stand.
fn spread(output: &Run, heat: &mut [Vec<u64>], (from, upto): (&[u8], &[u8]), bytes: u64) {
    let segments = output.segments();
    let first = output.place_of(from);
    let last = output.place_of(upto);
    let blocks_of = |segment: usize| {
        let start = if segment == first.0 { first.1 } else { 0 };
        let end = if segment == last.0 { last.1 + 1 } else { segments[segment].blocks_to_bring() };
        start..end.min(segments[segment].blocks_to_bring())
    };
    let reached = first.0..(last.0 + 1).min(segments.len());
    let blocks: usize = reached.clone().map(|segment| blocks_of(segment).len()).sum();
    for segment in reached {
        for block in blocks_of(segment) {
            heat[segment][block] += bytes / blocks as u64;
        }
    }
}

/// Reads them into the cache, until `stop` says so.
pub(crate) fn bring(pieces: &[Piece], stop: &dyn Fn() -> bool) {
    for (segment, blocks) in pieces {
        if stop() || segment.bring(blocks).is_err() {
            return;
        }
    }
}
