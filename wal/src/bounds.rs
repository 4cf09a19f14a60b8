//! How far the acknowledged records of a damaged log can have reached.
//!
//! ```text
//!   stream  ------------+---------------------+---------------------+------------------+----
//!                       | end of the replay   | least               | durable          | published
//!                       |  surely lost        |  perhaps durable    |  perhaps in the ring
//! ```
//!
//! * *least*: a file begins only when everything before it is durable, and each group claims what was durable before it. So
//!   the start of the last file and the highest claim in any file prove a position.
//! * *durable*: groups are written only to the last file, one behind the other. A sector that was never written in this use
//!   of the file (*older*) holds none. So the groups end at or before the last sector that is not older: behind the last
//!   group header that can be read, as much of the stream as fits between. A missing part of the file counts as full. So does
//!   a file without any group, which may have changed places with a new one. And so does one in which durable sectors are
//!   known to have become older ones, or where no header can be read at the damage, or no sector behind it: then other sectors
//!   that look unused may have been used.
//! * *published*: the ring takes at most its size beyond the durable position, and in its first lap no more than its file has.
//!   Nothing is durable that was not published, so this may also lower the second bound.
//!
//! A medium that lost the newest group without a trace (its sectors are zero or older) keeps the third bound, because the
//! group came out of the ring; and the others as far as they can be known.
//!
//! Invariant: a bound is never too small for what one damaged file, or a lost ring beside it, can hide, if sectors behind the
//! last readable group that look unused are unused.

use std::path::Path;

use aio::{Backend, Queue, SECTOR_BYTES};

use crate::chain::{ChainRules, Stop, read_chain};
use crate::ended_ring::{RING_KIND, open_existing};
use crate::error::{Error, Result};
use crate::log_file::{ActiveFile, LOG_KIND, log_file_path};
use crate::record::{GRANULE, Seq};
use crate::replay::{ReplayInput, read_whole};
use crate::seal::{Group, STEP, stream_room_bytes};
use crate::sector::{Place, SECTOR_HEADER_BYTES, SectorState, classify, is_first};

/// Positions between which the acknowledged records of a log ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Everything below was durable.
    pub least: Seq,
    /// Nothing above was durable.
    pub durable: Seq,
    /// Nothing above was published.
    pub published: Seq,
}

/// The bounds of a log, as far as its files can be read. Changes nothing.
///
/// # Errors
/// [`Error::Io`] if a read failed.
pub fn bounds(backend: &dyn Backend, queue: &mut dyn Queue, input: &ReplayInput) -> Result<Bounds> {
    let (mut least, mut durable) = (input.from, input.from);
    for (nth, file) in input.files.iter().enumerate() {
        let is_last = nth + 1 == input.files.len();
        let found = look_at(backend, queue, input, (file, is_last))?;
        least = least.max(file.start).max(next_granule(found.claim));
        durable = found.reach;
    }
    let start = input.incarnation_start;
    let ring_file_bytes = ring_file_bytes(backend, input)?;
    let mut published = durable.max(least).plus(input.ring_bytes);
    if ring_file_bytes < input.ring_bytes as u64 {
        published = published.min(Seq::new(start.get().saturating_add(ring_file_bytes)));
    }
    // What is proved counts more than what is concluded.
    let durable = durable.min(published).max(least);
    Ok(Bounds { least, durable, published: published.max(durable) })
}

/// The size of the ring's file: that of the manifest, or of the file where that is larger, since the newest edit of a
/// manifest may be lost.
fn ring_file_bytes(backend: &dyn Backend, input: &ReplayInput) -> Result<u64> {
    let told = input.ring_file_bytes as u64;
    let found = match open_existing(backend, &input.ring_path, 0, RING_KIND) {
        Ok((file, ..)) => backend.size_bytes(&file)?,
        Err(Error::Corrupt { .. }) => 0,
        Err(other) => return Err(other),
    };
    Ok(told.max(found))
}

/// The first place for a record at or behind `at`. A claim comes from the disk, and the next incarnation begins there.
fn next_granule(at: Seq) -> Seq {
    let granule = GRANULE as u64;
    Seq::new(at.get().checked_next_multiple_of(granule).unwrap_or(u64::MAX / granule * granule))
}

/// The facts that a log file proves.
struct Found {
    /// The highest claim in it.
    claim: Seq,
    /// No group in it ends above.
    reach: Seq,
}

fn look_at(
    backend: &dyn Backend,
    queue: &mut dyn Queue,
    input: &ReplayInput,
    (file, is_last): (&ActiveFile, bool),
) -> Result<Found> {
    let path = log_file_path(&input.directory, file.id);
    let len_bytes = usize::try_from(input.file_bytes).unwrap_or(usize::MAX);
    let bytes = read_there(backend, queue, &path, len_bytes)?;
    let place = Place { store_id: input.store_id, file_id: file.id, epoch: file.epoch };
    let rules = ChainRules { place, incarnation: input.incarnation, start: file.start };
    let chain = read_chain(&bytes, &rules);
    let stop = usize::try_from(chain.stop_offset).unwrap_or(len_bytes);
    let (end, offset) = last_group(&bytes, &rules, (chain.end, stop));
    let reach = |used: usize| end.plus(stream_room_bytes(used.saturating_sub(offset)));
    let is_whole = bytes.len() == len_bytes && offset > 0;
    let damage =
        if let Stop::Damaged { offset, .. } = chain.stop { usize::try_from(offset).ok() } else { None };
    let is_blind = damage.is_some_and(|at| offset == stop || !has_current(&bytes, &place, at));
    let seen = reach(used_bytes(&bytes, &place, offset));
    // A claim shows that durable sectors look unused. The replay begins at a durable position.
    let is_contradicted = damage.is_none() && chain.claim > chain.end || is_last && seen < input.from;
    let reach = if is_whole && !is_blind && !is_contradicted { seen } else { reach(len_bytes) };
    Ok(Found { claim: chain.claim, reach })
}

/// The bytes of a file that are there, in whole sectors.
fn read_there(
    backend: &dyn Backend,
    queue: &mut dyn Queue,
    path: &Path,
    len_bytes: usize,
) -> Result<Vec<u8>> {
    match open_existing(backend, path, len_bytes, LOG_KIND) {
        Ok((file, there_bytes, _)) => read_whole(queue, &file, there_bytes),
        Err(Error::Corrupt { .. }) => Ok(Vec::new()),
        Err(other) => Err(other),
    }
}

/// End in the stream, and in the file in bytes, of the last group whose header can be read, at or behind the stop of the chain.
fn last_group(file: &[u8], rules: &ChainRules, stop: (Seq, usize)) -> (Seq, usize) {
    let mut last = stop;
    for offset in (stop.1..file.len()).step_by(SECTOR_BYTES) {
        let Some(sector) = file.get(offset..).and_then(|rest| rest.first_chunk()) else { break };
        if !is_first(&rules.place, index_of(offset), sector) {
            continue;
        }
        let Some(group) = Group::decode(&sector[SECTOR_HEADER_BYTES..]) else { continue };
        let size_bytes = group.sealed_bytes().filter(|bytes| *bytes <= file.len() - offset);
        if let (Some(size_bytes), true) = (size_bytes, group.incarnation == rules.incarnation)
            && group.end >= last.0
        {
            last = (group.end, offset + size_bytes);
        }
    }
    last
}

/// Whether a sector from `from` on was written in this use of the file.
fn has_current(file: &[u8], place: &Place, from: usize) -> bool {
    let rest = file.get(from..).unwrap_or_default().as_chunks::<SECTOR_BYTES>().0;
    let state = |(nth, sector)| classify(place, index_of(from) + nth as u64, sector);
    rest.iter().enumerate().any(|found| matches!(state(found), SectorState::Current { .. }))
}

/// The end of the steps that have been written in this use of the file, or are damaged, from `from` on. Of the largest steps,
/// since no group there tells its own.
fn used_bytes(file: &[u8], place: &Place, from: usize) -> usize {
    let rest = file.get(from..).unwrap_or_default().as_chunks::<SECTOR_BYTES>().0;
    let is_used = |(nth, sector)| classify(place, index_of(from) + nth as u64, sector) != SectorState::Older;
    let last = rest.iter().enumerate().rev().find(|&(nth, sector)| is_used((nth, sector)));
    last.map_or(from, |(nth, _)| (from + (nth + 1) * SECTOR_BYTES).next_multiple_of(STEP).min(file.len()))
}

fn index_of(offset: usize) -> u64 {
    (offset / SECTOR_BYTES) as u64
}
