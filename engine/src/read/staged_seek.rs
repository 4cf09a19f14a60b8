//! A seek in several runs at once, stage by stage for all of them, so that waits overlap: those for the device, and those
//! for memory.
//!
//! ```text
//!   all runs: find the block in the index, ask memory for its cache slot
//!     -> all runs: ask memory for the front of the block, or note that it is missing
//!     -> one submit for all that are missing: they are in flight together
//!     -> each run seeks by itself, and waits only for its own block
//! ```
//!
//! Only time depends on it: a block that is not brought is read by the seek itself. So it reports no error; the seek meets
//! the same error again and reports it with the place.

use crate::io::lane::Lane;
use crate::io::read_stream::Extent;
use crate::read::cursor::Target;
use crate::tree::run::RunCursor;

/// All of `runs` are about to seek `target`.
pub(crate) fn prepare(mut runs: Vec<&mut RunCursor>, target: Target<'_>) {
    let blocks: Vec<_> = runs.iter_mut().map(|run| run.locate(target)).collect();
    let mut missing = Vec::new();
    for (at, (run, block)) in runs.iter().zip(blocks).enumerate() {
        missing.extend(block.and_then(|block| run.missing(block)).map(|extent| (at, extent)));
    }
    let files = match missing.first() {
        Some((at, _)) if missing.len() > 1 => runs[*at].files(),
        // One block alone is read by its own seek.
        _ => return,
    };
    let Some(lane) = Lane::of_scan(files, missing.len()) else { return };
    let read = |(at, extent): &(usize, Extent)| Some(extent.read(&runs[*at].file().ok()?, lane.files()));
    let reads = lane.submit_all(missing.iter().map_while(read));
    // Shorter than `missing` if a read was refused or a file cannot be opened.
    for ((at, extent), read) in missing.into_iter().zip(reads) {
        runs[at].expect(extent, read);
    }
}
