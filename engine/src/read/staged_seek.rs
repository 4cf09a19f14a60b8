//! A seek in several runs at once, stage by stage for all of them, so that waits overlap: those for the device, and those
//! for memory.
//!
//! ```text
//!   all runs: index, place in the cache -> all runs: front of the block, or it is missing -> one submit for all that miss
//!   -> each run seeks by itself, and finds its block in the cache or in its hands
//! ```
//!
//! Nothing but time depends on it: what it does not bring, a seek reads by itself. So it reports no error: whatever goes
//! wrong here goes wrong again there, with the place where it happened.
//!
//! Invariant: the context is idle when it is given back.

use std::collections::VecDeque;

use aio::{Buf, Completion, Operation};

use crate::base::error::Result;
use crate::io::files::{Files, QUEUE_SLOTS};
use crate::read::cursor::Target;
use crate::segment::Missing;
use crate::tree::run::RunCursor;

/// All of `runs` are about to seek `target`.
pub(crate) fn prepare(mut runs: Vec<&mut RunCursor>, target: Target<'_>) {
    let blocks: Vec<_> = runs.iter_mut().map(|run| run.foresee(target)).collect();
    let mut missing: Vec<(usize, Missing)> = Vec::new();
    for (at, (run, block)) in runs.iter().zip(blocks).enumerate() {
        missing.extend(block.and_then(|block| run.missing(block)).map(|block| (at, block)));
    }
    // One alone is read by its own seek.
    missing.truncate(QUEUE_SLOTS);
    let files = match missing.first() {
        Some((at, _)) if missing.len() > 1 => runs[*at].files().clone(),
        _ => return,
    };
    for (at, block, buf) in read(&files, missing).unwrap_or_default() {
        runs[at].hand(&block, buf);
    }
}

/// Reads all of them in one go; leaves out what cannot be read.
fn read(files: &Files, missing: Vec<(usize, Missing)>) -> Result<Vec<(usize, Missing, Buf)>> {
    files.with_queue(|queue| {
        let operation = |(token, (_, block)): (usize, &(usize, Missing))| {
            let buf = files.buf(block.len_bytes);
            Operation::read(&block.file, block.offset, buf).with_token(token as u64)
        };
        let mut waiting: VecDeque<_> = missing.iter().enumerate().map(operation).collect();
        let mut done: Vec<Completion> = Vec::with_capacity(missing.len());
        while !waiting.is_empty() {
            let submitted = queue.submit(&mut waiting);
            if !matches!(submitted, Ok(1..)) {
                break;
            }
        }
        while queue.in_flight() > 0 {
            queue.wait(queue.in_flight(), None, &mut done)?;
        }
        let mut missing: Vec<_> = missing.into_iter().map(Some).collect();
        let whole = done.into_iter().filter_map(|completion| completion.whole().ok());
        Ok(whole
            .filter_map(|operation| {
                let token = usize::try_from(operation.token()).ok()?;
                let (at, block) = missing.get_mut(token)?.take()?;
                Some((at, block, operation.into_buf()))
            })
            .collect())
    })
}
